"""Evaluators: what turns choices into metrics. The table is name -> class."""

from __future__ import annotations

import inspect
import traceback
from pathlib import Path
from typing import Protocol

from nas.checkpoint import Checkpoint, Parked
from nas.evaluators.language import Language
from nas.evaluators.proxy import Proxy
from nas.evaluators.shared_weights import SharedWeights
from nas.evaluators.table import Table
from nas.evaluators.zero_cost import ZeroCost
from nas.run_dir import is_full
from nas.trial import Metrics
from search_spaces.space import Choices, Space


class Evaluator(Protocol):
    """Lives in a worker process, or with the search where `in_process`; its options come from the
    run's `[evaluator]` table.

    verb: what it does with a candidate, as "trained". metrics: what it measures of a trial, the
    first of which says how good it is. final_metrics: what a final training adds, if it has any.
    example, tested: what a batch is of, and what final trainings are tested on many of. One that
    trains at several fidelities has `fidelity(rung)`: what `evaluate` takes by that name for a rung
    of the run's `[fidelities]`; ValueError for a rung that it has not.
    """

    in_process: bool
    verb: str
    example: str
    tested: str
    metrics: tuple[str, ...]
    final_metrics: tuple[str, ...]

    def check(self, space: Space) -> None:
        """Raise ValueError, before the run begins, where it could not work on this space."""

    def start(self, folder: Path | None = None) -> None:
        """Load what evaluation needs, in the worker; `folder` is the run's, for what is kept."""

    def evaluate(self, choices: Choices, *, seed: int) -> Metrics:
        """The metrics of one candidate: JSON values."""

    def finalize(self, choices: Choices, *, seed: int, weights: Path) -> Metrics:
        """The metrics of a final training, whose weights are written to a file."""


EVALUATORS = {
    "proxy": Proxy,
    "language": Language,
    "shared_weights": SharedWeights,
    "zero_cost": ZeroCost,
    "table": Table,
}


def perform(evaluator: Evaluator, task: dict, checkpoint: Checkpoint | None = None) -> dict:
    """The result of one task: its `metrics`; its `error`, where evaluation raised; `parked`, where
    it was asked to end and its state is kept; or why no task can be done, `stop`.

    checkpoint: what long trainings are kept in, by evaluators that take one.
    """
    is_final = task["kind"] == "final"
    method = evaluator.finalize if is_final else evaluator.evaluate
    given: dict = {"weights": Path(task["weights"])} if is_final else {}
    if task.get("stop_below"):
        given["stop_below"] = task["stop_below"]
    if "fidelity" in task:
        given["fidelity"] = task["fidelity"]
    if checkpoint and "checkpoint" in inspect.signature(method).parameters:
        given["checkpoint"] = checkpoint
    try:
        return {"metrics": method(task["choices"], seed=task["seed"], **given)}
    except Parked:
        return {"parked": True}
    except Exception as error:  # whatever a candidate raises belongs to its trial
        traceback.print_exc()
        if is_full(error):
            return {"stop": f"a worker cannot write: {error}"}
        return {"error": f"{type(error).__name__}: {error}"}
