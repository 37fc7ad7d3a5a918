"""Training steps: gradients of the right shapes and work, memory, and what a batch does."""

import numpy as np
import pytest

from hwmodel import Layers, device, price
from hwmodel.training import OPTIMIZERS, training_step
from hwmodel.workload import (
    attention,
    conv,
    dense,
    depthwise,
    elementwise,
    embedding,
    lstm,
    mixture_of_experts,
    normalization,
    pool,
)


def resnet(blocks=(2, 2, 2), width=16, size=32) -> Layers:
    rows = [conv("stem", height=size, width=size, in_channels=3, out_channels=width, kernel=3)]
    channels = width
    for stage, n_blocks in enumerate(blocks):
        out = width * 2**stage
        for block in range(n_blocks):
            stride = 2 if stage and not block else 1
            name = f"{stage}.{block}"
            rows.append(
                conv(
                    f"{name}.a",
                    height=size,
                    width=size,
                    in_channels=channels,
                    out_channels=out,
                    kernel=3,
                    stride=stride,
                )
            )
            size //= stride
            rows.append(
                conv(
                    f"{name}.b",
                    height=size,
                    width=size,
                    in_channels=out,
                    out_channels=out,
                    kernel=3,
                )
            )
            rows.append(elementwise(f"{name}.add", elements=size * size * out))
            channels = out
    rows.append(pool("gap", height=size, width=size, channels=channels, kernel=size))
    rows.append(dense("head", in_features=channels, out_features=10))
    return Layers.from_rows(rows)


def row(layers: Layers, name: str) -> dict:
    [index] = np.flatnonzero(layers.names == name)
    return {
        field: getattr(layers, field)[index].item()
        for field in (
            "m",
            "k",
            "n",
            "groups",
            "input_words",
            "output_words",
            "vector_ops",
            "row_params_once",
            "weight_bits",
            "activation_bits",
            "output_bits",
        )
    }


@pytest.mark.parametrize("batch", [1, 32])
def test_a_residual_network_takes_three_times_its_forward_work(batch):
    network = resnet().with_batch(batch)
    step = training_step(network)
    assert 2.9 < step.layers.macs[0] / network.macs[0] < 3.1


def test_gradients_of_a_product_are_its_transposes():
    """Each multiply-accumulate of the forward loop gives one to each gradient: y += x·w needs
    dx += dy·w and dw += x·dy."""
    m, k, n = 6, 5, 4
    forward = Layers.from_rows(
        [
            dense("a", in_features=3, out_features=k, batch=m),
            dense("b", in_features=k, out_features=n, batch=m),
        ]
    )
    layers = training_step(forward).layers
    to_input, to_weights = row(layers, "b.dinput"), row(layers, "b.dweights")
    assert (to_input["m"], to_input["k"], to_input["n"]) == (m, n, k)
    assert (to_weights["m"], to_weights["k"], to_weights["n"]) == (k, m, n)
    assert to_input["input_words"] == m * n and to_input["output_words"] == m * k
    assert to_weights["input_words"] == m * k and to_weights["output_words"] == k * n
    rng = np.random.default_rng(0)
    x, w, dy = rng.normal(size=(m, k)), rng.normal(size=(k, n)), rng.normal(size=(m, n))
    dx, dw = np.zeros_like(x), np.zeros_like(w)
    macs = 0
    for i in range(m):
        for depth in range(k):
            for j in range(n):
                dx[i, depth] += dy[i, j] * w[depth, j]
                dw[depth, j] += x[i, depth] * dy[i, j]
                macs += 1
    np.testing.assert_allclose(dx, dy @ w.T)
    np.testing.assert_allclose(dw, x.T @ dy)
    names = list(layers.names)
    assert all(
        layers.row_macs[names.index(f"b{suffix}")] == macs
        for suffix in ("", ".dinput", ".dweights")
    )


def test_rows_run_forward_then_backward_and_the_first_has_no_input_gradient():
    network = Layers.from_rows(
        [
            pool("shrink", height=8, width=8, channels=3, kernel=2),
            conv("a", height=4, width=4, in_channels=3, out_channels=8, kernel=3),
            normalization("bn", elements=128, channels=8),
            conv("b", height=4, width=4, in_channels=8, out_channels=8, kernel=3, groups=2),
        ]
    )
    both = Layers.concat([network, network])
    step = training_step(both)
    expected = [
        "shrink",
        "a",
        "bn",
        "b",
        "b.dweights",
        "b.dinput",
        "b.update",
        "bn.dinput",
        "bn.update",
        "a.dweights",
        "a.update",
    ]
    assert list(step.layers.names) == expected * 2
    assert step.layers.offsets.tolist() == [0, 11, 22]
    np.testing.assert_array_equal(step.layers.params, both.params)


