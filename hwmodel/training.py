"""A training step as rows: forward, gradients, update, so that `price` does the rest.

For a product M x K x N the input's gradient is M x N x K (by the weights) and the weights' is
K x M x N (by the stored inputs). Everything after the first row with weights needs its input's
gradient, so a network of like layers takes close to three times its forward work. The batch is part
of M, then of the depth: choose it with `Layers.with_batch` before, under-filled tiles cost what
full ones do. Mixed precision is that of Micikevicius et al., ICLR 2018: rows keep their own bits,
gradients have theirs, and a wider copy of the weights is updated.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hwmodel.layer_row import ATTENTION, COLUMNS, DEPTHWISE, MAX_BITS, PRODUCT, VECTOR
from hwmodel.workload import Layers


class Optimizer(NamedTuple):
    """Words kept for each parameter beside weight and gradient, and operations of one update."""

    slots: int
    ops: int


# Momentum: v = μv + g, w -= ηv. Adam (Kingma and Ba, ICLR 2015, algorithm 1, bias corrections in
# the step size): three operations for m, four for v, five for the weight.
OPTIMIZERS = {"sgd": Optimizer(0, 2), "momentum": Optimizer(1, 4), "adam": Optimizer(2, 12)}


class TrainingStep(NamedTuple):
    """A step of each network as `layers`, and what must be kept meanwhile, [n_networks] bytes:
    `state_bytes` (weights, gradients, the optimizer's slots) and `activation_bytes` (every row's
    output, until its gradient is taken)."""

    layers: Layers
    state_bytes: np.ndarray
    activation_bytes: np.ndarray

    @property
    def memory_bytes(self) -> np.ndarray:
        return self.state_bytes + self.activation_bytes


def training_step(
    layers: Layers, optimizer: str = "momentum", *, gradient_bits: int = 16, master_bits: int = 32
) -> TrainingStep:
    """The rows of one training step of each network, batch and forward bits as in `layers`.

    Rows keep their names; gradients add ".dinput" and ".dweights" (of the second operand where both
    are activations), updates ".update". `master_bits`
    are those of the updated weights and the slots; where a row's `weight_bits` are fewer, a narrow
    copy of its weights is written and kept as well (biases are read at 32 bits). Gradient rows are
    dense. Normalization and other vector rows
    take as many operations backward as forward, and read their input again; sums of bias gradients
    are left out.

    Raises ValueError for an unknown optimizer, and bits outside 1 to 32.
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {optimizer!r}; choose one of {', '.join(OPTIMIZERS)}")
    for name, bits in dict(gradient_bits=gradient_bits, master_bits=master_bits).items():
        if not isinstance(bits, int | np.integer) or not 1 <= bits <= MAX_BITS:
            raise ValueError(f"{name} must be a whole number from 1 to {MAX_BITS}, got {bits!r}")
    chosen = OPTIMIZERS[optimizer]
    columns = layers.columns
    place, weighted = np.arange(len(layers)), columns["weights"] > 0
    first = np.full(layers.n_networks, len(layers))
    np.minimum.at(first, layers.network_of_row[weighted], place[weighted])
    after_first = place > first[layers.network_of_row]
    both_vary = (columns["kind"] == ATTENTION) & after_first
    parts = [
        ("", columns, np.ones(len(layers), dtype=bool)),
        (
            ".dweights",
            _weight_gradients(columns, gradient_bits),
            weighted & (columns["kind"] != VECTOR) | both_vary,
        ),
        (".dinput", _input_gradients(columns, gradient_bits), after_first),
        (".update", _updates(columns, chosen, gradient_bits, master_bits), columns["params"] > 0),
    ]
    return TrainingStep(
        _merge(layers, parts),
        _per_network(layers, _state_bytes(columns, chosen, gradient_bits, master_bits)),
        _per_network(layers, columns["output_words"] * columns["output_bits"] / 8),
    )


def _weight_gradients(columns: dict, gradient_bits: int) -> dict:
    """K x M x N, of stored inputs and output gradients; for depthwise rows on their own engine."""
    depthwise = columns["kind"] == DEPTHWISE
    outputs = columns["k"] * columns["n"] * columns["groups"]
    return _without_parameters(columns) | {
        "kind": np.where(depthwise, DEPTHWISE, ATTENTION),
        "m": columns["k"],
        "k": columns["m"],
        "steps": np.ones_like(columns["steps"]),
        "input_words": columns["input_words"] * columns["steps"],
        "output_words": outputs,
        "weight_bits": np.full_like(columns["weight_bits"], gradient_bits),
        "output_bits": np.full_like(columns["output_bits"], gradient_bits),
    }


