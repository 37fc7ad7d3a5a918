"""What goes wrong while a run is left alone: damaged files, full disks, workers that hang."""

import contextlib
import errno
import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from test_end_to_end import small_choices
from test_table import OPTIONS as TABLE
from test_table import command, settings, toml, write
from test_table import rows as table_rows

import nas
from nas import checkpoint, config, evaluators, executor, process, run_dir
from nas.controllers import shared
from nas.executor import ExecutorError, Limits, LocalExecutor
from nas.repair import repair
from nas.run import Run
from nas.run_dir import RunDir, RunError, read_tensors
from nas.schema import MIGRATIONS
from nas.store import DiskFull, Store, StoreError
from nas.trial import Growing, Grown, Proposal, Status, Trial

SEED = 4


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A finished run over a table, in this process: half a second."""
    folder = tmp_path_factory.mktemp("whole")
    own = toml(folder, settings(write(folder / "table.csv", table_rows()), in_flight=3, trials=15))
    nas.search(own, run_dir=folder / "r", seed=SEED, progress=False)
    return folder / "r"


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "r"))


def leaderboard(path: Path) -> bytes:
    return (path / "leaderboard.csv").read_bytes()


def recognized(path: Path) -> str | None:
    """What is said of a run's damage, by all that reads it; None where it reads as ever."""
    try:
        run = Run(path)
        with run.store() as store:
            store.check(thorough=True)
            store.controller_state()
        run.leaderboard()
        run.trials()
    except ValueError as error:
        return str(error)
    return None


# -- the store -------------------------------------------------------------------------------------


def test_every_changed_byte_is_recognized_or_changes_nothing(whole, copy):
    rng = np.random.default_rng(0)
    data = (copy / "trials.sqlite").read_bytes()
    before, n_recognized = [t.metrics for t in Run(whole).trials()], 0
    used = np.flatnonzero(np.frombuffer(data, np.uint8))
    for at in rng.choice(used, 120):
        flipped = bytearray(data)
        flipped[at] ^= 1 << int(rng.integers(8))
        (copy / "trials.sqlite").write_bytes(flipped)
        said = recognized(copy)
        if said is None:
            assert [t.metrics for t in Run(copy).trials()] == before
        else:
            n_recognized += 1
            assert "trials.sqlite" in said and ("nas repair" in said or "newer version" in said)
    assert n_recognized > 40, "the file is full of what matters"


def test_a_file_cut_short_is_recognized(copy):
    rng = np.random.default_rng(1)
    data = (copy / "trials.sqlite").read_bytes()
    for at in rng.integers(0, len(data), 25):
        (copy / "trials.sqlite").write_bytes(data[:at])
        said = recognized(copy)
        if said is None:  # what was cut off was empty
            assert not data[at:].strip(b"\0")
        else:
            assert "trials.sqlite" in said


def test_every_byte_of_the_configuration_counts(copy, capsys):
    rng = np.random.default_rng(2)
    text = (copy / "config.toml").read_bytes()
    for at in rng.integers(0, len(text), 60):
        flipped = bytearray(text)
        flipped[at] ^= 1 << int(rng.integers(8))
        (copy / "config.toml").write_bytes(flipped)
        with pytest.raises(RunError, match=r"config\.toml .*'nas repair"):
            Run(copy)
    assert command(capsys, "repair", copy)[0] == 0
    assert (copy / "config.toml").read_bytes() == text and Run(copy).leaderboard() is not None


