"""What can be saved of a damaged run.

A damaged file is read page by page (https://sqlite.org/fileformat.html), without SQLite and
whatever its tree has become: a row counts where its checksum is its own. The results found go into
a new store; the search is then run again from its beginning by 'nas resume', by which trials whose
results were saved are not trained: the same trials in the same order, and only what was lost is
trained again.
"""

from __future__ import annotations

import contextlib
import os
import struct
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nas.run_dir import RunDir, RunError, write_whole
from nas.schema import COLUMNS, PAGE_SIZE, load, seal
from nas.store import NewerVersion, Store, StoreError
from nas.trial import Proposal, Status, Trial

LEAF = 13  # the first byte of a page that holds rows of a table
WAL_HEADER, FRAME_HEADER = 32, 24
SIZES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, 7: 8}  # bytes of numbers, by their kind
SAVED = ("trials", "finals", "settings", "saved", "controller")


class Saved(NamedTuple):
    """What a repair came to: rows saved by table, trials known to be lost, where the damaged store
    is kept, whether config.toml was restored."""

    n_trials: int
    n_finals: int
    lost: list[int]
    kept: Path | None
    config_restored: bool


def repair(path: str | Path) -> Saved:
    """Put a store of what can be saved in the place of a damaged one, and config.toml back.

    The damaged files are kept beside. Nothing is changed where nothing is damaged. Raises RunError
    where this is no run, is in use, or the configuration is lost with the store.
    """
    run = RunDir(path)
    run.check_files()
    before = sorted(run.path.glob("trials.damaged-*.sqlite"))
    source = run.store if run.store.exists() or not before else before[-1]
    if not source.exists():
        raise RunError(f"{run.path} has no {run.store.name}: there is nothing to repair")
    with run.locked():
        try:
            with contextlib.closing(Store(run.store, read_only=True)) as store:
                store.check(thorough=True)
                texts = [text for text in (store.get("config"), store.get("config_before")) if text]
            if not texts:
                run.read_config()
                return Saved(0, 0, [], None, False)
            return Saved(0, 0, [], None, restore_config(run, texts))
        except StoreError as error:  # damage is what the rest is for
            if isinstance(error, NewerVersion):
                raise
        rows = salvage(source)
        texts = [
            rows["settings"][n][1] for n in ("config", "config_before") if n in rows["settings"]
        ]
        config_restored = restore_config(run, texts)
        partial = run.path / "repaired.sqlite"
        for name in (partial, *run.path.glob(partial.name + "-*")):
            name.unlink(missing_ok=True)
        with contextlib.closing(Store(partial, create=True)) as store, store.transaction():
            store.set("config", run.config.read_bytes().decode())
            if "space" in rows["settings"]:
                store.set("space", rows["settings"]["space"][1])
            n_trials, lost = keep_results(store, rows)
            for trial, metrics, weights, _ in rows["finals"].values():
                run.weights(weights)  # RunError where it lies elsewhere
                store.save_final(trial, load(metrics), weights)
        kept = source
        if source == run.store:
            kept = run.path / f"trials.damaged-{len(before) + 1:03d}.sqlite"
            for suffix in ("-wal", ""):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(f"{run.store}{suffix}", f"{kept}{suffix}")
        Path(f"{run.store}-shm").unlink(missing_ok=True)
        os.replace(partial, run.store)
        return Saved(n_trials, len(rows["finals"]), lost, kept, config_restored)


def restore_config(run: RunDir, texts: list[str]) -> bool:
    """Write the configuration that the store knows, unless it is there; whether it was written."""
    there = run.config.read_bytes() if run.config.exists() else b""
    if not texts:
        try:
            if not there:
                raise ValueError
            tomllib.loads(there.decode())
        except ValueError:
            raise RunError(
                f"{run.path} cannot be repaired: config.toml is damaged, and the store has lost it"
            ) from None
        return False
    if there.decode(errors="replace") in texts:
        return False
    if there:
        write_whole(run.path / "config.damaged.toml", there)
    write_whole(run.config, texts[0])
    return True


def keep_results(store: Store, rows: dict[str, dict]) -> tuple[int, list[int]]:
    """Write the results among salvaged rows; how many, and the ids that are missing between."""
    found: dict[int, Trial] = {}
    for id, encoding, seed, status, metrics, error in rows["saved"].values():
        found[id] = _trial(id, encoding, seed, status, metrics, error)
    for id, encoding, _, seed, status, metrics, error, repeats, *_ in rows["trials"].values():
        if status in (Status.COMPLETE, Status.FAILED) and repeats is None:
            found[id] = _trial(id, encoding, seed, status, metrics, error)
    for trial in found.values():
        store.save_result(trial)
    known = set(rows["trials"]) | set(rows["saved"])
    n_asked = max([max(known, default=-1) + 1, *(row[2] for row in rows["controller"].values())])
    return len(found), sorted(set(range(n_asked)) - known)


