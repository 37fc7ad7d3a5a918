"""How soon our search holds the front that the best peer holds after an hour, on real CIFAR-10.

    python benchmarks/time_to_front.py [--minutes 60] [--seeds 3] [--peers NAME ...] [--data DIR]
                                       [--cache FILE.json]

The space is the quick start's at 8 bits, where a float training stands in for a quantized one:
cells, width, depth, training and serving batch, learning rate, and the systolic accelerators of at
most 4 mm2. A candidate is trained on 10,000 images twice, at 16x16. Objectives are accuracy and
latency.

Peers are Optuna's NSGA-II and TPE, and KerasTuner's Bayesian optimization, which takes one
objective (MnasNet's soft reward). Each trains plain Keras models by `fit` in two pinned processes,
in the precision and the steps per execution that are fastest here, and asks our `price` for the
latency, which costs it next to nothing; what breaks the area is told as failed without a training.
Ours is `nas.search` with its default controller, for a fifth of the time.

Every network on a front, of the peers' at the end and of ours at each minute looked at, is trained
once more, longer, by one and the same training; hypervolumes are of these test accuracies, and of
the logarithm of the latency, above a reference a tenth of the extent of all of them beyond their
worst. Fronts of more than eight networks are thinned to those that add most. What counts is the
minute at which our volume first is that of the best peer of the same seed; the median over seeds.

Everything that was done is kept in the cache at once, and never done again: searches that were
interrupted begin anew, others are passed over.
"""

from __future__ import annotations

import argparse
import json
import math
import selectors
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import nas
from benchmarks.training_speed import Contestant, best_settings, designs
from nas import config, controllers, pareto, pricing
from nas.compare import MARGIN
from nas.executor import LocalExecutor
from nas.reward import lost, violations
from nas.run_dir import write_whole
from nas.trial import Status, Trial, trial_seed

PEERS = ("optuna.nsgaii", "optuna.tpe", "keras_tuner.bayesian")
OURS = "surrogate"
OUR_SHARE = 1 / 5  # of the peers' minutes, that ours searches
LOOKS = 20  # times that our front is looked at, evenly over its minutes
N_NETWORKS = 8  # of a front that are trained longer
FIT = "how fit is fastest"
OPEN = 2  # trials of a peer at a time, one a core
GOALS = ("accuracy", "-latency_s")
PARETO = {"name": "pareto", "objectives": list(GOALS)}
SOFT = {"name": "mnasnet", "targets": {"latency_s": 1e-4}}
BITS = {f"bits.{of}.stage{s}": 8 for of in ("weights", "activations") for s in range(3)}
PROXY = {"dataset": "cifar10", "images": 10_000, "epochs": 2}
FINAL_SEED = 0


def settings(data: str, reward: Mapping, **more) -> dict:
    """The configuration of a search, checked."""
    table = config.read("quickstart")
    config.override(table, "space", {**BITS, "bits.ends": 8})
    config.override(table, "evaluator", {**PROXY, "path": data})
    config.override(table, "reward", reward)
    return config.complete({**table, **more})


class Cache:
    """Results by name, in a JSON file that is written whole after each."""

    def __init__(self, path: Path, setting: dict):
        """setting: what the results depend on; ValueError where those of the file had another."""
        self.path = path
        self.known = {"setting": setting, "results": {}}
        if path.exists():
            self.known = json.loads(path.read_text())
        if self.known["setting"] != setting:
            raise ValueError(
                f"{path} has results of {self.known['setting']}, not of {setting}; name another "
                "--cache"
            )

    def __contains__(self, name: str) -> bool:
        return name in self.known["results"]

    def __getitem__(self, name: str):
        return self.known["results"][name]

    def __setitem__(self, name: str, value) -> None:
        self.known["results"][name] = value
        write_whole(self.path, json.dumps(self.known))


def record(minutes: float, choices: Mapping, accuracy: float, latency_s: float) -> dict:
    return {
        "minutes": minutes,
        "choices": dict(choices),
        "accuracy": accuracy,
        "latency_s": latency_s,
    }


# -- searches: a list of records each, in the order of landing -------------------------------------


