"""Every network operation, written once, with its faces side by side.

An operation is a small frozen dataclass:

    shape(inputs)            the output's (height, width, channels) from the inputs'
    parameters(inputs)       what it learns: a list of Parameter
    cost(name, inputs, ...)  its rows for the hardware model
    apply(tensors, ...)      functional TensorFlow, for the fast training loop
    keras(tensors, ...)      standard Keras layers, for the exported model
    keras_weights(...)       where trained tensors go in those layers: layer name -> arrays

Precision in hardware: products read activations and weights in the bits chosen, sums between
layers (outputs of products, poolings, additions, gates) are kept in 16 bits, and an `Activation` is
where a sum is brought down to the chosen bits. Batch normalization is folded into the
requantization.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hwmodel import workload
from hwmodel.layer_row import Row
from search_spaces.gradients import faster_gradients
from search_spaces.quantizers import activation_levels, check_activation_bits

SUM_BITS = 16
IMAGE_BITS = 8
NORM_EPSILON = 1e-5

# Vector operations a word of an activation's function; rounding to levels is part of writing. Of
# integer hardware: ReLU and the copy, one; hard-swish as written, an addition, two comparisons and
# two products; GELU by I-BERT's second-order erf (Kim et al., 2101.01321, algorithm 2: sign, size,
# bound, two additions and a product, then sign, 1 + erf, times x); SiLU by its exponential of -|x|
# (algorithm 3: size, quotient, remainder in two, three of the polynomial, shift), then 1 + e, the
# reciprocal, the choice by sign, times x.
FUNCTION_OPS = {"relu": 1, "linear": 1, "hswish": 5, "gelu": 9, "silu": 12}
GATE_OPS = 4  # a hard sigmoid, ReLU6(x + 3) / 6: an addition, two comparisons, a product

Shape = tuple[int, int, int]


class Parameter(NamedTuple):
    """A learned tensor. kind: "kernel" (quantized, decayed), "scale", "shift", or "clip".

    deviation: of a fresh kernel's values; that of He et al. (1502.01852) where it is not given.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    deviation: float | None = None


class Precision(NamedTuple):
    """Bits of the weights and of the activations that enter a product."""

    weights: int
    activations: int

    @property
    def sums(self) -> int:
        return max(SUM_BITS, self.activations)


