"""Fake and integer quantization, handed to the operations.

Weights follow LSQ (Esser et al., arXiv 1902.08153): signed, a learned step per tensor; or DoReFa
(Zhou et al., arXiv 1606.06160, eq. 9): tanh, divided by its largest magnitude, in odd multiples of
a step. There the paper's range is 1; ours is learned, because not every kernel has a normalization
behind it that would undo it.
Activations follow PACT (Choi et al., arXiv 1805.06085): unsigned on [0, clip], the clip learned;
ReLU is part of it, so that a quantized activation costs one pass over memory, as a plain one does.
What may be negative (`FUNCTIONS` but ReLU) is signed on [-clip, clip], as many levels on each side:
2^(b-1) - 1, none of one bit; its clip is learned as PACT's, from what lies beyond either end.
Bit-widths are tensors, so that one compiled program serves every choice of them.

At 32 bits both are finer than float32 resolves: weights have 2^31 levels over four times their
first range, activations a step of 2^-22 on [0, 1024). Training in 32 bits is float training.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from search_spaces.gradients import spread

FULL_BITS = 32
FULL_CLIP = 1024.0  # the range of a 32-bit activation; nothing behind a normalization reaches it
TINY = 1e-12  # what a kernel of zeros is divided by
HEADROOM = 4.0  # a fine weight step spans this many times the first largest weight
# What an activation computes before it is quantized; "linear" is quantization alone.
FUNCTIONS = ("relu", "silu", "gelu", "hswish", "linear")


class UnbuildableError(ValueError):
    """There is no such network; a search records the design as infeasible."""


def weight_levels(bits):
    """(Qn, Qp), the magnitudes of the lowest and the highest integer of a signed weight.

    Works on integers and on arrays; two bits have -2, -1, 0, 1, and one bit -1 and 1. Floats,
    exact below 2^53.
    """
    half = 2.0 ** (np.asarray(bits, np.float64) - 1)
    return half, np.maximum(half - 1, 1)


def initial_step(kernel: np.ndarray, bits: int, method: str = "lsq") -> float:
    """LSQ's first step, 2 mean|w| / sqrt(Qp), or a finer one where the range allows.

    LSQ's rule is meant for few bits: at 16 it would leave steps of a hundredth of a weight. There
    the step that spans `HEADROOM` times the largest weight is smaller, and is taken. One bit has
    mean|w|, the scale nearest to the weights (Rastegari et al., 1603.05279). DoReFa has the step
    that gives its range, largest|tanh w|, back.
    """
    _, top = weight_levels(bits)
    magnitude = np.abs(kernel)
    if method == "dorefa" and bits > 1:
        return float(np.tanh(magnitude.max()) / (2.0**bits - 1))
    if bits == 1:
        return float(magnitude.mean())
    return float(min(2 * magnitude.mean() / np.sqrt(top), HEADROOM * magnitude.max() / top))


def activation_levels(bits, function: str = "relu"):
    """The highest integer of an activation; the lowest is 0 of ReLU and its negative of others.

    Works on integers and on arrays. Floats, exact below 2^53.
    """
    return 2.0 ** (np.asarray(bits, np.float64) - (function != "relu")) - 1


def check_activation_bits(bits: int, function: str) -> None:
    """Raise UnbuildableError where a signed activation would have no level but 0."""
    if function != "relu" and bits < 2:
        raise UnbuildableError(
            f"an activation of {bits} bit is 0 or its clip, but '{function}' has both signs; "
            "choose 2 bits or more, or relu in a family without linear bottlenecks"
        )


def initial_clip(mean_activation, bits):
    """The first clip from the `mean_magnitude` over a batch: LSQ's rule, bounded by the range.

    2 mean sqrt(Qp), at most 12 means (about 4.8 standard deviations of a normal input). Arrays.
    """
    top = 2.0 ** np.minimum(np.asarray(bits, np.float64), 16) - 1
    return np.maximum(mean_activation, 1e-3) * np.minimum(2 * np.sqrt(top), 12.0)


def integer_weights(kernel: np.ndarray, step: float, bits: int, method: str = "lsq") -> np.ndarray:
    """The integers that an accelerator computes with, int64: round(w / step) within [-Qn, Qp]; of
    one bit the signs. DoReFa's are odd, -(2^b - 1) to 2^b - 1: 2 i + 1 of what is stored, i.

    One bit and DoReFa have no 0, but for a weight that is 0: one that is pruned.
    """
    low, top = weight_levels(bits)
    if method == "dorefa":
        import tensorflow as tf

        t = tf.tanh(kernel.astype(np.float32)).numpy()  # NumPy's differs in the last place
        n = np.float32(2.0**bits - 1)
        largest = np.float32(max(np.abs(t).max(), TINY))
        levels = np.rint((t / (2 * largest) + np.float32(0.5)) * n)
        return np.where(kernel == 0, 0, 2 * levels - n).astype(np.int64)
    scaled = kernel.astype(np.float32) / np.float32(abs(step))
    if bits == 1:
        return np.sign(scaled).astype(np.int64)
    return np.rint(np.clip(scaled, -low, top)).astype(np.int64)


def dequantized(kernel: np.ndarray, step: float, bits: int, method: str = "lsq") -> np.ndarray:
    """The values that the integers stand for, float32: what `WEIGHT_QUANTIZERS` computes with."""
    integers = integer_weights(kernel, step, bits, method)
    return integers.astype(np.float32) * np.float32(abs(step))


def integer_activations(
    x: np.ndarray, clip: float, bits: int, function: str = "relu"
) -> np.ndarray:
    """The integers that an accelerator stores for f(x): round(f(x) levels / clip), int64."""
    check_activation_bits(bits, function)
    scale = np.float32(activation_levels(bits, function)) / np.float32(clip)
    y = np.asarray(activate(x.astype(np.float32), function))
    clipped = np.clip(y, np.float32(0 if function == "relu" else -clip), np.float32(clip))
    return np.rint(clipped * scale).astype(np.int64)


def activate(x, function: str):
    """f(x) in TensorFlow's plain operations (tf.nn.silu would keep a closure for every use).

    GELU is the exact one, x Phi(x) (Hendrycks & Gimpel, 1606.08415); hard-swish is
    x ReLU6(x + 3) / 6 (Howard et al., 1905.02244, section 5.2).
    """
    import tensorflow as tf

    if function == "relu":
        return tf.nn.relu(x)
    if function == "silu":
        return x * tf.sigmoid(x)
    if function == "gelu":
        return x * (0.5 + 0.5 * tf.math.erf(x * 0.5**0.5))
    if function == "hswish":
        return x * (tf.nn.relu6(x + 3.0) * (1 / 6))
    if function == "linear":
        return x
    raise ValueError(f"unknown activation '{function}'; known: {', '.join(FUNCTIONS)}")


def mean_magnitude(x, function: str):
    """The mean of |f(x)|, from which the first clip is taken; half of it where f is linear.

    |f(x)| + |f(-x)| is |x| for ReLU, SiLU, GELU and hard-swish, so that one rule fits all inputs
    that are symmetric, and the half is what fits a linear one.
    """
    import tensorflow as tf

    mean = tf.reduce_mean(tf.abs(activate(x, function)))
    return 0.5 * mean if function == "linear" else mean


def activation_clip(clip, bits):
    """The clip in force, a tensor: the learned one, or the fixed range of 32 bits.

    A clip that has grown beyond all reason, or to NaN, is the fixed range too, so that a training
    that diverges shows in its loss and not in the kernel's refusal.
    """
    import tensorflow as tf

    learned = tf.logical_and(bits < FULL_BITS, clip < FULL_CLIP)
    return tf.where(learned, clip, tf.constant(FULL_CLIP, tf.float32))


@cache
def _register_pact() -> str:
    """The name under which TensorFlow knows the gradient of `quantize_activations`."""
    import tensorflow as tf

    @tf.RegisterGradient("nas.PACT")
    def gradient(op, dy):
        x, low, top, _ = op.inputs
        # num_bits only rounds the range, by less than float32 resolves
        back = tf.raw_ops.FakeQuantWithMinMaxVarsGradient(
            gradients=dy,
            inputs=x,
            min=low,
            max=top,
            num_bits=16,
            narrow_range=op.get_attr("narrow_range"),
        )
        # low is a constant 0 or the negative clip, through whose negation its part comes
        return back.backprops_wrt_input, back.backprop_wrt_min, back.backprop_wrt_max, None

    return "nas.PACT"


def quantize_activations(x, clip, bits, function: str = "relu"):
    """f(x), fake-quantized: ReLU to `bits` unsigned bits on [0, clip], in one fused kernel; others
    to signed ones on [-clip, clip].

    x: float tensor; clip: float scalar tensor > 0, as `activation_clip` gives it; bits: int32
    scalar tensor, 1 to 32, and 2 at least where signed. Gradients, in a graph: straight through
    inside the range, and to the clip the sum over what lies above it (PACT eq. 3), less the sum
    over what lies below -clip. They override those of the kernel:
    tf.custom_gradient would register, and keep, a closure for every use.
    """
    import tensorflow as tf

    signed = function != "relu"  # which the kernel itself computes: it clips at 0
    graph = tf.compat.v1.get_default_graph()
    with graph.gradient_override_map({"QuantizeAndDequantizeV3": _register_pact()}):
        return tf.raw_ops.QuantizeAndDequantizeV3(
            input=activate(x, function) if signed else x,
            input_min=-clip if signed else 0.0,
            input_max=clip,
            num_bits=bits,
            signed_input=signed,
            range_given=True,
            narrow_range=signed,
            axis=-1,
        )


def quantize_weights(flat, steps, bits, owner, sizes):
    """LSQ over every weight tensor of a network at once, laid end to end.

    flat: float [n]; steps: float [tensors] > 0, learned; bits: int32 [tensors];
    owner: int32 [n], the tensor that each weight belongs to; sizes: how many weights each has.
    Rounding passes gradients straight through, from which LSQ's eq. 3 follows for the steps; they
    are scaled by 1/sqrt(size Qp) (section 2.2). One bit is the sign times the step, the gradient
    straight through everywhere.
    """
    import tensorflow as tf

    half = tf.pow(2.0, tf.cast(bits - 1, tf.float32))
    low, top = -half, tf.maximum(half - 1.0, 1.0)
    scale = tf.math.rsqrt(tf.constant(sizes, tf.float32) * top)
    step = spread(steps * scale + tf.stop_gradient(steps - steps * scale), owner)
    low = spread(low, owner)
    within = tf.minimum(tf.maximum(flat / step, low), tf.maximum(-low - 1.0, 1.0))
    rounded = (within + tf.stop_gradient(tf.round(within) - within)) * step
    signs = tf.sign(flat) * step + (flat - tf.stop_gradient(flat))
    return tf.where(low > -2.0, signs, rounded)


def quantize_weights_dorefa(flat, steps, bits, owner, sizes):
    """DoReFa over every weight tensor of a network at once; arguments as of `quantize_weights`.

    Rounding passes gradients straight through, the tanh and its largest magnitude as they are. A
    step's gradient is divided by (2^b - 1)^2 sqrt(size), so that the range, (2^b - 1) steps, moves
    at the pace of a weight.
    """
    import tensorflow as tf

    n = tf.pow(2.0, tf.cast(bits, tf.float32)) - 1.0
    scale = tf.math.rsqrt(tf.constant(sizes, tf.float32)) / n**2
    t = tf.tanh(flat)
    largest = tf.maximum(tf.math.segment_max(tf.abs(t), owner), TINY)
    step = spread(steps * scale + tf.stop_gradient(steps - steps * scale), owner)
    n, largest = spread(n, owner), spread(largest, owner)
    within = (t / (2.0 * largest) + 0.5) * n
    levels = within + tf.stop_gradient(tf.round(within) - within)
    return tf.where(tf.equal(flat, 0.0), 0.0 * flat, (2.0 * levels - n) * step)


# name -> function: of the learned weights, as `quantize_weights`
WEIGHT_QUANTIZERS = {"lsq": quantize_weights, "dorefa": quantize_weights_dorefa}
