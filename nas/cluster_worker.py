"""What a Dask worker does for a search: it hands tasks to a worker process of `nas/executor.py`.

TensorFlow never enters Dask's own process: so that process answers its scheduler during every
training, a training can be ended, and a candidate that crashes ends its worker process only. Worker
processes stay for the next task of their run, with data loaded and programs compiled.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import threading
import time
import uuid
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import nas
from nas.executor import ExecutorError, Limits, LocalExecutor

TOKEN = "cluster.token"  # a file in a run's folder, whose text says whether it is the same folder
PACKAGES = ("hwmodel", "nas", "search_spaces")
CHECK_S = 0.5  # between looks at whether a running task is still wanted
IDLE_S = 600.0  # a worker process that had no task for so long ends
UNWANTED = ("cancelled", "released", "forgotten")  # states of a task that nobody waits for
CLOSING = ("closing", "closed", "failed")  # states of a Dask worker that ends

Files = dict[str, dict[str, bytes]]  # option -> path below its parent folder -> content

_lock = threading.Lock()
_parked: dict[str, float] = {}  # token of a search that wants no more -> seconds to park in
_idle: dict[tuple[str, str], list[tuple[float, LocalExecutor]]] = {}  # (run, folder) -> since when


def package_files() -> Iterator[tuple[str, Traversable]]:
    """(path, file) of everything in the project's packages, by path."""

    def below(name: str, folder: Traversable) -> Iterator[tuple[str, Traversable]]:
        for item in sorted(folder.iterdir(), key=lambda item: item.name):
            if item.is_file():
                yield f"{name}/{item.name}", item
            elif item.name != "__pycache__":
                yield from below(f"{name}/{item.name}", item)

    for package in PACKAGES:
        yield from below(package, resources.files(package))


@functools.cache
def code_digest() -> str:
    """What tells this source code from any other: 12 hexadecimal digits of its SHA-256."""
    found = hashlib.sha256()
    for name, file in package_files():
        if name.endswith(".py"):
            found.update(f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()[:12]


def perform(setup: dict, task: dict, files: Files | None = None) -> dict:
    """The result of one task; of a final training also `weights`, the bytes of its file.

    setup: code: digest of the searching machine's source code. run: the run's name. evaluator,
    options, limits, environment: as `LocalExecutor` takes them. folder, token: the run's folder,
    which is this machine's too where its file TOKEN holds that text. files: of options whose paths
    this machine may lack. Raises ExecutorError where this worker cannot work at all.
    """
    from distributed import get_worker

    worker = get_worker()
    if setup["code"] != code_digest():
        raise ExecutorError(
            f"the code on {worker.address} differs from the search's (digest {code_digest()}, "
            f"expected {setup['code']}); install the same version there"
        )
    if setup["token"] in _parked:
        return {"parked": True}
    own = Path(worker.local_directory) / f"nas-{setup['run']}"
    own.mkdir(parents=True, exist_ok=True)
    state = worker.state.tasks[worker.get_current_task()]
    weights = None
    if task["kind"] == "final":  # there may be no folder that both machines see
        weights = own / f"{uuid.uuid4().hex}.weights.h5"
        task = {**task, "weights": str(weights)}
    with _lent(setup, files or {}, own) as executor:
        executor.submit(task)
        while (result := executor.wait(CHECK_S)) is None:
            if state.state in UNWANTED or worker.status.name in CLOSING:
                raise ExecutorError("nobody waits for this task any more")  # nor hears this
            if setup["token"] in _parked:
                landed = executor.park(_parked[setup["token"]])
                result = landed[0] if landed else {"parked": True}
                break
    if weights is not None and weights.exists():
        result["weights"] = weights.read_bytes()
        weights.unlink()
    return result


def prepare(setup: dict, n: int, files: Files | None = None) -> None:
    """Start n worker processes and return when they are ready for tasks."""
    from distributed import get_worker

    own = Path(get_worker().local_directory) / f"nas-{setup['run']}"
    own.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        executors = [stack.enter_context(_lent(setup, files or {}, own)) for _ in range(n)]
        for executor in executors:
            executor.wait_until_ready()


def park(token: str, patience_s: float) -> None:
    """Have the tasks of a search keep their state and end; those to come end at once."""
    _parked[token] = patience_s


def release(run: str) -> None:
    """End the idle worker processes of a run."""
    _close_idle(lambda key, since: key[0] == run)


@contextlib.contextmanager
def _lent(setup: dict, files: Files, own: Path) -> Iterator[LocalExecutor]:
    """An executor of one worker process, kept for the next task unless the block raises."""
    key = setup["run"], str(own)
    with _lock:
        waiting = _idle.get(key)
        executor = waiting.pop()[1] if waiting else None
    executor = executor or _start(setup, files, own)
    try:
        yield executor
    except BaseException:
        executor.close()
        raise
    with _lock:
        _idle.setdefault(key, []).append((time.monotonic(), executor))
    _watch_idle()


def _start(setup: dict, files: Files, own: Path) -> LocalExecutor:
    with _lock:
        options = {**setup["options"], **_placed(setup["options"], files, own)}
    folder, kept = own, setup["folder"] and Path(setup["folder"])
    if kept and _text(kept / TOKEN) == setup["token"]:
        folder = kept
    # the package as it was found here: installed, in a folder, or in the archive that was shipped
    root = str(Path(nas.__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return LocalExecutor(
        1,
        setup["evaluator"],
        options,
        own / "worker.log",
        folder,
        limits=Limits(**setup["limits"]),
        environment={**setup["environment"], "PYTHONPATH": path},
        pinned=False,
    )


def _placed(options: dict, files: Files, own: Path) -> dict[str, str]:
    """option -> a copy of the files for it, written once, where its path does not exist here."""
    found = {}
    for option, contents in files.items():
        path = Path(options[option])
        if path.exists():
            continue
        copy = own / option
        if not copy.exists():
            partial = own / f"{option}.part"
            for name, content in contents.items():
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                (partial / name).write_bytes(content)
            partial.rename(copy)
        found[option] = str(copy / path.name)
    return found


def _text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except OSError:
        return None


def _close_idle(wanted) -> None:
    """Close the executors of which `wanted(key, since)`."""
    with _lock:
        ended = []
        for key, waiting in _idle.items():
            ended += [executor for since, executor in waiting if wanted(key, since)]
            waiting[:] = [each for each in waiting if not wanted(key, each[0])]
    for executor in ended:
        executor.close()


@functools.cache
def _watch_idle() -> None:
    """From now on end worker processes idle for long, as those of a search that was killed."""

    def watch() -> None:
        while True:
            time.sleep(IDLE_S / 10)
            _close_idle(lambda key, since: time.monotonic() - since > IDLE_S)

    threading.Thread(target=watch, daemon=True).start()
