"""What is claimed of language models, shown on Penn Treebank.

    python benchmarks/language.py [--only PART ...] [--data DIR] [--seconds 45] [--hours 2]

Mikolov's files lie in `--data`, by default ../shared/data/ptb; `--data python-docs` takes the text
that comes with Python instead. Times are of this process's CPU, on one thread.

Parts:
    speed      words a CPU second of our training step and of a Keras RNN layer of the same cell
    time       validation perplexity after equal CPU seconds: our LSTM and Keras's, each with the
               share of dropout that suits it
    softmax    scores of a trained model against a plain NumPy forward pass
    experts    multiplies, storage, load and perplexity of 4 to 2,048 experts, and a dense layer
    memory     the price of a soft read, a hard one and a cache against the size of the table, and
               perplexity with the cache
    bits       perplexity at 32 to 2 bits of embedding, recurrent and output weights apart
    search     a joint search of --hours, and an LSTM tuned as long, both trained for --train-hours
               (language_search.py); what is finished is kept in --to, an interrupted part goes on
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.language_search import ACCELERATOR, CACHE, bits, compare, rescored
from nas import text
from nas.pricing import price_designs
from search_spaces import recurrent
from search_spaces.memory import Experts
from search_spaces.precision import precisions

SHARED = Path(__file__).parents[2] / "shared" / "data" / "ptb"
BATCH, WORDS, UNITS, SAMPLES = 64, 35, 128, 512
NODES = ((0, "relu"), (0, "tanh"), (1, "relu"), (2, "sigmoid"), (3, "identity"), (2, "relu"),
         (4, "tanh"))  # fmt: skip


def design(found: text.Text, **choices) -> dict:
    """Choices of one model: an LSTM of 8 bits, unless told otherwise."""
    return {
        "text.vocabulary": len(found.words),
        "rnn.cell": "lstm",
        "rnn.units": UNITS,
        "embed.width": UNITS,
        "embed.tied": False,
        "train.words": WORDS,
        "train.batch": BATCH,
        "serve.words": WORDS,
        "serve.batch": 1,
        **ACCELERATOR,
        **bits(8),
        **choices,
    }


def dag() -> dict:
    """The cell of eight nodes that speed is measured with."""
    return {
        "rnn.cell": "dag",
        "dag.nodes": len(NODES) + 1,
        "dag.node0.function": "tanh",
        **{f"dag.node{i}.from": source for i, (source, _) in enumerate(NODES, 1) if i > 1},
        **{f"dag.node{i}.function": function for i, (_, function) in enumerate(NODES, 1)},
    }


def recipe(choices: dict, epochs: int, **given):
    from nas.language import TextRecipe

    weights, activations = zip(*precisions(choices), strict=True)
    settings = dict(
        batch=choices["train.batch"],
        words=choices["train.words"],
        epochs=epochs,
        learning_rate=0.008,
        warmup=0.1,
        weight_bits=weights,
        activation_bits=activations,
        samples=SAMPLES,
    )
    return TextRecipe(**{**settings, **given})


def show(*cells) -> None:
    print(
        "  ".join(f"{cell:>14}" if i else f"{cell:<34}" for i, cell in enumerate(cells)), flush=True
    )


# -- speed -----------------------------------------------------------------------------------------


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
    n_words = rate(our_step(found, choices), found, 5) * seconds
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


# -- exactness -------------------------------------------------------------------------------------


def show_softmax(found: text.Text, options) -> None:
    """An LSTM of 32 bits, trained on a few words, over the validation text's first 2,000."""
    from nas.language import TextTrainer

    choices = design(found, **bits(32))
    trained = TextTrainer().fit(
        recurrent.network(choices), found.train[:40_000], recipe(choices, 1), seed=0
    )
    tokens = found.validation[:2000]
    words, there = text.streams(tokens, min(50, len(tokens)), found.end)
    named = {name: value.astype(float) for name, value in trained.tensors().items()}
    h = c = np.zeros((words.shape[1], UNITS))
    total = 0.0
    for before, after, real in zip(words[:-1], words[1:], there, strict=True):
        sums = named["embedding/words/table"][before] @ named["cell0/input/kernel"]
        sums += named["cell0/input/bias"] + h @ named["cell0/state/kernel"]
        enter, forget, new, leave = np.split(sums, 4, -1)
        enter, forget, leave = (1 / (1 + np.exp(-x)) for x in (enter, forget + 1, leave))
        c = forget * c + enter * np.tanh(new)
        h = leave * np.tanh(c)
        scores = h @ named["output/scores/rows"].T + named["output/scores/bias"]
        losses = np.log(np.exp(scores).sum(1)) - scores[np.arange(len(after)), after]
        total += losses[real].sum()
    ours, plain = trained.score(tokens, found.end).loss, total / len(tokens)
    show("mean -ln p by the full softmax", "ours", "NumPy", "difference")
    show(f"{len(found.words):,} words", f"{ours:.6f}", f"{plain:.6f}", f"{abs(ours - plain):.1e}")


