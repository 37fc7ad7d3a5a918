"""KerasTuner's oracles as controllers: `keras_tuner.bayesian` and so on.

An oracle saves less than it needs: the Bayesian one forgets its random state and the model that
stands in for open trials, the grid its place. Both are kept here, a trial takes as many bytes as it
has decisions, and nothing is written but by the run's own store.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.controllers.foreign import Foreign, checked, installed
from nas.hyperparameters import to_choices, to_hyperparameters
from nas.quiet import quietly
from nas.trial import State
from search_spaces.space import Space

if TYPE_CHECKING:
    import keras_tuner

GIVEN = (
    "objective",
    "max_trials",
    "hyperparameters",
    "tune_new_entries",
    "allow_new_entries",
    "seed",
    "max_retries_per_trial",
    "max_consecutive_failed_trials",
)
# of `Oracle.get_state`: what follows from the trials, or never changes
DERIVED = (
    "ongoing_trials",
    "hyperparameters",
    "start_order",
    "end_order",
    "run_times",
    "seed",
    "tried_so_far",
    "id_to_hash",
    "display",
    "hyperband_iterations",
)


class KerasTuner(Foreign):
    """An oracle of KerasTuner, for one objective. options: the oracle's own, by their names there.

    The lengths that Hyperband gives its trainings are not kept: each is as long as the evaluator's.
    """

    name: str
    oracle: str  # the name of its class
    libraries: tuple[str, ...] = ("keras_tuner",)

    def __init__(
        self,
        space: Space,
        *,
        seed: int,
        n_objectives: int = 1,
        options: Mapping[str, Any] = MappingProxyType({}),
    ):
        installed(self.name, self.libraries)
        if n_objectives != 1:
            raise ValueError(
                f"controller '{self.name}' pursues one objective, the reward has {n_objectives}; "
                "choose the reward mnasnet, tunas, weighted, or pareto of one metric"
            )
        with quietly():
            import keras_tuner

        self.cls = getattr(keras_tuner.oracles, self.oracle)
        self.options = checked(self.name, self.cls.__init__, options, GIVEN)
        self.hyperparameters = to_hyperparameters(space)
        super().__init__(space, seed=seed, n_objectives=n_objectives)

    def begin(self) -> None:
        import keras_tuner

        self.tuner = self.cls(
            objective=keras_tuner.Objective("reward", "max"),
            hyperparameters=self.hyperparameters.copy(),
            tune_new_entries=False,
            seed=1 + self.seed,  # it takes 0 for none
            max_consecutive_failed_trials=2**62,
            **({"max_trials": None} if self.oracle != "HyperbandOracle" else {}),
            **self.options,
        )
        self.tuner.verbose = 0
        self.tuner.save = lambda: None
        self.tuner._save_trial = lambda trial: None
        self.added: list[int] = []  # trials that the oracle did not suggest
        self.ended: list[int] = []  # those that it did, in the order in which they ended

    def suggest(self) -> np.ndarray | None:
        trial = self.tuner.create_trial(str(len(self.history)))
        if trial.status != "RUNNING":
            return None  # all combinations are tried, or more results are waited for
        choices = to_choices(self.space, trial.hyperparameters.values)
        return self.space.encode(choices)

    def add(self, row: np.ndarray) -> None:
        number = len(self.history)
        self.added.append(number)
        self._insert(number, row, {})

    def _insert(self, number: int, row: np.ndarray, more: dict) -> keras_tuner.engine.trial.Trial:
        """Enter an open trial; `more` are values that are no decisions, as Hyperband's rounds."""
        from keras_tuner.engine.trial import Trial

        hyperparameters = self.tuner.get_space()
        kinds = {hp.name: type(hp.default) for hp in hyperparameters.space}
        choices = self.space.decode(row)
        hyperparameters.values = {name: kinds[name](v) for name, v in choices.items()} | more
        trial = Trial(hyperparameters, f"{number:04d}")  # as the oracle counts them
        self.tuner.trials[trial.trial_id] = trial
        self.tuner.ongoing_trials[str(number)] = trial
        self.tuner._record_values(trial)
        return trial

    def answer(self, number: int, values: np.ndarray) -> None:
        trial = self.tuner.trials[f"{number:04d}"]
        trial.status = "FAILED" if np.isnan(values).any() else "COMPLETED"
        if number in self.added:
            trial.score = float(values[0])
            del self.tuner.ongoing_trials[str(number)]
            return
        self.ended.append(number)
        if trial.status == "COMPLETED":
            self.tuner.update_trial(trial.trial_id, {"reward": float(values[0])})
        self.tuner.end_trial(trial)

    def own_state(self) -> State:
        kept = {k: v for k, v in self.tuner.get_state().items() if k not in DERIVED}
        names = self.space.column
        more = {
            str(number): extra
            for number, trial in enumerate(self.tuner.trials.values())
            if (extra := {k: v for k, v in trial.hyperparameters.values.items() if k not in names})
        }
        own = {"oracle": kept, "more": more, "added": self.added, "ended": self.ended}
        return json.loads(json.dumps({"own": own}))

    def own_restore(self, state: State) -> None:
        own = state["own"]
        tuner = self.tuner
        trials = [
            self._insert(number, row, own["more"].get(str(number), {}))
            for number, row in enumerate(self.history)
        ]
        self.added, self.ended = list(own["added"]), list(own["ended"])
        for number in (*self.ended, *(n for n in self.added if self.results[n] is not None)):
            trial, values = trials[number], self.results[number]
            del tuner.ongoing_trials[str(number)]
            trial.status = "FAILED" if np.isnan(values).any() else "COMPLETED"
            trial.score = float(values[0])
        order = [f"{n:04d}" for n in range(len(trials)) if n not in set(self.added)]
        derived = {k: v for k, v in tuner.get_state().items() if k in DERIVED}
        derived |= {"start_order": order, "end_order": [f"{n:04d}" for n in self.ended]}
        tuner.set_state({**derived, **json.loads(json.dumps(own["oracle"]))})
        tuner.verbose = 0


