"""TuNAS's controller (Bender et al., 2008.06120): an independent categorical for every decision,
trained by REINFORCE; at its best with the absolute reward, `tunas` in nas/reward.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nas.controllers.policy import log_softmax
from nas.controllers.policy_gradient import Adam
from nas.controllers.shared import Seen, check_told
from nas.trial import Proposal, State, Trial
from search_spaces.space import Space

REDRAWS = 10  # of a design proposed before; a policy that has settled on it then proposes it again


class TuNAS:
    """The logits climb (reward - baseline) log p(design), a step of Adam a result.

    warmup: results over which the designs stay uniform and nothing is learnt but the baseline; the
    learning rate then rises in a line over as many. baseline: decay of the moving average of
    rewards. A decision that is off takes no part. The paper's rate of 3e-4 is for the tens of
    thousands of steps of a supernet; these are for a few hundred trainings.

    A failed or infeasible trial (NaN) counts as the worst reward so far; before any reward is known
    it teaches nothing.
    """

    def __init__(
        self,
        space: Space,
        *,
        seed: int,
        n_objectives: int = 1,
        warmup: int = 20,
        learning_rate: float = 0.1,
        baseline: float = 0.95,
    ):
        if n_objectives != 1:
            raise ValueError(
                f"tunas follows one reward, got {n_objectives} objectives; choose the reward "
                "tunas, mnasnet or weighted, or the controller surrogate"
            )
        for name, value, fits, wanted in (
            ("warmup", warmup, warmup >= 0, "at least 0"),
            ("learning_rate", learning_rate, 0 < learning_rate < np.inf, "above 0"),
            ("baseline", baseline, 0 <= baseline < 1, "from 0 to below 1"),
        ):
            if not fits:
                raise ValueError(f"tunas: {name} must be {wanted}, got {value!r}")
        self.space = space
        self.n_warmup = warmup
        self.learning_rate = learning_rate
        self.decay = baseline
        self.rng = np.random.default_rng(seed)
        # logits [decisions, most values]: those that a decision does not have are never drawn
        self.exists = np.arange(space.sizes.max()) < space.sizes[:, None]
        self.params = {"logits": np.zeros(self.exists.shape)}
        self.adam = Adam(self.params, learning_rate)
        self.seen = Seen()
        self.n_told = 0
        self.baseline: float | None = None
        self.worst: float | None = None

    def ask(self, n: int) -> list[Proposal]:
        return [Proposal(row) for row in self.seen.draw(self._sample, n, REDRAWS)]

    def _log_p(self) -> np.ndarray:
        return log_softmax(np.where(self.exists, self.params["logits"], -np.inf))

    def _sample(self, n: int) -> np.ndarray:
        """`n` designs: int64 [n, d], canonical; the Gumbel-max draw of every decision."""
        noise = self.rng.gumbel(size=(n, *self.exists.shape))
        return self.space.canonical((self._log_p() + noise).argmax(axis=2))

    def tell(self, trials: Sequence[Trial], objectives: np.ndarray) -> None:
        for trial, (reward,) in zip(trials, check_told(trials, objectives, 1), strict=True):
            self.seen.add(trial.proposal.encoding)
            if np.isnan(reward):
                if self.worst is None:
                    continue
                reward = self.worst
            reward = float(reward)
            self.worst = reward if self.worst is None else min(self.worst, reward)
            self.baseline = reward if self.baseline is None else self.baseline
            self._climb(trial.proposal.encoding, reward - self.baseline)
            self.baseline = self.decay * self.baseline + (1 - self.decay) * reward
            self.n_told += 1

    def _climb(self, encoding: np.ndarray, advantage: float) -> None:
        beyond = self.n_told - self.n_warmup
        if beyond < 0:
            return
        self.adam.learning_rate = self.learning_rate * min((beyond + 1) / (self.n_warmup + 1), 1)
        slope = -np.exp(self._log_p())  # of log p: onehot - p
        slope[np.arange(len(encoding)), encoding] += 1
        slope[~self.space.active(encoding)[0]] = 0
        self.adam.ascend(self.params, {"logits": advantage * slope})

    def state(self) -> State:
        return {
            "rng": self.rng.bit_generator.state,
            "seen": self.seen.keys(),
            "n_told": self.n_told,
            "n_steps": self.adam.n_steps,
            "baseline": self.baseline,
            "worst": self.worst,
            "logits": self.params["logits"].copy(),
            "mean": self.adam.means["logits"].copy(),
            "square": self.adam.squares["logits"].copy(),
        }

    def restore(self, state: State) -> None:
        self.rng.bit_generator.state = state["rng"]
        self.seen = Seen(state["seen"])
        self.n_told = state["n_told"]
        self.adam.n_steps = state["n_steps"]
        self.baseline = state["baseline"]
        self.worst = state["worst"]
        self.params["logits"] = state["logits"].copy()
        self.adam.means["logits"] = state["mean"].copy()
        self.adam.squares["logits"] = state["square"].copy()
