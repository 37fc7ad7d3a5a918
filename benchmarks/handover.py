"""Our cycles next to those of SCALE-Sim and ZigZag, from the files that are handed over to them.

    python benchmarks/handover.py [--pairs 20]

Each simulator is installed from PyPI into an environment of its own in a temporary folder, and run
on the same random products and weight-, input- and output-stationary arrays. One line a pair:

    compute    cycles of the array alone; SCALE-Sim's last index, so one less, plus one
    total      with a limited DRAM bandwidth: ours with fill and drain; SCALE-Sim's with stalls and
               the prefetch that fills half of its SRAMs first; ZigZag's with loading and
               off-loading, for the order of loops that it finds best

Differences are SCALE-Sim's or ZigZag's cycles over ours, minus one.
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

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hwmodel import Configs, Layers, device, price, systolic
from hwmodel.config import DATAFLOWS
from hwmodel.scalesim import write_scalesim
from hwmodel.workload import dense
from hwmodel.zigzag import write_zigzag

SCALESIM = ("scalesim==3.0.0", "numpy<2")
ZIGZAG = ("zigzag-dse==3.9.1", "six")
RUN_ZIGZAG = """
import json, logging, sys
logging.disable(logging.CRITICAL)
from zigzag.api import get_hardware_performance_zigzag as run
for folder in sys.argv[1:]:
    files = [f"{folder}/{name}.yaml" for name in ("workload", "accelerator", "mapping")]
    _, cycles, _ = run(*files, dump_folder=f"{folder}/out", loma_show_progress_bar=False)
    print(json.dumps(cycles), file=sys.stderr)
"""


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


def compute_cycles(layers: Layers, config: Configs) -> float:
    """Cycles of the array, memory never in the way."""
    dataflow = str(config.dataflow[0])
    mapped = systolic.extents(dataflow, *(float(c[0]) for c in (layers.m, layers.k, layers.n)))
    rows, columns = config.rows[0], config.columns[0]
    folds = -(-mapped.rows // rows) * -(-mapped.columns // columns)
    return systolic.compute_cycles(dataflow, False, folds, mapped.stream, rows, columns)


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


def scalesim_cycles(python: Path, layers: Layers, config: Configs, folder: Path) -> list[int]:
    """SCALE-Sim's cycles of the array alone, and with prefetch and stalls."""
    cycles = []
    for stalls in (False, True):
        files = write_scalesim(layers, config, folder / str(stalls), stalls=stalls)
        run(
            [
                str(python), "-m", "scalesim.scale", "-c", str(files.config),
                "-t", str(files.topology), "-l", str(files.layout), "-i", "gemm", "-p", "results",
            ],
            files.config.parent,
        )
        [report] = files.config.parent.rglob("COMPUTE_REPORT.csv")
        [line] = csv.DictReader(report.open(), skipinitialspace=True)
        column = "Total Cycles (incl. prefetch)" if stalls else "Total Cycles"
        cycles.append(int(line[column]) + 1)
    return cycles


def zigzag_cycles(python: Path, pairs: list[tuple[Layers, Configs]], folder: Path) -> list[float]:
    folders = [folder / str(at) for at in range(len(pairs))]
    for (layers, config), each in zip(pairs, folders, strict=True):
        write_zigzag(layers, config, each)
    done = run([str(python), "-c", RUN_ZIGZAG, *map(str, folders)], folder)
    return [json.loads(line) for line in done.stderr.splitlines() if line[:1].isdigit()]


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
    compute = np.array([compute_cycles(*pair) for pair in pairs])
    total = np.array([price(*pair).cycles.item() for pair in pairs])
    stall_free = stalled = zigzag = None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if python := environment(folder / "scalesim", SCALESIM):
            runs = [
                scalesim_cycles(python, *pair, folder / f"run{at}") for at, pair in enumerate(pairs)
            ]
            stall_free, stalled = ([each[i] for each in runs] for i in (0, 1))
        if python := environment(folder / "zigzag", ZIGZAG):
            (folder / "zz").mkdir()
            zigzag = zigzag_cycles(python, pairs, folder / "zz")
    print(f"{'':36} | {'compute':>9} {'SCALE-Sim':>18} | {'total':>9} {'SCALE-Sim':>18} "
          f"{'ZigZag':>18}")
    columns = column(stall_free, compute), column(stalled, total), column(zigzag, total)
    for (layers, config), *figures in zip(pairs, compute, total, *columns, strict=True):
        ours, whole, simulated, held, searched = figures
        shape = f"{layers.m[0]} x {layers.k[0]} x {layers.n[0]}"
        array = f"{config.rows[0]} x {config.columns[0]} {config.dataflow[0]}"
        print(f"{shape:17} on {array:11} {config.dram_bandwidth[0] / 1e9:2.0f} | {ours:9.0f} "
              f"{simulated} | {whole:9.0f} {held} {searched}")
    for label, values, ours in (
        ("compute, SCALE-Sim", stall_free, compute),
        ("total, SCALE-Sim", stalled, total),
        ("total, ZigZag", zigzag, total),
    ):
        if values is not None:
            error = np.array(values) / ours - 1
            print(f"{label}: mean absolute difference {np.abs(error).mean():.2%}, "
                  f"mean {error.mean():+.2%}, largest {np.abs(error).max():.2%}")


if __name__ == "__main__":
    main()