class Random(KerasTuner):
    """KerasTuner's random search."""

    name, oracle = "keras_tuner.random", "RandomSearchOracle"


class Hyperband(KerasTuner):
    """KerasTuner's Hyperband."""

    name, oracle = "keras_tuner.hyperband", "HyperbandOracle"


class Grid(KerasTuner):
    """KerasTuner's grid search, in order."""

    name, oracle = "keras_tuner.grid", "GridSearchOracle"

    def own_state(self) -> State:
        places = self.tuner._ordered_ids
        following = [places._next_index[i] for i in range(len(places._memory))]
        place = {"ids": places._memory, "following": following, "first": places._next_index[None]}
        own = super().own_state()
        queue = {"last": places._last_index, "queue": self.tuner._populate_next}
        return own | json.loads(json.dumps({"place": {**place, **queue}}))

    def own_restore(self, state: State) -> None:
        super().own_restore(state)
        place, places = state["place"], self.tuner._ordered_ids
        places._memory = list(place["ids"])
        places._data_to_index = {id: i for i, id in enumerate(place["ids"])}
        places._next_index.update(enumerate(place["following"]))
        places._next_index[None] = place["first"]
        places._last_index = place["last"]
        self.tuner._populate_next = list(place["queue"])


class Bayesian(KerasTuner):
    """KerasTuner's Gaussian process with an upper confidence bound."""

    name, oracle = "keras_tuner.bayesian", "BayesianOptimizationOracle"
    libraries = ("keras_tuner", "sklearn")
    redraws = 1  # each takes a fit

    def begin(self) -> None:
        super().begin()
        self._watch_fits()

    def _watch_fits(self) -> None:
        """Keep what the model was last fitted to: it guesses the results of open trials next."""
        fit = self.tuner.gpr.fit
        self.fitted = np.empty((0, 0)), np.empty(0)

        def watched(x, y):
            self.fitted = x, y
            return fit(x, y)

        self.tuner.gpr.fit = watched

    def own_state(self) -> State:
        _, keys, position, has_gauss, gauss = self.tuner._random_state.get_state()
        x, y = self.fitted
        random = {"position": position, "has_gauss": has_gauss, "gauss": gauss}
        arrays = {"random_keys": keys.copy(), "fitted_x": x.copy(), "fitted_y": y.copy()}
        return {**super().own_state(), "random": random, **arrays}

    def own_restore(self, state: State) -> None:
        super().own_restore(state)
        self._watch_fits()
        random = state["random"]
        rest = random["position"], random["has_gauss"], random["gauss"]
        self.tuner._random_state.set_state(("MT19937", state["random_keys"], *rest))
        if len(state["fitted_y"]):
            self.tuner.gpr.fit(state["fitted_x"].copy(), state["fitted_y"].copy())


ORACLES = {cls.name: cls for cls in (Random, Bayesian, Hyperband, Grid)}
