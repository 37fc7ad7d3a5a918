"""Candidates per minute: our workers against keras.Model.fit and a KerasTuner tuner.

    python benchmarks/training_speed.py [--networks 20] [--images 0] [--epochs 1]

The same networks of the quick start's space, images, epochs, batches and schedules on both cores,
in one run. Peers train the float network; ours trains it with its quantizers, at the bits drawn.
Each peer has the best of its settings: steps per execution of 1 or 16, found beforehand on three of
the networks; no XLA, which loses on a CPU; tf.data without its autotuning, which stalls. A peer as
it comes is one process of two threads; fit is also run as our workers are laid out, in two pinned
processes of one thread, which is not its own doing. Everything from the first candidate's start to
the last one's score counts; imports and loading the data do not.

Then accuracy: one network at 32 bits, five seeds, by our loop and by fit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SEED = 20
ANSWERS = sys.stdout  # where a peer's process answers


def designs(n: int) -> list[dict]:
    """`n` designs of the quick start's space whose cells are connected."""
    from nas import config
    from search_spaces import cell

    space = config.make_space(config.complete(config.read("quickstart")))
    rng, found = np.random.default_rng(SEED), []
    while len(found) < n:
        choices = space.decode(space.sample(1, rng)[0])
        try:
            cell.network(choices)
        except cell.DisconnectedError:
            continue
        found.append(choices)
    return found


# -- ours ------------------------------------------------------------------------------------------


def time_ours(chosen: list[dict], settings: dict) -> tuple[float, list[float]]:
    """(seconds, accuracies) of our two workers."""
    from nas.executor import LocalExecutor

    options = {"images": settings["images"], "epochs": settings["epochs"]}
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalExecutor(2, "proxy", options, Path(folder) / "log") as executor,
    ):
        executor.wait_until_ready()
        start = time.perf_counter()
        for i, choices in enumerate(chosen):
            executor.submit({"id": i, "kind": "trial", "seed": SEED + i, "choices": choices})
        results = [executor.wait() for _ in chosen]
        seconds = time.perf_counter() - start
    return seconds, [r["metrics"]["accuracy"] for r in sorted(results, key=lambda r: r["id"])]


# -- peers: run in processes of their own (`--role`) -----------------------------------------------


def load_parts(settings: dict) -> tuple:
    """Normalized 16 x 16 images and labels: training and validation, as our evaluator has them."""
    from nas.evaluators.proxy import Proxy

    proxy = Proxy(images=settings["images"])
    proxy.start()
    return *proxy.part("proxy", 16), *proxy.part("validation", 16)


def compiled_model(choices: dict, n_images: int, settings: dict):
    """The float network as a Keras user would train it, with our recipe."""
    import keras

    from nas import program
    from search_spaces import cell
    from search_spaces.training import peak_learning_rate, warmup_share

    class Triangle(keras.optimizers.schedules.LearningRateSchedule):
        def __init__(self, n_steps, peak, warmup):
            self.n_steps, self.peak, self.warmup = n_steps, peak, warmup

        def __call__(self, step):
            at = (keras.ops.cast(step, "float32") + 0.5) / self.n_steps
            return self.peak * keras.ops.minimum(at / self.warmup, (1 - at) / (1 - self.warmup))

    model = cell.build(choices)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9  # the default of 0.99 lags behind short trainings
    n_steps = n_images // choices["train.batch"] * settings["epochs"]
    rate = Triangle(n_steps, peak_learning_rate(choices), warmup_share(choices))
    model.compile(
        keras.optimizers.SGD(
            rate, momentum=program.MOMENTUM, nesterov=True, weight_decay=program.WEIGHT_DECAY
        ),
        keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=program.LABEL_SMOOTHING
        ),
        metrics=["accuracy"],
        jit_compile=False,
        steps_per_execution=settings["steps_per_execution"],
    )
    return model


def as_dataset(x, y, batch: int, *, training: bool):
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    found = tf.data.Dataset.from_tensor_slices((x, tf.one_hot(y, 10)))
    if training:
        found = found.shuffle(len(y))
    return found.batch(batch, drop_remainder=training).with_options(options)


