"""The systolic family's blocks: some networks against some accelerators, summed by network."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hwmodel import energy, systolic
from hwmodel.area import areas
from hwmodel.config import DATAFLOWS, DEPTHWISE_ENGINES, Configs
from hwmodel.figures import Figures, sum_networks
from hwmodel.network_ends import EndWork, drain_cycles, end_work, fill_cycles
from hwmodel.rows import (
    ArrayWork,
    Design,
    Machines,
    VectorWork,
    array_costs,
    array_work,
    machines,
    runs_on_array,
    streaming_cycles,
    vector_costs,
    vector_work,
)
from hwmodel.workload import Layers

__all__ = ["REASONS", "areas", "block_of", "designs", "evaluate", "explain", "machines"]

OfRows = Callable[[np.ndarray], Machines]
REASONS = (
    "feasible",
    "the multipliers cannot run the weight bits",
    "the multipliers cannot run the activation bits",
    "half of the input SRAM is smaller than the least tile",
    "half of the weight SRAM is smaller than the least tile",
    "half of the output SRAM is smaller than the least tile",
)


class Limits(NamedTuple):
    """The widest words that each network brings to the array, float64 [n_networks]; weights as
    multiplied, and as they lie in SRAM."""

    weight_bits: np.ndarray
    word_bits: np.ndarray
    activation_bits: np.ndarray
    output_bits: np.ndarray


class Block(NamedTuple):
    """What some networks ask of machines of one design."""

    array: ArrayWork
    array_offsets: np.ndarray  # [n_networks + 1]
    vector: VectorWork
    vector_offsets: np.ndarray
    first: EndWork
    last: EndWork
    limits: Limits

    def rows_first(self) -> Block:
        """The same block with columns of shape [rows, 1] and [n_networks, 1]."""
        return Block(
            *(
                part if isinstance(part, np.ndarray) else type(part)(*(c[:, None] for c in part))
                for part in self
            )
        )


def block_of(layers: Layers, design: Design) -> Block:
    """The block of all of `layers`."""
    on_array = runs_on_array(layers, design.depthwise_on)
    array, vector = layers.keep(on_array), layers.keep(~on_array)
    return Block(
        array=array_work(array, design),
        array_offsets=array.offsets,
        vector=vector_work(vector),
        vector_offsets=vector.offsets,
        first=end_work(layers, layers.offsets[:-1], design),
        last=end_work(layers, layers.offsets[1:] - 1, design),
        limits=Limits(
            *(
                sum_networks(bits.astype(np.float64), array.offsets, ufunc=np.maximum)
                for bits in (
                    array.weight_bits,
                    array.word_bits,
                    array.activation_bits,
                    array.output_bits,
                )
            )
        ),
    )


def designs(configs: Configs) -> list[tuple[Design, np.ndarray]]:
    """The designs that occur, each with the indices of its accelerators."""
    dataflow, engine = configs.codes("dataflow"), configs.codes("depthwise_on")
    # Output-stationary cycles are the same with one plane or two.
    double_plane = configs.double_weight_plane & (dataflow != DATAFLOWS.index("os"))
    key = ((dataflow * 2 + double_plane) * 2 + engine) * 2 + configs.skips_zeros
    key = key * 2 + configs.activations_on_chip
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    found = []
    for members in np.split(order, starts[1:]):
        one = members[0]
        design = Design(
            DATAFLOWS[dataflow[one]],
            bool(double_plane[one]),
            DEPTHWISE_ENGINES[engine[one]],
            bool(configs.skips_zeros[one]),
            bool(configs.activations_on_chip[one]),
        )
        found.append((design, members))
    return found


def evaluate(
    block: Block, design: Design, machine: Machines, of_rows: OfRows, axis: int
) -> tuple[Figures, np.ndarray]:
    """Prices and reason codes of the block's networks; shapes as the columns broadcast.

    `machine` meets networks; `of_rows(offsets)` is the machine that meets the rows between the
    offsets: the same in a grid, gathered by row for pairs. `axis` is that of the rows.
    """
    array = array_costs(block.array, of_rows(block.array_offsets), design)
    vector = vector_costs(block.vector, of_rows(block.vector_offsets), design)

    def on_array(field: str) -> np.ndarray:
        return sum_networks(getattr(array, field), block.array_offsets, axis)

    def on_vector(field: str) -> np.ndarray:
        return sum_networks(getattr(vector, field), block.vector_offsets, axis)

    def total(field: str) -> np.ndarray:
        return on_array(field) + on_vector(field)

    cycles = total("cycles")
    cycles += fill_cycles(block.first, machine, design)
    cycles += drain_cycles(block.last, machine, design)
    priced = figures(
        cycles,
        total("dram_bytes"),
        total("sram_input_bytes"),
        total("sram_weight_bytes"),
        total("sram_output_bytes"),
        on_array("busy"),
        on_vector("busy"),
        machine,
    )
    return priced, reason_codes(block.limits, machine, design)


def explain(
    layers: Layers, machine: Machines, design: Design
) -> tuple[Figures, np.ndarray, np.ndarray]:
    """Prices, bounds and reason codes of the rows of one network, each [n_rows].

    The first row includes the fill, the last one the drain. `bound` says what sets the row's
    cycles: "compute"; "fill", the same where the array spends more cycles on preload and skew than
    on streaming; "vector", "sram" or "dram".
    """
    # Every row as a network of its own: the same formulas, each row with its own fill and drain.
    block = block_of(layers.as_networks(), design)
    on_array = runs_on_array(layers, design.depthwise_on)
    array = array_costs(block.array, machine, design)
    vector = vector_costs(block.vector, machine, design)

    def rowwise(field: str) -> np.ndarray:
        values = np.empty(len(layers))
        values[on_array], values[~on_array] = getattr(array, field), getattr(vector, field)
        return values

    cycles = rowwise("cycles")
    cycles[0] += fill_cycles(block.first, machine, design)[0]
    cycles[-1] += drain_cycles(block.last, machine, design)[-1]
    compute, dram, sram = map(rowwise, ("compute_cycles", "dram_cycles", "sram_cycles"))
    bound = np.where(on_array, "compute", "vector").astype(object)
    filling = streaming_cycles(block.array, machine) < array.compute_cycles / 2
    bound[np.flatnonzero(on_array)[filling]] = "fill"
    bound[sram > compute] = "sram"
    bound[dram > np.maximum(compute, sram)] = "dram"
    busy = rowwise("busy")
    priced = figures(
        cycles,
        rowwise("dram_bytes"),
        rowwise("sram_input_bytes"),
        rowwise("sram_weight_bytes"),
        rowwise("sram_output_bytes"),
        np.where(on_array, busy, 0.0),
        np.where(on_array, 0.0, busy),
        machine,
    )
    return priced, bound, reason_codes(block.limits, machine, design)


def figures(
    cycles, dram_bytes, sram_inputs, sram_weights, sram_outputs, busy, lane_busy, machine: Machines
) -> Figures:
    """Prices from cycles, traffic in bytes, and the busy cycles of elements and lanes."""
    latency_s = cycles / machine.clock_hz
    sram_j = (
        sram_inputs * machine.sram_input_j
        + sram_weights * machine.sram_weight_j
        + sram_outputs * machine.sram_output_j
    )
    return Figures(
        cycles=cycles,
        latency_s=latency_s,
        interval_s=latency_s,
        arithmetic_j=busy * machine.element_j + lane_busy * machine.lane_j,
        register_j=busy * machine.register_j,
        sram_j=sram_j,
        dram_j=dram_bytes * (energy.DRAM_PJ_PER_BYTE * 1e-12),
        leakage_j=latency_s * machine.leakage_w,
        dram_bytes=dram_bytes,
        sram_bytes=sram_inputs + sram_weights + sram_outputs,
        utilization=busy / (cycles * (machine.rows * machine.columns)),
    )


def reason_codes(limits: Limits, machine: Machines, design: Design) -> np.ndarray:
    """Indices into `REASONS`, uint8; the first reason that holds. A network with no row on the
    array brings it no bits, and nothing is asked of its SRAMs."""
    least = systolic.least_sram_bytes(design.dataflow, machine.rows, machine.columns, *limits[1:])
    idle = limits.weight_bits == 0
    failed = (
        limits.weight_bits > machine.max_bits,
        limits.activation_bits > machine.max_bits,
        (least.inputs > machine.half_input) & ~idle,
        (least.weights > machine.half_weight) & ~idle,
        (least.outputs > machine.half_output) & ~idle,
    )
    codes = np.zeros(np.broadcast_shapes(*(flag.shape for flag in failed)), dtype=np.uint8)
    for code in range(len(failed), 0, -1):
        np.copyto(codes, code, where=failed[code - 1])
    return codes
