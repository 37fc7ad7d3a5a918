"""Looks candidates up in a table of designs that were measured before: a search takes seconds.

A CSV or Parquet file with a row a design: columns of decisions, columns of metrics, at one training
length or several. The table is the space: every combination of its values must have its row.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nas.trial import Metrics
from search_spaces.space import Choices, Decision, Space, nearest

if TYPE_CHECKING:
    import pandas

AT = "@"  # between a column's name and the fidelity that it is at
COST = "cost"  # of a fidelity: what one evaluation there is charged


class TableError(ValueError):
    """A table that cannot be searched as asked: what is wrong with it."""


class Table:
    """The evaluator of tabular benchmarks.

    path: a .csv, .csv.gz or .parquet file. decisions: the columns that hold one decision each, or
    several by a regular expression of `patterns`, whose named groups become `column.group`.
    fidelities: from the cheapest training to the longest, each a mapping from a metric to its
    column or "0.01 * column", and `cost` to a number or the same; a search pays for the first, its
    final trainings for the last. Without any, all other columns of numbers are metrics.
    fidelity: the column that tells the rows of a design apart where it has one for each fidelity
    (epochs, say); a column x is then known as "x@12", and without `fidelities` each of its values
    is one, of that cost. costs: columns known before evaluation, `*` matching anything (latencies
    of devices).
    """

    in_process = True  # a look-up is not worth a worker
    verb = "looked up"
    example, tested = "example", "examples"

    def __init__(
        self,
        *,
        path: str = "",
        decisions: Sequence[str] = (),
        patterns: Mapping[str, str] = MappingProxyType({}),
        fidelities: Sequence[Mapping[str, Any]] = (),
        fidelity: str = "",
        costs: Sequence[str] = (),
    ):
        if not path:
            raise TableError("evaluator.path is empty; name the table's file with --table FILE")
        if not decisions:
            raise TableError(
                f"evaluator.decisions is empty; name the columns of {path} that hold decisions"
            )
        for column in patterns:
            if column not in decisions:
                raise TableError(
                    f"evaluator.patterns has '{column}', which is not among the decisions; "
                    f"{nearest(column, decisions)}"
                )
        if not Path(path).is_file():
            raise TableError(f"no table {path}; name a .csv, .csv.gz or .parquet file")
        self.path = path
        stamp = Path(path).stat().st_mtime_ns
        self.frame, self.space, self.rows = _index(
            path, stamp, tuple(decisions), tuple(sorted(patterns.items())), fidelity, tuple(costs)
        )
        taken = {*decisions}
        known = [c for c in self._numbers() if any(fnmatchcase(c, g) for g in costs)]
        for glob in costs:
            if not any(fnmatchcase(column, glob) for column in known):
                raise TableError(
                    f"evaluator.costs: no column of numbers in {path} is called '{glob}'; "
                    f"{nearest(glob, self._numbers())}"
                )
        if not fidelities:
            others = [c for c in self._numbers() if c not in taken and c not in known]
            fidelities = _fidelities(others) if fidelity else [{c: c for c in others}]
        self.costs = {column: self._column(column, "evaluator.costs") for column in known}
        self.fidelities = [
            {name: self._column(value, f"the metric '{name}'") for name, value in each.items()}
            for each in fidelities
        ]
        if not {*self.fidelities[0], *self.costs} - {COST}:
            raise TableError(f"{path} has no column of numbers besides its decisions: no metric")

    def _numbers(self) -> list[str]:
        return [c for c in self.frame.columns if self.frame[c].dtype.kind in "iuf"]

    def _column(self, source: Any, where: str) -> np.ndarray:
        """float [rows] of a number, a column's name, or "factor * column"."""
        if isinstance(source, (int, float)) and not isinstance(source, bool):
            return np.full(len(self.frame), float(source))
        factor, star, column = str(source).rpartition("*")
        column = column.strip()
        if column not in self._numbers():
            kind = "numbers" if column in self.frame.columns else "that name"
            raise TableError(
                f"{where}: {self.path} has no column of {kind} '{column}'; "
                f"{nearest(column, self._numbers())}"
            )
        try:
            scale = float(factor) if star else 1.0
        except ValueError:
            raise TableError(f"{where} is a column or \"0.01 * column\"; got '{source}'") from None
        return scale * self.frame[column].to_numpy(float)

    @property
    def metrics(self) -> tuple[str, ...]:
        """What a trial of a search has, costs included."""
        return tuple(dict.fromkeys((*self.fidelities[0], *self.costs)))

    @property
    def final_metrics(self) -> tuple[str, ...]:
        """What a final training adds; nothing where there is one fidelity only."""
        return tuple(self.fidelities[-1]) if len(self.fidelities) > 1 else ()

    def check(self, space: Space) -> None:
        """All was checked when the table was read."""

    def start(self, folder: Path | None = None) -> None:
        """All is loaded."""

    def row(self, choices: Choices) -> int:
        """The table's row of a design; other decisions than the table's are passed over."""
        at = tuple(d.index(choices[d.name]) for d in self.space.decisions)
        return int(self.rows[at])

    def price(self, designs: Sequence[Choices]) -> list[tuple[Metrics, None]]:
        """What is known of designs before their evaluation; none is infeasible."""
        rows = [self.row(choices) for choices in designs]
        return [({name: float(c[row]) for name, c in self.costs.items()}, None) for row in rows]

    def fidelity(self, rung: float) -> int:
        """A rung is the cost of one of the fidelities, the same for every design."""
        costs = [np.unique(each.get(COST, np.nan)) for each in self.fidelities]
        costs = [float(of[0]) if len(of) == 1 else np.nan for of in costs]
        if rung not in costs:
            known = ", ".join(f"{cost:g}" for cost in costs if cost == cost) or "of which none has"
            raise TableError(
                f"fidelities.rungs are costs of the table's fidelities, {known}; got {rung!r}"
            )
        return costs.index(rung)

    def evaluate(self, choices: Choices, *, seed: int, fidelity: int = 0) -> Metrics:
        """The metrics of one design at a fidelity, counted from the cheapest; NaN where the table
        is empty. A table has no randomness: the seed changes nothing."""
        row = self.row(choices)
        return {name: float(column[row]) for name, column in self.fidelities[fidelity].items()}

    def finalize(self, choices: Choices, *, seed: int, weights: Path) -> Metrics:
        """The metrics at the last fidelity; there are no weights to write."""
        return self.evaluate(choices, seed=seed, fidelity=-1)

    def columns(
        self, space: Space, encodings: np.ndarray, fidelity: int | None = 0
    ) -> dict[str, np.ndarray]:
        """Metric -> values [n] of encodings [n, d] of a space, the table's or a narrower one; the
        costs alone for a fidelity of None."""
        own = [
            np.array([d.index(v) for v in space.decisions[space.column[d.name]].values])
            for d in self.space.decisions
        ]
        at = [space.column[name] for name in self.space.names]
        rows = self.rows[tuple(of[encodings[:, i]] for of, i in zip(own, at, strict=True))]
        measured = {} if fidelity is None else self.fidelities[fidelity]
        return {name: column[rows] for name, column in {**self.costs, **measured}.items()}


