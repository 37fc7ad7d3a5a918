"""Shared weights: what a step costs, how fast cells are scored, and how well the scores rank.

    python benchmarks/supernet_figures.py [--data DIR] [--only step,speed,ranking]

step: a training step of the supernet against steps of the same cells' own programs, CPU seconds in
one run. speed: 1,000 random cells on 500 images by two pinned processes. ranking: Spearman of the
scores with the 200-epoch test accuracies of NAS-Bench-201, over random cells and within the true
top tenth, with 95 % bootstrap intervals; needs its table beside the repository.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.update(
    OMP_NUM_THREADS="1",
    TF_NUM_INTRAOP_THREADS="1",
    TF_NUM_INTEROP_THREADS="1",
    TF_CPP_MIN_LOG_LEVEL="3",
    CUDA_VISIBLE_DEVICES="-1",
)

import numpy as np
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measured_networks import EDGE_OPS, read

RESOLUTION, BATCH, SEED = 16, 128, 5
N_SCORED, N_IMAGES = 1000, 500  # cells and images of the figure of speed
N_RANDOM, N_TOP, RANK_IMAGES = 300, 150, 1000
BITS = 8  # of the figures of cost; the ranking is of float networks, as the table's are


def load_parts(data: str):
    """Normalized training images, labels, validation images, labels: of CIFAR-10 in `data`, or of
    the embedded sample."""
    from nas.evaluators.proxy import Proxy

    proxy = Proxy(dataset="cifar10" if data else "cifar10-sample", path=data)
    proxy.start()
    return *proxy.part("train", RESOLUTION), *proxy.part("validation", RESOLUTION)


def step_ratio(images, labels, width: int, depth: int, n_cells: int = 12) -> float:
    """CPU time of a shared-weights step over that of the same cells' own steps, means over random
    cells; both are measured cell by cell, one after the other."""
    from nas.open_cell import OPTIONS, random_cells
    from nas.program import Program, Switches
    from nas.supernet import Supernet
    from nas.train import Recipe, first_values
    from search_spaces import cell
    from search_spaces.precision import GROUPS

    n_steps, rounds = 10, 4
    supernet = Supernet(width, depth, RESOLUTION, batch=BATCH)
    supernet.start(SEED, images)
    rng = np.random.default_rng(SEED)
    bits = np.full(len(GROUPS), BITS, np.int32)
    recipe = Recipe(BATCH, 1, 0.05, 0.1, tuple(bits), tuple(bits))
    order = rng.integers(0, len(labels), (n_steps, BATCH)).astype(np.int32)
    rates = np.full(n_steps, recipe.learning_rate, np.float32)
    sums = np.zeros(2)
    for edges in random_cells(n_cells, rng):
        choices = {
            f"cell.edge{i}{j}": OPTIONS[k] for (i, j), k in zip(cell.EDGES, edges, strict=True)
        } | {"cell.width": width, "cell.depth": depth, "cell.resolution": RESOLUTION}
        network = cell.network(choices)
        program = Program(network, Switches())
        program.start(first_values(network, recipe, images, SEED))
        every = [np.tile(row, (n_steps, 1)) for row in (edges, bits, bits)]

        def own(program=program):
            for rows in order:
                program.step(images[rows], labels[rows], bits, bits, recipe.learning_rate)

        def shared(every=every):
            supernet.train(images, labels, order, rates, *every)

        times = [[cpu_seconds(own), cpu_seconds(shared)] for _ in range(rounds)]
        sums += np.median(times[1:], 0)
        program.close()
    supernet.close()
    return sums[1] / sums[0]


def cpu_seconds(work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def score_share(width: int, depth: int, share: int) -> None:
    """A process of the figure of speed: loads, says so, and scores its half when told."""
    from nas.open_cell import random_cells
    from nas.supernet import Supernet
    from search_spaces.precision import GROUPS

    images, _, others, their_labels = load_parts("")
    supernet = Supernet(width, depth, RESOLUTION, batch=BATCH)
    supernet.start(SEED, images)
    cells = random_cells(N_SCORED // 2, np.random.default_rng([SEED, share]))
    bits = [BITS] * len(GROUPS)
    task = bits, bits, others[:N_IMAGES], their_labels[:N_IMAGES]
    supernet.score(cells[:2], *task)
    print("ready", flush=True)
    sys.stdin.readline()
    print(cpu_seconds(lambda: supernet.score(cells, *task)), flush=True)


def score_seconds(width: int, depth: int) -> tuple[float, float]:
    """(seconds on the clock, CPU seconds of both) of 1,000 cells on 500 images, two processes."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, "--share", str(width), str(depth), str(share)],
            stderr=subprocess.DEVNULL,
            **pipes,
        )
        for share in range(2)
    ]
    for worker, core in zip(workers, sorted(os.sched_getaffinity(0)), strict=False):
        os.sched_setaffinity(worker.pid, {core})
    for worker in workers:
        if worker.stdout.readline() != "ready\n":
            raise RuntimeError("a scoring process did not start; run it with --share to see why")
    start = time.perf_counter()
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    cpu = sum(float(worker.stdout.readline()) for worker in workers)
    seconds = time.perf_counter() - start
    for worker in workers:
        worker.stdin.close()
        worker.wait()
    return seconds, cpu


