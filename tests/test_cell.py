"""The cell family: structure, and agreement of its prices with the Keras model it builds."""

import numpy as np
import pytest
from test_ops import keras_macs, keras_params

from search_spaces import cell, joint
from search_spaces.network import IMAGE, Plan, live
from search_spaces.ops import Activation, Convolution, Dense
from search_spaces.quantizers import UnbuildableError

SPACE = joint("cell").restrict({})


def design(edges="conv_3x3 skip conv_1x1 skip none avg_pool_3x3", **choices):
    """Choices of a small network; `edges` in the order of cell.EDGES."""
    names = [f"cell.edge{i}{j}" for i, j in cell.EDGES]
    chosen = dict(zip(names, edges.split(), strict=True))
    defaults = {"cell.width": 8, "cell.depth": 1, "cell.resolution": 16, "bits.ends": 8,
                "serve.batch": 1, "train.batch": 32, "train.learning_rate": 0.1,
                "train.lr_rule": "linear"}  # fmt: skip
    for stage in range(3):
        defaults |= {f"bits.weights.stage{stage}": 4, f"bits.activations.stage{stage}": 4}
    return {**defaults, **chosen, **choices}


def random_designs(n, seed=0):
    rng = np.random.default_rng(seed)
    found = []
    while len(found) < n:
        choices = SPACE.decode(SPACE.sample(1, rng)[0])
        try:
            cell.layers(choices)
        except UnbuildableError:
            continue
        found.append(choices)
    return found


@pytest.mark.parametrize("choices", random_designs(8))
def test_priced_and_built_networks_agree(choices):
    model = cell.build(choices)
    layers = cell.layers(choices)
    assert layers.macs[0] == choices["serve.batch"] * keras_macs(model)
    assert layers.params[0] == keras_params(model)
    assert model.output.shape == (None, 10)


def test_the_bits_of_a_stage_price_its_layers_and_first_and_last_are_apart():
    choices = design(**{"bits.weights.stage1": 2, "bits.activations.stage1": 5, "bits.ends": 16})
    network = cell.network(choices)
    table = cell.layers(choices)
    for row, name in enumerate(table.names):
        step = next(s for s in network.steps if s.name == name)
        if isinstance(step.op, Convolution) and name.startswith("stage1"):
            assert (table.weight_bits[row], table.activation_bits[row]) == (2, 5)
        if name == "stem":
            assert (table.weight_bits[row], table.activation_bits[row]) == (16, 8)
        if name == "head.dense":
            assert (table.weight_bits[row], table.activation_bits[row]) == (16, 16)


def test_what_nothing_reads_is_not_built():
    # node 2 gets a convolution that leads nowhere
    network = cell.network(design("conv_3x3 conv_3x3 none skip skip none"))
    assert not any("edge02" in step.name for step in network.steps)
    assert sum("edge01" in step.name for step in network.steps) == 3


def test_activations_of_a_node_are_shared_by_its_edges():
    network = cell.network(design("conv_3x3 conv_1x1 none conv_3x3 skip skip"))
    relus = [s for s in network.steps if s.name == "stage0.cell0.node0.relu"]
    readers = [s for s in network.steps
               if any(j != IMAGE and network.steps[j] is relus[0] for j in s.inputs)]  # fmt: skip
    assert len(relus) == 1 and len(readers) == 3


@pytest.mark.parametrize(
    "edges",
    ["none none none none none none", "conv_3x3 none none none none skip"],
)
def test_a_cell_that_leads_nowhere_is_refused(edges):
    with pytest.raises(cell.DisconnectedError, match="does not depend on its input"):
        cell.network(design(edges))


def test_live_renumbers():
    plan = Plan()
    first = plan.add("a", Convolution(4, 1, image=True), IMAGE, group=0)
    plan.add("dead", Activation(), first, group=0)
    plan.add("last", Dense(2), first, group=0)
    assert [(s.name, s.inputs) for s in live(plan.steps)] == [("a", (IMAGE,)), ("last", (0,))]


def test_equal_designs_share_a_program_whatever_their_bits():
    one, other = design(), design(**{"bits.weights.stage0": 7, "serve.batch": 64})
    assert hash(cell.network(one)) == hash(cell.network(other))
    assert cell.network(one) == cell.network(other)
    assert cell.network(one) != cell.network(design(**{"cell.width": 12}))
