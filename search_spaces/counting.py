"""Language models as counts: what an operation of `sequence.py` learns, and its rows for the
hardware model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwmodel import workload
from hwmodel.compound import SOFTMAX_OPS
from hwmodel.layer_row import DRAM_BURST_BYTES, PRODUCT, VECTOR, make_row
from search_spaces.ops import Parameter, Precision

if TYPE_CHECKING:
    from search_spaces.memory import CachedOutput, Experts

ANY_PRECISION = Precision(8, 8)  # where only parameters are counted
TABLE_SPREAD = 0.1  # standard deviation of fresh rows of tables of words
ONE_OP = 1  # vector operations a word of any function, as `hwmodel.compound` counts them
CHANGE_OPS = 4  # exponential, product, sum, logarithm: a score by a share of the chances
UNIT_OPS = 3  # square, sum, product with the root's inverse: a vector to length 1


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

    def cached(self, scores, x, last: Words, keys: Words, words: Words, cache: CachedOutput):
        query = self.vector(x.width, UNIT_OPS)
        self.read, self.written = self.read + x.width, self.written + x.width
        self.flush("unit")
        at = self.steps, x.width, cache.slots
        self._of_activations("cache", 1, at, self.precision.activations)
        # the sum of all chances, undivided; only scores of words that were found change
        self.vector(scores.width, SOFTMAX_OPS - 1)
        self.vector(cache.slots, SOFTMAX_OPS + CHANGE_OPS)
        self.read += scores.width + cache.slots
        self.written += 2 * cache.slots
        self.flush("chances")
        return Words(self, scores.width), (query, keys, words)

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
