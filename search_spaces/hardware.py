"""The accelerator's own decisions, and from choices to configurations of the hardware model.

`SPACE` is the systolic family's; `FAMILIES` has all that can be searched. A processor or a device
known by its measurements leaves nothing to choose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hwmodel import DEVICES, edge, fpga, spatial
from hwmodel.config import Configs, ConfigTable
from search_spaces.space import Choices, Decision, Space

KIB = 1024

SPACE = Space(
    [
        Decision("hw.rows", (8, 16, 32, 64, 128, 256)),
        Decision("hw.columns", (8, 16, 32, 64, 128, 256)),
        Decision("hw.dataflow", ("os", "ws", "is")),
        # a second plane of weights, loaded while the first computes
        Decision("hw.weight_plane", (False, True), {"hw.dataflow": ("ws",)}),
        Decision("hw.multiplier", ("fixed8", "fixed16", "composable", "bit-serial")),
        Decision("hw.sram_input_kib", (16, 64, 256, 1024)),
        Decision("hw.sram_weight_kib", (16, 64, 256, 1024)),
        Decision("hw.sram_output_kib", (16, 64, 256, 1024)),
        Decision("hw.bandwidth_gbps", (4, 16, 64, 256)),
        Decision("hw.clock_mhz", (200, 400, 700, 940)),
        # whether multiplications by a weight of zero are passed over
        Decision("hw.skips_zeros", (False, True), usual=()),
    ]
)


def configs(columns: Mapping[str, Sequence | np.ndarray]) -> Configs:
    """Systolic accelerators from decision name -> one value each; units as in the names.

    The vector unit is as wide as what leaves the array: one lane a column.
    """
    column = {name: np.asarray(values) for name, values in columns.items()}
    return Configs(
        rows=column["hw.rows"],
        columns=column["hw.columns"],
        dataflow=column["hw.dataflow"],
        double_weight_plane=column["hw.weight_plane"] & (column["hw.dataflow"] == "ws"),
        multiplier=column["hw.multiplier"],
        sram_input_bytes=column["hw.sram_input_kib"] * KIB,
        sram_weight_bytes=column["hw.sram_weight_kib"] * KIB,
        sram_output_bytes=column["hw.sram_output_kib"] * KIB,
        dram_bandwidth=column["hw.bandwidth_gbps"] * 1e9,
        clock_hz=column["hw.clock_mhz"] * 1e6,
        vector_lanes=column["hw.columns"],
        skips_zeros=column["hw.skips_zeros"],
    )


SPATIAL_SPACE = Space(
    [
        Decision("hw.rows", (8, 12, 16, 24, 32)),
        Decision("hw.columns", (8, 14, 16, 24, 32)),
        Decision("hw.input_words", (12, 24, 48)),
        Decision("hw.filter_words", (112, 224, 448)),
        Decision("hw.sum_words", (16, 24, 32)),
        Decision("hw.buffer_kib", (54, 108, 216)),
        Decision("hw.bandwidth_gbps", (0.5, 1, 4, 16)),
        Decision("hw.clock_mhz", (200, 400, 700)),
    ]
)


def spatial_configs(columns: Mapping[str, Sequence | np.ndarray]) -> spatial.Configs:
    """Row-stationary accelerators, as `configs`."""
    column = {name: np.asarray(values) for name, values in columns.items()}
    return spatial.Configs(
        rows=column["hw.rows"],
        columns=column["hw.columns"],
        input_words=column["hw.input_words"],
        filter_words=column["hw.filter_words"],
        sum_words=column["hw.sum_words"],
        buffer_bytes=column["hw.buffer_kib"] * KIB,
        dram_bandwidth=column["hw.bandwidth_gbps"] * 1e9,
        clock_hz=column["hw.clock_mhz"] * 1e6,
        technology_nm=DEVICES["eyeriss"].parameters["technology_nm"],
    )


# Zhou et al., arXiv 2102.08619, table 1
EDGE_SPACE = Space(
    [
        Decision("hw.pe_x", (1, 2, 4, 6, 8)),
        Decision("hw.pe_y", (1, 2, 4, 6, 8)),
        Decision("hw.simd_units", (16, 32, 64, 128)),
        Decision("hw.lanes", (1, 2, 4, 8)),
        Decision("hw.local_memory_kib", (512, 1024, 2048, 3072, 4096)),
        Decision("hw.register_file_kib", (8, 16, 32, 64, 128)),
        Decision("hw.io_gbps", (5, 10, 15, 20, 25)),
    ]
)


def edge_configs(columns: Mapping[str, Sequence | np.ndarray]) -> edge.Configs:
    """Accelerators of the edge family, as `configs`; clock and node are the baseline's."""
    column = {name: np.asarray(values) for name, values in columns.items()}
    baseline = DEVICES["edge-nahas"].parameters
    return edge.Configs(
        pe_x=column["hw.pe_x"],
        pe_y=column["hw.pe_y"],
        simd_units=column["hw.simd_units"],
        lanes=column["hw.lanes"],
        local_memory_bytes=column["hw.local_memory_kib"] * KIB,
        register_file_bytes=column["hw.register_file_kib"] * KIB,
        io_bandwidth=column["hw.io_gbps"] * 1e9,
        clock_hz=baseline["clock_hz"],
        technology_nm=baseline["technology_nm"],
    )


