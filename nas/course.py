"""The epochs of one training, of whatever: kept in a checkpoint, judged after each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np

from nas.checkpoint import Checkpoint, joined, parts

T = TypeVar("T")
Step = Callable[[int, float], Sequence[float]]  # of the i-th batch of an epoch, at a rate


class Kept(Protocol):
    """What goes on where it was: a stepper, a technique."""

    def state(self) -> dict[str, np.ndarray]: ...

    def restore(self, state: Mapping[str, np.ndarray]) -> None: ...


def schedule(n_steps: int, peak: float, warmup: float, name: str = "triangle") -> np.ndarray:
    """Learning rates [n_steps]: up in a line over the first `warmup` of the steps, then down to
    zero by the schedule: in a line, by a cosine, by tenths at a half and three quarters of the way,
    or not at all."""
    at = (np.arange(n_steps) + 0.5) / n_steps
    way = np.clip((at - warmup) / (1 - warmup), 0, 1)
    down = {
        "triangle": 1 - way,
        "cosine": (1 + np.cos(np.pi * way)) / 2,
        "steps": np.where(way < 0.5, 1, np.where(way < 0.75, 0.1, 0.01)),
        "constant": np.ones(n_steps),
    }[name]
    return (peak * np.where(at < warmup, at / max(warmup, 1e-9), down)).astype(np.float32)


class Course:
    """Goes through the epochs of a training from where it was left.

    rates: of every step [epochs, steps]. kept: what a checkpoint holds, and restores in this order
    but for the first, which comes last. start: of the training, by `time.perf_counter`.

    curve: per epoch epoch, the means of what its steps gave, and seconds so far.
    """

    def __init__(
        self,
        rates: np.ndarray,
        kept: Sequence[Kept],
        start: float,
        checkpoint: Checkpoint | None = None,
    ):
        self.rates, self.kept, self.start, self.checkpoint = rates, kept, start, checkpoint
        self.curve: list[dict] = []
        self.seen: list[Sequence[float]] = []  # what each step of the epoch gave
        self.epochs_s = 0.0  # of the epochs that are done
        before = checkpoint.load() if checkpoint else None
        if before:
            self.curve = checkpoint.notes["curve"]
            self.seen = list(before.pop("seen"))
            self.epochs_s, seconds = before.pop("seconds").tolist()
            self.start -= seconds
            first, *others = parts(before, len(kept))
            for one, state in zip(kept[1:], others, strict=True):
                one.restore(state)
            kept[0].restore(first)

    @property
    def seconds(self) -> float:
        """So far, those before a break too."""
        return time.perf_counter() - self.start

    @property
    def steps_per_s(self) -> float:
        """Of the epochs alone."""
        return len(self.curve) * self.rates.shape[1] / self.epochs_s

    def run(
        self,
        names: Sequence[str],
        begin: Callable[[int], Step],
        trained: Callable[[], T],
        stop: Callable[[int, Callable[[], T]], bool] | None = None,
    ) -> T:
        """Take all steps that are left, and return what is then `trained`.

        names: of what a step gives, the first of which is the loss. begin: makes an epoch's step.
        stop: asked after every epoch but the last, with the number of epochs and `trained`; whether
        to end there. Raises FloatingPointError where the loss of an epoch is no number.
        """
        n_epochs, n_steps = self.rates.shape
        for epoch in range(len(self.curve), n_epochs):
            begun = time.perf_counter()

            def state(begun=begun) -> dict[str, np.ndarray]:
                self.checkpoint.notes["curve"] = self.curve
                spent = self.epochs_s + time.perf_counter() - begun
                return {
                    "seen": np.array(self.seen),
                    "seconds": np.array([spent, self.seconds]),
                    **joined([one.state() for one in self.kept]),
                }

            step = begin(epoch)
            for i in range(len(self.seen), n_steps):
                self.seen.append(step(i, self.rates[epoch, i]))
                if self.checkpoint:
                    self.checkpoint.offer(state)
            means = np.mean(self.seen, axis=0, dtype=float).tolist()
            self.seen = []
            if not np.isfinite(means[0]):
                raise FloatingPointError(
                    f"the training loss is {means[0]} after epoch {epoch + 1} at learning rates up "
                    f"to {self.rates.max():.3g}; a lower train.learning_rate may help"
                )
            self.epochs_s += time.perf_counter() - begun
            point = {"epoch": epoch + 1, **dict(zip(names, means, strict=True))}
            self.curve.append(point | {"seconds": self.seconds})
            if stop and epoch + 1 < n_epochs and stop(epoch + 1, trained):
                break
        return trained()
