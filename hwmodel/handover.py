"""What another simulator can be given of a network and a systolic accelerator: plain products.

`hwmodel.scalesim` and `hwmodel.zigzag` write them in the simulators' own formats. What neither can
be told is listed as differences, which stand as comments in the files.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hwmodel.config import Configs
from hwmodel.rows import runs_on_array
from hwmodel.workload import Layers


class Product(NamedTuple):
    """A matrix product M x K x N, run `count` times one after the other."""

    name: str
    m: int
    k: int
    n: int
    count: int
    weight_bits: int
    activation_bits: int
    output_bits: int


def products_of(layers: Layers, config: Configs) -> list[Product]:
    """The products that the accelerator's array runs for one network, in order.

    A row of groups, sequential steps or repeats is one product with their count. Raises ValueError
    for more than one network or accelerator, for one of another family, and where no row runs on
    the array.
    """
    if not isinstance(config, Configs) or len(config) != 1 or layers.n_networks != 1:
        raise ValueError(
            "hand over one network and one systolic accelerator, got "
            f"{layers.n_networks} networks and {config!r}; pick them with layers.network(i) and "
            "configs[i]"
        )
    on_array = np.flatnonzero(runs_on_array(layers, config.depthwise_on[0]))
    if not len(on_array):
        raise ValueError(f"no row runs on the array, got {', '.join(layers.names)}")
    return [
        Product(
            str(layers.names[row]),
            int(layers.m[row] // layers.steps[row]),
            int(layers.k[row]),
            int(layers.n[row]),
            int(layers.groups[row] * layers.steps[row] * layers.repeat[row]),
            int(layers.weight_bits[row]),
            int(layers.activation_bits[row]),
            int(layers.output_bits[row]),
        )
        for row in on_array
    ]


def differences(layers: Layers, config: Configs) -> list[str]:
    """What a simulator of plain products leaves out, one sentence each."""
    notes = []
    vector = ~runs_on_array(layers, config.depthwise_on[0])
    if vector.any():
        notes.append(f"left out, for the vector unit: {', '.join(layers.names[vector])}")
    if (layers.density < 1).any():
        notes.append("sparse weights are taken as dense")
    if layers.index_bits.any():
        notes.append("weights with a codebook are taken as plain")
    if ((layers.m * layers.k) > layers.input_words)[~vector].any():
        notes.append("windows are unfolded: inputs that they share are counted once a window")
    return notes


def dram_bytes_per_cycle(config: Configs) -> float:
    return float(config.dram_bandwidth[0] / config.clock_hz[0])
