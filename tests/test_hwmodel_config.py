"""Configurations broadcast, slice and refuse; named devices say where they are from."""

import numpy as np
import pytest

from hwmodel import DEVICES, Configs, device

GOOD = DEVICES["systolic-edge-16"].parameters


def test_scalars_broadcast_to_the_longest():
    configs = Configs(**{**GOOD, "rows": [8, 16, 32], "dataflow": ["os", "ws", "is"]})
    assert len(configs) == 3
    assert configs.columns.tolist() == [16, 16, 16]
    assert configs.dataflow.tolist() == ["os", "ws", "is"]


def test_slices_masks_indices_and_concat_agree():
    configs = Configs(**{**GOOD, "rows": np.arange(1, 6)})
    assert configs[1:3].rows.tolist() == [2, 3]
    assert configs[configs.rows > 3].rows.tolist() == [4, 5]
    assert len(configs[2]) == 1
    assert configs.take([4, 0, 0]).rows.tolist() == [5, 1, 1]
    joined = Configs.concat([configs[:2], configs[2:]])
    for field in Configs.FIELDS:
        assert getattr(joined, field).tolist() == getattr(configs, field).tolist()
    with pytest.raises(ValueError, match="empty sequence"):
        Configs.concat([])


@pytest.mark.parametrize("name", DEVICES)
def test_devices_round_trip_and_have_provenance(name):
    assert device(name).row(0) == DEVICES[name].parameters
    assert set(DEVICES[name].parameters) == set(DEVICES[name].configs.FIELDS)
    assert f"{device(name).technology_nm[0]} nm" in DEVICES[name].provenance


def test_an_unknown_device_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="unknown device 'tpu-1'; did you mean 'tpu-v1'"):
        device("tpu-1")


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("rows", 0, "rows must be a whole number from 1"),
        ("columns", 2.5, "got 2.5 at configuration 0"),
        ("rows", [4, float("nan")], "got nan at configuration 1"),
        ("clock_hz", 0.0, "clock_hz must be finite and above 0, got 0.0"),
        ("dram_bandwidth", float("inf"), "got inf"),
        ("dram_bandwidth", -1.0, "got -1.0"),
        ("dataflow", "rs", "dataflow must be one of os, ws, is, got 'rs'"),
        ("multiplier", ["fixed8", "fp8"], "got 'fp8' at configuration 1"),
        ("technology_nm", 5, "must be one of 65, 45, 28, 16, 14, 8, 7, got 5"),
        ("double_weight_plane", 2, "must be True or False, got 2"),
        ("vector_lanes", "many", "vector_lanes must be numbers"),
        ("rows", [[1, 2]], "shape [1, 2]"),
    ],
)
def test_bad_parameters_are_refused(field, value, message):
    with pytest.raises(ValueError) as error:
        Configs(**{**GOOD, field: value})
    assert message in str(error.value)


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="each of the 3 configurations"):
        Configs(**{**GOOD, "rows": [1, 2, 3], "columns": [1, 2]})


def test_unknown_and_missing_parameters_are_named():
    with pytest.raises(ValueError, match="unknown parameter 'row'; did you mean 'rows'"):
        Configs(**GOOD, row=3)
    with pytest.raises(ValueError, match="a systolic accelerator needs columns, clock_hz"):
        Configs(**{k: v for k, v in GOOD.items() if k not in ("columns", "clock_hz")})


def test_an_unknown_field_is_named():
    with pytest.raises(AttributeError, match="no 'lanes'; its arrays are rows"):
        _ = device("tpu-v1").lanes