# -- experts, memory, bits -------------------------------------------------------------------------


def perplexity_of(trainer, found: text.Text, choices: dict, options, seed: int = 0):
    """The score of a short training."""
    network, settings = recurrent.network(choices), recipe(choices, options.epochs)
    trained = trainer.fit(network, found.train[: options.tokens], settings, seed=seed)
    return trained.score(found.validation, found.end)


def show_experts(found: text.Text, options) -> None:
    """Two active experts of 64 hidden units; multiplies a word of the experts and of the router."""
    from nas.language import TextTrainer

    trainer = TextTrainer()
    show("experts", "multiplies", "router's", "MB stored", "load CV", "without loss", "perplexity")
    both = {"experts.active": 2, "experts.hidden": 64}
    for n in options.experts:
        own = Experts(n, 2, 64)
        rows = own.cost("experts", [(UNITS,)], precisions(design(found))[1], 1, 1)
        macs = {row.name: row.m * row.k * row.n * row.groups for row in rows}
        router = macs.pop("experts.router")
        stored = sum(row.weights for row in rows) / 2**20
        scores = [
            perplexity_of(
                trainer, found,
                design(found, **both, **{"experts.n": n, "experts.balance": balance}), options
            )
            for balance in (0.1, 0)
        ]  # fmt: skip
        show(n, f"{sum(macs.values()):,}", f"{router:,}", f"{stored:.2f}",
             *(f"{s.load_variation:.2f}" for s in scores),
             f"{scores[0].perplexity:.1f}")  # fmt: skip
    dense = design(found)
    network = recurrent.network(dense)
    wide = Experts(1, 1, 128)
    steps = list(network.steps)
    steps.insert(-1, steps[-1]._replace(name="experts", op=wide, group=recurrent.RECURRENT))
    network = type(network)(tuple(steps), network.vocabulary, network.groups)
    trained = trainer.fit(
        network, found.train[: options.tokens], recipe(dense, options.epochs), seed=0
    )
    show("one dense layer of 128 units", f"{2 * UNITS * 128:,}", "", "", "", "",
         f"{trained.score(found.validation, found.end).perplexity:.1f}")  # fmt: skip


