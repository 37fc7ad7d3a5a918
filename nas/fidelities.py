"""A short training ranks many candidates, longer ones confirm few: asynchronous successive halving
by promotion (Li et al., 2018, arXiv 1810.05934, algorithm 2), around any controller.

Whenever a training may begin, the best 1 / reduction of those told at a rung and not yet promoted
go on to the next, the highest rung first; only where there are none is the controller asked for a
new design. Best is by front, then by room on it, so that several objectives are ranked too. A
promotion is a trial of its own, trained anew for the longer time. Unlike in the paper no more than
1 / reduction are ever promoted: a controller that learns keeps finding better ones, and each would
be among the best for a while. For the same reason promotions can wait until `after` designs were
told at the first rung: what is best by then is promoted, not what was best early on.

The controller is told of the first rung alone: there all candidates are comparable, and none looks
better for having been trained longer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from nas.controllers import Controller
from nas.controllers.shared import check_told, order
from nas.trial import Grown, Proposal, State, Status, Trial

OF_CONTROLLER = "controller."  # before the names of its state


class Rung:
    """What was told at one fidelity, in the order of telling; NaN where a training failed."""

    def __init__(self):
        self.encodings: list[np.ndarray] = []
        self.objectives: list[np.ndarray] = []
        self.promoted: list[bool] = []

    def add(self, encoding: np.ndarray, objectives: np.ndarray) -> None:
        self.encodings.append(encoding)
        self.objectives.append(objectives)
        self.promoted.append(False)

    def promote(self, reduction: int, after: int = 0) -> np.ndarray | None:
        """The best design of the best 1 / reduction that was not promoted yet; then it is. None
        where as many were promoted already, or fewer than `after` were told."""
        n_best = len(self.objectives) // reduction
        if sum(self.promoted) >= n_best or len(self.objectives) < after:
            return None
        objectives = np.array(self.objectives)
        for row in order(objectives)[:n_best]:
            if not self.promoted[row] and not np.isnan(objectives[row]).any():
                self.promoted[row] = True
                return self.encodings[row]
        return None


class SuccessiveHalving:
    """A controller that promotes what another one found.

    after: designs told at the first rung before any is promoted. With a controller that learns,
    half of what a run can pay for is a good choice (benchmarks/search_efficiency.py).
    A proposal's note is {"rung": its rung, "note": the inner controller's}. Failed trainings count
    at their rung and are never promoted; repeats and infeasible designs do not count.
    """

    def __init__(
        self,
        controller: Controller,
        *,
        n_rungs: int,
        reduction: int,
        n_objectives: int,
        after: int = 0,
    ):
        if n_rungs < 2 or reduction < 2:
            raise ValueError(
                f"successive halving needs 2 rungs and a reduction of 2 at least; got {n_rungs} "
                f"and {reduction}; try 2 and 3"
            )
        if after < 0:
            raise ValueError(
                f"successive halving promotes after a number of trainings; got {after}; try 0, for "
                "promotions at once"
            )
        self.controller, self.reduction, self.n_objectives = controller, reduction, n_objectives
        self.after = after
        self.rungs = [Rung() for _ in range(n_rungs)]

    def ask(self, n: int) -> list[Proposal]:
        promoted = []
        for number in reversed(range(1, len(self.rungs))):
            below = self.rungs[number - 1]
            after = self.after if number == 1 else 0
            while len(promoted) < n and (best := below.promote(self.reduction, after)) is not None:
                promoted.append(Proposal(best, {"rung": number, "note": None}))
        if len(promoted) == n:
            return promoted
        new = self.controller.ask(n - len(promoted))
        return promoted + [Proposal(p.encoding, {"rung": 0, "note": p.note}) for p in new]

    def tell(self, trials: Sequence[Trial], objectives: np.ndarray) -> None:
        objectives = check_told(trials, objectives, self.n_objectives)
        first = []
        for i, trial in enumerate(trials):
            number = rung_of(trial.proposal)
            if trial.status is not Status.INFEASIBLE and trial.repeats is None:
                self.rungs[number].add(trial.proposal.encoding, objectives[i])
            if number == 0:
                first.append(i)
        if first:
            self.controller.tell([_inner(trials[i]) for i in first], objectives[first])

    def state(self) -> State:
        state = {f"{OF_CONTROLLER}{name}": v for name, v in self.controller.state().items()}
        for number, rung in enumerate(self.rungs):
            objectives = np.array(rung.objectives, float).reshape(-1, self.n_objectives)
            state |= {
                f"encodings.{number}": np.array(rung.encodings, np.int64).view(Grown),
                f"objectives.{number}": np.nan_to_num(objectives).view(Grown),
                f"failed.{number}": np.isnan(objectives).any(axis=1).view(Grown),
                f"promoted.{number}": np.array(rung.promoted, bool),
            }
        return state

    def restore(self, state: State) -> None:
        self.controller.restore(
            {
                name.removeprefix(OF_CONTROLLER): value
                for name, value in state.items()
                if name.startswith(OF_CONTROLLER)
            }
        )
        for number, rung in enumerate(self.rungs):
            objectives, failed = state[f"objectives.{number}"], state[f"failed.{number}"]
            rung.encodings = list(state[f"encodings.{number}"])
            rung.objectives = list(np.where(failed[:, None], np.nan, objectives))
            rung.promoted = state[f"promoted.{number}"].tolist()


def _inner(trial: Trial) -> Trial:
    """The trial as the inner controller proposed it."""
    own = Proposal(trial.proposal.encoding, trial.proposal.note["note"])
    return replace(trial, proposal=own)


def rung_of(proposal: Proposal) -> int:
    """The fidelity that a proposal of `SuccessiveHalving` is to be trained at."""
    return proposal.note["rung"]


def highest(trials: Sequence[Trial]) -> list[Trial]:
    """Of every design its trial at the highest rung, in the order given; all, where there are no
    rungs."""
    best: dict[bytes, int] = {}
    for trial in trials:
        key = trial.proposal.encoding.tobytes()
        best[key] = max(best.get(key, 0), trial.metrics.get("rung", 0))
    return [
        trial
        for trial in trials
        if trial.metrics.get("rung", 0) == best[trial.proposal.encoding.tobytes()]
    ]


class Correlation(NamedTuple):
    """How two neighbouring rungs agree: Spearman's over the `n` designs trained at both, and its
    95 % interval; NaN for fewer than four designs, or values that do not differ."""

    rungs: tuple[int, int]
    n: int
    value: float
    low: float
    high: float


def correlations(trials: Sequence[Trial], metric: str) -> list[Correlation]:
    """Spearman's rank correlation of a metric at each two neighbouring rungs.

    The interval is Fisher's with the variance (1 + r^2 / 2) / (n - 3) (Bonett and Wright,
    Psychometrika 65, 2000). Only what was promoted is at both, the best of the lower rung: over all
    candidates the correlation is higher.
    """
    from scipy.stats import spearmanr

    found: dict[int, dict[bytes, float]] = {}
    for trial in trials:
        value = trial.metrics.get(metric)
        if trial.status is Status.COMPLETE and trial.repeats is None and value is not None:
            key = trial.proposal.encoding.tobytes()
            found.setdefault(trial.metrics.get("rung", 0), {})[key] = value
    each = []
    for low, high in zip(sorted(found), sorted(found)[1:], strict=False):
        pairs = np.array([(found[low][key], found[high][key]) for key in found[high]])
        if len(pairs) < 4 or (pairs == pairs[0]).all(axis=0).any():
            each.append(Correlation((low, high), len(pairs), math.nan, math.nan, math.nan))
            continue
        value = float(spearmanr(*pairs.T).statistic)
        half = 1.96 * math.sqrt((1 + value**2 / 2) / (len(pairs) - 3))
        middle = math.atanh(np.clip(value, -1 + 1e-9, 1 - 1e-9))
        bounds = (math.tanh(middle - half), math.tanh(middle + half))
        each.append(Correlation((low, high), len(pairs), value, *bounds))
    return each
