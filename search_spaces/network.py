"""A network as data: a list of steps, and the walks over it.

A family of networks (`cell.py`, `nasnet.py`, `mobile.py`) only writes down the steps. Costs,
shapes, parameters, the functional TensorFlow of the training loop and the Keras model each walk
that one list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from hwmodel.workload import LAYER_NORM_OPS, Layers, normalization
from search_spaces.compression import Compression, narrowed
from search_spaces.ops import (
    Activation,
    Dense,
    GlobalPool,
    Parameter,
    Precision,
    Shape,
    rows_of,
)
from search_spaces.space import Decision

IMAGE = -1  # the input of a step that reads the image
N_CLASSES = 10

# The activation function of a network, the same in every family; ReLU in a search without it.
ACTIVATION = Decision("net.activation", ("relu", "silu", "gelu", "hswish"), usual=())


class Step(NamedTuple):
    """One operation in place. inputs: positions of earlier steps, or IMAGE; group: of its bits."""

    name: str
    op: Any
    inputs: tuple[int, ...]
    group: int


class Place(NamedTuple):
    """A learned tensor in place: the step that owns it, its bit-width group, and what it is."""

    step: int
    group: int
    parameter: Parameter


def places(steps: Sequence[Step], inputs: Sequence[Sequence]) -> list[Place]:
    """Every learned tensor in place; inputs: the shapes that each step reads."""
    return [
        Place(i, step.group, parameter)
        for i, (step, shapes) in enumerate(zip(steps, inputs, strict=True))
        for parameter in step.op.parameters(shapes)
    ]


class Plan:
    """Writes steps down one after the other; `add` returns the position to name as an input."""

    def __init__(self):
        self.steps: list[Step] = []
        self._activations: dict[tuple[int, str, int], int] = {}

    def add(self, name: str, op, *inputs: int, group: int) -> int:
        self.steps.append(Step(name, op, inputs, group))
        return len(self.steps) - 1

    def activated(self, source: int, function: str, group: int) -> int:
        """The activation of a step's output, one for all that read it in the bits of `group`."""
        key = source, function, group
        if key not in self._activations:
            name, _, _, own = self.steps[source]
            name += f".{function}" if group == own else f".{function}.group{group}"
            self._activations[key] = self.add(name, Activation(function), source, group=group)
        return self._activations[key]


def add_head(plan: Plan, source: int, function: str, group: int) -> int:
    """Write down the end of an image network, from the last sums to the class scores."""
    at = plan.add(f"head.{function}1", Activation(function), source, group=group)
    at = plan.add("head.pool", GlobalPool(), at, group=group)
    again = "relu" if function == "relu" else "linear"  # the function is behind: only quantized
    at = plan.add(f"head.{again}2", Activation(again), at, group=group)
    return plan.add("head.dense", Dense(N_CLASSES), at, group=group)


