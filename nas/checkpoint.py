"""A training that is kept now and then, and goes on where it was: whole files, no pickle.

A file is an .npz with its checksum behind it, written under a temporary name, on disk before it is
renamed. It belongs to one task, which it names; another's, or a damaged one, is as good as none.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nas.run_dir import write_whole

INTERVAL_S = 60.0  # of work that may be lost
CHECKSUM_BYTES = 16
log = logging.getLogger("nas")


class Parked(Exception):
    """The training was asked to stop; its state is kept."""


def partial_path(folder: Path, task: dict) -> Path:
    """Where the state of a task that is not done lies, under a run's checkpoints."""
    return folder / "partial" / f"{task['kind']}-{int(task['id']):06d}.npz"


def checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=CHECKSUM_BYTES).digest()


def key_of(evaluator: str, options: dict, task: dict) -> str:
    """What a training depends on: its evaluator and its task, but not where its weights go."""
    asked = {name: value for name, value in task.items() if name != "weights"}
    return json.dumps([evaluator, options, asked], sort_keys=True)


def joined(states: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Several states as one, `parts` of which they are."""
    return {f"{i}.{name}": array for i, one in enumerate(states) for name, array in one.items()}


def parts(arrays: Mapping[str, np.ndarray], n: int) -> list[dict[str, np.ndarray]]:
    """The `n` states that `joined` made one."""
    split: list[dict[str, np.ndarray]] = [{} for _ in range(n)]
    for name, array in arrays.items():
        number, _, own = name.partition(".")
        split[int(number)][own] = array
    return split


class Checkpoint:
    """The state of one training, in a file: arrays by name, and notes of JSON values.

    key: what the training depends on; a file with another is passed over. park: set where the
    training is to be kept and to end at once.
    """

    def __init__(
        self,
        path: Path,
        key: str,
        park: threading.Event | None = None,
        interval_s: float | None = None,
    ):
        self.path, self.key = path, key
        self.interval_s = INTERVAL_S if interval_s is None else interval_s
        self.park = park or threading.Event()
        self.notes: dict[str, Any] = {}
        self.kept_at = time.monotonic()

    def load(self) -> dict[str, np.ndarray] | None:
        """What `keep` wrote, `notes` too; None where there is nothing to go on from."""
        try:
            content = self.path.read_bytes()
            content, own = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
            if own != checksum(content):
                raise ValueError("its bytes are not those that were written")
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            about = json.loads(str(arrays.pop("about")))
            key, notes = about["key"], dict(about["notes"])
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever a stranger's archive makes its readers raise
            log.warning("%s is damaged (%s): the training begins anew", self.path, error)
            return None
        if key != self.key:
            return None
        self.notes.update(notes)
        return arrays

    def offer(self, state: Callable[[], dict[str, np.ndarray]]) -> None:
        """Keep `state()` if that is due. Raises Parked where the training is to end here."""
        parked = self.park.is_set()
        if parked or time.monotonic() - self.kept_at >= self.interval_s:
            self.keep(state())
        if parked:
            raise Parked

    def keep(self, arrays: dict[str, np.ndarray]) -> None:
        """Write the state, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        about = np.array(json.dumps({"key": self.key, "notes": self.notes}))
        archive = io.BytesIO()
        np.savez(archive, about=about, **arrays)
        content = archive.getvalue()
        write_whole(self.path, content + checksum(content))
        self.kept_at = time.monotonic()
