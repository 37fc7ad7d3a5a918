"""The loop: exact resume from any instant, repeats, infeasible designs, failures.

Candidates are not trained here: an executor in this process answers from the design, in another
order than it was asked, and ends the run where the test says. Real kills are in test_end_to_end.
"""

from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest

from nas import controllers, reward
from nas.fidelities import SuccessiveHalving
from nas.outlook import Priced
from nas.pricing import price_designs
from nas.search import Search, SearchError
from nas.store import Store
from nas.trial import Status
from search_spaces import joint

SPACE = joint("cell").restrict({"cell.depth": [1, 2], "cell.resolution": 16, "cell.width": [4, 8]})


class Stopped(Exception):
    """The process ends here."""


class Answers:
    """An executor whose results land in a shuffled order; raises Stopped after `budget` of them."""

    def __init__(self, budget=10**9, fail=lambda task: False):
        self.tasks, self.budget, self.fail, self.n_trained = [], budget, fail, 0
        self.rng = np.random.default_rng(5)

    def submit(self, task):
        self.tasks.append(task)

    def wait(self):
        if self.budget == 0:
            raise Stopped
        self.budget -= 1
        self.n_trained += 1
        task = self.tasks.pop(int(self.rng.integers(len(self.tasks))))
        if self.fail(task):
            return {"id": task["id"], "kind": "trial", "error": "RuntimeError: no"}
        return {"id": task["id"], "kind": "trial", "metrics": self.metrics(task)}

    def metrics(self, task):
        bits = sum(v for k, v in task["choices"].items() if k.startswith("bits.w"))
        return {"accuracy": 0.3 + bits / 400 + (task["seed"] % 97) / 1000, "loss": 1.0}


@contextmanager
def search(path, executor, *, controller="evolution", n_trials=30, constraints=(), space=SPACE,
           in_flight=4, seed=3, objective="mnasnet", watch=lambda trial: None,
           early_stopping=None, fidelities=(), reduction=3):  # fmt: skip
    store = Store(path, create=True)
    judge, limits = reward.make(objective), [reward.Constraint.parse(c) for c in constraints]
    named = {*judge.needs, *(limit.metric for limit in limits)}
    outlook = Priced("cell", space, judge, limits)
    outlook.limit = 24  # fewer networks priced for one ask
    inner = controllers.make(controller, space, seed=seed,
                             n_objectives=judge.n_objectives, outlook=outlook)  # fmt: skip
    if fidelities:
        inner = SuccessiveHalving(inner, n_rungs=len(fidelities), reduction=reduction,
                                  n_objectives=judge.n_objectives)  # fmt: skip
    yield Search(
        price=partial(price_designs, "cell", named=named), space=space, store=store,
        executor=executor,
        reward=judge,
        controller=inner,
        constraints=limits,
        n_trials=n_trials, in_flight=in_flight, seed=seed, out_of_time=lambda: False, watch=watch,
        early_stopping=early_stopping, fidelities=fidelities,
    )  # fmt: skip
    store.close()


def history(path):
    """All that a run decided: trials in order, and the order of telling."""
    store = Store(path)
    told = dict(store.connection.execute("SELECT id, told FROM trials"))
    rows = [(t.id, t.proposal.encoding.tolist(), t.proposal.note, t.seed, t.status, t.metrics,
             t.error, t.repeats, told[t.id]) for t in store.trials()]  # fmt: skip
    store.close()
    return rows


CONSTRAINTS = ["area_mm2 <= 8"]


@pytest.fixture(autouse=True)
def short_shortlist(monkeypatch):
    """The surrogate's accelerators are drawn from fewer."""
    monkeypatch.setattr("nas.outlook.N_PRICED", 200)


@pytest.mark.parametrize("objective", ["mnasnet", "pareto"])
@pytest.mark.parametrize("controller", controllers.CONTROLLERS)
def test_a_run_ended_anywhere_resumes_to_the_same_trials(tmp_path, controller, objective):
    if controller in ("policy_gradient", "tunas") and objective == "pareto":
        pytest.skip("a policy climbs one number")
    options = {"controller": controller, "objective": objective, "constraints": CONSTRAINTS}
    whole = tmp_path / "whole.sqlite"
    with search(whole, Answers(), **options) as run:
        run.run()
    expected = history(whole)
    trained = [row for row in expected if row[4] is Status.COMPLETE and row[7] is None]
    infeasible = any(row[4] is Status.INFEASIBLE for row in expected)
    assert len(trained) == 30 and infeasible == (controller != "surrogate")  # it sees the prices
    broken = tmp_path / "broken.sqlite"
    rng = np.random.default_rng(0)
    for _ in range(100):
        with search(broken, Answers(int(rng.integers(0, 6))), **options) as run:
            try:
                run.run()
                break
            except Stopped:
                continue
    assert history(broken) == expected


