"""Policy gradients of an autoregressive LSTM policy, one policy for all groups of decisions:
REINFORCE, as of Zoph and Le (1611.01578), or PPO (Schulman et al., 1707.06347), as of NASNet.

The units and the entropy weight are those of ENAS (1802.03268), the baseline's decay that of NASNet
(1707.07012) and TuNAS. The learning rate is twice that of ENAS and the batch a quarter of NASNet's,
for runs of a hundred trainings rather than thousands.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nas.controllers import policy
from nas.controllers.shared import Seen, check_told
from nas.trial import Proposal, State, Trial
from search_spaces.space import Space

REDRAWS = 10  # of a design proposed before; a policy that has settled on it then proposes it again


class PolicyGradient:
    """The policy's parameters climb E[(reward - baseline) log p(design)] + entropy x its weight.

    batch: results to one step of Adam, however they are grouped in the telling. learning_rate: of
    Adam. baseline: decay of the moving average of rewards that is subtracted. entropy: weight of
    the summed entropies of the active decisions. units: of the LSTM. algorithm: "reinforce", or
    "ppo", which takes `epochs` steps on a batch, each design weighted by how much likelier it has
    become since it was drawn and left alone once that ratio is `clip` from 1 to its advantage.

    REINFORCE is taken at the present parameters, also for designs that were drawn under earlier
    ones and were in flight meanwhile, without importance weights: with few in flight the lag is a
    step or two. With both, a design proposed before is redrawn a few times, since its result is
    known: fewer trainings go to what the policy is already sure of.

    A failed or infeasible trial (NaN) counts as the worst reward so far, so that the policy leaves
    such designs whatever the scale of the reward; before any reward is known it teaches nothing.
    """

    def __init__(
        self,
        space: Space,
        *,
        seed: int,
        n_objectives: int = 1,
        batch: int = 5,
        learning_rate: float = 7e-3,
        baseline: float = 0.95,
        entropy: float = 1e-4,
        units: int = 64,
        algorithm: str = "reinforce",
        epochs: int = 4,
        clip: float = 0.2,
    ):
        if n_objectives != 1:
            raise ValueError(
                f"policy_gradient follows one reward, got {n_objectives} objectives; choose the "
                "reward mnasnet, tunas or weighted, or the controller evolution"
            )
        for name, value, fits, wanted in (
            ("batch", batch, batch >= 1, "at least 1"),
            ("learning_rate", learning_rate, 0 < learning_rate < np.inf, "above 0"),
            ("baseline", baseline, 0 <= baseline < 1, "from 0 to below 1"),
            ("entropy", entropy, 0 <= entropy < np.inf, "at least 0"),
            ("units", units, units >= 1, "at least 1"),
            ("algorithm", algorithm, algorithm in ("reinforce", "ppo"), "'reinforce' or 'ppo'"),
            ("epochs", epochs, epochs >= 1, "at least 1"),
            ("clip", clip, 0 < clip < np.inf, "above 0"),
        ):
            if not fits:
                raise ValueError(f"policy_gradient: {name} must be {wanted}, got {value!r}")
        self.space = space
        self.n_batch = batch
        self.decay = baseline
        self.entropy = entropy
        self.n_epochs, self.clip = (epochs, clip) if algorithm == "ppo" else (1, None)
        self.rng = np.random.default_rng(seed)
        self.params = policy.initialize(space, units, self.rng)
        self.adam = Adam(self.params, learning_rate)
        self.seen = Seen()
        self.baseline: float | None = None
        self.worst: float | None = None
        self.encodings: list[np.ndarray] = []  # of results that no step has used yet
        self.rewards: list[float] = []
        self.log_p: list[float | None] = []  # when drawn; None of a design of another's

    def ask(self, n: int) -> list[Proposal]:
        rows = self.seen.draw(
            lambda k: policy.sample(self.params, self.space, k, self.rng), n, REDRAWS
        )
        if self.clip is None or not rows:
            return [Proposal(row) for row in rows]
        log_p = policy.log_probability(policy.replay(self.params, self.space, np.array(rows)))
        return [Proposal(row, float(value)) for row, value in zip(rows, log_p, strict=True)]

    def tell(self, trials: Sequence[Trial], objectives: np.ndarray) -> None:
        for trial, (reward,) in zip(trials, check_told(trials, objectives, 1), strict=True):
            self.seen.add(trial.proposal.encoding)
            if np.isnan(reward):
                if self.worst is None:
                    continue
                reward = self.worst
            self.worst = float(reward if self.worst is None else min(self.worst, reward))
            self.encodings.append(trial.proposal.encoding)
            self.rewards.append(float(reward))
            self.log_p.append(trial.proposal.note)
            if len(self.rewards) == self.n_batch:
                self._step()

    def _step(self) -> None:
        encodings, rewards = np.array(self.encodings), np.array(self.rewards)
        drawn = np.array(self.log_p, float)  # NaN where unknown
        self.encodings, self.rewards, self.log_p = [], [], []
        if self.baseline is None:
            self.baseline = float(rewards.mean())
        advantages = (rewards - self.baseline) / len(rewards)
        entropies = np.full(len(rewards), self.entropy / len(rewards))
        for _ in range(self.n_epochs):
            steps = policy.replay(self.params, self.space, encodings)
            weights = advantages
            if self.clip is not None:
                log_p = policy.log_probability(steps)
                drawn = np.where(np.isnan(drawn), log_p, drawn)
                weights = clipped(advantages, np.exp(log_p - drawn), self.clip)
            grads = policy.gradient(self.params, self.space, steps, weights, entropies)
            self.adam.ascend(self.params, grads)
        for reward in rewards.tolist():
            self.baseline = self.decay * self.baseline + (1 - self.decay) * reward

    def state(self) -> State:
        return {
            "rng": self.rng.bit_generator.state,
            "seen": self.seen.keys(),
            "n_steps": self.adam.n_steps,
            "baseline": self.baseline,
            "worst": self.worst,
            "rewards": list(self.rewards),
            "log_p": list(self.log_p),
            "encodings": np.array(self.encodings, np.int64).reshape(-1, len(self.space)),
            **{f"params.{name}": value.copy() for name, value in self.params.items()},
            **{f"mean.{name}": value.copy() for name, value in self.adam.means.items()},
            **{f"square.{name}": value.copy() for name, value in self.adam.squares.items()},
        }

    def restore(self, state: State) -> None:
        self.rng.bit_generator.state = state["rng"]
        self.seen = Seen(state["seen"])
        self.adam.n_steps = state["n_steps"]
        self.baseline = state["baseline"]
        self.worst = state["worst"]
        self.rewards = list(state["rewards"])
        self.log_p = list(state["log_p"])
        self.encodings = list(state["encodings"].copy())
        for name in self.params:
            self.params[name] = state[f"params.{name}"].copy()
            self.adam.means[name] = state[f"mean.{name}"].copy()
            self.adam.squares[name] = state[f"square.{name}"].copy()


def clipped(advantages: np.ndarray, ratios: np.ndarray, clip: float) -> np.ndarray:
    """The derivative to log p of PPO's min(r A, clip(r, 1 - clip, 1 + clip) A), equation 7: [n]."""
    beyond = np.where(advantages > 0, ratios > 1 + clip, ratios < 1 - clip)
    return np.where(beyond, 0, ratios * advantages)


class Adam:
    """Kingma and Ba (1412.6980), algorithm 1 with its values, uphill and in place."""

    beta1, beta2, epsilon = 0.9, 0.999, 1e-8

    def __init__(self, params: policy.Parameters, learning_rate: float):
        self.learning_rate = learning_rate
        self.n_steps = 0
        self.means = {name: np.zeros_like(value) for name, value in params.items()}
        self.squares = {name: np.zeros_like(value) for name, value in params.items()}

    def ascend(self, params: policy.Parameters, grads: policy.Parameters) -> None:
        self.n_steps += 1
        for name, grad in grads.items():
            mean, square = self.means[name], self.squares[name]
            mean += (1 - self.beta1) * (grad - mean)
            square += (1 - self.beta2) * (grad**2 - square)
            unbiased_mean = mean / (1 - self.beta1**self.n_steps)
            unbiased_square = square / (1 - self.beta2**self.n_steps)
            params[name] += (
                self.learning_rate * unbiased_mean / (np.sqrt(unbiased_square) + self.epsilon)
            )
