"""DRAM words and stalls against a simulator's runs, and against walks over every word asked for."""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from benchmarks.systolic_figures import (
    READS,
    WORDS,
    inside_of,
    mapped_product,
    relative_errors,
    unlimited_words,
)
from hwmodel import DEVICES, Configs, Layers, price
from hwmodel.config import DATAFLOWS
from hwmodel.simulated_memory import (
    SETS,
    MappedProduct,
    limited_dram_words,
    refills,
    strip_words,
    total_cycles,
)
from hwmodel.sliding import live_rows, overlap, pass_fetches, window_fetches
from hwmodel.windows import Windows
from hwmodel.workload import conv, dense, pool

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "data" / "systolic_golden.csv.gz"


@pytest.fixture(scope="module")
def golden() -> pd.DataFrame:
    if not GOLDEN.exists():
        pytest.skip(f"{GOLDEN.name} is not at ../shared/data; see the README on data")
    return pd.read_csv(GOLDEN)


def test_unlimited_dram_words_of_golden_runs(golden):
    """Exact for products and 1x1 convolutions; inputs of larger windows within 3 % on average."""
    runs = golden[golden.bw_mode == "CALC"]
    words = np.array([unlimited_words(run) for run in runs.itertuples()])
    simulated = runs[WORDS].to_numpy(float)
    windows = ((runs.kind == "conv") & (runs.f_h > 1)).to_numpy()
    assert windows.sum() > 200 and (~windows).sum() > 900
    np.testing.assert_array_equal(words[~windows], simulated[~windows])
    np.testing.assert_array_equal(words[windows, 1:], simulated[windows, 1:])
    assert relative_errors(words, simulated)[windows, 0].mean() < 0.03


def test_limited_dram_words_of_golden_runs(golden):
    """Reads are exact for products and 1x1 convolutions; writes but for the padding of lines."""
    runs = golden[(golden.bw_mode == "USER") & ((golden.kind == "gemm") | (golden.f_h == 1))]
    words = np.array(
        [
            limited_dram_words(mapped_product(run), run.bw_words, inside_of(run))
            for run in runs.itertuples()
        ]
    )
    assert len(runs) > 800
    np.testing.assert_array_equal(words[:, :2], runs[READS].to_numpy())
    assert (words[:, 2] <= runs.of_dram_wr).all()
    assert relative_errors(words[:, 2], runs.of_dram_wr).max() < 0.01


def test_limited_dram_words_of_golden_windows(golden):
    """Within 3 % on average; four runs find words of the next fold under another place."""
    runs = golden[(golden.bw_mode == "USER") & (golden.kind == "conv") & (golden.f_h > 1)]
    words = np.array(
        [
            limited_dram_words(mapped_product(run), run.bw_words, inside_of(run))
            for run in runs.itertuples()
        ]
    )
    exact = (words[:, :2] == runs[READS].to_numpy()).all(axis=1)
    assert len(runs) == 152 and exact.sum() >= 148
    assert relative_errors(words.sum(axis=1), runs[WORDS].sum(axis=1)).mean() < 0.03


def test_total_cycles_of_golden_runs_at_limited_bandwidth(golden):
    runs = golden[golden.bw_mode == "USER"]
    cycles = np.array(
        [
            total_cycles(mapped_product(run), run.bw_words, inside_of(run))
            for run in runs.itertuples()
        ]
    )
    simulated = runs.total_cycles.to_numpy() + 1  # the index of the last cycle
    errors = relative_errors(cycles, simulated)
    assert len(runs) == 984
    assert errors.mean() < 0.02
    assert np.quantile(errors, 0.95) < 0.10
    assert kendalltau(cycles, simulated).statistic > 0.98


def flushed(uses, active: int) -> int:
    """Words fetched by a buffer that is emptied whenever it holds `active` words."""
    held, fetched = set(), 0
    for word in uses:
        if word not in held:
            held.add(word)
            fetched += 1
            if len(held) == active:
                held.clear()
    return fetched


