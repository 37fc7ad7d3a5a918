"""What can be chosen: the network families and the other groups of decisions."""

from __future__ import annotations

from search_spaces import (
    cell,
    compression,
    hardware,
    mobile,
    nasnet,
    precision,
    recurrent,
    training,
)
from search_spaces.space import Choices, Decision, Space

# name -> module with SPACE, network(choices), build(choices), layers(choices)
IMAGES = {"cell": cell, "nasnet": nasnet, "mobile": mobile}
TEXTS = {"recurrent": recurrent}
FAMILIES = IMAGES | TEXTS


def joint(family: str, accelerators: str = "systolic") -> Space:
    """Network, bit-widths, compression, batch sizes and accelerator, in one space.

    accelerators: a family of `hardware.FAMILIES`.
    """
    if family in TEXTS:
        around = training.TEXT_SPACE
    else:
        around = precision.SPACE + compression.SPACE + training.SPACE
    return FAMILIES[family].SPACE + around + hardware.FAMILIES[accelerators].space


__all__ = ["FAMILIES", "IMAGES", "TEXTS", "Choices", "Decision", "Space", "joint"]
