"""The best cell of a joint search against a tuned LSTM of as many parameters.

The part `search` of `language.py`. Two searches of --hours each, on two workers: the preset's joint
search; and one of LSTMs alone, in 16 bits on one accelerator and by validation perplexity alone, so
that all of its hours go into the LSTM, with at most the parameters of the best cell that the first
found. The best of each is that of the lowest validation perplexity. The LSTM then gets the units
that make its parameters equal. Both are trained in float for --train-hours each, as their searches
chose but for dropout, of which short trainings want little: every share of DROPOUTS is tried with
seed 0, the best by validation perplexity is trained with seeds 1 and 2. Test words are read to be
reported, and for nothing else.

An hour of a search is 3,600 s of trainings on each worker, one of a final training 3,600 s of CPU.
What is finished is kept in --to at once, searches and trainings that are interrupted go on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import nas
from benchmarks.time_to_front import Cache
from nas import text
from nas.checkpoint import Checkpoint, key_of
from nas.evaluators.language import Language
from nas.trial import Status
from search_spaces import recurrent

WORKERS = 2
DROPOUTS = (0.1, 0.3, 0.5)
SEEDS = 3
GROUPS = ("embedding", "recurrent", "output")
PARAMS = "params <= {}"
SIZES = [32, 64, 96, 128, 200, 256, 400, 650]
LSTMS = {
    "rnn.cell": "lstm", "rnn.units": SIZES, "embed.width": SIZES, "embed.rank": 0,
    "memory.kind": "none", "train.batch": [16, 32, 64], "train.words": [16, 35, 70],
    "train.learning_rate": [0.2, 0.4, 0.8, 1.6, 3.2], "train.dropout": [0, 0.1, 0.2, 0.3, 0.5],
}  # fmt: skip


def bits(n: int) -> dict:
    """All weights and activations of `n` bits."""
    kinds = "weights", "activations"
    return {f"bits.{kind}.{group}": n for kind in kinds for group in GROUPS}


def n_params(choices: Mapping) -> int:
    return int(recurrent.layers(dict(choices)).params[0])


def spent_hours(run: nas.Run) -> float:
    """Of trainings, on each worker."""
    trained = [t for t in run.trials() if t.status is Status.COMPLETE and t.repeats is None]
    return sum(t.metrics["seconds"] for t in trained) / 3600 / WORKERS


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
    """The same with the units that bring its parameters nearest to so many."""
    sizes = (choices | {"rnn.units": units} for units in range(8, 2048, 4))
    return min(sizes, key=lambda design: abs(n_params(design) - params))


def trained(
    found: text.Text, choices: dict, data: str, epochs: int, seed: int, folder: Path
) -> dict:
    """Perplexities after a final training, gone on with where it was interrupted."""
    options = dict(dataset=found.name, path=data, final_epochs=epochs)
    evaluator = Language(**options)
    evaluator.start()
    task = {"kind": "final", "id": seed, "seed": seed, "choices": choices}
    checkpoint = Checkpoint(folder / "partial.npz", key_of("language", options, task))
    begun = time.process_time()
    metrics = evaluator.finalize(
        choices, seed=seed, weights=folder / "last.weights.h5", checkpoint=checkpoint
    )
    (folder / "partial.npz").unlink(missing_ok=True)
    kept = ("perplexity", "test_perplexity", "epochs", "seconds")
    return {name: metrics[name] for name in kept} | {"cpu_s": time.process_time() - begun}


def compare(found: text.Text, options: argparse.Namespace, speed, show) -> None:
    """speed: words a CPU second of a design's training; show: prints a row."""
    data = options.data if found.name == "ptb" else ""
    preset = "ptb" if found.name == "ptb" else "ptb-quickstart"
    folder = Path(options.to)
    folder.mkdir(parents=True, exist_ok=True)
    setting = {"text": found.name, "hours": options.hours, "train_hours": options.train_hours}
    cache = Cache(folder / "finished.json", {**setting, "dropouts": list(DROPOUTS)})
    given = dict(data=data, trials=options.trials)
    if "found" not in cache:
        run = searched(folder / "joint", options.hours, preset,
                       settings={"final": {"top": 0}}, **given)  # fmt: skip
        cache["found"] = best_of(run)
    params = n_params(cache["found"])
    if "LSTM" not in cache:
        served = {n: v for n, v in cache["found"].items() if n.startswith(("hw.", "serve."))}
        alone = {
            "space": {**served, **LSTMS, **bits(16), "hw.multiplier": "fixed16"},
            "reward": {"name": "pareto", "objectives": ["-perplexity"]},
            "constraints": [PARAMS.format(params)],
            "final": {"top": 0},
        }
        run = searched(folder / "lstm", options.hours, preset, settings=alone, **given)
        cache["LSTM"] = as_large(best_of(run), params)
    show("cell", "parameters", "dropout", "seed", "epochs", "CPU s", "validation", "test")
    for name in ("found", "LSTM"):
        choices = cache[name]
        if f"{name} epochs" not in cache:
            words = 3600 * options.train_hours * speed(choices)
            n_trainings = len(DROPOUTS) + SEEDS - 1
            cache[f"{name} epochs"] = max(1, int(words / len(found.train) / n_trainings))
        epochs = cache[f"{name} epochs"]

        def result(share: float, seed: int, name=name, choices=choices, epochs=epochs) -> dict:
            key = f"{name} dropout {share} seed {seed}"
            if key not in cache:
                design = choices | {"train.dropout": share}
                cache[key] = trained(found, design, data, epochs, seed, folder)
            row = cache[key]
            show(f"{name}: {choices['rnn.cell']}", f"{n_params(choices):,}", share, seed, epochs,
                 f"{row['cpu_s']:.0f}", f"{row['perplexity']:.2f}",
                 f"{row['test_perplexity']:.2f}")  # fmt: skip
            return row

        first = {share: result(share, 0) for share in DROPOUTS}
        best = min(first, key=lambda share: first[share]["perplexity"])
        rows = [first[best], *(result(best, seed) for seed in range(1, SEEDS))]
        for part in ("perplexity", "test_perplexity"):
            values = [row[part] for row in rows]
            print(f"{name}, {SEEDS} seeds: {part} {np.mean(values):.2f} "
                  f"+- {np.std(values, ddof=1):.2f}", flush=True)  # fmt: skip