def halved(size: int, stride: int) -> int:
    """Output height or width under "same" padding."""
    return -(-size // stride)


def rows_of(name: str, op, inputs: Sequence[Shape], *given) -> list[Row]:
    """The rows of one operation, as its `cost` gives them, worked out once for all names: a search
    prices a few operations over and over."""
    try:
        rows = _unnamed_rows(op, tuple(inputs), *given)
    except ValueError:  # said of this step
        return op.cost(name, inputs, *given)
    return [Row._make((name + row[0], *row[1:])) for row in rows]


@functools.lru_cache(maxsize=2**14)
def _unnamed_rows(op, inputs: tuple[Shape, ...], *given) -> tuple[Row, ...]:
    return tuple(op.cost("", inputs, *given))


class Operation:
    """What an operation is unless it says otherwise: its input's shape, and nothing learned.

    drops_channels: whether input channels that are always zero may be left out of its cost and its
    shape, because its outputs read one channel each or have weights for every channel. Of a field
    `filters`, where it has one, filters can be pruned.
    """

    drops_channels = False

    def shape(self, inputs: list[Shape]) -> Shape:
        return inputs[0]

    def parameters(self, inputs: list[Shape]) -> list[Parameter]:
        return []

    def keras_weights(self, name, weights, moments) -> dict[str, list]:
        return {}


def convolved(x, kernel, stride: int):
    """The convolution of x in the precision of the kernel, and back in that of x."""
    import tensorflow as tf

    return tf.cast(tf.nn.conv2d(tf.cast(x, kernel.dtype), kernel, stride, "SAME"), x.dtype)


def normalized(tensor, name: str):
    """The Keras layer of a product's batch normalization."""
    import keras

    return keras.layers.BatchNormalization(epsilon=NORM_EPSILON, name=f"{name}.norm")(tensor)


def normalized_weights(name: str, kernel, weights, moments) -> dict[str, list]:
    """Weights of a product's Keras layer and of its normalization."""
    return {name: [kernel], f"{name}.norm": [weights["gamma"], weights["beta"], *moments]}


@dataclass(frozen=True)
class Convolution(Operation):
    """A dense convolution, "same" padding, and batch normalization.

    kernel: a side, or (height, width); image: whether it reads the 8-bit image rather than
    activations in the chosen bits.
    """

    filters: int
    kernel: int | tuple[int, int]
    stride: int = 1
    image: bool = False
    drops_channels = True

    @property
    def sides(self) -> tuple[int, int]:
        return self.kernel if isinstance(self.kernel, tuple) else (self.kernel, self.kernel)

    def shape(self, inputs: list[Shape]) -> Shape:
        height, width, _ = inputs[0]
        return halved(height, self.stride), halved(width, self.stride), self.filters

    def parameters(self, inputs: list[Shape]) -> list[Parameter]:
        return [
            Parameter("kernel", (*self.sides, inputs[0][2], self.filters), "kernel"),
            Parameter("gamma", (self.filters,), "scale"),
            Parameter("beta", (self.filters,), "shift"),
        ]

    def cost(self, name, inputs, precision: Precision, batch: int) -> list:
        height, width, channels = inputs[0]
        return [
            workload.conv(
                name,
                batch=batch,
                height=height,
                width=width,
                in_channels=channels,
                out_channels=self.filters,
                kernel=self.kernel,
                stride=self.stride,
                padding="same",
                weight_bits=precision.weights,
                activation_bits=IMAGE_BITS if self.image else precision.activations,
                output_bits=precision.sums,
            )
        ]

    def apply(self, tensors, weights, bits, context):
        y = convolved(tensors[0], weights["kernel"], self.stride)
        return context.normalize(y, weights["gamma"], weights["beta"])

    def keras(self, tensors, name, clip, bits):
        import keras

        y = keras.layers.Conv2D(
            self.filters,
            self.kernel,
            self.stride,
            "same",
            use_bias=False,
            kernel_initializer="he_normal",
            name=name,
        )(tensors[0])
        return normalized(y, name)

    def keras_weights(self, name, weights, moments) -> dict[str, list]:
        return normalized_weights(name, weights["kernel"], weights, moments)


@dataclass(frozen=True)
class DepthwiseConvolution(Operation):
    """A convolution of each channel by itself, "same" padding, and batch normalization.

    dilation: the distance between the cells that a window reads; 1 where the stride is not.
    """

    kernel: int
    stride: int = 1
    dilation: int = 1
    drops_channels = True

    def shape(self, inputs: list[Shape]) -> Shape:
        height, width, channels = inputs[0]
        return halved(height, self.stride), halved(width, self.stride), channels

    def parameters(self, inputs: list[Shape]) -> list[Parameter]:
        channels = inputs[0][2]
        return [
            Parameter("kernel", (self.kernel, self.kernel, 1, channels), "kernel"),
            Parameter("gamma", (channels,), "scale"),
            Parameter("beta", (channels,), "shift"),
        ]

    def cost(self, name, inputs, precision: Precision, batch: int) -> list:
        height, width, channels = inputs[0]
        return [
            workload.depthwise(
                name,
                batch=batch,
                height=height,
                width=width,
                channels=channels,
                kernel=self.kernel,
                stride=self.stride,
                dilation=self.dilation,
                padding="same",
                weight_bits=precision.weights,
                activation_bits=precision.activations,
                output_bits=precision.sums,
            )
        ]

    def apply(self, tensors, weights, bits, context):
        import tensorflow as tf

        # so few products an element that 16 bits would save less than the casts cost
        kernel = tf.transpose(tf.cast(weights["kernel"], tensors[0].dtype), [0, 1, 3, 2])
        with faster_gradients():
            y = tf.nn.depthwise_conv2d(
                tensors[0],
                kernel,
                [1, self.stride, self.stride, 1],
                "SAME",
                # by copies into phases: the kernel's own dilation has wrong gradients on CPUs
                dilations=[self.dilation, self.dilation],
            )
        return context.normalize(y, weights["gamma"], weights["beta"])

    def keras(self, tensors, name, clip, bits):
        import keras

        y = keras.layers.DepthwiseConv2D(
            self.kernel,
            self.stride,
            "same",
            dilation_rate=self.dilation,
            use_bias=False,
            depthwise_initializer="he_normal",
            name=name,
        )(tensors[0])
        return normalized(y, name)

    def keras_weights(self, name, weights, moments) -> dict[str, list]:
        return normalized_weights(name, weights["kernel"].swapaxes(2, 3), weights, moments)


@dataclass(frozen=True)
class LowRankConvolution(Operation):
    """A convolution to `rank` channels and a 1x1 one to the filters, then batch normalization.

    A kernel of rank `rank`, [k·k·channels, filters], in two factors (Zhang et al., 1505.06798,
    section 3.1). Nothing rounds what lies between them: the second reads sums. Raises ValueError
    for a rank below 1.
    """

    filters: int
    kernel: int
    rank: int
    stride: int = 1
    drops_channels = True

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"the rank must be at least 1, got {self.rank}; choose a larger share")

    @property
    def _down(self) -> Convolution:
        return Convolution(self.rank, self.kernel, self.stride)

    @property
    def _up(self) -> Convolution:
        return Convolution(self.filters, 1)

    def shape(self, inputs: list[Shape]) -> Shape:
        return self._up.shape([self._down.shape(inputs)])

    def parameters(self, inputs: list[Shape]) -> list[Parameter]:
        down = (self.kernel, self.kernel, inputs[0][2], self.rank)
        return [
            Parameter("down", down, "kernel"),
            Parameter("up", (1, 1, self.rank, self.filters), "kernel"),
            Parameter("gamma", (self.filters,), "scale"),
            Parameter("beta", (self.filters,), "shift"),
        ]

    def cost(self, name, inputs, precision: Precision, batch: int) -> list:
        between = [self._down.shape(inputs)]
        sums = Precision(precision.weights, precision.sums)
        return [
            *self._down.cost(f"{name}.down", inputs, precision, batch),
            *self._up.cost(f"{name}.up", between, sums, batch),
        ]

    def apply(self, tensors, weights, bits, context):
        y = convolved(tensors[0], weights["down"], self.stride)
        y = convolved(y, weights["up"], 1)
        return context.normalize(y, weights["gamma"], weights["beta"])

    def keras(self, tensors, name, clip, bits):
        import keras

        start = dict(use_bias=False, kernel_initializer="he_normal")
        y = keras.layers.Conv2D(
            self.rank, self.kernel, self.stride, "same", name=f"{name}.down", **start
        )(tensors[0])
        y = keras.layers.Conv2D(self.filters, 1, name=f"{name}.up", **start)(y)
        return normalized(y, name)

    def keras_weights(self, name, weights, moments) -> dict[str, list]:
        return {
            f"{name}.down": [weights["down"]],
            f"{name}.up": [weights["up"]],
            f"{name}.norm": [weights["gamma"], weights["beta"], *moments],
        }


