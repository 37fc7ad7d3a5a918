"""Layers of several rows each: recurrent layers, attention, mixtures of experts.

Every constructor returns a list of rows named NAME.part; `Layers.from_rows` flattens lists.
"""

from __future__ import annotations

from typing import Unpack

import numpy as np

from hwmodel.layer_row import (
    ATTENTION,
    EXPERTS,
    PRODUCT,
    VECTOR,
    Row,
    WeightOptions,
    make_row,
    require_real,
)
from hwmodel.operations import dense, elementwise
from hwmodel.windows import require_positive

# Vector operations per unit and step. LSTM: four activations, f·c + i·g, tanh, o·, and the sum with
# the input's share. GRU: three activations, r·, z·h + (1 - z)·n, and two sums.
LSTM_OPS, GRU_OPS = 10, 9
SOFTMAX_OPS = 5  # maximum, difference, exponential, sum, division


def lstm(
    name: str,
    *,
    steps: int,
    in_features: int,
    units: int,
    batch: int = 1,
    bias: bool = True,
    return_sequences: bool = True,
    **options: Unpack[WeightOptions],
) -> list[Row]:
    """An LSTM layer over `steps` time steps (Hochreiter and Schmidhuber, 1997).

    One product of (B·T) x I x 4H over the whole input; T products of B x H x 4H, each waiting for
    the last, whose weights stay on chip if they fit; about 10·B·T·H vector operations. States and
    gate sums stay on chip from step to step. Raises as `operations.conv` does.
    """
    at = dict(steps=steps, units=units, batch=batch)
    return [
        *_input_product(name, 4 * units, in_features=in_features, bias=bias, **at, **options),
        _recurrent_product(name, 4 * units, **at, **options),
        _gates(name, 4, LSTM_OPS, return_sequences=return_sequences, **at, **options),
    ]


def gru(
    name: str,
    *,
    steps: int,
    in_features: int,
    units: int,
    batch: int = 1,
    bias: bool = True,
    reset_after: bool = True,
    return_sequences: bool = True,
    **options: Unpack[WeightOptions],
) -> list[Row]:
    """A GRU layer over `steps` time steps (Cho et al., EMNLP 2014), as `lstm` with three gates.

    With `reset_after` (cuDNN and Keras) a step is one product of B x H x 3H with a bias of its own;
    without, the candidate's B x H x H waits for the reset gate that B x H x 2H gives. Raises as
    `operations.conv` does.
    """
    at = dict(steps=steps, units=units, batch=batch)
    rows = _input_product(name, 3 * units, in_features=in_features, bias=bias, **at, **options)
    if reset_after:
        bias_words = 3 * units if bias else 0
        rows.append(_recurrent_product(name, 3 * units, bias_words=bias_words, **at, **options))
    else:
        rows.append(_recurrent_product(name, 2 * units, **at, **options))
        rows.append(_recurrent_product(name, units, part="candidate", **at, **options))
    rows.append(_gates(name, 3, GRU_OPS, return_sequences=return_sequences, **at, **options))
    return rows


def attention(
    name: str,
    *,
    sequence: int,
    features: int,
    heads: int,
    head_size: int | None = None,
    value_size: int | None = None,
    out_features: int | None = None,
    memory: int | None = None,
    memory_features: int | None = None,
    batch: int = 1,
    bias: bool = False,
    **options: Unpack[WeightOptions],
) -> list[Row]:
    """Multi-head attention (Vaswani et al., NIPS 2017, section 3.2.2) of `sequence` queries.

    Self-attention: one product (B·S) x D x h·(2d + dv) for queries, keys and values; with `memory`
    keys of `memory_features` (D unless given) elsewhere, one for the queries and one for keys and
    values. Then B·h products (S, d, S') and (S, S', dv) of activations, softmax in between with 5
    operations a score, and (B·S) x h·dv x `out_features` (D unless given). `head_size` d is D / h
    unless given, `value_size` dv is d. Raises as `operations.conv` does, and for a D that `heads`
    does not divide.
    """
    require_positive(name, batch=batch, sequence=sequence, features=features, heads=heads)
    if head_size is None:
        if features % heads:
            raise ValueError(
                f"row {name!r}: features {features} is not a multiple of heads {heads}; choose "
                "heads that divide the features, or give head_size"
            )
        head_size = features // heads
    value_size = head_size if value_size is None else value_size
    out_features = features if out_features is None else out_features
    n_keys = sequence if memory is None else memory
    memory_features = features if memory_features is None else memory_features
    require_positive(
        name,
        head_size=head_size,
        value_size=value_size,
        out_features=out_features,
        memory=n_keys,
        memory_features=memory_features,
    )
    ways = dict(batch=batch, bias=bias, **options)
    queries, values = heads * head_size, heads * (head_size + value_size)
    at = dict(in_features=features, positions=sequence)
    if memory is None:
        projections = [dense(f"{name}.qkv", **at, out_features=queries + values, **ways)]
    else:
        projections = [
            dense(f"{name}.query", **at, out_features=queries, **ways),
            dense(
                f"{name}.memory",
                in_features=memory_features,
                positions=n_keys,
                out_features=values,
                **ways,
            ),
        ]
    vector = _vector_options(options)
    return [
        *projections,
        product_of_activations(
            f"{name}.scores", batch, heads, (sequence, head_size, n_keys), vector
        ),
        elementwise(
            f"{name}.softmax",
            batch=batch,
            elements=heads * sequence * n_keys,
            n_inputs=1,
            ops_per_element=SOFTMAX_OPS,
            **vector,
        ),
        product_of_activations(
            f"{name}.context", batch, heads, (sequence, n_keys, value_size), vector
        ),
        dense(
            f"{name}.output",
            in_features=heads * value_size,
            out_features=out_features,
            positions=sequence,
            **ways,
        ),
    ]


