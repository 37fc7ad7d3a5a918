"""The edge family: a grid of processing elements with SIMD lanes, as searched by NAHAS.

The parameters are those of Zhou et al. (arXiv 2102.08619, table 1), after the Edge TPU: x times y
elements, each with a local memory and some lanes; each lane with a register file and SIMD units
that multiply and add `DOT_WIDTH` pairs a cycle. The paper's simulator is not public: here pixels
are spread over the elements and filters over the SIMD units, and either over the lanes; or filters
over everything, where an image is too small. Sums wait in the register files, a bank for each unit.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np

from hwmodel import area, energy
from hwmodel.config import TECHNOLOGY, ConfigTable, Field
from hwmodel.figures import Areas
from hwmodel.rowwise import Family, RowCosts
from hwmodel.workload import DEPTHWISE, VECTOR, Layers

DOT_WIDTH = 4  # 4 x 4 elements, 4 lanes, 64 units: 26 TOPS at 0.8 GHz, the paper's baseline
SUM_BYTES = 4
REASONS = (
    "feasible",
    "the lanes multiply words of at most 16 bits",
    "the register file holds less than one sum for each SIMD unit",
)


class Configs(ConfigTable):
    """Accelerators of the edge family.

    `pe_x` x `pe_y` elements, each with `local_memory_bytes` and `lanes`; each lane with
    `simd_units` and `register_file_bytes`; `io_bandwidth` in bytes/s; `clock_hz`; `technology_nm`.
    """

    FAMILY = "edge"
    FIELDS: ClassVar[dict[str, Field]] = {
        "pe_x": Field("count"),
        "pe_y": Field("count"),
        "simd_units": Field("count"),
        "lanes": Field("count"),
        "local_memory_bytes": Field("count"),
        "register_file_bytes": Field("count"),
        "io_bandwidth": Field("rate"),
        "clock_hz": Field("rate", 0.8e9),
        "technology_nm": TECHNOLOGY,
    }


class Work(NamedTuple):
    """Columns of rows, float64 [n_rows], of one repeat."""

    height: np.ndarray  # of the output
    width: np.ndarray  # of the output, images side by side
    depth: np.ndarray  # multiplications of one output
    filters: np.ndarray
    runs: np.ndarray  # products and steps, one after the other
    on_array: np.ndarray
    vector_ops: np.ndarray
    macs: np.ndarray
    input_bytes: np.ndarray
    output_bytes: np.ndarray
    weight_bytes: np.ndarray
    bits: np.ndarray
    passes: np.ndarray  # 8-bit multiplications of one of these words
    repeat: np.ndarray


class Machines(NamedTuple):
    """Columns of accelerators, float64 [n_configs]."""

    pe_x: np.ndarray
    pe_y: np.ndarray
    simd: np.ndarray
    lanes: np.ndarray
    memory_bytes: np.ndarray  # of all elements
    register_bytes: np.ndarray
    sums: np.ndarray  # outputs of a SIMD unit that a register file holds
    dram_bytes_per_cycle: np.ndarray
    scale: np.ndarray
    memory_j: np.ndarray
    register_j: np.ndarray
    clock_hz: np.ndarray
    leakage_w: np.ndarray
    fixed_s: np.ndarray


def work_of(layers: Layers) -> Work:
    """Columns of `layers`. Channels of a depthwise row lie along the SIMD units, as filters do."""
    on_array, depthwise = layers.kind != VECTOR, layers.kind == DEPTHWISE
    height = np.maximum(layers.out_height, 1)
    columns = Work(
        height=height,
        width=np.maximum(layers.m // layers.steps // height, 1),
        depth=np.maximum(layers.k, 1),
        filters=np.maximum(np.where(depthwise, layers.groups * layers.n, layers.n), 1),
        runs=np.where(depthwise, 1, layers.groups) * layers.steps,
        on_array=on_array,
        vector_ops=layers.vector_ops * ~on_array,
        macs=layers.row_macs / layers.repeat,
        input_bytes=layers.input_words * layers.groups * layers.steps * layers.activation_bits / 8,
        output_bytes=layers.output_words * layers.output_bits / 8,
        weight_bytes=layers.operand_bytes + layers.bias_bytes + layers.gather_bytes,
        bits=np.maximum(layers.weight_bits * on_array, layers.activation_bits),
        passes=np.ceil(layers.weight_bits / 8) * np.ceil(layers.activation_bits / 8),
        repeat=layers.repeat,
    )
    return Work(*(np.asarray(column, dtype=np.float64) for column in columns))


def machines(configs: Configs) -> Machines:
    """Columns of `configs`."""
    elements = (configs.pe_x * configs.pe_y).astype(np.float64)
    scale = energy.energy_scale(configs.technology_nm) * 1e-12
    memory = elements * configs.local_memory_bytes
    bank_bytes = configs.register_file_bytes / configs.simd_units
    registers = elements * configs.lanes * configs.register_file_bytes
    leakage_w = areas(configs).array_area_mm2 * energy.LOGIC_LEAKAGE_W_PER_MM2
    leakage_w += (
        (memory + registers)
        * energy.SRAM_LEAKAGE_W_PER_BYTE
        * area.area_scale(configs.technology_nm)
    )
    return Machines(
        pe_x=configs.pe_x.astype(np.float64),
        pe_y=configs.pe_y.astype(np.float64),
        simd=configs.simd_units.astype(np.float64),
        lanes=configs.lanes.astype(np.float64),
        memory_bytes=memory,
        register_bytes=configs.register_file_bytes.astype(np.float64),
        sums=np.floor(configs.register_file_bytes / (SUM_BYTES * configs.simd_units)),
        dram_bytes_per_cycle=configs.io_bandwidth / configs.clock_hz,
        scale=scale,
        memory_j=energy.sram_pj_per_byte(configs.local_memory_bytes) * scale,
        register_j=energy.sram_pj_per_byte(bank_bytes) * scale,
        clock_hz=configs.clock_hz,
        leakage_w=leakage_w,
        fixed_s=np.zeros(len(configs)),
    )


def areas(configs: Configs) -> Areas:
    """Multipliers and adders; register files and local memories as SRAM."""
    elements = (configs.pe_x * configs.pe_y).astype(np.float64)
    lanes = elements * configs.lanes
    scale = area.area_scale(configs.technology_nm) * 1e-6
    memory = elements * configs.local_memory_bytes + lanes * configs.register_file_bytes
    return Areas(
        array_area_mm2=lanes * configs.simd_units * DOT_WIDTH * area.ELEMENT_UM2["fixed8"] * scale,
        vector_area_mm2=np.zeros(len(configs)),
        sram_area_mm2=memory * area.SRAM_UM2_PER_BYTE * scale,
    )


def product_cycles(work: Work, machine: Machines) -> np.ndarray:
    """Cycles of one repeat: the best of lanes over pixels, lanes over filters, and all over
    filters."""
    tile = np.ceil(work.height / machine.pe_y) * np.ceil(work.width / machine.pe_x)
    elements = machine.pe_x * machine.pe_y
    by_pixels = np.ceil(tile / machine.lanes) * np.ceil(work.filters / machine.simd)
    by_filters = tile * np.ceil(work.filters / (machine.simd * machine.lanes))
    everything = machine.simd * machine.lanes * elements
    all_filters = work.height * work.width * np.ceil(work.filters / everything)
    outputs = np.minimum(np.minimum(by_pixels, by_filters), all_filters)
    return outputs * np.ceil(work.depth / DOT_WIDTH) * work.runs * work.passes


def row_costs(work: Work, machine: Machines) -> RowCosts:
    """Costs of rows. Activations of a row that together fit half of the local memories stay there;
    weights come once, or once for each part of larger activations. Vector work runs on the SIMD
    units."""
    units = machine.pe_x * machine.pe_y * machine.lanes * machine.simd
    compute = product_cycles(work, machine) * work.on_array
    vector = np.ceil(work.vector_ops / units)
    half = machine.memory_bytes / 2
    activations = work.input_bytes + work.output_bytes
    fits = activations <= half
    parts = np.where(fits, 1.0, np.ceil(work.input_bytes / half))
    again = np.where(work.weight_bytes <= half, 1.0, np.maximum(parts, 1.0))
    moved = np.where(fits, 0.0, activations) + work.weight_bytes * again
    dram = np.ceil(moved / machine.dram_bytes_per_cycle)
    # Weights pass a register file once for as many pixels as it holds sums of.
    pixels = np.ceil(work.height * work.width / (machine.pe_x * machine.pe_y * machine.lanes))
    weight_reads = np.ceil(pixels / np.maximum(machine.sums, 1))
    input_reads = np.ceil(work.filters / machine.simd)
    memory_bytes = (
        work.weight_bytes * weight_reads
        + work.input_bytes * np.where(work.on_array, input_reads, 1.0)
        + work.output_bytes
    )
    macs = work.macs
    register_bytes = macs / DOT_WIDTH * 2 * SUM_BYTES  # a sum is read and written a dot product
    per_cycle = work.repeat / machine.clock_hz
    arithmetic = (
        macs * work.passes * energy.ELEMENT_PJ["fixed8"] + work.vector_ops * energy.VECTOR_LANE_PJ
    )
    return RowCosts(
        seconds=np.maximum(np.maximum(compute, vector), dram) * per_cycle,
        parts={
            "compute": compute * per_cycle,
            "vector": vector * per_cycle,
            "dram": dram * per_cycle,
        },
        arithmetic_j=arithmetic * machine.scale * work.repeat,
        register_j=register_bytes * machine.register_j * work.repeat,
        sram_j=memory_bytes * machine.memory_j * work.repeat,
        dram_j=moved * energy.DRAM_PJ_PER_BYTE * 1e-12 * work.repeat,
        dram_bytes=moved * work.repeat,
        sram_bytes=memory_bytes * work.repeat,
        peak_s=macs * work.passes / (units * DOT_WIDTH) * per_cycle,
        code=np.where(work.bits > 16, 1, np.where((machine.sums < 1) & (work.on_array > 0), 2, 0)),
    )


FAMILY = Family(REASONS, machines, areas, work_of, row_costs)
