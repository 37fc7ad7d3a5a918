"""Prices: layers x accelerators -> latency, energy, area, traffic, in bounded memory.

Network latency is a sum over rows of max(compute, memory, ...), as the family's formulas say.
Accelerators of equal design (dataflow, planes, engine of depthwise rows) are priced together, so
that no array operation computes a formula that is then masked away.

The columns of a block broadcast in one of two ways. Rows last: machines [c, 1] against rows [r],
giving [c, r]; this also holds pairs, where machines are [r] too. Rows first: machines [c] against
rows [r, 1], giving [r, c]. Either way the long axis is the last one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from hwmodel import blocks, edge, fpga, measured, roofline, spatial
from hwmodel.config import ConfigTable
from hwmodel.figures import Areas, Figures
from hwmodel.rowwise import Family
from hwmodel.workload import ATTENTION, Layers

if TYPE_CHECKING:
    import pandas

# family -> its formulas, a module or a `Family` of one's functions. Each has `machines`
# (configurations to columns), `areas`, `designs` (groups of configurations that share formulas),
# `block_of` (rows to columns), `evaluate` (the two against each other, summed by network),
# `explain` (row by row) and `REASONS`.
FAMILIES = {
    "systolic": blocks,
    "spatial": spatial.FAMILY,
    "edge": edge.FAMILY,
    "fpga": fpga.FAMILY,
    "roofline": roofline.FAMILY,
    "measured": measured.FAMILY,
}
Formulas = ModuleType | Family
PAIRINGS = ("grid", "paired")
ENERGIES = ("arithmetic_j", "register_j", "sram_j", "dram_j", "leakage_j")
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

    `cycles`, `latency_s` of the whole batch, `interval_s` (from one batch to the next; shorter than
    the latency only where layers are pipelined), `arithmetic_j`, `register_j`, `sram_j`, `dram_j`,
    `leakage_j` and their sum `energy_j`, `dram_bytes`, `sram_bytes`, `utilization` (work over what
    the machine's multipliers could do in that time, 0 to 1), `array_area_mm2`, `vector_area_mm2`,
    `sram_area_mm2` and their sum `area_mm2`, `peak_memory_bytes` (all parameters and the largest
    row's inputs and outputs, in DRAM), `feasible`, `reason_code` (an index into `reasons`).
    """

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
    array_area_mm2: np.ndarray
    vector_area_mm2: np.ndarray
    sram_area_mm2: np.ndarray
    reason_code: np.ndarray
    peak_memory_bytes: np.ndarray
    reasons: tuple[str, ...]

    @property
    def energy_j(self) -> np.ndarray:
        return sum(getattr(self, component) for component in ENERGIES)

    @property
    def area_mm2(self) -> np.ndarray:
        return sum(getattr(self, component) for component in Areas._fields)

    @property
    def feasible(self) -> np.ndarray:
        return self.reason_code == 0

    def reason(self, *index: int) -> str:
        """Why the pair at `index` is infeasible, or "feasible"."""
        return self.reasons[self.reason_code[index]]


def price(layers: Layers, configs: ConfigTable, pairing: str = "grid") -> Cost:
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
    family = FAMILIES[configs.FAMILY]
    shape = (layers.n_networks,) if paired else (layers.n_networks, len(configs))
    peak = peak_memory_bytes(layers)
    cost = Cost(
        *(np.empty(shape) for _ in Figures._fields),
        *(np.broadcast_to(area, shape) for area in family.areas(configs)),
        reason_code=np.empty(shape, dtype=np.uint8),
        peak_memory_bytes=np.broadcast_to(peak if paired else peak[:, None], shape),
        reasons=family.REASONS,
    )
    (_price_pairs if paired else _price_grid)(layers, configs, family, cost)
    return cost


def peak_memory_bytes(layers: Layers) -> np.ndarray:
    """[n_networks] DRAM that holds all parameters and the largest row's inputs and outputs."""
    inputs = layers.input_words * layers.groups * layers.activation_bits / 8
    inputs += np.where(layers.kind == ATTENTION, layers.operand_bytes, 0.0)
    activations = inputs + layers.output_words * layers.output_bits / 8
    return layers.network_parameter_bytes + np.maximum.reduceat(activations, layers.offsets[:-1])


