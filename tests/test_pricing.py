"""Prices of training steps: asked for, on the candidate's accelerator and on every other one."""

import numpy as np
import pytest
from test_cell import design
from test_search import Answers, search

from hwmodel import price
from hwmodel.training import training_step
from nas.pricing import FORMAT_BITS, MASTER_BITS, price_designs
from nas.reward import Constraint, violations
from nas.sweep import Sweep
from nas.trial import METRICS, STEP_METRICS, Proposal, Status, Trial
from search_spaces import cell, hardware, joint
from search_spaces.space import Space

HARDWARE = {
    "hw.rows": 16, "hw.columns": 16, "hw.dataflow": "os", "hw.multiplier": "fixed16",
    "hw.sram_input_kib": 64, "hw.sram_weight_kib": 64, "hw.sram_output_kib": 64,
    "hw.bandwidth_gbps": 16, "hw.clock_mhz": 700,
}  # fmt: skip
NAMED = {"accuracy", "train_step_s"}


def candidate(**choices):
    return design(**HARDWARE | choices)


def figures(metrics):
    return {name: metrics[name] for name in STEP_METRICS if name in metrics}


def test_it_costs_nothing_where_nobody_asks():
    [(plain, reason)] = price_designs("cell", [candidate()], {"accuracy", "latency_s"})
    [(asked, _)] = price_designs("cell", [candidate()], NAMED)
    assert reason is None and not figures(plain)
    assert {k: v for k, v in asked.items() if k not in STEP_METRICS} == plain
    assert set(figures(asked)) == set(STEP_METRICS) <= set(METRICS)


def test_training_keeps_whole_tensors_and_normalization():
    """What is trained is what the Keras model trains; nothing is folded, pruned or coded."""
    choices = candidate()
    model = cell.build(choices)
    layers = cell.network(choices).training_layers(32, 4)
    assert layers.params[0] == sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    assert layers.macs[0] == 4 * cell.layers(choices).macs[0]
    assert set(layers.weight_bits[layers.weights > 0]) == {32}
    pruned = candidate(**{"prune.method": "nm", "prune.nm": "2:4"})
    [(one, _), (other, _)] = price_designs("cell", [choices, pruned], NAMED)
    assert figures(one) == figures(other)
    assert one["weight_bytes"] > other["weight_bytes"]


@pytest.mark.parametrize("precision, bits", FORMAT_BITS.items())
@pytest.mark.parametrize("batch", [32, 512])
def test_a_step_is_that_of_the_hardware_model(precision, bits, batch):
    choices = candidate(**{"train.precision": precision, "train.batch": batch})
    [(metrics, reason)] = price_designs("cell", [choices])
    forward = cell.network(choices).training_layers(bits, batch)
    step = training_step(forward, "momentum", gradient_bits=bits, master_bits=MASTER_BITS)
    cost = price(step.layers, hardware.configs_of([choices]))
    assert reason is None
    assert metrics["train_step_s"] == pytest.approx(cost.latency_s.item())
    assert metrics["train_images_per_s"] == pytest.approx(batch / cost.latency_s.item())
    assert metrics["train_energy_j"] == pytest.approx(cost.energy_j.item() / batch)
    assert metrics["train_memory_bytes"] == step.memory_bytes.item()
    # Master weights, momentum and gradients, and a narrow copy of the kernels where there is one.
    copies = (8 + bits / 8) * forward.params + (bits < 32) * bits / 8 * forward.weights.sum()
    assert step.state_bytes[0] == copies
    assert step.activation_bytes[0] == bits / 8 * forward.output_words.sum()


def test_narrow_words_train_faster_in_less_memory():
    [(wide, _), (narrow, _)] = price_designs(
        "cell",
        [candidate(**{"train.precision": name}) for name in ("float32", "bfloat16")],
    )
    assert narrow["train_step_s"] < wide["train_step_s"]
    assert narrow["train_energy_j"] < wide["train_energy_j"]
    assert narrow["train_memory_bytes"] < 0.8 * wide["train_memory_bytes"]


