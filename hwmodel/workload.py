"""Workloads: what a network asks of a machine, one row per layer, many networks in one table.

A row is a matrix product (`groups` products of M x K x N, the batch inside M), a depthwise
convolution (the same, with a choice of engine), a product of two activations, a mixture's experts,
or vector work (operations and words). Constructors turn a layer's own dimensions into a `Row`, or a
list of them; `Layers` holds rows as flat columns with network offsets, so that a thousand networks
are priced by the same few array operations as one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hwmodel.compound import (
    attention,
    expert_loads,
    gru,
    lstm,
    mixture_of_experts,
    product_of_activations,
)
from hwmodel.layer_row import (
    ATTENTION,
    BIAS_BITS,
    COLUMNS,
    DEPTHWISE,
    EXPERTS,
    PRODUCT,
    REAL_COLUMNS,
    VECTOR,
    Row,
    with_storage,
)
from hwmodel.operations import (
    LAYER_NORM_OPS,
    conv,
    dense,
    depthwise,
    elementwise,
    embedding,
    normalization,
    pool,
    transposed_conv,
)

if TYPE_CHECKING:
    import keras

__all__ = [
    "ATTENTION",
    "BIAS_BITS",
    "COLUMNS",
    "DEPTHWISE",
    "EXPERTS",
    "LAYER_NORM_OPS",
    "PRODUCT",
    "VECTOR",
    "Layers",
    "Row",
    "attention",
    "conv",
    "dense",
    "depthwise",
    "elementwise",
    "embedding",
    "gru",
    "lstm",
    "mixture_of_experts",
    "normalization",
    "pool",
    "product_of_activations",
    "transposed_conv",
    "with_storage",
]


class Layers:
    """Rows of one or many networks as columns of one length.

    Arrays of shape [n_rows], int64 so that counts past 2**24 stay exact:
    `kind` (`PRODUCT`, `DEPTHWISE`, `VECTOR`, `ATTENTION`, `EXPERTS`), `batch`, `m`, `k`, `n` (of
    one product), `groups` (independent products), `steps` (parts of M, or of the vector work, that
    wait for each other, with the same weights), `input_words` (touched, of one product and one
    step; of the whole row where it is vector work), `output_words`, `vector_ops` (if the row runs
    on the vector unit), `gather_bytes` (read from DRAM at random), `weights` (stored at
    `weight_bits`), `row_params_once` (all parameters stored, `weights` included; 0 for a further
    call of a shared layer), `bias_words` (read at 32 bits: biases, scales),
    `weight_bits` (of the second operand, as multiplied), `index_bits` (of each weight's index into
    a codebook of 2**index_bits words; 0 without one), `activation_bits`, `output_bits`, `nm_n` and
    `nm_m` (N non-zero weights in every M; 0 without such a pattern), `kernel_height`,
    `kernel_width` and `out_height` (of a convolution; 1 of any other row), `repeat` (how often the
    layer is run, each time with its own weights). Columns of one repeat, but for `repeat`.
    Float64: `density` (share of the weights that is not zero), `imbalance` (load of an expert
    over the mean). `names` is an object array [n_rows]; `offsets` [n_networks + 1] says that
    network i owns rows offsets[i]:offsets[i + 1].
    """

    def __init__(self, names: np.ndarray, columns: dict[str, np.ndarray], offsets: np.ndarray):
        self.names = names
        self.offsets = offsets
        self.kind = columns["kind"]
        self.batch = columns["batch"]
        self.m = columns["m"]
        self.k = columns["k"]
        self.n = columns["n"]
        self.groups = columns["groups"]
        self.steps = columns["steps"]
        self.input_words = columns["input_words"]
        self.output_words = columns["output_words"]
        self.vector_ops = columns["vector_ops"]
        self.gather_bytes = columns["gather_bytes"]
        self.weights = columns["weights"]
        self.row_params_once = columns["params"]
        self.bias_words = columns["bias_words"]
        self.weight_bits = columns["weight_bits"]
        self.index_bits = columns["index_bits"]
        self.activation_bits = columns["activation_bits"]
        self.output_bits = columns["output_bits"]
        self.density = columns["density"]
        self.nm_n = columns["nm_n"]
        self.nm_m = columns["nm_m"]
        self.imbalance = columns["imbalance"]
        self.kernel_height = columns["kernel_height"]
        self.kernel_width = columns["kernel_width"]
        self.out_height = columns["out_height"]
        self.repeat = columns["repeat"]
        self._columns = columns

    @classmethod
    def from_rows(cls, rows: Iterable[Row | Sequence[Row]]) -> Layers:
        """One network from its rows, or lists of rows, in the order they run. Raises ValueError for
        none."""
        rows = [row for each in rows for row in ([each] if isinstance(each, Row) else each)]
        if not rows:
            raise ValueError(
                "a network needs at least one row, got none; build rows with "
                "hwmodel.workload.conv, dense, pool, ..."
            )
        # Floats are exact too: `layer_row.make_row` admits no count past 2**53.
        table = np.array([row[1:] for row in rows], dtype=np.float64)  # [n_rows, n_columns]
        names = np.empty(len(rows), dtype=object)
        names[:] = [row.name for row in rows]
        columns = {
            field: table[:, i].astype(np.float64 if field in REAL_COLUMNS else np.int64)
            for i, field in enumerate(COLUMNS)
        }
        return cls(names, columns, np.array([0, len(rows)], dtype=np.int64))

    @classmethod
    def from_keras(
        cls,
        model: keras.Model,
        batch: int = 1,
        *,
        weight_bits: int = 8,
        activation_bits: int = 8,
        skip: Sequence[str] = (),
    ) -> Layers:
        """The network of a Keras 3 model; see `hwmodel.from_keras.rows_of`."""
        from hwmodel.from_keras import rows_of

        return cls.from_rows(
            rows_of(
                model,
                batch,
                weight_bits=weight_bits,
                activation_bits=activation_bits,
                skip=skip,
            )
        )

    @classmethod
    def concat(cls, many: Sequence[Layers]) -> Layers:
        """The networks of all of `many`, in order. Raises ValueError when there is none."""
        if not many:
            raise ValueError("concat needs at least one Layers, got an empty sequence")
        starts = np.cumsum([0] + [len(layers) for layers in many])
        ends = [layers.offsets[1:] + start for layers, start in zip(many, starts[:-1], strict=True)]
        offsets = np.concatenate([[0], *ends]).astype(np.int64)
        columns = {
            field: np.concatenate([layers._columns[field] for layers in many]) for field in COLUMNS
        }
        return cls(np.concatenate([layers.names for layers in many]), columns, offsets)

    def __len__(self) -> int:
        return len(self.kind)

    def __repr__(self) -> str:
        return f"Layers({self.n_networks} networks, {len(self)} rows)"

    @property
    def n_networks(self) -> int:
        return len(self.offsets) - 1

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The columns by the names in `layer_row.COLUMNS`, as the constructor takes them."""
        return dict(self._columns)

    @property
    def network_of_row(self) -> np.ndarray:
        """[n_rows] the network that each row belongs to."""
        return np.repeat(np.arange(self.n_networks), np.diff(self.offsets))

    @property
    def row_macs(self) -> np.ndarray:
        """[n_rows] multiply-accumulates, repeats included; vector rows have none."""
        return self.m * self.k * self.n * self.groups * self.repeat

    @property
    def row_params(self) -> np.ndarray:
        """[n_rows] parameters, repeats included."""
        return self.row_params_once * self.repeat

    @property
    def macs(self) -> np.ndarray:
        """[n_networks] multiply-accumulates for the whole batch."""
        return np.add.reduceat(self.row_macs, self.offsets[:-1])

    @property
    def params(self) -> np.ndarray:
        """[n_networks] parameters."""
        return np.add.reduceat(self.row_params, self.offsets[:-1])

    @property
    def word_bits(self) -> np.ndarray:
        """[n_rows] bits that stand for one weight in memory: its index where there is a codebook,
        else the weight itself."""
        coded = self.index_bits > 0
        if not coded.any():
            return self.weight_bits
        return np.where(coded, self.index_bits, self.weight_bits)

    @property
    def codebook_bytes(self) -> np.ndarray:
        """[n_rows] the words that the indices stand for, one codebook a layer; read once a repeat,
        into tables beside the multipliers (Han et al., ISCA 2016)."""
        coded = self.index_bits > 0
        if not coded.any():
            return np.zeros(len(self))
        return (1 << self.index_bits) * self.weight_bits * coded / 8

    @property
    def stored_weight_bits(self) -> np.ndarray:
        """[n_rows] bits that a weight takes, zeros squeezed out.

        Of words of b bits (`word_bits`), N:M: N/M·(b + ceil(log2 M)), the place of each non-zero in
        its group of M (Mishra et al., arXiv 2104.08378). Any other density d: d·b + 1, a bit map
        (Gondimalla et al., MICRO 2019). Never more than b, what it takes with the zeros.
        """
        word_bits = self.word_bits
        if (self.density == 1).all():  # of most tables, and each slab of pairs asks again
            return word_bits.astype(np.float64)
        place_bits = np.ceil(np.log2(np.maximum(self.nm_m, 1)))
        squeezed = np.where(
            self.nm_m > 0,
            self.density * (word_bits + place_bits),
            self.density * word_bits + 1,
        )
        return np.minimum(squeezed, word_bits)

    @property
    def parameter_bytes(self) -> np.ndarray:
        """[n_rows] stored parameters per repeat: weights as squeezed and their codebook, others at
        32 bits."""
        others = self.row_params_once - self.weights
        codebooks = self.codebook_bytes * (self.weights > 0)
        return (self.weights * self.stored_weight_bits + others * BIAS_BITS) / 8 + codebooks

    @property
    def network_parameter_bytes(self) -> np.ndarray:
        """[n_networks] stored parameters, repeats included."""
        return np.add.reduceat(self.parameter_bytes * self.repeat, self.offsets[:-1])

    @property
    def bias_bytes(self) -> np.ndarray:
        """[n_rows] biases and scales that one repeat reads."""
        return self.bias_words * (BIAS_BITS / 8)

    @property
    def operand_bytes(self) -> np.ndarray:
        """[n_rows] second operands of one repeat, each once: the weights in use and their codebook,
        or an attention product's other activations."""
        words = self.k * self.n * self.groups * self.stored_weight_bits / 8
        return words + self.codebook_bytes

    def as_networks(self) -> Layers:
        """The same rows, each as a network of its own."""
        return Layers(self.names, self._columns, np.arange(len(self) + 1))

    def network(self, index: int) -> Layers:
        """The table of one network. Raises IndexError past the end."""
        return self.take([index])

    def take(self, networks: Sequence[int] | np.ndarray) -> Layers:
        """The table of the networks named, in that order; repeats are allowed."""
        networks = np.arange(self.n_networks)[np.asarray(networks, dtype=np.int64)]
        lengths = np.diff(self.offsets)[networks]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[networks] - offsets[:-1], lengths)
        return self._rows(rows, offsets)

    def keep(self, mask: np.ndarray) -> Layers:
        """The rows where `mask` [n_rows] holds; a network that loses all its rows stays, empty."""
        counts = np.concatenate([[0], np.cumsum(mask)])
        return self._rows(np.flatnonzero(mask), counts[self.offsets])

    def with_batch(self, batch: int | np.ndarray) -> Layers:
        """The same networks at another batch: a scalar, or one per network.

        Raises ValueError for a batch that is not a positive integer, or of another length.
        """
        batch = np.asarray(batch)
        if batch.dtype.kind not in "iu" or (batch < 1).any():
            raise ValueError(f"batch must be positive integers, got {batch.tolist()}")
        if batch.shape not in ((), (self.n_networks,)):
            raise ValueError(
                f"batch must be a scalar or have one value per network [{self.n_networks}], "
                f"got shape {list(batch.shape)}"
            )
        batch = np.broadcast_to(batch.astype(np.int64), self.n_networks)[self.network_of_row]
        columns = dict(self._columns, batch=batch)
        experts, attends = self.kind == EXPERTS, self.kind == ATTENTION
        for field, scaled in (
            ("m", ~attends & ~experts),
            ("groups", attends),
            ("input_words", ~attends & ~experts),
            *((field, slice(None)) for field in ("output_words", "vector_ops", "gather_bytes")),
        ):
            columns[field] = columns[field].copy()
            columns[field][scaled] = (columns[field] // self.batch * batch)[scaled]
        if experts.any():
            self._spread_experts(columns, np.flatnonzero(experts))
        return Layers(self.names, columns, self.offsets)

    def _spread_experts(self, columns: dict[str, np.ndarray], rows: np.ndarray) -> None:
        """Set the products of mixtures' `rows` in `columns`, whose outputs are set already."""
        k, n = self.k[rows], self.n[rows]
        in_use, load = expert_loads(
            columns["output_words"][rows] // n, self.weights[rows] // (k * n), self.imbalance[rows]
        )
        columns["bias_words"] = columns["bias_words"].copy()
        columns["bias_words"][rows] = self.bias_words[rows] // self.groups[rows] * in_use
        columns["groups"][rows], columns["m"][rows] = in_use, load
        columns["input_words"][rows] = load * k

    def folded(self) -> Layers:
        """Merge equal rows of each network by summing their repeats; every price stays the same.

        Rows keep the order and name of their first appearance. A network's last row is kept apart:
        its outputs are what is left to drain when the network ends.
        """
        last = np.zeros(len(self), dtype=np.int64)
        last[self.offsets[1:] - 1] = 1
        keys = [self.network_of_row, last]
        keys += [self._columns[field] for field in COLUMNS if field != "repeat"]
        order = np.lexsort(keys[::-1])  # stable: equal rows stay in their order
        table = np.stack([key[order] for key in keys])
        new = np.concatenate([[True], (table[:, 1:] != table[:, :-1]).any(axis=0)])
        first_of_group = order[new]
        repeats = np.add.reduceat(self.repeat[order], np.flatnonzero(new))
        position = np.argsort(first_of_group)
        rows = first_of_group[position]
        counts = np.bincount(self.network_of_row[rows], minlength=self.n_networks)
        folded = self._rows(rows, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
        return Layers(folded.names, dict(folded._columns, repeat=repeats[position]), folded.offsets)

    def _rows(self, rows: np.ndarray, offsets: np.ndarray) -> Layers:
        columns = {field: column.take(rows) for field, column in self._columns.items()}
        return Layers(self.names[rows], columns, offsets)
