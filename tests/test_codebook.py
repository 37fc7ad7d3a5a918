"""Codebooks: k-means against scikit-learn, ties that hold, and what is exported."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.cluster import KMeans
from test_cell import design
from test_pruning import RECIPE, exported_accuracy, kernels, stages

from nas import codebook
from nas.codebook import kmeans, tied
from nas.layout import Layout
from nas.pruning import Pruning
from nas.train import Trainer
from search_spaces import cell
from search_spaces.quantizers import UnbuildableError


@pytest.mark.parametrize("entries", [2, 4, 16])
def test_kmeans_is_that_of_scikit_learn(entries):
    weights = np.random.default_rng(0).normal(0, 1, 3000).astype(np.float32)
    centres, labels = kmeans(weights, entries)
    first = np.linspace(weights.min(), weights.max(), entries)[:, None]
    theirs = KMeans(entries, init=first, n_init=1, max_iter=1000, tol=0).fit(weights[:, None])
    error = np.square(weights - centres[labels]).sum()
    assert error == pytest.approx(theirs.inertia_, rel=1e-6)
    np.testing.assert_allclose(centres, np.sort(theirs.cluster_centers_[:, 0]), atol=1e-4)
    nearest = np.abs(weights[:, None] - centres).argmin(1)
    np.testing.assert_array_equal(labels, nearest)
    means = np.bincount(labels, weights) / np.bincount(labels)
    np.testing.assert_allclose(centres, means, rtol=1e-6, atol=1e-9)


def test_separate_clusters_are_found_and_empty_ones_stay():
    weights = np.float32([0, 0.1, -0.1, 5, 5.1, 4.9])
    centres, labels = kmeans(weights, 2)
    np.testing.assert_allclose(centres, [0, 5], atol=1e-6)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    centres, labels = kmeans(np.float32([1, 1, 1, 9]), 4)
    assert centres[labels].tolist() == [1, 1, 1, 9]
    assert kmeans(np.float32([2, 2, 2]), 2)[0][0] == 2


def test_a_cluster_is_named_by_its_first_weight():
    layout = Layout(cell.network(design()))
    values = np.random.default_rng(0).normal(0, 1, layout.n).astype(np.float32)
    compressions = stages(index_bits=(2, 0, 4))
    clusters, tied_values = tied(values, layout, compressions, pruned=False)
    n = layout.n_weights
    np.testing.assert_array_equal(tied_values[clusters], tied_values[:n])
    np.testing.assert_array_equal(tied_values[n:], values[n:])
    for place in layout.kernels:
        own = layout.slice(place)
        bits = compressions[place.group].index_bits
        names = np.unique(clusters[own])
        assert (names >= own.start).all() and (names < own.stop).all()
        assert len(names) == (2**bits if bits else own.stop - own.start)


def test_trained_kernels_have_as_many_values_as_entries(images, trainer):
    (x, y), (vx, vy) = images
    index_bits = (1, 3, 2)
    recipe = replace(RECIPE, weight_bits=(4, 32, 8, 8), compressions=stages(index_bits=index_bits))
    trained = trainer.fit(cell.network(design()), x, y, recipe, seed=1)
    for place, kernel in kernels(trained):
        used = trained.weights[place.step]["kernel"]
        if place.group == 3:
            assert len(np.unique(kernel)) > 100
            continue
        entries = 2 ** index_bits[place.group]
        assert 1 < len(np.unique(kernel)) <= entries
        assert len(np.unique(used)) <= entries
    accuracy, _ = trained.score(vx, vy)
    assert accuracy > 0.15
    assert exported_accuracy(trained, vx, vy) == pytest.approx(accuracy, abs=2 / len(vy))


def test_entries_go_on_training(images, trainer, monkeypatch):
    """In the last quarter of the steps all weights of a cluster move, and together."""
    (x, y), _ = images
    network = cell.network(design())
    recipe = replace(RECIPE, compressions=stages(index_bits=[2] * 3))
    seen = {}

    class Spy(codebook.Codebook):
        def __call__(self, step, *arguments):
            super().__call__(step, *arguments)
            if step == self.at:
                seen[step] = self.stepper.program.get_values(), self.clusters

    monkeypatch.setattr(codebook, "Codebook", Spy)
    trained = trainer.fit(network, x, y, recipe, seed=1)
    [(step, (first, clusters))] = seen.items()
    assert step == 30, "three quarters of 40 steps"
    n = len(clusters)
    assert (first[:n] != trained.values[:n]).mean() > 0.99
    np.testing.assert_array_equal(trained.values[:n], trained.values[clusters])


def test_a_pruned_kernel_has_its_entries_and_zero(images, trainer):
    (x, y), (vx, vy) = images
    compressions = stages(density=(0.5, 0.25, 0.25), index_bits=(2, 2, 2))
    recipe = replace(RECIPE, compressions=compressions, pruning=Pruning("rigl"))
    trained = trainer.fit(cell.network(design()), x, y, recipe, seed=1)
    for place, kernel in kernels(trained):
        if place.group < 3:
            density = compressions[place.group].density
            assert np.count_nonzero(kernel) == round(density * kernel.size)
            assert len(np.unique(kernel[kernel != 0])) <= 4
    assert exported_accuracy(trained, vx, vy) == pytest.approx(
        trained.score(vx, vy)[0], abs=2 / len(vy)
    )


def test_more_entries_than_weights_are_refused():
    network = cell.network(design(**{"cell.width": 4}))
    recipe = replace(RECIPE, weight_bits=(16, 16, 16, 16), compressions=stages(index_bits=[6] * 3))
    trainer = Trainer()
    x, y = np.zeros((50, 16, 16, 3), np.float32), np.zeros(50, np.int32)
    with pytest.raises(ValueError, match=r"64 entries is more than the 16 weights of 'stage0.*1x1"):
        trainer.fit(network, x, y, recipe, seed=0)
    assert not trainer.programs
    choices = design(**{"cell.width": 4, "compress.weights": "codebook", "compress.codebook": 64})
    choices |= {f"bits.weights.stage{i}": 16 for i in range(3)}
    with pytest.raises(UnbuildableError, match="64 entries is more than the 16 weights of 'stage0"):
        cell.layers(choices)
