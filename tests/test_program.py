"""The compiled step under each of its switches, against NumPy, Keras, or another way to it."""

import keras
import numpy as np
import pytest

from nas import program
from nas.program import Program, Switches
from nas.train import Recipe, Stepper, Trainer, first_values
from search_spaces import cell
from search_spaces.network import IMAGE, Network, Plan
from search_spaces.ops import Activation, Dense

from test_cell import design  # isort: skip

FULL = (32, 32, 32, 32)
BITS = np.int32([4, 4, 4, 8]), np.int32([4, 4, 4, 8])
RNG = np.random.default_rng(0)
X = RNG.normal(0, 1, (96, 16, 16, 3)).astype(np.float32)
Y = RNG.integers(0, 10, 96).astype(np.int32)


def plain() -> Network:
    """Two dense layers: no batch statistics, so that gradients of parts add up to the whole's."""
    plan = Plan()
    at = plan.add("first", Dense(24), IMAGE, group=0)
    at = plan.add("relu", Activation(), at, group=0)
    plan.add("last", Dense(10), at, group=0)
    return Network(tuple(plan.steps), (16, 16, 3), ("all",))


def recipe_of(network, **switches) -> Recipe:
    bits = (6,) * len(network.groups)
    return Recipe(**{**dict(batch=96, epochs=1, learning_rate=0.05, warmup=0.2, weight_bits=bits,
                            activation_bits=bits), **switches})  # fmt: skip


def started(network, recipe) -> Program:
    compiled = Program(network, recipe.switches)
    compiled.start(first_values(network, recipe, X, seed=1))
    return compiled


def after(network, n_steps=3, **switches) -> np.ndarray:
    """Everything learned after a few steps on the same images."""
    recipe = recipe_of(network, **switches)
    compiled = started(network, recipe)
    stepper = Stepper(compiled, recipe)
    for _ in range(n_steps):
        stepper.step(X, Y, np.arange(96), 0.05)
    return compiled.get_values()


@pytest.mark.parametrize("optimizer", program.OPTIMIZERS)
@pytest.mark.parametrize("micro_batch", [32, 40])  # 40: the last part is smaller
def test_an_accumulated_step_is_the_large_batch_step(optimizer, micro_batch):
    n_steps = 1 if optimizer == "adam" else 3
    whole = after(plain(), n_steps, optimizer=optimizer)
    apart = np.abs(after(plain(), n_steps, optimizer=optimizer, micro_batch=micro_batch) - whole)
    assert np.abs(whole - after(plain(), 0)).max() > 1e-3
    # Adam divides by a gradient's size, and so a gradient that is all rounding by itself
    assert (apart.max() if optimizer != "adam" else np.median(apart)) < 1e-5


def test_lars_moves_each_kernel_by_its_own_norm():
    network = plain()
    recipe = recipe_of(network, optimizer="lars", weight_bits=(32,), activation_bits=(32,))
    compiled = started(network, recipe)
    before = compiled.get_values()
    layout = compiled.layout
    gradient = compiled.kernel_gradient(X, Y, *(np.int32([32]),) * 2)
    compiled.step(X, Y, *(np.int32([32]),) * 2, 0.1)
    after = compiled.get_values()
    moved = layout.pieces(after[: layout.n_weights] - before[: layout.n_weights])
    kernels = layout.pieces(before[: layout.n_weights])
    for w, g, move in zip(kernels, layout.pieces(gradient), moved):
        g = g + program.WEIGHT_DECAY * w
        trust = program.LARS_TRUST * np.linalg.norm(w) / np.linalg.norm(g)
        expected = -0.1 * (1 + program.MOMENTUM) * trust * g
        np.testing.assert_allclose(move, expected, rtol=2e-3, atol=1e-7)


