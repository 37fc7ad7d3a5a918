"""The teacher of a search: its class scores are a second target (Hinton et al., 1503.02531).

It is trained once a run, by the first worker whose candidate has one, or is a given Keras model. It
reads what the student reads, moved in the same way (Beyer et al., 2106.05237): where a training
augments, every epoch is scored anew, at the cost of the teacher's forward pass; else once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from nas.augment import USUAL, View
from nas.run_dir import read_tensors, waiting_lock, write_tensors
from search_spaces import FAMILIES
from search_spaces.network import N_CLASSES
from search_spaces.precision import GROUPS
from search_spaces.quantizers import FULL_BITS
from search_spaces.training import REFERENCE_BATCH

if TYPE_CHECKING:
    from nas.train import Trainer

SEED = 0  # of a trained teacher: the same whichever worker needs it first
LEARNING_RATE, WARMUP = 0.1, 0.2
SCORE_BATCH = 250
LEAST = 1e-7  # a probability is not taken to be less, so that it has a logarithm


class Teacher(Protocol):
    """normalization: of the images that it reads, of `augment.normalized`."""

    normalization: str

    def class_scores(self, images: np.ndarray) -> np.ndarray:
        """Scores before the softmax [n, classes]."""


class TrainedTeacher:
    """`TEACHER` of a family in 32 bits, at the student's resolution.

    Trained on (images, labels) with the usual augmentation and kept in `folder`, or loaded from
    there: of several workers that need it together one trains, the others wait.
    """

    normalization = "channel"

    def __init__(
        self,
        family: str,
        trainer: Trainer,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        epochs: int,
        folder: Path | None,
    ):
        from nas.train import Recipe, Trained

        resolution = images.shape[1]
        choices = FAMILIES[family].TEACHER | {f"{family}.resolution": resolution}
        network = FAMILIES[family].network(choices)
        full = (FULL_BITS,) * len(GROUPS)
        batch = min(REFERENCE_BATCH, len(labels))
        recipe = Recipe(batch, epochs, LEARNING_RATE, WARMUP, full, full, augmentation=USUAL)
        path = folder and folder / f"teacher-{resolution}.h5"
        with waiting_lock(path and path.with_suffix(".lock")):
            if path and path.exists():
                kept = read_tensors(path)
                moments = tuple(
                    [kept[f"{name}/{i}"] for i in range(len(kept) // 2)]
                    for name in ("mean", "variance")
                )
                self.trained = Trained(network, recipe, kept["values"], moments, [], 0.0, 0.0)
                return
            self.trained = trainer.fit(network, images, labels, recipe, seed=SEED)
            if path:
                kept = {"values": self.trained.values}
                for name, arrays in zip(("mean", "variance"), self.trained.moments, strict=True):
                    kept |= {f"{name}/{i}": array for i, array in enumerate(arrays)}
                write_tensors(path, kept)

    def class_scores(self, images: np.ndarray) -> np.ndarray:
        return self.trained.class_scores(images)


class KerasTeacher:
    """A plain Keras model from a file: images [n, r, r, 3] of 0..255 to scores or probabilities."""

    normalization = "pixels"

    def __init__(self, path: str):
        if not path.endswith(".keras"):  # other formats can hold code
            raise ValueError(f"evaluator.teacher takes a file that ends in .keras; got '{path}'")
        import keras

        try:
            self.model = keras.models.load_model(path, compile=False, safe_mode=True)
        except (OSError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"evaluator.teacher: no Keras model in '{path}': {reason}") from error
        self.path = path

    def check(self, resolutions: tuple[int, ...]) -> None:
        """Raise ValueError unless it reads images of every resolution and tells N_CLASSES apart."""
        reads, gives = self.model.input_shape, self.model.output_shape
        if not isinstance(reads, tuple) or not isinstance(gives, tuple):
            raise ValueError(
                f"evaluator.teacher '{self.path}' has {len(self.model.inputs)} inputs and "
                f"{len(self.model.outputs)} outputs; give a model with one of each"
            )
        if gives != (None, N_CLASSES):
            raise ValueError(
                f"evaluator.teacher '{self.path}' gives {gives[1:]} for an image, and the data "
                f"have {N_CLASSES} classes; give a model trained on the same classes"
            )
        for resolution in resolutions:
            wanted = resolution, resolution, 3
            fits = [own in (None, size) for own, size in zip(reads[1:], wanted, strict=False)]
            if len(reads) != 4 or not all(fits):
                raise ValueError(
                    f"evaluator.teacher '{self.path}' reads images of {reads[1:]}, a candidate's "
                    f"are {wanted}; fix the resolution in [space], or give another teacher"
                )

    def class_scores(self, images: np.ndarray) -> np.ndarray:
        parts = [
            np.asarray(self.model(images[at : at + SCORE_BATCH], training=False))
            for at in range(0, len(images), SCORE_BATCH)
        ]
        scores = np.concatenate(parts).astype(np.float32)
        if scores.min() >= 0 and np.allclose(scores.sum(1), 1, atol=1e-3):  # behind a softmax
            scores = np.log(np.maximum(scores, LEAST))
        return scores


class Lessons:
    """A teacher's scores of the images of a training, by the view of them: float32 [n, classes].

    images: in the teacher's normalization. Scores of images that are not moved are kept.
    """

    def __init__(self, teacher: Teacher, images: Callable[[], np.ndarray]):
        self.teacher, self.images = teacher, images
        self.unmoved: np.ndarray | None = None

    def __call__(self, view: View) -> np.ndarray:
        if not view.augmentation.off:
            return self.teacher.class_scores(view(self.images()))
        if self.unmoved is None:
            self.unmoved = self.teacher.class_scores(self.images())
        return self.unmoved
