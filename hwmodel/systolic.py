"""The systolic family: closed forms of cycles and traffic, as pure functions of shapes.

An R x C array computes a product M x K x N by tiles. Its dataflow maps the product's three extents
onto (rows, columns, stream): output-stationary (M, N, K), weight-stationary (K, N, M),
input-stationary (K, M, N). FR = ceil(Sr/R) and FC = ceil(Sc/C) count the folds.

The cycle, SRAM and DRAM formulas are those of SCALE-Sim (Samajdar et al., ISPASS 2020); the double
weight plane is that of the TPU (Jouppi et al., ISCA 2017). Arguments broadcast; all are float64,
which is exact for counts below 2**53. Traffic is linear in the operands' sizes, so it comes in
whatever unit (words, bytes) the sizes are given in.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

ACCUMULATOR_BYTES = 4  # partial sums are 32 bits wide in every design modelled here


class Multiplier(NamedTuple):
    """A style of processing element: its width in bits, and how wide operands slow it down."""

    weight_bits: int
    activation_bits: int
    units: int  # units that work side by side in one element
    max_bits: int


# fixed: one 8 x 8 (16 x 16) unit, wider operands in several passes (TPU v1: half speed at 8 x 16).
# bf16: one floating unit, any operand of up to 16 bits in one pass.
# composable: 16 bricks of 2 x 2 bits (Bit Fusion, Sharma et al., ISCA 2018).
# bit-serial: 8 lanes take one activation bit a cycle against 8 weight bits, so that 8-bit
# activations keep the rate of a fixed unit (Stripes, Judd et al., MICRO 2016, has 16 for 16 bits).
STYLES = {
    "fixed8": Multiplier(8, 8, 1, 16),
    "fixed16": Multiplier(16, 16, 1, 32),
    "bf16": Multiplier(16, 16, 1, 16),
    "composable": Multiplier(2, 2, 16, 16),
    "bit-serial": Multiplier(8, 1, 8, 16),
}


# Skipping zeros of no pattern, both assumed: elements with more non-zeros than the mean are waited
# for, and each finds its next non-zero among the next eight weights at most.
SKIP_IMBALANCE, SKIP_FLOOR = 0.25, 1 / 8


class Extents(NamedTuple):
    """A product as a dataflow sees it."""

    rows: np.ndarray
    columns: np.ndarray
    stream: np.ndarray


class Traffic(NamedTuple):
    """What each operand moves."""

    inputs: np.ndarray
    weights: np.ndarray
    outputs: np.ndarray


def extents(dataflow: str, m, k, n) -> Extents:
    """Which of M, K, N lie along the array's rows and columns, and which is streamed."""
    if dataflow == "os":
        return Extents(m, n, k)
    if dataflow == "ws":
        return Extents(k, n, m)
    return Extents(k, m, n)


def ceil_ratio(count, reciprocal):
    """ceil(count / d) for whole numbers, given 1/d; exact while count < 2**51.

    Half a unit below a whole count is at least 0.5/d from any multiple of d, more than the two
    roundings can move it, and a multiplication is cheaper than a division.
    """
    return np.ceil((count - 0.5) * reciprocal)


def passes(unit: Multiplier, weight_bits, activation_bits):
    """Cycles that one multiply-accumulate takes one element; its fields may be arrays.

    fixed8: ceil(wb/8)·ceil(ab/8); composable: ceil(wb/2)·ceil(ab/2)/16; bit-serial:
    ceil(wb/8)·ab/8.
    """
    weight_steps = np.ceil(weight_bits / unit.weight_bits)
    return weight_steps * np.ceil(activation_bits / unit.activation_bits) / unit.units


def structured_depth(k, nm_n, nm_m):
    """K that is multiplied where an element takes N of every M weights: ceil(K·N/M); K without a
    pattern (M = 0)."""
    return np.where(nm_m > 0, np.ceil(k * nm_n / np.maximum(nm_m, 1)), k)


def unstructured_share(density, nm_m):
    """Share of the cycles left where zeros of no pattern are skipped, max(d·(1 + imbalance), floor)
    and at most 1; 1 for rows with a pattern (M > 0), which `structured_depth` shortens."""
    share = np.clip(density * (1 + SKIP_IMBALANCE), SKIP_FLOOR, 1.0)
    return np.where(nm_m > 0, 1.0, share)


def step_refetches(steps, size, half):
    """How often an operand that every sequential step uses comes from DRAM: once if all of it fits
    half of its SRAM, else every step."""
    return np.where(size <= half, 1.0, steps)


