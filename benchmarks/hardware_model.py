"""The hardware model against published and measured numbers.

    python benchmarks/hardware_model.py [--only accel_nas_bench,machine]

One line a figure: what is compared, what was found, what it should at least be. Figures whose data
is not beside the repository say so and are passed over. The last, "machine", times this very one;
other work on it disturbs it.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np
from scipy.stats import kendalltau, spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.eyeriss_figures import eyeriss
from benchmarks.measured_networks import mnasnet, nas_bench_201, read
from benchmarks.systolic_figures import scaling, simulator, tpu_v1
from hwmodel import Layers, price
from hwmodel.calibrate import calibrate
from nas.measure import N_FITTED, N_UNSEEN, measure

DRAWS = 50
N_CELLS = 10

# what is compared, what was found, what it should at least be
Line = tuple[str, str, str]
# column -> (family, whether it holds images/s, error %, tau)
ACCEL_TARGETS = {
    "throughput_a100": ("gpu", True, 1, 0.98),
    "throughput_tpuv2": ("systolic", True, 5, 0.93),
    "latency_zcu102": ("fpga", False, 6, 0.94),
}


def missing(name: str) -> Line:
    return name, "data not found", ""


def accel_nas_bench() -> Iterator[Line]:
    """Latency of MnasNet-space networks on three devices, each fitted to 100 others."""
    table = read("accel_nas_bench.csv.gz")
    if table is None:
        yield missing("accel_nas_bench.csv.gz")
        return
    chosen = table.iloc[np.random.default_rng(0).permutation(len(table))[:1000]]
    layers = Layers.concat([mnasnet(record) for record in chosen.to_dict("records")])
    for column, (family, is_rate, error, tau) in ACCEL_TARGETS.items():
        values = chosen[column].to_numpy()
        seconds = 1 / values if is_rate else values / 1e3
        known = np.flatnonzero(np.isfinite(seconds))
        fitted, others = known[:100], known[100:]
        found = calibrate(layers.take(fitted), seconds[fitted], family)
        predicted = price(layers.take(others), found.configs).latency_s[:, 0]
        errors = np.abs(predicted / seconds[others] - 1)
        yield (
            f"Accel-NASBench {column}, 100 fitted, {len(others)} others",
            f"error {100 * errors.mean():.2f} % (cross-validated {100 * found.error:.2f} %), "
            f"tau {kendalltau(predicted, seconds[others])[0]:.3f}",
            f"{error} %, tau {tau}",
        )


def nas_bench_201_latencies() -> Iterator[Line]:
    """Latency of NAS-Bench-201 cells on 13 devices, each fitted to 10 random cells."""
    table = read("nas_bench_201.csv.gz")
    if table is None:
        yield missing("nas_bench_201.csv.gz")
        return
    distinct, place = nas_bench_201(table["cell"])
    columns = [name for name in table.columns if name.startswith("latency_ms_")]
    means, worst = {}, {}
    for column in columns:
        family = "gpu" if "1080ti" in column or "titanx" in column else "cpu"
        seconds = table[column].to_numpy() / 1e3
        possible = np.flatnonzero(seconds >= 1e-3)  # no phone runs a network in microseconds
        found = []
        for draw in range(DRAWS):
            cells = np.random.default_rng(draw).choice(possible, N_CELLS, replace=False)
            fitted = calibrate(distinct.take(place[cells]), seconds[cells], family).configs
            predicted = price(distinct, fitted).latency_s[place[possible], 0]
            found.append(spearmanr(predicted, seconds[possible])[0])
        means[column], worst[column] = np.mean(found), np.min(found)
    least = min(worst, key=worst.get)
    devices = ", ".join(
        f"{name.removeprefix('latency_ms_')} {value:.3f}" for name, value in means.items()
    )
    yield (
        f"NAS-Bench-201, {N_CELLS} cells, mean of {DRAWS} draws, {len(columns)} devices",
        f"Spearman {np.mean(list(means.values())):.3f}; worst draw of the worst device "
        f"{worst[least]:.3f} ({least.removeprefix('latency_ms_')}); {devices}",
        "Spearman .96",
    )


def machine() -> Iterator[Line]:
    """This machine, fitted to networks timed here, on others timed here."""
    found = measure(threads=1)
    yield (
        f"This machine, one thread, {N_FITTED} networks fitted, {N_UNSEEN} others",
        f"median error {100 * np.median(found.errors):.1f} %, 90th percentile "
        f"{100 * np.percentile(found.errors, 90):.1f} % (cross-validated median "
        f"{100 * np.median(found.calibration.errors):.1f} %)",
        "median 15 %",
    )


FIGURES = {
    "simulator": simulator,
    "tpu_v1": tpu_v1,
    "scaling": scaling,
    "eyeriss": eyeriss,
    "accel_nas_bench": accel_nas_bench,
    "nas_bench_201": nas_bench_201_latencies,
    "machine": machine,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(FIGURES), help="names, separated by commas")
    names = parser.parse_args().only.split(",")
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        parser.error(f"unknown figure {unknown[0]!r}; choose among {', '.join(FIGURES)}")
    for name in names:
        for what, found, wanted in FIGURES[name]():
            print(f"{what}: {found}" + (f" [target {wanted}]" if wanted else ""), flush=True)


if __name__ == "__main__":
    main()
