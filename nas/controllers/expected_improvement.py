"""The expected improvement of many designs, of one objective or of a front's hypervolume.

Hypervolume is, up to a constant, the mean of max over points of min_j (y_j / w_j)^m over random
directions w (Zhang and Golovin, ICML 2020, lemma 5). A few directions sift the designs; of those
left the improvement is exact, also by the union of what a network reaches on many accelerators. One
objective is a single direction.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nas import pareto
from nas.controllers.gaussian_process import JITTER, GaussianProcess
from nas.controllers.outlook import Outlook

N_DIRECTIONS = 48  # that designs are sifted by
MAX_FRONT = 256  # points of the front, halved for each objective, that improvements are taken from
N_NODES = 16  # of the quadrature over one measurement; of several together about four times that
OPTIMISM = 2.0  # deviations above the mean at which designs are sifted
MAX_COMPARED = 256  # designs left of it, of which the expectation is taken
MAX_PAIRS = 2048  # of these with their variants


class Pool(NamedTuple):
    """Designs to compare."""

    encodings: np.ndarray  # [n, d]
    features: np.ndarray  # [n, f]
    known: np.ndarray  # [n, k, c], costs of designs with the same training; NaN where ruled out

    @staticmethod
    def concat(*pools: Pool) -> Pool:
        return Pool(*map(np.concatenate, zip(*pools, strict=True)))


class Scalarization:
    """Points [..., m] -> their value in each direction: [..., directions], 0 at or below `low`.

    Objectives count in units of their range from `low` [m] to `high` [m]. NaN has the value 0.
    """

    def __init__(
        self, low: np.ndarray, high: np.ndarray, rng: np.random.Generator, n: int = N_DIRECTIONS
    ):
        m = len(low)
        directions = np.abs(rng.normal(size=(n if m > 1 else 1, m)))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        self.low, self.power, self.range = low, m, np.where(high > low, high - low, 1)
        self.scale = 1 / (directions * self.range)  # [directions, m]

    def __call__(self, points: np.ndarray) -> np.ndarray:
        return self.volume(self.lengths(points, range(self.power)))

    def lengths(self, points: np.ndarray, columns: Sequence[int]) -> np.ndarray:
        """How far along each direction some objectives allow: [..., directions]. points: [...,
        columns], the values of those objectives alone."""
        above = np.nan_to_num(np.maximum(points - self.low[columns], 0))
        lengths = above[..., :1] * self.scale[:, columns[0]]
        for i, j in enumerate(columns[1:], start=1):
            np.minimum(lengths, above[..., i, None] * self.scale[:, j], out=lengths)
        return lengths

    def volume(self, lengths: np.ndarray) -> np.ndarray:
        return functools.reduce(np.multiply, [lengths] * self.power)  # ** is slow above 2


class Prospects:
    """What a pool may reach, given the models and what was reached before; `believe` adds to it.

    front: [k, m], the objectives reached, which may be none. mean, variance: [n, measurements], of
    the models.
    """

    def __init__(
        self,
        pool: Pool,
        models: list[GaussianProcess],
        outlook: Outlook,
        front: np.ndarray,
        rng: np.random.Generator,
    ):
        self.pool, self.models, self.outlook, self.rng = pool, models, outlook, rng
        predictions = [model.predict(pool.features) for model in models]
        self.mean = np.stack([mean for mean, _, _ in predictions], axis=1)
        self.variance = np.stack([variance for _, variance, _ in predictions], axis=1)
        self.kernels = [kernel for _, _, kernel in predictions]
        objectives = outlook.objectives(self.mean[:, None], pool.known)  # [n, k, m]
        expected = objectives.reshape(-1, front.shape[1])
        expected = expected[~np.isnan(expected).any(axis=1)]
        # volume begins at the worst that is expected, where the models' cut holds, not at the
        # worst that was reached: one bad corner of the front would outweigh all the others
        points = np.concatenate([front, expected])
        low = (expected if len(expected) else points).min(axis=0, initial=np.inf)
        self.low = np.where(np.isfinite(low), low, 0)
        self.high = points.max(axis=0, initial=-np.inf)
        self.scalarize = Scalarization(self.low, self.high, rng)
        self.reached = self.scalarize(front).max(axis=0, initial=0)  # [directions]
        self.front = self._thinned(front)
        if self.scalarize.power > 1:
            self.longest = self._longest(objectives)

    def _thinned(self, points: np.ndarray) -> np.ndarray:
        """Their front; of a large one the best in each of random directions."""
        points = points[pareto.front(points)]
        most = MAX_FRONT >> (points.shape[1] - 1)
        if len(points) > most:
            best = Scalarization(self.low, self.high, self.rng, most)(points).argmax(axis=0)
            points = points[np.unique(best)]
        return points

    def _longest(self, objectives: np.ndarray) -> np.ndarray:
        """How far known costs allow along each direction, over the variants: [n, directions]."""
        columns = np.flatnonzero(self.outlook.sources < 0)
        if not len(columns):
            ruled_out = np.isnan(objectives).any(axis=2).all(axis=1)
            return np.where(ruled_out[:, None], 0, np.inf)
        costs = objectives[..., columns].astype(np.float32)
        if len(columns) == 1:  # the same variant is best in every direction
            costs = np.fmax.reduce(costs, axis=1, keepdims=True)
        return self.scalarize.lengths(costs, columns).max(axis=1)

    def chance(self, rows: np.ndarray, sources: Sequence[int] | None = None) -> np.ndarray:
        """The probability that measurements keep their bounds, all or some `sources`: [rows]."""
        from scipy.special import ndtr

        sources = range(len(self.models)) if sources is None else sources
        chances = np.ones(len(rows))
        for j in sources:
            mean, deviation = self.mean[rows, j], np.sqrt(self.variance[rows, j])
            least, most = self.outlook.bounds[j]
            chances *= ndtr((mean - least) / deviation) - ndtr((mean - most) / deviation)
        return np.maximum(chances, np.finfo(float).tiny)  # where all are out of reach, any may do

    def values(self, rows: np.ndarray, deviations: np.ndarray | float) -> np.ndarray:
        """Of variants of `rows`, measured so many deviations above the mean: [rows, k, dirs]."""
        measured = self.mean[rows] + deviations * np.sqrt(self.variance[rows])
        return self.scalarize(self.outlook.objectives(measured[:, None], self.pool.known[rows]))

    def optimistic(self, rows: np.ndarray) -> np.ndarray:
        """The improvement by each of `rows` if training is kind to it, times the probability that
        it keeps the constraints: float [rows].

        Equals, as those that improve nothing, differ a little by how near they come.
        """
        if self.scalarize.power == 1:
            values = self.values(rows, OPTIMISM).max(axis=1)
        else:  # the measurements' part is the same for all variants
            columns = np.flatnonzero(self.outlook.sources >= 0)
            lengths = self.longest[rows]
            if len(columns):
                j = self.outlook.sources[columns]
                kind = self.mean[rows][:, j] + OPTIMISM * np.sqrt(self.variance[rows][:, j])
                lengths = np.minimum(lengths, self.scalarize.lengths(kind, columns))
            values = self.scalarize.volume(lengths)
        gain = np.maximum(values - self.reached, 0).mean(axis=1)
        return (gain + 1e-6 * values.mean(axis=1)) * self.chance(rows)

    def best(self, rows: np.ndarray) -> int:
        """The one of `rows` whose variants together have the greatest expected improvement."""
        optimistic = self.optimistic(rows)
        n_compared = min(MAX_COMPARED, MAX_PAIRS // self.pool.known.shape[1])
        kept = np.argsort(-optimistic, kind="stable")[:n_compared]
        expect = self._of_front if self.scalarize.power > 1 else self._of_reward
        expected = expect(rows[kept]) + 1e-6 * optimistic[kept]
        return int(rows[kept[expected.argmax()]])

    def _of_reward(self, rows: np.ndarray) -> np.ndarray:
        """The expected improvement of a single objective by `rows`: float [rows].

        Where constraints bound measurements, the quadrature is over the part within the bounds."""
        from scipy.special import ndtr, ndtri

        deviation = np.sqrt(self.variance[rows])
        # of the measurements' distribution: float [rows, measurements]
        below, above = (ndtr((b - self.mean[rows]) / deviation) for b in self.outlook.bounds.T)
        expected = np.zeros(len(rows))
        for nodes, weight in zip(*normal_quadrature(len(self.models)), strict=True):
            within = np.clip(below + ndtr(nodes) * (above - below), 1e-15, 1 - 1e-15)
            values = self.values(rows, ndtri(within)).max(axis=1)
            expected += weight * np.maximum(values - self.reached, 0).mean(axis=1)
        return expected * self.chance(rows)

    def _of_front(self, rows: np.ndarray) -> np.ndarray:
        """The expected improvement of the front's hypervolume by `rows`: float [rows], in units of
        the range of the objectives.

        Exact: measurements are independent, so that of each box that is not dominated yet it is a
        product over the objectives (Yang, Emmerich, Deutz and Bäck, Journal of Global Optimization
        75, 2019).
        """
        sources, range_ = self.outlook.sources, self.scalarize.range
        lower, upper = pareto.boxes(self.front, self.low)  # [boxes, m]
        shares = np.ones((len(rows), len(lower)))
        for j in np.flatnonzero(sources >= 0):
            mean, variance = self.mean[rows, sources[j]], self.variance[rows, sources[j]]
            bounds = self.outlook.bounds[sources[j]]
            lengths = expected_length(mean, np.sqrt(variance), lower[:, j], upper[:, j], *bounds)
            shares *= lengths / range_[j]
        known = sources < 0
        if known.any():
            values = self.outlook.objectives(self.mean[rows, None], self.pool.known[rows])
            starts, ends = disjoint(np.nan_to_num(values[..., known], nan=-np.inf))
            sides = np.minimum(ends[:, :, None], upper[:, known])
            sides -= np.maximum(starts[:, :, None], lower[:, known])
            shares *= (np.maximum(sides, 0) / range_[known]).prod(axis=3).sum(axis=1)
        others = set(range(len(self.models))).difference(sources)
        return shares.sum(axis=1) * self.chance(rows, sorted(others))

    def best_variant(self, row: int) -> np.ndarray:
        """The variant of a design that by itself improves the most: int64 [d]."""
        values = self.values(np.array([row]), OPTIMISM)[0]
        gain = np.maximum(values - self.reached, 0).mean(axis=1) + 1e-6 * values.mean(axis=1)
        allowed = ~np.isnan(self.pool.known[row]).any(axis=1)
        variants, _ = self.outlook.variants(self.pool.encodings[row : row + 1])
        return variants[0, np.where(allowed, gain, -1).argmax()]

    def believe(self, row: int) -> None:
        """Go on as if `row` had been measured at its mean."""
        least, most = self.outlook.bounds.T
        if ((self.mean[row] >= least) & (self.mean[row] <= most)).all():
            points = self.outlook.objectives(self.mean[row], self.pool.known[row])
            points = points[~np.isnan(points).any(axis=1)]
            self.front = self._thinned(np.concatenate([self.front, points]))
            self.reached = np.maximum(self.reached, self.scalarize(points).max(axis=0, initial=0))
        for j, (model, kernel) in enumerate(zip(self.models, self.kernels, strict=True)):
            covariance = model.covariance(self.pool.features, kernel, row)
            taken = covariance / np.sqrt(covariance[row] + model.noise_variance)
            self.variance[:, j] = np.maximum(
                self.variance[:, j] - taken**2, JITTER * model.variance
            )


def expected_length(
    mean: np.ndarray,
    deviation: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    least: float = -np.inf,
    most: float = np.inf,
) -> np.ndarray:
    """Of the part of each interval [b] that is below a normal variable [n]: float [n, b]. It counts
    nothing unless the variable is from `least` to `most`."""
    from scipy.special import ndtr

    mean, deviation = mean[:, None], deviation[:, None]

    def beyond(at: np.ndarray) -> np.ndarray:  # the mean of max(variable - at, 0)
        z = (mean - np.where(np.isinf(at), 0, at)) / deviation
        above = deviation * (z * ndtr(z) + np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi))
        return np.where(np.isinf(at), 0, above)

    end = np.clip(most, lower, upper)
    start = np.clip(least, lower, end)
    lengths = beyond(start) - beyond(end)
    lengths += (start - lower) * ndtr((mean - least) / deviation)
    if most < np.inf:
        lengths -= (end - lower) * ndtr((mean - most) / deviation)
    return np.maximum(lengths, 0)


def disjoint(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What points [n, k, c] dominate together, a row at a time, as boxes that do not overlap.

    (lower, upper), both [n, boxes, c]; -inf where nothing bounds a box, some boxes empty."""
    n, _, c = points.shape
    if c == 1:
        upper = points.max(axis=1, keepdims=True)
        return np.full_like(upper, -np.inf), upper
    better = (points[:, :, None] >= points[:, None]).all(axis=3)  # [n, k, k], the first the better
    beaten = (better & ~better.swapaxes(1, 2)).any(axis=1)
    (points,) = _first(~beaten, points)
    k = points.shape[1]
    points = np.take_along_axis(points, np.argsort(-points[..., -1:], axis=1), axis=1)
    ends = points[..., -1]  # a slice between two of them is under all the points up to the first
    starts = np.concatenate([ends[:, 1:], np.full((n, 1), -np.inf)], axis=1)
    first = np.tril(np.ones((k, k), bool))[..., None]
    bases = np.where(first, points[:, None, :, :-1], -np.inf).reshape(n * k, k, c - 1)
    lower, upper = (side.reshape(n, k, -1, c - 1) for side in disjoint(bases))
    n_boxes = lower.shape[2]
    lower, upper = (
        np.concatenate([side, np.repeat(last[:, :, None, None], n_boxes, axis=2)], axis=3)
        for side, last in ((lower, starts), (upper, ends))
    )
    lower, upper = lower.reshape(n, k * n_boxes, c), upper.reshape(n, k * n_boxes, c)
    return _first((lower < upper).all(axis=2), lower, upper)


def _first(kept: np.ndarray, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of arrays [n, k, c] the entries `kept` [n, k], and others to fill shorter rows."""
    order = np.argsort(~kept, axis=1, kind="stable")[:, : kept.sum(axis=1).max(initial=1), None]
    return tuple(np.take_along_axis(each, order, axis=1) for each in arrays)


def normal_quadrature(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes [k, n] and weights [k] of the mean over `n` standard normal variables (Gauss-Hermite,
    Abramowitz and Stegun, 25.4.46)."""
    n_each = min(N_NODES, max(3, round((4 * N_NODES) ** (1 / n))))
    nodes, weights = np.polynomial.hermite_e.hermegauss(n_each)
    grid = np.indices((n_each,) * n).reshape(n, -1).T
    return nodes[grid], (weights / weights.sum())[grid].prod(axis=1)
