"""Files for other simulators say what the design says, and refuse what they cannot say."""

import configparser
import csv
import json

import pytest

from hwmodel import Configs, Layers, device
from hwmodel.handover import products_of
from hwmodel.scalesim import write_scalesim
from hwmodel.workload import conv, dense, depthwise, lstm, pool
from hwmodel.zigzag import write_zigzag

PLAIN = device("systolic-edge-16").row(0) | {"double_weight_plane": False}
DENSE = dense("head, last", batch=4, in_features=30, out_features=20, repeat=2)


def network(*rows) -> Layers:
    return Layers.from_rows(rows)


def body(path) -> str:
    return "".join(line for line in path.open() if not line.startswith("#"))


def test_groups_steps_and_repeats_are_counted():
    rows = [
        conv("g", height=4, width=4, in_channels=8, out_channels=12, kernel=3, groups=4),
        depthwise("dw", height=4, width=4, channels=6, kernel=3),
        *lstm("l", steps=7, in_features=5, units=3, batch=2),
        DENSE,
    ]
    products = products_of(network(*rows), Configs(**PLAIN))
    assert [(p.name, p.m, p.k, p.n, p.count) for p in products] == [
        ("g", 16, 18, 3, 4),
        ("dw", 16, 9, 1, 6),
        ("l.input", 14, 5, 12, 1),
        ("l.recurrent", 2, 3, 12, 7),
        ("head, last", 4, 30, 20, 2),
    ]
    on_vector = products_of(network(*rows), Configs(**PLAIN | {"depthwise_on": "vector"}))
    assert "dw" not in [product.name for product in on_vector]


@pytest.mark.parametrize("dataflow, sum_bytes", [("os", 1), ("ws", 4), ("is", 4)])
def test_scalesim_files(tmp_path, dataflow, sum_bytes):
    config = Configs(**PLAIN | {"dataflow": dataflow, "columns": 24, "clock_hz": 3e8})
    files = write_scalesim(
        network(DENSE, pool("p", height=4, width=4, channels=2, kernel=2)),
        config,
        tmp_path / "design",
    )
    parser = configparser.ConfigParser()
    parser.read(files.config)
    array = dict(parser["architecture_presets"])
    assert (array["arrayheight"], array["arraywidth"], array["dataflow"]) == ("16", "24", dataflow)
    assert (array["ifmapsramszkb"], array["filtersramszkb"]) == ("128", "128")
    assert array["ofmapsramszkb"] == str(64 // sum_bytes)
    assert array["bandwidth"] == "27,27,27"
    assert parser["run_presets"]["InterfaceBandwidth"] == "USER"
    header, line = csv.reader(files.topology.open(), skipinitialspace=True)
    assert header == ["Layer", "M", "N", "K", ""]
    assert line == ["head  last x2", "4", "20", "30", ""]
    notes = files.config.read_text()
    assert "# left out, for the vector unit: p" in notes
    assert "rounded to [27, 27, 27]" in notes
    calc = write_scalesim(network(DENSE), config, tmp_path / "calc", stalls=False)
    assert "InterfaceBandwidth = CALC" in calc.config.read_text()
    assert calc.differences == []


def test_scalesim_says_what_it_cannot_model(tmp_path):
    window = conv("c", height=8, width=8, in_channels=4, out_channels=4, kernel=3, nm=(2, 4))
    files = write_scalesim(network(window), device("systolic-edge-16"), tmp_path)
    assert len(files.differences) == 3
    for word in ("plane", "sparse", "unfolded"):
        assert any(word in note for note in files.differences)


@pytest.mark.parametrize(
    "dataflow, along, stationary",
    [
        ("os", ("B, 16", "K, 24"), "O"),
        ("ws", ("C, 16", "K, 24"), "I2"),
        ("is", ("C, 16", "B, 24"), "I1"),
    ],
)
def test_zigzag_files(tmp_path, dataflow, along, stationary):
    config = Configs(**PLAIN | {"dataflow": dataflow, "columns": 24})
    files = write_zigzag(network(DENSE), config, tmp_path)
    accelerator, [mapping], [layer] = (
        json.loads(body(path)) for path in (files.accelerator, files.mapping, files.workload)
    )
    assert accelerator["operational_array"]["sizes"] == [16, 24]
    memories = accelerator["memories"]
    assert memories["register"]["operands"] == [stationary]
    assert memories["sram_output"]["size"] == 8 * PLAIN["sram_output_bytes"]
    [port] = memories["dram"]["ports"]
    assert port["bandwidth_max"] == 8 * 16
    assert tuple(mapping["spatial_mapping"][d][0] for d in ("D1", "D2")) == along
    assert dict(zip(layer["loop_dims"], layer["loop_sizes"], strict=True)) == {
        "B": 4,
        "K": 20,
        "C": 30,
    }
    doubled = Configs(**PLAIN | {"dataflow": dataflow, "double_weight_plane": True})
    other = json.loads(body(write_zigzag(network(DENSE), doubled, tmp_path).accelerator))
    planes = other["memories"]["register"]["size"] / memories["register"]["size"]
    assert planes == (1 if dataflow == "os" else 2)


def test_what_cannot_be_handed_over_is_refused(tmp_path):
    config, one = Configs(**PLAIN), network(DENSE)
    narrow = dense("narrow", in_features=8, out_features=8, weight_bits=4)
    with pytest.raises(ValueError, match="one network and one systolic accelerator, got 2"):
        write_scalesim(Layers.concat([one, one]), config, tmp_path)
    with pytest.raises(ValueError, match="no row runs on the array, got p"):
        write_zigzag(network(pool("p", height=4, width=4, channels=2, kernel=2)), config, tmp_path)
    with pytest.raises(ValueError, match=r"one word for all layers, .*\(4, 8, 8\), \(8, 8, 8\)"):
        write_scalesim(network(DENSE, narrow), config, tmp_path)
    with pytest.raises(ValueError, match=r"sram_input_bytes of 1,024 words or more, got 0\.5"):
        write_scalesim(one, Configs(**PLAIN | {"sram_input_bytes": 512}), tmp_path)
    slow = Configs(**PLAIN | {"dram_bandwidth": 1e6})
    with pytest.raises(ValueError, match="dram_bandwidth of a word a cycle"):
        write_scalesim(one, slow, tmp_path)
    with pytest.raises(ValueError, match="dram_bandwidth of a bit a cycle"):
        write_zigzag(one, slow, tmp_path)