@dataclass(frozen=True)
class Activation(Operation):
    """A function, of `quantizers.FUNCTIONS`, and the quantization of what the next products read.

    All but ReLU are signed, and have 2 bits or more: `cost` and `keras` raise UnbuildableError.
    """

    function: str = "relu"

    drops_channels = True

    def parameters(self, inputs: list[Shape]) -> list[Parameter]:
        return [Parameter("clip", (), "clip")]

    def cost(self, name, inputs, precision: Precision, batch: int) -> list:
        check_activation_bits(precision.activations, self.function)
        height, width, channels = inputs[0]
        return [
            workload.elementwise(
                name,
                batch=batch,
                elements=height * width * channels,
                n_inputs=1,
                ops_per_element=FUNCTION_OPS[self.function],
                activation_bits=precision.sums,
                output_bits=precision.activations,
            )
        ]

    def apply(self, tensors, weights, bits, context):
        return context.quantize(tensors[0], weights["clip"], bits, self.function)

    def keras(self, tensors, name, clip, bits):
        import keras

        # relu is part of the clipping; `hard_silu` is Keras's word for hard-swish
        layer = {"hswish": "hard_silu"}.get(self.function, self.function)
        if clip is None:
            return keras.layers.Activation(layer, name=name)(tensors[0])
        check_activation_bits(bits, self.function)
        y, least = tensors[0], 0.0
        if self.function != "relu":
            y, least = keras.layers.Activation(layer, name=name)(y), -clip
        levels = float(activation_levels(bits, self.function))
        x = keras.ops.clip(y, least, clip) * (levels / clip)
        # rounded straight through: the model can be trained on, and the sum is exact in float32
        return (x + keras.ops.stop_gradient(keras.ops.round(x) - x)) * (clip / levels)


