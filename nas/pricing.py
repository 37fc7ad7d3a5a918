"""What a candidate costs on its accelerator, and what it would cost on every other one.

A search that chooses the precision of training (`train.precision`), or names a metric of training
in a constraint or its reward, has a training step priced too, on the accelerator that serves: at
the training batch, with momentum and a 32-bit copy of the weights, tensors whole and uncompressed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

import numpy as np

import hwmodel
from hwmodel.training import TrainingStep, training_step
from nas.trial import STEP_METRICS, Metrics
from search_spaces import FAMILIES, hardware
from search_spaces.quantizers import UnbuildableError
from search_spaces.space import Choices

# The hardware model knows a format by its width alone.
FORMAT_BITS: Mapping[str, int] = MappingProxyType({"float32": 32, "bfloat16": 16, "float16": 16})
MASTER_BITS = 32  # of the weights that are updated, and of their momentum


def figures_of(
    cost: hwmodel.Cost, layers: hwmodel.Layers, batches: Sequence[int]
) -> dict[str, np.ndarray]:
    """HARDWARE_METRICS of priced networks, each in the shape of `cost`, [n] or [n, configs].

    layers, batches: what was priced, and the serving batch of each network. latency_s is of one
    batch; energy_j, dram_bytes and sram_bytes of one image.
    """
    shape = cost.latency_s.shape

    def column(values) -> np.ndarray:
        return np.reshape(values, (-1,) + (1,) * (len(shape) - 1))

    batch = column(batches)
    of_network = {
        "macs": column(layers.macs) / batch,
        "params": column(layers.params),
        "weight_bytes": column(layers.network_parameter_bytes),
    }
    return {
        "latency_s": cost.latency_s,
        "images_per_s": batch / cost.latency_s,
        "energy_j": cost.energy_j / batch,
        "area_mm2": cost.area_mm2,
        "cycles": cost.cycles,
        "dram_bytes": cost.dram_bytes / batch,
        "sram_bytes": cost.sram_bytes / batch,
        "utilization": cost.utilization,
        "peak_memory_bytes": cost.peak_memory_bytes,
        **{name: np.broadcast_to(values, shape) for name, values in of_network.items()},
    }


def at(figures: Mapping[str, np.ndarray], place: int | tuple) -> Metrics:
    """One design's metrics out of arrays of them."""
    return {name: float(values[place]) for name, values in figures.items()}


def requires_training(named: Collection[str]) -> bool:
    """Whether an accelerator must be able to train: a metric of it is among those `named`."""
    return not set(STEP_METRICS).isdisjoint(named)


def prices_training(choices: Choices, named: Collection[str]) -> bool:
    """Whether a training step of the design is priced where that can be."""
    return "train.precision" in choices or requires_training(named)


def training_precision(choices: Choices) -> str:
    return choices.get("train.precision", "float32")


def step_of(family: str, designs: Sequence[Choices]) -> TrainingStep:
    """A training step of each design, all in words of one width."""
    [bits] = {FORMAT_BITS[training_precision(choices)] for choices in designs}
    forward = hwmodel.Layers.concat(
        [
            FAMILIES[family].network(choices).training_layers(bits, choices["train.batch"])
            for choices in designs
        ]
    )
    step = training_step(forward, "momentum", gradient_bits=bits, master_bits=MASTER_BITS)
    return step._replace(layers=step.layers.folded())


def step_figures(cost: hwmodel.Cost, step: TrainingStep, batch) -> dict[str, np.ndarray]:
    """STEP_METRICS of priced training steps, in the shape of `cost`; energy is of one image."""
    return {
        "train_step_s": cost.latency_s,
        "train_images_per_s": batch / cost.latency_s,
        "train_energy_j": cost.energy_j / batch,
        "train_memory_bytes": np.broadcast_to(step.memory_bytes, cost.latency_s.shape),
    }


