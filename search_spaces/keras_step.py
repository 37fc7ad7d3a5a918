"""Language models as Keras models: one step of an operation of `sequence.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from search_spaces.counting import TABLE_SPREAD
from search_spaces.ops import Activation

if TYPE_CHECKING:
    from search_spaces.memory import CachedOutput, Experts
    from search_spaces.network import Step

SHORTEST = 1e-12  # a square: vectors below it have no direction
SMALLEST = 1e-30  # chance, in logarithms
HASH_MARGIN = 1e-5  # above which a sum counts as positive, so that rounding makes no difference


class KerasStep:
    """Builds operations from standard Keras layers: one word of each of n sequences.

    clips: the learned clips of all operations in order, with activation_bits one a group; None for
    the float network.
    """

    def __init__(self, clips: Sequence[float] | None, activation_bits: Sequence[int] | None):
        self.clips = None if clips is None else iter(clips)
        self.bits = activation_bits
        self.tables: dict = {}

    def enter(self, i: int, step: Step) -> None:
        self.name, self.group = step.name, step.group

    def lookup(self, name, words, vocabulary: int, width: int):
        import keras

        table = keras.layers.Embedding(
            vocabulary,
            width,
            embeddings_initializer=keras.initializers.RandomNormal(stddev=TABLE_SPREAD),
            name=f"{self.name}.{name}",
        )
        # every word's number in order, made of the words given, as shared weights need a tensor
        first = keras.ops.take(words, [0], axis=0)
        self.every = keras.ops.cumsum(keras.ops.ones_like(keras.ops.repeat(first, vocabulary))) - 1
        self.tables[f"{self.name}/{name}"] = table
        self.words = words
        return table(words)

    def quantized(self, name, x):
        name = f"{self.name}.{name}.quantized"
        if self.clips is None:
            return Activation("linear").keras([x], name, None, None)
        return Activation("linear").keras([x], name, next(self.clips), self.bits[self.group])

    def product(self, name, x, units: int, bias: bool = False):
        import keras

        return keras.layers.Dense(units, use_bias=bias, name=f"{self.name}.{name}")(x)

    def scores(self, name, x, vocabulary: int, table: str | None):
        import keras

        name = f"{self.name}.{name}"
        if table is None:
            return keras.layers.Dense(vocabulary, name=name)(x)
        zero = keras.initializers.Zeros()
        bias = keras.layers.Embedding(vocabulary, 1, zero, name=f"{name}.bias")(self.every)
        rows = keras.ops.transpose(self.tables[table](self.every))
        return keras.ops.matmul(x, rows) + keras.ops.reshape(bias, (1, vocabulary))

    def scan(self, body, x, state: tuple) -> tuple:
        return body(x, state)

    def width(self, x) -> int:
        return x.shape[-1]

    def split(self, x, n: int | tuple[int, ...]) -> list:
        import keras

        parts = n if isinstance(n, int) else np.cumsum(n)[:-1].tolist()
        return keras.ops.split(x, parts, -1)

    def compared(self, query, key, keys, heads: int, slots: int):
        from keras import ops

        size = query.shape[-1] // heads
        of_slots = ops.transpose(ops.reshape(keys, (-1, slots, heads, size)), (0, 2, 3, 1))
        scores = ops.matmul(ops.reshape(query, (-1, heads, 1, size)), of_slots)
        shares = ops.softmax(scores * size**-0.5, axis=-1)  # [n, heads, 1, slots]
        return shares, self._pushed(keys, key, slots)

    def collected(self, shares, value, values, heads: int, slots: int):
        from keras import ops

        width = value.shape[-1]
        of_slots = ops.transpose(
            ops.reshape(values, (-1, slots, heads, width // heads)), (0, 2, 1, 3)
        )
        found = ops.reshape(ops.matmul(shares, of_slots), (-1, width))
        return found, self._pushed(values, value, slots)

    @staticmethod
    def _pushed(kept, new, slots: int):
        """The entries [n, slots, width] without the oldest and with a new one."""
        from keras import ops

        new = ops.expand_dims(new, 1)
        return ops.concatenate([ops.take(kept, np.arange(1, slots), axis=1), new], 1)

    def recalled(self, address, value, table, last, slots: int):
        from keras import ops

        b = slots.bit_length() - 1
        signs = ops.cast(ops.take(address, np.arange(b), axis=1) > HASH_MARGIN, "int32")
        now = ops.sum(signs * 2 ** np.arange(b)[None], -1, keepdims=True)
        written = ops.one_hot(ops.cast(last[:, 0], "int32"), slots)[:, :, None]
        table = table * (1.0 - written) + written * ops.expand_dims(value, 1)
        found = ops.sum(table * ops.one_hot(now[:, 0], slots)[:, :, None], 1)
        return found, (table, ops.cast(now, "float32"))

    def cached(self, scores, x, last, keys, words, cache: CachedOutput):
        from keras import ops

        length = ops.rsqrt(ops.maximum(ops.sum(x * x, -1, keepdims=True), SHORTEST))
        query = x * length * (cache.sharpness * cache.width**0.5)
        shares, keys = self.compared(query, last, keys, 1, cache.slots)
        came = ops.one_hot(ops.cast(words, "int32"), cache.vocabulary + 1)  # [n, slots, .]
        found = cache.share * ops.sum(ops.reshape(shares, (-1, cache.slots, 1)) * came, 1)
        rest = ops.log1p(found[:, :1] - cache.share)  # what the cache leaves to the output
        scores = ops.logaddexp(ops.log_softmax(scores) + rest, ops.log(found[:, 1:] + SMALLEST))
        new = ops.expand_dims(ops.cast(self.words, "float32") + 1.0, 1)
        return scores, (x * length, keys, ops.concatenate([words[:, 1:], new], 1))

    def outer_sum(self, a, b):
        from keras import ops

        return ops.reshape(
            ops.expand_dims(a, -1) + ops.expand_dims(b, -2), (-1, a.shape[-1] * b.shape[-1])
        )

    def experts(self, x, scores, experts: Experts):
        import keras
        from keras import ops

        shares = ops.softmax(scores, axis=-1)
        shares, which = ops.top_k(shares, experts.active)  # [n, active]
        width, hidden = x.shape[-1], experts.hidden
        up, down = (
            keras.layers.Embedding(experts.n, width * hidden, name=f"{self.name}.{name}")(which)
            for name in ("up", "down")
        )
        x = ops.reshape(x, (-1, 1, 1, width))
        y = ops.relu(ops.matmul(x, ops.reshape(up, (-1, experts.active, width, hidden))))
        y = self.quantized("inner", y)
        y = ops.matmul(y, ops.reshape(down, (-1, experts.active, hidden, width)))
        return ops.sum(y[:, :, 0] * ops.expand_dims(shares, -1), 1)

    def function(self, name: str, x):
        import keras

        return x if name == "identity" else getattr(keras.ops, name)(x)

    def dropout(self, x):
        return x