def search_of_peer(name: str, seed: int, minutes: float, data: str, fit: Mapping) -> list[dict]:
    """What a peer's method trains in so many minutes, by plain Keras on two cores; fit: how."""
    one = name.startswith("keras_tuner")
    run = settings(data, SOFT if one else PARETO, seed=seed)
    space, reward = config.make_space(run), config.make_reward(run)
    limits, family = config.make_constraints(run), run["space"]["network"]
    controller = controllers.make(name, space, seed=seed, n_objectives=reward.n_objectives)
    asked, found = 0, []

    def next_trial() -> Trial:
        """A design that can be trained; those before it that cannot are told."""
        nonlocal asked
        while True:
            [proposal] = controller.ask(1)
            [(metrics, reason)] = pricing.price_designs(family, [space.decode(proposal.encoding)])
            trial = Trial(asked, proposal, trial_seed(seed, asked), metrics=metrics)
            asked += 1
            if reason is None and not violations(limits, metrics):
                return trial
            trial.status = Status.INFEASIBLE
            controller.tell([trial], reward([trial]))

    options = {key: value for key, value in run["evaluator"].items() if key != "name"}
    with (
        selectors.DefaultSelector() as selector,
        Contestant(
            "fit",
            processes=OPEN,
            threads=1,
            **fit,
            epochs=options["epochs"],
            resolutions=list(space.decisions[space.column["cell.resolution"]].values),
            evaluator=options,
        ) as contestant,
    ):
        begun = time.monotonic()
        working: dict[int, Trial] = {}
        for number, process in enumerate(contestant.processes):
            selector.register(process.stdout, selectors.EVENT_READ, number)
        while True:
            for number, process in enumerate(contestant.processes):
                if number not in working and time.monotonic() - begun < 60 * minutes:
                    working[number] = next_trial()
                    choices = space.decode(working[number].proposal.encoding)
                    contestant.send(process, [choices])
            if not working:
                return found
            for key, _ in selector.select():
                line = contestant.processes[key.data].stdout.readline()
                if not line:
                    raise RuntimeError(f"a process of {name} ended; run its role alone to see why")
                trial = working.pop(key.data)
                [accuracy] = json.loads(line)["accuracies"]
                trial.metrics["accuracy"] = accuracy
                failed = lost(reward, trial.metrics)
                trial.status = Status.FAILED if failed else Status.COMPLETE
                controller.tell([trial], reward([trial]))
                at = (time.monotonic() - begun) / 60
                if not failed and at <= minutes:
                    choices = space.decode(trial.proposal.encoding)
                    found.append(record(at, choices, accuracy, trial.metrics["latency_s"]))


def search_of_ours(seed: int, minutes: float, data: str) -> list[dict]:
    """What our search trains in so many minutes from its start, each network on its fastest
    accelerator."""
    folder = Path(tempfile.mkdtemp(prefix="time-to-front-"))
    begun = time.time()
    run = nas.run.begin(
        settings(
            data,
            PARETO,
            seed=seed,
            trials=100_000,
            hours=minutes / 60,
            controller={"name": OURS},
            final={"top": 0},
        ),
        folder / "run",
        progress=False,
    )
    with run.store() as store:
        ended = {id: end for id, _, end in store.seconds()}
    found = []
    for trial in run.trials():
        if trial.status is not Status.COMPLETE or trial.repeats is not None:
            continue
        best = min([trial, *run.sweep.of(trial)], key=lambda each: each.metrics["latency_s"])
        choices, metrics = run.space.decode(best.proposal.encoding), best.metrics
        at = (ended[trial.id] - begun) / 60
        if at <= minutes:
            found.append(record(at, choices, metrics["accuracy"], metrics["latency_s"]))
    shutil.rmtree(folder)
    return found


# -- fronts ----------------------------------------------------------------------------------------


def objectives(records: Sequence[dict], accuracies: Sequence[float]) -> np.ndarray:
    """Accuracy, and the logarithm of the latency, larger is better: [n, 2]."""
    latencies = [math.log10(each["latency_s"]) for each in records]
    return np.column_stack([accuracies, np.negative(latencies)]).reshape(-1, 2)


def front_of(records: Sequence[dict], minutes: float) -> list[dict]:
    """The front at a time by the search's own accuracies, without the designs that add least to
    its volume where it has more than `N_NETWORKS`."""
    done = [each for each in records if each["minutes"] <= minutes]
    points = objectives(done, [each["accuracy"] for each in done])
    done = [each for each, kept in zip(done, pareto.front(points), strict=True) if kept]
    while len(done) > N_NETWORKS:
        points = objectives(done, [each["accuracy"] for each in done])
        reference = points.min(axis=0) - MARGIN * np.ptp(points, axis=0)
        whole = [pareto.hypervolume(np.delete(points, i, 0), reference) for i in range(len(done))]
        del done[int(np.argmax(whole))]
    return done


def network_of(choices: Mapping) -> str:
    """The part of a design that a training sees, as a name."""
    kept = {k: v for k, v in choices.items() if not k.startswith(("hw.", "serve."))}
    return json.dumps(kept, sort_keys=True)


