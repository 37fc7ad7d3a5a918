"""Optuna's samplers as controllers (Akiba et al., 1907.10902): `optuna.tpe` and so on.

Each ask makes the sampler anew, with a seed of its own that follows from the run's and the number
of trials, over a study in memory. So the history and the attributes by which Optuna marks its
trials are the whole state, and a resumed run goes on exactly; Optuna itself repeats itself.

Its grid sampler is left out, which is `optuna.brute_force` where all decisions are lists, and its
CMA-ES, which has no unordered choices and keeps its state as a pickle.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.controllers.foreign import Foreign, checked, installed
from nas.trial import State
from search_spaces.space import Decision, Space

if TYPE_CHECKING:
    import optuna

GIVEN = ("seed", "independent_sampler")
CACHES = ("_search_space", "_intersection_search_space")
WHILE_OPEN = "tpe:"  # begins the marks that count for open trials alone


class Optuna(Foreign):
    """A sampler of Optuna. options: the sampler's own, by their names there."""

    name: str
    sampler: str  # the name of its class
    libraries: tuple[str, ...] = ("optuna",)
    reseeds = True  # whether a seed of its own for every trial leaves it what it is

    def __init__(
        self,
        space: Space,
        *,
        seed: int,
        n_objectives: int = 1,
        options: Mapping[str, Any] = MappingProxyType({}),
    ):
        installed(self.name, self.libraries)
        import optuna

        self.cls = getattr(optuna.samplers, self.sampler)
        self.options = checked(self.name, self.cls, options, GIVEN)
        kinds = optuna.distributions
        self.distributions = {
            d.name: kinds.IntDistribution(0, len(d.values) - 1)
            if d.ordered
            else kinds.CategoricalDistribution(tuple(range(len(d.values))))
            for d in space.decisions
        }
        super().__init__(space, seed=seed, n_objectives=n_objectives)
        self._sampler(0)  # so that a wrong option is an error now

    def begin(self) -> None:
        import optuna

        self.storage = optuna.storages.InMemoryStorage()
        shown = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(
            storage=self.storage, directions=["maximize"] * self.n_objectives
        )
        optuna.logging.set_verbosity(shown)
        self.common: dict[str, Any] = {}
        self.study.stop = lambda: None  # brute force would end a loop that is ours
        self.study_id = self.storage.get_study_id_from_name(self.study.study_name)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        import optuna

        each = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        options = {"seed": each if self.reseeds else self.seed, **self.options}
        if not self.reseeds:
            options["independent_sampler"] = optuna.samplers.RandomSampler(seed=each)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that an option is experimental
            try:
                return self.cls(**options)
            except TypeError as error:
                raise ValueError(f"controller '{self.name}' cannot be made: {error}") from error

    def suggest(self) -> np.ndarray:
        self.study.sampler = self._sampler(len(self.history))
        for name in CACHES:  # what all trials have in common: found anew it takes most of an ask
            if name in vars(self.study.sampler):
                fresh = getattr(self.study.sampler, name)
                setattr(self.study.sampler, name, self.common.setdefault(name, fresh))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = self.study.ask()
            row = np.zeros(len(self.space), np.int64)
            on = np.zeros(len(self.space), bool)
            for i, decision in enumerate(self.space.decisions):
                on[i] = all(on[j] and allowed[row[j]] for j, allowed in self.space.conditions[i])
                if on[i]:
                    row[i] = self._choose(trial, decision)
        return row

    def _choose(self, trial: optuna.Trial, decision: Decision) -> int:
        if decision.ordered:
            return trial.suggest_int(decision.name, 0, len(decision.values) - 1)
        return trial.suggest_categorical(decision.name, tuple(range(len(decision.values))))

    def add(self, row: np.ndarray) -> None:
        self.study.add_trial(self._frozen(row, None, {}))

    def answer(self, number: int, values: np.ndarray) -> None:
        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if np.isnan(values).any():
                self.study.tell(number, state=optuna.trial.TrialState.FAIL)
            else:
                self.study.tell(number, values.tolist())

    def _frozen(
        self, row: np.ndarray, values: np.ndarray | None, attributes: dict
    ) -> optuna.trial.FrozenTrial:
        """A trial with its result; None while it is open, NaN where it failed."""
        import optuna

        kinds = optuna.trial.TrialState
        on = self.space.active(row)[0]
        params = {name: int(row[i]) for i, name in enumerate(self.space.names) if on[i]}
        failed = values is not None and bool(np.isnan(values).any())
        return optuna.trial.create_trial(
            state=kinds.RUNNING if values is None else kinds.FAIL if failed else kinds.COMPLETE,
            values=None if values is None or failed else values.tolist(),
            params=params,
            distributions={name: self.distributions[name] for name in params},
            system_attrs=attributes,
        )

    def own_state(self) -> State:
        trials = zip(self.study.get_trials(deepcopy=False), self.results, strict=True)
        attributes = {
            "trials": [
                {
                    k: v
                    for k, v in t.system_attrs.items()
                    if told is None or not k.startswith(WHILE_OPEN)
                }
                for t, told in trials
            ],
            "study": self.storage.get_study_system_attrs(self.study_id),
        }
        return {"attributes": json.loads(json.dumps(attributes))}

    def own_restore(self, state: State) -> None:
        marks = state["attributes"]["trials"]
        rows = zip(self.history, self.results, marks, strict=True)
        self.study.add_trials([self._frozen(*row) for row in rows])
        for key, value in state["attributes"]["study"].items():
            self.storage.set_study_system_attr(self.study_id, key, value)


class Tpe(Optuna):
    """Optuna's tree-structured Parzen estimator."""

    name, sampler = "optuna.tpe", "TPESampler"


class GaussianProcess(Optuna):
    """Optuna's Gaussian process; needs torch."""

    name, sampler = "optuna.gp", "GPSampler"
    libraries = ("optuna", "torch")
    redraws = 1  # each takes a fit


class Nsga2(Optuna):
    """Optuna's NSGA-II."""

    name, sampler = "optuna.nsgaii", "NSGAIISampler"


class Nsga3(Optuna):
    """Optuna's NSGA-III."""

    name, sampler = "optuna.nsgaiii", "NSGAIIISampler"


class QuasiRandom(Optuna):
    """Optuna's Sobol or Halton sequence."""

    name, sampler, reseeds = "optuna.qmc", "QMCSampler", False


class BruteForce(Optuna):
    """Optuna's exhaustive search in random order."""

    name, sampler = "optuna.brute_force", "BruteForceSampler"


class RandomSampler(Optuna):
    """Optuna's random search."""

    name, sampler = "optuna.random", "RandomSampler"


SAMPLERS = {
    cls.name: cls
    for cls in (Tpe, GaussianProcess, Nsga2, Nsga3, QuasiRandom, BruteForce, RandomSampler)
}
