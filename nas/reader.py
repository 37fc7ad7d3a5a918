"""Language models as functional TensorFlow over many steps at once.

TensorFlow is imported with this module, and only workers import it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from search_spaces.keras_step import HASH_MARGIN, SHORTEST, SMALLEST
from search_spaces.network import Step
from search_spaces.quantizers import mean_magnitude, quantize_activations, quantize_rows

UNSEEN = -1e9  # score of an entry that is not there


class Table(NamedTuple):
    """A kernel of which most uses read a few rows: quantized where it is read.

    rows: float [n, width]; step, bits: scalar tensors; None without quantization.
    """

    rows: tf.Tensor
    step: tf.Tensor | None = None
    bits: tf.Tensor | None = None

    def at(self, numbers) -> tf.Tensor:
        """The rows of these numbers."""
        return self._quantized(tf.gather(self.rows, numbers))

    @property
    def whole(self) -> tf.Tensor:
        return self._quantized(self.rows)

    def _quantized(self, rows):
        if self.step is None:
            return rows
        return quantize_rows(rows, self.step, self.bits, int(np.prod(self.rows.shape)))


class Copied(NamedTuple):
    """What a cache found: the words of its entries, and how much of the chances each has.

    shares: [n, steps, entries], of a step `share` in all. words: number + 1 of each entry, 0 where
    there is none, whose shares stay with the output [n, entries].
    """

    shares: tf.Tensor
    words: tf.Tensor
    share: float

    def losses(self, losses, targets):
        """-ln p of the targets [steps, n] from those of the output alone."""
        right = tf.cast(tf.transpose(targets), tf.float32)[..., None] + 1.0
        found, empty = self._of(right), self._of(0.0)
        return -tf.transpose(self._mixed(-tf.transpose(losses), found, empty))

    def scores(self, scores):
        """ln p of all words after the last step [n, vocabulary] from the output's scores."""
        n, n_entries = tf.unstack(tf.shape(self.words))
        rows = tf.broadcast_to(tf.range(n)[:, None], [n, n_entries])
        at = tf.stack([rows, tf.cast(self.words, tf.int32)], -1)
        found = tf.scatter_nd(at, self.shares[:, -1], [n, tf.shape(scores)[1] + 1])
        return self._mixed(tf.nn.log_softmax(scores), found[:, 1:], found[:, :1])

    def _of(self, words):
        """Shares of these words, number + 1 [n, steps, 1]: [n, steps]."""
        return tf.reduce_sum(tf.where(tf.equal(self.words[:, None], words), self.shares, 0.0), -1)

    def _mixed(self, logs, found, empty):
        logs += tf.math.log1p(empty - self.share)
        return tf.reduce_logsumexp(tf.stack([logs, tf.math.log(found + SMALLEST)]), 0)


