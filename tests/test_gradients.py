"""The faster gradients are TensorFlow's own, to rounding."""

import numpy as np
import pytest
import tensorflow as tf

from search_spaces.gradients import faster_gradients, spread


def depthwise(stride=1, dilation=1, padding="SAME"):
    return lambda x, kernel: tf.nn.depthwise_conv2d(
        x, kernel, [1, stride, stride, 1], padding, dilations=[dilation, dilation]
    )


def average(kernel, stride, padding="SAME"):
    return lambda x: tf.nn.avg_pool2d(x, kernel, stride, padding)


CASES = [
    *((average(k, s), (6,), ()) for k, s in ((3, 1), (5, 1), (2, 2), (3, 2), (2, 1))),
    (average(3, 1), (16,), ()),  # left to TensorFlow
    (average(3, 1, "VALID"), (6,), ()),
    *((depthwise(), (c,), (k, k, c, 1)) for k in (1, 3, 5, 7) for c in (6, 16)),
    *((depthwise(stride=2), (6,), (k, k, 6, 1)) for k in (3, 5)),
    *((depthwise(dilation=2), (6,), (k, k, 6, 1)) for k in (3, 5)),
    (depthwise(padding="VALID"), (6,), (5, 5, 6, 1)),
]


@pytest.mark.parametrize(("function", "channels", "kernel"), CASES)
def test_gradients_equal_those_of_tensorflow(function, channels, kernel):
    rng = np.random.default_rng(0)
    shapes = [(3, 9, 10, *channels), *([kernel] if kernel else [])]
    arrays = [rng.normal(0, 1, shape).astype(np.float32) for shape in shapes]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tensors = [tf.constant(array) for array in arrays]
        plain = function(*tensors)
        with faster_gradients():
            fast = function(*tensors)
        upstream = rng.normal(0, 1, plain.shape).astype(np.float32)
        both = session.run([tf.gradients(y, tensors, upstream) for y in (plain, fast)])
    for expected, found in zip(*both, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_spread_sums_over_what_each_value_was_spread_to():
    values, owner = np.float32([1, 2, 3]), np.int32([0, 0, 1, 2, 2, 2])
    upstream = np.float32([1, 2, 3, 4, 5, 6])
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        given = tf.constant(values)
        y = spread(given, owner)
        found, gradient = session.run([y, tf.gradients(y, given, upstream)[0]])
    np.testing.assert_array_equal(found, values[owner])
    np.testing.assert_array_equal(gradient, [3, 3, 15])
