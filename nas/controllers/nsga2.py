"""NSGA-II (Deb et al., IEEE Transactions on Evolutionary Computation 6, 2002), for any objectives.

Crossover is uniform, and a decision of a child changes with one chance in the number of active
decisions, as usual for discrete designs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nas.controllers.shared import Seen, check_told, move, order
from nas.trial import Proposal, State, Trial
from search_spaces.space import Space

REDRAWS = 10  # of a child that repeats a design proposed before


class NSGA2:
    """Generations of `population` results; parents and children together, the best survive.

    The first `population` proposals are random. Parents win binary tournaments by nondominated
    rank, then by crowding. crossover: the share of children with two parents. With trials in flight
    a child may still come of the generation before.

    A failed or infeasible trial (NaN) is no parent, but counts towards its generation.
    """

    def __init__(
        self,
        space: Space,
        *,
        seed: int,
        n_objectives: int = 1,
        population: int = 20,
        crossover: float = 0.9,
    ):
        if population < 2:
            raise ValueError(f"nsga2: population must be at least 2, got {population!r}; try 20")
        if not 0 <= crossover <= 1:
            raise ValueError(f"nsga2: crossover is a chance from 0 to 1, got {crossover!r}")
        self.space = space
        self.n_objectives = n_objectives
        self.n_start = population
        self.crossover = crossover
        self.ordered = np.array([decision.ordered for decision in space.decisions])
        self.rng = np.random.default_rng(seed)
        self.seen = Seen()
        self.n_asked = 0
        self.n_told = 0  # of the present generation
        self.parents: list[tuple[np.ndarray, np.ndarray]] = []  # best first
        self.children: list[tuple[np.ndarray, np.ndarray]] = []

    def ask(self, n: int) -> list[Proposal]:
        n_random = n if not self.parents else min(max(self.n_start - self.n_asked, 0), n)
        rows = [
            *self.seen.draw(lambda k: self.space.sample(k, self.rng), n_random, REDRAWS),
            *self.seen.draw(self._offspring, n - n_random, REDRAWS),
        ]
        self.n_asked += n
        return [Proposal(row) for row in rows]

    def tell(self, trials: Sequence[Trial], objectives: np.ndarray) -> None:
        objectives = check_told(trials, objectives, self.n_objectives)
        for trial, values in zip(trials, objectives, strict=True):
            self.seen.add(trial.proposal.encoding)
            self.n_told += 1
            if not np.isnan(values).any():
                self.children.append((trial.proposal.encoding, values))
            if self.n_told >= self.n_start:
                self._next_generation()

    def _next_generation(self) -> None:
        together = self.parents + self.children
        if together:
            best_first = order(np.array([values for _, values in together]))
            self.parents = [together[i] for i in best_first[: self.n_start]]
        self.children, self.n_told = [], 0

    def _offspring(self, n: int) -> np.ndarray:
        """`n` children: int64 [n, d], canonical."""
        encodings = np.array([encoding for encoding, _ in self.parents])
        winners = self.rng.integers(0, len(encodings), (2, 2, n)).min(axis=0)  # the lower is better
        mothers, fathers = encodings[winners]
        crossed = self.rng.random((n, 1)) < self.crossover
        swapped = crossed & (self.rng.random(mothers.shape) < 0.5)
        children = self.space.canonical(np.where(swapped, fathers, mothers))
        active = self.space.active(children)
        chances = 1 / active.sum(axis=1, keepdims=True)
        mutated = active & (self.space.sizes > 1) & (self.rng.random(children.shape) < chances)
        rows, columns = np.nonzero(mutated)
        # what a change switches on is drawn uniformly
        children = np.where(
            active, children, self.rng.integers(0, self.space.sizes, children.shape)
        )
        children[rows, columns] = move(
            children[rows, columns], self.space.sizes[columns], self.ordered[columns], self.rng
        )
        return self.space.canonical(children)

    def state(self) -> State:
        d, m = len(self.space), self.n_objectives
        members = self.parents + self.children
        return {
            "rng": self.rng.bit_generator.state,
            "seen": self.seen.keys(),
            "n_asked": self.n_asked,
            "n_told": self.n_told,
            "n_parents": len(self.parents),
            "encodings": np.array([e for e, _ in members], np.int64).reshape(-1, d),
            "objectives": np.array([v for _, v in members], float).reshape(-1, m),
        }

    def restore(self, state: State) -> None:
        self.rng.bit_generator.state = state["rng"]
        self.seen = Seen(state["seen"])
        self.n_asked = state["n_asked"]
        self.n_told = state["n_told"]
        members = list(zip(state["encodings"].copy(), state["objectives"].copy(), strict=True))
        self.parents = members[: state["n_parents"]]
        self.children = members[state["n_parents"] :]
