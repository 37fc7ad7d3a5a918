"""The compiled training step of a topology; all else is an argument or a variable.

One graph and one session a program: closing it frees all that was compiled, where `tf.function`
keeps some 30 MB a topology for the life of the process. Batch sizes, bit-widths, learning rates,
data and masks are arguments and variables, so that only another topology, resolution or set of
`Switches` needs a new graph. A step is one call of the session: its overhead, 0.1 ms, is what a
loop inside the graph would save, and building such a loop costs more.

TensorFlow is imported with this module, and only workers import it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from nas.layout import MIN_CLIP, MIN_STEP, Layout
from search_spaces.gradients import spread
from search_spaces.network import Network
from search_spaces.ops import NORM_EPSILON
from search_spaces.quantizers import (
    WEIGHT_QUANTIZERS,
    activate,
    activation_clip,
    quantize_activations,
)
from search_spaces.training import REFERENCE_BATCH

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
LABEL_SMOOTHING = 0.1
# You et al., 1708.03888, take 0.001 at rates of their own; of 0.001, 0.005, 0.02 and 0.05 this
# trains best at batch 4,096 (CIFAR-10, 45,000 images at 16 x 16, four epochs, linear rule).
LARS_TRUST = 0.005
ADAM_BETAS, ADAM_EPSILON = (0.9, 0.999), 1e-7
OPTIMIZERS = ("momentum", "lars", "adam")
COMPUTE = {"float32": tf.float32, "bfloat16": tf.bfloat16, "float16": tf.float16}


@dataclass(frozen=True)
class Switches:
    """What is built into the graph: each costs nothing where it is off.

    quantizer: of the weights, of `quantizers.WEIGHT_QUANTIZERS`, with PACT for activations; "" is
    float training. precision: what the products of layers compute in, forward and backward, of
    COMPUTE; weights, their update, activations and normalization stay float32. optimizer: of
    OPTIMIZERS. accumulated: gradients are summed over several calls before they are applied.
    masked: values outside a mask stay 0. tied: weights of one cluster of a kernel move together.
    distilled: a teacher's class scores are a second target. sampled: a language model's loss is
    over some words of the vocabulary.
    """

    quantizer: str = "lsq"
    precision: str = "float32"
    optimizer: str = "momentum"
    accumulated: bool = False
    masked: bool = False
    tied: bool = False
    distilled: bool = False
    sampled: bool = False


def session_options():
    """As many threads as TensorFlow's own variable says, for workers one; and no rewriting of the
    graph, which costs more time than it gains here."""
    options = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=int(os.environ.get("TF_NUM_INTRAOP_THREADS", "1")),
        inter_op_parallelism_threads=1,
        device_count={"GPU": 0},
    )
    options.graph_options.rewrite_options.disable_meta_optimizer = True
    return options


def peak_rate(precision: str, size: int = 1024, repeats: int = 8) -> float:
    """The most floating-point operations a second that this process reaches: of a matrix product
    of `size` in the precision, the best of `repeats`."""
    matrix = tf.cast(tf.random.stateless_normal([size, size], [0, 0]), COMPUTE[precision])
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        tf.matmul(matrix, matrix).numpy()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


class TrainingContext:
    """Normalization by the batch's own statistics."""

    def __init__(self, quantized: bool):
        self.quantized = quantized
        self.none = tf.constant([], tf.float32)

    def quantize(self, x, clip, bits, function="relu"):
        if not self.quantized:
            return activate(x, function)
        return quantize_activations(x, clip, bits, function)

    def normalize(self, y, gamma, beta):
        return tf.raw_ops.FusedBatchNormV3(
            x=y,
            scale=gamma,
            offset=beta,
            mean=self.none,
            variance=self.none,
            epsilon=NORM_EPSILON,
        ).y


