"""What a candidate costs on its accelerator, and what it would cost on every other one.

A search that chooses the precision of training (`train.precision`), or names a metric of training
in a constraint or its reward, has a training step priced too, on the accelerator that serves: at
the training batch, with momentum and a 32-bit copy of the weights, tensors whole and uncompressed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

import numpy as np

import hwmodel
from hwmodel.training import TrainingStep, training_step
from nas.trial import STEP_METRICS, Metrics
from search_spaces import FAMILIES, hardware
from search_spaces.cell import DisconnectedError
from search_spaces.space import Choices

# The hardware model knows a format by its width alone.
FORMAT_BITS: Mapping[str, int] = MappingProxyType({"float32": 32, "bfloat16": 16, "float16": 16})
MASTER_BITS = 32  # of the weights that are updated, and of their momentum


def metrics_of(cost: hwmodel.Cost, layers: hwmodel.Layers, batch: int, at: tuple) -> Metrics:
    """The metrics of one priced pair. latency_s is of one batch; energy_j and dram_bytes of one
    image."""
    latency_s = float(cost.latency_s[at])
    return {
        "latency_s": latency_s,
        "images_per_s": batch / latency_s,
        "energy_j": float(cost.energy_j[at]) / batch,
        "area_mm2": float(cost.area_mm2[at]),
        "cycles": float(cost.cycles[at]),
        "dram_bytes": float(cost.dram_bytes[at]) / batch,
        "sram_bytes": float(cost.sram_bytes[at]) / batch,
        "utilization": float(cost.utilization[at]),
        "peak_memory_bytes": float(cost.peak_memory_bytes[at]),
        "macs": float(layers.macs[0]) / batch,
        "params": float(layers.params[0]),
        "weight_bytes": float(layers.parameter_bytes.sum()),
    }


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
        for at, i in enumerate(places):
            if cost.feasible[at]:
                outcome[i] = {name: float(values[at]) for name, values in figures.items()}, None
            else:
                precision = training_precision(designs[i])
                outcome[i] = {}, f"a training step in {precision}: {cost.reason(at)}"
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
        except DisconnectedError as error:
            outcome[i] = {}, str(error)
    if layers:
        table = hwmodel.Layers.concat([each.folded() for each in layers.values()])
        configs = hardware.configs_of([designs[i] for i in layers])
        cost = hwmodel.price(table, configs, pairing="paired")
        for at, (i, each) in enumerate(layers.items()):
            metrics = metrics_of(cost, each, designs[i]["serve.batch"], (at,))
            outcome[i] = metrics, None if cost.feasible[at] else cost.reason(at)
    trained = [i for i in layers if outcome[i][1] is None and prices_training(designs[i], named)]
    steps = price_training(family, [designs[i] for i in trained])
    for i, (metrics, reason) in zip(trained, steps, strict=True):
        outcome[i] = outcome[i][0] | metrics, reason if requires_training(named) else None
    return outcome
