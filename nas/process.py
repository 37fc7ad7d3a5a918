"""A worker process, as its parent has it: started, spoken with by lines, ended."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import IO

ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
THREADS = "OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"
N_LAST_LINES = 8  # of its log, in the error of a trial whose worker ended
MIB = 2**20


def memory_of(pid: int) -> int:
    """Bytes that a process holds in memory; 0 where the system does not say (no /proc)."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


class Lines:
    """The whole lines that have come through a pipe; never waits."""

    def __init__(self, pipe: IO[bytes]):
        self.pipe, self.rest, self.ended = pipe, b"", False
        os.set_blocking(pipe.fileno(), False)

    def read(self) -> list[str]:
        while not self.ended:
            try:
                data = os.read(self.pipe.fileno(), 65536)
            except BlockingIOError:
                break
            self.rest += data
            self.ended = not data
        *lines, self.rest = self.rest.split(b"\n")
        return [line.decode("utf-8", "replace") for line in lines]


class Worker:
    """One process, the task it works on, and the last lines that it wrote to its log."""

    def __init__(self, setup: dict, threads: int, environment: Mapping[str, str]):
        self.task: dict | None = None
        self.ready = False
        self.grown_from = 0  # bytes held when it was ready
        self.seen = self.since = time.monotonic()  # of its last sign of life; of its task
        self.last_lines: deque[str] = deque(maxlen=N_LAST_LINES)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nas.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, **environment, **dict.fromkeys(THREADS, str(threads))},
        )
        self.answers, self.log = Lines(self.process.stdout), Lines(self.process.stderr)
        self.send(setup)

    def send(self, message: dict) -> None:
        # where it has died its output ends too, and there that is seen and counted
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.stderr.close()
