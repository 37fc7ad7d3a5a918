"""Figures of `hardware_model.py` that need no fit: the simulator's runs, TPU v1, and clusters."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from benchmarks.measured_networks import read
from hwmodel import Layers, cluster, device, price
from hwmodel.config import DATAFLOWS
from hwmodel.counters import matrix_counters
from hwmodel.simulated_memory import (
    MappedProduct,
    active_words,
    limited_dram_words,
    total_cycles,
    unlimited_dram_words,
)
from hwmodel.sliding import overlap, pass_fetches, window_fetches
from hwmodel.systolic import dram_refetches
from hwmodel.training import training_step
from hwmodel.windows import Windows
from hwmodel.workload import conv, dense, elementwise, pool

Line = tuple[str, str, str]
READS = ["if_dram_rd", "fl_dram_rd"]
WORDS = [*READS, "of_dram_wr"]


def mapped_product(run) -> MappedProduct:
    """One row of the simulator's runs, SRAMs of one-byte words."""
    return MappedProduct(
        run.dataflow,
        run.M,
        run.K,
        run.N,
        run.R,
        run.Ccol,
        *(1024 * size for size in (run.sram_if_kb, run.sram_fl_kb, run.sram_of_kb)),
    )


def window_of(run) -> Windows:
    """The simulator's window: its last output may reach past the input, where it reads no more."""
    out = round(run.M**0.5)
    inside = min(out, -(-run.ifm_h // run.stride))
    reach = min((out - 1) * min(run.stride, run.f_h) + run.f_h, run.ifm_h)
    side = inside if run.f_h == 1 else reach
    return Windows(run.f_h, run.f_w, out, out, run.stride, run.stride, side * side)


def inside_of(run) -> np.ndarray | None:
    """[M, K] the words of windows that lie in the input, where some reach past it."""
    out = round(run.M**0.5) if run.kind == "conv" else 1
    if (out - 1) * run.stride + run.f_h <= run.ifm_h:
        return None
    rows = np.arange(out)[:, None] * run.stride + np.arange(run.f_h) < run.ifm_h  # [out, kernel]
    taps = rows[:, None, :, None] & rows[None, :, None, :]
    return np.repeat(taps.reshape(run.M, -1), run.C_in, axis=1)


def unlimited_words(run) -> tuple[float, float, float]:
    """DRAM words of one run at unlimited bandwidth."""
    mapped = mapped_product(run)
    if run.kind == "gemm":
        return unlimited_dram_words(mapped, run.M * run.K)
    window = window_of(run)
    words = unlimited_dram_words(mapped, window.touched * run.C_in)
    if run.f_h == 1:
        return words
    return words._replace(
        inputs=window_fetches(
            run.dataflow,
            window,
            run.C_in,
            run.R,
            run.Ccol,
            mapped.folds[1],
            active_words(mapped.input_sram) - 1,
        )
    )


def relative_errors(counted, measured) -> np.ndarray:
    counted, measured = np.asarray(counted, dtype=float), np.asarray(measured, dtype=float)
    return np.abs(counted - measured) / measured


def simulator() -> Iterator[Line]:
    """Cycles and DRAM words of SCALE-Sim's runs."""
    runs = read("systolic_golden.csv.gz")
    if runs is None:
        yield "systolic_golden.csv.gz", "data not found", ""
        return
    runs["window"] = (runs.kind == "conv") & (runs.f_h > 1)
    exact = sum(mapped_product(run).compute_cycles == run.demand_lines for run in runs.itertuples())
    yield f"SCALE-Sim compute cycles, {len(runs)} runs", f"{exact} exact", "every run exact"
    yield from unlimited_figures(runs[runs.bw_mode == "CALC"])
    yield from limited_figures(runs[runs.bw_mode == "USER"])


def unlimited_figures(runs: pd.DataFrame) -> Iterator[Line]:
    words = np.array([unlimited_words(run) for run in runs.itertuples()])
    simulated, window = runs[WORDS].to_numpy(float), runs.window.to_numpy()
    exact = (words == simulated).all(axis=1)[~window]
    yield (
        f"SCALE-Sim DRAM words, unlimited bandwidth, {len(exact)} products and 1x1",
        f"{exact.sum()} exact",
        "every run exact",
    )
    errors = relative_errors(words, simulated)[window]
    both = relative_errors(words[window].sum(axis=1), simulated[window].sum(axis=1))
    by_flow = ", ".join(
        f"{flow} {100 * errors[runs.dataflow[window] == flow, 0].mean():.1f} %"
        for flow in DATAFLOWS
    )
    yield (
        f"SCALE-Sim DRAM words, unlimited bandwidth, {window.sum()} k x k convolutions",
        f"mean error {100 * errors[:, 0].mean():.2f} % of inputs ({by_flow}), "
        f"{100 * both.mean():.2f} % of all words",
        "3 %",
    )
    priced = [priced_inputs(run) for run in runs[window].itertuples()]
    yield (
        "the same in `price`, a few operations a pair",
        f"mean error {100 * relative_errors(priced, simulated[window, 0]).mean():.2f} % of inputs",
        "",
    )


def priced_inputs(run) -> float:
    """Input words of a k x k convolution as `price` counts them, with the simulator's SRAM."""
    mapped, window = mapped_product(run), window_of(run)
    touched, half = window.touched * run.C_in, active_words(mapped.input_sram) - 1
    windows = overlap(1, run.M, run.K, run.f_h, run.f_w, window.out_height, touched)
    each = pass_fetches(run.dataflow, windows, 1 / run.R, 1 / run.Ccol, half)
    refetches, _ = dram_refetches(
        run.dataflow, touched, 0, 0, half, 0, *mapped.folds, pass_fetches=each
    )
    return touched * refetches


def limited_figures(runs: pd.DataFrame) -> Iterator[Line]:
    products = [mapped_product(run) for run in runs.itertuples()]
    insides = [inside_of(run) for run in runs.itertuples()]
    words = np.array(
        [limited_dram_words(*each) for each in zip(products, runs.bw_words, insides, strict=True)]
    )
    window = runs.window.to_numpy()
    reads = (words[:, :2] == runs[READS].to_numpy()).all(axis=1)
    writes = relative_errors(words[:, 2], runs.of_dram_wr)
    yield (
        f"SCALE-Sim DRAM words, limited bandwidth, {(~window).sum()} products and 1x1",
        f"{reads[~window].sum()} exact in reads, writes within {100 * writes.max():.2f} % "
        "(padded bursts)",
        "every run exact",
    )
    errors = relative_errors(words.sum(axis=1), runs[WORDS].sum(axis=1))[window]
    yield (
        f"SCALE-Sim DRAM words, limited bandwidth, {window.sum()} k x k convolutions",
        f"{reads[window].sum()} exact in reads, mean error {100 * errors.mean():.2f} % "
        "of all words",
        "3 %",
    )
    cycles = np.array(
        [total_cycles(*each) for each in zip(products, runs.bw_words, insides, strict=True)]
    )
    simulated = runs.total_cycles.to_numpy() + 1  # the index of the last cycle
    errors = relative_errors(cycles, simulated)
    yield (
        f"SCALE-Sim total cycles at limited bandwidth, {len(runs)} runs",
        f"mean error {100 * errors.mean():.2f} %, 95th percentile "
        f"{100 * np.quantile(errors, 0.95):.1f} %, tau {kendalltau(cycles, simulated)[0]:.4f}",
        "2 %, 10 %, tau .98",
    )


class Program(NamedTuple):
    """A program of TPU v1: what it runs, and its counters as published (Jouppi et al., ISCA 2017,
    tables 1 and 3)."""

    weights: float
    batch: int
    activation_bits: int
    published: tuple[float, float, float]  # active, shift, stall, % of all cycles


# The LSTMs' published TOPS are half of what their useful cycles would give at full speed, the speed
# of 16-bit activations (8.2 % of 92 TOPS is 7.5, and 3.7 are measured).
PROGRAMS = {
    "MLP0": Program(20e6, 200, 8, (12.7, 15.9, 53.9)),
    "MLP1": Program(5e6, 168, 8, (10.6, 13.4, 44.2)),
    "LSTM0": Program(52e6, 64, 16, (8.2, 15.8, 58.1)),
    "LSTM1": Program(34e6, 96, 16, (10.5, 17.1, 62.1)),
}
CNN0_TOPS = 86.0
SIDE = 1024  # of a program's square layers, whole tiles of weights


def program_layers(name: str) -> Layers:
    program = PROGRAMS[name]
    return Layers.from_rows(
        [
            dense(
                name,
                in_features=SIDE,
                out_features=SIDE,
                batch=program.batch,
                activation_bits=program.activation_bits,
                repeat=round(program.weights / SIDE**2),
            )
        ]
    )


def cnn0_layers() -> Layers:
    """8M weights used 2,888 times each: 8 boards of 19 x 19, 3 x 3 kernels."""
    repeat = round(8e6 / (9 * 256 * 256))
    return Layers.from_rows(
        [
            conv(
                "CNN0",
                height=19,
                width=19,
                in_channels=256,
                out_channels=256,
                kernel=3,
                batch=8,
                repeat=repeat,
            )
        ]
    )


def tpu_v1() -> Iterator[Line]:
    """How TPU v1 spends its matrix cycles, nothing fitted."""
    config = device("tpu-v1")
    for name, program in PROGRAMS.items():
        shares = 100 * matrix_counters(program_layers(name), config).shares[0]
        published = 100 * np.array(program.published) / sum(program.published)
        yield (
            f"TPU v1 {name}, active : shift : stall of the matrix cycles",
            f"{shares[0]:.1f} : {shares[1]:.1f} : {shares[2]:.1f} %, published "
            f"{published[0]:.1f} : {published[1]:.1f} : {published[2]:.1f} %, "
            f"worst {np.abs(shares - published).max():.1f} points",
            "4 points",
        )
    layers = cnn0_layers()
    tops = 2 * layers.macs[0] / price(layers, config).latency_s[0, 0] / 1e12
    yield (
        "TPU v1 CNN0",
        f"{tops:.1f} TOPS, published {CNN0_TOPS}, {100 * abs(tops / CNN0_TOPS - 1):.1f} %",
        "8 %",
    )


def resnet50(batch: int) -> Layers:
    """He et al., CVPR 2016, table 1, stride in the 3 x 3 convolutions."""
    rows = [
        conv(
            "stem",
            height=224,
            width=224,
            in_channels=3,
            out_channels=64,
            kernel=7,
            stride=2,
            padding=3,
        ),
        pool("pool", height=112, width=112, channels=64, kernel=3, stride=2, padding=1),
    ]
    channels, side = 64, 56
    for stage, (blocks, middle) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        out = 4 * middle
        for block in range(blocks):
            name, stride = f"{stage}.{block}", 2 if stage and not block else 1
            at = dict(height=side, width=side)
            if not block:
                rows.append(
                    conv(
                        f"{name}.shortcut",
                        **at,
                        in_channels=channels,
                        out_channels=out,
                        kernel=1,
                        stride=stride,
                    )
                )
            rows.append(
                conv(f"{name}.a", **at, in_channels=channels, out_channels=middle, kernel=1)
            )
            rows.append(
                conv(
                    f"{name}.b",
                    **at,
                    in_channels=middle,
                    out_channels=middle,
                    kernel=3,
                    stride=stride,
                )
            )
            side //= stride
            rows.append(
                conv(
                    f"{name}.c",
                    height=side,
                    width=side,
                    in_channels=middle,
                    out_channels=out,
                    kernel=1,
                )
            )
            rows.append(elementwise(f"{name}.add", elements=side * side * out))
            channels = out
    rows.append(pool("average", height=side, width=side, channels=channels, kernel=side))
    rows.append(dense("head", in_features=channels, out_features=1000, bias=True))
    return Layers.from_rows(rows).with_batch(batch)


# TPU v2: 496 Gb/s a link and direction (Jouppi et al., CACM 63(7), 2020); ResNet-50 took 1,402
# minutes for 90 epochs of ImageNet on one chip. The batch a chip is that of the reference code.
TPU_V2_LINK = 496e9 / 8
TPU_V2_IMAGES_PER_S = 90 * 1_281_167 / (1402 * 60)
TPU_V2_BATCH = 128
FLOAT_BYTES = 4
# Goyal et al., arXiv 1706.02677: 8 P100 a server, 50 Gb/s Ethernet, 32 images a GPU, 120 ms
# backward. NVLink inside the server: 20 GB/s a link and direction.
P100_BACKWARD_S, P100_GRADIENTS, P100_LINK, ETHERNET = 0.12, 100e6, 20e9, 50e9 / 8


def scaling() -> Iterator[Line]:
    """ResNet-50 on many devices, communication by formula, no stragglers."""
    network = resnet50(TPU_V2_BATCH)
    step = training_step(network)
    forward_share = network.macs[0] / step.layers.macs[0]
    one_s = TPU_V2_BATCH / TPU_V2_IMAGES_PER_S
    gradients = FLOAT_BYTES * network.params[0]
    times = []
    for hidden in (0.0, 1.0):
        step_s = cluster.synchronous_step_s(
            forward_share * one_s,
            (1 - forward_share) * one_s,
            cluster.ring_all_reduce_s(32, gradients, TPU_V2_LINK),
            32,
            overlap=hidden,
        )
        times.append(cluster.speedup(32, one_s, step_s))
    yield (
        "ResNet-50 on 32 TPU v2 over 1",
        f"{times[0]:.1f} times without overlap ({100 * abs(times[0] / 31.2 - 1):.1f} %), "
        f"{times[1]:.1f} with all of it; measured 31.2",
        "5 %",
    )
    efficiency = []
    for hidden in (0.0, 1.0):
        steps = [
            cluster.synchronous_step_s(
                P100_BACKWARD_S / 2,
                P100_BACKWARD_S,
                cluster.hierarchical_all_reduce_s(servers, 8, P100_GRADIENTS, P100_LINK, ETHERNET),
                8 * servers,
                overlap=hidden,
            )
            for servers in (1, 32)
        ]
        efficiency.append(steps[0] / steps[1])
    yield (
        "ResNet-50 from 8 to 256 P100, efficiency",
        f"{100 * efficiency[0]:.0f} % without overlap, {100 * efficiency[1]:.0f} % with all of it; "
        "measured about 90 %",
        "",
    )
