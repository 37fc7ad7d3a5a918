"""Spaces as hyperparameters and back, and our controllers as oracles of a user's own tuner."""

import numpy as np
import pytest
from test_controllers import SPACE

from nas.hyperparameters import to_choices, to_hyperparameters, to_space, to_values
from search_spaces import Decision, Space, joint
from search_spaces.hardware import FAMILIES

keras_tuner = pytest.importorskip("keras_tuner")


# -- spaces and hyperparameters --------------------------------------------------------------------


@pytest.mark.parametrize("space", [SPACE, *(joint("cell", family) for family in FAMILIES)])
def test_a_space_there_and_back(space):
    back = to_space(to_hyperparameters(space))
    assert back.names == space.names and (back.sizes == space.sizes).all()
    rows = space.sample(50, np.random.default_rng(0))
    assert (back.canonical(rows) == rows).all(), "the same decisions are active"
    for row in rows:
        values = to_values(back.decode(row))
        assert (space.encode(to_choices(space, values)) == row).all()


def test_conditions_are_those_of_conditional_scopes():
    hp = keras_tuner.HyperParameters()
    hp.Choice("depth", [1, 2, 3])
    with hp.conditional_scope("depth", [2, 3]):
        hp.Choice("op", ["conv", "pool"])
        with hp.conditional_scope("op", ["conv"]):
            hp.Choice("kernel", [3, 5])
    hp.Fixed("width", 8)
    space = Space(
        [
            Decision("depth", (1, 2, 3)),
            Decision("op", ("conv", "pool"), {"depth": (2, 3)}),
            Decision("kernel", (3, 5), {"op": ("conv",)}),
            Decision("width", (8,)),
        ]
    )
    assert to_hyperparameters(space).get_config()["space"] == hp.get_config()["space"]
    assert to_space(hp).n_designs == space.n_designs == 1 + 2 * (2 + 1)


def test_every_kind_of_hyperparameter_is_a_decision():
    hp = keras_tuner.HyperParameters()
    hp.Int("units", 8, 32, step=8)
    hp.Float("rate", 0.1, 0.5, step=0.2)
    hp.Float("free", 1e-4, 1e-1, sampling="log")
    hp.Boolean("bias")
    space = to_space(hp)
    values = {d.name: d.values for d in space.decisions}
    assert values["units"] == (8, 16, 24, 32) and set(values["bias"]) == {False, True}
    assert values["rate"] == pytest.approx((0.1, 0.3, 0.5)) and len(values["free"]) == 10
    assert list(values["free"]) == sorted(values["free"])
    assert 1e-4 <= values["free"][0] < values["free"][-1] <= 0.1


def test_a_name_used_in_two_scopes_is_two_decisions():
    hp = keras_tuner.HyperParameters()
    hp.Choice("kind", ["mlp", "cnn"])
    for kind, units in (("mlp", [8, 16]), ("cnn", [3, 5, 7])):
        with hp.conditional_scope("kind", [kind]):
            hp.Choice("size", units)
    space = to_space(hp)
    assert space.names == ("kind", "size", "size#1") and space.n_designs == 5
    choices = space.decode([1, 0, 2])
    assert to_values(choices) == {"kind": "cnn", "size": 7}
    assert to_choices(space, {"kind": "cnn", "size": 7}) == choices


def test_nothing_to_search_is_said():
    with pytest.raises(ValueError, match="no hyperparameters"):
        to_space(keras_tuner.HyperParameters())


# -- oracles ---------------------------------------------------------------------------------------


def worth(hp) -> float:
    """What a design of the user's space scores; the best is 3 + 2 + 1."""
    layers = hp.Int("layers", 1, 3)
    score = float(layers)
    for i in range(layers):
        with hp.conditional_scope("layers", list(range(i + 1, 4))):
            score += {"relu": 0.5, "tanh": 0.0, "gelu": 1.0}[
                hp.Choice(f"act{i}", ["relu", "tanh", "gelu"])
            ] / (i + 1)
    return score - abs(np.log10(hp.Choice("rate", [1e-4, 1e-3, 1e-2])) + 3)


