"""Fake quantization against its formulas, and against the integers that it stands for."""

import numpy as np
import pytest
import tensorflow as tf

from search_spaces.quantizers import (
    FULL_BITS,
    FULL_CLIP,
    activation_clip,
    dequantized,
    initial_clip,
    initial_step,
    integer_activations,
    integer_weights,
    quantize_activations,
    quantize_weights,
    weight_levels,
)

BITS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)


def in_graph(build, arrays, upstream=None):
    """(outputs, gradients to every array) of `build(*tensors)`, run in a graph of its own."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tensors = [tf.constant(array) for array in arrays]
        out = build(*tensors)
        floats = [t for t in tensors if t.dtype.is_floating]
        gradients = tf.gradients(out, floats, None if upstream is None else tf.constant(upstream))
        return session.run([out, gradients])


def lsq(kernels, steps, bits, upstream=None):
    """(quantized, (gradient to weights, gradient to steps)) of `quantize_weights` on a list."""
    flat = np.concatenate([k.ravel() for k in kernels])
    sizes = [k.size for k in kernels]
    owner = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    return in_graph(
        lambda flat, steps: quantize_weights(flat, steps, tf.constant(bits), owner, sizes),
        [flat, np.float32(steps)],
        upstream,
    )


def pact(x, clip, bits, upstream=None):
    """(quantized, (gradient to x, gradient to the clip)) of `quantize_activations`."""
    return in_graph(
        lambda x, clip: quantize_activations(
            x, activation_clip(clip, tf.constant(bits)), tf.constant(bits)
        ),
        [x, np.float32(clip)],
        upstream,
    )


def test_levels_are_signed_integers():
    assert weight_levels(2) == (2, 1) and weight_levels(8) == (128, 127)


@pytest.mark.parametrize("bits", BITS)
def test_weights_take_their_levels_and_no_others(bits):
    kernel = np.random.default_rng(0).normal(0, 0.3, 4000).astype(np.float32)
    step = initial_step(kernel, bits)
    out, _ = lsq([kernel], [step], [bits])
    low, top = weight_levels(bits)
    if bits <= 8:
        assert len(np.unique(out)) <= 2**bits
    levels = np.asarray(out) / np.float32(step)
    assert levels.min() >= -low * (1 + 1e-6) and levels.max() <= top * (1 + 1e-6)
    np.testing.assert_array_equal(dequantized(kernel, step, bits), out)
    if bits == FULL_BITS:
        np.testing.assert_allclose(out, kernel, atol=1e-8)


def test_error_falls_with_bits():
    kernel = np.random.default_rng(0).normal(0, 0.3, 4000).astype(np.float32)
    errors = [np.square(dequantized(kernel, initial_step(kernel, b), b) - kernel).mean()
              for b in BITS]  # fmt: skip
    assert all(finer < coarser for coarser, finer in zip(errors, errors[1:]))


def test_weight_gradients_are_those_of_lsq():
    rng = np.random.default_rng(1)
    kernels = [rng.normal(0, 1, 50).astype(np.float32), rng.normal(0, 2, 70).astype(np.float32)]
    steps, bits = [0.4, 0.9], [2, 4]
    upstream = rng.normal(0, 1, 120).astype(np.float32)
    _, (to_flat, to_steps) = lsq(kernels, steps, bits, upstream)
    at = 0
    for i, (kernel, step, b) in enumerate(zip(kernels, steps, bits)):
        low, top = weight_levels(b)
        g = upstream[at : at + kernel.size]
        v = kernel / np.float32(step)
        inside = (v >= -low) & (v <= top)
        np.testing.assert_allclose(to_flat[at : at + kernel.size], g * inside, rtol=1e-6)
        slope = np.where(inside, np.rint(v) - v, np.where(v < 0, -low, top))  # eq. 3
        expected = (g * slope).sum() / np.sqrt(kernel.size * top)
        np.testing.assert_allclose(to_steps[i], expected, rtol=1e-4)
        at += kernel.size


@pytest.mark.parametrize("bits", BITS)
def test_activations_are_rounded_relu_within_the_clip(bits):
    x = np.random.default_rng(0).normal(0, 2, (4, 5, 5, 3)).astype(np.float32)
    clip = 2.5
    out, _ = pact(x, clip, bits)
    used = FULL_CLIP if bits == FULL_BITS else clip
    integers = integer_activations(x, used, bits)
    np.testing.assert_allclose(out, integers * (used / (2.0**bits - 1)), rtol=1e-6, atol=1e-6)
    if bits <= 8:
        assert len(np.unique(out)) <= 2**bits
    if bits == FULL_BITS:
        np.testing.assert_allclose(out, np.maximum(x, 0), atol=3e-7)


def test_activation_gradients_are_those_of_pact():
    x = np.random.default_rng(0).normal(0, 2, (4, 5, 5, 3)).astype(np.float32)
    g = np.random.default_rng(1).normal(0, 1, x.shape).astype(np.float32)
    _, (to_x, to_clip) = pact(x, 1.5, 3, g)
    np.testing.assert_allclose(to_x, g * ((x >= 0) & (x <= 1.5)))
    np.testing.assert_allclose(to_clip, (g * (x > 1.5)).sum(), rtol=1e-4)


def test_at_full_bits_the_clip_has_no_gradient():
    _, (_, to_clip) = pact(np.float32([[5.0, -1.0, 2000.0]]), 1.0, FULL_BITS)
    assert to_clip == 0


@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(2, 2), (4, 3), (8, 8)])
def test_integer_execution_equals_the_fake_quantized_one(weight_bits, activation_bits):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (2, 6, 6, 4)).astype(np.float32)
    kernel = rng.normal(0, 0.2, (3, 3, 4, 5)).astype(np.float32)
    step, clip = initial_step(kernel, weight_bits), 1.9
    levels = 2**activation_bits - 1
    integers_x = integer_activations(x, clip, activation_bits)
    integers_w = integer_weights(kernel, step, weight_bits)
    windows = np.lib.stride_tricks.sliding_window_view(integers_x, (3, 3), axis=(1, 2))
    accumulators = np.einsum("nhwcij,ijcf->nhwf", windows, integers_w)
    assert accumulators.dtype == np.int64
    by_integers = accumulators * (step * clip / levels)
    fake_x, _ = pact(x, clip, activation_bits)
    fake_w, _ = lsq([kernel], [step], [weight_bits])
    by_floats = tf.nn.conv2d(fake_x, tf.reshape(fake_w, kernel.shape), 1, "VALID")
    np.testing.assert_allclose(by_floats, by_integers, rtol=1e-5, atol=1e-5)


def test_first_ranges_are_positive_and_grow_with_bits():
    kernel = np.random.default_rng(0).normal(0, 0.3, 1000).astype(np.float32)
    assert all(initial_step(kernel, b) > 0 for b in BITS)
    clips = initial_clip(0.4, np.array(BITS))
    assert (clips > 0).all() and (np.diff(clips) >= 0).all()
    assert initial_clip(0.0, 4) > 0, "an activation that is never on must not divide by zero"
