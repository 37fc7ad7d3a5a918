"""Keras models read as rows: counts as Keras, the literature and each layer's own shapes say."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import math

import numpy as np
import pytest

from hwmodel import Layers, device, price
from hwmodel.compound import SOFTMAX_OPS
from hwmodel.workload import ATTENTION, DEPTHWISE, VECTOR, attention, gru, lstm

keras = pytest.importorskip("keras")
layers = keras.layers

# name -> the model, multiply-accumulates and parameters as published, in 1e9 and 1e6: He et al.,
# CVPR 2016; Sandler et al., CVPR 2018, table 4; Tan and Le, ICML 2019, table 2.
PUBLISHED = {
    "ResNet50": (keras.applications.ResNet50, 3.8, 25.6),
    "MobileNetV2": (keras.applications.MobileNetV2, 0.300, 3.5),
    "EfficientNetB0": (keras.applications.EfficientNetB0, 0.39, 5.3),
}


@pytest.fixture(scope="module", params=PUBLISHED)
def published(request):
    build, giga_macs, million_params = PUBLISHED[request.param]
    return build(weights=None), giga_macs, million_params


def trainable_words(model) -> int:
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)


def macs_by_shapes(model) -> int:
    """Kernel words times the outputs that each is used for, from the built layers alone."""
    macs = 0
    for layer in model.layers:
        if isinstance(layer, layers.DepthwiseConv2D):
            macs += math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:3])
        elif isinstance(layer, layers.Conv2D | layers.Dense):
            macs += math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1])
    return macs


def test_published_networks_have_their_published_counts(published):
    model, giga_macs, million_params = published
    network = Layers.from_keras(model)
    assert network.macs.tolist() == [macs_by_shapes(model)]
    assert network.params.tolist() == [trainable_words(model)]
    assert network.macs[0] / 1e9 == pytest.approx(giga_macs, rel=0.02)
    assert network.params[0] / 1e6 == pytest.approx(million_params, rel=0.01)


def test_batch_and_bits_reach_every_row(published):
    model, *_ = published
    one, four = (
        Layers.from_keras(model),
        Layers.from_keras(model, 4, weight_bits=4, activation_bits=6),
    )
    assert four.macs.tolist() == (4 * one.macs).tolist()
    assert four.params.tolist() == one.params.tolist()
    assert set(four.activation_bits) == set(four.output_bits) == {6}
    assert set(four.weight_bits[four.kind != VECTOR]) == {4}
    np.testing.assert_array_equal(one.with_batch(4).m, four.m)
    np.testing.assert_array_equal(one.with_batch(4).input_words, four.input_words)
    assert price(four, device("systolic-edge-16")).feasible.all()


def read(*stack, **options) -> Layers:
    return Layers.from_keras(keras.Sequential(list(stack)), **options)


def words(network: Layers) -> dict:
    return dict(zip(network.names, network.output_words.tolist(), strict=True))


def test_each_layer_counts_what_its_shapes_say():
    network = read(
        keras.Input((16, 16, 4)),
        layers.Conv2D(8, 3, strides=2, groups=2, dilation_rate=1, name="group"),
        layers.Conv2D(8, 3, dilation_rate=2, padding="same", use_bias=False, name="dilated"),
        layers.Conv2DTranspose(6, 4, strides=2, padding="same", name="up"),
        layers.SeparableConv2D(10, 3, depth_multiplier=2, name="sep"),
        layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2, name="dw"),
        layers.MaxPooling2D(2, name="pool"),
        layers.GlobalAveragePooling2D(name="gap"),
        layers.Dense(5, activation="softmax", name="head"),
    )
    macs = dict(zip(network.names, network.row_macs.tolist(), strict=True))
    assert {name: count for name, count in macs.items() if count} == {
        "group": 7 * 7 * 8 * 3 * 3 * 2,
        "dilated": 7 * 7 * 8 * 9 * 8,
        "up": 7 * 7 * 8 * 16 * 6,
        "sep.depthwise": 12 * 12 * 9 * 6 * 2,
        "sep.pointwise": 12 * 12 * 12 * 10,
        "dw": 5 * 5 * 9 * 20,
        "head": 20 * 5,
    }
    assert words(network)["up"] == 14 * 14 * 6
    assert words(network)["pool"] == 2 * 2 * 20
    assert network.vector_ops[-1] == SOFTMAX_OPS * 5
    assert network.kind[network.names == "dw"] == DEPTHWISE


@pytest.mark.parametrize("padding, outputs", [("same", 10), ("valid", 8), ("causal", 10)])
def test_convolution_over_time(padding, outputs):
    network = read(keras.Input((20, 3)), layers.Conv1D(4, 5, strides=2, padding=padding))
    assert (network.m.tolist(), network.k.tolist()) == ([outputs], [15])
    assert network.params.tolist() == [5 * 3 * 4 + 4]


def test_sequences():
    model = keras.Sequential(
        [
            keras.Input((12,)),
            layers.Embedding(100, 8, name="table"),
            layers.Bidirectional(layers.LSTM(6, return_sequences=True), name="both"),
            layers.GRU(5, return_sequences=True, name="gru"),
            layers.GRU(5, reset_after=False, name="old"),
            layers.LayerNormalization(name="norm"),
            layers.Dense(3),
        ]
    )
    network = Layers.from_keras(model, 2)
    assert network.params.tolist() == [trainable_words(model)]
    assert network.macs.tolist() == [2 * (12 * (2 * 24 * (8 + 6) + 15 * (12 + 5) + 15 * 10) + 15)]
    by_hand = Layers.from_rows(
        [
            lstm("f", steps=12, in_features=8, units=6, batch=2),
            gru("g", steps=12, in_features=12, units=5, batch=2),
        ]
    )
    for row in range(3):
        assert network.steps[1 + row] == by_hand.steps[row]
        assert network.output_words[1 + row] == by_hand.output_words[row]
    assert network.steps[network.names == "gru.recurrent"] == 12
    assert words(network)["gru.gates"] == 2 * 12 * 5
    assert words(network)["old.gates"] == 2 * 5


@pytest.mark.parametrize("memory", [None, 7])
def test_attention_as_its_own_rows(memory):
    query = keras.Input((5, 16))
    inputs, source = [query], query
    if memory is not None:
        source = keras.Input((memory, 12))
        inputs.append(source)
    model = keras.Model(inputs, layers.MultiHeadAttention(4, 3, 2, name="mha")(query, source))
    network = Layers.from_keras(model, 3)
    elsewhere = {} if memory is None else dict(memory=memory, memory_features=12)
    expected = Layers.from_rows(
        attention(
            "mha",
            sequence=5,
            features=16,
            heads=4,
            head_size=3,
            value_size=2,
            batch=3,
            bias=True,
            **elsewhere,
        )
    )
    assert network.names.tolist() == expected.names.tolist()
    assert network.row_macs.tolist() == expected.row_macs.tolist()
    assert network.params.tolist() == expected.params.tolist() == [trainable_words(model)]
    assert (network.kind == ATTENTION).sum() == 2


def test_activations_and_merges():
    x = keras.Input((4, 4, 6))
    y = layers.Conv2D(6, 1, activation="relu", name="conv")(x)
    scale = layers.Activation("sigmoid", name="gate")(
        layers.GlobalAveragePooling2D(keepdims=True, name="gap")(y)
    )
    scaled = layers.Multiply(name="scaled")([y, scale])
    joined = layers.Concatenate(name="joined")([x, layers.Add(name="sum")([x, y, scaled])])
    model = keras.Model(x, keras.ops.relu(layers.Dropout(0.5)(joined) + 1.0))
    network = Layers.from_keras(model)
    assert network.names.tolist()[:6] == ["conv", "conv.relu", "gap", "gate", "scaled", "sum"]
    assert len(network) == 8
    inputs = dict(zip(network.names, network.input_words.tolist(), strict=True))
    assert inputs["scaled"] == 4 * 4 * 6 + 6
    assert (inputs["sum"], network.vector_ops[5]) == (3 * 96, 2 * 96)
    assert network.output_words[-1] == 4 * 4 * 12


def test_a_normalization_is_folded_only_into_what_it_alone_reads():
    x = keras.Input((4, 4, 3))
    y = layers.Conv2D(5, 1, use_bias=False, name="alone")(x)
    y = layers.BatchNormalization(name="folded")(y)
    z = layers.Conv2D(5, 1, name="read.twice")(y)
    y = layers.Add(name="sum")([layers.BatchNormalization(name="kept")(z), z])
    y = layers.Conv2D(5, 1, activation="relu", name="bent")(y)
    model = keras.Model(x, layers.BatchNormalization(scale=False, name="after.relu")(y))
    network = Layers.from_keras(model)
    assert network.names.tolist() == [
        "alone",
        "read.twice",
        "kept",
        "sum",
        "bent",
        "bent.relu",
        "after.relu",
    ]
    assert network.row_params.tolist() == [15 + 10, 25 + 5, 10, 0, 25 + 5, 0, 5]
    assert network.params.tolist() == [trainable_words(model)]


def test_shared_layers_and_nested_models_store_their_parameters_once():
    tower = keras.Sequential(
        [layers.Dense(8, activation="relu", name="a"), layers.Dense(4, name="b")], name="tower"
    )
    left, right = keras.Input((6,)), keras.Input((6,))
    inner = keras.Model(a := keras.Input((4,)), layers.Dense(4, name="deep")(a), name="inner")
    model = keras.Model([left, right], layers.Add()([inner(tower(left)), tower(right)]))
    network = Layers.from_keras(model, 2)
    assert sorted(network.names[:-1]) == sorted(
        [
            "tower/a",
            "tower/a.relu",
            "tower/b",
            "tower/a#2",
            "tower/a#2.relu",
            "tower/b#2",
            "inner/deep",
        ]
    )
    assert network.params.tolist() == [trainable_words(model)]
    assert network.macs.tolist() == [2 * (2 * (6 * 8 + 8 * 4) + 16)]
    # The second call reads its weights again, which the first one stores.
    again = network.names == "tower/b#2"
    assert network.operand_bytes[again] == 32
    assert network.parameter_bytes[again] == 0


def test_a_nested_model_of_any_size_takes_the_size_it_is_called_with():
    inner = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(4, 3, padding="same")])
    model = keras.Sequential([keras.Input((10, 6, 3)), inner, layers.Flatten(), layers.Dense(1)])
    assert Layers.from_keras(model).macs.tolist() == [60 * 27 * 4 + 240]
    with pytest.raises(ValueError, match=r"shape \[None, None, None, 3\]; give keras.Input every"):
        Layers.from_keras(inner)


class Twice(layers.Layer):
    def call(self, x):
        return 2 * x


def test_a_layer_that_cannot_be_read_is_named_and_can_be_passed_over():
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, name="first"), Twice(name="own"), layers.Dense(2)]
    )
    with pytest.raises(ValueError, match=r"layer 'own' of class Twice; .*skip=\('own',\)"):
        Layers.from_keras(model)
    for skip in ("own", ("own",), ["Twice"]):
        assert Layers.from_keras(model, skip=skip).macs.tolist() == [12 + 6]
    assert Layers.from_keras(model, skip=("Twice", "first")).macs.tolist() == [6]
    with pytest.raises(ValueError, match="skip names 'onw'"):
        Layers.from_keras(model, skip=("own", "onw"))


def test_a_subclass_of_a_known_layer_is_not_taken_for_it():
    class Dense(layers.Dense):
        def call(self, x):
            return super().call(super().call(x))

    with pytest.raises(ValueError, match="layer 'mine' of class Dense"):
        read(keras.Input((4,)), Dense(4, name="mine"))


def test_models_that_show_no_layers_are_refused():
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="only functional and sequential"):
        Layers.from_keras(Own(name="own"))
    with pytest.raises(ValueError, match=r"with keras\.Input"):
        Layers.from_keras(keras.Sequential([layers.Dense(3)]))
    with pytest.raises(ValueError, match="batch must be a positive integer, got 0"):
        Layers.from_keras(keras.Sequential([keras.Input((4,)), layers.Dense(3)]), 0)
    with pytest.raises(ValueError, match="'mask': attention"):
        x = keras.Input((2, 5, 16))
        Layers.from_keras(keras.Model(x, layers.MultiHeadAttention(2, 3, name="mask")(x, x)))


def test_a_rounding_with_its_gradient_straight_through_is_a_rounding():
    ops, image = keras.ops, keras.Input((4, 4, 3))
    rounded = ops.round(image)
    plain = Layers.from_keras(keras.Model(image, rounded))
    through = image + ops.stop_gradient(rounded - image)
    assert Layers.from_keras(keras.Model(image, through)).vector_ops.sum() == plain.vector_ops.sum()
    other = image + ops.stop_gradient(rounded - 2 * image)  # any other sum counts
    n = plain.vector_ops.sum()
    assert Layers.from_keras(keras.Model(image, other)).vector_ops.sum() == 4 * n


@pytest.mark.parametrize("straight", [False, True])
def test_of_a_quantizer_only_its_clip_is_an_operation(straight):
    ops, image = keras.ops, keras.Input((4, 4, 3))
    clipped = ops.clip(image, 0, 6)
    levels = clipped * (15 / 6)
    rounded = ops.round(levels)
    if straight:
        rounded = levels + ops.stop_gradient(rounded - levels)
    model = keras.Model(image, rounded * (6 / 15))
    n = math.prod(image.shape[1:])
    assert Layers.from_keras(model).vector_ops.sum() == n
    two = Layers.from_keras(keras.Model(image, ops.sqrt(clipped * 2.5) * 0.4))  # no quantizer's
    assert two.vector_ops.sum() == 4 * n