def fit_all(chosen: list[tuple[int, dict]], settings: dict) -> list[float]:
    """keras.Model.fit and evaluate, one candidate after the other."""
    import keras

    x, y, vx, vy = load_parts(settings)
    announce_ready()
    accuracies = []
    for i, choices in chosen:
        keras.backend.clear_session()
        keras.utils.set_random_seed(SEED + i)
        model = compiled_model(choices, len(y), settings)
        model.fit(
            as_dataset(x, y, choices["train.batch"], training=True),
            epochs=settings["epochs"],
            verbose=0,
        )
        _, accuracy = model.evaluate(as_dataset(vx, vy, 250, training=False), verbose=0)
        accuracies.append(accuracy)
    return accuracies


def tune_all(chosen: list[tuple[int, dict]], settings: dict) -> list[float]:
    """A KerasTuner grid over the candidates' numbers, each trained and scored by its tuner."""
    import keras_tuner

    x, y, vx, vy = load_parts(settings)

    class Candidates(keras_tuner.HyperModel):
        def build(self, hp):
            self.choices = chosen[hp.Int("candidate", 0, len(chosen) - 1)][1]
            return compiled_model(self.choices, len(y), settings)

        def fit(self, hp, model, *arguments, **named):
            # without the tuner's callbacks, which save weights every epoch: the faster way
            images = as_dataset(x, y, self.choices["train.batch"], training=True)
            model.fit(images, epochs=settings["epochs"], verbose=0)
            scored = model.evaluate(as_dataset(vx, vy, 250, training=False), verbose=0)
            return {"val_accuracy": scored[1]}

    with tempfile.TemporaryDirectory() as folder:
        tuner = keras_tuner.GridSearch(
            Candidates(), "val_accuracy", max_trials=len(chosen), directory=folder, seed=SEED
        )
        announce_ready()
        tuner.search(verbose=0)
        trials = sorted(
            tuner.oracle.trials.values(), key=lambda t: t.hyperparameters.get("candidate")
        )
        return [float(t.score) for t in trials]


def announce_ready() -> None:
    """Say that everything is loaded, and wait for the start."""
    ANSWERS.write("ready\n")
    ANSWERS.flush()
    sys.stdin.readline()


