"""The hardware sweep: every trained network on every accelerator of the space.

Pricing is about a million times cheaper than training, so that a search need not be lucky with
both at once. A network keeps its bits and its batches; only the accelerator changes.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

import hwmodel
from nas import pareto
from nas.pricing import metrics_of, prices_training, requires_training, step_figures, step_of
from nas.reward import violations
from nas.trial import STEP_METRICS, Proposal, Trial
from search_spaces import FAMILIES, hardware
from search_spaces.space import Choices, Space


class Sweep:
    """Pairs of trained networks and accelerators; what a trial gave is kept for the next call.

    named: the metrics that the reward names.
    """

    def __init__(self, family: str, space: Space, constraints: list, named: Collection[str] = ()):
        self.family, self.space, self.constraints = family, space, constraints
        self.named = {*named, *(constraint.metric for constraint in constraints)}
        self.pairs: dict[int, list[Trial]] = {}
        self.configs: hwmodel.Configs | None = None

    def of(self, trial: Trial) -> list[Trial]:
        """The trial on each accelerator that no other beats in latency, energy and area at once.

        Copies of the trial with the accelerator's choices and the pair's prices in place.
        """
        if trial.id not in self.pairs:
            self.pairs[trial.id] = self._price(trial)
        return self.pairs[trial.id]

    @property
    def n_accelerators(self) -> int:
        self._enumerate()
        return len(self.configs)

    def _enumerate(self) -> None:
        if self.configs is None:
            self.hardware, self.encodings, self.configs = hardware.every(self.space)

    def _price(self, trial: Trial) -> list[Trial]:
        self._enumerate()
        choices = self.space.decode(trial.proposal.encoding)
        layers, batch = FAMILIES[self.family].layers(choices), choices["serve.batch"]
        cost = hwmodel.price(layers.folded(), self.configs)
        allowed = cost.feasible[0].copy()
        steps, trains = self._training(choices)
        if requires_training(self.named):
            allowed &= trains
        for constraint in self.constraints:
            if hasattr(cost, constraint.metric):
                values = getattr(cost, constraint.metric)[0]
                per_image = constraint.metric in ("energy_j", "dram_bytes", "sram_bytes")
                allowed &= constraint.holds(values / batch if per_image else values)
            elif constraint.metric in steps:
                allowed &= constraint.holds(steps[constraint.metric])
        rows = np.flatnonzero(allowed)
        columns = cost.latency_s, cost.energy_j, cost.area_mm2
        points = -np.column_stack([column[0, rows] for column in columns])
        pairs = []
        kept = {name: value for name, value in trial.metrics.items() if name not in STEP_METRICS}
        for row in rows[pareto.front(points)]:
            metrics = {**kept, **metrics_of(cost, layers, batch, (0, row))}
            if trains[row]:
                metrics |= {name: float(values[row]) for name, values in steps.items()}
            if violations(self.constraints, metrics):
                continue
            encoding = trial.proposal.encoding.copy()
            for name, index in zip(self.hardware.names, self.encodings[row], strict=True):
                encoding[self.space.column[name]] = index
            pairs.append(Trial(trial.id, Proposal(encoding), trial.seed, trial.status, metrics))
        return pairs

    def _training(self, choices: Choices) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """STEP_METRICS on every accelerator, each [accelerators], and which can train the network;
        none where the search does not ask."""
        if not prices_training(choices, self.named):
            return {}, np.ones(len(self.configs), bool)
        step = step_of(self.family, [choices])
        cost = hwmodel.price(step.layers, self.configs)
        figures = step_figures(cost, step, choices["train.batch"])
        return {name: values[0] for name, values in figures.items()}, cost.feasible[0]
