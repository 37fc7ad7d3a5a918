"""What every family answers with, and the sums from rows to networks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Figures(NamedTuple):
    """Prices of networks, or of rows: the fields of `Cost` that depend on network and machine."""

    cycles: np.ndarray
    latency_s: np.ndarray
    interval_s: np.ndarray
    arithmetic_j: np.ndarray
    register_j: np.ndarray
    sram_j: np.ndarray
    dram_j: np.ndarray
    leakage_j: np.ndarray
    dram_bytes: np.ndarray
    sram_bytes: np.ndarray
    utilization: np.ndarray


class Areas(NamedTuple):
    """Area by component, float64 [n_configs], in mm²."""

    array_area_mm2: np.ndarray
    vector_area_mm2: np.ndarray
    sram_area_mm2: np.ndarray


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
