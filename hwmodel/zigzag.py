"""Hand-over to ZigZag (Mei et al., IEEE Transactions on Computers 2021; `zigzag-dse` on PyPI).

    from zigzag.api import get_hardware_performance_zigzag
    get_hardware_performance_zigzag("workload.yaml", "accelerator.yaml", "mapping.yaml")

The files are YAML in its JSON form, tried with version 3.9.1, whose arrays can be systolic (and
which needs `six` without saying so). ZigZag searches the order of the loops itself, and its wave
drains once a layer, ours once a tile, so its cycles are fewer where tiles are short.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from hwmodel import energy
from hwmodel.config import Configs
from hwmodel.handover import Product, differences, dram_bytes_per_cycle, products_of
from hwmodel.systolic import ACCUMULATOR_BYTES, extents
from hwmodel.workload import Layers

SUM_BITS = 8 * ACCUMULATOR_BYTES
DRAM_BITS = 8 * 2**40  # as good as endless
EQUATION = "O[b][k]+=W[k][c]*I[b][c]"  # M, N and K of a product are its loops B, K and C
LOOP_OF = {"m": "B", "k": "C", "n": "K"}
STATIONARY = {"os": "O", "ws": "I2", "is": "I1"}


class ZigZag(NamedTuple):
    """The files written, the products in the order of the workload's layers (each stands for
    `count` runs), and what the simulator leaves out."""

    accelerator: Path
    mapping: Path
    workload: Path
    products: list[Product]
    differences: list[str]


def write_zigzag(layers: Layers, config: Configs, directory: str | Path) -> ZigZag:
    """Write `accelerator.yaml`, `mapping.yaml` and `workload.yaml`, one matrix product a layer.

    The memories are three SRAMs behind one DRAM port and, in every element, a register for what
    stays in place (two where the design has a second plane). Raises ValueError as
    `handover.products_of` does, and for a bandwidth of less than a bit a cycle.
    """
    products = products_of(layers, config)
    left_out = differences(layers, config)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    written = ZigZag(
        directory / "accelerator.yaml",
        directory / "mapping.yaml",
        directory / "workload.yaml",
        products,
        left_out,
    )
    for path, content in (
        (written.accelerator, _accelerator(config, products, directory.name)),
        (written.mapping, _mapping(config)),
        (written.workload, [_layer(at, product) for at, product in enumerate(products)]),
    ):
        notes = "".join(f"# {note}\n" for note in left_out)
        path.write_text(f"{notes}{json.dumps(content, indent=2)}\n")
    return written


def _layer(at: int, product: Product) -> dict:
    """One product; every layer reads its own operands, so that none waits in an SRAM."""
    return {
        "id": at,
        "name": f"{product.name} x{product.count}",
        "operator_type": "Gemm",
        "equation": EQUATION,
        "loop_dims": ["B", "K", "C"],
        "loop_sizes": [product.m, product.n, product.k],
        "operand_precision": {
            "W": product.weight_bits,
            "I": product.activation_bits,
            "O": SUM_BITS,
            "O_final": product.output_bits,
        },
        "operand_source": {"W": at, "I": at},
    }


def _mapping(config: Configs) -> list[dict]:
    """The dataflow: which loops lie along the rows and the columns."""
    along = extents(str(config.dataflow[0]), *LOOP_OF)
    return [
        {
            "name": "default",
            "spatial_mapping": {
                "D1": [f"{LOOP_OF[along.rows]}, {config.rows[0]}"],
                "D2": [f"{LOOP_OF[along.columns]}, {config.columns[0]}"],
            },
            "memory_operand_links": {"O": "O", "W": "I2", "I": "I1"},
        }
    ]


def _accelerator(config: Configs, products: list[Product], name: str) -> dict:
    weight_bits = max(product.weight_bits for product in products)
    activation_bits = max(product.activation_bits for product in products)
    rows, columns = int(config.rows[0]), int(config.columns[0])
    # What the array's edge takes in a cycle: its rows of the operand that enters there, or columns.
    width = {
        "os": {"I1": rows * activation_bits, "I2": columns * weight_bits, "O": columns * SUM_BITS},
        "ws": {"I1": rows * activation_bits, "I2": columns * weight_bits, "O": columns * SUM_BITS},
        "is": {"I1": columns * activation_bits, "I2": rows * weight_bits, "O": columns * SUM_BITS},
    }[str(config.dataflow[0])]
    stationary = STATIONARY[str(config.dataflow[0])]
    register_bits = {"I1": activation_bits, "I2": weight_bits, "O": SUM_BITS}[stationary]
    planes = 2 if config.double_weight_plane[0] and stationary != "O" else 1
    dram_bits = round(dram_bytes_per_cycle(config) * 8)
    if dram_bits < 1:
        raise ValueError(
            f"ZigZag needs dram_bandwidth of a bit a cycle or more, got "
            f"{dram_bytes_per_cycle(config) * 8:.3g} of them"
        )
    memories = {
        # Its energy is in that of the element.
        "register": _memory([stationary], planes * register_bits, register_bits, 0.0, [])
    }
    for sram, operand in dict(input="I1", weight="I2", output="O").items():
        bits = 8 * int(getattr(config, f"sram_{sram}_bytes")[0])
        pj_per_bit = float(energy.sram_joules_per_byte(config, sram)[0]) * 1e12 / 8
        memories[f"sram_{sram}"] = _memory([operand], bits, width[operand], pj_per_bit)
    memories["dram"] = _memory(
        ["I1", "I2", "O"], DRAM_BITS, dram_bits, energy.DRAM_PJ_PER_BYTE / 8, shared=True
    )
    return {
        "name": name,
        "memories": memories,
        "operational_array": {
            "unit_energy": float(energy.element_joules(config)[0]) * 1e12,
            "unit_area": 0.0,
            "dimensions": ["D1", "D2"],
            "sizes": [rows, columns],
            # Operands move one element a cycle both ways, so the last sums leave R + C - 2 later.
            "systolic_dimensions": ["D1", "D2"],
        },
    }


def _memory(
    operands: list[str],
    size_bits: int,
    width_bits: int,
    pj_per_bit: float,
    served: list[str] | None = None,
    shared: bool = False,
) -> dict:
    """A memory with a read and a write port of that width, or one `shared` port for both. Every
    operand is filled from above and read from below; outputs go both ways."""
    reads = [f"{operand}, tl" for operand in operands]
    writes = [f"{operand}, fh" for operand in operands]
    if "O" in operands:
        reads.append("O, th")
        writes.append("O, fl")
    ports = [("r_port_1", "read", reads), ("w_port_1", "write", writes)]
    if shared:
        ports = [("rw_port_1", "read_write", reads + writes)]
    return {
        "size": size_bits,
        "r_cost": pj_per_bit * width_bits,
        "w_cost": pj_per_bit * width_bits,
        "area": 0.0,
        "latency": 1,
        "operands": operands,
        "ports": [
            {
                "name": port,
                "type": kind,
                "bandwidth_min": width_bits,
                "bandwidth_max": width_bits,
                "allocation": allocation,
            }
            for port, kind, allocation in ports
        ],
        "served_dimensions": ["D1", "D2"] if served is None else served,
    }
