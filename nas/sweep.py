"""The hardware sweep: every trained network on every accelerator of the space.

Pricing is about a million times cheaper than training, so that a search need not be lucky with
both at once. A network keeps its bits and its serving batch; only the accelerator changes.
"""

from __future__ import annotations

import numpy as np

import hwmodel
from nas import pareto
from nas.pricing import metrics_of
from nas.reward import violations
from nas.trial import Proposal, Trial
from search_spaces import FAMILIES, hardware
from search_spaces.space import Space


class Sweep:
    """Pairs of trained networks and accelerators; what a trial gave is kept for the next call."""

    def __init__(self, family: str, space: Space, constraints: list):
        self.family, self.space, self.constraints = family, space, constraints
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
        for constraint in self.constraints:
            if hasattr(cost, constraint.metric):
                values = getattr(cost, constraint.metric)[0]
                per_image = constraint.metric in ("energy_j", "dram_bytes", "sram_bytes")
                allowed &= constraint.holds(values / batch if per_image else values)
        rows = np.flatnonzero(allowed)
        columns = cost.latency_s, cost.energy_j, cost.area_mm2
        points = -np.column_stack([column[0, rows] for column in columns])
        pairs = []
        for row in rows[pareto.front(points)]:
            metrics = {**trial.metrics, **metrics_of(cost, layers, batch, (0, row))}
            if violations(self.constraints, metrics):
                continue
            encoding = trial.proposal.encoding.copy()
            for name, index in zip(self.hardware.names, self.encodings[row], strict=True):
                encoding[self.space.column[name]] = index
            pairs.append(Trial(trial.id, Proposal(encoding), trial.seed, trial.status, metrics))
        return pairs
