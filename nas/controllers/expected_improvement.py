"""The expected improvement of many designs, of one objective or of a front's hypervolume.

Hypervolume is, up to a constant, the mean of max over points of min_j (y_j / w_j)^m over random
directions w (Zhang and Golovin, ICML 2020, lemma 5). What a set of points would add is then a mean
of what it adds in every direction: for a front of any size, for any number of objectives, and for
the union of what a network reaches on many accelerators. One objective is a single direction.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nas.controllers.gaussian_process import GaussianProcess
from nas.controllers.outlook import Outlook

N_DIRECTIONS = 128
N_NODES = 16  # of the quadrature over one measurement; of several together about four times that
OPTIMISM = 2.0  # deviations above the mean at which designs are sifted
MAX_COMPARED = 256  # designs left of it, of which the expectation is taken
MAX_PAIRS = 2048  # of these with their variants


class Pool(NamedTuple):
    """Designs to compare."""

    encodings: np.ndarray  # [n, d]
    features: np.ndarray  # [n, f]
    variants: np.ndarray  # [n, k, d], designs with the same training
    known: np.ndarray  # [n, k, c], their costs; NaN where ruled out

    @staticmethod
    def concat(*pools: Pool) -> Pool:
        return Pool(*map(np.concatenate, zip(*pools, strict=True)))


class Scalarization:
    """Points [..., m] -> their value in each direction: [..., directions], 0 at or below `low`.

    Objectives count in units of their range from `low` [m] to `high` [m]. NaN has the value 0.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray, rng: np.random.Generator):
        m = len(low)
        directions = np.abs(rng.normal(size=(N_DIRECTIONS if m > 1 else 1, m)))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        self.low, self.power = low, m
        self.scale = 1 / (directions * np.where(high > low, high - low, 1))  # [directions, m]

    def __call__(self, points: np.ndarray) -> np.ndarray:
        above = np.nan_to_num(np.maximum(points - self.low, 0))
        values = above[..., :1] * self.scale[:, 0]
        for j in range(1, self.power):
            np.minimum(values, above[..., j, None] * self.scale[:, j], out=values)
        return values**self.power


class Prospects:
    """What a pool may reach, given the models and what was reached before; `believe` adds to it.

    front: [k, m], the objectives reached. mean, variance: [n, measurements], of the models.
    """

    def __init__(
        self,
        pool: Pool,
        models: list[GaussianProcess],
        outlook: Outlook,
        front: np.ndarray,
        rng: np.random.Generator,
    ):
        self.pool, self.models, self.outlook = pool, models, outlook
        predictions = [model.predict(pool.features) for model in models]
        self.mean = np.stack([mean for mean, _, _ in predictions], axis=1)
        self.variance = np.stack([variance for _, variance, _ in predictions], axis=1)
        self.kernels = [kernel for _, _, kernel in predictions]
        expected = outlook.objectives(self.mean[:, None], pool.known).reshape(-1, front.shape[1])
        expected = expected[~np.isnan(expected).any(axis=1)]
        # volume begins at the worst that is expected, where the models' cut holds, not at the
        # worst that was reached: one bad corner of the front would outweigh all the others
        low = (expected if len(expected) else front).min(axis=0)
        high = np.concatenate([front, expected]).max(axis=0)
        self.scalarize = Scalarization(low, high, rng)
        self.reached = self.scalarize(front).max(axis=0)  # [directions]
        self.nodes, self.weights = normal_quadrature(len(models))

    def values(self, rows: np.ndarray, deviations: np.ndarray | float) -> np.ndarray:
        """Of variants of `rows`, measured so many deviations above the mean: [rows, k, dirs]."""
        measured = self.mean[rows] + deviations * np.sqrt(self.variance[rows])
        return self.scalarize(self.outlook.objectives(measured[:, None], self.pool.known[rows]))

    def optimistic(self, rows: np.ndarray) -> np.ndarray:
        """The improvement by each of `rows` if training is kind to it: float [rows].

        Equals, as those that improve nothing, differ a little by how near they come.
        """
        values = self.values(rows, OPTIMISM).max(axis=1)
        gain = np.maximum(values - self.reached, 0).mean(axis=1)
        return gain + 1e-6 * values.mean(axis=1)

    def best(self, rows: np.ndarray) -> int:
        """The one of `rows` whose variants together have the greatest expected improvement."""
        optimistic = self.optimistic(rows)
        n_compared = min(MAX_COMPARED, MAX_PAIRS // self.pool.known.shape[1])
        kept = np.argsort(-optimistic, kind="stable")[:n_compared]
        expected = 1e-6 * optimistic[kept]
        for deviations, weight in zip(self.nodes, self.weights, strict=True):
            values = self.values(rows[kept], deviations).max(axis=1)
            expected += weight * np.maximum(values - self.reached, 0).mean(axis=1)
        return int(rows[kept[expected.argmax()]])

    def best_variant(self, row: int) -> np.ndarray:
        """The variant of a design that by itself improves the most: int64 [d]."""
        values = self.values(np.array([row]), OPTIMISM)[0]
        gain = np.maximum(values - self.reached, 0).mean(axis=1) + 1e-6 * values.mean(axis=1)
        allowed = ~np.isnan(self.pool.known[row]).any(axis=1)
        return self.pool.variants[row, np.where(allowed, gain, -1).argmax()]

    def believe(self, row: int) -> None:
        """Go on as if `row` had been measured at its mean."""
        self.reached = np.maximum(self.reached, self.values(np.array([row]), 0.0)[0].max(axis=0))
        for j, (model, kernel) in enumerate(zip(self.models, self.kernels, strict=True)):
            covariance = model.covariance(self.pool.features, kernel, row)
            taken = covariance / np.sqrt(covariance[row] + model.noise_variance)
            self.variance[:, j] = np.maximum(self.variance[:, j] - taken**2, 0)


def normal_quadrature(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes [k, n] and weights [k] of the mean over `n` standard normal variables (Gauss-Hermite,
    Abramowitz and Stegun, 25.4.46)."""
    n_each = min(N_NODES, max(3, round((4 * N_NODES) ** (1 / n))))
    nodes, weights = np.polynomial.hermite_e.hermegauss(n_each)
    grid = np.indices((n_each,) * n).reshape(n, -1).T
    return nodes[grid], (weights / weights.sum())[grid].prod(axis=1)
