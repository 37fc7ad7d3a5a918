"""The named devices: where their parameters come from, and one technology node each."""

from __future__ import annotations

from typing import NamedTuple

from hwmodel.config import Configs, ConfigTable, nearest


class Device(NamedTuple):
    """A named accelerator: where its parameters come from, its family's `Configs` and their
    values."""

    provenance: str
    configs: type[ConfigTable]
    parameters: dict


DEVICES = {
    "systolic-edge-16": Device(
        "A reference point, not a product: the default size of the Gemmini generator (Genc et al., "
        "DAC 2021: 16 x 16 int8, 256 KiB scratchpad, 64 KiB accumulators) with one LPDDR4 channel. "
        "45 nm, the node of the energy table.",
        Configs,
        dict(
            rows=16,
            columns=16,
            dataflow="ws",
            sram_input_bytes=128 * 1024,
            sram_weight_bytes=128 * 1024,
            sram_output_bytes=64 * 1024,
            dram_bandwidth=8e9,
            clock_hz=500e6,
            double_weight_plane=True,
            multiplier="fixed8",
            vector_lanes=16,
            depthwise_on="array",
            skips_zeros=False,
            technology_nm=45,
            activations_on_chip=False,
        ),
    ),
    "tpu-v1": Device(
        "Jouppi et al., ISCA 2017: 256 x 256 8-bit array at 700 MHz, 24 MiB unified buffer and "
        "4 MiB accumulators, four 64 KiB tiles of weight FIFO, 34 GB/s of weight memory, 28 nm. "
        "The width of the vector unit is not published; one lane per column is assumed.",
        Configs,
        dict(
            rows=256,
            columns=256,
            dataflow="ws",
            sram_input_bytes=24 * 2**20,
            sram_weight_bytes=4 * 64 * 1024,
            sram_output_bytes=4 * 2**20,
            dram_bandwidth=34e9,
            clock_hz=700e6,
            double_weight_plane=True,
            multiplier="fixed8",
            vector_lanes=256,
            depthwise_on="array",
            skips_zeros=False,
            technology_nm=28,
            activations_on_chip=True,
        ),
    ),
}


def device(name: str) -> ConfigTable:
    """The accelerator of that name as its family's `Configs`, of length 1; `DEVICES` says where it
    is from.

    Raises ValueError for an unknown name, with the nearest name and the whole list.
    """
    if name not in DEVICES:
        raise ValueError(
            f"unknown device {name!r}; {nearest(name, DEVICES)}the devices are {', '.join(DEVICES)}"
        )
    return DEVICES[name].configs(**DEVICES[name].parameters)
