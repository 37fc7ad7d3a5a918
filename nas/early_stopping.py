"""Ends poor trainings early: asynchronous successive halving of the stopping kind.

After so many epochs (a rung) a candidate goes on if its validation accuracy is among the best 1/eta
of those that earlier candidates had there (Li et al., arXiv 1810.05934). It is judged by the trials
told before it was asked for, so that its end depends neither on workers nor on interruptions; what
it must reach goes with the task and is stored with the trial, before it begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nas.trial import Status, Trial


class EarlyStopping:
    """What candidates must reach, from those before them.

    reduction: eta; the best 1 / eta go on. epochs: the rungs, ascending; none: nothing is stopped.
    """

    def __init__(self, reduction: int, epochs: Sequence[int]):
        self.reduction = reduction
        self.rungs: dict[int, list[float]] = {epoch: [] for epoch in epochs}

    def tell(self, trials: Iterable[Trial]) -> None:
        """Take note of what trials had at the rungs that they came to; of repeats nothing."""
        for trial in trials:
            if trial.status is Status.COMPLETE and trial.repeats is None:
                for epoch, accuracy in trial.metrics.get("rungs", []):
                    self.rungs[epoch].append(accuracy)

    def limits(self) -> list[tuple[int, float]]:
        """(epochs, accuracy below which the next candidate stops); 0 while too few came so far."""
        limits = []
        for epoch, seen in self.rungs.items():
            n_best = len(seen) // self.reduction
            limits.append((epoch, sorted(seen)[-n_best] if n_best else 0.0))
        return limits


def stopped(trial: Trial) -> bool:
    """Whether a training was ended early: its metrics are those that it had then."""
    return "stopped_at" in trial.metrics
