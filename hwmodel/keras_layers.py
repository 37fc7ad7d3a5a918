"""The rows of one call of a Keras layer, read by the layer's class.

Every activation, whether a layer of its own or the argument of another, is a row of vector work.
Reshaping, padding, cropping, concatenating and dropout move no word that their neighbours do not
move already, and make no row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from hwmodel.compound import SOFTMAX_OPS, attention, gru, lstm
from hwmodel.layer_row import VECTOR, Row, make_row
from hwmodel.operations import (
    LAYER_NORM_OPS,
    conv,
    dense,
    depthwise,
    embedding,
    normalization,
    pool,
    transposed_conv,
)

if TYPE_CHECKING:
    import keras


class Call(NamedTuple):
    """One use of a layer: the symbolic tensors that it takes and gives, at a fixed batch."""

    layer: keras.Operation
    name: str
    inputs: list[keras.KerasTensor]
    outputs: list[keras.KerasTensor]

    @property
    def kind(self) -> str:
        return type(self.layer).__name__


class Bits(NamedTuple):
    """Widths of every weight and of every activation."""

    weight_bits: int
    activation_bits: int

    @property
    def of_weights(self) -> dict[str, int]:
        return self._asdict()

    @property
    def of_vectors(self) -> dict[str, int]:
        return {"activation_bits": self.activation_bits}


def read_call(call: Call, batch: int, bits: Bits) -> list[Row]:
    """The rows of one call. Raises ValueError naming a layer that cannot be read."""
    import keras

    is_layer = isinstance(call.layer, keras.Layer)
    table = LAYERS if is_layer else FUNCTIONS
    # A subclass may compute anything, so only Keras's own classes are read.
    known = call.kind in table and type(call.layer).__module__.startswith("keras.")
    if not known:
        raise ValueError(
            f"cannot read {'layer' if is_layer else 'operation'} {call.name!r} of class "
            f"{call.kind}; pass it over with skip=({call.layer.name!r},) or skip=({call.kind!r},). "
            f"Classes that can be read: {', '.join(sorted(table))}"
        )
    return table[call.kind](call, batch, bits)


def _free(call: Call, batch: int, bits: Bits) -> list[Row]:
    return []


def _conv(call: Call, batch: int, bits: Bits) -> list[Row]:
    layer = call.layer
    row = conv(
        call.name,
        **_image(layer, call.inputs[0], channels="in_channels"),
        **_window(layer),
        batch=batch,
        out_channels=layer.filters,
        groups=layer.groups,
        bias=layer.use_bias,
        **bits.of_weights,
    )
    return [row, *_activated(call, batch, bits)]


def _transposed_conv(call: Call, batch: int, bits: Bits) -> list[Row]:
    layer = call.layer
    window = _window(layer)
    if window.pop("dilation") != (1,) * len(window["kernel"]) or any(
        size is not None for size in _tuple(getattr(layer, "output_padding", None))
    ):
        raise ValueError(
            f"cannot read layer {call.name!r}: a transposed convolution with dilation or output "
            f"padding; pass it over with skip=({layer.name!r},)"
        )
    row = transposed_conv(
        call.name,
        **_image(layer, call.inputs[0], channels="in_channels"),
        **window,
        batch=batch,
        out_channels=layer.filters,
        bias=layer.use_bias,
        **bits.of_weights,
    )
    return [row, *_activated(call, batch, bits)]


def _depthwise(call: Call, batch: int, bits: Bits) -> list[Row]:
    row = _depthwise_row(call, call.name, batch, bits, bias=call.layer.use_bias)
    return [row, *_activated(call, batch, bits)]


def _separable(call: Call, batch: int, bits: Bits) -> list[Row]:
    layer = call.layer
    spatial = _depthwise_row(call, f"{call.name}.depthwise", batch, bits, bias=False)
    pointwise = conv(
        f"{call.name}.pointwise",
        **_image(layer, call.outputs[0]) | {"in_channels": spatial.n * spatial.groups},
        batch=batch,
        out_channels=layer.filters,
        kernel=1,
        bias=layer.use_bias,
        **bits.of_weights,
    )
    return [spatial, pointwise, *_activated(call, batch, bits)]


def _depthwise_row(call: Call, name: str, batch: int, bits: Bits, bias: bool) -> Row:
    layer = call.layer
    return depthwise(
        name,
        **_image(layer, call.inputs[0], channels="channels"),
        **_window(layer),
        batch=batch,
        depth_multiplier=layer.depth_multiplier,
        bias=bias,
        **bits.of_weights,
    )


def _dense(call: Call, batch: int, bits: Bits) -> list[Row]:
    layer, shape = call.layer, call.inputs[0].shape
    row = dense(
        call.name,
        in_features=shape[-1],
        out_features=layer.units,
        positions=math.prod(shape[1:-1]),
        batch=batch,
        bias=layer.use_bias,
        **bits.of_weights,
    )
    return [row, *_activated(call, batch, bits)]


def _lstm(call: Call, batch: int, bits: Bits) -> list[Row]:
    return lstm(call.name, **_sequence(call.layer, call, batch), **bits.of_weights)


def _gru(call: Call, batch: int, bits: Bits) -> list[Row]:
    layer = call.layer
    return gru(
        call.name,
        **_sequence(layer, call, batch),
        reset_after=layer.reset_after,
        **bits.of_weights,
    )


def _bidirectional(call: Call, batch: int, bits: Bits) -> list[Row]:
    layer = call.layer
    rows = []
    for way, each in dict(forward=layer.forward_layer, backward=layer.backward_layer).items():
        rows += read_call(call._replace(layer=each, name=f"{call.name}.{way}"), batch, bits)
    if layer.merge_mode in ("sum", "mul", "ave"):
        words = _words_of(call.outputs)
        merged = make_row(
            f"{call.name}.merge",
            VECTOR,
            batch=batch,
            input_words=2 * words,
            output_words=words,
            vector_ops=words,
            **bits.of_vectors,
        )
        rows.append(merged)
    return rows


def _sequence(layer, call: Call, batch: int) -> dict:
    _, steps, in_features = call.inputs[0].shape
    return dict(
        steps=steps,
        in_features=in_features,
        units=layer.units,
        batch=batch,
        bias=layer.use_bias,
        return_sequences=layer.return_sequences,
    )


def _embedding(call: Call, batch: int, bits: Bits) -> list[Row]:
    layer = call.layer
    row = embedding(
        call.name,
        vocabulary=layer.input_dim,
        features=layer.output_dim,
        lookups=math.prod(call.inputs[0].shape[1:]),
        batch=batch,
        **bits.of_weights,
    )
    return [row]


def _attention(call: Call, batch: int, bits: Bits) -> list[Row]:
    layer = call.layer
    query, *memories = call.inputs
    if len(query.shape) != 3 or len({memory.shape for memory in memories}) != 1:
        raise ValueError(
            f"cannot read layer {call.name!r}: attention over {[t.shape for t in call.inputs]}; "
            "query, value and key must be sequences [batch, steps, features], value and key alike, "
            f"without masks; or pass it over with skip=({layer.name!r},)"
        )
    elsewhere = {}
    if any(memory is not query for memory in memories):
        _, elsewhere["memory"], elsewhere["memory_features"] = memories[0].shape
    return attention(
        call.name,
        sequence=query.shape[1],
        features=query.shape[2],
        heads=layer.num_heads,
        head_size=layer.key_dim,
        value_size=layer.value_dim,
        out_features=call.outputs[0].shape[-1],
        **elsewhere,
        batch=batch,
        bias=layer.use_bias,
        **bits.of_weights,
    )


def _batch_normalization(call: Call, batch: int, bits: Bits) -> list[Row]:
    return [_normalization(call, batch, bits, ops_per_element=2)]


def _sample_normalization(call: Call, batch: int, bits: Bits) -> list[Row]:
    return [_normalization(call, batch, bits, ops_per_element=LAYER_NORM_OPS)]


def _normalization(call: Call, batch: int, bits: Bits, ops_per_element: int) -> Row:
    """Normalization with the scale and offset that the layer has."""
    row = normalization(
        call.name,
        elements=_words_of(call.outputs) // batch,
        channels=1,
        batch=batch,
        ops_per_element=ops_per_element,
        **bits.of_vectors,
    )
    trained = trained_words(call.layer)
    return row._replace(bias_words=trained, params=trained)


def trained_words(layer: keras.Layer) -> int:
    """Words of a normalization's scale and offset, as far as it has them."""
    return sum(math.prod(w.shape) for w in layer.weights if w.name in ("gamma", "beta", "scale"))


