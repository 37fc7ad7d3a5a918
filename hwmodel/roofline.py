"""The roofline family: processors with caches, CPUs and GPUs, from their data sheets.

A row takes the longer of its arithmetic and its traffic (Williams, Waterman & Patterson, CACM
2009), and one launch. A device that is wide needs many outputs at once to be busy: below
`occupancy_knee` outputs its rate falls in proportion. Activations that fit half of the last cache
stay there from one row to the next; weights always come from memory.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np

from hwmodel import energy
from hwmodel.area import areas_of_die
from hwmodel.config import TECHNOLOGY, ConfigTable, Field
from hwmodel.rowwise import Family, RowCosts
from hwmodel.workload import DEPTHWISE, VECTOR, Layers

REASONS = (
    "feasible",
    "the weights and activations of a row are larger than the memory",
)


class Configs(ConfigTable):
    """Processors of the roofline family.

    `macs_per_s_8`, `macs_per_s_16`, `macs_per_s_32`: multiply-accumulates a second in words of up
    to so many bits, half of the operations that data sheets count; `vector_ops_per_s`, all other
    arithmetic; `depthwise_efficiency`, of the rate of other products; `dram_bandwidth` in bytes/s;
    `memory_bytes`; `cache_bytes` of the last level; `launch_s` of every row; `occupancy_knee` in
    outputs; `clock_hz`; `dram_pj_per_byte`; `static_w`; `die_area_mm2`; `technology_nm`.
    """

    FAMILY = "roofline"
    FIELDS: ClassVar[dict[str, Field]] = {
        "macs_per_s_8": Field("rate"),
        "macs_per_s_16": Field("rate"),
        "macs_per_s_32": Field("rate"),
        "vector_ops_per_s": Field("rate"),
        "depthwise_efficiency": Field("share"),
        "dram_bandwidth": Field("rate"),
        "memory_bytes": Field("count"),
        "cache_bytes": Field("count"),
        "launch_s": Field("cost"),
        "occupancy_knee": Field("count"),
        "clock_hz": Field("rate"),
        "dram_pj_per_byte": Field("cost", energy.DRAM_PJ_PER_BYTE),
        "static_w": Field("cost", 0.0),
        "die_area_mm2": Field("cost", 0.0),
        "technology_nm": TECHNOLOGY,
    }


class Work(NamedTuple):
    """Columns of rows, float64 [n_rows], of one repeat."""

    macs: np.ndarray
    vector_ops: np.ndarray
    depthwise: np.ndarray  # 1 or 0
    on_products: np.ndarray
    outputs: np.ndarray
    launches: np.ndarray
    input_bytes: np.ndarray
    output_bytes: np.ndarray
    weight_bytes: np.ndarray
    weight_bits: np.ndarray
    activation_bits: np.ndarray
    repeat: np.ndarray


class Machines(NamedTuple):
    """Columns of processors, float64 [n_configs]."""

    mac_s_8: np.ndarray
    mac_s_16: np.ndarray
    mac_s_32: np.ndarray
    vector_op_s: np.ndarray
    depthwise_slowdown: np.ndarray
    byte_s: np.ndarray
    memory_bytes: np.ndarray
    half_cache: np.ndarray
    launch_s: np.ndarray
    knee: np.ndarray
    dram_j: np.ndarray
    cache_j: np.ndarray
    arithmetic_scale: np.ndarray
    clock_hz: np.ndarray
    leakage_w: np.ndarray
    fixed_s: np.ndarray


def work_of(layers: Layers) -> Work:
    """Columns of `layers`."""
    products = layers.kind != VECTOR
    columns = Work(
        macs=layers.row_macs / layers.repeat,
        vector_ops=layers.vector_ops * ~products,
        depthwise=layers.kind == DEPTHWISE,
        on_products=products,
        outputs=np.maximum(layers.output_words / layers.steps, 1),
        launches=layers.steps,
        input_bytes=layers.input_words * layers.groups * layers.steps * layers.activation_bits / 8,
        output_bytes=layers.output_words * layers.output_bits / 8,
        weight_bytes=layers.operand_bytes + layers.bias_bytes + layers.gather_bytes,
        weight_bits=layers.weight_bits * products,
        activation_bits=layers.activation_bits,
        repeat=layers.repeat,
    )
    return Work(*(np.asarray(column, dtype=np.float64) for column in columns))


def machines(configs: Configs) -> Machines:
    """Columns of `configs`."""
    scale = energy.energy_scale(configs.technology_nm)
    return Machines(
        mac_s_8=1 / configs.macs_per_s_8,
        mac_s_16=1 / configs.macs_per_s_16,
        mac_s_32=1 / configs.macs_per_s_32,
        vector_op_s=1 / configs.vector_ops_per_s,
        depthwise_slowdown=1 / configs.depthwise_efficiency,
        byte_s=1 / configs.dram_bandwidth,
        memory_bytes=configs.memory_bytes.astype(np.float64),
        half_cache=configs.cache_bytes / 2,
        launch_s=configs.launch_s,
        knee=configs.occupancy_knee.astype(np.float64),
        dram_j=configs.dram_pj_per_byte * 1e-12,
        cache_j=energy.sram_pj_per_byte(configs.cache_bytes) * scale * 1e-12,
        arithmetic_scale=scale * 1e-12,
        clock_hz=configs.clock_hz,
        leakage_w=configs.static_w,
        fixed_s=np.zeros(len(configs)),
    )


def row_costs(work: Work, machine: Machines) -> RowCosts:
    """Costs of rows."""
    widest = np.maximum(work.weight_bits, work.activation_bits)
    mac_s = np.where(
        widest <= 8, machine.mac_s_8, np.where(widest <= 16, machine.mac_s_16, machine.mac_s_32)
    )
    idle = np.maximum(machine.knee / work.outputs, 1.0)
    slowdown = np.where(work.depthwise > 0, machine.depthwise_slowdown, 1.0)
    compute = work.macs * mac_s * slowdown * idle
    vector = work.vector_ops * machine.vector_op_s * idle
    activations = sum(
        np.where(size <= machine.half_cache, 0.0, size)
        for size in (work.input_bytes, work.output_bytes)
    )
    dram_bytes = (activations + work.weight_bytes) * work.repeat
    sram_bytes = (work.input_bytes + work.output_bytes + work.weight_bytes) * work.repeat
    dram = dram_bytes * machine.byte_s
    compute, vector = compute * work.repeat, vector * work.repeat
    launch = work.launches * work.repeat * machine.launch_s
    macs, operations = work.macs * work.repeat, work.vector_ops * work.repeat
    arithmetic = (
        macs * energy.mac_pj(work.weight_bits, work.activation_bits)
        + operations * energy.VECTOR_LANE_PJ
    )
    return RowCosts(
        seconds=np.maximum(np.maximum(compute, vector), dram) + launch,
        parts={"compute": compute, "vector": vector, "dram": dram, "launch": launch},
        arithmetic_j=arithmetic * machine.arithmetic_scale,
        register_j=0.0,
        sram_j=sram_bytes * machine.cache_j,
        dram_j=dram_bytes * machine.dram_j,
        dram_bytes=dram_bytes,
        sram_bytes=sram_bytes,
        peak_s=macs * mac_s,
        code=np.where(sram_bytes > machine.memory_bytes, 1, 0),
    )


FAMILY = Family(REASONS, machines, areas_of_die, work_of, row_costs)