@pytest.mark.parametrize("method", ["insert", "finish", "mark_told", "save_controller"])
def test_a_run_ended_inside_a_commit_resumes_to_the_same_trials(tmp_path, method, monkeypatch):
    whole = tmp_path / "whole.sqlite"
    with search(whole, Answers(), constraints=CONSTRAINTS) as run:
        run.run()
    broken = tmp_path / "broken.sqlite"
    original = getattr(Store, method)
    for calls_left in (0, 1, 5, 11, 23, 10**9):

        def dies(self, *arguments, left=[calls_left], **named):  # noqa: B006, counts down
            if left[0] == 0:
                raise Stopped
            left[0] -= 1
            return original(self, *arguments, **named)

        monkeypatch.setattr(Store, method, dies)
        with search(broken, Answers(), constraints=CONSTRAINTS) as run:
            try:
                run.run()
            except Stopped:
                assert calls_left < 10**9
        monkeypatch.setattr(Store, method, original)
    assert history(broken) == history(whole)


def test_the_order_of_landing_changes_nothing(tmp_path):
    slow = Answers()
    slow.rng = np.random.default_rng(99)
    for name, executor in (("one", Answers()), ("other", slow)):
        with search(tmp_path / name, executor) as run:
            run.run()
    assert history(tmp_path / "one") == history(tmp_path / "other")


def test_infeasible_designs_are_told_and_never_trained(tmp_path):
    executor = Answers()
    with search(tmp_path / "s", executor, constraints=CONSTRAINTS) as run:
        run.run()
    rows = history(tmp_path / "s")
    infeasible = [row for row in rows if row[4] is Status.INFEASIBLE]
    assert infeasible and executor.n_trained == 30 == len(rows) - len(infeasible)
    assert all(row[6] for row in infeasible), "each says why"
    assert any("breaks area_mm2 <= 8" in row[6] for row in infeasible)
    assert sorted(row[8] for row in rows) == list(range(len(rows))), "every one told once"


def test_a_design_met_before_is_not_trained_twice(tmp_path):
    few = SPACE.restrict(
        {name: d.values[0] for name, d in zip(SPACE.names, SPACE.decisions)
         if name not in ("bits.ends", "serve.batch", "cell.edge03", "cell.edge01")}
        | {"cell.edge03": ["conv_3x3", "conv_1x1"], "cell.edge01": "none", "bits.ends": [4, 8]}
    )  # fmt: skip
    assert few.n_designs == 16
    executor = Answers()
    with (
        search(tmp_path / "s", executor, space=few, n_trials=40, controller="random") as run,
        pytest.raises(SearchError, match="could not be trained, the last because: repeats trial"),
    ):
        run.run()
    rows = history(tmp_path / "s")
    repeats = [row for row in rows if row[7] is not None and row[8] is not None]
    assert repeats and executor.n_trained <= 16
    for row in repeats:
        assert row[5] == rows[row[7]][5] and row[1] == rows[row[7]][1]


def test_a_failed_trial_is_told_and_stops_nothing(tmp_path):
    with search(tmp_path / "s", Answers(fail=lambda task: task["id"] % 4 == 1)) as run:
        run.run()
    rows = history(tmp_path / "s")
    failed = [row for row in rows if row[4] is Status.FAILED]
    assert failed and all(row[6] == "RuntimeError: no" for row in failed)
    assert all(row[8] is not None for row in rows)


def test_trials_that_all_fail_end_the_run_with_the_reason(tmp_path):
    with (
        search(tmp_path / "s", Answers(fail=lambda task: True)) as run,
        pytest.raises(SearchError, match="10 trials in a row failed, the last with: Runtime"),
    ):
        run.run()


def test_once_one_has_ended_well_failures_stop_nothing(tmp_path):
    with search(tmp_path / "s", Answers(fail=lambda task: task["id"] > 5)) as run:
        run.run()
    statuses = [row[4] for row in history(tmp_path / "s")]
    assert statuses.count(Status.FAILED) > 20 and Status.COMPLETE in statuses


def test_constraints_that_nothing_satisfies_end_the_run_with_the_reason(tmp_path):
    with (
        search(tmp_path / "s", Answers(), constraints=["area_mm2 <= 0.001"]) as run,
        pytest.raises(SearchError, match=r"in a row could not be trained.*loosen the constraints"),
    ):
        run.run()
    assert all(row[4] is Status.INFEASIBLE for row in history(tmp_path / "s"))


def test_the_progress_is_watched_once_a_trial(tmp_path):
    seen = []
    with search(tmp_path / "s", Answers(), watch=seen.append, constraints=CONSTRAINTS) as run:
        run.run()
    assert sorted(trial.id for trial in seen) == [row[0] for row in history(tmp_path / "s")]