def test_what_an_accelerator_cannot_train_counts_only_where_training_is_named():
    short = {"hw.multiplier": "fixed8"}
    designs = [candidate(**short, **{"train.precision": name}) for name in FORMAT_BITS]
    for choices, (metrics, reason) in zip(designs, price_designs("cell", designs), strict=True):
        assert reason is None and metrics["latency_s"] > 0
        assert bool(figures(metrics)) == (choices["train.precision"] != "float32")
    (_, wide), *narrow = price_designs("cell", designs, NAMED)
    assert wide == "a training step in float32: the multipliers cannot run the weight bits"
    assert all(reason is None for _, reason in narrow)
    [(metrics, reason)] = price_designs("cell", [candidate(**short)], NAMED)
    assert reason == wide and not figures(metrics) and "latency_s" in metrics


def test_many_designs_at_once_are_each_alone():
    space = joint("cell").restrict({"train.precision": list(FORMAT_BITS)})
    rng = np.random.default_rng(0)
    designs = [space.decode(each) for each in space.sample(24, rng)]
    together = price_designs("cell", designs, NAMED)
    assert together == [price_designs("cell", [each], NAMED)[0] for each in designs]
    reasons = [reason for _, reason in together]
    assert any(reason is None for reason in reasons)
    assert any(reason and reason.startswith("a training step in float32") for reason in reasons)


def small_space() -> Space:
    return joint("cell").restrict(
        {"train.precision": ["float32", "bfloat16"], "hw.multiplier": ["fixed8", "fixed16"],
         "hw.rows": [8, 16], "hw.columns": [8, 16], "hw.dataflow": "os", "hw.clock_mhz": 700,
         "hw.sram_input_kib": 64, "hw.sram_weight_kib": 64, "hw.sram_output_kib": 64,
         "hw.bandwidth_gbps": 16}
    )  # fmt: skip


def trained(space: Space, precision: str) -> Trial:
    choices = candidate(**{"train.precision": precision, "cell.width": 8})
    encoding = space.encode(choices)
    [(metrics, _)] = price_designs("cell", [choices], NAMED)
    return Trial(0, Proposal(encoding), 0, Status.COMPLETE, {**metrics, "accuracy": 0.5})


@pytest.mark.parametrize("named", [(), NAMED])
def test_the_sweep_prices_training_on_each_accelerator(named):
    space = small_space()
    pairs = Sweep("cell", space, [], named).of(trained(space, "float32"))
    designs = [space.decode(pair.proposal.encoding) for pair in pairs]
    assert pairs
    multipliers = {choices["hw.multiplier"] for choices in designs}
    assert multipliers == ({"fixed16"} if named else {"fixed8", "fixed16"})
    for choices, pair in zip(designs, pairs, strict=True):
        [(alone, _)] = price_designs("cell", [choices], named)
        assert figures(pair.metrics) == pytest.approx(figures(alone))
        assert pair.metrics["accuracy"] == 0.5


def test_the_sweep_keeps_constraints_on_training():
    space = small_space()
    trial = trained(space, "bfloat16")
    steps = [p.metrics["train_step_s"] for p in Sweep("cell", space, []).of(trial)]
    assert len(set(steps)) > 1
    bound = (min(steps) + max(steps)) / 2
    constraint = Constraint.parse(f"train_step_s <= {bound!r}", METRICS)
    kept = Sweep("cell", space, [constraint]).of(trial)
    assert kept and all(pair.metrics["train_step_s"] <= bound for pair in kept)


def test_a_search_names_its_constraints_and_rewards_metrics(tmp_path):
    space = small_space()
    bound = "train_memory_bytes <= 3e7"
    with search(tmp_path / "s", Answers(), space=space, n_trials=6, constraints=[bound]) as run:
        run.run()
        trials = run.store.trials()
    refused = [t.error for t in trials if t.status is Status.INFEASIBLE]
    complete = [t for t in trials if t.status is Status.COMPLETE]
    assert len([t for t in complete if t.repeats is None]) == 6
    assert all(figures(t.metrics) and not violations(run.constraints, t.metrics) for t in complete)
    assert any(bound in error or "a training step in float32" in error for error in refused)


def test_networks_that_lead_nowhere_are_left_out_of_training_too():
    nowhere = candidate(edges="none none none none none none", **{"train.precision": "float32"})
    (_, reason), (metrics, fine) = price_designs("cell", [nowhere, candidate()], NAMED)
    assert "does not depend on its input" in reason
    assert fine is None and set(figures(metrics)) == set(STEP_METRICS)