def train_longer(records: Sequence[dict], cache: Cache, data: str) -> None:
    """The common longer training of every network that has none yet; cache: also its epochs."""
    networks = {f"final {network_of(each['choices'])}": each["choices"] for each in records}
    missing = [(name, choices) for name, choices in networks.items() if name not in cache]
    if not missing:
        return
    run = settings(data, PARETO)
    with tempfile.TemporaryDirectory() as folder:
        log, epochs = Path(folder) / "log", cache.known["setting"]["final_epochs"]
        options = {**config.evaluator_options(run), "final_epochs": epochs}
        with LocalExecutor(OPEN, "proxy", options, log) as executor:
            for id, (_, choices) in enumerate(missing):
                weights = str(Path(folder) / f"{id}.weights.h5")
                task = {"id": id, "kind": "final", "seed": FINAL_SEED, "choices": choices}
                executor.submit(task | {"weights": weights})
            for done in range(len(missing)):
                result = executor.wait()
                name, _ = missing[result["id"]]
                if "error" in result:
                    raise RuntimeError(f"{name}: {result['error']}")
                cache[name] = result["metrics"]["test_accuracy"]
                print(f"  trained longer: {done + 1} of {len(missing)}", flush=True)


def finals(records: Sequence[dict], cache: Cache) -> np.ndarray:
    """The objectives by the longer trainings: [n, 2]."""
    return objectives(records, [cache[f"final {network_of(e['choices'])}"] for e in records])


def first_minute(ours: Mapping[float, np.ndarray], theirs: np.ndarray, reference) -> float:
    """The first of the minutes at which our front has the volume of theirs; infinite for none."""
    wanted = pareto.hypervolume(theirs, reference)
    held = [m for m, points in ours.items() if pareto.hypervolume(points, reference) >= wanted]
    return min(held, default=math.inf)


def summarize(peers: Sequence[str], seeds: int, minutes: float, cache: Cache, data: str) -> None:
    looks = np.linspace(0, OUR_SHARE * minutes, LOOKS + 1)[1:].tolist()
    fronts = {
        (name, seed): front_of(cache[f"{name} seed {seed}"], minutes)
        for name in peers
        for seed in range(seeds)
    }
    ours = {
        seed: {m: front_of(cache[f"ours seed {seed}"], m) for m in looks} for seed in range(seeds)
    }
    every = [*fronts.values(), *(front for each in ours.values() for front in each.values())]
    if not any(every):
        raise SystemExit("no training ended in time: nothing to compare; give more --minutes")
    train_longer([each for front in every for each in front], cache, data)
    points = finals([each for front in every for each in front], cache)
    reference = points.min(axis=0) - MARGIN * np.ptp(points, axis=0)
    print(f"\nafter minutes: volume above accuracy {reference[0]:.3f}, {10 ** -reference[1]:.3g} s")
    took = []
    for seed in range(seeds):
        volumes = {
            name: pareto.hypervolume(finals(fronts[name, seed], cache), reference) for name in peers
        }
        best = max(volumes, key=volumes.get)
        course = {m: finals(front, cache) for m, front in ours[seed].items()}
        took.append(first_minute(course, finals(fronts[best, seed], cache), reference))
        for name, volume in volumes.items():
            n = len(cache[f"{name} seed {seed}"])
            print(f"seed {seed}  {name:24} {minutes:5g} min {n:5} trainings  volume {volume:.4f}")
        for m in looks:
            n = sum(each["minutes"] <= m for each in cache[f"ours seed {seed}"])
            volume = pareto.hypervolume(course[m], reference)
            print(f"seed {seed}  {'ours':24} {m:5.3g} min {n:5} trainings  volume {volume:.4f}")
        print(f"seed {seed}  ours holds the volume of {best} after {took[-1]:.3g} minutes")
    middle = float(np.median(took))
    print(f"median over {seeds} seeds: {middle:.3g} minutes, {minutes / middle:.1f} times less")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60, help="of each peer (60)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), metavar="NAME")
    parser.add_argument("--data", required=True, help="CIFAR-10, its binary files")
    parser.add_argument("--cache", type=Path, default=Path("time_to_front.json"))
    parser.add_argument("--final-epochs", type=int, default=16, help="of the longer training (16)")
    options = parser.parse_args()
    setting = {"minutes": options.minutes, "final_epochs": options.final_epochs, **PROXY}
    try:
        if options.minutes <= 0 or options.seeds < 1:
            raise ValueError("--minutes is above 0 and --seeds at least 1")
        cache = Cache(options.cache, setting)
        data = str(Path(options.data).resolve())
        config.make_evaluator(settings(data, PARETO)).check(
            config.make_space(settings(data, PARETO))
        )
    except ValueError as error:
        parser.error(str(error))
    for seed in range(options.seeds):
        for name in (*options.peers, "ours"):
            key = f"{name} seed {seed}"
            if key in cache:
                continue
            print(f"{key} ...", flush=True)
            if name == "ours":
                cache[key] = search_of_ours(seed, OUR_SHARE * options.minutes, data)
            else:
                if FIT not in cache:
                    cache[FIT] = best_settings("fit", OPEN, designs(3))
                cache[key] = search_of_peer(name, seed, options.minutes, data, cache[FIT])
    summarize(options.peers, options.seeds, options.minutes, cache, data)


if __name__ == "__main__":
    main()