class Indexed(NamedTuple):
    """A table, its space, and the row of each design: int [size of each decision ...]."""

    frame: pandas.DataFrame
    space: Space
    rows: np.ndarray


@functools.lru_cache(maxsize=4)
def _index(
    path: str,
    stamp: int,
    decisions: tuple[str, ...],
    patterns: tuple[tuple[str, str], ...],
    fidelity: str,
    costs: tuple[str, ...],
) -> Indexed:
    """Read a table; `stamp`, when it was changed, makes a changed file another table."""
    import pandas

    frame = _read(path)
    for name in (*decisions, *([fidelity] if fidelity else ())):
        if name not in frame.columns:
            raise TableError(f"{path} has no column '{name}'; {nearest(name, frame.columns)}")
    if fidelity:
        frame = _widened(path, frame, decisions, fidelity, costs)
    parts = []
    for name in decisions:
        pattern = dict(patterns).get(name)
        parts.append(_split(frame[name], pattern, path) if pattern else frame[[name]])
    chosen = pandas.concat(parts, axis=1)
    for name in chosen.columns:
        empty = np.flatnonzero(chosen[name].isna())
        if len(empty):
            raise TableError(
                f"{path}: row {empty[0] + 1} has no value for the decision '{name}'; fill it in, "
                "or leave the row out"
            )
    codes, found = [], []
    for name in chosen.columns:
        index, values = pandas.factorize(chosen[name], sort=True)
        codes.append(index)
        found.append(Decision(name, tuple(values.tolist())))
    return Indexed(frame, Space(found), _rows(path, Space(found), np.array(codes)))


