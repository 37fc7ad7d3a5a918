"""What samplers of other libraries need to be controllers: a history that is their whole state."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nas.controllers.shared import Seen, check_told
from nas.trial import Grown, Proposal, State, Trial
from search_spaces.space import Space, nearest

REDRAWS = 100  # at random, of a design met before


class Foreign:
    """A sampler of another library behind `ask`, `tell`, `state` and `restore`.

    The library counts its trials as the rows of `history` do. A suggestion that repeats a design is
    answered with what is known of it, at once or when that lands, and another is asked for; after
    `redraws` of them, or where the library has nothing to suggest, a new design is drawn at random
    and made known to the library.
    """

    redraws = 10

    def __init__(self, space: Space, *, seed: int, n_objectives: int):
        self.space, self.seed, self.n_objectives = space, seed, n_objectives
        self.forget()

    def forget(self) -> None:
        """Be as new."""
        self.rng = np.random.default_rng(self.seed)
        self.seen = Seen()
        self.history: list[np.ndarray] = []  # the designs [d] of the library's trials
        self.results: list[np.ndarray | None] = []  # [n_objectives] each, None while it is open
        self.known: dict[bytes, np.ndarray] = {}  # design -> its result
        self.open: dict[bytes, list[int]] = {}  # design -> the trials that wait for its result
        self.begin()

    # -- what each library fills in ----------------------------------------------------------------

    def begin(self) -> None:
        """A new sampler without trials."""
        raise NotImplementedError

    def suggest(self) -> np.ndarray | None:
        """The design [d] of the library's next trial; None, and no trial, where it has none."""
        raise NotImplementedError

    def add(self, row: np.ndarray) -> None:
        """Make a design that the library did not suggest its next trial."""
        raise NotImplementedError

    def answer(self, number: int, values: np.ndarray) -> None:
        """Tell the library the result of a trial; NaN where it failed."""
        raise NotImplementedError

    def own_state(self) -> State:
        """What the library needs beside the history."""
        raise NotImplementedError

    def own_restore(self, state: State) -> None:
        """Take the history, which is in place, and `own_state` over into a new sampler."""
        raise NotImplementedError

    # -- a controller ------------------------------------------------------------------------------

    def ask(self, n: int) -> list[Proposal]:
        return [Proposal(self._propose()) for _ in range(n)]

    def _propose(self) -> np.ndarray:
        for _ in range(1 + self.redraws):
            row = self.suggest()
            if row is None:
                break
            number = self._count(row)
            if self.seen.add(row):
                return row
            if row.tobytes() in self.known:
                self._answer(number, self.known[row.tobytes()])
        [row] = self.seen.draw(lambda k: self.space.sample(k, self.rng), 1, REDRAWS)
        self.add(row)
        self._count(row)
        return row

    def tell(self, trials: Sequence[Trial], objectives: np.ndarray) -> None:
        objectives = check_told(trials, objectives, self.n_objectives)
        for trial, values in zip(trials, objectives, strict=True):
            row = np.asarray(trial.proposal.encoding, np.int64)
            self.seen.add(row)
            if row.tobytes() not in self.open:
                self.add(row)
                self._count(row)
            self.known[row.tobytes()] = values
            for number in tuple(self.open[row.tobytes()]):
                self._answer(number, values)

    def _count(self, row: np.ndarray) -> int:
        self.history.append(row)
        self.results.append(None)
        self.open.setdefault(row.tobytes(), []).append(len(self.history) - 1)
        return len(self.history) - 1

    def _answer(self, number: int, values: np.ndarray) -> None:
        key = self.history[number].tobytes()
        self.open[key].remove(number)
        if not self.open[key]:
            del self.open[key]
        self.results[number] = values
        self.answer(number, values)

    def state(self) -> State:
        kind = np.min_scalar_type(int(self.space.sizes.max()))
        n, lost = len(self.history), np.full(self.n_objectives, np.nan)
        results = [lost if values is None else values for values in self.results]
        table = np.array(results, float).reshape(n, self.n_objectives)
        valid = np.isfinite(table).all(axis=1)
        return {
            "seed": self.seed,
            "rng": self.rng.bit_generator.state,
            "seen": self.seen.keys(),
            "history": np.array(self.history, kind).reshape(n, len(self.space)).view(Grown),
            "results": np.where(valid[:, None], table, 0.0),
            "valid": valid,
            "told": np.array([values is not None for values in self.results], bool),
            **self.own_state(),
        }

    def restore(self, state: State) -> None:
        self.seed = state["seed"]
        self.forget()
        self.rng.bit_generator.state = state["rng"]
        self.seen = Seen(state["seen"])
        columns = state["history"], state["results"], state["valid"], state["told"]
        for number, (row, values, valid, told) in enumerate(zip(*columns, strict=True)):
            self.history.append(row.astype(np.int64))
            result = values.copy() if valid else np.full(self.n_objectives, np.nan)
            self.results.append(result if told else None)
            key = self.history[-1].tobytes()
            if told:
                self.known[key] = result
            else:
                self.open.setdefault(key, []).append(number)
        self.own_restore(state)


def installed(name: str, libraries: Sequence[str]) -> None:
    """Raise ValueError where a library that a controller needs cannot be imported."""
    packages = {"sklearn": "scikit-learn", "keras_tuner": "keras-tuner"}
    for library in libraries:
        if importlib.util.find_spec(library) is None:
            package = packages.get(library, library)
            raise ValueError(
                f"controller '{name}' needs {package}, which is not installed: "
                f"pip install {package}"
            )


def checked(name: str, make: Callable, options: Mapping[str, Any], given: Sequence[str]) -> dict:
    """The options for a class of a library; ValueError for one that it does not take, or that the
    run itself gives."""
    known = [p for p in inspect.signature(make).parameters if p not in ("self", *given)]
    for option in options:
        if option not in known:
            raise ValueError(
                f"controller '{name}' has no option '{option}'; {nearest(option, known)}"
            )
    return dict(options)
