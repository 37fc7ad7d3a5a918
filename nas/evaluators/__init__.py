"""Evaluators: what turns choices into metrics. The table is name -> class."""

from __future__ import annotations

from typing import Protocol

from nas.evaluators.proxy import Proxy
from nas.evaluators.zero_cost import ZeroCost
from nas.trial import Metrics
from search_spaces.space import Choices


class Evaluator(Protocol):
    """Lives in a worker process; its options come from the run's `[evaluator]` table."""

    def check(self) -> None:
        """Raise ValueError, before the run begins, where it could not work."""

    def start(self) -> None:
        """Load what evaluation needs, in the worker."""

    def evaluate(self, choices: Choices, *, seed: int) -> Metrics:
        """The metrics of one candidate: JSON values."""


EVALUATORS = {"proxy": Proxy, "zero_cost": ZeroCost}
