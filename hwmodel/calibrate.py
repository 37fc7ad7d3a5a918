"""Calibration: a device's few physical rates from a few networks that it was timed on.

Latency is a sum of physical quantities times rates (`measured.py`), so the rates are a non-negative
least-squares solution on relative errors. Huber's weights (Huber, 1964) keep outliers from steering
it. A prior from the device's family says how a network's time divides among the quantities, for
what ten networks cannot tell apart; its weight falls with the number of networks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hwmodel.config import nearest
from hwmodel.figures import sum_networks
from hwmodel.measured import RATES, SPILLS, Configs, quantities, work_of
from hwmodel.workload import Layers

N_FOLDS = 5
ROUNDS = 12  # of reweighting
HUBER_WIDTH = 1.345  # in robust standard deviations: 95 % efficient for normal errors
LEAST_SPREAD = 1e-6
LEAST_OF_MEDIAN = 0.5
PRIOR_NETWORKS = 3.0  # a prior share weighs like this many networks' errors, over their number
# With fewer networks than this, the size of the chip's memory is not looked for.
LEAST_FOR_MEMORY = 30
RESIDENT_BYTES = tuple(int(2 ** (power / 2)) for power in range(32, 49))  # 64 KiB to 16 MiB
LEAST_NETWORKS = 5


class Prior(NamedTuple):
    """What is known of a family before any measurement: the width of its vectors in channels, how
    tensors that do not fit move, and the shares of a network's time, by rate."""

    granule: int
    spill: str
    shares: dict[str, float]


_EVEN = dict.fromkeys((*RATES, "fixed_s"), 1.0)
# Launches and waiting dominate a GPU at small batches, arithmetic a CPU; of the others nothing is
# assumed. A TPU pads channels to its 128 lanes and places whole tensors (XLA); a DPU works on 16
# channels at a time and keeps tiles (Xilinx PG338).
PRIORS = {
    "gpu": Prior(
        1,
        "excess",
        dict(product_mac_s=1, product_launch_s=4, vector_launch_s=4, vector_byte_s=2, fixed_s=9),
    ),
    "cpu": Prior(
        1,
        "excess",
        dict(
            product_mac_s=7,
            depthwise_mac_s=1,
            product_launch_s=2,
            vector_launch_s=3,
            vector_op_s=1,
            vector_byte_s=1,
            fixed_s=5,
        ),
    ),
    "systolic": Prior(128, "whole", _EVEN),
    "fpga": Prior(16, "excess", _EVEN),
}


class Calibration(NamedTuple):
    """A fitted device, and how well it predicts networks that a fit has not seen.

    `configs`: one accelerator of the measured family; `errors` [n_networks]: relative errors
    |predicted / measured - 1|, each by a fit without that network's fold; `n_networks`.
    """

    configs: Configs
    errors: np.ndarray

    @property
    def error(self) -> float:
        """Mean relative error on unseen networks, by cross-validation."""
        return float(self.errors.mean())

    @property
    def provenance(self) -> str:
        """What a device file says of it."""
        return (
            f"Fitted to {len(self.errors)} measured networks; by cross-validation the error on "
            f"unseen ones is {100 * self.error:.1f} % on average and "
            f"{100 * np.median(self.errors):.1f} % at the median."
        )


