"""The progress line of a running search."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from nas import pareto, words
from nas.early_stopping import stopped
from nas.trial import Status, Trial

if TYPE_CHECKING:
    from nas.run import Run

log = logging.getLogger("nas")


class Progress:
    """Trial k of n, the best so far, the size of the front, the time left; and the run's log."""

    def __init__(self, n_trials: int, run: Run, *, shown: bool):
        with run.store() as store:
            told = store.trials("told IS NOT NULL AND repeats IS NULL")
        trained = [t for t in told if t.status is not Status.INFEASIBLE]
        complete = [t for t in trained if t.status is Status.COMPLETE and not stopped(t)]
        self.n_infeasible = len(told) - len(trained)
        self.objectives, self.quality = run.front, run.evaluator.metrics[0]
        self.metrics = run.front.needs
        self.front = self.objectives(complete)
        self.front = self.front[pareto.front(self.front)]
        self.bar = tqdm(
            total=n_trials,
            initial=len(trained),
            unit="trial",
            disable=not shown,
            dynamic_ncols=True,
            smoothing=0,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception) -> None:
        self.bar.close()

    def say(self, text: str) -> None:
        self.bar.set_description_str(text)
        log.info(text)

    def __call__(self, trial: Trial) -> None:
        """One trial was told."""
        if trial.status is Status.INFEASIBLE:
            self.n_infeasible += 1
            log.info("trial %d infeasible: %s", trial.id, trial.error)
            return
        if trial.repeats is not None:
            log.info("trial %d repeats trial %d", trial.id, trial.repeats)
            return
        if trial.status is Status.FAILED:
            log.warning("trial %d failed: %s", trial.id, trial.error)
        elif stopped(trial):
            log.info(
                "trial %d: stopped after %d epochs at %s %.4g",
                trial.id,
                trial.metrics["stopped_at"],
                self.quality,
                trial.metrics[self.quality],
            )
        else:
            figures = (f"{name} {trial.metrics[name]:.4g}" for name in self.metrics)
            log.info("trial %d: %s", trial.id, ", ".join(figures))
            points = np.concatenate([self.front, self.objectives([trial])])
            self.front = points[pareto.front(points)]
        sign, firsts = self.objectives.signs[0], self.front[:, 0]
        best = sign * firsts.max() if len(firsts) else None  # of the first goal
        self.bar.set_postfix(
            {
                "best": words.ascii(words.value(self.metrics[0], best)),
                "front": len(self.front),
                "infeasible": self.n_infeasible,
            },
            refresh=False,
        )
        self.bar.update()
