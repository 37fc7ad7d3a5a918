"""Layer-configurations per second of full costs on one core.

    python benchmarks/hardware_speed.py [--repeats 3] [--largest 1e8] [--simulated 8]

Prices random networks (convolutions, depthwise, dense, pooling, additions; bit-widths per row) on
random systolic accelerators, every design of the space among them: cycles, latency, DRAM and SRAM
traffic, energy by component, area, utilization, feasibility. Rows are counted as evaluated: no
folding, no repeats. One line a size: the median of the repeats in seconds of one core's processor
time, so that other work on the machine does not count, and the peak memory of the process so far.
The last lines of the table price one network on many accelerators, and pairs: each network on
an accelerator of its own.

Then SCALE-Sim and ZigZag, each in an environment of its own, run a few products on a few arrays
(those of handover.py, small ones), in processor time too, without their imports; the ratio is of
the median pair to a layer-configuration of 1,000 networks x 1,000 accelerators. Where they cannot
be installed, a line says so.
"""

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.handover import (
    SCALESIM,
    ZIGZAG,
    environment,
    random_pair,
    run_scalesim,
    run_zigzag,
)
from hwmodel import Configs, Layers, price
from hwmodel.config import DATAFLOWS, DEPTHWISE_ENGINES, MULTIPLIERS
from hwmodel.workload import conv, dense, depthwise, elementwise, pool

SIZES = ((100, 100), (300, 300), (1000, 1000), (1000, 10_000), (1000, 100_000), (1, 300_000))
COMPARED = (1000, 1000)  # the size whose rate is held against the simulators
PAIRS = 20_000
SETTLED = 0.5
SLICE = 2_000_000  # results of one call; a larger grid is priced by slices, as a sweep does it


def random_network(rng: np.random.Generator) -> Layers:
    """10 to 20 rows: a stem, cells of one to three operations, a head."""
    size, channels = int(rng.choice([32, 64])), int(rng.choice([16, 24, 32, 48]))

    def bits():
        weight_bits, activation_bits = (int(value) for value in rng.choice([2, 4, 8], 2))
        return dict(weight_bits=weight_bits, activation_bits=activation_bits)

    rows = [conv("stem", height=size, width=size, in_channels=3, out_channels=channels, kernel=3)]
    for cell in range(int(rng.integers(3, 7))):
        if cell in (2, 4):
            size, out = size // 2, channels * 2
        else:
            out = channels
        at = dict(height=size, width=size)
        kernel = int(rng.choice([1, 3, 5]))
        if rng.random() < 0.4:
            rows.append(depthwise(f"{cell}.dw", **at, channels=channels, kernel=3, **bits()))
            kernel = 1
        rows.append(
            conv(
                f"{cell}.conv",
                **at,
                in_channels=channels,
                out_channels=out,
                kernel=kernel,
                **bits(),
            )
        )
        if rng.random() < 0.3:
            rows.append(
                pool(f"{cell}.pool", **at, channels=out, kernel=3, stride=1, padding="same")
            )
        rows.append(elementwise(f"{cell}.add", elements=size * size * out))
        channels = out
    rows.append(pool("gap", height=size, width=size, channels=channels, kernel=size))
    rows.append(dense("head", in_features=channels, out_features=10))
    return Layers.from_rows(rows)


def random_configs(n: int, rng: np.random.Generator) -> Configs:
    """Accelerators drawn over the whole systolic space."""
    srams = 2 ** rng.integers(14, 24, (3, n))
    return Configs(
        rows=rng.integers(8, 257, n),
        columns=rng.integers(8, 257, n),
        dataflow=rng.choice(DATAFLOWS, n),
        sram_input_bytes=srams[0],
        sram_weight_bytes=srams[1],
        sram_output_bytes=srams[2],
        dram_bandwidth=rng.uniform(4e9, 900e9, n),
        clock_hz=rng.uniform(200e6, 940e6, n),
        double_weight_plane=rng.random(n) < 0.5,
        multiplier=rng.choice(MULTIPLIERS, n),
        vector_lanes=2 ** rng.integers(4, 11, n),
        depthwise_on=rng.choice(DEPTHWISE_ENGINES, n),
    )


def price_all(layers: Layers, configs: Configs, pairing: str) -> None:
    """One full pricing, the sum of the energies included, results dropped slice by slice."""
    step = len(configs) if pairing == "paired" else max(1, SLICE // layers.n_networks)
    for start in range(0, len(configs), step):
        price(layers, configs[start : start + step], pairing).energy_j.sum()


def median_seconds(run, repeats: int) -> float:
    """Median processor seconds of at least `repeats` runs, and of SETTLED seconds of them."""
    times = []
    while len(times) < repeats or sum(times) < SETTLED:
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return statistics.median(times)


def simulators(n_pairs: int) -> Iterator[tuple[str, float]]:
    """Each simulator that can be installed, and the median seconds that a pair took it."""
    rng = np.random.default_rng(0)
    pairs = [random_pair(rng) for _ in range(n_pairs)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for version, requirements in SCALESIM.items():
            if python := environment(folder / version, requirements):
                runs = [
                    run_scalesim(python, *pair, folder / f"{version} {at}", version, stalls=True)
                    for at, pair in enumerate(pairs)
                ]
                yield version, statistics.median(each.seconds for each in runs)
        if python := environment(folder / "zigzag", ZIGZAG):
            (folder / "runs").mkdir()
            runs = run_zigzag(python, pairs, folder / "runs")
            yield "ZigZag", statistics.median(each.seconds for each in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--largest", type=float, default=1e8, help="networks x configurations")
    parser.add_argument(
        "--simulated",
        type=int,
        default=8,
        metavar="N",
        help="pairs that each simulator runs; 0 for none",
    )
    options = parser.parse_args()
    if options.simulated and options.largest < np.prod(COMPARED):
        parser.error(
            f"--simulated compares with {np.prod(COMPARED):,} pairs: give --largest so "
            "many, or --simulated 0"
        )
    rng = np.random.default_rng(0)
    networks = Layers.concat([random_network(rng) for _ in range(1000)])
    print(
        f"{'pairing':8}{'networks':>9}{'configs':>9}{'pairs':>13}{'layer-configs':>15}"
        f"{'seconds':>9}{'per second':>12}{'peak MB':>9}"
    )
    for pairing, n_networks, n_configs in [("grid", *size) for size in SIZES] + [
        ("paired", PAIRS, PAIRS)
    ]:
        pairs = n_networks * (1 if pairing == "paired" else n_configs)
        if pairs > options.largest:
            continue
        layers = networks.take(np.arange(n_networks) % networks.n_networks)
        configs = random_configs(n_configs, rng)
        layer_configs = len(layers) * pairs // n_networks
        elapsed = median_seconds(partial(price_all, layers, configs, pairing), options.repeats)
        if (n_networks, n_configs) == COMPARED:
            seconds_each = elapsed / layer_configs
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{pairing:8}{n_networks:>9,}{n_configs:>9,}{pairs:>13,}{layer_configs:>15,}"
            f"{elapsed:>9.3f}{layer_configs / elapsed:>12.3g}{peak_mb:>9.0f}",
            flush=True,
        )
    if options.simulated:
        for name, seconds in simulators(options.simulated):
            print(
                f"{name}: {seconds:.3g} s a layer-configuration, {seconds / seconds_each:.2g} "
                "times ours",
                flush=True,
            )


if __name__ == "__main__":
    main()
