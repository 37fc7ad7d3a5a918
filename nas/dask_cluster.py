"""A Dask cluster as a search has it: reached, given what it lacks, looked after.

The only module that imports Dask beside what workers import, and only where a search names a
cluster: its client takes a second to import, and a search on one machine does not need the extra.

Dask is for trusted networks: whoever reaches a scheduler can run code on its workers and on the
machine that searches. Use `tls://` with certificates of your own where others can reach it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import tempfile
import time
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nas.cluster import TLS, scheduler_file
from nas.cluster_worker import package_files
from nas.executor import ExecutorError, Limits

PATHS = ("path", "teacher")  # an evaluator's options that name files
MAX_SHIPPED_BYTES = 2 * 1024**3
CONNECT_S = 20.0
log = logging.getLogger("nas")


class Cluster:
    """A connection to a scheduler whose workers can work: the same Python, the same code, the
    files of an evaluator's options.

    address, resources, tls, patience_s: as of `DaskExecutor`. setup: what workers are told of the
    run. n_workers, limits: of a `local` one. Raises ExecutorError where it cannot be reached or
    cannot work.
    """

    def __init__(
        self,
        address: str,
        setup: dict,
        *,
        n_workers: int,
        limits: Limits,
        resources: Mapping[str, float],
        tls: Mapping[str, str],
        patience_s: float,
    ):
        self.address, self.setup, self.tls = address, setup, tls
        self.resources, self.patience_s = resources, patience_s
        self.files: Any = None  # of options, where workers lack them: a future of their contents
        self.client = self.scheduler_id = None
        self.local = _local_cluster(n_workers, limits) if address == "local" else None
        try:
            self.client = self.connect()
            there = self.client.scheduler.address
            if not there.startswith(("tls", "wss")) and not _is_loopback(there):
                log.warning(
                    "%s is not encrypted: whoever reaches it can run code there and here; use "
                    "tls:// outside of trusted networks",
                    there,
                )
            self.prepare()
        except BaseException:
            self.close()
            raise

    def connect(self):
        from distributed import Client
        from distributed.security import Security

        file = scheduler_file(self.address)
        where = {"scheduler_file": str(file)} if file else {"address": self.address}
        if self.local:
            where = {"address": self.local.scheduler_address}
        if self.tls or self.address.startswith(("tls", "wss")):
            files = {TLS[name]: value for name, value in self.tls.items()}
            where["security"] = Security(require_encryption=True, **files)
        try:
            return Client(**where, timeout=CONNECT_S, set_as_default=False, name="nas")
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise ExecutorError(
                f"no Dask scheduler at {self.address} ({line(error)}); start one with "
                "'dask scheduler', or leave out --dask"
            ) from error

    def prepare(self) -> None:
        """Wait for a first worker, see that workers can work, send what they lack."""
        scheduler_id = self.client.scheduler_info()["id"]
        self.await_worker()
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
            self.scatter()
        self.scheduler_id = scheduler_id  # from here on it has all that tasks need
        log.info("%d Dask workers at %s", len(found), self.address)

    def await_worker(self) -> None:
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

    def scatter(self) -> None:
        """Place the files of options on all workers; later ones have them from these."""
        self.files = self.client.scatter([self.contents], broadcast=True, hash=False)[0]

    def is_lost(self) -> bool:
        try:
            running = self.client.status == "running"
            return not running or self.client.scheduler_info()["id"] != self.scheduler_id
        except OSError:
            return True

    def recover(self) -> bool:
        """Wait until the scheduler, or its successor, is there; whether it was lost."""
        begun, lost = time.monotonic(), False
        while True:
            try:
                if self.is_lost():
                    if not lost:
                        log.warning("lost the Dask scheduler at %s; waiting for it", self.address)
                    lost = True
                    if self.client.status != "running":
                        self.client.close(timeout=1)
                        self.client = self.connect()
                    self.prepare()
                elif self.files is not None and self.files.status != "finished":
                    self.await_worker()
                    self.scatter()
                return lost
            except (ExecutorError, CancelledError, OSError) as error:
                if time.monotonic() - begun > self.patience_s:
                    raise ExecutorError(
                        f"the Dask cluster at {self.address} was lost for {self.patience_s:g} s: "
                        f"{line(error)}"
                    ) from error
                time.sleep(1)

    def submit(self, name: str, *arguments: Any, **named: Any):
        """Dask's future of what the function of `nas/cluster_worker.py` gives on a worker."""
        files = () if self.files is None else (self.files,)
        return self.client.submit(_on_worker(name), self.setup, *arguments, *files, **named)

    def everywhere(self, name: str, *arguments: Any) -> None:
        """Call a function of `nas/cluster_worker.py` on all workers that have done anything."""
        self.client.run(_call(name), *arguments, on_error="ignore")

    def close(self, futures: Sequence = ()) -> None:
        """Cancel `futures`, end this run's worker processes, leave."""
        with contextlib.suppress(OSError):  # of a cluster that has gone
            if self.client and self.client.status == "running":
                self.client.cancel(list(futures))
                self.everywhere("release", self.setup["run"])
        if self.client:
            self.client.close()
        if self.local:
            self.local.close()


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


def _is_loopback(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def line(error: BaseException) -> str:
    name = "" if isinstance(error, ExecutorError) else f"{type(error).__name__}: "
    return " ".join(f"{name}{error}".split())