@settings(max_examples=60, deadline=None)
@given(
    strips=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    row_folds=st.integers(1, 4),
    active=st.integers(1, 30),
)
def test_strips_of_weights_equal_a_walk_over_every_word(strips, row_folds, active):
    uses = [
        (strip, word)
        for strip, size in enumerate(strips)
        for _ in range(row_folds)
        for word in range(size)
    ]
    assert strip_words(strips, row_folds, active) == flushed(uses, active)


def stream_and_demand(operand: str, mapped: MappedProduct):
    """Words in the order of the simulator's stream, and in the order in which they are asked for.
    A word is a (row, column) of its operand as the array sees it."""
    tall, wide, length = mapped.extents
    rows, columns = mapped.rows, mapped.columns
    row_tiles = [range(at, min(at + rows, tall)) for at in range(0, tall, rows)]
    column_tiles = [range(at, min(at + columns, wide)) for at in range(0, wide, columns)]
    stationary = {"ws": "weights", "is": "inputs"}.get(mapped.dataflow)
    if operand == stationary:
        stream = [(i, j) for tile in column_tiles for i in range(tall) for j in tile]
        demand = [
            (i, j)
            for tile in column_tiles
            for lines in row_tiles
            for i in reversed(lines)
            for j in tile
        ]
        return stream, demand
    by_columns = mapped.dataflow == "os" and operand == "weights"
    folds = column_tiles if by_columns else row_tiles
    width = columns if by_columns else rows
    skewed = sorted(
        (
            (fold * length + t + lane, lane, (t, extent))
            for fold, tile in enumerate(folds)
            for t in range(length)
            for lane, extent in enumerate(tile)
        ),
    )
    one_fold = [
        [
            (t, tile[d - t])
            for d in range(length + width)
            for t in reversed(range(length))
            if 0 <= d - t < len(tile)
        ]
        for tile in folds
    ]
    if by_columns:
        demand = [word for uses in one_fold for _ in row_tiles for word in uses]
    else:
        demand = [word for _ in column_tiles for uses in one_fold for word in uses]
    return [word for *_, word in skewed], demand


def walked_refills(operand: str, mapped: MappedProduct, sram: int, inside) -> int:
    stream, demand = stream_and_demand(operand, mapped)
    if operand == "inputs":
        by_depth = inside if mapped.dataflow == "ws" else inside.T
        stream = [word for word in stream if by_depth[word]]
        demand = [word for word in demand if by_depth[word]]
    set_words, half = -(-sram // SETS), -(-sram // 2)
    active = -(-half // set_words)
    n_sets = len(stream) // set_words + 1
    if n_sets <= active:
        return 0
    set_of = {word: place // set_words for place, word in enumerate(stream)}
    start = count = 0
    for word in demand:
        while (set_of[word] - start) % n_sets >= active:
            start = (start + min(n_sets - active, active)) % n_sets
            count += 1
    return count


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 26)] * 3),
    array=st.tuples(*[st.integers(1, 9)] * 2),
    srams=st.tuples(*[st.integers(101, 500)] * 2),
    outside=st.tuples(st.integers(0, 25), st.integers(0, 25)),
)
def test_refills_equal_a_walk_over_every_word(dataflow, shape, array, srams, outside):
    """With and without a corner of the inputs outside, as where windows reach past an image."""
    mapped = MappedProduct(dataflow, *shape, *array, *srams, 500)
    whole = np.ones(shape[:2], dtype=bool)
    inside = whole.copy()
    inside[max(1, shape[0] - outside[0]) :, max(1, shape[1] - outside[1]) :] = False

    def walked(inside):
        return tuple(
            walked_refills(operand, mapped, sram, inside)
            for operand, sram in zip(("inputs", "weights"), srams, strict=True)
        )

    assert refills(mapped) == refills(mapped, whole) == walked(whole)
    assert refills(mapped, inside) == walked(inside)


