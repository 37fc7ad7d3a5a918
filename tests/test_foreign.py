"""Samplers of Optuna and oracles of KerasTuner as controllers, under the contract of our own."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import test_controllers as contract
import test_search as loop
from test_controllers import SPACE, TINY, from_json, search, to_json, trials_of

from nas.controllers import FOREIGN, make
from nas.trial import Proposal
from search_spaces import Decision, Space

HAS_TORCH = importlib.util.find_spec("torch") is not None
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
SLOW = ("keras_tuner.bayesian", "optuna.gp")  # a second an ask on ten decisions
QUICK = [name for name in FOREIGN if name not in SLOW]
each = pytest.mark.parametrize("name", QUICK)
SMALL = Space(
    [
        Decision("layers", (1, 2, 3)),
        Decision("units", (8, 16, 32, 64), {"layers": (2, 3)}),
        Decision("act", ("relu", "tanh")),
    ]
)


@pytest.mark.parametrize("name", [n for n in QUICK if n != "keras_tuner.grid"])
def test_asks_inside_the_space(name):
    contract.test_asks_inside_the_space(name)


@pytest.mark.parametrize("name", [n for n in QUICK if n != "keras_tuner.grid"])
def test_deterministic_under_a_seed(name):
    contract.test_deterministic_under_a_seed(name)


@each
@pytest.mark.parametrize("n_trials", [0, 3, 28, 47])
def test_restored_is_indistinguishable(name, n_trials):
    contract.test_restored_is_indistinguishable(name, n_trials)


@each
def test_failures_do_not_stop_a_search(name):
    contract.test_failures_do_not_stop_a_search(name)


@each
def test_how_results_are_grouped_does_not_matter(name):
    contract.test_how_results_are_grouped_does_not_matter(name)


@each
def test_a_design_is_not_proposed_twice_while_others_are_left(name):
    contract.test_a_design_is_not_proposed_twice_while_others_are_left(name)


@each
def test_objectives_of_another_shape_are_refused(name):
    contract.test_objectives_of_another_shape_are_refused(name)


def restored_goes_on(name, space, n_trials, n_objectives=1, n_more=3, **options):
    """Whether a controller restored after `n_trials`, with two more open, cannot be told apart."""
    rng = np.random.default_rng(5)
    worth = rng.normal(size=(n_objectives, len(space), space.sizes.max()))

    def values_of(trials):
        rows = np.array([t.proposal.encoding for t in trials])
        values = np.where(space.active(rows), worth[:, np.arange(len(space)), rows], 0).sum(2).T
        values[rows.sum(1) % 7 == 0] = np.nan
        return values

    def run(controller, n):
        rows = []
        for _ in range(n):
            trials = trials_of(controller.ask(2))
            controller.tell(trials, values_of(trials))
            rows += [t.proposal.encoding for t in trials]
        return np.array(rows)

    original = make(name, space, seed=0, n_objectives=n_objectives, **options)
    run(original, n_trials // 2)
    waiting = trials_of(original.ask(2))
    restored = make(name, space, seed=7, n_objectives=n_objectives, **options)
    restored.restore(from_json(to_json(original.state())))
    for controller in (original, restored):
        controller.tell(waiting, values_of(waiting))
    same = (run(original, n_more) == run(restored, n_more)).all()
    return same and to_json(original.state()) == to_json(restored.state())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("keras_tuner.hyperband", {"max_epochs": 4, "factor": 2}),
        ("optuna.gp", {"n_startup_trials": 4}),
        ("optuna.tpe", {"n_startup_trials": 4, "multivariate": True, "group": True}),
        ("optuna.qmc", {"scramble": True}),
    ],
)
@pytest.mark.parametrize("n_trials", [2, 10])
def test_restored_goes_on_where_the_model_is_at_work(name, options, n_trials):
    if name == "optuna.gp" and not HAS_TORCH:
        pytest.skip("optuna.gp needs torch")
    assert restored_goes_on(name, SMALL, n_trials, options=options)


def test_restored_goes_on_where_a_model_guesses_open_trials():
    two = Space([Decision("a", tuple(range(9))), Decision("b", tuple(range(9)))])
    name, options = "keras_tuner.bayesian", {"num_initial_points": 3}
    assert restored_goes_on(name, two, 6, n_more=1, options=options)


@pytest.mark.parametrize("name", ["optuna.nsgaii", "optuna.nsgaiii", "optuna.tpe"])
def test_restored_goes_on_in_later_generations(name):
    options = {} if name == "optuna.tpe" else {"population_size": 6}
    assert restored_goes_on(name, SPACE, 40, n_objectives=2, options=options)


def test_the_grid_goes_through_all_designs_in_order():
    controller = make("keras_tuner.grid", SMALL, seed=0)
    rows = search_in(controller, SMALL, SMALL.n_designs)
    assert len(np.unique(rows, axis=0)) == SMALL.n_designs == 18
    assert sorted(map(tuple, rows)) == list(map(tuple, rows))


def search_in(controller, space, n):
    rows = []
    for _ in range(n):
        trials = trials_of(controller.ask(1))
        controller.tell(trials, np.ones((1, 1)))
        rows.append(trials[0].proposal.encoding)
    return np.array(rows)


def test_models_beat_chance():
    """What they were told is put to use: better than their own start-up at random."""
    gains = {}
    for name, options in (("optuna.tpe", {}), ("optuna.nsgaii", {"population_size": 10})):
        told = search(make(name, SPACE, seed=0, options=options), 100)[1][:, 0]
        gains[name] = told[-30:].mean() - told[:10].mean()
    assert min(gains.values()) > 1, gains


def test_results_of_others_are_learned():
    """A trial that the library did not suggest is known to it, and not suggested again."""
    for name in ("optuna.tpe", "keras_tuner.random", "keras_tuner.grid"):
        controller = make(name, TINY, seed=0)
        known = trials_of([Proposal(np.array([1, i])) for i in range(3)])
        controller.tell(known, np.array([[1.0], [2.0], [np.nan]]))
        assert controller.ask(1)[0].encoding.tolist() == [0, 0]
        assert len(controller.history) >= 4


@pytest.mark.parametrize(
    ("name", "options", "n_objectives", "message"),
    [
        (
            "optuna.tpe",
            {"n_startup": 3},
            1,
            "no option 'n_startup'; did you mean 'n_startup_trials'",
        ),
        ("optuna.tpe", {"seed": 3}, 1, "no option 'seed'"),
        ("optuna.nsgaii", {"population_size": 1}, 1, "greater than or equal to 2"),
        ("keras_tuner.bayesian", {"bta": 3}, 1, "no option 'bta'; did you mean 'beta'"),
        ("keras_tuner.random", {}, 2, "pursues one objective, the reward has 2"),
        ("optuna.tpee", {}, 1, "did you mean 'optuna.tpe'"),
    ],
)
def test_what_is_refused(name, options, n_objectives, message):
    with pytest.raises(ValueError, match=message):
        make(name, SPACE, seed=0, n_objectives=n_objectives, options=options)


@pytest.mark.skipif(HAS_TORCH, reason="torch is there")
def test_a_missing_library_is_named():
    with pytest.raises(ValueError, match=r"'optuna.gp' needs torch"):
        make("optuna.gp", SPACE, seed=0)


@pytest.mark.parametrize("name", ["optuna.tpe", "optuna.nsgaii", "keras_tuner.hyperband"])
def test_a_run_ended_anywhere_resumes_to_the_same_trials(tmp_path, name):
    loop.test_a_run_ended_anywhere_resumes_to_the_same_trials(tmp_path, name, "mnasnet")


def test_importing_nas_imports_neither():
    code = (
        "import sys, nas, nas.cli, nas.controllers; "
        "assert not {'optuna', 'keras_tuner', 'keras', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
