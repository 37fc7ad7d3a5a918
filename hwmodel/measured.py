"""The measured family: a device known by what it took to run networks, not by its data sheet.

A row's latency is a sum of physical quantities, each at a rate of the device's own:

    MACs, MACs of depthwise rows, vector operations, bytes in and out of each of the three, those of
    them that do not stay on the chip, launches of each of the three, launches of products of a
    single vector, and bytes of weights;

every network pays `fixed_s` once. `calibrate.py` finds the rates. Channels of depthwise rows and of
spilled tensors are padded to `granule`, the width of the device's vectors.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np

from hwmodel import energy
from hwmodel.area import areas_of_die
from hwmodel.config import TECHNOLOGY, ConfigTable, Field
from hwmodel.rowwise import Family, RowCosts
from hwmodel.workload import DEPTHWISE, VECTOR, Layers

# How a tensor that is larger than the chip's memory moves: all of it, as where a compiler places
# whole tensors; or what is in excess, as where it keeps tiles.
SPILLS = ("whole", "excess")
# What a row costs, in seconds for each: the columns of `quantities`.
RATES = (
    "product_mac_s",
    "depthwise_mac_s",
    "vector_op_s",
    "product_byte_s",
    "depthwise_byte_s",
    "vector_byte_s",
    "product_spilled_byte_s",
    "depthwise_spilled_byte_s",
    "vector_spilled_byte_s",
    "product_launch_s",
    "depthwise_launch_s",
    "vector_launch_s",
    "single_vector_launch_s",
    "weight_byte_s",
)
BOUNDS = {
    "compute": ("product_mac_s", "depthwise_mac_s", "vector_op_s"),
    "dram": (
        "product_spilled_byte_s",
        "depthwise_spilled_byte_s",
        "vector_spilled_byte_s",
        "weight_byte_s",
    ),
    "sram": ("product_byte_s", "depthwise_byte_s", "vector_byte_s"),
    "launch": (
        "product_launch_s",
        "depthwise_launch_s",
        "vector_launch_s",
        "single_vector_launch_s",
    ),
}
REASONS = (
    "feasible",
    "the device was measured with narrower weights",
    "the device was measured with narrower activations",
)


class Configs(ConfigTable):
    """Devices of the measured family.

    The rates of `RATES`, in seconds per MAC, byte, operation or launch, none negative; `fixed_s` of
    every network; `granule` in channels; `resident_bytes` of activations that stay on the chip;
    `spill` (whole, excess); `weight_bits` and `activation_bits`, the widest that were measured;
    `static_w`, power whether it works or not; `die_area_mm2` (0 where nobody published it);
    `technology_nm`.
    """

    FAMILY = "measured"
    FIELDS: ClassVar[dict[str, Field]] = {
        **{rate: Field("cost", 0.0) for rate in RATES},
        "fixed_s": Field("cost", 0.0),
        "granule": Field("count", 1),
        "resident_bytes": Field("amount", 0),
        "spill": Field("choice", "whole", SPILLS),
        "weight_bits": Field("count", 32),
        "activation_bits": Field("count", 32),
        "static_w": Field("cost", 0.0),
        "die_area_mm2": Field("cost", 0.0),
        "technology_nm": TECHNOLOGY,
    }


class Work(NamedTuple):
    """Columns of rows, float64 [n_rows], of one repeat."""

    on_products: np.ndarray  # 1 or 0: which of the three engines runs it
    on_depthwise: np.ndarray
    on_vector: np.ndarray
    single: np.ndarray  # a product with one vector an example
    macs: np.ndarray
    taps: np.ndarray  # multiplications a channel of a depthwise row
    vector_ops: np.ndarray
    input_bytes: np.ndarray
    output_bytes: np.ndarray
    input_channels: np.ndarray
    output_channels: np.ndarray
    weight_bytes: np.ndarray
    weight_bits: np.ndarray
    activation_bits: np.ndarray
    launches: np.ndarray
    repeat: np.ndarray


class Machines(NamedTuple):
    """Columns of devices, float64 [n_configs]."""

    rates: tuple
    granule: np.ndarray
    resident_bytes: np.ndarray
    spills_whole: np.ndarray
    weight_bits: np.ndarray
    activation_bits: np.ndarray
    on_chip_scale: np.ndarray
    leakage_w: np.ndarray
    clock_hz: np.ndarray
    fixed_s: np.ndarray


def work_of(layers: Layers) -> Work:
    """Columns of `layers`."""
    depthwise, vector = layers.kind == DEPTHWISE, layers.kind == VECTOR
    product = ~(depthwise | vector)
    taps = layers.kernel_height * layers.kernel_width
    # A vector row does not say how its words divide into channels; its tensors are not padded.
    inputs = np.where(depthwise, layers.groups, layers.k * layers.groups / taps)
    outputs = np.where(depthwise, layers.groups * layers.n, layers.n * layers.groups)
    columns = Work(
        on_products=product,
        on_depthwise=depthwise,
        on_vector=vector,
        single=product & (layers.m <= layers.batch * layers.steps),
        macs=layers.row_macs / layers.repeat,
        taps=layers.m * layers.k * layers.n * depthwise,
        vector_ops=layers.vector_ops * vector,
        input_bytes=layers.input_words * layers.groups * layers.steps * layers.activation_bits / 8,
        output_bytes=layers.output_words * layers.output_bits / 8,
        input_channels=np.where(vector, 1, inputs),
        output_channels=np.where(vector, 1, outputs),
        weight_bytes=layers.operand_bytes + layers.bias_bytes + layers.gather_bytes,
        weight_bits=layers.weight_bits * ~vector,
        activation_bits=layers.activation_bits,
        launches=layers.steps,
        repeat=layers.repeat,
    )
    return Work(*(np.asarray(column, dtype=np.float64) for column in columns))


def padding(channels, granule):
    """How much wider `channels` are when padded to a multiple of `granule`."""
    return np.ceil(channels / granule) * granule / channels


def spilled_bytes(work: Work, granule, resident_bytes, spills_whole):
    """Bytes of a row's input and output that are larger than what stays on the chip."""
    moved = 0.0
    for size, channels in (
        (work.input_bytes, work.input_channels),
        (work.output_bytes, work.output_channels),
    ):
        whole = np.where(size > resident_bytes, size * padding(channels, granule), 0.0)
        moved = moved + np.where(spills_whole, whole, np.maximum(size - resident_bytes, 0.0))
    return moved


