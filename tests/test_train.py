"""The fast training loop: the same mathematics as Keras, deterministic, one trace a topology."""

import itertools
import os
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_cell import design

from nas import program, train
from nas.course import schedule
from nas.layout import Layout
from nas.train import Recipe, Trained, Trainer
from search_spaces import cell
from search_spaces.ops import Precision
from search_spaces.quantizers import dequantized

FULL = (32, 32, 32, 32)
RECIPE = Recipe(batch=50, epochs=1, learning_rate=0.1, warmup=0.2, weight_bits=(4, 4, 4, 8),
                activation_bits=(4, 4, 4, 8))  # fmt: skip


def by_name(tensors, network):
    """Keras weights of every step of a network from `Trained.tensors`."""
    out = {}
    for i, step in enumerate(network.steps):
        own = {p.name: tensors[f"{step.name}/{p.name}"]
               for p in step.op.parameters(network.inputs[i])}  # fmt: skip
        moments = [tensors[k] for k in (f"{step.name}/mean", f"{step.name}/variance")
                   if k in tensors]  # fmt: skip
        out |= step.op.keras_weights(step.name, own, moments)
    return out


def model_of(trained):
    """The Keras model of what a training leaves, quantized as `nas.export` does it."""
    network, recipe, tensors = trained.network, trained.recipe, trained.tensors()
    for place in Layout(network).kernels:
        key = f"{network.steps[place.step].name}/{place.parameter.name}"
        bits = recipe.weight_bits[place.group]
        tensors[key] = dequantized(tensors[key], tensors[f"{key}.step"], bits)
    clips = [tensors[f"{network.steps[p.step].name}/clip"] for p in network.places
             if p.parameter.kind == "clip"]  # fmt: skip
    model = network.keras(clips, recipe.activation_bits)
    for name, weights in by_name(tensors, network).items():
        model.get_layer(name).set_weights(weights)
    return model


def test_one_step_is_the_step_that_keras_takes(images):
    """In 32 bits: loss, gradients, weight decay and Nesterov momentum."""
    (x, y), _ = images
    network = cell.network(design())
    recipe = Recipe(50, 1, 0.1, 0.2, FULL, FULL)
    compiled = program.Program(network, recipe.switches)
    compiled.start(train.first_values(network, recipe, x[:50], 3))
    bits = np.int32(FULL), np.int32(FULL)

    def snapshot():
        scales = [p for p in network.places if p.parameter.kind == "scale"]
        ones = [np.ones(p.parameter.shape, np.float32) for p in scales]
        moments = [0 * one for one in ones], ones
        values = compiled.get_values()
        return by_name(Trained(network, recipe, values, moments, [], 0.0, 0.0).tensors(), network)

    model = network.keras()
    for name, weights in snapshot().items():
        model.get_layer(name).set_weights(weights)
    rate = 0.07
    loss, _ = compiled.step(x[:50], y[:50], *bits, rate)
    smooth = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=program.LABEL_SMOOTHING
    )
    with tf.GradientTape() as tape:
        expected = smooth(tf.one_hot(y[:50], 10), model(x[:50], training=True))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    gradients = tape.gradient(expected, model.trainable_variables)
    for variable, gradient in zip(model.trainable_variables, gradients):
        if "kernel" in variable.name:
            gradient = gradient + program.WEIGHT_DECAY * variable
        variable.assign(variable - rate * (1 + program.MOMENTUM) * gradient)
    for name, weights in snapshot().items():
        for ours, theirs in zip(weights, model.get_layer(name).trainable_weights):
            np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-5, err_msg=name)


def test_training_learns_and_repeats_itself_to_the_bit(images, trainer):
    (x, y), (vx, vy) = images
    network = cell.network(design())
    first = trainer.fit(network, x, y, RECIPE, seed=7)
    accuracy, loss = first.score(vx, vy)
    assert accuracy > 0.2 and loss < np.log(10) + 0.3
    tensors = first.tensors()
    other = Trainer().fit(network, x, y, RECIPE, seed=7)
    for name, tensor in other.tensors().items():
        np.testing.assert_array_equal(tensor, tensors[name], err_msg=name)
    assert [c["loss"] for c in other.curve] == [c["loss"] for c in first.curve]
    assert other.score(vx, vy) == (accuracy, loss)
    different = trainer.fit(network, x, y, RECIPE, seed=8)
    assert different.curve[0]["loss"] != first.curve[0]["loss"]


def test_bits_rates_and_data_need_no_new_trace(images, trainer):
    (x, y), _ = images
    network = cell.network(design())
    compiled = trainer.program(network, RECIPE.switches)
    assert compiled.session.graph.finalized, "nothing can be added to it"
    for bits, batch, rate, n in (((2, 3, 8, 8), 50, 0.05, 500), ((1, 4, 32, 16), 32, 0.2, 700)):
        trainer.fit(network, x[:n], y[:n], Recipe(batch, 1, rate, 0.3, bits, bits), seed=1)
        assert next(reversed(trainer.programs.values())) is compiled


