"""The cell with every edge open: which operation an edge is comes as an argument of the graph.

Only what is chosen is computed, forward and backward (`tf.switch_case`). A cell is six indices of
OPTIONS, in the order of `cell.EDGES`; all cells of a network are the same.

TensorFlow is imported with this module, and only workers import it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from search_spaces.cell import EDGE_OPS, EDGES, N_NODES, DisconnectedError, stacked
from search_spaces.network import Network, Plan
from search_spaces.ops import NORM_EPSILON, Activation, Operation
from search_spaces.quantizers import mean_magnitude, quantize_activations

OPTIONS = tuple(EDGE_OPS)
NONE = OPTIONS.index("none")
READS_QUANTIZED = [bool(entry) and entry[1] for entry in EDGE_OPS.values()]


def reaches_output(cells: np.ndarray) -> np.ndarray:
    """Whether the output of each cell depends on its input: bool [n]; cells: int [n, 6]."""
    return _reached(cells)[:, -1]


def _reached(cells: np.ndarray) -> np.ndarray:
    """Which nodes the input of each cell flows to: bool [n, nodes]."""
    reached = np.zeros((len(cells), N_NODES), bool)
    reached[:, 0] = True
    for edge, (i, j) in enumerate(EDGES):
        reached[:, j] |= reached[:, i] & (cells[:, edge] != NONE)
    return reached


def live_cells(cells: np.ndarray) -> np.ndarray:
    """The same cells without the edges that nothing flows through: int32 [n, 6], of OPTIONS.

    Raises DisconnectedError, naming the first, where a cell's output does not depend on its input.
    """
    cells = np.atleast_2d(np.asarray(cells, np.int32))
    reached = _reached(cells)
    broken = np.flatnonzero(~reached[:, -1])
    if len(broken):
        words = ", ".join(OPTIONS[k] for k in cells[broken[0]])
        raise DisconnectedError(f"the output of cell ({words}) does not depend on its input")
    read = np.zeros_like(reached)  # which nodes the output is computed from
    read[:, -1] = True
    for edge, (i, j) in reversed(list(enumerate(EDGES))):
        read[:, i] |= read[:, j] & (cells[:, edge] != NONE)
    tails, heads = np.array(EDGES).T
    return np.where(reached[:, tails] & read[:, heads], cells, NONE).astype(np.int32)


def random_cells(n: int, rng: np.random.Generator) -> np.ndarray:
    """Connected cells, uniform over the space: int32 [n, 6], live edges alone."""
    found = np.empty((0, len(EDGES)), np.int32)
    while len(found) < n:
        drawn = rng.integers(0, len(OPTIONS), (2 * n, len(EDGES)), np.int32)
        found = np.concatenate([found, drawn[reaches_output(drawn)]])
    return live_cells(found[:n])


# -- the network whose edges are chosen ------------------------------------------------------------


@dataclass(frozen=True)
class Choice(Operation):
    """An edge of a cell as all that it may be.

    Its inputs: what the node that it enters has summed so far, where it is not the first; the sum
    of the node that it leaves; and a function that quantizes that. Its output: the new sum. Of its
    weights it is given those of the operation chosen, flat: `kernels`, and `others`.
    """

    width: int
    edge: int  # position in EDGES

    def operation(self, name: str):
        """The operation of an option; None where it is wiring."""
        return EDGE_OPS[name][0](self.width) if EDGE_OPS[name] else None

    def parameters(self, inputs):
        return [
            parameter._replace(name=f"{name}/{parameter.name}")
            for name in OPTIONS
            if (op := self.operation(name))
            for parameter in op.parameters(inputs[-1:])
        ]

    def apply(self, tensors, weights, bits, context):
        *so_far, x, quantized = tensors

        def chosen(name):
            if name == "none":
                return so_far[0] if so_far else tf.zeros_like(x)
            y = x
            if op := self.operation(name):
                parameters, own = op.parameters([tuple(x.shape[1:])]), {}
                for flat, kernel in ((weights["kernels"], True), (weights["others"], False)):
                    found = [p for p in parameters if (p.kind == "kernel") is kernel]
                    sizes = [int(np.prod(p.shape)) for p in found]
                    pieces = tf.split(flat, sizes) if found else ()
                    for p, piece in zip(found, pieces, strict=True):
                        own[p.name] = tf.reshape(piece, p.shape)
                read = quantized() if EDGE_OPS[name][1] else x
                y = op.apply([read], own, bits, context)
            return so_far[0] + y if so_far else y

        branches = [lambda name=name: chosen(name) for name in OPTIONS]
        return tf.switch_case(context.edges[self.edge], branches)


class Deferred(Activation):
    """The activation of a node, as a function that each operation reading it calls.

    Two of them compute it twice: that costs less than computing it where none reads it.
    """

    def apply(self, tensors, weights, bits, context):
        context.observe(tensors[0], self.function)
        return lambda: quantize_activations(tensors[0], weights["clip"], bits, self.function)


class UnitScale(Operation):
    """Division by the root of the mean square over the batch.

    Cells add up their inputs: one of skips alone hands on four times its input, three of them 64
    times. Everything behind a convolution is normalized, the class scores are not, and the shared
    weights of the last layer can serve one scale only. In a cell's own network the factor is part
    of those weights.
    """

    def apply(self, tensors, weights, bits, context):
        x = tensors[0]
        return x * tf.math.rsqrt(tf.reduce_mean(x * x) + NORM_EPSILON)


def network(width: int, depth: int, resolution: int) -> Network:
    """The network of `search_spaces.cell` with every edge open, and one scale for its head."""

    def add(plan: Plan, name: str, source: int, width: int, group: int) -> int:
        nodes, active = [source], []
        for j in range(1, N_NODES):
            relu = plan.add(f"{name}.node{j - 1}.relu", Deferred(), nodes[-1], group=group)
            active.append(relu)
            at: tuple[int, ...] = ()
            for i in range(j):
                edge = Choice(width, EDGES.index((i, j)))
                at = (plan.add(f"{name}.edge{i}{j}", edge, *at, nodes[i], active[i], group=group),)
            nodes.append(at[0])
        if name == f"stage2.cell{depth - 1}":
            return plan.add("head.scale", UnitScale(), nodes[-1], group=group)
        return nodes[-1]

    return stacked(width, depth, resolution, add)


class Context:
    """Which operations are chosen, int32 [6]; normalization by the batch's own statistics."""

    def __init__(self, edges):
        self.edges = tf.unstack(edges)

    def observe(self, x, function):
        """Called with the input of every activation, in order."""

    def quantize(self, x, clip, bits, function):
        self.observe(x, function)
        return quantize_activations(x, clip, bits, function)

    def normalize(self, y, gamma, beta):
        y, _, _ = tf.compat.v1.nn.fused_batch_norm(y, gamma, beta, epsilon=NORM_EPSILON)
        return y


class RecordingContext(Context):
    """The same, and the mean size of what every activation gives is written down."""

    def __init__(self, edges):
        super().__init__(edges)
        self.activations = []

    def observe(self, x, function):
        self.activations.append(mean_magnitude(x, function))