def quantities(work: Work, granule, resident_bytes, spills_whole) -> tuple[np.ndarray, ...]:
    """What the `RATES` multiply, in their order, all repeats; the shapes broadcast."""
    size = work.input_bytes + work.output_bytes
    spilled = spilled_bytes(work, granule, resident_bytes, spills_whole)
    engines = (work.on_products, work.on_depthwise, work.on_vector)
    per_row = (
        work.macs * work.on_products,
        work.taps * np.ceil(work.output_channels / granule) * granule,
        work.vector_ops,
        *(size * engine for engine in engines),
        *(spilled * engine for engine in engines),
        *(work.launches * engine for engine in engines),
        work.launches * work.single,
        work.weight_bytes,
    )
    return tuple(quantity * work.repeat for quantity in per_row)


def machines(configs: Configs) -> Machines:
    """Columns of `configs`. A cycle is a nanosecond: nobody says what a device's clock is."""
    return Machines(
        rates=np.stack([getattr(configs, rate) for rate in RATES], axis=1),
        granule=configs.granule.astype(np.float64),
        resident_bytes=configs.resident_bytes.astype(np.float64),
        spills_whole=configs.codes("spill") == SPILLS.index("whole"),
        weight_bits=configs.weight_bits,
        activation_bits=configs.activation_bits,
        on_chip_scale=energy.energy_scale(configs.technology_nm),
        leakage_w=configs.static_w,
        clock_hz=np.full(len(configs), 1e9),
        fixed_s=configs.fixed_s,
    )


def row_costs(work: Work, machine: Machines) -> RowCosts:
    """Costs of rows. The arithmetic's energy is that of the bits; bytes that spill cross DRAM, the
    others an on-chip memory of 1 MiB."""
    amounts = quantities(work, machine.granule, machine.resident_bytes, machine.spills_whole)
    seconds = {
        rate: amount * machine.rates[..., i]
        for i, (rate, amount) in enumerate(zip(RATES, amounts, strict=True))
    }
    parts = {name: sum(seconds[rate] for rate in rates) for name, rates in BOUNDS.items()}
    latency_s = sum(parts.values())
    moved = spilled_bytes(work, 1.0, machine.resident_bytes, machine.spills_whole)
    dram_bytes = (moved + work.weight_bytes) * work.repeat
    sram_bytes = (work.input_bytes + work.output_bytes + work.weight_bytes) * work.repeat
    macs = work.macs * work.repeat
    scale = machine.on_chip_scale * 1e-12
    mac_pj = energy.mac_pj(work.weight_bits, work.activation_bits)
    operations = work.vector_ops * work.repeat
    code = np.where(work.activation_bits > machine.activation_bits, 2, 0)
    return RowCosts(
        seconds=latency_s,
        parts=parts,
        arithmetic_j=(macs * mac_pj + operations * energy.VECTOR_LANE_PJ) * scale,
        register_j=0.0,
        sram_j=sram_bytes * energy.sram_pj_per_byte(2**20) * scale,
        dram_j=dram_bytes * energy.DRAM_PJ_PER_BYTE * 1e-12,
        dram_bytes=dram_bytes,
        sram_bytes=sram_bytes,
        peak_s=seconds["product_mac_s"] + seconds["depthwise_mac_s"],
        code=np.where(work.weight_bits > machine.weight_bits, 1, code),
    )


FAMILY = Family(REASONS, machines, areas_of_die, work_of, row_costs)
