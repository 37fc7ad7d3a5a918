"""A row: what one layer asks of a machine, as counts. The constructors in `operations` and
`compound` build rows from a layer's own dimensions; `workload.Layers` holds them as columns."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import NamedTuple, TypedDict

from hwmodel.windows import require_positive

# PRODUCT: matrix products with weights. DEPTHWISE: the same with a choice of engine. VECTOR:
# operations and words. ATTENTION: products of two activations, so that a batch brings products, not
# a larger M. EXPERTS: one product per active expert, so that a batch brings experts first, then M.
PRODUCT, DEPTHWISE, VECTOR, ATTENTION, EXPERTS = range(5)
MAX_BITS = 32
MAX_COUNT = 2**53
BIAS_BITS = 32  # biases and normalization parameters are added to 32-bit accumulators
DRAM_BURST_BYTES = 64  # a 64-bit channel and bursts of eight (DDR3 and DDR4, JESD79)


class Row(NamedTuple):
    """One layer. Words and operations are for the whole batch; see the column notes in `Layers`."""

    name: str
    kind: int
    batch: int
    m: int
    k: int
    n: int
    groups: int
    steps: int
    input_words: int
    output_words: int
    vector_ops: int
    gather_bytes: int
    weights: int
    params: int
    bias_words: int
    weight_bits: int
    index_bits: int
    activation_bits: int
    output_bits: int
    density: float
    nm_n: int
    nm_m: int
    imbalance: float
    kernel_height: int
    kernel_width: int
    out_height: int
    repeat: int


COLUMNS = Row._fields[1:]
REAL_COLUMNS = ("density", "imbalance")  # the others are integers


class VectorOptions(TypedDict, total=False):
    """What every row can be given: bits, and how often it runs, each time with its own weights."""

    activation_bits: int
    output_bits: int | None
    repeat: int


class WeightOptions(VectorOptions, total=False):
    """What a row with weights can be given too: their bits; `index_bits`, where they are stored as
    indices of so many bits into a codebook of 2**index_bits words of `weight_bits` (Han et al.,
    arXiv 1510.00149; 0: as they are); and either the share that is not zero (`density`, above 0 to
    1) or a pattern `nm` = (N, M), N non-zeros in every M along K."""

    weight_bits: int
    index_bits: int
    density: float
    nm: tuple[int, int] | None


def make_row(
    name: str,
    kind: int,
    *,
    batch: int,
    input_words: int,
    output_words: int,
    m: int = 0,
    k: int = 0,
    n: int = 0,
    groups: int = 1,
    steps: int = 1,
    vector_ops: int = 0,
    gather_bytes: int = 0,
    weights: int = 0,
    bias_words: int = 0,
    params: int | None = None,
    imbalance: float = 1.0,
    kernel_height: int = 1,
    kernel_width: int = 1,
    out_height: int = 1,
    weight_bits: int | None = None,
    index_bits: int | None = None,
    activation_bits: int = 8,
    output_bits: int | None = None,
    density: float | None = None,
    nm: tuple[int, int] | None = None,
    repeat: int = 1,
) -> Row:
    """A checked row; the fields are those of `Layers`. `params` is weights + bias_words unless
    given, `weight_bits` 8, `output_bits` the activations'.

    Raises ValueError, naming the row, for bits outside 1 to 32, a repeat below 1, counts past
    2**53, a density outside (0, 1], an impossible N:M, indices no shorter than the weights, and
    weight options of a row without weights.
    """
    if kind == VECTOR and not weights:
        given = dict(weight_bits=weight_bits, index_bits=index_bits, density=density, nm=nm)
        for option, value in given.items():
            if value is not None:
                raise ValueError(f"row {name!r}: {option} is {value!r}, but the row has no weights")
    bits = {
        "weight_bits": 8 if weight_bits is None else weight_bits,
        "activation_bits": activation_bits,
        "output_bits": activation_bits if output_bits is None else output_bits,
    }
    for field, value in require_positive(name, **bits).items():
        if value > MAX_BITS:
            raise ValueError(f"row {name!r}: {field} must be 1 to {MAX_BITS}, got {value!r}")
    require_positive(name, repeat=repeat)
    storage = _storage(name, bits["weight_bits"], index_bits, density, nm)
    params = weights + bias_words if params is None else params
    largest = repeat * max(
        m * k * n * groups, vector_ops, input_words * groups, output_words, params, gather_bytes
    )
    if largest > MAX_COUNT:
        raise ValueError(
            f"row {name!r}: {largest} operations or words are past 2**53, where counts stop being "
            "exact; use smaller sizes or split the row"
        )
    return Row(
        name,
        kind,
        batch=batch,
        m=m,
        k=k,
        n=n,
        groups=groups,
        steps=steps,
        input_words=input_words,
        output_words=output_words,
        vector_ops=vector_ops,
        gather_bytes=gather_bytes,
        weights=weights,
        params=params,
        bias_words=bias_words,
        **bits,
        **storage,
        imbalance=imbalance,
        kernel_height=kernel_height,
        kernel_width=kernel_width,
        out_height=out_height,
        repeat=repeat,
    )


def with_storage(
    row: Row,
    *,
    index_bits: int | None = None,
    density: float | None = None,
    nm: tuple[int, int] | None = None,
) -> Row:
    """`row` with its weights stored otherwise; the options are those of `WeightOptions`.

    Raises ValueError for a row without weights, and as `make_row` does.
    """
    if not row.weights:
        raise ValueError(f"row {row.name!r} has no weights to store otherwise")
    return row._replace(**_storage(row.name, row.weight_bits, index_bits, density, nm))


def require_real(
    name: str, field: str, value: float, allowed: Callable[[float], bool], wanted: str
) -> float:
    """`value` as a float for which `allowed` holds; raises ValueError naming the row otherwise."""
    try:
        real = float(value)
    except (TypeError, ValueError):
        real = math.nan
    if not (math.isfinite(real) and allowed(real)):
        raise ValueError(f"row {name!r}: {field} must be {wanted}, got {value!r}")
    return real


def _storage(
    name: str,
    weight_bits: int,
    index_bits: int | None,
    density: float | None,
    nm: tuple[int, int] | None,
) -> dict[str, float]:
    """The columns that say how weights are stored."""
    try:
        index = operator.index(index_bits or 0)
    except TypeError:
        index = -1
    if index < 0 or index >= weight_bits:
        raise ValueError(
            f"row {name!r}: index_bits must be a whole number below weight_bits {weight_bits}, 0 "
            f"for weights without a codebook, got {index_bits!r}; a longer index saves nothing"
        )
    density, nm_n, nm_m = _sparsity(name, density, nm)
    return dict(index_bits=index, density=density, nm_n=nm_n, nm_m=nm_m)


def _sparsity(
    name: str, density: float | None, nm: tuple[int, int] | None
) -> tuple[float, int, int]:
    """(density, N, M); N = M = 0 where zeros follow no pattern."""
    if nm is None:
        if density is None:
            return 1.0, 0, 0
        above_0_to_1 = "above 0 and at most 1"
        return require_real(name, "density", density, lambda x: 0 < x <= 1, above_0_to_1), 0, 0
    if density is not None:
        raise ValueError(
            f"row {name!r}: density {density!r} and nm {nm!r} are two ways to say how many "
            "weights are zero; give one of them"
        )
    try:
        n, m = (operator.index(value) for value in nm)
    except (TypeError, ValueError):
        n, m = 0, 0
    if not 1 <= n <= m:
        raise ValueError(
            f"row {name!r}: nm must be two whole numbers 1 <= N <= M, N non-zeros in every M, "
            f"got {nm!r}"
        )
    return n / m, n, m