@pytest.mark.parametrize("fault", ["flip", "cut", "first page", "missing"])
def test_a_repaired_run_ends_as_the_undisturbed_one(whole, copy, fault, capsys):
    path = copy / "trials.sqlite"
    data = bytearray(path.read_bytes())
    if fault == "flip":
        at = data.index(b'"accuracy":')
        data[at + 13] ^= 1
    elif fault == "cut":
        del data[len(data) // 2 :]
    elif fault == "first page":
        data[:4096] = bytes(4096)
    path.write_bytes(data)
    if fault == "missing":
        path.rename(copy / "trials.damaged-001.sqlite")
    (copy / "leaderboard.csv").unlink()
    status, _, err = command(capsys, "resume", copy)
    assert status == 2 and "Traceback" not in err and "trials.sqlite" in err.splitlines()[-1]
    status, out, err = command(capsys, "repair", copy)
    assert status == 0, err
    assert "saved: " in out and (copy / "trials.damaged-001.sqlite").exists()
    nas.resume(copy, progress=False)
    assert leaderboard(copy) == leaderboard(whole)
    assert command(capsys, "repair", copy)[1] == f"the store of {copy} is whole\n"


def test_what_was_saved_is_not_trained_again(whole, copy, monkeypatch):
    data = bytearray((copy / "trials.sqlite").read_bytes())
    at = data.index(b'"accuracy":')
    data[at + 13] ^= 1
    (copy / "trials.sqlite").write_bytes(data)
    done = repair(copy)
    trained = []
    evaluate = evaluators.Table.evaluate

    def counted(self, choices, **named):
        trained.append(choices)
        return evaluate(self, choices, **named)

    monkeypatch.setattr(evaluators.Table, "evaluate", counted)
    with Run(copy).store() as store:
        assert store.get("space") == Run(whole).space.text()
    nas.resume(copy, progress=False)
    assert len(trained) == len(done.lost) == 1


def test_a_broken_log_of_commits_costs_commits_at_most(tmp_path):
    """Bytes of the write-ahead log are flipped and cut off, as after a power cut."""
    path, other = tmp_path / "trials.sqlite", tmp_path / "copy.sqlite"
    store = Store(path, create=True)
    for i in range(30):
        with store.transaction():
            store.insert(trial(i))
            store.save_controller({"seen": numbers(i)})
    log = Path(f"{path}-wal").read_bytes()
    rng = np.random.default_rng(3)
    for at in rng.integers(0, len(log), 40):
        flipped = bytearray(log)
        flipped[at] ^= 1 << int(rng.integers(8))
        for changed in (flipped, log[:at]):
            shutil.copy(path, other)
            Path(f"{other}-wal").write_bytes(changed)
            try:
                with contextlib.closing(Store(other)) as reader:
                    reader.check(thorough=True)
                    n = reader.count()
                    state = reader.controller_state()
            except StoreError as error:
                assert "is damaged" in str(error) or "newer version" in str(error)
                continue
            assert n <= 30 and (len(state["seen"]) if state else 0) == n
    store.close()


def trial(id: int, **fields) -> Trial:
    return Trial(id, Proposal(np.array([id, 2, 3])), seed=7, **fields)


def numbers(n: int) -> Grown:
    growing = Growing(np.zeros(0, np.uint64))
    for i in range(n + 1):
        growing.add(i)
    return growing.rows


def test_of_what_grows_only_the_new_rows_are_written(tmp_path):
    store = Store(tmp_path / "trials.sqlite", create=True)
    seen = Growing(np.zeros((0, 2)))
    for i in range(5):
        seen.add([i, i])
        state = {"seen": seen.rows, "n": i}
        store.save_controller(state)
    assert [len(data) for (data,) in store.rows("SELECT data FROM grown")] == [16] * 5
    np.testing.assert_array_equal(
        store.controller_state()["seen"], np.arange(5).repeat(2).reshape(5, 2)
    )
    again = Store(tmp_path / "trials.sqlite")
    seen.add([9, 9])
    with pytest.raises(RuntimeError), again.transaction():
        again.save_controller({"seen": seen.rows})
        raise RuntimeError("the process dies here")
    again.save_controller({"seen": seen.rows})
    assert again.controller_state()["seen"][-1].tolist() == [9, 9]
    again.save_controller({"seen": seen.rows[:2]})  # begun anew
    assert len(again.controller_state()["seen"]) == 2
    assert len(state["seen"]) == 5, "a state does not change when the controller goes on"


def test_the_cost_of_a_step_does_not_grow(tmp_path):
    """By the pages that a commit writes, which no other process disturbs."""
    store, seen = Store(tmp_path / "trials.sqlite", create=True), shared.Seen()
    store.rows("PRAGMA wal_autocheckpoint = 0")
    log, sizes = Path(f"{tmp_path / 'trials.sqlite'}-wal"), []
    for i in range(3000):
        seen.add(np.array([i]))
        with store.transaction():
            store.insert(trial(i), told=i)
            if i % 500 > 490:
                store.save_controller({"seen": seen.keys()})
        sizes.append(log.stat().st_size)
    pages = np.diff(sizes)
    assert pages[-400:].mean() < 1.3 * pages[400:800].mean()


def test_a_run_of_an_older_format_is_taken_over(tmp_path):
    path = tmp_path / "trials.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as old:
        old.executescript(MIGRATIONS[0] + "PRAGMA user_version = 1;")
        old.execute("INSERT INTO trials VALUES (0, '[1,2]', 'null', 7, 'complete', "
                    "'{\"accuracy\":0.5}', NULL, NULL, 0, 1.0, 2.0)")  # fmt: skip
        old.execute("INSERT INTO controller VALUES (0, '{\"n\":1}')")
        old.commit()
    with contextlib.closing(Store(path, read_only=True)) as store:
        store.check(thorough=True)
        assert store.trials()[0].metrics == {"accuracy": 0.5}
        assert store.controller_state() == {"n": 1}


# -- a full disk -----------------------------------------------------------------------------------

FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
size = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
from nas.cli import main
main(sys.argv[2:])
"""


def test_a_full_disk_stops_a_run_which_goes_on_when_there_is_room(whole, tmp_path):
    """No file may grow past a size: writing fails as it does where the disk is full."""
    path, own = tmp_path / "r", whole.parent / "own.toml"
    for n, size in enumerate((50_000, 90_000, 130_000)):
        begin = ["resume", path] if n and (path / "config.toml").exists() else [
            "search", own, "--run", path, "--seed", SEED]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", FULL, str(size), *map(str, begin)],
            capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr and "nas resume" in done.stderr
        assert "cannot be written" in done.stderr or "File too large" in done.stderr
    nas.resume(path, progress=False)
    assert leaderboard(path) == leaderboard(whole)


def test_a_worker_that_cannot_write_stops_the_run_and_not_the_trial():
    class Evaluator:
        def evaluate(self, choices, *, seed):
            raise OSError(errno.ENOSPC, "No space left on device")

    done = evaluators.perform(Evaluator(), {"kind": "trial", "choices": {}, "seed": 0})
    assert "No space left" in done["stop"]


def test_sqlite_says_when_a_disk_is_full(tmp_path):
    store = Store(tmp_path / "trials.sqlite", create=True)
    store.rows("PRAGMA max_page_count = 30")
    with pytest.raises(DiskFull, match="is the disk full"):
        for i in range(10_000):
            with store.transaction():
                store.insert(trial(i))
    n = store.count()
    assert 0 < n < 10_000
    store.check(thorough=True)
    store.rows("PRAGMA max_page_count = 100000")
    store.insert(trial(n))


# -- workers ---------------------------------------------------------------------------------------

OPTIONS = {"dataset": "cifar10-sample", "epochs": 1, "images": 300}


def task(id=0, kind="trial") -> dict:
    small = {"cell.width": 4, "cell.depth": 1, "cell.resolution": 16, "train.batch": 64}
    return {"id": id, "kind": kind, "seed": 1, "choices": {**small_choices(), **small}}


def until(condition, workers: LocalExecutor, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come to that"
        workers._next(until=time.monotonic() + 0.1)


def looking_up(folder: Path, limits: Limits) -> LocalExecutor:
    """A worker that looks results up: it starts without TensorFlow."""
    options = {"path": str(write(folder / "table.csv", table_rows())), **TABLE}
    return LocalExecutor(1, "table", options, folder / "log", limits=limits)


LOOKED_UP = {"id": 3, "kind": "trial", "seed": 1,
             "choices": {"arch.edge0": "conv", "arch.edge1": "conv", "width": 8}}  # fmt: skip


def stopped_at_work(workers: LocalExecutor):
    """A worker that was given the task and has stopped."""
    workers.wait_until_ready()
    hung = workers.workers[0]
    hung.process.send_signal(signal.SIGSTOP)
    workers.submit(LOOKED_UP)
    return hung


def test_a_worker_that_hangs_loses_its_trial_within_two_heartbeats(tmp_path):
    limits = Limits(heartbeat=1.0)
    with looking_up(tmp_path, limits) as workers:
        hung, begun = stopped_at_work(workers), time.monotonic()
        until(lambda: workers.workers[0] is not hung, workers)
        assert time.monotonic() - begun < 2 * limits.heartbeat + 5  # of a busy machine
        assert workers.wait()["metrics"]["accuracy"] == pytest.approx(0.33)
        [status] = workers.status
        assert status["kind"] == "idle" and status["memory_mib"] > 20


@pytest.mark.parametrize(
    "limit, said",
    [
        ({"trial_timeout": 0.5}, "it ran past limits.trial_timeout = 0.5 s, at attempt 2 of 2"),
        ({"trial_memory": 20}, "MiB, past limits.trial_memory = 20 MiB, at attempt 2 of 2"),
        ({"heartbeat": 0.5}, "its worker was silent for"),
    ],
)
def test_limits_end_attempts_and_the_trial_says_which(tmp_path, limit, said):
    with looking_up(tmp_path, Limits(**limit, max_attempts=2)) as workers:
        for _ in range(2):
            hung = stopped_at_work(workers)
            until(lambda hung=hung: workers.workers[0] is not hung, workers)
            workers.queue.clear()  # the second attempt is ours: no worker runs it before it stops
        result = workers.wait()
    assert result["id"] == 3 and said in result["error"]


def test_a_training_that_hangs_while_its_process_lives_is_ended(tmp_path, monkeypatch):
    """By how long the trials before it took, of the same fidelity."""
    monkeypatch.setattr(executor, "HUNG_S", 0.5)
    limits = Limits(max_attempts=1, heartbeat=0.2)
    short, long = {"seconds": 0.01}, {"seconds": 60}
    with LocalExecutor(
        1, "tests.sleeping:Sleeping", {}, tmp_path / "log", limits=limits
    ) as workers:
        for id, fidelity in enumerate((0, 1)):
            workers.submit({"id": id, "kind": "trial", "seed": 0, "choices": short,
                            "fidelity": fidelity})  # fmt: skip
            assert "metrics" in workers.wait()
        monkeypatch.setitem(workers.longest, 0, math.inf)
        workers.submit({"id": 2, "kind": "trial", "seed": 0, "choices": long, "fidelity": 0})
        assert workers.wait(1.0) is None, "as long as all of its fidelity have taken"
        workers.longest[0] = workers.longest[1]
        assert "it ran for " in workers.wait()["error"]


def test_a_worker_that_has_grown_is_replaced_between_trials(tmp_path):
    with looking_up(tmp_path, Limits(recycle_memory=0)) as workers:
        workers.wait_until_ready()
        first = workers.workers[0]
        first.grown_from -= 2**20
        workers.submit(LOOKED_UP)
        whole = workers.wait()
        assert workers.workers[0] is not first
        workers.submit(LOOKED_UP)
        assert workers.wait() == whole


def test_what_runs_is_parked_and_goes_on_in_another_process(tmp_path):
    options = {**OPTIONS, "epochs": 4}
    with LocalExecutor(1, "proxy", options, tmp_path / "log", tmp_path) as workers:
        workers.submit(task())
        workers.submit(task(1))
        until(lambda: workers.workers[0].task, workers)
        landed = workers.park()  # once it has an epoch to keep
        partial = checkpoint.partial_path(tmp_path, task())
        assert landed == [] and partial.exists() and workers.n_open == 0
        workers.submit({**task(9), "choices": task()["choices"]})  # another id: from its beginning
        whole = workers.wait()
    with LocalExecutor(1, "proxy", options, tmp_path / "log", tmp_path) as workers:
        workers.submit(task())
        result = workers.wait()
        assert partial.exists(), "the caller has not kept the result yet"
    assert not partial.exists()
    for name in ("accuracy", "loss", "train_loss"):
        assert result["metrics"][name] == whole["metrics"][name]


@pytest.mark.parametrize(
    "given, said",
    [
        ({"max_attempts": 0}, r"max_attempts must be at least 1; got 0"),
        ({"heartbeat": 0}, r"heartbeat must be at least 0\.1; got 0"),
        ({"trial_time": 3}, r"unknown key 'limits\.trial_time'; did you mean 'trial_timeout'"),
        ({"trial_memory": 1.5}, r"trial_memory must be a whole number; got 1\.5"),
    ],
)
def test_limits_are_checked(given, said):
    with pytest.raises(config.ConfigError, match=said):
        config.complete({"limits": given})


def test_workers_that_do_not_start_end_the_run_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(process.sys, "executable", "/bin/false")
    with (
        LocalExecutor(1, "proxy", {}, tmp_path / "log") as workers,
        pytest.raises(ExecutorError, match=r"workers do not start: .*exit status 1; see .*log"),
    ):
        workers.submit(task())
        workers.wait()


# -- a run directory of another's ------------------------------------------------------------------


def test_names_from_a_store_stay_in_the_folder(tmp_path):
    run = RunDir(tmp_path)
    assert run.weights("trial-000001.weights.h5").parent == tmp_path / "checkpoints"
    for name in ("../x.h5", "/etc/passwd", "..", "a/b", ""):
        with pytest.raises(RunError, match="outside"):
            run.weights(name)


def test_weights_that_lie_elsewhere_are_refused(tmp_path):
    import h5py

    secret = tmp_path / "secret"
    secret.write_bytes(bytes(40))
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_dataset("a", (10,), "f4", external=[(str(secret), 0, 40)])
    with pytest.raises(RunError, match="lies in another file"):
        read_tensors(tmp_path / "w.h5")
    with h5py.File(tmp_path / "l.h5", "w") as file:
        file["a"] = h5py.ExternalLink(str(tmp_path / "w.h5"), "a")
        file["b"] = np.ones(2)
    assert set(read_tensors(tmp_path / "l.h5")) == {"b"}
    (tmp_path / "w.h5").write_bytes(b"no HDF5")
    with pytest.raises(RunError, match="is damaged"):
        read_tensors(tmp_path / "w.h5")


@pytest.mark.parametrize("name", ["run.log", "lock", "checkpoints/partial/trial-000001.npz.part"])
@pytest.mark.parametrize("asked", ["resume", "repair"])
def test_links_out_of_a_run_are_refused(copy, tmp_path, capsys, name, asked):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).unlink(missing_ok=True)
    (copy / name).symlink_to(victim)
    status, _, err = command(capsys, asked, copy)
    assert status == 2 and err.count("\n") == 1 and f"{name} leads elsewhere" in err
    assert victim.read_text() == "precious"


def test_a_pipe_in_a_run_is_not_waited_at(copy, capsys):
    (copy / "lock").unlink(missing_ok=True)
    os.mkfifo(copy / "lock")
    for asked in ("status", "resume", "repair"):
        status, _, err = command(capsys, asked, copy)
        assert status == 2 and "lock is neither a file nor a folder" in err


def test_a_stranger_commands_no_terminal(copy, capsys):
    rewritten(copy, lambda table: table["space"].update({"wid\x1b[2Jth": [8]}))
    status, out, err = command(capsys, "report", copy)
    assert status == 2 and "wid?[2Jth" in err and "\x1b" not in out + err


def rewritten(path: Path, change) -> None:
    """Have a run say that it was begun with another configuration."""
    run = RunDir(path)
    table = run.read_config()
    change(table)
    text = tomli_w.dumps(table)
    run.config.write_text(text)
    with contextlib.closing(Store(run.store)) as store:
        store.set("config", text)


@pytest.mark.parametrize("evaluator", ["os.system", "__import__", "../proxy"])
def test_a_configuration_can_name_what_the_tables_hold_and_no_more(copy, evaluator, capsys):
    rewritten(copy, lambda table: table["evaluator"].update(name=evaluator))
    status, _, err = command(capsys, "resume", copy)
    assert status == 2 and err.count("\n") == 1 and "unknown evaluator" in err


def test_a_teacher_is_a_keras_file(tmp_path):
    from nas.distill import KerasTeacher

    (tmp_path / "t.h5").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a file that ends in \.keras"):
        KerasTeacher(str(tmp_path / "t.h5"))


# -- the lock, versions, a beginning cut short -----------------------------------------------------


def test_a_dead_process_holds_nothing(copy):
    script = (
        "import os, sys\nfrom nas.run_dir import RunDir\n"
        "with RunDir(sys.argv[1]).locked():\n"
        "    print(os.getpid(), flush=True)\n    sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(copy)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    pid = int(holder.stdout.readline())
    with pytest.raises(RunError, match=f"in use by process {pid} on {os.uname().nodename}"):
        nas.resume(copy, progress=False)
    with pytest.raises(RunError, match="in use by process"):
        repair(copy)
    holder.kill()
    holder.wait()
    nas.resume(copy, progress=False)


def test_what_differs_from_where_it_began_is_said(copy, caplog, monkeypatch):
    monkeypatch.setattr("nas.run.processor", lambda: "another processor")
    nas.resume(copy, progress=False)
    assert "began with processor" in caplog.text and "another processor" in caplog.text
    kept = Run(copy).table["versions"]
    assert {"nas-codesign", "numpy", "python", "processor", "cores", "system"} <= set(kept)
    assert kept["processor"] != "another processor"


def test_status_says_who_works_at_what(copy, capsys):
    worker = {"pid": 7, "task": 3, "kind": "trial", "seconds": 1.5, "memory_mib": 640}
    with RunDir(copy).locked(), contextlib.closing(Store(copy / "trials.sqlite")) as store:
        store.save_workers([worker])
        status, out, _ = command(capsys, "status", copy)
    assert status == 0 and f"in use by process {os.getpid()} on" in out
    assert "worker 0 (process 7): trial 3 for " in out and "640 MiB" in out
    assert "15 of 15 trials" in out and "best accuracy so far" in out
    assert command(capsys, "status", copy)[1].splitlines()[-1] == "done"


def test_missing_data_are_named(whole, copy, capsys):
    table, away = whole.parent / "table.csv", whole.parent / "away.csv"
    table.rename(away)
    try:
        status, _, err = command(capsys, "resume", copy)
    finally:
        away.rename(table)
    assert status == 2 and err.count("\n") == 1 and "table.csv" in err


def test_data_may_have_moved(whole, copy, tmp_path, capsys):
    moved = tmp_path / "moved.csv"
    shutil.copy(whole.parent / "table.csv", moved)
    rewritten(copy, lambda table: table["evaluator"].update(path="/no/such.csv"))
    status, out, err = command(capsys, "rerun", copy, "--trial", 0, "--data", moved)
    assert status == 0 and "the same to the bit" in out, err
    for asked in (["resume", copy], ["rerun", copy, "--trial", 0]):
        status, _, err = command(capsys, *asked)
        assert status == 2 and err.count("\n") == 1 and "/no/such.csv" in err
    assert command(capsys, "resume", copy, "--data", moved)[0] == 0
    assert Run(copy).config["evaluator"]["path"] == str(moved)
    assert leaderboard(copy) == leaderboard(whole)


def contents(path: Path) -> dict[str, bytes]:
    """Of the files of a run, but for those that say who reads it."""
    transient = ("lock", "trials.sqlite-shm", "trials.sqlite-wal")
    files = (p for p in path.rglob("*") if p.is_file() and p.name not in transient)
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


def test_a_run_of_a_newer_version_is_left_alone(copy, capsys):
    with contextlib.closing(sqlite3.connect(copy / "trials.sqlite")) as newer:
        newer.execute("CREATE TABLE devices (name TEXT)")
        newer.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    before = contents(copy)
    for asked in ("status", "report", "resume", "repair"):
        status, _, err = command(capsys, asked, copy)
        assert status == 2 and err.count("\n") == 1 and "written by a newer version" in err
    assert contents(copy) == before


def test_a_run_over_another_space_says_in_what_it_differs(copy, capsys):
    with contextlib.closing(Store(copy / "trials.sqlite")) as store:
        (name, values, when), *others = json.loads(store.get("space"))
        store.set("space", json.dumps([[name, [*values, "more"], when], *others]))
    before = contents(copy)
    for asked in ("status", "report", "resume"):
        status, _, err = command(capsys, asked, copy)
        assert status == 2 and err.count("\n") == 1 and f"it differs in {name};" in err
    assert contents(copy) == before


def test_settings_of_a_newer_version_are_named(copy, capsys):
    def change(table):
        table["patience"] = 3
        table["versions"]["nas-codesign"] = "9.1.0"

    rewritten(copy, change)
    status, _, err = command(capsys, "resume", copy)
    assert status == 2 and "begun with version 9.1.0" in err and "unknown key 'patience'" in err


def test_a_kill_between_the_two_files_of_a_new_setting(copy):
    """The store has the new configuration, config.toml still the old one."""
    old = (copy / "config.toml").read_bytes()
    nas.resume(copy, progress=False, workers=1)
    new = (copy / "config.toml").read_bytes()
    assert old != new
    (copy / "config.toml").write_bytes(old)
    assert Run(copy).config["workers"] == 2


def test_a_beginning_that_was_cut_short_can_be_begun_again(whole, tmp_path):
    path = tmp_path / "r"
    path.mkdir()
    (path / "lock").write_text("process 1 on nowhere\n")
    Store(path / "trials.sqlite", create=True).close()
    own = str(whole.parent / "own.toml")
    nas.search(own, run_dir=path, seed=SEED, progress=False)
    assert leaderboard(path) == leaderboard(whole)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="is not a run"):
        nas.search(own, run_dir=tmp_path / "other", progress=False)


def test_told_as_they_land_nothing_is_lost_and_nothing_doubled(tmp_path):
    from test_search import Answers, Stopped, history, search

    rng, path = np.random.default_rng(0), tmp_path / "s"
    for _ in range(100):
        with search(path, Answers(int(rng.integers(0, 6)))) as run:
            run.deterministic = False
            try:
                run.run()
                break
            except Stopped:
                continue
    found = history(path)
    trained = [row for row in found if row[4] is Status.COMPLETE and row[7] is None]
    assert len(trained) == 30 and [row[0] for row in found] == list(range(len(found)))
    order = [row[-1] for row in found]
    assert sorted(order) == list(range(len(found))) and order != sorted(order)


def test_room_is_missing_in_three_ways():
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        assert run_dir.is_full(OSError(number, ""))
    assert not run_dir.is_full(OSError(errno.ENOENT, "")) and not run_dir.is_full(ValueError())