def _trial(id, encoding, seed, status, metrics, error) -> Trial:
    proposal = Proposal(np.array(load(encoding), np.int64))
    return Trial(id, proposal, seed, Status(status), load(metrics), error)


# -- rows of a file that SQLite may not be able to open --------------------------------------------


def salvage(path: Path) -> dict[str, dict]:
    """Table -> key -> row, in the order of `COLUMNS`, of the rows whose checksums are their own.

    Of several states of a row, which old pages and the log may hold, that which was told, else
    that which was finished, counts.
    """
    found: dict[str, dict] = {table: {} for table in SAVED}
    for number, record in records(path):
        for table in SAVED:
            n = COLUMNS[table].count(",") + 1
            if len(record) != n + 1:
                continue
            row = record[:n]
            if row[0] is None:  # an INTEGER PRIMARY KEY is kept as the row's number
                row = (number, *row[1:])
            if record[-1] != seal(table, *row):
                continue
            other = found[table].get(row[0])
            if other is None or table != "trials" or _state(row) >= _state(other):
                found[table][row[0]] = row
    return found


def _state(row: tuple) -> tuple[bool, bool]:
    """How far a trial's row is: told, finished."""
    return row[8] is not None, row[10] is not None


def records(path: Path) -> Iterator[tuple[int, tuple]]:
    """(row number, values) of everything that looks like a row of a table, in file and log."""
    data = path.read_bytes()
    versions: dict[int, list[bytes]] = {}
    for start in range(0, len(data), PAGE_SIZE):
        versions[start // PAGE_SIZE + 1] = [data[start : start + PAGE_SIZE]]
    log = Path(f"{path}-wal")
    data = log.read_bytes() if log.exists() else b""
    for start in range(WAL_HEADER, len(data), FRAME_HEADER + PAGE_SIZE):
        frame = data[start : start + FRAME_HEADER + PAGE_SIZE]
        if len(frame) > FRAME_HEADER:
            page = int.from_bytes(frame[:4], "big")
            versions.setdefault(page, []).append(frame[FRAME_HEADER:])
    for number, pages in versions.items():
        for page in pages:
            header = 100 if number == 1 else 0
            if len(page) < PAGE_SIZE or page[header] != LEAF:
                continue
            n_cells = int.from_bytes(page[header + 3 : header + 5], "big")
            pointers = page[header + 8 : header + 8 + 2 * n_cells]
            for i in range(0, len(pointers) - 1, 2):
                at = int.from_bytes(pointers[i : i + 2], "big")
                with contextlib.suppress(IndexError, ValueError, KeyError, struct.error):
                    yield cell(page, at, versions)


def cell(page: bytes, at: int, versions: dict[int, list[bytes]]) -> tuple[int, tuple]:
    """(row number, values) of the cell of a leaf page. Raises what reading nonsense raises."""
    size, at = varint(page, at)
    number, at = varint(page, at)
    most, least = PAGE_SIZE - 35, (PAGE_SIZE - 12) * 32 // 255 - 23
    if size <= most:
        return number, values(page[at : at + size])
    here = least + (size - least) % (PAGE_SIZE - 4)
    here = here if here <= most else least
    payload, at = page[at : at + here], at + here
    following = int.from_bytes(page[at : at + 4], "big")
    for _ in range(size // (PAGE_SIZE - 4) + 1):
        if len(payload) >= size or not following:
            break
        overflow = versions[following][-1]
        payload += overflow[4:][: size - len(payload)]
        following = int.from_bytes(overflow[:4], "big")
    return number, values(payload)


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of 1 to 9 bytes, and where it ends."""
    value = 0
    for i in range(8):
        value = value << 7 | data[at + i] & 0x7F
        if data[at + i] < 0x80:
            return value, at + i + 1
    return value << 8 | data[at + 8], at + 9


def values(payload: bytes) -> tuple:
    """The values of a record."""
    end, at = varint(payload, 0)
    kinds = []
    while at < end:
        kind, at = varint(payload, at)
        kinds.append(kind)
    found: list = []
    for kind in kinds:
        if kind == 0:
            found.append(None)
        elif kind in (8, 9):
            found.append(kind - 8)
        elif kind <= 7:
            size = SIZES[kind]
            raw, at = payload[at : at + size], at + size
            if kind == 7:
                found.append(struct.unpack(">d", raw)[0])
            else:
                found.append(int.from_bytes(raw, "big", signed=True))
        elif kind >= 12:
            size = (kind - 12) // 2
            raw, at = payload[at : at + size], at + size
            if len(raw) < size:
                raise ValueError("a value is cut off")
            found.append(raw if kind % 2 == 0 else raw.decode())
        else:
            raise ValueError(f"no value is of the kind {kind}")
    return tuple(found)
