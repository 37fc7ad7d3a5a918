"""Where evaluation runs: worker processes of a few threads each, pinned to cores of their own.

Workers speak JSON lines over pipes (`nas/worker.py`): nothing is pickled, and the caller's own
script is never imported again. A task is a lease: a worker that dies, falls silent, or passes its
task's limits is killed, and its task given to another, up to `max_attempts` times.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas.checkpoint import partial_path
from nas.evaluators import perform
from nas.process import ENVIRONMENT, MIB, Worker, memory_of

START_PATIENCE_S = 300.0  # without a sign of life while libraries are loaded
HUNG, HUNG_S = 30.0, 600.0  # times the longest trial that ended, and at least so many seconds
MEMORY_TICK_S = 0.2  # how often memory is looked at where it is limited
PARK_PATIENCE_S = 20.0


class ExecutorError(RuntimeError):
    """Workers cannot work at all."""


@dataclass(frozen=True)
class Limits:
    """What a worker may take.

    trial_timeout: seconds of one attempt at a trial; 0: 30 times the longest that ended before, and
    at least 10 minutes, which ends what hangs while its process is alive. trial_memory: MiB of its
    worker, whatever the task; 0: no limit. recycle_memory: MiB by which a worker may have grown
    between tasks before another takes its place. heartbeat: seconds; a worker silent for two is
    dead. max_attempts: at a task whose worker ended, before the task has failed. threads: of each
    worker.
    """

    trial_timeout: float = 0.0
    trial_memory: int = 0
    recycle_memory: int = 2048
    heartbeat: float = 15.0
    max_attempts: int = 3
    threads: int = 1


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

    def park(self) -> list[dict]:
        """As `LocalExecutor.park`: what was submitted has landed."""
        landed, self.landed = list(self.landed), deque()
        return landed

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *exception) -> None:
        """Nothing runs on."""


class LocalExecutor:
    """Runs tasks on `n_workers` processes of this machine.

    evaluator, options: what each worker builds from the table of evaluators. log: where their
    standard error goes. folder: where an evaluator keeps what it will need again, and where partly
    done tasks are kept. A task is a dictionary with `id`, `kind`, `choices` and `seed`,
    `stop_below` where it may end early, and `fidelity` where there are several. on_change: told of
    the workers, as `status` gives them, whenever one begins or ends a task, and at heartbeats.
    environment: of the workers, over this process's. pinned: each worker to cores of its own.
    """

    def __init__(
        self,
        n_workers: int,
        evaluator: str,
        options: dict,
        log: Path,
        folder: Path | None = None,
        *,
        limits: Limits | None = None,
        on_change: Callable[[list[dict]], None] = lambda workers: None,
        environment: Mapping[str, str] = ENVIRONMENT,
        pinned: bool = True,
    ):
        self.limits, self.on_change = limits or Limits(), on_change
        self.environment, self.pinned = environment, pinned
        self.log = open(log, "ab")  # noqa: SIM115, closed in close()
        self.folder = folder
        self.setup = {
            "evaluator": evaluator,
            "options": options,
            "folder": str(folder.resolve()) if folder else None,
            "heartbeat": self.limits.heartbeat,
        }
        self.queue: deque[dict] = deque()
        self.attempts: dict[tuple, int] = {}
        self.landed: deque[dict] = deque()
        self.returned: list[dict] = []  # results whose partial work is not needed any more
        self.failed_starts = 0  # in a row
        self.longest: dict[Any, float] = {}  # fidelity -> seconds of the longest trial that ended
        self.looked = self.reported = time.monotonic()
        self.selector = selectors.DefaultSelector()
        self.workers = [self._start(i) for i in range(n_workers)]

    def _start(self, index: int) -> Worker:
        able = self.pinned and hasattr(os, "sched_getaffinity")
        cpus = sorted(os.sched_getaffinity(0)) if able else []
        n = self.limits.threads
        own = cpus[n * index : n * (index + 1)]
        worker = Worker({**self.setup, "cpus": own if len(own) == n else []}, n, self.environment)
        for lines in (worker.answers, worker.log):
            self.selector.register(lines.pipe, selectors.EVENT_READ, index)
        return worker

    def submit(self, task: dict) -> None:
        self.queue.append(task)
        self._hand_out()

    @property
    def n_open(self) -> int:
        """Tasks submitted and not yet returned."""
        busy = sum(worker.task is not None for worker in self.workers)
        return len(self.queue) + busy + len(self.landed)

    @property
    def status(self) -> list[dict]:
        """Of each worker: pid, id and kind of its task or None, seconds at it, MiB it holds."""
        now, found = time.monotonic(), []
        for worker in self.workers:
            task = worker.task or {}
            found.append(
                {
                    "pid": worker.process.pid,
                    "task": task.get("id"),
                    "kind": task.get("kind") or ("idle" if worker.ready else "starting"),
                    "seconds": now - worker.since,
                    "memory_mib": memory_of(worker.process.pid) // MIB,
                }
            )
        return found

    def _report(self) -> None:
        self.reported = time.monotonic()
        self.on_change(self.status)

    def _hand_out(self) -> None:
        changed = False
        for worker in self.workers:
            if self.queue and worker.ready and worker.task is None:
                worker.task, changed = self.queue.popleft(), True
                worker.since = worker.seen = time.monotonic()
                worker.last_lines.clear()
                worker.send(worker.task)
        if changed:
            self._report()

    def wait_until_ready(self) -> None:
        """Return when every worker has loaded what it needs."""
        while not all(worker.ready for worker in self.workers):
            self._next()

    def wait(self, timeout_s: float = float("inf")) -> dict | None:
        """The next result to land: `id`, `kind`, and `metrics` or `error`; None where none does in
        timeout_s.

        What is kept of partly done work goes one call later: by then the caller has the result
        where it lasts. Raises ExecutorError where nothing can be done any more: workers do not
        start, or the disk is full.
        """
        if not self.n_open:
            raise ExecutorError("nothing was submitted that could still land")
        self._forget()
        until = time.monotonic() + timeout_s
        while not self.landed:
            if time.monotonic() >= until:
                return None
            self._next(until)
        self.returned.append(self.landed.popleft())
        return self.returned[-1]

    def park(self, patience_s: float = PARK_PATIENCE_S) -> list[dict]:
        """Have what runs keep its state and end, and forget what waits; returns what landed.

        A task that neither lands nor parks in time is ended, and begins again from what it last
        kept.
        """
        self._forget()
        self.queue.clear()
        for worker in self.workers:
            if worker.task:
                worker.send({"park": True})
        deadline = time.monotonic() + patience_s
        while any(w.task for w in self.workers) and time.monotonic() < deadline:
            self._next(until=deadline)
        landed, self.landed = list(self.landed), deque()
        return landed

    def _forget(self) -> None:
        for result in self.returned:
            if self.folder:
                partial_path(self.folder, result).unlink(missing_ok=True)
        self.returned.clear()

    # -- what workers say, and do not say --------------------------------------------------------

    def _next(self, until: float = float("inf")) -> None:
        """Wait until workers say something, end or pass a limit, and see to it."""
        limits, now = self.limits, time.monotonic()
        tick = min(limits.heartbeat / 2, max(until - now, 0.0))
        if limits.trial_memory:
            tick = min(tick, MEMORY_TICK_S)
        if limits.trial_timeout:
            ends = [w.since + limits.trial_timeout for w in self.workers if w.task]
            tick = max(min([tick, *(end - now for end in ends)]), 0.01)
        ready = {key.data for key, _ in self.selector.select(tick)}
        now, asleep = time.monotonic(), time.monotonic() - self.looked
        for index, worker in enumerate(self.workers):
            if index in ready or asleep > limits.heartbeat:  # we were away ourselves
                worker.seen = now
            result = self._hear(index) if index in ready else None
            if result is None and self.workers[index] is worker:
                cause = self._excess(worker, now)
                result = self._end(index, cause) if cause else None
            if result is not None:
                self.landed.append(result)
        self.looked = time.monotonic()
        if self.looked - self.reported > limits.heartbeat:
            self._report()
        self._hand_out()

    def _hear(self, index: int) -> dict | None:
        """Take in what a worker has said; the result of its task where that landed."""
        worker, result = self.workers[index], None
        said = worker.log.read()
        if said:
            worker.last_lines.extend(said)
            with contextlib.suppress(OSError):  # a full disk is seen where results are written
                self.log.write("".join(f"{line}\n" for line in said).encode())
                self.log.flush()
        if worker.log.ended and worker.log.pipe in self._watched():
            self.selector.unregister(worker.log.pipe)
        for line in worker.answers.read():
            message = json.loads(line)
            if "beat" in message:
                continue
            if "stop" in message:
                raise ExecutorError(message["stop"])
            if "ready" in message:
                if not message["ready"]:
                    raise ExecutorError(f"a worker could not start: {message['error']}")
                worker.ready, self.failed_starts = True, 0
                worker.since = time.monotonic()
                worker.grown_from = memory_of(worker.process.pid)
                continue
            task, seconds = worker.task, time.monotonic() - worker.since
            worker.task, worker.since = None, time.monotonic()
            if "metrics" in message and task["kind"] == "trial":
                whose = task.get("fidelity")
                self.longest[whose] = max(self.longest.get(whose, 0.0), seconds)
            if not message.get("parked"):
                result = message
            grown = memory_of(worker.process.pid) - worker.grown_from
            if grown > self.limits.recycle_memory * MIB:
                self._replace(index)
                return result
        if worker.answers.ended:
            ended = self._end(index, None)
            return result or ended
        return result

    def _watched(self) -> set:
        return {key.fileobj for key in self.selector.get_map().values()}

    def _excess(self, worker: Worker, now: float) -> str | None:
        """Why a worker is to be ended, or None."""
        limits = self.limits
        silent = now - worker.seen
        if silent > (2 * limits.heartbeat if worker.ready else START_PATIENCE_S):
            return f"its worker was silent for {silent:.0f} s"
        if worker.task is None:
            return None
        seconds = now - worker.since
        if worker.task["kind"] == "trial":
            longest = self.longest.get(worker.task.get("fidelity"), math.inf)
            if limits.trial_timeout and seconds > limits.trial_timeout:
                return f"it ran past limits.trial_timeout = {limits.trial_timeout:g} s"
            if not limits.trial_timeout and seconds > max(HUNG * longest, HUNG_S):
                return (
                    f"it ran for {seconds:.0f} s, the longest that ended for {longest:.1f} s; "
                    "limits.trial_timeout sets another limit"
                )
        if limits.trial_memory:
            held = memory_of(worker.process.pid) // MIB
            if held > limits.trial_memory:
                return (
                    f"its worker held {held} MiB, past limits.trial_memory = "
                    f"{limits.trial_memory} MiB"
                )
        return None

    def _replace(self, index: int) -> None:
        worker = self.workers[index]
        for lines in (worker.answers, worker.log):
            if lines.pipe in self._watched():
                self.selector.unregister(lines.pipe)
        worker.stop()
        self.workers[index] = self._start(index)

    def _end(self, index: int, cause: str | None) -> dict | None:
        """Put another in a worker's place, and its task back, or the task's failure in return."""
        worker = self.workers[index]
        if cause is None:
            worker.last_lines.extend(worker.log.read())
            code = worker.process.wait()
            cause = (
                f"its worker ended by {f'signal {-code}' if code < 0 else f'exit status {code}'}"
            )
        if not worker.ready:
            self.failed_starts += 1
            if self.failed_starts >= self.limits.max_attempts:
                raise ExecutorError(f"workers do not start: {cause}; see {self.log.name}")
        task = worker.task
        self._replace(index)
        if task is None:
            return None
        key = task["kind"], task["id"]
        self.attempts[key] = self.attempts.get(key, 0) + 1
        if self.attempts[key] < self.limits.max_attempts:
            self.queue.appendleft(task)
            return None
        lines = "\n".join(worker.last_lines)
        return {
            "id": task["id"],
            "kind": task["kind"],
            "error": f"{cause}, at attempt {self.attempts[key]} of {self.limits.max_attempts}"
            + (f"; the last lines of its log:\n{lines}" if lines else ""),
        }

    def close(self) -> None:
        self._forget()
        for worker in self.workers:
            worker.stop()
        self.selector.close()
        self.log.close()

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *exception) -> None:
        self.close()
