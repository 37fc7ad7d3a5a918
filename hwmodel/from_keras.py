"""Rows of a Keras 3 model: its graph walked call by call at one batch size.

A batch normalization whose input is the output of a convolution or dense layer that nothing else
reads is folded into it: the sums leave through a scale and an offset per channel, as quantized
inference has them anyway (Jacob et al., CVPR 2018, sections 2.2 and 3.2). Any other is a row.
Parameters are those that Keras can train: moving statistics are not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hwmodel.keras_layers import Bits, Call, activation_of, read_call, trained_words
from hwmodel.layer_row import Row
from hwmodel.windows import require_positive

if TYPE_CHECKING:
    import keras

# Layers whose output is linear in their input, so that a normalization behind them can be folded.
LINEAR = (
    "Conv1D",
    "Conv2D",
    "Conv1DTranspose",
    "Conv2DTranspose",
    "DepthwiseConv1D",
    "DepthwiseConv2D",
    "SeparableConv1D",
    "SeparableConv2D",
    "Dense",
)


def rows_of(
    model: keras.Model,
    batch: int = 1,
    *,
    weight_bits: int = 8,
    activation_bits: int = 8,
    skip: Sequence[str] = (),
) -> list[Row]:
    """The rows of a functional or sequential model, nested models included, in the order they run.

    A layer called again is a row again, NAME#2, whose parameters are not stored twice. `skip` names
    layers, by name, path (outer/inner) or class, that make no row.

    Raises ValueError for a model that is not built or whose inputs have an unknown size, and,
    naming it, for a layer that cannot be read.
    """
    require_positive("from_keras", batch=batch)
    skip = (skip,) if isinstance(skip, str) else tuple(skip)
    calls, outputs = _calls(model, batch)
    unmet = set(skip) - {word for call in calls for word in _words(call)}
    if unmet:
        raise ValueError(
            f"skip names {', '.join(map(repr, sorted(unmet)))}, but {model.name!r} has no layer of "
            "that name, path or class"
        )
    bits = Bits(weight_bits, activation_bits)
    folded = _folded(calls, outputs)
    scales = Counter()  # by the call that takes them
    for index, before in folded.items():
        scales[before] += trained_words(calls[index].layer)
    seen = Counter()
    rows = []
    for index, call in enumerate(calls):
        if index in folded or not set(skip).isdisjoint(_words(call)):
            continue
        seen[id(call.layer)] += 1
        again = seen[id(call.layer)]
        named = call if again == 1 else call._replace(name=f"{call.name}#{again}")
        read = read_call(named, batch, bits)
        if index in scales:
            words = scales[index]
            row = read[-1]
            read[-1] = row._replace(bias_words=row.bias_words + words, params=row.params + words)
        rows += read if again == 1 else [row._replace(weights=0, params=0) for row in read]
    return rows


def _words(call: Call) -> tuple[str, ...]:
    """What a call can be named by."""
    return call.layer.name, call.name, call.kind


def _calls(model: keras.Model, batch: int) -> tuple[list[Call], list[keras.KerasTensor]]:
    """Every call of a layer, in order, and the model's outputs, at that batch."""
    import keras

    calls = []

    def caller(prefix: str) -> Callable:
        def call(layer):
            def run(*args, **kwargs):
                path = f"{prefix}{layer.name}"
                if _is_graph(layer):
                    return walk(layer, args[0], f"{path}/")
                result = layer.compute_output_spec(*args, **kwargs)
                calls.append(Call(layer, path, _tensors((args, kwargs)), _tensors(result)))
                return result

            return run

        return call

    def walk(model, inputs, prefix: str):
        if not isinstance(model, keras.Sequential):
            return model._run_through_graph(inputs, operation_fn=caller(prefix))
        for layer in model.layers:
            inputs = caller(prefix)(layer)(inputs)
        return inputs

    outputs = walk(model, _inputs(model, batch), "")
    return calls, _tensors(outputs)


def _is_graph(layer: keras.Operation) -> bool:
    """Whether it is a model whose layers can be walked: a functional or a sequential one."""
    import keras

    return isinstance(layer, keras.Sequential) or hasattr(layer, "_run_through_graph")


def _inputs(model: keras.Model, batch: int):
    """Symbolic inputs of the model at that batch."""
    import keras

    if not _is_graph(model) or not getattr(model, "inputs", None):
        raise ValueError(
            f"cannot read {model.name!r}, a {type(model).__name__}: only functional and sequential "
            "models with keras.Input show their layers"
        )
    inputs = []
    for tensor in model.inputs:
        if None in tensor.shape[1:]:
            raise ValueError(
                f"input {tensor.name!r} of {model.name!r} has the shape {list(tensor.shape)}; give "
                "keras.Input every size but the batch"
            )
        inputs.append(keras.KerasTensor((batch, *tensor.shape[1:]), dtype=tensor.dtype))
    return inputs if len(inputs) > 1 else inputs[0]


def _tensors(structure) -> list[keras.KerasTensor]:
    import keras

    return [x for x in keras.tree.flatten(structure) if isinstance(x, keras.KerasTensor)]


def _folded(calls: list[Call], outputs: list[keras.KerasTensor]) -> dict[int, int]:
    """Batch normalizations that vanish -> the calls that take them in."""
    readers = Counter(id(tensor) for call in calls for tensor in call.inputs)
    readers.update(id(tensor) for tensor in outputs)
    times = Counter(id(call.layer) for call in calls)
    maker = {id(tensor): index for index, call in enumerate(calls) for tensor in call.outputs}
    folded = {}
    for index, call in enumerate(calls):
        if call.kind != "BatchNormalization" or readers[id(call.inputs[0])] > 1:
            continue
        before = maker.get(id(call.inputs[0]))
        if before is None or calls[before].kind not in LINEAR:
            continue
        layer = calls[before].layer
        if activation_of(layer) == "linear" and times[id(layer)] == times[id(call.layer)] == 1:
            folded[index] = before
    return folded