def price_layers(layers: Layers, config: ConfigTable) -> pandas.DataFrame:
    """One line a row of one network on one accelerator; the lines sum to the network's price.

    Columns: layer, repeat, the figures of `Cost` that depend on the network, and bound: what sets
    the row's latency, "compute" or "vector", "dram", "sram", or the family's own overhead ("fill",
    "launch"). What a network pays once is in its first or last line.

    Raises ValueError for more than one network or accelerator, and, naming the row, where the
    accelerator cannot run it.
    """
    import pandas

    if layers.n_networks != 1 or len(config) != 1:
        raise ValueError(
            f"price_layers takes one network and one configuration, got {layers.n_networks} and "
            f"{len(config)}; pick them with layers.network(i) and configs[i]"
        )
    family = FAMILIES[config.FAMILY]
    [(design, _)] = family.designs(config)
    priced, bound, codes = family.explain(layers, family.machines(config), design)
    if codes.any():
        row = int(np.argmax(codes > 0))
        raise ValueError(
            f"row {layers.names[row]!r} with {layers.weight_bits[row]}-bit weights and "
            f"{layers.activation_bits[row]}-bit activations: {family.REASONS[codes[row]]}; choose "
            f"other bits, or change {config!r}"
        )
    table = pandas.DataFrame({"layer": layers.names, "repeat": layers.repeat, **priced._asdict()})
    energy_j = table[list(ENERGIES)].sum(axis=1)
    table.insert(table.columns.get_loc("leakage_j") + 1, "energy_j", energy_j)
    return table.assign(bound=bound)


def _slabs(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of networks of at most BLOCK rows together, and of one network at least."""
    start, n_networks = 0, len(offsets) - 1
    while start < n_networks:
        end = int(np.searchsorted(offsets, offsets[start] + BLOCK, side="right")) - 1
        end = max(end, start + 1)
        yield start, end
        start = end


def _gather(machine: tuple, index) -> tuple:
    return type(machine)(*(column[index] for column in machine))


def _price_grid(layers: Layers, configs: ConfigTable, family: Formulas, cost: Cost) -> None:
    machine, designs = family.machines(configs), family.designs(configs)
    machines_of = [_gather(machine, members) for _, members in designs]
    for start, end in _slabs(layers.offsets):
        slab = layers.take(np.arange(start, end))
        rows_last = len(slab) >= ROWS_LAST
        step = max(1, BLOCK // len(slab))
        for (design, members), own in zip(designs, machines_of, strict=True):
            block = family.block_of(slab, design)
            if not rows_last:
                block = block.rows_first()
            for at in range(0, len(members), step):
                here = slice(at, at + step)
                some = _gather(own, (here, None) if rows_last else here)
                priced, codes = family.evaluate(
                    block, design, some, lambda _, some=some: some, -1 if rows_last else 0
                )
                for target, values in zip(_targets(cost), (*priced, codes), strict=True):
                    target[start:end, members[here]] = values.T if rows_last else values


def _price_pairs(layers: Layers, configs: ConfigTable, family: Formulas, cost: Cost) -> None:
    machine = family.machines(configs)
    lengths = np.diff(layers.offsets)
    for design, members in family.designs(configs):
        offsets = np.concatenate([[0], np.cumsum(lengths[members])])
        for start, end in _slabs(offsets):
            chosen = members[start:end]

            def of_rows(offsets, chosen=chosen):
                return _gather(machine, np.repeat(chosen, np.diff(offsets)))

            priced, codes = family.evaluate(
                family.block_of(layers.take(chosen), design),
                design,
                _gather(machine, chosen),
                of_rows,
                -1,
            )
            for target, values in zip(_targets(cost), (*priced, codes), strict=True):
                target[chosen] = values


def _targets(cost: Cost) -> tuple[np.ndarray, ...]:
    """The arrays that `evaluate` fills, in its order."""
    return (*(getattr(cost, field) for field in Figures._fields), cost.reason_code)
