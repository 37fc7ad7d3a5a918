"""Early stopping: thresholds by hand, and runs that end the same however they are worked off."""

import numpy as np
import pytest
from test_search import Answers, Stopped, history, search

from nas import config
from nas.early_stopping import EarlyStopping, stopped
from nas.store import Store
from nas.trial import Proposal, Status, Trial

RUNGS = (1, 3)


def told(*accuracies, status=Status.COMPLETE, repeats=None):
    return [Trial(i, Proposal(np.zeros(1, int)), 0, status, {"rungs": [[1, a]]}, None, repeats)
            for i, a in enumerate(accuracies)]  # fmt: skip


def test_the_best_third_goes_on():
    rule = EarlyStopping(3, [1, 4])
    assert rule.limits() == [(1, 0.0), (4, 0.0)]
    rule.tell(told(0.1, 0.5))
    assert rule.limits()[0] == (1, 0.0), "too few to judge"
    rule.tell(told(0.3, 0.2, 0.4))
    assert rule.limits() == [(1, 0.5), (4, 0.0)], "the best of five"
    rule.tell(told(0.6))
    assert rule.limits()[0] == (1, 0.5), "the second best of six"


def test_repeats_and_failures_are_no_evidence():
    rule = EarlyStopping(2, [1])
    rule.tell(told(0.9, 0.9, repeats=0) + told(0.9, 0.9, status=Status.FAILED))
    assert rule.limits() == [(1, 0.0)]


class Curves(Answers):
    """Candidates whose accuracy grows in a line; they stop as the task says."""

    def metrics(self, task):
        final, rungs = super().metrics(task)["accuracy"], []
        for epoch, least in task["stop_below"]:
            rungs.append([epoch, final * epoch / 5])
            if rungs[-1][1] < least:
                return {"accuracy": rungs[-1][1], "loss": 1.0, "rungs": rungs, "stopped_at": epoch}
        return {"accuracy": final, "loss": 1.0, "rungs": rungs}


def stopping_search(path, executor, **options):
    return search(path, executor, early_stopping=EarlyStopping(3, RUNGS), **options)


def test_what_is_stopped_is_the_same_in_any_order_of_landing_and_after_any_end(tmp_path):
    other = Curves()
    other.rng = np.random.default_rng(99)
    for name, executor in (("one", Curves()), ("other", other)):
        with stopping_search(tmp_path / name, executor) as run:
            run.run()
    rng = np.random.default_rng(0)
    for _ in range(100):
        with stopping_search(tmp_path / "broken", Curves(int(rng.integers(0, 6)))) as run:
            try:
                run.run()
                break
            except Stopped:
                continue
    rows = history(tmp_path / "one")
    assert rows == history(tmp_path / "other") == history(tmp_path / "broken")
    ends = [row[5].get("stopped_at") for row in rows if row[7] is None and row[5].get("rungs")]
    assert ends.count(1) >= 5 and ends.count(None) >= 5
    assert ends[:3] == [None] * 3, "nobody is judged by fewer than three"


def test_a_candidate_is_judged_by_those_told_before_it_was_asked(tmp_path):
    with stopping_search(tmp_path / "s", Curves()) as run:
        run.run()
    store = Store(tmp_path / "s")
    trials = [t for t in store.trials("told IS NOT NULL") if "stop_below" in t.metrics]
    order = dict(store.connection.execute("SELECT id, told FROM trials"))
    store.close()
    own = [t for t in trials if t.repeats is None]
    for trial in own:
        # the window is four: those told before it was asked are the first in order
        limit = dict(trial.metrics["stop_below"])[1]
        before = [t.metrics["rungs"][0][1] for t in own if order[t.id] < order[trial.id] - 3]
        possible = {sorted(before[:n])[-(n // 3)] for n in range(3, len(before) + 1)} | {0.0}
        assert limit in possible
        assert stopped(trial) == any(
            accuracy < dict(trial.metrics["stop_below"])[epoch]
            for epoch, accuracy in trial.metrics["rungs"]
        )


def test_a_repeat_of_a_stopped_design_is_stopped_too(tmp_path):
    with stopping_search(tmp_path / "s", Curves(), n_trials=60) as run:
        run.run()
    store = Store(tmp_path / "s")
    trials = {t.id: t for t in store.trials("told IS NOT NULL")}
    store.close()
    repeats = [t for t in trials.values() if t.repeats is not None]
    for trial in repeats:
        assert trial.metrics == trials[trial.repeats].metrics


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"epochs": [3, 2]}, "whole numbers, ascending, from 1 and below evaluator.epochs = 5"),
        ({"epochs": [0, 2]}, "got \\[0, 2\\]"),
        ({"epochs": [1, 5]}, "below evaluator.epochs = 5"),
        ({"epochs": [1.5]}, "whole numbers"),
        ({"epochs": [1], "reduction": 1}, "reduction must be at least 2"),
        ({"rungs": [1]}, "unknown key 'early_stopping.rungs'"),
    ],
)
def test_impossible_rungs_are_named(section, message):
    with pytest.raises(config.ConfigError, match=message):
        config.complete({**config.read("quickstart"), "early_stopping": section})


def test_it_is_off_by_default():
    whole = config.complete(config.read("quickstart"))
    assert config.make_early_stopping(whole) is None
    whole["early_stopping"]["epochs"] = [1, 3]
    assert config.make_early_stopping(config.complete(whole)).limits() == [(1, 0.0), (3, 0.0)]
