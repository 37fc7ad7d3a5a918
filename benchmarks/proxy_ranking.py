"""How well short trainings and scores without training rank the cells of NAS-Bench-201.

    python benchmarks/proxy_ranking.py [--data DIR] [--jobs 1|2] [--cells 60]
    python benchmarks/proxy_ranking.py --zero-cost [--cells 500]

Spearman's coefficient with the 200-epoch test accuracies of the table, over random connected cells
and over their better half, with bootstrap intervals. The first form trains the proxies on CIFAR-10
(DIR: its binary files) and ranks by validation loss, which did no worse on 20 other cells than
accuracy and training loss; the second compares scores of untrained networks with the parameter
count. Needs the table beside the repository.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas
from scipy.stats import rankdata

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measured_networks import DATA, EDGE_OPS, read
from nas import data
from search_spaces import cell
from search_spaces.precision import GROUPS
from search_spaces.quantizers import FULL_BITS

SEED = 0  # of the cells drawn and of bootstraps
N_DRAWS = 2000
TABLE = "nas_bench_201.csv.gz"
PROXIES = {  # the first is the default
    "1 cell a stage, 16 channels": {"cell.depth": 1, "cell.width": 16},
    "3 cells a stage, 8 channels": {"cell.depth": 3, "cell.width": 8},
}
SHORT = {"images": 10_000, "epochs": 2}
RECIPE = {"train.batch": 128, "train.learning_rate": 0.1, "train.warmup": 0.1}
SCORED = {"cell.depth": 3, "cell.width": 8}  # the size at which untrained networks are scored
RESOLUTION = 16
ZERO_COST = "zero-cost score"
NASWOT_IMAGES = 64


class Correlation(NamedTuple):
    """Spearman's coefficient, its 90 % bootstrap interval, and the draws it is from [draws]."""

    value: float
    low: float
    high: float
    draws: np.ndarray

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


# -- cells -----------------------------------------------------------------------------------------


def edges(words: str) -> dict[str, str]:
    """The decisions of a cell in the table's words: |op~0|+|op~0|op~1|+|op~0|op~1|op~2|."""
    names = dict(zip(EDGE_OPS, cell.EDGE_OPS, strict=True))
    ops = [names[part.split("~")[0]] for part in words.replace("+", "").split("|") if part]
    return {f"cell.edge{i}{j}": op for (i, j), op in zip(cell.EDGES, ops, strict=True)}


def is_connected(words: str) -> bool:
    try:
        cell.network({**edges(words), **SCORED, "cell.resolution": RESOLUTION})
    except cell.DisconnectedError:
        return False
    return True


def random_cells(table: pandas.DataFrame, n: int, seed: int = SEED) -> pandas.DataFrame:
    """`n` different rows of the table, uniform over those whose cells are connected."""
    order = np.random.default_rng(seed).permutation(len(table))
    found = (row for row in order if is_connected(table["cell"].iloc[row]))
    return table.iloc[[row for row, _ in zip(found, range(n), strict=False)]]


# -- correlation -----------------------------------------------------------------------------------


def spearman(scores: np.ndarray, truth: np.ndarray, seed: int = SEED) -> Correlation:
    """Of scores [n] with truth [n]; the same seed and n draw the same cells, so that `draws` of two
    scores can be subtracted."""
    rows = np.random.default_rng(seed).integers(0, len(truth), (N_DRAWS, len(truth)))
    draws = _spearman(scores[rows], truth[rows])
    return Correlation(float(_spearman(scores, truth)), *np.quantile(draws, (0.05, 0.95)), draws)


def _spearman(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    a, b = (rankdata(each, axis=-1) for each in (scores, truth))
    a, b = (each - each.mean(-1, keepdims=True) for each in (a, b))
    return (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))


def better_half(truth: np.ndarray) -> np.ndarray:
    """Which of [n] are at least the median."""
    return truth >= np.median(truth)


# -- proxies ---------------------------------------------------------------------------------------


@contextmanager
def cifar10(folder: str) -> Iterator[str]:
    """`folder`, or a temporary one with what lies beside the repository."""
    if folder:
        yield folder
        return
    with tempfile.TemporaryDirectory() as unpacked:
        script = DATA / "unpack_cifar10.py"
        subprocess.run([sys.executable, script, unpacked], check=True, stdout=subprocess.DEVNULL)
        yield unpacked


