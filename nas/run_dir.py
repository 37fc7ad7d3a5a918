"""The paths of a run, its lock, and files that are whole or not there."""

from __future__ import annotations

import errno
import fcntl
import glob
import io
import os
import re
import socket
import tomllib
import zlib
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np


class RunError(ValueError):
    """A run directory that cannot be used as asked: what is wrong and what to do."""


def is_full(error: BaseException) -> bool:
    """Whether writing failed for want of room: on the disk, in a quota, in a file."""
    return isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
    )


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name and rename it: readers see the old or the new."""
    if not path.parent.is_dir():
        raise RunError(f"no directory {path.parent} to write {path.name} into")
    partial = path.with_name(path.name + ".part")
    partial.unlink(missing_ok=True)
    with open(partial, "xb") as file:  # a new one: never through a link that another put here
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write named arrays as HDF5, whole or not at all."""
    import h5py

    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for name, array in tensors.items():
            file[name] = array
        file.attrs["crc32"] = checksum(tensors)
    write_whole(path, content.getvalue())


def checksum(tensors: dict[str, np.ndarray]) -> int:
    """Of names, shapes and bytes, in whatever order."""
    found = 0
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        found = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), found)
        found = zlib.crc32(array.tobytes(), found)
    return found


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays that `write_tensors` wrote, by name."""
    import h5py

    tensors: dict[str, np.ndarray] = {}

    def take(name: str, item) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        if item.external or item.is_virtual:  # would read other files; visititems follows no links
            raise RunError(f"{path} is not weights of ours: '{name}' lies in another file")
        tensors[name] = item[()]

    try:
        with h5py.File(path, "r") as file:
            file.visititems(take)
            if file.attrs.get("crc32", checksum(tensors)) != checksum(tensors):
                raise RunError(f"{path} is damaged: its tensors are not those that were written")
    except FileNotFoundError:
        raise RunError(f"{path} is missing") from None
    except RunError:
        raise
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, MemoryError) as error:
        raise RunError(f"{path} is damaged: {error}") from error
    return tensors


def next_run(parent: Path, name: str) -> Path:
    """The first unused `parent/name-NNN`."""
    pattern = re.compile(re.escape(name) + r"-(\d+)$")
    found = [pattern.match(p.name) for p in parent.glob(f"{glob.escape(name)}-*")]
    last = max((int(m.group(1)) for m in found if m), default=0)
    return parent / f"{name}-{last + 1:03d}"


@contextmanager
def waiting_lock(path: Path | None):
    """Hold a file's lock, waiting for it, or nothing without a path; the operating system frees it
    with its process."""
    if path is None:
        yield
        return
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class RunDir:
    """The files of one run directory; nothing is written outside it."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.toml"
        self.store = self.path / "trials.sqlite"
        self.checkpoints = self.path / "checkpoints"
        self.leaderboard = self.path / "leaderboard.csv"
        self.report = self.path / "report.html"
        self.log = self.path / "run.log"
        self.lock_file = self.path / "lock"

    def check_new(self) -> None:
        """Raise RunError unless a run can begin here; writes nothing."""
        if self.config.exists():
            raise RunError(
                f"{self.path} already holds a run; go on with it by 'nas resume {self.path}', or "
                "name another directory with --run"
            )
        if self.path.exists() and (not self.path.is_dir() or self._others()):
            raise RunError(
                f"{self.path} exists and is not a run; name a new or empty directory with --run"
            )
        there = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not os.access(there, os.W_OK | os.X_OK) or not there.is_dir():
            raise RunError(f"{self.path} cannot be made: {there} is not a writable directory")

    def _others(self) -> list[Path]:
        """What lies here that is not of a beginning of ours that was cut short."""
        own = (self.lock_file.name, self.store.name, self.config.name + ".part")
        return [p for p in self.path.iterdir() if not p.name.startswith(own)]

    def check_run(self) -> None:
        """Raise RunError unless this is a run, all of whose files are its own."""
        self.check_files()
        if not self.config.exists():
            raise RunError(f"{self.path} is not a run: it has no config.toml")

    def check_files(self) -> None:
        """Raise RunError unless this is a directory of plain files, in folders of its own."""
        if not self.path.is_dir():
            raise RunError(f"{self.path} is no directory; 'ls runs' shows what there is")
        for folder in (self.path, self.checkpoints, self.checkpoints / "partial"):
            for entry in folder.iterdir() if folder.is_dir() else ():
                if entry.is_symlink():  # what is written here would be written there
                    raise RunError(f"{entry} leads elsewhere; put the file itself in its place")
                if not (entry.is_file() or entry.is_dir()) and entry.exists():
                    raise RunError(f"{entry} is neither a file nor a folder; remove it")

    def create(self, text: str) -> None:
        """Make the directory and write the configuration's text, which makes it a run."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        write_whole(self.config, text)

    def read_config(self, written: Sequence[str | None] = ()) -> dict:
        """The table of config.toml. RunError where it is damaged, or is none of the texts that
        were `written`, as far as one is known."""
        self.check_run()
        try:
            text = self.config.read_bytes().decode()
            table = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RunError(
                f"{self.config} is damaged: {error}; 'nas repair {self.path}' restores it"
            ) from error
        if any(written) and text not in written:
            raise RunError(
                f"{self.config} is not what the run was begun with: 'nas repair {self.path}' "
                "restores it; for a search with other settings begin a new run"
            )
        return table

    def holder(self) -> str | None:
        """The live process that holds the run, in words, or None."""
        if not self.lock_file.exists():
            return None
        with open(self.lock_file) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "another process"
        return None

    def weights(self, name: str) -> Path:
        """The file of weights called `name`; RunError where it would lie outside the run."""
        if Path(name).name != name or name in ("", ".", ".."):
            raise RunError(f"{self.path} names weights '{name}', which lie outside of it")
        return self.checkpoints / name

    @contextmanager
    def locked(self):
        """Hold the run for this process; RunError names the live process that holds it already.

        The lock is the operating system's: it goes with its process, however that ends.
        """
        with open(self.lock_file, "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"{self.path} is in use by {self.holder()}; wait for it, or stop it first"
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            yield
