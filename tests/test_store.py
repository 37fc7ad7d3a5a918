"""The store: what is written is read back, whole steps or none, and nothing that could run."""

import contextlib
import json
import sqlite3

import numpy as np
import pytest

from nas.schema import MIGRATIONS, dump, load
from nas.store import Store, StoreError
from nas.trial import Proposal, Status, Trial


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "trials.sqlite", create=True)
    yield store
    store.close()


def trial(id, encoding=(1, 2, 3), **fields):
    return Trial(id, Proposal(np.array(encoding), fields.pop("note", None)), seed=7, **fields)


def test_values_survive_as_they_were():
    rng = np.random.default_rng(0)
    rng.random(3)
    state = {"array": rng.normal(0, 1, (2, 3)), "ints": np.arange(4),
             "rng": rng.bit_generator.state,
             "bools": np.array([True, False]), "text": "é", "none": None, "empty": np.empty((0, 3)),
             "nested": {"list": [1, 2.5, {"x": [True]}]}}  # fmt: skip
    back = load(dump(state))
    for name in ("array", "ints", "bools", "empty"):
        assert back[name].dtype == state[name].dtype and back[name].shape == state[name].shape
        np.testing.assert_array_equal(back[name], state[name])
    assert {k: back[k] for k in ("rng", "text", "none", "nested")} == {
        k: state[k] for k in ("rng", "text", "none", "nested")
    }
    assert load(dump({"nan": float("nan"), "np": np.float32(0.5)})) == {"nan": None, "np": 0.5}


def test_no_object_array_can_be_stored_or_read():
    with pytest.raises(TypeError):
        dump({"x": object()})
    hostile = json.dumps({"__array__": ["|O", [1], "AAAAAAAAAAA="]})
    with pytest.raises(ValueError):
        load(hostile)


def test_trials_come_back(store):
    first = trial(0, note={"log_probability": -3.5}, metrics={"latency_s": 1e-3})
    with store.transaction():
        store.insert(first)
        store.insert(trial(1, (4, 5, 6), status=Status.INFEASIBLE, error="too large"), told=0)
    first.status, first.metrics = Status.COMPLETE, {"accuracy": 0.5, "curve": [{"loss": 2.0}]}
    store.finish(first)
    back = store.trials()
    assert [t.id for t in back] == [0, 1] and back[0].metrics == first.metrics
    assert back[0].status is Status.COMPLETE and back[0].proposal.note == {"log_probability": -3.5}
    assert back[1].error == "too large" and back[1].proposal.encoding.tolist() == [4, 5, 6]
    assert [t.id for t in store.untold()] == [0]
    store.mark_told(0, 1)
    assert store.untold() == [] and store.count("status = 'complete'") == 1


def test_same_design_finds_the_first_that_was_no_repeat(store):
    store.insert(trial(0, (9, 9)))
    store.insert(trial(1, (1, 2)))
    store.insert(trial(2, (1, 2), repeats=1))
    assert store.same_design(np.array([1, 2])) == 1
    assert store.same_design(np.array([3, 3])) is None


def test_a_step_is_whole_or_not_at_all(store):
    store.save_controller({"generation": 1})
    with pytest.raises(RuntimeError), store.transaction():
        store.insert(trial(0))
        store.save_controller({"generation": 2})
        raise RuntimeError("the process dies here")
    assert store.count() == 0 and store.controller_state() == {"generation": 1}


def test_others_read_while_it_writes(store, tmp_path):
    with store.transaction():
        store.insert(trial(0))
        reader = Store(tmp_path / "trials.sqlite", read_only=True)
        assert reader.count() == 0
    assert reader.count() == 1
    with pytest.raises(StoreError, match="may not be written"):
        reader.log("x")
    reader.close()


def test_finals_come_back(store):
    store.insert(trial(3))
    store.save_final(3, {"test_accuracy": 0.6}, "trial-000003.weights.h5")
    assert store.finals() == {3: ({"test_accuracy": 0.6}, "trial-000003.weights.h5")}


def test_files_of_another_kind_are_named(tmp_path):
    with pytest.raises(StoreError, match=r"is missing; is .* a run directory\?"):
        Store(tmp_path / "none.sqlite")
    text = tmp_path / "text.sqlite"
    text.write_text("this is not a database, and it is long enough to be taken for one" * 100)
    with pytest.raises(StoreError, match=r"is damaged .file is not a database.; 'nas repair"):
        Store(text)
    newer = tmp_path / "newer.sqlite"
    Store(newer, create=True).close()
    for change, said in (
        (f"PRAGMA user_version = {len(MIGRATIONS) + 1}", "its format is said to be .*, and is not"),
        ("CREATE TABLE devices (name TEXT)", "written by a newer version"),
    ):
        with contextlib.closing(sqlite3.connect(newer)) as connection:
            connection.execute(change)
        with pytest.raises(StoreError, match=said):
            Store(newer)
