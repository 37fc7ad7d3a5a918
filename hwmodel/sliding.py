"""Sliding windows over an input that does not fit its SRAM: words that cross DRAM.

Neighbouring windows of a k x k convolution share words. A word is fetched once for all of its uses
only if the double-buffered SRAM still holds it at the next one; each refill replaces half of the
SRAM, so a word waiting for its next use is lost with every refill that falls in between. Two
estimates of the losses are made, and the smaller holds, as each counts some of them too often:

by intervals: a reuse after i words fetched is lost with probability min(1, i / half), for four
classes of reuse (along a row of windows or from row to row, within a fold or from fold to fold);
by live rows: every refill loses the words that are live when new ones come, L on average, so that
U words take U·half / (half - L) fetches.

Both are this package's own, held against SCALE-Sim's runs in `benchmarks/hardware_model.py`.
`window_fetches` works them out for one layer on one array; `pass_fetches` is what `price` uses, the
same classes of reuse in a few operations that broadcast, each word's interval at its longest.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from hwmodel.windows import Windows

_STEPS = 100  # of the fixed point below; its error shrinks geometrically


class Overlap(NamedTuple):
    """What the windows of rows share, float64 [n_rows]; nothing where a row has no windows."""

    along: np.ndarray  # uses after the first for each word touched, in a row of windows
    across: np.ndarray  # and from row to row
    along_depth: np.ndarray  # how far along the window's depth the next use is
    across_depth: np.ndarray
    pixels: np.ndarray  # windows of the whole batch
    out_width: np.ndarray
    live_words: np.ndarray  # of input rows that the next row of windows needs again


def window_fetches(
    dataflow: str,
    window: Windows,
    channels: int,
    rows: int,
    columns: int,
    column_folds: int,
    half_words: float,
) -> float:
    """Input words that one convolution over one image brings from DRAM on a rows x columns array.

    `column_folds` is FC, the passes over the input (one for input-stationary); `half_words` the
    usable half of the input SRAM. Never fewer than the words touched, nor more than one for every
    use by a fold.
    """
    touched = window.touched * channels
    if touched <= half_words:
        return float(touched)
    pixels = window.out_height * window.out_width
    depth = window.kernel_height * window.kernel_width * channels
    passes = 1 if dataflow == "is" else column_folds
    if dataflow == "ws":
        tile = 1.0
        classes = _slices(window, channels, rows)
    else:
        tile = pixels / -(-pixels // (rows if dataflow == "os" else columns))
        classes = _tiles(window, channels, tile)
    fetches = passes * _fixed_point(window, channels, half_words, classes)
    # Weight-stationary order is that of single windows where the whole window is in one slice.
    if dataflow != "ws" or rows >= depth:
        row_words = _span(window.out_width, window.stride_width, window.kernel_width) * channels
        live = row_words * live_rows(
            window.kernel_height, window.stride_height, tile / window.out_width
        )
        if live < half_words:
            fetches = min(fetches, passes * touched / (1 - live / half_words))
    return fetches


def overlap(batch, m, k, kernel_height, kernel_width, out_height, touched) -> Overlap:
    """The overlap of convolutions as products: M windows of depth K over `touched` words.

    The stride, the same in both directions, solves touched = ((OH - 1)s + kh)·((OW - 1)s + kw) in
    pixels, and is from 1 to the kernel's size; padding makes the solution a little smaller.
    """
    taps = np.maximum(kernel_height * kernel_width, 1)
    channels = np.maximum(k / taps, 1)
    out_width = m / np.maximum(batch * out_height, 1)
    square = (out_height - 1) * (out_width - 1)
    linear = (out_height - 1) * kernel_width + (out_width - 1) * kernel_height
    missing = np.maximum(touched / (batch * channels) - taps, 0)
    stride = 2 * missing / np.maximum(linear + np.sqrt(linear**2 + 4 * square * missing), 1)
    stride_height, stride_width = (
        np.clip(stride, 1, np.maximum(kernel, 1)) for kernel in (kernel_height, kernel_width)
    )
    span_height = (out_height - 1) * stride_height + kernel_height
    span_width = (out_width - 1) * stride_width + kernel_width
    along = out_height * kernel_height * (out_width * kernel_width - span_width)
    across = (out_height * kernel_height - span_height) * span_width
    reused = np.maximum(m * k - touched, 0) / np.maximum(touched, 1)
    share = reused / np.where(along + across > 0, along + across, np.inf)
    tail = (kernel_width - stride_width) * channels
    return Overlap(
        along=np.maximum(along, 0) * share,
        across=np.maximum(across, 0) * share,
        along_depth=stride_width * channels,
        across_depth=stride_height * kernel_width * channels - tail,
        pixels=m,
        out_width=out_width,
        live_words=(kernel_height - stride_height) * span_width * channels,
    )


def pass_fetches(dataflow: str, windows: Overlap, per_row, per_column, half_words):
    """Fetches of each input word in one pass over an input that does not fit; arguments broadcast.

    `per_row` and `per_column` are 1/R and 1/C. Weight-stationary: a reuse d along the depth is in
    the same slice of R but for a share d/R, and d·pixels words away otherwise. Output- and
    input-stationary: refills lose the live rows, at most every reuse from tile to tile.
    """
    if dataflow == "ws":
        apart = np.minimum(per_row, windows.pixels / half_words)
        along = windows.along * np.minimum(1.0, windows.along_depth * apart)
        return 1.0 + along + windows.across * np.minimum(1.0, windows.across_depth * apart)
    per_tile = per_row if dataflow == "os" else per_column
    between_tiles = windows.along * per_tile
    between_tiles += windows.across * np.minimum(1.0, windows.out_width * per_tile)
    kept = np.maximum(half_words - windows.live_words, 1.0)
    return 1.0 + np.minimum(between_tiles, windows.live_words / kept)


def live_rows(kernel: int, stride: int, rows_per_tile: float) -> float:
    """Input rows, on average over the fetches of new ones, that are on chip and still needed.

    A tile of output rows goes through the kernel's rows one after another. Rows are counted by
    half while they come in or are used for the last time. Between whole numbers, and for tiles of
    less than a row (which leave kernel - stride rows live beside them), interpolated.
    """
    low = int(rows_per_tile)
    share = rows_per_tile - low
    below = float(max(kernel - stride, 0)) if low == 0 else _live_rows(kernel, stride, low)
    return (1 - share) * below + share * _live_rows(kernel, stride, low + 1)


@cache
def _live_rows(kernel: int, stride: int, rows_per_tile: int) -> float:
    kept = max(kernel - stride, 0)  # of the tile before
    uses = np.add.outer(np.arange(kernel), stride * np.arange(rows_per_tile))  # row of each use
    # Row i of the kernel is phase i: the phases in which each input row is used first and last.
    used, first_uses = np.unique(uses, return_index=True)
    first = first_uses // rows_per_tile
    _, last_uses = np.unique(uses[::-1], return_index=True)
    last = kernel - 1 - last_uses // rows_per_tile
    old = used < kept
    next_tile = used >= rows_per_tile * stride
    live = []
    for phase in first[~old]:
        present = np.where(old | (first < phase), 1.0, np.where(first == phase, 0.5, 0.0))
        dying = (last == phase) & (old | (first < phase))
        needed = np.where(next_tile | (last > phase), 1.0, np.where(dying, 0.5, 0.0))
        live.append((present * needed).sum())
    return float(np.mean(live))


def _span(outputs: int, stride: int, kernel: int) -> int:
    """Words that `outputs` windows of one axis cover, padding included."""
    return (outputs - 1) * min(stride, kernel) + kernel


def _reuses(window: Windows, channels: int) -> tuple[float, float]:
    """Uses after the first, along a row of windows and from row to row; they and the words touched
    add up to all uses."""
    span_height = _span(window.out_height, window.stride_height, window.kernel_height)
    span_width = _span(window.out_width, window.stride_width, window.kernel_width)
    uses_height = window.out_height * window.kernel_height
    uses_width = window.out_width * window.kernel_width
    along = uses_height * (uses_width - span_width)
    across = (uses_height - span_height) * span_width
    reused = uses_height * uses_width - window.touched
    scale = channels * reused / (along + across) if along + across else 0.0
    return along * scale, across * scale


def _distances(window: Windows, channels: int) -> tuple[int, int]:
    """Along the window's depth, how far a word's next use is: in its row, and in the next row."""
    along = window.stride_width * channels
    tail = max(window.kernel_width - window.stride_width, 0) * channels
    return along, window.stride_height * window.kernel_width * channels - tail


def _slices(window: Windows, channels: int, rows: int) -> list[tuple[float, float]]:
    """Weight-stationary: all windows pass each slice of `rows` along the depth. (reuses, words in
    between) of each class."""
    pixels = window.out_height * window.out_width
    classes = []
    for reuses, distance, near in zip(
        _reuses(window, channels),
        _distances(window, channels),
        (rows, rows * window.out_width),
        strict=True,
    ):
        inside = max(0.0, 1 - distance / rows)
        classes.append((reuses * inside, near))
        classes.append((reuses * (1 - inside), max(distance, rows) * pixels))
    return classes


def _tiles(window: Windows, channels: int, tile: float) -> list[tuple[float, float]]:
    """Output- and input-stationary: tiles of that many windows, each through its whole depth."""
    depth = window.kernel_height * window.kernel_width * channels
    along, across = _reuses(window, channels)
    along_distance, across_distance = _distances(window, channels)
    leave_row = 1 / max(tile / window.out_width, 1.0)
    return [
        (along * (1 - 1 / tile), along_distance * tile),
        (along / tile, depth * tile),
        (across * (1 - leave_row), across_distance * tile),
        (across * leave_row, depth * max(tile, window.out_width)),
    ]


def _fixed_point(window: Windows, channels: int, half_words: float, classes) -> float:
    """Words fetched in one pass: intervals count uses, of which the share fetched refills the SRAM.
    The largest solution, reached from every use being a fetch."""
    uses = (
        window.out_height * window.out_width * window.kernel_height * window.kernel_width * channels
    )
    reuses, intervals = np.array(classes).T
    fetches = float(uses)
    for _ in range(_STEPS):
        lost = np.minimum(1.0, intervals * (fetches / uses) / half_words)
        fetches = window.touched * channels + float(reuses @ lost)
    return fetches
