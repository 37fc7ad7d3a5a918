"""Trains a candidate briefly on images, quantized as chosen, and scores it on validation images.

The final training is the same with more epochs and, unless the choices say otherwise, augmentation;
it alone is scored on the test images, and its weights are kept.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nas import data
from nas.augment import OFF, USUAL, augmentation, normalization_of, normalized
from nas.distill import KerasTeacher, Lessons, TrainedTeacher
from nas.evaluators.training import Training, check_least
from nas.trial import Metrics
from search_spaces import IMAGES
from search_spaces.compression import compressions
from search_spaces.precision import precisions, quantization_method
from search_spaces.space import Choices, Space
from search_spaces.training import PRECISIONS, peak_learning_rate, warmup_share

WHOLE_UNTIL = 0.3  # of the steps, where kernels become factors of low rank


def fast_precision() -> str:
    """What products are computed in fastest here: bfloat16 where the processor multiplies it."""
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text() if cpu.is_file() else ""
    return "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"


class Proxy(Training):
    """The evaluator of image classifiers.

    family: of networks, in `search_spaces.IMAGES`. dataset, path: as `nas.data.load`. epochs: of
    a candidate; final_epochs: of a final training. images: how many training images a candidate
    sees, class-balanced; 0 for all. teacher: of candidates that choose one, the file of a Keras
    model (`distill.KerasTeacher`); if none is given, the family's `TEACHER` is trained for
    teacher_epochs on all training images. precision: what products are computed in where a
    candidate chooses no `train.precision`: of `training.PRECISIONS`, or "auto", bfloat16 on a
    processor that has instructions for it and float32 on others. Scores are always of float32.
    """

    example, tested = "image", "images"
    metrics = ("accuracy", "loss", "train_loss")
    final_metrics = ("test_accuracy",)

    def __init__(
        self,
        *,
        family: str = "cell",
        dataset: str = "cifar10-sample",
        path: str = "",
        epochs: int = 4,
        images: int = 0,
        final_epochs: int = 16,
        teacher: str = "",
        teacher_epochs: int = 16,
        precision: str = "auto",
    ):
        check_least(
            epochs=(epochs, 1),
            images=(images, 0),
            final_epochs=(final_epochs, 1),
            teacher_epochs=(teacher_epochs, 1),
        )
        if family not in IMAGES:
            raise ValueError(
                f"no networks '{family}' to train on images; known: {', '.join(IMAGES)}"
            )
        if precision not in ("auto", *PRECISIONS):
            raise ValueError(
                f"evaluator.precision is '{precision}'; choose auto or one of "
                f"{', '.join(PRECISIONS)}"
            )
        self.precision = fast_precision() if precision == "auto" else precision
        self.family, self.network = family, IMAGES[family].network
        self.dataset, self.path = dataset, path
        self.epochs, self.images, self.final_epochs = epochs, images, final_epochs
        self.teacher, self.teacher_epochs = teacher, teacher_epochs
        self.arrays: dict[tuple[str, int, str], tuple[np.ndarray, np.ndarray]] = {}
        self.teachers: dict[int, TrainedTeacher | KerasTeacher] = {}
        self.lessons: dict[tuple[str, int], Lessons] = {}

    def check(self, space: Space) -> None:
        """Raise ValueError where the data are missing or damaged, a batch is larger than they are,
        bits and method or the teacher and the images do not fit. TensorFlow is needed for a given
        teacher only."""
        data.check(self.dataset, self.path or None)
        values = {decision.name: decision.values for decision in space.decisions}
        source = data.DATASETS[self.dataset]
        whole = source.n_train - source.n_validation
        if self.images > whole:
            raise ValueError(
                f"evaluator.images is {self.images}, but {self.dataset} has {whole} training "
                "images; 0 takes them all"
            )
        n, largest = self.images or whole, max(values["train.batch"])
        if largest > n:
            raise ValueError(
                f"train.batch may be {largest}, more than the {n} training images of a candidate; "
                f"name smaller batches in [space], or more evaluator.images"
            )
        if "post_training" in values.get("bits.method", ()):
            for name, bits in values.items():
                if name.startswith("bits.weights.") and 1 in bits:
                    raise ValueError(
                        f"'{name}' may be 1, which bits.method post_training cannot take: fixed "
                        "point needs a sign and a value; name 2 bits or more"
                    )
        if self.teacher:
            KerasTeacher(self.teacher).check(values[f"{self.family}.resolution"])

    def start(self, folder: Path | None = None) -> None:
        """Load the data and TensorFlow, once, in the process that trains; `folder` is where a
        teacher is kept."""
        self.folder = folder
        loaded = data.load(self.dataset, self.path or None)
        self.mean, self.std = data.normalization(loaded.train)
        train = loaded.train
        if self.images:
            train = data.subset(train, self.images, seed=0)
        self.parts = {
            "proxy": train,
            "train": loaded.train,
            "validation": loaded.validation,
            "test": loaded.test,
        }
        from nas.train import Trainer  # when the data are known to be there

        self.trainer = Trainer()

    def part(
        self, name: str, resolution: int, normalization: str = "channel"
    ) -> tuple[np.ndarray, np.ndarray]:
        """(normalized float32 images [n, r, r, 3], int32 labels [n]) of a part, kept for reuse."""
        key = name, resolution, normalization
        if key not in self.arrays:
            images = self.parts[name]
            pixels = data.resize(images.x, resolution)
            self.arrays[key] = normalized(pixels, normalization, self.mean, self.std), images.y
        return self.arrays[key]

    def lessons_of(self, part: str, resolution: int) -> Lessons:
        """What the teacher says of a part; it is trained or loaded where it was not yet."""
        if resolution not in self.teachers:
            self.teachers[resolution] = (
                KerasTeacher(self.teacher)
                if self.teacher
                else TrainedTeacher(
                    self.family,
                    self.trainer,
                    *self.part("train", resolution),
                    epochs=self.teacher_epochs,
                    folder=self.folder,
                )
            )
        teacher = self.teachers[resolution]
        key = part, resolution
        if key not in self.lessons:
            self.lessons[key] = Lessons(
                teacher, lambda: self.part(part, resolution, teacher.normalization)[0]
            )
        return self.lessons[key]

    def _fit(self, choices: Choices, seed: int, epochs: int, final: bool, **course):
        from nas.pruning import Pruning
        from nas.train import Recipe

        part, usual = ("train", USUAL) if final else ("proxy", OFF)
        bits = precisions(choices)
        recipe = Recipe(
            batch=choices["train.batch"],
            epochs=epochs,
            learning_rate=peak_learning_rate(choices),
            warmup=warmup_share(choices),
            weight_bits=tuple(p.weights for p in bits),
            activation_bits=tuple(p.activations for p in bits),
            compressions=tuple(compressions(choices)),
            pruning=Pruning(choices.get("prune.method", "none")),
            whole_until=WHOLE_UNTIL if choices.get("compress.weights") == "low_rank" else 0.0,
            augmentation=augmentation(choices, usual),
            quantizer=quantization_method(choices),
            precision=choices.get("train.precision", self.precision),
            optimizer=choices.get("train.optimizer", "momentum"),
            schedule=choices.get("train.schedule", "triangle"),
            distill_weight=choices.get("distill.weight", 0),
            temperature=choices.get("distill.temperature", 1),
        )
        network = self.network(choices)
        resolution = network.image[0]
        teacher = self.lessons_of(part, resolution) if recipe.distill_weight else None
        images, labels = self.part(part, resolution, normalization_of(choices))
        return self.trainer.fit(
            network, images, labels, recipe, seed=seed, teacher=teacher, **course
        )

    def _scored(self, trained, choices: Choices, part: str) -> Metrics:
        resolution = trained.network.image[0]
        accuracy, loss = trained.score(*self.part(part, resolution, normalization_of(choices)))
        return {"accuracy": accuracy, "loss": loss}

    def _quality(self, scored: Metrics) -> float:
        return scored["accuracy"]

    def _tested(self, trained, seed: int) -> Metrics:
        return {"n_test": len(self.parts["test"])}

    def _constants(self) -> dict[str, np.ndarray]:
        return {"image/mean": self.mean, "image/std": self.std}
