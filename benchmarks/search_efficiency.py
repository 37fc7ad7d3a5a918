"""How many trainings each way of searching needs, on the table of all NAS-Bench-201 cells.

    python benchmarks/search_efficiency.py [--table ../shared/data/nas_bench_201.csv.gz] [--quick]

Every method asks for one cell at a time and is told its table row; a cell that it asks for again is
told for nothing, so that budgets count different cells. Means over seeds 0, 1, ... and their
standard errors. Our controllers run with their defaults (evolution and REINFORCE with the values
found best on small tables), the others with the settings written beside them; no setting was
chosen on the seeds or the devices reported but for those of the peers, which had the choice.

Tasks:
  cifar10        12-epoch validation accuracy is told; scored by the 200-epoch test accuracy of the
                 cell of the best validation accuracy
  cifar100       the 200-epoch test accuracy is told and scored
  promotion      CIFAR-100: 12-epoch validation accuracy is told; the best few cells of the short
                 query are trained for 200 epochs, at 200/12 of a query each, all within the budget
  front          CIFAR-100 test accuracy and latency on each of 13 devices: share of the hypervolume
                 of the true front, above an accuracy of 50 % and below the largest latency. The
                 surrogate is handed the latency, which is a function and no observation; the
                 others, which cannot take it, are told it
"""

from __future__ import annotations

import argparse
import bisect
import csv
import gzip
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from nas.controllers import make
from nas.controllers.outlook import Unknown
from nas.pareto import hypervolume
from nas.trial import Status, Trial
from search_spaces import Space, cell

BUDGETS = (30, 50, 100)
SPACE = Space(cell.SPACE.decisions[: len(cell.EDGES)])
OPS = {"none": "none", "skip_connect": "skip", "avg_pool_3x3": "avg_pool_3x3"} | {
    f"nor_conv_{k}x{k}": f"conv_{k}x{k}" for k in (1, 3)
}
N_DESIGNS = 15_625
LONG = 200 / 12  # the cost of a long training, in short ones
N_PROMOTED = 2  # of at most five: what two cost leaves two thirds of a budget of 100
PLACES = 5 ** np.arange(len(cell.EDGES))[::-1]
REPEATS = 5000  # cells asked for again in a row, after which a method has settled


class Table:
    """The table's columns, rows in the order of `SPACE.enumerate()`."""

    def __init__(self, path: Path):
        with gzip.open(path, "rt") as file:
            records = list(csv.DictReader(file))
        values = SPACE.decisions[0].values
        rows = np.zeros(len(records), int)
        for k, record in enumerate(records):
            names = re.findall(r"([a-z_0-9]+)~\d", record["cell"])
            rows[k] = [values.index(OPS[name]) for name in names] @ PLACES
        if sorted(rows) != list(range(N_DESIGNS)):
            raise SystemExit(f"{path} does not hold each of {N_DESIGNS} cells once")
        self.columns = {
            name: np.array([float(record[name]) for record in records])[np.argsort(rows)]
            for name in records[0]
            if name not in ("arch", "cell")
        }

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    @property
    def devices(self) -> list[str]:
        return [name for name in self.columns if name.startswith("latency_ms_")]


