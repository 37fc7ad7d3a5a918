"""Area by component: processing elements, SRAMs, vector unit.

Adders and multipliers are Horowitz's at 45 nm (ISSCC 2014; recalled from the paper). He has neither
SRAM nor flip-flops: the SRAM is CACTI 7.0's (Balasubramonian et al., TACO 2017; run for a 64-bit
RAM of 45 nm LSTP cells with ECC: 3.48, 3.51 and 3.19 µm² a byte at 16 KiB, 1 MiB and 8 MiB), and a
flip-flop is Aladdin's at 40 nm (Shao et al., ISCA 2014). Wires, control and pads are not counted,
so a real die is larger. Other nodes are the 45 nm table scaled by `area_scale`.
"""

from __future__ import annotations

import numpy as np

from hwmodel.config import MULTIPLIERS, Configs
from hwmodel.figures import Areas

ADD_INT8_UM2, ADD_INT16_UM2, ADD_INT32_UM2 = 36.0, 67.0, 137.0
MULTIPLY_INT8_UM2 = 282.0
MULTIPLY_FP16_UM2, ADD_FP16_UM2, ADD_FP32_UM2 = 1640.0, 1360.0, 4184.0
REGISTER_UM2_PER_BIT = 5.98
SRAM_UM2_PER_BYTE = 3.5

# Multiplier and adders as in `energy.ELEMENT_PJ`; a multiplier's area grows with both widths.
ELEMENT_UM2 = {
    "fixed8": MULTIPLY_INT8_UM2 + ADD_INT32_UM2,
    "fixed16": 4 * MULTIPLY_INT8_UM2 + ADD_INT32_UM2,
    "bf16": MULTIPLY_FP16_UM2 + ADD_FP32_UM2,
    "composable": MULTIPLY_INT8_UM2 + 12 * ADD_INT8_UM2 + 3 * ADD_INT16_UM2 + ADD_INT32_UM2,
    "bit-serial": MULTIPLY_INT8_UM2 + 8 * ADD_INT16_UM2 + ADD_INT32_UM2,
}
# Width of the two operand registers; a sum register of 32 bits comes on top.
OPERAND_BITS = {"fixed8": 8, "fixed16": 16, "bf16": 16, "composable": 32, "bit-serial": 64}
ACCUMULATOR_BITS = 32
LANE_UM2 = MULTIPLY_FP16_UM2 + ADD_FP16_UM2 + 3 * 16 * REGISTER_UM2_PER_BIT


# A 6-transistor SRAM cell of each node, µm², as the foundries published them (65, 45 and 14 nm
# Intel, 28, 16 and 7 nm TSMC, 8 nm Samsung; recalled). Names of nodes are no lengths below 28 nm.
SRAM_CELL_UM2 = {65: 0.570, 45: 0.346, 28: 0.127, 16: 0.070, 14: 0.0499, 8: 0.040, 7: 0.027}
_NODES = np.array(sorted(SRAM_CELL_UM2))
_AREA_SCALES = np.array([SRAM_CELL_UM2[node] / SRAM_CELL_UM2[45] for node in sorted(SRAM_CELL_UM2)])
_ELEMENT_UM2 = np.array([ELEMENT_UM2[name] for name in MULTIPLIERS])
OPERAND_BITS_BY_CODE = np.array([OPERAND_BITS[name] for name in MULTIPLIERS])


def area_scale(technology_nm) -> np.ndarray:
    """Area relative to 45 nm, as SRAM cells scale; an estimate for logic."""
    return _AREA_SCALES[np.searchsorted(_NODES, technology_nm)]


def array_area_mm2(configs: Configs) -> np.ndarray:
    """[n_configs] the processing elements; a second weight plane is one operand register more."""
    style = configs.codes("multiplier")
    logic = _ELEMENT_UM2[style]
    operand_bits = OPERAND_BITS_BY_CODE[style] * (2 + configs.double_weight_plane)
    register_bits = operand_bits + ACCUMULATOR_BITS
    element = logic + register_bits * REGISTER_UM2_PER_BIT
    return configs.rows * configs.columns * element * area_scale(configs.technology_nm) * 1e-6


def vector_area_mm2(configs: Configs) -> np.ndarray:
    """[n_configs] the lanes of the vector unit, three operand registers each."""
    return configs.vector_lanes * LANE_UM2 * area_scale(configs.technology_nm) * 1e-6


def logic_area_mm2(configs: Configs) -> np.ndarray:
    """[n_configs] everything but the SRAMs."""
    return array_area_mm2(configs) + vector_area_mm2(configs)


def sram_area_mm2(configs: Configs) -> np.ndarray:
    """[n_configs] the three SRAMs."""
    sizes = configs.sram_input_bytes + configs.sram_weight_bytes + configs.sram_output_bytes
    return sizes * SRAM_UM2_PER_BYTE * area_scale(configs.technology_nm) * 1e-6


def areas(configs: Configs) -> Areas:
    """Area by component, without wires and pads."""
    return Areas(array_area_mm2(configs), vector_area_mm2(configs), sram_area_mm2(configs))


def areas_of_die(configs) -> Areas:
    """A finished chip's published `die_area_mm2`, all of it counted as its array."""
    nothing = np.zeros(len(configs))
    return Areas(configs.die_area_mm2, nothing, nothing)
