"""Regularized evolution (Real et al., 1802.01548, algorithm 1), for one objective or several."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from nas.controllers.shared import Seen, check_told, mutate, order
from nas.trial import Proposal, State, Trial
from search_spaces.space import Space

REDRAWS = 10  # of a child that repeats a design proposed before


class Evolution:
    """The best of `sample` designs of the last `population` results is mutated.

    The first `population` proposals are random. Results enter in the order of telling and leave by
    age alone. With several objectives the best of a tournament has the lowest nondominated rank in
    the population, then the most room around it (NSGA-II's order).

    A failed or infeasible trial (NaN) never enters: it is no parent, and no result ages by it.
    While no result has come, proposals stay random.
    """

    def __init__(
        self,
        space: Space,
        *,
        seed: int,
        n_objectives: int = 1,
        population: int = 20,
        sample: int = 5,
    ):
        if not 1 <= sample <= population:
            raise ValueError(
                f"evolution: sample is from 1 to the population; got sample={sample!r} and "
                f"population={population!r}; try population=20, sample=5"
            )
        self.space = space
        self.n_objectives = n_objectives
        self.n_start = population
        self.n_contestants = sample
        self.rng = np.random.default_rng(seed)
        self.n_asked = 0
        self.members: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=population)
        self.seen = Seen()

    def ask(self, n: int) -> list[Proposal]:
        n_random = n if not self.members else min(max(self.n_start - self.n_asked, 0), n)
        rows = [
            *self.seen.draw(lambda k: self.space.sample(k, self.rng), n_random, REDRAWS),
            *self.seen.draw(self._children, n - n_random, REDRAWS),
        ]
        self.n_asked += n
        return [Proposal(row) for row in rows]

    def tell(self, trials: Sequence[Trial], objectives: np.ndarray) -> None:
        objectives = check_told(trials, objectives, self.n_objectives)
        for trial, values in zip(trials, objectives, strict=True):
            self.seen.add(trial.proposal.encoding)
            if not np.isnan(values).any():
                self.members.append((trial.proposal.encoding, values))

    def _children(self, n: int) -> np.ndarray:
        """`n` mutated winners of tournaments: int64 [n, d]."""
        best_first = order(np.array([values for _, values in self.members]))
        k = min(self.n_contestants, len(best_first))
        places = np.tile(np.arange(len(best_first)), (n, 1))
        winners = best_first[self.rng.permuted(places, axis=1)[:, :k].min(axis=1)]
        return mutate(np.array([self.members[i][0] for i in winners]), self.space, self.rng)

    def state(self) -> State:
        d, m = len(self.space), self.n_objectives
        return {
            "rng": self.rng.bit_generator.state,
            "n_asked": self.n_asked,
            "encodings": np.array([e for e, _ in self.members], np.int64).reshape(-1, d),
            "objectives": np.array([v for _, v in self.members], float).reshape(-1, m),
            "seen": self.seen.keys(),
        }

    def restore(self, state: State) -> None:
        self.rng.bit_generator.state = state["rng"]
        self.n_asked = state["n_asked"]
        self.members.clear()
        self.members.extend(zip(state["encodings"].copy(), state["objectives"].copy(), strict=True))
        self.seen = Seen(state["seen"])
