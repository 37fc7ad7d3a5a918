"""What passes between the controller, the loop and the store."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

Metrics = dict[str, Any]
State = dict[str, Any]  # of a controller: JSON values and, at the top level only, NumPy arrays

# the metrics that a finished trial has: priced before training, and measured by it; those of a
# training step on its accelerator where the search asks for them
HARDWARE_METRICS = (
    "latency_s",
    "images_per_s",
    "energy_j",
    "area_mm2",
    "cycles",
    "dram_bytes",
    "sram_bytes",
    "utilization",
    "peak_memory_bytes",
    "macs",
    "params",
    "weight_bytes",
)
STEP_METRICS = ("train_step_s", "train_images_per_s", "train_energy_j", "train_memory_bytes")
TRAINING_METRICS = ("accuracy", "perplexity", "loss", "train_loss")
METRICS = HARDWARE_METRICS + STEP_METRICS + TRAINING_METRICS
MEANINGS = {  # in what unit, and of what
    "latency_s": "seconds of one served batch",
    "images_per_s": "images, or sequences of words, served in a second",
    "energy_j": "joules of one image, or of one sequence of words",
    "area_mm2": "square millimetres of the accelerator",
    "cycles": "clock cycles of one served batch",
    "dram_bytes": "bytes to and from DRAM, of one image or sequence",
    "sram_bytes": "bytes to and from the SRAMs, of one image or sequence",
    "utilization": "share of the array's multipliers at work, 0 to 1",
    "peak_memory_bytes": "bytes of the parameters and the largest tensors at once",
    "macs": "multiply-accumulates of one image or sequence",
    "params": "parameters of the network",
    "weight_bytes": "bytes of the parameters in their bits",
    "train_step_s": "seconds of one training step on the accelerator",
    "train_images_per_s": "images trained on in a second there",
    "train_energy_j": "joules of training on one image there",
    "train_memory_bytes": "bytes of weights, gradients, momentum and stored activations",
    "accuracy": "of validation images classified rightly, 0 to 1",
    "perplexity": "of validation words under a language model",
    "zero_cost": "a score of the untrained network, of the evaluator of that name",
    "loss": "mean cross-entropy on validation data, nats",
    "train_loss": "mean cross-entropy in the last epoch of training, nats",
}


class Grown(np.ndarray):
    """An array in a controller's state to whose earlier states rows were only added: the store
    writes those that are new."""


class Growing:
    """Rows that are added one by one, each at the same cost; those there stay as they are."""

    def __init__(self, rows: np.ndarray):
        self._rows, self._n = np.array(rows), len(rows)

    def add(self, row) -> None:
        if self._n == len(self._rows):
            self._rows = np.resize(self._rows, (max(64, 2 * self._n), *self._rows.shape[1:]))
        self._rows[self._n] = row
        self._n += 1

    @property
    def rows(self) -> Grown:
        """What is there now; adding changes nothing of it."""
        return self._rows[: self._n].view(Grown)


class Status(StrEnum):
    RUNNING = "running"  # asked for, not finished: trained again on resume
    COMPLETE = "complete"
    INFEASIBLE = "infeasible"  # breaks a hard constraint: priced, never trained
    FAILED = "failed"  # training raised, or its worker died


@dataclass(frozen=True)
class Proposal:
    """A design that a controller asks to have evaluated.

    encoding: int64 [decisions], canonical.
    note: a JSON value that the controller wants back with the result (a log-probability, say).
    """

    encoding: np.ndarray
    note: Any = None


@dataclass
class Trial:
    """The record of one proposal.

    id: counts from 0 in the order of asking. seed: of the candidate's training.
    metrics: raw figures; objectives are derived from them by the reward.
    repeats: the id of the earlier trial with the same design whose metrics these are, if any.
    """

    id: int
    proposal: Proposal
    seed: int
    status: Status = Status.RUNNING
    metrics: Metrics = field(default_factory=dict)
    error: str | None = None
    repeats: int | None = None


def trial_seed(run_seed: int, trial_id: int) -> int:
    """The training seed of a trial: derived from the run's, so that resuming changes nothing."""
    return int(np.random.SeedSequence([run_seed, trial_id]).generate_state(1, np.uint32)[0] >> 1)