def calibrate(
    layers: Layers,
    measured_s,
    family: str,
    *,
    static_w: float = 0.0,
    die_area_mm2: float = 0.0,
    technology_nm: int = 45,
) -> Calibration:
    """Fit a device of `family` ("gpu", "cpu", "systolic", "fpga") to the seconds that each network
    of `layers` took: `measured_s` [n_networks].

    The result's `configs` price any network like a named device; the last three arguments are
    theirs. Networks must be given with the batch and the bits they were measured at; wider words
    are infeasible later. With LEAST_FOR_MEMORY networks or more, the size of the on-chip memory is
    the one with the least cross-validated error.

    Raises ValueError for an unknown family, seconds that are not finite and positive or not one per
    network, and fewer than LEAST_NETWORKS networks.
    """
    if family not in PRIORS:
        raise ValueError(
            f"unknown family {family!r}; {nearest(family, PRIORS)}choose one of {', '.join(PRIORS)}"
        )
    seconds = np.asarray(measured_s, dtype=np.float64)
    if seconds.shape != (layers.n_networks,):
        raise ValueError(
            f"measured_s needs one value per network [{layers.n_networks}], got shape "
            f"{list(seconds.shape)}"
        )
    if layers.n_networks < LEAST_NETWORKS:
        raise ValueError(
            f"calibration needs at least {LEAST_NETWORKS} networks, got {layers.n_networks}; "
            "measure a few more of different size"
        )
    bad = np.flatnonzero(~(np.isfinite(seconds) & (seconds > 0)))
    if bad.size:
        raise ValueError(
            f"measured_s must be finite and above 0, got {seconds[bad[0]]} at network {bad[0]}; "
            "leave that network out"
        )
    prior = PRIORS[family]
    sizes = RESIDENT_BYTES if layers.n_networks >= LEAST_FOR_MEMORY else (0,)
    tables = {size: design_matrix(layers, prior.granule, size, prior.spill) for size in sizes}
    errors = {size: cross_validate(table, seconds, prior) for size, table in tables.items()}
    best = min(sizes, key=lambda size: errors[size].mean())
    rates = fit(tables[best], seconds, prior)
    configs = Configs(
        **dict(zip((*RATES, "fixed_s"), rates, strict=True)),
        granule=prior.granule,
        resident_bytes=best,
        spill=prior.spill,
        weight_bits=int(layers.weight_bits.max()),
        activation_bits=int(layers.activation_bits.max()),
        static_w=static_w,
        die_area_mm2=die_area_mm2,
        technology_nm=technology_nm,
    )
    return Calibration(configs, errors[best])


def design_matrix(layers: Layers, granule: int, resident_bytes: int, spill: str) -> np.ndarray:
    """[n_networks, n_rates + 1] what each rate multiplies in each network; the last column, of
    `fixed_s`, is one."""
    columns = quantities(work_of(layers), granule, resident_bytes, spill == SPILLS[0])
    sums = [sum_networks(np.broadcast_to(c, len(layers)), layers.offsets) for c in columns]
    return np.column_stack([*sums, np.ones(layers.n_networks)])


def fit(table: np.ndarray, seconds: np.ndarray, prior: Prior) -> np.ndarray:
    """[n_rates + 1] the rates, none negative, that least-squares finds for relative errors.

    Iteratively reweighted: an error beyond HUBER_WIDTH robust deviations counts linearly. Below
    LEAST_OF_MEDIAN medians errors are relative to that, lest a network that did not run in earnest
    outweigh all others.
    """
    from scipy.optimize import nnls

    weighed = np.maximum(seconds, np.median(seconds) * LEAST_OF_MEDIAN)
    relative, target = table / weighed[:, None], seconds / weighed
    scale = relative.max(axis=0)
    used = scale > 0
    shares = np.array([prior.shares.get(name, 0.0) for name in (*RATES, "fixed_s")])[used]
    strength = PRIOR_NETWORKS / len(seconds)
    scaled = relative[:, used] / scale[used]
    pull = strength * np.eye(used.sum())
    pulled = strength * shares / shares.sum()
    weights = np.ones(len(seconds))
    for _ in range(ROUNDS):
        solution, _ = nnls(
            np.vstack([scaled * weights[:, None], pull]),
            np.concatenate([target * weights, pulled]),
        )
        residuals = np.abs(scaled @ solution - target)
        spread = max(1.4826 * np.median(residuals), LEAST_SPREAD)
        weights = np.sqrt(np.minimum(1.0, HUBER_WIDTH * spread / np.maximum(residuals, 1e-300)))
    rates = np.zeros(table.shape[1])
    rates[used] = solution / scale[used]
    return rates


def cross_validate(table: np.ndarray, seconds: np.ndarray, prior: Prior) -> np.ndarray:
    """[n_networks] relative errors of fits that left the network's fold out; folds interleave
    networks in the order of their seconds, so that each spans the whole range."""
    folds = np.empty(len(seconds), dtype=np.int64)
    folds[np.argsort(seconds, kind="stable")] = np.arange(len(seconds)) % N_FOLDS
    predicted = np.empty(len(seconds))
    for fold in range(N_FOLDS):
        out = folds == fold
        predicted[out] = table[out] @ fit(table[~out], seconds[~out], prior)
    return np.abs(predicted / seconds - 1)
