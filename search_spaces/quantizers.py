"""Fake and integer quantization, handed to the operations.

Weights follow LSQ (Esser et al., arXiv 1902.08153): signed, a learned step per tensor.
Activations follow PACT (Choi et al., arXiv 1805.06085): unsigned on [0, clip], the clip learned;
ReLU is part of it, so that a quantized activation costs one pass over memory, as a plain one does.
Bit-widths are tensors, so that one compiled program serves every choice of them.

At 32 bits both are finer than float32 resolves: weights have 2^31 levels over four times their
first range, activations a step of 2^-22 on [0, 1024). Training in 32 bits is float training.
"""

from __future__ import annotations

import numpy as np

FULL_BITS = 32
FULL_CLIP = 1024.0  # the range of a 32-bit activation; nothing behind a normalization reaches it
HEADROOM = 4.0  # a fine weight step spans this many times the first largest weight


def weight_levels(bits):
    """(Qn, Qp), the magnitudes of the lowest and the highest integer of a signed weight.

    Works on integers and on arrays; two bits have -2, -1, 0, 1. Floats, exact below 2^53.
    """
    half = 2.0 ** (np.asarray(bits, np.float64) - 1)
    return half, half - 1


def initial_step(kernel: np.ndarray, bits: int) -> float:
    """LSQ's first step, 2 mean|w| / sqrt(Qp), or a finer one where the range allows.

    LSQ's rule is meant for few bits: at 16 it would leave steps of a hundredth of a weight. There
    the step that spans `HEADROOM` times the largest weight is smaller, and is taken.
    """
    _, top = weight_levels(bits)
    magnitude = np.abs(kernel)
    return float(min(2 * magnitude.mean() / np.sqrt(top), HEADROOM * magnitude.max() / top))


def initial_clip(mean_activation, bits):
    """PACT's first clip from the mean of ReLU(x) over a batch: LSQ's rule, bounded by the range.

    2 mean sqrt(Qp), at most 12 means (about 4.8 standard deviations of a normal input). Arrays.
    """
    top = 2.0 ** np.minimum(np.asarray(bits, np.float64), 16) - 1
    return np.maximum(mean_activation, 1e-3) * np.minimum(2 * np.sqrt(top), 12.0)


def integer_weights(kernel: np.ndarray, step: float, bits: int) -> np.ndarray:
    """The integers that an accelerator stores: round(w / step) within [-Qn, Qp], int64."""
    low, top = weight_levels(bits)
    scaled = kernel.astype(np.float32) / np.float32(abs(step))
    return np.rint(np.clip(scaled, -low, top)).astype(np.int64)


def dequantized(kernel: np.ndarray, step: float, bits: int) -> np.ndarray:
    """The values that the integers stand for, float32: what `quantize_weights` computes with."""
    return integer_weights(kernel, step, bits).astype(np.float32) * np.float32(abs(step))


def integer_activations(x: np.ndarray, clip: float, bits: int) -> np.ndarray:
    """The integers that an accelerator stores for ReLU(x): round(x (2^b - 1) / clip), int64."""
    scale = np.float32(2**bits - 1) / np.float32(clip)
    clipped = np.clip(x.astype(np.float32), np.float32(0), np.float32(clip))
    return np.rint(clipped * scale).astype(np.int64)


def activation_clip(clip, bits):
    """The clip in force, a tensor: the learned one, or the fixed range of 32 bits."""
    import tensorflow as tf

    return tf.where(bits >= FULL_BITS, tf.constant(FULL_CLIP, clip.dtype), clip)


def quantize_activations(x, clip, bits):
    """ReLU and fake quantization to `bits` unsigned bits on [0, clip], in one fused kernel.

    x: float tensor; clip: float scalar tensor > 0, learned; bits: int32 scalar tensor, 1 to 32.
    Gradients: straight through inside the range, and to the clip the sum over what lies above it
    (PACT eq. 3), scaled by 1/sqrt(elements) as LSQ scales its own.
    """
    import tensorflow as tf

    @tf.custom_gradient
    def quantize(x, top):
        y = tf.raw_ops.QuantizeAndDequantizeV3(
            input=x,
            input_min=0.0,
            input_max=top,
            num_bits=bits,
            signed_input=False,
            range_given=True,
            narrow_range=False,
            axis=-1,
        )

        def gradient(dy):
            # num_bits only rounds the range, by less than float32 resolves
            back = tf.raw_ops.FakeQuantWithMinMaxVarsGradient(
                gradients=dy, inputs=x, min=0.0, max=top, num_bits=16
            )
            size = float(np.prod(x.shape.as_list()))
            return back.backprops_wrt_input, back.backprop_wrt_max / size**0.5

        return y, gradient

    return quantize(x, activation_clip(clip, bits))


def quantize_weights(flat, steps, bits, owner, sizes):
    """LSQ over every weight tensor of a network at once, laid end to end.

    flat: float [n]; steps: float [tensors] > 0, learned; bits: int32 [tensors];
    owner: int32 [n], the tensor that each weight belongs to; sizes: how many weights each has.
    Gradients: LSQ eq. 3, and eq. 5 with the scale 1/sqrt(size Qp).
    """
    import tensorflow as tf

    half = tf.pow(2.0, tf.cast(bits - 1, tf.float32))
    low, top = -half, half - 1.0

    @tf.custom_gradient
    def quantize(flat, steps):
        step = tf.gather(steps, owner)
        scaled = flat / step
        lowest, highest = tf.gather(low, owner), tf.gather(top, owner)
        rounded = tf.round(tf.clip_by_value(scaled, lowest, highest))

        def gradient(dy):
            inside = tf.logical_and(scaled >= lowest, scaled <= highest)
            to_step = dy * tf.where(inside, rounded - scaled, rounded)
            scale = tf.math.rsqrt(tf.constant(sizes, tf.float32) * top)
            return (
                tf.where(inside, dy, tf.zeros_like(dy)),
                tf.math.segment_sum(to_step, owner) * scale,
            )

        return rounded * step, gradient

    return quantize(flat, steps)
