"""Found designs for use elsewhere: plain Keras models that load without this package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nas.augment import IMAGE_EPSILON, normalization_of
from nas.run_dir import read_tensors
from search_spaces import FAMILIES, Choices
from search_spaces.precision import precisions, quantization_method
from search_spaces.quantizers import FULL_BITS, FULL_CLIP, dequantized

if TYPE_CHECKING:
    import keras

    from nas.run import Run


def keras_model(run: Run, trial_id: int) -> keras.Model:
    """The finally trained network of a trial, quantized: images [n, r, r, 3] of 0..255 to scores.

    Kernels hold the values that the accelerator's integers stand for; activations are rounded in
    the graph. Raises ValueError for a trial without a final training.
    """
    import keras

    if run.sweep is None:
        raise ValueError(f"{run.dir.path} looked designs up in a table: there is none to export")
    finals = run.finals()
    if trial_id not in finals:
        there = ", ".join(map(str, finals)) or "none yet"
        raise ValueError(
            f"trial {trial_id} has no final training to export; trials that have: {there}"
        )
    tensors = read_tensors(run.dir.checkpoints / Path(finals[trial_id][1]).name)
    encoding = run.trial(trial_id).proposal.encoding
    choices = run.space.decode(encoding)
    network = FAMILIES[run.config["space"]["network"]].network(choices)
    bits, method = precisions(choices), quantization_method(choices)
    clips = [
        FULL_CLIP
        if bits[place.group].activations >= FULL_BITS
        else float(tensors[f"{network.steps[place.step].name}/clip"])
        for place in network.places
        if place.parameter.kind == "clip"
    ]
    core = network.keras(clips, [p.activations for p in bits])
    for i, step in enumerate(network.steps):
        own = {
            p.name: tensors[f"{step.name}/{p.name}"]
            for p in step.op.parameters(network.inputs[i])
            if p.kind != "clip"
        }
        for p in step.op.parameters(network.inputs[i]):
            if p.kind == "kernel":
                size = tensors[f"{step.name}/{p.name}.step"]
                own[p.name] = dequantized(own[p.name], size, bits[step.group].weights, method)
        moments = [
            tensors[key] for key in (f"{step.name}/mean", f"{step.name}/variance") if key in tensors
        ]
        for layer, weights in step.op.keras_weights(step.name, own, moments).items():
            core.get_layer(layer).set_weights(weights)
    image = keras.Input(network.image, name="image")
    scaled = normalization(choices, tensors["image/mean"], tensors["image/std"])(image)
    return keras.Model(image, core(scaled), name=f"trial_{trial_id}")


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
    """Write `keras_model` to `path`, which ends in .keras; whole or not at all."""
    if path.suffix != ".keras":
        raise ValueError(f"a Keras model is written to a file that ends in .keras; got '{path}'")
    if not path.parent.is_dir():
        raise ValueError(f"no directory {path.parent} to write {path.name} into")
    partial = path.with_name(f".{path.stem}.part.keras")
    keras_model(run, trial_id).save(partial)
    partial.replace(path)
    return path
