"""Prices: one network or many, grid or pairs, folded or not, whole or by layer, all agree."""

from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hwmodel.cost
from hwmodel import DEVICES, Configs, Cost, Layers, area, device, energy, price, price_layers
from hwmodel.config import DATAFLOWS, DEPTHWISE_ENGINES, MULTIPLIERS
from hwmodel.systolic import STYLES
from hwmodel.workload import (
    conv,
    dense,
    depthwise,
    elementwise,
    normalization,
    pool,
)

EDGE = DEVICES["systolic-edge-16"].parameters
POSITIVE = (
    "cycles",
    "latency_s",
    "energy_j",
    "area_mm2",
    "dram_bytes",
    "sram_bytes",
    "peak_memory_bytes",
)


def random_row(rng: np.random.Generator):
    size, channels = int(rng.choice([1, 4, 7, 16])), int(rng.choice([1, 8, 24]))
    bits = dict(activation_bits=int(rng.choice([1, 2, 4, 8])), repeat=int(rng.integers(1, 3)))
    weights = dict(weight_bits=int(rng.choice([1, 3, 4, 8])))
    at = dict(height=size, width=size, batch=int(rng.integers(1, 4)))
    return [
        lambda: conv(
            "conv",
            **at,
            in_channels=channels,
            out_channels=16,
            kernel=3,
            stride=int(rng.integers(1, 3)),
            **bits,
            **weights,
        ),
        lambda: conv(
            "group",
            **at,
            in_channels=8,
            out_channels=16,
            kernel=1,
            groups=4,
            bias=True,
            **bits,
            **weights,
        ),
        lambda: depthwise("dw", **at, channels=channels, kernel=3, **bits, **weights),
        lambda: dense("dense", in_features=channels, out_features=10, **bits, **weights),
        lambda: pool("pool", **at, channels=channels, kernel=size, **bits),
        lambda: elementwise("add", elements=size * channels, output_bits=8, **bits),
        lambda: normalization("bn", elements=size * channels, channels=channels, **bits),
    ][rng.integers(7)]()


def random_networks(n: int, rng: np.random.Generator) -> Layers:
    """Networks of 1 to 9 rows of any kind, some with vector rows only."""
    return Layers.concat(
        [Layers.from_rows([random_row(rng) for _ in range(rng.integers(1, 10))]) for _ in range(n)]
    )


def random_configs(n: int, rng: np.random.Generator) -> Configs:
    return Configs(
        rows=rng.integers(1, 80, n),
        columns=rng.integers(1, 80, n),
        dataflow=rng.choice(DATAFLOWS, n),
        sram_input_bytes=2 ** rng.integers(8, 21, n),
        sram_weight_bytes=2 ** rng.integers(8, 21, n),
        sram_output_bytes=2 ** rng.integers(8, 21, n),
        dram_bandwidth=rng.uniform(1e8, 1e12, n),
        clock_hz=rng.uniform(2e8, 9e8, n),
        double_weight_plane=rng.random(n) < 0.5,
        multiplier=rng.choice(MULTIPLIERS, n),
        vector_lanes=rng.integers(1, 600, n),
        depthwise_on=rng.choice(DEPTHWISE_ENGINES, n),
        technology_nm=rng.choice([45, 28], n),
    )


def columns_of(cost: Cost) -> dict[str, np.ndarray]:
    return {f.name: getattr(cost, f.name) for f in fields(cost) if f.name != "reasons"}


def assert_same(one: Cost, other: Cost, index=...) -> None:
    for name, values in columns_of(one).items():
        np.testing.assert_allclose(values, getattr(other, name)[index], rtol=1e-12, err_msg=name)
    np.testing.assert_array_equal(one.cycles, other.cycles[index])
    np.testing.assert_array_equal(one.dram_bytes, other.dram_bytes[index])


@pytest.fixture(scope="module")
def some():
    rng = np.random.default_rng(7)
    return random_networks(60, rng), random_configs(60, rng)


