"""What a search survives, and that it ends as undisturbed.

    python benchmarks/faults.py [--kills 200] [--only PART ...] [--of images] [--seed 0]

--of: what the searches train, images or language models.

Parts, all of them unless some are named:

kills      searches with small real trainings, killed with SIGKILL at random instants: of the clock,
           inside commits, and inside writes of checkpoints; with 1 and 2 workers, here and on a
           Dask LocalCluster where `distributed` is installed. What is left is compared, trial by
           trial, with an undisturbed search of the same seed.
workers    the same, but workers are killed or stopped (SIGSTOP), not the search.
disk       a small file system fills up; the search stops, has more room, and goes on. Where none
           can be mounted, files may not grow past a size instead.
damage     bits flipped in, and ends cut off from, the store, its log of commits, the configuration,
           weights and a checkpoint. What was broken is repaired, and the search is gone on with.
trainings  one that raises, one that gives NaN, one that eats memory, one that takes for ever.

Ends with status 1 where anything was lost, doubled, different or not recognized.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

import numpy as np

EVERY = [
    "--trials", "8", "--set", "evaluator.epochs=4", "--set", "evaluator.final_epochs=4",
    "--set", "final.top=1", "--set", "limits.heartbeat=2", "--set", "limits.max_attempts=1000",
]  # fmt: skip
SEARCHES = {
    "images": [
        "quickstart", "--set", "evaluator.images=300", "--set", "cell.width=[4,8]",
        "--set", "cell.depth=1", "--set", "cell.resolution=16", "--set", "train.batch=64",
    ],
    "language": [
        "ptb-quickstart", "--set", "evaluator.tokens=6000", "--set", "rnn.units=64",
        "--set", "embed.width=64", "--set", "train.samples=256", "--set", "train.batch=32",
        "--trials", "5", "--set", "evaluator.epochs=2", "--set", "evaluator.final_epochs=1",
    ],
}  # fmt: skip
SMALL: list[str] = []  # the one of them that --of names
HOOKS = tempfile.TemporaryDirectory(prefix="nas-faults-")
PART_BYTES = 600_000  # of the small file system
# Read by Python before a command of ours runs. Trainings are kept every 50 ms instead of every
# minute; with FAULT set, the search is killed inside its nth commit, or the nth write of a
# checkpoint: while the file is written, before it is renamed, or after.
HOOK = """
import os, random, signal, sys, threading
if os.environ.get("NAS_FAULTS"):
    import nas.checkpoint, nas.store, nas.run_dir
    nas.checkpoint.INTERVAL_S = 0.05
    kind, _, when = os.environ["NAS_FAULTS"].partition(":")
    left = [int(when or 0)]
    is_worker = "nas.worker" in sys.orig_argv

    def kill():
        os.kill(os.getppid() if is_worker else os.getpid(), signal.SIGKILL)

    def soon():
        left[0] -= 1
        if left[0] == 0:
            threading.Timer(random.expovariate(1000), kill).start()

    if kind == "commit" and not is_worker:
        rows = nas.store.Store.rows

        def dying_rows(self, statement, values=()):
            if statement == "COMMIT" and not self.read_only:
                soon()
            return rows(self, statement, values)

        nas.store.Store.rows = dying_rows
    if kind == "checkpoint" and is_worker:
        keep = nas.checkpoint.Checkpoint.keep

        def dying_keep(self, arrays):
            soon()
            keep(self, arrays)

        nas.checkpoint.Checkpoint.keep = dying_keep
