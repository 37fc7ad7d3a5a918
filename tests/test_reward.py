"""Rewards and constraints: the papers' formulas, and what is refused."""

import numpy as np
import pytest

from nas.reward import REWARDS, Constraint, columns, make, violations
from nas.trial import HARDWARE_METRICS, METRICS, Proposal, Status, Trial

GOOD = {"accuracy": 0.8, "latency_s": 2e-3, "energy_j": 5e-5}


def trial(metrics, status=Status.COMPLETE):
    return Trial(0, Proposal(np.zeros(1, np.int64)), 0, status, metrics)


def reward(name, metrics=GOOD, **options):
    return make(name, **options)([trial(metrics)])[0]


@pytest.mark.parametrize("name", REWARDS)
def test_contract(name):
    judge = make(name)
    trials = [
        trial(GOOD),
        trial({}, Status.RUNNING),
        trial(GOOD, Status.FAILED),
        trial(GOOD, Status.INFEASIBLE),
        trial({**GOOD, "accuracy": np.nan}),
        trial({**GOOD, "accuracy": None}),
        trial({**GOOD, "latency_s": np.inf}),
        trial({"accuracy": 0.8, "energy_j": 5e-5}),
        trial({**GOOD, "accuracy": 0.9}),
        trial({**GOOD, "latency_s": 1.9e-3}),
    ]
    objectives = judge(trials)
    assert objectives.shape == (len(trials), judge.n_objectives)
    assert len(judge.names) == judge.n_objectives
    assert set(judge.needs) <= set(METRICS)
    assert np.isnan(objectives[1:8]).all()
    # better accuracy and lower latency are no worse in any column and better in some
    for better in objectives[8:]:
        assert (better >= objectives[0]).all() and (better > objectives[0]).any()
    assert judge([]).shape == (0, judge.n_objectives)


def test_mnasnet():
    targets = {"latency_s": 1e-3, "energy_j": 1e-4}
    soft = 0.8 * 2**-0.07 * 0.5**-0.07
    assert reward("mnasnet", targets=targets) == pytest.approx([soft])
    # hard: within the target nothing counts, beyond it accuracy is divided by the excess
    hard = dict(targets=targets, alpha=0, beta=-1)
    assert reward("mnasnet", **hard) == pytest.approx([0.8 / 2])
    assert reward("mnasnet", {**GOOD, "latency_s": 1e-3}, **hard) == pytest.approx([0.8])
    # what the paper means by -0.07: twice the latency has to pay with 5 % of accuracy
    pair = {"accuracy": 0.8 * 1.05, "latency_s": 4e-3}, {"accuracy": 0.8, "latency_s": 2e-3}
    twice, once = (reward("mnasnet", metrics, targets={"latency_s": 2e-3}) for metrics in pair)
    assert twice == pytest.approx(once, rel=1e-3)
    assert np.isnan(reward("mnasnet", {**GOOD, "latency_s": 0.0})).all()


def test_tunas():
    targets = {"latency_s": 1e-3, "energy_j": 1e-4}
    assert reward("tunas", targets=targets) == pytest.approx([0.8 - 0.1 * 1 - 0.1 * 0.5])
    assert reward("tunas", targets={"latency_s": 2e-3}, beta=-7) == pytest.approx([0.8])


def test_weighted():
    weights = {"accuracy >= 0.6": 3, "latency_s <= 4e-3": 1}
    # accuracy is half of the way from 0.6 to 1, latency half of the way from 4 ms to 0
    assert reward("weighted", weights=weights) == pytest.approx([(3 * 0.5 + 1 * 0.5) / 4])
    # outside: minus the sum of the excesses, and what is gained elsewhere does not help
    assert reward("weighted", weights={"accuracy >= 0.6": 3, "latency_s <= 1e-3": 1}) == (
        pytest.approx([-1.0])
    )
    both = {"accuracy >= 0.9": 3, "latency_s <= 1e-3": 1}
    assert reward("weighted", weights=both) == pytest.approx([-2.0])
    at_the_bound = {"accuracy >= 0.8": 1}
    assert reward("weighted", weights=at_the_bound) == pytest.approx([0.0])


