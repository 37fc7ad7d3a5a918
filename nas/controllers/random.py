"""Random search, the baseline of every comparison (Bergstra and Bengio, JMLR 13, 2012)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nas.controllers.shared import Seen, check_told
from nas.trial import Proposal, State, Trial
from search_spaces.space import Space

REDRAWS = 100  # of a design proposed before; in a space that is nearly used up it may come again


class Random:
    """Every decision uniform and independent; a design is not proposed twice while others are left.

    Results change nothing, so failed trials do not either.
    """

    def __init__(self, space: Space, *, seed: int, n_objectives: int = 1):
        self.space = space
        self.n_objectives = n_objectives
        self.rng = np.random.default_rng(seed)
        self.seen = Seen()

    def ask(self, n: int) -> list[Proposal]:
        rows = self.seen.draw(lambda k: self.space.sample(k, self.rng), n, REDRAWS)
        return [Proposal(row) for row in rows]

    def tell(self, trials: Sequence[Trial], objectives: np.ndarray) -> None:
        check_told(trials, objectives, self.n_objectives)
        for trial in trials:
            self.seen.add(trial.proposal.encoding)

    def state(self) -> State:
        return {"rng": self.rng.bit_generator.state, "seen": self.seen.keys()}

    def restore(self, state: State) -> None:
        self.rng.bit_generator.state = state["rng"]
        self.seen = Seen(state["seen"])
