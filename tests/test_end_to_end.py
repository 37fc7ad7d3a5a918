"""Real runs through the command: trained, killed, resumed, reported, exported."""

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import nas
from nas import config, data
from nas.executor import PARK_PATIENCE_S, Limits, LocalExecutor
from nas.export import export_keras
from nas.store import Store, StoreError
from search_spaces.quantizers import weight_levels

SMALL = [
    "quickstart", "--trials", "5", "--seed", "1", "--set", "evaluator.images=600",
    "--set", "evaluator.epochs=1", "--set", "evaluator.final_epochs=1", "--set", "final.top=1",
    "--set", "cell.width=8", "--set", "cell.depth=1", "--set", "cell.resolution=16",
    "--set", "train.batch=64",
]  # fmt: skip


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "nas.cli", *map(str, arguments)]


# the command, and whether its own process has imported TensorFlow
WATCHED = """
import atexit, sys
from nas.cli import main
atexit.register(lambda: print("imported:", "tensorflow" in sys.modules or "keras" in sys.modules))
main()
"""


def nas_command(*arguments, cwd) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments), cwd=cwd, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def finished(folder):
    """A small run, undisturbed, on two workers."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, "search", *SMALL, "--run", "a", "--workers", "2"],
        cwd=folder, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "a", done


def test_a_run_leaves_its_leaderboard_report_and_weights(finished):
    path, done = finished
    assert "untouched test images" in done.stdout and "leaderboard:" in done.stdout
    assert "5/5" in done.stderr and "best=" in done.stderr and "front=" in done.stderr
    names = {p.name for p in path.iterdir()}
    assert {"config.toml", "trials.sqlite", "checkpoints", "leaderboard.csv", "report.html",
            "run.log"} <= names  # fmt: skip
    run = nas.Run(path)
    table = run.leaderboard()
    trained = [t for t in run.trials() if t.status == "complete" and t.repeats is None]
    assert len(trained) == 5 and set(table["trial"]) <= {t.id for t in trained}
    for trial in trained:
        assert 0.05 < trial.metrics["accuracy"] < 1 and trial.metrics["seconds"] > 0
        assert [c["epoch"] for c in trial.metrics["curve"]] == [1]
    best, (metrics, weights) = next(iter(run.finals().items()))
    assert best == table["trial"][0] and metrics["n_test"] == 2000
    assert (path / "checkpoints" / weights).exists()
    assert not list(path.rglob("*.part")), "no half-written file is left"
    assert not (path / "checkpoints" / "partial").exists(), "every training is over"
    assert "imported: False" in done.stdout, "TensorFlow is of workers alone"


def wait_until_told(path: Path, n: int, process: subprocess.Popen) -> None:
    """Return when the run in `path` has told n trials; fail where its process ends before."""
    file = path / "trials.sqlite"
    while process.poll() is None:
        if file.exists():
            with contextlib.suppress(StoreError), closing(Store(file, read_only=True)) as store:
                if store.count("told IS NOT NULL") >= n:
                    return
        time.sleep(0.05)
    raise AssertionError(f"the run ended, exit status {process.returncode}, before {n} were told")


def test_a_killed_run_ends_as_the_undisturbed_one(folder, finished):
    """SIGKILL, Ctrl-C, SIGTERM and then Ctrl-C; one worker, where the first run had two."""
    path = folder / "b"
    begin = command("search", *SMALL, "--run", path, "--workers", 1)
    for n_told, how in ((1, signal.SIGKILL), (2, signal.SIGINT), (3, signal.SIGTERM)):
        process = subprocess.Popen(
            begin if n_told == 1 else command("resume", path), cwd=folder, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        wait_until_told(path, n_told, process)
        if how == signal.SIGTERM:  # parking will have to wait for a worker that says nothing
            with closing(Store(path / "trials.sqlite", read_only=True)) as store:
                os.kill(store.workers()[0][0]["pid"], signal.SIGSTOP)
        begun = time.monotonic()
        process.send_signal(how)
        if how == signal.SIGTERM:
            assert any("interrupt again to end at once" in line for line in process.stderr)
            process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == (-how if how == signal.SIGKILL else 130)
        assert how == signal.SIGKILL or f"go on with: nas resume {path}" in said
        assert how != signal.SIGTERM or time.monotonic() - begun < PARK_PATIENCE_S / 2
    last = nas_command("resume", path, cwd=folder)
    assert last.returncode == 0, last.stderr
    ours, theirs = (p / "leaderboard.csv" for p in (path, finished[0]))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_trial_trained_again_measures_the_same(finished, folder):
    path, _ = finished
    before = sorted((p.name, p.stat().st_size) for p in path.rglob("*") if p.name != "run.log")
    id = next(t.id for t in nas.Run(path).trials() if t.status == "complete")
    again = nas_command("rerun", path, "--trial", id, cwd=folder)
    assert again.returncode == 0, again.stderr
    assert "the same to the bit" in again.stdout and "epoch 1 accuracy" in again.stdout
    now = sorted((p.name, p.stat().st_size) for p in path.rglob("*") if p.name != "run.log")
    assert now == before, "the run is not changed"
    wrong = nas_command("rerun", path, "--trial", 999, cwd=folder)
    assert wrong.returncode == 2 and "has no trial 999" in wrong.stderr


def test_resuming_a_finished_run_changes_nothing(finished, folder):
    path, _ = finished
    before = (path / "leaderboard.csv").read_bytes()
    again = nas_command("resume", path, cwd=folder)
    assert again.returncode == 0, again.stderr
    assert (path / "leaderboard.csv").read_bytes() == before
    status = nas_command("status", path, cwd=folder).stdout
    assert "5 of 5 trials" in status and "1 of 1 final trainings" in status and "done" in status


def test_a_run_in_use_is_refused_and_named(finished, folder):
    path, _ = finished
    with nas.Run(path).dir.locked():
        refused = nas_command("resume", path, cwd=folder)
    assert refused.returncode == 2
    assert f"is in use by process {os.getpid()} on " in refused.stderr


def test_the_exported_model_scores_what_the_run_says(finished, folder):
    import keras

    path, _ = finished
    run = nas.Run(path)
    trial, (metrics, _) = next(iter(run.finals().items()))
    model = keras.models.load_model(export_keras(run, trial, folder / "best.keras"))
    test = data.load("cifar10-sample").test
    images = data.resize(test.x, model.input.shape[1])
    right = (model.predict(images, verbose=0).argmax(-1) == test.y).mean()
    assert right == pytest.approx(metrics["test_accuracy"], abs=3 / len(test))
    assert not [p for p in folder.iterdir() if ".part" in p.name]


def test_beside_the_exported_model_lies_what_it_is(finished, folder):
    import keras

    run = nas.Run(finished[0])
    trial, (metrics, _) = next(iter(run.finals().items()))
    model = keras.models.load_model(export_keras(run, trial, folder / "said.keras"))
    said = json.loads((folder / "said.json").read_text())
    row = run.leaderboard().query(f"trial == {trial}").iloc[0]
    assert said["model"] == "said.keras" and said["trial"] == trial
    assert said["test_accuracy"] == metrics["test_accuracy"]
    assert said["price"]["latency_s"] == row["latency_s"]
    own = run.space.decode(run.trial(trial).proposal.encoding)
    hardware = {name for name in said["choices"] if name.startswith(("hw.", "serve."))}
    assert {k: v for k, v in said["choices"].items() if k not in hardware} == {
        k: v for k, v in own.items() if not k.startswith(("hw.", "serve."))
    }
    assert all(said["choices"][name] == row[name] for name in hardware)
    quantized = {v.path: v.numpy() for v in model.trainable_variables if v.name == "kernel"}
    assert quantized.keys() == said["kernels"].keys()
    assert said["kernels"]["stem/kernel"]["bits"] == own["bits.ends"]
    for path, grid in said["kernels"].items():
        assert_on_grid(quantized[path], **grid)


def assert_on_grid(kernel, bits, step):
    low, top = weight_levels(bits)
    whole = kernel / np.float32(step)
    assert np.abs(whole - np.rint(whole)).max() < 1e-3
    assert -low - 0.1 < whole.min() and whole.max() < top + 0.1


# runs a script where TensorFlow cannot be found
WITHOUT_TENSORFLOW = """
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tensorflow":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
sys.meta_path.insert(0, Absent())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def retrain(*arguments, cwd) -> subprocess.CompletedProcess:
    script = Path(__file__).parents[1] / "benchmarks" / "retrain.py"
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, script, *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, timeout=240,
        env={**os.environ, "KERAS_BACKEND": "jax",  # and compiled quickly, to run slowly
             "XLA_FLAGS": "--xla_backend_optimization_level=0"},
    )  # fmt: skip


