"""What several controllers need: the designs proposed so far, and a check of what they are told."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import blake2b

import numpy as np


class Seen:
    """A set of designs, eight bytes each: 64-bit hashes of canonical encodings.

    Two designs share a hash once in about 2^64 pairs; the later one is then redrawn for nothing.
    """

    def __init__(self, keys: Iterable[int] = ()):
        self._keys = {int(key): None for key in keys}  # a dictionary: in the order of adding

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, encoding: np.ndarray) -> bool:
        """Remember a design [d]; whether it is new."""
        digest = blake2b(np.asarray(encoding, "<i8").tobytes(), digest_size=8).digest()
        n_before = len(self._keys)
        self._keys[int.from_bytes(digest, "little")] = None
        return len(self._keys) > n_before

    def draw(self, sample: Callable[[int], np.ndarray], n: int, redraws: int) -> list[np.ndarray]:
        """`n` designs [d] of `sample(k) -> [k, d]`, none seen before; then they are seen.

        What repeats is drawn again, up to `redraws` times; then repeats are taken.
        """
        chosen: list[np.ndarray] = []
        tries = 0
        while len(chosen) < n:
            rows = sample(n - len(chosen))
            chosen += [row for row in rows if self.add(row) or tries == redraws]
            tries += 1
        return chosen

    def keys(self) -> np.ndarray:
        """The hashes: uint64 [designs], in the order of adding; `Seen(keys)` is the same set."""
        return np.fromiter(self._keys, np.uint64, len(self))


def check_told(trials, objectives, n_objectives: int) -> np.ndarray:
    """The objectives as float [trials, n_objectives]; ValueError for another shape."""
    objectives = np.asarray(objectives, float)
    if objectives.shape != (len(trials), n_objectives):
        raise ValueError(
            f"objectives need the shape {(len(trials), n_objectives)}, a row a trial and a column "
            f"an objective; got {objectives.shape}; make the controller with the reward's "
            "n_objectives"
        )
    return objectives