def evaluate(
    cells: pandas.DataFrame, sizes: dict, evaluator: str, options: dict, jobs: int
) -> dict[str, np.ndarray]:
    """Every metric that is a number, in the order of the cells, of an evaluator in `jobs` pinned
    processes; a cell's seed is its row of the table."""
    from nas.executor import LocalExecutor

    shared = {**sizes, **RECIPE, "cell.resolution": RESOLUTION}
    shared |= {f"bits.{kind}.{g}": FULL_BITS for kind in ("weights", "activations") for g in GROUPS}
    shared["bits.ends"] = FULL_BITS
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalExecutor(jobs, evaluator, options, Path(folder) / "log") as executor,
    ):
        for row, words in cells["cell"].items():
            choices = {**edges(words), **shared}
            executor.submit({"id": row, "kind": "trial", "seed": row, "choices": choices})
        results = {result["id"]: result for result in (executor.wait() for _ in cells.index)}
    for row, result in results.items():
        if "error" in result:
            raise RuntimeError(f"cell {cells['cell'][row]}: {result['error']}")
    found = pandas.DataFrame([results[row]["metrics"] for row in cells.index])
    return {name: found[name].to_numpy(float) for name in found.select_dtypes("number")}


def rank_proxies(
    table: pandas.DataFrame, folder: str, n: int = 60, jobs: int = 2, seed: int = SEED
) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, float]]]:
    """(test accuracies [n], name -> (scores [n], CPU seconds a cell)) of each proxy, of the score
    without training, and of sums of their ranks."""
    cells = random_cells(table, n, seed)
    rows: dict[str, tuple[np.ndarray, float]] = {}
    with cifar10(folder) as path:
        images = {"dataset": "cifar10", "path": path}
        for name, sizes in PROXIES.items():
            found = evaluate(cells, sizes, "proxy", {**images, **SHORT}, jobs)
            rows[name] = -found["loss"], found["cpu_seconds"].mean()
        found = evaluate(cells, SCORED, "zero_cost", images, jobs)
    rows[ZERO_COST] = found["zero_cost"], found["cpu_seconds"].mean()
    first, second = PROXIES
    for names in ((first, second), (first, ZERO_COST), (first, second, ZERO_COST)):
        ranks = sum(rankdata(rows[name][0]) for name in names)
        rows[" + ".join(names)] = ranks, sum(rows[name][1] for name in names)
    rows["the table's own 12 epochs, full size"] = cells["cifar10_val12"].to_numpy(), np.nan
    return cells["cifar10_test200"].to_numpy(), rows


def show_proxies(table: pandas.DataFrame, folder: str, n: int, jobs: int) -> None:
    truth, rows = rank_proxies(table, folder, n, jobs)
    half = better_half(truth)
    print(f"{n} random connected cells (seed {SEED}), {SHORT}, {RESOLUTION} x {RESOLUTION}, f32")
    print(
        f"Spearman with cifar10_test200, 90 % interval of {N_DRAWS} bootstrap draws; + adds ranks"
    )
    print(f"{'CPU s':>6}  {'all cells':18} {'better half':18}")
    for name, (scores, seconds) in rows.items():
        every, top = spearman(scores, truth), spearman(scores[half], truth[half])
        print(f"{seconds:6.2f}  {every!s:18} {top!s:18} {name}")


# -- scores without training -----------------------------------------------------------------------


def naswot(network, images: np.ndarray, seed: int) -> float:
    """Log-determinant of how many activations agree between two images (Mellor et al., ICML 2021,
    2006.04647, equation 2)."""
    from nas.evaluators.zero_cost import activation_inputs

    inputs = activation_inputs(network, images, seed)
    codes = np.concatenate([(x > 0).reshape(len(x), -1) for x in inputs], 1).astype(np.float32)
    kernel = codes @ codes.T + (1 - codes) @ (1 - codes).T
    return float(np.linalg.slogdet(kernel.astype(float))[1])


class LinearContext:
    """A network of its kernels alone: no activation, no normalization."""

    def quantize(self, x, clip, bits, function="relu"):
        return x

    def normalize(self, y, gamma, beta):
        return y


def synflow(network, images: np.ndarray, seed: int) -> float:
    """Logarithm of the sum over weights of |w| dR/d|w|, where R is the sum of the outputs for an
    image of ones through the magnitudes of the weights (Tanaka et al., NeurIPS 2020, 2006.05467,
    equation 3)."""
    import tensorflow as tf

    from nas.layout import Layout

    layout = Layout(network)
    full = [FULL_BITS] * len(network.groups)
    values = layout.initial(seed, full)
    weights = layout.weights(values)
    kernels = []
    for place in layout.kernels:
        magnitude = tf.constant(np.abs(weights[place.step][place.parameter.name]))
        weights[place.step][place.parameter.name] = magnitude
        kernels.append(magnitude)
    with tf.GradientTape() as tape:
        tape.watch(kernels)
        ones = tf.ones((1, *network.image))
        total = tf.reduce_sum(network.apply(ones, weights, np.int32(full), LinearContext()))
    flows = [
        float(np.sum(kernel.numpy().astype(float) * gradient.numpy()))
        for kernel, gradient in zip(kernels, tape.gradient(total, kernels), strict=True)
    ]
    return float(np.log(sum(flows)))


