"""What rows cost on machines: the family's formulas applied to columns that broadcast.

What depends on the rows alone (`array_work`, `vector_work`) or on the machines alone (`machines`)
is worked out once, so that the inner product of the two holds only what depends on both. Callers
shape the columns: [rows, 1] against [configs], [rows] against [configs, 1], or [rows] against
[rows] for pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hwmodel import area, energy, sliding, systolic
from hwmodel.config import MULTIPLIERS, Configs
from hwmodel.systolic import ACCUMULATOR_BYTES, Extents, Multiplier
from hwmodel.workload import DEPTHWISE, VECTOR, Layers

LANE_BITS = 16  # wider words take a lane several cycles
_STYLES = np.array([systolic.STYLES[name] for name in MULTIPLIERS], dtype=np.float64)


class Design(NamedTuple):
    """The choices that select a formula; machines are priced in groups of equal design."""

    dataflow: str
    double_plane: bool
    depthwise_on: str
    skips_zeros: bool
    activations_on_chip: bool


class Machines(NamedTuple):
    """Columns of accelerators, float64 [n_configs]."""

    rows: np.ndarray
    columns: np.ndarray
    per_row: np.ndarray  # 1 / rows
    per_column: np.ndarray
    half_input: np.ndarray  # usable bytes of each double-buffered SRAM
    half_weight: np.ndarray
    half_output: np.ndarray
    cycles_per_dram_byte: np.ndarray
    unit_weight_bits: np.ndarray
    unit_activation_bits: np.ndarray
    units: np.ndarray
    max_bits: np.ndarray
    lanes: np.ndarray
    input_port_bytes: np.ndarray  # a cycle, what feeds the array's edge at its peak rate
    output_port_bytes: np.ndarray
    clock_hz: np.ndarray
    element_j: np.ndarray
    register_j: np.ndarray
    lane_j: np.ndarray
    sram_input_j: np.ndarray  # per byte
    sram_weight_j: np.ndarray
    sram_output_j: np.ndarray
    leakage_w: np.ndarray

    @property
    def multiplier(self) -> Multiplier:
        """The style of the elements, its fields as columns."""
        return Multiplier(
            self.unit_weight_bits, self.unit_activation_bits, self.units, self.max_bits
        )


class ArrayWork(NamedTuple):
    """Columns of rows that run on the array, float64 [n_rows], for one dataflow.

    Sizes are of one product; what ends in `_moved` is of all repeats and products.
    """

    mapped_rows: np.ndarray
    mapped_columns: np.ndarray
    mapped_stream: np.ndarray
    weight_bits: np.ndarray
    activation_bits: np.ndarray
    macs: np.ndarray  # of all repeats and products
    runs: np.ndarray  # products x steps, less the share that skipped zeros save
    steps: np.ndarray
    repeat: np.ndarray
    input_bytes: np.ndarray
    weight_bytes: np.ndarray
    weight_column_bytes: np.ndarray
    n: np.ndarray
    dram_inputs: np.ndarray  # bytes of all products, one repeat
    dram_weights: np.ndarray
    dram_outputs: np.ndarray
    dram_tables: np.ndarray  # biases and codebooks
    sram_inputs_moved: np.ndarray
    sram_weights_moved: np.ndarray
    sram_outputs_moved: np.ndarray
    input_word_bytes: np.ndarray
    along: np.ndarray  # from here on `sliding.Overlap`
    across: np.ndarray
    along_depth: np.ndarray
    across_depth: np.ndarray
    pixels: np.ndarray
    out_width: np.ndarray
    live_words: np.ndarray

    @property
    def overlap(self) -> sliding.Overlap:
        return sliding.Overlap(*self[-len(sliding.Overlap._fields) :])


class VectorWork(NamedTuple):
    """Columns of rows that run on the vector unit, float64 [n_rows]."""

    lane_cycles: np.ndarray  # of one lane, one step
    steps: np.ndarray
    repeat: np.ndarray
    dram_activations: np.ndarray
    dram_parameters: np.ndarray
    sram_inputs: np.ndarray
    sram_weights: np.ndarray
    sram_outputs: np.ndarray


class RowCosts(NamedTuple):
    """What each row costs, in shapes that broadcast. From `cycles` on, of all repeats."""

    compute_cycles: np.ndarray  # one repeat
    dram_cycles: np.ndarray
    sram_cycles: np.ndarray | float
    cycles: np.ndarray
    dram_bytes: np.ndarray
    sram_input_bytes: np.ndarray
    sram_weight_bytes: np.ndarray
    sram_output_bytes: np.ndarray
    busy: np.ndarray  # element-cycles on the array, lane-cycles on the vector unit


def machines(configs: Configs) -> Machines:
    """Columns of `configs`."""
    style = configs.codes("multiplier")
    unit = Multiplier(*_STYLES[style].T)
    rows, columns = configs.rows.astype(np.float64), configs.columns.astype(np.float64)
    operand_bytes = area.OPERAND_BITS_BY_CODE[style] / 8
    return Machines(
        rows=rows,
        columns=columns,
        per_row=1 / rows,
        per_column=1 / columns,
        half_input=configs.sram_input_bytes / 2,
        half_weight=configs.sram_weight_bytes / 2,
        half_output=configs.sram_output_bytes / 2,
        cycles_per_dram_byte=configs.clock_hz / configs.dram_bandwidth,
        unit_weight_bits=unit.weight_bits,
        unit_activation_bits=unit.activation_bits,
        units=unit.units,
        max_bits=unit.max_bits,
        lanes=configs.vector_lanes.astype(np.float64),
        input_port_bytes=rows * operand_bytes,
        output_port_bytes=columns * ACCUMULATOR_BYTES,
        clock_hz=configs.clock_hz,
        element_j=energy.element_joules(configs),
        register_j=energy.register_joules(configs),
        lane_j=energy.lane_joules(configs),
        sram_input_j=energy.sram_joules_per_byte(configs, "input"),
        sram_weight_j=energy.sram_joules_per_byte(configs, "weight"),
        sram_output_j=energy.sram_joules_per_byte(configs, "output"),
        leakage_w=energy.leakage_watts(configs),
    )


def runs_on_array(layers: Layers, depthwise_on: str) -> np.ndarray:
    """[n_rows] whether the array runs the row; the vector unit runs the others."""
    if depthwise_on == "array":
        return layers.kind != VECTOR
    return (layers.kind != VECTOR) & (layers.kind != DEPTHWISE)


def array_work(layers: Layers, design: Design) -> ArrayWork:
    """Columns of `layers` for the array."""
    m, k, n, groups, repeat = (
        column.astype(np.float64)
        for column in (layers.m, layers.k, layers.n, layers.groups, layers.repeat)
    )
    steps = layers.steps.astype(np.float64)
    macs = layers.row_macs.astype(np.float64)
    busy_share, multiplied = np.ones(len(layers)), k
    if design.skips_zeros:
        multiplied = systolic.structured_depth(k, layers.nm_n, layers.nm_m)
        busy_share = systolic.unstructured_share(layers.density, layers.nm_m)
        macs *= np.where(layers.nm_m > 0, multiplied / np.maximum(k, 1), layers.density)
    mapped = systolic.extents(design.dataflow, m / steps, multiplied, n)
    word_in, word_weight = layers.activation_bits / 8, layers.stored_weight_bits / 8
    word_out = layers.output_bits / 8
    # Sums wait in the output SRAM at full width; output-stationary ones leave the array finished.
    word_sum = word_out if design.dataflow == "os" else ACCUMULATOR_BYTES
    products = groups * repeat
    input_bytes = layers.input_words * word_in
    weight_bytes = k * n * word_weight
    overlap = sliding.overlap(
        layers.batch,
        m / steps,
        k,
        layers.kernel_height,
        layers.kernel_width,
        layers.out_height,
        layers.input_words,
    )
    return ArrayWork(
        mapped_rows=mapped.rows,
        mapped_columns=mapped.columns,
        mapped_stream=mapped.stream,
        weight_bits=layers.weight_bits.astype(np.float64),
        activation_bits=layers.activation_bits.astype(np.float64),
        macs=macs,
        runs=groups * steps * busy_share,
        steps=steps,
        repeat=repeat,
        input_bytes=input_bytes,
        weight_bytes=weight_bytes,
        weight_column_bytes=k * word_weight,
        n=n,
        dram_inputs=input_bytes * groups,
        dram_weights=weight_bytes * groups,
        dram_outputs=layers.output_words * word_out,
        dram_tables=layers.bias_bytes + layers.codebook_bytes,
        sram_inputs_moved=m * k * word_in * products,
        sram_weights_moved=weight_bytes * products * steps,
        sram_outputs_moved=m * n * word_sum * products,
        input_word_bytes=word_in,
        **overlap._asdict(),
    )


def vector_work(layers: Layers) -> VectorWork:
    """Columns of `layers` for the vector unit. Depthwise rows read each window's words anew and
    keep a channel's weights in the lanes."""
    depthwise = layers.kind == DEPTHWISE
    word_in, word_out = layers.activation_bits / 8, layers.output_bits / 8
    input_words = np.where(depthwise, layers.vector_ops, layers.input_words)
    return VectorWork(
        lane_cycles=layers.vector_ops / layers.steps * np.ceil(layers.activation_bits / LANE_BITS),
        steps=layers.steps.astype(np.float64),
        repeat=layers.repeat.astype(np.float64),
        dram_activations=layers.input_words * layers.groups * word_in
        + layers.output_words * word_out,
        dram_parameters=layers.operand_bytes + layers.bias_bytes + layers.gather_bytes,
        sram_inputs=input_words * word_in,
        sram_weights=layers.operand_bytes + layers.bias_bytes,
        sram_outputs=layers.output_words * word_out,
    )


