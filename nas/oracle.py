"""Our controllers as KerasTuner oracles, for a `Tuner` and a hypermodel of your own.

    tuner = keras_tuner.Tuner(Oracle("evolution", objective="val_accuracy", max_trials=50), build)
    tuner.search(x, y, validation_data=...)

This module imports KerasTuner, and with it Keras; nothing else here imports this module.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner.engine.trial import Trial as TunerTrial

from nas import controllers
from nas.hyperparameters import to_choices, to_space, to_values
from nas.schema import dump, load
from nas.table import look_up
from nas.trial import Proposal, Status, Trial
from search_spaces.space import Space

REDRAWS = 20  # of values tried before, until the space is taken to be exhausted


class Oracle(keras_tuner.Oracle):
    """A controller of `nas.controllers`, by its name and options, as a KerasTuner oracle.

    Several objectives are kept apart for a controller that pursues them (the Pareto front), where
    KerasTuner's own oracles add them up. Trials that fail or score NaN are told as failed. When the
    hypermodel shows a hyperparameter that it had not, the controller begins anew on the larger
    space and is told all results again. What KerasTuner saves holds the controller's state.
    """

    def __init__(
        self,
        controller: str = "evolution",
        options: Mapping[str, Any] = MappingProxyType({}),
        *,
        objective: Any = None,
        max_trials: int | None = 10,
        seed: int | None = None,
        **settings: Any,
    ):
        table = controllers.CONTROLLERS | controllers.FOREIGN
        look_up("controller", table, controller, options, controllers.HANDED_OVER)
        super().__init__(objective=objective, max_trials=max_trials, seed=seed, **settings)
        self.controller_name, self.options = controller, dict(options)
        self.controller: Any = None
        self.notes: dict[str, Any] = {}  # of the proposals behind open trials
        self.n_told = 0
        several = getattr(self.objective, "objectives", None)
        self.goals = list(several) if several else [self.objective]

    def populate_space(self, trial_id: str) -> dict:
        """The values of the next trial; STOPPED when only designs tried before come."""
        if not self.hyperparameters.space:  # a first trial with all defaults shows what there is
            unknown = "RUNNING" if not self.start_order else "STOPPED"
            return {"status": "IDLE" if self.ongoing_trials else unknown, "values": {}}
        self._catch_up()
        for _ in range(REDRAWS):
            [proposal] = self.controller.ask(1)
            values = to_values(self.space.decode(proposal.encoding))
            if not self._duplicate(values):
                self.notes[trial_id] = proposal.note
                return {"status": "RUNNING", "values": values}
        return {"status": "IDLE" if self.ongoing_trials else "STOPPED"}

    @keras_tuner.synchronized
    def end_trial(self, trial: TunerTrial) -> None:
        """Tell the controller, unless the trial is to be tried again."""
        super().end_trial(trial)
        if self.hyperparameters.space:
            self._catch_up()
            self.save()

    def _catch_up(self) -> None:
        """Make the controller, again where the space has grown, and tell it what it has not heard
        of."""
        space = to_space(self.hyperparameters)
        if self.controller is None or space.decisions != self.space.decisions:
            self._begin(space)
        self._tell(self.end_order[self.n_told :])

    def _begin(self, space: Space) -> None:
        self.space, self.notes, self.n_told = space, {}, 0
        self.controller = controllers.make(
            self.controller_name,
            space,
            seed=self.seed,
            n_objectives=len(self.goals),
            **self.options,
        )

    def _tell(self, ids: list[str]) -> None:
        told, objectives = [], []
        for number, id in enumerate(ids, self.n_told):
            encoding = self._encode(self.trials[id])
            if encoding is not None:
                proposal = Proposal(encoding, self.notes.pop(id, None))
                values = self._values(self.trials[id])
                failed = np.isnan(values).any()
                status = Status.FAILED if failed else Status.COMPLETE
                told.append(Trial(number, proposal, 0, status))
                objectives.append(values)
        self.n_told += len(ids)
        if told:
            self.controller.tell(told, np.array(objectives))

    def _encode(self, trial: TunerTrial) -> np.ndarray | None:
        """The trial's design; None where it ran without a part of the space known today."""
        try:
            return self.space.encode(to_choices(self.space, trial.hyperparameters.values))
        except ValueError:
            return None

    def _values(self, trial: TunerTrial) -> np.ndarray:
        """The objectives [n], larger is better; NaN where the trial did not complete."""
        if trial.status != "COMPLETED":
            return np.full(len(self.goals), np.nan)
        return np.array(
            [
                (1 if goal.direction == "max" else -1) * trial.metrics.get_best_value(goal.name)
                for goal in self.goals
            ],
            float,
        )

    def get_state(self) -> dict:
        state = super().get_state()
        if self.controller is not None:
            own = {"state": self.controller.state(), "notes": self.notes, "n_told": self.n_told}
            state["controller"] = json.loads(dump(own))
        return state

    def set_state(self, state: dict) -> None:
        super().set_state(state)
        if "controller" in state:
            own = load(json.dumps(state["controller"]))
            self._begin(to_space(self.hyperparameters))
            self.controller.restore(own["state"])
            self.notes, self.n_told = own["notes"], own["n_told"]
