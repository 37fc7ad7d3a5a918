"""Prices: layers x accelerators -> latency, energy, area, traffic, in bounded memory.

Network latency = fill + sum over rows of max(compute, DRAM, SRAM, vector) + drain. Accelerators of
equal design (dataflow, planes, engine of depthwise rows) are priced together, so that
no array operation computes a formula that is then masked away.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hwmodel.blocks import REASONS, Figures, block_of, evaluate, figures, reason_codes
from hwmodel.config import DATAFLOWS, DEPTHWISE_ENGINES, Configs
from hwmodel.rows import (
    Design,
    Machines,
    array_costs,
    drain_cycles,
    fill_cycles,
    machines,
    runs_on_array,
    streaming_cycles,
    vector_costs,
)
from hwmodel.workload import Layers

if TYPE_CHECKING:
    import pandas

PAIRINGS = ("grid", "paired")
# Elements of one array operation: enough that NumPy's cost per call vanishes, few enough that the
# temporaries stay in the last-level cache and memory stays bounded.
BLOCK = 65536
# With fewer rows than this in a block, configurations make the longer, faster inner axis.
ROWS_LAST = 512


@dataclass(frozen=True)
class Cost:
    """Prices of networks on accelerators.

    Every array has the shape [n_networks, n_configs] (grid) or [n_networks] (paired). An infeasible
    pair keeps the finite figures that the formulas give; read `feasible` before using them.

    `cycles` (whole numbers), `latency_s`, `arithmetic_j`, `sram_j`, `dram_j`, `leakage_j` and their
    sum `energy_j`, `area_mm2`, `dram_bytes`, `sram_bytes`, `utilization` (busy element-cycles over
    all element-cycles of the run, 0 to 1), `peak_memory_bytes` (all parameters and the largest
    row's inputs and outputs, in DRAM), `feasible`, `reason_code` (an index into `blocks.REASONS`).
    """

    cycles: np.ndarray
    latency_s: np.ndarray
    arithmetic_j: np.ndarray
    sram_j: np.ndarray
    dram_j: np.ndarray
    leakage_j: np.ndarray
    dram_bytes: np.ndarray
    sram_bytes: np.ndarray
    utilization: np.ndarray
    reason_code: np.ndarray
    area_mm2: np.ndarray
    peak_memory_bytes: np.ndarray

    @property
    def energy_j(self) -> np.ndarray:
        return self.arithmetic_j + self.sram_j + self.dram_j + self.leakage_j

    @property
    def feasible(self) -> np.ndarray:
        return self.reason_code == 0

    def reason(self, *index: int) -> str:
        """Why the pair at `index` is infeasible, or "feasible"."""
        return REASONS[self.reason_code[index]]


def price(layers: Layers, configs: Configs, pairing: str = "grid") -> Cost:
    """Price every network on every accelerator ("grid"), or network i on accelerator i ("paired").

    Raises ValueError for an unknown pairing, and for a paired call of two lengths.
    """
    if pairing not in PAIRINGS:
        raise ValueError(f"unknown pairing {pairing!r}; choose one of {', '.join(PAIRINGS)}")
    paired = pairing == "paired"
    if paired and layers.n_networks != len(configs):
        raise ValueError(
            f"paired pricing needs one configuration per network, got {layers.n_networks} networks "
            f"and {len(configs)} configurations; use pairing='grid' for all pairs"
        )
    machine = machines(configs)
    shape = (layers.n_networks,) if paired else (layers.n_networks, len(configs))
    peak = peak_memory_bytes(layers)
    cost = Cost(
        *(np.empty(shape) for _ in Figures._fields),
        reason_code=np.empty(shape, dtype=np.uint8),
        area_mm2=np.broadcast_to(machine.area_mm2, shape),
        peak_memory_bytes=np.broadcast_to(peak if paired else peak[:, None], shape),
    )
    (_price_pairs if paired else _price_grid)(layers, machine, _designs(configs), cost)
    return cost


def peak_memory_bytes(layers: Layers) -> np.ndarray:
    """[n_networks] DRAM that holds all parameters and the largest row's inputs and outputs."""
    parameters = layers.parameter_bytes * layers.repeat
    inputs = layers.input_words * layers.groups * layers.activation_bits / 8
    activations = inputs + layers.output_words * layers.output_bits / 8
    starts = layers.offsets[:-1]
    return np.add.reduceat(parameters, starts) + np.maximum.reduceat(activations, starts)


def price_layers(layers: Layers, config: Configs) -> pandas.DataFrame:
    """One line a row of one network on one accelerator; the lines sum to the network's price.

    Columns: layer, repeat, cycles, latency_s, arithmetic_j, sram_j, dram_j, leakage_j, energy_j,
    dram_bytes, sram_bytes, utilization, bound. The first line includes the fill, the last one the
    drain. `bound` says what sets the row's cycles: "compute"; "fill", the same where the array
    spends more cycles on preload and skew than on streaming; "vector", "sram" or "dram".

    Raises ValueError for more than one network or accelerator, and, naming the row, where the
    accelerator cannot run it.
    """
    import pandas

    if layers.n_networks != 1 or len(config) != 1:
        raise ValueError(
            f"price_layers takes one network and one configuration, got {layers.n_networks} and "
            f"{len(config)}; pick them with layers.network(i) and configs[i]"
        )
    machine = machines(config)
    [(design, _)] = _designs(config)
    # Every row as a network of its own: the same formulas, each row with its own fill and drain.
    block = block_of(layers.as_networks(), design)
    codes = reason_codes(block.limits, machine, design)
    if codes.any():
        row = int(np.argmax(codes > 0))
        raise ValueError(
            f"row {layers.names[row]!r} with {layers.weight_bits[row]}-bit weights and "
            f"{layers.activation_bits[row]}-bit activations: {REASONS[codes[row]]}; choose other "
            f"bits, or change {config!r}"
        )
    on_array = runs_on_array(layers, design.depthwise_on)
    array = array_costs(block.array, machine, design)
    vector = vector_costs(block.vector, machine)

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
    table = pandas.DataFrame({"layer": layers.names, "repeat": layers.repeat, **priced._asdict()})
    energy_j = table[["arithmetic_j", "sram_j", "dram_j", "leakage_j"]].sum(axis=1)
    table.insert(table.columns.get_loc("leakage_j") + 1, "energy_j", energy_j)
    return table.assign(bound=bound)


def _designs(configs: Configs) -> list[tuple[Design, np.ndarray]]:
    """The designs that occur, each with the indices of its accelerators."""
    dataflow, engine = configs.codes("dataflow"), configs.codes("depthwise_on")
    # Output-stationary cycles are the same with one plane or two.
    double_plane = configs.double_weight_plane & (dataflow != DATAFLOWS.index("os"))
    key = (dataflow * 2 + double_plane) * 2 + engine
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    designs = []
    for members in np.split(order, starts[1:]):
        one = members[0]
        design = Design(
            DATAFLOWS[dataflow[one]], bool(double_plane[one]), DEPTHWISE_ENGINES[engine[one]]
        )
        designs.append((design, members))
    return designs


def _slabs(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of networks of at most BLOCK rows together, and of one network at least."""
    start, n_networks = 0, len(offsets) - 1
    while start < n_networks:
        end = int(np.searchsorted(offsets, offsets[start] + BLOCK, side="right")) - 1
        end = max(end, start + 1)
        yield start, end
        start = end


def _gather(machine: Machines, index) -> Machines:
    return Machines(*(column[index] for column in machine))


def _price_grid(layers: Layers, machine: Machines, designs: list, cost: Cost) -> None:
    machines_of = [_gather(machine, members) for _, members in designs]
    for start, end in _slabs(layers.offsets):
        slab = layers.take(np.arange(start, end))
        rows_last = len(slab) >= ROWS_LAST
        step = max(1, BLOCK // len(slab))
        for (design, members), own in zip(designs, machines_of, strict=True):
            block = block_of(slab, design)
            if not rows_last:
                block = block.rows_first()
            for at in range(0, len(members), step):
                here = slice(at, at + step)
                some = _gather(own, (here, None) if rows_last else here)
                priced, codes = evaluate(
                    block, design, some, some, some, axis=-1 if rows_last else 0
                )
                for target, values in zip(_targets(cost), (*priced, codes), strict=True):
                    target[start:end, members[here]] = values.T if rows_last else values


def _price_pairs(layers: Layers, machine: Machines, designs: list, cost: Cost) -> None:
    lengths = np.diff(layers.offsets)
    for design, members in designs:
        offsets = np.concatenate([[0], np.cumsum(lengths[members])])
        for start, end in _slabs(offsets):
            chosen = members[start:end]
            block = block_of(layers.take(chosen), design)
            priced, codes = evaluate(
                block,
                design,
                _gather(machine, chosen),
                _gather(machine, np.repeat(chosen, np.diff(block.array_offsets))),
                _gather(machine, np.repeat(chosen, np.diff(block.vector_offsets))),
                axis=-1,
            )
            for target, values in zip(_targets(cost), (*priced, codes), strict=True):
                target[chosen] = values


def _targets(cost: Cost) -> tuple[np.ndarray, ...]:
    """The arrays that `evaluate` fills, in its order."""
    return (*(getattr(cost, field) for field in Figures._fields), cost.reason_code)
