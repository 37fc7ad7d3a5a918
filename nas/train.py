"""The fast training loop of a candidate: recipe, schedule, epochs, score.

TensorFlow is imported with this module, and only workers import it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from nas import techniques
from nas.augment import OFF, Augmentation, View
from nas.checkpoint import Checkpoint
from nas.course import Course, schedule
from nas.fixed_point import CALIBRATION_IMAGES, to_fixed_point
from nas.layout import Layout
from nas.program import Program, Switches, peak_rate
from nas.pruning import UNPRUNED, Pruning
from nas.scoring import SCORE_BATCH, accuracy_and_loss, class_scores, statistics
from search_spaces.compression import Compression
from search_spaces.network import Network
from search_spaces.quantizers import FULL_BITS
from search_spaces.training import MAX_MICRO_BATCH

# Normalization statistics are taken, before scoring, of a batch for every so many images trained
# on, 4 at most. Of 14 networks (2,048 images at 16 x 16, 3 seeds) one batch gives the accuracy of
# four to .0001 on average; a training's own spread grows from .0116 to .0124.
STATISTICS_EVERY, MAX_STATISTICS = 2000, 4
CLIP_IMAGES = 64  # from which the first clips take their range
FIRST_LOSS_SCALE, SCALE_GROWS_AFTER = 2.0**15, 200  # Micikevicius et al., 1710.03740, section 3.2


@dataclass(frozen=True)
class Recipe:
    """How one training goes; what is not given is off.

    learning_rate: the highest of the schedule, which rises over `warmup` (a share of all steps).
    quantizer: of `precision.METHODS`. precision, optimizer: as `program.Switches`. micro_batch: the
    most images that a gradient is taken of at once; larger batches are summed up. compressions: one
    a bit-width group: which share of filters or weights is kept, and how many entries a codebook
    has; pruning: how what is left out is found. whole_until: the share of the steps over which
    kernels of low rank are trained whole, before they are factored. distill_weight, temperature: of
    the teacher's class scores, where `fit` is given a teacher.
    """

    batch: int
    epochs: int
    learning_rate: float
    warmup: float
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    augmentation: Augmentation = OFF
    quantizer: str = "lsq"
    precision: str = "float32"
    optimizer: str = "momentum"
    schedule: str = "triangle"
    micro_batch: int = MAX_MICRO_BATCH
    compressions: tuple[Compression, ...] = ()
    pruning: Pruning = UNPRUNED
    whole_until: float = 0.0
    distill_weight: float = 0.0
    temperature: float = 1.0

    @property
    def full(self) -> bool:
        """Whether nothing is quantized."""
        return set(self.weight_bits) | set(self.activation_bits) == {FULL_BITS}

    @property
    def method(self) -> str:
        """What the integers of the trained weights mean: at 32 bits all are as fine as floats."""
        return "lsq" if self.full else self.quantizer

    @property
    def switches(self) -> Switches:
        return Switches(
            quantizer="" if self.full or self.quantizer == "post_training" else self.quantizer,
            precision=self.precision,
            optimizer=self.optimizer,
            accumulated=self.batch > self.micro_batch or self.precision == "float16",
            masked=any(each.prunes for each in self.compressions),
            tied=any(each.index_bits for each in self.compressions),
            distilled=self.distill_weight > 0,
        )


@dataclass(frozen=True)
class Trained:
    """What a training leaves.

    values: everything learned, as `Layout` has it. moments: (means, variances) of every
    normalization, each [channels]. curve: per epoch epoch, loss and accuracy of training, and
    seconds so far. seconds: of it all. per_s: images a second of its epochs; flops: floating-point
    operations.
    """

    network: Network
    recipe: Recipe
    values: np.ndarray
    moments: tuple[list[np.ndarray], list[np.ndarray]]
    curve: list[dict]
    seconds: float
    per_s: float

    @property
    def flops(self) -> float:
        return self.network.training_flops * self.per_s

    @property
    def weights(self) -> list[dict]:
        """What the network computes with, per step."""
        return Layout(self.network).weights(
            self.values, self.recipe.weight_bits, self.recipe.method
        )

    def class_scores(self, images: np.ndarray) -> np.ndarray:
        """Scores [n, classes] of the quantized network."""
        bits = self.recipe.activation_bits
        return class_scores(self.network, self.weights, self.moments, bits, images)

    def score(self, images, labels) -> tuple[float, float]:
        """(accuracy, mean cross-entropy) of the quantized network on `images`."""
        return accuracy_and_loss(self.class_scores(images), labels)

    def tensors(self) -> dict[str, np.ndarray]:
        """Every learned tensor as `Layout.named`, and the normalization's moments."""
        named = Layout(self.network).named(self.values)
        scales = [p for p in self.network.places if p.parameter.kind == "scale"]
        for place, mean, variance in zip(scales, *self.moments, strict=True):
            name = self.network.steps[place.step].name
            named |= {f"{name}/mean": mean, f"{name}/variance": variance}
        return named


