"""What several controllers need: designs proposed before, an order of results, and mutations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import blake2b

import numpy as np

from nas.pareto import crowding, ranks
from nas.trial import Growing
from search_spaces.space import Space

ANOTHER_CHANGE = 0.2  # the chance that a mutation changes one more decision, and one more, ...


class Seen:
    """A set of designs, eight bytes each: 64-bit hashes of canonical encodings.

    Two designs share a hash once in about 2^64 pairs; the later one is then redrawn for nothing.
    """

    def __init__(self, keys: Iterable[int] = ()):
        self._rows = Growing(np.fromiter(keys, np.uint64))  # in the order of adding
        self._keys = set(self._rows.rows.tolist())

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, encoding: np.ndarray) -> bool:
        """Remember a design [d]; whether it is new."""
        digest = blake2b(np.asarray(encoding, "<i8").tobytes(), digest_size=8).digest()
        key = int.from_bytes(digest, "little")
        if key in self._keys:
            return False
        self._keys.add(key)
        self._rows.add(key)
        return True

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
        return self._rows.rows


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


def order(objectives: np.ndarray) -> np.ndarray:
    """Rows of objectives [n, m] from best to worst: by rank, then by room, then the older first."""
    rank = ranks(objectives)
    if objectives.shape[1] == 1:  # of one rank are only equals
        return np.argsort(rank, kind="stable")
    return np.lexsort((-crowding(objectives, rank), rank))


def mutate(encodings: np.ndarray, space: Space, rng: np.random.Generator) -> np.ndarray:
    """Designs one active decision away from those of [n, d], now and then more: int64 [n, d].

    The decision is uniform among the active ones that have a choice. Decisions that the change
    switches on are drawn uniformly; those that it switches off go.
    """
    encodings = np.atleast_2d(encodings).copy()
    ordered = np.array([decision.ordered for decision in space.decisions])
    unchanged = np.ones(encodings.shape, bool)
    n_changes = rng.geometric(1 - ANOTHER_CHANGE, len(encodings))
    for change in range(n_changes.max(initial=0)):
        active = space.active(encodings)
        movable = active & unchanged & (space.sizes > 1)
        columns = (movable * (1 - rng.random(encodings.shape))).argmax(axis=1)
        rows = np.flatnonzero((n_changes > change) & movable.any(axis=1))
        columns = columns[rows]
        children = np.where(active, encodings, rng.integers(0, space.sizes, encodings.shape))[rows]
        children[np.arange(len(rows)), columns] = move(
            encodings[rows, columns], space.sizes[columns], ordered[columns], rng
        )
        encodings[rows] = space.canonical(children)
        unchanged[rows, columns] = False
    return encodings


def move(
    indices: np.ndarray, sizes: np.ndarray, ordered: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Other indices below `sizes` [n]: of ordered values a neighbour half of the time, else any."""
    anywhere = (indices + rng.integers(1, sizes)) % sizes
    up = np.where(rng.random(len(indices)) < 0.5, indices < sizes - 1, indices == 0)
    near = ordered & (rng.random(len(indices)) < 0.5)
    return np.where(near, np.where(up, indices + 1, indices - 1), anywhere)
