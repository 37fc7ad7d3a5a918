"""Found designs for use elsewhere: plain Keras models that load without this package.

Beside MODEL.keras lies MODEL.json, which says what the model is:

    model         the file's name
    trial, found  as the leaderboard has them
    test_accuracy of the final training, or test_perplexity
    choices       every decision of the design: cells, bits, batches, accelerator
    price         what it costs on that accelerator: latency_s, energy_j, area_mm2, ...
    kernels       by the path of every quantized variable, its bits and step: its values are whole
                  multiples of the step (of one bit, plus or minus the step)
    words         of a language model, number -> word
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nas import text
from nas.augment import IMAGE_EPSILON, normalization_of
from nas.leaderboard import final_columns
from nas.quiet import quietly
from nas.run_dir import read_tensors, write_whole
from nas.trial import HARDWARE_METRICS
from search_spaces import FAMILIES, TEXTS, Choices
from search_spaces.precision import precisions, quantization_method
from search_spaces.quantizers import FULL_BITS, FULL_CLIP, dequantized

KERNELS = "kernel", "embeddings"  # as the variables of layers are called

if TYPE_CHECKING:
    import keras

    from nas.run import Run
    from search_spaces.network import Network
    from search_spaces.ops import Precision
    from search_spaces.sequence import LanguageModel


def keras_model(run: Run, trial_id: int) -> tuple[keras.Model, dict[str, dict]]:
    """The finally trained network of a trial, quantized: images [n, r, r, 3] of 0..255 to scores;
    of a language model one step, as `LanguageModel.keras` says.

    Kernels hold the values that the accelerator's integers stand for; activations are rounded in
    the graph, their gradients passed straight through. With it the bits and the step of every
    kernel, by the variable's path. Raises ValueError for a trial without a final training.
    """
    if run.sweep is None:
        raise ValueError(f"{run.dir.path} looked designs up in a table: there is none to export")
    finals = run.finals()
    if trial_id not in finals:
        there = ", ".join(map(str, finals)) or "none yet"
        raise ValueError(
            f"trial {trial_id} has no final training to export; trials that have: {there}"
        )
    with quietly():
        import keras

    tensors = read_tensors(run.dir.weights(finals[trial_id][1]))
    encoding = run.trial(trial_id).proposal.encoding
    choices = run.space.decode(encoding)
    network = FAMILIES[run.config["space"]["network"]].network(choices)
    bits, method = precisions(choices), quantization_method(choices)
    core, kernels = filled(network, tensors, bits, method)
    if run.config["space"]["network"] in TEXTS:
        core.name = f"trial_{trial_id}"
        return core, kernels
    image = keras.Input(network.image, name="image")
    scaled = normalization(choices, tensors["image/mean"], tensors["image/std"])(image)
    return keras.Model(image, core(scaled), name=f"trial_{trial_id}"), kernels


def filled(
    network: Network | LanguageModel,
    tensors: Mapping[str, np.ndarray],
    bits: Sequence[Precision],
    method: str = "lsq",
) -> tuple[keras.Model, dict[str, dict]]:
    """The Keras model of a network that holds trained tensors by name, quantized to `bits`, one a
    group; with the bits and the step of every kernel, by the variable's path."""
    clips = [
        FULL_CLIP
        if bits[place.group].activations >= FULL_BITS
        else float(tensors[f"{network.steps[place.step].name}/{place.parameter.name}"])
        for place in network.places
        if place.parameter.kind == "clip"
    ]
    core = network.keras(clips, [p.activations for p in bits])
    kernels = {}
    for i, step in enumerate(network.steps):
        own = {
            p.name: tensors[f"{step.name}/{p.name}"]
            for p in step.op.parameters(network.inputs[i])
            if p.kind != "clip"
        }
        grids = []
        for p in step.op.parameters(network.inputs[i]):
            if p.kind == "kernel":
                grid = {
                    "bits": bits[step.group].weights,
                    "step": float(tensors[f"{step.name}/{p.name}.step"]),
                }
                own[p.name] = dequantized(own[p.name], grid["step"], grid["bits"], method)
                grids.append(grid)
        moments = [
            tensors[key] for key in (f"{step.name}/mean", f"{step.name}/variance") if key in tensors
        ]
        variables = []
        for layer, weights in step.op.keras_weights(step.name, own, moments).items():
            core.get_layer(layer).set_weights(weights)
            own_variables = core.get_layer(layer).weights if not layer.endswith(".bias") else []
            variables += [v.path for v in own_variables if v.name in KERNELS]
        kernels |= zip(variables, grids, strict=True)
    return core, kernels


def design(run: Run, trial_id: int) -> dict:
    """What a finally trained trial is, at its best place on the leaderboard: JSON values."""
    table = run.leaderboard()
    row = table[table["trial"] == trial_id].iloc[0]
    return {
        "trial": trial_id,
        "found": row["found"],
        **{column: float(row[column]) for column in final_columns(run)},
        "choices": {
            decision.name: decision.values[decision.values.index(row[decision.name])]
            for decision in run.space.decisions
            if row[decision.name] in decision.values  # empty where not active
        },
        "price": {name: float(row[name]) for name in HARDWARE_METRICS if name in row},
    }


def normalization(choices: Choices, mean: np.ndarray, std: np.ndarray) -> keras.layers.Layer:
    """The layer that does to images of 0..255 what `augment.normalized` does."""
    import keras

    kind = normalization_of(choices)
    if kind == "image":
        return keras.layers.LayerNormalization(
            axis=(1, 2, 3), epsilon=255**2 * IMAGE_EPSILON, center=False, scale=False
        )
    if kind == "none":
        return keras.layers.Rescaling(1 / 255)
    return keras.layers.Normalization(mean=255 * mean, variance=(255 * std) ** 2)


def export_keras(run: Run, trial_id: int, path: Path) -> Path:
    """Write `keras_model` to `path`, which ends in .keras, and what it is beside it; each file
    whole or not at all."""
    if path.suffix != ".keras":
        raise ValueError(f"a Keras model is written to a file that ends in .keras; got '{path}'")
    if not path.parent.is_dir():
        raise ValueError(f"no directory {path.parent} to write {path.name} into")
    model, kernels = keras_model(run, trial_id)
    described = {**design(run, trial_id), "kernels": kernels}
    if run.config["space"]["network"] in TEXTS:
        described["words"] = text.load(run.evaluator.dataset, run.evaluator.path or None).words
    write_model(model, described, path)
    return path


def write_model(model: keras.Model, described: dict, path: Path) -> None:
    """Write a model and its description; the model last, so that its existence means done."""
    partial = path.with_name(f".{path.stem}.part.keras")
    model.save(partial)
    text = json.dumps({"model": path.name, **described}, indent=1)
    write_whole(path.with_suffix(".json"), text + "\n")
    partial.replace(path)