class Cells(Unknown):
    """What is known of a cell: its features, and its costs [n, c], each an objective to lower."""

    def __init__(self, costs: np.ndarray | None = None):
        super().__init__(1, len(SPACE))
        self.costs = np.zeros((N_DESIGNS, 0)) if costs is None else costs
        self.sources = np.array([0] + [-1] * self.costs.shape[1])

    def features(self, encodings: np.ndarray) -> list[np.ndarray]:
        return cell.features(SPACE, encodings)

    def measured(self, trials, objectives: np.ndarray) -> np.ndarray:
        return objectives[:, :1]

    def variants(self, encodings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return encodings[:, None], self.costs[encodings @ PLACES][:, None]

    def objectives(self, measured: np.ndarray, known: np.ndarray) -> np.ndarray:
        shape = (*known.shape[:-1], 1)
        return np.concatenate([np.broadcast_to(measured, shape), -known], axis=-1)


# (objectives [designs, m], costs [designs, c] or none, seed) -> rows asked for, without end
Method = Callable[[np.ndarray, np.ndarray | None, int], Iterator[int]]


def ours(name: str, **options) -> Method:
    def run(objectives, costs, seed):
        outlook = Cells(costs) if costs is not None or objectives.shape[1] == 1 else None
        controller = make(
            name,
            SPACE,
            seed=seed,
            n_objectives=objectives.shape[1],
            outlook=outlook,
            **options,
        )
        while True:
            [proposal] = controller.ask(1)
            row = int(proposal.encoding @ PLACES)
            yield row
            trial = Trial(0, proposal, 0, Status.COMPLETE)
            controller.tell([trial], objectives[row][None])

    return run


def optuna_sampler(make_sampler) -> Method:
    def run(objectives, costs, seed):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        choices = {
            d.name: optuna.distributions.CategoricalDistribution(range(len(d.values)))
            for d in SPACE.decisions
        }
        study = optuna.create_study(
            directions=["maximize"] * objectives.shape[1], sampler=make_sampler(optuna, seed)
        )
        while True:
            trial = study.ask(choices)
            row = int(np.array([trial.params[name] for name in SPACE.names]) @ PLACES)
            yield row
            study.tell(trial, objectives[row].tolist())

    return run


def keras_tuner_bayesian(objectives, costs, seed) -> Iterator[int]:
    """BayesianOptimizationOracle with its defaults; several objectives are summed, as it does."""
    import keras_tuner

    hyperparameters = keras_tuner.HyperParameters()
    for decision in SPACE.decisions:
        hyperparameters.Choice(decision.name, list(decision.values), ordered=False)
    oracle = keras_tuner.oracles.BayesianOptimizationOracle(
        objective=keras_tuner.Objective("score", "max"),
        max_trials=10**6,
        num_initial_points=10,
        hyperparameters=hyperparameters,
        seed=seed,
    )
    oracle._display.verbose = 0
    oracle.save = lambda: None  # nothing is written for a table
    oracle._save_trial = lambda trial: None
    spread = objectives.max(axis=0) - objectives.min(axis=0)
    while True:
        trial = oracle.create_trial("tuner")
        row = int(SPACE.encode(trial.hyperparameters.values) @ PLACES)
        yield row
        score = float((objectives[row] / spread).sum())
        oracle.update_trial(trial.trial_id, {"score": score})
        trial.status = "COMPLETED"
        oracle.end_trial(trial)


def pymoo_nsga2(objectives, costs, seed) -> Iterator[int]:
    """Integer variables, uniform crossover and mutation by redraw, duplicates eliminated."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem
    from pymoo.operators.crossover.ux import UniformCrossover
    from pymoo.operators.mutation.rm import ChoiceRandomMutation
    from pymoo.operators.sampling.rnd import IntegerRandomSampling

    problem = Problem(
        n_var=len(SPACE), n_obj=objectives.shape[1], xl=0, xu=SPACE.sizes - 1, vtype=int
    )
    algorithm = NSGA2(
        pop_size=20,
        sampling=IntegerRandomSampling(),
        crossover=UniformCrossover(prob=0.9),
        mutation=ChoiceRandomMutation(),
    )
    algorithm.setup(problem, termination=("n_gen", 10**6), seed=seed)
    problem.vars = {i: _Redraw(size) for i, size in enumerate(SPACE.sizes)}
    while True:
        population = algorithm.ask()
        rows = population.get("X").astype(int) @ PLACES
        yield from rows.tolist()
        population.set("F", -objectives[rows])
        algorithm.tell(infills=population)


class _Redraw:
    """A variable that ChoiceRandomMutation draws anew."""

    def __init__(self, size: int):
        self.size = size

    def sample(self, n: int | None = None, random_state=None):
        return random_state.integers(0, self.size, n)


def gp_sampler(optuna, seed):
    return optuna.samplers.GPSampler(seed=seed, n_startup_trials=10, deterministic_objective=True)


def tpe_sampler(optuna, seed):
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=10)


def nsga2_sampler(optuna, seed):
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=20)


METHODS: dict[str, Method] = {
    "random": ours("random"),
    "local_search": ours("local_search"),
    "regularized evolution (10, 3)": ours("evolution", population=10, sample=3),
    "policy_gradient, REINFORCE": ours("policy_gradient"),
    "policy_gradient, PPO": ours("policy_gradient", algorithm="ppo"),
    "tunas": ours("tunas"),
    "nsga2 (20)": ours("nsga2"),
    "Optuna TPE, multivariate": optuna_sampler(tpe_sampler),
    "Optuna GP": optuna_sampler(gp_sampler),
    "Optuna NSGA-II (20)": optuna_sampler(nsga2_sampler),
    "pymoo NSGA-II (20)": pymoo_nsga2,
    "KerasTuner Bayesian": keras_tuner_bayesian,
    "surrogate": ours("surrogate"),
}
SLOW = ("Optuna GP", "KerasTuner Bayesian")  # take a second a query: fewer seeds
ONE_OBJECTIVE = ("policy_gradient, REINFORCE", "policy_gradient, PPO", "tunas")
FRONT_PEERS = ("random", "nsga2 (20)", "Optuna NSGA-II (20)", "pymoo NSGA-II (20)")


def different(rows: Iterator[int], n: int) -> np.ndarray:
    """The first `n` different rows asked for; fewer where a method only repeats itself: int [n]."""
    met: dict[int, None] = {}
    repeats = 0
    for row in rows:
        repeats = repeats + 1 if row in met else 0
        met[row] = None
        if len(met) == n or repeats == REPEATS:
            return np.array(list(met))
    raise AssertionError("methods ask without end")


def picks(told: np.ndarray, score: np.ndarray, rows: np.ndarray) -> list[float]:
    """The score of the best cell told, after each budget."""
    return [float(score[rows[:n][told[rows[:n]].argmax()]]) for n in BUDGETS]


def promoted(told: np.ndarray, score: np.ndarray, rows: np.ndarray) -> list[float]:
    """The best score of the few best cells told, queries and long trainings within the budget."""
    found = []
    for budget in BUDGETS:
        n_long = min(N_PROMOTED, int((budget - 10) // LONG))
        asked = rows[: int(budget - n_long * LONG)]
        best = asked[np.argsort(-told[asked], kind="stable")[:n_long]]
        found.append(float(score[best].max()))
    return found


def show(title: str, scores: dict[str, list[list[float]]], columns) -> None:
    print(f"\n{title}\n{'method':32s}{'seeds':>6s}" + "".join(f"{c:>16}" for c in columns))
    for name, rows in scores.items():
        values = np.array(rows)
        errors = values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0
        cells = zip(values.mean(axis=0), np.broadcast_to(errors, values.shape[1:]), strict=True)
        figures = "".join(f"{mean:9.3f} ±{error:5.3f}" for mean, error in cells)
        print(f"{name:32s}{len(values):6d}{figures}", flush=True)


def seeds_of(name: str, arguments) -> range:
    return range(min(arguments.slow_seeds, arguments.seeds) if name in SLOW else arguments.seeds)


def accuracy_tasks(table: Table, arguments) -> None:
    short10, long10 = table["cifar10_val12"], table["cifar10_test200"]
    short100, long100 = table["cifar100_val12"], table["cifar100_test200"]
    tasks = (
        ("cifar10", "CIFAR-10, 12 epochs told: test accuracy of the pick", short10, long10, picks),
        ("cifar100", "CIFAR-100 by its test accuracy", long100, long100, picks),
        (
            "promotion",
            f"CIFAR-100, 12 epochs told, the best {N_PROMOTED} (1 of 30) promoted",
            short100,
            long100,
            promoted,
        ),
    )
    for key, title, told, score, judge in tasks:
        if key not in arguments.tasks:
            continue
        scores = {
            name: [
                judge(told, score, different(METHODS[name](told[:, None], None, seed), BUDGETS[-1]))
                for seed in seeds_of(name, arguments)
            ]
            for name in arguments.methods
        }
        show(f"{title} (optimum {score.max():.2f})", scores, [f"{n} queries" for n in BUDGETS])


def front_task(table: Table, arguments) -> None:
    """Each device; then queries until .95 of the hypervolume, ours against NSGA-II."""
    accuracy = table["cifar100_test200"]
    names = [name for name in arguments.methods if name not in ONE_OBJECTIVE]
    shares = {name: [] for name in names}
    needed = {name: [] for name in names}
    for device in table.devices[: arguments.devices]:
        latency = table[device]
        # pixel3 has a few impossible minima, which stand alone far below the rest
        usable = latency > 0.2 * np.quantile(latency, 0.01)
        objectives = np.column_stack([np.where(usable, accuracy, 0), -latency])
        reference = np.array([50.0, -latency[usable].max()])
        whole = hypervolume(objectives[usable], reference)
        by_name = {}
        for name in names:
            by_name[name] = []
            for seed in range(arguments.front_seeds):
                costs = latency[:, None] if name == "surrogate" else None
                limit = arguments.front_queries if name in FRONT_PEERS else BUDGETS[-1]
                rows = different(METHODS[name](objectives, costs, seed), limit)
                course = [
                    hypervolume(objectives[rows[:n]][usable[rows[:n]]], reference) / whole
                    for n in BUDGETS
                ]
                by_name[name].append(course)
                needed[name].append(
                    queries_until(0.95 * whole, objectives, usable, rows, reference)
                )
            shares[name] += by_name[name]
        show(device, by_name, [f"{n} queries" for n in BUDGETS])
    show("front, mean over devices and seeds", shares, [f"{n} queries" for n in BUDGETS])
    print(
        "\nqueries until .95 of the hypervolume, mean over devices and seeds (+: not all reached)"
    )
    for name, counts in needed.items():
        counts = np.array(counts)
        print(f"{name:32s}{np.abs(counts).mean():8.0f}{'+' if (counts < 0).any() else ''}")


def queries_until(volume, objectives, usable, rows, reference) -> int:
    """The fewest queries that reach `volume`; minus their number where none do."""

    def reached(n: int) -> bool:
        return hypervolume(objectives[rows[:n][usable[rows[:n]]]], reference) >= volume

    if not reached(len(rows)):
        return -len(rows)
    return 1 + bisect.bisect_left(range(1, len(rows) + 1), True, key=reached)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).parents[1] / "../shared/data/nas_bench_201.csv.gz"
    parser.add_argument("--table", type=Path, default=default)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--slow-seeds", type=int, default=10, help=f"of {', '.join(SLOW)}")
    parser.add_argument("--front-seeds", type=int, default=4, help="on each device")
    parser.add_argument("--front-queries", type=int, default=500, help="at most, of NSGA-II")
    parser.add_argument("--devices", type=int, default=13)
    parser.add_argument("--tasks", nargs="+", default=["cifar10", "cifar100", "promotion", "front"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--quick", action="store_true", help="3 seeds, 2 devices, no slow method")
    arguments = parser.parse_args()
    if not arguments.table.is_file():
        print(f"no table at {arguments.table}: nothing is measured", file=sys.stderr)
        return
    if arguments.quick:
        arguments.seeds, arguments.front_seeds, arguments.devices = 3, 1, 2
        arguments.methods = [name for name in arguments.methods if name not in SLOW]
    warnings.filterwarnings("ignore")
    begun = time.process_time()
    table = Table(arguments.table)
    accuracy_tasks(table, arguments)
    if "front" in arguments.tasks:
        front_task(table, arguments)
    print(f"\n{time.process_time() - begun:.0f} CPU seconds")


if __name__ == "__main__":
    main()