def pooled(kernel: int, stride: int, name, inputs, precision: Precision, batch: int) -> list:
    """The rows of a "same" pooling of sums."""
    height, width, channels = inputs[0]
    return [
        workload.pool(
            name,
            batch=batch,
            height=height,
            width=width,
            channels=channels,
            kernel=kernel,
            stride=stride,
            padding="same",
            activation_bits=precision.sums,
            output_bits=precision.sums,
        )
    ]


@dataclass(frozen=True)
class AveragePool(Operation):
    """The mean over a window, "same" padding, cells outside the image not counted."""

    kernel: int
    stride: int = 1
    drops_channels = True

    def shape(self, inputs: list[Shape]) -> Shape:
        height, width, channels = inputs[0]
        return halved(height, self.stride), halved(width, self.stride), channels

    def cost(self, name, inputs, precision: Precision, batch: int) -> list:
        return pooled(self.kernel, self.stride, name, inputs, precision, batch)

    def apply(self, tensors, weights, bits, context):
        import tensorflow as tf

        with faster_gradients():
            return tf.nn.avg_pool2d(tensors[0], self.kernel, self.stride, "SAME")

    def keras(self, tensors, name, clip, bits):
        import keras

        return keras.layers.AveragePooling2D(self.kernel, self.stride, "same", name=name)(
            tensors[0]
        )


@dataclass(frozen=True)
class MaxPool(Operation):
    """The largest of a window, "same" padding."""

    kernel: int
    stride: int = 1
    drops_channels = True

    def shape(self, inputs: list[Shape]) -> Shape:
        height, width, channels = inputs[0]
        return halved(height, self.stride), halved(width, self.stride), channels

    def cost(self, name, inputs, precision: Precision, batch: int) -> list:
        return pooled(self.kernel, self.stride, name, inputs, precision, batch)

    def apply(self, tensors, weights, bits, context):
        import tensorflow as tf

        return tf.nn.max_pool2d(tensors[0], self.kernel, self.stride, "SAME")

    def keras(self, tensors, name, clip, bits):
        import keras

        return keras.layers.MaxPooling2D(self.kernel, self.stride, "same", name=name)(tensors[0])


@dataclass(frozen=True)
class Add(Operation):
    """The sum of two or more tensors of one shape."""

    def cost(self, name, inputs, precision: Precision, batch: int) -> list:
        height, width, channels = inputs[0]
        return [
            workload.elementwise(
                name,
                batch=batch,
                elements=height * width * channels,
                n_inputs=len(inputs),
                activation_bits=precision.sums,
                output_bits=precision.sums,
            )
        ]

    def apply(self, tensors, weights, bits, context):
        import tensorflow as tf

        return tf.add_n(tensors)

    def keras(self, tensors, name, clip, bits):
        import keras

        return keras.layers.Add(name=name)(tensors)


@dataclass(frozen=True)
class Concat(Operation):
    """Tensors side by side along the channels; where each is written costs nothing."""

    def shape(self, inputs: list[Shape]) -> Shape:
        height, width, _ = inputs[0]
        return height, width, sum(channels for _, _, channels in inputs)

    def cost(self, name, inputs, precision: Precision, batch: int) -> list:
        return []

    def apply(self, tensors, weights, bits, context):
        import tensorflow as tf

        return tf.concat(tensors, -1)

    def keras(self, tensors, name, clip, bits):
        import keras

        return keras.layers.Concatenate(name=name)(tensors)