def _widened(
    path: str,
    frame: pandas.DataFrame,
    decisions: Sequence[str],
    fidelity: str,
    costs: Sequence[str],
) -> pandas.DataFrame:
    """One row a design, from one row a design and fidelity: columns `x@level`, but for what is
    known before evaluation, which keeps its name."""
    keys = [*decisions, fidelity]
    twice = np.flatnonzero(frame.duplicated(keys))
    if len(twice):
        raise TableError(
            f"{path}: row {twice[0] + 1} is the same design as one before it, at the same "
            f"{fidelity}; keep one of them"
        )
    wide = frame.set_index(keys).unstack(fidelity)
    levels = list(wide.columns.levels[1])
    n_missing = len(wide) * len(levels) - len(frame)
    if n_missing:
        raise TableError(
            f"{path} lacks {n_missing:,} of the {len(wide) * len(levels):,} rows of {len(wide):,} "
            f"designs at {fidelity} {', '.join(map(str, levels))}; add them, or leave out a design "
            "or a fidelity that is not complete"
        )
    known = {c for c in frame.columns if any(fnmatchcase(c, glob) for glob in costs)}
    kept = [(c, level) for c, level in wide.columns if c not in known or level == levels[0]]
    wide = wide[kept]
    wide.columns = [c if c in known else f"{c}{AT}{level}" for c, level in kept]
    return wide.reset_index()


def _fidelities(columns: Sequence[str]) -> list[dict[str, Any]]:
    """The fidelities that columns `x@level` make, the lowest first, each of its level's cost."""
    levels: dict[str, dict[str, Any]] = {}
    for column in columns:
        metric, _, level = column.rpartition(AT)
        levels.setdefault(level, {})[metric] = column
    try:
        ordered = sorted(levels, key=float)
    except ValueError:
        raise TableError(
            f"evaluator.fidelity: its values {', '.join(levels)} are no numbers; give "
            "evaluator.fidelities in their order"
        ) from None
    return [{COST: float(level), **levels[level]} for level in ordered]


def _rows(path: str, space: Space, codes: np.ndarray) -> np.ndarray:
    """The row of each design, from the encodings of the rows [d, rows]; each must have one."""
    if space.n_designs > 10 * codes.shape[1]:
        raise TableError(
            f"{path} has {codes.shape[1]:,} rows for the {space.n_designs:.3g} combinations of its "
            "decisions; a table needs them all: name fewer decisions, or leave values out"
        )
    flat = np.ravel_multi_index(tuple(codes), tuple(space.sizes))
    counts = np.bincount(flat, minlength=space.n_designs)
    if counts.max() > 1:
        first, second = np.flatnonzero(flat == counts.argmax())[:2] + 1
        raise TableError(
            f"{path}: rows {first} and {second} are the same design "
            f"({_words(space, int(counts.argmax()))}); keep one of them, or name the decision in "
            "which they differ"
        )
    if counts.min() < 1:
        raise TableError(
            f"{path} lacks {np.sum(counts == 0):,} of the {space.n_designs:,} designs of its "
            f"space, the first {_words(space, int(counts.argmin()))}; add their rows, or leave out "
            "a value that is not complete"
        )
    rows = np.empty(space.n_designs, np.int64)
    rows[flat] = np.arange(codes.shape[1])
    return rows.reshape(tuple(space.sizes))


def _words(space: Space, flat: int) -> str:
    choices = space.decode(np.unravel_index(flat, tuple(space.sizes)))
    return ", ".join(f"{name} = {value}" for name, value in itertools.islice(choices.items(), 8))


def _read(path: str) -> pandas.DataFrame:
    import pandas

    try:
        frame = pandas.read_parquet(path) if path.endswith(".parquet") else pandas.read_csv(path)
    except (ValueError, OSError, EOFError) as error:
        raise TableError(f"{path} cannot be read as a table: {error}") from error
    except ImportError as error:
        raise TableError(f"{path} needs 'pip install pyarrow' to be read") from error
    if not len(frame):
        raise TableError(f"{path} has no rows")
    return frame


def _split(column: pandas.Series, pattern: str, path: str) -> pandas.DataFrame:
    """The named groups of a regular expression, one decision each."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise TableError(
            f"evaluator.patterns.{column.name} is no regular expression: {error}"
        ) from (error)
    if not compiled.groupindex:
        raise TableError(
            f"evaluator.patterns.{column.name} has no named groups (?P<name>...); got '{pattern}'"
        )
    found = column.astype(str).str.extract(compiled)[list(compiled.groupindex)]
    wrong = np.flatnonzero(found.isna().any(axis=1))
    if len(wrong):
        raise TableError(
            f"{path}: '{column.iloc[wrong[0]]}' in row {wrong[0] + 1} does not match "
            f"evaluator.patterns.{column.name} = '{pattern}'"
        )
    return found.add_prefix(f"{column.name}.")