def uses_of(dataflow: str, window: Windows, channels: int, rows: int, columns: int):
    """Input words in the order of the folds of one pass, lane by lane on the diagonal."""
    pixels = list(product(range(window.out_height), range(window.out_width)))
    taps = list(product(range(window.kernel_height), range(window.kernel_width), range(channels)))
    if dataflow == "ws":
        folds = [(pixels, taps[at : at + rows]) for at in range(0, len(taps), rows)]
    else:
        tile = rows if dataflow == "os" else columns
        folds = [(pixels[at : at + tile], taps) for at in range(0, len(pixels), tile)]
    for some_pixels, some_taps in folds:
        long, lanes = (some_pixels, some_taps) if dataflow == "ws" else (some_taps, some_pixels)
        for diagonal in range(len(long) + len(lanes)):
            for lane in range(len(lanes)):
                if 0 <= diagonal - lane < len(long):
                    at, of = long[diagonal - lane], lanes[lane]
                    (y, x), (i, j, c) = (at, of) if dataflow == "ws" else (of, at)
                    yield y * window.stride_height + i, x * window.stride_width + j, c


WINDOWS = [  # kernel, outputs, stride, channels
    (3, 12, 1, 4),
    (3, 8, 2, 8),
    (5, 9, 2, 3),
    (5, 10, 1, 2),
    (7, 7, 3, 3),
    (2, 11, 1, 8),
]


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_window_fetches_follow_a_walk_over_every_word(dataflow):
    errors = []
    for (kernel, out, stride, channels), size in product(WINDOWS, (8, 16)):
        side = (out - 1) * min(stride, kernel) + kernel
        window = Windows(kernel, kernel, out, out, stride, stride, side * side)
        for half in (side * side * channels // divisor for divisor in (2, 3, 5)):
            uses = list(uses_of(dataflow, window, channels, size, size))
            walked = flushed(uses, half)
            counted = window_fetches(dataflow, window, channels, size, size, 1, half)
            errors.append(abs(counted - walked) / walked)
    assert np.mean(errors) < 0.12


@settings(max_examples=50, deadline=None)
@given(
    dataflow=st.sampled_from(DATAFLOWS),
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    out=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    stride=st.integers(1, 4),
    channels=st.integers(1, 40),
    array=st.tuples(st.integers(1, 64), st.integers(1, 64)),
    folds=st.integers(1, 5),
)
def test_window_fetches_lie_between_the_words_and_their_uses(
    dataflow, kernel, out, stride, channels, array, folds
):
    sides = [(o - 1) * min(stride, k) + k for o, k in zip(out, kernel, strict=True)]
    window = Windows(*kernel, *out, stride, stride, sides[0] * sides[1])
    touched = window.touched * channels
    uses = out[0] * out[1] * kernel[0] * kernel[1] * channels * (1 if dataflow == "is" else folds)
    fetches = [
        window_fetches(dataflow, window, channels, *array, folds, half)
        for half in np.geomspace(1, 2 * touched, 12)
    ]
    assert (np.array(fetches) >= touched).all() and (np.array(fetches) <= uses * (1 + 1e-9)).all()
    assert (np.diff(fetches) <= 1e-6 * uses).all()
    assert fetches[-1] == touched
    if kernel == (1, 1):
        assert set(fetches[:-1]) <= {touched, touched * (1 if dataflow == "is" else folds)}


def overlap_of(window: Windows, channels: int):
    pixels = window.out_height * window.out_width
    depth = window.kernel_height * window.kernel_width * channels
    return overlap(
        1,
        pixels,
        depth,
        window.kernel_height,
        window.kernel_width,
        window.out_height,
        window.touched * channels,
    )


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_what_price_counts_follows_a_walk_over_every_word(dataflow):
    """Where rows of windows fit; with less, refills inside a tile are not counted."""
    errors = []
    for (kernel, out, stride, channels), size in product(WINDOWS, (4, 8, 16)):
        side = (out - 1) * stride + kernel if stride < kernel else out * kernel
        window = Windows(kernel, kernel, out, out, stride, stride, side * side)
        for half in (side * side * channels // divisor for divisor in (2, 3)):
            walked = flushed(uses_of(dataflow, window, channels, size, size), half)
            counted = (
                window.touched
                * channels
                * pass_fetches(dataflow, overlap_of(window, channels), 1 / size, 1 / size, half)
            )
            errors.append(abs(counted - walked) / walked)
    assert np.mean(errors) < 0.25


@settings(max_examples=60, deadline=None)
@given(
    dataflow=st.sampled_from(DATAFLOWS),
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    out=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    stride=st.integers(1, 4),
    channels=st.integers(1, 40),
    array=st.tuples(st.integers(1, 64), st.integers(1, 64)),
)
def test_what_price_counts_lies_between_the_words_and_their_uses(
    dataflow, kernel, out, stride, channels, array
):
    sides = [(o - 1) * min(stride, k) + k for o, k in zip(out, kernel, strict=True)]
    window = Windows(*kernel, *out, stride, stride, sides[0] * sides[1])
    uses = out[0] * out[1] * kernel[0] * kernel[1] / window.touched
    windows, halves = overlap_of(window, channels), np.geomspace(1, 2 * window.touched, 20)
    assert 1 + windows.along + windows.across == pytest.approx(uses)
    fetches = pass_fetches(dataflow, windows, 1 / array[0], 1 / array[1], halves)
    assert (fetches >= 1).all() and (fetches <= uses * (1 + 1e-9)).all()
    assert (np.diff(fetches) <= 1e-9 * uses).all()
    larger = pass_fetches(dataflow, windows, 1 / (2 * array[0]), 1 / (2 * array[1]), halves)
    assert (larger <= fetches * (1 + 1e-9)).all()


def test_live_rows_of_a_three_row_kernel():
    """One output row a tile: when row 2 comes in, row 1 waits for the next tile, row 0 dies. Two
    rows a tile: row 2 comes while row 1 dies, then row 3 while row 2 waits."""
    assert live_rows(3, 1, 1) == 1.0 + 0.5
    assert live_rows(3, 1, 2) == ((0.5 + 0.5) + (1.0 + 0.5)) / 2
    assert live_rows(3, 1, 0.5) == (2 + live_rows(3, 1, 1)) / 2
    assert live_rows(2, 2, 0.25) == 0.25 * live_rows(2, 2, 1)


def on_chip(flag: bool, **changed) -> Configs:
    parameters = DEVICES["systolic-edge-16"].parameters | changed
    return Configs(**parameters | dict(activations_on_chip=flag))


def test_activations_that_fit_stay_on_chip():
    layers = Layers.from_rows(
        [
            conv("a", height=16, width=16, in_channels=8, out_channels=16, kernel=3, bias=True),
            pool("p", height=16, width=16, channels=16, kernel=2),
            dense("b", in_features=1024, out_features=10),
        ]
    )
    inputs = (layers.input_words * layers.groups * layers.activation_bits / 8).sum()
    outputs = (layers.output_words * layers.output_bits / 8).sum()
    crossing, staying = (price(layers, on_chip(flag)) for flag in (False, True))
    assert staying.dram_bytes[0, 0] == layers.parameter_bytes.sum()
    assert crossing.dram_bytes[0, 0] == layers.parameter_bytes.sum() + inputs + outputs
    assert staying.latency_s <= crossing.latency_s
    assert staying.sram_bytes == crossing.sram_bytes


def test_activations_that_do_not_fit_cross_dram():
    layers = Layers.from_rows([dense("a", in_features=64, out_features=64, batch=256)])
    size = 2 * 64 * 256
    fits, short = (on_chip(True, sram_input_bytes=kept) for kept in (size, size - 1))
    assert price(layers, fits).dram_bytes[0, 0] == 64 * 64
    assert (
        price(layers, short).dram_bytes
        == price(layers, on_chip(False, sram_input_bytes=size - 1)).dram_bytes
    )


def test_a_window_that_does_not_fit_costs_more_the_less_of_it_does():
    layers = Layers.from_rows(
        [conv("a", height=64, width=64, in_channels=32, out_channels=32, kernel=3)]
    )
    for dataflow in DATAFLOWS:
        srams = 2 ** np.arange(9, 20)
        cost = price(
            layers,
            Configs(
                **DEVICES["systolic-edge-16"].parameters
                | dict(dataflow=dataflow, sram_input_bytes=srams, sram_output_bytes=2**22)
            ),
        )
        assert (np.diff(cost.dram_bytes[0]) <= 0).all()
        assert cost.dram_bytes[0, 0] > 1.3 * cost.dram_bytes[0, -1]
