"""Decisions and spaces: what can be chosen, as short rows of integers.

A space is data. An *encoding* holds, for every decision, the index of the value chosen; the
*choices* are the same design decoded: a dictionary of the active decisions alone. A decision that
its condition switches off holds index 0, so that two encodings are equal exactly when the designs
are.
"""

from __future__ import annotations

import difflib
import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Choices = dict[str, Any]


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for an error: the known names, the closest one to `word` first."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(map(str, known))}"


@dataclass(frozen=True)
class Decision:
    """One choice over a finite list.

    name: dotted, unique in its space (`bits.weights.0`).
    values: the possible values, strings, numbers or booleans, all different.
    when: the condition under which it is active: decision name -> the values that it must hold.
    usual: the values of a search that does not name the decision; with none of them, as for a
    technique that is off unless asked for, such a search goes without it. All, if not given.
    """

    name: str
    values: tuple
    when: Mapping[str, tuple] = field(default_factory=dict)
    usual: tuple | None = None

    def __post_init__(self):
        if not self.values or len(set(self.values)) != len(self.values):
            raise ValueError(
                f"decision '{self.name}': values must be different and at least one, "
                f"got {self.values!r}"
            )

    @functools.cached_property
    def ordered(self) -> bool:
        """Whether the values are numbers, so that neighbouring indices are neighbouring values."""
        return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in self.values)

    def index(self, value) -> int:
        """Position of `value`; True is not 1 here. Raises ValueError with the choices."""
        for i, known in enumerate(self.values):
            if known == value and isinstance(known, bool) == isinstance(value, bool):
                return i
        several = isinstance(value, str) and "," in value
        raise ValueError(
            f"decision '{self.name}': {value!r} is not one of {', '.join(map(repr, self.values))}"
            + (f"; several are a list: [{value}]" if several else "")
        )


