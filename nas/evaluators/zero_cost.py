"""Scores a candidate without training it: a forward pass of 16 images through its first weights.

Three figures of an untrained network, each of which tells good cells from bad ones where the others
do not, are added up: its operations; the distinct patterns in which its activations switch on and
off over the images (SWAP: Peng et al., ICLR 2024, 2403.04161); and how many directions its features
fill, by the entropy of their spectrum (the expressivity of AZ-NAS: Lee and Ham, CVPR 2024,
2403.19232). `benchmarks/proxy_ranking.py --zero-cost` compares the sum with the parameter count on
NAS-Bench-201, and with NASWOT and synflow, which did not beat it and are not here.

A score sees the network alone: bit-widths and how a candidate is trained must be fixed in the
space. It is no accuracy; rewards name it, as `pareto` with ["zero_cost", "-latency_s"] does. It has
been checked on cells only.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nas import data
from nas.checkpoint import Checkpoint
from nas.evaluators.proxy import Proxy
from nas.trial import Metrics
from search_spaces.network import Network
from search_spaces.ops import NORM_EPSILON
from search_spaces.quantizers import FULL_BITS, activate
from search_spaces.space import Choices, Space

N_IMAGES = 16  # more of them leave nearly every activation a pattern of its own
# so that the spreads of the three terms over random cells are alike
PATTERNS_WEIGHT, RANK_WEIGHT = 1.4, 3.4
UNSEEN = ("bits.", "train.")  # decisions that change nothing of a score


class Figures(NamedTuple):
    """operations: in floating point, of a training step an image. patterns: distinct ones over the
    images, of all positions of all activations. log_rank: the logarithm of the effective rank (Roy
    and Vetterli, EUSIPCO 2007) of what an activation reads, the mean over all activations."""

    operations: int
    patterns: int
    log_rank: float

    @property
    def score(self) -> float:
        return float(
            np.log(self.operations)
            + PATTERNS_WEIGHT * np.log(self.patterns)
            + RANK_WEIGHT * self.log_rank
        )


class ActivationContext:
    """Float operations, normalization by the batch; every activation's input is written down."""

    def __init__(self):
        self.inputs: list[np.ndarray] = []

    def quantize(self, x, clip, bits, function="relu"):
        self.inputs.append(x.numpy())
        return activate(x, function)

    def normalize(self, y, gamma, beta):
        import tensorflow as tf

        return tf.compat.v1.nn.fused_batch_norm(y, gamma, beta, epsilon=NORM_EPSILON)[0]


def activation_inputs(network: Network, images: np.ndarray, seed: int) -> list[np.ndarray]:
    """What every activation reads [n, height, width, channels], by fresh weights of `seed`."""
    from nas.layout import Layout

    layout, context = Layout(network), ActivationContext()
    full = [FULL_BITS] * len(network.groups)
    network.apply(images, layout.weights(layout.initial(seed, full)), np.int32(full), context)
    return context.inputs


def n_patterns(inputs: list[np.ndarray]) -> int:
    """Distinct rows of signs over the images, of all positions of all inputs [n, ...]."""
    signs = np.concatenate([(x > 0).reshape(len(x), -1) for x in inputs], 1)  # [n, positions]
    words = np.ascontiguousarray(np.packbits(signs, axis=0).T)  # [positions, bytes]
    return len(np.unique(words.view(f"V{words.shape[1]}")))


def log_effective_rank(features: np.ndarray) -> float:
    """Entropy of the normalized eigenvalues of the channels' covariance [..., channels]; 0 where
    nothing varies."""
    flat = features.reshape(-1, features.shape[-1]).astype(float)
    values = np.linalg.eigvalsh(np.cov(flat, rowvar=False, bias=True).reshape(2 * (flat.shape[1],)))
    shares = values[values > 0] / max(values[values > 0].sum(), np.finfo(float).tiny)
    return float(-(shares * np.log(shares)).sum())


def figures(network: Network, images: np.ndarray, seed: int) -> Figures:
    """Of an untrained network. images: normalized float32 [n, height, width, 3]."""
    inputs = activation_inputs(network, images, seed)
    return Figures(
        network.training_flops,
        n_patterns(inputs),
        float(np.mean([log_effective_rank(x) for x in inputs])),
    )


class ZeroCost:
    """Screens networks by what they are before training; finals as the proxy's.

    family, dataset, path, final_epochs: as `Proxy`.
    """

    in_process = False
    verb = "scored"
    example, tested = "image", "images"
    metrics, final_metrics = ("zero_cost",), Proxy.final_metrics

    def __init__(
        self,
        *,
        family: str = "cell",
        dataset: str = "cifar10-sample",
        path: str = "",
        final_epochs: int = 16,
    ):
        self.proxy = Proxy(family=family, dataset=dataset, path=path, final_epochs=final_epochs)

    def check(self, space: Space) -> None:
        """Raise ValueError where the space leaves open what a score cannot see, or the data are
        missing or damaged; TensorFlow is not needed."""
        for decision in space.decisions:
            name, values = decision.name, decision.values
            if len(values) > 1 and name.startswith(UNSEEN):
                raise ValueError(
                    f"a score without training cannot tell the values of '{name}' apart "
                    f"({', '.join(map(str, values))}); fix it to one, such as --set "
                    f"{name}={values[0]}, or take evaluator.name=proxy"
                )
        self.proxy.check(space)

    def start(self, folder: Path | None = None) -> None:
        """Load the data and TensorFlow."""
        self.proxy.start()
        self.proxy.parts["scored"] = data.subset(self.proxy.parts["train"], N_IMAGES, seed=0)

    def evaluate(self, choices: Choices, *, seed: int) -> Metrics:
        """zero_cost: the score, and what it is made of."""
        before, start = time.process_time(), time.perf_counter()
        network = self.proxy.network(choices)
        images, _ = self.proxy.part("scored", network.image[0])
        found = figures(network, images, seed)
        return {
            "zero_cost": found.score,
            **found._asdict(),
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - before,
        }

    def finalize(
        self, choices: Choices, *, seed: int, weights: Path, checkpoint: Checkpoint | None = None
    ) -> Metrics:
        """The proxy's final training."""
        return self.proxy.finalize(choices, seed=seed, weights=weights, checkpoint=checkpoint)