def price_training(family: str, designs: Sequence[Choices]) -> list[tuple[Metrics, str | None]]:
    """(STEP_METRICS, None) of each design, or ({}, reason) where its accelerator cannot train it.

    All designs of one width of words are priced in one vectorized call.
    """
    outcome: list[tuple[Metrics, str | None]] = [({}, None)] * len(designs)
    widths = np.array([FORMAT_BITS[training_precision(choices)] for choices in designs])
    for width in np.unique(widths):
        places = np.flatnonzero(widths == width)
        some = [designs[i] for i in places]
        step = step_of(family, some)
        cost = hwmodel.price(step.layers, hardware.configs_of(some), pairing="paired")
        batch = np.array([choices["train.batch"] for choices in some])
        figures = step_figures(cost, step, batch)
        for place, i in enumerate(places):
            if cost.feasible[place]:
                outcome[i] = at(figures, place), None
            else:
                precision = training_precision(designs[i])
                outcome[i] = {}, f"a training step in {precision}: {cost.reason(place)}"
    return outcome


def price_designs(
    family: str, designs: Sequence[Choices], named: Collection[str] = ()
) -> list[tuple[Metrics, str | None]]:
    """(metrics, None), or (metrics so far, reason) where a design cannot be built.

    All designs that have a network are priced in one vectorized call. named: the metrics that
    constraints and reward name. Where one of training is among them, a design whose accelerator
    cannot train it cannot be built; where only the precision is chosen, it has no such metrics.
    """
    layers: dict[int, hwmodel.Layers] = {}
    outcome: list[tuple[Metrics, str | None]] = [({}, None)] * len(designs)
    for i, choices in enumerate(designs):
        try:
            layers[i] = FAMILIES[family].layers(choices)
        except UnbuildableError as error:
            outcome[i] = {}, str(error)
    if layers:
        table = hwmodel.Layers.concat([each.folded() for each in layers.values()])
        configs = hardware.configs_of([designs[i] for i in layers])
        cost = hwmodel.price(table, configs, pairing="paired")
        batches = [designs[i]["serve.batch"] for i in layers]
        figures = figures_of(cost, table, batches)
        for place, i in enumerate(layers):
            reason = None if cost.feasible[place] else cost.reason(place)
            outcome[i] = at(figures, place), reason
    trained = [i for i in layers if outcome[i][1] is None and prices_training(designs[i], named)]
    steps = price_training(family, [designs[i] for i in trained])
    for i, (metrics, reason) in zip(trained, steps, strict=True):
        outcome[i] = outcome[i][0] | metrics, reason if requires_training(named) else None
    return outcome


def price_grid(
    family: str, designs: Sequence[Choices], configs, named: Collection[str] = ()
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Metrics of every design on every accelerator, and which pairs can be built: [n, configs].

    As `price_designs`, with many accelerators in place of each design's own; NaN where a pair has
    no such figure.
    """
    feasible = np.zeros((len(designs), len(configs)), bool)
    found: dict[str, np.ndarray] = {}

    def enter(rows, figures: Mapping[str, np.ndarray]) -> None:
        for name, values in figures.items():
            found.setdefault(name, np.full(feasible.shape, np.nan))[rows] = values

    tables: dict[int, hwmodel.Layers] = {}
    for i, choices in enumerate(designs):
        with contextlib.suppress(UnbuildableError):
            tables[i] = FAMILIES[family].layers(choices)
    if tables:
        rows = list(tables)
        table = hwmodel.Layers.concat([each.folded() for each in tables.values()])
        cost = hwmodel.price(table, configs)
        batches = [designs[i]["serve.batch"] for i in rows]
        enter(rows, figures_of(cost, table, batches))
        feasible[rows] = cost.feasible
    for i in tables:
        if not prices_training(designs[i], named):
            continue
        step = step_of(family, [designs[i]])
        cost = hwmodel.price(step.layers, configs)
        trains = cost.feasible[0]
        figures = step_figures(cost, step, designs[i]["train.batch"])
        enter(i, {name: np.where(trains, values[0], np.nan) for name, values in figures.items()})
        if requires_training(named):
            feasible[i] &= trains
    return found, feasible