def test_networks_priced_together_equal_each_alone(some):
    layers, configs = some
    together = price(layers, configs)
    for network in range(0, layers.n_networks, 7):
        alone = price(layers.network(network), configs)
        assert_same(alone, together, np.s_[network : network + 1])
    for config in range(0, len(configs), 7):
        assert_same(price(layers, configs[config]), together, np.s_[:, config : config + 1])


def test_pairs_are_the_diagonal_of_the_grid(some):
    layers, configs = some
    diagonal = np.arange(len(configs))
    assert_same(price(layers, configs, "paired"), price(layers, configs), (diagonal, diagonal))


@pytest.mark.parametrize("block, rows_last", [(1, 1), (50, 10), (300, 10**9), (10**6, 1)])
def test_the_size_of_blocks_changes_nothing(some, monkeypatch, block, rows_last):
    layers, configs = some
    whole = [price(layers, configs, pairing) for pairing in ("grid", "paired")]
    monkeypatch.setattr(hwmodel.cost, "BLOCK", block)
    monkeypatch.setattr(hwmodel.cost, "ROWS_LAST", rows_last)
    for pairing, expected in zip(("grid", "paired"), whole, strict=True):
        assert_same(price(layers, configs, pairing), expected)


def test_folding_changes_no_price(some):
    layers, configs = some
    rng = np.random.default_rng(3)
    rows = [random_row(rng) for _ in range(6)]
    tripled = Layers.concat([layers, Layers.from_rows(rows * 3)])
    folded = tripled.folded()
    assert len(folded) <= len(tripled) - 11
    assert_same(price(folded, configs), price(tripled, configs))


def runnable(some):
    layers, configs = some
    cost = price(layers, configs, "paired")
    return [(layers.network(i), configs[i], i) for i in np.flatnonzero(cost.feasible)], cost


def test_the_layer_table_sums_to_the_network(some):
    chosen, cost = runnable(some)
    assert len(chosen) > 20
    for network, config, i in chosen:
        table = price_layers(network, config)
        assert table["layer"].tolist() == network.names.tolist()
        assert table.cycles.sum() == cost.cycles[i]
        for column in (
            "latency_s",
            "arithmetic_j",
            "register_j",
            "sram_j",
            "dram_j",
            "leakage_j",
            "energy_j",
            "dram_bytes",
            "sram_bytes",
        ):
            np.testing.assert_allclose(table[column].sum(), getattr(cost, column)[i], rtol=1e-12)
        busy = (table.utilization * table.cycles).sum()
        np.testing.assert_allclose(busy, cost.utilization[i] * cost.cycles[i], atol=1e-9)
        assert set(table.bound) <= {"compute", "dram", "sram", "vector", "fill"}


def bound_of(row, **changes) -> str:
    return price_layers(Layers.from_rows([row]), Configs(**{**EDGE, **changes})).bound[0]


def test_each_bound_is_met_where_it_should_be():
    wide = conv("c", height=32, width=32, in_channels=64, out_channels=64, kernel=3)
    add = elementwise("a", elements=10**6)
    assert bound_of(wide) == "compute"
    assert bound_of(wide, dram_bandwidth=1e6) == "dram"
    assert bound_of(dense("d", in_features=64, out_features=64), dram_bandwidth=1e12) == "fill"
    assert bound_of(add, vector_lanes=1, dram_bandwidth=1e12) == "vector"
    assert bound_of(add, vector_lanes=1024, dram_bandwidth=1e12) == "sram"