def accumulator_chunks(dataflow: str, mapped: Extents, columns, half_sram_output_bytes):
    """Pieces that the stream is cut into so that the live partial sums fit the accumulators.

    A column of tiles leaves stream x min(Sc, C) sums that wait for the next fold of K; each further
    piece passes the stationary operand through the array once more. Sums are never spilled to DRAM:
    a tile of weights and its accumulators are of like size, so moving the tile again costs less
    than 2·FR times the sums. One for output-stationary, whose sums stay in the elements.
    """
    if dataflow == "os":
        return 1.0
    live_bytes = ACCUMULATOR_BYTES * mapped.stream * np.minimum(mapped.columns, columns)
    return np.ceil(live_bytes / half_sram_output_bytes)


def compute_cycles(dataflow: str, double_plane: bool, folds, stream, rows, columns, chunks=1.0):
    """Cycles of one product, memory never in the way.

    FR·FC·(T + R + C - 2 + [not os]·R), each chunk of the stream paying the skew and preload again.
    With a second plane, tiles follow each other without draining and a tile costs max(T, R); the
    first preload and the last skew remain. Output-stationary preloads nothing, so the second plane
    leaves it as it is.
    """
    if dataflow == "os":
        return folds * (stream + (rows + columns - 2))
    latency = 2 * rows + columns - 2
    if double_plane:
        return folds * np.maximum(stream, chunks * rows) + latency
    return folds * (stream + chunks * latency)


def sram_traffic(dataflow: str, inputs, weights, outputs, fr, fc, chunks=1.0) -> Traffic:
    """SRAM accesses of one product: inputs MK·FC (os, ws) or MK (is); weights KN·FR (os), KN (ws)
    or KN·FC (is); outputs MN (os) or a partial sum for every fold of K, MN·FR (ws, is)."""
    if dataflow == "os":
        return Traffic(inputs * fc, weights * fr, outputs)
    if dataflow == "ws":
        return Traffic(inputs * fc, weights * chunks, outputs * fr)
    return Traffic(inputs * chunks, weights * fc, outputs * fr)


def dram_refetches(
    dataflow: str,
    input_size,
    weight_size,
    weight_strip_size,
    half_input,
    half_weight,
    fr,
    fc,
    chunks=1.0,
    pass_fetches=1.0,
):
    """How often each operand crosses DRAM: (input times, weight times), with double buffering.

    An operand that fits half of its SRAM crosses once; else once per fold of the other extent. In
    output-stationary order, all row folds of one strip of weights, K·min(C, N), run in a row, so
    the weights cross once if a strip fits. Chunks of the stream fit more easily, but bring the
    stationary operand again. Inputs that do not fit cross `pass_fetches` times in each pass where
    their windows overlap (`sliding.pass_fetches`).
    """
    if dataflow == "os":
        return (
            np.where(input_size <= half_input, 1.0, fc * pass_fetches),
            np.where(weight_strip_size <= half_weight, 1.0, fr),
        )
    if dataflow == "ws":
        return (
            np.where(input_size <= half_input * chunks, 1.0, fc * pass_fetches),
            np.where(weight_size <= half_weight, 1.0, chunks),
        )
    return (
        np.where(input_size <= half_input, 1.0, chunks * pass_fetches),
        np.where(weight_size <= half_weight * chunks, 1.0, fc),
    )


def first_tile(dataflow: str, m, k, n, rows, columns) -> Traffic:
    """Words of the first tile's inputs and weights, and of the last tile's outputs."""
    if dataflow == "os":
        tall, wide = np.minimum(m, rows), np.minimum(n, columns)
        return Traffic(tall * k, k * wide, tall * wide)
    deep = np.minimum(k, rows)
    if dataflow == "ws":
        wide = np.minimum(n, columns)
        return Traffic(m * deep, deep * wide, m * wide)
    wide = np.minimum(m, columns)
    return Traffic(deep * wide, n * deep, n * wide)


def least_sram_bytes(dataflow: str, rows, columns, weight_bits, activation_bits, output_bits):
    """Bytes that half of each SRAM must hold for the array to run at all.

    The stationary operand's whole R x C tile, one word per row or column of what is streamed, and
    a row of accumulators (os: the tile of results that drains while the next one is computed).
    """
    if dataflow == "os":
        return Traffic(
            rows * activation_bits / 8,
            columns * weight_bits / 8,
            rows * columns * output_bits / 8,
        )
    sums = columns * float(ACCUMULATOR_BYTES)
    if dataflow == "ws":
        return Traffic(rows * activation_bits / 8, rows * columns * weight_bits / 8, sums)
    return Traffic(rows * columns * activation_bits / 8, rows * weight_bits / 8, sums)
