"""Many machines: tasks run on the workers of a Dask cluster, LocalCluster to Kubernetes.

The only module that imports Dask, and only where a search names a cluster: its client takes a
second to import, and a search on one machine does not need the extra.

Dask is for trusted networks: whoever reaches a scheduler can run code on its workers and on the
machine that searches. Use `tls://` with certificates of your own where others can reach it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import ipaddress
import json
import logging
import math
import queue
import tempfile
import time
import uuid
import zipfile
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from nas.cluster_worker import TOKEN, code_digest, package_files
from nas.executor import PARK_PATIENCE_S, ExecutorError, Limits
from nas.process import ENVIRONMENT
from nas.run_dir import write_whole

SCHEMES = ("tcp", "tls", "ws", "wss", "ucx", "file")
TLS = {"ca": "tls_ca_file", "cert": "tls_client_cert", "key": "tls_client_key"}  # ours: Dask's
PATHS = ("path", "teacher")  # an evaluator's options that name files
MAX_SHIPPED_BYTES = 2 * 1024**3
CONNECT_S = 20.0
LOOK_S = 5.0  # between looks at whether the scheduler is still the same
EXTRA = "--dask needs the extra: pip install 'nas-codesign[cluster]'"
log = logging.getLogger("nas")


class ClusterError(ValueError):
    """A `[cluster]` table that cannot be meant: what, the value received, what to try."""


def check(table: Mapping[str, Any]) -> None:
    """Raise ClusterError for a `[cluster]` table that could work nowhere; needs no Dask."""
    address = table["dask"]
    scheme = urlsplit(address).scheme
    if address not in ("", "local") and (scheme not in SCHEMES or "://" not in address):
        raise ClusterError(
            f"cluster.dask is '{address}'; it must be tcp://HOST:PORT, tls://HOST:PORT, "
            "file:///PATH of a scheduler file, or local"
        )
    given = [name for name in TLS if table[name]]
    if given and len(given) < len(TLS):
        missing = ", ".join(f"cluster.{name}" for name in TLS if name not in given)
        raise ClusterError(f"TLS needs a ca, a cert and a key: {missing} is missing")
    if given and address == "local":
        raise ClusterError("cluster.dask is 'local', which never leaves this machine: no TLS there")
    for name, amount in table["resources"].items():
        number = isinstance(amount, (int, float)) and not isinstance(amount, bool)
        if not number or not 0 < amount < math.inf:
            raise ClusterError(
                f"cluster.resources.{name} is {amount!r}; it must be what one trial takes, such as "
                "cluster.resources = {GPU = 1}"
            )


def check_here(table: Mapping[str, Any]) -> None:
    """Raise ClusterError where this machine lacks Dask, a scheduler file or a certificate."""
    if not table["dask"]:
        return
    if importlib.util.find_spec("distributed") is None:
        raise ClusterError(EXTRA)
    for name in TLS:
        if table[name] and not Path(table[name]).is_file():
            raise ClusterError(f"cluster.{name}: no file {table[name]}")
    file = scheduler_file(table["dask"])
    if file and not file.is_file():
        raise ClusterError(
            f"no scheduler file {file}; 'dask scheduler --scheduler-file {file}' writes it"
        )


def resolved(table: Mapping[str, Any]) -> dict[str, Any]:
    """A `[cluster]` table with whole paths: a resumed run may begin in another folder."""
    whole = {name: str(Path(table[name]).resolve()) for name in TLS if table[name]}
    file = scheduler_file(table["dask"])
    return {**table, **whole, **({"dask": file.resolve().as_uri()} if file else {})}


def scheduler_file(address: str) -> Path | None:
    """The path in `file:///path/scheduler.json`, or None for another address."""
    parts = urlsplit(address)
    return Path(unquote(parts.netloc + parts.path)) if parts.scheme == "file" else None


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
        self.address, self.tls, self.patience_s = address, dict(tls or {}), patience_s
        self.resources = dict(resources or {})
        options = {
            name: str(Path(value).resolve()) if name in PATHS and value else value
            for name, value in options.items()
        }
        self.limits, self.on_change = limits or Limits(), on_change
        self.reported = time.monotonic()
        environment = dict(ENVIRONMENT)
        if "GPU" in self.resources:  # which one is for the worker to say
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
        self.files: Any = None  # of options, where workers lack them: a future of their contents
        self.cluster = self.client = self.scheduler_id = None
        self.token = folder / TOKEN if folder else None
        if self.token:
            self.token.write_text(self.setup["token"], "utf-8")
        try:
            if address == "local":
                self.cluster = _local_cluster(n_workers, self.limits)
            self.client = self._connect()
            there = self.client.scheduler.address
            if not there.startswith(("tls", "wss")) and not _is_loopback(there):
                log.warning(
                    "%s is not encrypted: whoever reaches it can run code there and here; use "
                    "tls:// outside of trusted networks",
                    there,
                )
            self._prepare()
        except BaseException:
            self.close()
            raise

    # -- the cluster -------------------------------------------------------------------------------

    def _connect(self):
        from distributed import Client
        from distributed.security import Security

        file = scheduler_file(self.address)
        where = {"scheduler_file": str(file)} if file else {"address": self.address}
        if self.cluster:
            where = {"address": self.cluster.scheduler_address}
        if self.tls or self.address.startswith(("tls", "wss")):
            files = {TLS[name]: value for name, value in self.tls.items()}
            where["security"] = Security(require_encryption=True, **files)
        try:
            return Client(**where, timeout=CONNECT_S, set_as_default=False, name="nas")
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise ExecutorError(
                f"no Dask scheduler at {self.address} ({_line(error)}); start one with "
                "'dask scheduler', or leave out --dask"
            ) from error

    def _prepare(self) -> None:
        """Wait for a first worker, see that workers can work, send what they lack."""
        scheduler_id = self.client.scheduler_info()["id"]
        self._await_worker()
        self._compare_versions()
        paths = {name: self.setup["options"].get(name) for name in PATHS}
        found = self.client.run(_probe(), {name: path for name, path in paths.items() if path})
        others = {a: each["code"] for a, each in found.items() if each["code"]}
        for address, code in others.items():
            if code != self.setup["code"]:
                raise ExecutorError(
                    f"the code on {address} differs from the code here (digest {code}, here "
                    f"{self.setup['code']}); install the same version there, or start workers "
                    "without it: they are sent this one"
                )
        if len(others) < len(found):
            log.info("sending the package to workers that lack it")
            self._send_package()
        lacking = sorted({name for each in found.values() for name in each["lacks"]})
        self.files = None
        if lacking:
            log.info("sending the files of %s to workers that lack them", ", ".join(lacking))
            self.contents = {name: _contents(Path(paths[name])) for name in lacking}
            self._scatter()
        self.scheduler_id = scheduler_id  # from here on it has all that tasks need
        log.info("%d Dask workers at %s", len(found), self.address)

    def _await_worker(self) -> None:
        """Run nothing on a worker: so that one comes where the cluster adapts to its tasks, and so
        that it is known that some worker offers what trials take."""
        nothing = self.client.submit(
            len, (), key=f"nas-first-{uuid.uuid4().hex}", resources=self.resources or None
        )
        try:
            nothing.result(timeout=self.patience_s)
        except CancelledError as error:
            raise ExecutorError(f"lost the Dask scheduler at {self.address}") from error
        except TimeoutError as error:
            offer = ",".join(f"{name}={amount:g}" for name, amount in self.resources.items())
            wanted = f" that offers {offer}" if offer else ""
            options = f" --resources {offer}" if offer else ""
            raise ExecutorError(
                f"no worker{wanted} came to {self.address} within {self.patience_s:g} s; start one "
                f"with 'dask worker {self.client.scheduler.address} --nthreads 1{options}'"
            ) from error

    def _compare_versions(self) -> None:
        """Raise ExecutorError where workers run another Python: code cannot be exchanged."""
        found = self.client.get_versions()
        here = found["client"]
        for address, there in found["workers"].items():
            ours, theirs = (".".join(v["host"]["python"].split(".")[:2]) for v in (here, there))
            if ours != theirs:
                raise ExecutorError(
                    f"{address} runs Python {theirs}, this is {ours}; they must be the same"
                )
            ours, theirs = (v["packages"]["distributed"] for v in (here, there))
            if ours != theirs:
                log.warning("%s has distributed %s, this is %s", address, theirs, ours)

    def _send_package(self) -> None:
        """Send the project's packages to all workers, those to come included."""
        from distributed.diagnostics.plugin import UploadFile

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"nas-{self.setup['code']}.zip"
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, file in package_files():
                    archive.writestr(name, file.read_bytes())
            self.client.register_plugin(UploadFile(str(path), load=False), name=path.stem)

    def _scatter(self) -> None:
        """Place the files of options on all workers; later ones have them from these."""
        self.files = self.client.scatter([self.contents], broadcast=True, hash=False)[0]

    def _is_lost(self) -> bool:
        try:
            running = self.client.status == "running"
            return not running or self.client.scheduler_info()["id"] != self.scheduler_id
        except OSError:
            return True

    def _again(self) -> None:
        """Send again what was lost, once the scheduler, or its successor, is there.

        A task that the scheduler itself gave up, as it does where all that held its files are lost,
        has failed at the last of its attempts.
        """
        begun, lost = time.monotonic(), False
        while True:
            try:
                if self._is_lost():
                    if not lost:
                        log.warning("lost the Dask scheduler at %s; waiting for it", self.address)
                    lost = True
                    if self.client.status != "running":
                        self.client.close(timeout=1)
                        self.client = self._connect()
                    self._prepare()
                elif self.files is not None and self.files.status != "finished":
                    self._await_worker()
                    self._scatter()
                break
            except (ExecutorError, CancelledError, OSError) as error:
                if time.monotonic() - begun > self.patience_s:
                    raise ExecutorError(
                        f"the Dask cluster at {self.address} was lost for {self.patience_s:g} s: "
                        f"{_line(error)}"
                    ) from error
                time.sleep(1)
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
        for address, keys in self.client.processing().items():
            ours = [self.open[key] for key in keys if key in self.open]
            for task, _, since in ours or [Sent({"id": None, "kind": "idle"}, None, now)]:
                about = {"task": task["id"], "kind": task["kind"], "seconds": now - since}
                found.append({"pid": address, **about, "memory_mib": 0})
        return found

    def submit(self, task: dict) -> None:
        files = () if self.files is None else (self.files,)
        key = f"nas-{task['kind']}-{task['id']}-{uuid.uuid4().hex}"
        future = self.client.submit(
            _on_worker("perform"),
            self.setup,
            task,
            *files,
            key=key,
            resources=self.resources or None,
        )
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
                if self._is_lost():
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
                    raise ExecutorError(f"a Dask worker cannot work: {_line(error)}") from error
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
            self.client.run(_call("park"), self.setup["token"], patience_s, on_error="ignore")
            while self.open:
                future = self.landed.get(timeout=max(deadline - time.monotonic(), 0))
                sent = self.open.pop(future.key, None)
                result = sent and self._result(sent.task, future)
                if result and "parked" not in result:
                    landed.append(result)
        return landed

    def wait_until_ready(self) -> None:
        """Return when every thread of every Dask worker has a worker process that is ready."""
        files = () if self.files is None else (self.files,)
        futures = [
            self.client.submit(
                _on_worker("prepare"), self.setup, n, *files, workers=[address], pure=False
            )
            for address, n in self.client.nthreads().items()
        ]
        self.client.gather(futures)

    def close(self) -> None:
        """Cancel what is open, end this run's worker processes, leave the cluster."""
        with contextlib.suppress(OSError):  # of a cluster that has gone
            if self.client and self.client.status == "running":
                self.client.cancel([sent.future for sent in self.open.values()])
                self.client.run(_call("release"), self.setup["run"], on_error="ignore")
        if self.client:
            self.client.close()
        if self.cluster:
            self.cluster.close()
        if self.token:
            self.token.unlink(missing_ok=True)

    def __enter__(self) -> DaskExecutor:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def _local_cluster(n_workers: int, limits: Limits):
    """Workers in this process, over loopback: trainings are in processes of their own anyway."""
    import dask
    from distributed import LocalCluster

    settings = {
        "distributed.scheduler.allowed-failures": limits.max_attempts - 1,
        "distributed.worker.profile.enabled": False,
    }
    with dask.config.set(settings):
        return LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            processes=False,
            protocol="tcp://",
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
        )


