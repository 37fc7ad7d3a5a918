"""How much of their time Dask workers spend in trials: the whole loop, with trials that sleep.

    python benchmarks/cluster_efficiency.py [--workers 1,2,8,32] [--seconds 0.1,1,10]

The real loop (asking, pricing, the store on disk, telling in order) drives a scheduler and Dask
workers in processes of their own on this machine; each Dask worker has its worker process, and up
to 16 share one of Dask's. Efficiency: seconds slept by all trials, over seconds that all workers
were there, from the first ask to the last tell.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from distributed import Client, Worker

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nas import config as configuration
from nas.dask_executor import DaskExecutor
from nas.pricing import price_designs
from nas.search import Search
from nas.store import Store

ROUNDS = {0.1: 50, 1.0: 20, 10.0: 4}  # trials a worker, of so many seconds
PER_PROCESS = 16  # Dask workers
AHEAD = 2  # trials asked for, a worker: one runs and one waits


class Sleeping:
    """An evaluator that takes time and nothing else."""

    in_process = False

    def __init__(self, seconds: float):
        self.seconds = seconds

    def start(self, folder: Path | None = None) -> None:
        """There is nothing to load."""

    def evaluate(self, choices, *, seed: int) -> dict:
        time.sleep(self.seconds)
        return {"accuracy": seed % 97 / 97, "loss": 1.0}


def measure(address: str, n_workers: int, seconds: float, rounds: int) -> tuple[float, float]:
    """(wall seconds, CPU seconds of this process) of `rounds` trials on each worker."""
    n_trials = rounds * n_workers
    budget = {"trials": n_trials, "in_flight": AHEAD * n_workers}
    free = {"constraints": [], "controller": {"name": "random"}}  # nearly all can be trained
    config = configuration.complete({**configuration.read("quickstart"), **free, **budget})
    reward = configuration.make_reward(config)
    options = {"seconds": seconds}
    with (
        tempfile.TemporaryDirectory() as folder,
        DaskExecutor(address, "benchmarks.cluster_efficiency:Sleeping", options) as executor,
    ):
        store = Store(Path(folder) / "trials.sqlite", create=True)
        executor.wait_until_ready()
        search = Search(
            price=functools.partial(price_designs, "cell", named=set(reward.needs)),
            space=configuration.make_space(config),
            controller=configuration.make_controller(config),
            reward=reward,
            constraints=[],
            executor=executor,
            store=store,
            n_trials=n_trials,
            in_flight=config["in_flight"],
            seed=config["seed"],
            out_of_time=lambda: False,
            watch=lambda trial: None,
        )
        begun, before = time.perf_counter(), cpu_seconds()
        search.run()
        wall, cpu = time.perf_counter() - begun, cpu_seconds() - before
        assert store.count("status = 'complete'") == n_trials
        store.close()
    return wall, cpu


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def cluster_of(n_workers: int) -> Iterator[str]:
    """The address of a scheduler that has so many workers."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        file = Path(folder) / "scheduler.json"

        def start(*command) -> None:
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, *map(str, command)],
                    stderr=subprocess.DEVNULL,
                    env={**os.environ, "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False"},
                )
            )
            stack.callback(process.kill)

        start(
            *("-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", 0),
            *("--no-dashboard", "--no-show", "--scheduler-file", file),
        )
        for first in range(0, n_workers, PER_PROCESS):
            start(__file__, "--host", file, min(PER_PROCESS, n_workers - first))
        with Client(scheduler_file=str(file), timeout=60, set_as_default=False) as client:
            client.wait_for_workers(n_workers, timeout=300)
            yield client.scheduler.address


async def host(scheduler_file: str, n_workers: int) -> None:
    """Be so many Dask workers."""
    with tempfile.TemporaryDirectory() as folder:
        workers = [
            Worker(
                scheduler_file=scheduler_file,
                nthreads=1,
                memory_limit=0,
                dashboard=False,
                local_directory=folder,
            )
            for _ in range(n_workers)
        ]
        await asyncio.gather(*workers)
        await asyncio.gather(*(worker.finished() for worker in workers))


def main() -> None:
    def numbers(kind):
        return lambda text: [kind(each) for each in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=numbers(int), default=[1, 2, 8, 32])
    parser.add_argument("--seconds", type=numbers(float), default=list(ROUNDS))
    parser.add_argument("--host", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.host:
        asyncio.run(host(asked.host[0], int(asked.host[1])))
        return
    print("workers  trial_s  trials  wall_s  parent_ms_per_trial  efficiency", flush=True)
    for n_workers in asked.workers:
        with cluster_of(n_workers) as address:
            for seconds in asked.seconds:
                rounds = ROUNDS.get(seconds, 5)
                wall, cpu = measure(address, n_workers, seconds, rounds)
                n_trials = rounds * n_workers
                print(
                    f"{n_workers:7}  {seconds:7g}  {n_trials:6}  {wall:6.2f}  "
                    f"{1000 * cpu / n_trials:19.1f}  {rounds * seconds / wall:9.1%}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
