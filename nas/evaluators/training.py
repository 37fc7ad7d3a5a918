"""What all evaluators do that train each candidate, whatever it is trained on."""

from __future__ import annotations

import resource
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nas.checkpoint import Checkpoint
from nas.run_dir import write_tensors
from nas.trial import Metrics
from search_spaces.space import Choices


def check_least(**given: tuple[int, int]) -> None:
    """Raise ValueError where an option (name=(value, least)) is below what it must be."""
    for name, (value, least) in given.items():
        if value < least:
            raise ValueError(f"evaluator.{name} is {value}; it must be at least {least}")


class Training(ABC):
    """Trains briefly, may stop early, scores on validation data; a final training is the same with
    more epochs, and alone scored on test data, and its weights are kept.

    epochs: of a candidate; final_epochs: of a final training. trainer: made by `start`.
    """

    in_process = False
    verb = "trained"
    epochs: int
    final_epochs: int

    @abstractmethod
    def _fit(self, choices: Choices, seed: int, epochs: int, final: bool, **course):
        """What `trainer.fit` gives, on what a candidate or a final training sees; course: `stop`
        and `checkpoint`, handed on to it."""

    @abstractmethod
    def _scored(self, trained, choices: Choices, part: str) -> Metrics:
        """On the part "validation" or "test"."""

    @abstractmethod
    def _quality(self, scored: Metrics) -> float:
        """By which trainings are stopped: larger is better."""

    @abstractmethod
    def _tested(self, trained, seed: int) -> Metrics:
        """What a final training says beside its scores, `n_test` at least."""

    def _constants(self) -> dict[str, np.ndarray]:
        """What is kept beside the weights."""
        return {}

    def fidelity(self, rung: int) -> int:
        """A rung is the epochs of its trainings; the first are those of every candidate."""
        if isinstance(rung, bool) or not isinstance(rung, int) or rung < self.epochs:
            raise ValueError(
                f"fidelities.rungs are whole numbers of epochs, from evaluator.epochs = "
                f"{self.epochs} up; got {rung!r}"
            )
        return rung

    def evaluate(
        self,
        choices: Choices,
        *,
        seed: int,
        stop_below: Sequence[tuple[int, float]] = (),
        fidelity: int | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> Metrics:
        """Scores on validation data after a short training, with its curve and what it took.

        fidelity: its epochs, where they are not those of every candidate.
        stop_below: (epochs, quality), after so many of which the training ends unless its own is
        that high; then `stopped_at` says so. `rungs` are these qualities: accuracy, or
        1 / perplexity.
        """
        before = time.process_time()
        limits, stopped = dict(stop_below), False
        notes = checkpoint.notes if checkpoint else {}

        def stop(epoch: int, trained_so_far) -> bool:
            nonlocal stopped
            if epoch in limits:
                quality = self._quality(self._scored(trained_so_far(), choices, "validation"))
                notes.setdefault("rungs", []).append([epoch, quality])
                stopped = quality < limits[epoch]
            return stopped

        n_epochs = fidelity or self.epochs
        trained = self._fit(choices, seed, n_epochs, False, stop=stop, checkpoint=checkpoint)
        scored = self._scored(trained, choices, "validation")
        epochs = len(trained.curve)
        asked = {"rungs": notes.get("rungs", [])} if limits else {}
        peak = self.trainer.peak(trained.recipe.switches.precision)
        return {
            **scored,
            "train_loss": trained.curve[-1]["loss"],
            "epochs": epochs,
            "seconds": trained.seconds,
            "trained_per_s": trained.per_s,
            "flops": trained.flops,
            "peak_share": trained.flops / peak,
            "cpu_seconds": time.process_time() - before,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "curve": trained.curve,
            **asked,
            **({"stopped_at": epochs} if stopped else {}),
        }

    def finalize(
        self, choices: Choices, *, seed: int, weights: Path, checkpoint: Checkpoint | None = None
    ) -> Metrics:
        """Train longer on all training data, score on test data, write the weights."""
        trained = self._fit(choices, seed, self.final_epochs, True, checkpoint=checkpoint)
        scored = self._scored(trained, choices, "validation")
        test = self._scored(trained, choices, "test")
        write_tensors(weights, {**trained.tensors(), **self._constants()})
        return {
            **scored,
            **{f"test_{name}": value for name, value in test.items()},
            "epochs": self.final_epochs,
            "seconds": trained.seconds,
            "curve": trained.curve,
            **self._tested(trained, seed),
        }
