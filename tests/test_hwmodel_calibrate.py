"""Calibration: rates are found again, outliers do not steer, device files round-trip; and, where
the data is at hand, measured networks are predicted as the benchmark says."""

import json

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from hwmodel import Layers, device, price, price_layers
from hwmodel.calibrate import PRIORS, calibrate, design_matrix
from hwmodel.devices import save_device
from hwmodel.measured import RATES, Configs, padding
from hwmodel.workload import conv, dense, depthwise, elementwise, pool

TRUE = dict(
    product_mac_s=2e-12,
    depthwise_mac_s=3e-11,
    vector_op_s=1e-11,
    product_byte_s=4e-11,
    product_launch_s=5e-6,
    depthwise_launch_s=8e-6,
    vector_launch_s=2e-6,
    weight_byte_s=5e-11,
    fixed_s=2e-4,
)


def network(rng: np.random.Generator) -> Layers:
    size, channels = 32, int(rng.choice([16, 32, 64]))
    rows = [conv("stem", height=size, width=size, in_channels=3, out_channels=channels, kernel=3)]
    for layer in range(rng.integers(2, 9)):
        at = dict(height=size, width=size)
        kernel = int(rng.choice([1, 3, 5]))
        rows += [
            depthwise(f"{layer}.d", **at, channels=channels, kernel=kernel),
            conv(f"{layer}.c", **at, in_channels=channels, out_channels=2 * channels, kernel=1),
            elementwise(f"{layer}.r", elements=2 * channels * size * size, n_inputs=1),
            conv(
                f"{layer}.p",
                **at,
                in_channels=2 * channels,
                out_channels=channels,
                kernel=int(rng.choice([1, 3])),
            ),
        ]
    rows += [
        pool("mean", height=size, width=size, channels=channels, kernel=size),
        dense("head", in_features=channels, out_features=int(rng.choice([10, 1000]))),
    ]
    return Layers.from_rows(rows)


def networks(n: int, seed: int = 0) -> Layers:
    rng = np.random.default_rng(seed)
    return Layers.concat([network(rng) for _ in range(n)])


@pytest.fixture(scope="module")
def timed():
    layers = networks(160)
    return layers, price(layers, Configs(**TRUE)).latency_s[:, 0]


@pytest.mark.parametrize("family", PRIORS)
def test_a_device_of_known_rates_is_found_again(timed, family):
    layers, _ = timed
    true = Configs(**TRUE, granule=PRIORS[family].granule)
    seconds = price(layers, true).latency_s[:, 0]
    seen, unseen = np.arange(100), np.arange(100, 160)
    found = calibrate(layers.take(seen), seconds[seen], family)
    predicted = price(layers.take(unseen), found.configs).latency_s[:, 0]
    assert np.abs(predicted / seconds[unseen] - 1).mean() < 0.01
    assert found.error < 0.015
    assert f"{100 * found.error:.1f} % on average" in found.provenance


def test_outliers_do_not_steer(timed):
    layers, seconds = timed
    rng = np.random.default_rng(1)
    disturbed = seconds * rng.normal(1, 0.02, len(seconds))
    disturbed[rng.choice(120, 12, replace=False)] *= 8
    seen, unseen = np.arange(120), np.arange(120, 160)
    found = calibrate(layers.take(seen), disturbed[seen], "cpu").configs
    predicted = price(layers.take(unseen), found).latency_s[:, 0]
    assert np.abs(predicted / seconds[unseen] - 1).mean() < 0.03


def test_ten_networks_rank_others(timed):
    layers, seconds = timed
    found = calibrate(layers.take(np.arange(10)), seconds[:10], "gpu").configs
    assert spearmanr(price(layers, found).latency_s[:, 0], seconds)[0] > 0.95


def test_the_on_chip_memory_is_found(timed):
    layers, _ = timed
    true = Configs(**TRUE, product_spilled_byte_s=4e-10, resident_bytes=2**16, spill="excess")
    seconds = price(layers, true).latency_s[:, 0]
    found = calibrate(layers, seconds, "cpu")
    # tensors here are of 32, 64 and 128 KiB: any size from the second to the third explains them
    assert 2**16 <= found.configs.resident_bytes[0] < 2**17
    assert found.error < 0.01


def test_the_table_of_quantities_times_rates_is_the_price(timed):
    layers, seconds = timed
    table = design_matrix(layers, 1, 0, "whole")
    rates = [TRUE.get(name, 0.0) for name in (*RATES, "fixed_s")]
    np.testing.assert_allclose(table @ rates, seconds, rtol=1e-12)


