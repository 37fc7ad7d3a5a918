"""Gaussian process regression on binary and count features, with learned lengthscales.

The kernel is exp(-sum_g w_g |x_g - y_g|^2) over blocks g of features. On one-hot blocks, one a
decision, that is the product of categorical kernels that counts where two designs differ; on
thermometer blocks of ordered values it falls with the steps between them. The weights and the
noise have the highest posterior density under lognormal priors, the signal's variance is profiled
out (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, sections 5.4 and 2.7).

More than `MAX_POINTS` observations are summarized by as many inducing ones: the predictive mean and
variance of Titsias (AISTATS 2009), exact where every observation is one.
"""

from __future__ import annotations

import functools

import numpy as np

MAX_POINTS = 192  # of the kernel matrix; sets the time of a prediction
MAX_FITTED = 128  # observations that the hyperparameters are fitted to
JITTER = 1e-6
NOISE = 0.05  # prior median of the noise's share of the variance
SPAN = 0.6  # prior median of the weights of all decisions together
APART = 0.3  # prior deviation of the logarithms of their weights from each other
FEATURE = 0.1  # prior median of the weight of any other block


@functools.cache
def blas():
    """NumPy's and SciPy's matrix products; `with blas().limit(limits=1)` computes on one thread.

    The other cores are the workers', which threads that wait for work would slow down, and sums
    round alike on any number of cores.
    """
    import scipy.linalg  # noqa: F401, loads its own products, which are to be found here
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


class GaussianProcess:
    """One output on blocks of features of the widths `sizes`: x is float [n, sum(sizes)].

    n_shared: so many blocks come first whose weights have the same prior, wide for all of them
    together and narrow for each from the others, as decisions have; the others' are independent.
    params: logarithms of the weights and of the noise's share, float [blocks + 1]; all that `fit`
    goes on from.
    """

    def __init__(self, sizes: list[int], n_shared: int):
        self.sizes = np.array(sizes)
        medians = [SPAN / max(n_shared, 1)] * n_shared + [FEATURE] * (len(sizes) - n_shared)
        self.prior = np.log([*medians, NOISE])
        covariance = np.eye(len(self.prior))
        covariance[:n_shared, :n_shared] = 1 + APART**2 * np.eye(n_shared)
        self.precision = np.linalg.inv(covariance)
        self.params = self.prior.copy()

    def fit(self, x: np.ndarray, y: np.ndarray, n_steps: int) -> None:
        """At most `n_steps` of L-BFGS from the present parameters, on rows spread over the data."""
        from scipy.optimize import minimize  # here: a run without a surrogate need not wait for it

        rows = np.unique(np.linspace(0, len(y) - 1, MAX_FITTED).astype(int))
        y = standardized(y[rows])
        ends = np.cumsum(self.sizes)
        distances = np.array(
            [squared_distances(block, block) for block in np.split(x[rows], ends[:-1], axis=1)]
        ).reshape(len(self.sizes), -1)

        def loss(params: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = negative_log_likelihood(params, distances, y)
            pull = self.precision @ (params - self.prior)
            return value + 0.5 * pull @ (params - self.prior), gradient + pull

        bounds = [(p - 6, p + 6) for p in self.prior]
        options = {"maxiter": n_steps}
        self.params = minimize(
            loss, self.params, jac=True, method="L-BFGS-B", bounds=bounds, options=options
        ).x

    def condition(self, x: np.ndarray, y: np.ndarray, inducing: np.ndarray) -> None:
        """Take in observations x [n, f], y [n]; inducing: rows of x, at most MAX_POINTS."""
        from scipy.linalg import cho_solve, cholesky, solve_triangular

        self.scale = np.repeat(np.exp(0.5 * self.params[:-1]), self.sizes)
        self.noise = float(np.exp(self.params[-1]))
        self.mean, self.deviation = y.mean(), y.std() or 1.0
        z = (y - self.mean) / self.deviation
        x = x * self.scale
        self.points = x[inducing]
        outer = cholesky(kernel(self.points, self.points) + JITTER * np.eye(len(inducing)))
        root = solve_triangular(outer, np.eye(len(inducing)), trans="T")
        k = kernel(self.points, x)
        inner = cholesky(np.eye(len(inducing)) + root @ (k @ k.T) @ root.T / self.noise)
        c = solve_triangular(inner, root @ (k @ z) / self.noise, trans="T")
        # the profiled variance of the signal: z^T K^-1 z / n, by Woodbury's identity
        signal = max(float((z @ z / self.noise - c @ c) / len(z)), 1e-6)
        self.variance = signal * self.deviation**2  # of the function
        self.noise_variance = self.variance * self.noise
        self.weights = root.T @ solve_triangular(inner, c) * self.deviation
        self.known = root.T @ (root - cho_solve((inner, False), root))

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(mean [n], variance [n]) of the noiseless function at x [n, f], and the kernel
        [points, n], for `covariance`."""
        k = self._kernel(self.points, x)
        left = 1 - np.einsum("ij,ij->j", k, self.known.astype(np.float32) @ k)
        variance = self.variance * np.maximum(left, JITTER, dtype=float)
        return self.mean + self.weights @ k, variance, k

    def covariance(self, x: np.ndarray, k: np.ndarray, row: int) -> np.ndarray:
        """Of one row of x [n, f], whose kernel is `k`, with every row: float [n]."""
        prior = self._kernel(x[row : row + 1] * self.scale, x)[0]
        return self.variance * (prior - k[:, row] @ self.known @ k)

    def _kernel(self, points: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Of scaled points with x as it comes, in single precision: float32 [points, n]."""
        return kernel(
            points.astype(np.float32), x.astype(np.float32) * self.scale.astype(np.float32)
        )


def negative_log_likelihood(
    params: np.ndarray, distances: np.ndarray, y: np.ndarray
) -> tuple[float, np.ndarray]:
    """(value, gradient [blocks + 1]), up to a constant; the signal's variance is profiled out.

    distances: of the blocks, [blocks, n * n]; y: [n], standardized.
    """
    from scipy.linalg import cho_solve, cholesky

    n = len(y)
    weights, noise = np.exp(params[:-1]), np.exp(params[-1])
    k = np.exp(-weights @ distances).reshape(n, n)
    lower = cholesky(k + (noise + JITTER) * np.eye(n), lower=True, check_finite=False)
    inverse = cho_solve((lower, True), np.eye(n), check_finite=False)
    alpha = inverse @ y
    signal = max(y @ alpha / n, 1e-12)
    value = 0.5 * n * np.log(signal) + np.log(np.diag(lower)).sum()
    slope = inverse - np.outer(alpha, alpha) / signal  # twice the derivative to the kernel
    by_weights = -0.5 * weights * (distances @ (slope * k).ravel())
    by_noise = 0.5 * noise * np.trace(slope)
    return value, np.append(by_weights, by_noise)


def standardized(y: np.ndarray) -> np.ndarray:
    return (y - y.mean()) / (y.std() or 1.0)


def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Between scaled rows of [n, f] and [m, f]: float [n, m]."""
    distances = squared_distances(x, y)
    return np.exp(np.negative(distances, out=distances), out=distances)


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Between rows of [n, f] and [m, f]: float [n, m]."""
    products = x @ y.T
    products *= -2
    products += (x**2).sum(axis=1)[:, None]
    products += (y**2).sum(axis=1)
    return np.maximum(products, 0, out=products)
