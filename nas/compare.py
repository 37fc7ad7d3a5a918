"""Controllers compared on equal budgets: regret and hypervolume against trainings, over seeds.

Where designs are looked up, each search takes a second or so: the searches run in worker processes,
nothing of them is kept, and the truth is known from all designs. Elsewhere each is a run of its own
in `to/CONTROLLER/seed-N`, gone on with where it was left, and the best that any of them found
stands in for the truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from nas import config as configuration
from nas import feasibility, pareto, words
from nas.executor import InProcess, LocalExecutor
from nas.reward import Pareto, Reward, violations
from nas.run_dir import RunDir, RunError, write_whole
from nas.search import Search
from nas.store import Store
from nas.trial import Metrics, Proposal, Status, Trial

if TYPE_CHECKING:
    import pandas

PICKED = " of the pick"  # ends the measures of final trainings
MARGIN = 0.1  # of the front's extent, between its worst values and the reference


class Truth(NamedTuple):
    """What a search could reach. score: the best. volume: of the front, above the reference [m]."""

    score: float
    volume: float
    reference: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """curves: measure -> controller -> float [seeds, trainings]. score: what the regret is of;
    exact: whether the truth is known, or only the best that was found."""

    curves: dict[str, dict[str, np.ndarray]]
    budgets: tuple[int, ...]
    score: str
    exact: bool

    def frame(self) -> pandas.DataFrame:
        """One row a controller, seed and training; a column a measure."""
        import pandas

        first = next(iter(self.curves.values()))
        parts = []
        for controller, values in first.items():
            seeds, trainings = np.indices(values.shape)
            columns = {m: each[controller].ravel() for m, each in self.curves.items()}
            index = {"seed": seeds.ravel(), "trainings": trainings.ravel() + 1}
            parts.append(pandas.DataFrame({"controller": controller, **index, **columns}))
        return pandas.concat(parts, ignore_index=True)

    def lines(self, measure: str) -> list[list[str]]:
        """A table of text: a row a controller, a column a budget, mean ± 95 % confidence."""
        heads = [measure, *(f"after {budget:,}" for budget in self.budgets)]
        rows = [heads]
        for controller, values in self.curves[measure].items():
            middle, half = band(values)
            at = [budget - 1 for budget in self.budgets]
            share = self.is_share(measure)
            rows.append([controller, *(_figure(middle[i], half[i], share) for i in at)])
        return rows

    def is_share(self, measure: str) -> bool:
        """Whether a measure is a share of 1: of the front's volume, or of what is classified."""
        what = self.score if measure == "regret" else measure.removesuffix(PICKED)
        return measure == "hypervolume" or words.is_share(what)


def compare(
    preset: str,
    controllers: Sequence[str] | Mapping[str, Mapping[str, Any]],
    *,
    seeds: int = 10,
    budgets: Sequence[int] = (30, 50, 100),
    to: str | Path,
    data: str | Path = "",
    workers: int | None = None,
    assignments: Sequence[str] = (),
    progress: bool = True,
) -> Comparison:
    """Run every controller with seeds 0, 1, ... to the largest budget; write `comparison.html` and
    `comparison.csv` into the directory `to`.

    controllers: names, with the preset's options where it has the same controller; or a mapping
    from a label to a `[controller]` table. Raises ValueError before anything runs; SearchError or
    RuntimeError where a search cannot go on.
    """
    from nas.report.compared import page_of

    configs = _configs(preset, controllers, seeds, budgets, data, workers, assignments)
    to = Path(to)
    to.mkdir(parents=True, exist_ok=True)
    first = next(iter(configs.values()))
    if configuration.make_evaluator(first).in_process:
        curves = _simulated(configs, seeds, to, progress)
    else:
        curves = _searched(configs, seeds, to, progress)
    score, *_ = configuration.make_reward(first).names
    exact = configuration.make_evaluator(first).in_process
    comparison = Comparison(curves, tuple(sorted(set(budgets))), score, exact)
    table = comparison.frame().to_csv(index=False, lineterminator="\n")
    write_whole(to / "comparison.csv", table)
    write_whole(to / "comparison.html", page_of(comparison, preset))
    return comparison