class Trainer:
    """Trains candidates in one process: keeps the last few compiled programs.

    `fit` is deterministic: the same network, data, recipe and seed give the same bits on one
    machine with one thread.
    """

    compile = Program

    def __init__(self, n_programs: int = 4):
        self.n_programs = n_programs
        self.programs: OrderedDict[tuple, Program] = OrderedDict()
        self.peaks: dict[str, float] = {}

    def peak(self, precision: str) -> float:
        """`peak_rate`, measured once in the life of the process."""
        if precision not in self.peaks:
            self.peaks[precision] = peak_rate(precision)
        return self.peaks[precision]

    def program(self, network: Network, switches: Switches) -> Program:
        """The compiled program of this topology, made where it is not kept."""
        key = (network, switches)
        if key not in self.programs:
            self.programs[key] = self.compile(network, switches)
            while len(self.programs) > self.n_programs:
                self.programs.popitem(last=False)[1].close()
        self.programs.move_to_end(key)
        return self.programs[key]

    def fit(
        self,
        network: Network,
        images: np.ndarray,
        labels: np.ndarray,
        recipe: Recipe,
        *,
        seed: int,
        teacher: Callable[[View], np.ndarray] | None = None,
        stop: Callable[[int, Callable[[], Trained]], bool] | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> Trained:
        """Train from fresh weights. images: float [n, h, w, c], normalized; labels: int32 [n].

        teacher: gives its scores [n, classes] of the images as an epoch sees them, by the view that
        turns images into that. stop: asked after every epoch but the last, with the number of
        epochs and a function that gives what is trained so far; whether to end there. checkpoint:
        what the training goes on from, and is kept in: what it ends with is the same to the bit.
        Raises ValueError where the batch is larger than the data, the network cannot be compressed
        as asked or the teacher is missing, FloatingPointError where the loss stops being a number.
        """
        n, batch = len(labels), recipe.batch
        if batch > n:
            raise ValueError(
                f"batch {batch} is larger than the {n} training images; choose a smaller "
                "train.batch or more images"
            )
        techniques.check(network, recipe)
        if recipe.distill_weight and teacher is None:
            raise ValueError(
                f"a teacher's scores weigh {recipe.distill_weight} in the loss, and none is given"
            )
        start = time.perf_counter()
        first = techniques.first_network(network, recipe)
        stepper = Stepper(self.program(first, recipe.switches), recipe)
        stepper.program.start(first_values(first, recipe, images[:CLIP_IMAGES], seed))
        rng = np.random.default_rng([seed, 1])
        n_steps = n // batch
        rates = schedule(
            n_steps * recipe.epochs, recipe.learning_rate, recipe.warmup, recipe.schedule
        ).reshape(recipe.epochs, n_steps)
        make = partial(self.program, network, recipe.switches)
        between = techniques.begin(network, recipe, stepper, make, rates.size, seed)
        course = Course(rates, [stepper, *between], start, checkpoint)

        def trained() -> Trained:
            now, values = stepper.program.network, stepper.program.get_values()
            n_batches = min(max(n * len(course.curve) // STATISTICS_EVERY, 1), MAX_STATISTICS)
            rows = np.random.default_rng([seed, 3]).permutation(n)
            rows = np.resize(rows, n_batches * SCORE_BATCH)
            if recipe.method == "post_training":
                values = to_fixed_point(
                    now,
                    values,
                    recipe.weight_bits,
                    recipe.activation_bits,
                    images[rows[:CALIBRATION_IMAGES]],
                )
            weights = Layout(now).weights(values, recipe.weight_bits, recipe.method)
            means, variances, _ = statistics(now, weights, recipe.activation_bits, images[rows])
            per_s = course.steps_per_s * batch
            return Trained(
                now, recipe, values, (means, variances), course.curve, course.seconds, per_s
            )

        for _ in course.curve:
            rng.permutation(n)

        def begin(epoch: int):
            view = View(recipe.augmentation, (seed, 2), epoch)
            x = view(images)
            if recipe.distill_weight:
                stepper.taught = teacher(view)
            order = rng.permutation(n)[: n_steps * batch].reshape(n_steps, batch)

            def step(i: int, rate: float) -> tuple[float, float]:
                found = stepper.step(x, labels, order[i], rate)
                for technique in between:
                    technique(epoch * n_steps + i + 1, rate, x, labels, order[i])
                return found

            return step

        return course.run(("loss", "accuracy"), begin, trained, stop)


def first_values(network: Network, recipe: Recipe, images: np.ndarray, seed: int) -> np.ndarray:
    """Fresh values of a training; the clips take their range from `images`."""
    layout = Layout(network)
    values = layout.initial(seed, recipe.weight_bits, recipe.method)
    if recipe.switches.quantizer:
        weights = layout.weights(values)
        bits = recipe.activation_bits
        _, _, activations = statistics(network, weights, bits, images, quantized=False)
        layout.set_clips(values, activations, bits)
    return values


class Stepper:
    """Takes the steps of a recipe: at once, or summed up over micro-batches; in 16-bit floats with
    a loss scale that halves when gradients overflow and doubles when they have not for long.

    taught: a teacher's scores [n, classes] of all images, where the recipe has one.
    """

    def __init__(self, program: Program, recipe: Recipe):
        self.program, self.recipe = program, recipe
        self.bits = np.int32(recipe.weight_bits), np.int32(recipe.activation_bits)
        self.scale = FIRST_LOSS_SCALE if recipe.precision == "float16" else 1.0
        self.n_finite = 0
        self.taught: np.ndarray | None = None

    def state(self) -> dict[str, np.ndarray]:
        """All that `restore` needs to go on from here."""
        scaling = np.array([self.scale, self.n_finite])
        return {"scaling": scaling, **self.program.state()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on as the stepper of the same program and recipe that gave `state`."""
        self.scale, self.n_finite = float(state["scaling"][0]), int(state["scaling"][1])
        self.program.restore(state)

    def teaching(self, rows) -> tuple:
        """What a distilled program is told of the images of `rows`; of others nothing."""
        if not self.program.switches.distilled:
            return ()
        return self.taught[rows], self.recipe.temperature, self.recipe.distill_weight

    def step(self, images, labels, rows, rate) -> tuple[float, float]:
        """One update by the images of `rows`; (loss, share of right answers)."""
        if not self.program.switches.accumulated:
            return self.program.step(
                images[rows], labels[rows], *self.bits, rate, *self.teaching(rows)
            )
        seen, n = [], len(rows)
        for at in range(0, n, self.recipe.micro_batch):
            part = rows[at : at + self.recipe.micro_batch]
            share = len(part) / n
            loss, right, finite = self.program.add_gradient(
                share, self.scale, images[part], labels[part], *self.bits, *self.teaching(part)
            )
            seen.append((share * loss, share * right, finite))
        loss, right, finite = np.array(seen).T
        if self.recipe.precision != "float16" or finite.all():
            self.program.apply_gradient(rate)
            self.n_finite += 1
            if self.recipe.precision == "float16" and self.n_finite % SCALE_GROWS_AFTER == 0:
                self.scale *= 2
        else:
            self.program.drop_gradient()
            self.scale, self.n_finite = self.scale / 2, 0
        return loss.sum(), right.sum()

    def kernel_gradient(self, images, labels, rows) -> np.ndarray:
        """`Program.kernel_gradient` over the images of `rows`, as many as one micro-batch holds."""
        rows = rows[: self.recipe.micro_batch]
        return self.program.kernel_gradient(
            images[rows], labels[rows], *self.bits, *self.teaching(rows)
        )
