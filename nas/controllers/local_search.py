"""Local search (White et al., 2005.02960), and Pareto local search for several objectives
(Paquete, Chiarandini and Stützle, 2004)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nas.controllers.shared import Seen, check_told, order
from nas.trial import Proposal, State, Trial
from search_spaces.space import Space

REDRAWS = 100  # of a random design proposed before


class LocalSearch:
    """The neighbours of the best design are evaluated; a better one takes its place at once.

    `start` random designs come first. With several objectives every design on the front is gone
    round in turn, the loneliest first. Where all neighbours of the best are known, the search
    begins anew from `start` other random designs and forgets the optimum that it has found.

    A failed or infeasible trial (NaN) is nobody's centre.
    """

    def __init__(self, space: Space, *, seed: int, n_objectives: int = 1, start: int = 10):
        if start < 1:
            raise ValueError(f"local_search: start must be at least 1, got {start!r}; try 10")
        self.space = space
        self.n_objectives = n_objectives
        self.n_start = start
        self.rng = np.random.default_rng(seed)
        self.seen = Seen()
        self.n_random = start  # random designs still to ask for
        self.front: list[tuple[np.ndarray, np.ndarray, bool]] = []  # (design, values, explored)
        self.queue: list[np.ndarray] = []  # neighbours to ask for, the next one last

    def ask(self, n: int) -> list[Proposal]:
        return [Proposal(self._next()) for _ in range(n)]

    def tell(self, trials: Sequence[Trial], objectives: np.ndarray) -> None:
        objectives = check_told(trials, objectives, self.n_objectives)
        for trial, values in zip(trials, objectives, strict=True):
            self.seen.add(trial.proposal.encoding)
            if np.isnan(values).any():
                continue
            if any((held >= values).all() for _, held, _ in self.front):
                continue
            self.front = [f for f in self.front if not (values >= f[1]).all()]
            self.front.append((trial.proposal.encoding, values, False))

    def _next(self) -> np.ndarray:
        """A neighbour of the best design, or a random one: int64 [d]."""
        while self.front and not self.n_random:
            unexplored = [i for i, (_, _, explored) in enumerate(self.front) if not explored]
            # several objectives: one design is gone round before the next
            if unexplored and (self.n_objectives == 1 or not self.queue):
                values = np.array([values for _, values, _ in self.front])
                centre = next(i for i in order(values) if i in unexplored)
                design, values, _ = self.front[centre]
                self.front[centre] = design, values, True
                self.queue = list(self.rng.permutation(self.space.neighbours(design)))
            elif not self.queue:
                self.front, self.n_random = [], self.n_start
            while self.queue:
                design = self.queue.pop()
                if self.seen.add(design):
                    return design
        self.n_random = max(self.n_random - 1, 0)
        return self.seen.draw(lambda k: self.space.sample(k, self.rng), 1, REDRAWS)[0]

    def state(self) -> State:
        d, m = len(self.space), self.n_objectives
        return {
            "rng": self.rng.bit_generator.state,
            "seen": self.seen.keys(),
            "n_random": self.n_random,
            "queue": np.array(self.queue, np.int64).reshape(-1, d),
            "encodings": np.array([e for e, _, _ in self.front], np.int64).reshape(-1, d),
            "objectives": np.array([v for _, v, _ in self.front], float).reshape(-1, m),
            "explored": [explored for _, _, explored in self.front],
        }

    def restore(self, state: State) -> None:
        self.rng.bit_generator.state = state["rng"]
        self.seen = Seen(state["seen"])
        self.n_random = state["n_random"]
        self.queue = list(state["queue"].copy())
        held = state["encodings"].copy(), state["objectives"].copy(), state["explored"]
        self.front = list(zip(*held, strict=True))
