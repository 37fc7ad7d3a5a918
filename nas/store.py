"""Trials, controller state and events of one run, in one SQLite file.

One process writes (WAL lets others read meanwhile). Everything that belongs to one step is one
transaction, so that after a crash the file holds the state before a step or after it, never
between. Arrays and metrics are JSON; nothing stored can run code.
"""

from __future__ import annotations

import base64
import json
import math
import sqlite3
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nas.trial import Proposal, Status, Trial

# Each entry takes a file from the version of its position to the next; never edit one that shipped.
MIGRATIONS = [
    """
    CREATE TABLE trials (
        id INTEGER PRIMARY KEY, encoding TEXT NOT NULL, note TEXT NOT NULL, seed INTEGER NOT NULL,
        status TEXT NOT NULL, metrics TEXT NOT NULL, error TEXT, repeats INTEGER,
        told INTEGER UNIQUE, asked_at REAL NOT NULL, finished_at REAL);
    CREATE INDEX trials_untold ON trials (id) WHERE told IS NULL;
    CREATE INDEX trials_encoding ON trials (encoding);
    CREATE TABLE finals (
        trial INTEGER PRIMARY KEY REFERENCES trials (id), metrics TEXT NOT NULL,
        weights TEXT NOT NULL, finished_at REAL NOT NULL);
    CREATE TABLE controller (id INTEGER PRIMARY KEY CHECK (id = 0), state TEXT NOT NULL);
    CREATE TABLE events (at REAL NOT NULL, text TEXT NOT NULL);
    """,
]


class StoreError(ValueError):
    """The file is not a store, or belongs to a newer version."""


def dump(value: Any) -> str:
    """JSON text of plain values and NumPy arrays; NaN becomes null. Inverse of `load`."""

    def plain(value):
        if isinstance(value, np.ndarray):
            data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
            return {"__array__": [value.dtype.str, list(value.shape), data]}
        if isinstance(value, np.generic):
            return plain(value.item())
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, dict):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return value

    return json.dumps(plain(value), separators=(",", ":"), allow_nan=False)


def load(text: str) -> Any:
    """The value that `dump` wrote. Object arrays cannot be expressed, so nothing is executed."""

    def array(fields: dict):
        if set(fields) != {"__array__"}:
            return fields
        dtype, shape, data = fields["__array__"]
        return np.frombuffer(base64.b64decode(data), np.dtype(dtype)).reshape(shape).copy()

    return json.loads(text, object_hook=array)


