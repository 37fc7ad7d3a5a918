"""A saved Keras model priced on accelerators: what `nas price` shows.

Nothing here imports Keras until a model is read, so that a wrong accelerator is refused at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hwmodel import Cost, Layers, price, price_layers
from hwmodel.cost import ENERGIES
from hwmodel.devices import find_device
from hwmodel.figures import Areas
from hwmodel.training import training_step
from nas.quiet import quietly

if TYPE_CHECKING:
    import keras
    import pandas

DEFAULT_BITS = 8
LEAST_GRADIENT_BITS = 16
PREFIXES = {-12: "p", -9: "n", -6: "u", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P"}
# of a price, in the order shown: figure -> heading and unit; a heading begins with two spaces where
# the figure is part of the one above
FIGURES = {
    "latency_s": ("latency", "s"),
    "interval_s": ("interval", "s"),
    "examples_per_s": ("throughput", "/s"),
    "energy_j": ("energy", "J"),
    "arithmetic_j": ("  arithmetic", "J"),
    "register_j": ("  registers", "J"),
    "sram_j": ("  SRAM", "J"),
    "dram_j": ("  DRAM", "J"),
    "leakage_j": ("  leakage", "J"),
    "area_mm2": ("area", "mm2"),
    "array_area_mm2": ("  array", "mm2"),
    "vector_area_mm2": ("  vector unit", "mm2"),
    "sram_area_mm2": ("  SRAM", "mm2"),
    "dram_bytes": ("DRAM traffic", "B"),
    "sram_bytes": ("SRAM traffic", "B"),
    "utilization": ("utilization", "%"),
    "peak_memory_bytes": ("peak memory", "B"),
}
# the same of a row of the table of layers
LAYER_FIGURES = {
    "latency_s": ("latency", "s"),
    "energy_j": ("energy", "J"),
    "dram_bytes": ("DRAM", "B"),
    "sram_bytes": ("SRAM", "B"),
    "utilization": ("utilization", "%"),
}


class Priced(NamedTuple):
    """A model on one accelerator.

    `accelerator`: its name or file; `weight_bits`, `activation_bits` it was priced in; `macs` and
    `params` of the batch; `reason` why the accelerator cannot run it, or None; `figures`: the keys
    of FIGURES, seconds, joules, mm² and bytes of one batch, empty where it cannot run; `layers`:
    the table of `hwmodel.price_layers` where it was asked for and can run.
    """

    accelerator: str
    provenance: str
    family: str
    weight_bits: int
    activation_bits: int
    macs: int
    params: int
    reason: str | None
    figures: dict[str, float]
    layers: pandas.DataFrame | None

    def as_json(self) -> dict:
        """The same as values of JSON; figures and layers are null where there are none."""
        layers = None if self.layers is None else self.layers.to_dict("records")
        return self._asdict() | {"figures": self.figures or None, "layers": layers}


def price_model(
    path: str | Path,
    accelerators: Sequence[str],
    *,
    batch: int = 1,
    weight_bits: int | None = None,
    activation_bits: int | None = None,
    skip: Sequence[str] = (),
    training: bool = False,
    by_layer: bool = False,
) -> list[Priced]:
    """The model of a .keras file on each of `accelerators`, names or device files.

    Bits that are not given are 8, or those that a measured device was measured at: its rates are of
    words that wide. `skip`: layers passed over, as in `Layers.from_keras`. `training`: price one
    step with momentum, gradients in the activations' bits and at least 16 of them, in place of an
    inference; peak memory is then that of weights, gradients, momentum and stored activations.

    Raises ValueError for an unknown accelerator, a file that is missing or cannot be read, a layer
    that has no price, and where no accelerator of those named can run the model.
    """
    devices = {name: find_device(name) for name in accelerators}
    model = read_model(Path(path))
    found = []
    for name, known in devices.items():
        configs = known.configs(**known.parameters)
        measured = configs.FAMILY == "measured"
        bits = {"weight_bits": weight_bits, "activation_bits": activation_bits}
        for key, given in bits.items():
            if given is None:
                bits[key] = int(getattr(configs, key)[0]) if measured else DEFAULT_BITS
        layers = Layers.from_keras(model, batch, **bits, skip=skip)
        peak_bytes = None
        if training:
            step = training_step(
                layers, gradient_bits=max(LEAST_GRADIENT_BITS, bits["activation_bits"])
            )
            layers, [peak_bytes] = step.layers, step.memory_bytes
        cost = price(layers, configs)
        feasible = bool(cost.feasible[0, 0])
        found.append(
            Priced(
                accelerator=name,
                provenance=known.provenance,
                family=configs.FAMILY,
                **bits,
                macs=int(layers.macs[0]),
                params=int(layers.params[0]),
                reason=None if feasible else cost.reason(0, 0),
                figures=figures_of(cost, batch, peak_bytes) if feasible else {},
                layers=price_layers(layers, configs) if feasible and by_layer else None,
            )
        )
    if all(priced.reason for priced in found):
        reasons = "; ".join(
            f"{each.accelerator} cannot run it with {each.weight_bits}-bit weights and "
            f"{each.activation_bits}-bit activations{' in training' if training else ''}: "
            f"{each.reason}"
            for each in found
        )
        raise ValueError(f"{path}: {reasons}; choose other bits or another accelerator")
    return found


def figures_of(cost: Cost, batch: int, peak_bytes: float | None) -> dict[str, float]:
    """The FIGURES of the one pair of `cost`; `peak_bytes` replaces the peak memory of inference."""
    figures = {
        name: float(getattr(cost, name)[0, 0]) for name in FIGURES if name != "examples_per_s"
    }
    figures["examples_per_s"] = batch / figures["interval_s"]
    if peak_bytes is not None:
        figures["peak_memory_bytes"] = float(peak_bytes)
    return {name: figures[name] for name in FIGURES}


def read_model(path: Path) -> keras.Model:
    """The model in a .keras file, without running any code that the file brings.

    Raises ValueError for another suffix and a file that is missing, damaged or needs classes that
    are not Keras' own; RuntimeError where Keras is not installed.
    """
    if path.suffix != ".keras":
        raise ValueError(
            f"a model is read from a file that ends in .keras, got '{path}'; write one with "
            "model.save('model.keras')"
        )
    if not path.is_file():
        raise ValueError(f"no file {path}; write one with model.save('{path.name}')")
    try:
        with quietly():
            import keras
    except ImportError as error:
        raise RuntimeError(
            f"reading {path} needs Keras and a backend ({error}); try: pip install tensorflow"
        ) from error
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # of any kind: whatever it is, this file does not hold a model
        cause = str(error).split("Exception encountered: ")[-1].strip().splitlines()
        first = cause[0].split(". ")[0].rstrip(".") if cause else "no message"
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {first}); it must be a whole .keras "
            "file of standard layers; build models with layers of your own in Python and price "
            "them with Layers.from_keras"
        ) from error


def figure(value: float, unit: str) -> str:
    """`value` with three digits and the prefix that makes it readable; areas keep their unit, and
    "-" says that nobody published one."""
    if unit == "%":
        return f"{value:.1%}"
    if unit == "mm2":
        return f"{value:.3g} mm2" if value else "-"
    if not value:
        return f"0 {unit}"
    power = int(np.clip(3 * np.floor(np.log10(value) / 3), min(PREFIXES), max(PREFIXES)))
    scaled = f"{value / 10.0**power:.3g}"
    if scaled == "1e+03" and power < max(PREFIXES):
        scaled, power = "1", power + 3
    return f"{scaled} {PREFIXES[power]}{unit}"


def lines_of(prices: Sequence[Priced]) -> list[list[str]]:
    """The table of prices as cells: one line a figure, one column an accelerator.

    Left out: parts that are the whole, and the interval where it is the latency everywhere.
    """
    ran = [each.figures for each in prices if each.figures]
    lines = [["", *(each.accelerator for each in prices)]]
    bits = (f"{each.weight_bits}/{each.activation_bits}" for each in prices)
    lines.append(["bits w/a", *bits])
    one_area = all(np.isclose(f["array_area_mm2"], f["area_mm2"]) for f in ran)
    hidden = set(Areas._fields) if one_area else set()
    hidden |= {name for name in ENERGIES if not any(f[name] for f in ran)}
    if all(f["interval_s"] == f["latency_s"] for f in ran):
        hidden.add("interval_s")
    for name, (heading, unit) in FIGURES.items():
        if name not in hidden:
            cells = (figure(p.figures[name], unit) if p.figures else "-" for p in prices)
            lines.append([heading, *cells])
    return [*lines, ["feasible", *("no" if each.reason else "yes" for each in prices)]]


def layer_lines(layers: pandas.DataFrame) -> list[list[str]]:
    """The table of layers as cells, with each one's share of the time."""
    total_s = layers["latency_s"].sum()
    headings = [heading for heading, _ in LAYER_FIGURES.values()]
    lines = [["layer", "repeat", headings[0], "share", *headings[1:], "bound by"]]
    for _, row in layers.iterrows():
        latency, *others = (figure(row[name], unit) for name, (_, unit) in LAYER_FIGURES.items())
        share = f"{row['latency_s'] / total_s:.1%}"
        lines.append(
            [str(row["layer"]), str(row["repeat"]), latency, share, *others, str(row["bound"])]
        )
    return lines
