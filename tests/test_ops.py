"""One contract over the table of operations: the three faces of each agree."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from hwmodel.workload import Layers
from nas.scoring import FixedContext, StatisticsContext
from search_spaces import ops
from search_spaces.ops import OPS, Precision
from search_spaces.quantizers import (
    FUNCTIONS,
    UnbuildableError,
    activation_levels,
    integer_activations,
)

FEATURES = (9, 9, 6)  # odd, so that padding is seen
EXAMPLES = {
    "convolution": [
        (ops.Convolution(8, 3), [FEATURES]),
        (ops.Convolution(4, 1), [FEATURES]),
        (ops.Convolution(8, 3, stride=2), [FEATURES]),
        (ops.Convolution(8, 3, image=True), [(16, 16, 3)]),
        (ops.Convolution(8, (1, 7)), [FEATURES]),
        (ops.Convolution(4, (7, 1), stride=2), [FEATURES]),
    ],
    "low_rank_convolution": [
        (ops.LowRankConvolution(8, 3, 2), [FEATURES]),
        (ops.LowRankConvolution(4, 1, 3), [FEATURES]),
        (ops.LowRankConvolution(8, 3, 4, stride=2), [FEATURES]),
    ],
    "depthwise_convolution": [
        (ops.DepthwiseConvolution(3), [FEATURES]),
        (ops.DepthwiseConvolution(5), [FEATURES]),
        (ops.DepthwiseConvolution(7, stride=2), [FEATURES]),
        (ops.DepthwiseConvolution(3, dilation=2), [FEATURES]),
        (ops.DepthwiseConvolution(5, dilation=2), [FEATURES]),
    ],
    "activation": [(ops.Activation(function), [FEATURES]) for function in FUNCTIONS],
    "average_pool": [
        (ops.AveragePool(3), [FEATURES]),
        (ops.AveragePool(2, stride=2), [FEATURES]),
    ],
    "max_pool": [(ops.MaxPool(3), [FEATURES]), (ops.MaxPool(3, stride=2), [FEATURES])],
    "concat": [(ops.Concat(), [FEATURES, (9, 9, 4)])],
    "gate": [(ops.Gate(), [FEATURES, (1, 1, 6)])],
    "add": [(ops.Add(), [FEATURES] * 2), (ops.Add(), [FEATURES] * 3)],
    "global_pool": [
        (ops.GlobalPool(), [FEATURES]),
        (ops.GlobalPool(sums=True), [FEATURES]),
    ],
    "dense": [(ops.Dense(10), [(1, 1, 12)]), (ops.Dense(5), [(2, 2, 3)])],
}
CASES = [(name, op, inputs) for name, cases in EXAMPLES.items() for op, inputs in cases]
BATCH = 5
CLIP, BITS = 1.7, 3


def keras_macs(model: keras.Model) -> int:
    """Multiply-accumulates of one image, counted from the built layers alone."""
    total = 0
    for layer in model.layers:
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)):
            _, height, width, _ = layer.output.shape
            total += height * width * int(np.prod(layer.kernel.shape))
        elif isinstance(layer, keras.layers.Dense):
            total += int(np.prod(layer.kernel.shape))
    return total


def keras_params(model: keras.Model) -> int:
    """Weights that an accelerator stores: normalization is folded away."""
    return sum(
        layer.count_params()
        for layer in model.layers
        if not isinstance(layer, keras.layers.BatchNormalization)
    )


def keras_face(op, inputs, bits=None):
    tensors = [keras.Input(shape) for shape in inputs]
    return keras.Model(tensors, op.keras(tensors, "op", bits and CLIP, bits))


def test_every_operation_has_examples():
    assert set(EXAMPLES) == set(OPS)
    assert all(type(op) is OPS[name] for name, op, _ in CASES)


@pytest.mark.parametrize(("name", "op", "inputs"), CASES)
def test_faces_have_the_same_shape_parameters_and_products(name, op, inputs):
    model = keras_face(op, inputs)
    assert model.output.shape[1:] == op.shape(inputs)
    if not op.cost("op", inputs, Precision(8, 8), 1):
        assert keras_params(model) == keras_macs(model) == 0 == len(op.parameters(inputs))
        return
    table = Layers.from_rows(op.cost("op", inputs, Precision(8, 8), 1))
    learned = [p for p in op.parameters(inputs) if p.kind in ("kernel", "shift")]
    folded = {"beta"}  # of normalization
    assert table.params[0] == keras_params(model)
    assert table.params[0] == sum(np.prod(p.shape) for p in learned if p.name not in folded)
    assert table.macs[0] == keras_macs(model)
    batch = Layers.from_rows(op.cost("op", inputs, Precision(8, 8), BATCH))
    assert batch.macs[0] == BATCH * table.macs[0] and batch.params[0] == table.params[0]


@pytest.mark.parametrize("bits", [BITS, 8])
@pytest.mark.parametrize(("name", "op", "inputs"), CASES)
def test_faces_compute_the_same_for_the_same_weights(name, op, inputs, bits):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(0, 1, (BATCH, *shape)).astype(np.float32) for shape in inputs]
    weights = {p.name: rng.normal(0.5, 0.3, p.shape).astype(np.float32) ** 2
               for p in op.parameters(inputs)}  # fmt: skip
    n_channels = op.shape(inputs)[2]
    mean, variance = rng.normal(0, 1, n_channels), rng.uniform(0.5, 2, n_channels)
    moments = [mean.astype(np.float32), variance.astype(np.float32)]
    if "clip" in weights:
        weights["clip"] = np.float32(CLIP)
    given = {k: tf.constant(v) for k, v in weights.items()}
    fast = op.apply([tf.constant(a) for a in arrays], given, tf.constant(bits),
                    FixedContext([moments[0]], [moments[1]]))  # fmt: skip
    model = keras_face(op, inputs, bits)
    for layer, tensors in op.keras_weights("op", weights, moments).items():
        model.get_layer(layer).set_weights(tensors)
    np.testing.assert_allclose(model.predict(arrays, verbose=0), fast, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("function", ["relu", "linear"])
def test_an_exported_activation_passes_gradients_straight_through(function):
    x = np.array([[[[-3, -1, -0.4, 0.1, 0.5, 1.2, CLIP + 0.1, 3]]]], np.float32)
    model = keras_face(ops.Activation(function), [x.shape[1:]], BITS)
    with tf.GradientTape() as tape:
        given = tf.constant(x)
        tape.watch(given)
        y = model(given)
    inside = (x > (0 if function == "relu" else -CLIP)) & (x < CLIP)
    np.testing.assert_allclose(tape.gradient(y, given), inside, rtol=1e-6)
    levels = activation_levels(BITS, function)
    whole = integer_activations(x, CLIP, BITS, function).astype(np.float32)
    np.testing.assert_array_equal(y, whole * np.float32(CLIP / levels))


def test_statistics_see_the_batch_and_the_activation():
    rng = np.random.default_rng(0)
    x = rng.normal(0.3, 1, (BATCH, *FEATURES)).astype(np.float32)
    context = StatisticsContext(quantized=True)
    op = ops.Convolution(4, 1)
    kernel = rng.normal(0, 1, (1, 1, FEATURES[2], 4)).astype(np.float32)
    one, zero = tf.ones(4), tf.zeros(4)
    op.apply([x], {"kernel": kernel, "gamma": one, "beta": zero}, tf.constant(8), context)
    y = x.reshape(-1, FEATURES[2]) @ kernel[0, 0]
    np.testing.assert_allclose(context.means[0], y.mean(0), rtol=1e-4)
    np.testing.assert_allclose(context.variances[0], y.var(0), rtol=1e-2)
    ops.Activation().apply([tf.constant(x)], {"clip": tf.constant(3.0)}, tf.constant(8), context)
    np.testing.assert_allclose(context.activations[0], np.maximum(x, 0).mean(), rtol=1e-5)


def test_what_is_signed_needs_two_bits():
    ops.Activation("relu").cost("op", [FEATURES], Precision(8, 1), 1)
    silu = ops.Activation("silu")
    with pytest.raises(UnbuildableError, match="of 1 bit is 0 or its clip, but 'silu' has both"):
        silu.cost("op", [FEATURES], Precision(8, 1), 1)
    with pytest.raises(UnbuildableError, match="choose 2 bits or more"):
        keras_face(silu, [FEATURES], 1)


def test_functions_cost_their_operations():
    work = {}
    for function in FUNCTIONS:
        rows = ops.Activation(function).cost("op", [FEATURES], Precision(8, 4), 1)
        work[function] = rows[0].vector_ops / np.prod(FEATURES)
    assert work == {"relu": 1, "linear": 1, "hswish": 5, "gelu": 9, "silu": 12}


def test_a_gate_is_sums():
    rows = ops.Gate().cost("op", [FEATURES, (1, 1, 6)], Precision(4, 4), 2)
    assert [row.vector_ops for row in rows] == [2 * 4 * 6, 2 * 9 * 9 * 6]
    assert {(row.activation_bits, row.output_bits) for row in rows} == {(16, 16)}


def test_rows_are_remembered_without_their_names():
    op, inputs, given = ops.Convolution(8, 3), [(16, 16, 4)], (Precision(4, 6), 2)
    for name in ("stem", "stage1.conv"):
        assert ops.rows_of(name, op, inputs, *given) == op.cost(name, inputs, *given)
    with pytest.raises(ValueError, match=r"row 'stem'.*2\*\*53"):
        ops.rows_of("stem", op, inputs, Precision(8, 8), 2**50)
