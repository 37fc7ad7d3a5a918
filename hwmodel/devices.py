"""The named devices: where their parameters come from, and one technology node each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from hwmodel import config, measured
from hwmodel.config import Configs, ConfigTable, nearest


class Device(NamedTuple):
    """A named accelerator: where its parameters come from, its family's `Configs` and their
    values."""

    provenance: str
    configs: type[ConfigTable]
    parameters: dict


# family -> the class of its accelerators
CONFIGS = {each.FAMILY: each for each in (config.Configs, measured.Configs)}

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


def device(name: str | Path) -> ConfigTable:
    """The accelerator of that name as its family's `Configs`, of length 1; `DEVICES` says where it
    is from. A name that ends in .json is a device file, as `save_device` writes it.

    Raises ValueError for an unknown name, with the nearest name and the whole list, and for a file
    that is missing or holds no device.
    """
    if str(name).endswith(".json"):
        found = load_device(name)
    elif name in DEVICES:
        found = DEVICES[name]
    else:
        raise ValueError(
            f"unknown device {name!r}; {nearest(name, DEVICES)}the devices are "
            f"{', '.join(DEVICES)}, or a device file that ends in .json"
        )
    return found.configs(**found.parameters)


def save_device(path: str | Path, configs: ConfigTable, provenance: str) -> None:
    """Write the one accelerator of `configs` as a device file, which `device` reads.

    Raises ValueError for several accelerators, and for a path that does not end in .json.
    """
    path = Path(path)
    if len(configs) != 1 or path.suffix != ".json":
        raise ValueError(
            f"a device file holds one accelerator and ends in .json, got {len(configs)} and "
            f"{str(path)!r}"
        )
    table = {
        "family": configs.FAMILY, "provenance": provenance, "parameters": configs.row(0)
    }
    unfinished = path.with_suffix(".json.part")
    unfinished.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)


def load_device(path: str | Path) -> Device:
    """The device in a file. Raises ValueError that names the file and what is wrong with it."""
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
        found = Device(table["provenance"], CONFIGS[table["family"]], table["parameters"])
        found.configs(**found.parameters)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{str(path)!r} is not a device file ({type(error).__name__}: {error}); write one with "
            "save_device, of a family among " + ", ".join(CONFIGS)
        ) from error
    return found
