"""The parts `speed` and `time` of `language.py`: our training against Keras layers.

Times are of this process's CPU, on one thread.
"""

from __future__ import annotations

import time

import numpy as np

from benchmarks.language_design import BATCH, UNITS, WORDS, bits, design, recipe, show
from nas import text
from search_spaces import recurrent

NODES = ((0, "relu"), (0, "tanh"), (1, "relu"), (2, "sigmoid"), (3, "identity"), (2, "relu"),
         (4, "tanh"))  # fmt: skip


def dag() -> dict:
    """The cell of eight nodes that speed is measured with."""
    return {
        "rnn.cell": "dag",
        "dag.nodes": len(NODES) + 1,
        "dag.node0.function": "tanh",
        **{f"dag.node{i}.from": source for i, (source, _) in enumerate(NODES, 1) if i > 1},
        **{f"dag.node{i}.function": function for i, (_, function) in enumerate(NODES, 1)},
    }


def our_step(found: text.Text, choices: dict, **given):
    """A function that takes one step of training on words [steps + 1, n]."""
    from nas.language import Draw, first_values, zero_state
    from nas.language_program import LanguageProgram

    network, settings = recurrent.network(choices), recipe(choices, 1, **given)
    program = LanguageProgram(network, settings.switches)
    program.start(first_values(network, settings, found.train, 0))
    bits = np.int32(settings.weight_bits), np.int32(settings.activation_bits)
    draw, rng = Draw(found.train, network.vocabulary, settings.samples), np.random.default_rng(0)
    noise, state = np.zeros(2, np.int32), zero_state(network.in_training, settings.batch)

    def step(words):
        nonlocal state
        drawn = draw(words[1:], rng)
        _, state = program.step(words, *bits, 1e-3, settings.dropout, noise, *drawn, *state)

    return step


def keras_step(vocabulary: int):
    """The same of a Keras RNN layer of the same cell and a softmax over all words."""
    import keras

    class Cell(keras.layers.Layer):
        state_size = UNITS

        def build(self, shape):
            self.products = [
                self.add_weight(shape=(UNITS, 2 * UNITS), name=f"node{i}")
                for i in range(len(NODES) + 1)
            ]

        def call(self, sums, states):
            functions = {"identity": lambda x: x, "relu": keras.ops.relu, "tanh": keras.ops.tanh,
                         "sigmoid": keras.ops.sigmoid}  # fmt: skip

            def moved(source, sums, name):
                gate, target = keras.ops.split(sums, 2, -1)
                return source + keras.ops.sigmoid(gate) * (functions[name](target) - source)

            [h] = states
            values = [moved(h, sums + keras.ops.matmul(h, self.products[0]), "tanh")]
            for (source, name), kernel in zip(NODES, self.products[1:], strict=True):
                sums = keras.ops.matmul(values[source], kernel)
                values.append(moved(values[source], sums, name))
            read = {source for source, _ in NODES}
            ends = [value for i, value in enumerate(values) if i not in read]
            h = sum(ends[1:], ends[0]) / len(ends)
            return h, [h]

    model = keras.Sequential(
        [
            keras.layers.Embedding(vocabulary, UNITS),
            keras.layers.Dense(2 * UNITS),  # of all words at once, as ours
            keras.layers.RNN(Cell(), return_sequences=True),
            keras.layers.Dense(vocabulary),
        ]
    )
    return compiled(model, 1e-3)


def compiled(model, rate):
    """A function that takes one step of a Keras model on words [steps + 1, n]."""
    import keras

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate, clipnorm=1.0), loss, jit_compile=False)

    def step(words):
        model.train_on_batch(words[:-1].T, words[1:].T)

    return step


