"""Fronts, ranks, crowding and hypervolume, against closed forms and against their definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.pareto import boxes, crowding, front, hypervolume, improvement, ranks

NAN = np.nan


def dominated(points):
    """By definition: some other point is at least as good in all, better in one. bool [n]."""
    at_least = (points[:, None] >= points[None]).all(-1)
    better = (points[:, None] > points[None]).any(-1)
    return (at_least & better).any(0)


# few different values, so that ties and copies are common; some rows unmeasured
small_sets = st.integers(1, 5).flatmap(
    lambda m: st.lists(
        st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0, -1.5, NAN]), min_size=m, max_size=m),
        min_size=1,
        max_size=30,
    )
)


@settings(deadline=None, max_examples=200)
@given(small_sets)
def test_front_and_ranks_are_their_definitions(rows):
    points = np.array(rows)
    left = ~np.isnan(points).any(1)
    expected = np.full(len(points), -1)
    level = 0
    while left.any():
        members = np.flatnonzero(left)[~dominated(points[left])]
        expected[members] = level
        left[members] = False
        level += 1
    expected[expected < 0] = max(level, 1)
    assert (ranks(points) == expected).all()
    assert (front(points) == (expected == 0)).all()


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5])
def test_front_of_many_points(m):
    points = np.random.default_rng(m).normal(size=(5000, m)).round(1)
    assert (front(points) == ~dominated(points)).all()


def test_many_points_of_which_all_are_on_the_front():
    angles = np.random.default_rng(0).random(200_000) * np.pi / 2
    assert front(np.column_stack([np.cos(angles), np.sin(angles), np.ones(len(angles))])).all()


def test_front_keeps_copies_and_drops_nan():
    points = np.array([[1, 2], [1, 2], [2, 1], [0, 0], [NAN, 9]])
    assert front(points).tolist() == [True, True, True, False, False]
    assert ranks(points).tolist() == [0, 0, 0, 1, 2]


def test_nothing_measured_is_no_front():
    assert not front(np.full((3, 2), NAN)).any()
    assert ranks(np.full((3, 2), NAN)).tolist() == [1, 1, 1]
    assert crowding(np.full((3, 2), NAN)).tolist() == [0, 0, 0]
    assert hypervolume(np.full((3, 2), NAN), np.zeros(2)) == 0
    assert front(np.empty((0, 3))).shape == ranks(np.empty((0, 3))).shape == (0,)


def test_crowding_by_hand():
    # a front of four, the extents 4 and 8; and a lone point behind it
    points = np.array([[0, 8], [1, 6], [3, 5], [4, 0], [NAN, 1], [0, 0]])
    inf = np.inf
    expected = [inf, 3 / 4 + 3 / 8, 3 / 4 + 6 / 8, inf, 0, inf]
    assert crowding(points).tolist() == expected


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_hypervolume_of_boxes(m):
    assert hypervolume(np.full((1, m), 3.0), np.ones(m)) == 2**m
    # the box of side 2, and for each objective a bar of length 3 and width 1 that leaves it
    bars = np.ones((m, m)) + 2 * np.eye(m)
    points = np.vstack([np.full((1, m), 2.0), bars, bars])
    assert hypervolume(points, np.zeros(m)) == pytest.approx(2**m + m if m > 1 else 3)
    assert hypervolume(points, np.full(m, 3.0)) == 0  # nothing is above the reference


@pytest.mark.parametrize("m", [2, 3, 4])
def test_hypervolume_of_a_simplex_of_boxes(m):
    """All whole points with sum k: they cover the cells x of whole corners with sum(x) <= k - m."""
    k = 7
    grid = np.stack(np.meshgrid(*[np.arange(k + 1)] * m), -1).reshape(-1, m)
    n_cells = (grid.sum(1) <= k - m).sum()
    assert hypervolume(grid[grid.sum(1) == k], np.zeros(m)) == pytest.approx(n_cells)


@pytest.mark.parametrize("m", [2, 3, 4])
def test_hypervolume_against_monte_carlo(m):
    rng = np.random.default_rng(m)
    points = rng.random((40, m))
    darts = rng.random((100_000, m))
    hit = np.zeros(len(darts), bool)
    for point in points:
        hit |= (darts < point).all(1)
    error = 4 * np.sqrt(hit.mean() * (1 - hit.mean()) / len(darts))
    assert hypervolume(points, np.zeros(m)) == pytest.approx(hit.mean(), abs=error)


def test_hypervolume_moves_with_the_reference_and_the_scale():
    points = np.random.default_rng(3).random((25, 3))
    volume = hypervolume(points, np.zeros(3))
    scale, shift = np.array([1e-3, 5.0, 1e6]), np.array([2.0, -7.0, 1e4])
    assert hypervolume(points * scale + shift, shift) == pytest.approx(volume * scale.prod())


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"\[points, objectives\].*\(3,\)"):
        front(np.zeros(3))
    with pytest.raises(ValueError, match="at least one objective"):
        ranks(np.zeros((3, 0)))
    with pytest.raises(ValueError, match="needs 2 finite numbers"):
        hypervolume(np.zeros((3, 2)), np.zeros(3))
    with pytest.raises(ValueError, match="needs 2 finite numbers"):
        hypervolume(np.zeros((3, 2)), np.array([0, NAN]))


@pytest.mark.parametrize("k", [1, 4, 25])
def test_hypervolume_of_the_best_points_on_a_line(k):
    """On y = 1 - x the k points of the greatest hypervolume above (0, 0) are evenly spaced, and
    have k / (2 (k + 1)) (Auger, Bader, Brockhoff and Zitzler, FOGA 2009, theorem 6)."""
    x = np.arange(1, k + 1) / (k + 1)
    best = hypervolume(np.column_stack([x, 1 - x]), np.zeros(2))
    assert best == pytest.approx(k / (2 * (k + 1)))
    moved = x + np.random.default_rng(k).normal(0, 0.02, k)
    assert hypervolume(np.column_stack([moved, 1 - moved]), np.zeros(2)) < best


@pytest.mark.parametrize("m", [1, 2, 3, 4])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("k", [0, 1, 25])
def test_improvement_is_what_a_point_adds(m, ties, k):
    rng = np.random.default_rng(m)
    points, candidates = rng.random((k, m)), 1.2 * rng.random((60, m)) - 0.1
    if ties:
        points, candidates = points.round(1), candidates.round(1)
    reference = np.full(m, 0.05)
    volume = hypervolume(points, reference)
    added = [hypervolume(np.vstack([points, c]), reference) - volume for c in candidates]
    assert improvement(candidates, points, reference) == pytest.approx(added, abs=1e-12)
    # boxes and what the points dominate fill the space up to 1.2, and nothing twice
    lower, upper = boxes(points, reference)
    left = np.maximum(np.minimum(upper, 1.2) - lower, 0).prod(axis=1).sum()
    assert left + volume == pytest.approx(1.15**m)


def test_improvement_of_what_was_not_measured_is_none():
    points = np.array([[1.0, 2.0], [NAN, 5.0]])
    assert improvement(np.array([[NAN, 9.0], [2.0, 1.0]]), points, np.zeros(2)).tolist() == [0, 1]
    with pytest.raises(ValueError, match="2 finite numbers"):
        improvement(points, points, np.array([0.0, NAN]))
