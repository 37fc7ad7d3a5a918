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
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.language_design import CACHE, UNITS, bits, design, recipe, show
from benchmarks.language_search import rescored, show_search
from benchmarks.language_speed import show_speed, show_time
from nas import text
from nas.pricing import price_designs
from search_spaces import recurrent
from search_spaces.memory import Experts
from search_spaces.precision import precisions

SHARED = Path(__file__).parents[2] / "shared" / "data" / "ptb"


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
