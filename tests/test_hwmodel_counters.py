"""Counters of a matrix unit: against a walk over tiles, and against those published of TPU v1."""

import numpy as np
import pytest

from benchmarks.systolic_figures import CNN0_TOPS, PROGRAMS, cnn0_layers, program_layers
from hwmodel import Configs, Layers, device, price
from hwmodel.counters import matrix_counters
from hwmodel.devices import DEVICES
from hwmodel.workload import dense, pool


@pytest.mark.parametrize("name", PROGRAMS)
def test_tpu_v1_spends_its_matrix_cycles_as_published(name):
    """Each within 4 points, nothing fitted."""
    published = np.array(PROGRAMS[name].published) / sum(PROGRAMS[name].published)
    shares = matrix_counters(program_layers(name), device("tpu-v1")).shares[0]
    assert np.abs(shares - published).max() < 0.04


def test_cnn0_of_tpu_v1_runs_at_its_published_speed():
    layers, config = cnn0_layers(), device("tpu-v1")
    tops = 2 * layers.macs[0] / price(layers, config).latency_s[0, 0] / 1e12
    assert abs(tops / CNN0_TOPS - 1) < 0.08
    assert matrix_counters(layers, config).stall[0] == 0


def test_a_weight_tile_takes_1349_cycles_to_come():
    tiles = 16
    layers = Layers.from_rows([dense("a", in_features=1024, out_features=1024, batch=200)])
    counters = matrix_counters(layers, device("tpu-v1"))
    assert sum(counters)[0] == pytest.approx(tiles * 65536 * 700e6 / 34e9, abs=1)
    assert counters.active[0] == tiles * 200 and counters.shift[0] == tiles * 256


@pytest.mark.parametrize("bandwidth", [1e6, 1e9, 1e13])
@pytest.mark.parametrize("dataflow", ["os", "ws", "is"])
def test_counters_add_up_to_the_price_without_fill_and_drain(dataflow, bandwidth):
    parameters = DEVICES["systolic-edge-16"].parameters | dict(
        dataflow=dataflow, dram_bandwidth=bandwidth
    )
    config = Configs(**parameters)
    networks = [
        [dense("a", in_features=100, out_features=50, batch=7, repeat=3)],
        [
            pool("p", height=4, width=4, channels=4, kernel=2),
            dense("b", in_features=64, out_features=64),
        ],
    ]
    layers = Layers.concat([Layers.from_rows(rows) for rows in networks])
    counters = matrix_counters(layers, config)
    assert all((cycles >= 0).all() for cycles in counters)
    assert (sum(counters) <= price(layers, config).cycles[:, 0]).all()
    np.testing.assert_allclose(counters.shares.sum(axis=1), 1)
    if bandwidth == 1e13:
        assert (counters.stall == 0).all()


def test_what_has_no_counters_is_named():
    layers = Layers.from_rows([pool("p", height=4, width=4, channels=4, kernel=2)])
    with pytest.raises(ValueError, match="network 0 has no row on the array"):
        matrix_counters(layers, device("tpu-v1"))
    two = Configs.concat([device("tpu-v1"), device("systolic-edge-16")])
    with pytest.raises(ValueError, match="one systolic accelerator"):
        matrix_counters(layers, two)
