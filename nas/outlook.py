"""What a search knows of its designs before it trains them: their prices on every accelerator.

The controller's side of this is nas/controllers/outlook.py. It sees each network on a shortlist of
accelerators: those that the reward likes best under a few random networks. A trained network is
still priced on all of them (nas/sweep.py); the shortlist only has to tell which network to train.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from nas.controllers.expected_improvement import Scalarization
from nas.controllers.outlook import unbounded
from nas.evaluators.table import Table
from nas.pricing import price_grid
from nas.reward import Reward
from nas.sweep import keeps
from nas.trial import TRAINING_METRICS, Trial
from search_spaces import FAMILIES, hardware
from search_spaces.space import Space

UNTRAINED = ("hw.", "serve.")  # groups of decisions that training does not see
LIMIT = 200  # networks priced for one `ask`: about a third of a second
N_ACCELERATORS = 48  # on the shortlist
N_PRICED = 8192  # random accelerators that it is drawn from
N_NETWORKS = 12  # random ones that it is drawn up for
ACCURACY = 0.5  # that they are taken to have


def named(reward: Reward, constraints: Sequence) -> set[str]:
    """The metrics that a search is for."""
    return {*reward.needs, *(constraint.metric for constraint in constraints)}


class OfReward:
    """What outlooks share: metrics are unknown, or known beforehand (costs).

    unknown: of the metrics that the reward and the constraints name, those that training measures.
    """

    def __init__(self, reward: Reward, constraints: Sequence, unknown: Collection[str]):
        self.reward, self.constraints = reward, constraints
        limits = {c.metric: c for c in constraints}
        metrics = dict.fromkeys([*reward.needs, *limits])
        self.unknown = [name for name in metrics if name in unknown]
        self.costs = [name for name in reward.needs if name not in unknown]
        if not self.unknown:
            raise ValueError(
                f"the reward needs only {', '.join(reward.needs)}, which no training measures; "
                "add accuracy to its objectives, or a constraint on it"
            )
        self.n_measured = len(self.unknown)
        lowered = {goal.removeprefix("-") for goal in reward.goals if goal.startswith("-")}
        lowered |= {
            name for name, c in limits.items() if name not in reward.needs and c.sense == "<="
        }
        self.signs = np.array([-1.0 if name in lowered else 1.0 for name in self.unknown])
        self.sources = np.array(
            [self.unknown.index(name) if name in self.unknown else -1 for name in reward.needs]
        )
        self.bounds = unbounded(self.n_measured)
        for constraint in constraints:
            if constraint.metric in self.unknown:
                j = self.unknown.index(constraint.metric)
                bound = constraint.bound * self.signs[j]
                if (constraint.sense == ">=") == (self.signs[j] > 0):
                    self.bounds[j, 0] = max(self.bounds[j, 0], bound)
                else:
                    self.bounds[j, 1] = min(self.bounds[j, 1], bound)

    def measured(self, trials: Sequence[Trial], objectives: np.ndarray) -> np.ndarray:
        rows = [[trial.metrics.get(name, np.nan) for name in self.unknown] for trial in trials]
        values = np.array(rows, float).reshape(len(trials), self.n_measured) * self.signs
        complete = np.isfinite(objectives).all(axis=1) & np.isfinite(values).all(axis=1)
        return np.where(complete[:, None], values, np.nan)

    def objectives(self, measured: np.ndarray, known: np.ndarray) -> np.ndarray:
        shape = (*known.shape[:-1], len(self.reward.needs))
        metrics = np.empty(np.broadcast_shapes(shape[:-1], measured.shape[:-1]) + shape[-1:])
        for j, name in enumerate(self.reward.needs):
            if name in self.unknown:
                k = self.unknown.index(name)
                metrics[..., j] = measured[..., k] * self.signs[k]
            else:
                metrics[..., j] = known[..., self.costs.index(name)]
        ruled_out = np.isnan(known).any(axis=-1, keepdims=True)
        return np.where(ruled_out, np.nan, self.reward.of(metrics))


class Tabled(OfReward):
    """An `Outlook` over a table, whose costs are known of every design, and no other design shares
    what is measured of one; designs that break a constraint on a cost are ruled out."""

    limit = 0

    def __init__(self, table: Table, space: Space, reward: Reward, constraints: Sequence):
        super().__init__(reward, constraints, named(reward, constraints) - table.costs.keys())
        self.table, self.space = table, space
        self.columns = np.arange(len(space))

    def features(self, encodings: np.ndarray) -> list[np.ndarray]:
        return []

    def variants(self, encodings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each design of [n, d] alone."""
        figures = self.table.columns(self.space, encodings, fidelity=None)
        costs = [*(figures[name] for name in self.costs), np.zeros(len(encodings))]
        kept = np.broadcast_to(keeps(self.constraints, figures), len(encodings))
        known = np.where(kept[:, None], np.column_stack(costs), np.nan)
        return encodings[:, None], known[:, None]


