"""What a candidate costs on its accelerator, and what it would cost on every other one."""

from __future__ import annotations

from collections.abc import Sequence

import hwmodel
from nas.trial import Metrics
from search_spaces import FAMILIES, hardware
from search_spaces.quantizers import UnbuildableError
from search_spaces.space import Choices


def metrics_of(cost: hwmodel.Cost, layers: hwmodel.Layers, batch: int, at: tuple) -> Metrics:
    """The metrics of one priced pair. latency_s is of one batch; energy_j and dram_bytes of one
    image."""
    latency_s = float(cost.latency_s[at])
    return {
        "latency_s": latency_s,
        "images_per_s": batch / latency_s,
        "energy_j": float(cost.energy_j[at]) / batch,
        "area_mm2": float(cost.area_mm2[at]),
        "cycles": float(cost.cycles[at]),
        "dram_bytes": float(cost.dram_bytes[at]) / batch,
        "sram_bytes": float(cost.sram_bytes[at]) / batch,
        "utilization": float(cost.utilization[at]),
        "peak_memory_bytes": float(cost.peak_memory_bytes[at]),
        "macs": float(layers.macs[0]) / batch,
        "params": float(layers.params[0]),
        "weight_bytes": float(layers.parameter_bytes.sum()),
    }


def price_designs(family: str, designs: Sequence[Choices]) -> list[tuple[Metrics, str | None]]:
    """(metrics, None), or (metrics so far, reason) where a design cannot be built.

    All designs that have a network are priced in one vectorized call.
    """
    layers: dict[int, hwmodel.Layers] = {}
    outcome: list[tuple[Metrics, str | None]] = [({}, None)] * len(designs)
    for i, choices in enumerate(designs):
        try:
            layers[i] = FAMILIES[family].layers(choices)
        except UnbuildableError as error:
            outcome[i] = {}, str(error)
    if layers:
        table = hwmodel.Layers.concat([each.folded() for each in layers.values()])
        configs = hardware.configs_of([designs[i] for i in layers])
        cost = hwmodel.price(table, configs, pairing="paired")
        for at, (i, each) in enumerate(layers.items()):
            metrics = metrics_of(cost, each, designs[i]["serve.batch"], (at,))
            outcome[i] = metrics, None if cost.feasible[at] else cost.reason(at)
    return outcome
