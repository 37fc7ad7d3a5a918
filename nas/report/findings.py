"""What a report reads of a run, once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nas.early_stopping import stopped
from nas.leaderboard import final_columns
from nas.report import drawing
from nas.trial import Status, Trial
from search_spaces.space import Choices, Space

if TYPE_CHECKING:
    import pandas

    from nas.run import Run


@dataclass(frozen=True)
class Findings:
    """A run as its report sees it.

    board: the leaderboard. designs: the choices of each of its rows. finals: trial id -> metrics of
    the final training. times: (id, asked at, finished at) of the finished trials.
    """

    run: Run
    name: str
    board: pandas.DataFrame
    designs: list[Choices]
    trials: list[Trial]
    finals: dict[int, dict]
    times: list[tuple[int, float, float]]

    @property
    def family(self) -> str:
        return self.run.config["space"]["network"]

    @property
    def drawing(self) -> drawing.Drawing:
        return drawing.FAMILIES.get(self.family, drawing.PLAIN)

    @property
    def metrics(self) -> list[str]:
        """What is shown of a design: what the reward is made of; of a priced one its costs too."""
        costs = ("latency_s", "energy_j", "area_mm2")
        priced = (self.run.evaluator.metrics[0], *costs) if self.run.sweep else ()
        return list(dict.fromkeys((*priced, *self.run.reward.needs)))

    @property
    def final_columns(self) -> list[str]:
        """The columns of the leaderboard from final trainings, where there were any."""
        return [c for c in final_columns(self.run) if self.board[c].notna().any()]

    @property
    def trained(self) -> list[Trial]:
        """Trials with a training of their own that went to its end, by id."""
        return [
            t
            for t in self.trials
            if t.status is Status.COMPLETE and t.repeats is None and not stopped(t)
        ]

    @property
    def best_final(self) -> dict:
        """The metrics of the best design's final training; empty without one."""
        return self.finals.get(int(self.board["trial"].iloc[0]), {})


def gather(run: Run) -> Findings:
    """Read a run."""
    board = run.leaderboard()
    with run.store() as store:
        trials, times = store.trials(), store.seconds()
    return Findings(
        run=run,
        name=run.dir.path.resolve().name,
        board=board,
        designs=[choices_of(run.space, row) for _, row in board.iterrows()],
        trials=trials,
        finals={trial: metrics for trial, (metrics, _) in run.finals().items()},
        times=times,
    )


def choices_of(space: Space, row: pandas.Series) -> Choices:
    """The choices of a leaderboard's row, as `Space.decode` gives them."""
    given = {}
    for decision in space.decisions:
        value = row[decision.name]
        value = value.item() if isinstance(value, np.generic) else value
        if value is not None and value == value:  # None and NaN: not active
            given[decision.name] = decision.values[decision.index(value)]
    return given