def show_memory(found: text.Text, options) -> None:
    """One sequence of 35 words, on a weight-stationary array of 32 x 32; above what it costs
    without a memory. A cache is added to one short training of an LSTM, in float."""
    from nas.language import TextTrainer

    trainer = TextTrainer()
    settings = recipe(design(found, **bits(32)), options.epochs)
    network, tokens = recurrent.network(design(found, **bits(32))), found.train[: options.tokens]
    trained = trainer.fit(network, tokens, settings, seed=0)
    alone = trained.score(found.validation, found.end).perplexity
    [(none, _)] = price_designs("recurrent", [design(found)])
    kinds = {
        "soft": {"memory.kind": "soft", "memory.heads": 1, "memory.key": 32},
        "hard": {"memory.kind": "hard"},
        "cache": CACHE,
    }
    sizes = [2**b for b in range(4, 13)]
    prices = {}
    for kind, given in kinds.items():
        designs = [design(found, **given | {"memory.slots": n}) for n in sizes]
        found_prices = price_designs("recurrent", designs)
        prices[kind] = [metrics["latency_s"] - none["latency_s"] for metrics, _ in found_prices]
    widest = max(max(values) for values in prices.values())
    show("slots", *(f"{kind}, us" for kind in kinds), "perplexity")
    show("no memory", "", "", "", f"{alone:.1f}")
    for i, n in enumerate(sizes):
        cached = rescored(trainer, trained, design(found, **CACHE | {"memory.slots": n}))
        score = cached.score(found.validation, found.end).perplexity
        show(n, *(f"{1e6 * prices[kind][i]:.2f}" for kind in kinds), f"{score:.1f}")
        for kind in kinds:
            print(f"    {kind:<5} {'#' * max(1, round(40 * prices[kind][i] / widest))}")


def show_bits(found: text.Text, options) -> None:
    """Of one kind of weights at a time; all else of 32 bits."""
    from nas.language import TextTrainer

    trainer = TextTrainer()
    groups = ("embedding", "recurrent", "output")
    show("bits", *groups)
    for n in (32, 8, 6, 4, 2):
        found_scores = [
            perplexity_of(
                trainer, found, design(found, **{**bits(32), f"bits.weights.{group}": n}), options
            )
            for group in groups
        ]
        show(n, *(f"{score.perplexity:.1f}" for score in found_scores))


# -- search ----------------------------------------------------------------------------------------


def show_search(found: text.Text, options) -> None:
    """Two searches of equal hours, of all cells and of LSTMs alone; the best of each in float, with
    as many parameters, for --train-hours each; three seeds."""

    def speed(choices: dict) -> float:
        return rate(our_step(found, choices), found, 5, choices["train.batch"],
                    choices["train.words"])  # fmt: skip

    compare(found, options, speed, show)


PARTS = {
    "speed": show_speed,
    "time": show_time,
    "softmax": show_softmax,
    "experts": show_experts,
    "memory": show_memory,
    "bits": show_bits,
    "search": show_search,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--data", default=str(SHARED), help="folder of ptb.*.txt, or python-docs")
    parser.add_argument("--seconds", type=float, default=45, help="of CPU, in speed and time")
    parser.add_argument(
        "--dropouts", type=float, nargs="+", default=[0, 0.3, 0.5], metavar="SHARE", help="in time"
    )
    parser.add_argument("--tokens", type=int, default=200_000, help="that short trainings see")
    parser.add_argument("--epochs", type=int, default=2, help="of short trainings")
    parser.add_argument(
        "--experts", type=int, nargs="+", default=[4, 16, 64, 256, 1024, 2048], metavar="N"
    )
    parser.add_argument("--hours", type=float, default=2, help="of each search")
    parser.add_argument("--trials", type=int, default=10_000, help="at most, of each search")
    parser.add_argument(
        "--params", type=int, default=3_000_000, help="at most, of a network of the searches"
    )
    parser.add_argument("--train-hours", type=float, default=1, help="of each, all")
    parser.add_argument("--to", default="runs/language", help="where searches and results are kept")
    options = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ.setdefault(name, "1")  # before TensorFlow is imported
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    docs = options.data == "python-docs"
    if not docs and not Path(options.data).is_dir():
        raise SystemExit(f"no folder {options.data}; {text.REMEDY}, or take --data python-docs")
    found = text.load("python-docs") if docs else text.load("ptb", options.data)
    for part in options.only:
        show_part = PARTS[part]
        print(f"\n{part}: {show_part.__doc__ or ''}".rstrip(), flush=True)
        show_part(found, options)


if __name__ == "__main__":
    main()
