"""Fidelities: promotions by hand, runs that are the same after any end, agreement of rungs."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from test_search import Answers, Stopped, history, search

from nas import config, controllers
from nas.cli import main
from nas.compare import compare
from nas.fidelities import SuccessiveHalving, correlations, highest, rung_of
from nas.leaderboard import leaderboard
from nas.rerun import rerun
from nas.run import begin
from nas.schema import dump, load
from nas.store import Store
from nas.trial import Proposal, Status, Trial
from search_spaces.space import Decision, Space

SPACE = Space([Decision("a", tuple(range(40))), Decision("b", tuple(range(40)))])


def halving(n_objectives=1, reduction=2, n_rungs=3, seed=0, after=0):
    inner = controllers.make("random", SPACE, seed=seed, n_objectives=n_objectives)
    return SuccessiveHalving(
        inner,
        n_rungs=n_rungs,
        reduction=reduction,
        n_objectives=n_objectives,
        after=after,
    )


def tell(controller, proposals, objectives, **named):
    objectives = np.array(objectives, float).reshape(len(proposals), -1)
    trials = [Trial(i, p, 0, Status.COMPLETE, **named) for i, p in enumerate(proposals)]
    controller.tell(trials, objectives)


def rungs(proposals):
    return [rung_of(p) for p in proposals]


def test_the_best_half_is_promoted_once_and_the_highest_rung_first():
    controller = halving()
    first = controller.ask(4)
    assert rungs(first) == [0] * 4
    tell(controller, first, [1, 4, 3, 2])
    second = controller.ask(3)
    assert rungs(second) == [1, 1, 0], "two of four; then something new"
    assert [tuple(p.encoding) for p in second[:2]] == [tuple(first[i].encoding) for i in (1, 2)]
    new = controller.ask(2)
    assert rungs(new) == [0, 0], "nobody twice"
    tell(controller, second[:2], [5, 6])
    [third] = controller.ask(1)
    assert rung_of(third) == 2 and (third.encoding == first[2].encoding).all()
    tell(controller, new, [9, 2.5])
    assert rungs(controller.ask(3)) == [1, 0, 0], "the best three of six are 9, 4 and 3"


def test_no_more_than_the_share_are_promoted_however_they_improve():
    controller, asked = halving(n_rungs=2, reduction=4), []
    for i in range(40):
        [proposal] = controller.ask(1)
        asked.append(rung_of(proposal))
        tell(controller, [proposal], [i])
    assert asked.count(1) == asked.count(0) // 4 == 8


def test_promotions_can_wait_for_a_number_of_results():
    controller = halving(after=6)
    first = controller.ask(5)
    tell(controller, first, [1, 2, 9, 3, 4])
    [last] = controller.ask(1)
    assert rungs([last]) == [0]
    tell(controller, [last], [10])
    second = controller.ask(4)
    assert rungs(second) == [1, 1, 1, 0] and (second[0].encoding == last.encoding).all()
    tell(controller, second[:2], [1, 2])
    assert rungs(controller.ask(1)) == [2], "higher rungs wait for nothing"
    with pytest.raises(ValueError, match=r"after a number of trainings; got -1; try 0"):
        halving(after=-1)


def test_several_objectives_are_ranked_by_front_then_by_room():
    controller = halving(n_objectives=2, reduction=3)
    # a front of four, its ends first; two behind it
    points = [(1, 1), (0, 4), (2, 3), (2.1, 2.9), (4, 0), (1, 2)]
    first = controller.ask(6)
    tell(controller, first, points)
    second = controller.ask(3)
    assert rungs(second) == [1, 1, 0]
    ends = {tuple(first[1].encoding), tuple(first[4].encoding)}
    assert {tuple(p.encoding) for p in second[:2]} == ends


def test_failures_count_and_are_not_promoted_repeats_and_infeasible_designs_do_not_count():
    controller = halving()
    first = controller.ask(4)
    tell(controller, first, [np.nan, np.nan, np.nan, 1])
    second = controller.ask(2)
    assert rungs(second) == [1, 0] and (second[0].encoding == first[3].encoding).all()
    controller = halving()
    tell(controller, controller.ask(4), [1, 2, 3, 4], repeats=0)
    infeasible = [Trial(9, p, 0, Status.INFEASIBLE) for p in controller.ask(4)]
    controller.tell(infeasible, np.full((4, 1), np.nan))
    assert rungs(controller.ask(2)) == [0, 0]


@pytest.mark.parametrize("name", ["surrogate", "evolution", "nsga2"])
def test_restored_it_goes_on_as_the_original(name):
    def make():
        inner = controllers.make(name, SPACE, seed=3, n_objectives=2)
        return SuccessiveHalving(inner, n_rungs=3, reduction=2, n_objectives=2)

    def score(proposal):
        a, b = proposal.encoding
        return (np.nan, np.nan) if (a + b) % 7 == 0 else (a + rung_of(proposal), -b)

    one, asked = make(), []
    for _ in range(12):
        proposals = one.ask(2)
        tell(one, proposals, [score(p) for p in proposals])
    other = make()
    other.restore(load(dump(one.state())))
    for _ in range(8):
        both = one.ask(2), other.ask(2)
        assert [(p.encoding.tolist(), p.note) for p in both[0]] == [
            (p.encoding.tolist(), p.note) for p in both[1]
        ]
        for controller, proposals in zip((one, other), both, strict=True):
            tell(controller, proposals, [score(p) for p in proposals])
        asked += rungs(both[0])
    assert max(asked) == 2 and min(asked) == 0


class Longer(Answers):
    """The longer the training the better, and what is best changes a little."""

    def metrics(self, task):
        found = super().metrics(task)
        found["accuracy"] += 0.02 * task["fidelity"]
        return found


FIDELITIES = (1, 3, 9)


@pytest.mark.parametrize("objective", ["mnasnet", "pareto"])
def test_a_run_is_the_same_in_any_order_of_landing_and_after_any_end(tmp_path, objective):
    options = {"fidelities": FIDELITIES, "objective": objective}
    other = Longer(fail=lambda task: task["seed"] % 11 == 0)
    other.rng = np.random.default_rng(99)
    for name, executor in (("one", Longer(fail=other.fail)), ("other", other)):
        with search(tmp_path / name, executor, **options) as run:
            run.run()
    rng = np.random.default_rng(0)
    for _ in range(100):
        answers = Longer(int(rng.integers(0, 6)), fail=other.fail)
        with search(tmp_path / "broken", answers, **options) as run:
            try:
                run.run()
                break
            except Stopped:
                continue
    rows = history(tmp_path / "one")
    assert rows == history(tmp_path / "other") == history(tmp_path / "broken")
    at = [row[5]["rung"] for row in rows if row[7] is None and row[4] != "infeasible"]
    assert len(at) == 30 and at.count(1) >= 5 and at.count(2) >= 1
    assert at.count(1) <= at.count(0) // 3 and at.count(2) <= at.count(1) // 3
    store = Store(tmp_path / "one")
    trials = store.trials("status = 'complete' AND repeats IS NULL")
    store.close()
    kept = highest(trials)
    designs = {tuple(t.proposal.encoding) for t in trials}
    assert len(kept) == len(designs) < len(trials)
    assert {t.metrics["rung"] for t in kept} == {0, 1, 2}


def test_without_fidelities_nothing_is_written_of_them(tmp_path):
    seen = []

    class Watching(Answers):
        def submit(self, task):
            seen.append(task)
            super().submit(task)

    with search(tmp_path / "s", Watching(), n_trials=6) as run:
        run.run()
    assert not any("fidelity" in task for task in seen)
    assert not any("rung" in row[5] for row in history(tmp_path / "s"))


def trained(pairs):
    """A design at both of two rungs for each pair of accuracies."""
    return [
        Trial(0, Proposal(np.array([i])), 0, Status.COMPLETE, {"rung": rung, "accuracy": value})
        for i, pair in enumerate(pairs)
        for rung, value in enumerate(pair)
    ]


def test_agreement_of_rungs():
    pairs = np.random.default_rng(0).random((30, 2))
    pairs[:, 1] += 2 * pairs[:, 0]
    [found] = correlations(trained(pairs), "accuracy")
    assert found.rungs == (0, 1) and found.n == 30
    assert found.value == pytest.approx(spearmanr(*pairs.T).statistic)
    # Bonett and Wright: atanh(r) +- 1.96 sqrt((1 + r^2 / 2) / (n - 3))
    half = 1.96 * np.sqrt((1 + found.value**2 / 2) / 27)
    assert found.low == pytest.approx(np.tanh(np.arctanh(found.value) - half))
    assert found.high == pytest.approx(np.tanh(np.arctanh(found.value) + half))
    [few] = correlations(trained(pairs[:3]), "accuracy")
    assert few.n == 3 and np.isnan(few.value)
    [equal] = correlations(trained([(0.5, x) for x in (0.1, 0.2, 0.3, 0.4)]), "accuracy")
    assert np.isnan(equal.value)
    assert correlations(trained(pairs)[::2], "accuracy") == []


# -- a table of two fidelities ---------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    """144 designs at costs of 3 and 9; the longer training changes their order a little."""
    rng = np.random.default_rng(1)
    rows = ["depth,width,short,long,latency_ms"]
    for depth in range(12):
        for width in range(12):
            short = 0.5 + (depth + width) / 60 + rng.normal() / 100
            long = 0.6 + (depth + width) / 60 + rng.normal() / 100
            rows.append(f"{depth},{width},{short},{long},{1 + depth * width}")
    path = tmp_path / "table.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def settings(table, **fidelities):
    return {
        "preset": "tabled",
        "trials": 40,
        "in_flight": 2,
        "space": {"network": "table"},
        "evaluator": {
            "name": "table",
            "path": str(table),
            "decisions": ["depth", "width"],
            "costs": ["latency_ms"],
            "fidelities": [
                {"accuracy": "short", "cost": 3},
                {"accuracy": "long", "cost": 9},
                {"test_accuracy": "long", "cost": 27},
            ],
        },
        "controller": {"name": "surrogate"},
        "reward": {"name": "pareto", "objectives": ["accuracy", "-latency_ms"]},
        "fidelities": {"rungs": [3, 9], "reduction": 3, **fidelities},
        "final": {"top": 1},
    }


def test_a_run_over_a_table_promotes_and_says_how_the_rungs_agree(tmp_path, table, capsys):
    run = begin(config.complete(settings(table)), tmp_path / "run", progress=False)
    trials = [t for t in run.trials() if t.repeats is None]
    costs = [t.metrics["cost"] for t in trials]
    assert len(trials) == 40 and costs.count(9) == sum(t.metrics["rung"] for t in trials) >= 8
    board = leaderboard(run)
    assert not board.duplicated(["depth", "width"]).any()
    long = {tuple(t.proposal.encoding): t.id for t in trials if t.metrics["rung"] == 1}
    for row in board.itertuples():
        assert long.get((row.depth, row.width), row.trial) == row.trial
    _, same = rerun(tmp_path / "run", min(long.values()))
    assert same, "trained again as long"
    [found] = correlations(trials, "accuracy")
    assert found.n == costs.count(9) and -1 <= found.low <= found.value <= found.high <= 1
    main(["status", str(tmp_path / "run")])
    said = capsys.readouterr().out
    assert f"accuracy: rank correlation of 3 with 9: {found.value:.2f} [" in said
    assert f"over {found.n} designs trained at both" in said
    report = (tmp_path / "run" / "report.html").read_text()
    assert f"{costs.count(3)} at 3 and {costs.count(9)} at 9" in report


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rungs": [9, 3]}, "two ascending numbers at least, as \\[3, 9\\]; got \\[9, 3\\]"),
        ({"rungs": [3]}, "got \\[3\\]"),
        ({"rungs": [3, "9"]}, "ascending numbers"),
        ({"rungs": [3, 10]}, "costs of the table's fidelities, 3, 9, 27; got 10"),
        ({"rungs": [9, 27]}, "first of fidelities.rungs is the training of every candidate"),
        ({"rungs": [3, 27]}, "fidelity of cost 27 has no 'accuracy'"),
        ({"reduction": 1}, "reduction must be at least 2; got 1"),
        ({"rung": [3, 9]}, "unknown key 'fidelities.rung'"),
    ],
)
def test_impossible_rungs_of_a_table_are_named(table, change, message):
    with pytest.raises(ValueError, match=message):
        config.complete(settings(table, **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fidelities": {"rungs": [5, 7.5]}}, "whole numbers of epochs"),
        ({"fidelities": {"rungs": [4, 8]}}, "from evaluator.epochs = 5 up; got 4"),
        ({"fidelities": {"rungs": [6, 12]}}, "the training of every candidate"),
        (
            {"fidelities": {"rungs": [5, 10]}, "early_stopping": {"epochs": [1]}},
            "set one of them",
        ),
        (
            {"fidelities": {"rungs": [1, 2]}, "evaluator": {"name": "zero_cost"}},
            "evaluator 'zero_cost' has one fidelity only",
        ),
    ],
)
def test_impossible_rungs_of_trainings_are_named(change, message):
    preset = config.read("quickstart")
    for key, value in change.items():
        config.override(preset, key, value)
    if "evaluator" in change:
        preset["reward"] = {"name": "pareto", "objectives": ["zero_cost", "-latency_s"]}
    with pytest.raises(ValueError, match=message):
        config.complete(preset)


def test_off_by_default_and_what_trainings_are_told():
    whole = config.complete(config.read("quickstart"))
    assert config.make_fidelities(whole) == []
    assert not isinstance(config.make_controller(whole), SuccessiveHalving)
    whole["fidelities"]["rungs"] = [5, 15]
    assert config.make_fidelities(config.complete(whole)) == [5, 15]
    assert isinstance(config.make_controller(whole), SuccessiveHalving)


def test_a_comparison_has_one_fidelity(table, tmp_path):
    preset = tmp_path / "tabled.toml"
    preset.write_text(
        f"""
        [space]
        network = "table"
        [evaluator]
        name = "table"
        path = "{table}"
        decisions = ["depth", "width"]
        fidelities = [{{ accuracy = "short", cost = 3 }}, {{ accuracy = "long", cost = 9 }}]
        [reward]
        name = "pareto"
        objectives = ["accuracy"]
        [fidelities]
        rungs = [3, 9]
        """
    )
    with pytest.raises(ValueError, match="no equal budgets"):
        compare(str(preset), ["random"], to=tmp_path / "c", budgets=[5])