def array_costs(work: ArrayWork, machine: Machines, design: Design) -> RowCosts:
    """Costs of rows on the array. Its SRAM ports are as wide as its edge, so they never bind."""
    dataflow = design.dataflow
    fr = systolic.ceil_ratio(work.mapped_rows, machine.per_row)
    fc = systolic.ceil_ratio(work.mapped_columns, machine.per_column)
    mapped = Extents(work.mapped_rows, work.mapped_columns, work.mapped_stream)
    chunks = systolic.accumulator_chunks(dataflow, mapped, machine.columns, machine.half_output)
    passes = systolic.passes(machine.multiplier, work.weight_bits, work.activation_bits)
    stream = np.ceil(work.mapped_stream * passes)
    compute = systolic.compute_cycles(
        dataflow,
        design.double_plane,
        fr * fc,
        stream,
        machine.rows,
        machine.columns,
        chunks,
    )
    compute *= work.runs
    if design.skips_zeros:
        compute = np.ceil(compute)
    pass_fetches = 1.0
    if work.along.any() or work.across.any():
        pass_fetches = sliding.pass_fetches(
            dataflow,
            work.overlap,
            machine.per_row,
            machine.per_column,
            machine.half_input / work.input_word_bytes,
        )
    inputs, weights = systolic.dram_refetches(
        dataflow,
        work.input_bytes,
        work.weight_bytes,
        work.weight_column_bytes * np.minimum(machine.columns, work.n),
        machine.half_input,
        machine.half_weight,
        fr,
        fc,
        chunks,
        pass_fetches,
    )
    if (work.steps > 1).any():
        inputs = inputs * systolic.step_refetches(work.steps, work.dram_inputs, machine.half_input)
        weights = weights * systolic.step_refetches(
            work.steps, work.dram_weights, machine.half_weight
        )
    dram = work.dram_inputs * inputs
    dram += work.dram_outputs
    if design.activations_on_chip:
        dram *= work.dram_inputs + work.dram_outputs > 2 * machine.half_input
    dram += work.dram_weights * weights
    dram += work.dram_tables
    dram_cycles = np.ceil(dram * machine.cycles_per_dram_byte)
    sram = systolic.sram_traffic(
        dataflow,
        work.sram_inputs_moved,
        work.sram_weights_moved,
        work.sram_outputs_moved,
        fr,
        fc,
        chunks,
    )
    return RowCosts(
        compute_cycles=compute,
        dram_cycles=dram_cycles,
        sram_cycles=0.0,
        cycles=np.maximum(compute, dram_cycles) * work.repeat,
        dram_bytes=dram * work.repeat,
        sram_input_bytes=sram.inputs,
        sram_weight_bytes=sram.weights,
        sram_output_bytes=sram.outputs,
        busy=work.macs * passes,
    )


