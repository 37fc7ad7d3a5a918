"""The hardware sweep: every trained network on every accelerator of the space.

Pricing is about a million times cheaper than training, so that a search need not be lucky with
both at once. A network keeps its bits and its batches; only the accelerator changes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np

import hwmodel
from nas import pareto
from nas.pricing import at, price_grid
from nas.reward import Constraint, violations
from nas.trial import STEP_METRICS, Proposal, Trial
from search_spaces import hardware
from search_spaces.space import Space


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
        figures, feasible = price_grid(self.family, [choices], self.configs, self.named)
        figures = {name: values[0] for name, values in figures.items()}
        allowed = feasible[0] & keeps(self.constraints, figures)
        rows = np.flatnonzero(allowed)
        costs = [figures[name][rows] for name in ("latency_s", "energy_j", "area_mm2")]
        pairs = []
        kept = {name: value for name, value in trial.metrics.items() if name not in STEP_METRICS}
        for row in rows[pareto.front(-np.column_stack(costs))]:
            priced = {k: value for k, value in at(figures, row).items() if not np.isnan(value)}
            metrics = {**kept, **priced}
            if violations(self.constraints, metrics):
                continue
            encoding = trial.proposal.encoding.copy()
            for name, index in zip(self.hardware.names, self.encodings[row], strict=True):
                encoding[self.space.column[name]] = index
            pairs.append(Trial(trial.id, Proposal(encoding), trial.seed, trial.status, metrics))
        return pairs


def keeps(
    constraints: Iterable[Constraint], figures: Mapping[str, np.ndarray]
) -> np.ndarray | bool:
    """Which entries keep all constraints on the metrics among `figures`, in their shape."""
    held = [c.holds(figures[c.metric]) for c in constraints if c.metric in figures]
    return np.all(held, axis=0) if held else True
