"""Our cycles next to those of SCALE-Sim and ZigZag, from the files that are handed over to them.

    python benchmarks/handover.py [--pairs 20]

Each simulator is installed from PyPI into an environment of its own in a temporary folder, and run
on the same random products and weight-, input- and output-stationary arrays. One line a pair:

    compute    cycles of the array alone
    stalls     the same, held to the DRAM bandwidth; ours as `simulated_memory` counts the buffers
               of version 2, whose refills version 3 does otherwise
    price      what `price` says, with fill and drain; ZigZag's with loading and off-loading, for
               the order of loops that it finds best

SCALE-Sim prints the index of the last cycle, one less than their number; one is added here.
Differences are the simulator's cycles over ours, minus one.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hwmodel import Configs, Layers, device, price
from hwmodel.config import DATAFLOWS
from hwmodel.scalesim import write_scalesim
from hwmodel.simulated_memory import MappedProduct, total_cycles
from hwmodel.systolic import ACCUMULATOR_BYTES
from hwmodel.workload import dense
from hwmodel.zigzag import write_zigzag

SCALESIM = {
    "SCALE-Sim 2": ("scalesim==2.0.2", "numpy<2"),
    "SCALE-Sim 3": ("scalesim==3.0.0", "numpy<2"),
}
ZIGZAG = ("zigzag-dse==3.9.1", "six")
# Both say on standard error how many seconds of processor time they took, imports not counted.
RUN_SCALESIM = """
import runpy, sys, time
import scalesim.scale_sim
start = time.process_time()
runpy.run_module("scalesim.scale", run_name="__main__")
print(time.process_time() - start, file=sys.stderr)
"""
RUN_ZIGZAG = """
import json, logging, sys, time
logging.disable(logging.CRITICAL)
from zigzag.api import get_hardware_performance_zigzag as run
for folder in sys.argv[1:]:
    files = [f"{folder}/{name}.yaml" for name in ("workload", "accelerator", "mapping")]
    start = time.process_time()
    _, cycles, _ = run(*files, dump_folder=f"{folder}/out", loma_show_progress_bar=False)
    print(json.dumps([cycles, time.process_time() - start]), file=sys.stderr)
"""


class Simulated(NamedTuple):
    """What a simulator found for one pair, and the processor seconds that it took."""

    cycles: float
    seconds: float


def random_pair(rng: np.random.Generator) -> tuple[Layers, Configs]:
    """A product and an array, of sizes that SCALE-Sim runs in seconds."""
    m, k, n = (int(2 ** rng.uniform(*ends)) for ends in ((3, 9), (4, 9), (3, 8)))
    layers = Layers.from_rows([dense("product", batch=m, in_features=k, out_features=n)])
    srams = 1024 * 2 ** rng.integers(4, 9, 3)
    config = Configs(
        **device("systolic-edge-16").row(0)
        | dict(
            rows=int(rng.choice([8, 16, 32, 64])),
            columns=int(rng.choice([8, 16, 32, 64])),
            dataflow=str(rng.choice(DATAFLOWS)),
            sram_input_bytes=int(srams[0]),
            sram_weight_bytes=int(srams[1]),
            sram_output_bytes=int(srams[2]),
            clock_hz=1e9,
            dram_bandwidth=float(rng.choice([4, 8, 16, 32])) * 1e9,
            double_weight_plane=False,
        )
    )
    return layers, config


def mapped_product(layers: Layers, config: Configs) -> MappedProduct:
    """The pair as SCALE-Sim is given it, in words."""
    sum_bytes = 1 if config.dataflow[0] == "os" else ACCUMULATOR_BYTES
    return MappedProduct(
        str(config.dataflow[0]),
        *(int(extent[0]) for extent in (layers.m, layers.k, layers.n)),
        *(int(size[0]) for size in (config.rows, config.columns)),
        int(config.sram_input_bytes[0]),
        int(config.sram_weight_bytes[0]),
        int(config.sram_output_bytes[0]) // sum_bytes,
    )


def environment(folder: Path, requirements: tuple[str, ...]) -> Path | None:
    """The Python of a new environment with those packages; None, said aloud, without them."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", *requirements]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        print(f"skipped: {' '.join(requirements)} cannot be installed here ({last})")
        return None
    return python


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess:
    """The finished process, on one thread; its last words where it failed."""
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=one_thread)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed in {folder}:\n{done.stderr[-2000:]}")
    return done