def test_memory_stays_flat_over_topologies():
    """Each is compiled, trained and dropped; what is left a topology is far below its 30 MB."""

    def resident_mb():
        return (
            int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
        )

    rng = np.random.default_rng(0)
    x, y = (
        rng.normal(0, 1, (256, 16, 16, 3)).astype(np.float32),
        np.arange(256, dtype=np.int32) % 10,
    )
    small, used = Trainer(n_programs=1), []
    ops = ("skip", "conv_1x1", "conv_3x3", "avg_pool_3x3")
    for edges in itertools.islice(itertools.product(ops, repeat=3), 24):
        network = cell.network(design(" ".join((*edges, "skip none none"))))
        small.fit(network, x, y, RECIPE, seed=0)
        used.append(resident_mb())
    assert np.polyfit(np.arange(12), used[12:], 1)[0] < 6, used


def test_only_the_last_programs_are_kept():
    small = Trainer(n_programs=2)
    made = [
        small.program(cell.network(design(**{"cell.width": w})), RECIPE.switches)
        for w in (4, 8, 12)
    ]
    assert list(small.programs.values()) == made[1:]


def test_scores_count_every_image_once(images, trainer):
    (x, y), (vx, vy) = images
    trained = trainer.fit(cell.network(design()), x[:500], y[:500], RECIPE, seed=1)
    whole, loss = trained.score(vx, vy)  # 700 images: not a multiple of the batch
    parts = [trained.score(vx[a:b], vy[a:b]) for a, b in ((0, 250), (250, 700))]
    weights = np.array([250, 450]) / 700
    assert whole == pytest.approx(weights @ [p[0] for p in parts], abs=1e-6)
    assert loss == pytest.approx(weights @ [p[1] for p in parts], rel=1e-4)


def test_exported_graph_scores_as_the_loop_does(images, trainer):
    """The Keras face with the trained tensors gives the fast loop's own validation accuracy."""
    (x, y), (vx, vy) = images
    trained = trainer.fit(cell.network(design()), x, y, RECIPE, seed=5)
    right = (model_of(trained).predict(vx, verbose=0).argmax(-1) == vy).mean()
    assert right == pytest.approx(trained.score(vx, vy)[0], abs=2 / len(vy))


def test_the_schedule_is_a_triangle():
    rates = schedule(100, 0.4, 0.25)
    assert rates.argmax() in (24, 25) and rates.max() == pytest.approx(0.4, rel=0.03)
    assert (np.diff(rates[:25]) > 0).all() and (np.diff(rates[25:]) < 0).all()
    assert 0 < rates[-1] < 0.01


@pytest.mark.parametrize(
    ("name", "at_half", "at_end"),
    [("triangle", 0.5, 0.0), ("cosine", 0.5, 0.0), ("steps", 0.1, 0.01), ("constant", 1.0, 1.0)],
)
def test_schedules_rise_alike_and_come_down_as_they_are_called(name, at_half, at_end):
    rates = schedule(1000, 0.4, 0.2, name)
    np.testing.assert_allclose(rates[:200], schedule(1000, 0.4, 0.2)[:200])
    assert rates[600] / 0.4 == pytest.approx(at_half, abs=0.01)
    assert rates[-1] / 0.4 == pytest.approx(at_end, abs=0.01)
    assert (np.diff(rates[200:]) <= 1e-7).all(), "never up again"


def test_mistakes_are_named_before_training(images, trainer):
    (x, y), _ = images
    with pytest.raises(ValueError, match="batch 50 is larger than the 40 training images"):
        trainer.fit(cell.network(design()), x[:40], y[:40], RECIPE, seed=0)


def test_a_loss_that_is_no_number_is_an_error(images, trainer):
    (x, y), _ = images
    wild = Recipe(50, 2, 1e30, 0.2, RECIPE.weight_bits, RECIPE.activation_bits)
    with pytest.raises(FloatingPointError, match="training loss is nan after epoch"):
        trainer.fit(cell.network(design()), x[:500], y[:500], wild, seed=0)


def test_a_training_counts_its_operations(images, trainer):
    (x, y), _ = images
    network = cell.network(design())
    forward = int(network.layers([Precision(8, 8)] * 4, 1).macs[0])
    stem = 16 * 16 * 9 * 3 * network.steps[0].op.filters
    assert network.training_flops == 2 * (3 * forward - stem)
    trained = trainer.fit(network, x[:500], y[:500], RECIPE, seed=0)
    assert 0 < trained.flops < 1.5 * trainer.peak("float32")
    assert trainer.peak("float32") == trainer.peak("float32"), "measured once"
