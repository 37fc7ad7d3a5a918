"""How fast candidates train, against KerasTuner and Optuna, and how near to the machine's peak.

    python benchmarks/training_speed.py [--only PART ...] [--rounds 5] [--per-round 20]

Parts, all of them unless some are named:

search    candidates a minute on both cores, at 16x16 and at 32x32: our two workers, a KerasTuner
          tuner and an Optuna study over the same candidates (2,048 images, one epoch), each as it
          comes, one process of two threads, and Optuna also in two pinned processes as our workers
          are. Rounds interleave the contestants; ratios are medians over rounds.
cpu       processor seconds a trial, one thread each, against KerasTuner.
layout    our two workers of one thread against one of two.
steady    the share of the processor's peak of steady training steps.
build     the seconds to build and first run a new topology; new bits, batches and rates.
memory    how residence grows over 200 candidates.
accuracy  one network at 32 bits, five seeds, by our loop and by fit.
shared    shared weights: see benchmarks/supernet_figures.py.
ranking   how well the proxies rank NAS-Bench-201: see benchmarks/proxy_ranking.py.

Peers train the float network, ours with its quantizers at the bits drawn. Each peer has the best of
its settings, found beforehand on three candidates at each resolution: steps per execution of 1 or
16, and Keras's mixed bfloat16 (KerasTuner has Optuna's: both train by fit); no XLA, which loses on
a CPU; tf.data without its autotuning, which stalls. Everything from the first candidate's start to
the last one's score counts; imports and loading the data do not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SEED = 20
IMAGES = 2048
RESOLUTIONS = (16, 32)
SETTINGS = [(1, "float32"), (16, "float32"), (1, "mixed_bfloat16")]
PLAIN = {"steps_per_execution": 1, "policy": "float32"}
ANSWERS = sys.stdout  # where a contestant's process answers


def designs(n: int, resolution: int = 16) -> list[dict]:
    """`n` designs of the quick start's space, at a resolution, whose cells are connected."""
    from nas import config
    from search_spaces import cell
    from search_spaces.quantizers import UnbuildableError

    table = config.read("quickstart")
    config.override(table, "space", {"cell.resolution": resolution})
    space = config.make_space(config.complete(table))
    rng, found = np.random.default_rng(SEED), []
    while len(found) < n:
        choices = space.decode(space.sample(1, rng)[0])
        try:
            cell.network(choices)
        except UnbuildableError:
            continue
        found.append(choices)
    return found


# -- contestants: each in processes of its own, `--role`, told what to train over its input --------


def load_parts(resolution: int, **options) -> tuple:
    """Normalized images and labels: training and validation, as our evaluator has them under its
    options."""
    from nas.evaluators.proxy import Proxy

    proxy = Proxy(**{"images": IMAGES, "epochs": 1, **options})
    proxy.start()
    return *proxy.part("proxy", resolution), *proxy.part("validation", resolution)


def compiled_model(choices: dict, n_images: int, epochs: int, steps_per_execution: int):
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
    n_steps = n_images // choices["train.batch"] * epochs
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
        steps_per_execution=steps_per_execution,
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


class Fit:
    """keras.Model.fit and evaluate, one candidate after the other."""

    def __init__(self, settings: dict):
        import keras

        data = settings.get("evaluator", {})
        self.parts = {r: load_parts(r, **data) for r in settings["resolutions"]}
        self.epochs, self.steps = settings["epochs"], settings["steps_per_execution"]
        keras.config.set_dtype_policy(settings["policy"])

    def train(self, choices: dict, seed: int) -> float:
        import keras

        x, y, vx, vy = self.parts[choices["cell.resolution"]]
        keras.backend.clear_session()
        keras.utils.set_random_seed(seed)
        model = compiled_model(choices, len(y), self.epochs, self.steps)
        images = as_dataset(x, y, choices["train.batch"], training=True)
        model.fit(images, epochs=self.epochs, verbose=0)
        return model.evaluate(as_dataset(vx, vy, 250, training=False), verbose=0)[1]

    def run(self, chosen: list[dict]) -> list[float]:
        return [self.train(choices, SEED + i) for i, choices in enumerate(chosen)]


