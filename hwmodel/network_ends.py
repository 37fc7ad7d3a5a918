"""The two ends of a network, which no row of it hides: the first fill and the last drain."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hwmodel import systolic
from hwmodel.rows import Design, Machines, runs_on_array
from hwmodel.workload import Layers


class EndWork(NamedTuple):
    """Columns of the rows at a network's ends, [n_networks]: what fills it first or drains last."""

    on_array: np.ndarray
    m: np.ndarray
    k: np.ndarray
    n: np.ndarray
    input_words: np.ndarray
    output_words: np.ndarray
    weight_bytes: np.ndarray  # of a word
    input_bytes: np.ndarray
    output_bytes: np.ndarray


def end_work(layers: Layers, rows: np.ndarray, design: Design) -> EndWork:
    """Columns of the rows at the indices `rows`, a network's first or last ones."""
    return EndWork(
        on_array=runs_on_array(layers, design.depthwise_on)[rows],
        m=layers.m[rows] / layers.steps[rows],
        k=layers.k[rows].astype(np.float64),
        n=layers.n[rows].astype(np.float64),
        input_words=layers.input_words[rows].astype(np.float64),
        output_words=layers.output_words[rows].astype(np.float64),
        weight_bytes=layers.stored_weight_bits[rows] / 8,
        input_bytes=layers.activation_bits[rows] / 8,
        output_bytes=layers.output_bits[rows] / 8,
    )


def fill_cycles(first: EndWork, machine: Machines, design: Design) -> np.ndarray:
    """Cycles until the first tile of operands of a network's first row has come from DRAM.
    Activations that stay on chip are there already."""
    tile = systolic.first_tile(
        design.dataflow, first.m, first.k, first.n, machine.rows, machine.columns
    )
    inputs = np.where(first.on_array, np.minimum(tile.inputs, first.input_words), first.input_words)
    weights = np.where(first.on_array, tile.weights, 0.0)
    size = np.minimum(weights * first.weight_bytes, machine.half_weight)
    if not design.activations_on_chip:
        size += np.minimum(inputs * first.input_bytes, machine.half_input)
    return np.ceil(size * machine.cycles_per_dram_byte)


def drain_cycles(last: EndWork, machine: Machines, design: Design) -> np.ndarray:
    """Cycles until the last tile of outputs of a network's last row has gone to DRAM."""
    tile = systolic.first_tile(
        design.dataflow, last.m, last.k, last.n, machine.rows, machine.columns
    )
    outputs = np.where(last.on_array, tile.outputs, last.output_words) * last.output_bytes
    if design.activations_on_chip:
        outputs = np.zeros_like(outputs)
    return np.ceil(np.minimum(outputs, machine.half_output) * machine.cycles_per_dram_byte)
