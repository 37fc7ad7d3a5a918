"""`nas price`: what it prints is what hwmodel says, and every mistake is one line."""

import json
import os
import subprocess
import sys
import zipfile

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from hwmodel import Layers, device, price, price_layers
from hwmodel.cost import ENERGIES
from hwmodel.devices import save_device
from hwmodel.measured import Configs
from hwmodel.training import training_step
from nas import cli
from nas.price_model import FIGURES, figure, price_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """tiny.keras, models that cannot be read, and a measured device."""
    import keras
    from keras import layers

    folder = tmp_path_factory.mktemp("models")
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(image)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    keras.Model(image, layers.Dense(10, name="classes")(x)).save(folder / "tiny.keras")

    class Own(layers.Layer):
        def call(self, x):
            return x

    keras.Model(image, Own()(image)).save(folder / "own.keras")
    keras.Model(image, layers.Lambda(lambda x: x + 1)(image)).save(folder / "lambda.keras")
    keras.Model(image, layers.RandomRotation(0.1, name="turn")(image)).save(folder / "turn.keras")
    whole = (folder / "tiny.keras").read_bytes()
    (folder / "half.keras").write_bytes(whole[: len(whole) // 2])
    with zipfile.ZipFile(folder / "empty.keras", "w") as archive:
        archive.writestr("metadata.json", "{}")
    (folder / "tiny.h5").write_bytes(b"")
    measured = Configs(product_mac_s=1e-9, vector_op_s=1e-9, fixed_s=1e-4)
    save_device(folder / "mine.json", measured, "a test")
    (folder / "broken.json").write_text("{")
    return folder


@pytest.fixture
def command(folder, capsys, monkeypatch):
    """Run `nas price` in the folder: (exit status, standard output, standard error)."""
    monkeypatch.chdir(folder)

    def run(*arguments):
        try:
            cli.main(["price", *map(str, arguments)])
            status = 0
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def rows(model="tiny.keras", batch=1, **bits):
    import keras

    return Layers.from_keras(keras.saving.load_model(model), batch, **bits)


def test_json_is_what_the_model_says(command):
    status, out, err = command(
        "tiny.keras", "--accelerator", "tpu-v2", "--accelerator", "eyeriss", "--batch", 4,
        "--weight-bits", 16, "--activation-bits", 16, "--layers", "--json",
    )  # fmt: skip
    assert status == 0 and not err and out.count("\n") == 1
    table = json.loads(out)
    assert table["model"] == "tiny.keras" and table["batch"] == 4 and not table["training"]
    layers = rows(batch=4, weight_bits=16, activation_bits=16)
    assert [each["accelerator"] for each in table["prices"]] == ["tpu-v2", "eyeriss"]
    for each in table["prices"]:
        cost = price(layers, device(each["accelerator"]))
        for name in set(FIGURES) - {"examples_per_s"}:
            assert each["figures"][name] == getattr(cost, name)[0, 0], name
        assert each["figures"]["examples_per_s"] == 4 / cost.interval_s[0, 0]
        assert each["figures"]["energy_j"] == sum(each["figures"][name] for name in ENERGIES)
        assert each["params"] == 3 * 3 * 3 * 8 + 8 + 8 * 10 + 10 == layers.params[0]
        assert each["macs"] == layers.macs[0] and each["reason"] is None
        expected = price_layers(layers, device(each["accelerator"]))
        assert each["layers"] == expected.to_dict("records")


def test_the_table_names_what_bounds_each_layer(command):
    status, out, _ = command("tiny.keras", "--accelerator", "systolic-edge-16", "--layers")
    assert status == 0
    assert "tiny.keras: 314 parameters; 13,904 multiply-accumulates in one inference" in out
    cost = price(rows(), device("systolic-edge-16"))
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    assert lines["latency"].split()[-2:] == figure(cost.latency_s[0, 0], "s").split()
    assert lines["peak memory"].split()[-1] == "kB" and lines["feasible"].split()[-1] == "yes"
    assert "interval" not in lines, "it is the latency where nothing is pipelined"
    for name in ("stem", "mean", "classes"):
        assert lines[name].split()[-1] in ("compute", "vector", "dram", "sram", "fill")


def test_a_measured_device_is_priced_in_the_bits_it_was_measured_at(folder, monkeypatch):
    monkeypatch.chdir(folder)
    mine, named = price_model("tiny.keras", ["mine.json", "tpu-v1"])
    assert (mine.weight_bits, mine.activation_bits) == (32, 32)
    assert (named.weight_bits, named.activation_bits) == (8, 8)
    assert mine.provenance == "a test" and mine.family == "measured"
    [narrow] = price_model("tiny.keras", ["mine.json"], weight_bits=8)
    assert (narrow.weight_bits, narrow.activation_bits) == (8, 32)


def test_a_training_step(command):
    status, out, _ = command("tiny.keras", "--accelerator", "tpu-v2", "--training", "--json")
    [found] = json.loads(out)["prices"]
    step = training_step(rows(), gradient_bits=16)
    assert status == 0
    assert found["figures"]["latency_s"] == price(step.layers, device("tpu-v2")).latency_s[0, 0]
    assert found["figures"]["peak_memory_bytes"] == step.memory_bytes[0]


def test_what_one_of_two_accelerators_cannot_run_is_said_below_the_table(command):
    wide = ("tiny.keras", "--weight-bits", 32, "--accelerator", "tpu-v1", "--accelerator", "xeon")
    status, out, _ = command(*wide)
    assert status == 0
    assert "tpu-v1 cannot run it: the multipliers cannot run the weight bits" in out
    line = next(line for line in out.splitlines() if line.startswith("latency"))
    assert line.split()[1] == "-"
    first, second = json.loads(command(*wide, "--json")[1])["prices"]
    assert first["figures"] is None and first["reason"] and second["figures"]


def test_layers_can_be_passed_over(command):
    status, out, _ = command(
        "tiny.keras", "--accelerator", "tpu-v1", "--skip", "mean", "Dense", "--layers", "--json"
    )
    assert status == 0
    assert [row["layer"] for row in json.loads(out)["prices"][0]["layers"]] == ["stem", "stem.relu"]


TPU = ("--accelerator", "tpu-v1")
MISTAKES = [
    (("none.keras", *TPU), "no file none.keras; write one with"),
    (("tiny.h5", *TPU), "a file that ends in .keras, got 'tiny.h5'"),
    (("half.keras", *TPU), "half.keras cannot be read (ValueError: "),
    (("empty.keras", *TPU), "empty.keras cannot be read (KeyError: "),
    (("own.keras", *TPU), "own.keras cannot be read (TypeError: Could not locate class 'Own')"),
    (("lambda.keras", *TPU), "lambda.keras cannot be read (ValueError: Requested the"),
    (("turn.keras", *TPU), "'turn'"),
    (("none.keras", "--accelerator", "tpu-v4"), "unknown device 'tpu-v4'; did you mean 'tpu-v"),
    (
        ("tiny.keras", "--accelerator", "none.json"),
        "'none.json' is not a device file: there is none",
    ),
    (("tiny.keras", "--accelerator", "broken.json"), "'broken.json' is not a device file"),
    (("tiny.keras", *TPU, "--weight-bits", 32), "tpu-v1 cannot run it with 32-bit weights and 8-"),
    (("tiny.keras", *TPU, "--training", "--activation-bits", 32), "activations in training: the"),
    (("tiny.keras", *TPU, "--activation-bits", 0), "got 0"),
    (("tiny.keras", *TPU, "--batch", 0), "got 0"),
    (("tiny.keras", *TPU, "--skip", "steem"), "skip names 'steem'"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistakes_are_one_line(command, arguments, message):
    status, out, err = command(*arguments)
    assert status == 2 and not out
    assert message in err and err.startswith("nas: ") and err.count("\n") == 1, err


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.00123456, "s", "1.23 ms"), (999.9e3, "B", "1 MB"), (4e-16, "J", "0.0004 pJ"),
     (0.25, "%", "25.0%"), (66.91, "mm2", "66.9 mm2"), (0.0, "mm2", "-"), (0.0, "J", "0 J")],
)  # fmt: skip
def test_figures_are_readable(value, unit, text):
    assert figure(value, unit) == text


BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "keras"):
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Blocked())
"""


def python(script, *arguments):
    return subprocess.run(
        [sys.executable, "-c", BLOCKED + script, *map(str, arguments)],
        capture_output=True,
        text=True,
    )


def test_without_tensorflow_layers_made_by_hand_are_priced():
    done = python(
        "from hwmodel import DEVICES, Layers, device, price, price_layers\n"
        "from hwmodel.workload import conv, dense\n"
        "layers = Layers.from_rows([\n"
        "    conv('c', height=8, width=8, in_channels=3, out_channels=8, kernel=3),\n"
        "    dense('d', in_features=8, out_features=10)])\n"
        "for name in DEVICES:\n"
        "    assert price(layers, device(name)).latency_s > 0\n"
        "assert len(price_layers(layers, device('tpu-v1'))) == 2"
    )
    assert done.returncode == 0, done.stderr


def test_without_tensorflow_the_command_says_so(folder):
    done = python(
        "from nas import cli\ncli.main(sys.argv[1:])",
        "price", folder / "tiny.keras", "--accelerator", "tpu-v1",
    )  # fmt: skip
    assert done.returncode == 1 and not done.stdout
    assert "needs Keras and a backend" in done.stderr and done.stderr.count("\n") == 1