def live(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps that the last one depends on, renumbered: what nothing reads is not built."""
    needed = [False] * len(steps)
    needed[-1] = True
    for i in reversed(range(len(steps))):
        for j in steps[i].inputs if needed[i] else ():
            if j != IMAGE:
                needed[j] = True
    kept = [i for i, read in enumerate(needed) if read]
    if len(kept) == len(steps):
        return tuple(steps)
    order = {old: new for new, old in enumerate(kept)} | {IMAGE: IMAGE}
    return tuple(steps[i]._replace(inputs=tuple(order[j] for j in steps[i].inputs)) for i in kept)


@dataclass(frozen=True)
class Network:
    """Steps in order, the last of which gives the class scores; hashable: equal ones share a
    compiled program.

    image: (height, width, channels) of the input; groups: the names of the bit-width groups.
    """

    steps: tuple[Step, ...]
    image: Shape
    groups: tuple[str, ...]

    @cached_property
    def inputs(self) -> list[list[Shape]]:
        """The shapes that each step reads."""
        outputs: list[Shape] = []
        inputs = []
        for step in self.steps:
            inputs.append([self.image if j == IMAGE else outputs[j] for j in step.inputs])
            outputs.append(step.op.shape(inputs[-1]))
        return inputs

    @cached_property
    def places(self) -> list[Place]:
        """Every learned tensor, in the order of the steps."""
        return places(self.steps, self.inputs)

    @cached_property
    def training_flops(self) -> int:
        """Floating-point operations of a training step an image: two a multiply-accumulate forward
        and four backward, but for the gradient of the image, which nobody needs."""
        total = 0
        for step, inputs in zip(self.steps, self.inputs, strict=True):
            if rows := rows_of(step.name, step.op, inputs, Precision(8, 8), 1):
                passes = 2 if IMAGE in step.inputs else 3
                total += 2 * passes * int(Layers.from_rows(rows).macs[0])
        return total

    def layers(
        self,
        precisions: Sequence[Precision],
        batch: int,
        compressions: Sequence[Compression] | None = None,
    ) -> Layers:
        """Rows for the hardware model; precisions and compressions: one a group, if any."""
        if compressions is None:
            compressions = [Compression()] * len(self.groups)
        walk = zip(self.steps, narrowed(self, compressions), strict=True)
        return Layers.from_rows(
            [
                compressions[step.group].stored(row)
                for step, (op, inputs) in walk
                for row in rows_of(step.name, op, inputs, precisions[step.group], batch)
            ]
        )

    def training_layers(self, bits: int, batch: int) -> Layers:
        """Rows of the forward pass in training, all words of `bits`, as `hwmodel.training` takes
        them: whole tensors, and normalization by the batch's own moments, which cannot be folded.
        """
        rows = []
        for step, shapes in zip(self.steps, self.inputs, strict=True):
            rows += rows_of(step.name, step.op, shapes, Precision(bits, bits), batch)
            height, width, _ = step.op.shape(shapes)
            rows += [
                normalization(
                    f"{step.name}.{parameter.name}",
                    elements=height * width * parameter.shape[0],
                    channels=parameter.shape[0],
                    batch=batch,
                    ops_per_element=LAYER_NORM_OPS,
                    activation_bits=bits,
                )
                for parameter in step.op.parameters(shapes)
                if parameter.kind == "scale"
            ]
        return Layers.from_rows(rows)

    def apply(self, images, weights: Sequence[dict], activation_bits, context):
        """Class scores [n, classes] of functional TensorFlow.

        images: float [n, height, width, channels]; weights: one dictionary of tensors a step;
        activation_bits: int32 [groups]; context: how to quantize and normalize (nas/train.py).
        """
        values: list = []
        for i, step in enumerate(self.steps):
            tensors = [images if j == IMAGE else values[j] for j in step.inputs]
            values.append(step.op.apply(tensors, weights[i], activation_bits[step.group], context))
        return values[-1][:, 0, 0, :]

    def keras(
        self, clips: Sequence[float] | None = None, activation_bits: Sequence[int] | None = None
    ):
        """The same as a plain functional `keras.Model`, with its own fresh weights.

        clips: the learned clip of every `Activation`, in order, with activation_bits one a group:
        the activations are then quantized in the model; without them it is the float network.
        """
        import keras

        image = keras.Input(self.image, name="image")
        ranges = iter(clips) if clips is not None else None
        values: list = []
        for step in self.steps:
            tensors = [image if j == IMAGE else values[j] for j in step.inputs]
            clip = bits = None
            if ranges is not None and any(
                p.kind == "clip" for p in step.op.parameters([t.shape[1:] for t in tensors])
            ):
                clip, bits = float(next(ranges)), int(activation_bits[step.group])
            values.append(step.op.keras(tensors, step.name, clip, bits))
        scores = keras.layers.Flatten(name="scores")(values[-1])
        return keras.Model(image, scores)