class Priced(OfReward):
    """An `Outlook` over a joint space, by the hardware model: what training measures of the
    reward's metrics is unknown, the rest is priced; designs that break a constraint are ruled out.

    Raises ValueError for a reward of costs alone: nothing is left for training to tell.
    """

    limit = LIMIT

    def __init__(self, family: str, space: Space, reward: Reward, constraints: Sequence):
        super().__init__(reward, constraints, TRAINING_METRICS)
        self.family, self.space = family, space
        self.named = named(reward, constraints)
        names = space.names
        self.columns = np.array([i for i, n in enumerate(names) if not n.startswith(UNTRAINED)])
        self.hardware = np.array([i for i, n in enumerate(names) if n.startswith("hw.")])
        self.shortlist: np.ndarray | None = None  # [k, hardware decisions]
        self.known: dict[bytes, np.ndarray] = {}  # network and serving batch -> costs [k, c]

    def features(self, encodings: np.ndarray) -> list[np.ndarray]:
        features = getattr(FAMILIES[self.family], "features", None)
        return features(self.space, encodings) if features else []

    def variants(self, encodings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each network of [n, d] on every accelerator of the shortlist."""
        if self.shortlist is None:
            self.shortlist = self._shortlist()
            self.configs = self._configs(self.shortlist)
        designs = np.repeat(encodings[:, None], len(self.shortlist), axis=1)
        designs[:, :, self.hardware] = self.shortlist
        keys = [row.tobytes() for row in np.delete(encodings, self.hardware, axis=1)]
        missing = {key: row for key, row in zip(keys, encodings, strict=True)}
        missing = {key: row for key, row in missing.items() if key not in self.known}
        if missing:
            costs = self._price(np.array(list(missing.values())), self.configs)
            self.known.update(zip(missing, costs, strict=True))
        n_costs = len(self.costs) + 1
        known = [self.known[key] for key in keys]
        return designs, np.array(known).reshape(*designs.shape[:2], n_costs)

    def _price(self, encodings: np.ndarray, configs) -> np.ndarray:
        """Costs of [n, d] on each accelerator: float [n, k, costs + 1], NaN where ruled out.

        The last column is 0, so that ruled out is NaN also where the reward names no cost."""
        designs = self.space.decode_all(encodings)
        figures, feasible = price_grid(self.family, designs, configs, self.named)
        if not feasible.any():
            return np.full((*feasible.shape, len(self.costs) + 1), np.nan)
        costs = np.stack([*(figures[name] for name in self.costs), np.zeros(feasible.shape)], -1)
        return np.where((feasible & keeps(self.constraints, figures))[..., None], costs, np.nan)

    def _shortlist(self) -> np.ndarray:
        """Choices of the accelerators that suit one random network or another: int64 [k, .]."""
        rng = np.random.default_rng(0)
        accelerators = Space([self.space.decisions[i] for i in self.hardware])
        if accelerators.n_designs <= N_ACCELERATORS:
            return accelerators.enumerate()
        encodings = np.unique(accelerators.sample(N_PRICED, rng), axis=0)
        configs = self._configs(encodings)
        taken: list[int] = []
        n_each = N_ACCELERATORS // N_NETWORKS
        for row in self.space.sample(4 * N_NETWORKS, rng):
            known = self._price(row[None], configs)[0]
            allowed = np.flatnonzero(~np.isnan(known).any(axis=1))
            if not len(allowed):
                continue
            measured = np.full((1, self.n_measured), ACCURACY) * self.signs
            objectives = self.objectives(measured, known[allowed])
            scalarize = Scalarization(objectives.min(axis=0), objectives.max(axis=0), rng)
            values = scalarize(objectives)
            best = allowed[np.argsort(-values, axis=0, kind="stable")[:N_ACCELERATORS]]
            new = [k for k in dict.fromkeys(best.ravel().tolist()) if k not in taken]
            taken += new[:n_each]
            if len(taken) == N_ACCELERATORS:
                break
        return encodings[taken or slice(N_ACCELERATORS)]

    def _configs(self, encodings: np.ndarray):
        """The accelerators of choices [k, hardware decisions]."""
        accelerators = Space([self.space.decisions[i] for i in self.hardware])
        return hardware.configs_of(accelerators.decode_all(encodings))
