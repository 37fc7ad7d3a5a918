"""Trains a candidate briefly on images, quantized as chosen, and scores it on validation images.

The final training is the same with more epochs and augmentation, and alone is scored on the test
images; its weights are kept.
"""

from __future__ import annotations

import resource
import time
from pathlib import Path

import numpy as np

from nas import data
from nas.trial import TRAINING_METRICS, Metrics
from search_spaces import FAMILIES
from search_spaces.compression import compressions
from search_spaces.precision import precisions
from search_spaces.space import Choices, Space
from search_spaces.training import peak_learning_rate, warmup_share

WHOLE_UNTIL = 0.3  # of the steps, where kernels become factors of low rank


class Proxy:
    """The evaluator of image classifiers.

    family: of networks, in `search_spaces.FAMILIES`. dataset, path: as `nas.data.load`. epochs: of
    a candidate; final_epochs: of a final training. images: how many training images a candidate
    sees, class-balanced; 0 for all.
    """

    in_process = False
    metrics = TRAINING_METRICS
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
    ):
        for name, value, least in (
            ("epochs", epochs, 1),
            ("images", images, 0),
            ("final_epochs", final_epochs, 1),
        ):
            if value < least:
                raise ValueError(f"evaluator.{name} is {value}; it must be at least {least}")
        if family not in FAMILIES:
            raise ValueError(f"no networks '{family}' to train; known: {', '.join(FAMILIES)}")
        self.network = FAMILIES[family].network
        self.dataset, self.path = dataset, path
        self.epochs, self.images, self.final_epochs = epochs, images, final_epochs
        self.arrays: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}

    def check(self, space: Space) -> None:
        """Raise ValueError where the data are missing or damaged; TensorFlow is not needed."""
        data.check(self.dataset, self.path or None)

    def start(self, folder: Path | None = None) -> None:
        """Load the data and TensorFlow, once, in the process that trains."""
        from nas.train import Trainer

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
        self.trainer = Trainer()

    def part(self, name: str, resolution: int) -> tuple[np.ndarray, np.ndarray]:
        """(normalized float32 images [n, r, r, 3], int32 labels [n]) of a part, kept for reuse."""
        key = name, resolution
        if key not in self.arrays:
            images = self.parts[name]
            x = (data.resize(images.x, resolution) / 255 - self.mean) / self.std
            self.arrays[key] = x.astype(np.float32), images.y
        return self.arrays[key]

    def _fit(self, choices: Choices, seed: int, part: str, epochs: int, augment: bool):
        from nas.pruning import Pruning
        from nas.train import Recipe

        bits = precisions(choices)
        recipe = Recipe(
            batch=choices["train.batch"],
            epochs=epochs,
            learning_rate=peak_learning_rate(choices),
            warmup=warmup_share(choices),
            weight_bits=tuple(p.weights for p in bits),
            activation_bits=tuple(p.activations for p in bits),
            augment=augment,
            compressions=tuple(compressions(choices)),
            pruning=Pruning(choices.get("prune.method", "none")),
            whole_until=WHOLE_UNTIL if choices.get("compress.weights") == "low_rank" else 0.0,
        )
        network = self.network(choices)
        images, labels = self.part(part, network.image[0])
        return self.trainer.fit(network, images, labels, recipe, seed=seed)

    def evaluate(self, choices: Choices, *, seed: int) -> Metrics:
        """Validation accuracy and loss of a short training, with its curve and what it took."""
        before = time.process_time()
        trained = self._fit(choices, seed, "proxy", self.epochs, augment=False)
        accuracy, loss = trained.score(*self.part("validation", self.network(choices).image[0]))
        return {
            "accuracy": accuracy,
            "loss": loss,
            "train_loss": trained.curve[-1]["loss"],
            "epochs": self.epochs,
            "seconds": trained.seconds,
            "flops": trained.flops,
            "peak_share": trained.flops / self.trainer.peak(trained.recipe.precision),
            "cpu_seconds": time.process_time() - before,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "curve": trained.curve,
        }

    def finalize(self, choices: Choices, *, seed: int, weights: Path) -> Metrics:
        """Train longer on all training images, score on test images, write the weights."""
        trained = self._fit(choices, seed, "train", self.final_epochs, augment=True)
        resolution = self.network(choices).image[0]
        accuracy, loss = trained.score(*self.part("validation", resolution))
        test_accuracy, test_loss = trained.score(*self.part("test", resolution))
        write_tensors(
            weights, {**trained.tensors(), "image/mean": self.mean, "image/std": self.std}
        )
        return {
            "accuracy": accuracy,
            "loss": loss,
            "test_accuracy": test_accuracy,
            "test_loss": test_loss,
            "n_test": len(self.parts["test"]),
            "epochs": self.final_epochs,
            "seconds": trained.seconds,
            "curve": trained.curve,
        }


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write named arrays as HDF5, whole or not at all."""
    import h5py

    partial = path.with_name(path.name + ".part")
    with h5py.File(partial, "w") as file:
        for name, array in tensors.items():
            file[name] = array
    partial.replace(path)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays that `write_tensors` wrote, by name."""
    import h5py

    tensors: dict[str, np.ndarray] = {}
    with h5py.File(path, "r") as file:
        file.visititems(
            lambda name, item: (
                tensors.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
            )
        )
    return tensors
