"""The closed forms against a simulator's runs and against loops that walk every tile."""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hwmodel import systolic
from hwmodel.config import DATAFLOWS, MULTIPLIERS
from hwmodel.systolic import STYLES, ceil_ratio

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "data" / "systolic_golden.csv.gz"


@pytest.fixture(scope="module")
def golden() -> pd.DataFrame:
    if not GOLDEN.exists():
        pytest.skip(f"{GOLDEN.name} is not at ../shared/data; see the README on data")
    return pd.read_csv(GOLDEN).rename(columns={"R": "rows", "Ccol": "columns"})


def folds_of(runs: pd.DataFrame, dataflow: str):
    mapped = systolic.extents(dataflow, *(runs[field].to_numpy(float) for field in "MKN"))
    fr = ceil_ratio(mapped.rows, 1 / runs["rows"].to_numpy())
    fc = ceil_ratio(mapped.columns, 1 / runs["columns"].to_numpy())
    return mapped, fr, fc


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_compute_cycles_of_every_golden_row_are_exact(golden, dataflow):
    runs = golden[golden.dataflow == dataflow]
    mapped, fr, fc = folds_of(runs, dataflow)
    cycles = systolic.compute_cycles(
        dataflow, False, fr * fc, mapped.stream, runs["rows"].to_numpy(), runs["columns"].to_numpy()
    )
    assert len(runs) > 600
    np.testing.assert_array_equal(cycles, runs.demand_lines)
    # The simulator reports the index of the last cycle.
    np.testing.assert_array_equal(cycles - 1, runs.total_cycles - runs.stall_cycles)


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_sram_words_of_every_golden_row_are_exact(golden, dataflow):
    runs = golden[golden.dataflow == dataflow]
    _, fr, fc = folds_of(runs, dataflow)
    words = systolic.sram_traffic(
        dataflow, runs.M * runs.K, runs.K * runs.N, runs.M * runs.N, fr, fc
    )
    np.testing.assert_array_equal(words.inputs, runs.if_sram_rd)
    np.testing.assert_array_equal(words.weights, runs.fl_sram_rd)
    if dataflow != "os":  # the simulator miscounts its output-stationary writes
        np.testing.assert_array_equal(words.outputs, runs.of_sram_wr)


SHAPES = [(1, 1, 1), (3, 4, 5), (7, 2, 9), (5, 11, 3), (8, 8, 8), (13, 6, 1)]
ARRAYS = [(1, 1), (2, 3), (4, 4), (8, 2)]