def rate(step, found: text.Text, seconds: float, batch: int = BATCH, words: int = WORDS) -> float:
    """Words a CPU second, after two steps of warming up."""
    n = len(found.train) // batch
    read = found.train[: n * batch].reshape(batch, n).T
    pieces = [read[i * words : (i + 1) * words + 1] for i in range((n - 1) // words)]
    for piece in pieces[:2]:
        step(piece)
    begun, n_steps = time.process_time(), 0
    while time.process_time() - begun < seconds:
        step(pieces[(2 + n_steps) % len(pieces)])
        n_steps += 1
    return n_steps * batch * words / (time.process_time() - begun)


def words_per_s(found: text.Text, choices: dict) -> float:
    """Words a CPU second of a design's training."""
    return rate(our_step(found, choices), found, 5, choices["train.batch"], choices["train.words"])


def show_speed(found: text.Text, options) -> None:
    """Three rounds in turn, so that what else runs meets all alike; medians."""
    steps = {
        "ours, sampled softmax, float": our_step(found, design(found, **dag(), **bits(32))),
        "ours, sampled softmax, 8 bits": our_step(found, design(found, **dag())),
        "ours, full softmax, float": our_step(found, design(found, **dag(), **bits(32)), samples=0),
        "Keras RNN layer, full softmax": keras_step(len(found.words)),
    }
    rates = {name: [] for name in steps}
    for _ in range(3):
        for name, step in steps.items():
            rates[name].append(rate(step, found, options.seconds / 9))
    peer = np.median(rates["Keras RNN layer, full softmax"])
    show("training step", "words / CPU s", "over Keras")
    for name, values in rates.items():
        show(name, f"{np.median(values):,.0f}", f"{np.median(values) / peer:.2f}")


def show_time(found: text.Text, options) -> None:
    """The same LSTM, optimizer, clipping, schedule and first biases; what fits in the time, each
    with the share of dropout that suits it best."""
    show("validation", "dropout", "perplexity", "CPU s", "words trained on")
    for name, fitted in (("ours, sampled softmax", our_fit),
                         ("Keras LSTM, full softmax", keras_fit)):  # fmt: skip
        for share in options.dropouts:
            score, spent, n_words = fitted(found, options.seconds, share)
            show(name, share, f"{score:.1f}", f"{spent:.0f}", f"{n_words:,}")


def our_fit(found: text.Text, seconds: float, dropout: float) -> tuple[float, float, int]:
    """(validation perplexity, CPU seconds, words read) of our training of that length."""
    from nas.language import TextTrainer

    choices = design(found, **bits(32))
    network = recurrent.network(choices)
    n_words = words_per_s(found, choices) * seconds
    epochs = max(1, round(n_words / len(found.train)))
    tokens = found.train[: int(n_words / epochs)]
    begun = time.process_time()
    trained = TextTrainer().fit(network, tokens, recipe(choices, epochs, dropout=dropout), seed=0)
    spent = time.process_time() - begun
    score = trained.score(found.validation, found.end)
    return score.perplexity, spent, epochs * len(tokens)


def keras_fit(found: text.Text, seconds: float, dropout: float) -> tuple[float, float, int]:
    """The same of Keras layers."""
    import keras

    from nas.course import schedule
    from nas.language import perplexity, shares_of

    def lstm(batch):
        layers = [
            keras.layers.Embedding(len(found.words), UNITS),
            keras.layers.Dropout(dropout),
            keras.layers.LSTM(UNITS, return_sequences=True, stateful=True),
            keras.layers.Dropout(dropout),
            keras.layers.Dense(len(found.words)),
        ]
        model = keras.Sequential([keras.Input(batch_shape=(batch, None)), *layers])
        model.layers[-1].bias.assign(np.log(shares_of(found.train, len(found.words))))
        return model, compiled(model, 0.0)

    n_steps = int(rate(lstm(BATCH)[1], found, 5) * seconds / (BATCH * WORDS))
    keras.utils.set_random_seed(0)
    model, step = lstm(BATCH)
    rates = schedule(n_steps, recipe(design(found), 1).learning_rate, 0.1)
    n = len(found.train) // BATCH
    read = found.train[: n * BATCH].reshape(BATCH, n).T
    begun = time.process_time()
    for i, value in enumerate(rates):
        at = i * WORDS % (n - WORDS - 1)
        model.optimizer.learning_rate.assign(value)
        step(read[at : at + WORDS + 1])
    spent = time.process_time() - begun
    scorer, _ = lstm(1)
    scorer.set_weights(model.get_weights())
    total, before = 0.0, np.append(found.end, found.validation)
    for at in range(0, len(found.validation), 500):
        piece = before[at : at + 501]
        scores = np.asarray(scorer(piece[None, :-1]), float)[0]
        shifted = scores - scores.max(1, keepdims=True)
        losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(scores)), piece[1:]]
        total += losses.sum()
    return perplexity(total / len(found.validation)), spent, n_steps * BATCH * WORDS