class Tuner(keras_tuner.Tuner):
    """A user's tuner, whose trials are over at once; every fifth one crashes."""

    crashes = False

    def run_trial(self, trial, *args, **kwargs):
        score = worth(trial.hyperparameters)
        if self.crashes and int(trial.trial_id) % 5 == 4:
            return float("nan")
        cost = float(trial.hyperparameters.get("layers"))
        # KerasTuner asks for the last where there are several objectives
        return {"score": score, "cost": cost, "multi_objective": cost - score}


def tuner_of(path, controller="evolution", *, objective=None, max_trials=25, n=0, **options):
    from nas.oracle import Oracle

    objective = objective or keras_tuner.Objective("score", "max")
    oracle = Oracle(controller, options, objective=objective, max_trials=max_trials, seed=3,
                    max_consecutive_failed_trials=99)  # fmt: skip
    return Tuner(oracle=oracle, directory=path, project_name="p", logger=None)


def history(oracle):
    return [oracle.trials[id].hyperparameters.values for id in oracle.start_order]


@pytest.mark.parametrize("controller", ["random", "evolution", "policy_gradient", "optuna.tpe"])
def test_a_tuner_searches_with_a_controller(tmp_path, controller):
    if controller.startswith("optuna"):
        pytest.importorskip("optuna")
    tuner = tuner_of(tmp_path, controller)
    tuner.search(verbose=0)
    oracle = tuner.oracle
    assert len(oracle.trials) == 25 and oracle.n_told == 25
    assert len({str(sorted(values.items())) for values in history(oracle)}) == 25, "no repeats"
    assert set(oracle.space.names) == {"layers", "act0", "act1", "act2", "rate"}
    best = oracle.get_best_trials(1)[0]
    assert best.score == max(t.score for t in oracle.trials.values()) > 3.5
    for values in history(oracle):
        assert {f"act{i}" for i in range(values["layers"])} == {n for n in values if n[0] == "a"}


def test_a_reloaded_tuner_goes_on_as_if_nothing_had_happened(tmp_path):
    whole = tuner_of(tmp_path / "whole")
    whole.search(verbose=0)
    tuner_of(tmp_path / "parts", max_trials=13).search(verbose=0)
    second = tuner_of(tmp_path / "parts")  # another process would begin so
    assert len(second.oracle.trials) == 13
    second.search(verbose=0)
    assert history(second.oracle) == history(whole.oracle)


def test_failures_are_told_and_stop_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Tuner, "crashes", True)
    tuner = tuner_of(tmp_path)
    tuner.search(verbose=0)
    statuses = [trial.status for trial in tuner.oracle.trials.values()]
    assert statuses.count("FAILED") == 5 and statuses.count("COMPLETED") == 20
    assert tuner.oracle.n_told == 25
    assert np.isfinite(tuner.oracle.controller.state()["objectives"]).all()


def test_several_objectives_stay_apart(tmp_path):
    objective = [keras_tuner.Objective("score", "max"), keras_tuner.Objective("cost", "min")]
    tuner = tuner_of(tmp_path, objective=objective)
    tuner.search(verbose=0)
    told = tuner.oracle.controller.state()["objectives"]
    assert told.shape[1] == 2 and set(told[:, 1]) == {-1.0, -2.0, -3.0}


def test_an_exhausted_space_ends_the_search(tmp_path):
    tuner = tuner_of(tmp_path, max_trials=None)
    tuner.search(verbose=0)
    n_designs = tuner.oracle.space.n_designs
    assert n_designs == 3 * (3 + 9 + 27) and 0.9 * n_designs < len(tuner.oracle.trials) <= n_designs


@pytest.mark.parametrize(
    ("controller", "options", "message"),
    [("evolutoin", {}, "did you mean 'evolution'"), ("evolution", {"sampel": 2}, "'sample'")],
)
def test_a_controller_that_there_is_not_is_named_at_once(controller, options, message):
    from nas.oracle import Oracle

    with pytest.raises(ValueError, match=message):
        Oracle(controller, options, objective="val_accuracy")
