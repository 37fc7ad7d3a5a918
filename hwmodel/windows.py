"""Sliding windows: output sizes and the input words that any window touches."""

from __future__ import annotations

import operator
from typing import NamedTuple

import numpy as np


class Windows(NamedTuple):
    """The kernel and output sizes of a sliding window over an image."""

    kernel_height: int
    kernel_width: int
    out_height: int
    out_width: int
    touched: int  # input pixels that any window covers


def windows_of(
    name: str,
    height: int,
    width: int,
    kernel: int | tuple[int, int],
    stride: int | tuple[int, int],
    padding: str | int,
) -> Windows:
    """The windows of row `name` over its input. Padding "same" gives ceil(size / stride) outputs,
    an integer pads both sides, "valid" none.

    Raises ValueError for sizes that are not positive integers, an unknown padding, and a kernel
    larger than the padded input.
    """
    kernels = _pair(name, "kernel", kernel)
    strides = _pair(name, "stride", stride)
    outs, touched = [], []
    for axis, size, kernel_size, step in zip(
        ("height", "width"), (height, width), kernels, strides, strict=True
    ):
        if padding == "same":
            out = -(-size // step)
            before = max(0, (out - 1) * step + kernel_size - size) // 2
        else:
            before = _padding(name, padding)
            if kernel_size > size + 2 * before:
                raise ValueError(
                    f"row {name!r}: kernel {kernel_size} is larger than the padded {axis} "
                    f"{size + 2 * before}; use a smaller kernel or padding='same'"
                )
            out = (size + 2 * before - kernel_size) // step + 1
        starts = np.arange(out) * step - before
        ends = np.minimum(starts + kernel_size, size)
        starts = np.maximum(starts, np.concatenate([[0], ends[:-1]]))  # count an overlap once
        outs.append(out)
        touched.append(int(np.maximum(ends - starts, 0).sum()))
    return Windows(*kernels, *outs, touched[0] * touched[1])


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
        try:
            size = operator.index(value)
        except TypeError:
            size = 0
        if size < 1:
            raise ValueError(f"row {name!r}: {field} must be a positive integer, got {value!r}")
    return sizes