def test_under_lars_steps_follow_their_kernels_and_clips_all_of_them():
    network, bits = plain(), (np.int32([6]),) * 2
    moves = {}
    for optimizer in ("momentum", "lars"):
        compiled = started(network, recipe_of(network, optimizer=optimizer))
        before = compiled.get_values()
        compiled.step(X, Y, *bits, 0.01)
        moves[optimizer] = compiled.layout.split(compiled.get_values() - before)
    kernels = [compiled.layout.pieces(moves[o][0]) for o in ("lars", "momentum")]
    trust = np.array([np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(*kernels)])
    np.testing.assert_allclose(moves["lars"][1], moves["momentum"][1], atol=1e-7)
    np.testing.assert_allclose(moves["lars"][2], moves["momentum"][2] * trust.mean(), rtol=1e-2)
    np.testing.assert_allclose(moves["lars"][3], moves["momentum"][3] * trust, rtol=2e-2)


def test_adam_is_the_adamw_of_keras():
    network = plain()
    full = dict(weight_bits=(32,), activation_bits=(32,))
    compiled = started(network, recipe_of(network, optimizer="adam", **full))
    n = compiled.layout.n_weights
    kernels = keras.Variable(compiled.get_values()[:n])
    theirs = keras.optimizers.AdamW(0.05, weight_decay=program.WEIGHT_DECAY,
                                    epsilon=program.ADAM_EPSILON)  # fmt: skip
    for _ in range(3):
        gradient = compiled.kernel_gradient(X, Y, *(np.int32([32]),) * 2)
        compiled.step(X, Y, *(np.int32([32]),) * 2, 0.05)
        theirs.apply([keras.ops.convert_to_tensor(gradient)], [kernels])
        ours = compiled.get_values()[:n]
        sure = np.abs(gradient) > 1e-5  # where a gradient is all rounding, so is Adam's step
        np.testing.assert_allclose(ours[sure], kernels.numpy()[sure], rtol=1e-3, atol=1e-4)
        kernels.assign(ours)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_narrow_floats_give_the_gradient_up_to_their_rounding(precision):
    network = cell.network(design())
    bits = np.int32(FULL), np.int32(FULL)
    full = dict(weight_bits=FULL, activation_bits=FULL)
    exact = started(network, recipe_of(network, **full)).kernel_gradient(X, Y, *bits)
    narrow = started(network, recipe_of(network, precision=precision, **full))
    rough = narrow.kernel_gradient(X, Y, *bits)
    cosine = exact @ rough / np.linalg.norm(exact) / np.linalg.norm(rough)
    assert 0.97 < cosine < 1, "close, and not the same computation"


def test_loss_scaling_keeps_what_float16_would_lose():
    """Inputs so small that gradients fall below float16's least number, 6e-8, without a scale."""
    network = plain()
    recipe = recipe_of(network, precision="float16", weight_bits=(32,), activation_bits=(32,))
    tiny, bits = X * 2e-6, (np.int32([32]),) * 2
    exact = started(network, recipe_of(network, weight_bits=(32,), activation_bits=(32,)))
    wanted = exact.layout.pieces(exact.kernel_gradient(tiny, Y, *bits))[0]
    lost = np.count_nonzero(wanted)
    shares = {}
    for scale in (1.0, 2.0**15):
        compiled = started(network, recipe)
        assert compiled.add_gradient(1.0, scale, tiny, Y, *bits)[2]
        before = compiled.get_values()
        compiled.apply_gradient(1.0)
        move = compiled.layout.pieces((compiled.get_values() - before)[: exact.layout.n_weights])[0]
        rest = move + 1.9 * program.WEIGHT_DECAY * compiled.layout.pieces(
            before[: exact.layout.n_weights])[0]  # fmt: skip
        shares[scale] = np.linalg.norm(rest + 1.9 * wanted) / np.linalg.norm(1.9 * wanted)
    assert lost and shares[1.0] > 0.3 and shares[2.0**15] < 0.2, shares


def test_an_overflow_is_skipped_and_halves_the_scale():
    network = plain()
    recipe = recipe_of(network, precision="float16")
    compiled = started(network, recipe)
    stepper, before = Stepper(compiled, recipe), compiled.get_values()
    stepper.scale = 2.0**40
    stepper.step(X, Y, np.arange(96), 0.05)
    np.testing.assert_array_equal(compiled.get_values(), before)
    assert stepper.scale == 2.0**39
    stepper.scale = 2.0**10
    stepper.step(X, Y, np.arange(96), 0.05)
    assert (compiled.get_values() != before).any() and stepper.scale == 2.0**10