"""


class Outcome:
    """What the whole script found; `bad` ends it with status 1."""

    bad = 0

    @classmethod
    def row(cls, name: str, good: bool, text: str) -> None:
        cls.bad += not good
        print(f"{'ok  ' if good else 'BAD '} {name:34} {text}", flush=True)


def environment(fault: str = "plain") -> dict:
    root = str(Path(__file__).resolve().parents[1])
    return {**os.environ, "NAS_FAULTS": fault, "PYTHONPATH": f"{HOOKS.name}{os.pathsep}{root}"}


def start(path: Path, seed: int, extra: list[str], fault: str = "plain") -> subprocess.Popen:
    """Begin a search, or go on with it."""
    arguments = (
        ["resume", str(path)]
        if (path / "config.toml").exists()
        else ["search", *SMALL, *extra, "--run", str(path), "--seed", str(seed)]
    )
    log = open(path.with_suffix(".log"), "a")  # noqa: SIM115, the process has it
    return subprocess.Popen(
        [sys.executable, "-m", "nas.cli", *arguments],
        stdout=log,
        stderr=log,
        env=environment(fault),
        start_new_session=True,
    )


def finish(path: Path, seed: int, extra: list[str]) -> float:
    """Run to the end; the seconds it took."""
    begun = time.monotonic()
    if start(path, seed, extra).wait():
        ended_badly(path)
    return time.monotonic() - begun


def ended_badly(path: Path) -> NoReturn:
    """Stop here, with what the search said last: its log goes with the folder."""
    lines = path.with_suffix(".log").read_text("utf-8", "replace").splitlines()
    sys.exit("\n".join([*lines[-20:], f"{path} did not end well; the above is its log's end"]))


def history(path: Path) -> list:
    """All that a run decided and measured but for the clock: a row a trial, and the finals."""
    measured = ("accuracy", "perplexity", "loss", "train_loss", "latency_s", "energy_j")
    with contextlib.closing(sqlite3.connect(path / "trials.sqlite")) as store:
        trials = store.execute(
            "SELECT id, encoding, seed, status, metrics, repeats, told FROM trials ORDER BY id"
        ).fetchall()
        finals = store.execute("SELECT trial, metrics FROM finals ORDER BY trial").fetchall()
    rows = [
        (*row[:4], *(json.loads(row[4]).get(name) for name in measured), *row[5:]) for row in trials
    ]
    return [*rows, *((trial, json.loads(text)["test_loss"]) for trial, text in finals)]


def compare(path: Path, whole: Path) -> tuple[int, int, bool]:
    """(trials lost, trials doubled, whether all else and the leaderboard are the same)."""
    ours, theirs = history(path), history(whole)
    ids = [row[0] for row in ours]
    told = [row[-1] for row in ours if len(row) > 2 and row[-1] is not None]
    lost = len({row[0] for row in theirs} - set(ids))
    encodings = [
        row[1] for row in ours if len(row) > 2 and row[-2] is None and row[3] == "complete"
    ]
    doubled = len(told) - len(set(told)) + len(encodings) - len(set(encodings))
    boards = [(each / "leaderboard.csv").read_bytes() for each in (path, whole)]
    return lost, doubled, ours == theirs and boards[0] == boards[1]


def layouts() -> dict[str, list[str]]:
    found = {f"{n} worker{'s' * (n > 1)}": ["--workers", str(n)] for n in (1, 2)}
    if importlib.util.find_spec("distributed") and importlib.util.find_spec("nas.cluster"):
        found["2 workers of a LocalCluster"] = ["--workers", "2", "--dask", "local"]
    else:
        print("     no Dask here: kills on a LocalCluster are left out")
    return found


def kills(folder: Path, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole, seconds, found = {}, 8.0, layouts()
    for number, (name, extra) in enumerate(found.items()):
        n_here = n * (number + 1) // len(found) - n * number // len(found)
        lost = doubled = runs = n_killed = 0
        same, kinds = True, {"instant": 0, "commit": 0, "checkpoint": 0}
        while n_killed < n_here:
            run_seed = seed + runs % 3
            if run_seed not in whole:
                whole[run_seed] = folder / f"whole-{run_seed}"
                seconds = finish(whole[run_seed], run_seed, ["--workers", "2"])
            path = folder / f"killed-{number}-{runs}"
            while True:
                kind = str(rng.choice(list(kinds))) if n_killed < n_here else "plain"
                if kind == "checkpoint" and "--dask" in extra:
                    kind = "instant"  # its workers are not started by the search
                fault = f"{kind}:{rng.integers(1, 30)}" if kind != "plain" else kind
                process = start(path, run_seed, extra, fault)
                if kind == "instant":
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(float(rng.uniform(0.1, seconds)))
                    process.kill()
                code = process.wait()
                if code == 0:
                    break
                if code != -signal.SIGKILL:
                    ended_badly(path)
                n_killed, kinds[kind] = n_killed + 1, kinds[kind] + 1
            runs += 1
            missing, twice, equal = compare(path, whole[run_seed])
            lost, doubled, same = lost + missing, doubled + twice, same and equal
            shutil.rmtree(path)
        Outcome.row(
            f"kills, {name}",
            same and not lost + doubled,
            f"{n_killed} in {runs} searches ("
            + ", ".join(f"{count} {kind}" for kind, count in kinds.items())
            + f"): {lost} lost, {doubled} doubled, all else "
            + ("identical" if same else "DIFFERENT"),
        )


def workers(folder: Path, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = folder / f"whole-{seed}"
    if not whole.exists():
        finish(whole, seed, ["--workers", "2"])
    for name, number in (("killed", signal.SIGKILL), ("stopped", signal.SIGSTOP)):
        path, hit = folder / f"workers-{name}", 0
        process = start(path, seed, ["--workers", "2"])
        while process.poll() is None:
            time.sleep(float(rng.uniform(1, 4)))
            found = subprocess.run(
                ["pgrep", "-P", str(process.pid), "-f", "nas.worker"],
                capture_output=True,
                text=True,
            ).stdout.split()
            if found and hit < n:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(rng.choice(found)), number)
                    hit += 1
                time.sleep(float(rng.uniform(6, 12)))  # let another start
        lost, doubled, same = compare(path, whole)
        Outcome.row(
            f"workers {name}",
            process.returncode == 0 and same and not lost + doubled,
            f"{hit} times: {lost} lost, {doubled} doubled, all else "
            + ("identical" if same else "DIFFERENT"),
        )


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
from nas.cli import main
main(sys.argv[2:])
"""


