"""SCALE-Sim's memory, counted instead of simulated: DRAM words and cycles of one product.

`systolic` holds what a double-buffered accelerator does. The simulator (Samajdar et al., ISPASS
2020; version 2) does a few things that no hardware would, which matter only where its runs are to
be matched word by word, and are kept here:

- a read buffer is 100 sets of whole words, half of them active;
- with unlimited bandwidth a buffer is flushed whenever its active half is full, in the middle of a
  strip of weights as well as between two;
- with limited bandwidth each buffer holds a window of one circular stream, in the order of a skew
  over all folds; where a fold asks for a set that the window has passed, refills go on all the way
  around the stream, each of half a buffer and each waited for;
- there are no accumulators: every partial sum is written out.

The refills are counted fold by fold, exactly for products and 1x1 convolutions; larger windows find
some of their words elsewhere in the stream, which is not followed. `inside` [M, K] says which
words of windows lie in the input, where some reach past it. Sizes are in words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from hwmodel import systolic
from hwmodel.systolic import Extents, Traffic

SETS = 100
ACTIVE_SETS = SETS // 2


class MappedProduct(NamedTuple):
    """M x K x N on a rows x columns array, with its three SRAMs in words."""

    dataflow: str
    m: int
    k: int
    n: int
    rows: int
    columns: int
    input_sram: int
    weight_sram: int
    output_sram: int

    @property
    def extents(self) -> Extents:
        return systolic.extents(self.dataflow, self.m, self.k, self.n)

    @property
    def folds(self) -> tuple[int, int]:
        """FR and FC."""
        mapped = self.extents
        return -(-mapped.rows // self.rows), -(-mapped.columns // self.columns)

    @property
    def fold_cycles(self) -> float:
        stream = self.extents.stream
        return systolic.compute_cycles(self.dataflow, False, 1, stream, self.rows, self.columns)

    @property
    def compute_cycles(self) -> float:
        row_folds, column_folds = self.folds
        return row_folds * column_folds * self.fold_cycles

    @property
    def output_words(self) -> int:
        """Results, and every partial sum where K is folded."""
        return self.m * self.n * (1 if self.dataflow == "os" else self.folds[0])


class Run(NamedTuple):
    """Words of an operand's stream, first to last, that the array asks for between two cycles."""

    first: int
    last: int
    start_cycle: float
    end_cycle: float


def active_words(sram_words):
    """The active half of a read buffer at unlimited bandwidth, in whole sets; it is flushed as soon
    as it is full."""
    return sram_words // SETS * ACTIVE_SETS


def unlimited_dram_words(product: MappedProduct, input_words: float) -> Traffic:
    """DRAM words with unlimited bandwidth (the simulator's mode CALC): none before it is asked for.

    `input_words` are those that any window touches; M·K for a plain product. The inputs of larger
    windows are `sliding.window_fetches`.
    """
    row_folds, column_folds = product.folds
    wide = min(product.columns, product.n)
    active_weights = active_words(product.weight_sram)
    inputs, weights = systolic.dram_refetches(
        product.dataflow,
        input_words,
        product.k * product.n,
        product.k * wide,
        active_words(product.input_sram) - 1,
        active_weights - 1,
        row_folds,
        column_folds,
    )
    weight_words = product.k * product.n * weights
    if product.dataflow == "os":
        strips = (
            product.k * min(product.columns, product.n - left)
            for left in range(0, product.n, product.columns)
        )
        weight_words = strip_words(strips, row_folds, active_weights)
    # Where the outputs overflow half of their buffer, the first burst is padded to whole columns.
    overflow = product.output_words > product.output_sram / 2
    padding = product.columns - 1 if overflow else 0
    return Traffic(input_words * inputs, weight_words, product.output_words + padding)


def strip_words(strips: Iterable[int], row_folds: int, active: int) -> int:
    """Output-stationary weights fetched, strip after strip, each passed once per row fold.

    Where a flush falls inside a strip's first pass, its words from before the flush are gone, and
    the second pass brings them again.
    """
    total = filled = 0
    for strip in strips:
        if strip >= active:
            total += strip * row_folds
            filled = (filled + strip * row_folds) % active
        elif filled + strip < active:
            total += strip
            filled += strip
        else:
            again = active - filled if row_folds > 1 else 0
            total += strip + again
            filled += strip + again - active
    return total


