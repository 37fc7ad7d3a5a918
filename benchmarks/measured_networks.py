"""Networks that others have measured, as rows of the hardware model.

Accel-NASBench (Ahmad et al., 2024): MnasNet-space networks on 224 x 224 images. NAS-Bench-201
(Dong & Yang, ICLR 2020) with the latency tables of HELP (Lee et al., NeurIPS 2021): cells on
32 x 32 images. Batch 1, and words of 8 bits: a fitted device's rates absorb any constant factor.
"""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas

from hwmodel import Layers
from hwmodel.workload import conv, dense, depthwise, elementwise, normalization, pool

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CHANNELS, STRIDES = (16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 2, 1, 2, 1)
CELLS_PER_STAGE = 5
EDGE_OPS = ("none", "skip_connect", "avg_pool_3x3", "nor_conv_1x1", "nor_conv_3x3")


def read(name: str) -> pandas.DataFrame | None:
    """The table of that name, or None where the data is not beside the repository."""
    path = DATA / name
    return pandas.read_csv(path) if path.exists() else None


def mnasnet(record: dict) -> Layers:
    """One network of Accel-NASBench from its record: expansion, kernel, layers and
    squeeze-excitation of each of seven blocks."""
    rows = [conv("stem", height=224, width=224, in_channels=3, out_channels=32, kernel=3, stride=2)]
    size, channels = 112, 32
    for block, (out, first_stride) in enumerate(zip(CHANNELS, STRIDES, strict=True)):
        expansion, kernel, depth, squeeze = (
            int(record[f"block{block}_{x}"]) for x in ("e", "k", "l", "se")
        )
        for layer in range(depth):
            name, middle = f"{block}.{layer}", channels * expansion
            stride = first_stride if layer == 0 else 1
            if expansion > 1:
                rows.append(
                    conv(
                        f"{name}.expand",
                        height=size,
                        width=size,
                        in_channels=channels,
                        out_channels=middle,
                        kernel=1,
                    )
                )
            rows.append(
                depthwise(
                    f"{name}.depthwise",
                    height=size,
                    width=size,
                    channels=middle,
                    kernel=kernel,
                    stride=stride,
                )
            )
            size = -(-size // stride)
            words = size * size * middle
            if squeeze:
                rows += [
                    pool(f"{name}.mean", height=size, width=size, channels=middle, kernel=size),
                    dense(f"{name}.squeeze", in_features=middle, out_features=channels // 4),
                    dense(f"{name}.excite", in_features=channels // 4, out_features=middle),
                    elementwise(f"{name}.scale", elements=words),
                ]
            rows.append(
                conv(
                    f"{name}.project",
                    height=size,
                    width=size,
                    in_channels=middle,
                    out_channels=out,
                    kernel=1,
                )
            )
            if stride == 1 and channels == out:
                rows.append(elementwise(f"{name}.add", elements=size * size * out))
            channels = out
    rows += [
        conv("head", height=size, width=size, in_channels=channels, out_channels=1280, kernel=1),
        pool("mean", height=size, width=size, channels=1280, kernel=size),
        dense("classes", in_features=1280, out_features=1000),
    ]
    return Layers.from_rows(rows)


def nas_bench_201(cells: pandas.Series) -> tuple[Layers, np.ndarray]:
    """The networks of NAS-Bench-201 cells: distinct ones, and which of them each cell is.

    Every edge of a cell is run, connected to the output or not; "none" multiplies by zero, and the
    places of the operations do not matter to the rows.
    """
    counts = [Counter(re.findall(r"([a-z_0-9]+)~", cell)) for cell in cells]
    keys = [tuple(count[op] for op in EDGE_OPS) for count in counts]
    distinct = sorted(set(keys))
    place = {key: index for index, key in enumerate(distinct)}
    return (
        Layers.concat([_cell_network(dict(zip(EDGE_OPS, key, strict=True))) for key in distinct]),
        np.array([place[key] for key in keys]),
    )


def _relu_conv(
    name: str, size: int, inputs: int, outputs: int, kernel: int, stride: int = 1, repeat: int = 1
) -> list:
    out = size // stride
    return [
        elementwise(f"{name}.relu", elements=size * size * inputs, n_inputs=1, repeat=repeat),
        conv(
            f"{name}.conv",
            height=size,
            width=size,
            in_channels=inputs,
            out_channels=outputs,
            kernel=kernel,
            stride=stride,
            repeat=repeat,
        ),
        normalization(
            f"{name}.norm", elements=out * out * outputs, channels=outputs, repeat=repeat
        ),
    ]


def _cell_network(ops: dict[str, int]) -> Layers:
    rows = [
        conv("stem", height=32, width=32, in_channels=3, out_channels=16, kernel=3),
        normalization("stem.norm", elements=32 * 32 * 16, channels=16),
    ]
    for stage in range(3):
        size, width = 32 >> stage, 16 << stage
        words = size * size * width
        if stage:
            rows += _relu_conv(f"{stage}.a", 2 * size, width // 2, width, 3, stride=2)
            rows += _relu_conv(f"{stage}.b", size, width, width, 3)
            rows += [
                pool(
                    f"{stage}.pool", height=2 * size, width=2 * size, channels=width // 2, kernel=2
                ),
                conv(
                    f"{stage}.shortcut",
                    height=size,
                    width=size,
                    in_channels=width // 2,
                    out_channels=width,
                    kernel=1,
                ),
                elementwise(f"{stage}.sum", elements=words),
            ]
        for op, count in ops.items():
            repeat, name = CELLS_PER_STAGE * count, f"{stage}.{op}"
            if not count or op == "skip_connect":
                continue
            if op == "none":
                rows.append(elementwise(name, elements=words, n_inputs=1, repeat=repeat))
            elif op == "avg_pool_3x3":
                rows.append(
                    pool(
                        name,
                        height=size,
                        width=size,
                        channels=width,
                        kernel=3,
                        stride=1,
                        padding="same",
                        repeat=repeat,
                    )
                )
            else:
                rows += _relu_conv(name, size, width, width, int(op[-1]), repeat=repeat)
        rows += [
            elementwise(f"{stage}.node2", elements=words, repeat=CELLS_PER_STAGE),
            elementwise(f"{stage}.node3", elements=words, n_inputs=3, repeat=CELLS_PER_STAGE),
        ]
    rows += [
        normalization("head.norm", elements=8 * 8 * 64, channels=64),
        elementwise("head.relu", elements=8 * 8 * 64, n_inputs=1),
        pool("head.mean", height=8, width=8, channels=64, kernel=8),
        dense("head.classes", in_features=64, out_features=10),
    ]
    return Layers.from_rows(rows)
