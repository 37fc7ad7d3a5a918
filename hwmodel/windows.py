"""Sliding windows: output sizes and the input words that any window touches."""

from __future__ import annotations

import functools
import operator
from typing import NamedTuple

import numpy as np


class Windows(NamedTuple):
    """The kernel and output sizes of a sliding window over an image."""

    kernel_height: int
    kernel_width: int
    out_height: int
    out_width: int
    stride_height: int
    stride_width: int
    touched: int  # input pixels that any window covers


def windows_of(
    name: str,
    height: int,
    width: int,
    kernel: int | tuple[int, int],
    stride: int | tuple[int, int],
    padding: str | int,
    dilation: int | tuple[int, int] = 1,
) -> Windows:
    """The windows of row `name` over its input. Padding "same" gives ceil(size / stride) outputs,
    an integer pads both sides, "valid" none. Dilation d reads every d-th word of a window.

    Raises ValueError for sizes that are not positive integers, an unknown padding, and a kernel
    larger (dilation included) than the padded input.
    """
    kernels = _pair(name, "kernel", kernel)
    strides = _pair(name, "stride", stride)
    dilations = _pair(name, "dilation", dilation)
    outs, touched = [], []
    for axis, size, kernel_size, step, spread in zip(
        ("height", "width"), (height, width), kernels, strides, dilations, strict=True
    ):
        extent = (kernel_size - 1) * spread + 1
        if padding == "same":
            out = -(-size // step)
            before = max(0, (out - 1) * step + extent - size) // 2
        else:
            before = _padding(name, padding)
            if extent > size + 2 * before:
                raise ValueError(
                    f"row {name!r}: kernel {extent} is larger than the padded {axis} "
                    f"{size + 2 * before}; use a smaller kernel or padding='same'"
                )
            out = (size + 2 * before - extent) // step + 1
        outs.append(out)
        touched.append(_touched(size, out, step, kernel_size, spread, before))
    return Windows(*kernels, *outs, *strides, touched[0] * touched[1])


@functools.lru_cache(maxsize=4096)  # networks repeat a few windows over and over
def _touched(size: int, out: int, step: int, kernel: int, spread: int, before: int) -> int:
    """Words of one axis that any of its `out` windows reads."""
    starts = np.arange(out) * step - before
    if spread > 1:
        reads = (starts[:, None] + np.arange(kernel) * spread).ravel()
        return len(np.unique(reads[(reads >= 0) & (reads < size)]))
    ends = np.minimum(starts + kernel, size)
    starts = np.maximum(starts, np.concatenate([[0], ends[:-1]]))  # count an overlap once
    return int(np.maximum(ends - starts, 0).sum())


def _pair(name: str, field: str, value: int | tuple[int, int]) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"row {name!r}: {field} must be an integer or a pair, got {value!r}")
    return tuple(require_positive(name, **{field: size})[field] for size in pair)


def _padding(name: str, padding: str | int) -> int:
    if padding == "valid":
        return 0
    try:
        before = operator.index(padding)
    except TypeError:
        before = -1
    if before < 0:
        raise ValueError(
            f"row {name!r}: padding must be 'same', 'valid' or an integer of at least 0, "
            f"got {padding!r}"
        )
    return before


def require_positive(name: str, **sizes: int) -> dict[str, int]:
    """`sizes` themselves, all positive integers; raises ValueError naming the row otherwise."""
    for field, value in sizes.items():
        if type(value) is int and value > 0:  # as nearly all are
            continue
        try:
            size = operator.index(value)
        except TypeError:
            size = 0
        if size < 1:
            raise ValueError(f"row {name!r}: {field} must be a positive integer, got {value!r}")
    return sizes