def test_masked_weights_are_zero_and_stay_so_and_their_gradient_is_seen():
    network = cell.network(design())
    compiled = Program(network, Switches(masked=True))
    recipe = recipe_of(network)
    compiled.start(first_values(network, recipe, X, seed=1))
    n = compiled.layout.n_weights
    compiled.step(X, Y, *BITS, 0.05)  # so that momentum is there to be forgotten
    mask = (np.random.default_rng(1).random(n) < 0.5).astype(np.float32)
    compiled.set_mask(np.append(mask, np.ones(compiled.layout.n - n, np.float32)))
    for _ in range(2):
        compiled.step(X, Y, *BITS, 0.05)
        kernels = compiled.get_values()[:n]
        assert (kernels[mask == 0] == 0).all() and (kernels[mask == 1] != 0).mean() > 0.99
    gradient = compiled.kernel_gradient(X, Y, *BITS)
    assert (gradient[mask == 0] != 0).mean() > 0.5


def test_tied_weights_move_as_one():
    network = cell.network(design())
    compiled = Program(network, Switches(tied=True))
    recipe = recipe_of(network)
    compiled.start(first_values(network, recipe, X, seed=1))
    compiled.step(X, Y, *BITS, 0.05)
    n = compiled.layout.n_weights
    clusters = np.random.default_rng(1).integers(0, 30, n).astype(np.int32)
    values = compiled.get_values()
    centres = np.bincount(clusters, values[:n]) / np.bincount(clusters)
    values[:n] = centres[clusters]
    compiled.set_clusters(clusters, values)
    for _ in range(3):
        compiled.step(X, Y, *BITS, 0.05)
    kernels = compiled.get_values()[:n]
    assert len(np.unique(kernels)) <= 30 and (kernels != values[:n]).mean() > 0.99


def test_switched_off_nothing_is_built_for_it():
    """The same graph, operation by operation, whatever a switch could add."""
    network = cell.network(design())
    quantized = len(Program(network, Switches()).session.graph.get_operations())
    plain = len(Program(network, Switches(quantizer="")).session.graph.get_operations())
    for more in (dict(masked=True), dict(tied=True), dict(accumulated=True), dict(distilled=True)):
        assert len(Program(network, Switches(**more)).session.graph.get_operations()) > quantized
    assert plain < quantized


def test_a_teacher_pulls_towards_its_scores():
    network = plain()
    taught = RNG.normal(0, 2, (96, 10)).astype(np.float32)
    bits = (np.int32([32]),) * 2
    compiled = Program(network, Switches(quantizer="", distilled=True))
    first = first_values(network, recipe_of(network), X, seed=1)
    results = {}
    for weight in (0.0, 1.0):
        compiled.start(first)
        losses = [compiled.step(X, Y, *bits, 0.01, taught, 3.0, weight)[0] for _ in range(30)]
        results[weight] = losses
    assert results[1.0][-1] < results[1.0][0] - 0.5
    soft = np.exp(taught / 3) / np.exp(taught / 3).sum(1, keepdims=True)
    floor = 9 * -(soft * np.log(soft)).sum(1).mean()  # T^2 times the teacher's own entropy
    assert results[1.0][-1] > floor
    compiled.start(first)
    kernels = compiled.layout.weights(first)
    hidden = np.maximum(X.reshape(96, -1) @ kernels[0]["kernel"], 0)
    scores = hidden @ kernels[2]["kernel"]
    logs = scores / 3 - np.log(np.exp(scores / 3).sum(1, keepdims=True))
    assert results[1.0][0] == pytest.approx(9 * -(soft * logs).sum(1).mean(), rel=1e-3)


def test_trainer_shares_programs_between_batches_and_bits():
    trainer = Trainer()
    network = cell.network(design())
    for batch, bits in ((16, 4), (48, 8)):
        trainer.fit(network, X, Y, recipe_of(network, batch=batch, weight_bits=(bits,) * 4), seed=0)
    assert len(trainer.programs) == 1