def test_a_product_by_hand():
    """32 x 16 times 16 x 16, weight-stationary on a 16 x 16 array that holds the weights whole."""
    layers = Layers.from_rows([dense("d", batch=32, in_features=16, out_features=16)])
    config = Configs(
        **{**EDGE, "double_weight_plane": False, "clock_hz": 1e9, "dram_bandwidth": 1e9}
    )
    cost = price(layers, config)
    compute = 32 + 16 + 16 - 2 + 16
    dram_bytes = 32 * 16 + 16 * 16 + 32 * 16
    fill, drain = 32 * 16 + 16 * 16, 32 * 16
    assert cost.cycles.item() == fill + max(compute, dram_bytes) + drain
    assert cost.dram_bytes.item() == dram_bytes
    assert cost.sram_bytes.item() == 32 * 16 + 16 * 16 + 4 * 32 * 16
    assert cost.utilization.item() == 32 * 16 * 16 / (cost.cycles.item() * 256)
    assert cost.peak_memory_bytes.item() == dram_bytes
    macs = 32 * 16 * 16
    np.testing.assert_allclose(cost.arithmetic_j, macs * (0.2 + 0.1) * 1e-12)
    np.testing.assert_allclose(cost.dram_j, dram_bytes * 1300 / 8 * 1e-12)
    np.testing.assert_allclose(cost.leakage_j, cost.latency_s * energy.leakage_watts(config))


sizes = st.integers(1, 40)
bits = st.integers(1, 16)


@st.composite
def any_networks(draw):
    batch, height, width = draw(st.integers(1, 8)), draw(sizes), draw(sizes)
    at = dict(batch=batch, height=height, width=width)
    ways = dict(
        kernel=draw(st.integers(1, 7)),
        stride=draw(st.integers(1, 4)),
        weight_bits=draw(bits),
        activation_bits=draw(bits),
    )
    groups = draw(st.sampled_from([1, 2, 4]))
    return Layers.from_rows(
        [
            conv(
                "conv",
                **at,
                in_channels=groups * draw(sizes),
                out_channels=groups * draw(sizes),
                groups=groups,
                **ways,
            ),
            depthwise("dw", **at, channels=draw(sizes), **ways),
            pool(
                "pool", **at, channels=draw(sizes), kernel=draw(st.integers(1, 4)), padding="same"
            ),
            dense(
                "dense",
                batch=batch,
                in_features=draw(st.integers(1, 10**6)),
                out_features=draw(sizes),
                weight_bits=draw(bits),
            ),
        ]
    )


any_configs = st.integers(0, 2**32 - 1).map(
    lambda seed: random_configs(40, np.random.default_rng(seed))
)


@settings(max_examples=60, deadline=None)
@given(any_networks(), any_configs)
def test_any_price_is_finite_and_positive_and_traffic_at_least_compulsory(layers, configs):
    cost = price(layers, configs)
    for name in POSITIVE:
        values = getattr(cost, name)
        assert np.isfinite(values).all() and (values > 0).all(), name
    assert ((cost.utilization >= 0) & (cost.utilization <= 1)).all()
    np.testing.assert_array_equal(cost.cycles, np.floor(cost.cycles))
    word_in, word_out = layers.activation_bits / 8, layers.output_bits / 8
    compulsory = (
        layers.input_words * layers.groups * word_in
        + layers.output_words * word_out
        + layers.parameter_bytes
    ).sum()
    assert (cost.dram_bytes >= compulsory).all()


@settings(max_examples=60, deadline=None)
@given(any_networks(), any_configs)
def test_prices_are_monotone_where_physics_says_so(layers, configs):
    base = price(layers, configs)

    def with_more(**factors):
        columns = {field: getattr(configs, field) for field in EDGE}
        return price(
            layers,
            Configs(
                **columns | {field: columns[field] * factor for field, factor in factors.items()}
            ),
        )

    faster_dram = with_more(dram_bandwidth=2)
    assert (faster_dram.cycles <= base.cycles).all()
    assert (faster_dram.dram_bytes == base.dram_bytes).all()
    larger = with_more(sram_input_bytes=2, sram_weight_bytes=2)
    assert (larger.dram_bytes <= base.dram_bytes).all()
    assert (larger.area_mm2 > base.area_mm2).all()
    assert (larger.feasible | ~base.feasible).all()
    assert (with_more(vector_lanes=2).cycles <= base.cycles).all()
    doubled = price(layers.with_batch(2 * layers.batch[0]), configs)
    assert (doubled.cycles >= base.cycles).all()
    assert (doubled.dram_bytes >= base.dram_bytes).all()
    assert (doubled.energy_j > base.energy_j).all()


