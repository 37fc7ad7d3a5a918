"""The progress line of a running search."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from nas import pareto, words
from nas.early_stopping import stopped
from nas.schema import dump, load
from nas.store import Store
from nas.trial import Status, Trial

if TYPE_CHECKING:
    from nas.run import Run

KEEP_AFTER = 256  # trials told
log = logging.getLogger("nas")


class Progress:
    """Trial k of n, the best so far, the size of the front, the time left; and the run's log."""

    def __init__(self, n_trials: int, run: Run, store: Store, *, shown: bool):
        self.store = store
        self.objectives, self.quality = run.front, run.evaluator.metrics[0]
        self.metrics = run.front.needs
        self.n_infeasible = store.count("status = 'infeasible'")
        told = "told IS NOT NULL AND repeats IS NULL"
        self.n_told = store.count("told IS NOT NULL")
        kept = load(store.get("front") or "null") or {"n_told": 0, "front": self._none()}
        self.n_kept, self.front = kept["n_told"], kept["front"]
        figures = store.figures(
            (*self.metrics, "stopped_at"),
            f"{told} AND status = 'complete' AND told >= {int(self.n_kept)}",
        )
        whole = figures[np.isnan(figures[:, -1]), :-1]
        self._add(self.objectives.of(whole))
        self.bar = tqdm(
            total=n_trials,
            initial=store.count(f"{told} AND status <> 'infeasible'"),
            unit="trial",
            disable=not shown,
            dynamic_ncols=True,
            smoothing=0,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception) -> None:
        self.bar.close()

    def _none(self) -> np.ndarray:
        return np.empty((0, self.objectives.n_objectives))

    def _add(self, points: np.ndarray) -> None:
        """Take objectives [n, m] into the front, and keep it now and then: a resumed run looks only
        at the trials told since."""
        points = np.concatenate([self.front, points])
        self.front = points[pareto.front(points)]
        if self.n_told >= self.n_kept + KEEP_AFTER and not self.store.read_only:
            self.n_kept = self.n_told
            self.store.set("front", dump({"n_told": self.n_kept, "front": self.front}))

    @property
    def best(self) -> float | None:
        """Of the first goal."""
        sign, firsts = self.objectives.signs[0], self.front[:, 0]
        return sign * firsts.max() if len(firsts) else None

    def say(self, text: str) -> None:
        self.bar.set_description_str(text)
        log.info(text)

    def __call__(self, trial: Trial) -> None:
        """One trial was told."""
        self.n_told += 1
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
            self._add(self.objectives([trial]))
        self.bar.set_postfix(
            {
                "best": words.ascii(words.value(self.metrics[0], self.best)),
                "front": len(self.front),
                "infeasible": self.n_infeasible,
            },
            refresh=False,
        )
        self.bar.update()