def tiles(extent: int, step: int):
    return [range(start, min(start + step, extent)) for start in range(0, extent, step)]


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize("shape, array", product(SHAPES, ARRAYS))
def test_traffic_and_cycles_equal_a_walk_over_every_tile(dataflow, shape, array):
    m, k, n = shape
    rows, columns = array
    mapped = systolic.extents(dataflow, m, k, n)
    words = {"inputs": 0, "weights": 0, "outputs": 0}
    cycles = 0
    macs = set()
    axes = {"os": "mnk", "ws": "knm", "is": "kmn"}[dataflow]
    for tall, wide in product(tiles(mapped.rows, rows), tiles(mapped.columns, columns)):
        seen = {"inputs": set(), "weights": set(), "outputs": set()}
        last = 0
        for i, r in enumerate(tall):
            for (j, c), t in product(enumerate(wide), range(mapped.stream)):
                at = dict(zip(axes, (r, c, t), strict=True))
                macs.add((at["m"], at["k"], at["n"]))
                seen["inputs"].add((at["m"], at["k"]))
                seen["weights"].add((at["k"], at["n"]))
                seen["outputs"].add((at["m"], at["n"]))
                last = max(last, i + j + t)
        for operand, addresses in seen.items():
            words[operand] += len(addresses)
        # The wave crosses the whole array, used or not; a stationary tile is shifted in first.
        idle = (rows - len(tall)) + (columns - len(wide))
        cycles += last + 1 + idle + (0 if dataflow == "os" else rows)
    fr = ceil_ratio(np.array([mapped.rows]), 1 / rows)
    fc = ceil_ratio(np.array([mapped.columns]), 1 / columns)
    assert len(macs) == m * k * n
    formula = systolic.sram_traffic(dataflow, m * k, k * n, m * n, fr, fc)
    assert [float(np.squeeze(value)) for value in formula] == list(words.values())
    assert systolic.compute_cycles(dataflow, False, fr * fc, mapped.stream, rows, columns) == cycles


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("half_input, half_weight", product([2, 12, 40, 1000], repeat=2))
def test_dram_traffic_equals_a_walk_with_resident_operands(
    dataflow, shape, half_input, half_weight
):
    """Column folds outside, row folds inside. An operand stays for as long as all of it that the
    inner loop reuses fits half of its SRAM; what passes in between replaces what does not fit."""
    m, k, n = shape
    array = rows, columns = 2, 3
    mapped = systolic.extents(dataflow, m, k, n)
    sizes = {"inputs": m * k, "weights": k * n}
    halves = {"inputs": half_input, "weights": half_weight}
    words = {"inputs": 0, "weights": 0}
    resident = {"inputs": set(), "weights": set()}
    for wide, tall in product(tiles(mapped.columns, columns), tiles(mapped.rows, rows)):
        needs = {
            "os": {
                "inputs": ((i, t) for i in tall for t in range(k)),
                "weights": ((t, j) for j in wide for t in range(k)),
            },
            "ws": {
                "inputs": ((t, i) for i in tall for t in range(m)),
                "weights": ((i, j) for i in tall for j in wide),
            },
            "is": {
                "inputs": ((j, i) for i in tall for j in wide),
                "weights": ((i, t) for i in tall for t in range(n)),
            },
        }[dataflow]
        for operand, addresses in needs.items():
            addresses = set(addresses)
            words[operand] += len(addresses - resident[operand])
            if sizes[operand] <= halves[operand]:
                resident[operand] |= addresses
            elif dataflow == "os" and operand == "weights" and (k * min(columns, n) <= half_weight):
                resident[operand] = addresses
    inputs, weights = systolic.dram_refetches(
        dataflow,
        m * k,
        k * n,
        k * min(columns, n),
        half_input,
        half_weight,
        *(-(-extent // size) for extent, size in zip(mapped[:2], array, strict=True)),
    )
    assert (inputs * m * k, weights * k * n) == (words["inputs"], words["weights"])


def test_a_second_plane_hides_the_preload_of_every_tile_but_the_first():
    stream, rows, columns, folds = 200.0, 64, 32, 10
    one = systolic.compute_cycles("ws", False, folds, stream, rows, columns)
    two = systolic.compute_cycles("ws", True, folds, stream, rows, columns)
    assert one == folds * (stream + 2 * rows + columns - 2)
    assert two == folds * stream + 2 * rows + columns - 2
    # A stream shorter than the preload waits for it.
    assert systolic.compute_cycles("ws", True, folds, 3.0, rows, columns) == (
        folds * rows + 2 * rows + columns - 2
    )
    assert systolic.compute_cycles("os", True, folds, stream, rows, columns) == (
        systolic.compute_cycles("os", False, folds, stream, rows, columns)
    )


def test_ceil_ratio_is_exact_where_division_by_reciprocal_is_not():
    rng = np.random.default_rng(0)
    divisors = rng.integers(1, 300, 200_000)
    counts = rng.integers(1, 2**44, 200_000)
    counts[::2] = counts[::2] // divisors[::2] * divisors[::2] + divisors[::2]
    exact = -(-counts // divisors)
    assert (np.ceil(counts * (1 / divisors)) != exact).any()
    np.testing.assert_array_equal(ceil_ratio(counts.astype(float), 1 / divisors), exact)


def test_passes_are_those_published():
    """TPU v1: half speed at 8 x 16, a quarter at 16 x 16. Bit Fusion: 16 times the 8 x 8 rate at
    2 x 2. Stripes: time proportional to activation bits."""
    assert systolic.passes(STYLES["fixed8"], 8, 16) == 2
    assert systolic.passes(STYLES["fixed8"], 16, 16) == 4
    assert systolic.passes(STYLES["composable"], 2, 2) == 1 / 16
    assert systolic.passes(STYLES["composable"], 8, 8) == 1
    assert systolic.passes(STYLES["bit-serial"], 8, 3) == 3 / 8
    assert systolic.passes(STYLES["bf16"], 16, 16) == 1
    assert set(STYLES) == set(MULTIPLIERS)


@pytest.mark.parametrize("dataflow", ["ws", "is"])
def test_chunks_are_the_fewest_whose_sums_fit(dataflow):
    mapped = systolic.extents(dataflow, 1000, 64, 1000)
    for half, expected in [(4 * 1000 * 16, 1), (4 * 1000 * 16 - 1, 2), (4 * 1000 * 4, 4)]:
        assert systolic.accumulator_chunks(dataflow, mapped, 16, half) == expected
    assert systolic.accumulator_chunks("os", mapped, 16, 1) == 1
