"""The benchmark of joint search: its looked-up prices are the hardware model's, its front exact."""

import numpy as np
import pytest

from benchmarks import joint_search
from benchmarks.joint_search import (
    ACCURACY,
    EDGES,
    GOALS,
    VALUES,
    Grid,
    Known,
    Trained,
    columns,
    fixed,
    truth_of,
)  # fmt: skip
from nas import pareto
from nas.pricing import price_designs

SMALL = VALUES | {
    **dict(zip(EDGES, ("conv_3x3", "skip", "conv_1x1", "none"), strict=False)),
    "cell.edge13": ["none", "conv_1x1", "avg_pool_3x3"],
    "cell.edge23": ["none", "skip", "conv_3x3"],
    "serve.batch": [1, 4],
    "hw.rows": [8, 32],
    "hw.columns": 16,
    "hw.dataflow": ["os", "ws"],
    "hw.multiplier": ["fixed8", "composable"],
    "hw.sram_weight_kib": 64,
    "hw.bandwidth_gbps": 4,
    "hw.clock_mhz": 200,
}


@pytest.fixture(scope="module")
def grid():
    return Grid(np.random.default_rng(2).uniform(0.85, 0.94, 9), SMALL)


def test_what_is_looked_up_is_what_the_hardware_model_says(grid):
    encodings = grid.space.sample(60, np.random.default_rng(0))
    numbers = Known(grid, grid.space, GOALS[0]).numbers(encodings)
    priced = price_designs("cell", [grid.space.decode(row) for row in encodings])
    n_built = 0
    for row, number, (metrics, reason) in zip(encodings, numbers, priced, strict=True):
        figures = grid.costs(row[None], number[None])
        assert (reason is None) == np.isfinite(grid.accuracy(row[None])[0])
        if reason is None:
            n_built += 1
            for name in ("latency_s", "energy_j", "area_mm2"):
                assert figures[name][0, 0] == pytest.approx(metrics[name], rel=1e-12)
        else:
            assert np.isnan(figures["latency_s"]).all()
    assert 40 < n_built < 60


def test_bits_cost_what_was_published_a_third_a_stage(grid):
    whole = {f"bits.{of}.stage{s}": 8 for of in ("weights", "activations") for s in range(3)}
    first = grid.space.decode(grid.space.sample(1, np.random.default_rng(3))[0]) | whole
    first |= {"cell.edge23": "conv_3x3"}

    def accuracy(**bits):
        changed = {k.replace("_", "."): v for k, v in bits.items()}
        return grid.accuracy(grid.space.encode(first | changed)[None])[0]

    assert accuracy() in grid.accuracies
    weights = {f"bits_weights_stage{s}": 2 for s in range(3)}
    activations = {f"bits_activations_stage{s}": 2 for s in range(3)}
    assert accuracy() - accuracy(**weights) == pytest.approx(0.003)
    assert accuracy() - accuracy(**weights, **activations) == pytest.approx(0.019)
    assert accuracy() - accuracy(bits_activations_stage1=3) == pytest.approx(0.004 / 3)


@pytest.mark.parametrize("goals", GOALS[:2], ids=lambda goals: goals.names[-1])
def test_the_front_is_that_of_all_designs(grid, goals):
    points, numbers = grid.front(goals)
    assert len(points) == len(numbers) > 10
    networks = grid.space.enumerate()
    networks = networks[(networks[:, grid.hw] == networks[0, grid.hw]).all(axis=1)]
    assert len(networks) == 9 * 27 * 27 * 2
    every = np.arange(len(grid.configs))
    figures = grid.costs(networks, every)
    figures["accuracy"] = np.repeat(grid.accuracy(networks)[:, None], len(every), axis=1)
    all_points = goals.of(columns(figures, goals.needs)).reshape(-1, 3)
    expected = all_points[pareto.front(all_points)]
    assert np.unique(points.round(9), axis=0) == pytest.approx(
        np.unique(expected.round(9), axis=0), rel=1e-9
    )


def test_searches_reach_a_share_of_it(grid, monkeypatch):
    monkeypatch.setattr(joint_search, "BUDGETS", (12, 16))
    goals = GOALS[0]
    truth = truth_of(grid, goals)
    assert truth.share(grid.front(goals)[0]) == pytest.approx(1)
    together = Trained(grid, grid.space, goals, seed=0)
    assert len(together.networks) == 16
    proposed, swept, more = (
        truth.share(points)
        for points in (
            together.proposed(goals, 16), together.swept(goals, 16), together.all(goals, 16),
        )
    )  # fmt: skip
    assert 0 < proposed < swept <= more <= 1
    assert truth.share(together.swept(goals, 12)) <= swept
    number = len(grid.configs) - 1
    alone = Trained(grid, fixed(grid, number), goals, seed=0)
    assert set(alone.numbers) == {number}
    limit = truth.share(grid.front(goals, [number])[0])
    assert 0 < truth.share(alone.proposed(goals, 16)) <= limit < 1
    first = Trained(grid, grid.space, ACCURACY, seed=0)
    best = first.best(goals, 16)
    assert len(np.unique(best[:, 0])) == 1 and truth.share(best) < 1
