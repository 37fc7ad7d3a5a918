"""The accelerator's own decisions, and from choices to configurations of the hardware model."""

from __future__ import annotations

from collections.abc import Sequence

from hwmodel.config import Configs
from search_spaces.space import Choices, Decision, Space

KIB = 1024

SPACE = Space([
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
])


def configs(choices: Sequence[Choices]) -> Configs:
    """One systolic accelerator a design; units as in the decisions' names (GB/s, MHz, KiB)."""

    def column(name, default=None):
        return [c.get(f"hw.{name}", default) for c in choices]

    def scaled(name, factor):
        return [c[f"hw.{name}"] * factor for c in choices]

    return Configs(
        rows=column("rows"),
        columns=column("columns"),
        dataflow=column("dataflow"),
        double_weight_plane=column("weight_plane", False),
        multiplier=column("multiplier"),
        sram_input_bytes=scaled("sram_input_kib", KIB),
        sram_weight_bytes=scaled("sram_weight_kib", KIB),
        sram_output_bytes=scaled("sram_output_kib", KIB),
        dram_bandwidth=scaled("bandwidth_gbps", 1e9),
        clock_hz=scaled("clock_mhz", 1e6),
    )
