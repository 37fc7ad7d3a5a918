"""An autoregressive policy over a space: one LSTM step a decision, and its gradient by hand.

At each step the LSTM reads an embedding of the previous choice, and a softmax head of the
decision's own gives the chances of its values (Zoph and Le, 1611.01578, section 3.1). A decision
that its condition switches off is read as "off", is not drawn, and counts neither in the
log-probability nor in the gradient.

Parameters are a dictionary of arrays; H units, and S values over all decisions:

    embedding  [S + decisions + 1, H]   a row for each value, each "off", and the start
    cell       [2H + 1, 4H]             from (embedding, hidden, 1) to the gates
    heads      [H + 1, S]               from (hidden, 1) to the logits, a block a decision
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from search_spaces.space import Space

Parameters = dict[str, np.ndarray]


class Step(NamedTuple):
    """What one decision of `n` designs leaves for the way back."""

    tokens: np.ndarray  # [n], rows of the embedding
    inputs: np.ndarray  # [n, 2H + 1]
    gates: np.ndarray  # [n, 4, H]: input, forget, output, candidate; after their nonlinearity
    cell_before: np.ndarray  # [n, H]
    cell: np.ndarray  # [n, H]
    hidden: np.ndarray  # [n, H + 1]
    log_p: np.ndarray  # [n, size]
    chosen: np.ndarray  # [n]
    on: np.ndarray  # [n], whether the decision is active


def initialize(space: Space, n_units: int, rng: np.random.Generator) -> Parameters:
    """Parameters uniform in +-0.1, as ENAS has them (1802.03268)."""
    n_values = int(space.sizes.sum())
    shapes = {
        "embedding": (n_values + len(space) + 1, n_units),
        "cell": (2 * n_units + 1, 4 * n_units),
        "heads": (n_units + 1, n_values),
    }
    return {name: rng.uniform(-0.1, 0.1, shape) for name, shape in shapes.items()}


def sample(params: Parameters, space: Space, n: int, rng: np.random.Generator) -> np.ndarray:
    """`n` designs drawn from the policy: int64 [n, d], canonical."""
    encodings = np.zeros((n, len(space)), np.int64)

    def draw(i: int, log_p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        below = np.cumsum(np.exp(log_p), axis=1)[:, :-1] < rng.random((n, 1))
        on = space.active(encodings)[:, i]  # conditions look at earlier decisions only
        encodings[:, i] = np.where(on, below.sum(axis=1), 0)
        return encodings[:, i], on

    unroll(params, space, n, draw)
    return encodings


def replay(params: Parameters, space: Space, encodings: np.ndarray) -> list[Step]:
    """The steps by which the policy comes to designs [n, d]."""
    on = space.active(encodings)
    return unroll(params, space, len(encodings), lambda i, log_p: (encodings[:, i], on[:, i]))


def unroll(
    params: Parameters,
    space: Space,
    n: int,
    choose: Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> list[Step]:
    """Run the LSTM over all decisions of `n` designs.

    choose(i, log_p [n, size]) gives the index of decision i, and whether it is active: both [n].
    """
    n_units = params["heads"].shape[0] - 1
    starts = np.cumsum(space.sizes) - space.sizes
    n_values = int(space.sizes.sum())
    ones = np.ones((n, 1))
    hidden = np.hstack([np.zeros((n, n_units)), ones])
    cell = np.zeros((n, n_units))
    tokens = np.full(n, len(params["embedding"]) - 1)
    steps = []
    for i, (start, size) in enumerate(zip(starts, space.sizes, strict=True)):
        inputs = np.hstack([params["embedding"][tokens], hidden])
        z = (inputs @ params["cell"]).reshape(n, 4, n_units)
        gates = np.concatenate([sigmoid(z[:, :3]), np.tanh(z[:, 3:])], axis=1)
        cell_before = cell
        cell = gates[:, 1] * cell_before + gates[:, 0] * gates[:, 3]
        hidden = np.hstack([gates[:, 2] * np.tanh(cell), ones])
        log_p = log_softmax(hidden @ params["heads"][:, start : start + size])
        chosen, on = choose(i, log_p)
        steps.append(Step(tokens, inputs, gates, cell_before, cell, hidden, log_p, chosen, on))
        tokens = np.where(on, start + chosen, n_values + i)
    return steps


def log_probability(steps: list[Step]) -> np.ndarray:
    """The log-probability of each design: the sum over its active decisions, [n]."""
    return sum(np.where(s.on, s.log_p[np.arange(len(s.on)), s.chosen], 0) for s in steps)


def entropy(steps: list[Step]) -> np.ndarray:
    """The entropies of the active decisions, given those before them, summed: [n]."""
    return sum(np.where(s.on, -(np.exp(s.log_p) * s.log_p).sum(axis=1), 0) for s in steps)


def gradient(
    params: Parameters, space: Space, steps: list[Step], a: np.ndarray, b: np.ndarray
) -> Parameters:
    """The gradient of sum(a * log_probability + b * entropy) with a, b: [n].

    Designs are held fixed: how the parameters change which designs are drawn is left to `a`.
    """
    grads = {name: np.zeros_like(value) for name, value in params.items()}
    n, n_units = steps[0].cell.shape
    ends = np.cumsum(space.sizes)
    d_hidden, d_cell = np.zeros((n, n_units)), np.zeros((n, n_units))
    for i in reversed(range(len(steps))):
        s = steps[i]
        block = slice(ends[i] - space.sizes[i], ends[i])
        p = np.exp(s.log_p)
        # d log p(chosen) = onehot - p;  d entropy = -p (log p + entropy)
        d_logits = -a[:, None] * p
        d_logits[np.arange(n), s.chosen] += a
        d_logits -= b[:, None] * p * (s.log_p - (p * s.log_p).sum(axis=1, keepdims=True))
        d_logits[~s.on] = 0
        grads["heads"][:, block] = s.hidden.T @ d_logits
        d_hidden = d_hidden + d_logits @ params["heads"][:-1, block].T

        into, forget, out, candidate = s.gates.transpose(1, 0, 2)
        tanh_cell = np.tanh(s.cell)
        d_cell = d_cell + d_hidden * out * (1 - tanh_cell**2)
        d_z = np.hstack(
            [
                d_cell * candidate * into * (1 - into),
                d_cell * s.cell_before * forget * (1 - forget),
                d_hidden * tanh_cell * out * (1 - out),
                d_cell * into * (1 - candidate**2),
            ]
        )
        grads["cell"] += s.inputs.T @ d_z
        d_inputs = d_z @ params["cell"].T
        np.add.at(grads["embedding"], s.tokens, d_inputs[:, :n_units])
        d_hidden = d_inputs[:, n_units:-1]
        d_cell = d_cell * forget
    return grads


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without its overflow."""
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
