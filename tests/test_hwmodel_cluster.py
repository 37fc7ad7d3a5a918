"""Clusters: formulas against messages counted one by one, limits, and published speedups."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwmodel import cluster


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_a_ring_equals_its_messages_counted(n):
    """2(n - 1) rounds, in each of which every worker sends one of n chunks to the next; after them
    every worker holds the sum of every chunk."""
    chunks = np.random.default_rng(n).normal(size=(n, n))  # [workers, chunks]
    sums, held = chunks.sum(axis=0), chunks.copy()
    sent = rounds = 0
    for gathering in (False, True):
        for step in range(n - 1):
            moved = [((worker + gathering - step) % n, worker) for worker in range(n)]
            values = [held[worker, chunk] for chunk, worker in moved]
            for (chunk, worker), value in zip(moved, values, strict=True):
                to = (worker + 1) % n
                held[to, chunk] = value if gathering else held[to, chunk] + value
            sent, rounds = sent + 1, rounds + 1
    np.testing.assert_allclose(held, np.tile(sums, (n, 1)))
    size, bandwidth, latency_s = 6e6, 1e9, 1e-5
    expected = sent * size / n / bandwidth + rounds * latency_s
    assert cluster.ring_all_reduce_s(n, size, bandwidth, latency_s) == pytest.approx(expected)


def test_one_node_is_a_ring_and_so_is_one_worker_a_node():
    inside = cluster.hierarchical_all_reduce_s(1, 8, 1e8, 2e10, 6e9, 1e-6, 1e-5)
    between = cluster.hierarchical_all_reduce_s(8, 1, 1e8, 2e10, 6e9, 1e-6, 1e-5)
    assert inside == cluster.ring_all_reduce_s(8, 1e8, 2e10, 1e-6)
    assert between == cluster.ring_all_reduce_s(8, 1e8, 6e9, 1e-5)


def test_servers_bound_the_asynchronous_rate():
    assert cluster.asynchronous_steps_per_s(4, 0.5, 1e6, 1e9) == 8
    carried = 1 / cluster.parameter_server_s(1, 1e8, 1e9, n_shards=2)
    assert cluster.asynchronous_steps_per_s(64, 0.5, 1e8, 1e9, n_shards=2) == carried == 10
    assert cluster.asynchronous_steps_per_s(64, 0.5, 0, 1e9) == 128
    assert cluster.staleness(9) == 8
    assert cluster.staleness(9, slack=0) == 0


def test_one_bit_gradients_are_32_times_smaller_but_for_scales():
    assert cluster.compressed_bytes(64e6) == 2e6
    assert cluster.compressed_bytes(64e6, n_tensors=100) == 2e6 + 800


def test_the_stretch_is_about_the_slowest_of_many_normal_steps():
    """The formula is the limit of many workers and an upper estimate below it."""
    rng = np.random.default_rng(0)
    for n in (8, 64, 512):
        slowest = (1 + 0.05 * rng.normal(size=(4000, n))).max(axis=1).mean()
        assert slowest < cluster.straggler_stretch(n, 0.05) < slowest * 1.04
    assert cluster.straggler_stretch(64, 0.05, slack=3) - 1 == pytest.approx(
        (cluster.straggler_stretch(64, 0.05) - 1) / 2
    )


@pytest.mark.parametrize("stages, microbatches", [(1, 5), (4, 1), (4, 12), (8, 3)])
def test_the_bubble_equals_a_walk_over_the_pipeline(stages, microbatches):
    busy = {(stage, stage + batch) for stage in range(stages) for batch in range(microbatches)}
    ticks = 1 + max(tick for _, tick in busy)
    idle = 1 - len(busy) / (stages * ticks)
    assert cluster.pipeline_bubble(stages, microbatches) == pytest.approx(idle)


@given(
    n=st.integers(1, 4096),
    forward_s=st.floats(1e-4, 10),
    backward_s=st.floats(1e-4, 10),
    size=st.floats(0, 1e10),
    bandwidth=st.floats(1e6, 1e12),
    overlap=st.floats(0, 1),
    spread=st.floats(0, 0.5),
)
def test_more_overlap_and_bandwidth_never_hurt_and_speedup_is_bounded(
    n, forward_s, backward_s, size, bandwidth, overlap, spread
):
    def step_s(overlap=overlap, bandwidth=bandwidth, size=size, slack=0):
        communication_s = cluster.ring_all_reduce_s(n, size, bandwidth)
        return cluster.synchronous_step_s(
            forward_s, backward_s, communication_s, n, overlap=overlap, spread=spread, slack=slack
        )

    assert np.isfinite(step_s()) and step_s() >= forward_s + backward_s
    assert step_s(overlap=1) <= step_s() <= step_s(overlap=0)
    assert step_s(bandwidth=2 * bandwidth) <= step_s()
    assert step_s(size=cluster.compressed_bytes(size)) <= step_s()
    assert step_s(slack=4) <= step_s()
    assert cluster.speedup(n, forward_s + backward_s, step_s()) <= n * (1 + 1e-12)


def test_formulas_broadcast():
    seconds = cluster.ring_all_reduce_s(np.array([[1], [2], [8]]), np.array([1e6, 2e6]), 1e9)
    assert seconds.shape == (3, 2) and (seconds[0] == 0).all()


def test_what_makes_no_sense_is_named():
    with pytest.raises(ValueError, match="n_workers must be finite and 1 or more, got 0"):
        cluster.ring_all_reduce_s(0, 1e6, 1e9)
    with pytest.raises(ValueError, match="bandwidth must be finite and above 0, got nan"):
        cluster.parameter_server_s(2, 1e6, float("nan"))
    with pytest.raises(ValueError, match="overlap must be finite and from 0 to 1, got 1"):
        cluster.exposed_s(1.0, 1.0, 1.5)