def _pool(call: Call, batch: int, bits: Bits) -> list[Row]:
    layer = call.layer
    row = pool(
        call.name,
        **_image(layer, call.inputs[0], channels="channels"),
        kernel=_axes(layer.pool_size),
        stride=_axes(layer.strides),
        padding=layer.padding,
        batch=batch,
        **bits.of_vectors,
    )
    return [row]


def _global_pool(call: Call, batch: int, bits: Bits) -> list[Row]:
    image = _image(call.layer, call.inputs[0], channels="channels")
    kernel = (image["height"], image["width"])
    return [pool(call.name, **image, kernel=kernel, batch=batch, **bits.of_vectors)]


def _activation_layer(call: Call, batch: int, bits: Bits) -> list[Row]:
    return _activated(call, batch, bits, call.name)


def _one_op(call: Call, batch: int, bits: Bits) -> list[Row]:
    """An operation a word, with the parameters that the layer trains."""
    row = _vector(call, call.name, batch, bits, ops_per_element=1)
    if call.kind == "PReLU":
        slopes = math.prod(call.layer.alpha.shape)
        row = row._replace(bias_words=slopes, params=slopes)
    return [row]


def _scale_and_shift(call: Call, batch: int, bits: Bits) -> list[Row]:
    return [_vector(call, call.name, batch, bits, ops_per_element=2)]


