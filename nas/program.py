"""The compiled program of a topology: its training, statistics and scoring; all else an argument.

Every learned tensor of a network lies in one flat vector: kernels first, then normalization
scales, shifts and activation clips, then one quantization step a kernel. Quantizing all weights and
applying the optimizer are then single passes. Bit-widths, learning rates, the order of images
and the data are arguments, so that only another topology, batch or resolution needs a new trace.

TensorFlow is imported with this module, and only workers import it.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from search_spaces.network import Network
from search_spaces.ops import NORM_EPSILON
from search_spaces.quantizers import (
    FULL_BITS,
    initial_clip,
    initial_step,
    mean_magnitude,
    quantize_activations,
    quantize_weights,
)

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
LABEL_SMOOTHING = 0.1
SCORE_BATCH = 250


def session_options():
    """One thread, and no rewriting of the graph, which costs more time than it gains here."""
    options = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=1, inter_op_parallelism_threads=1, device_count={"GPU": 0}
    )
    options.graph_options.rewrite_options.disable_meta_optimizer = True
    return options


class TrainingContext:
    """Normalization by the batch's own statistics."""

    def quantize(self, x, clip, bits, function="relu"):
        return quantize_activations(x, clip, bits, function)

    def normalize(self, y, gamma, beta):
        y, _, _ = tf.compat.v1.nn.fused_batch_norm(y, gamma, beta, epsilon=NORM_EPSILON)
        return y


class StatisticsContext:
    """The same, and what it sees is written down."""

    def __init__(self):
        self.means, self.variances, self.activations = [], [], []

    def quantize(self, x, clip, bits, function="relu"):
        self.activations.append(mean_magnitude(x, function))
        return quantize_activations(x, clip, bits, function)

    def normalize(self, y, gamma, beta):
        y, mean, variance = tf.compat.v1.nn.fused_batch_norm(y, gamma, beta, epsilon=NORM_EPSILON)
        self.means.append(mean)
        self.variances.append(variance)
        return y


class FixedContext:
    """Normalization by given statistics."""

    def __init__(self, means, variances):
        self.moments = iter(zip(means, variances, strict=True))

    def quantize(self, x, clip, bits, function="relu"):
        return quantize_activations(x, clip, bits, function)

    def normalize(self, y, gamma, beta):
        mean, variance = next(self.moments)
        y, _, _ = tf.compat.v1.nn.fused_batch_norm(
            y, gamma, beta, mean, variance, epsilon=NORM_EPSILON, is_training=False
        )
        return y


