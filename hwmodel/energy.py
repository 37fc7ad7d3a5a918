"""Energy by component: arithmetic, registers, SRAM, DRAM, leakage.

Dynamic energies are Horowitz's at 45 nm (M. Horowitz, "Computing's energy problem", ISSCC 2014,
figure 1.1.9; recalled from the paper). They have no leakage; SRAM leakage is CACTI 7.0's
(Balasubramonian et al., TACO 2017) for a 64-bit RAM of 45 nm LSTP cells at 350 K, 13 % ECC bits
included: 0.176 mW at 1 MiB, linear in size within 15 % from 16 KiB to 8 MiB. Of CACTI's three cell
types LSTP is the one whose read energies are Horowitz's (13.4 against 14, 19.5 against 20, 106
against 100 pJ at 16 KiB, 32 KiB and 1 MiB). Logic leakage is that of Aladdin's 40 nm multiplier
per area (Shao et al., ISCA 2014).

A register's dynamic energy is that of Aladdin's 40 nm flip-flop.

Other nodes are the 45 nm table scaled by `energy_scale`, an estimate: an 8-bit multiply and 32-bit
add takes 0.3 pJ at 45 nm and 0.077 pJ at 7 nm (Jouppi et al., ISCA 2021, table 2), which is the
power 0.73 of the node's name. DRAM does not change. Leakage is scaled with the area.
"""

from __future__ import annotations

import numpy as np

from hwmodel.area import ACCUMULATOR_BITS, OPERAND_BITS_BY_CODE, area_scale, logic_area_mm2
from hwmodel.config import MULTIPLIERS, Configs

MULTIPLY_INT8_PJ = 0.2  # wb x ab bits cost wb·ab/64 of it: 3.2 pJ at 32 x 32, in the table 3.1
ADD_INT8_PJ, ADD_INT32_PJ = 0.03, 0.1
ADD_INT16_PJ = 2 * ADD_INT8_PJ  # an adder's energy grows with its bits
MULTIPLY_FP16_PJ, MULTIPLY_FP32_PJ, ADD_FP16_PJ, ADD_FP32_PJ = 1.1, 3.7, 0.4, 0.9
DRAM_PJ_PER_BYTE = 1300 / 8  # the lower end of 1300 to 2600 pJ for 64 bits: streams, open pages
SRAM_BYTES = np.array([8, 32, 1024]) * 1024.0
SRAM_PJ_PER_BYTE = np.array([10.0, 20.0, 100.0]) / 8
_LOG_BYTES, _LOG_PJ = np.log(SRAM_BYTES), np.log(SRAM_PJ_PER_BYTE)
_SRAM_SLOPES = np.diff(_LOG_PJ) / np.diff(_LOG_BYTES)
SRAM_LEAKAGE_W_PER_BYTE = 0.176e-3 / 2**20
LOGIC_LEAKAGE_W_PER_MM2 = 0.0239e-3 / 2108e-6

REGISTER_PJ_PER_BIT = 5.535e-3
NODE_EXPONENT = 0.73

# Energy of one element in one busy cycle, its whole width switching, accumulation in 32 bits.
# bf16: Horowitz has fp16, which stands for it. composable: sixteen 2 x 2 bricks and the 15 adders
# that join them, twelve of 8 and three of 16 bits. bit-serial: eight lanes of 8 x 1 bits, each with
# a 16-bit shift-and-add.
ELEMENT_PJ = {
    "fixed8": MULTIPLY_INT8_PJ + ADD_INT32_PJ,
    "fixed16": 4 * MULTIPLY_INT8_PJ + ADD_INT32_PJ,
    "bf16": MULTIPLY_FP16_PJ + ADD_FP32_PJ,
    "composable": MULTIPLY_INT8_PJ + 12 * ADD_INT8_PJ + 3 * ADD_INT16_PJ + ADD_INT32_PJ,
    "bit-serial": MULTIPLY_INT8_PJ + 8 * ADD_INT16_PJ + ADD_INT32_PJ,
}
_ELEMENT_PJ = np.array([ELEMENT_PJ[style] for style in MULTIPLIERS])
# A lane is a 16-bit floating multiply-add: normalization and activations need the range.
VECTOR_LANE_PJ = MULTIPLY_FP16_PJ + ADD_FP16_PJ


def energy_scale(technology_nm):
    """On-chip dynamic energy relative to 45 nm."""
    return (technology_nm / 45.0) ** NODE_EXPONENT


def sram_pj_per_byte(sram_bytes):
    """Energy of reading or writing one byte of an SRAM of that size at 45 nm, in pJ.

    Log-log interpolation of Horowitz's 8 KB, 32 KB and 1 MB; beyond them the nearest slope goes on.
    """
    beyond = np.log(np.asarray(sram_bytes, dtype=np.float64)) - _LOG_BYTES[1]
    return np.exp(_LOG_PJ[1] + beyond * np.where(beyond < 0, *_SRAM_SLOPES))


def mac_pj(weight_bits, activation_bits):
    """A multiply-accumulate of a processor at 45 nm: integer up to 8 x 8 bits, the multiplication
    in proportion to both widths; 16-bit floats accumulated in 32 above, 32-bit floats above 16."""
    widest = np.maximum(weight_bits, activation_bits)
    integer = MULTIPLY_INT8_PJ * weight_bits * activation_bits / 64 + ADD_INT32_PJ
    floating = np.where(widest <= 16, MULTIPLY_FP16_PJ, MULTIPLY_FP32_PJ) + ADD_FP32_PJ
    return np.where(widest <= 8, integer, floating)


def element_joules(configs: Configs) -> np.ndarray:
    """[n_configs] joules of one processing element in one busy cycle."""
    return _ELEMENT_PJ[configs.codes("multiplier")] * energy_scale(configs.technology_nm) * 1e-12


def register_joules(configs: Configs) -> np.ndarray:
    """[n_configs] joules of one element's registers in one busy cycle: the moving operand and the
    sum are written, the stationary operand stays."""
    bits = OPERAND_BITS_BY_CODE[configs.codes("multiplier")] + ACCUMULATOR_BITS
    return bits * (REGISTER_PJ_PER_BIT * 1e-12) * energy_scale(configs.technology_nm)


def lane_joules(configs: Configs) -> np.ndarray:
    """[n_configs] joules of one vector operation."""
    return VECTOR_LANE_PJ * energy_scale(configs.technology_nm) * 1e-12


def sram_joules_per_byte(configs: Configs, sram: str) -> np.ndarray:
    """[n_configs] joules per byte of the `sram` named: input, weight or output."""
    size = getattr(configs, f"sram_{sram}_bytes")
    return sram_pj_per_byte(size) * energy_scale(configs.technology_nm) * 1e-12


def leakage_watts(configs: Configs) -> np.ndarray:
    """[n_configs] static power of the SRAMs and the logic."""
    sram_bytes = (
        configs.sram_input_bytes + configs.sram_weight_bytes + configs.sram_output_bytes
    ).astype(np.float64)
    sram = sram_bytes * SRAM_LEAKAGE_W_PER_BYTE * area_scale(configs.technology_nm)
    return sram + logic_area_mm2(configs) * LOGIC_LEAKAGE_W_PER_MM2