class Graph:
    """Reads a model as functional TensorFlow over many steps: tensors are [steps, n, width].

    weights: per step of the model its tensors by name, tables as `Table`; activation_bits: one a
    group, or None for float activations. finish(x, table, bias) makes the scores, or a loss, of
    what goes into the last product. drop: (share, seed [2]) of dropout, one mask for all steps
    (Gal and Ghahramani, 1512.05287).
    """

    def __init__(self, weights: Sequence[dict], activation_bits, finish: Callable, drop=None):
        self.weights, self.bits, self.finish, self.drop = weights, activation_bits, finish, drop
        self.n_drops = 0
        self.loads: list = []  # words of each expert
        self.penalties: list = []  # what is added to the loss in training
        self.copied: Copied | None = None

    def enter(self, i: int, step: Step) -> None:
        self.name, self.group, self.own = step.name, step.group, self.weights[i]
        self.tables = getattr(self, "tables", {}) | {
            f"{step.name}/{name.partition('/')[0]}": tensor
            for name, tensor in self.own.items()
            if isinstance(tensor, Table)
        }

    def lookup(self, name, words, vocabulary, width):
        self.words = words
        return self.own[f"{name}/table"].at(words)

    def quantized(self, name, x):
        if self.bits is None:
            return x
        return quantize_activations(x, self.own[f"{name}/clip"], self.bits[self.group], "linear")

    def product(self, name, x, units, bias=False):
        kernel = self.own[f"{name}/kernel"]
        y = tf.matmul(tf.reshape(x, [-1, kernel.shape[0]]), kernel)
        if bias:
            y += self.own[f"{name}/bias"]
        return y if x.shape.rank == 2 else tf.reshape(y, [*tf.unstack(tf.shape(x)[:-1]), units])

    def scores(self, name, x, vocabulary, table):
        if table is None:
            return self.finish(x, self.own[f"{name}/rows"], self.own[f"{name}/bias"])
        return self.finish(x, self.tables[table], self.own[f"{name}.bias/column"])

    def scan(self, body, x, state):
        n_steps = tf.shape(x)[0]
        given = tf.TensorArray(tf.float32, n_steps, element_shape=[None, x.shape[-1]]).unstack(x)
        width = state[0].shape[-1]
        made = tf.TensorArray(tf.float32, n_steps, element_shape=[None, width])

        def step(i, state, made):
            y, state = body(given.read(i), state)
            return i + 1, state, made.write(i, y)

        _, state, made = tf.while_loop(
            lambda i, *_: i < n_steps, step, (0, tuple(state), made), parallel_iterations=1
        )
        y = made.stack()
        y.set_shape([None, None, width])
        return y, state

    def width(self, x):
        return x.shape[-1]

    def split(self, x, n):
        return tf.split(x, n, -1)

    def compared(self, query, key, keys, heads, slots):
        size = query.shape[-1] // heads
        every = self._joined(keys, key)  # [n, slots + steps, .]
        of_heads = [tf.shape(every)[0], tf.shape(every)[1], heads, size]
        n_steps = tf.shape(query)[0]
        scores = tf.einsum(
            "tnhk,nshk->nhts",
            tf.reshape(query, [n_steps, -1, heads, size]),
            tf.reshape(every, of_heads),
        )
        # of a step the `slots` entries before its own
        age = tf.range(tf.shape(every)[1])[None] - tf.range(n_steps)[:, None]
        seen = (age >= 0) & (age < slots)
        shares = tf.nn.softmax(tf.where(seen, scores * size**-0.5, UNSEEN))
        return shares, every[:, -slots:]

    def collected(self, shares, value, values, heads, slots):
        every = self._joined(values, value)
        shape = [tf.shape(every)[0], tf.shape(every)[1], heads, value.shape[-1] // heads]
        found = tf.einsum("nhts,nshv->tnhv", shares, tf.reshape(every, shape))
        found = tf.reshape(found, tf.shape(value))
        found.set_shape(value.shape)
        return found, every[:, -slots:]

    @staticmethod
    def _joined(kept, new):
        """Entries [n, slots, width] and those of all steps [steps, n, width] behind them."""
        return tf.concat([kept, tf.transpose(new, [1, 0, 2])], 1)

    def recalled(self, address, value, table, last, slots):
        b = slots.bit_length() - 1
        signs = tf.cast(address[..., :b] > HASH_MARGIN, tf.int32)
        now = tf.transpose(tf.reduce_sum(signs * 2 ** np.arange(b, dtype=np.int32), -1))
        into = tf.concat([tf.cast(last, tf.int32), now[:, :-1]], 1)  # [n, steps]
        steps = tf.range(tf.shape(now)[1])
        earlier = steps[None, :] <= steps[:, None]
        same = tf.equal(now[:, :, None], into[:, None, :]) & earlier  # [n, reader, writer]
        writer = tf.reduce_max(tf.where(same, steps, -1), -1)
        every = self._joined(table, value)
        found = tf.gather(every, tf.where(writer >= 0, slots + writer, now), batch_dims=1)
        # of the entries, those written, by the last that did
        entries = tf.range(slots)
        wrote = tf.equal(entries[None, :, None], into[:, None, :])  # [n, slots, steps]
        writer = tf.reduce_max(tf.where(wrote, steps, -1), -1)
        table = tf.gather(every, tf.where(writer >= 0, slots + writer, entries), batch_dims=1)
        found = tf.transpose(found, [1, 0, 2])
        found.set_shape(value.shape)
        return found, (table, tf.cast(now[:, -1:], tf.float32))

    def cached(self, scores, x, last, keys, words, cache):
        unit = x * tf.math.rsqrt(tf.maximum(tf.reduce_sum(x * x, -1, keepdims=True), SHORTEST))
        before = tf.concat([last[None], unit[:-1]], 0)
        query = unit * (cache.sharpness * cache.width**0.5)
        shares, keys = self.compared(query, before, keys, 1, cache.slots)
        new = tf.cast(tf.transpose(self.words), tf.float32) + 1.0
        words = tf.concat([words, new], 1)
        self.copied = Copied(cache.share * shares[:, 0], words, cache.share)
        return scores, (unit[-1], keys, words[:, -cache.slots :])

    def outer_sum(self, a, b):
        joined = a[..., :, None] + b[..., None, :]
        return tf.reshape(joined, [*tf.unstack(tf.shape(a)[:-1]), a.shape[-1] * b.shape[-1]])

    def experts(self, x, scores, experts):
        """Words are sorted by expert, and those of each experts in use are one product of a batch;
        none is left out."""
        width, hidden, active = x.shape[-1], experts.hidden, experts.active
        flat, scores = tf.reshape(x, [-1, width]), tf.reshape(scores, [-1, experts.n])
        if self.drop is not None:
            shape, seed = tf.shape(scores), self.drop[1]
            scores += tf.random.stateless_normal(shape, seed - 1) / experts.n
        chances = tf.nn.softmax(scores)
        shares, which = tf.math.top_k(chances, active)  # [words, active]
        load = tf.math.bincount(tf.reshape(which, [-1]), minlength=experts.n, dtype=tf.float32)
        self.loads.append(load)
        even = load / tf.reduce_sum(load) * tf.reduce_mean(chances, 0)
        even = experts.n * tf.reduce_sum(even)
        self.penalties.append(experts.balance * even)

        used, at = tf.unique(tf.reshape(which, [-1]))  # at: [words · active] place among the used
        n_used = tf.shape(used)[0]
        counts = tf.math.bincount(at, minlength=n_used)
        longest = tf.reduce_max(counts)
        order = tf.argsort(at, stable=True)
        place = tf.range(tf.shape(at)[0]) - tf.gather(tf.cumsum(counts, exclusive=True),
                                                      tf.gather(at, order))  # fmt: skip
        slot = tf.gather(at, order) * longest + place
        word = order // active
        source = tf.scatter_nd(slot[:, None], word + 1, [n_used * longest])
        padded = tf.concat([tf.zeros([1, width]), flat], 0)
        y = tf.reshape(tf.gather(padded, source), [n_used, longest, width])
        y = tf.matmul(y, tf.reshape(self.own["up/table"].at(used), [-1, width, hidden]))
        y = self.quantized("inner", tf.nn.relu(y))
        y = tf.matmul(y, tf.reshape(self.own["down/table"].at(used), [-1, hidden, width]))
        y = tf.gather(tf.reshape(y, [-1, width]), slot)  # [words · active, width], sorted
        shares = tf.gather(tf.reshape(shares, [-1]), order)
        y = tf.math.unsorted_segment_sum(y * shares[:, None], word, tf.shape(flat)[0])
        y = tf.reshape(y, tf.shape(x))
        y.set_shape(x.shape)
        return y

    def function(self, name, x):
        return x if name == "identity" else getattr(tf, name, tf.nn.relu)(x)

    def dropout(self, x):
        if self.drop is None:
            return x
        share, seed = self.drop
        self.n_drops += 1
        drawn = tf.random.stateless_uniform([1, tf.shape(x)[1], x.shape[-1]], seed + self.n_drops)
        return x * (tf.cast(drawn >= share, tf.float32) / (1.0 - share))


class Magnitudes(Graph):
    """Reads a model in float and writes down the mean size of all that is quantized."""

    def __init__(self, weights, finish):
        super().__init__(weights, None, finish)
        self.found: dict[str, list[float]] = {}

    def quantized(self, name, x):
        mean = mean_magnitude(x, "linear").numpy()
        self.found.setdefault(f"{self.name}/{name}", []).append(mean)
        return x