class Optuna(Fit):
    """An Optuna study whose objective is fit; a grid over the candidates' numbers."""

    def run(self, chosen: list[dict]) -> list[float]:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        numbers = list(range(len(chosen)))
        study = optuna.create_study(
            direction="maximize",
            sampler=optuna.samplers.GridSampler({"candidate": numbers}, seed=SEED),
        )

        def objective(trial):
            number = trial.suggest_int("candidate", 0, len(chosen) - 1)
            return self.train(chosen[number], SEED + number)

        study.optimize(objective, n_trials=len(chosen))
        scores = {t.params["candidate"]: t.value for t in study.trials}
        return [scores[number] for number in numbers]


class Tuner(Fit):
    """A KerasTuner grid over the candidates' numbers, each trained and scored by its tuner."""

    def run(self, chosen: list[dict]) -> list[float]:
        import keras_tuner

        fit = self

        class Candidates(keras_tuner.HyperModel):
            def build(self, hp):
                self.choices = chosen[hp.Int("candidate", 0, len(chosen) - 1)]
                n = len(fit.parts[self.choices["cell.resolution"]][1])
                return compiled_model(self.choices, n, fit.epochs, fit.steps)

            def fit(self, hp, model, *arguments, **named):
                # without the tuner's callbacks, which save weights every epoch: the faster way
                x, y, vx, vy = fit.parts[self.choices["cell.resolution"]]
                images = as_dataset(x, y, self.choices["train.batch"], training=True)
                model.fit(images, epochs=fit.epochs, verbose=0)
                scored = model.evaluate(as_dataset(vx, vy, 250, training=False), verbose=0)
                return {"val_accuracy": scored[1]}

        with tempfile.TemporaryDirectory() as folder:
            tuner = keras_tuner.GridSearch(
                Candidates(), "val_accuracy", max_trials=len(chosen), directory=folder, seed=SEED
            )
            tuner.search(verbose=0)
            trials = sorted(
                tuner.oracle.trials.values(), key=lambda t: t.hyperparameters.get("candidate")
            )
            return [float(t.score) for t in trials]


class Ours:
    """Our evaluator, as a worker has it."""

    def __init__(self, settings: dict):
        from nas.evaluators.proxy import Proxy

        self.proxy = Proxy(images=IMAGES, epochs=settings["epochs"])
        self.proxy.start()
        for resolution in settings["resolutions"]:
            self.proxy.part("proxy", resolution), self.proxy.part("validation", resolution)

    def run(self, chosen: list[dict]) -> list[float]:
        return [
            self.proxy.evaluate(choices, seed=SEED + i)["accuracy"]
            for i, choices in enumerate(chosen)
        ]


ROLES = {"ours": Ours, "fit": Fit, "optuna": Optuna, "tuner": Tuner}


def play(role: str) -> None:
    """A contestant's process: read candidates, train them, answer accuracies and CPU seconds."""
    global ANSWERS
    ANSWERS = os.fdopen(os.dup(1), "w")  # what libraries print goes elsewhere
    os.dup2(2, 1)
    contestant = ROLES[role](json.loads(sys.stdin.readline()))
    print("ready", file=ANSWERS, flush=True)
    for line in sys.stdin:
        before = time.process_time()
        accuracies = contestant.run(json.loads(line))
        answer = {"accuracies": accuracies, "cpu": time.process_time() - before}
        print(json.dumps(answer), file=ANSWERS, flush=True)


class Contestant:
    """One or two pinned processes of a role, kept from round to round."""

    def __init__(self, role: str, *, processes: int, threads: int, **settings):
        self.role = role
        cores = sorted(os.sched_getaffinity(0))[:2]
        self.processes = []
        for i in range(processes):
            pinned = cores[i : i + 1] if threads == 1 else cores
            environment = {
                **os.environ,
                **{
                    name: str(threads)
                    for name in (
                        "OMP_NUM_THREADS",
                        "TF_NUM_INTRAOP_THREADS",
                        "TF_NUM_INTEROP_THREADS",
                    )
                },
                "TF_CPP_MIN_LOG_LEVEL": "3",
                "CUDA_VISIBLE_DEVICES": "-1",
            }
            process = subprocess.Popen(
                [sys.executable, __file__, "--role", role],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                bufsize=1,
                env=environment,
            )
            os.sched_setaffinity(process.pid, pinned)
            self.processes.append(process)
            self.send(process, {"epochs": 1, "resolutions": RESOLUTIONS, **settings})
        for process in self.processes:
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"the contestant '{role}' did not start; run its role alone")

    def send(self, process, message) -> None:
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()

    def run(self, chosen: list[dict]) -> tuple[float, float, list[float]]:
        """(seconds, CPU seconds, accuracies) of training all of them."""
        shares = [chosen[i :: len(self.processes)] for i in range(len(self.processes))]
        start = time.perf_counter()
        for process, share in zip(self.processes, shares, strict=True):
            self.send(process, share)
        answers = [json.loads(process.stdout.readline()) for process in self.processes]
        seconds = time.perf_counter() - start
        accuracies = [0.0] * len(chosen)
        for i, answer in enumerate(answers):
            accuracies[i :: len(self.processes)] = answer["accuracies"]
        return seconds, sum(answer["cpu"] for answer in answers), accuracies

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        for process in self.processes:
            process.stdin.close()
            process.wait()


