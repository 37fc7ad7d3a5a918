"""From metrics to objectives: what the search maximizes, and which candidates are out of bounds.

A reward maps trials to objectives, float [n, m], larger is better. A trial that is not complete, or
whose metrics a reward needs and does not find, or finds not finite, has a row of NaN. Metrics are
what is stored, so a finished run can be judged again under another reward.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from nas.table import look_up
from nas.trial import METRICS, Metrics, Status, Trial
from search_spaces.space import nearest

TARGETS: Mapping[str, float] = MappingProxyType({"latency_s": 1e-3, "energy_j": 1e-4})


class Reward(Protocol):
    """Trials -> objectives.

    names: the objective columns. goals: the metrics that they are made of, those to minimize with
    a minus; the front that is shown is over them. needs: those metrics, without signs; `of` takes
    them as arrays [..., needs], finite, and gives [..., n_objectives].
    """

    names: tuple[str, ...]
    goals: tuple[str, ...]
    needs: tuple[str, ...]

    @property
    def n_objectives(self) -> int: ...

    def of(self, metrics: np.ndarray) -> np.ndarray: ...

    def __call__(self, trials: Sequence[Trial]) -> np.ndarray: ...


class OfMetrics:
    """What all rewards here share: trials are judged by their metrics, their goals unsigned."""

    goals: tuple[str, ...]

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(goal.removeprefix("-") for goal in self.goals)

    def __call__(self, trials: Sequence[Trial]) -> np.ndarray:
        """Objectives [n, m]."""
        return _finite(self.of(columns(trials, self.needs)))


class Quality:
    """What a design is to be good at: a metric, or a number over one that is to be small, such as
    "80/perplexity" (Pham et al., 1802.03268, section 3.1).

    goal: the metric, with a minus where it is divided by. Raises ValueError for another form.
    """

    def __init__(self, reward: str, text: str):
        match = re.fullmatch(r"\s*(?:([0-9.]+)\s*/\s*)?([A-Za-z_]\w*)\s*", text)
        try:
            numerator, metric = match.groups()
            self.numerator = None if numerator is None else float(numerator)
        except (AttributeError, ValueError):
            raise ValueError(
                f"{reward}: quality is a metric or a number over one, got {text!r}; "
                "try accuracy, or 80/perplexity"
            ) from None
        self.goal = metric if numerator is None else f"-{metric}"

    def of(self, values: np.ndarray) -> np.ndarray:
        return values if self.numerator is None else self.numerator / values


class MnasNet(OfMetrics):
    """Quality times (metric / target)^w for every target (Tan et al., 1807.11626, equation 2).

    quality: as of `Quality`; accuracy in the paper. w is `alpha` within the target and `beta`
    beyond it. Equal, as here, they bend the reward softly on both sides; alpha = 0 and beta = -1 is
    the paper's hard variant. A metric of zero under a negative exponent has no finite reward: NaN.
    """

    names = ("mnasnet",)
    n_objectives = 1

    def __init__(
        self,
        *,
        targets: Mapping[str, float] = TARGETS,
        alpha: float = -0.07,
        beta: float = -0.07,
        quality: str = "accuracy",
    ):
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not (math.isfinite(value) and value <= 0):
                raise ValueError(
                    f"mnasnet: {name} is an exponent of at most 0, else cost would be rewarded; "
                    f"got {value!r}; try -0.07"
                )
        self.targets = _targets("mnasnet", targets)
        self.alpha, self.beta = alpha, beta
        self.quality = Quality("mnasnet", quality)
        self.goals = (self.quality.goal, *(f"-{metric}" for metric in self.targets))

    def of(self, metrics: np.ndarray) -> np.ndarray:
        ratios = metrics[..., 1:] / np.array(list(self.targets.values()))
        with np.errstate(divide="ignore", invalid="ignore"):
            factors = ratios ** np.where(ratios <= 1, self.alpha, self.beta)
            return self.quality.of(metrics[..., :1]) * factors.prod(axis=-1, keepdims=True)


class TuNAS(OfMetrics):
    """Quality plus beta |metric / target - 1| for every target (Bender et al., 2008.06120).

    quality: as of `Quality`; accuracy in the paper. The absolute reward: a candidate below its
    target is as far off as one above it.
    """

    names = ("tunas",)
    n_objectives = 1

    def __init__(
        self,
        *,
        targets: Mapping[str, float] = TARGETS,
        beta: float = -0.10,
        quality: str = "accuracy",
    ):
        if not (math.isfinite(beta) and beta < 0):
            raise ValueError(f"tunas: beta is below 0, else misses pay; got {beta!r}; try -0.1")
        self.targets = _targets("tunas", targets)
        self.beta = beta
        self.quality = Quality("tunas", quality)
        self.goals = (self.quality.goal, *(f"-{metric}" for metric in self.targets))

    def of(self, metrics: np.ndarray) -> np.ndarray:
        ratios = metrics[..., 1:] / np.array(list(self.targets.values()))
        return self.quality.of(metrics[..., :1]) + self.beta * np.abs(ratios - 1).sum(
            axis=-1, keepdims=True
        )


class Weighted(OfMetrics):
    """A weighted sum inside thresholds, else a punishment (Jiang et al., 2002.05022).

    weights: a threshold -> the weight of its metric, as {"accuracy >= 0.5": 2, "latency_s <= 1e-3":
    1}. Each metric is normalized to 0 at its threshold and 1 at its best: x = 0 for "<=", x = 1 for
    ">=", which is for fractions such as accuracy. Inside all thresholds the reward is the weighted
    mean, 0 to 1; else it is minus the sum of the violations in the same units, so that any
    candidate inside beats any outside, and of those outside the nearer is better.
    """

    names = ("weighted",)
    n_objectives = 1

    def __init__(
        self,
        *,
        weights: Mapping[str, float] = MappingProxyType(
            {"accuracy >= 0.1": 2, "latency_s <= 1e-2": 1, "energy_j <= 1e-3": 1}
        ),
    ):
        self.thresholds = [Constraint.parse(text) for text in weights]
        self.weights = np.array(
            [_number("weighted", "the weight of", *pair) for pair in weights.items()], float
        )
        if not len(self.weights) or self.weights.min() < 0 or not self.weights.sum() > 0:
            raise ValueError(
                f"weighted: weights are at least 0 and not all 0; got {dict(weights)!r}; "
                'try {"accuracy >= 0.5": 1, "latency_s <= 1e-3": 1}'
            )
        for c in self.thresholds:
            if not (0 <= c.bound < 1 if c.sense == ">=" else c.bound > 0):
                raise ValueError(
                    f"weighted: '{c}' cannot be normalized; a '>=' threshold is a fraction from 0 "
                    "to below 1, a '<=' threshold is above 0"
                )
        senses = {c.metric: c.sense for c in reversed(self.thresholds)}
        self.goals = tuple(f"{'-' if s == '<=' else ''}{metric}" for metric, s in senses.items())

    def of(self, metrics: np.ndarray) -> np.ndarray:
        bounds = np.array([c.bound for c in self.thresholds])
        bests = np.array([1.0 if c.sense == ">=" else 0.0 for c in self.thresholds])
        metrics = metrics[..., [self.needs.index(c.metric) for c in self.thresholds]]
        gains = (metrics - bounds) / (bests - bounds)  # [..., thresholds]
        inside = gains @ (self.weights / self.weights.sum())
        outside = np.minimum(gains, 0).sum(axis=-1)
        return np.where(outside < 0, outside, inside)[..., None]


class Pareto(OfMetrics):
    """Several objectives side by side: names of metrics, with a minus for those to minimize."""

    def __init__(self, *, objectives: Sequence[str] = ("accuracy", "-latency_s", "-energy_j")):
        if not objectives or len({str(o).lstrip("-") for o in objectives}) != len(objectives):
            raise ValueError(
                f"pareto: objectives are different metrics and at least one; got {objectives!r}; "
                'try ["accuracy", "-latency_s"]'
            )
        self.names = self.goals = tuple(map(str, objectives))
        self.signs = np.array([-1.0 if name.startswith("-") else 1.0 for name in self.names])

    @property
    def n_objectives(self) -> int:
        return len(self.names)

    def of(self, metrics: np.ndarray) -> np.ndarray:
        return metrics * self.signs


REWARDS: dict[str, type] = {
    "mnasnet": MnasNet,
    "tunas": TuNAS,
    "weighted": Weighted,
    "pareto": Pareto,
}


def make(name: str, *, known: Iterable[str] = METRICS, **options: Any) -> Reward:
    """The reward called `name`; `known` are the metrics that trials will have.

    Raises ValueError, with the nearest name, for an unknown reward, option or metric, and for a
    value of the wrong type or range.
    """
    reward = look_up("reward", REWARDS, name, options)(**options)
    for metric in reward.needs:
        _known(metric, known, f"reward '{name}'")
    return reward


@dataclass(frozen=True)
class Constraint:
    """A bound that a candidate must keep: `metric` `sense` `bound`; sense is "<=" or ">="."""

    metric: str
    sense: str
    bound: float

    @classmethod
    def parse(cls, text: str, known: Iterable[str] | None = None) -> Constraint:
        """Read "area_mm2 <= 10"; the metric must be among `known` where that is given.

        Raises ValueError for another form, a bound that is no number, or an unknown metric.
        """
        match = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*(<=|>=)\s*(\S+)\s*", str(text))
        try:
            metric, sense, bound = match.groups()
            bound = float(bound)
        except (AttributeError, ValueError):
            bound = math.nan
        if not math.isfinite(bound):
            raise ValueError(
                f"constraint {text!r} is not a metric, '<=' or '>=', and a number; "
                "write it as 'area_mm2 <= 10'"
            )
        if known is not None:
            _known(metric, known, f"constraint '{text}'")
        return cls(metric, sense, bound)

    def holds(self, value: float) -> bool:
        """Whether a value of the metric keeps the bound; NaN does not."""
        return value <= self.bound if self.sense == "<=" else value >= self.bound

    def __str__(self) -> str:
        return f"{self.metric} {self.sense} {self.bound:.12g}"


def violations(constraints: Iterable[Constraint], metrics: Metrics) -> list[str]:
    """What a candidate breaks, a phrase for each constraint; empty if it keeps them all.

    Only constraints on the metrics given are judged, so that those on hardware can be before
    training, when accuracy is not known yet, and all of them after it. None is a stored NaN.
    """
    given = {name: math.nan if value is None else value for name, value in metrics.items()}
    return [
        f"{c.metric} = {given[c.metric]:.4g} breaks {c}"
        for c in constraints
        if c.metric in given and not c.holds(given[c.metric])
    ]


def lost(reward: Reward, metrics: Metrics) -> str | None:
    """What is wrong with the metrics of a training, which need all that the reward is made of, and
    no accuracy that is not a number; None if nothing is."""
    for name in (*reward.needs, "accuracy"):
        value = metrics.get(name, None if name in reward.needs else 0.0)
        if value is None or not math.isfinite(value):
            return f"the {name} is {value}"
    return None


def columns(trials: Sequence[Trial], names: Sequence[str]) -> np.ndarray:
    """Metrics of complete trials: float [n, names]; a row is NaN unless all of it is finite."""
    rows = [
        [t.metrics.get(name, math.nan) for name in names]
        if t.status == Status.COMPLETE
        else [math.nan] * len(names)
        for t in trials
    ]
    return _finite(np.array(rows, float).reshape(len(trials), len(names)))


def _finite(rows: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(rows).all(axis=1, keepdims=True), rows, np.nan)


def _known(metric: str, known: Iterable[str], where: str) -> None:
    known = tuple(known)
    if metric not in known:
        raise ValueError(f"{where}: unknown metric '{metric}'; {nearest(metric, known)}")


def _number(reward: str, what: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{reward}: {what} '{name}' must be a number, got {value!r}")
    return float(value)


def _targets(reward: str, targets: Mapping[str, float]) -> dict[str, float]:
    numbers = {name: _number(reward, "the target of", name, v) for name, v in targets.items()}
    if not numbers or min(numbers.values()) <= 0:
        raise ValueError(
            f"{reward}: targets are above 0 and at least one; got {dict(targets)!r}; "
            'try {"latency_s": 1e-3}'
        )
    return numbers
