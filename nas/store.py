"""Trials, controller state and events of one run, in one SQLite file.

One process writes (WAL lets others read meanwhile). Everything that belongs to one step is one
transaction, so that after a crash the file holds the state before a step or after it, never
between. Rows carry checksums: what the disk has changed is recognized when it is read.
"""

from __future__ import annotations

import functools
import math
import os
import sqlite3
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from nas.schema import COLUMNS, MIGRATIONS, PAGE_SIZE, SCHEMA, dump, load, seal, sealed
from nas.trial import Grown, Proposal, Status, Trial

FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}
UNREADABLE = {sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ}
BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


class StoreError(ValueError):
    """The file is not a store, is damaged, or belongs to a newer version."""


class NewerVersion(StoreError):
    """The file is whole, and this version does not know its format."""


class DiskFull(RuntimeError):
    """Nothing more can be written; what was committed is kept."""


class Store:
    """Opens `path`, creating it where `create`; raises StoreError for a file of another kind.

    A path of None is a store in memory, gone when it is closed. Every method raises StoreError
    where what it reads is damaged, and DiskFull where it cannot write.
    """

    def __init__(self, path: Path | None, *, create: bool = False, read_only: bool = False):
        self.path, self.read_only = path, read_only
        self._n_grown: dict[str, int] | None = None  # rows stored, by name
        if path is None:
            uri = "file::memory:"
        elif not create and not path.exists():
            raise StoreError(f"{path} is missing; is {path.parent} a run directory?")
        else:
            uri = f"{path.resolve().as_uri()}?mode={'ro' if read_only else 'rwc'}"
            unwritable = not os.access(path.parent, os.W_OK)
            if read_only and unwritable and not Path(f"{path}-wal").exists():
                uri += "&immutable=1"  # nobody writes here, not even a file of locks
        with self._errors():
            self.connection = sqlite3.connect(uri, uri=True, isolation_level=None)
        try:
            self.connection.create_function("seal", -1, seal, deterministic=True)
            self.rows("PRAGMA trusted_schema = OFF")
            version = self.rows("PRAGMA user_version")[0][0]
            if version > len(MIGRATIONS):
                if path and self.rows(SCHEMA) == expected_schema():
                    raise self.damaged(f"its format is said to be {version}, and is not")
                raise NewerVersion(
                    f"{path} was written by a newer version (format {version}, this one knows "
                    f"{len(MIGRATIONS)}); upgrade nas-codesign"
                )
            if not read_only:
                self.rows(f"PRAGMA page_size = {PAGE_SIZE}")
                self.rows("PRAGMA journal_mode = WAL")
                # a power cut may undo the last steps, whole ones; resuming repeats them exactly
                self.rows("PRAGMA synchronous = NORMAL")
                self._migrate(version)
            elif version < len(MIGRATIONS):
                Store(path).close()
        except BaseException:
            self.connection.close()
            raise

    def _migrate(self, version: int) -> None:
        for number in range(version, len(MIGRATIONS)):
            with self.transaction():
                for statement in MIGRATIONS[number].split(";"):
                    self.rows(statement)
                self.rows(f"PRAGMA user_version = {number + 1}")

    def close(self) -> None:
        self.connection.close()

    @contextmanager
    def _errors(self):
        """SQLite's errors in words."""
        try:
            yield
        except UnicodeDecodeError as error:  # text that nobody wrote
            raise self.damaged(str(error)) from error
        except sqlite3.DatabaseError as error:
            extended = getattr(error, "sqlite_errorcode", None) or 0
            code = extended & 0xFF
            if code in FULL and extended not in UNREADABLE:
                raise DiskFull(
                    f"{self.path} cannot be written ({error}): is the disk full? All that was "
                    "committed is kept; make room and go on"
                ) from error
            if code in BUSY:
                raise StoreError(f"another process is writing {self.path}: {error}") from error
            if code == sqlite3.SQLITE_READONLY:
                raise StoreError(f"{self.path} may not be written: {error}") from error
            raise self.damaged(str(error)) from error

    def damaged(self, what: str) -> StoreError:
        where = self.path.parent if self.path else "DIR"
        return StoreError(
            f"{self.path} is damaged ({what}); 'nas repair {where}' saves what can be saved"
        )

    def rows(self, statement: str, values: tuple = ()) -> list[tuple]:
        """What an SQL statement gives."""
        with self._errors():
            return self.connection.execute(statement, values).fetchall()

    def _read(self, table: str, where: str = "1", values: tuple = ()) -> list[tuple]:
        """Rows of `COLUMNS`; StoreError names one whose checksum is not its own."""
        rows = self.rows(f"SELECT {COLUMNS[table]}, seal FROM {table} WHERE {where}", values)
        for *row, own in rows:
            if own != seal(table, *row):
                raise self.damaged(f"{table}: row {row[0]!r} has changed since it was written")
        return rows

    @contextmanager
    def transaction(self):
        """Everything inside is committed together or not at all."""
        self.rows("BEGIN IMMEDIATE")
        try:
            yield
            self.rows("COMMIT")
        except BaseException:
            self._n_grown = None
            if self.connection.in_transaction:  # SQLite itself has rolled back where a disk is full
                self.rows("ROLLBACK")
            raise

    @contextmanager
    def _together(self):
        """A transaction, or part of the one that there is."""
        if self.connection.in_transaction:
            yield
        else:
            with self.transaction():
                yield

    def check(self, *, thorough: bool) -> None:
        """Raise StoreError where the file is damaged, or steps are missing from it.

        thorough: every row and every index, 2 s for 100,000 trials; else how the file hangs
        together, in a fraction of it, and the checksums of what the search goes on from.
        """
        [[found]] = self.rows(f"PRAGMA {'integrity' if thorough else 'quick'}_check(1)")
        if found != "ok":
            raise self.damaged(" ".join(found.split()))
        if self.rows(SCHEMA) != expected_schema():
            raise self.damaged("its tables are not those of a store")
        for table, columns in COLUMNS.items():
            if table == "trials" and not thorough:
                continue
            key = columns.partition(",")[0]
            broken = self.rows(
                f"SELECT {key} FROM {table} WHERE seal IS NOT seal('{table}', {columns}) LIMIT 5"
            )
            if broken:
                keys = ", ".join(str(row[0]) for row in broken)
                raise self.damaged(f"{table}: {keys} changed since it was written")
        [[n, last, n_told, last_told]] = self.rows(
            "SELECT COUNT(*), MAX(id), COUNT(told), MAX(told) FROM trials"
        )
        if (n, n_told) != ((last or 0) + (last is not None), (last_told or 0) + (n_told > 0)):
            raise self.damaged("trials are missing")
        state = self.rows("SELECT n_asked, n_told FROM controller")
        if state and state[0] != (n, n_told):
            raise self.damaged(f"{n} trials and {n_told} told, the controller knows of {state[0]}")
        self.controller_state()

    # -- writing, inside a transaction where several belong together -------------------------------

    def insert(self, trial: Trial, told: int | None = None) -> None:
        """Write a new trial; `told` is its place in the order of telling, if already told."""
        now = time.time()
        self.rows(
            f"INSERT INTO trials ({COLUMNS['trials']}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
        self.rows(sealed("trials", "id = ?"), (trial.id,))

    def finish(self, trial: Trial) -> None:
        """Write the outcome of a trial, before it is told."""
        with self._together():
            self.rows(
                "UPDATE trials SET status = ?, metrics = ?, error = ?, finished_at = ? "
                "WHERE id = ?",
                (trial.status, dump(trial.metrics), trial.error, time.time(), trial.id),
            )
            self.rows(sealed("trials", "id = ?"), (trial.id,))

    def mark_told(self, trial_id: int, told: int) -> None:
        with self._together():
            self.rows("UPDATE trials SET told = ? WHERE id = ?", (told, trial_id))
            self.rows(sealed("trials", "id = ?"), (trial_id,))

    def save_controller(self, state: dict) -> None:
        """Write a controller's state; of arrays that have grown only the new rows."""
        grown = {k: v for k, v in state.items() if isinstance(v, Grown)}
        shapes = {k: [v.dtype.str, *v.shape] for k, v in grown.items()}
        small = {k: v for k, v in state.items() if k not in grown}
        with self._together():
            if self._n_grown is None:
                before = self._read("controller")
                kept = load(before[0][1]) if before else {}
                self._n_grown = {k: v[1] for k, v in kept.get("grown", {}).items()}
            self.rows(
                "REPLACE INTO controller (id, state, n_asked, n_told) VALUES (0, ?, "
                "(SELECT IFNULL(MAX(id) + 1, 0) FROM trials), "
                "(SELECT IFNULL(MAX(told) + 1, 0) FROM trials))",
                (dump({"state": small, "grown": shapes}),),
            )
            self.rows(sealed("controller", "id = 0"))
            for name, rows in grown.items():
                self._save_grown(name, rows)

    def _save_grown(self, name: str, rows: np.ndarray) -> None:
        first = self._n_grown.get(name, 0)
        if len(rows) < first:  # begun anew
            self.rows("DELETE FROM grown WHERE name = ?", (name,))
            first = 0
        if len(rows) > first:
            data = np.ascontiguousarray(rows[first:]).tobytes()
            self.rows("INSERT INTO grown (name, first, data) VALUES (?, ?, ?)", (name, first, data))
            self.rows(sealed("grown", "name = ? AND first = ?"), (name, first))
        self._n_grown[name] = len(rows)

    def save_final(self, trial_id: int, metrics: dict, weights: str) -> None:
        """Record a final training; `weights` is a file name under checkpoints/."""
        with self._together():
            self.rows(
                f"REPLACE INTO finals ({COLUMNS['finals']}) VALUES (?, ?, ?, ?)",
                (trial_id, dump(metrics), weights, time.time()),
            )
            self.rows(sealed("finals", "trial = ?"), (trial_id,))

    def set(self, name: str, value: str) -> None:
        """Write a setting of the run."""
        with self._together():
            self.rows("REPLACE INTO settings (name, value) VALUES (?, ?)", (name, value))
            self.rows(sealed("settings", "name = ?"), (name,))

    def save_result(self, trial: Trial) -> None:
        """Keep a result for when its trial is asked for again, after a repair."""
        with self._together():
            self.rows(
                f"REPLACE INTO saved ({COLUMNS['saved']}) VALUES (?, ?, ?, ?, ?, ?)",
                (
                    trial.id,
                    dump(trial.proposal.encoding.tolist()),
                    trial.seed,
                    trial.status,
                    dump(trial.metrics),
                    trial.error,
                ),
            )
            self.rows(sealed("saved", "id = ?"), (trial.id,))

    def save_workers(self, workers: list[dict]) -> None:
        """Write what the workers do, for those who watch."""
        with self._together():
            self.rows("DELETE FROM workers")
            for number, worker in enumerate(workers):
                self.rows(
                    "INSERT INTO workers VALUES (?, ?, ?)", (number, dump(worker), time.time())
                )

    def log(self, text: str) -> None:
        self.rows("INSERT INTO events VALUES (?, ?)", (time.time(), text))

    # -- reading -----------------------------------------------------------------------------------

    def trials(self, where: str = "1", values: tuple = ()) -> list[Trial]:
        """The trials that satisfy the SQL condition `where`, by id."""
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
            for id, encoding, note, seed, status, metrics, error, repeats, *_ in self._read(
                "trials", f"{where} ORDER BY id", values
            )
        ]

    def untold(self) -> list[Trial]:
        """The trials asked for and not yet told, by id; their outcome may be known already."""
        return self.trials("told IS NULL")

    def same_design(self, encoding: np.ndarray, rung: int | None = None) -> int | None:
        """The id of the first trial with this encoding, at this rung where there are any, that was
        not itself a repeat."""
        rows = self.rows(
            "SELECT id FROM trials WHERE encoding = ? AND repeats IS NULL "
            "AND json_extract(metrics, '$.rung') IS ? ORDER BY id LIMIT 1",
            (dump(encoding.tolist()), rung),
        )
        return rows[0][0] if rows else None

    def count(self, where: str = "1") -> int:
        return self.rows(f"SELECT COUNT(*) FROM trials WHERE {where}")[0][0]

    def figures(self, names: Sequence[str], where: str = "1") -> np.ndarray:
        """Metrics of the trials that satisfy `where`, by id: float [n, names], NaN where missing.

        A fast way over many trials: checksums are not compared.
        """
        paths = ", ".join(f"json_extract(metrics, '$.{name}')" for name in names)
        rows = self.rows(f"SELECT {paths} FROM trials WHERE {where} ORDER BY id")
        return np.array(rows, float).reshape(-1, len(names))

    def controller_state(self) -> dict | None:
        rows = self._read("controller")
        if not rows:
            return None
        kept = load(rows[0][1])
        if set(kept) != {"state", "grown"}:  # of a store that was written before they were apart
            return kept
        state = kept["state"]
        for name, (dtype, *shape) in kept["grown"].items():
            parts = self._read("grown", "name = ? ORDER BY first", (name,))
            array = np.frombuffer(b"".join(data for _, _, data, _ in parts), np.dtype(dtype))
            if array.size != math.prod(shape):
                raise self.damaged(f"the controller's '{name}' is not whole")
            state[name] = array.reshape(shape).copy()
        return state

    def finals(self) -> dict[int, tuple[dict, str]]:
        """trial id -> (metrics, name of its weights file) of the final trainings."""
        rows = self._read("finals", "1 ORDER BY trial")
        return {trial: (load(metrics), weights) for trial, metrics, weights, *_ in rows}

    def get(self, name: str) -> str | None:
        """A setting of the run; None where it was not set."""
        rows = self._read("settings", "name = ?", (name,))
        return rows[0][1] if rows else None

    def saved_result(self, trial: Trial) -> Trial | None:
        """What a repair saved of this very trial; None where nothing was."""
        for _, encoding, seed, status, metrics, error, _ in self._read(
            "saved", "id = ?", (trial.id,)
        ):
            if (load(encoding), seed) == (trial.proposal.encoding.tolist(), trial.seed):
                return Trial(trial.id, trial.proposal, seed, Status(status), load(metrics), error)
        return None

    def workers(self) -> list[tuple[dict, float]]:
        """(what a worker did, when that was written) of each."""
        rows = self.rows("SELECT status, at FROM workers ORDER BY number")
        return [(load(status), at) for status, at in rows]

    def seconds(self) -> list[tuple[int, float, float]]:
        """(id, asked at, finished at), seconds since the epoch, of every finished trial."""
        return self.rows(
            "SELECT id, asked_at, finished_at FROM trials WHERE finished_at IS NOT NULL ORDER BY id"
        )


@functools.cache
def expected_schema() -> list[tuple]:
    """The tables and indices of a store."""
    store = Store(None)
    schema = store.rows(SCHEMA)
    store.close()
    return schema
