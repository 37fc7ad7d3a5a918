"""Workloads: what a network asks of a machine, one row per layer, many networks in one table.

A row is either a matrix product (`groups` products of M x K x N, the batch inside M), a depthwise
convolution (the same, with N = 1 and a choice of engine), or vector work (operations and words).
Constructors turn a layer's own dimensions into a `Row`; `Layers` holds rows as flat columns with
network offsets, so that a thousand networks are priced by the same few array operations as one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from hwmodel.windows import require_positive, windows_of

PRODUCT, DEPTHWISE, VECTOR = 0, 1, 2
MAX_BITS = 32
MAX_COUNT = 2**53
BIAS_BITS = 32  # biases and normalization parameters are added to 32-bit accumulators


class Row(NamedTuple):
    """One layer. Words and operations are for the whole batch; see the column notes in `Layers`."""

    name: str
    kind: int
    batch: int
    m: int
    k: int
    n: int
    groups: int
    input_words: int
    output_words: int
    vector_ops: int
    params: int
    weight_bits: int
    activation_bits: int
    output_bits: int
    repeat: int


COLUMNS = Row._fields[1:]
# What grows in proportion to the batch; everything else belongs to the layer alone.
_BATCHED = ("m", "input_words", "output_words", "vector_ops")


def conv(
    name: str,
    *,
    height: int,
    width: int,
    in_channels: int,
    out_channels: int,
    kernel: int | tuple[int, int],
    batch: int = 1,
    stride: int | tuple[int, int] = 1,
    padding: str | int = "same",
    groups: int = 1,
    bias: bool = False,
    weight_bits: int = 8,
    activation_bits: int = 8,
    output_bits: int | None = None,
    repeat: int = 1,
) -> Row:
    """A 2-D convolution as `groups` products of (B·OH·OW) x (kh·kw·Cin/g) x (Cout/g).

    OH = floor((H + 2p - kh) / s) + 1, or ceil(H / s) for `padding="same"`; `height` and `width`
    are the input's. Raises ValueError for sizes that are not positive integers, channels that
    `groups` does not divide, and a kernel larger than its padded input.
    """
    sizes = require_positive(
        name,
        batch=batch,
        height=height,
        width=width,
        in_channels=in_channels,
        out_channels=out_channels,
        groups=groups,
    )
    for field in ("in_channels", "out_channels"):
        if sizes[field] % groups:
            raise ValueError(
                f"row {name!r}: {field} {sizes[field]} is not a multiple of groups {groups}; "
                "choose groups that divide both channel counts"
            )
    window = windows_of(name, height, width, kernel, stride, padding)
    m = batch * window.out_height * window.out_width
    k = window.kernel_height * window.kernel_width * (in_channels // groups)
    weights = k * out_channels
    return _row(
        name,
        PRODUCT,
        batch=batch,
        m=m,
        k=k,
        n=out_channels // groups,
        groups=groups,
        input_words=batch * window.touched * (in_channels // groups),
        output_words=m * out_channels,
        params=weights + (out_channels if bias else 0),
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        output_bits=output_bits,
        repeat=repeat,
    )


def depthwise(
    name: str,
    *,
    height: int,
    width: int,
    channels: int,
    kernel: int | tuple[int, int],
    batch: int = 1,
    stride: int | tuple[int, int] = 1,
    padding: str | int = "same",
    bias: bool = False,
    weight_bits: int = 8,
    activation_bits: int = 8,
    output_bits: int | None = None,
    repeat: int = 1,
) -> Row:
    """A depthwise convolution: `channels` products with K = kh·kw and N = 1, or B·OH·OW·C·kh·kw
    vector operations where the accelerator runs it on its vector unit. Raises as `conv` does."""
    require_positive(name, batch=batch, height=height, width=width, channels=channels)
    window = windows_of(name, height, width, kernel, stride, padding)
    m = batch * window.out_height * window.out_width
    k = window.kernel_height * window.kernel_width
    return _row(
        name,
        DEPTHWISE,
        batch=batch,
        m=m,
        k=k,
        n=1,
        groups=channels,
        input_words=batch * window.touched,
        output_words=m * channels,
        vector_ops=m * k * channels,
        params=k * channels + (channels if bias else 0),
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        output_bits=output_bits,
        repeat=repeat,
    )


def dense(
    name: str,
    *,
    in_features: int,
    out_features: int,
    batch: int = 1,
    bias: bool = False,
    weight_bits: int = 8,
    activation_bits: int = 8,
    output_bits: int | None = None,
    repeat: int = 1,
) -> Row:
    """A fully connected layer: one product of B x in x out. Raises as `conv` does."""
    require_positive(name, batch=batch, in_features=in_features, out_features=out_features)
    return _row(
        name,
        PRODUCT,
        batch=batch,
        m=batch,
        k=in_features,
        n=out_features,
        input_words=batch * in_features,
        output_words=batch * out_features,
        params=in_features * out_features + (out_features if bias else 0),
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        output_bits=output_bits,
        repeat=repeat,
    )


def pool(
    name: str,
    *,
    height: int,
    width: int,
    channels: int,
    kernel: int | tuple[int, int],
    batch: int = 1,
    stride: int | tuple[int, int] | None = None,
    padding: str | int = "valid",
    activation_bits: int = 8,
    output_bits: int | None = None,
    repeat: int = 1,
) -> Row:
    """Maximum or average pooling: one vector operation per word of each window.

    `stride` is the kernel's size unless given. Global pooling is a kernel of (height, width).
    Raises as `conv` does.
    """
    require_positive(name, batch=batch, height=height, width=width, channels=channels)
    window = windows_of(name, height, width, kernel, kernel if stride is None else stride, padding)
    outputs = batch * window.out_height * window.out_width * channels
    return _row(
        name,
        VECTOR,
        batch=batch,
        input_words=batch * window.touched * channels,
        output_words=outputs,
        vector_ops=outputs * window.kernel_height * window.kernel_width,
        activation_bits=activation_bits,
        output_bits=output_bits,
        repeat=repeat,
    )


def elementwise(
    name: str,
    *,
    elements: int,
    n_inputs: int = 2,
    batch: int = 1,
    activation_bits: int = 8,
    output_bits: int | None = None,
    repeat: int = 1,
) -> Row:
    """Combine `n_inputs` tensors of `elements` words per example into one, word by word.

    max(1, n_inputs - 1) vector operations a word: one for an activation function, one for an
    addition of two tensors. Raises as `conv` does.
    """
    require_positive(name, batch=batch, elements=elements, n_inputs=n_inputs)
    return _row(
        name,
        VECTOR,
        batch=batch,
        input_words=batch * elements * n_inputs,
        output_words=batch * elements,
        vector_ops=batch * elements * max(1, n_inputs - 1),
        activation_bits=activation_bits,
        output_bits=output_bits,
        repeat=repeat,
    )


def normalization(
    name: str,
    *,
    elements: int,
    channels: int,
    batch: int = 1,
    activation_bits: int = 8,
    output_bits: int | None = None,
    repeat: int = 1,
) -> Row:
    """Normalization at inference, not folded into its neighbours: a multiply and an add a word.

    Counts the 2·channels trained parameters (scale and offset). Raises as `conv` does.
    """
    require_positive(name, batch=batch, elements=elements, channels=channels)
    return _row(
        name,
        VECTOR,
        batch=batch,
        input_words=batch * elements,
        output_words=batch * elements,
        vector_ops=2 * batch * elements,
        params=2 * channels,
        activation_bits=activation_bits,
        output_bits=output_bits,
        repeat=repeat,
    )


class Layers:
    """Rows of one or many networks as columns of one length.

    Integer arrays, all of shape [n_rows] (int64, so that counts past 2**24 stay exact):
    `kind` (`PRODUCT`, `DEPTHWISE` or `VECTOR`), `batch`, `m`, `k`, `n` (of one product), `groups`
    (products), `input_words` (touched, of one product; of the whole row where it is vector work),
    `output_words`, `vector_ops` (if the row runs on the vector unit), `row_params_once` (of one
    repeat),
    `weight_bits`, `activation_bits`, `output_bits`, `repeat` (how often the layer is run, each time
    with its own weights). `names` is an object array [n_rows]; `offsets` [n_networks + 1] says that
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
        self.input_words = columns["input_words"]
        self.output_words = columns["output_words"]
        self.vector_ops = columns["vector_ops"]
        self.row_params_once = columns["params"]
        self.weight_bits = columns["weight_bits"]
        self.activation_bits = columns["activation_bits"]
        self.output_bits = columns["output_bits"]
        self.repeat = columns["repeat"]
        self._columns = columns

    @classmethod
    def from_rows(cls, rows: Iterable[Row]) -> Layers:
        """One network from its rows, in the order they run. Raises ValueError for none."""
        rows = list(rows)
        if not rows:
            raise ValueError("a network needs at least one row, got none; build rows with "
                             "hwmodel.workload.conv, dense, pool, ...")
        table = np.array([row[1:] for row in rows], dtype=np.int64)  # [n_rows, n_columns]
        names = np.empty(len(rows), dtype=object)
        names[:] = [row.name for row in rows]
        columns = {field: table[:, i].copy() for i, field in enumerate(COLUMNS)}
        return cls(names, columns, np.array([0, len(rows)], dtype=np.int64))

    @classmethod
    def concat(cls, many: Sequence[Layers]) -> Layers:
        """The networks of all of `many`, in order. Raises ValueError when there is none."""
        if not many:
            raise ValueError("concat needs at least one Layers, got an empty sequence")
        starts = np.cumsum([0] + [len(layers) for layers in many])
        ends = [
            layers.offsets[1:] + start for layers, start in zip(many, starts[:-1], strict=True)
        ]
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
    def parameter_bytes(self) -> np.ndarray:
        """[n_rows] stored parameters per repeat: product weights at `weight_bits`, others at 32."""
        weights = self.k * self.n * self.groups
        others = self.row_params_once - weights
        return (weights * self.weight_bits + others * BIAS_BITS) / 8

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
        for field in _BATCHED:
            columns[field] = self._columns[field] // self.batch * batch
        return Layers(self.names, columns, self.offsets)

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
        columns = {field: column[rows] for field, column in self._columns.items()}
        return Layers(self.names[rows], columns, offsets)


def _row(name: str, kind: int, *, activation_bits, output_bits, repeat, weight_bits=8, **counts):
    output_bits = activation_bits if output_bits is None else output_bits
    bits = {
        "weight_bits": weight_bits,
        "activation_bits": activation_bits,
        "output_bits": output_bits,
    }
    for field, value in require_positive(name, **bits).items():
        if value > MAX_BITS:
            raise ValueError(f"row {name!r}: {field} must be 1 to {MAX_BITS}, got {value!r}")
    require_positive(name, repeat=repeat)
    row = dict(m=0, k=0, n=0, groups=1, vector_ops=0, params=0) | counts
    macs = row["m"] * row["k"] * row["n"] * row["groups"]
    largest = repeat * max(macs, row["vector_ops"], row["input_words"], row["output_words"])
    if largest > MAX_COUNT:
        raise ValueError(
            f"row {name!r}: {largest} operations or words are past 2**53, where counts stop being "
            "exact; use smaller sizes or split the row"
        )
    return Row(name=name, kind=kind, repeat=repeat, **bits, **row)
