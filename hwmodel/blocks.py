"""Blocks: a few networks against a few accelerators, small enough for the cache, summed by network.

The columns of a block broadcast in one of two ways. Rows last: machines [c, 1] against rows [r],
giving [c, r]; this also holds pairs, where machines are [r] too. Rows first: machines [c] against
rows [r, 1], giving [r, c]. Either way the long axis is the last one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hwmodel import energy, systolic
from hwmodel.rows import (
    ArrayWork,
    Design,
    EdgeWork,
    Machines,
    VectorWork,
    array_costs,
    array_work,
    drain_cycles,
    edge_work,
    fill_cycles,
    runs_on_array,
    vector_costs,
    vector_work,
)
from hwmodel.workload import Layers

REASONS = (
    "feasible",
    "the multipliers cannot run the weight bits",
    "the multipliers cannot run the activation bits",
    "half of the input SRAM is smaller than the least tile",
    "half of the weight SRAM is smaller than the least tile",
    "half of the output SRAM is smaller than the least tile",
)


class Limits(NamedTuple):
    """The widest words that each network brings to the array, float64 [n_networks]."""

    weight_bits: np.ndarray
    activation_bits: np.ndarray
    output_bits: np.ndarray


class Block(NamedTuple):
    """What some networks ask of machines of one design."""

    array: ArrayWork
    array_offsets: np.ndarray  # [n_networks + 1]
    vector: VectorWork
    vector_offsets: np.ndarray
    first: EdgeWork
    last: EdgeWork
    limits: Limits

    def rows_first(self) -> Block:
        """The same block with columns of shape [rows, 1] and [n_networks, 1]."""
        return Block(
            *(
                part if isinstance(part, np.ndarray) else type(part)(*(c[:, None] for c in part))
                for part in self
            )
        )


class Figures(NamedTuple):
    """Prices of networks, or of rows: the fields of `Cost` that depend on both sides."""

    cycles: np.ndarray
    latency_s: np.ndarray
    arithmetic_j: np.ndarray
    sram_j: np.ndarray
    dram_j: np.ndarray
    leakage_j: np.ndarray
    dram_bytes: np.ndarray
    sram_bytes: np.ndarray
    utilization: np.ndarray


def block_of(layers: Layers, design: Design) -> Block:
    """The block of all of `layers`."""
    on_array = runs_on_array(layers, design.depthwise_on)
    array, vector = layers.keep(on_array), layers.keep(~on_array)
    return Block(
        array=array_work(array, design),
        array_offsets=array.offsets,
        vector=vector_work(vector),
        vector_offsets=vector.offsets,
        first=edge_work(layers, layers.offsets[:-1], design),
        last=edge_work(layers, layers.offsets[1:] - 1, design),
        limits=Limits(
            *(
                sum_networks(bits.astype(np.float64), array.offsets, ufunc=np.maximum)
                for bits in (array.weight_bits, array.activation_bits, array.output_bits)
            )
        ),
    )


def sum_networks(values, offsets, axis=-1, ufunc=np.add) -> np.ndarray:
    """Reduce `axis` (the first or the last) from rows to networks; 0 where a network has none."""
    starts = offsets[:-1]
    occupied = offsets[1:] > starts
    if occupied.all():
        return ufunc.reduceat(values, starts, axis=axis)
    shape = list(values.shape)
    shape[axis] = len(starts)
    sums = np.zeros(shape)
    if occupied.any():
        where = occupied if axis == 0 else (..., occupied)
        sums[where] = ufunc.reduceat(values, starts[occupied], axis=axis)
    return sums


def evaluate(
    block: Block,
    design: Design,
    machine: Machines,
    array_machine: Machines,
    vector_machine: Machines,
    axis: int,
) -> tuple[Figures, np.ndarray]:
    """Prices and reason codes of the block's networks; shapes as the columns broadcast.

    `machine` meets networks, `array_machine` and `vector_machine` the rows on either engine: the
    same object three times in a grid, gathered by row for pairs. `axis` is that of the rows.
    """
    array = array_costs(block.array, array_machine, design)
    vector = vector_costs(block.vector, vector_machine)

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
        arithmetic_j=busy * machine.element_j + lane_busy * machine.lane_j,
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
    least = systolic.least_sram_bytes(design.dataflow, machine.rows, machine.columns, *limits)
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
