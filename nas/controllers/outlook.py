"""What is known of a design before it is trained.

Hardware costs are functions, not observations. A controller that is handed an `Outlook` spends no
training to learn a latency, and sees what a network would reach on accelerators that it was not
proposed with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from nas.trial import Trial


class Outlook(Protocol):
    """Known costs, unknown measurements, and how objectives follow from both.

    n_measured: how many metrics only training tells.
    columns: the decisions that training sees, int64 [c]; designs that agree in them are one
    network, trained once.
    sources: of several objectives, which measurement each is, and -1 for one that follows from the
    costs: int [m].
    bounds: the least and the most that constraints allow of each measurement, infinite where none
    does: float [n_measured, 2].
    limit: how many networks may be priced for one `ask`, 0 for any number.
    """

    n_measured: int
    columns: np.ndarray
    sources: np.ndarray
    bounds: np.ndarray
    limit: int

    def features(self, encodings: np.ndarray) -> list[np.ndarray]:
        """Blocks of features of the networks, beside their decisions: float [n, f] each. Each
        block gets a lengthscale of its own; squared distances within it are near 1."""

    def measured(self, trials: Sequence[Trial], objectives: np.ndarray) -> np.ndarray:
        """What training gave: float [n, n_measured], larger is better; NaN where it failed."""

    def variants(self, encodings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Designs that share the training of those of [n, d], as on other accelerators.

        (encodings [n, k, d], known costs [n, k, c]); costs are NaN for a design ruled out.
        """

    def objectives(self, measured: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Objectives [..., m] of measurements [..., n_measured] and costs [..., c] that broadcast;
        they rise with every measurement. NaN where a cost is."""


def unbounded(n: int) -> np.ndarray:
    """Of `n` measurements without constraints: float [n, 2]."""
    return np.tile([-np.inf, np.inf], (n, 1))


class Unknown:
    """Nothing is known: each objective is learnt from what is told."""

    limit = 0

    def __init__(self, n_objectives: int, n_decisions: int):
        self.n_measured = n_objectives
        self.columns = np.arange(n_decisions)
        self.sources = np.arange(n_objectives)
        self.bounds = unbounded(n_objectives)

    def features(self, encodings: np.ndarray) -> list[np.ndarray]:
        return []

    def measured(self, trials: Sequence[Trial], objectives: np.ndarray) -> np.ndarray:
        return objectives

    def variants(self, encodings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return encodings[:, None], np.zeros((len(encodings), 1, 0))

    def objectives(self, measured: np.ndarray, known: np.ndarray) -> np.ndarray:
        return np.broadcast_to(measured, (*known.shape[:-1], self.n_measured))