def _softmax(call: Call, batch: int, bits: Bits) -> list[Row]:
    return [_vector(call, call.name, batch, bits, ops_per_element=SOFTMAX_OPS)]


def _merge(call: Call, batch: int, bits: Bits) -> list[Row]:
    if _carries_gradients(call) or _scales_levels(call):
        return []
    ops_per_element = max(1, len(call.inputs) - 1)
    return [_vector(call, call.name, batch, bits, ops_per_element)]


def _carries_gradients(call: Call) -> bool:
    """Whether it is the sum or the difference of x + stop_gradient(round(x) - x), a rounding whose
    gradient goes straight through: in inference there is nothing but the rounding."""

    import keras

    def maker(tensor) -> keras.Operation:
        return tensor._keras_history.operation

    def is_error(operation) -> bool:  # round(x) - x
        if type(operation).__name__ != "Subtract" or not isinstance(operation.input, list):
            return False
        rounded, x = operation.input
        return type(maker(rounded)).__name__ == "Round" and maker(rounded).input is x

    if len(call.inputs) != 2 or isinstance(call.layer, keras.Layer):
        return False
    if call.kind != "Add":
        return is_error(call.layer)
    x, stopped = call.layer.input
    if type(maker(stopped)).__name__ != "StopGradient":
        return False
    error = maker(maker(stopped).input)
    return is_error(error) and error.input[1] is x


def _round(call: Call, batch: int, bits: Bits) -> list[Row]:
    """Of a multiple of what came before, as in round(x / step): a quantizer's, and no operation."""
    return (
        [] if _is_scaled(call.layer.input._keras_history.operation) else _one_op(call, batch, bits)
    )


def _scales_levels(call: Call) -> bool:
    """Whether it is a quantizer's multiplication, into its levels or out of them: a machine of few
    bits computes with the levels, and its sums leave through one scale."""
    if not _is_scaled(call.layer):
        return False
    before = call.layer.input._keras_history.operation
    rounded = (
        Call(before, before.name, before.input, []) if isinstance(before.input, list) else None
    )
    after = [type(node.operation).__name__ for node in call.layer._outbound_nodes]
    return (
        "Round" in after
        or type(before).__name__ == "Round"
        or (rounded is not None and _carries_gradients(rounded))
    )


def _is_scaled(operation: keras.Operation) -> bool:
    """Whether it is a tensor times a constant."""
    import keras

    return type(operation).__name__ == "Multiply" and isinstance(operation.input, keras.KerasTensor)


def _activated(call: Call, batch: int, bits: Bits, name: str | None = None) -> list[Row]:
    """The row of the layer's activation, NAME.activation unless given; none where it is linear."""
    function = activation_of(call.layer)
    if function == "linear":
        return []
    ops_per_element = SOFTMAX_OPS if "softmax" in function else 1
    after = call._replace(inputs=call.outputs)
    return [_vector(after, name or f"{call.name}.{function}", batch, bits, ops_per_element)]


