"""Many machines: tasks run on the workers of a Dask cluster, LocalCluster to Kubernetes."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import queue
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, NamedTuple

from nas.cluster import TLS, check_here
from nas.cluster_worker import TOKEN, code_digest
from nas.dask_cluster import PATHS, Cluster, line
from nas.executor import PARK_PATIENCE_S, ExecutorError, Limits
from nas.process import ENVIRONMENT
from nas.run_dir import write_whole

LOOK_S = 5.0  # between looks at whether the scheduler is still the same


def make(
    table: Mapping[str, Any], n_workers: int, evaluator: str, options: dict, folder: Path, **named
) -> DaskExecutor:
    """The executor that a `[cluster]` table says; the rest as of `DaskExecutor`."""
    check_here(table)
    return DaskExecutor(
        table["dask"],
        evaluator,
        options,
        folder,
        n_workers=n_workers,
        resources=table["resources"],
        tls={name: table[name] for name in TLS if table[name]},
        patience_s=table["patience_s"],
        **named,
    )


class Sent(NamedTuple):
    """A task that is out, Dask's future of its result, and when it was sent (monotonic)."""

    task: dict
    future: Any
    since: float


class DaskExecutor:
    """Runs tasks on the workers of a Dask cluster. Used as a `LocalExecutor`.

    address: tcp://HOST:PORT, tls://HOST:PORT, file:///PATH of a scheduler file, or local: n_workers
    in this process, reached over loopback. evaluator, options: as of `LocalExecutor`; files that
    options name are found at their paths on the workers, or sent there once. folder: of the run;
    evaluators keep what they need in it where workers see it, else on the workers. limits: of their
    worker processes. on_change: told of the workers, as `status` gives them, at heartbeats.
    resources: what a trial takes of what workers offer, such as {"GPU": 1}. tls:
    files of `ca`, `cert` and `key`, by default those of Dask's own configuration. patience_s: for a
    first worker, and for a scheduler that was lost.

    A task whose Dask worker is lost goes to another, as often as the scheduler's
    `allowed-failures`; after that it has failed. Where the scheduler is lost, its successor gets
    what is open. Raises ExecutorError where the cluster cannot be reached or cannot work.
    """

    def __init__(
        self,
        address: str,
        evaluator: str,
        options: dict,
        folder: Path | None = None,
        *,
        n_workers: int = 2,
        limits: Limits | None = None,
        on_change: Callable[[list[dict]], None] = lambda workers: None,
        resources: Mapping[str, float] | None = None,
        tls: Mapping[str, str] | None = None,
        patience_s: float = 600.0,
    ):
        options = {
            name: str(Path(value).resolve()) if name in PATHS and value else value
            for name, value in options.items()
        }
        self.limits, self.on_change = limits or Limits(), on_change
        self.reported = time.monotonic()
        environment, resources = dict(ENVIRONMENT), dict(resources or {})
        if "GPU" in resources:  # which one is for the worker to say
            del environment["CUDA_VISIBLE_DEVICES"]
        setup = {
            "evaluator": evaluator,
            "options": options,
            "environment": environment,
            "limits": dataclasses.asdict(self.limits),
            "folder": str(folder.resolve()) if folder else None,
        }
        # the same when the run is resumed: then worker processes that are still there serve it
        run = hashlib.sha256(json.dumps(setup).encode()).hexdigest()[:12]
        self.setup = {**setup, "run": run, "code": code_digest(), "token": uuid.uuid4().hex}
        self.open: dict[str, Sent] = {}  # by Dask's key
        self.landed: queue.SimpleQueue = queue.SimpleQueue()  # futures, as they are done
        self.attempts: Counter[tuple] = Counter()  # (kind, id) -> times that it was given up
        self.failed: deque[dict] = deque()  # results of those given up too often
        self.token = folder / TOKEN if folder else None
        if self.token:
            self.token.write_text(self.setup["token"], "utf-8")
        try:
            self.cluster = Cluster(
                address,
                self.setup,
                n_workers=n_workers,
                limits=self.limits,
                resources=resources,
                tls=dict(tls or {}),
                patience_s=patience_s,
            )
        except BaseException:
            self._remove_token()
            raise

    def _again(self) -> None:
        """Send again what was lost, once the scheduler, or its successor, is there.

        A task that the scheduler itself gave up, as it does where all that held its files are lost,
        has failed at the last of its attempts.
        """
        lost = self.cluster.recover()
        for key, sent in list(self.open.items()):
            if not lost and not sent.future.cancelled():
                continue
            del self.open[key]
            whose = sent.task["kind"], sent.task["id"]
            self.attempts[whose] += not lost and not _is_ours(sent.future)
            if self.attempts[whose] < self.limits.max_attempts:
                self.submit(sent.task)
            else:
                text = f"the Dask cluster gave it up at each of {self.attempts[whose]} attempts"
                self.failed.append({"id": whose[1], "kind": whose[0], "error": text})

    # -- tasks -------------------------------------------------------------------------------------

    @property
    def n_open(self) -> int:
        """Tasks submitted and not yet returned."""
        return len(self.open) + len(self.failed)

    @property
    def status(self) -> list[dict]:
        """As of `LocalExecutor`, of the tasks that Dask workers have; `pid` is the worker's
        address, `seconds` are since the task was sent, and `memory_mib`, not known here, is 0."""
        now, found = time.monotonic(), []
        for address, keys in self.cluster.client.processing().items():
            ours = [self.open[key] for key in keys if key in self.open]
            for task, _, since in ours or [Sent({"id": None, "kind": "idle"}, None, now)]:
                about = {"task": task["id"], "kind": task["kind"], "seconds": now - since}
                found.append({"pid": address, **about, "memory_mib": 0})
        return found

    def submit(self, task: dict) -> None:
        key = f"nas-{task['kind']}-{task['id']}-{uuid.uuid4().hex}"
        resources = self.cluster.resources or None
        future = self.cluster.submit("perform", task, key=key, resources=resources)
        self.open[key] = Sent(task, future, time.monotonic())
        future.add_done_callback(self.landed.put)

    def wait(self) -> dict:
        """The next result to land: `id`, `kind`, and `metrics` or `error`."""
        while True:
            if self.failed:
                return self.failed.popleft()
            if not self.open:
                raise ExecutorError("nothing was submitted that could still land")
            if time.monotonic() - self.reported > self.limits.heartbeat:
                self.reported = time.monotonic()
                with contextlib.suppress(OSError):  # of a lost scheduler, seen below
                    self.on_change(self.status)
            try:
                future = self.landed.get(timeout=min(LOOK_S, self.limits.heartbeat))
            except queue.Empty:
                if self.cluster.is_lost():
                    self._again()
                continue
            if future.key not in self.open:  # sent again since
                continue
            task = self.open[future.key].task
            result = self._result(task, future)
            if result is not None:
                del self.open[future.key]
                return result
            self._again()

    def _result(self, task: dict, future) -> dict | None:
        """The result of a future that is done; None where it was lost."""
        from distributed import KilledWorker

        try:
            if future.status != "error":
                result = future.result()
            else:
                error = future.exception()
                if not isinstance(error, KilledWorker):  # a candidate's own would be in its result
                    raise ExecutorError(f"a Dask worker cannot work: {line(error)}") from error
                text = (
                    f"its Dask worker was lost {error.allowed_failures + 1} times, the last one "
                    f"{error.last_worker.address}"
                )
                result = {"id": task["id"], "kind": task["kind"], "error": text}
        except (CancelledError, OSError):
            return None
        weights = result.pop("weights", None)
        if weights is not None:
            write_whole(Path(task["weights"]), weights)
        return result

    def park(self, patience_s: float = PARK_PATIENCE_S) -> list[dict]:
        """Have what runs keep its state and end, and forget what waits; returns what landed."""
        landed, deadline = [], time.monotonic() + patience_s
        with contextlib.suppress(queue.Empty, OSError):
            self.cluster.everywhere("park", self.setup["token"], patience_s)
            while self.open:
                future = self.landed.get(timeout=max(deadline - time.monotonic(), 0))
                sent = self.open.pop(future.key, None)
                result = sent and self._result(sent.task, future)
                if result and "parked" not in result:
                    landed.append(result)
        return landed

    def wait_until_ready(self) -> None:
        """Return when every thread of every Dask worker has a worker process that is ready."""
        client = self.cluster.client
        futures = [
            self.cluster.submit("prepare", n, workers=[address], pure=False)
            for address, n in client.nthreads().items()
        ]
        client.gather(futures)

    def close(self) -> None:
        """Cancel what is open, end this run's worker processes, leave the cluster."""
        self.cluster.close([sent.future for sent in self.open.values()])
        self._remove_token()

    def _remove_token(self) -> None:
        if self.token:
            self.token.unlink(missing_ok=True)

    def __enter__(self) -> DaskExecutor:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def _is_ours(future) -> bool:
    """Whether it was our own connection that a cancelled future was lost by."""
    try:
        future.result()
    except CancelledError as error:
        return getattr(error, "reason", None) == "scheduler-connection-lost"
    return False
