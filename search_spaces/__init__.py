"""What can be chosen: the network families and the other groups of decisions."""

from __future__ import annotations

from search_spaces import cell, compression, hardware, mobile, nasnet, precision, training
from search_spaces.space import Choices, Decision, Space

# name -> module with SPACE, network(choices), build(choices), layers(choices)
FAMILIES = {"cell": cell, "nasnet": nasnet, "mobile": mobile}


def joint(family: str, accelerators: str = "systolic") -> Space:
    """Network, bit-widths, compression, batch sizes and accelerator, in one space.

    accelerators: a family of `hardware.FAMILIES`.
    """
    network = FAMILIES[family].SPACE + precision.SPACE + compression.SPACE
    return network + training.SPACE + hardware.FAMILIES[accelerators].space


__all__ = ["FAMILIES", "Choices", "Decision", "Space", "joint"]
