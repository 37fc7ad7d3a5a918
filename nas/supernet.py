"""Shared weights: every cell of the space over one set of weights, of which a step trains one.

One-shot search after ENAS (Pham et al., arXiv 1802.03268) with paths drawn uniformly (Guo et al.,
arXiv 1904.00420). Each edge of each cell keeps weights for every operation that has any; the cell
is an argument of the compiled graph. What a step did not choose rests: neither its weights, nor
their momentum, nor its decay move. Bit-widths are arguments too; LSQ's steps and PACT's clips are
learned apart for every bit-width (Jin et al., arXiv 1912.09666), for those of one do not serve
another.

A score normalizes by the statistics of the very images that it scores.

TensorFlow is imported with this module, and only workers import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import tensorflow as tf

from nas.augment import USUAL, View
from nas.course import schedule
from nas.layout import MIN_CLIP, MIN_STEP
from nas.open_cell import (
    OPTIONS,
    READS_QUANTIZED,
    Choice,
    Context,
    Deferred,
    RecordingContext,
    live_cells,
    network,
    random_cells,
)
from nas.program import LABEL_SMOOTHING, MOMENTUM, WEIGHT_DECAY, session_options
from search_spaces.cell import EDGES
from search_spaces.network import Place
from search_spaces.precision import BITS, GROUPS
from search_spaces.quantizers import (
    FULL_BITS,
    activation_clip,
    initial_clip,
    initial_step,
    quantize_weights,
)

SCORE_BATCH = 512  # images normalized and scored together, at most
WARMUP = 0.2  # share of the steps over which the learning rate rises
START_CELLS = 32  # random cells over which the first clips are measured


class Group:
    """The learned tensors that are chosen together, in one flat variable: kernels, then others.

    choice: the position in EDGES and in OPTIONS of what uses them, the same in all cells; None for
    those that every cell computes.
    """

    def __init__(self, choice: tuple[int, int] | None, places: list[Place], first_step: int):
        self.choice = choice
        self.kernels = [p for p in places if p.parameter.kind == "kernel"]
        self.others = [p for p in places if p.parameter.kind in ("scale", "shift")]
        self.kernel_sizes = [int(np.prod(p.parameter.shape)) for p in self.kernels]
        self.other_sizes = [int(np.prod(p.parameter.shape)) for p in self.others]
        self.n_decayed = sum(self.kernel_sizes)
        self.n = self.n_decayed + sum(self.other_sizes)
        self.steps = slice(first_step, first_step + len(self.kernels))  # in the table of steps
        self.values = tf.Variable(tf.zeros(self.n), trainable=False)
        self.momentum = tf.Variable(tf.zeros(self.n), trainable=False)

    def weights(self, values, steps, bits):
        """(kernels, quantized, others), both flat. steps, bits: of all kernels of the supernet."""
        owner = np.repeat(np.arange(len(self.kernels), dtype=np.int32), self.kernel_sizes)
        kernels = quantize_weights(
            values[: self.n_decayed], steps[self.steps], bits[self.steps], owner, self.kernel_sizes
        )
        return kernels, values[self.n_decayed :]

    def update(self, values, gradient, rate):
        """A step of momentum SGD, as an operation."""
        n = self.n_decayed
        decayed = gradient[:n] + WEIGHT_DECAY * values[:n]
        return tf.raw_ops.ResourceApplyMomentum(
            var=self.values.handle,
            accum=self.momentum.handle,
            lr=rate,
            grad=tf.concat([decayed, gradient[n:]], 0),
            momentum=MOMENTUM,
            use_nesterov=True,
        )


class Supernet:
    """All cells of one width, depth and resolution over shared weights; a graph and a session.

    groups: the weights, chosen or not as a whole. tables: LSQ's steps, a row a kernel in the order
    of the groups, then PACT's clips, a row an activation; a column a bit-width of BITS.
    """

    def __init__(self, width: int, depth: int, resolution: int, *, batch: int = 128):
        self.network, self.batch = network(width, depth, resolution), batch
        self.graph = tf.Graph()
        self.session = tf.compat.v1.Session(graph=self.graph, config=session_options())
        with self.graph.as_default():
            self._lay_out()

    def _lay_out(self) -> None:
        """Make the variables."""
        chosen: dict[tuple[int, int] | None, list[Place]] = {None: []}
        for place in self.network.places:
            op, key = self.network.steps[place.step].op, None
            if isinstance(op, Choice):
                key = op.edge, OPTIONS.index(place.parameter.name.split("/")[0])
            chosen.setdefault(key, []).append(place)
        self.groups: list[Group] = []
        self.kernels: list[Place] = []
        for key, places in chosen.items():
            self.groups.append(Group(key, places, len(self.kernels)))
            self.kernels += self.groups[-1].kernels
        self.clips = [p for p in self.network.places if p.parameter.kind == "clip"]
        self.tables, self.table_momentum = (
            tf.Variable(tf.zeros([len(self.kernels) + len(self.clips), len(BITS)]), trainable=False)
            for _ in range(2)
        )

    def _variables(self) -> list[tf.Variable]:
        """All that is learned."""
        return [*(group.values for group in self.groups), self.tables]

    # Each is built when first used: a worker that loads weights needs no training.

    @cached_property
    def _train(self):
        order = tf.TensorSpec([None, self.batch], tf.int32)
        rates = tf.TensorSpec([None], tf.float32)
        return self._compiled(self._training, *self._data(), order, rates, *self._candidates())

    @cached_property
    def _score(self):
        return self._compiled(self._scoring, *self._data(), *self._candidates())

    @cached_property
    def _activations(self):
        return self._compiled(self._recording, self._data()[0], self._candidates()[0])

    @cached_property
    def _set(self):
        vectors = [tf.TensorSpec(v.shape, tf.float32) for v in self._variables()]
        return self._compiled(self._setting, *vectors)

    def _data(self) -> list[tf.TensorSpec]:
        """Images and labels."""
        images = tf.TensorSpec([None, *self.network.image], tf.float32)
        return [images, tf.TensorSpec([None], tf.int32)]

    def _candidates(self) -> list[tf.TensorSpec]:
        """Cells, their bits of weights and of activations."""
        bits = tf.TensorSpec([None, len(GROUPS)], tf.int32)
        return [tf.TensorSpec([None, len(EDGES)], tf.int32), bits, bits]

    def _compiled(self, function, *signature: tf.TensorSpec):
        """`function` built into the graph; calling it runs the session on NumPy arrays."""
        with self.graph.as_default():
            inputs = [tf.compat.v1.placeholder(spec.dtype, spec.shape) for spec in signature]
            outputs = function(*inputs)

        def run(*arrays):
            return self.session.run(outputs, dict(zip(inputs, arrays, strict=True)))

        return run

    def close(self) -> None:
        self.session.close()

    # -- use --------------------------------------------------------------------------------------

    def start(self, seed: int, images: np.ndarray) -> None:
        """Fresh weights of `seed` (He et al., 1502.01852), and first steps and clips.

        images: float [n, h, w, c]; the clips take their range from the first batch of them, over
        random cells.
        """
        rng = np.random.default_rng([seed, 0])
        vectors, steps = [], []
        for group in self.groups:
            pieces = []
            for place in group.kernels:
                shape = place.parameter.shape
                kernel = rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32)
                pieces.append(kernel.ravel())
                steps.append([initial_step(kernel, bits) for bits in BITS])
            for place, size in zip(group.others, group.other_sizes, strict=True):
                pieces.append(np.full(size, place.parameter.kind == "scale", np.float32))
            vectors.append(np.concatenate(pieces))
        clips = np.ones((len(self.clips), len(BITS)))
        self._set(*vectors, np.float32([*steps, *clips]))
        means = self._activations(images[: self.batch], random_cells(START_CELLS, rng))
        # nothing but zeros comes to a node that a cell leaves out
        means = means.sum(0) / np.maximum((means > 0).sum(0), 1)
        self._set(*vectors, np.float32([*steps, *initial_clip(means[:, None], BITS)]))

    def train(self, images, labels, order, rates, cells, weight_bits, activation_bits):
        """One step a row of `order` [steps, batch]: its learning rate, its cell, its bits.

        images: float [n, h, w, c], normalized; labels: int32 [n]; rates: float [steps]; cells:
        int [steps, 6], indices of OPTIONS; bits: int [steps, groups]. Returns (mean loss, share of
        right answers). Raises DisconnectedError.
        """
        return self._train(
            images, labels, order, rates, live_cells(cells), weight_bits, activation_bits
        )

    def fit(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        epochs: int,
        learning_rate: float,
        seed: int,
        bits: Sequence[int] = BITS[1:],
    ) -> list[dict]:
        """Train from fresh weights on random cells in random bits: a row an epoch of its curve.

        learning_rate: the highest of a triangular schedule over all epochs; bits: the bit-widths to
        draw from. Images are flipped and shifted at random. Raises ValueError where the batch is
        larger than the data, FloatingPointError where the loss is no number.
        """
        n, batch = len(labels), self.batch
        if batch > n:
            raise ValueError(
                f"the shared weights train in batches of {batch}, but there are {n} training "
                "images; give more"
            )
        self.start(seed, images)
        rng = np.random.default_rng([seed, 1])
        n_steps = n // batch
        rates = schedule(n_steps * epochs, learning_rate, WARMUP).reshape(epochs, n_steps)
        curve = []
        for epoch in range(epochs):
            order = rng.permutation(n)[: n_steps * batch].reshape(n_steps, batch)
            drawn = rng.choice(np.int32(bits), (2, n_steps, len(GROUPS)))
            cells, x = random_cells(n_steps, rng), View(USUAL, (seed, 2), epoch)(images)
            loss, accuracy = self.train(x, labels, order, rates[epoch], cells, *drawn)
            if not np.isfinite(loss):
                raise FloatingPointError(
                    f"the loss of the shared weights is {float(loss)} after epoch {epoch + 1} at "
                    f"learning rate {learning_rate:.3g}; a lower one may help"
                )
            curve.append({"epoch": epoch + 1, "loss": float(loss), "accuracy": float(accuracy)})
        return curve

    def score(self, cells, weight_bits, activation_bits, images, labels):
        """(accuracy, mean cross-entropy) of every cell on `images`: float [n] each.

        cells: int [n, 6], indices of OPTIONS; bits: int [n, groups] or [groups]. The images are
        scored, and normalized, in equal parts of at most SCORE_BATCH. Raises DisconnectedError.
        """
        cells = live_cells(cells)
        bits = [
            np.broadcast_to(np.int32(b), (len(cells), len(GROUPS)))
            for b in (weight_bits, activation_bits)
        ]
        right, loss = self._score(images, labels, cells, *bits)
        return right / len(labels), loss / len(labels)

    def tensors(self) -> dict[str, np.ndarray]:
        """Every learned tensor by `step/parameter`; a kernel's steps and clips are [bit-widths]."""
        variables = self.session.run(self._variables())
        return {name: variables[i][at].reshape(shape) for name, i, at, shape in self._places()}

    def set_tensors(self, tensors: dict[str, np.ndarray]) -> None:
        """Take what `tensors` gave; ValueError where that was of another supernet."""
        variables = [np.empty(v.shape, np.float32) for v in self._variables()]
        for name, i, at, shape in self._places():
            found = tensors.get(name)
            if found is None or found.shape != shape:
                raise ValueError(
                    f"weights of another supernet: '{name}' is "
                    f"{'missing' if found is None else found.shape}, expected {shape}; train anew"
                )
            variables[i][at] = found.reshape(variables[i][at].shape)
        self._set(*variables)

    def _places(self):
        """(name, which variable holds it, where in it, shape) of every learned tensor."""

        def name(place):
            return f"{self.network.steps[place.step].name}/{place.parameter.name}"

        for i, group in enumerate(self.groups):
            start = 0
            for place in group.kernels + group.others:
                shape = place.parameter.shape
                end = start + int(np.prod(shape))
                yield name(place), i, slice(start, end), shape
                start = end
        names = [name(p).removesuffix("kernel") + "step" for p in self.kernels]
        for row, label in enumerate([*names, *(name(p) for p in self.clips)]):
            yield label, len(self.groups), row, (len(BITS),)

    # -- built into the graph ---------------------------------------------------------------------

    def _setting(self, *values):
        """Lay the values out and forget the momentum."""
        momenta = [*(group.momentum for group in self.groups), self.table_momentum]
        return [
            update.op
            for variable, momentum, value in zip(self._variables(), momenta, values, strict=True)
            for update in (variable.assign(value), momentum.assign(tf.zeros_like(value)))
        ]

    def _weights(self, values, edges, weight_bits, activation_bits, n_images=None):
        """Per step a dictionary of its tensors. values: of the groups and the tables.

        n_images: of the batch that is trained on: a clip's gradient is scaled by 1/sqrt(elements),
        as LSQ scales its own.
        """
        *vectors, tables = values
        bits = tf.concat(
            [
                tf.gather(weight_bits, [p.group for p in self.kernels]),
                tf.gather(activation_bits, [p.group for p in self.clips]),
            ],
            0,
        )
        chosen = tf.abs(tf.gather(tables, tf.searchsorted(BITS, bits), batch_dims=1))
        n = len(self.kernels)
        steps, clips = chosen[:n] + MIN_STEP, chosen[n:] + MIN_CLIP
        weights: list[dict] = [{} for _ in self.network.steps]
        if n_images is not None:
            inputs = [self.network.inputs[p.step][0] for p in self.clips]
            share = tf.constant([np.prod(shape) * n_images for shape in inputs], tf.float32) ** -0.5
            clips = clips * share + tf.stop_gradient(clips - clips * share)
        clips = activation_clip(clips, bits[n:])
        for place, clip in zip(self.clips, tf.unstack(clips), strict=True):
            weights[place.step][place.parameter.name] = clip
        fixed, *groups = zip(self.groups, vectors, strict=True)
        group, vector = fixed
        kernels, others = group.weights(vector, steps, bits)
        pieces = tf.split(kernels, group.kernel_sizes) + tf.split(others, group.other_sizes)
        for place, piece in zip(group.kernels + group.others, pieces, strict=True):
            weights[place.step][place.parameter.name] = tf.reshape(piece, place.parameter.shape)
        for edge in range(len(EDGES)):
            self._share_out(weights, edge, groups, edges, steps, bits)
        return weights

    def _share_out(self, weights, edge, groups, edges, steps, bits):
        """Give every cell its part of the weights that an edge's chosen operation has."""
        own = {g.choice[1]: (g, vector) for g, vector in groups if g.choice[0] == edge}
        takers = [
            i
            for i, step in enumerate(self.network.steps)
            if isinstance(step.op, Choice) and step.op.edge == edge
        ]

        def flat(option):
            if option not in own:
                return tf.zeros([0]), tf.zeros([0])
            group, vector = own[option]
            return group.weights(vector, steps, bits)

        options = range(len(OPTIONS))
        both = tf.switch_case(edges[edge], [lambda o=option: flat(o) for option in options])
        n = np.zeros((2, len(OPTIONS), len(takers)), np.int32)  # sizes of kernels and of others
        for option, (group, _) in own.items():
            for which, (places, sizes) in enumerate(
                ((group.kernels, group.kernel_sizes), (group.others, group.other_sizes))
            ):
                np.add.at(n[which, option], [takers.index(p.step) for p in places], sizes)
        for which, name in enumerate(("kernels", "others")):
            parts = tf.split(both[which], tf.gather(n[which], edges[edge]), num=len(takers))
            for taker, part in zip(takers, parts, strict=True):
                weights[taker][name] = part

    def _learned_now(self, edges, weight_bits, activation_bits):
        """Which entries of the tables a step computes with: bool [kernels + clips, bit-widths]."""
        # which choices use an entry: any of them; [kernels + clips, edges, options]
        users = np.zeros((len(self.kernels) + len(self.clips), len(EDGES), len(OPTIONS)), bool)
        for group in self.groups:
            users[(group.steps, *(group.choice or ()))] = True
        for users_of_clip, place in zip(users[len(self.kernels) :], self.clips, strict=True):
            step = self.network.steps[place.step]
            if isinstance(step.op, Deferred):
                readers = [
                    other.op.edge
                    for other in self.network.steps
                    if isinstance(other.op, Choice) and place.step == other.inputs[-1]
                ]
                users_of_clip[readers] = READS_QUANTIZED
            else:
                users_of_clip[:] = True
        picked = tf.one_hot(edges, len(OPTIONS), True, False, dtype=tf.bool)
        used = tf.reduce_any(tf.logical_and(users, picked), [1, 2])
        bits = tf.concat(
            [
                tf.gather(weight_bits, [p.group for p in self.kernels]),
                tf.gather(activation_bits, [p.group for p in self.clips]),
            ],
            0,
        )
        return tf.logical_and(used[:, None], tf.equal(bits[:, None], BITS))

    def _updates(self, values, gradients, rate, edges, learned_now):
        """The operations of one step of momentum SGD over what it computed with."""
        updates = []
        for group, value, gradient in zip(self.groups, values, gradients, strict=False):
            if group.choice is None:
                updates.append(group.update(value, gradient, rate))
                continue

            def move(group=group, value=value, gradient=gradient):
                with tf.control_dependencies([group.update(value, gradient, rate)]):
                    return tf.constant(True)

            edge, option = group.choice
            moved = tf.cond(tf.equal(edges[edge], option), move, lambda: tf.constant(False))
            updates.append(moved.op)
        momentum = self.table_momentum.read_value()
        ahead = MOMENTUM * momentum + gradients[-1]
        table = values[-1] - rate * (MOMENTUM * ahead + gradients[-1])
        with tf.control_dependencies(gradients[-1:]):
            updates += [
                self.tables.assign(tf.where(learned_now, table, values[-1])).op,
                self.table_momentum.assign(tf.where(learned_now, ahead, momentum)).op,
            ]
        return updates

    def _apply(self, images, weights, activation_bits, context):
        """Class scores. The bits are unstacked once, not sliced by every step of the network."""
        return self.network.apply(images, weights, tf.unstack(activation_bits), context)

    def _training(self, images, labels, order, rates, cells, weight_bits, activation_bits):
        """A step a row of `order`; mean loss and share of right answers."""
        n_steps = tf.shape(order)[0]

        def step(i, loss_sum, right_sum):
            x, y = tf.gather(images, order[i]), tf.gather(labels, order[i])
            values = [variable.read_value() for variable in self._variables()]
            choice = cells[i], weight_bits[i], activation_bits[i]
            weights = self._weights(values, *choice, self.batch)
            scores = self._apply(x, weights, activation_bits[i], Context(cells[i]))
            n_classes = scores.shape[-1]
            off = LABEL_SMOOTHING / n_classes
            target = tf.one_hot(y, n_classes, 1 - LABEL_SMOOTHING + off, off)
            loss = tf.reduce_mean(
                tf.nn.softmax_cross_entropy_with_logits(labels=target, logits=scores)
            )
            gradients = tf.gradients(loss, values)
            right = tf.reduce_mean(
                tf.cast(tf.equal(tf.argmax(scores, -1, tf.int32), y), tf.float32)
            )
            learned_now = self._learned_now(*choice)
            updates = self._updates(values, gradients, rates[i], cells[i], learned_now)
            with tf.control_dependencies(updates):
                return i + 1, loss_sum + loss, right_sum + right

        _, loss, right = tf.while_loop(
            lambda i, *_: i < n_steps, step, [0, 0.0, 0.0], parallel_iterations=1
        )
        return loss / tf.cast(n_steps, tf.float32), right / tf.cast(n_steps, tf.float32)

    def _scoring(self, images, labels, cells, weight_bits, activation_bits):
        """Right answers and summed cross-entropy of every cell: float [n] each."""
        n_cells, n_images = tf.shape(cells)[0], tf.shape(labels)[0]
        n_parts = (n_images + SCORE_BATCH - 1) // SCORE_BATCH
        values = [variable.read_value() for variable in self._variables()]

        def cell(i, rights, losses):
            weights = self._weights(values, cells[i], weight_bits[i], activation_bits[i])

            def part(j, right, loss):
                rows = slice(j * n_images // n_parts, (j + 1) * n_images // n_parts)
                scores = self._apply(images[rows], weights, activation_bits[i], Context(cells[i]))
                hits = tf.equal(tf.argmax(scores, -1, tf.int32), labels[rows])
                loss += tf.reduce_sum(
                    tf.nn.sparse_softmax_cross_entropy_with_logits(labels[rows], scores)
                )
                return j + 1, right + tf.reduce_sum(tf.cast(hits, tf.float32)), loss

            _, right, loss = tf.while_loop(
                lambda j, *_: j < n_parts, part, [0, 0.0, 0.0], parallel_iterations=1
            )
            return i + 1, rights.write(i, right), losses.write(i, loss)

        arrays = [tf.TensorArray(tf.float32, n_cells, element_shape=[]) for _ in range(2)]
        _, rights, losses = tf.while_loop(
            lambda i, *_: i < n_cells, cell, [0, *arrays], parallel_iterations=1
        )
        return rights.stack(), losses.stack()

    def _recording(self, images, cells):
        """The mean size of what every activation gives, a row a cell, in float: [cells, clips]."""
        n_cells, full = tf.shape(cells)[0], tf.fill([len(GROUPS)], FULL_BITS)
        values = [variable.read_value() for variable in self._variables()]

        def cell(i, rows):
            context = RecordingContext(cells[i])
            weights = self._weights(values, cells[i], full, full)
            self._apply(images, weights, full, context)
            return i + 1, rows.write(i, tf.stack(context.activations))

        rows = tf.TensorArray(tf.float32, n_cells, element_shape=[len(self.clips)])
        _, rows = tf.while_loop(lambda i, *_: i < n_cells, cell, [0, rows], parallel_iterations=1)
        return rows.stack()
