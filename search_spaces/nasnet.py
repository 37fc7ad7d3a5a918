"""NASNet-like networks: normal and reduction cells of blocks (Zoph et al., arXiv 1707.07012).

A block picks two inputs among the outputs of the two cells before and of the blocks before it,
applies an operation to each, and adds. What no other block reads is the cell's output, side by
side. All normal cells are alike, and all reduction cells, whose operations halve the resolution of
the cells' outputs that they read. Operations are named as in DARTS (1806.09055).

Where we differ: a separable convolution is depthwise and pointwise once (there twice), each
behind an activation and normalized as in MobileNet, because a product reads quantized activations.
A halved identity is a 2 x 2 mean, and so is what precedes a halved dilated convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hwmodel.workload import Layers
from search_spaces.compression import compressions, factored, rank_share
from search_spaces.network import ACTIVATION, IMAGE, Network, Plan, add_head, live
from search_spaces.ops import Add, AveragePool, Concat, Convolution, DepthwiseConvolution, MaxPool
from search_spaces.precision import GROUPS, precisions
from search_spaces.space import Choices, Decision, Space

BLOCKS = (2, 3, 4, 5)
KINDS = ("normal", "reduction")
INPUTS = ("cell-2", "cell-1", *(f"block{i}" for i in range(max(BLOCKS) - 1)))


@dataclass(frozen=True)
class Cell:
    """Where the steps of one cell are written down, and what they have in common."""

    plan: Plan
    name: str
    width: int
    group: int
    function: str

    def add(self, name: str, op, *inputs: int) -> int:
        return self.plan.add(f"{self.name}.{name}", op, *inputs, group=self.group)

    def activated(self, source: int) -> int:
        return self.plan.activated(source, self.function, self.group)


def identity(cell: Cell, name: str, source: int, stride: int) -> int:
    return source if stride == 1 else cell.add(name, AveragePool(2, stride), source)


def pooling(op: type) -> Callable:
    def add(cell: Cell, name: str, source: int, stride: int) -> int:
        return cell.add(name, op(3, stride), source)

    return add


def convolutions(*kernels) -> Callable:
    """One behind the other, the first of which halves."""

    def add(cell: Cell, name: str, source: int, stride: int) -> int:
        for i, kernel in enumerate(kernels):
            op = Convolution(cell.width, kernel, 1 if i else stride)
            own = name if len(kernels) == 1 else f"{name}.{i}"
            source = cell.add(own, op, cell.activated(source))
        return source

    return add


def separable(kernel: int, dilation: int = 1) -> Callable:
    def add(cell: Cell, name: str, source: int, stride: int) -> int:
        if dilation > 1 and stride > 1:
            source, stride = cell.add(f"{name}.pool", AveragePool(2, stride), source), 1
        depthwise = DepthwiseConvolution(kernel, stride, dilation)
        source = cell.add(f"{name}.depthwise", depthwise, cell.activated(source))
        return cell.add(f"{name}.pointwise", Convolution(cell.width, 1), cell.activated(source))

    return add


# name -> writes the operation down: (cell, name, source, stride) -> the position of its output
OPERATIONS = {
    "identity": identity,
    "avg_pool_3x3": pooling(AveragePool),
    "max_pool_3x3": pooling(MaxPool),
    "conv_1x1": convolutions(1),
    "conv_3x3": convolutions(3),
    "conv_1x3_3x1": convolutions((1, 3), (3, 1)),
    "conv_1x7_7x1": convolutions((1, 7), (7, 1)),
    "sep_conv_3x3": separable(3),
    "sep_conv_5x5": separable(5),
    "sep_conv_7x7": separable(7),
    "dil_conv_3x3": separable(3, dilation=2),
    "dil_conv_5x5": separable(5, dilation=2),
}


def _block(kind: str, i: int) -> list[Decision]:
    """The decisions of one block, active where there are so many."""
    when = {} if i < min(BLOCKS) else {"nasnet.blocks": tuple(n for n in BLOCKS if n > i)}
    name = f"nasnet.{kind}.block{i}"
    return [
        decision
        for side in (0, 1)
        for decision in (
            Decision(f"{name}.input{side}", INPUTS[: i + 2], when),
            Decision(f"{name}.op{side}", tuple(OPERATIONS), when),
        )
    ]


SPACE = Space(
    [Decision("nasnet.blocks", BLOCKS)]
    + [decision for kind in KINDS for i in range(max(BLOCKS)) for decision in _block(kind, i)]
    + [
        Decision("nasnet.width", (4, 8, 12, 16, 24, 32)),
        Decision("nasnet.cells", (1, 2, 3)),  # normal cells a stage
        Decision("nasnet.resolution", (16, 24, 32)),
        ACTIVATION,
    ]
)

# A large member of the family, for students to learn from: residual blocks of separable
# convolutions. Its resolution is the student's.
TEACHER = {"nasnet.blocks": 2, "nasnet.width": 16, "nasnet.cells": 2} | {
    f"nasnet.{kind}.block{i}.{key}": value
    for kind in KINDS
    for i, op in enumerate(("sep_conv_3x3", "sep_conv_5x5"))
    for key, value in (
        ("input0", "cell-1"),
        ("op0", op),
        ("input1", "cell-2"),
        ("op1", "identity"),
    )
}


def add_cell(cell: Cell, kind: str, choices: Choices, inputs: list[int]) -> int:
    """Write one cell down. inputs: the two cells before, of one resolution and `cell.width`."""
    values, read = list(inputs), set()
    for i in range(choices["nasnet.blocks"]):
        parts = []
        for side in (0, 1):
            at = INPUTS.index(choices[f"nasnet.{kind}.block{i}.input{side}"])
            op = choices[f"nasnet.{kind}.block{i}.op{side}"]
            stride = 2 if kind == "reduction" and at < len(inputs) else 1
            parts.append(OPERATIONS[op](cell, f"block{i}.{side}.{op}", values[at], stride))
            read.add(at)
        values.append(cell.add(f"block{i}.add", Add(), *parts))
    loose = [values[at] for at in range(len(inputs), len(values)) if at not in read]
    return loose[0] if len(loose) == 1 else cell.add("concat", Concat(), *loose)


def network(choices: Choices) -> Network:
    """The network of `choices`: three stages of cells between a stem and a head."""
    width, resolution = choices["nasnet.width"], choices["nasnet.resolution"]
    function = choices.get("net.activation", "relu")
    ends = GROUPS.index("ends")
    plan = Plan()
    stem = plan.add("stem", Convolution(width, 3, image=True), IMAGE, group=ends)
    before = last = stem, 0  # a cell's output, and how often it has been halved
    for stage in range(3):
        kinds = ["reduction"] * (stage > 0) + ["normal"] * choices["nasnet.cells"]
        for i, kind in enumerate(kinds):
            cell = Cell(plan, f"stage{stage}.cell{i}", width << stage, stage, function)
            inputs = []
            for name, (source, halvings) in (("before", before), ("last", last)):
                if halvings < last[1]:
                    source = cell.add(f"{name}.pool", AveragePool(2, 2), source)
                op = Convolution(cell.width, 1)
                inputs.append(cell.add(f"{name}.conv", op, cell.activated(source)))
            at = add_cell(cell, kind, choices, inputs)
            before, last = last, (at, stage)
    add_head(plan, last[0], function, ends)
    whole = Network(live(plan.steps), (resolution, resolution, 3), GROUPS)
    return factored(whole, rank_share(choices))


def build(choices: Choices):
    """The float network of `choices` as a `keras.Model`, freshly initialized."""
    return network(choices).keras()


def layers(choices: Choices) -> Layers:
    """Its rows for the hardware model, in the chosen bits, at the serving batch."""
    bits, compressed = precisions(choices), compressions(choices)
    return network(choices).layers(bits, choices["serve.batch"], compressed)