class Program:
    """The compiled training, statistics and scoring of one network at one batch size.

    Its variables are one flat float32 vector of everything learned and the optimizer's momentum of
    the same shape. `start` lays fresh values out; nothing else is kept from one use to the next.
    """

    def __init__(self, network: Network, batch: int):
        self.network, self.batch = network, batch
        kernels = [p for p in network.places if p.parameter.kind == "kernel"]
        others = [p for p in network.places if p.parameter.kind != "kernel"]
        self.places = kernels + others
        self.kernels = kernels
        self.sizes = [int(np.prod(p.parameter.shape)) for p in self.places]
        self.n_kernel_weights = sum(self.sizes[: len(kernels)])
        self.channels = [
            size
            for place, size in zip(self.places, self.sizes, strict=True)
            if place.parameter.kind == "scale"
        ]
        n = sum(self.sizes) + len(kernels)
        height, width, channels = network.image
        images = tf.TensorSpec([None, height, width, channels], tf.float32)
        labels = tf.TensorSpec([None], tf.int32)
        bits = tf.TensorSpec([len(network.groups)], tf.int32)
        rates = moments = vector = tf.TensorSpec([None], tf.float32)

        def order(size):
            return tf.TensorSpec([None, size], tf.int32)

        # A graph and a session of its own: closing it frees all that was compiled, where
        # tf.function keeps some 30 MB a topology for the life of the process.
        graph = tf.Graph()
        self.session = tf.compat.v1.Session(graph=graph, config=session_options())
        with graph.as_default():
            self.values = tf.Variable(tf.zeros(n), trainable=False)
            self.momentum = tf.Variable(tf.zeros(n), trainable=False)
            self.train = self._compiled(
                self._train, images, labels, order(batch), rates, bits, bits
            )
            self.statistics = self._compiled(
                self._statistics, images, order(SCORE_BATCH), bits, bits
            )
            self.score = self._compiled(
                self._score, images, labels, order(SCORE_BATCH), bits, bits, moments, moments
            )
            self.set_values = self._compiled(self._set_values, vector)
        graph.finalize()

    def _compiled(self, function, *signature: tf.TensorSpec):
        """`function` built into the graph; calling it runs the session on NumPy arrays."""
        inputs = [tf.compat.v1.placeholder(spec.dtype, spec.shape) for spec in signature]
        outputs = function(*inputs)

        def run(*arrays):
            return self.session.run(outputs, dict(zip(inputs, arrays, strict=True)))

        return run

    def get_values(self) -> np.ndarray:
        return self.session.run(self.values)

    def close(self) -> None:
        self.session.close()

    # -- the flat vector -------------------------------------------------------------------------

    def weights(self, values, weight_bits):
        """Per step a dictionary of its tensors, kernels quantized."""
        kernels, rest, steps = tf.split(
            values, [self.n_kernel_weights, -1, len(self.kernels)], num=3
        )
        sizes = self.sizes[: len(self.kernels)]
        owner = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        groups = np.array([p.group for p in self.kernels], np.int32)
        quantized = quantize_weights(
            kernels, tf.abs(steps) + 1e-8, tf.gather(weight_bits, groups), owner, sizes
        )
        pieces = tf.split(quantized, sizes) + tf.split(rest, self.sizes[len(sizes) :])
        weights: list[dict] = [{} for _ in self.network.steps]
        for place, piece in zip(self.places, pieces, strict=True):
            tensor = tf.reshape(piece, place.parameter.shape)
            if place.parameter.kind == "clip":
                tensor = tf.abs(tensor) + 1e-6
            weights[place.step][place.parameter.name] = tensor
        return weights

    def start(self, seed: int, weight_bits, activation_bits, images) -> None:
        """Fresh weights of `seed` (He et al., 1502.01852), first steps and clips for these bits.

        images: float [at least SCORE_BATCH, h, w, c], from which the clips take their range.
        """
        rng = np.random.default_rng(seed)
        pieces, steps = [], []
        for place in self.places:
            kind, shape = place.parameter.kind, place.parameter.shape
            if kind == "kernel":
                fan_in = int(np.prod(shape[:-1]))
                kernel = rng.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)
                steps.append(initial_step(kernel, int(weight_bits[place.group])))
                pieces.append(kernel.ravel())
            else:
                fill = 0.0 if kind == "shift" else 1.0
                pieces.append(np.full(int(np.prod(shape)), fill, np.float32))
        values = np.concatenate([*pieces, np.array(steps, np.float32)])
        self.set_values(values)
        full = np.full(len(self.network.groups), FULL_BITS, np.int32)
        first = np.arange(SCORE_BATCH, dtype=np.int32)[None]
        _, _, activations = self.statistics(images, first, weight_bits, full)
        clips = [p for p in self.network.places if p.parameter.kind == "clip"]
        if clips:
            bits = np.asarray(activation_bits)[[p.group for p in clips]]
            starts = self.n_kernel_weights + np.cumsum([0, *self.sizes[len(self.kernels) :]])
            at = [
                starts[i]
                for i, p in enumerate(self.places[len(self.kernels) :])
                if p.parameter.kind == "clip"
            ]
            values[at] = initial_clip(activations, bits)
            self.set_values(values)

    # -- built into the graph ---------------------------------------------------------------------

    def _set_values(self, values):
        """Lay `values` out and forget the momentum."""
        return [self.values.assign(values).op, self.momentum.assign(tf.zeros_like(values)).op]

    def _train(self, images, labels, order, rates, weight_bits, activation_bits):
        """One pass over `order` [steps, batch]; mean loss and share of right answers."""
        n_steps, n = tf.shape(order)[0], self.n_kernel_weights

        def step(i, loss_sum, right_sum):
            rows = order[i]
            x, y = tf.gather(images, rows), tf.gather(labels, rows)
            values = self.values.read_value()
            weights = self.weights(values, weight_bits)
            scores = self.network.apply(x, weights, activation_bits, TrainingContext())
            n_classes = scores.shape[-1]
            off = LABEL_SMOOTHING / n_classes
            target = tf.one_hot(y, n_classes, 1 - LABEL_SMOOTHING + off, off)
            loss = tf.reduce_mean(
                tf.nn.softmax_cross_entropy_with_logits(labels=target, logits=scores)
            )
            (gradient,) = tf.gradients(loss, values)
            decayed = gradient[:n] + WEIGHT_DECAY * values[:n]
            update = tf.raw_ops.ResourceApplyMomentum(
                var=self.values.handle,
                accum=self.momentum.handle,
                lr=rates[i],
                grad=tf.concat([decayed, gradient[n:]], 0),
                momentum=MOMENTUM,
                use_nesterov=True,
            )
            right = tf.reduce_mean(
                tf.cast(tf.equal(tf.argmax(scores, -1, tf.int32), y), tf.float32)
            )
            with tf.control_dependencies([update]):
                return i + 1, loss_sum + loss, right_sum + right

        _, loss, right = tf.while_loop(
            lambda i, *_: i < n_steps, step, [0, 0.0, 0.0], parallel_iterations=1
        )
        return loss / tf.cast(n_steps, tf.float32), right / tf.cast(n_steps, tf.float32)

    def _statistics(self, images, order, weight_bits, activation_bits):
        """Means and variances of every normalization over `order`, end to end, and the mean
        size of what every activation gives."""
        n_batches = tf.shape(order)[0]
        weights = self.weights(self.values.read_value(), weight_bits)

        def batch(i, means, squares, activations):
            context = StatisticsContext()
            self.network.apply(tf.gather(images, order[i]), weights, activation_bits, context)
            mean = tf.concat(context.means, 0)
            square = tf.concat(context.variances, 0) + mean**2
            return (
                i + 1,
                means + mean,
                squares + square,
                activations + tf.stack(context.activations),
            )

        zero = tf.zeros(sum(self.channels))
        n_clips = sum(place.parameter.kind == "clip" for place in self.places)
        _, means, squares, activations = tf.while_loop(
            lambda i, *_: i < n_batches, batch, [0, zero, zero, tf.zeros(n_clips)]
        )
        n = tf.cast(n_batches, tf.float32)
        return means / n, squares / n - (means / n) ** 2, activations / n

    def _score(self, images, labels, order, weight_bits, activation_bits, means, variances):
        """Right answers and summed cross-entropy over `order`, where -1 stands for no image."""
        n_batches = tf.shape(order)[0]
        weights = self.weights(self.values.read_value(), weight_bits)
        means, variances = tf.split(means, self.channels), tf.split(variances, self.channels)

        def batch(i, right, loss):
            rows = tf.maximum(order[i], 0)
            there = tf.cast(order[i] >= 0, tf.float32)
            y = tf.gather(labels, rows)
            scores = self.network.apply(
                tf.gather(images, rows), weights, activation_bits, FixedContext(means, variances)
            )
            hits = tf.cast(tf.equal(tf.argmax(scores, -1, tf.int32), y), tf.float32)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, scores)
            return i + 1, right + tf.reduce_sum(there * hits), loss + tf.reduce_sum(there * losses)

        _, right, loss = tf.while_loop(lambda i, *_: i < n_batches, batch, [0, 0.0, 0.0])
        return right, loss
