"""The tables of a store, the checksums of their rows, and values as text.

Arrays and metrics are JSON; nothing stored can run code.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from typing import Any

import numpy as np

COLUMNS = {  # of what is sealed, in the order of the seal
    "trials": "id, encoding, note, seed, status, metrics, error, repeats, told, asked_at, "
    "finished_at",
    "finals": "trial, metrics, weights, finished_at",
    "controller": "id, state, n_asked, n_told",
    "grown": "name, first, data",
    "settings": "name, value",
    "saved": "id, encoding, seed, status, metrics, error",
}


def sealed(table: str, key: str) -> str:
    """SQL that renews the checksum of a row after it was written."""
    return f"UPDATE {table} SET seal = seal('{table}', {COLUMNS[table]}) WHERE {key}"


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
    # checksums; the rows that a controller only adds to; what a run was begun with; what was saved
    # of a damaged store; the workers
    f"""
    ALTER TABLE trials ADD COLUMN seal INTEGER;
    CREATE INDEX trials_status ON trials (status, repeats, told);
    ALTER TABLE finals ADD COLUMN seal INTEGER;
    ALTER TABLE controller ADD COLUMN n_asked INTEGER;
    ALTER TABLE controller ADD COLUMN n_told INTEGER;
    ALTER TABLE controller ADD COLUMN seal INTEGER;
    CREATE TABLE grown (
        name TEXT NOT NULL, first INTEGER NOT NULL, data BLOB NOT NULL, seal INTEGER,
        PRIMARY KEY (name, first));
    CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL, seal INTEGER);
    CREATE TABLE saved (
        id INTEGER PRIMARY KEY, encoding TEXT NOT NULL, seed INTEGER NOT NULL,
        status TEXT NOT NULL, metrics TEXT NOT NULL, error TEXT, seal INTEGER);
    CREATE TABLE workers (number INTEGER PRIMARY KEY, status TEXT NOT NULL, at REAL NOT NULL);
    UPDATE controller SET n_asked = (SELECT COUNT(*) FROM trials),
        n_told = (SELECT COUNT(told) FROM trials);
    {sealed("trials", "1")}; {sealed("finals", "1")}; {sealed("controller", "1")};
    """,
]
SCHEMA = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"  # of a file
PAGE_SIZE = 4096


def seal(*values) -> int:
    """The checksum of a row: a change of any one byte gives another."""
    return zlib.crc32(repr(values).encode())


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
