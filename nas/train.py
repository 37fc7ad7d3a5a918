"""The fast training loop of a candidate: recipe, schedule, augmentation, epochs, score.

TensorFlow is imported with this module, and only workers import it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from nas.program import SCORE_BATCH, Program
from search_spaces.network import Network

STATISTICS_BATCHES = 4  # of SCORE_BATCH images: normalization statistics before scoring


@dataclass(frozen=True)
class Recipe:
    """How one training goes.

    learning_rate: the highest of a triangular schedule that rises over `warmup` (a share of all
    steps) and falls to zero. augment: random flips and shifts of an eighth of the image.
    """

    batch: int
    epochs: int
    learning_rate: float
    warmup: float
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    augment: bool = False


@dataclass(frozen=True)
class Trained:
    """What a training leaves: its curve, and the program that still holds the weights."""

    program: Program
    recipe: Recipe
    curve: list[dict]  # per epoch: epoch, loss, accuracy, both of training, and seconds so far
    means: np.ndarray  # of every normalization, end to end
    variances: np.ndarray
    seconds: float

    def score(self, images, labels) -> tuple[float, float]:
        """(accuracy, mean cross-entropy) of the quantized network on `images`."""
        n = len(labels)
        order = np.full(-(-n // SCORE_BATCH) * SCORE_BATCH, -1, np.int32)
        order[:n] = np.arange(n)
        right, loss = self.program.score(
            images,
            labels,
            order.reshape(-1, SCORE_BATCH),
            *self._bits(),
            self.means,
            self.variances,
        )
        return float(right) / n, float(loss) / n

    def _bits(self):
        return np.int32(self.recipe.weight_bits), np.int32(self.recipe.activation_bits)

    def tensors(self) -> dict[str, np.ndarray]:
        """Every learned tensor by `step/parameter`, with `/step` and the normalization's moments.

        Kernels are the float ones that training holds; `quantizers.integer_weights` makes them
        the integers that run.
        """
        program, values = self.program, self.program.get_values()
        steps = np.abs(values[-len(program.kernels) :]) + 1e-8
        starts = np.cumsum([0, *program.sizes])
        out, channel = {}, 0
        for i, place in enumerate(program.places):
            name = program.network.steps[place.step].name
            kind = place.parameter.kind
            tensor = values[starts[i] : starts[i + 1]].reshape(place.parameter.shape)
            out[f"{name}/{place.parameter.name}"] = np.abs(tensor) if kind == "clip" else tensor
            if kind == "kernel":
                out[f"{name}/step"] = steps[i]
            if kind == "scale":
                end = channel + program.sizes[i]
                out[f"{name}/mean"] = self.means[channel:end]
                out[f"{name}/variance"] = self.variances[channel:end]
                channel = end
        return out


def schedule(n_steps: int, peak: float, warmup: float) -> np.ndarray:
    """Learning rates of a triangle: up over the first `warmup` of the steps, down to zero."""
    at = (np.arange(n_steps) + 0.5) / n_steps
    return (peak * np.minimum(at / warmup, (1 - at) / (1 - warmup))).astype(np.float32)


def augmented(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each image flipped at random and shifted by up to an eighth, edges repeated [n, h, w, c]."""
    n, height, width, _ = images.shape
    reach = height // 8
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    out = np.empty_like(images)
    moves = rng.integers(0, (2, 2 * reach + 1, 2 * reach + 1), (n, 3))
    for flip, down, right in np.unique(moves, axis=0):
        rows = np.flatnonzero((moves == (flip, down, right)).all(1))
        window = padded[rows, down : down + height, right : right + width]
        out[rows] = window[:, :, ::-1] if flip else window
    return out


class Trainer:
    """Trains candidates in one process: keeps the last few compiled programs.

    `fit` is deterministic: the same network, data, recipe and seed give the same bits on one
    machine with one thread.
    """

    def __init__(self, n_programs: int = 4):
        self.n_programs = n_programs
        self.programs: OrderedDict[tuple, Program] = OrderedDict()

    def program(self, network: Network, batch: int) -> Program:
        """The compiled program of this topology and batch, made where it is not kept."""
        key = (network, batch)
        if key not in self.programs:
            self.programs[key] = Program(network, batch)
            while len(self.programs) > self.n_programs:
                self.programs.popitem(last=False)[1].close()
        self.programs.move_to_end(key)
        return self.programs[key]

    def fit(
        self, network: Network, images: np.ndarray, labels: np.ndarray, recipe: Recipe, *, seed: int
    ) -> Trained:
        """Train from fresh weights. images: float [n, h, w, c], normalized; labels: int32 [n].

        Raises ValueError where the batch is larger than the data, FloatingPointError where the
        loss stops being a number.
        """
        n, batch = len(labels), recipe.batch
        if batch > n:
            raise ValueError(
                f"batch {batch} is larger than the {n} training images; choose a smaller "
                "train.batch or more images"
            )
        start = time.perf_counter()
        program = self.program(network, batch)
        bits = np.int32(recipe.weight_bits), np.int32(recipe.activation_bits)
        program.start(seed, *bits, images)
        rng = np.random.default_rng([seed, 1])
        n_steps = n // batch
        rates = schedule(n_steps * recipe.epochs, recipe.learning_rate, recipe.warmup)
        curve = []
        for epoch in range(recipe.epochs):
            x = augmented(images, rng) if recipe.augment else images
            order = rng.permutation(n)[: n_steps * batch].reshape(n_steps, batch)
            part = rates[epoch * n_steps : (epoch + 1) * n_steps]
            loss, accuracy = program.train(x, labels, order.astype(np.int32), part, *bits)
            if not np.isfinite(loss):
                raise FloatingPointError(
                    f"the training loss is {float(loss)} after epoch {epoch + 1} at learning rate "
                    f"{recipe.learning_rate:.3g}; a lower train.learning_rate may help"
                )
            curve.append(
                {
                    "epoch": epoch + 1,
                    "loss": float(loss),
                    "accuracy": float(accuracy),
                    "seconds": time.perf_counter() - start,
                }
            )
        order = rng.permutation(n)[: STATISTICS_BATCHES * SCORE_BATCH]
        order = np.resize(order, (STATISTICS_BATCHES, SCORE_BATCH)).astype(np.int32)
        means, variances, _ = program.statistics(images, order, *bits)
        return Trained(program, recipe, curve, means, variances, time.perf_counter() - start)