def _input_gradients(columns: dict, gradient_bits: int) -> dict:
    """M x N x K, of output gradients and weights. A depthwise row's is a depthwise row again; a
    vector row reads its output's gradient and its input, and writes its input's gradient."""
    vector, depthwise = columns["kind"] == VECTOR, columns["kind"] == DEPTHWISE
    same = vector | depthwise
    products = np.where(vector, 1, columns["groups"])
    of_product = columns["m"] // columns["steps"] * columns["n"]
    inputs = columns["input_words"] * products * np.where(vector, 1, columns["steps"])
    kind = np.where(same | (columns["kind"] == ATTENTION), columns["kind"], PRODUCT)
    return _without_parameters(columns) | {
        "kind": kind,
        "k": np.where(same, columns["k"], columns["n"]),
        "n": np.where(same, columns["n"], columns["k"]),
        "input_words": np.where(
            vector, columns["input_words"] + columns["output_words"], of_product
        ),
        "output_words": inputs,
        "gather_bytes": columns["gather_bytes"],
        "activation_bits": np.full_like(columns["activation_bits"], gradient_bits),
        "output_bits": np.full_like(columns["output_bits"], gradient_bits),
    }


def _updates(columns: dict, chosen: Optimizer, gradient_bits: int, master_bits: int) -> dict:
    """Vector work on words of `master_bits`: weights and slots in and out, gradients in, narrow
    weights out."""
    params, narrow = columns["params"], _narrow_bits(columns, master_bits)
    zero, one = np.zeros_like(params), np.ones_like(params)
    return _without_parameters(columns) | {
        "kind": np.full_like(params, VECTOR),
        **dict.fromkeys(("m", "k", "n", "gather_bytes"), zero),
        **dict.fromkeys(("groups", "steps", "batch"), one),
        "input_words": params * (1 + chosen.slots) - (-params * gradient_bits // master_bits),
        "output_words": params * (1 + chosen.slots) - (-narrow // master_bits),
        "vector_ops": params * chosen.ops,
        "activation_bits": np.full_like(params, master_bits),
        "output_bits": np.full_like(params, master_bits),
    }


_STORED = ("weights", "params", "bias_words", "index_bits", "nm_n", "nm_m", "gather_bytes")


def _without_parameters(columns: dict) -> dict:
    """The columns of dense, plain rows that store nothing of their own."""
    zero, one = np.zeros_like(columns["m"]), np.ones_like(columns["m"])
    return columns | {
        **dict.fromkeys(_STORED, zero),
        **dict.fromkeys(("kernel_height", "kernel_width", "out_height"), one),
        "density": np.ones(len(zero)),
        "imbalance": np.ones(len(zero)),
    }


def _state_bytes(
    columns: dict, chosen: Optimizer, gradient_bits: int, master_bits: int
) -> np.ndarray:
    """Per row and repeat: three times the weights for momentum and four for Adam where all bits are
    equal, and the narrow copy where they are not."""
    wide = columns["params"] * (master_bits * (1 + chosen.slots) + gradient_bits)
    return (wide + _narrow_bits(columns, master_bits)) / 8


def _narrow_bits(columns: dict, master_bits: int) -> np.ndarray:
    """Per row and repeat: the bits of a copy of the weights, where theirs are fewer."""
    bits = columns["weight_bits"]
    return columns["weights"] * np.where(bits < master_bits, bits, 0)


def _per_network(layers: Layers, values: np.ndarray) -> np.ndarray:
    return np.add.reduceat(values * layers.repeat, layers.offsets[:-1])


def _merge(layers: Layers, parts: list[tuple[str, dict, np.ndarray]]) -> Layers:
    """One table of the rows that each part (suffix, columns, mask) keeps: the first part's in
    order, then backward from the last row, part by part."""
    rows = [np.flatnonzero(mask) for _, _, mask in parts]
    row = np.concatenate(rows)
    part = np.repeat(np.arange(len(parts)), [len(some) for some in rows])
    network, forward = layers.network_of_row[row], part == 0
    order = np.lexsort((part, np.where(forward, row, -row), ~forward, network))
    names = np.concatenate(
        [layers.names[some] + suffix for some, (suffix, _, _) in zip(rows, parts, strict=True)]
    )
    columns = {
        field: np.concatenate(
            [own[field][some] for some, (_, own, _) in zip(rows, parts, strict=True)]
        )[order]
        for field in COLUMNS
    }
    counts = np.bincount(network, minlength=layers.n_networks)
    return Layers(names[order], columns, np.concatenate([[0], np.cumsum(counts)]))
