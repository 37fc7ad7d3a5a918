"""How many trainings each way of searching needs, on the table of all NAS-Bench-201 cells.

    python benchmarks/search_efficiency.py [--table ../shared/data/nas_bench_201.csv.gz]
        [--quick] [--workers 2] [--cache FILE] [--tasks ...] [--methods ...]

Every method asks for one cell at a time and is told its table row; a cell that it asks for again is
told for nothing, so that budgets count different cells. Means over seeds 0, 1, ... and their
standard errors. Our controllers run with their defaults (evolution and REINFORCE with the values
found best on small tables), the others with the settings written beside them. No setting of ours
was chosen on the seeds reported; where the surrogate cuts off bad accuracies under several goals,
and that promotions wait for all the queries, were chosen on seeds from 1000, on the same table and
devices. Where another start, of six designs far from each other, was as good there and worse here
(CIFAR-10 94.18 and CIFAR-100 73.13 after 50), the plain one stayed.
With --cache, each search that ends is a line of JSON in that file, and is not run again.

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
  ask            CPU time of one `ask` of the surrogate after 1,000 and 10,000 trials on a space of
                 60 decisions: one objective; two, both unknown; accuracy and two known costs; two
                 unknown and a known cost, on each of 48 accelerators
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import argparse
import bisect
import csv
import functools
import gzip
import json
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nas.controllers import make
from nas.controllers.outlook import Unknown
from nas.fidelities import Rung
from nas.pareto import hypervolume
from nas.trial import Proposal, Status, Trial
from search_spaces import Space, cell
from search_spaces.space import Decision

BUDGETS = (30, 50, 100, 150)
SPACE = Space(cell.SPACE.decisions[: len(cell.EDGES)])
OPS = {"none": "none", "skip_connect": "skip", "avg_pool_3x3": "avg_pool_3x3"} | {
    f"nor_conv_{k}x{k}": f"conv_{k}x{k}" for k in (1, 3)
}
N_DESIGNS = 15_625
LONG = 200 / 12  # the cost of a long training, in short ones
MAX_PROMOTED = 5
PLACES = 5 ** np.arange(len(cell.EDGES))[::-1]
REPEATS = 500  # cells asked for again in a row, after which a method has settled


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
    """Integer variables, uniform crossover and mutation by redraw, duplicates eliminated.

    On other seeds, populations of 10, 20 and 40 were tried with mutation of every child and of
    half of them, and with 1/3 and 1/2 of the variables changed in place of 1/6."""
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
        mutation=ChoiceRandomMutation(prob=0.5),
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
    """On other seeds, 5, 10 and 20 random trials were tried, variables apart, groups, and 128
    candidates in place of 24."""
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=5)


def nsga2_sampler(optuna, seed):
    """On other seeds, populations of 10, 20, 40 were tried, with more mutation or less swapping."""
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=10)


METHODS: dict[str, Method] = {
    "random": ours("random"),
    "local_search": ours("local_search"),
    "regularized evolution (10, 3)": ours("evolution", population=10, sample=3),
    "policy_gradient, REINFORCE": ours("policy_gradient"),
    "policy_gradient, PPO": ours("policy_gradient", algorithm="ppo"),
    "tunas": ours("tunas"),
    "nsga2 (20)": ours("nsga2"),
    "Optuna TPE, multivariate (5)": optuna_sampler(tpe_sampler),
    "Optuna GP": optuna_sampler(gp_sampler),
    "Optuna NSGA-II (10)": optuna_sampler(nsga2_sampler),
    "pymoo NSGA-II (20, .5)": pymoo_nsga2,
    "KerasTuner Bayesian": keras_tuner_bayesian,
    "surrogate": ours("surrogate"),
}
SLOW = ("Optuna GP", "KerasTuner Bayesian")  # fewer seeds, fewer queries
ONE_OBJECTIVE = ("policy_gradient, REINFORCE", "policy_gradient, PPO", "tunas")
NSGA2 = ("nsga2 (20)", "Optuna NSGA-II (10)", "pymoo NSGA-II (20, .5)")


class Search(NamedTuple):
    """One search of the comparison. device: of a front, else ""."""

    task: str
    device: str
    method: str
    seed: int
    n: int  # different queries


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


def pick(told: np.ndarray, score: np.ndarray, rows: np.ndarray, budget: int) -> float:
    """The score of the best cell told within the budget."""
    return float(score[rows[:budget][told[rows[:budget]].argmax()]])


def promoted(told: np.ndarray, score: np.ndarray, rows: np.ndarray, budget: int) -> float:
    """The best score of the few best cells told, queries and long trainings within the budget.

    Half of it is for long trainings, one at least; they are begun when the queries have ended."""
    n_long = max(min(MAX_PROMOTED, int(budget / 2 / LONG)), 1)
    n_short = int(budget - n_long * LONG)
    rung = Rung()
    for row in rows[:n_short]:
        rung.add(row, told[row, None])
    best = [rung.promote(reduction=n_short // n_long, after=n_short) for _ in range(n_long)]
    return float(score[best].max())


# -- running the searches --------------------------------------------------------------------------


@functools.cache
def table_of(path: Path) -> Table:
    return Table(path)


def problem(table: Table, search: Search) -> tuple[np.ndarray, np.ndarray]:
    """(objectives [designs, m], which of them are usable [designs]) of a search."""
    if search.task != "front":
        told = {"cifar10": "cifar10_val12", "promotion": "cifar100_val12"}
        column = table[told.get(search.task, "cifar100_test200")]
        return column[:, None], np.ones(N_DESIGNS, bool)
    latency = table[search.device]
    # pixel3 has a few impossible minima, which stand alone far below the rest
    usable = latency > 0.2 * np.quantile(latency, 0.01)
    return np.column_stack([np.where(usable, table["cifar100_test200"], 0), -latency]), usable


def execute(path: Path, search: Search) -> tuple[list[int], float]:
    """(the different rows asked for, CPU seconds) of one search."""
    warnings.filterwarnings("ignore")
    begun = time.process_time()
    objectives, _ = problem(table_of(path), search)
    known = search.task == "front" and search.method == "surrogate"
    costs = -objectives[:, 1:] if known else None
    rows = different(METHODS[search.method](objectives, costs, search.seed), search.n)
    return rows.tolist(), time.process_time() - begun


def run(searches: list[Search], path: Path, workers: int, cache: Path | None) -> dict:
    """Search -> its rows [n], from the cache where it has them; what ends is added to it."""
    found: dict[Search, np.ndarray] = {}
    if cache is not None and cache.exists():
        for line in cache.read_text("utf-8").splitlines():
            if line.endswith("}"):  # else cut off when the last one was stopped
                record = json.loads(line)
                found[Search(*record["search"])] = np.array(record["rows"])
    missing = [search for search in searches if search not in found]
    with ProcessPoolExecutor(workers) as executor:
        futures = {executor.submit(execute, path, search): search for search in missing}
        for future in as_completed(futures):
            search, (rows, cpu_s) = futures[future], future.result()
            found[search] = np.array(rows)
            if cache is not None:
                record = {"search": search, "rows": rows, "cpu_s": round(cpu_s, 3)}
                with open(cache, "a", encoding="utf-8") as file:
                    file.write("\n" + json.dumps(record))
    return {search: found[search] for search in searches}


def searches_of(task: str, table: Table, arguments) -> list[Search]:
    fronts = task == "front"
    found = []
    for method in arguments.methods:
        if fronts and method in ONE_OBJECTIVE:
            continue
        n, n_seeds = BUDGETS[-1], arguments.front_seeds if fronts else arguments.seeds
        if method in SLOW:
            n, n_seeds = arguments.slow_queries, min(n_seeds, arguments.slow_seeds)
        elif fronts and method in NSGA2:
            n = max(n, arguments.front_queries)
        devices = table.devices[: arguments.devices] if fronts else [""]
        for device in devices[:1] if fronts and method in SLOW else devices:
            found += [Search(task, device, method, seed, n) for seed in range(n_seeds)]
    return found


# -- what came of them -----------------------------------------------------------------------------

TITLES = {
    "cifar10": "CIFAR-10, 12 epochs told: test accuracy of the pick",
    "cifar100": "CIFAR-100 by its test accuracy",
    "promotion": "CIFAR-100, 12 epochs told, the best few promoted",
    "front": "CIFAR-100 accuracy and latency: share of the hypervolume, over devices and seeds",
}


def judge(table: Table, search: Search, rows: np.ndarray) -> list[float]:
    """The score of a search after each budget that it had."""
    objectives, usable = problem(table, search)
    budgets = [n for n in BUDGETS if n <= search.n]
    if search.task == "front":
        reference = reference_of(objectives[usable])
        whole = hypervolume(objectives[usable], reference)
        parts = [rows[:n][usable[rows[:n]]] for n in budgets]
        return [hypervolume(objectives[part], reference) / whole for part in parts]
    score = table["cifar10_test200" if search.task == "cifar10" else "cifar100_test200"]
    judged = promoted if search.task == "promotion" else pick
    return [judged(objectives[:, 0], score, rows, n) for n in budgets]


def reference_of(objectives: np.ndarray) -> np.ndarray:
    return np.array([50.0, objectives[:, 1].min()])


def show(task: str, table: Table, found: dict[Search, np.ndarray]) -> None:
    """Means and standard errors after each budget, and whom ours is ahead of."""
    scores: dict[str, list[list[float]]] = {}
    for search, rows in found.items():
        scores.setdefault(search.method, []).append(judge(table, search, rows))
    best = f" (optimum {problem(table, next(iter(found)))[0].max():.2f})"
    heads = "".join(f"{f'{n} queries':>17s}" for n in BUDGETS)
    print(f"\n{TITLES[task]}{best if task == 'cifar100' else ''}")
    print(f"{'method':32s}{'runs':>5s}{heads}   ours ahead after")
    summaries = {
        name: [summary(column) for column in zip(*rows, strict=True)]
        for name, rows in scores.items()
    }
    ours = summaries.get("surrogate")
    for name, figures in summaries.items():
        cells = "".join(f"{mean:10.3f} ±{error:5.3f}" for mean, error in figures)
        verdict = ""
        if ours and name != "surrogate":
            ahead = [n for n, a, b in zip(BUDGETS, ours, figures, strict=False) if a[0] > b[0]]
            verdict = "all" if len(ahead) == len(figures) else ", ".join(map(str, ahead)) or "none"
        print(
            f"{name:32s}{len(scores[name]):5d}{cells:{17 * len(BUDGETS)}s}   {verdict}", flush=True
        )


def summary(values) -> tuple[float, float]:
    """(mean, its standard error)."""
    values = np.array(values)
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()), float(error)


def show_needed(table: Table, found: dict[Search, np.ndarray]) -> None:
    """Queries until .95 of the hypervolume."""
    needed: dict[str, list[int]] = {}
    for search, rows in found.items():
        objectives, usable = problem(table, search)
        reference = reference_of(objectives[usable])
        volume = 0.95 * hypervolume(objectives[usable], reference)
        count = queries_until(volume, objectives, usable, rows, reference)
        needed.setdefault(search.method, []).append(count)
    print("\nqueries until .95 of the hypervolume, mean (> : those that never did, at their last)")
    ours = np.abs(needed["surrogate"]).mean() if "surrogate" in needed else np.nan
    for name, counts in needed.items():
        counts = np.array(counts)
        mean, sign = np.abs(counts).mean(), ">" if (counts < 0).any() else " "
        print(f"{name:32s}{sign}{mean:6.0f}{mean / ours:8.1f} times ours")


def queries_until(volume, objectives, usable, rows, reference) -> int:
    """The fewest queries that reach `volume`; minus their number where none do."""

    def reached(n: int) -> bool:
        return hypervolume(objectives[rows[:n][usable[rows[:n]]]], reference) >= volume

    if not reached(len(rows)):
        return -len(rows)
    return 1 + bisect.bisect_left(range(1, len(rows) + 1), True, key=reached)


# -- the time of one ask ---------------------------------------------------------------------------


class Costed(Unknown):
    """Unknown objectives, then known costs of each design on each of some accelerators.

    worth: what each choice adds to a cost, float [decisions, values, costs]. factors: of an
    accelerator, float [accelerators, costs]."""

    def __init__(self, n_unknown: int, worth: np.ndarray, factors: np.ndarray):
        super().__init__(n_unknown, len(worth))
        self.worth, self.factors = worth, factors
        self.sources = np.array([*range(n_unknown), *[-1] * worth.shape[2]])

    def measured(self, trials, objectives: np.ndarray) -> np.ndarray:
        return objectives[:, : self.n_measured]

    def variants(self, encodings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        costs = self.worth[np.arange(len(self.worth)), encodings].sum(axis=1)
        designs = np.repeat(encodings[:, None], len(self.factors), axis=1)
        return designs, costs[:, None] * self.factors

    def objectives(self, measured: np.ndarray, known: np.ndarray) -> np.ndarray:
        shape = (*known.shape[:-1], self.n_measured)
        return np.concatenate([np.broadcast_to(measured, shape), -known], axis=-1)


def ask_task() -> None:
    space = Space([Decision(f"d{i}", (1, 2, 4, 8) if i % 2 else tuple("abcd")) for i in range(60)])
    rng = np.random.default_rng(0)
    worth = rng.normal(size=(60, 4, 3))
    factors = rng.uniform(0.5, 2, (48, 1))
    print("\nCPU ms of one ask, median of 9 (and with hyperparameters fitted anew); 60 decisions")
    outlooks = {
        "one objective": Unknown(1, 60),
        "two unknown objectives": Unknown(2, 60),
        "one unknown, two known costs": Costed(1, worth[..., 1:], np.ones((1, 2))),
        "two unknown, cost on 48 machines": Costed(2, worth[..., 2:], factors),
    }
    for n_trials in (1_000, 10_000):
        for title, outlook in outlooks.items():
            m = len(outlook.sources)
            controller = make("surrogate", space, seed=0, n_objectives=m, outlook=outlook)
            encodings = space.sample(n_trials, rng)
            objectives = worth[np.arange(60), encodings].sum(axis=1)
            objectives[:, outlook.n_measured :] *= -1
            trials = [Trial(0, Proposal(row), 0, Status.COMPLETE) for row in encodings]
            controller.tell(trials, objectives[:, :m])
            times = []
            for _ in range(10):
                begun = time.process_time()
                [proposal] = controller.ask(1)
                times.append(1e3 * (time.process_time() - begun))
                controller.tell([Trial(0, proposal, 0, Status.COMPLETE)], objectives[:1, :m])
            print(
                f"{n_trials:7,} trials, {title:34s}{np.median(times[1:]):6.0f} ({times[0]:.0f})",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).parents[1] / "../shared/data/nas_bench_201.csv.gz"
    tasks = [*TITLES, "ask"]
    parser.add_argument("--table", type=Path, default=default)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--slow-seeds", type=int, default=3, help=f"of {', '.join(SLOW)}")
    parser.add_argument("--slow-queries", type=int, default=50, help="of those; a budget")
    parser.add_argument("--front-seeds", type=int, default=4, help="on each device")
    parser.add_argument("--front-queries", type=int, default=500, help="at most, of NSGA-II")
    parser.add_argument("--devices", type=int, default=13, help="slow methods see the first")
    parser.add_argument("--tasks", nargs="+", default=tasks, choices=tasks)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cache", type=Path, help="JSON lines; searches in it are not run again")
    parser.add_argument("--quick", action="store_true", help="3 seeds, 2 devices, no slow method")
    arguments = parser.parse_args()
    if not arguments.table.is_file():
        print(f"no table at {arguments.table}: nothing is measured", file=sys.stderr)
        return
    if arguments.quick:
        arguments.seeds, arguments.front_seeds, arguments.devices = 3, 1, 2
        arguments.methods = [name for name in arguments.methods if name not in SLOW]
    table = table_of(arguments.table)
    for task in arguments.tasks:
        if task == "ask":
            ask_task()
            continue
        searches = searches_of(task, table, arguments)
        found = run(searches, arguments.table, arguments.workers, arguments.cache)
        show(task, table, found)
        if task == "front":
            show_needed(table, found)


if __name__ == "__main__":
    main()
