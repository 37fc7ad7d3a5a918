"""Forward passes of a trained network outside its program: statistics, class scores, accuracy.

They run operation by operation, which costs no graph: some ten microseconds an operation, next to
nothing beside its work on a batch of images. TensorFlow is imported with this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from search_spaces.network import Network
from search_spaces.ops import NORM_EPSILON
from search_spaces.quantizers import (
    activate,
    activation_clip,
    mean_magnitude,
    quantize_activations,
)

SCORE_BATCH = 250


class StatisticsContext:
    """Normalization by the batch's own statistics, which are written down."""

    def __init__(self, quantized: bool):
        self.quantized = quantized
        self.means, self.variances, self.activations = [], [], []

    def quantize(self, x, clip, bits, function="relu"):
        self.activations.append(mean_magnitude(x, function))
        if not self.quantized:
            return activate(x, function)
        return quantize_activations(x, activation_clip(clip, bits), bits, function)

    def normalize(self, y, gamma, beta):
        y, mean, variance = tf.compat.v1.nn.fused_batch_norm(y, gamma, beta, epsilon=NORM_EPSILON)
        self.means.append(mean)
        self.variances.append(variance)
        return y


class FixedContext:
    """Normalization by given statistics."""

    def __init__(self, means, variances):
        self.moments = iter(zip(means, variances, strict=True))

    def quantize(self, x, clip, bits, function="relu"):
        return quantize_activations(x, activation_clip(clip, bits), bits, function)

    def normalize(self, y, gamma, beta):
        mean, variance = next(self.moments)
        y, _, _ = tf.compat.v1.nn.fused_batch_norm(
            y, gamma, beta, mean, variance, epsilon=NORM_EPSILON, is_training=False
        )
        return y


def statistics(
    network: Network,
    weights: Sequence[dict],
    activation_bits,
    images: np.ndarray,
    *,
    quantized: bool = True,
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """(means, variances, activations): of every normalization [channels], and the mean size of
    what every activation gives [activations], over `images` in batches of SCORE_BATCH.

    weights: as `Layout.weights`; activation_bits: [groups]. Not quantized, activations only pass
    through their function, as before their first clips are known.
    """
    totals: list = []
    n_batches = 0
    for rows in batches(len(images)):
        context = StatisticsContext(quantized)
        network.apply(images[rows], weights, np.int32(activation_bits), context)
        means = [mean.numpy() for mean in context.means]
        squares = [v.numpy() + m**2 for v, m in zip(context.variances, means, strict=True)]
        found = [*means, *squares, *(a.numpy() for a in context.activations)]
        totals = [a + b for a, b in zip(totals, found, strict=True)] if totals else found
        n_batches += 1
    n = len(means)
    averages = [total / n_batches for total in totals]
    means, squares, activations = averages[:n], averages[n : 2 * n], averages[2 * n :]
    variances = [s - m**2 for s, m in zip(squares, means, strict=True)]
    return means, variances, np.array(activations, np.float32)


def class_scores(
    network: Network, weights: Sequence[dict], moments: tuple, activation_bits, images: np.ndarray
) -> np.ndarray:
    """Scores [n, classes] of the quantized network; moments: (means, variances)."""
    return np.concatenate(
        [
            network.apply(
                images[rows], weights, np.int32(activation_bits), FixedContext(*moments)
            ).numpy()
            for rows in batches(len(images))
        ]
    )


def accuracy_and_loss(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Share of right answers and mean cross-entropy of class scores [n, classes]."""
    shifted = scores.astype(np.float64) - scores.max(1, keepdims=True)
    picked = shifted[np.arange(len(labels)), labels]
    losses = np.log(np.exp(shifted).sum(1)) - picked
    return float((scores.argmax(1) == labels).mean()), float(losses.mean())


def batches(n: int) -> Iterator[slice]:
    for start in range(0, n, SCORE_BATCH):
        yield slice(start, min(start + SCORE_BATCH, n))
