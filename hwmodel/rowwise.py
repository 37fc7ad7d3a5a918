"""Families that price row by row: what their formulas return, and the sums over a network.

A family's module has `machines(configs)`, `work_of(layers)` and `row_costs(work, machine)`, whose
columns broadcast as `cost.py` says. All of its accelerators share these formulas: one design.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hwmodel.figures import Figures, sum_networks
from hwmodel.workload import Layers


class RowCosts(NamedTuple):
    """What each row costs, all of its repeats, in shapes that broadcast.

    `seconds`; `parts`, name -> seconds of what they are made of, the largest of which bounds the
    row; energies in joules; traffic in bytes; `peak_s`, the seconds of its multiply-accumulates at
    the machine's highest rate; `code`, an index into the family's `REASONS`; `extra`, what the
    family's own sum over a network needs.
    """

    seconds: np.ndarray
    parts: dict[str, np.ndarray]
    arithmetic_j: np.ndarray
    register_j: np.ndarray
    sram_j: np.ndarray
    dram_j: np.ndarray
    dram_bytes: np.ndarray
    sram_bytes: np.ndarray
    peak_s: np.ndarray
    code: np.ndarray
    extra: dict[str, np.ndarray] | None = None


class Block(NamedTuple):
    """Columns of rows, and where each network begins."""

    work: tuple
    offsets: np.ndarray

    def rows_first(self) -> Block:
        """The same block with columns of shape [rows, 1]."""
        return Block(type(self.work)(*(column[:, None] for column in self.work)), self.offsets)


def one_design(configs) -> list[tuple[None, np.ndarray]]:
    """All configurations together."""
    return [(None, np.arange(len(configs)))]


def network_figures(
    costs: RowCosts, offsets: np.ndarray, machine, axis: int
) -> tuple[Figures, np.ndarray]:
    """Prices and reason codes of networks whose rows run one after the other.

    `machine` has clock_hz, leakage_w and fixed_s, which every network pays once.
    """
    latency_s = sum_networks(costs.seconds, offsets, axis) + machine.fixed_s
    shape = latency_s.shape

    def total(values, ufunc=np.add) -> np.ndarray:
        values = np.broadcast_to(values, costs.seconds.shape)
        return np.broadcast_to(sum_networks(values, offsets, axis, ufunc), shape)

    priced = Figures(
        cycles=latency_s * machine.clock_hz,
        latency_s=latency_s,
        interval_s=latency_s,
        arithmetic_j=total(costs.arithmetic_j),
        register_j=total(costs.register_j),
        sram_j=total(costs.sram_j),
        dram_j=total(costs.dram_j),
        leakage_j=latency_s * machine.leakage_w,
        dram_bytes=total(costs.dram_bytes),
        sram_bytes=total(costs.sram_bytes),
        utilization=np.minimum(total(costs.peak_s) / latency_s, 1.0),
    )
    return priced, total(costs.code, np.maximum).astype(np.uint8)


def row_figures(costs: RowCosts, machine) -> tuple[Figures, np.ndarray, np.ndarray]:
    """Prices, bounds and reason codes of the rows of one network, each [n_rows], on one machine.

    The first row includes what the network pays once.
    """
    seconds = costs.seconds.copy()
    seconds[0] += machine.fixed_s[0]

    def column(values) -> np.ndarray:
        return np.broadcast_to(values, seconds.shape)

    parts = np.stack([column(part) for part in costs.parts.values()])
    priced = Figures(
        cycles=seconds * machine.clock_hz,
        latency_s=seconds,
        interval_s=seconds,
        arithmetic_j=column(costs.arithmetic_j),
        register_j=column(costs.register_j),
        sram_j=column(costs.sram_j),
        dram_j=column(costs.dram_j),
        leakage_j=seconds * machine.leakage_w,
        dram_bytes=column(costs.dram_bytes),
        sram_bytes=column(costs.sram_bytes),
        utilization=np.minimum(column(costs.peak_s) / np.maximum(seconds, 1e-300), 1.0),
    )
    return priced, np.array(list(costs.parts))[parts.argmax(axis=0)], column(costs.code)


class Family(NamedTuple):
    """What `cost.py` asks of a family, made of a module's formulas."""

    REASONS: tuple[str, ...]
    machines: Callable
    areas: Callable
    work_of: Callable[[Layers], tuple]
    row_costs: Callable[[tuple, tuple], RowCosts]
    networks: Callable = network_figures
    designs: Callable = one_design

    def block_of(self, layers: Layers, design: None) -> Block:
        """Columns of all of `layers`."""
        return Block(self.work_of(layers), layers.offsets)

    def evaluate(self, block: Block, design: None, machine, of_rows: Callable, axis: int):
        """Prices and reason codes of the block's networks."""
        costs = self.row_costs(block.work, of_rows(block.offsets))
        return self.networks(costs, block.offsets, machine, axis)

    def explain(self, layers: Layers, machine, design: None):
        """Prices, bounds and reason codes of the rows of one network."""
        return row_figures(self.row_costs(self.work_of(layers), machine), machine)