def test_a_row_by_hand():
    layers = Layers.from_rows(
        [conv("c", height=8, width=8, in_channels=4, out_channels=16, kernel=3, repeat=2)]
    )
    known = Configs(
        product_mac_s=1e-9, product_byte_s=1e-6, product_launch_s=0.5, weight_byte_s=1, fixed_s=3
    )
    macs, tensors, weights = 64 * 36 * 16, 64 * 4 + 64 * 16, 36 * 16
    expected = 2 * (macs * 1e-9 + tensors * 1e-6 + 0.5 + weights) + 3
    np.testing.assert_allclose(price(layers, known).latency_s, expected)
    assert price_layers(layers, known).bound.tolist() == ["dram"]
    np.testing.assert_allclose(padding(np.array([1, 16, 17]), 16), [16, 1, 32 / 17])


@pytest.mark.parametrize("rate", (*RATES, "fixed_s"))
def test_a_slower_device_is_never_faster(timed, rate):
    layers, _ = timed
    base, slower = Configs(**TRUE), Configs(**{**TRUE, rate: TRUE.get(rate, 0.0) + 1e-9})
    assert (price(layers, slower).latency_s >= price(layers, base).latency_s).all()


def test_device_files_round_trip(timed, tmp_path):
    layers, seconds = timed
    found = calibrate(layers, seconds, "fpga", static_w=3.5, technology_nm=16)
    path = tmp_path / "mine.json"
    save_device(path, found.configs, found.provenance)
    read = device(path)
    assert read.row(0) == found.configs.row(0)
    np.testing.assert_array_equal(
        price(layers, read).energy_j, price(layers, found.configs).energy_j
    )
    assert [each.name for each in tmp_path.iterdir()] == ["mine.json"]
    save_device(path, device("tpu-v1"), "copied")
    assert device(str(path)).row(0) == device("tpu-v1").row(0)


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "there is none"),
        ("{", "not a device file"),
        ('{"provenance": "", "parameters": {}}', "'family'"),
        (json.dumps(dict(family="quantum", provenance="", parameters={})), "'quantum'"),
        (
            json.dumps(dict(family="measured", provenance="", parameters={"fixed_s": -1})),
            "fixed_s must be finite and not negative, got -1",
        ),
    ],
)
def test_bad_device_files_are_refused_by_name(tmp_path, text, message):
    path = tmp_path / "bad.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=r"bad\.json' is not a device file") as error:
        device(path)
    assert message in str(error.value)


def test_bad_calibrations_are_refused(timed):
    layers, seconds = timed
    with pytest.raises(ValueError, match="unknown family 'gpus'; did you mean 'gpu'"):
        calibrate(layers, seconds, "gpus")
    with pytest.raises(ValueError, match=r"one value per network \[160\], got shape \[3\]"):
        calibrate(layers, seconds[:3], "gpu")
    with pytest.raises(ValueError, match="at least 5 networks, got 4"):
        calibrate(layers.take(np.arange(4)), seconds[:4], "gpu")
    with pytest.raises(ValueError, match="got nan at network 7"):
        calibrate(layers, np.where(np.arange(160) == 7, np.nan, seconds), "gpu")
    with pytest.raises(ValueError, match="one accelerator and ends in"):
        save_device("device.toml", device("tpu-v1"), "")


def test_words_wider_than_were_measured_are_infeasible(timed):
    layers, seconds = timed
    found = calibrate(layers, seconds, "cpu").configs
    wide = Layers.from_rows([dense("d", in_features=8, out_features=8, weight_bits=16)])
    assert price(wide, found).reason(0, 0) == "the device was measured with narrower weights"
    with pytest.raises(ValueError, match="row 'd' with 16-bit weights"):
        price_layers(wide, found)


def test_measured_networks_of_accel_nas_bench():
    from benchmarks.measured_networks import mnasnet, read

    table = read("accel_nas_bench.csv.gz")
    if table is None:
        pytest.skip("../shared/data/accel_nas_bench.csv.gz is not there")
    table = table.dropna().iloc[np.random.default_rng(5).permutation(2000)[:300]]
    layers = Layers.concat([mnasnet(record) for record in table.to_dict("records")])
    np.testing.assert_allclose(layers.params / 1e6, table["params_m"], rtol=0.011)
    seen, unseen = np.arange(100), np.arange(100, 300)
    for family, seconds, most, least in (
        ("gpu", 1 / table["throughput_a100"], 0.01, 0.98),
        ("systolic", 1 / table["throughput_tpuv2"], 0.05, 0.92),
        ("fpga", table["latency_zcu102"], 0.06, 0.93),
    ):
        seconds = seconds.to_numpy()
        found = calibrate(layers.take(seen), seconds[seen], family)
        predicted = price(layers.take(unseen), found.configs).latency_s[:, 0]
        assert np.abs(predicted / seconds[unseen] - 1).mean() < most
        assert kendalltau(predicted, seconds[unseen])[0] > least
        assert found.error < most
