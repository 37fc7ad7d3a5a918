"""Trains an exported design for long, on Keras's JAX backend: a GPU, or slowly a CPU.

    nas export RUN --best --to best.keras
    python benchmarks/retrain.py best.keras --data DIR [--minutes 15] [--seed 0 1 2]

Needs JAX (`pip install '.[retrain]'`) and no TensorFlow: where there is none, `pip install keras
jax pillow tqdm tomli-w` and this repository on PYTHONPATH do. Reads best.keras and best.json;
prints the test accuracy of every seed and their mean, the bits, and the price on the accelerator
that was found, which retraining leaves as it is.

The recipe is airbench's (Jordan, 2404.00498): alternating flip, translation by 2 of 32 pixels,
label smoothing 0.2, Nesterov momentum 0.85, triangular schedule, lookahead, and all 50,000 training
images, since nothing is chosen here. Kernels are quantized in every step at their recorded bits
with learned steps (LSQ, 1902.08153); normalization statistics are estimated anew at the end.
What differs: the exported network is fixed, and priced as it is. Its first convolution is too
narrow for frozen patch-whitening, and learned in few bits; kernels of few bits cannot begin as
identities beside random weights; clips of activations stay as found, since they are constants of
the model, and the normalization before them learns the scale instead. Weight decay is the
search's. Biases of normalization have the rate of all: on a cell network of the quick start (10,000
images x 4, one seed) 8 times it gave .48 and airbench's 64 times .38, against .48. No test-time
augmentation: it would multiply the price.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import keras
import numpy as np

from nas import data
from nas.export import write_model
from nas.layout import MIN_STEP
from search_spaces.quantizers import dequantized, initial_step, weight_levels

MOMENTUM, WEIGHT_DECAY, LABEL_SMOOTHING = 0.85, 5e-4, 0.2
RATE = 1.5  # the highest, for a batch of 1,024 and in proportion for others
SCHEDULE = (0, 0.23, 1), (0.2, 1, 0.07)  # the share of the steps, the share of the highest rate
TRANSLATION = 2 / 32  # of the image's side
LOOKAHEAD_EVERY, LOOKAHEAD_DECAY = 5, 0.95**5
SCORE_BATCH, STATISTICS_BATCHES = 500, 10
MOVED = 1 - keras.layers.BatchNormalization().momentum  # of moments from zero, by one batch


def through(x, rounded):
    """`rounded`, with the gradient of `x`."""
    return x + jax.lax.stop_gradient(rounded - x)


def quantize(kernel, step, bits: int):
    """The kernel on its grid, as `search_spaces.quantizers.quantize_weights`."""
    low, top = map(float, weight_levels(bits))
    step = jnp.abs(step) + MIN_STEP
    step = through(step * (kernel.size * top) ** -0.5, step)
    if bits == 1:
        return jnp.where(kernel >= 0, step, -step) + through(kernel, 0 * kernel)
    within = jnp.clip(kernel / step, -low, top)
    return through(within, jnp.round(within)) * step


def augmented(images, flips, key):
    """[n, r, r, 3]: mirrored where `flips`, and shifted, edges reflected."""
    n, height = images.shape[:2]
    reach = max(1, round(TRANSLATION * height))
    images = jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)
    padded = jnp.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), "reflect")
    corners = jax.random.randint(key, (n, 2), 0, 2 * reach + 1)
    return jax.vmap(
        lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), images.shape[1:])
    )(padded, corners)


class Retrainer:
    """An exported model and what is compiled of it.

    Its state is a tree: "weights", the model's trainable variables in order, and "steps", of each
    kernel by its position among them.
    """

    def __init__(self, path: Path):
        beside = path.with_suffix(".json")
        for file in (path, beside):
            if not file.is_file():
                raise ValueError(f"no file {file}; 'nas export' writes the model and its .json")
        self.design = json.loads(beside.read_text("utf-8"))
        choices = self.design["choices"]
        if choices.get("prune.method", "none") != "none" or "compress.codebook" in choices:
            raise ValueError(
                f"{path} is pruned or has a codebook, which retraining would undo; export a design "
                "of plain or low-rank weights"
            )
        self.model = keras.models.load_model(path)
        paths = [v.path for v in self.model.trainable_variables]
        self.grids = {paths.index(at): grid for at, grid in self.design["kernels"].items()}
        self.zeros = [jnp.zeros_like(v.value) for v in self.model.non_trainable_variables]
        self.update = jax.jit(self._update, donate_argnums=(0, 1))
        self.look_ahead = jax.jit(self._look_ahead, donate_argnums=(0, 1))
        self.moments_of = jax.jit(self._moments_of)
        self.n_right = jax.jit(self._n_right)

    # -- states -----------------------------------------------------------------------------------

    def found(self) -> dict:
        """The weights and steps of the file."""
        weights = [jnp.array(v.value) for v in self.model.trainable_variables]
        return {
            "weights": weights,
            "steps": {i: jnp.float32(grid["step"]) for i, grid in self.grids.items()},
        }

    def fresh(self, seed: int) -> dict:
        """New weights by the layers' own initializers, and LSQ's first steps."""
        keras.utils.set_random_seed(seed)
        new = keras.models.clone_model(self.model)
        weights = [jnp.array(v.value) for v in new.trainable_variables]
        steps = {
            i: jnp.float32(initial_step(np.asarray(weights[i]), grid["bits"]))
            for i, grid in self.grids.items()
        }
        return {"weights": weights, "steps": steps}

    def on_grid(self, state: dict) -> tuple[list[np.ndarray], dict[str, dict]]:
        """(variables as an accelerator computes with them, `kernels` of the description)."""
        weights = [np.asarray(w) for w in state["weights"]]
        kernels = {}
        for path, (i, grid) in zip(self.design["kernels"], self.grids.items(), strict=True):
            step = abs(float(state["steps"][i])) + MIN_STEP
            kernels[path] = {"bits": grid["bits"], "step": step}
            weights[i] = dequantized(weights[i], step, grid["bits"])
        return weights, kernels

    # -- compiled ---------------------------------------------------------------------------------

    def _loss(self, state, images, labels):
        weights = list(state["weights"])
        for i, grid in self.grids.items():
            weights[i] = quantize(weights[i], state["steps"][i], grid["bits"])
        scores, _ = self.model.stateless_call(weights, self.zeros, images, training=True)
        logs = jax.nn.log_softmax(scores)
        right = jnp.take_along_axis(logs, labels[:, None], 1).mean()
        return -(1 - LABEL_SMOOTHING) * right - LABEL_SMOOTHING * logs.mean()

    def _update(self, state, velocity, images, labels, rows, flips, key, rate):
        """One step by the images of `rows`: (state, velocity, loss)."""
        batch = augmented(images[rows].astype(jnp.float32), flips[rows], key)
        loss, gradient = jax.value_and_grad(self._loss)(state, batch, labels[rows])
        for i in self.grids:
            gradient["weights"][i] += WEIGHT_DECAY * state["weights"][i]
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, gradient)
        state = jax.tree.map(
            lambda p, v, g: p - rate * (MOMENTUM * v + g), state, velocity, gradient
        )
        return state, velocity, loss

    def _look_ahead(self, state, slow, decay):
        """Both are the slow weights, moved towards the fast by 1 - decay (1907.08610)."""
        slow = jax.tree.map(lambda s, p: decay * s + (1 - decay) * p, slow, state)
        return jax.tree.map(jnp.copy, slow), slow

    def _moments_of(self, weights, images):
        """The moments of one batch, in the order of the model's own."""
        _, left = self.model.stateless_call(weights, self.zeros, images, training=True)
        return [each / MOVED for each in left]

    def _n_right(self, weights, moments, images, labels):
        scores, _ = self.model.stateless_call(weights, moments, images, training=False)
        return (scores.argmax(-1) == labels).sum()

    # -- training and scoring ---------------------------------------------------------------------

    def steps(self, state, train, batch: int, epochs: int, seed: int):
        """Train; after each step (state, loss), the state good until the next is asked for."""
        images, labels = train
        rng, key = np.random.default_rng(seed), jax.random.key(seed)
        n = len(labels)
        total = epochs * (n // batch)
        rates = RATE * batch / 1024 * np.interp(np.arange(total) / total, *SCHEDULE)
        flips = rng.random(n) < 0.5
        velocity = jax.tree.map(jnp.zeros_like, state)
        slow = jax.tree.map(jnp.copy, state)
        at = 0
        for _ in range(epochs):
            order = rng.permutation(n)[: n // batch * batch].reshape(-1, batch)
            for rows in order:
                state, velocity, loss = self.update(
                    state, velocity, images, labels, rows, flips,
                    jax.random.fold_in(key, at), np.float32(rates[at]),
                )  # fmt: skip
                at += 1
                if at % LOOKAHEAD_EVERY == 0 or at == total:
                    decay = LOOKAHEAD_DECAY * (at / total) ** 3
                    state, slow = self.look_ahead(state, slow, np.float32(decay))
                yield state, loss
            flips = ~flips

    def put(self, state: dict, images) -> dict[str, dict]:
        """Put a state into the model, quantized, with moments estimated on `images`; returns
        `kernels` of the description."""
        weights, kernels = self.on_grid(state)
        for variable, value in zip(self.model.trainable_variables, weights, strict=True):
            variable.assign(value)
        n = min(len(images), STATISTICS_BATCHES * SCORE_BATCH)
        with jax.default_matmul_precision("float32"):
            seen = [self.moments_of(weights, batch) for batch in batches(images[:n])]
        variables = self.model.non_trainable_variables
        for i in range(0, len(variables), 2):  # a mean, then its variance
            means = np.array([each[i] for each in seen])
            variances = np.array([each[i + 1] for each in seen])
            variables[i].assign(means.mean(0))
            variables[i + 1].assign(variances.mean(0) + means.var(0))
        return kernels

    def accuracy(self, images, labels) -> float:
        """Of the model as it is, in full float32."""
        weights = [v.value for v in self.model.trainable_variables]
        moments = [v.value for v in self.model.non_trainable_variables]
        with jax.default_matmul_precision("float32"):
            right = sum(
                int(self.n_right(weights, moments, *part))
                for part in zip(batches(images), batches(labels), strict=True)
            )
        return right / len(labels)


def batches(array):
    """Consecutive parts of SCORE_BATCH."""
    return (array[start : start + SCORE_BATCH] for start in range(0, len(array), SCORE_BATCH))


def loaded(folder: str | None, resolution: int, n: int) -> tuple[tuple, tuple]:
    """((images, labels) to train on, and of the test), on the device, pixels 0..255."""
    found = data.load("cifar10" if folder else "cifar10-sample", folder)
    x = np.concatenate([found.train.x, found.validation.x])
    train = data.Images(x, np.concatenate([found.train.y, found.validation.y]))
    if n:
        train = data.subset(train, n, seed=0)

    def placed(images: data.Images):
        whole = images.x.shape[1] == resolution
        x = images.x if whole else data.resize(images.x, resolution)
        return jax.device_put(x), jax.device_put(images.y)

    return placed(train), placed(found.test)


def seconds_an_epoch(trainer: Retrainer, train, batch: int) -> float:
    """Of training, by an epoch or ten seconds of one, what is compiled first left out."""
    steps = trainer.steps(trainer.found(), train, batch, 1, seed=0)
    n_steps, n_timed = len(train[1]) // batch, 0
    jax.block_until_ready(next(steps))
    start = time.perf_counter()
    for state, _ in steps:
        n_timed += 1
        if n_timed % LOOKAHEAD_EVERY == 0:
            jax.block_until_ready(state)
            if time.perf_counter() - start > 10:
                break
    jax.block_until_ready(state)
    return n_steps * (time.perf_counter() - start) / n_timed


def epochs_in(seconds: float, begun: float, trainer: Retrainer, train, test, options) -> int:
    """How many epochs every seed can have, so that all end `seconds` after `begun`."""
    for _ in range(2):  # compiled, then timed
        start = time.perf_counter()
        trainer.put(trainer.found(), train[0])
        trainer.accuracy(*test)
        scoring = time.perf_counter() - start
    epoch = seconds_an_epoch(trainer, train, options.batch)
    left = seconds - (time.perf_counter() - begun)
    epochs = int((left / len(options.seed) - scoring) / epoch)
    if epochs < 1:
        raise ValueError(
            f"an epoch takes {epoch:.0f} s here, and {max(left, 0):.0f} s are left of "
            f"--minutes {options.minutes:g}; give more minutes, --epochs or fewer seeds"
        )
    return epochs


def describe(design: dict) -> None:
    """The bits and the price, a line each."""
    choices, price = design["choices"], design["price"]
    stages = sorted(name[13:] for name in choices if name.startswith("bits.weights."))
    bits = [f"{choices[f'bits.weights.{s}']}/{choices[f'bits.activations.{s}']}" for s in stages]
    hardware = {name[3:]: value for name, value in choices.items() if name.startswith("hw.")}
    print(
        f"bits        weights/activations {', '.join(bits)}; first and last layer "
        f"{choices['bits.ends']}; {price['params']:,.0f} parameters, "
        f"{price['weight_bytes'] / 1024:.1f} KiB of weights\n"
        f"price       {price['latency_s'] * 1e3:.4g} ms a batch of {choices['serve.batch']}, "
        f"{price['energy_j'] * 1e6:.4g} uJ an image, {price['area_mm2']:.3g} mm2\n"
        f"accelerator {', '.join(f'{name} {value}' for name, value in hardware.items())}"
    )


def retrain(options: argparse.Namespace) -> None:
    begun = time.perf_counter()
    if keras.backend.backend() != "jax":
        raise ValueError(f"Keras runs on {keras.backend.backend()}; set KERAS_BACKEND=jax")
    path = Path(options.model)
    if options.epochs < 0 or options.images < 0 or not options.minutes > 0:
        raise ValueError(
            f"--epochs {options.epochs}, --images {options.images} and --minutes "
            f"{options.minutes:g} must not be negative, the minutes above 0"
        )
    if options.to and (options.to.suffix != ".keras" or not options.to.parent.is_dir()):
        raise ValueError(f"--to takes a file .keras in a directory that is there; got {options.to}")
    trainer = Retrainer(path)
    train, test = loaded(options.data, trainer.model.input.shape[1], options.images)
    n = len(train[1])
    if not 1 <= options.batch <= n:
        raise ValueError(f"--batch {options.batch} is not of 1 to {n} images; choose another")
    print(f"{path}: trial {trainer.design['trial']}, on {jax.devices()[0].device_kind}")
    describe(trainer.design)
    print(f"as exported {trainer.accuracy(*test):.2%} of {len(test[1])} test images")
    epochs = options.epochs or epochs_in(60 * options.minutes, begun, trainer, train, test, options)
    print(f"schedule    {epochs} epochs of {n} images, batch {options.batch}")
    accuracies = []
    for seed in options.seed:
        start = time.perf_counter()
        first = trainer.fresh(seed) if options.start == "fresh" else trainer.found()
        steps = trainer.steps(first, train, options.batch, epochs, seed)
        [(state, loss)] = collections.deque(steps, maxlen=1)
        if not np.isfinite(loss):
            raise RuntimeError(f"the loss of seed {seed} is {loss}; a larger --batch may help")
        kernels = trainer.put(state, train[0])
        accuracies.append(trainer.accuracy(*test))
        seconds = time.perf_counter() - start
        print(f"seed {seed:<6} {accuracies[-1]:.2%}, loss {loss:.3f}, {seconds:.0f} s", flush=True)
        if options.to and seed == options.seed[0]:
            score = {"test_accuracy": accuracies[0], "kernels": kernels}
            write_model(trainer.model, {**trainer.design, **score}, options.to)
    spread = f" +- {np.std(accuracies, ddof=1):.2%}" if len(accuracies) > 1 else ""
    print(f"mean        {np.mean(accuracies):.2%}{spread} of {len(accuracies)} seeds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL.keras", help="as 'nas export' wrote it")
    parser.add_argument("--data", metavar="DIR", help="CIFAR-10; the embedded sample without")
    parser.add_argument("--minutes", type=float, default=15, help="of all seeds together (15)")
    parser.add_argument("--epochs", type=int, default=0, help="instead of what the minutes allow")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--seed", type=int, nargs="+", default=[0], metavar="N")
    parser.add_argument("--start", choices=["fresh", "found"], default="fresh", help="weights")
    parser.add_argument("--images", type=int, default=0, help="to train on (all)")
    parser.add_argument("--to", type=Path, metavar="FILE.keras", help="write the first seed's")
    try:
        retrain(parser.parse_args())
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"retrain: {error}")


if __name__ == "__main__":
    main()