def _configs(preset, controllers, seeds, budgets, data, workers, assignments) -> dict[str, dict]:
    """Label -> configuration of its searches, all checked."""
    if seeds < 1:
        raise configuration.ConfigError(f"seeds must be at least 1; got {seeds}")
    if not budgets or min(budgets) < 1:
        raise configuration.ConfigError(f"budgets are at least 1 each; got {list(budgets)}")
    if not controllers:
        raise configuration.ConfigError("name at least one controller")
    if not isinstance(controllers, Mapping):
        controllers = {name: {"name": name} for name in controllers}
    configs = {}
    for label, settings in controllers.items():
        table = configuration.read(preset)
        for assignment in assignments:
            configuration.assign(table, assignment)
        if data:
            path = str(Path(data).resolve())
            configuration.override(table, "evaluator", {"path": path})
        configuration.override(table, "controller", settings)
        table |= {"trials": max(budgets), "final": {"top": 0}, "hours": 0.0}
        table |= {"workers": workers} if workers else {}
        configs[label] = configuration.complete(table)
        if configs[label]["fidelities"]["rungs"]:
            raise configuration.ConfigError(
                "trainings of several lengths are no equal budgets; set fidelities.rungs = []"
            )
        space = configuration.make_space(configs[label])
        configuration.make_evaluator(configs[label]).check(space)
        feasibility.check(configs[label])
    return configs


# -- where designs are looked up -------------------------------------------------------------------


def _simulated(configs: dict[str, dict], seeds: int, to: Path, progress: bool) -> dict:
    """Measure -> label -> [seeds, trainings], searched in worker processes."""
    workers = min(next(iter(configs.values()))["workers"], len(configs) * seeds)
    curves: dict[str, dict[str, list]] = {}
    tasks = [(label, seed) for seed in range(seeds) for label in configs]
    options = {"configs": configs}
    with LocalExecutor(workers, Simulation.name, options, to / "comparison.log") as executor:
        for id, (label, seed) in enumerate(tasks):
            task = {"id": id, "kind": "trial", "seed": seed, "choices": {"label": label}}
            executor.submit(task)
        for _ in tqdm(tasks, unit="search", disable=not progress, dynamic_ncols=True):
            result = executor.wait()
            label, seed = tasks[result["id"]]
            if "error" in result:
                raise RuntimeError(f"{label} with seed {seed}: {result['error']}")
            for measure, values in result["metrics"].items():
                rows = curves.setdefault(measure, {name: [None] * seeds for name in configs})
                rows[label][seed] = values
    return {
        measure: {label: np.array(rows, float) for label, rows in each.items()}
        for measure, each in curves.items()
    }


class Simulation:
    """A whole search as one evaluation, in a worker: its metrics are the curves of its measures."""

    name = "simulation"

    def __init__(self, *, configs: Mapping[str, dict]):
        self.configs = configs

    def start(self, folder: Path | None = None) -> None:
        """Find the truth from all designs."""
        config = next(iter(self.configs.values()))
        table, space = configuration.make_evaluator(config), configuration.make_space(config)
        self.reward = configuration.make_reward(config)
        encodings = space.enumerate()
        columns = table.columns(space, encodings)
        constraints = configuration.make_constraints(config)
        trials = []
        for i, row in enumerate(encodings):
            metrics = {name: column[i] for name, column in columns.items()}
            if not violations(constraints, metrics):
                trials.append(Trial(i, Proposal(row), 0, Status.COMPLETE, metrics))
        self.truth = truth_of(self.reward, trials)

    def evaluate(self, choices: dict, *, seed: int) -> Metrics:
        """Measure -> its value after each training."""
        config = {**self.configs[choices["label"]], "seed": seed}
        evaluator, space = configuration.make_evaluator(config), configuration.make_space(config)
        store = Store(None)
        Search(
            price=configuration.make_price(config),
            space=space,
            controller=configuration.make_controller(config),
            reward=self.reward,
            constraints=configuration.make_constraints(config),
            executor=InProcess(evaluator),
            store=store,
            n_trials=config["trials"],
            in_flight=config["in_flight"],
            seed=seed,
            out_of_time=lambda: False,
            watch=lambda trial: None,
        ).run()
        trained = trainings(store.trials())
        store.close()
        found = measures(self.reward, [[trial] for trial in trained], self.truth)
        if evaluator.final_metrics:
            metric = evaluator.final_metrics[0]
            picks = picked(self.reward, trained)
            finals = [
                evaluator.finalize(space.decode(trial.proposal.encoding), seed=seed, weights=Path())
                if trial
                else {metric: np.nan}
                for trial in picks
            ]
            found[words.label(metric) + PICKED] = [each[metric] for each in finals]
        return {measure: np.asarray(values).tolist() for measure, values in found.items()}


# -- where designs are trained ---------------------------------------------------------------------


