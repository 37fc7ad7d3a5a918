"""Evaluators: what turns choices into metrics. The table is name -> class."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from nas.evaluators.proxy import Proxy
from nas.evaluators.shared_weights import SharedWeights
from nas.evaluators.zero_cost import ZeroCost
from nas.trial import Metrics
from search_spaces.space import Choices, Space


class Evaluator(Protocol):
    """Lives in a worker process; its options come from the run's `[evaluator]` table."""

    def check(self, space: Space) -> None:
        """Raise ValueError, before the run begins, where it could not work on this space."""

    def start(self, folder: Path | None = None) -> None:
        """Load what evaluation needs, in the worker; `folder` is the run's, for what is kept."""

    def evaluate(self, choices: Choices, *, seed: int) -> Metrics:
        """The metrics of one candidate: JSON values."""


EVALUATORS = {"proxy": Proxy, "shared_weights": SharedWeights, "zero_cost": ZeroCost}