class Space:
    """An ordered list of decisions; conditions refer to earlier ones."""

    def __init__(self, decisions: Sequence[Decision]):
        self.decisions = tuple(decisions)
        self.names = tuple(d.name for d in self.decisions)
        self.sizes = np.array([len(d.values) for d in self.decisions], np.int64)  # [decisions]
        self.column = {name: i for i, name in enumerate(self.names)}
        if len(self.column) != len(self.names):
            twice = sorted({n for n in self.names if self.names.count(n) > 1})
            raise ValueError(f"decisions named twice: {', '.join(twice)}")
        # conditions[i]: (column of the parent, which of its values switch decision i on [size])
        self.conditions: list[list[tuple[int, np.ndarray]]] = []
        for i, decision in enumerate(self.decisions):
            tests = []
            for parent, values in decision.when.items():
                j = self.column.get(parent)
                if j is None or j >= i:
                    raise ValueError(
                        f"decision '{decision.name}' depends on '{parent}', which must come "
                        f"before it; {nearest(parent, self.names[:i])}"
                    )
                on = np.zeros(self.sizes[j], bool)
                on[[self.decisions[j].index(v) for v in values]] = True
                tests.append((j, on))
            self.conditions.append(tests)

    def __len__(self) -> int:
        return len(self.decisions)

    def __add__(self, other: Space) -> Space:
        return Space(self.decisions + other.decisions)

    def __repr__(self) -> str:
        return f"Space({len(self)} decisions, {self.n_designs:.3g} designs)"

    def text(self) -> str:
        """All that an encoding's meaning depends on, as JSON: decisions, values, conditions."""
        return json.dumps([[d.name, d.values, dict(d.when)] for d in self.decisions])

    def difference(self, text: str) -> str:
        """The decisions, a few of them, in which this space is not that of a `text`."""
        ours, theirs = ({name: rest for name, *rest in json.loads(t)} for t in (self.text(), text))
        names = [n for n in {**theirs, **ours} if ours.get(n) != theirs.get(n)]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return ", ".join(names[:3]) + more if names else "the order of its decisions"

    # -- which decisions count -------------------------------------------------------------------

    def active(self, encodings: np.ndarray) -> np.ndarray:
        """Which decisions their conditions leave on: bool, the shape of `encodings` [n, d]."""
        encodings = np.atleast_2d(encodings)
        on = np.ones(encodings.shape, bool)
        for i, tests in enumerate(self.conditions):
            for j, allowed in tests:
                on[:, i] &= on[:, j] & allowed[encodings[:, j]]
        return on

    def canonical(self, encodings: np.ndarray) -> np.ndarray:
        """The same designs with every inactive decision at index 0: int64 [n, d]."""
        encodings = np.atleast_2d(np.asarray(encodings, np.int64))
        return np.where(self.active(encodings), encodings, 0)

    @property
    def n_designs(self) -> int:
        """How many different designs there are, conditions counted (a Python integer: exact)."""
        total = 1
        for group in self._independent():
            parents = sorted({j for i in group for j, _ in self.conditions[i]})
            leaves = [i for i in group if i not in parents]
            rows = np.zeros((int(np.prod(self.sizes[parents])), len(self)), np.int64)
            grid = np.indices(self.sizes[parents]).reshape(len(parents), len(rows))
            rows[:, parents] = grid.T
            on = self.active(rows)
            once = (rows == np.where(on, rows, 0)).all(1)  # an inactive parent, at index 0
            counts = np.where(on[once][:, leaves], self.sizes[leaves], 1)
            kinds, n = np.unique(counts, axis=0, return_counts=True)
            total *= sum(int(k) * math.prod(map(int, row)) for row, k in zip(kinds, n, strict=True))
        return total

    def _independent(self) -> list[list[int]]:
        """The decisions in groups that no condition joins."""
        group = list(range(len(self)))
        for i, tests in enumerate(self.conditions):
            for j, _ in tests:
                group = [group[j] if g == group[i] else g for g in group]
        return [[i for i, g in enumerate(group) if g == which] for which in sorted(set(group))]

    # -- designs ---------------------------------------------------------------------------------

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """`n` encodings, every decision uniform and independent: int64 [n, d], canonical."""
        return self.canonical(rng.integers(0, self.sizes, (n, len(self))))

    def enumerate(self) -> np.ndarray:
        """Every design once, in order: int64 [n_designs, d]. For spaces that fit in memory."""
        rows = np.empty((1, 0), np.int64)
        for size in self.sizes:
            column = np.tile(np.arange(size), len(rows))
            rows = np.column_stack([np.repeat(rows, size, axis=0), column])
        return rows[(rows == self.canonical(rows)).all(1)]

    def validate(self, encodings: np.ndarray) -> np.ndarray:
        """The encodings as canonical int64 [n, d]; ValueError where an index is out of range."""
        encodings = np.atleast_2d(np.asarray(encodings))
        if encodings.ndim != 2 or encodings.shape[1] != len(self):
            raise ValueError(
                f"encodings need {len(self)} columns, one a decision; got shape {encodings.shape}"
            )
        if not np.issubdtype(encodings.dtype, np.integer):
            raise ValueError(f"encodings are integers; got {encodings.dtype}")
        bad = np.argwhere((encodings < 0) | (encodings >= self.sizes))
        if len(bad):
            row, column = bad[0]
            raise ValueError(
                f"encoding {row}, decision '{self.names[column]}': index "
                f"{encodings[row, column]} is not in 0..{self.sizes[column] - 1}"
            )
        return self.canonical(encodings)

    def decode(self, encoding: Sequence[int]) -> Choices:
        """The choices of one encoding [d]: active decisions only, in the space's order."""
        return self.decode_all(encoding)[0]

    def decode_all(self, encodings: np.ndarray) -> list[Choices]:
        """The choices of each of encodings [n, d]."""
        rows = self.validate(encodings)
        return [
            {
                d.name: d.values[i]
                for d, i, on in zip(self.decisions, row, active, strict=True)
                if on
            }
            for row, active in zip(rows.tolist(), self.active(rows).tolist(), strict=True)
        ]

    def encode(self, choices: Mapping[str, Any]) -> np.ndarray:
        """The encoding [d] of `choices`; inverse of `decode`.

        Raises ValueError for an unknown decision, one that is missing or inactive, or a value that
        is not among its choices.
        """
        for name in choices:
            if name not in self.column:
                raise ValueError(f"unknown decision '{name}'; {nearest(name, self.names)}")
        row = np.zeros(len(self), np.int64)
        for i, decision in enumerate(self.decisions):
            on = all(
                allowed[row[j]] and self.names[j] in choices for j, allowed in self.conditions[i]
            )
            if on and decision.name not in choices:
                raise ValueError(
                    f"decision '{decision.name}' is missing; choose one of {decision.values}"
                )
            if on:
                row[i] = decision.index(choices[decision.name])
            elif decision.name in choices:
                raise ValueError(
                    f"decision '{decision.name}' is given but not active: it needs "
                    f"{dict(decision.when)}"
                )
        return row

    def neighbours(self, encoding: Sequence[int]) -> np.ndarray:
        """Every design one active decision away: int64 [m, d], each once, without the design.

        A decision that the change switches on takes its first value.
        """
        row = self.validate(encoding)[0]
        moves = []
        for i in np.flatnonzero(self.active(row)[0]):
            others = np.delete(np.arange(self.sizes[i]), row[i])
            block = np.repeat(row[None], len(others), 0)
            block[:, i] = others
            moves.append(block)
        if not moves:
            return np.empty((0, len(self)), np.int64)
        return np.unique(self.canonical(np.concatenate(moves)), axis=0)

    def restrict(self, values: Mapping[str, Any]) -> Space:
        """The space with fewer values: decision name -> a value or a list of them.

        Unnamed decisions keep their usual values. A decision that can no longer be active goes;
        one fixed to a single value stays, so that its choice is written down. Raises ValueError
        for an unknown name or value, and for a decision named without the one it depends on.
        """
        for name in values:
            if name not in self.column:
                raise ValueError(f"unknown decision '{name}'; {nearest(name, self.names)}")
        kept: dict[str, Decision] = {}
        left_out: set[str] = set()
        for decision in self.decisions:
            when = {}
            for parent, allowed in decision.when.items():
                left = kept[parent].values if parent in kept else ()
                when[parent] = tuple(v for v in allowed if v in left)
            if not all(when.values()):
                for parent in decision.when:
                    if decision.name in values and parent in left_out:
                        raise ValueError(
                            f"decision '{decision.name}' is named but not '{parent}', which it "
                            f"depends on: name it too, with some of {list(decision.when[parent])}"
                        )
                continue
            chosen = decision.values if decision.usual is None else decision.usual
            if decision.name in values:
                wanted = values[decision.name]
                wanted = wanted if isinstance(wanted, (list, tuple)) else [wanted]
                if not wanted:
                    raise ValueError(f"decision '{decision.name}': an empty list leaves no choice")
                indices = sorted({decision.index(v) for v in wanted})
                chosen = tuple(decision.values[i] for i in indices)
            if not chosen:
                left_out.add(decision.name)
                continue
            kept[decision.name] = Decision(decision.name, chosen, when)
        return Space(list(kept.values()))