def score_cells(cells: pandas.DataFrame) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """(scores, CPU seconds a cell) by name, of untrained networks; the images are of the embedded
    sample."""
    from nas.evaluators.zero_cost import ZeroCost, figures
    from nas.layout import Layout

    evaluator = ZeroCost()
    evaluator.start()
    images, _ = evaluator.proxy.part("scored", RESOLUTION)
    many = evaluator.proxy.part("validation", RESOLUTION)[0][:NASWOT_IMAGES]

    def combined(network, images, seed):
        found = figures(network, images, seed)
        return found.score, np.log(found.patterns), found.log_rank

    timed = {
        "parameters": lambda network, *_: Layout(network).n_weights,
        "NASWOT": lambda network, _, seed: naswot(network, many, seed),
        "synflow": synflow,
        ZERO_COST: combined,
    }
    scores, seconds = {name: [] for name in timed}, dict.fromkeys(timed, 0.0)
    for row, words in cells["cell"].items():
        network = cell.network({**edges(words), **SCORED, "cell.resolution": RESOLUTION})
        for name, score in timed.items():
            before = time.process_time()
            scores[name].append(score(network, images, row))
            seconds[name] += (time.process_time() - before) / len(cells)
    arrays = {name: np.array(found, float) for name, found in scores.items()}
    arrays[ZERO_COST], patterns, rank = arrays[ZERO_COST].T
    arrays |= {"its patterns alone": patterns, "its effective rank alone": rank}
    return arrays, seconds


def show_zero_cost(table: pandas.DataFrame, n: int) -> None:
    cells = random_cells(table, n)
    arrays, seconds = score_cells(cells)
    ten, hundred = (cells[f"cifar{k}_test200"].to_numpy() for k in (10, 100))
    subsets = {
        "CIFAR-10": (ten, np.ones(n, bool)),
        "CIFAR-100": (hundred, np.ones(n, bool)),
        "CIFAR-10, better half": (ten, better_half(ten)),
    }
    print(f"{n} random connected cells (seed {SEED}), {SCORED}, {RESOLUTION} x {RESOLUTION}")
    print(f"whose networks reach {ten.min():.0f} to {ten.max():.0f} % on CIFAR-10")
    print("Spearman, and the 90 % bootstrap interval of its difference to that of the parameters")
    print(f"{'':25} {'CPU s':>6}  " + "  ".join(f"{name:22}" for name in subsets))
    counts = {s: spearman(arrays["parameters"][k], t[k]) for s, (t, k) in subsets.items()}
    for name, scores in arrays.items():
        line = f"{name:25} {seconds[name]:6.3f}" if name in seconds else f"{name:25} {'':6}"
        for subset, (truth, kept) in subsets.items():
            found = spearman(scores[kept], truth[kept])
            low, high = np.quantile(found.draws - counts[subset].draws, (0.05, 0.95))
            gain = "" if name == "parameters" else f"[{low:+.3f}, {high:+.3f}]"
            line += f"  {found.value:.3f} {gain:16}"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="", help="CIFAR-10's binary files; default: unpacked")
    parser.add_argument("--jobs", type=int, choices=(1, 2), default=2)
    parser.add_argument("--cells", type=int, help="default 60, with --zero-cost 500")
    parser.add_argument("--zero-cost", action="store_true", help="scores without training only")
    options = parser.parse_args()
    if options.cells is not None and not 30 <= options.cells <= 10_000:
        parser.error(f"--cells is 30 to 10,000; got {options.cells}")
    if options.data:
        try:
            data.check("cifar10", options.data)
        except data.DataError as error:
            parser.error(str(error))
    table = read(TABLE)
    if table is None:
        print(f"skipped: no {DATA / TABLE}")
        return
    if options.zero_cost:
        show_zero_cost(table, options.cells or 500)
    else:
        show_proxies(table, options.data, options.cells or 60, options.jobs)


if __name__ == "__main__":
    from nas.process import ENVIRONMENT

    os.environ |= ENVIRONMENT
    main()
