"""Hand-over to SCALE-Sim (Samajdar et al., ISPASS 2020; `scalesim` on PyPI, versions 2 and 3).

    python -m scalesim.scale -c accelerator.cfg -t network.csv -l layout.csv -i gemm -p results

Version 2 has no `-l`. Cycles are the index of the last one, so one less than ours for every
product. Both versions (2.0.2 and 3.0.0 were tried) run with numpy<2; 3.0.0 fails with NumPy 2.4.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from hwmodel.config import Configs
from hwmodel.handover import Product, differences, dram_bytes_per_cycle, products_of
from hwmodel.systolic import ACCUMULATOR_BYTES
from hwmodel.workload import Layers

# The simulator needs more than a design says: where the operands lie, how many requests wait. The
# sections on layouts and sparsity, which version 3 reads, switch both off.
CONFIG = """\
[general]
run_name = {name}

[architecture_presets]
ArrayHeight = {rows}
ArrayWidth = {columns}
IfmapSramSzkB = {input_kwords}
FilterSramSzkB = {weight_kwords}
OfmapSramSzkB = {output_kwords}
IfmapOffset = 0
FilterOffset = 1000000000
OfmapOffset = 2000000000
Bandwidth = {bandwidth}
Dataflow = {dataflow}
ReadRequestBuffer = 512
WriteRequestBuffer = 512

[layout]
IfmapCustomLayout = False
IfmapSRAMBankBandwidth = 10
IfmapSRAMBankNum = 10
IfmapSRAMBankPort = 2
FilterCustomLayout = False
FilterSRAMBankBandwidth = 10
FilterSRAMBankNum = 10
FilterSRAMBankPort = 2

[sparsity]
SparsitySupport = False

[run_presets]
InterfaceBandwidth = {interface}
UseRamulatorTrace = False
"""


class ScaleSim(NamedTuple):
    """The files written, the products in the order of the topology's lines (each stands for `count`
    runs), and what the simulator leaves out."""

    config: Path
    topology: Path
    layout: Path
    products: list[Product]
    differences: list[str]


def write_scalesim(
    layers: Layers, config: Configs, directory: str | Path, *, stalls: bool = True
) -> ScaleSim:
    """Write `accelerator.cfg`, `network.csv`, a topology of products (`-i gemm`), and `layout.csv`,
    the list of custom layouts that version 3 opens, empty.

    `stalls`: hold the simulator to the DRAM bandwidth (USER); otherwise it reports the cycles of
    the array and the bandwidth that these would need (CALC). SCALE-Sim counts words, not bytes, and
    one kilobyte of its SRAMs is 1,024 words.

    Raises ValueError as `handover.products_of` does, for rows of unequal bit-widths, and for an
    SRAM of less than 1,024 words or a bandwidth of less than a word a cycle.
    """
    products = products_of(layers, config)
    widths = {product[-3:] for product in products}
    if len(widths) > 1:
        raise ValueError(
            "SCALE-Sim knows one word for all layers, got (weight, activation, output) bits "
            f"{sorted(widths)}; hand over the rows of each width by themselves"
        )
    weight_bits, activation_bits, output_bits = widths.pop()
    dataflow = str(config.dataflow[0])
    sum_bits = output_bits if dataflow == "os" else 8 * ACCUMULATOR_BYTES
    bytes_per_cycle = dram_bytes_per_cycle(config)
    words_per_cycle = [
        _whole(bytes_per_cycle * 8 / bits, "dram_bandwidth", "a word a cycle")
        for bits in (activation_bits, weight_bits, output_bits)
    ]
    left_out = differences(layers, config)
    if config.double_weight_plane[0] and dataflow != "os":
        left_out.append("no second weight plane: every tile waits for its preload")
    if stalls:
        exact = [bytes_per_cycle * 8 / bits for bits in (activation_bits, weight_bits, output_bits)]
        if exact != words_per_cycle:
            left_out.append(f"bandwidths of {exact} words a cycle are rounded to {words_per_cycle}")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    written = ScaleSim(
        directory / "accelerator.cfg",
        directory / "network.csv",
        directory / "layout.csv",
        products,
        left_out,
    )
    text = CONFIG.format(
        name=directory.name,
        rows=config.rows[0],
        columns=config.columns[0],
        input_kwords=_kwords(config, "input", activation_bits),
        weight_kwords=_kwords(config, "weight", weight_bits),
        output_kwords=_kwords(config, "output", sum_bits),
        bandwidth=",".join(map(str, words_per_cycle)),
        dataflow=dataflow,
        interface="USER" if stalls else "CALC",
    )
    written.config.write_text("".join(f"# {note}\n" for note in left_out) + text)
    lines = ["Layer, M, N, K,", *(f"{_label(p)}, {p.m}, {p.n}, {p.k}," for p in products)]
    written.topology.write_text("\n".join(lines) + "\n")
    written.layout.write_text("Layer name,\n")
    return written


def _label(product: Product) -> str:
    """The name without the commas that would end the field, and how often it runs."""
    return f"{product.name.replace(',', ' ')} x{product.count}"


def _kwords(config: Configs, sram: str, bits: int) -> int:
    size = float(getattr(config, f"sram_{sram}_bytes")[0])
    return _whole(size * 8 / bits / 1024, f"sram_{sram}_bytes", "1,024 words", nearest=False)


def _whole(value: float, field: str, least: str, nearest: bool = True) -> int:
    whole = round(value) if nearest else int(value)
    if whole < 1:
        raise ValueError(f"SCALE-Sim needs {field} of {least} or more, got {value:.3g} of them")
    return whole