class OurWorkers:
    """Our two workers, as a search has them: whoever is free takes the next candidate."""

    def __init__(self):
        from nas.executor import LocalExecutor

        self.folder = tempfile.TemporaryDirectory()
        options = {"images": IMAGES, "epochs": 1}
        self.executor = LocalExecutor(2, "proxy", options, Path(self.folder.name) / "log")
        self.executor.wait_until_ready()

    def run(self, chosen: list[dict]) -> tuple[float, float, list[float]]:
        start = time.perf_counter()
        for i, choices in enumerate(chosen):
            task = {"id": i, "kind": "trial", "seed": SEED + i, "choices": choices}
            self.executor.submit(task)
        found = sorted((self.executor.wait() for _ in chosen), key=lambda result: result["id"])
        seconds = time.perf_counter() - start
        for result in found:
            if "error" in result:
                raise RuntimeError(result["error"])
        metrics = [result["metrics"] for result in found]
        return seconds, sum(m["cpu_seconds"] for m in metrics), [m["accuracy"] for m in metrics]

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        self.executor.close()
        self.folder.cleanup()


def best_settings(role: str, processes: int, few: list[dict]) -> dict:
    """The fastest of the settings open to a peer, on a few candidates."""
    seconds = []
    for steps, policy in SETTINGS:
        settings = {"steps_per_execution": steps, "policy": policy}
        with Contestant(role, processes=processes, threads=2 // processes, **settings) as peer:
            peer.run(few[:1])
            seconds.append((peer.run(few)[0], settings))
    return min(seconds, key=lambda each: each[0])[1]


def rounds_of(contestants: dict, chosen: list[dict], options) -> dict[str, np.ndarray]:
    """name -> [rounds, (seconds, CPU seconds)], the contestants taking turns in every round; and
    the mean accuracies are printed."""
    figures = {name: [] for name in contestants}
    accuracies = {name: [] for name in contestants}
    for turn in range(options.rounds):
        start = turn * options.per_round % len(chosen)
        part = (chosen + chosen)[start : start + options.per_round]
        for name, contestant in contestants.items():
            seconds, cpu, found = contestant.run(part)
            figures[name].append((seconds, cpu))
            accuracies[name] += found
    for name, found in accuracies.items():
        print(f"    mean accuracy {np.mean(found):.3f}  {name}")
    return {name: np.array(rows) for name, rows in figures.items()}


def compare_searches(options) -> None:
    """Candidates a minute on both cores."""
    for resolution in RESOLUTIONS:
        few, chosen = designs(3, resolution), designs(options.networks, resolution)
        peers = {
            "KerasTuner": ("tuner", 1),
            "Optuna": ("optuna", 1),
            "Optuna, 2 pinned processes": ("optuna", 2),
        }
        with contextlib.ExitStack() as stack:
            contestants = {"ours": stack.enter_context(OurWorkers())}
            print(
                f"{resolution}x{resolution}, {IMAGES} images x 1, {options.rounds} rounds of "
                f"{options.per_round} of {len(chosen)} candidates"
            )
            best = {n: best_settings("optuna", n, few) for n in (1, 2)}  # both train by fit
            for name, (role, n) in peers.items():
                print(f"    {name}: {best[n]}", flush=True)
                peer = Contestant(role, processes=n, threads=2 // n, **best[n])
                contestants[name] = stack.enter_context(peer)
            figures = rounds_of(contestants, chosen, options)
        first = figures["ours"][:, 0]
        for name, rows in figures.items():
            ratios = rows[:, 0] / first
            print(
                f"  {60 * options.per_round / np.median(rows[:, 0]):6.1f} candidates a minute, "
                f"ours is faster by {np.median(ratios):.2f} "
                f"[{ratios.min():.2f}, {ratios.max():.2f}]  {name}",
                flush=True,
            )


def compare_cpu(options) -> None:
    """Processor seconds a trial on one thread."""
    chosen = designs(options.networks)
    with (
        Contestant("ours", processes=1, threads=1) as ours,
        Contestant("tuner", processes=1, threads=1, **PLAIN) as tuner,
    ):
        figures = rounds_of({"ours": ours, "KerasTuner": tuner}, chosen, options)
    cpu = {name: rows[:, 1] / options.per_round for name, rows in figures.items()}
    print(
        f"16x16, one thread: {np.median(cpu['ours']):.2f} CPU s a trial, KerasTuner "
        f"{np.median(cpu['KerasTuner']):.2f}; {np.median(cpu['KerasTuner'] / cpu['ours']):.2f} "
        "times fewer",
        flush=True,
    )


def compare_layouts(options) -> None:
    """Two workers of one thread against one of two."""
    chosen = designs(options.networks)
    with OurWorkers() as two, Contestant("ours", processes=1, threads=2) as one:
        figures = rounds_of({"two workers": two, "one of two threads": one}, chosen, options)
    ratios = figures["one of two threads"][:, 0] / figures["two workers"][:, 0]
    print(f"two workers against one with two threads: {np.median(ratios):.2f} times", flush=True)


# -- the engine by itself: in this process, one thread ---------------------------------------------


def use_one_thread() -> None:
    from nas.process import ENVIRONMENT

    os.environ.update(ENVIRONMENT)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def convolutional(width: int, resolution: int) -> dict:
    """The choices of one cell a stage that is convolutions alone."""
    choices = {**designs(1)[0], "cell.width": width, "cell.resolution": resolution}
    edges = {"01": "conv_3x3", "02": "none", "12": "conv_3x3", "03": "none", "13": "conv_3x3"}
    edges |= {"23": "conv_3x3"}
    return {**choices, "cell.depth": 1, **{f"cell.edge{k}": v for k, v in edges.items()}}


def measure_steady(options) -> None:
    """Steady steps: their operations a second as a share of the largest matrix product's."""
    use_one_thread()
    from nas.program import Program, peak_rate
    from nas.train import Recipe, Stepper, first_values
    from search_spaces import cell

    rng = np.random.default_rng(SEED)
    for width, resolution, batch, precision, bits in (
        (16, 32, 64, "float32", 32),
        (16, 32, 64, "bfloat16", 32),
        (8, 16, 128, "float32", 32),
        (16, 32, 64, "float32", 4),
        (8, 16, 128, "float32", 4),
    ):
        network = cell.network(convolutional(width, resolution))
        recipe = Recipe(batch, 1, 0.1, 0.2, (bits,) * 4, (bits,) * 4, precision=precision)
        x = rng.normal(0, 1, (batch, *network.image)).astype(np.float32)
        y = rng.integers(0, 10, batch).astype(np.int32)
        program = Program(network, recipe.switches)
        program.start(first_values(network, recipe, x, SEED))
        stepper, rows, shares = Stepper(program, recipe), np.arange(batch), []
        for _ in range(max(options.rounds, 5)):
            peak = peak_rate(precision)
            stepper.step(x, y, rows, 0.01)
            seconds = []
            for _ in range(10):
                start = time.perf_counter()
                stepper.step(x, y, rows, 0.01)
                seconds.append(time.perf_counter() - start)
            shares.append(network.training_flops * batch / np.median(seconds) / peak)
        program.close()
        print(
            f"steady training, {width} channels at {resolution}x{resolution}, {precision}, "
            f"{'no quantizers' if bits == 32 else f'{bits} bits'}: {np.median(shares):.0%} of a "
            f"peak of {peak / 1e9:.0f} GFLOP/s",
            flush=True,
        )


def measure_builds(options) -> None:
    """What a new topology costs before its second step, and what other changes do."""
    use_one_thread()
    from nas.program import Program
    from nas.train import Recipe, Stepper, Trainer, first_values
    from search_spaces import cell

    chosen = designs(options.networks)
    rng = np.random.default_rng(SEED)
    x = rng.normal(0, 1, (256, 16, 16, 3)).astype(np.float32)
    y = rng.integers(0, 10, 256).astype(np.int32)
    recipe = Recipe(32, 1, 0.1, 0.2, (4,) * 4, (4,) * 4)
    Trainer().fit(cell.network(chosen[0]), x, y, recipe, seed=0)
    extra = []
    for choices in chosen[1:]:
        network, before = cell.network(choices), time.process_time()
        program = Program(network, recipe.switches)
        program.start(first_values(network, recipe, x[:64], 0))
        stepper, rows = Stepper(program, recipe), np.arange(32)
        stepper.step(x, y, rows, 0.01)
        first = time.process_time() - before
        before = time.process_time()
        stepper.step(x, y, rows, 0.01)
        extra.append(first - (time.process_time() - before))
        program.close()
    print(
        f"build and trace of a new topology: {np.median(extra):.2f} CPU s in the median of "
        f"{len(extra)}, at most {max(extra):.2f}"
    )
    trainer, network = Trainer(), cell.network(chosen[1])
    trainer.fit(network, x, y, recipe, seed=0)
    n_before = len(next(iter(trainer.programs.values())).session.graph.get_operations())
    changes = {
        "bit vector": Recipe(32, 1, 0.1, 0.2, (2, 3, 5, 8), (7, 6, 4, 8)),
        "batch": Recipe(64, 1, 0.1, 0.2, (4,) * 4, (4,) * 4),
        "learning rate": Recipe(32, 1, 0.4, 0.5, (4,) * 4, (4,) * 4),
    }
    for name, changed in changes.items():
        trainer.fit(network, x, y, changed, seed=1)
        programs = list(trainer.programs.values())
        n_after = len(programs[-1].session.graph.get_operations())
        built = len(programs) - 1 + n_after - n_before
        print(f"  a new {name}: {built} programs or operations built", flush=True)


def measure_memory(options) -> None:
    """Residence over many candidates, each of another topology, in one worker."""
    use_one_thread()
    from nas.evaluators.proxy import Proxy

    proxy = Proxy(images=256, epochs=1)
    proxy.start()
    chosen = designs(options.candidates)
    used = []
    for i, choices in enumerate(chosen):
        proxy.evaluate({**choices, "train.batch": 64}, seed=i)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        used.append(pages * resource.getpagesize() / 1e6)
    late = used[len(used) // 5 :]
    growth = np.polyfit(np.arange(len(late)), late, 1)[0]
    print(
        f"memory over {len(used)} candidates: {used[len(used) // 5]:.0f} MB after a fifth of them, "
        f"{used[-1]:.0f} MB at the end, {growth:.2f} MB a candidate",
        flush=True,
    )


def compare_accuracies(options) -> None:
    """One network at 32 bits by our loop and by fit, and how far seeds spread."""
    one = {**designs(1)[0], **{k: 32 for k in designs(1)[0] if k.startswith("bits.")}}
    epochs = options.accuracy_epochs
    for name, role in (("our loop", "ours"), ("keras.Model.fit", "fit")):
        with Contestant(role, processes=2, threads=1, epochs=epochs, **PLAIN) as contestant:
            found = contestant.run([one] * 5)[2]
        print(
            f"one network, 32 bits, {IMAGES} images x {epochs}, 5 seeds, {name:16} accuracy "
            f"{np.mean(found):.3f} +- {np.std(found, ddof=1):.3f}",
            flush=True,
        )


def measure_shared(options) -> None:
    run_script("supernet_figures.py", options)


def measure_ranking(options) -> None:
    run_script("proxy_ranking.py", options)


def run_script(name: str, options) -> None:
    data = ["--data", options.data] if options.data else []
    subprocess.run([sys.executable, Path(__file__).with_name(name), *data], check=True)


PARTS = {
    "search": compare_searches,
    "cpu": compare_cpu,
    "layout": compare_layouts,
    "steady": measure_steady,
    "build": measure_builds,
    "memory": measure_memory,
    "accuracy": compare_accuracies,
    "shared": measure_shared,
    "ranking": measure_ranking,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--networks", type=int, default=20, help="different candidates (20)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved repeats (5)")
    parser.add_argument("--per-round", type=int, default=20, help="candidates in each (20)")
    parser.add_argument("--candidates", type=int, default=200, help="of the memory's growth (200)")
    parser.add_argument("--accuracy-epochs", type=int, default=12)
    parser.add_argument("--data", help="CIFAR-10, binary layout; made of ../shared/data without")
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        return play(options.role)
    if len(options.only) > 1:  # each part in a process of its own, with its own threads
        for part in options.only:
            arguments = [a for a in sys.argv[1:] if a not in ("--only", *PARTS)]
            subprocess.run([sys.executable, __file__, *arguments, "--only", part], check=True)
        return None
    return PARTS[options.only[0]](options)


if __name__ == "__main__":
    main()