# The choices of CHaiDNN as in Abdelfattah et al. (DAC 2020)
FPGA_SPACE = Space(
    [
        Decision("hw.filter_parallelism", (8, 16)),
        Decision("hw.pixel_parallelism", (4, 8, 16, 32, 64)),
        Decision("hw.input_buffer_words", (1024, 2048, 4096, 8192)),
        Decision("hw.weight_buffer_words", (1024, 2048, 4096, 8192)),
        Decision("hw.output_buffer_words", (1024, 2048, 4096, 8192)),
        Decision("hw.memory_bits", (256, 512)),
        Decision("hw.pooling_engine", (False, True)),
    ]
)


def fpga_configs(columns: Mapping[str, Sequence | np.ndarray]) -> fpga.Configs:
    """Shared engines on the chip of the ZCU102, whose slices and blocks bound them, as
    `configs`."""
    chosen = {name.removeprefix("hw."): np.asarray(values) for name, values in columns.items()}
    return fpga.Configs(**DEVICES["zcu102"].parameters | chosen)


class Family(NamedTuple):
    """What can be chosen of a family's accelerators, and from columns of choices to them."""

    space: Space
    configs: Callable[[Mapping[str, Sequence | np.ndarray]], ConfigTable]


FAMILIES = {
    "systolic": Family(SPACE, configs),
    "spatial": Family(SPATIAL_SPACE, spatial_configs),
    "edge": Family(EDGE_SPACE, edge_configs),
    "fpga": Family(FPGA_SPACE, fpga_configs),
}


def family_of(names: Iterable[str]) -> Family:
    """The first family that has all of the decisions named; names without "hw." are passed over.

    Raises ValueError where decisions of several families are mixed.
    """
    asked = {name for name in names if name.startswith("hw.")}
    for family in FAMILIES.values():
        if asked <= set(family.space.names):
            return family
    raise ValueError(
        f"no accelerator family has all of {', '.join(sorted(asked))}; take one family's decisions "
        f"of {', '.join(FAMILIES)}"
    )


def configs_of(designs: Sequence[Choices]) -> ConfigTable:
    """The accelerator of each design, all of one family."""
    family = family_of({name for design in designs for name in design})
    return family.configs(
        {d.name: [c.get(d.name, d.values[0]) for c in designs] for d in family.space.decisions}
    )


def every(space: Space) -> tuple[Space, np.ndarray, ConfigTable]:
    """Every accelerator of a joint space: its hardware decisions, their encodings [n, decisions],
    and the n configurations."""
    hardware = Space([d for d in space.decisions if d.name.startswith("hw.")])
    family = family_of(hardware.names)
    encodings = hardware.enumerate()
    columns = {
        d.name: np.array(d.values)[encodings[:, i]] for i, d in enumerate(hardware.decisions)
    }
    for decision in family.space.decisions:  # what a smaller space leaves out has its first value
        columns.setdefault(decision.name, np.full(len(encodings), decision.values[0]))
    return hardware, encodings, family.configs(columns)
