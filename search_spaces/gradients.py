"""Gradients that TensorFlow computes slowly on a CPU, by faster operations.

`with faster_gradients():` around an operation's functional TensorFlow gives it these gradients, by
name and in place of TensorFlow's own: `tf.custom_gradient` would keep a closure for every use.
"""

from __future__ import annotations

from functools import cache

import numpy as np

ONEDNN_CHANNELS = 16  # TensorFlow's pooling gradient is vectorized over whole blocks of so many


def faster_gradients():
    """A context in which poolings, depthwise convolutions and `spread` take the gradients below."""
    import tensorflow as tf

    return tf.compat.v1.get_default_graph().gradient_override_map(_registered())


@cache
def _registered() -> dict[str, str]:
    """TensorFlow's operation -> the name of its gradient here."""
    import tensorflow as tf

    tf.RegisterGradient("nas.AvgPool")(average_pool_gradient)
    tf.RegisterGradient("nas.Depthwise")(depthwise_gradient)
    tf.RegisterGradient("nas.Spread")(spread_gradient)
    return {
        "AvgPool": "nas.AvgPool",
        "DepthwiseConv2dNative": "nas.Depthwise",
        "GatherV2": "nas.Spread",
    }


def spread(values, owner):
    """values[owner], where owner, int [n], is sorted and names each of the values [m]."""
    import tensorflow as tf

    with faster_gradients():
        return tf.gather(values, owner)


def spread_gradient(op, dy):
    """The sum over what each value was spread to, in order: three times faster than unordered."""
    import tensorflow as tf

    return tf.math.segment_sum(dy, op.inputs[1]), None, None


def window_sizes(height: int, width: int, kernel: int) -> np.ndarray:
    """Cells of the image under each "same" window of an odd kernel: float32 [1, h, w, 1]."""
    reach = kernel // 2
    sides = []
    for size in (height, width):
        at = np.arange(size)
        sides.append(np.minimum(at + reach, size - 1) - np.maximum(at - reach, 0) + 1)
    return np.outer(*sides).astype(np.float32)[None, :, :, None]


def average_pool_gradient(op, dy):
    """At stride 1 the windows that hold a cell are the cells of its own window: the gradient is
    the average pool of dy / sizes, times sizes."""
    import tensorflow as tf

    x, kernel, strides = op.inputs[0], op.get_attr("ksize"), op.get_attr("strides")
    _, height, width, channels = x.shape
    symmetric = strides[1:3] == [1, 1] and kernel[1] == kernel[2] and kernel[1] % 2 == 1
    if not symmetric or op.get_attr("padding") != b"SAME" or channels % ONEDNN_CHANNELS == 0:
        return tf.raw_ops.AvgPoolGrad(
            orig_input_shape=tf.shape(x),
            grad=dy,
            ksize=kernel,
            strides=strides,
            padding=op.get_attr("padding"),
        )
    sizes = tf.constant(window_sizes(height, width, kernel[1]), dy.dtype)
    return tf.nn.avg_pool2d(dy / sizes, kernel[1], 1, "SAME") * sizes


def depthwise_gradient(op, dy):
    """To the input, a depthwise convolution with the kernel turned round; to the kernel, 3 x 3 taps
    at a time, for which alone TensorFlow is fast."""
    import tensorflow as tf

    x, kernel = op.inputs
    strides, padding = op.get_attr("strides"), op.get_attr("padding")
    height, width = kernel.shape[:2]
    fixed = dict(strides=strides, padding=padding)
    if strides[1:3] != [1, 1] or height != width or height not in (5, 7):
        return (
            tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
                input_sizes=tf.shape(x), filter=kernel, out_backprop=dy, **fixed
            ),
            tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
                input=x, filter_sizes=tf.shape(kernel), out_backprop=dy, **fixed
            ),
        )
    reach = height // 2
    if padding == b"SAME":
        padded, spread = tf.pad(x, [[0, 0], [reach, reach], [reach, reach], [0, 0]]), dy
    else:
        ends = [height - 1, height - 1]
        padded, spread = x, tf.pad(dy, [[0, 0], ends, ends, [0, 0]])
    to_input = tf.raw_ops.DepthwiseConv2dNative(
        input=spread, filter=tf.reverse(kernel, [0, 1]), **fixed
    )
    rows, columns = tf.shape(dy)[1] + 2, tf.shape(dy)[2] + 2
    starts = range(0, height - 2, 2)  # blocks share a row or column of taps

    def block(i, j):
        taps = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
            input=padded[:, i : i + rows, j : j + columns],
            filter_sizes=tf.constant([3, 3, *kernel.shape[2:]]),
            out_backprop=dy,
            strides=strides,
            padding="VALID",
        )
        return taps[int(i > 0) :, int(j > 0) :]

    to_kernel = tf.concat([tf.concat([block(i, j) for j in starts], 1) for i in starts], 0)
    return to_input, to_kernel