@dataclass(frozen=True)
class Gate(Operation):
    """The first tensor times the hard sigmoid of the second, one number a channel (1 x 1 x C).

    The end of squeeze-excite (Hu et al., 1709.01507; hard as in 1905.02244, section 5.3). Both
    tensors are sums, and so is the product: the gate and what it scales are 16-bit words of the
    vector unit, that an `Activation` brings down to the chosen bits for the next product.
    """

    def cost(self, name, inputs, precision: Precision, batch: int) -> list:
        height, width, channels = inputs[0]
        sums = dict(activation_bits=precision.sums, output_bits=precision.sums)
        return [
            workload.elementwise(
                f"{name}.sigmoid",
                batch=batch,
                elements=channels,
                n_inputs=1,
                ops_per_element=GATE_OPS,
                **sums,
            ),
            workload.elementwise(
                name, batch=batch, elements=height * width * channels, n_inputs=1, **sums
            ),
        ]

    def apply(self, tensors, weights, bits, context):
        import tensorflow as tf

        x, logits = tensors
        return x * (tf.nn.relu6(logits + 3.0) * (1 / 6))

    def keras(self, tensors, name, clip, bits):
        import keras

        gate = keras.layers.Activation("hard_sigmoid", name=f"{name}.sigmoid")(tensors[1])
        return keras.layers.Multiply(name=name)([tensors[0], gate])


@dataclass(frozen=True)
class GlobalPool(Operation):
    """The mean over the whole image; its output is 1 x 1.

    sums: whether it reads sums rather than activations in the chosen bits.
    """

    sums: bool = False

    drops_channels = True

    def shape(self, inputs: list[Shape]) -> Shape:
        return 1, 1, inputs[0][2]

    def cost(self, name, inputs, precision: Precision, batch: int) -> list:
        height, width, channels = inputs[0]
        return [
            workload.pool(
                name,
                batch=batch,
                height=height,
                width=width,
                channels=channels,
                kernel=(height, width),
                padding="valid",
                activation_bits=precision.sums if self.sums else precision.activations,
                output_bits=precision.sums,
            )
        ]

    def apply(self, tensors, weights, bits, context):
        import tensorflow as tf

        return tf.reduce_mean(tensors[0], [1, 2], keepdims=True)

    def keras(self, tensors, name, clip, bits):
        import keras

        return keras.layers.GlobalAveragePooling2D(keepdims=True, name=name)(tensors[0])


@dataclass(frozen=True)
class Dense(Operation):
    """A product with every input, and a bias; its output is 1 x 1 x units."""

    units: int
    drops_channels = True

    def shape(self, inputs: list[Shape]) -> Shape:
        return 1, 1, self.units

    def parameters(self, inputs: list[Shape]) -> list[Parameter]:
        height, width, channels = inputs[0]
        return [
            Parameter("kernel", (height * width * channels, self.units), "kernel"),
            Parameter("bias", (self.units,), "shift"),
        ]

    def cost(self, name, inputs, precision: Precision, batch: int) -> list:
        height, width, channels = inputs[0]
        return [
            workload.dense(
                name,
                batch=batch,
                in_features=height * width * channels,
                out_features=self.units,
                bias=True,
                weight_bits=precision.weights,
                activation_bits=precision.activations,
                output_bits=precision.sums,
            )
        ]

    def apply(self, tensors, weights, bits, context):
        import tensorflow as tf

        flat = tf.reshape(tensors[0], [-1, weights["kernel"].shape[0]])
        kernel = weights["kernel"]
        y = tf.cast(tf.matmul(tf.cast(flat, kernel.dtype), kernel), flat.dtype) + weights["bias"]
        return tf.reshape(y, [-1, 1, 1, self.units])

    def keras(self, tensors, name, clip, bits):
        import keras

        flat = keras.layers.Flatten(name=f"{name}.flat")(tensors[0])
        y = keras.layers.Dense(self.units, kernel_initializer="he_normal", name=name)(flat)
        return keras.layers.Reshape((1, 1, self.units), name=f"{name}.map")(y)

    def keras_weights(self, name, weights, moments) -> dict[str, list]:
        return {name: [weights["kernel"], weights["bias"]]}


# name -> class. The contract test runs over this table: the faces of each must agree.
OPS = {
    "convolution": Convolution,
    "low_rank_convolution": LowRankConvolution,
    "depthwise_convolution": DepthwiseConvolution,
    "activation": Activation,
    "average_pool": AveragePool,
    "max_pool": MaxPool,
    "add": Add,
    "concat": Concat,
    "gate": Gate,
    "global_pool": GlobalPool,
    "dense": Dense,
}
