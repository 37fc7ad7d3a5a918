"""What the search itself costs beside its trainings: time a trial, memory, and workers.

    python benchmarks/overhead.py [--only PART ...] [--trials 100000] [--peers 1000]

Parts, all of them unless some are named:

trial   processor time of the search's own process from one trial to the next, asking, pricing,
        committing and telling included, at 10 trials and at --trials; the seconds to open and go on
        with such a run; beside them KerasTuner and Optuna with SQLite over the same decisions, at
        10 and at --peers trials. All write to the same disk. Trainings are answered at once. The
        trials before the last 200 are laid into the store without being searched.
memory  how the search's own process grows over 1,000 trials, and a worker over --trainings.
worker  the seconds until a worker of the quick start is ready, and their share of its run.
cluster how much of their time 1 to 32 Dask workers spend in trials: cluster_efficiency.py.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # KerasTuner brings TensorFlow
SEED = 0
N_TIMED = 200


class Answers:
    """An executor whose trainings take no time."""

    def __init__(self):
        self.rng, self.tasks = np.random.default_rng(SEED), []

    def submit(self, task: dict) -> None:
        self.tasks.append(task)

    def wait(self) -> dict:
        task = self.tasks.pop(0)
        return {"id": task["id"], "kind": "trial", "metrics": self.metrics()}

    def metrics(self) -> dict:
        """As of a training of four epochs."""
        accuracy = float(self.rng.random())
        epoch = {"loss": 2.3025850929940455, "accuracy": accuracy, "seconds": 1.2345678901234567}
        return {
            "accuracy": accuracy,
            "loss": 1.0,
            "train_loss": 1.2345678901234567,
            "seconds": 5.123456789012345,
            "flops": 12345678901.234567,
            "curve": [{"epoch": i + 1, **epoch} for i in range(4)],
        }


def parts(controller: str = "evolution"):
    """The quick start's configuration, its space and what a search is made of."""
    from nas import config

    table = config.read("quickstart")
    config.override(table, "controller", {"name": controller})
    table = config.complete(table)
    return table, config.make_space(table)


def searching(store, n_trials: int, controller: str, watch):
    """A search over an open store that ends at `n_trials`."""
    from nas import config
    from nas.search import Search

    table, space = parts(controller)
    return Search(
        price=config.make_price(table),
        space=space,
        controller=config.make_controller(table),
        reward=config.make_reward(table),
        constraints=[],
        executor=Answers(),
        store=store,
        n_trials=n_trials,
        in_flight=table["in_flight"],
        seed=SEED,
        out_of_time=lambda: False,
        watch=watch,
    )


def lay(path: Path, n: int, controller: str) -> None:
    """A store of `n` trials that were told, and the controller's state after them."""
    from nas import config
    from nas.store import Store
    from nas.trial import Proposal, Status, Trial, trial_seed

    table, space = parts(controller)
    made, reward, answers = config.make_controller(table), config.make_reward(table), Answers()
    encodings = space.sample(n, np.random.default_rng(SEED))
    priced = config.make_price(table)([space.decode(row) for row in encodings[:1]])
    with contextlib.closing(Store(path, create=True)) as store:
        for first in range(0, n, 1000):
            with store.transaction():
                for i in range(first, min(first + 1000, n)):
                    metrics = {**priced[0][0], **answers.metrics()}
                    proposal, seed = Proposal(encodings[i]), trial_seed(SEED, i)
                    trial = Trial(i, proposal, seed, Status.COMPLETE, metrics)
                    store.insert(trial, told=i)
                    made.tell([trial], reward([trial]))
                store.save_controller(made.state())


def ours(folder: Path, n: int, controller: str = "evolution") -> tuple[float, float, float]:
    """(median ms a trial at `n`, seconds to open and go on, MB of the file)."""
    from nas.store import Store

    path = folder / f"{controller}-{n}.sqlite"
    before = max(n - N_TIMED, 0)
    lay(path, before, controller)
    ends: list[float] = []
    begun = time.process_time()
    with contextlib.closing(Store(path, read_only=True)) as store:
        store.check(thorough=False)
    store = Store(path)
    search = searching(
        store, max(n, 12), controller, lambda trial: ends.append(time.process_time())
    )
    opened = time.process_time() - begun
    search.run()
    store.close()
    return 1e3 * float(np.median(np.diff(ends))), opened, path.stat().st_size / 1e6


def keras_tuner_oracle(folder: Path, n: int) -> tuple[float, float]:
    """Median ms a trial at 10 and at `n` of KerasTuner's random oracle, its files written."""
    import keras_tuner

    from nas.hyperparameters import to_hyperparameters

    oracle = keras_tuner.oracles.RandomSearchOracle(
        objective=keras_tuner.Objective("score", "max"),
        max_trials=None,
        hyperparameters=to_hyperparameters(parts()[1]),
        tune_new_entries=False,
        seed=1,
    )
    oracle.verbose = 0
    oracle._set_project_dir(str(folder), "keras_tuner")
    oracle._display.verbose = 0
    return medians(partial(one_of_keras_tuner, oracle), n)