def limited_dram_words(
    product: MappedProduct, words_per_cycle: int, inside: np.ndarray | None = None
) -> Traffic:
    """DRAM words at a limited bandwidth (mode USER), which each operand has to itself: the first
    fill and the refills, in whole lines of `words_per_cycle`, used or not; outputs without padding.
    """
    mapped, (row_folds, column_folds) = product.extents, product.folds
    # Streams are padded to whole folds.
    tall, wide = row_folds * product.rows, column_folds * product.columns
    streams = {
        "os": (tall * mapped.stream, wide * mapped.stream),
        "ws": (tall * mapped.stream, wide * mapped.rows),
        "is": (wide * mapped.rows, tall * mapped.stream),
    }[product.dataflow]
    words = []
    for stream, count, sram in zip(
        streams, refills(product, inside), (product.input_sram, product.weight_sram), strict=True
    ):
        refill = -(-_half(sram) // words_per_cycle)
        first = min(refill, -(-stream // words_per_cycle))
        words.append((first + count * refill) * words_per_cycle)
    return Traffic(*words, product.output_words)


def refills(product: MappedProduct, inside: np.ndarray | None = None) -> tuple[int, int]:
    """How often half of the input buffer and of the weight buffer is filled again at a limited
    bandwidth, which does not depend on the bandwidth."""
    inputs, weights = _moves(product, inside)
    return inputs[-1][0] if inputs else 0, weights[-1][0] if weights else 0


def total_cycles(
    product: MappedProduct, words_per_cycle: int, inside: np.ndarray | None = None
) -> float:
    """Cycles at a limited bandwidth: compute, and the most that any refill comes late; or the
    drain, where that takes longer.

    Refills follow each other without a pause, refill j ends at j·(ceil(half / bandwidth) + 1), and
    the array waits from when it asks for the first of its words. Outputs drain by halves of their
    buffer, from when the first half is full; the last two halves hold nothing up.
    """
    late = 0.0
    srams = product.input_sram, product.weight_sram
    for moves, sram in zip(_moves(product, inside), srams, strict=True):
        refill_cycles = -(-_half(sram) // words_per_cycle) + 1
        late = max([late, *(count * refill_cycles - cycle for count, cycle in moves)])
    return max(product.compute_cycles + late, _drain_cycles(product, words_per_cycle))


def _drain_cycles(product: MappedProduct, words_per_cycle: int) -> float:
    if product.output_words <= product.output_sram:
        return 0.0
    half = _half(product.output_sram)
    full_at = product.compute_cycles * half / product.output_words
    drains = -(-(product.output_words - product.output_sram) // half)
    return full_at + drains * -(-half // words_per_cycle)


def _moves(
    product: MappedProduct, inside: np.ndarray | None
) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """Of the input and the weight buffer, each time that its window moves on: refills so far, and
    the cycle, stalls not counted, in which their words are asked for."""
    moves = []
    input_words = product.m * product.k if inside is None else int(inside.sum())
    for demand, words, sram in (
        (_input_demand(product, inside), input_words, product.input_sram),
        (_weight_demand(product), product.k * product.n, product.weight_sram),
    ):
        set_words = -(-sram // SETS)
        active = -(-_half(sram) // set_words)
        n_sets = words // set_words + 1
        moves.append(_walk(demand, set_words, n_sets, active) if n_sets > active else [])
    return tuple(moves)


def _walk(
    demand: Iterable[Run], set_words: int, n_sets: int, active: int
) -> list[tuple[int, float]]:
    """Moves of the window until each run has passed through it. It goes forward only, by half a
    buffer or by what lies outside it, and around."""
    step = min(n_sets - active, active)
    start, count, moves = 0, 0, []
    for run in demand:
        first, last = run.first // set_words, run.last // set_words
        wanted = first + max(0, -(-(start - first) // n_sets)) * n_sets
        jumps = max(0, -(-(wanted + 1 - start - active) // step))
        if jumps:
            start += jumps * step
            count += jumps
            moves.append((count, run.start_cycle))
        while wanted + last - first >= start + active:
            share = (start + active - wanted) / (last - first)
            start += step
            count += 1
            moves.append((count, run.start_cycle + share * (run.end_cycle - run.start_cycle)))
    return moves


def _input_demand(product: MappedProduct, inside: np.ndarray | None) -> Iterator[Run]:
    if product.dataflow == "is":
        runs = _stationary_runs(product)
        return runs if inside is None else _stationary_inside(product, runs, inside)
    mapped, (row_folds, column_folds) = product.extents, product.folds
    order = [fold for _ in range(column_folds) for fold in range(row_folds)]
    if inside is None:
        places = _skewed_places(mapped.rows, product.rows, mapped.stream)
    else:
        lanes = inside if product.dataflow == "os" else inside.T
        places = _skewed_inside(lanes, product.rows)
    return _skewed_runs(product, places, product.rows, order)


def _weight_demand(product: MappedProduct) -> Iterator[Run]:
    if product.dataflow == "ws":
        return _stationary_runs(product)
    mapped, (row_folds, column_folds) = product.extents, product.folds
    if product.dataflow == "os":
        order = [fold for fold in range(column_folds) for _ in range(row_folds)]
        places = _skewed_places(mapped.columns, product.columns, mapped.stream)
        return _skewed_runs(product, places, product.columns, order)
    order = [fold for _ in range(column_folds) for fold in range(row_folds)]
    places = _skewed_places(mapped.rows, product.rows, mapped.stream)
    return _skewed_runs(product, places, product.rows, order)


def _skewed_runs(
    product: MappedProduct, places: list[tuple[int, int]], width: int, order: Iterable[int]
) -> Iterator[Run]:
    """A streamed operand's runs, one a fold, after the preload of the stationary one."""
    length = product.extents.stream
    preload = 0 if product.dataflow == "os" else product.rows
    for at, fold in enumerate(order):
        start_cycle = at * product.fold_cycles + preload
        yield Run(*places[fold], start_cycle, start_cycle + length + width - 2)


def _skewed_places(extent: int, width: int, length: int) -> list[tuple[int, int]]:
    """Places in the stream of each fold's first and last word.

    The folds, `length` lines of up to `width` words, follow each other; the stream takes all of
    them diagonal by diagonal, so that a fold's end and the next one's beginning are interleaved.
    """
    n_folds = -(-extent // width)
    last_width = extent - (n_folds - 1) * width
    lanes = np.arange(width)
    lane_lines = length * np.where(lanes < last_width, n_folds, n_folds - 1)
    folds = np.arange(n_folds)

    def places(lines, own_lanes):
        diagonals = (lines + own_lanes)[:, None]
        before = np.clip(diagonals - lanes, 0, lane_lines).sum(axis=1)
        earlier = (lanes < own_lanes[:, None]) & (diagonals >= lanes)
        return before + (earlier & (diagonals - lanes < lane_lines)).sum(axis=1)

    firsts = places(folds * length, np.zeros_like(folds))
    last_lanes = np.where(folds < n_folds - 1, width, last_width) - 1
    lasts = places(folds * length + length - 1, last_lanes)
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


def _skewed_inside(lanes: np.ndarray, width: int) -> list[tuple[int, int]]:
    """`_skewed_places` where only some words of `lanes` [extent, length] are in the stream."""
    lane, line = np.nonzero(lanes)
    fold = lane // width
    order = np.lexsort((lane % width, fold * lanes.shape[1] + line + lane % width))
    folds = fold[order]
    return [
        (int(own[0]), int(own[-1]))
        for own in (np.flatnonzero(folds == one) for one in range(folds.max() + 1))
    ]


def _stationary_inside(
    product: MappedProduct, runs: Iterable[Run], inside: np.ndarray
) -> Iterator[Run]:
    """The runs of lines, in places that count only the words inside."""
    strips = [
        inside[left : left + product.columns].T.ravel()
        for left in range(0, product.m, product.columns)
    ]
    before = np.concatenate([[0], np.cumsum(np.concatenate(strips))]).tolist()
    for run in runs:
        if before[run.last + 1] > before[run.first]:
            yield run._replace(first=before[run.first], last=before[run.last + 1] - 1)


def _stationary_runs(product: MappedProduct) -> Iterator[Run]:
    """The stationary operand's runs, one a line: strips of columns, tiles of rows, and each tile
    from its last line, which is pushed in first."""
    mapped, rows = product.extents, product.rows
    fold = 0
    for left in range(0, mapped.columns, product.columns):
        wide = min(product.columns, mapped.columns - left)
        strip = left * mapped.rows
        for top in range(0, mapped.rows, rows):
            for line in reversed(range(top, min(top + rows, mapped.rows))):
                first = strip + line * wide
                cycle = fold * product.fold_cycles + rows - 1 - (line - top)
                yield Run(first, first + wide - 1, cycle, cycle)
            fold += 1


def _half(sram_words: int) -> int:
    return -(-sram_words // 2)