def disk(folder: Path, seed: int) -> None:
    whole = folder / f"whole-{seed}"
    if not whole.exists():
        finish(whole, seed, ["--workers", "2"])
    small = folder / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={PART_BYTES}", "tmpfs", str(small)]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    print("" if mounted else "     no tmpfs can be mounted here: files may not grow instead")
    path, said, size, stops = small / "r", [], PART_BYTES // 6, 0
    try:
        while True:
            arguments = (
                ["resume", str(path)]
                if (path / "config.toml").exists()
                else ["search", *SMALL, "--run", str(path), "--seed", str(seed), "--workers", "1"]
            )
            limit = size if not mounted else 2**40
            done = subprocess.run(
                [sys.executable, "-c", FULL, str(limit), *arguments],
                capture_output=True,
                text=True,
                env=environment(),
            )
            if done.returncode == 0:
                break
            stops, size = stops + 1, 2 * size
            said.append(done.stderr)
            if stops > 12:
                break
            if mounted:
                subprocess.run(["mount", "-o", f"remount,size={2 * PART_BYTES * 2**stops}", small])
        clean = all("Traceback" not in text and "nas resume" in text for text in said if text)
        lost, doubled, same = compare(path, whole)
        Outcome.row(
            "disk full",
            bool(stops) and clean and same and not lost + doubled,
            f"{'a tmpfs' if mounted else 'files'} full {stops} times, "
            f"{'one line each' if clean else 'NOT CLEAN'}: {lost} lost, {doubled} doubled, "
            + ("all else identical" if same else "all else DIFFERENT"),
        )
        for line in {text.strip().splitlines()[-1] for text in said}:
            print(f"       {line}")
    finally:
        if mounted:
            subprocess.run(["umount", str(small)])


