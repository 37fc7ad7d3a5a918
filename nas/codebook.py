"""Weights of few values: a codebook a kernel, found by k-means, whose entries train on.

Deep Compression (Han et al., 1510.00149, section 3): weights are clustered in one dimension, from
centres at equal distances between the least and the largest (their linear initialization, which
keeps the few large weights), and from then on the weights of a cluster move together. Quantization
rounds the entries to the bits of the weights, as it does single weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nas.layout import Layout
from search_spaces.compression import Compression

TIED_FROM = 0.75  # of the steps; pruning is over by then
MAX_ITERATIONS = 300


def kmeans(weights: np.ndarray, entries: int) -> tuple[np.ndarray, np.ndarray]:
    """Lloyd's algorithm in one dimension, until nothing moves.

    weights: float [n]. Returns (centres float64 [entries], ascending, the nearest centre of each
    weight [n]). The centre of an empty cluster goes to the weight farthest from its own. Sorted
    weights fall to centres in runs, so that an iteration is `entries` searches in them.
    """
    ordered = np.sort(weights.astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centres = np.linspace(ordered[0], ordered[-1], entries)
    for _ in range(MAX_ITERATIONS):
        cuts = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        ends = np.concatenate([[0], cuts, [len(ordered)]])
        sizes = np.diff(ends)
        means = np.where(sizes > 0, np.diff(sums[ends]) / np.maximum(sizes, 1), centres)
        empty = np.flatnonzero(sizes == 0)
        if len(empty):
            away = np.abs(ordered - np.repeat(centres, sizes))
            farthest = np.argsort(-away, kind="stable")[: len(empty)]
            moved = away[farthest] > 0  # else there are no more different weights than entries
            means[empty[moved]] = ordered[farthest[moved]]
            means.sort()
        if (means == centres).all():
            break
        centres = means
    return centres, np.searchsorted((centres[1:] + centres[:-1]) / 2, weights)


def check(layout: Layout, compressions: Sequence[Compression]) -> None:
    """Raise ValueError where a kernel has fewer weights than its codebook entries."""
    for place, size in zip(layout.kernels, layout.kernel_sizes, strict=True):
        bits = compressions[place.group].index_bits
        if bits and size < 2**bits:
            name = layout.network.steps[place.step].name
            raise ValueError(
                f"a codebook of {2**bits} entries is more than the {size} weights of '{name}'; "
                "choose a smaller compress.codebook or a wider network"
            )


def tied(
    values: np.ndarray, layout: Layout, compressions: Sequence[Compression], pruned: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(clusters int32 [n_weights], values [n] with every weight at its entry), for
    `Program.set_clusters`: a cluster's number is the place of its first weight.

    pruned: whether weights at 0 are none of the codebook's; they stay 0.
    """
    clusters, values = np.arange(layout.n_weights, dtype=np.int32), values.copy()
    for place in layout.kernels:
        bits = compressions[place.group].index_bits
        if not bits:
            continue
        own = layout.slice(place)
        kernel = values[own]
        where = np.flatnonzero(kernel) if pruned else np.arange(len(kernel))
        if len(where):
            centres, labels = kmeans(kernel[where], min(2**bits, len(where)))
            _, first, number = np.unique(labels, return_index=True, return_inverse=True)
            clusters[own.start + where] = own.start + where[first][number]
            kernel[where] = centres[labels]
    return clusters, values


class Codebook:
    """Ties weights at TIED_FROM of the steps; the entries go on training."""

    def __init__(self, stepper, compressions: Sequence[Compression], steps: tuple[int, int]):
        first, self.last = steps
        self.stepper, self.compressions = stepper, compressions
        self.at = max(first + round(TIED_FROM * (self.last - first)), first + 1)
        self.clusters = np.zeros(0, np.int32)

    def __call__(self, step: int, rate: float, images, labels, rows) -> None:
        program = self.stepper.program
        if step == self.at:
            self.clusters, values = tied(
                program.get_values(),
                program.layout,
                self.compressions,
                program.switches.masked,
            )
            program.set_clusters(self.clusters, values)
        elif step == self.last:  # what is equal but for the rounding of vector instructions
            values = program.get_values()
            values[: len(self.clusters)] = values[self.clusters]
            program.set_values(values)

    def state(self) -> dict[str, np.ndarray]:
        return {"clusters": self.clusters}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        self.clusters = state["clusters"]