def _searched(configs: dict[str, dict], seeds: int, to: Path, progress: bool) -> dict:
    """Measure -> label -> [seeds, trainings], from a run each, kept in `to`."""
    from nas.run import Run, begin, resume

    sets: dict[str, list[list[list[Trial]]]] = {label: [] for label in configs}
    for seed in range(seeds):
        for label, config in configs.items():
            config = {**config, "seed": seed}
            path = to / label / f"seed-{seed}"
            run = Run(path) if RunDir(path).config.exists() else None
            free = {
                key: config[key] for key in ("trials", "workers", "cluster")
            }  # change no design
            if run and {**run.config, **free} != config:
                raise RunError(f"{path} is a run with other settings; name another --to")
            if run is None:
                run = begin(config, path, progress=progress)
            elif not run.dir.report.exists() or run.config["trials"] < config["trials"]:
                run = resume(path, progress=progress, **free)
            trained = trainings(run.trials())[: config["trials"]]
            pairs = [run.sweep.of(t) if run.sweep and not _failed(t) else [] for t in trained]
            sets[label].append([[t, *more] for t, more in zip(trained, pairs, strict=True)])
    reward = configuration.make_reward(next(iter(configs.values())))
    truth = truth_of(reward, [t for runs in sets.values() for run in runs for s in run for t in s])
    curves: dict[str, dict[str, np.ndarray]] = {}
    for label, runs in sets.items():
        found = [measures(reward, run, truth) for run in runs]
        for measure in found[0]:
            values = np.array([each[measure] for each in found])
            curves.setdefault(measure, {})[label] = values
    return curves


# -- measures --------------------------------------------------------------------------------------


def trainings(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that cost a training, in the order of asking."""
    return [t for t in trials if t.status is not Status.INFEASIBLE and t.repeats is None]


def _failed(trial: Trial) -> bool:
    return trial.status is not Status.COMPLETE


def truth_of(reward: Reward, trials: Sequence[Trial]) -> Truth:
    """The best score, and the volume above a reference a little worse than the front's worst."""
    points = Pareto(objectives=reward.goals)(trials)
    points = points[~np.isnan(points).any(axis=1)]
    if not len(points):
        raise ValueError("no design was evaluated to compare with")
    front = points[pareto.front(points)]
    worst, best = front.min(axis=0), front.max(axis=0)
    extent = np.where(best > worst, best - worst, np.maximum(np.abs(best), 1e-12))
    reference = worst - MARGIN * extent
    score = float(np.nanmax(reward(trials)[:, 0]))
    return Truth(score, pareto.hypervolume(front, reference), reference)


def measures(reward: Reward, sets: Sequence[Sequence[Trial]], truth: Truth) -> dict[str, list]:
    """Measure -> its value after each training, whose designs are one of the `sets`.

    regret: of the first objective, how far the best so far is from the best there is.
    hypervolume: the front so far above the reference, as a share of the true front's.
    """
    goals = Pareto(objectives=reward.goals)
    kept = np.empty((0, goals.n_objectives))
    best, volume = -np.inf, 0.0
    regrets, volumes = [], []
    for designs in sets:
        scores = reward(designs)[:, 0]
        best = np.fmax(best, np.fmax.reduce(scores))
        joined = np.vstack([kept, goals(designs)])
        on_front = pareto.front(joined)
        if on_front[len(kept) :].any():
            kept = joined[on_front]
            volume = pareto.hypervolume(kept, truth.reference)
        regrets.append(truth.score - best if np.isfinite(best) else np.nan)
        volumes.append(volume / truth.volume)
    found = {"regret": regrets}
    return found | ({"hypervolume": volumes} if goals.n_objectives > 1 else {})


def picked(reward: Reward, trained: Sequence[Trial]) -> list[Trial | None]:
    """The best by the first objective after each training; None while there is none."""
    scores = reward(trained)[:, 0]
    picks, best = [], None
    for i, score in enumerate(scores):
        if np.isfinite(score) and (best is None or score > scores[best]):
            best = i
        picks.append(None if best is None else trained[best])
    return picks


def band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean over seeds of [seeds, n], and half the width of its 95 % confidence interval by
    Student's t: [n] each; NaN for one seed."""
    from scipy.stats import t

    n = len(values)
    middle = values.mean(axis=0)
    if n < 2:
        return middle, np.full(len(middle), np.nan)
    return middle, t.ppf(0.975, n - 1) * values.std(axis=0, ddof=1) / np.sqrt(n)


def _figure(middle: float, half: float, share: bool) -> str:
    scale, form, unit = (100, ".2f", f"{words.SPACE}%") if share else (1, ".4f", "")
    error = f" ± {scale * half:{form}}" if np.isfinite(half) else ""
    return f"{scale * middle:{form}}{error}{unit}"
