"""Decisions, conditions and encodings."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces import FAMILIES, joint
from search_spaces.space import Decision, Space

SMALL = Space(
    [
        Decision("a", (1, 2, 3)),
        Decision("b", ("x", "y"), {"a": (2, 3)}),
        Decision("c", (True, False), {"b": ("y",)}),
    ]
)


def test_designs_are_counted_with_their_conditions():
    # a=1: one design; a=2 or 3: b=x, or b=y with two values of c
    assert SMALL.n_designs == 1 + 2 * (1 + 2)
    assert len(SMALL.enumerate()) == SMALL.n_designs
    assert len(np.unique(SMALL.enumerate(), axis=0)) == SMALL.n_designs


def test_sampling_reaches_every_design_and_only_designs():
    sampled = np.unique(SMALL.sample(500, np.random.default_rng(0)), axis=0)
    assert (sampled == np.unique(SMALL.enumerate(), axis=0)).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_encode_inverts_decode(family):
    space = joint(family)
    for encoding in space.sample(200, np.random.default_rng(1)):
        choices = space.decode(encoding)
        assert (space.encode(choices) == encoding).all()
        assert set(choices) == {n for n, on in zip(space.names, space.active(encoding)[0]) if on}


def test_inactive_decisions_hold_index_zero_and_are_not_decoded():
    assert SMALL.canonical([[0, 1, 1]]).tolist() == [[0, 0, 0]]
    assert SMALL.decode([0, 1, 1]) == {"a": 1}
    assert SMALL.decode_all([[0, 1, 1], [1, 0, 0]]) == [{"a": 1}, SMALL.decode([1, 0, 0])]
    assert SMALL.active([[1, 0, 0]]).tolist() == [[True, True, False]]


def test_neighbours_are_one_active_decision_away():
    assert SMALL.neighbours([1, 1, 0]).tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 1], [2, 1, 0]]
    space = joint("cell")
    encoding = space.sample(1, np.random.default_rng(2))[0]
    around = space.neighbours(encoding)
    assert len(np.unique(around, axis=0)) == len(around) >= (space.sizes - 1).max()
    assert not (around == encoding).all(1).any()
    assert (space.canonical(around) == around).all()


def test_restrict_narrows_and_drops_what_can_never_be_active():
    assert SMALL.restrict({"a": [1, 2]}).n_designs == 4
    assert SMALL.restrict({"a": 1}).names == ("a",)
    assert SMALL.restrict({"c": True}).decisions[2].values == (True,)
    assert SMALL.restrict({"a": [3, 1]}).decisions[0].values == (1, 3)


def test_spaces_join():
    both = SMALL + Space([Decision("d", (0.5, 0.25))])
    assert both.n_designs == 2 * SMALL.n_designs
    assert both.decisions[-1].ordered and not both.decisions[1].ordered
    assert not SMALL.decisions[2].ordered, "booleans have no order"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Decision("a", ()), "at least one, got"),
        (lambda: Decision("a", (1, 1)), "must be different"),
        (lambda: Space([Decision("a", (1,)), Decision("a", (2,))]), "named twice: a"),
        (lambda: Space([Decision("b", (1,), {"a": (1,)})]), "depends on 'a'"),
        (lambda: SMALL.encode({"a": 2, "bb": "x"}), "unknown decision 'bb'; did you mean 'b'"),
        (lambda: SMALL.encode({"a": 2}), "decision 'b' is missing"),
        (lambda: SMALL.encode({"a": 1, "b": "x"}), "given but not active"),
        (lambda: SMALL.encode({"a": 9}), "9 is not one of 1, 2, 3"),
        (lambda: SMALL.decode([0, 0, 7]), "index 7 is not in 0..1"),
        (lambda: SMALL.decode([0, 0]), "need 3 columns"),
        (lambda: SMALL.validate([[0.5, 0, 0]]), "integers"),
        (lambda: SMALL.restrict({"A": 1}), "unknown decision 'A'"),
        (lambda: SMALL.restrict({"a": []}), "empty list"),
        (lambda: SMALL.restrict({"c": 1}), "1 is not one of True, False"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_unnamed_techniques_stay_out_and_unnamed_values_are_the_usual_ones():
    space = Space([
        Decision("batch", (8, 32, 64, 32768), usual=(32, 64)),
        Decision("prune", ("none", "nm"), usual=()),
        Decision("prune.nm", (1, 2), {"prune": ("nm",)}),
    ])  # fmt: skip
    assert space.restrict({}).names == ("batch",)
    assert space.restrict({}).decisions[0].values == (32, 64)
    named = space.restrict({"batch": [8, 32], "prune": ["none", "nm"]})
    assert named.decisions[0].values == (8, 32) and named.names == space.names
    assert named.restrict({}).names == named.names  # what was chosen once is chosen
    with pytest.raises(ValueError, match=r"'prune\.nm' is named but not 'prune'"):
        space.restrict({"prune.nm": 1})


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_designs_are_counted_as_enumeration_counts_them(seed):
    rng = np.random.default_rng(seed)
    decisions = []
    for i in range(rng.integers(1, 7)):
        values, when = tuple(range(rng.integers(1, 4))), {}
        if i and rng.random() < 0.6:
            parent = decisions[rng.integers(i)]
            n = rng.integers(1, len(parent.values) + 1)
            when = {parent.name: tuple(parent.values[:n])}
        decisions.append(Decision(str(i), values, when))
    space = Space(decisions)
    assert space.n_designs == len(space.enumerate())