class Program:
    """The compiled training step of one network under some switches.

    Its variables are one flat float32 vector of everything learned (`layout`) and what the
    optimizer keeps, of the same shape. `start` lays fresh values out; nothing else is kept from
    one use to the next.
    """

    weight_decay = WEIGHT_DECAY  # of kernels

    def __init__(self, network: Network, switches: Switches):
        self.network, self.switches, self.layout = network, switches, Layout(network)
        graph = tf.Graph()
        self.session = tf.compat.v1.Session(graph=graph, config=session_options())
        with graph.as_default():
            self._build()
            self.variables = tf.compat.v1.global_variables()
        graph.finalize()

    def close(self) -> None:
        self.session.close()

    # -- what a program does ----------------------------------------------------------------------

    def start(self, values: np.ndarray) -> None:
        """Lay `values` [n] out, forget the optimizer's memory, and let every weight be free."""
        self.n_applied = 0
        self._lay_out(values)
        if self.switches.masked:
            self.set_mask(np.ones(self.layout.n, np.float32))
        if self.switches.tied:  # no weight to another
            self.set_clusters(np.arange(self.layout.n_weights, dtype=np.int32), values)

    def _lay_out(self, values: np.ndarray) -> None:
        self.session.run([self.assign_values, self.clear_slots], {self.given: values})

    def get_values(self) -> np.ndarray:
        """Everything learned: float32 [n]."""
        return self.session.run(self.values)

    def set_values(self, values: np.ndarray) -> None:
        """Replace everything learned; the optimizer goes on."""
        self.session.run(self.assign_values, {self.given: values})

    def state(self) -> dict[str, np.ndarray]:
        """All that `restore` needs to go on from here, between two updates."""
        held = self.session.run(self.variables)
        named = {f"variable{i}": array for i, array in enumerate(held)}
        return {"n_applied": np.array(self.n_applied), **named}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on as the program of the same network and switches that gave `state`."""
        self.n_applied = int(state["n_applied"])
        for i, variable in enumerate(self.variables):
            load = variable.initializer
            self.session.run(load, {load.inputs[1]: state[f"variable{i}"]})

    def set_mask(self, mask: np.ndarray) -> None:
        """Which kernel weights, scales and shifts may differ from 0: float32 [n] of 0 and 1, 1 of
        clips and steps. The others are 0 from now on, and the optimizer forgets them."""
        self.session.run(self.assign_mask, {self.given_mask: mask})

    def set_clusters(self, clusters: np.ndarray, values: np.ndarray) -> None:
        """Let kernel weights move together: int32 [n_weights], cluster numbers from 0, `values` [n]
        being equal within a cluster; the optimizer forgets how they moved apart."""
        self.session.run(self.assign_clusters, {self.given_clusters: clusters})
        self._lay_out(values)

    def step(self, *arguments) -> tuple[float, float]:
        """One update; returns (loss, right answers as a share).

        images float32 [b, h, w, c], labels int32 [b], weight_bits and activation_bits int32
        [groups], rate; distilled: and the teacher's scores [b, classes], temperature, weight.
        """
        return self._step(*arguments, *self._powers())[:2]

    def add_gradient(self, share: float, scale: float, *arguments) -> tuple[float, float, bool]:
        """Add `share` times the gradient over some images to the sum; arguments as of `step` but
        the rate. Returns (loss, right, whether every gradient was finite); where not, the sum is to
        be dropped. scale: what the loss is multiplied by before and divided by after the backward
        pass, so that small gradients survive in 16 bits (Micikevicius et al., 1710.03740)."""
        return self._add(share, scale, *arguments)[:3]

    def apply_gradient(self, rate: float) -> None:
        """Update by the summed gradients, and begin a new sum."""
        self._apply(rate, *self._powers())

    def drop_gradient(self) -> None:
        """Begin a new sum."""
        self.session.run(self.clear_sum)

    def kernel_gradient(self, *arguments) -> np.ndarray:
        """The gradient over some images of what the kernels are after quantization and mask, of the
        masked weights too: float32 [n_weights]; arguments as of `step` but the rate."""
        unscaled = [1.0] if self.switches.accumulated else []
        return self._kernel_gradient(*arguments, *unscaled)

    def _powers(self) -> list[np.float32]:
        """Adam's bias corrections at the coming update."""
        self.n_applied += 1
        if self.switches.optimizer != "adam":
            return []
        return [np.float32(beta**self.n_applied) for beta in ADAM_BETAS]

    # -- the graph --------------------------------------------------------------------------------

    def _build_variables(self) -> None:
        n = self.layout.n
        self.values = tf.Variable(tf.zeros(n), trainable=False)
        self.slots = [
            tf.Variable(tf.zeros(n), trainable=False)
            for _ in range(2 if self.switches.optimizer == "adam" else 1)
        ]
        self.given = tf.compat.v1.placeholder(tf.float32, [n])
        self.assign_values = self.values.assign(self.given).op
        self.clear_slots = [variable.assign(tf.zeros(n)).op for variable in self.slots]

    def _build(self) -> None:
        switches, n = self.switches, self.layout.n
        place = tf.compat.v1.placeholder
        self._build_variables()
        images = place(tf.float32, [None, *self.network.image])
        labels = place(tf.int32, [None])
        bits = [place(tf.int32, [len(self.network.groups)]) for _ in range(2)]
        rate = place(tf.float32, [])
        powers = [place(tf.float32, []) for _ in range(2 * (switches.optimizer == "adam"))]
        teaching = self._teaching() if switches.distilled else []
        data = [images, labels, *bits]
        scale = place(tf.float32, []) if switches.accumulated else None

        values = self.values.read_value()
        if switches.masked:
            self.mask = self._mask()
        loss, right, gradient = self._gradient_of(values, data, teaching, scale)
        call = self.session.make_callable
        scaling = [] if scale is None else [scale]
        self._kernel_gradient = call(self.dense_gradient, [*data, *teaching, *scaling])
        if not switches.accumulated:
            update = self._update(values, gradient, rate, powers)
            self._step = call([loss, right, update], [*data, rate, *teaching, *powers])
            return
        share = place(tf.float32, [])
        total = tf.Variable(tf.zeros(n), trainable=False)
        finite = tf.reduce_all(tf.math.is_finite(gradient))
        add = total.assign_add(share * gradient).op
        self._add = call([loss, right, finite, add], [share, scale, *data, *teaching])
        self.clear_sum = total.assign(tf.zeros(n)).op
        self.clear_slots.append(self.clear_sum)
        update = self._update(values, total.read_value(), rate, powers)
        with tf.control_dependencies([update]):
            cleared = total.assign(tf.zeros(n)).op
        self._apply = call([cleared], [rate, *powers])

    def _teaching(self) -> list:
        """The teacher's class scores, the temperature and the weight of its loss."""
        place = tf.compat.v1.placeholder
        n_classes = self.network.steps[-1].op.shape(self.network.inputs[-1])[-1]
        return [place(tf.float32, [None, n_classes]), place(tf.float32, []), place(tf.float32, [])]

    def _mask(self):
        mask = tf.Variable(tf.zeros(self.layout.n), trainable=False)
        self.given_mask = tf.compat.v1.placeholder(tf.float32, mask.shape)
        self.assign_mask = [
            mask.assign(self.given_mask).op,
            *(v.assign(v.read_value() * self.given_mask).op for v in (self.values, *self.slots)),
        ]
        return mask.read_value()

    def _clusters(self):
        clusters = tf.Variable(tf.zeros(self.layout.n_weights, tf.int32), trainable=False)
        self.given_clusters = tf.compat.v1.placeholder(tf.int32, clusters.shape)
        self.assign_clusters = clusters.assign(self.given_clusters).op
        return clusters.read_value()

    def _weights(self, values, weight_bits, activation_bits):
        """Per step a dictionary of its tensors: kernels quantized and in the precision computed
        in, clips those in force."""
        layout, switches = self.layout, self.switches
        kernels, others, clips, steps = tf.split(values, layout.parts)
        if switches.quantizer:
            groups = np.array([p.group for p in layout.kernels], np.int32)
            kernels = WEIGHT_QUANTIZERS[switches.quantizer](
                kernels,
                tf.abs(steps) + MIN_STEP,
                tf.gather(weight_bits, groups),
                layout.owner,
                layout.kernel_sizes,
            )
        if switches.masked:
            kernel_mask, other_mask, _, _ = tf.split(self.mask, layout.parts)
            kernels, others = kernels * kernel_mask, others * other_mask
        self.kernels = kernels
        kernels = tf.cast(kernels, COMPUTE[switches.precision])
        weights: list[dict] = [{} for _ in self.network.steps]
        pieces = tf.split(kernels, layout.kernel_sizes)
        for place, piece in zip(layout.kernels, pieces, strict=True):
            weights[place.step][place.parameter.name] = tf.reshape(piece, place.parameter.shape)
        pieces = tf.split(others, layout.other_sizes)
        for place, piece in zip(layout.others, pieces, strict=True):
            shaped = piece if len(place.parameter.shape) == 1 else tf.reshape(piece, [])
            weights[place.step][place.parameter.name] = shaped
        if switches.quantizer and layout.clips:
            groups = np.array([p.group for p in layout.clips], np.int32)
            inputs = [self.network.inputs[p.step][0] for p in layout.clips]
            sizes = tf.constant([float(np.prod(shape)) for shape in inputs])
            # a clip's gradient is scaled by 1/sqrt(elements), as LSQ scales its own, whatever the
            # batch: the loss is a mean over it
            share = tf.math.rsqrt(sizes * REFERENCE_BATCH)
            clips = clips * share + tf.stop_gradient(clips - clips * share)
            used = activation_clip(tf.abs(clips) + MIN_CLIP, tf.gather(activation_bits, groups))
            for place, clip in zip(layout.clips, tf.unstack(used), strict=True):
                weights[place.step][place.parameter.name] = clip
        else:
            for place in layout.clips:
                weights[place.step][place.parameter.name] = None
        return weights

    def _gradient_of(self, values, data, teaching, scale):
        """(loss, share of right answers, gradient [n]) over a batch."""
        images, labels, weight_bits, activation_bits = data
        weights = self._weights(values, weight_bits, activation_bits)
        scores = self.network.apply(
            images,
            weights,
            tf.unstack(activation_bits),
            TrainingContext(bool(self.switches.quantizer)),
        )
        n_classes = scores.shape[-1]
        off = LABEL_SMOOTHING / n_classes
        target = tf.one_hot(labels, n_classes, 1 - LABEL_SMOOTHING + off, off)
        loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(target, scores))
        right = tf.reduce_mean(
            tf.cast(tf.equal(tf.argmax(scores, -1, tf.int32), labels), tf.float32)
        )
        if teaching:
            taught, temperature, weight = teaching
            soft = tf.nn.softmax_cross_entropy_with_logits(
                tf.nn.softmax(taught / temperature), scores / temperature
            )
            # Hinton et al., 1503.02531: T^2 keeps the gradient's size at any temperature
            loss = (1 - weight) * loss + weight * temperature**2 * tf.reduce_mean(soft)
        if scale is None:
            gradient, self.dense_gradient = tf.gradients(loss, [values, self.kernels])
            return loss, right, gradient
        gradients = tf.gradients(loss * scale, [values, self.kernels])
        gradient, self.dense_gradient = (each / scale for each in gradients)
        return loss, right, gradient

    def _update(self, values, gradient, rate, powers):
        """The operation that moves the values; `gradient` [n]."""
        layout, switches = self.layout, self.switches
        n = layout.n_weights
        kernels = values[:n]
        if switches.tied:
            gradient = tf.concat([self._shared(gradient[:n]), gradient[n:]], 0)
        if switches.optimizer == "adam":
            # decay apart from the gradient (Loshchilov and Hutter, 1711.05101)
            first = []
            if self.weight_decay:
                decay = tf.pad(rate * self.weight_decay * kernels, [[0, layout.n - n]])
                first.append(self.values.assign_sub(decay).op)
            with tf.control_dependencies(first):
                return tf.raw_ops.ResourceApplyAdam(
                    var=self.values.handle,
                    m=self.slots[0].handle,
                    v=self.slots[1].handle,
                    beta1_power=powers[0],
                    beta2_power=powers[1],
                    lr=rate,
                    beta1=ADAM_BETAS[0],
                    beta2=ADAM_BETAS[1],
                    epsilon=ADAM_EPSILON,
                    grad=gradient,
                )
        decayed, rest = gradient[:n] + self.weight_decay * kernels, gradient[n:]
        if switches.optimizer == "lars":
            trust = self._trust(kernels, decayed)
            decayed *= spread(trust, layout.owner)
            others, clips, steps = tf.split(rest, layout.parts[1:])
            # a step follows its kernel, a clip the kernels on average
            rest = tf.concat([others, clips * tf.reduce_mean(trust), steps * trust], 0)
        return tf.raw_ops.ResourceApplyMomentum(
            var=self.values.handle,
            accum=self.slots[0].handle,
            lr=rate,
            grad=tf.concat([decayed, rest], 0),
            momentum=MOMENTUM,
            use_nesterov=True,
        )

    def _shared(self, gradient):
        """Every weight's gradient replaced by the mean over its cluster (Han et al., 1510.00149,
        with the mean for the sum, so that a rate means the same for small and large clusters)."""
        clusters = self._clusters()
        n_clusters = tf.reduce_max(clusters) + 1
        mean = tf.math.unsorted_segment_mean(gradient, clusters, n_clusters)
        return tf.gather(mean, clusters)

    def _trust(self, kernels, gradient):
        """LARS: how far each kernel [kernels] may move, by its norm over its gradient's."""

        def norms(flat):
            return tf.sqrt(tf.math.segment_sum(flat**2, self.layout.owner))

        return LARS_TRUST * norms(kernels) / (norms(gradient) + 1e-9)
