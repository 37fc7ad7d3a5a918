"""Low rank in training: whole kernels first, then the nearest factors."""

from dataclasses import replace

import numpy as np
import pytest
from test_cell import design
from test_pruning import RECIPE, exported_accuracy

from nas.layout import Layout
from nas.low_rank import factored_values, whole
from nas.pruning import Pruning
from nas.scoring import class_scores, statistics
from nas.train import Trainer
from search_spaces import cell
from search_spaces.compression import UNCOMPRESSED, Compression, factored
from search_spaces.ops import LowRankConvolution

FULL = (32, 32, 32, 32)


def full_rank(network):
    """Every convolution of the stages in factors of its full rank."""
    steps = []
    for step, [shape, *_] in zip(network.steps, network.inputs, strict=True):
        op = step.op
        if hasattr(op, "filters") and step.name != "stem":
            rank = min(op.kernel**2 * shape[2], op.filters)
            op = LowRankConvolution(op.filters, op.kernel, rank, op.stride)
        steps.append(step._replace(op=op))
    return replace(network, steps=tuple(steps))


def scores_of(network, values, x):
    weights = Layout(network).weights(values, FULL)
    means, variances, _ = statistics(network, weights, FULL, x)
    return class_scores(network, weights, (means, variances), FULL, x)


def test_names_are_an_inverse():
    layout = Layout(cell.network(design()))
    values = layout.initial(0, FULL)
    np.testing.assert_allclose(layout.joined(layout.named(values)), values, atol=1e-7)


def test_full_rank_starts_with_the_whole_networks_scores(images):
    (x, _), _ = images
    network = cell.network(design())
    factors = full_rank(network)
    assert whole(factors) == network
    values = Layout(network).initial(3, FULL)
    before = scores_of(network, values, x[:250])
    after = scores_of(factors, factored_values(values, factors, FULL), x[:250])
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-3)


def test_the_trained_network_is_the_factored_one(images, trainer):
    (x, y), (vx, vy) = images
    network = factored(cell.network(design()), 0.25)
    recipe = replace(RECIPE, epochs=2, whole_until=0.3)
    trained = trainer.fit(network, x, y, recipe, seed=1)
    assert trained.network == network
    names = set(trained.tensors())
    for step in network.steps:
        if isinstance(step.op, LowRankConvolution):
            assert {f"{step.name}/down", f"{step.name}/up"} <= names
            assert f"{step.name}/kernel" not in names
    accuracy, _ = trained.score(vx, vy)
    assert accuracy > 0.2
    assert exported_accuracy(trained, vx, vy) == pytest.approx(accuracy, abs=2 / len(vy))
    again = Trainer(n_programs=1).fit(network, x, y, recipe, seed=1)
    np.testing.assert_array_equal(again.values, trained.values)


def test_factors_are_pruned_after_they_are_made(images, trainer):
    (x, y), _ = images
    network = factored(cell.network(design()), 0.25)
    compressions = (*[Compression(density=0.5)] * 3, UNCOMPRESSED)
    recipe = replace(RECIPE, whole_until=0.3, compressions=compressions, pruning=Pruning("rigl"))
    trained = trainer.fit(network, x, y, recipe, seed=1)
    layout = Layout(network)
    for place, kernel in zip(layout.kernels, layout.pieces(layout.split(trained.values)[0])):
        if place.group < 3:
            assert np.count_nonzero(kernel) == max(1, round(0.5 * kernel.size))


def test_a_network_that_has_no_factors_trains_as_ever(images, trainer):
    (x, y), _ = images
    network = cell.network(design())
    plain = trainer.fit(network, x[:500], y[:500], RECIPE, seed=1)
    other = trainer.fit(network, x[:500], y[:500], replace(RECIPE, whole_until=0.3), seed=1)
    np.testing.assert_array_equal(plain.values, other.values)


def test_bad_shares_and_ranks_are_refused():
    network = cell.network(design())
    x, y = np.zeros((50, 16, 16, 3), np.float32), np.zeros(50, np.int32)
    with pytest.raises(ValueError, match=r"whole_until.* below 1, got 1\.0"):
        Trainer().fit(network, x, y, replace(RECIPE, whole_until=1.0), seed=0)
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        LowRankConvolution(8, 3, 0)