def test_pareto():
    judge = make("pareto", objectives=["accuracy", "-latency_s"])
    assert judge.names == ("accuracy", "-latency_s")
    assert judge([trial(GOOD)]).tolist() == [[0.8, -2e-3]]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mnasnett", {}, "unknown reward 'mnasnett'; did you mean 'mnasnet'"),
        (["mnasnet"], {}, "unknown reward"),
        ("mnasnet", {"target": {}}, "no option 'target'; did you mean 'targets'"),
        ("mnasnet", {"targets": {"latency": 1.0}}, "'latency'; did you mean 'latency_s'"),
        ("mnasnet", {"targets": {"latency_s": 0.0}}, "above 0"),
        ("mnasnet", {"targets": {"latency_s": "fast"}}, "must be a number, got 'fast'"),
        ("mnasnet", {"targets": {}}, "at least one"),
        ("mnasnet", {"targets": 3}, "expected a table of names and values"),
        ("mnasnet", {"alpha": 0.07}, "alpha is an exponent of at most 0.*0.07"),
        ("tunas", {"beta": 0.1}, "beta is below 0"),
        ("tunas", {"beta": "low"}, "expected a number such as -0.1, got 'low'"),
        ("weighted", {"weights": {"accuracy": 1}}, "write it as"),
        ("weighted", {"weights": {"accuracy >= 0.5": -1}}, "weights are at least 0"),
        ("weighted", {"weights": {"accuracy >= 0.5": True}}, "must be a number, got True"),
        ("weighted", {"weights": {"accuracy >= 80": 1}}, "'accuracy >= 80' cannot be normalized"),
        ("weighted", {"weights": {"latency_s <= 0": 1}}, "cannot be normalized"),
        ("pareto", {"objectives": []}, "at least one"),
        ("pareto", {"objectives": ["accuracy", "-accuracy"]}, "different metrics"),
        ("pareto", {"objectives": ["-latncy_s"]}, "'latncy_s'; did you mean 'latency_s'"),
        ("pareto", {"objectives": "accuracy"}, "expected a list"),
    ],
)
def test_what_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, **options)


def test_the_metrics_may_be_others():
    judge = make("pareto", known=("test_accuracy",), objectives=["test_accuracy"])
    assert judge([trial({"test_accuracy": 0.5})]).tolist() == [[0.5]]
    with pytest.raises(ValueError, match="unknown metric 'accuracy'"):
        make("pareto", known=("test_accuracy",), objectives=["accuracy"])


def test_columns():
    rows = columns([trial(GOOD), trial({"accuracy": 1})], ["accuracy", "energy_j"])
    assert rows[0].tolist() == [0.8, 5e-5] and np.isnan(rows[1]).all()


def test_constraints():
    area = Constraint.parse(" area_mm2<=10 ", HARDWARE_METRICS)
    accuracy = Constraint.parse("accuracy >= 9e-1")
    assert (area.metric, area.sense, area.bound) == ("area_mm2", "<=", 10)
    assert Constraint.parse(str(area)) == area and str(accuracy) == "accuracy >= 0.9"
    assert area.holds(10) and not area.holds(10.1) and not area.holds(np.nan)
    assert accuracy.holds(0.9) and not accuracy.holds(0.89)
    both = [area, accuracy]
    assert violations(both, {"area_mm2": 12.5}) == ["area_mm2 = 12.5 breaks area_mm2 <= 10"]
    assert violations(both, {"area_mm2": 9, "accuracy": 0.95}) == []
    assert len(violations(both, {"area_mm2": np.nan, "accuracy": 0.5})) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("area_mm2 < 10", "write it as 'area_mm2 <= 10'"),
        ("area_mm2 <= ten", "and a number"),
        ("area_mm2 <= nan", "and a number"),
        ("10 >= area_mm2", "is not a metric"),
        (10, "constraint 10"),
        ("area <= 10", "unknown metric 'area'; did you mean 'area_mm2'"),
        ("accuracy >= 0.9", "unknown metric 'accuracy'"),
    ],
)
def test_constraints_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Constraint.parse(text, HARDWARE_METRICS)