def one_of_keras_tuner(oracle, i: int) -> None:
    trial = oracle.create_trial("tuner")
    oracle.update_trial(trial.trial_id, {"score": i % 97})
    trial.status = "COMPLETED"
    oracle.end_trial(trial)


def optuna_study(folder: Path, n: int) -> tuple[float, float]:
    """Median ms a trial at 10 and at `n` of Optuna's random sampler with SQLite."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    _, space = parts()
    study = optuna.create_study(
        storage=f"sqlite:///{folder / 'optuna.sqlite'}",
        sampler=optuna.samplers.RandomSampler(seed=SEED),
        direction="maximize",
    )

    def one(i: int) -> None:
        trial = study.ask()
        for decision in space.decisions:
            trial.suggest_categorical(decision.name, list(decision.values))
        study.tell(trial, i % 97)

    return medians(one, n)


def medians(one, n: int) -> tuple[float, float]:
    """Median processor ms of `one(i)` over the first 10, and over the last 10 of `n`."""
    ends = [time.process_time()]
    for i in range(n):
        one(i)
        ends.append(time.process_time())
    steps = 1e3 * np.diff(ends)
    return float(np.median(steps[:10])), float(np.median(steps[-10:]))


def trial(folder: Path, n: int, n_peers: int) -> None:
    print(f"{'own processor time a trial, median':42} at 10     at many")
    for controller in ("evolution", "random"):
        few, _, _ = ours(folder, 10, controller)
        many, opened, size = ours(folder, n, controller)
        print(f"{f'this search, {controller}':42} {few:6.2f} ms  {many:6.2f} ms at {n:,}")
        print(f"{'  to open and go on with it':42} {'':9}  {opened:6.2f} s, {size:.0f} MB")
    for name, measure in (
        ("KerasTuner, random", keras_tuner_oracle),
        ("Optuna, random, SQLite", optuna_study),
    ):
        few, many = measure(folder, n_peers)
        print(f"{name:42} {few:6.2f} ms  {many:6.2f} ms at {n_peers:,}")


def memory(folder: Path, n_trainings: int) -> None:
    from nas.executor import LocalExecutor
    from nas.process import memory_of
    from nas.store import Store

    store, held = Store(folder / "memory.sqlite", create=True), []
    search = searching(store, 1100, "evolution", lambda trial: held.append(memory_of(os.getpid())))
    search.run()
    store.close()
    grown = (held[-1] - held[-1001]) / 2**20
    print(f"the search's process over 1,000 trials: {grown:+.1f} MiB of {held[-1] / 2**20:.0f}")
    if not n_trainings:
        return
    _, space = parts()
    encodings = space.sample(n_trainings + 20, np.random.default_rng(SEED))
    small = {"cell.width": 4, "cell.depth": 1, "cell.resolution": 16, "train.batch": 64}
    with LocalExecutor(1, "proxy", {"images": 300, "epochs": 1}, folder / "log") as executor:
        held = []
        for i, encoding in enumerate(encodings):
            choices = {**space.decode(encoding), **small}
            executor.submit({"id": i, "kind": "trial", "seed": i, "choices": choices})
            executor.wait()
            held.append(memory_of(executor.workers[0].process.pid))
    grown = (held[-1] - held[19]) / 2**20
    print(f"a worker over {n_trainings:,} trainings: {grown:+.1f} MiB of {held[-1] / 2**20:.0f}")


def worker(folder: Path) -> None:
    from nas.executor import LocalExecutor

    table, space = parts()
    options = {k: v for k, v in table["evaluator"].items() if k != "name"}
    starts, trainings = [], []
    encodings = space.sample(3, np.random.default_rng(SEED))
    for _ in range(3):
        begun = time.monotonic()
        with LocalExecutor(1, "proxy", options, folder / "log") as executor:
            executor.wait_until_ready()
            starts.append(time.monotonic() - begun)
            if not trainings:
                for i, encoding in enumerate(encodings):
                    begun = time.monotonic()
                    choices = space.decode(encoding)
                    executor.submit({"id": i, "kind": "trial", "seed": i, "choices": choices})
                    executor.wait()
                    trainings.append(time.monotonic() - begun)
    start, training = float(np.median(starts)), float(np.mean(trainings))
    n = -(-table["trials"] // table["workers"])
    print(
        f"a worker is ready after {start:.1f} s; a training of the quick start takes "
        f"{training:.1f} s; of a worker's {n} trainings that is "
        f"{start / (start + n * training):.1%}, of 1,000 {start / (start + 1000 * training):.2%}"
    )


def cluster() -> None:
    """As a script of its own."""
    script = Path(__file__).with_name("cluster_efficiency.py")
    subprocess.run([sys.executable, script], check=True)


PARTS = "trial", "memory", "worker", "cluster"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--peers", type=int, default=1000, help="trials of the peers")
    parser.add_argument("--trainings", type=int, default=1000, help="of a worker; 0: none")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nas-overhead-") as name:
        folder = Path(name)
        if "trial" in options.only:
            trial(folder, options.trials, options.peers)
        if "memory" in options.only:
            memory(folder, options.trainings)
        if "worker" in options.only:
            worker(folder)
        if "cluster" in options.only:
            cluster()


if __name__ == "__main__":
    main()