def damage(folder: Path, n: int, seed: int) -> None:
    """Each flip or cut is recognized, or all that is read is as before."""
    from nas.checkpoint import Checkpoint
    from nas.run import Run
    from nas.run_dir import read_tensors

    logging.getLogger("nas").setLevel(logging.ERROR)
    whole = folder / f"whole-{seed}"
    if not whole.exists():
        finish(whole, seed, ["--workers", "2"])
    rng, copy = np.random.default_rng(seed), folder / "damaged"
    arrays = {"values": rng.normal(size=1000).astype(np.float32)}
    Checkpoint(whole / "checkpoints" / "c.npz", "key").keep(arrays)
    weights = next((whole / "checkpoints").glob("*.weights.h5"))

    def read(path: Path, name: str):
        """What a run of this name is read as."""
        if name.endswith(".h5"):
            return {k: v.tobytes() for k, v in read_tensors(path / "checkpoints" / name).items()}
        if name.endswith(".npz"):
            loaded = Checkpoint(path / "checkpoints" / name, "key").load()
            if loaded is None:
                raise ValueError("is no checkpoint: the training begins anew")
            return {k: v.tobytes() for k, v in loaded.items()}
        run = Run(path)
        with run.store() as store:
            store.check(thorough=True)
            state = store.controller_state()
        return repr((run.config, run.trials(), run.finals(), sorted(state)))

    shutil.copytree(whole, copy)
    for name in ("trials.sqlite", "config.toml", weights.name, "c.npz"):
        file = copy / name if (copy / name).exists() else copy / "checkpoints" / name
        data, before = file.read_bytes(), read(copy, name)
        recognized = harmless = wrong = traces = 0
        for _ in range(n):
            at = int(rng.integers(len(data)))
            changed = bytearray(data)
            changed[at] ^= 1 << int(rng.integers(8))
            for content in (bytes(changed), data[:at]):
                file.write_bytes(content)
                try:
                    same = read(copy, name) == before
                    harmless, wrong = harmless + same, wrong + (not same)
                except ValueError:
                    recognized += 1
                except Exception as error:
                    traces += 1
                    print(f"       {name} at {at}: {type(error).__name__}: {error}")
        file.write_bytes(data)
        Outcome.row(
            f"damage to {name}",
            not wrong + traces,
            f"{2 * n} flips and cuts: {recognized} recognized, {harmless} of bytes without "
            f"meaning, {wrong} taken for good, {traces} tracebacks",
        )
    shutil.rmtree(copy)
    for i in range(3):
        shutil.copytree(whole, copy)
        data = bytearray((copy / "trials.sqlite").read_bytes())
        at = data.index(b'"accuracy":', int(rng.integers(len(data) // 2)))
        if i == 0:
            del data[at:]
        data[at + 13 : at + 14] = b"x"
        (copy / "trials.sqlite").write_bytes(data)
        said = [
            subprocess.run(
                [sys.executable, "-m", "nas.cli", verb, str(copy)],
                capture_output=True,
                text=True,
                env=environment(),
            )
            for verb in ("repair", "resume")
        ]
        lost, doubled, same = compare(copy, whole)
        Outcome.row(
            f"repaired and gone on with, {i + 1}",
            same and not lost + doubled and not any(each.returncode for each in said),
            f"{said[0].stdout.splitlines()[0]}; "
            + ("all identical" if same else f"DIFFERENT, {lost} lost"),
        )
        shutil.rmtree(copy)


def trainings(folder: Path) -> None:
    from nas import config
    from nas.executor import Limits, LocalExecutor

    space = config.make_space(config.complete(config.read("quickstart")))
    choices = space.decode(space.sample(1, np.random.default_rng(0))[0])
    choices |= {"cell.width": 8, "cell.depth": 1, "cell.resolution": 16, "train.batch": 64}
    options = {"epochs": 1, "images": 300}
    raising = {k: v for k, v in choices.items() if k != "train.batch"}
    cases = {
        "raises": (raising, options, {}, "KeyError"),
        "gives NaN": ({**choices, "train.learning_rate": 1e30}, options, {}, "FloatingPointError"),
        "eats memory": (choices, options, {"trial_memory": 300}, "trial_memory = 300 MiB"),
        "takes for ever": (choices, {**options, "epochs": 10**6}, {"trial_timeout": 3.0},
                           "trial_timeout = 3 s"),
    }  # fmt: skip
    for name, (asked, options, limits, expected) in cases.items():
        task = {"id": 0, "kind": "trial", "seed": 0, "choices": asked}
        limits = Limits(**limits, max_attempts=2)
        with LocalExecutor(1, "proxy", options, folder / "log", limits=limits) as executor:
            executor.submit(task)
            error = executor.wait().get("error", "no error")
        Outcome.row(f"a training that {name}", expected in error, error.splitlines()[0][:90])


PARTS = "kills", "workers", "disk", "damage", "trainings"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, metavar="N")
    parser.add_argument("--flips", type=int, default=200, metavar="N", help="of each file")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--of", choices=SEARCHES, default="images", help="what searches train")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    SMALL[:] = EVERY + SEARCHES[options.of]
    with tempfile.TemporaryDirectory(prefix="nas-faults-") as name:
        folder = Path(name)
        (Path(HOOKS.name) / "sitecustomize.py").write_text(HOOK)
        if "kills" in options.only:
            kills(folder, options.kills, options.seed)
        if "workers" in options.only:
            workers(folder, 4, options.seed)
        if "disk" in options.only:
            disk(folder, options.seed)
        if "damage" in options.only:
            damage(folder, options.flips, options.seed)
        if "trainings" in options.only:
            trainings(folder)
    print("nothing lost" if not Outcome.bad else f"{Outcome.bad} of the above went wrong")
    sys.exit(bool(Outcome.bad))


if __name__ == "__main__":
    main()