# Dask sends a function of an installed module by its name, which then must be installed on the
# scheduler too; one inside another function is sent whole. So these are all that Dask ever loads.


def _on_worker(name: str):
    def on_worker(setup: dict, *arguments):
        import os
        import sys

        from distributed import get_worker

        try:
            from nas import cluster_worker
        except ModuleNotFoundError as error:
            if error.name != "nas":
                raise
            archive = os.path.join(get_worker().local_directory, f"nas-{setup['code']}.zip")
            sys.path.insert(0, archive)
            from nas import cluster_worker
        return getattr(cluster_worker, name)(setup, *arguments)

    return on_worker


def _probe():
    def probe(paths: dict) -> dict:
        import os

        try:
            from nas.cluster_worker import code_digest

            code = code_digest()
        except ModuleNotFoundError as error:
            code = None if error.name == "nas" else f"unknown, {error}"
        return {"code": code, "lacks": [n for n, path in paths.items() if not os.path.exists(path)]}

    return probe


def _call(name: str):
    def call(*arguments) -> None:
        import sys

        if "nas.cluster_worker" in sys.modules:  # else it has done nothing for us
            getattr(sys.modules["nas.cluster_worker"], name)(*arguments)

    return call


def _contents(path: Path) -> dict[str, bytes]:
    """Path below its parent -> content, of a file or of all files in a folder."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    n_bytes = sum(file.stat().st_size for file in files)
    if n_bytes > MAX_SHIPPED_BYTES:
        raise ExecutorError(
            f"{path} is not on the workers and too large to send ({n_bytes / 1e9:.1f} GB, at most "
            f"{MAX_SHIPPED_BYTES / 1e9:.1f}); put it there at the same path"
        )
    return {str(file.relative_to(path.parent)): file.read_bytes() for file in files}


def _is_ours(future) -> bool:
    """Whether it was our own connection that a cancelled future was lost by."""
    try:
        future.result()
    except CancelledError as error:
        return getattr(error, "reason", None) == "scheduler-connection-lost"
    return False


def _is_loopback(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _line(error: BaseException) -> str:
    name = "" if isinstance(error, ExecutorError) else f"{type(error).__name__}: "
    return " ".join(f"{name}{error}".split())