# -- ranking ---------------------------------------------------------------------------------------


def table_cells(cells) -> np.ndarray:
    """The cells of NAS-Bench-201, in its words, as int32 [n, 6] of `nas.supernet.OPTIONS`."""
    words = cells.str.findall(r"([a-z_0-9]+)~")
    return np.array([[EDGE_OPS.index(word) for word in row] for row in words], np.int32)


def spearman(scores: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """The coefficient, and its 95 % interval over 2,000 bootstrap draws."""
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, len(truth), len(truth)) for _ in range(2000)]
    low, high = np.percentile([spearmanr(scores[d], truth[d])[0] for d in draws], [2.5, 97.5])
    return spearmanr(scores, truth)[0], low, high


def rank(supernet, images, labels) -> None:
    """Print how the scores of a trained supernet rank random cells, and the best of the table."""
    from nas.open_cell import reaches_output
    from search_spaces.precision import GROUPS
    from search_spaces.quantizers import FULL_BITS

    table = read("nas_bench_201.csv.gz")
    cells, truth = table_cells(table["cell"]), table["cifar10_test200"].to_numpy()
    connected = np.flatnonzero(reaches_output(cells))
    cells, truth = cells[connected], truth[connected]
    rng = np.random.default_rng(SEED)
    top = np.flatnonzero(truth >= np.quantile(truth, 0.9))
    samples = {
        f"{N_RANDOM} random connected cells": rng.choice(len(cells), N_RANDOM, replace=False),
        f"{N_TOP} of the top tenth": rng.choice(top, N_TOP, replace=False),
    }
    full = [FULL_BITS] * len(GROUPS)
    for name, rows in samples.items():
        accuracies, losses = supernet.score(
            cells[rows], full, full, images[:RANK_IMAGES], labels[:RANK_IMAGES]
        )
        for kind, scores in (("accuracy", accuracies), ("loss", -losses)):
            value, low, high = spearman(scores, truth[rows])
            print(f"  {name}, by {kind}: Spearman {value:.2f} [{low:.2f}, {high:.2f}]", flush=True)


def trained_supernet(parts, width: int, depth: int, epochs: int, weights: Path | None):
    """The supernet of the ranking, in 32 bits; its weights are read from `weights` if they are
    there, and else written."""
    from nas.evaluators.proxy import read_tensors, write_tensors
    from nas.supernet import Supernet
    from search_spaces.quantizers import FULL_BITS

    supernet = Supernet(width, depth, RESOLUTION, batch=BATCH)
    if weights and weights.exists():
        supernet.set_tensors(read_tensors(weights))
        return supernet
    start = time.process_time()
    curve = supernet.fit(*parts[:2], epochs=epochs, learning_rate=0.1, seed=SEED, bits=[FULL_BITS])
    print(
        f"  trained {epochs} epochs of {len(parts[1])} images in "
        f"{time.process_time() - start:.0f} CPU seconds; training accuracy over random cells "
        f"{curve[0]['accuracy']:.3f} to {curve[-1]['accuracy']:.3f}",
        flush=True,
    )
    if weights:
        write_tensors(weights, supernet.tensors())
    return supernet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="", help="CIFAR-10; without it the embedded sample")
    parser.add_argument("--only", default="step,speed,ranking")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30, help="of the ranking's supernet")
    parser.add_argument("--weights", type=Path, help="where its weights are kept, FILE.h5")
    parser.add_argument("--share", type=int, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.share:
        return score_share(*options.share)
    size = options.width, options.depth
    parts = load_parts(options.data)
    print(f"{size[1]} cells a stage, {size[0]} channels, {RESOLUTION} x {RESOLUTION}", flush=True)
    wanted = options.only.split(",")
    if "step" in wanted:
        ratio = step_ratio(*parts[:2], *size)
        print(f"training step of batch {BATCH}, over the cells' own: {ratio:.2f}", flush=True)
    if "speed" in wanted:
        seconds, cpu = score_seconds(*size)
        print(
            f"{N_SCORED} cells on {N_IMAGES} images, two processes: {seconds:.1f} s, "
            f"{cpu:.1f} CPU seconds",
            flush=True,
        )
    if "ranking" in wanted:
        if read("nas_bench_201.csv.gz") is None:
            print("ranking: nas_bench_201.csv.gz is not at ../shared/data; passed over")
            return
        print("ranking against the 200-epoch test accuracies of NAS-Bench-201:", flush=True)
        rank(trained_supernet(parts, *size, options.epochs, options.weights), *parts[2:])


if __name__ == "__main__":
    main()