def streaming_cycles(work: ArrayWork, machine: Machines) -> np.ndarray:
    """The part of one repeat's compute cycles in which operands stream; the rest is preload and
    skew."""
    fr = systolic.ceil_ratio(work.mapped_rows, machine.per_row)
    fc = systolic.ceil_ratio(work.mapped_columns, machine.per_column)
    passes = systolic.passes(machine.multiplier, work.weight_bits, work.activation_bits)
    return fr * fc * np.ceil(work.mapped_stream * passes) * work.runs


def vector_costs(work: VectorWork, machine: Machines, design: Design) -> RowCosts:
    """Costs of rows on the vector unit: max(operations / lanes, DRAM, SRAM ports)."""
    compute = np.ceil(work.lane_cycles / machine.lanes) * work.steps
    dram = work.dram_activations
    if design.activations_on_chip:
        dram = dram * (dram > 2 * machine.half_input)
    dram = dram + work.dram_parameters
    dram_cycles = np.ceil(dram * machine.cycles_per_dram_byte)
    sram_cycles = np.ceil(
        np.maximum(
            work.sram_inputs / machine.input_port_bytes,
            work.sram_outputs / machine.output_port_bytes,
        )
    )
    return RowCosts(
        compute_cycles=compute,
        dram_cycles=dram_cycles,
        sram_cycles=sram_cycles,
        cycles=np.maximum(np.maximum(compute, dram_cycles), sram_cycles) * work.repeat,
        dram_bytes=dram * work.repeat,
        sram_input_bytes=work.sram_inputs * work.repeat,
        sram_weight_bytes=work.sram_weights * work.repeat,
        sram_output_bytes=work.sram_outputs * work.repeat,
        busy=work.lane_cycles * work.steps * work.repeat,
    )