def activation_of(layer) -> str:
    """The name of a layer's activation function."""
    function = layer.activation
    return getattr(function, "__name__", type(function).__name__)


def _vector(call: Call, name: str, batch: int, bits: Bits, ops_per_element: int) -> Row:
    """Vector work of so many operations per word of the output; smaller inputs are broadcast."""
    words = _words_of(call.outputs)
    return make_row(
        name,
        VECTOR,
        batch=batch,
        input_words=_words_of(call.inputs),
        output_words=words,
        vector_ops=words * ops_per_element,
        **bits.of_vectors,
    )


def _words_of(tensors: list[keras.KerasTensor]) -> int:
    return sum(math.prod(tensor.shape) for tensor in tensors)


def _image(layer, tensor: keras.KerasTensor, channels: str | None = None) -> dict[str, int]:
    """Height (1 for a sequence), width, and the channels under that name."""
    sizes = list(tensor.shape[1:])
    last = sizes.pop(0 if layer.data_format == "channels_first" else -1)
    height, width = _axes(sizes)
    return {"height": height, "width": width} | ({} if channels is None else {channels: last})


def _window(layer) -> dict:
    # A causal window is shifted, which changes none of its counts but the words at the edge.
    return dict(
        kernel=_axes(layer.kernel_size),
        stride=_axes(layer.strides),
        dilation=_axes(layer.dilation_rate),
        padding="same" if layer.padding == "causal" else layer.padding,
    )


def _axes(sizes) -> tuple[int, int]:
    """Sizes along height and width; those of a sequence lie along the width."""
    sizes = _tuple(sizes)
    return (1, *sizes) if len(sizes) == 1 else sizes


def _tuple(value) -> tuple:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _table(readers: dict[Callable, str]) -> dict[str, Callable]:
    return {kind: reader for reader, kinds in readers.items() for kind in kinds.split()}


# class of layer -> what reads it
LAYERS = _table(
    {
        _conv: "Conv1D Conv2D",
        _transposed_conv: "Conv1DTranspose Conv2DTranspose",
        _depthwise: "DepthwiseConv1D DepthwiseConv2D",
        _separable: "SeparableConv1D SeparableConv2D",
        _dense: "Dense",
        _lstm: "LSTM",
        _gru: "GRU",
        _bidirectional: "Bidirectional",
        _embedding: "Embedding",
        _attention: "MultiHeadAttention",
        _batch_normalization: "BatchNormalization",
        _sample_normalization: "LayerNormalization GroupNormalization RMSNormalization",
        _pool: "MaxPooling1D MaxPooling2D AveragePooling1D AveragePooling2D",
        _global_pool: "GlobalMaxPooling1D GlobalMaxPooling2D GlobalAveragePooling1D "
        "GlobalAveragePooling2D",
        _activation_layer: "Activation",
        _one_op: "ReLU LeakyReLU PReLU ELU UpSampling1D UpSampling2D",
        _softmax: "Softmax",
        _scale_and_shift: "Rescaling Normalization",
        _merge: "Add Average Maximum Minimum Multiply Subtract",
        _free: "InputLayer Identity Flatten Reshape Permute RepeatVector Concatenate Dropout "
        "SpatialDropout1D SpatialDropout2D AlphaDropout GaussianDropout GaussianNoise "
        "ActivityRegularization Cropping1D Cropping2D ZeroPadding1D ZeroPadding2D",
    }
)
# class of operation, where a model applies `keras.ops` to its tensors -> what reads it
FUNCTIONS = _table(
    {
        _merge: "Add Subtract Multiply Divide TrueDivide Maximum Minimum",
        _round: "Round",
        _one_op: "Relu Relu6 LeakyRelu Elu Gelu Silu Sigmoid HardSigmoid HardSilu Tanh Exp Sqrt "
        "Rsqrt Square Abs Absolute Negative Power Clip",
        _softmax: "Softmax LogSoftmax",
        _free: "Reshape Flatten Squeeze ExpandDims GetItem Concatenate Transpose Cast Pad "
        "StopGradient",
    }
)
