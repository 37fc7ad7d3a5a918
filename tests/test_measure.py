"""Measuring a machine: fit, check and device file against a machine whose law is known."""

import json
import os
import time

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from hwmodel import Layers, device, price
from hwmodel.devices import find_device
from hwmodel.measured import Configs
from nas import cli, measure, timing
from search_spaces import cell
from search_spaces.ops import Precision
from search_spaces.precision import GROUPS

LAW = Configs(
    product_mac_s=3e-11,
    vector_op_s=4e-10,
    product_launch_s=6e-6,
    vector_launch_s=3e-6,
    weight_byte_s=1e-10,
    fixed_s=8e-5,
)


@pytest.fixture(scope="module")
def layers():
    """As many networks of the cell space as are timed, in 32 bits, made without Keras."""
    rng, found = np.random.default_rng(3), []
    space = cell.SPACE.restrict({})
    while len(found) < measure.N_FITTED + measure.N_UNSEEN:
        choices = space.decode(space.sample(1, rng)[0])
        bits = [Precision(timing.BITS, timing.BITS)] * len(GROUPS)
        try:
            found.append(cell.network(choices).layers(bits, int(rng.choice([1, 4, 16]))))
        except cell.DisconnectedError:
            continue
    return Layers.concat(found)


def seconds_of(layers, noise=0.0):
    seconds = price(layers, LAW).latency_s[:, 0]
    return seconds * np.exp(np.random.default_rng(0).normal(0, noise, len(seconds)))


@pytest.fixture
def timed_by_law(monkeypatch, layers):
    """The machine of LAW in place of this one."""
    asked = []

    def time_networks(threads, seed, shown):
        asked.append((threads, seed))
        return layers, seconds_of(layers)

    monkeypatch.setattr(measure, "time_networks", time_networks)
    return asked


def test_a_machine_of_known_law_is_predicted(layers):
    exact = measure.fit_and_check(layers, seconds_of(layers))
    assert len(exact.errors) == measure.N_UNSEEN == 20
    assert exact.errors.max() < 0.05
    unseen = layers.take(np.arange(measure.N_FITTED, layers.n_networks))
    np.testing.assert_array_equal(exact.measured_s, seconds_of(layers)[measure.N_FITTED :])
    np.testing.assert_array_equal(
        exact.predicted_s, price(unseen, exact.calibration.configs).latency_s[:, 0]
    )
    noisy = measure.fit_and_check(layers, seconds_of(layers, noise=0.2))
    assert 0.05 < np.median(noisy.errors) < 0.3, "noise is not hidden"


def test_what_is_unseen_does_not_enter_the_fit(layers):
    seconds = seconds_of(layers)
    fitted = measure.fit_and_check(layers, seconds).calibration.configs
    seconds[measure.N_FITTED :] *= 3
    other = measure.fit_and_check(layers, seconds)
    assert other.calibration.configs.row(0) == fitted.row(0)
    np.testing.assert_allclose(other.errors, 2 / 3, atol=0.02)
    assert f"the median error is {np.median(other.errors):.1%}" in other.summary


def test_the_command_saves_a_device_that_can_be_named(timed_by_law, tmp_path, capsys, layers):
    path = tmp_path / "mine.json"
    cli.main(["measure", "--to", str(path), "--threads", "1"])
    out = capsys.readouterr().out
    assert timed_by_law == [(1, 0)]
    assert "20 unseen networks" in out and f"--accelerator {path}" in out
    assert [each.name for each in tmp_path.iterdir()] == ["mine.json"]
    np.testing.assert_allclose(
        price(layers, device(path)).latency_s[:, 0], seconds_of(layers), rtol=0.05
    )
    provenance = find_device(path).provenance
    assert "1 of its threads" in provenance and "40 measured networks" in provenance
    assert "Only latency was measured" in provenance
    assert measure.cpu_name() in provenance and json.loads(path.read_text())["family"] == "measured"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--to", "mine.toml"), "ends in .json, got 'mine.toml'"),
        (("--to", "nowhere/mine.json"), "no directory nowhere"),
        (("--to", "mine.json", "--threads", "0"), "got 0"),
        (("--to", "mine.json", "--threads", "100000"), "got 100000"),
    ],
)
def test_mistakes_are_told_before_anything_is_timed(
    timed_by_law, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["measure", *arguments])
    assert stop.value.code == 2 and not timed_by_law and not list(tmp_path.iterdir())
    assert message in capsys.readouterr().err


def test_a_failed_process_says_its_last_line():
    with (
        pytest.raises(RuntimeError, match="exit status 1: ValueError: invalid literal"),
        measure.timing_process(["out.npz", "many", "0", "1"], 1) as lines,
    ):
        assert not list(lines)


def test_timed_networks_round_trip(layers, tmp_path):
    timing.write_timed(tmp_path / "timed.npz", layers, seconds_of(layers))
    read, seconds = timing.read_timed(tmp_path / "timed.npz")
    np.testing.assert_array_equal(seconds, seconds_of(layers))
    assert read.names.tolist() == layers.names.tolist()
    np.testing.assert_array_equal(read.offsets, layers.offsets)
    for name, column in layers.columns.items():
        np.testing.assert_array_equal(read.columns[name], column, name)


def test_rounds_time_every_call():
    slow, quick = (lambda: time.sleep(0.004)), (lambda: time.sleep(0.001))
    rounds = []
    seconds = timing.time_all([slow, quick], 3, rounds.append)
    assert rounds == [0, 1, 2]
    assert 0.004 <= seconds[0] < 0.02 and 0.001 <= seconds[1] < 0.004


@pytest.mark.parametrize("kind", range(len(timing.KINDS)))
def test_networks_of_every_kind_run_and_have_rows(kind):
    model, batch = timing.network(kind, seed=0)
    again, same_batch = timing.network(kind, seed=0)
    assert model.count_params() == again.count_params() and batch == same_batch
    layers = Layers.from_keras(model, batch, weight_bits=timing.BITS, activation_bits=timing.BITS)
    assert layers.macs[0] > 0
    if kind in (1, 7):  # one with convolutions, one without
        assert timing.runner(model, batch)().shape == (batch, model.outputs[0].shape[-1])
