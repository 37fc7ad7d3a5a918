"""Networks of repeated cells, as in NAS-Bench-201 (Dong & Yang, arXiv 2001.00326).

A cell has four nodes; each of the six pairs i < j is an edge with one of five operations, and a
node is the sum of its incoming edges. Three stages of `cell.depth` cells, the width doubled and
the resolution halved between them by a residual block. As there, a convolution is
ReLU-convolution-normalization, or another activation function in ReLU's place; it and quantization
are shared by the edges that leave a node.
"""

from __future__ import annotations

from collections.abc import Callable

from hwmodel.workload import Layers
from search_spaces.compression import compressions, factored, rank_share
from search_spaces.network import ACTIVATION, IMAGE, Network, Plan, add_head, live
from search_spaces.ops import Activation, Add, AveragePool, Convolution
from search_spaces.precision import GROUPS, precisions
from search_spaces.quantizers import UnbuildableError
from search_spaces.space import Choices, Decision, Space

EDGES = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
N_NODES = 4

# What an edge may be. "none" and "skip" are wiring; the others build an operation for a width and
# say whether they read the quantized activation (True) or the sum itself.
EDGE_OPS = {
    "none": None,
    "skip": None,
    "avg_pool_3x3": (lambda width: AveragePool(3), False),
    "conv_1x1": (lambda width: Convolution(width, 1), True),
    "conv_3x3": (lambda width: Convolution(width, 3), True),
}

SPACE = Space(
    [Decision(f"cell.edge{i}{j}", tuple(EDGE_OPS)) for i, j in EDGES]
    + [
        Decision("cell.width", (4, 8, 12, 16, 24, 32)),
        Decision("cell.depth", (1, 2, 3, 4, 5)),
        Decision("cell.resolution", (16, 24, 32)),
        ACTIVATION,
    ]
)

# A large member of the family, for students to learn from: convolutions but for one shortcut, as
# the best cell of NAS-Bench-201 has them. Its resolution is the student's.
TEACHER = {f"cell.edge{i}{j}": "skip" if (i, j) == (0, 3) else "conv_3x3" for i, j in EDGES} | {
    "cell.width": 16,
    "cell.depth": 2,
}


class DisconnectedError(UnbuildableError):
    """The cell's output does not depend on its input: there is no network to train."""


def add_cell(
    plan: Plan, name: str, source: int, ops: dict, width: int, group: int, function: str = "relu"
) -> int:
    """Write one cell down; returns the position of its output node."""
    nodes: list[int | None] = [source]  # None: a node that nothing reaches
    activations: dict[int, int] = {}
    for j in range(1, N_NODES):
        incoming = []
        for i in range(j):
            kind = ops[i, j]
            if kind == "none" or nodes[i] is None:
                continue
            if kind == "skip":
                incoming.append(nodes[i])
                continue
            make, quantized = EDGE_OPS[kind]
            start = nodes[i]
            if quantized:
                if i not in activations:
                    activations[i] = plan.add(
                        f"{name}.node{i}.{function}", Activation(function), start, group=group
                    )
                start = activations[i]
            incoming.append(plan.add(f"{name}.edge{i}{j}.{kind}", make(width), start, group=group))
        if not incoming:
            nodes.append(None)
        elif len(incoming) == 1:
            nodes.append(incoming[0])
        else:
            nodes.append(plan.add(f"{name}.node{j}.add", Add(), *incoming, group=group))
    if nodes[-1] is None:
        raise DisconnectedError("the output of the cell does not depend on its input")
    return nodes[-1]


def add_reduction(
    plan: Plan, name: str, source: int, width: int, group: int, function: str = "relu"
) -> int:
    """Write down the residual block that halves the resolution."""
    act = plan.add(f"{name}.{function}1", Activation(function), source, group=group)
    conv = plan.add(f"{name}.conv1", Convolution(width, 3, stride=2), act, group=group)
    act = plan.add(f"{name}.{function}2", Activation(function), conv, group=group)
    conv = plan.add(f"{name}.conv2", Convolution(width, 3), act, group=group)
    pool = plan.add(f"{name}.shortcut.pool", AveragePool(2, stride=2), source, group=group)
    act = plan.add(f"{name}.shortcut.{function}", Activation(function), pool, group=group)
    short = plan.add(f"{name}.shortcut.conv", Convolution(width, 1), act, group=group)
    return plan.add(f"{name}.add", Add(), conv, short, group=group)


def stacked(
    width: int, depth: int, resolution: int, add: Callable, function: str = "relu"
) -> Network:
    """Three stages of `depth` cells between a stem and a head.

    add(plan, name, source, width, group) writes one cell down and returns where its output is.
    """
    ends = GROUPS.index("ends")
    plan = Plan()
    at = plan.add("stem", Convolution(width, 3, image=True), IMAGE, group=ends)
    for stage in range(3):
        if stage:
            name = f"stage{stage}.reduce"
            at = add_reduction(plan, name, at, width << stage, stage, function)
        for cell in range(depth):
            at = add(plan, f"stage{stage}.cell{cell}", at, width << stage, stage)
    add_head(plan, at, function, ends)
    return Network(live(plan.steps), (resolution, resolution, 3), GROUPS)


def network(choices: Choices) -> Network:
    """The network of `choices`. Raises DisconnectedError where its cell leads nowhere."""
    function = choices.get("net.activation", "relu")
    ops = {(i, j): choices[f"cell.edge{i}{j}"] for i, j in EDGES}

    def add(plan, name, source, width, group):
        return add_cell(plan, name, source, ops, width, group, function)

    size = (choices[f"cell.{name}"] for name in ("width", "depth", "resolution"))
    return factored(stacked(*size, add, function), rank_share(choices))


def build(choices: Choices):
    """The float network of `choices` as a `keras.Model`, freshly initialized."""
    return network(choices).keras()


def layers(choices: Choices) -> Layers:
    """Its rows for the hardware model, in the chosen bits, compressed, at the serving batch."""
    bits, batch = precisions(choices), choices["serve.batch"]
    return network(choices).layers(bits, batch, compressions(choices))
