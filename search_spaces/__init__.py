"""What can be chosen: the network families and the other groups of decisions."""

from __future__ import annotations

from search_spaces import cell, hardware, mobile, nasnet, precision, training
from search_spaces.space import Choices, Decision, Space

# name -> module with SPACE, network(choices), build(choices), layers(choices)
FAMILIES = {"cell": cell, "nasnet": nasnet, "mobile": mobile}


def joint(family: str, accelerators: str = "systolic") -> Space:
    """Network, bit-widths, batch sizes and accelerator, in one space; `accelerators` is a family of
    `hardware.FAMILIES`."""
    chosen = hardware.FAMILIES[accelerators].space
    return FAMILIES[family].SPACE + precision.SPACE + training.SPACE + chosen


__all__ = ["FAMILIES", "Choices", "Decision", "Space", "joint"]
