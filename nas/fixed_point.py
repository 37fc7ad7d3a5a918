"""Post-training fixed point: after a training in float, which bits are the fraction.

Each kernel and each activation gets the integer bits that its values need, and its remaining bits
are the fraction: steps are powers of two, so that rescaling is a shift. What a tensor needs is what
leaves the least squared error among its values, weights or activations of calibration images: at 8
bits that is the range observed, at 4 it leaves out rare large values (Banner et al., 1810.05723).
The result is written as steps and clips, and runs as what quantization-aware training leaves.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from nas.layout import Layout
from nas.scoring import SCORE_BATCH, StatisticsContext
from search_spaces.network import Network
from search_spaces.quantizers import (
    FULL_BITS,
    UnbuildableError,
    activate,
    activation_levels,
    dequantized,
    quantize_activations,
    weight_levels,
)

CALIBRATION_IMAGES = SCORE_BATCH
INTEGER_BITS = np.arange(-6, 9)  # candidates: ranges of 1/64 to 256


class CalibrationContext(StatisticsContext):
    """A float network whose activations say which range would round them best."""

    def __init__(self):
        super().__init__(quantized=False)
        self.clips: list[float] = []

    def quantize(self, x, clip, bits, function="relu"):
        y = activate(x, function)
        if bits < FULL_BITS:
            clips = activation_clips(int(bits), function)
            errors = [
                tf.reduce_sum(tf.square(quantize_activations(x, c, bits, function) - y)).numpy()
                for c in clips
            ]
            clip = clips[int(np.argmin(errors))]
        self.clips.append(float(clip))
        return y


def activation_clips(bits: int, function: str) -> np.ndarray:
    """The clip of every number of integer bits: the highest level times its step, float32."""
    levels = activation_levels(bits, function)
    return (levels * 2.0 ** (INTEGER_BITS - np.log2(levels + 1))).astype(np.float32)


def weight_step(kernel: np.ndarray, bits: int) -> float:
    """The power of two that leaves the least squared error of a kernel in signed integers.

    Raises UnbuildableError for 1 bit, which would be the sign alone: -1 and 0.
    """
    if bits < 2:
        raise UnbuildableError(
            "fixed point needs a bit for the sign and one for the value; got weights of 1 bit: "
            "choose 2 or more, or bits.method lsq or dorefa"
        )
    steps = 2.0**INTEGER_BITS / weight_levels(bits)[0]
    errors = [np.square(dequantized(kernel, step, bits) - kernel).sum() for step in steps]
    return float(steps[int(np.argmin(errors))])


def to_fixed_point(
    network: Network, values: np.ndarray, weight_bits, activation_bits, images: np.ndarray
) -> np.ndarray:
    """`values` [n] of a float training with the steps and clips of fixed point; what has 32 bits
    keeps its own, as fine as floats.

    weight_bits, activation_bits: [groups]. images: for calibration, as in training.
    """
    layout = Layout(network)
    kernels, _, _, _ = layout.split(values)
    steps, _ = layout.steps_and_clips(values)
    for i, kernel in enumerate(layout.pieces(kernels)):
        bits = int(weight_bits[layout.kernels[i].group])
        if bits < FULL_BITS:
            steps[i] = weight_step(kernel, bits)
    context = CalibrationContext()
    network.apply(images, layout.weights(values), np.int32(activation_bits), context)
    fixed = values.copy()
    layout.set_ranges(fixed, steps, np.array(context.clips))
    return fixed
