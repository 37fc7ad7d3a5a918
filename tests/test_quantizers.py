"""Fake quantization against its formulas, and against the integers that it stands for."""

import numpy as np
import pytest
import tensorflow as tf

from search_spaces.quantizers import (
    FULL_BITS,
    FULL_CLIP,
    FUNCTIONS,
    WEIGHT_QUANTIZERS,
    UnbuildableError,
    activate,
    activation_clip,
    activation_levels,
    dequantized,
    initial_clip,
    initial_step,
    integer_activations,
    integer_weights,
    mean_magnitude,
    quantize_activations,
    quantize_weights,
    quantize_weights_dorefa,
    weight_levels,
)

BITS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)
SIGNED = [function for function in FUNCTIONS if function != "relu"]


def in_graph(build, arrays, upstream=None):
    """(outputs, gradients to every array) of `build(*tensors)`, run in a graph of its own."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tensors = [tf.constant(array) for array in arrays]
        out = build(*tensors)
        floats = [t for t in tensors if t.dtype.is_floating]
        gradients = tf.gradients(out, floats, None if upstream is None else tf.constant(upstream))
        return session.run([out, gradients])


def lsq(kernels, steps, bits, upstream=None, quantize=quantize_weights):
    """(quantized, (gradient to weights, gradient to steps)) of a quantizer on a list."""
    flat = np.concatenate([k.ravel() for k in kernels])
    sizes = [k.size for k in kernels]
    owner = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    return in_graph(
        lambda flat, steps: quantize(flat, steps, tf.constant(bits), owner, sizes),
        [flat, np.float32(steps)],
        upstream,
    )


def pact(x, clip, bits, upstream=None, function="relu"):
    """(quantized, (gradient to x, gradient to the clip)) of `quantize_activations`."""
    return in_graph(
        lambda x, clip: quantize_activations(
            x, activation_clip(clip, tf.constant(bits)), tf.constant(bits), function
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
def test_dorefa_is_the_formula_of_the_paper_in_a_learned_range(bits):
    rng = np.random.default_rng(0)
    kernels = [rng.normal(0, 0.3, 3000).astype(np.float32), rng.normal(0, 2, 99).astype(np.float32)]
    ranges = [0.7, 1.9]
    steps = [r / (2.0**bits - 1) for r in ranges]
    out, _ = lsq(kernels, steps, [bits] * 2, quantize=quantize_weights_dorefa)
    for kernel, found, reach, step in zip(kernels, np.split(out, [3000]), ranges, steps):
        t = np.tanh(kernel.astype(np.float64))
        n = 2.0**bits - 1
        paper = 2 * np.rint(n * (t / (2 * np.abs(t).max()) + 0.5)) / n - 1  # eq. 9
        away = np.abs(found - reach * paper)
        assert (away < 2e-6).mean() > 0.99, "but where rounding is decided by the last place"
        assert away.max() < 2 * step + 2e-6
        np.testing.assert_allclose(dequantized(kernel, step, bits, "dorefa"), found, atol=1e-6)
        integers = integer_weights(kernel, step, bits, "dorefa")
        if bits <= 16:
            assert (integers % 2 == 1).all() and np.abs(integers).max() == n


def test_dorefa_gradients():
    rng = np.random.default_rng(1)
    kernel, bits, step = rng.normal(0, 0.5, 60).astype(np.float32), 3, 0.1
    g = rng.normal(0, 1, 60).astype(np.float32)
    _, (to_kernel, to_step) = lsq([kernel], [step], [bits], g, quantize_weights_dorefa)
    t, n = np.tanh(kernel), 7
    top = np.abs(t).argmax()
    share = g * step * n / np.abs(t[top])
    expected = share.copy()
    expected[top] -= np.sign(t[top]) * (share * t).sum() / np.abs(t[top])  # through the divisor
    np.testing.assert_allclose(to_kernel, expected * (1 - t**2), rtol=1e-4, atol=1e-5)
    integers = integer_weights(kernel, step, bits, "dorefa")
    np.testing.assert_allclose(to_step, (g * integers).sum() / (n**2 * np.sqrt(60)), rtol=1e-4)


def test_a_pruned_weight_is_zero_in_every_method_where_zero_is_no_level():
    kernel = np.float32([0.5, 0.0, -0.25])
    for method, bits in (("lsq", 1), ("dorefa", 1), ("dorefa", 4)):
        assert integer_weights(kernel, 0.1, bits, method)[1] == 0
        out, _ = lsq([kernel], [0.1], [bits], quantize=WEIGHT_QUANTIZERS[method])
        assert out[1] == 0 and (out[[0, 2]] != 0).all()


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


def test_functions_are_those_of_keras():
    import keras

    x = np.linspace(-6, 6, 241, dtype=np.float32)
    for function, known in (("silu", "silu"), ("gelu", "gelu"), ("hswish", "hard_silu"),
                            ("relu", "relu"), ("linear", "linear")):  # fmt: skip
        expected = keras.activations.get(known)(tf.constant(x))
        np.testing.assert_allclose(activate(x, function), expected, atol=2e-6, err_msg=function)
    with pytest.raises(ValueError, match="unknown activation 'swish'"):
        activate(x, "swish")


@pytest.mark.parametrize("function", SIGNED)
@pytest.mark.parametrize("bits", BITS[1:])
def test_signed_activations_have_as_many_levels_on_each_side(bits, function):
    x = np.random.default_rng(0).normal(0, 2, (4, 5, 5, 3)).astype(np.float32)
    clip = 1.5
    out, _ = pact(x, clip, bits, function=function)
    used = FULL_CLIP if bits == FULL_BITS else clip
    levels = activation_levels(bits, function)
    assert levels == 2 ** (bits - 1) - 1
    integers = integer_activations(x, used, bits, function)
    assert np.abs(integers).max() <= levels
    np.testing.assert_allclose(out, integers * (used / levels), rtol=1e-6, atol=1e-6)
    if bits <= 8:
        assert len(np.unique(out)) <= 2**bits - 1
    if bits == FULL_BITS:
        np.testing.assert_allclose(out, activate(x, function), atol=5e-7)


@pytest.mark.parametrize("function", SIGNED)
def test_signed_gradients_reach_the_clip_from_both_ends(function):
    x = np.random.default_rng(0).normal(0, 2, (4, 5, 5, 3)).astype(np.float32)
    g = np.random.default_rng(1).normal(0, 1, x.shape).astype(np.float32)
    clip = 0.15  # which silu and gelu pass on the negative side too
    y, (slope,) = in_graph(lambda x: activate(x, function), [x])
    assert (y < -clip).any() and (y > clip).any()
    _, (to_x, to_clip) = pact(x, clip, 3, g, function)
    inside = np.abs(y) <= clip
    np.testing.assert_allclose(to_x, g * inside * slope, atol=1e-6)
    expected = (g * ((y > clip) * 1.0 - (y < -clip))).sum()
    np.testing.assert_allclose(to_clip, expected, rtol=1e-4)


def test_the_first_clip_of_symmetric_inputs_is_the_same_for_every_function():
    x = np.random.default_rng(0).normal(0, 1, 10**5).astype(np.float32)
    x = np.concatenate([x, -x])
    means = [float(mean_magnitude(x, function)) for function in FUNCTIONS]
    np.testing.assert_allclose(means, np.maximum(x, 0).mean(), rtol=1e-4)


@pytest.mark.parametrize("function", SIGNED)
def test_one_bit_cannot_be_signed(function):
    with pytest.raises(UnbuildableError, match="of 1 bit is 0 or its clip"):
        integer_activations(np.ones(3), 1.0, 1, function)


@pytest.mark.parametrize("method", ["lsq", "dorefa"])
@pytest.mark.parametrize(
    ("function", "weight_bits", "activation_bits"),
    [("relu", 2, 1)] + [(f, *bits) for f in FUNCTIONS for bits in ((2, 2), (4, 3), (8, 8))],
)
def test_integer_execution_equals_the_fake_quantized_one(
    function, weight_bits, activation_bits, method
):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (2, 6, 6, 4)).astype(np.float32)
    kernel = rng.normal(0, 0.2, (3, 3, 4, 5)).astype(np.float32)
    step, clip = initial_step(kernel, weight_bits, method), 1.9
    levels = activation_levels(activation_bits, function)
    integers_x = integer_activations(x, clip, activation_bits, function)
    integers_w = integer_weights(kernel, step, weight_bits, method)
    windows = np.lib.stride_tricks.sliding_window_view(integers_x, (3, 3), axis=(1, 2))
    accumulators = np.einsum("nhwcij,ijcf->nhwf", windows, integers_w)
    assert accumulators.dtype == np.int64
    by_integers = accumulators * (step * clip / levels)
    fake_x, _ = pact(x, clip, activation_bits, function=function)
    fake_w, _ = lsq([kernel], [step], [weight_bits], quantize=WEIGHT_QUANTIZERS[method])
    by_floats = tf.nn.conv2d(fake_x, tf.reshape(fake_w, kernel.shape), 1, "VALID")
    np.testing.assert_allclose(by_floats, by_integers, rtol=1e-5, atol=1e-5)


def test_first_ranges_are_positive_and_grow_with_bits():
    kernel = np.random.default_rng(0).normal(0, 0.3, 1000).astype(np.float32)
    assert all(initial_step(kernel, b) > 0 for b in BITS)
    clips = initial_clip(0.4, np.array(BITS))
    assert (clips > 0).all() and (np.diff(clips) >= 0).all()
    assert initial_clip(0.0, 4) > 0, "an activation that is never on must not divide by zero"
