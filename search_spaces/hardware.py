"""The accelerator's own decisions, and from choices to configurations of the hardware model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hwmodel.config import Configs
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
    )


def configs_of(designs: Sequence[Choices]) -> Configs:
    """The accelerator of each design."""
    return configs({d.name: [c.get(d.name, d.values[0]) for c in designs] for d in SPACE.decisions})


def every(space: Space) -> tuple[Space, np.ndarray, Configs]:
    """Every accelerator of a joint space: its hardware decisions, their encodings [n, decisions],
    and the n configurations."""
    hardware = Space([d for d in space.decisions if d.name.startswith("hw.")])
    encodings = hardware.enumerate()
    columns = {
        d.name: np.array(d.values)[encodings[:, i]] for i, d in enumerate(hardware.decisions)
    }
    columns.setdefault("hw.weight_plane", np.zeros(len(encodings), bool))
    return hardware, encodings, configs(columns)
