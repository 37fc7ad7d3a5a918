"""Why a design costs what it does: what bounds its layers, and what one change would do."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import hwmodel
from hwmodel.cost import price_layers
from nas.pricing import at, figures_of
from nas.reward import violations
from search_spaces import FAMILIES, hardware
from search_spaces.space import Choices

if TYPE_CHECKING:
    import pandas

    from nas.run import Run

BOUNDS = {  # what sets a layer's cycles -> in words
    "compute": "the array computing",
    "fill": "filling and emptying the array",
    "vector": "the vector unit",
    "sram": "the SRAM ports",
    "dram": "the DRAM bandwidth",
}
COMPONENTS = {
    "arithmetic": "arithmetic",
    "register": "registers",
    "sram": "on-chip SRAM",
    "dram": "DRAM",
    "leakage": "leakage",
}


class Bound(NamedTuple):
    """The layers with one bound. share: of the latency."""

    name: str
    share: float
    n_layers: int


class Change(NamedTuple):
    """One decision of the accelerator moved one step, and what becomes of the prices.

    latency, energy, area: the new price over the old. obstacle: why it may not be, if it may not.
    """

    decision: str
    before: object
    after: object
    latency: float
    energy: float
    area: float
    obstacle: str | None


def layer_prices(family: str, choices: Choices) -> pandas.DataFrame:
    """`hwmodel.cost.price_layers` of a design for one batch, with its share of the latency."""
    layers = FAMILIES[family].layers(choices)
    table = price_layers(layers, hardware.configs_of([choices]))
    return table.assign(share=table["latency_s"] / table["latency_s"].sum())


def bounds(layers: pandas.DataFrame) -> list[Bound]:
    """What bounds the layers, the largest share of the latency first."""
    found = [
        Bound(name, float(rows["share"].sum()), int(rows["repeat"].sum()))
        for name, rows in layers.groupby("bound", sort=True)
    ]
    return sorted(found, key=lambda bound: -bound.share)


def energy_shares(layers: pandas.DataFrame) -> dict[str, float]:
    """Component -> its share of the energy, in the order of COMPONENTS."""
    parts = {name: float(layers[f"{name}_j"].sum()) for name in COMPONENTS}
    return {name: part / sum(parts.values()) for name, part in parts.items()}


def changes(run: Run, choices: Choices) -> list[Change]:
    """Every single step away in the accelerator's decisions, the fastest first.

    Numbers move to the next value up or down, other decisions to each of their values.
    """
    encoding = run.space.encode(choices)
    moved = [
        (name, run.space.decode(row))
        for row in run.space.neighbours(encoding)
        if (name := _moved(run, encoding, row))
    ]
    if not moved:
        return []
    layers = FAMILIES[run.config["space"]["network"]].layers(choices).folded()
    configs = hardware.configs_of([choices, *(other for _, other in moved)])
    cost = hwmodel.price(layers, configs)
    figures = figures_of(cost, layers, [choices["serve.batch"]])
    before, *after = (at(figures, (0, i)) for i in range(len(configs)))
    found = []
    for i, ((name, other), metrics) in enumerate(zip(moved, after, strict=True), start=1):
        broken = violations(run.constraints, metrics)
        if not cost.feasible[0, i]:
            broken.insert(0, cost.reason(0, i))
        ratios = (metrics[key] / before[key] for key in ("latency_s", "energy_j", "area_mm2"))
        found.append(
            Change(name, choices[name], other[name], *ratios, broken[0] if broken else None)
        )
    return sorted(found, key=lambda change: change.latency)


def _moved(run: Run, encoding: np.ndarray, other: np.ndarray) -> str | None:
    """The decision of the accelerator in which a neighbour is one step away, or None."""
    column = int(np.flatnonzero(encoding != other)[0])  # what it switches on or off comes later
    decision = run.space.decisions[column]
    if not decision.name.startswith("hw."):
        return None
    near = not decision.ordered or abs(int(encoding[column]) - int(other[column])) == 1
    return decision.name if near else None
