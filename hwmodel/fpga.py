"""The FPGA family: one engine that all layers share, or a pipeline with an engine for each.

A shared engine multiplies `pixel_parallelism` pixels x `channel_parallelism` input channels x
`filter_parallelism` filters a cycle, one tap of the kernel after the other, as the DPU does (Xilinx
PG338: 8 x 16 x 16 in a B4096), so that sizes are rounded up to the tile. In a pipeline every layer
has its own multipliers, in proportion to its work, keeps its weights and the rows of its window on
the chip, and hands pixels on; the slowest stage sets the interval between images (FINN, Umuroglu et
al., FPGA 2017; hls4ml). A design that needs more slices or blocks than the chip has is infeasible.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np

from hwmodel import area, energy
from hwmodel.config import TECHNOLOGY, ConfigTable, Field
from hwmodel.figures import Areas, Figures, sum_networks
from hwmodel.rowwise import Family, RowCosts, network_figures
from hwmodel.workload import DEPTHWISE, VECTOR, Layers

# One DSP48E2 multiplies 27 x 18 bits: two 8-bit products that share a factor (Xilinx WP486), or one
# wider. One RAMB36 holds 36 Kib; as 1 Ki x 36 bits it feeds four 8-bit lanes.
PRODUCTS_PER_SLICE = 2
BLOCK_BYTES, BLOCK_LANES, BLOCK_DEPTH = 4608, 4, 1024
# An FPGA against a standard-cell chip of the same node where multipliers and memories are hard
# blocks: 18 times the area, 7.1 times the dynamic energy (Kuon & Rose, TCAD 2007; recalled).
AREA_RATIO, ENERGY_RATIO = 18.0, 7.1
REASONS = (
    "feasible",
    "the multipliers take words of at most 16 bits",
    "the engine needs more DSP slices than the chip has",
    "the buffers need more memory blocks than the chip has",
    "the pipeline's weights and windows need more memory blocks than the chip has",
    "the pipeline has more layers than multipliers",
)


class Configs(ConfigTable):
    """Accelerators of the FPGA family.

    `filter_parallelism`, `channel_parallelism`, `pixel_parallelism`: multiplications a cycle of the
    shared engine; `input_buffer_words`, `weight_buffer_words`, `output_buffer_words`: depth of each
    lane's buffer; `memory_bits` a cycle from DRAM; `pooling_engine` (vector work at the rate of
    filters x pixels; else of filters); `pipelined`; `dsp_slices` and `memory_blocks` of the chip;
    `dsp_clock_ratio`, multiplications of a slice in one cycle of the rest; `clock_hz`; `static_w`;
    `technology_nm`.
    """

    FAMILY = "fpga"
    FIELDS: ClassVar[dict[str, Field]] = {
        "filter_parallelism": Field("count"),
        "channel_parallelism": Field("count"),
        "pixel_parallelism": Field("count"),
        "input_buffer_words": Field("count"),
        "weight_buffer_words": Field("count"),
        "output_buffer_words": Field("count"),
        "memory_bits": Field("count"),
        "pooling_engine": Field("flag", True),
        "pipelined": Field("flag", False),
        "dsp_slices": Field("count"),
        "memory_blocks": Field("count"),
        "dsp_clock_ratio": Field("count", 1),
        "clock_hz": Field("rate"),
        "static_w": Field("cost", 0.0),
        "technology_nm": TECHNOLOGY,
    }


class Work(NamedTuple):
    """Columns of rows, float64 [n_rows], of one repeat."""

    pixels: np.ndarray  # of the whole batch, one step
    steps: np.ndarray
    taps: np.ndarray
    channels: np.ndarray  # of one group
    filters: np.ndarray
    groups: np.ndarray
    depthwise: np.ndarray  # 1 or 0
    on_array: np.ndarray
    vector_ops: np.ndarray
    macs: np.ndarray
    share: np.ndarray  # of the network's multiply-accumulates, repeats included
    input_bytes: np.ndarray
    output_bytes: np.ndarray
    weight_bytes: np.ndarray
    window_bytes: np.ndarray  # the input rows that a window covers
    at_edge: np.ndarray  # bytes that enter or leave the whole network here
    bits: np.ndarray
    batch: np.ndarray
    repeat: np.ndarray


class Machines(NamedTuple):
    """Columns of accelerators, float64 [n_configs]."""

    filters: np.ndarray
    channels: np.ndarray
    pixels: np.ndarray
    input_buffer: np.ndarray  # bytes
    weight_buffer: np.ndarray
    lanes: np.ndarray
    dram_bytes_per_cycle: np.ndarray
    pipelined: np.ndarray
    macs_per_cycle: np.ndarray  # of 8-bit words, in the engine or in all of a pipeline
    memory_blocks: np.ndarray
    code: np.ndarray  # what is wrong with the engine itself
    mac_scale: np.ndarray
    buffer_j: np.ndarray
    clock_hz: np.ndarray
    leakage_w: np.ndarray
    fixed_s: np.ndarray


def work_of(layers: Layers) -> Work:
    """Columns of `layers`."""
    on_array = layers.kind != VECTOR
    taps = layers.kernel_height * layers.kernel_width
    totals = sum_networks(layers.row_macs.astype(np.float64), layers.offsets)
    word = layers.activation_bits / 8
    input_bytes = layers.input_words * layers.groups * layers.steps * word
    output_bytes = layers.output_words * layers.output_bits / 8
    rows = np.maximum(layers.out_height, 1)
    at_edge = np.zeros(len(layers))
    at_edge[layers.offsets[:-1]] += input_bytes[layers.offsets[:-1]]
    at_edge[layers.offsets[1:] - 1] += output_bytes[layers.offsets[1:] - 1]
    columns = Work(
        pixels=layers.m / layers.steps,
        steps=layers.steps,
        taps=taps,
        channels=np.maximum(layers.k // taps, 1),
        filters=np.maximum(layers.n, 1),
        groups=layers.groups,
        depthwise=layers.kind == DEPTHWISE,
        on_array=on_array,
        vector_ops=layers.vector_ops * ~on_array,
        macs=layers.row_macs / layers.repeat,
        share=layers.row_macs / np.maximum(totals, 1)[layers.network_of_row],
        input_bytes=input_bytes,
        output_bytes=output_bytes,
        weight_bytes=layers.operand_bytes + layers.bias_bytes + layers.gather_bytes,
        window_bytes=input_bytes / layers.batch * np.minimum(1, layers.kernel_height / rows),
        at_edge=at_edge,
        bits=np.maximum(layers.weight_bits * on_array, layers.activation_bits),
        batch=layers.batch,
        repeat=layers.repeat,
    )
    return Work(*(np.asarray(column, dtype=np.float64) for column in columns))


def engine_slices(configs: Configs) -> np.ndarray:
    """[n_configs] DSP slices of the shared engine."""
    products = configs.filter_parallelism * configs.channel_parallelism * configs.pixel_parallelism
    return np.ceil(products / (PRODUCTS_PER_SLICE * configs.dsp_clock_ratio))


def engine_blocks(configs: Configs) -> np.ndarray:
    """[n_configs] memory blocks of the shared engine's buffers, one lane for each word that is read
    or written in a cycle."""
    filters, channels = configs.filter_parallelism, configs.channel_parallelism
    pixels = configs.pixel_parallelism
    return sum(
        np.ceil(lanes / BLOCK_LANES) * np.ceil(words / BLOCK_DEPTH)
        for lanes, words in (
            (channels * pixels, configs.input_buffer_words),
            (channels * filters, configs.weight_buffer_words),
            (filters * pixels, configs.output_buffer_words),
        )
    )


def machines(configs: Configs) -> Machines:
    """Columns of `configs`."""
    filters, channels, pixels = (
        column.astype(np.float64)
        for column in (
            configs.filter_parallelism,
            configs.channel_parallelism,
            configs.pixel_parallelism,
        )
    )
    slices_macs = configs.dsp_slices * PRODUCTS_PER_SLICE * configs.dsp_clock_ratio
    code = np.where(engine_blocks(configs) > configs.memory_blocks, 3, 0)
    code = np.where(engine_slices(configs) > configs.dsp_slices, 2, code)
    scale = energy.energy_scale(configs.technology_nm) * ENERGY_RATIO * 1e-12
    return Machines(
        filters=filters,
        channels=channels,
        pixels=pixels,
        input_buffer=channels * pixels * configs.input_buffer_words,
        weight_buffer=channels * filters * configs.weight_buffer_words,
        lanes=filters * np.where(configs.pooling_engine, pixels, 1.0),
        dram_bytes_per_cycle=configs.memory_bits / 8,
        pipelined=configs.pipelined,
        macs_per_cycle=np.where(configs.pipelined, slices_macs, filters * channels * pixels),
        memory_blocks=configs.memory_blocks.astype(np.float64),
        code=np.where(configs.pipelined, 0, code),
        mac_scale=scale,
        buffer_j=energy.sram_pj_per_byte(BLOCK_BYTES) * scale,
        clock_hz=configs.clock_hz,
        leakage_w=configs.static_w,
        fixed_s=np.zeros(len(configs)),
    )


def areas(configs: Configs) -> Areas:
    """Silicon of the slices and blocks in use, a pipeline's being all of the chip's."""
    slices = np.where(configs.pipelined, configs.dsp_slices, engine_slices(configs))
    blocks = np.where(configs.pipelined, configs.memory_blocks, engine_blocks(configs))
    scale = AREA_RATIO * area.area_scale(configs.technology_nm) * 1e-6
    return Areas(
        array_area_mm2=slices * area.ELEMENT_UM2["fixed16"] * scale,
        vector_area_mm2=np.zeros(len(configs)),
        sram_area_mm2=blocks * BLOCK_BYTES * area.SRAM_UM2_PER_BYTE * scale,
    )


def engine_cycles(work: Work, machine: Machines) -> np.ndarray:
    """Cycles of one repeat on the shared engine: pixels, channels and filters rounded up to the
    tile, a tap a step; depthwise channels lie along the filters."""
    tiles = np.ceil(work.pixels / machine.pixels) * work.taps * work.steps
    filters = np.where(work.depthwise > 0, work.groups, work.filters)
    steps = np.ceil(work.channels / machine.channels) * np.where(
        work.depthwise > 0, work.filters, work.groups
    )
    return tiles * np.ceil(filters / machine.filters) * steps


def engine_dram_bytes(work: Work, machine: Machines) -> np.ndarray:
    """Bytes to and from DRAM of one repeat: of inputs and weights one crosses once, and the other
    once for each part of the first that fits half of its buffer, whichever is less."""
    weight_parts = np.ceil(work.weight_bytes / (machine.weight_buffer / 2))
    input_parts = np.ceil(work.input_bytes / (machine.input_buffer / 2))
    inputs_again = work.input_bytes * np.maximum(weight_parts, 1) + work.weight_bytes
    weights_again = work.input_bytes + work.weight_bytes * np.maximum(input_parts, 1)
    once = work.input_bytes + work.weight_bytes
    moved = np.where(work.on_array, np.minimum(inputs_again, weights_again), once)
    return moved + work.output_bytes


def row_costs(work: Work, machine: Machines) -> RowCosts:
    """Costs of rows: of the whole batch on a shared engine; as a stage, of one image."""
    piped = machine.pipelined
    passes = np.where(work.bits > 8, 2.0, 1.0)  # a slice multiplies one pair of wide words
    multipliers = np.maximum(np.floor(work.share / work.repeat * machine.macs_per_cycle), 1)
    stage = work.macs / work.batch * passes / multipliers
    images = np.where(piped, work.batch, 1.0)
    compute = np.where(piped, np.ceil(stage), engine_cycles(work, machine) * passes)
    compute = compute * work.on_array
    vector = np.ceil(work.vector_ops / images / machine.lanes)
    moved = np.where(piped, work.at_edge, engine_dram_bytes(work, machine) * work.repeat)
    # Weights of a pipeline are loaded once and for all.
    dram = moved / images / work.repeat / machine.dram_bytes_per_cycle
    cycles = np.maximum(np.maximum(compute, vector), dram)
    seconds = cycles / machine.clock_hz
    per_cycle = work.repeat / machine.clock_hz
    held = (work.weight_bytes + work.window_bytes) * work.repeat
    buffered = (work.input_bytes + work.output_bytes + work.weight_bytes) * work.repeat
    macs = work.macs * work.repeat
    mac_pj = energy.mac_pj(work.bits, work.bits)
    arithmetic = macs * mac_pj + work.vector_ops * work.repeat * energy.ADD_INT32_PJ
    return RowCosts(
        seconds=seconds * work.repeat,
        parts={
            "compute": compute * per_cycle,
            "vector": vector * per_cycle,
            "dram": dram * per_cycle,
        },
        arithmetic_j=arithmetic * machine.mac_scale,
        register_j=0.0,
        sram_j=buffered * machine.buffer_j,
        dram_j=moved * energy.DRAM_PJ_PER_BYTE * 1e-12,
        dram_bytes=moved,
        sram_bytes=buffered,
        peak_s=macs * passes / machine.macs_per_cycle / machine.clock_hz,
        code=np.where(work.bits > 16, 1, machine.code),
        extra={
            "stage_s": seconds,
            "images": work.batch,
            "blocks": np.ceil(held / BLOCK_BYTES),
            "multipliers": multipliers * work.on_array * work.repeat,
        },
    )


def networks(
    costs: RowCosts, offsets: np.ndarray, machine: Machines, axis: int
) -> tuple[Figures, np.ndarray]:
    """Prices and reason codes of networks. In a pipeline the first image passes all stages, the
    others follow at the pace of the slowest."""
    priced, codes = network_figures(costs, offsets, machine, axis)
    piped, shape = machine.pipelined, costs.seconds.shape

    def reduce(name: str, ufunc=np.add) -> np.ndarray:
        return sum_networks(np.broadcast_to(costs.extra[name], shape), offsets, axis, ufunc)

    slowest, images = reduce("stage_s", np.maximum), reduce("images", np.maximum)
    latency_s = np.where(piped, priced.latency_s + (images - 1) * slowest, priced.latency_s)
    interval_s = np.where(piped, images * slowest, latency_s)
    full = reduce("blocks") > machine.memory_blocks
    crowded = reduce("multipliers") > machine.macs_per_cycle
    codes = np.where(piped & crowded & (codes == 0), 5, codes)
    codes = np.where(piped & full & (codes == 0), 4, codes).astype(np.uint8)
    peak_s = sum_networks(np.broadcast_to(costs.peak_s, shape), offsets, axis)
    return priced._replace(
        cycles=latency_s * machine.clock_hz,
        latency_s=latency_s,
        interval_s=interval_s,
        leakage_j=latency_s * machine.leakage_w,
        utilization=np.minimum(peak_s / interval_s, 1.0),
    ), codes


FAMILY = Family(REASONS, machines, areas, work_of, row_costs, networks)
