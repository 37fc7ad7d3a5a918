"""Training on many workers: communication, waiting and staleness as functions that broadcast.

A synchronous step is compute, stretched by the slowest worker, and what communication the backward
pass does not hide. `gradient_bytes` are those of all parameters, bandwidths bytes/s in each
direction of a worker's link, latencies seconds a message. Every argument may be an array. Sizes
that make no sense raise a ValueError naming the argument and the value.
"""

from __future__ import annotations

import numpy as np

FLOAT_BITS = 32


def ring_all_reduce_s(n_workers, gradient_bytes, bandwidth, latency_s=0.0):
    """Seconds of a ring: 2(n - 1)/n·G/β + 2(n - 1)·α (Patarasuk and Yuan, JPDC 2009)."""
    n_workers = _at_least(1, n_workers=n_workers)
    gradient_bytes = _at_least(0, gradient_bytes=gradient_bytes)
    bandwidth, latency_s = _above_0(bandwidth=bandwidth), _at_least(0, latency_s=latency_s)
    hops = 2 * (n_workers - 1)
    return hops / n_workers * gradient_bytes / bandwidth + hops * latency_s


def hierarchical_all_reduce_s(
    n_nodes,
    workers_per_node,
    gradient_bytes,
    node_bandwidth,
    network_bandwidth,
    node_latency_s=0.0,
    network_latency_s=0.0,
):
    """Seconds of a ring inside each node and one between nodes, whose workers share one link.

    Each worker reduces its share inside the node, exchanges it with its like in the other nodes,
    and gathers the rest inside: the two rings' times add up (Goyal et al., arXiv 1706.02677,
    section 4.2, has the three phases).
    """
    inside = ring_all_reduce_s(workers_per_node, gradient_bytes, node_bandwidth, node_latency_s)
    return inside + ring_all_reduce_s(n_nodes, gradient_bytes, network_bandwidth, network_latency_s)


def parameter_server_s(n_workers, gradient_bytes, bandwidth, n_shards=1):
    """Seconds in which `n_shards` servers take gradients from all workers and return weights:
    2nG/(Sβ) (Li et al., OSDI 2014), nothing of it in parallel with itself."""
    n_workers = _at_least(1, n_workers=n_workers)
    gradient_bytes = _at_least(0, gradient_bytes=gradient_bytes)
    bandwidth, n_shards = _above_0(bandwidth=bandwidth), _at_least(1, n_shards=n_shards)
    return 2 * n_workers * gradient_bytes / (n_shards * bandwidth)


def compressed_bytes(gradient_bytes, n_tensors=0):
    """Bytes of one-bit gradients: a bit for each of 32, and two float scales a tensor, the values
    that zero and one stand for (Seide et al., Interspeech 2014)."""
    gradient_bytes = _at_least(0, gradient_bytes=gradient_bytes)
    scales = 2 * _at_least(0, n_tensors=n_tensors) * FLOAT_BITS / 8
    return gradient_bytes / FLOAT_BITS + scales


def exposed_s(communication_s, backward_s, overlap):
    """Communication left when a share `overlap` (0 to 1) of the backward pass hides it."""
    communication_s = _at_least(0, communication_s=communication_s)
    hidden = _share(overlap=overlap) * _at_least(0, backward_s=backward_s)
    return np.maximum(0.0, communication_s - hidden)


def straggler_stretch(n_workers, spread, slack=0):
    """By how much waiting for the slowest worker stretches a step.

    1 + σ·sqrt(2 ln n), about the largest of n normal step times of relative deviation `spread`.
    With `slack` s, stale-synchronous (Ho et al., NIPS 2013), a worker may be s steps ahead, so that
    waiting is for the mean of s + 1 steps, whose deviation is σ/sqrt(s + 1) where steps are
    independent.
    """
    n_workers, slack = _at_least(1, n_workers=n_workers), _at_least(0, slack=slack)
    spread = _at_least(0, spread=spread)
    return 1 + spread * np.sqrt(2 * np.log(n_workers) / (slack + 1))


def synchronous_step_s(
    forward_s, backward_s, communication_s, n_workers, *, overlap=0.0, spread=0.0, slack=0
):
    """Seconds of a step in which every worker waits for all gradients, or, with `slack`, for those
    of that many steps ago."""
    compute_s = _at_least(0, forward_s=forward_s) + _at_least(0, backward_s=backward_s)
    exposed = exposed_s(communication_s, backward_s, overlap)
    return compute_s * straggler_stretch(n_workers, spread, slack) + exposed


def asynchronous_steps_per_s(n_workers, worker_step_s, gradient_bytes, bandwidth, n_shards=1):
    """Steps a second of all workers together when none waits: n / t, but no more than the servers'
    links carry, Sβ/(2G) (Dean et al., NIPS 2012)."""
    rate = _at_least(1, n_workers=n_workers) / _above_0(worker_step_s=worker_step_s)
    carried_s = parameter_server_s(1, gradient_bytes, bandwidth, n_shards)
    with np.errstate(divide="ignore"):
        return np.minimum(rate, 1 / np.asarray(carried_s))


def staleness(n_workers, slack=None):
    """Updates by others between reading the weights and changing them, on average: n - 1 without
    waiting; no more than `slack` steps of each of them where they wait."""
    others = _at_least(1, n_workers=n_workers) - 1
    return others if slack is None else others * np.minimum(1, _at_least(0, slack=slack))


def pipeline_bubble(n_stages, n_microbatches):
    """Share of a step in which a stage is idle: (s - 1)/(m + s - 1) (Huang et al., GPipe, NeurIPS
    2019)."""
    n_stages = _at_least(1, n_stages=n_stages)
    n_microbatches = _at_least(1, n_microbatches=n_microbatches)
    return (n_stages - 1) / (n_microbatches + n_stages - 1)


def speedup(n_workers, one_step_s, step_s):
    """How many times the examples of one worker n workers get through, each with the same batch."""
    return _at_least(1, n_workers=n_workers) * one_step_s / _above_0(step_s=step_s)


def _at_least(least: float, **argument) -> np.ndarray:
    return _checked(argument, lambda values: values >= least, f"{least} or more")


def _above_0(**argument) -> np.ndarray:
    return _checked(argument, lambda values: values > 0, "above 0")


def _share(**argument) -> np.ndarray:
    return _checked(argument, lambda values: (values >= 0) & (values <= 1), "from 0 to 1")


def _checked(argument: dict, allowed, wanted: str) -> np.ndarray:
    [(name, given)] = argument.items()
    values = np.asarray(given, dtype=np.float64)
    valid = np.isfinite(values) & allowed(values)
    if not valid.all():
        value = float(values[~valid].flat[0])
        raise ValueError(f"{name} must be finite and {wanted}, got {value!r}")
    return values
