"""The best cell of a joint search against a tuned LSTM of as many parameters.

The part `search` of `language.py`. Two searches of --hours each, on two workers and of networks of
at most --params: the preset's joint search; and one of LSTMs alone, in 16 bits on one accelerator
and by validation perplexity alone, so that all of its hours go into the LSTM. The best of each is
that of the lowest validation perplexity; the found design is then made as large as the LSTM, its
units and the width of its embedding in proportion. Both are trained in float for --train-hours
each, as their searches chose but for dropout, of which short trainings want little: every share of
DROPOUTS is tried with seed 0, the best by validation perplexity is trained with seeds 1 and 2. Test
words are read to be reported, and for nothing else.

A cache of words changes nothing in training: both sides are scored without one and with one, that
of the found design if it has one, so that it is seen what it does and what the cell does.

An hour of a search is 3,600 CPU seconds of trainings on each worker, so that both meet the same
machine; one of final trainings is 3,600 CPU seconds in all. What is finished is kept in --to at
once, searches and trainings that are interrupted go on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np

import nas
from benchmarks.language_design import ACCELERATOR, CACHE, bits, show
from benchmarks.language_speed import words_per_s
from benchmarks.time_to_front import Cache
from nas import text
from nas.checkpoint import Checkpoint, key_of
from nas.config import read
from nas.evaluators.language import Language
from nas.trial import Status
from search_spaces import recurrent

WORKERS = 2
DROPOUTS = (0.1, 0.3, 0.5)
SEEDS = 3
SCORED = ("validation", "test", "no cache", "cache")  # the latter two on the test words
SIZES = [32, 64, 96, 128, 200, 256, 400, 650]


def n_params(choices: Mapping) -> int:
    return int(recurrent.layers(dict(choices)).params[0])


def spent_hours(run: nas.Run) -> float:
    """CPU hours of trainings, on each worker."""
    trained = [t for t in run.trials() if t.status is Status.COMPLETE and t.repeats is None]
    return sum(t.metrics["cpu_seconds"] for t in trained) / 3600 / WORKERS


def searched(folder: Path, hours: float, preset: str, **given) -> nas.Run:
    """A run that has had its hours, begun or gone on with."""
    if not (folder / "config.toml").exists():
        nas.search(preset, run_dir=folder, hours=hours, workers=WORKERS, **given)
    run, before = nas.Run(folder), -1
    while (left := hours - spent_hours(run)) > 0.02 * hours and len(run.trials()) > before:
        before = len(run.trials())
        run = nas.resume(folder, hours=left)
    return run


def best_of(run: nas.Run) -> dict:
    """The choices of the trial of the lowest validation perplexity, in float."""
    id = int(run.leaderboard().sort_values("perplexity")["trial"].iloc[0])
    return run.space.decode(run.trial(id).proposal.encoding) | bits(32)


def as_large(choices: dict, params: int) -> dict:
    """The same with its units and the width of its embedding in the same proportion, in steps of
    four units, so that its parameters come nearest to so many."""
    ratio = choices["embed.width"] / choices["rnn.units"]
    sizes = (
        choices | {"rnn.units": units, "embed.width": max(4, round(ratio * units))}
        for units in range(8, 2048, 4)
    )
    return min(sizes, key=lambda design: abs(n_params(design) - params))


def of_lstms() -> dict:
    """Settings of a search of LSTMs by perplexity alone."""
    lstms = {
        "rnn.cell": "lstm", "rnn.units": SIZES, "embed.width": SIZES, "embed.rank": 0,
        "memory.kind": "none", "train.batch": [16, 32, 64], "train.words": [16, 35, 70],
        "train.learning_rate": [0.2, 0.4, 0.8, 1.6, 3.2], "train.dropout": [0, 0.1, 0.2, 0.3, 0.5],
        "serve.batch": 1, "serve.words": 35,
    }  # fmt: skip
    return {
        "space": {**lstms, **bits(16), **ACCELERATOR, "hw.multiplier": "fixed16"},
        "reward": {"name": "pareto", "objectives": ["-perplexity"]},
    }


def rescored(trainer, trained, choices: dict):
    """The same weights in the network of `choices`, which differs in its cache alone."""
    network = recurrent.network(choices)
    program = trainer.program(network, trained.recipe.switches)
    return replace(trained, network=network, program=program)


def final_scores(
    name: str, data: str, choices: dict, cache: dict, epochs: int, seed: int, partial: Path
) -> dict:
    """Perplexities after a final training on text `name`, gone on with where it was interrupted;
    also without a cache and with this one, where there is no other memory."""
    options = dict(dataset=name, path=data, final_epochs=epochs)
    evaluator = Language(**options)
    evaluator.start()
    task = {"kind": "final", "id": seed, "seed": seed, "choices": choices}
    checkpoint = Checkpoint(partial, key_of("language", options, task))
    begun = time.process_time()
    trained = evaluator._fit(choices, seed, epochs, True, checkpoint=checkpoint)
    spent = time.process_time() - begun
    found = evaluator.text
    scores = {"validation": trained.score(found.validation, found.end).perplexity}
    designs = {"test": choices}
    if choices["memory.kind"] in ("none", "cache"):
        designs |= {"no cache": choices | {"memory.kind": "none"}, "cache": choices | cache}
    for part, design in designs.items():
        model = rescored(evaluator.trainer, trained, design)
        scores[part] = model.score(found.test, found.end).perplexity
    partial.unlink(missing_ok=True)
    return {"epochs": epochs, "cpu_s": spent, **scores}


def show_search(found: text.Text, options: argparse.Namespace) -> None:
    """Two searches of equal hours, of all cells and of LSTMs alone; the best of each in float, with
    as many parameters, for --train-hours each; three seeds."""
    data = options.data if found.name == "ptb" else ""
    preset = "ptb" if found.name == "ptb" else "ptb-quickstart"
    folder = Path(options.to)
    folder.mkdir(parents=True, exist_ok=True)
    asked = {name: getattr(options, name) for name in ("hours", "train_hours", "params")}
    cache = Cache(
        folder / "finished.json", {"text": found.name, **asked, "dropouts": list(DROPOUTS)}
    )
    small = f"params <= {options.params}"
    sides = {
        "LSTM": {**of_lstms(), "constraints": [small]},
        "found": {"constraints": [*read(preset)["constraints"], small]},
    }
    for name, settings in sides.items():
        if name not in cache:
            run = searched(folder / name, options.hours, preset, data=data, trials=options.trials,
                           settings={**settings, "final": {"top": 0}})  # fmt: skip
            best = best_of(run)
            cache[name] = best if name == "LSTM" else as_large(best, n_params(cache["LSTM"]))
        if f"{name} epochs" not in cache:
            words = 3600 * options.train_hours * words_per_s(found, cache[name])
            n_trainings = len(DROPOUTS) + SEEDS - 1
            cache[f"{name} epochs"] = max(1, int(words / len(found.train) / n_trainings))

    own = {key: value for key, value in cache["found"].items() if key.startswith("memory.")}
    memory = own if own["memory.kind"] == "cache" else CACHE

    def results(asked: list[tuple[str, float, int]]) -> list[dict]:
        """Of final trainings (side, share of dropout, seed), on two processes."""
        keys = [f"{name} dropout {share} seed {seed}" for name, share, seed in asked]
        with ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool:
            going = {}
            for key, (name, share, seed) in zip(keys, asked, strict=True):
                if key not in cache:
                    design = cache[name] | {"train.dropout": share}
                    given = found.name, data, design, memory, cache[f"{name} epochs"], seed
                    partial = folder / f"{key.replace(' ', '-')}.npz"
                    going[pool.submit(final_scores, *given, partial)] = key
            for done in as_completed(going):
                cache[going[done]] = done.result()
        for key, (name, share, seed) in zip(keys, asked, strict=True):
            row, choices = cache[key], cache[name]
            show(f"{name}: {choices['rnn.cell']}", f"{n_params(choices):,}", share, seed,
                 row["epochs"], f"{row['cpu_s']:.0f}",
                 *(f"{row[part]:.2f}" if part in row else "" for part in SCORED))  # fmt: skip
        return [cache[key] for key in keys]

    show("cell", "parameters", "dropout", "seed", "epochs", "CPU s", *SCORED)
    pairs = list(product(sides, DROPOUTS))
    first = dict(zip(pairs, results([(*pair, 0) for pair in pairs]), strict=True))
    best = {
        name: min(DROPOUTS, key=lambda share, name=name: first[name, share]["validation"])
        for name in sides
    }
    results([(name, best[name], seed) for name in sides for seed in range(1, SEEDS)])
    for name in sides:
        rows = [cache[f"{name} dropout {best[name]} seed {seed}"] for seed in range(SEEDS)]
        for part in SCORED:
            if values := [row[part] for row in rows if part in row]:
                print(f"{name}, {SEEDS} seeds: {part} {np.mean(values):.2f} "
                      f"+- {np.std(values, ddof=1):.2f}", flush=True)  # fmt: skip
