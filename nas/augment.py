"""What is done to the images: random flips, crops and cutouts in training, normalization before.

Each epoch's moves are drawn anew from its own seed, so that they are the same for images in
whatever normalization: a student's, and those that its teacher reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from search_spaces.space import Choices

NORMALIZATIONS = ("channel", "image", "none", "pixels")
IMAGE_EPSILON = 1e-5  # added to an image's variance, pixels taken as 0..1


@dataclass(frozen=True)
class Augmentation:
    """flip: "none", "random", or "alternating": an image that was turned round in one epoch is not
    in the next, the first at random (airbench, Jordan, 2404.00498). crop: the farthest shift either
    way, as a share of the side; edges are repeated. cutout: the side of the square that is set to
    the mean of all images, as a share; its centre is anywhere, so that a part may lie outside
    (DeVries & Taylor, 1708.04552).
    """

    flip: str = "none"
    crop: float = 0.0
    cutout: float = 0.0

    @property
    def off(self) -> bool:
        return self == OFF


OFF = Augmentation()
USUAL = Augmentation("random", 0.125)  # of trainings that are long enough to gain by it


def augmentation(choices: Choices, otherwise: Augmentation = OFF) -> Augmentation:
    """The augmentation chosen; what the search does not choose is as in `otherwise`."""
    return Augmentation(
        choices.get("augment.flip", otherwise.flip),
        choices.get("augment.crop", otherwise.crop),
        choices.get("augment.cutout", otherwise.cutout),
    )


@dataclass(frozen=True)
class View:
    """Images as an epoch of a training sees them: the same view of any images makes the same moves.

    epoch: counts from 0. seed: of the training.
    """

    augmentation: Augmentation
    seed: tuple[int, ...]
    epoch: int

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """The images [n, h, w, c], moved; themselves where nothing is to be done."""
        if self.augmentation.off:
            return images
        flip, cutout = self.augmentation.flip, self.augmentation.cutout
        rng = np.random.default_rng([*self.seed, self.epoch])
        n, height, width, _ = images.shape
        turned = rng.random(n) < 0.5
        if flip == "alternating":
            turned = (np.random.default_rng(self.seed).random(n) < 0.5) ^ bool(self.epoch % 2)
        elif flip == "none":
            turned[:] = False
        out = shifted(images, turned, round(self.augmentation.crop * height), rng)
        if cutout:
            centres = rng.integers(0, (height, width), (n, 2))
            rows, columns = (
                np.abs(np.arange(side) + 0.5 - centres[:, axis, None]) < cutout * side / 2
                for axis, side in enumerate((height, width))
            )
            out[rows[:, :, None] & columns[:, None, :]] = images.mean((0, 1, 2))
        return out


def shifted(
    images: np.ndarray, turned: np.ndarray, reach: int, rng: np.random.Generator
) -> np.ndarray:
    """A copy with the images of `turned` [n] turned round, each moved by up to `reach` pixels."""
    _, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    out = np.empty_like(images)
    moves = np.column_stack([turned, rng.integers(0, 2 * reach + 1, (len(images), 2))])
    for flip, down, right in np.unique(moves, axis=0):
        rows = np.flatnonzero((moves == (flip, down, right)).all(1))
        window = padded[rows, down : down + height, right : right + width]
        out[rows] = window[:, :, ::-1] if flip else window
    return out


def normalization_of(choices: Choices) -> str:
    """The normalization of its images, of `augment.NORMALIZATIONS`."""
    return choices.get("image.normalization", "channel")


def normalized(images: np.ndarray, kind: str, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Images [n, h, w, 3] of 0..255 as float32: each channel by the training images' mean and std
    [3], each image by its own over all of it, or only taken as 0..1; "pixels" are 0..255 still."""
    if kind == "pixels":
        return images.astype(np.float32)
    x = images / np.float32(255)
    if kind == "channel":
        x = (x - mean) / std
    elif kind == "image":
        x -= x.mean((1, 2, 3), keepdims=True)
        x /= np.sqrt(np.square(x).mean((1, 2, 3), keepdims=True) + np.float32(IMAGE_EPSILON))
    elif kind != "none":
        raise ValueError(f"unknown normalization '{kind}'; known: {', '.join(NORMALIZATIONS)}")
    return x.astype(np.float32)