def test_an_exported_design_is_retrained_on_jax(finished, folder):
    """Without TensorFlow; what is written computes in the same bits, and scores what is said."""
    pytest.importorskip("jax", reason="retraining needs jax: pip install 'nas-codesign[retrain]'")
    import keras

    run = nas.Run(finished[0])
    trial, (metrics, _) = next(iter(run.finals().items()))
    export_keras(run, trial, folder / "found.keras")
    done = retrain("found.keras", "--images", 1024, "--batch", 64, "--epochs", 2, "--start",
                   "found", "--to", "again.keras", cwd=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    exported = float(re.search(r"as exported ([\d.]+)%", done.stdout)[1])
    assert exported / 100 == pytest.approx(metrics["test_accuracy"], abs=3 / 2000)
    before, after = (json.loads((folder / f"{n}.json").read_text()) for n in ("found", "again"))
    assert after["price"] == before["price"] and after["choices"] == before["choices"]
    assert f"mean        {after['test_accuracy']:.2%} of 1 seeds" in done.stdout
    assert after["test_accuracy"] > metrics["test_accuracy"] - 0.05
    old, new = (keras.models.load_model(folder / f"{n}.keras") for n in ("found", "again"))
    test = data.load("cifar10-sample").test
    images = data.resize(test.x, new.input.shape[1])
    right = (new.predict(images, verbose=0).argmax(-1) == test.y).mean()
    assert right == pytest.approx(after["test_accuracy"], abs=3 / len(test))
    for was, now in zip(old.trainable_variables, new.trainable_variables):
        assert was.path == now.path
        if now.name == "kernel":
            assert np.abs(now.numpy() - was.numpy()).max() > 0, "a gradient reaches every layer"
            assert after["kernels"][now.path]["bits"] == before["kernels"][now.path]["bits"]
            assert_on_grid(now.numpy(), **after["kernels"][now.path])
    wrong = retrain("absent.keras", cwd=folder)
    assert wrong.returncode == 1 and "no file absent.keras; 'nas export' writes" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_the_exported_model_needs_nothing_of_ours(finished, folder):
    """Plain Keras loads it where none of the packages can be imported."""
    run = nas.Run(finished[0])
    export_keras(run, next(iter(run.finals())), folder / "alone.keras")
    script = (
        "import sys; sys.modules.update(dict.fromkeys(['nas', 'hwmodel', 'search_spaces']));"
        "import keras; print(keras.models.load_model('alone.keras').output.shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True
    )
    assert "(None, 10)" in done.stdout, done.stderr


def test_export_names_what_can_be_exported(finished, folder):
    wrong = nas_command("export", finished[0], "--trial", 999, "--to", "x.keras", cwd=folder)
    assert wrong.returncode == 2 and "trial 999 has no final training" in wrong.stderr
    wrong = nas_command("export", finished[0], "--best", "--to", "x.h5", cwd=folder)
    assert wrong.returncode == 2 and "ends in .keras" in wrong.stderr
    assert not (folder / "x.h5").exists()


def test_reports_of_a_finished_run(finished, folder):
    done = nas_command("report", finished[0], "--csv", "t.csv", "--html", "t.html", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "t.csv").read_text().startswith("rank,trial")
    assert "<html" in (folder / "t.html").read_text()


def test_a_worker_that_is_killed_gives_its_task_to_another(tmp_path):
    """Once it is retried; killed again, the task comes back with what happened."""
    task = {"id": 4, "kind": "trial", "seed": 0, "choices": {"seconds": 100}}
    limits = Limits(max_attempts=2)
    with LocalExecutor(
        1, "tests.sleeping:Sleeping", {}, tmp_path / "log", limits=limits
    ) as executor:
        executor.submit(task)
        for _ in range(2):
            kill_when_training(executor, executor.workers[0])
        result = executor.wait()
    assert (
        result["id"] == 4 and "its worker ended by signal 9, at attempt 2 of 2" in result["error"]
    )


def kill_when_training(executor, worker) -> None:
    """Let the worker get ready and take its task, then kill it."""
    while worker.task is None:
        executor._next()
    worker.process.kill()
    while worker in executor.workers:
        executor._next()


def small_choices() -> dict:
    space = config.make_space(config.complete(config.read("quickstart")))
    return space.decode(space.sample(1, np.random.default_rng(0))[0])


def test_a_worker_that_cannot_start_says_why(tmp_path):
    from nas.executor import ExecutorError

    with (
        LocalExecutor(1, "proxy", {"dataset": "nope"}, tmp_path / "log") as executor,
        pytest.raises(ExecutorError, match="a worker could not start: DataError: unknown data"),
    ):
        executor.submit({"id": 0, "kind": "trial", "seed": 0, "choices": {}})
        executor.wait()


def test_workers_end_with_their_parent(tmp_path):
    """However it ends: a training worker sees its input close and goes at once."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import time, pathlib\n"
        "from nas.executor import LocalExecutor\n"
        "executor = LocalExecutor(1, 'proxy', {}, pathlib.Path('log'))\n"
        "print(executor.workers[0].process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    worker = int(parent.stdout.readline())
    time.sleep(1)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(worker), "the worker outlived its parent by 10 seconds"


def alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().split()[2] != "Z"
