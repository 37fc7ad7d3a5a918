"""Operations over sequences of words, each written once.

An operation says what it does in `run(do, x, state)`, and a *reader* carries it out:

    Count       (here) widths alone: its parameters, and its rows for the hardware model
    Graph       (nas/language.py) functional TensorFlow over many steps at once, for training
    KerasStep   (here) standard Keras layers of one step, for the exported model

A reader offers `lookup`, `quantized`, `product`, `split`, `scan`, `dropout`, `scores` and the
functions of FUNCTIONS; sums, differences and products of tensors are written as such. What
`scan` goes over waits for the step before; all else is done for all steps at once.

Precision in hardware is that of `ops`: products read activations in the chosen bits, signed, the
clip learned; sums, gates and states between them are kept in 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from hwmodel import workload
from hwmodel.compound import SOFTMAX_OPS
from hwmodel.layer_row import DRAM_BURST_BYTES, PRODUCT, VECTOR, make_row
from hwmodel.workload import Layers
from search_spaces.network import Place, Step
from search_spaces.ops import Activation, Parameter, Precision

if TYPE_CHECKING:
    from search_spaces.compression import Compression
    from search_spaces.memory import Experts

ANY_PRECISION = Precision(8, 8)  # where only parameters are counted
FUNCTIONS = ("tanh", "relu", "sigmoid", "identity")
TABLE_SPREAD = 0.1  # standard deviation of fresh rows of tables of words
TABLES = "/table", "/rows"  # as the names of kernels end of which a step reads a few rows
HASH_MARGIN = 1e-5  # above which a sum counts as positive, so that rounding makes no difference
ONE_OP = 1  # vector operations a word of any function, as `hwmodel.compound` counts them


class Operation:
    """What all operations share: parameters and costs are counted from `run`.

    shape, parameters, cost: as of `ops.Operation`; a shape is (width,), one word's. state: the
    shapes of what it keeps from step to step, one sequence's.
    """

    def run(self, do, x, state: tuple) -> tuple:
        """(output, new state)."""
        raise NotImplementedError

    @property
    def state(self) -> tuple[tuple[int, ...], ...]:
        return ()

    def counted(self, width: int, **serving) -> Count:
        count = Count(**serving)
        state = tuple(Words(count, shape[-1]) for shape in self.state)
        count.out, _ = self.run(count, Words(count, width), state)
        return count

    def shape(self, inputs) -> tuple[int]:
        return (self.counted(inputs[0][0]).out.width,)

    def parameters(self, inputs) -> list[Parameter]:
        return self.counted(inputs[0][0]).parameters

    def cost(
        self,
        name: str,
        inputs,
        precision: Precision,
        batch: int,
        steps: int,
        tied_bits: int = 0,
        index_bits: int = 0,
    ) -> list:
        """Rows of `steps` words of `batch` sequences; tied_bits: of a table of another operation
        that it shares; index_bits: of weights in a codebook, as of `hwmodel`."""
        serving = dict(batch=batch, steps=steps, tied_bits=tied_bits, index_bits=index_bits)
        return self.counted(inputs[0][0], name=name, precision=precision, **serving).rows

    def keras_weights(self, name, weights, moments) -> dict[str, list]:
        """Where tensors go in the layers of `KerasStep`: layer name -> arrays."""
        found: dict[str, list] = {}
        for parameter, tensor in weights.items():
            layer, _, what = parameter.partition("/")
            if what in ("kernel", "bias"):  # a bias comes behind its kernel
                found.setdefault(f"{name}.{layer}", []).append(tensor)
            elif what == "table":
                found[f"{name}.{layer}"] = [tensor]
            elif what == "column":
                found[f"{name}.{layer}"] = [tensor[:, None]]
            elif what == "rows":  # of a product whose outputs are rows: transposed in Keras
                found.setdefault(f"{name}.{layer}", []).append(np.ascontiguousarray(tensor.T))
        return found


# -- counting --------------------------------------------------------------------------------------


class Words:
    """A tensor of which only the width is known; what is done to it is counted."""

    def __init__(self, count: Count, width: int):
        self.count, self.width = count, width

    def _joined(self, other) -> Words:
        if isinstance(other, Words) and other.width != self.width:
            raise ValueError(f"tensors of {self.width} and {other.width} words are joined")
        return self.count.vector(self.width)

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _joined


class Count:
    """Reads an operation as counts: `parameters`, and `rows` of `steps` words of `batch` sequences.

    Vector work between two products is one row.
    """

    def __init__(
        self,
        name: str = "",
        precision: Precision = ANY_PRECISION,
        batch: int = 1,
        steps: int = 1,
        tied_bits: int = 0,
        index_bits: int = 0,
    ):
        self.name, self.precision, self.batch, self.steps = name, precision, batch, steps
        self.tied_bits, self.index_bits = tied_bits, index_bits
        self.parameters: list[Parameter] = []
        self.rows: list = []
        self.clipped: dict[str, int] = {}  # clip -> width of what it bounds
        self.in_turn = False  # whether steps wait for each other
        self.ops = self.read = self.written = 0  # vector work a step that has no row yet

    @property
    def bits(self) -> dict:
        weights, activations = self.precision
        return dict(
            weight_bits=weights,
            index_bits=self.index_bits,
            activation_bits=activations,
            output_bits=self.precision.sums,
        )

    def vector(self, width: int, ops: int = ONE_OP) -> Words:
        self.ops += ops * width
        return Words(self, width)

    def flush(self, part: str) -> None:
        """Make a row of the vector work so far."""
        if self.ops:
            n = self.batch * self.steps
            self.rows.append(
                make_row(
                    f"{self.name}.{part}",
                    VECTOR,
                    batch=self.batch,
                    steps=self.steps if self.in_turn else 1,
                    input_words=n * self.read,
                    output_words=n * self.written,
                    vector_ops=n * self.ops,
                    activation_bits=self.precision.sums,
                    output_bits=self.precision.activations,
                )
            )
        self.ops = self.read = self.written = 0

    def lookup(self, name: str, words, vocabulary: int, width: int) -> Words:
        shape = (vocabulary, width)
        self.parameters.append(Parameter(f"{name}/table", shape, "kernel", TABLE_SPREAD))
        self.rows.append(
            workload.embedding(
                f"{self.name}.{name}",
                vocabulary=vocabulary,
                features=width,
                lookups=self.steps,
                batch=self.batch,
                **self.bits | {"output_bits": self.precision.weights},
            )
        )
        return Words(self, width)

    def quantized(self, name: str, x: Words) -> Words:
        self.parameters.append(Parameter(f"{name}/clip", (), "clip"))
        self.clipped[f"{name}/clip"] = x.width
        self.ops += x.width
        self.read, self.written = self.read + x.width, self.written + x.width
        return Words(self, x.width)

    def product(self, name: str, x: Words, units: int, bias: bool = False) -> Words:
        shape = (x.width, units)
        self.parameters.append(Parameter(f"{name}/kernel", shape, "kernel", x.width**-0.5))
        if bias:
            self.parameters.append(Parameter(f"{name}/bias", (units,), "shift"))
        if not self.in_turn:
            self.flush(f"{name}.quantized")
            self.rows.append(
                workload.dense(
                    f"{self.name}.{name}",
                    in_features=x.width,
                    out_features=units,
                    positions=self.steps,
                    batch=self.batch,
                    bias=bias,
                    **self.bits,
                )
            )
        else:  # states and sums stay on chip from step to step
            self.read += units
            self.rows.append(
                make_row(
                    f"{self.name}.{name}",
                    PRODUCT,
                    batch=self.batch,
                    m=self.batch * self.steps,
                    k=x.width,
                    n=units,
                    steps=self.steps,
                    input_words=self.batch * x.width,
                    output_words=self.batch * units,
                    weights=x.width * units,
                    bias_words=units if bias else 0,
                    **self.bits,
                )
            )
        return Words(self, units)

    def scores(self, name: str, x: Words, vocabulary: int, table: str | None) -> Words:
        self.flush(f"{name}.quantized")
        if table is None:
            shape = (vocabulary, x.width)
            self.parameters.append(Parameter(f"{name}/rows", shape, "kernel", x.width**-0.5))
            self.parameters.append(Parameter(f"{name}/bias", (vocabulary,), "shift"))
        else:  # a layer of its own in Keras
            self.parameters.append(Parameter(f"{name}.bias/column", (vocabulary,), "shift"))
        row = workload.dense(
            f"{self.name}.{name}",
            in_features=x.width,
            out_features=vocabulary,
            positions=self.steps,
            batch=self.batch,
            bias=True,
            **self.bits | ({} if table is None else {"weight_bits": self.tied_bits or 8}),
        )
        # a table that is shared is stored where words are looked up
        self.rows.append(row if table is None else row._replace(weights=0, params=vocabulary))
        return Words(self, vocabulary)

    def compared(self, query: Words, key: Words, keys: Words, heads: int, slots: int):
        self.flush("quantized")
        at = self.steps, query.width // heads, slots
        self._of_activations("scores", heads, at, self.precision.activations)
        self.vector(heads * slots, SOFTMAX_OPS)
        self.read, self.written = self.read + heads * slots, self.written + heads * slots
        return Words(self, heads * slots), keys

    def collected(self, shares: Words, value: Words, values: Words, heads: int, slots: int):
        self.flush("softmax")
        at = self.steps, slots, value.width // heads
        self._of_activations("context", heads, at, self.precision.sums)
        return Words(self, value.width), values

    def _of_activations(self, part: str, heads: int, shape: tuple, bits: int) -> None:
        """The row of products of activations in `bits` and of what a memory keeps."""
        options = dict(activation_bits=bits, output_bits=self.precision.sums)
        row = workload.product_of_activations(
            f"{self.name}.{part}", self.batch, heads, shape, options
        )
        self.rows.append(row._replace(weight_bits=self.precision.activations))

    def recalled(self, address: Words, value: Words, table: Words, last: Words, slots: int):
        entry_bytes = -(-value.width * self.precision.activations // 8)
        n = self.batch * self.steps
        row = make_row(
            f"{self.name}.entry",
            VECTOR,
            batch=self.batch,
            input_words=n * address.width,
            output_words=n * value.width,
            vector_ops=n * address.width,
            gather_bytes=2 * n * max(entry_bytes, DRAM_BURST_BYTES),  # one read, one written
            activation_bits=self.precision.sums,
            output_bits=self.precision.activations,
        )
        self.rows.append(row)
        return Words(self, value.width), (table, last)

    def experts(self, x: Words, scores: Words, experts: Experts) -> Words:
        rows = (experts.n, x.width * experts.hidden)
        for name, fan_in in (("up", x.width), ("down", experts.hidden)):
            self.parameters.append(Parameter(f"{name}/table", rows, "kernel", fan_in**-0.5))
        self.parameters.insert(-1, Parameter("inner/clip", (), "clip"))
        self.clipped["inner/clip"] = experts.active * experts.hidden
        self.rows += workload.mixture_of_experts(
            self.name,
            features=x.width,
            hidden=experts.hidden,
            experts=experts.n,
            active=experts.active,
            tokens=self.steps,
            batch=self.batch,
            **self.bits,
        )[1:]  # its router is another
        return Words(self, x.width)

    def outer_sum(self, a: Words, b: Words) -> Words:
        return self.vector(a.width * b.width)

    def scan(self, body, x: Words, state: tuple) -> tuple[Words, tuple]:
        self.flush("before")
        self.in_turn = True
        self.read += x.width
        y, state = body(x, state)
        self.written += y.width
        self.flush("gates")
        self.in_turn = False
        return y, state

    def width(self, x: Words) -> int:
        return x.width

    def split(self, x: Words, n: int | tuple[int, ...]) -> list[Words]:
        return [Words(self, width) for width in ([x.width // n] * n if isinstance(n, int) else n)]

    def function(self, name: str, x: Words) -> Words:
        return x if name == "identity" else self.vector(x.width)

    def dropout(self, x: Words) -> Words:
        return x  # there is none in serving


# -- Keras -----------------------------------------------------------------------------------------


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


# -- operations ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Embedding(Operation):
    """Words as vectors, from a table of `vocabulary` rows.

    rank: of the table, which is then followed by a product that widens it to `width` (Lan et al.,
    1909.11942, section 3.1); 0: the table itself is that wide.
    """

    vocabulary: int
    width: int
    rank: int = 0

    def run(self, do, x, state):
        y = do.lookup("words", x, self.vocabulary, self.rank or self.width)
        if self.rank:
            y = do.product("widen", do.quantized("narrow", y), self.width)
        return do.dropout(y), state


@dataclass(frozen=True)
class Output(Operation):
    """The score of every word of the vocabulary as the next one.

    tied: the table that is shared with the embedding (Press & Wolf, 1608.05859), "" for one of its
    own; table_width: of that table; what is wider or narrower is projected first.
    """

    vocabulary: int
    tied: str = ""
    table_width: int = 0

    def run(self, do, x, state):
        x = do.dropout(x)
        if self.tied and self.table_width != do.width(x):
            x = do.product("project", do.quantized("wide", x), self.table_width)
        x = do.quantized("features", x)
        return do.scores("scores", x, self.vocabulary, self.tied or None), state


# -- models ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LanguageModel:
    """Operations one after the other, from words to the scores of the next word; hashable: equal
    ones share a compiled program.

    groups: the names of the bit-width groups. served: words of a sequence that is priced; trained:
    words that gradients go back over. Neither changes what is learned.
    """

    steps: tuple[Step, ...]
    vocabulary: int
    groups: tuple[str, ...]
    served: int = field(default=1, compare=False)
    trained: int = field(default=1, compare=False)

    @cached_property
    def inputs(self) -> list[list[tuple[int]]]:
        """The shapes that each step reads."""
        shape, inputs = (1,), []
        for step in self.steps:
            inputs.append([shape])
            shape = step.op.shape([shape])
        return inputs

    @cached_property
    def places(self) -> list[Place]:
        """Every learned tensor, in the order of the steps."""
        return [
            Place(i, step.group, parameter)
            for i, step in enumerate(self.steps)
            for parameter in step.op.parameters(self.inputs[i])
        ]

    def width_of(self, clip: Place) -> int:
        """How many words a clip bounds of one word's activations."""
        counted = self.steps[clip.step].op.counted(self.inputs[clip.step][0][0])
        return counted.clipped[clip.parameter.name]

    @property
    def state_shapes(self) -> list[tuple[int, ...]]:
        """What all steps keep, in shapes of one sequence."""
        return [shape for step in self.steps for shape in step.op.state]

    def run(self, do, words, state: Sequence) -> tuple:
        """What the reader `do` makes of it: (scores, new state as one list)."""
        x, given, kept = words, iter(state), []
        for i, step in enumerate(self.steps):
            do.enter(i, step)
            own = tuple(next(given) for _ in step.op.state)
            x, own = step.op.run(do, x, own)
            kept += own
        return x, kept

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates a word."""
        full = [Precision(8, 8)] * len(self.groups)
        return int(self.rows(full, 1, 1).macs[0])

    @property
    def training_flops(self) -> int:
        """Floating-point operations of a training step a word, scores of all words included."""
        return 6 * self.macs

    def rows(
        self,
        precisions: Sequence[Precision],
        batch: int,
        steps: int,
        compressions: Sequence[Compression] | None = None,
    ) -> Layers:
        """Rows of `steps` words of `batch` sequences."""
        rows = []
        for step, inputs in zip(self.steps, self.inputs, strict=True):
            precision = precisions[step.group]
            tied_bits = precisions[self.steps[0].group].weights  # the embedding's
            index_bits = compressions[step.group].index_bits if compressions else 0
            rows += step.op.cost(step.name, inputs, precision, batch, steps, tied_bits, index_bits)
        return Layers.from_rows(rows)

    def layers(
        self,
        precisions: Sequence[Precision],
        batch: int,
        compressions: Sequence[Compression] | None = None,
    ) -> Layers:
        """Rows for the hardware model: `batch` sequences of `served` words; precisions and
        compressions: one a group, of which only codebooks are known here."""
        return self.rows(precisions, batch, self.served, compressions)

    def training_layers(self, bits: int, batch: int) -> Layers:
        """Rows of the forward pass in training, all words of `bits`, as `hwmodel.training` takes
        them: `batch` sequences of `trained` words, the scores of the whole vocabulary."""
        return self.rows([Precision(bits, bits)] * len(self.groups), batch, self.trained)

    def keras(
        self, clips: Sequence[float] | None = None, activation_bits: Sequence[int] | None = None
    ):
        """One step as a plain functional `keras.Model`, with its own fresh weights.

        From [words int32 [n], states [n, ...]] to [scores [n, vocabulary], new states]: called
        once a word, with the states of the call before, zeros at first. clips: as of
        `Network.keras`, the learned ones in order, with activation_bits one a group.
        """
        import keras

        words = keras.Input((), dtype="int32", name="words")
        states = [keras.Input(shape, name=f"state{i}") for i, shape in enumerate(self.state_shapes)]
        scores, kept = self.run(KerasStep(clips, activation_bits), words, states)
        return keras.Model([words, *states], [scores, *kept])