def test_memory_is_three_weights_for_momentum_four_for_adam_and_all_outputs():
    network = resnet().with_batch(8)
    for name, copies in (("sgd", 2), ("momentum", 3), ("adam", 4)):
        plain = training_step(bits(network, 32), name, gradient_bits=32)
        assert plain.state_bytes[0] == 4 * copies * network.params[0]
    mixed = training_step(bits(network, 16), "adam")
    assert mixed.state_bytes[0] == (3 * 4 + 2 + 2) * network.params[0]
    assert mixed.activation_bytes[0] == 2 * network.output_words.sum()
    np.testing.assert_array_equal(mixed.memory_bytes, mixed.state_bytes + mixed.activation_bytes)


def test_biases_and_scales_have_no_narrow_copy():
    network = Layers.from_rows(
        [
            dense("a", in_features=64, out_features=32, bias=True, weight_bits=16),
            normalization("bn", elements=32, channels=32),
        ]
    )
    step = training_step(network)
    assert step.state_bytes[0] == (4 + 4 + 2) * (64 * 32 + 32 + 64) + 2 * 64 * 32
    update = row(step.layers, "bn.update")
    assert (update["input_words"], update["output_words"]) == (2.5 * 64, 2 * 64)


def test_gradients_are_of_plain_weights():
    options = dict(in_features=64, out_features=32, batch=4)
    plain = training_step(Layers.from_rows([dense("s", **options), dense("a", **options)])).layers
    coded = training_step(
        Layers.from_rows([dense("s", **options), dense("a", **options, index_bits=2)])
    ).layers
    assert coded.index_bits.tolist() == [2 * (name == "a") for name in coded.names]
    for field in set(coded.columns) - {"index_bits"}:
        assert coded.columns[field].tolist() == plain.columns[field].tolist(), field


def bits(layers: Layers, width: int) -> Layers:
    columns = dict(layers._columns)
    for field in ("weight_bits", "activation_bits", "output_bits"):
        columns[field] = np.full_like(columns[field], width)
    return Layers(layers.names, columns, layers.offsets)


def test_an_update_moves_master_weights_slots_and_narrow_weights():
    network = bits(Layers.from_rows([dense("a", in_features=64, out_features=32)]), 16)
    update = row(training_step(network, "adam").layers, "a.update")
    params = 64 * 32
    # In: master, two slots and a 16-bit gradient; out: master, two slots and a 16-bit copy.
    assert update["input_words"] == update["output_words"] == 3.5 * params
    assert update["vector_ops"] == OPTIMIZERS["adam"].ops * params
    assert update["activation_bits"] == 32


def test_a_large_batch_costs_less_an_example_than_a_small_one():
    """Under-filled tiles cost what full ones do, and updates cost the same whatever the batch."""
    network, config = resnet(), device("systolic-edge-16")
    per_example = [
        price(training_step(network.with_batch(batch)).layers, config).latency_s[0, 0] / batch
        for batch in (1, 4, 16, 64)
    ]
    assert (np.diff(per_example) < 0).all()


@pytest.mark.parametrize("name", ["tpu-v1", "systolic-edge-16"])
def test_every_kind_of_row_trains_at_a_finite_price(name):
    network = Layers.from_rows(
        [
            embedding("words", vocabulary=100, features=32, lookups=8, batch=2),
            lstm("lstm", steps=8, in_features=32, units=32, batch=2),
            attention("attention", sequence=8, features=32, heads=4, batch=2),
            mixture_of_experts("moe", features=32, hidden=64, experts=4, active=2, batch=16),
            depthwise("dw", height=8, width=8, channels=32, kernel=3, batch=2),
            dense("head", in_features=32, out_features=10, bias=True, batch=2),
        ]
    )
    for optimizer in OPTIMIZERS:
        step = training_step(network, optimizer)
        cost = price(step.layers, device(name))
        assert cost.feasible.all()
        for values in (cost.latency_s, cost.energy_j, cost.dram_bytes, step.memory_bytes):
            assert np.isfinite(values).all() and (values > 0).all()
        assert (cost.latency_s > price(network, device(name)).latency_s).all()


def test_what_cannot_be_trained_is_named():
    with pytest.raises(ValueError, match="unknown optimizer 'lamb'; choose one of sgd, momentum"):
        training_step(resnet(), "lamb")
    with pytest.raises(ValueError, match="gradient_bits must be a whole number from 1 to 32"):
        training_step(resnet(), gradient_bits=64)
