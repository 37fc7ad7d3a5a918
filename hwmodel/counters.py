"""What the counters of a matrix unit would show: active, shifting weights in, waiting for them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hwmodel.blocks import designs
from hwmodel.config import Configs
from hwmodel.figures import sum_networks
from hwmodel.rows import array_costs, array_work, machines, runs_on_array, streaming_cycles
from hwmodel.systolic import ceil_ratio
from hwmodel.workload import Layers


class MatrixCounters(NamedTuple):
    """Cycles of the array, float64 [n_networks]; they add up to what its rows take, without the
    network's own fill and drain."""

    active: np.ndarray
    shift: np.ndarray
    stall: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """[n_networks, 3] active, shift and stall as shares of their sum."""
        cycles = np.stack(self, axis=-1)
        return cycles / cycles.sum(axis=-1, keepdims=True)


def matrix_counters(layers: Layers, config: Configs) -> MatrixCounters:
    """Counters of every network on one systolic accelerator, as Jouppi et al. read those of TPU v1
    (ISCA 2017, table 3).

    Active: operands stream. Shift: a tile of stationary operands is pushed in, R cycles; where the
    array sets the pace, all that is not active (what a second plane hides is not counted). Stall:
    the rest, where DRAM sets the pace: nothing is there to be shifted in.

    Raises ValueError for several accelerators, one of another family, and a network without a row
    on the array.
    """
    if not isinstance(config, Configs) or len(config) != 1:
        raise ValueError(f"counters need one systolic accelerator, got {config!r}")
    [(design, _)] = designs(config)
    machine = machines(config)
    rows = layers.keep(runs_on_array(layers, design.depthwise_on))
    empty = np.diff(rows.offsets) == 0
    if empty.any():
        raise ValueError(f"network {int(np.argmax(empty))} has no row on the array; leave it out")
    work = array_work(rows, design)
    costs = array_costs(work, machine, design)
    folds = ceil_ratio(work.mapped_rows, machine.per_row) * ceil_ratio(
        work.mapped_columns, machine.per_column
    )
    active = streaming_cycles(work, machine) * work.repeat
    preload = 0.0 if design.dataflow == "os" else folds * machine.rows * work.runs * work.repeat
    waits = costs.dram_cycles > costs.compute_cycles
    stall = np.where(waits, np.maximum(0.0, costs.cycles - active - preload), 0.0)
    return MatrixCounters(
        *(
            sum_networks(cycles, rows.offsets)
            for cycles in (active, costs.cycles - active - stall, stall)
        )
    )
