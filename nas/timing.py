"""Times small networks on this machine: the process that `nas measure` starts.

`python -m nas.timing OUT.npz N SEED ROUNDS` builds network 0 to N - 1 of the seed with Keras,
writes a JSON line whenever one is built and when a round of timing is over, and at the end their
rows and the seconds that each took. How many threads TensorFlow takes is in its environment.
On one thread, seconds are of processor time.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hwmodel import Layers
from hwmodel.layer_row import COLUMNS
from search_spaces import cell

if TYPE_CHECKING:
    import keras

THREADS = "TF_NUM_INTRAOP_THREADS"  # the variable of the environment that says how many
BITS = 32  # TensorFlow computes in float32
WARM_UP = 3  # calls, in which TensorFlow optimizes the graph
SLICE_S = 4e-3  # a round calls a network again until so long has passed


def random_cells(rng: np.random.Generator) -> tuple[keras.Model, int]:
    """A design of the cell space, one or two cells a stage, and its batch."""
    space = cell.SPACE.restrict({})
    while True:
        choices = space.decode(space.sample(1, rng)[0])
        choices |= {"cell.depth": int(rng.integers(1, 3))}
        try:
            return without_normalization(cell.build(choices)), int(rng.choice([1, 2, 4, 8, 16]))
        except cell.DisconnectedError:
            continue


def without_normalization(model: keras.Model) -> keras.Model:
    """The model with a bias in each convolution in place of the normalization behind it, as it is
    folded for inference and as `Layers.from_keras` counts it."""
    import keras

    def biased(layer):
        config = layer.get_config()
        if isinstance(layer, keras.layers.Conv2D):
            config["use_bias"] = True
        return type(layer).from_config(config)

    def passed_over(layer, tensor, *args, **kwargs):
        if isinstance(layer, keras.layers.BatchNormalization):
            return tensor
        return layer(tensor, *args, **kwargs)

    return keras.models.clone_model(model, clone_function=biased, call_function=passed_over)


def random_convolutions(rng: np.random.Generator) -> tuple[keras.Model, int]:
    """Two to eight convolutions of any kernel, some with a stride; sometimes a pooling."""
    from keras import Input, layers

    size, in_channels = (int(rng.choice(values)) for values in ((14, 28, 32, 56), (3, 16, 64)))
    image = x = Input((size, size, in_channels))
    for _ in range(rng.integers(2, 9)):
        stride = 2 if x.shape[1] > 7 and rng.random() < 0.25 else 1
        x = layers.Conv2D(
            int(rng.choice([8, 16, 24, 32, 64, 96, 128])),
            int(rng.choice([1, 3, 3, 5])),
            stride,
            padding="same",
        )(x)
        x = layers.ReLU()(x)
        if x.shape[1] > 7 and rng.random() < 0.2:
            x = layers.MaxPooling2D(2)(x)
    return ending(image, x, rng)


def random_separable(rng: np.random.Generator) -> tuple[keras.Model, int]:
    """One to five inverted residuals (Sandler et al., CVPR 2018) without normalization."""
    from keras import Input, layers

    size, channels = (int(rng.choice(values)) for values in ((14, 28, 32, 56), (16, 24, 32, 64)))
    image = x = Input((size, size, channels))
    for _ in range(rng.integers(1, 6)):
        before, expansion = x, int(rng.choice([1, 3, 6]))
        stride = 2 if x.shape[1] > 7 and rng.random() < 0.25 else 1
        x = layers.ReLU()(layers.Conv2D(channels * expansion, 1)(x))
        kernel = int(rng.choice([3, 3, 5]))
        x = layers.ReLU()(layers.DepthwiseConv2D(kernel, stride, padding="same")(x))
        x = layers.Conv2D(channels, 1)(x)
        x = layers.Add()([x, before]) if stride == 1 else x
    return ending(image, x, rng)


def random_dense(rng: np.random.Generator) -> tuple[keras.Model, int]:
    """Two to six dense layers."""
    from keras import Input, Model, layers

    vector = x = Input((int(rng.choice([64, 256, 784])),))
    for _ in range(rng.integers(2, 7)):
        x = layers.ReLU()(layers.Dense(int(rng.choice([64, 128, 256, 512, 1024])))(x))
    return Model(vector, layers.Dense(10)(x)), int(rng.choice([1, 4, 16, 64]))


def ending(image, x, rng: np.random.Generator) -> tuple[keras.Model, int]:
    """The model from `image` to `x` with pooling and classes behind it, and a batch."""
    from keras import Model, layers

    classes = layers.Dense(int(rng.choice([10, 100, 1000])))(layers.GlobalAveragePooling2D()(x))
    return Model(image, classes), int(rng.choice([1, 2, 4, 8]))


# Network i is of kind i modulo their number: half are what is searched, the others vary what cells
# do not, so that the rates can be told apart.
KINDS = (
    random_cells,
    random_convolutions,
    random_cells,
    random_separable,
    random_cells,
    random_convolutions,
    random_cells,
    random_dense,
)


def network(index: int, seed: int) -> tuple[keras.Model, int]:
    """Network `index` of the seed, freshly initialized, and its batch."""
    return KINDS[index % len(KINDS)](np.random.default_rng([seed, index]))


def runner(model: keras.Model, batch: int) -> Callable[[], np.ndarray]:
    """A call that runs one inference of random inputs as a TensorFlow function. Its weights stay
    variables: frozen into the graph, products of a single vector pack them anew in each call."""
    import tensorflow as tf

    shape = (batch, *model.inputs[0].shape[1:])
    inference = tf.function(lambda x: model(x, training=False))
    compiled = inference.get_concrete_function(tf.TensorSpec(shape, tf.float32))
    inputs = tf.random.stateless_uniform(shape, seed=(0, 0))
    return lambda: compiled(inputs).numpy()


def time_all(
    runs: Sequence[Callable],
    rounds: int,
    say: Callable = lambda round_number: None,
    clock: Callable[[], float] = time.perf_counter,
) -> np.ndarray:
    """[len(runs)] least seconds of a call: what other work adds is no property of the machine.
    `clock`: processor time leaves out even more of that, but sums over threads.

    Every round calls all of them, one after the other, so that a while in which the machine is busy
    or its clock low is no network's alone.
    """
    for run in runs:
        for _ in range(WARM_UP):
            run()
    seconds = np.full(len(runs), np.inf)
    for round_number in range(rounds):
        for i, run in enumerate(runs):
            end = clock() + SLICE_S
            while (start := clock()) < end:
                run()
                seconds[i] = min(seconds[i], clock() - start)
        say(round_number)
    return seconds


def write_timed(path: Path, layers: Layers, seconds: np.ndarray) -> None:
    """The rows of networks and their `seconds` [n_networks], without pickles."""
    columns = {f"column.{name}": column for name, column in layers.columns.items()}
    np.savez(
        path, names=layers.names.astype(str), offsets=layers.offsets, seconds=seconds, **columns
    )


def read_timed(path: Path) -> tuple[Layers, np.ndarray]:
    """What `write_timed` wrote."""
    with np.load(path, allow_pickle=False) as table:
        columns = {name: table[f"column.{name}"] for name in COLUMNS}
        layers = Layers(table["names"].astype(object), columns, table["offsets"])
        return layers, table["seconds"]


def main(path: str, n: str, seed: str, rounds: str) -> None:
    """Build, time, write; progress as JSON lines on standard output."""

    def say(what: str):
        sys.stdout.write(json.dumps({"done": what}) + "\n")
        sys.stdout.flush()

    layers, runs = [], []
    for index in range(int(n)):
        model, batch = network(index, int(seed))
        layers.append(Layers.from_keras(model, batch, weight_bits=BITS, activation_bits=BITS))
        runs.append(runner(model, batch))
        say("network")
    clock = time.process_time if os.environ[THREADS] == "1" else time.perf_counter
    seconds = time_all(runs, int(rounds), lambda round_number: say("round"), clock)
    write_timed(Path(path), Layers.concat(layers), seconds)


if __name__ == "__main__":
    main(*sys.argv[1:])
