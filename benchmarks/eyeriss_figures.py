"""Eyeriss running AlexNet, against what its designers measured.

Published per layer at batch 4 in Chen et al., JSSC 2017, table V: milliseconds of processing,
milliwatts of the chip, elements at work, the share of inputs that is zero, and megabytes to and
from DRAM, which there are compressed and here are not.
"""

from collections.abc import Iterator

import numpy as np

from hwmodel import Cost, Layers, device, price, spatial
from hwmodel.workload import conv

ALEXNET = Layers.from_rows(
    [
        conv(
            name,
            height=size,
            width=size,
            in_channels=inputs,
            out_channels=outputs,
            kernel=kernel,
            stride=stride,
            padding=padding,
            groups=groups,
            batch=4,
            weight_bits=16,
            activation_bits=16,
        )
        for name, size, inputs, outputs, kernel, stride, padding, groups in (
            ("C1", 227, 3, 96, 11, 4, "valid", 1),
            ("C2", 27, 96, 256, 5, 1, 2, 2),
            ("C3", 13, 256, 384, 3, 1, 1, 1),
            ("C4", 13, 384, 384, 3, 1, 1, 2),
            ("C5", 13, 384, 256, 3, 1, 1, 2),
        )
    ]
).as_networks()
ALEXNET_MS = np.array([16.5, 39.2, 21.8, 16.0, 10.0])
ALEXNET_MW = np.array([332, 288, 266, 235, 236])
ALEXNET_ACTIVE = np.array([154, 135, 156, 156, 156])
ALEXNET_ZEROS = np.array([0.0001, 0.387, 0.725, 0.793, 0.776])  # recalled
ALEXNET_DRAM_MB = np.array([5.0, 4.0, 3.0, 2.1, 1.3])


def eyeriss_alexnet() -> tuple[Cost, spatial.Configs]:
    """Each layer as a network of its own, on a chip that meets that layer's zeros."""
    chips = spatial.Configs(**device("eyeriss").row(0) | {"activation_density": 1 - ALEXNET_ZEROS})
    return price(ALEXNET, chips, "paired"), chips


def on_chip_mw(cost: Cost) -> np.ndarray:
    """Power of everything but DRAM."""
    return (cost.energy_j - cost.dram_j) / cost.latency_s * 1e3


def eyeriss() -> Iterator[tuple[str, str, str]]:
    """Lines of `hardware_model.py`."""
    cost, chips = eyeriss_alexnet()
    errors = cost.latency_s * 1e3 / ALEXNET_MS - 1
    layers = ", ".join(
        f"{name} {100 * error:+.1f}" for name, error in zip(ALEXNET.names, errors, strict=True)
    )
    yield (
        "Eyeriss AlexNet, latency of each layer",
        f"mean error {100 * np.abs(errors).mean():.1f} % ({layers})",
        "4 %",
    )
    power = on_chip_mw(cost) / ALEXNET_MW - 1
    yield (
        "Eyeriss AlexNet, power of each layer, one constant set to their mean",
        f"mean error {100 * np.abs(power).mean():.1f} %, largest {100 * np.abs(power).max():.1f} %",
        "10 %",
    )
    active = spatial.active_elements(spatial.work_of(ALEXNET), spatial.machines(chips))
    traffic = ", ".join(f"{mb:.1f}" for mb in cost.dram_bytes / 1e6)
    yield (
        "Eyeriss AlexNet, active elements; DRAM megabytes, not compressed",
        f"{int((active == ALEXNET_ACTIVE).sum())} of {len(active)} as published; {traffic} "
        f"(published, compressed: {', '.join(map(str, ALEXNET_DRAM_MB))})",
        "",
    )