class Store:
    """Opens `path`, creating it where `create`; raises StoreError for a file of another kind.

    A path of None is a store in memory, gone when it is closed.
    """

    def __init__(self, path: Path | None, *, create: bool = False, read_only: bool = False):
        if path is None:
            uri = "file::memory:"
        elif not create and not path.exists():
            raise StoreError(f"{path} is missing; is {path.parent} a run directory?")
        else:
            uri = f"{path.resolve().as_uri()}?mode={'ro' if read_only else 'rwc'}"
        self.connection = sqlite3.connect(uri, uri=True, isolation_level=None)
        try:
            version = self.connection.execute("PRAGMA user_version").fetchone()[0]
            if version > len(MIGRATIONS):
                raise StoreError(
                    f"{path} was written by a newer version (format {version}, this one knows "
                    f"{len(MIGRATIONS)}); upgrade nas-codesign"
                )
            if not read_only:
                self.connection.execute("PRAGMA journal_mode = WAL")
                # a power cut may undo the last steps, whole ones; resuming repeats them exactly
                self.connection.execute("PRAGMA synchronous = NORMAL")
                for number in range(version, len(MIGRATIONS)):
                    with self.transaction():
                        for statement in MIGRATIONS[number].split(";"):
                            self.connection.execute(statement)
                        self.connection.execute(f"PRAGMA user_version = {number + 1}")
        except sqlite3.DatabaseError as error:
            self.connection.close()
            raise StoreError(f"{path} is not a readable store: {error}") from error

    def close(self) -> None:
        self.connection.close()

    @contextmanager
    def transaction(self):
        """Everything inside is committed together or not at all."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")

    # -- writing, inside a transaction where several belong together -------------------------------

    def insert(self, trial: Trial, told: int | None = None) -> None:
        """Write a new trial; `told` is its place in the order of telling, if already told."""
        now = time.time()
        self.connection.execute(
            "INSERT INTO trials VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                trial.id,
                dump(trial.proposal.encoding.tolist()),
                dump(trial.proposal.note),
                trial.seed,
                trial.status,
                dump(trial.metrics),
                trial.error,
                trial.repeats,
                told,
                now,
                None if trial.status is Status.RUNNING else now,
            ),
        )

    def finish(self, trial: Trial) -> None:
        """Write the outcome of a trial, before it is told."""
        self.connection.execute(
            "UPDATE trials SET status = ?, metrics = ?, error = ?, finished_at = ? WHERE id = ?",
            (trial.status, dump(trial.metrics), trial.error, time.time(), trial.id),
        )

    def mark_told(self, trial_id: int, told: int) -> None:
        self.connection.execute("UPDATE trials SET told = ? WHERE id = ?", (told, trial_id))

    def save_controller(self, state: dict) -> None:
        self.connection.execute("REPLACE INTO controller VALUES (0, ?)", (dump(state),))

    def save_final(self, trial_id: int, metrics: dict, weights: str) -> None:
        """Record a final training; `weights` is a file name under checkpoints/."""
        self.connection.execute(
            "REPLACE INTO finals VALUES (?, ?, ?, ?)",
            (trial_id, dump(metrics), weights, time.time()),
        )

    def log(self, text: str) -> None:
        self.connection.execute("INSERT INTO events VALUES (?, ?)", (time.time(), text))

    # -- reading -----------------------------------------------------------------------------------

    def trials(self, where: str = "1", values: tuple = ()) -> list[Trial]:
        """The trials that satisfy the SQL condition `where`, by id."""
        rows = self.connection.execute(
            "SELECT id, encoding, note, seed, status, metrics, error, repeats FROM trials "
            f"WHERE {where} ORDER BY id",
            values,
        )
        return [
            Trial(
                id,
                Proposal(np.array(load(encoding), np.int64), load(note)),
                seed,
                Status(status),
                load(metrics),
                error,
                repeats,
            )
            for id, encoding, note, seed, status, metrics, error, repeats in rows
        ]

    def untold(self) -> list[Trial]:
        """The trials asked for and not yet told, by id; their outcome may be known already."""
        return self.trials("told IS NULL")

    def same_design(self, encoding: np.ndarray, rung: int | None = None) -> int | None:
        """The id of the first trial with this encoding, at this rung where there are any, that was
        not itself a repeat."""
        row = self.connection.execute(
            "SELECT id FROM trials WHERE encoding = ? AND repeats IS NULL "
            "AND json_extract(metrics, '$.rung') IS ? ORDER BY id LIMIT 1",
            (dump(encoding.tolist()), rung),
        ).fetchone()
        return row and row[0]

    def count(self, where: str = "1") -> int:
        return self.connection.execute(f"SELECT COUNT(*) FROM trials WHERE {where}").fetchone()[0]

    def controller_state(self) -> dict | None:
        row = self.connection.execute("SELECT state FROM controller").fetchone()
        return load(row[0]) if row else None

    def finals(self) -> dict[int, tuple[dict, str]]:
        """trial id -> (metrics, name of its weights file) of the final trainings."""
        rows = self.connection.execute("SELECT trial, metrics, weights FROM finals ORDER BY trial")
        return {trial: (load(metrics), weights) for trial, metrics, weights in rows}

    def seconds(self) -> list[tuple[int, float, float]]:
        """(id, asked at, finished at), seconds since the epoch, of every finished trial."""
        return self.connection.execute(
            "SELECT id, asked_at, finished_at FROM trials WHERE finished_at IS NOT NULL ORDER BY id"
        ).fetchall()