@pytest.mark.parametrize("style", MULTIPLIERS)
def test_wider_words_never_cost_less(style):
    def network(weight_bits, activation_bits):
        return Layers.from_rows(
            [
                conv(
                    "c",
                    height=16,
                    width=16,
                    in_channels=32,
                    out_channels=32,
                    kernel=3,
                    weight_bits=weight_bits,
                    activation_bits=activation_bits,
                )
            ]
        )

    config = Configs(**{**EDGE, "multiplier": style})
    ladder = [price(network(bits, bits), config) for bits in (1, 2, 4, 8, 16)]
    for narrow, wide in pairwise(ladder):
        assert narrow.cycles <= wide.cycles
        assert narrow.energy_j < wide.energy_j
        assert narrow.dram_bytes < wide.dram_bytes


def test_infeasible_pairs_say_why():
    plain = dense("d", in_features=64, out_features=64)

    def reason(row=plain, **changes):
        return price(Layers.from_rows([row]), Configs(**{**EDGE, **changes})).reason(0, 0)

    assert reason() == "feasible"
    wide = dense("d", in_features=8, out_features=8, weight_bits=32)
    assert "weight bits" in reason(wide)
    assert reason(wide, multiplier="fixed16") == "feasible"
    assert "activation bits" in reason(
        dense("d", in_features=8, out_features=8, activation_bits=17)
    )
    assert "weight SRAM" in reason(sram_weight_bytes=2 * 16 * 16 - 2)
    assert reason(sram_weight_bytes=2 * 16 * 16) == "feasible"
    assert "input SRAM" in reason(dataflow="is", sram_input_bytes=256)
    assert "output SRAM" in reason(sram_output_bytes=2 * 4 * 16 - 2)
    # A network that never meets the array asks nothing of it.
    assert reason(elementwise("a", elements=8), sram_weight_bytes=2) == "feasible"


def test_bad_calls_are_refused(some):
    layers, configs = some
    with pytest.raises(ValueError, match="unknown pairing 'diagonal'; choose one of grid, paired"):
        price(layers, configs, "diagonal")
    with pytest.raises(ValueError, match="got 60 networks and 59 configurations"):
        price(layers, configs[1:], "paired")
    with pytest.raises(ValueError, match="one network and one configuration, got 60 and 60"):
        price_layers(layers, configs)
    wide = Layers.from_rows([dense("wide", in_features=8, out_features=8, weight_bits=32)])
    with pytest.raises(ValueError, match=r"row 'wide' with 32-bit weights .* cannot run"):
        price_layers(wide, device("tpu-v1"))


def test_counts_beyond_2_to_the_24_are_priced_exactly():
    odd = 2**25 + 1
    layers = Layers.from_rows([elementwise("a", elements=odd, n_inputs=1)])
    assert price(layers, device("tpu-v1")).dram_bytes.item() == 2 * odd


def test_energy_and_area_tables_cover_every_style_and_reproduce_the_source():
    assert set(energy.ELEMENT_PJ) == set(area.ELEMENT_UM2) == set(area.OPERAND_BITS) == set(STYLES)
    np.testing.assert_allclose(energy.sram_pj_per_byte(energy.SRAM_BYTES), energy.SRAM_PJ_PER_BYTE)
    sizes = 2.0 ** np.arange(8, 26)
    assert (np.diff(energy.sram_pj_per_byte(sizes)) > 0).all()
    one, two = Configs(**EDGE), Configs(**{**EDGE, "technology_nm": 28})
    np.testing.assert_allclose(
        sum(area.areas(two)) / sum(area.areas(one)), area.SRAM_CELL_UM2[28] / area.SRAM_CELL_UM2[45]
    )