def mixture_of_experts(
    name: str,
    *,
    features: int,
    hidden: int,
    experts: int,
    active: int,
    tokens: int = 1,
    imbalance: float = 1.0,
    batch: int = 1,
    bias: bool = False,
    **options: Unpack[WeightOptions],
) -> list[Row]:
    """`experts` feed-forward blocks D -> hidden -> D, of which a router picks `active` per token
    (Shazeer et al., ICLR 2017).

    The router's product (B·tokens) x D x E and softmax; the up and down products of the
    min(E, B·tokens·active) experts that are in use, whose weights move, while those of all E are
    stored; an activation; the weighted sum. Every expert in use is given `imbalance` times the mean
    load, as where the busiest one sets the size of all (the capacity factor of Lepikhin et al.,
    ICLR 2021). Raises as `operations.conv` does, for `active` above `experts`, and for an
    `imbalance` below 1.
    """
    require_positive(name, batch=batch, tokens=tokens, experts=experts, active=active)
    require_positive(name, features=features, hidden=hidden)
    if active > experts:
        raise ValueError(
            f"row {name!r}: active must be at most the number of experts {experts}, got {active}"
        )
    imbalance = require_real(name, "imbalance", imbalance, lambda x: x >= 1, "1 or more")
    assigned = batch * tokens * active
    in_use, load = (int(count) for count in expert_loads(assigned, experts, imbalance))

    def product(part: str, k: int, n: int) -> Row:
        return make_row(
            f"{name}.{part}",
            EXPERTS,
            batch=batch,
            m=load,
            k=k,
            n=n,
            groups=in_use,
            input_words=load * k,
            output_words=assigned * n,
            weights=experts * k * n,
            bias_words=in_use * n if bias else 0,
            params=experts * (k * n + (n if bias else 0)),
            imbalance=imbalance,
            **options,
        )

    vector = dict(batch=batch, **_vector_options(options))
    return [
        dense(
            f"{name}.router",
            in_features=features,
            out_features=experts,
            positions=tokens,
            batch=batch,
            **options,
        ),
        elementwise(
            f"{name}.softmax",
            elements=tokens * experts,
            n_inputs=1,
            ops_per_element=SOFTMAX_OPS,
            **vector,
        ),
        product("up", features, hidden),
        elementwise(f"{name}.activation", elements=tokens * active * hidden, n_inputs=1, **vector),
        product("down", hidden, features),
        make_row(
            f"{name}.combine",
            VECTOR,
            input_words=assigned * features,
            output_words=batch * tokens * features,
            vector_ops=2 * assigned * features,
            **vector,
        ),
    ]


def expert_loads(assigned, experts, imbalance) -> tuple[np.ndarray, np.ndarray]:
    """(experts in use, rows of the product of each) when `assigned` tokens spread over `experts`,
    every expert sized for `imbalance` times the mean. Arguments broadcast."""
    in_use = np.minimum(assigned, experts)
    load = np.ceil(np.asarray(assigned) * imbalance / in_use).astype(np.int64)
    return in_use, load


def _input_product(name, gates, *, steps, units, batch, in_features, bias, **options) -> list[Row]:
    """The input's share of all gates' sums, all steps at once."""
    require_positive(name, steps=steps, units=units)
    return [
        dense(
            f"{name}.input",
            in_features=in_features,
            out_features=gates,
            positions=steps,
            batch=batch,
            bias=bias,
            **options,
        )
    ]


def _recurrent_product(
    name, gates, *, steps, units, batch, bias_words=0, part="recurrent", **options
) -> Row:
    """The state's share of `gates` sums, step by step."""
    return make_row(
        f"{name}.{part}",
        PRODUCT,
        batch=batch,
        m=batch * steps,
        k=units,
        n=gates,
        steps=steps,
        input_words=batch * units,
        output_words=batch * units,
        weights=units * gates,
        bias_words=bias_words,
        **options,
    )


def _gates(name, n_gates, ops, *, steps, units, batch, return_sequences, **options) -> Row:
    """What the gates do to the state, step by step, reading the input's share of their sums."""
    return make_row(
        f"{name}.gates",
        VECTOR,
        batch=batch,
        steps=steps,
        input_words=batch * steps * units * n_gates,
        output_words=batch * units * (steps if return_sequences else 1),
        vector_ops=ops * batch * steps * units,
        **_vector_options(options),
    )


def product_of_activations(name, batch, heads, shape, options) -> Row:
    """`batch`·`heads` products (m, k, n) = `shape` of two activations."""
    m, k, n = shape
    row = make_row(
        name,
        ATTENTION,
        batch=batch,
        m=m,
        k=k,
        n=n,
        groups=batch * heads,
        input_words=m * k,
        output_words=batch * heads * m * n,
        **options,
    )
    return row._replace(weight_bits=row.activation_bits)  # the second operand is activations too


def _vector_options(options: dict) -> dict:
    """The options that rows without weights take too."""
    return {
        option: value
        for option, value in options.items()
        if option in ("activation_bits", "output_bits", "repeat")
    }
