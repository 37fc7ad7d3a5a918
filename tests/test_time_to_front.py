"""The benchmark against the clock: fronts of records, volumes by the longer training, its cache."""

import math

import numpy as np
import pytest

from benchmarks.time_to_front import (
    N_NETWORKS,
    Cache,
    finals,
    first_minute,
    front_of,
    network_of,
    objectives,
    record,
)


def records(pairs):
    """(accuracy, latency) each, a minute after the other, of a network each."""
    return [record(i + 1.0, {"cell.width": i, "hw.rows": 8}, *pair) for i, pair in enumerate(pairs)]


def test_a_front_is_of_what_had_landed():
    found = records([(0.5, 1e-3), (0.4, 2e-3), (0.6, 1e-3), (0.3, 1e-4)])
    assert [each["minutes"] for each in front_of(found, 2.5)] == [1]
    assert [each["minutes"] for each in front_of(found, 4)] == [3, 4]
    assert front_of(found, 0.5) == []


def test_a_large_front_keeps_what_adds_most():
    steps = [(0.1 * i, 10.0 ** (i - 9)) for i in range(N_NETWORKS)]
    close = [(0.301, 10.0 ** (3.0001 - 9)), (0.501, 10.0 ** (5.0001 - 9))]
    kept = front_of(records(steps + close), 99)
    assert len(kept) == N_NETWORKS
    accuracies = sorted(each["accuracy"] for each in kept)
    assert np.allclose(accuracies, [accuracy for accuracy, _ in steps], atol=0.01)


def test_what_a_training_sees_names_a_network():
    one = {"cell.width": 8, "train.batch": 32, "serve.batch": 1, "hw.rows": 8}
    assert network_of(one) == network_of({**one, "hw.rows": 16, "serve.batch": 4})
    assert network_of(one) != network_of({**one, "train.batch": 64})


def test_volumes_are_of_the_longer_trainings(tmp_path):
    cache = Cache(tmp_path / "cache.json", {"minutes": 1})
    found = records([(0.5, 1e-3), (0.4, 1e-4)])
    for each, accuracy in zip(found, (0.7, 0.8), strict=True):
        cache[f"final {network_of(each['choices'])}"] = accuracy
    again = Cache(tmp_path / "cache.json", {"minutes": 1})
    assert finals(found, again).tolist() == [[0.7, 3.0], [0.8, 4.0]]
    assert objectives(found, [0.1, 0.2]).tolist() == [[0.1, 3.0], [0.2, 4.0]]
    with pytest.raises(ValueError, match="name another --cache"):
        Cache(tmp_path / "cache.json", {"minutes": 2})


def test_the_first_minute_at_which_a_volume_is_held():
    theirs, reference = np.array([[0.5, 3.0]]), np.zeros(2)
    course = {1.0: np.array([[0.4, 3.0]]), 2.0: np.array([[0.5, 3.0]]), 3.0: theirs + 1}
    assert first_minute(course, theirs, reference) == 2
    assert first_minute({1.0: np.empty((0, 2))}, theirs, reference) == math.inf
