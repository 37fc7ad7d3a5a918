"""Where evaluation runs: worker processes of one thread each, pinned to a core each.

Workers speak JSON lines over pipes (`nas/worker.py`): nothing is pickled, and the caller's own
script is never imported again.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from nas.evaluators import perform

MAX_ATTEMPTS = 2  # a task whose worker died is given once more to another
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "CUDA_VISIBLE_DEVICES": "-1",
}


class ExecutorError(RuntimeError):
    """Workers cannot work at all."""


class Worker:
    """One process and the task it works on."""

    def __init__(self, setup: dict, log: TextIO, environment: Mapping[str, str]):
        self.task: dict | None = None
        self.ready = False
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nas.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            bufsize=1,
            start_new_session=True,
            env={**os.environ, **environment},
        )
        self.send(setup)

    def send(self, message: dict) -> None:
        # where it has died its output ends too, and there that is seen and counted
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()


class InProcess:
    """Runs tasks at once, here: for evaluators that look up. Used as a `LocalExecutor`."""

    def __init__(self, evaluator):
        self.evaluator = evaluator
        self.landed: deque[dict] = deque()
        evaluator.start()

    def submit(self, task: dict) -> None:
        result = {"id": task["id"], "kind": task["kind"]}
        self.landed.append({**result, **perform(self.evaluator, task)})

    def wait(self) -> dict:
        if not self.landed:
            raise ExecutorError("nothing was submitted that could still land")
        return self.landed.popleft()

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *exception) -> None:
        """Nothing runs on."""


class LocalExecutor:
    """Runs tasks on `n_workers` processes of this machine.

    evaluator, options: what each worker builds from the table of evaluators. log: where their
    standard error goes. folder: where an evaluator keeps what it will need again. environment: of
    the workers, over this process's. pinned: each worker to a core of its own. A task is a
    dictionary with `id`, `kind`, `choices` and `seed`, and `stop_below` where it may end early.
    """

    def __init__(
        self,
        n_workers: int,
        evaluator: str,
        options: dict,
        log: Path,
        folder: Path | None = None,
        environment: Mapping[str, str] = ENVIRONMENT,
        pinned: bool = True,
    ):
        self.log = open(log, "a", encoding="utf-8")  # noqa: SIM115, closed in close()
        self.setup = {
            "evaluator": evaluator,
            "options": options,
            "folder": str(folder.resolve()) if folder else None,
        }
        self.environment, self.pinned = environment, pinned
        self.queue: deque[dict] = deque()
        self.attempts: dict[tuple, int] = {}
        self.landed: deque[dict] = deque()
        self.selector = selectors.DefaultSelector()
        self.workers = [self._start(i) for i in range(n_workers)]

    def _start(self, index: int) -> Worker:
        able = self.pinned and hasattr(os, "sched_getaffinity")
        cpus = sorted(os.sched_getaffinity(0)) if able else []
        cpu = cpus[index] if index < len(cpus) else None
        worker = Worker({**self.setup, "cpu": cpu}, self.log, self.environment)
        self.selector.register(worker.process.stdout, selectors.EVENT_READ, index)
        return worker

    def submit(self, task: dict) -> None:
        self.queue.append(task)
        self._hand_out()

    @property
    def n_open(self) -> int:
        """Tasks submitted and not yet returned."""
        busy = sum(worker.task is not None for worker in self.workers)
        return len(self.queue) + busy + len(self.landed)

    def _hand_out(self) -> None:
        for worker in self.workers:
            if self.queue and worker.ready and worker.task is None:
                worker.task = self.queue.popleft()
                worker.send(worker.task)

    def wait_until_ready(self) -> None:
        """Return when every worker has loaded what it needs."""
        while not all(worker.ready for worker in self.workers):
            self._next()

    def wait(self, timeout_s: float | None = None) -> dict | None:
        """The next result to land: `id`, `kind`, and `metrics` or `error`; None where workers
        said nothing for timeout_s."""
        if not self.n_open:
            raise ExecutorError("nothing was submitted that could still land")
        while not self.landed:
            if not self._next(timeout_s):
                return None
        return self.landed.popleft()

    def _next(self, timeout_s: float | None = None) -> bool:
        """Wait until workers say something or end, and see to it; whether any did."""
        events = self.selector.select(timeout_s)
        for key, _ in events:
            line = self.workers[key.data].process.stdout.readline()
            result = self._answered(key.data, line) if line else self._died(key.data)
            if result is not None:
                self.landed.append(result)
        self._hand_out()
        return bool(events)

    def _answered(self, index: int, line: str) -> dict | None:
        worker, message = self.workers[index], json.loads(line)
        if "ready" in message:
            if not message["ready"]:
                raise ExecutorError(f"a worker could not start: {message['error']}")
            worker.ready = True
            return None
        worker.task = None
        return message

    def _died(self, index: int) -> dict | None:
        worker = self.workers[index]
        self.selector.unregister(worker.process.stdout)
        worker.stop()
        code = worker.process.returncode
        cause = f"signal {-code}" if code < 0 else f"exit status {code}"
        if not worker.ready:
            raise ExecutorError(f"a worker ended while it started ({cause}); see {self.log.name}")
        self.workers[index] = self._start(index)
        if worker.task is None:
            return None
        key = worker.task["kind"], worker.task["id"]
        self.attempts[key] = self.attempts.get(key, 0) + 1
        if self.attempts[key] < MAX_ATTEMPTS:
            self.queue.appendleft(worker.task)
            return None
        return {
            "id": worker.task["id"],
            "kind": worker.task["kind"],
            "error": f"its worker ended {MAX_ATTEMPTS} times, last by {cause}",
        }

    def close(self) -> None:
        for worker in self.workers:
            worker.stop()
        self.selector.close()
        self.log.close()

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *exception) -> None:
        self.close()
