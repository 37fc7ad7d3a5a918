"""The compiled training step and scores of a language model.

Training may take the softmax over a sample of words (Jean et al., 1412.2007, section 3.1); scores
are always of the whole vocabulary. TensorFlow is imported with this module, and only workers import
it.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from nas.layout import MIN_CLIP, MIN_STEP
from nas.program import Program
from nas.reader import Graph, Table
from search_spaces.quantizers import activation_clip, quantize_weights
from search_spaces.sequence import TABLES, LanguageModel
from search_spaces.training import REFERENCE_BATCH

CLIP_NORM = 1.0  # of the gradient over everything learned
RIGHT_AGAIN = 1e9  # what a drawn word loses that is the right one


class LanguageProgram(Program):
    """The compiled training step and scores of one language model.

    Words are int32 [steps + 1, n], the targets being those one step on; a state is a list of
    arrays [n, ...], which is given and comes back.
    """

    network: LanguageModel
    weight_decay = 0.0  # dropout does for it (Zaremba et al., 1409.2329); a pass over all less

    def step(self, *arguments) -> tuple[float, list[np.ndarray]]:
        """One update; returns (loss, new state).

        words, weight_bits, activation_bits, rate, dropout's share, seed int32 [2]; where the loss
        is sampled: the words drawn int32 [k], the logarithm of how often each was expected [k], and
        that of the targets [steps, n]; then the state, of the network `in_training`.
        """
        loss, _, *state = self._step(*arguments, *self._powers())
        return loss, state

    def losses(self, words, weight_bits, activation_bits, state) -> tuple:
        """(-ln p of each target by the whole vocabulary [steps, n], words that each expert was
        given [experts], new state)."""
        found, loads, *state = self._losses(words, weight_bits, activation_bits, *state)
        return found, loads, state

    def scores(self, words, weight_bits, activation_bits, state) -> tuple[np.ndarray, list]:
        """(scores of what follows the last but one row [n, vocabulary], new state); the last row
        of the words is not read."""
        found, *state = self._scores(words, weight_bits, activation_bits, *state)
        return found, state

    def _build(self) -> None:
        self._build_variables()
        place = tf.compat.v1.placeholder
        words = place(tf.int32, [None, None])
        bits = [place(tf.int32, [len(self.network.groups)]) for _ in range(2)]
        state, of_training = (
            [place(tf.float32, [None, *shape]) for shape in network.state_shapes]
            for network in (self.network, self.network.in_training)
        )
        rate, share = place(tf.float32, []), place(tf.float32, [])
        seed = place(tf.int32, [2])
        drawn = []
        if self.switches.sampled:
            expected = place(tf.float32, [None]), place(tf.float32, [None, None])
            drawn = [place(tf.int32, [None]), *expected]
        powers = [place(tf.float32, []) for _ in range(2 * (self.switches.optimizer == "adam"))]

        values = self.values.read_value()
        weights = self._weights(values, *bits)
        activation_bits = tf.unstack(bits[1]) if self.switches.quantizer else None
        before, targets = words[:-1], words[1:]

        def read(network, state, finish, drop=None):
            reader = Graph(weights, activation_bits, finish, drop)
            return *network.run(reader, before, state), reader

        def trained(x, table, bias):
            if not drawn:
                return self._full_loss(x, table, bias, targets)
            return self._sampled_loss(x, table, bias, targets, *drawn)

        losses, kept, reader = read(self.network.in_training, of_training, trained, (share, seed))
        loss = tf.reduce_mean(losses)
        [gradient] = tf.gradients(loss + sum(reader.penalties), [values])
        gradient = tf.clip_by_norm(gradient, CLIP_NORM)
        update = self._update(values, gradient, rate, powers)
        call = self.session.make_callable
        arguments = [words, *bits, rate, share, seed, *drawn, *of_training, *powers]
        self._step = call([loss, update, *kept], arguments)
        (x, table, bias), kept, reader = read(self.network, state, lambda *given: given)
        losses = self._full_loss(x, table, bias, targets)
        scores = self._all(x[-1:], table, bias)[0]
        if reader.copied:
            losses, scores = reader.copied.losses(losses, targets), reader.copied.scores(scores)
        loads = tf.concat([*reader.loads, tf.zeros(0)], 0)
        self._losses = call([losses, loads, *kept], [words, *bits, *state])
        self._scores = call([scores, *kept], [words, *bits, *state])

    def _update(self, values, gradient, rate, powers):
        """As of `Program`; but Adam, whose every step is about the rate, moves quantization steps
        by that share of themselves: most are about as small as a rate."""
        if self.switches.optimizer != "adam":
            return super()._update(values, gradient, rate, powers)
        first = sum(self.layout.parts[:3])
        ranges = values[first:]
        with tf.control_dependencies([ranges]):
            moved = super()._update(values, gradient, rate, powers)
        with tf.control_dependencies([moved]):
            change = self.values.read_value()[first:] - ranges
            return self.values[first:].assign(ranges + tf.abs(ranges) * change).op

    def _weights(self, values, weight_bits, activation_bits):
        """Per step of the model its tensors by name: tables as they are, others quantized."""
        layout, quantized = self.layout, bool(self.switches.quantizer)
        kernels, others, clips, steps = tf.split(values, layout.parts)
        pieces = tf.split(kernels, layout.kernel_sizes)
        steps = tf.abs(steps) + MIN_STEP
        bits = tf.gather(weight_bits, np.array([p.group for p in layout.kernels], np.int32))
        small = [
            i for i, place in enumerate(layout.kernels) if not place.parameter.name.endswith(TABLES)
        ]
        if quantized:
            sizes = [layout.kernel_sizes[i] for i in small]
            flat = quantize_weights(
                tf.concat([pieces[i] for i in small], 0),
                tf.gather(steps, small),
                tf.gather(bits, small),
                np.repeat(np.arange(len(small), dtype=np.int32), sizes),
                sizes,
            )
            for i, piece in zip(small, tf.split(flat, sizes), strict=True):
                pieces[i] = piece
        weights: list[dict] = [{} for _ in self.network.steps]
        for i, (place, piece) in enumerate(zip(layout.kernels, pieces, strict=True)):
            tensor = tf.reshape(piece, place.parameter.shape)
            if i not in small:
                tensor = Table(tensor, steps[i], bits[i]) if quantized else Table(tensor)
            weights[place.step][place.parameter.name] = tensor
        pieces = tf.split(others, layout.other_sizes)
        for place, piece in zip(layout.others, pieces, strict=True):
            weights[place.step][place.parameter.name] = piece
        # as `Program` scales a clip's gradient
        sizes = np.array([REFERENCE_BATCH * self.network.width_of(p) for p in layout.clips])
        share = tf.constant(1 / np.sqrt(sizes), tf.float32)
        clips = clips * share + tf.stop_gradient(clips - clips * share)
        groups = np.array([p.group for p in layout.clips], np.int32)
        used = activation_clip(tf.abs(clips) + MIN_CLIP, tf.gather(activation_bits, groups))
        for place, clip in zip(layout.clips, tf.unstack(used), strict=True):
            weights[place.step][place.parameter.name] = clip
        return weights

    @staticmethod
    def _all(x, table: Table, bias):
        """Scores of every word: [steps, n, vocabulary]."""
        flat = tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), table.whole, transpose_b=True) + bias
        return tf.reshape(flat, [*tf.unstack(tf.shape(x)[:-1]), bias.shape[0]])

    def _full_loss(self, x, table: Table, bias, targets):
        scores = self._all(x, table, bias)
        return tf.nn.sparse_softmax_cross_entropy_with_logits(targets, scores)

    @staticmethod
    def _sampled_loss(x, table: Table, bias, targets, drawn, expected, of_targets):
        """-ln of the share of the right word among those drawn, the scores less the logarithm of
        how often a word was expected among them (Jean et al., 1412.2007, equation 6)."""
        right = tf.reduce_sum(x * table.at(targets), -1) + tf.gather(bias, targets) - of_targets
        flat = tf.reshape(x, [-1, x.shape[-1]])
        others = tf.matmul(flat, table.at(drawn), transpose_b=True)
        others += tf.gather(bias, drawn) - expected
        again = tf.equal(tf.reshape(targets, [-1, 1]), drawn)
        others -= RIGHT_AGAIN * tf.cast(again, tf.float32)
        right = tf.reshape(right, [-1, 1])
        return tf.reduce_logsumexp(tf.concat([right, others], 1), 1) - right[:, 0]
