"""Contracts over the table of network families: priced, built, trained and exported alike."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_ops import keras_macs, keras_params

from nas import config as configuration
from nas.evaluators.proxy import Proxy
from nas.train import Recipe, Trainer
from search_spaces import IMAGES as FAMILIES
from search_spaces import joint, mobile, nasnet
from search_spaces.network import IMAGE
from search_spaces.ops import Activation, Add, Concat, DepthwiseConvolution
from search_spaces.precision import GROUPS, precisions
from search_spaces.quantizers import UnbuildableError, dequantized

SMALL = {
    "cell": {"cell.width": [4, 8], "cell.depth": [1], "cell.resolution": [16]},
    "nasnet": {"nasnet.width": [4, 8], "nasnet.cells": [1], "nasnet.resolution": [16],
               "nasnet.blocks": [2, 3]},
    "mobile": {"mobile.width": [0.25], "mobile.resolution": [16],
               **{f"mobile.stage{s}.depth": [1, 2] for s in range(3)}},
}  # fmt: skip
BITS = {f"bits.{what}.stage{s}": [2, 4, 8] for what in ("weights", "activations") for s in range(3)}
FUNCTIONS = {"net.activation": ["relu", "silu", "gelu", "hswish"]}


def random_designs(family, n, seed=0, **narrowed):
    """Choices of `n` random networks that there are."""
    space = joint(family).restrict({**BITS, **FUNCTIONS, **narrowed})
    rng = np.random.default_rng(seed)
    found = []
    while len(found) < n:
        choices = space.decode(space.sample(1, rng)[0])
        try:
            FAMILIES[family].layers(choices)
        except UnbuildableError:
            continue
        found.append(choices)
    return found


def designs(n, seed=0):
    return [(family, each) for family in FAMILIES for each in random_designs(family, n, seed)]


def small_designs(n, seed=0):
    return [
        (family, each)
        for family in FAMILIES
        for each in random_designs(family, n, seed, **SMALL[family])
    ]


@pytest.mark.parametrize(("family", "choices"), small_designs(4))
def test_priced_and_built_networks_agree(family, choices):
    model = FAMILIES[family].build(choices)
    layers = FAMILIES[family].layers(choices)
    assert layers.macs[0] == choices["serve.batch"] * keras_macs(model)
    assert layers.params[0] == keras_params(model)
    assert model.output.shape == (None, 10)


@pytest.mark.parametrize(("family", "choices"), designs(40, seed=1))
def test_every_design_is_a_connected_network(family, choices):
    network = FAMILIES[family].network(choices)
    assert network.groups == GROUPS and network.image[0] == choices[f"{family}.resolution"]
    names = [step.name for step in network.steps]
    assert len(set(names)) == len(names)
    read = {j for step in network.steps for j in step.inputs}
    assert read == {IMAGE, *range(len(names) - 1)}, "all steps but the last are read"
    for step, inputs in zip(network.steps, network.inputs, strict=True):
        if isinstance(step.op, Add):
            assert len(set(inputs)) == 1, f"{step.name} adds {inputs}"
        if isinstance(step.op, Concat):
            assert len({shape[:2] for shape in inputs}) == 1
    sides = {shapes[0][0] for shapes in network.inputs}
    assert network.image[0] // 4 in sides and network.inputs[-1][0][:2] == (1, 1)
    table = FAMILIES[family].layers(choices)
    assert table.macs[0] > 0
    # products read what an activation quantized, or the image
    made = [type(step.op) for step in network.steps]
    for step in network.steps:
        if any(p.kind == "kernel" for p in step.op.parameters([(1, 1, 1)])):
            assert all(j == IMAGE or made[j] is Activation for j in step.inputs), step.name


@pytest.mark.parametrize("family", FAMILIES)
def test_stage_bits_price_their_own_layers(family):
    (choices,) = random_designs(family, 1, seed=2, **SMALL[family])
    choices = choices | {"bits.weights.stage1": 3, "bits.activations.stage1": 5, "bits.ends": 16}
    table = FAMILIES[family].layers(choices)
    stage = np.array([name.startswith("stage1") for name in table.names]) & (table.row_macs > 0)
    assert stage.any() and set(table.weight_bits[stage]) == {3}
    assert set(table.activation_bits[stage]) == {5}
    ends = np.isin(table.names, ["stem", "head.dense"])
    assert set(table.weight_bits[ends]) == {16}


@pytest.mark.parametrize(("family", "choices"), small_designs(1, seed=3))
def test_the_exported_network_scores_as_the_loop_that_trained_it(family, choices):
    choices = choices | dict.fromkeys(BITS, 4) | {"net.activation": "silu"}
    rng = np.random.default_rng(0)
    y = (np.arange(600) % 10).astype(np.int32)
    centres = rng.normal(0, 1, (10, 16, 16, 3))
    x = (centres[y] + rng.normal(0, 1, (600, 16, 16, 3))).astype(np.float32)
    network = FAMILIES[family].network(choices)
    bits = precisions(choices)
    weight_bits, activation_bits = zip(*bits, strict=True)
    recipe = Recipe(10, 2, 0.05, 0.2, weight_bits, activation_bits)
    trained = Trainer().fit(network, x[:350], y[:350], recipe, seed=0)
    assert trained.curve[-1]["loss"] < trained.curve[0]["loss"]
    tensors = trained.tensors()
    model = network.keras(
        [tensors[f"{network.steps[p.step].name}/clip"] for p in network.places
         if p.parameter.kind == "clip"],
        activation_bits,
    )  # fmt: skip
    for i, step in enumerate(network.steps):
        own = {p.name: tensors[f"{step.name}/{p.name}"]
               for p in step.op.parameters(network.inputs[i])}  # fmt: skip
        if "kernel" in own:
            step_size = tensors[f"{step.name}/kernel.step"]
            own["kernel"] = dequantized(own["kernel"], step_size, weight_bits[step.group])
        moments = [tensors[k] for k in (f"{step.name}/mean", f"{step.name}/variance")
                   if k in tensors]  # fmt: skip
        for layer, weights in step.op.keras_weights(step.name, own, moments).items():
            model.get_layer(layer).set_weights(weights)
    right = (model.predict(x[350:], verbose=0).argmax(-1) == y[350:]).mean()
    accuracy, _ = trained.score(x[350:], y[350:])
    assert right == pytest.approx(accuracy, abs=2 / 250)
    assert accuracy > 0.3


def test_blocks_that_are_not_there_decide_nothing():
    space = nasnet.SPACE.restrict({"nasnet.blocks": [2]})
    assert not any("block2" in name for name in space.names)
    choices = nasnet.SPACE.decode(nasnet.SPACE.sample(1, np.random.default_rng(0))[0])
    blocks = {name.split(".")[2] for name in choices if name.count(".") == 3}
    assert len(blocks) == choices["nasnet.blocks"]


def nasnet_design(blocks, **choices):
    """Choices of a network whose two kinds of cells are the same `blocks`: (in0, op0, in1, op1)."""
    chosen = {"nasnet.blocks": len(blocks), "nasnet.width": 4, "nasnet.cells": 1,
              "nasnet.resolution": 16, **choices}  # fmt: skip
    for kind in nasnet.KINDS:
        for i, block in enumerate(blocks):
            for name, value in zip(("input0", "op0", "input1", "op1"), block, strict=True):
                chosen[f"nasnet.{kind}.block{i}.{name}"] = value
    return chosen


def test_blocks_that_nothing_reads_are_the_output_of_a_cell():
    apart = nasnet_design([("cell-2", "identity", "cell-1", "identity"),
                           ("cell-1", "max_pool_3x3", "cell-1", "identity")])  # fmt: skip
    chain = nasnet_design([("cell-2", "identity", "cell-1", "identity"),
                           ("block0", "max_pool_3x3", "cell-1", "identity")])  # fmt: skip
    network = nasnet.network(apart)
    at = next(i for i, s in enumerate(network.steps) if s.name == "stage0.cell0.concat")
    assert network.steps[at].op.shape(network.inputs[at]) == (16, 16, 8)
    assert not any("concat" in step.name for step in nasnet.network(chain).steps)


@pytest.mark.parametrize("op", nasnet.OPERATIONS)
def test_every_operation_stands_in_both_kinds_of_cell(op):
    blocks = [("cell-2", op, "cell-1", op), ("block0", op, "cell-1", "identity")]
    network = nasnet.network(nasnet_design(blocks))
    outs = {step.name: step.op.shape(inputs)
            for step, inputs in zip(network.steps, network.inputs, strict=True)}  # fmt: skip
    assert outs["stage0.cell0.block1.add"] == (16, 16, 4)
    assert outs["stage1.cell0.block1.add"] == (8, 8, 8)
    assert outs["stage2.cell1.block1.add"] == (4, 4, 16)


def mobile_design(**choices):
    chosen = {"mobile.width": 1.0, "mobile.resolution": 32}
    for stage in range(3):
        name = f"mobile.stage{stage}"
        chosen |= {f"{name}.expansion": 6, f"{name}.kernel": 5, f"{name}.depth": 2,
                   f"{name}.squeeze": 0.25}  # fmt: skip
    return chosen | choices


def test_mobile_blocks_are_inverted_residuals_with_linear_bottlenecks():
    network = mobile.network(mobile_design(**{"net.activation": "hswish"}))
    steps = {step.name: (step, inputs)
             for step, inputs in zip(network.steps, network.inputs, strict=True)}  # fmt: skip
    _, inputs = steps["stage1.block1.depthwise"]
    assert inputs == [(16, 16, 6 * 32)]
    assert steps["stage1.block0.depthwise"][0].op == DepthwiseConvolution(5, 2)
    assert steps["stage1.block1.squeeze"][0].op.units == 48
    assert "stage1.block0.add" not in steps, "neither its resolution nor its width stays"
    sums = network.steps[steps["stage1.block1.add"][0].inputs[1]]
    assert sums.name == "stage1.block1.project", "nothing between the projection and the sum"
    readers = {network.steps[j].op.function for name in ("expand",) for j in
               steps[f"stage1.block1.{name}"][0].inputs}  # fmt: skip
    assert readers == {"linear"}
    plain = mobile.network(mobile_design(**{f"mobile.stage{s}.squeeze": 0.0 for s in range(3)}))
    assert not any("gate" in step.name for step in plain.steps)


def test_channels_are_multiples_near_what_was_asked():
    widths = np.array([mobile.divisible(c) for c in range(1, 400)])
    assert (widths % mobile.DIVISOR == 0).all() and (widths >= 0.9 * np.arange(1, 400)).all()


def test_a_function_that_needs_both_signs_refuses_one_bit():
    with pytest.raises(UnbuildableError, match="of 1 bit"):
        choices = random_designs("mobile", 1)[0] | {"bits.activations.stage1": 1}
        mobile.layers(choices)


def test_a_search_that_does_not_name_the_function_goes_without():
    for family in FAMILIES:
        assert "net.activation" not in joint(family).restrict({}).names


def test_keras_graphs_of_every_function_load_without_this_package(tmp_path):
    (choices,) = random_designs("mobile", 1, **SMALL["mobile"], **{"net.activation": ["gelu"]})
    network = mobile.network(choices)
    n = sum(p.parameter.kind == "clip" for p in network.places)
    model = network.keras([2.0] * n, [4, 4, 4, 8])
    model.save(tmp_path / "model.keras")
    x = np.random.default_rng(0).normal(0, 1, (3, 16, 16, 3)).astype(np.float32)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(tf.constant(x)), model(tf.constant(x)), rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_evaluator_trains_the_family_of_the_run(family):
    config = configuration.complete({"space": {"network": family}})
    assert "family" not in config["evaluator"], "it is the space's"
    assert configuration.make_evaluator(config).network is FAMILIES[family].network
    with pytest.raises(
        ValueError, match=r"no networks .mobil. to train on images; known: cell, nas"
    ):
        Proxy(family="mobil")
    with pytest.raises(ValueError, match="family"):
        configuration.complete({"evaluator": {"name": "proxy", "family": family}})
