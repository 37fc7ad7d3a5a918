"""Post-training fixed point: powers of two, the least error, and what training leaves as it was."""

import numpy as np
import pytest
from test_cell import design

from nas.fixed_point import INTEGER_BITS, to_fixed_point, weight_step
from nas.layout import Layout
from nas.train import Recipe, Trainer
from search_spaces import cell
from search_spaces.quantizers import (
    FULL_CLIP,
    UnbuildableError,
    activation_levels,
    dequantized,
    integer_weights,
)

RNG = np.random.default_rng(0)
NETWORK = cell.network(design(**{"net.activation": "silu"}))
CENTRES = RNG.normal(0, 1, (10, 16, 16, 3))
Y = (np.arange(600) % 10).astype(np.int32)
X = (CENTRES[Y] + RNG.normal(0, 1, (600, 16, 16, 3))).astype(np.float32)


def recipe(bits, method="post_training"):
    return Recipe(20, 2, 0.1, 0.2, bits, bits, quantizer=method)


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
def test_a_step_is_the_power_of_two_with_the_least_error(bits):
    kernel = RNG.normal(0, 0.1, 500).astype(np.float32)

    def error(step):
        return np.square(dequantized(kernel, step, bits) - kernel).sum()

    step = weight_step(kernel, bits)
    assert np.log2(step) % 1 == 0 and error(step) <= min(error(step / 2), error(2 * step))
    if bits >= 8:  # as many integer bits as the largest weight needs, the others are fraction
        needed = np.ceil(np.log2(np.abs(kernel).max()))
        assert step == 2.0 ** (needed - (bits - 1))


def test_one_bit_of_fixed_point_is_refused():
    with pytest.raises(UnbuildableError, match="got weights of 1 bit: choose 2 or more"):
        weight_step(np.ones(3, np.float32), 1)


def test_steps_and_clips_are_fixed_point_and_weights_stay():
    values = Layout(NETWORK).initial(0, (32,) * 4)
    bits = (4, 6, 8, 32)
    fixed = to_fixed_point(NETWORK, values, bits, bits, X[:100])
    layout = Layout(NETWORK)
    for before, after in zip(layout.split(values)[:2], layout.split(fixed)[:2]):
        np.testing.assert_array_equal(before, after)
    steps, clips = layout.steps_and_clips(fixed)
    coarse = [bits[place.group] < 32 for place in layout.kernels]
    assert (np.log2(steps[coarse]) % 1 == 0).all()
    for place, kernel, step in zip(layout.kernels, layout.pieces(layout.split(values)[0]), steps):
        error = np.abs(dequantized(kernel, step, bits[place.group]) - kernel).max()
        assert error < (1e-6 if bits[place.group] == 32 else np.abs(kernel).max())
    for place, clip in zip(layout.clips, clips):
        if bits[place.group] == 32:
            continue
        levels = activation_levels(bits[place.group], "silu")
        shift = np.log2(clip / levels)
        assert shift == pytest.approx(round(shift), abs=1e-5)
        assert round(shift) + np.log2(levels + 1) in INTEGER_BITS and clip < FULL_CLIP


def test_training_is_that_of_float_and_accuracy_follows_the_bits():
    trainer, full = Trainer(), (32,) * 4
    float_run = trainer.fit(NETWORK, X, Y, recipe(full, "lsq"), seed=0)
    assert float_run.score(X, Y)[0] > 0.9
    accuracies = {}
    for bits in (8, 2):
        fixed = trainer.fit(NETWORK, X, Y, recipe((bits,) * 4), seed=0)
        assert [c["loss"] for c in fixed.curve] == [c["loss"] for c in float_run.curve]
        accuracies[bits] = fixed.score(X, Y)[0]
        tensors = fixed.tensors()
        kernel, step = tensors["head.dense/kernel"], tensors["head.dense/kernel.step"]
        integers = integer_weights(kernel, step, bits)
        np.testing.assert_array_equal(fixed.weights[-1]["kernel"], integers * np.float32(step))
    assert len(trainer.programs) == 1, "one program for all of them"
    assert accuracies[8] > float_run.score(X, Y)[0] - 0.03
    assert accuracies[2] < accuracies[8]