def run_scalesim(
    python: Path, layers: Layers, config: Configs, folder: Path, version: str, *, stalls: bool
) -> Simulated:
    """One product in SCALE-Sim, with or without stalls."""
    files = write_scalesim(layers, config, folder / str(stalls), stalls=stalls)
    command = [str(python), "-c", RUN_SCALESIM, "-i", "gemm", "-p", "results"]
    command += ["-c", str(files.config), "-t", str(files.topology)]
    if version == "SCALE-Sim 3":
        command += ["-l", str(files.layout)]
    done = run(command, files.config.parent)
    [report] = files.config.parent.rglob("COMPUTE_REPORT.csv")
    [line] = csv.DictReader(report.open(), skipinitialspace=True)
    return Simulated(int(line["Total Cycles"]) + 1, float(done.stderr.splitlines()[-1]))


def run_zigzag(python: Path, pairs: list[tuple[Layers, Configs]], folder: Path) -> list[Simulated]:
    """Every pair in one process of ZigZag."""
    folders = [folder / str(at) for at in range(len(pairs))]
    for (layers, config), each in zip(pairs, folders, strict=True):
        write_zigzag(layers, config, each)
    done = run([str(python), "-c", RUN_ZIGZAG, *map(str, folders)], folder)
    return [Simulated(*json.loads(line)) for line in done.stderr.splitlines() if line[:1] == "["]


def column(values: list[float] | None, ours: np.ndarray) -> list[str]:
    """Cycles and difference, or blanks for a simulator that is not there."""
    if values is None:
        return [f"{'-':>9} {'-':>8}"] * len(ours)
    return [f"{v:9.0f} {v / o - 1:+8.2%}" for v, o in zip(values, ours, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20)
    n_pairs = parser.parse_args().pairs
    rng = np.random.default_rng(0)
    pairs = [random_pair(rng) for _ in range(n_pairs)]
    products = [mapped_product(*pair) for pair in pairs]
    compute = np.array([product.compute_cycles for product in products])
    stalls = np.array(
        [
            total_cycles(product, int(config.dram_bandwidth[0] / config.clock_hz[0]))
            for product, (_, config) in zip(products, pairs, strict=True)
        ]
    )
    priced = np.array([price(*pair).cycles.item() for pair in pairs])
    zigzag, scalesim = None, {version: (None, None) for version in SCALESIM}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for version, requirements in SCALESIM.items():
            if python := environment(folder / version, requirements):
                scalesim[version] = tuple(
                    [
                        run_scalesim(
                            python, *pair, folder / f"{version} {at}", version, stalls=stalls
                        ).cycles
                        for at, pair in enumerate(pairs)
                    ]
                    for stalls in (False, True)
                )
        if python := environment(folder / "zigzag", ZIGZAG):
            (folder / "runs").mkdir()
            zigzag = [each.cycles for each in run_zigzag(python, pairs, folder / "runs")]
    compared = (
        *(("compute", compute, version, cycles[0]) for version, cycles in scalesim.items()),
        *(("stalls", stalls, version, cycles[1]) for version, cycles in scalesim.items()),
        ("price", priced, "ZigZag", zigzag),
    )
    heads = (f"{ours:>9} {other:>18}" for ours, _, other, _ in compared)
    print(" | ".join([f"{'product, array, bytes a cycle':33}", *heads]))
    cells = [column(values, ours) for _, ours, _, values in compared]
    for at, (product, (_, config)) in enumerate(zip(products, pairs, strict=True)):
        shape = f"{product.m} x {product.k} x {product.n}"
        array = f"{product.rows} x {product.columns} {product.dataflow}"
        bandwidth = f"{config.dram_bandwidth[0] / config.clock_hz[0]:2.0f}"
        figures = (
            f"{ours[at]:9.0f} {cell[at]}"
            for (_, ours, _, _), cell in zip(compared, cells, strict=True)
        )
        print(" | ".join([f"{shape:15} on {array:11} {bandwidth}", *figures]))
    for label, ours, other, values in compared:
        if values is not None:
            error = np.array(values) / ours - 1
            print(
                f"{label}, {other}: mean absolute difference {np.abs(error).mean():.2%}, "
                f"mean {error.mean():+.2%}, largest {np.abs(error).max():.2%}"
            )


if __name__ == "__main__":
    main()