def time_peer(role: str, chosen: list[dict], settings: dict) -> tuple[float, list[float]]:
    """(seconds, accuracies) of a peer on both cores, from the moment that all have loaded."""
    threads = 2 // settings["processes"]
    numbered = list(enumerate(chosen))
    shares = [numbered[i :: settings["processes"]] for i in range(settings["processes"])]
    cores = sorted(os.sched_getaffinity(0))[:2]
    workers = []
    for i, share in enumerate(shares):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "TF_NUM_INTRAOP_THREADS": str(threads),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "TF_NUM_INTEROP_THREADS": str(threads),
            "CUDA_VISIBLE_DEVICES": "-1",
        }
        pinned = cores[i : i + 1] if threads == 1 else cores
        worker = subprocess.Popen(
            [sys.executable, __file__, "--role", role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        os.sched_setaffinity(worker.pid, pinned)
        worker.stdin.write(json.dumps({"chosen": share, "settings": settings}) + "\n")
        worker.stdin.flush()
        workers.append(worker)
    for worker in workers:
        if worker.stdout.readline() != "ready\n":
            raise RuntimeError(f"the {role} peer did not start; run it alone to see why")
    start = time.perf_counter()
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    answers = [json.loads(worker.stdout.readline()) for worker in workers]
    seconds = time.perf_counter() - start
    for worker in workers:
        worker.stdin.close()
        worker.wait()
    accuracies = [0.0] * len(chosen)
    for share, answer in zip(shares, answers, strict=True):
        for (i, _), accuracy in zip(share, answer, strict=True):
            accuracies[i] = accuracy
    return seconds, accuracies


def play(role: str) -> None:
    """A peer's process: read the candidates, train them when told, answer their accuracies."""
    global ANSWERS
    ANSWERS = os.fdopen(os.dup(1), "w")  # what libraries print goes elsewhere
    os.dup2(2, 1)
    task = json.loads(sys.stdin.readline())
    chosen = [(i, choices) for i, choices in task["chosen"]]
    accuracies = {"fit": fit_all, "tuner": tune_all}[role](chosen, task["settings"])
    ANSWERS.write(json.dumps(accuracies) + "\n")
    ANSWERS.flush()


def best_settings(role: str, processes: int, chosen: list[dict], settings: dict) -> dict:
    """The faster of the steps per execution open to a peer, on a few candidates."""
    options = [{**settings, "processes": processes, "steps_per_execution": s} for s in (1, 16)]
    timed = [(time_peer(role, chosen, option)[0], option) for option in options]
    for seconds, option in timed:
        print(
            f"  {role}, {processes} process(es), {option['steps_per_execution']} steps an "
            f"execution: {60 * len(chosen) / seconds:.1f} candidates a minute",
            flush=True,
        )
    return min(timed, key=lambda pair: pair[0])[1]


def compare_speeds(chosen: list[dict], settings: dict) -> None:
    """The same candidates by everyone, and how much faster ours are."""
    few = chosen[:3]
    peers = {
        "keras.Model.fit": ("fit", best_settings("fit", 1, few, settings)),
        "KerasTuner": ("tuner", best_settings("tuner", 1, few, settings)),
        "fit, our layout": ("fit", best_settings("fit", 2, few, settings)),
    }
    rows = {"our workers": time_ours(chosen, settings)}
    rows |= {name: time_peer(role, chosen, best) for name, (role, best) in peers.items()}
    ours = rows["our workers"][0]
    print(
        f"\n{'':16} {'seconds':>8} {'candidates/min':>15} {'ours is faster by':>18} "
        f"{'mean accuracy':>14}"
    )
    for name, (seconds, accuracies) in rows.items():
        print(
            f"{name:16} {seconds:8.1f} {60 * len(chosen) / seconds:15.1f} "
            f"{seconds / ours:18.2f} {np.mean(accuracies):14.3f}"
        )
    better = min(rows["keras.Model.fit"][0], rows["KerasTuner"][0])
    print(
        f"against the better peer as it comes: {better / ours:.2f} times the candidates a minute; "
        f"against fit in two pinned processes, as our workers are laid out: "
        f"{rows['fit, our layout'][0] / ours:.2f}\n"
    )


def compare_accuracies(choices: dict, settings: dict, seeds: int) -> None:
    """One network at 32 bits by our loop and by fit, and how far seeds spread."""
    one = [{**choices, **{key: 32 for key in choices if key.startswith("bits.")}}] * seeds
    lent = {**settings, "processes": 2, "steps_per_execution": 1}
    for name, accuracies in (
        ("our workers", time_ours(one, settings)[1]),
        ("keras.Model.fit", time_peer("fit", one, lent)[1]),
    ):
        print(
            f"one network, 32 bits, {settings['epochs']} epochs, {seeds} seeds, {name:16} accuracy "
            f"{np.mean(accuracies):.3f} +- {np.std(accuracies, ddof=1):.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", type=int, default=20)
    parser.add_argument("--images", type=int, default=0, help="training images; 0: all 6,500")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5, help="of the comparison of accuracies")
    parser.add_argument("--accuracy-epochs", type=int, default=6, help="of that comparison")
    parser.add_argument("--accuracy-only", action="store_true", help="leave the timing out")
    parser.add_argument("--role", choices=["fit", "tuner"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        return play(options.role)
    settings = {"images": options.images, "epochs": options.epochs}
    chosen = designs(options.networks)
    print(f"{len(chosen)} networks of the quick start's space (seed {SEED}), {settings}, 2 cores")
    if not options.accuracy_only:
        compare_speeds(chosen, settings)
    longer = {**settings, "epochs": options.accuracy_epochs}
    compare_accuracies(chosen[0], longer, options.seeds)


if __name__ == "__main__":
    main()
