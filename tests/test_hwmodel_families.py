"""Every family: peaks and published figures, rows by hand, and what must hold for any design."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.eyeriss_figures import (
    ALEXNET,
    ALEXNET_ACTIVE,
    ALEXNET_MS,
    ALEXNET_MW,
    eyeriss_alexnet,
    on_chip_mw,
)
from hwmodel import (
    DEVICES,
    Layers,
    device,
    edge,
    fpga,
    measured,
    price,
    price_layers,
    roofline,
    spatial,
)
from hwmodel.cost import ENERGIES, FAMILIES
from hwmodel.devices import CONFIGS
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

N = 24
RANDOM = {
    "spatial": lambda rng: spatial.Configs(
        rows=rng.integers(1, 33, N),
        columns=rng.integers(1, 33, N),
        input_words=rng.integers(7, 30, N),
        filter_words=rng.integers(16, 400, N),
        sum_words=rng.integers(1, 40, N),
        buffer_bytes=2 ** rng.integers(10, 20, N),
        dram_bandwidth=rng.uniform(1e8, 1e10, N),
        clock_hz=rng.uniform(1e8, 1e9, N),
        activation_density=rng.uniform(0.1, 1, N),
        technology_nm=65,
    ),
    "edge": lambda rng: edge.Configs(
        pe_x=rng.integers(1, 9, N),
        pe_y=rng.integers(1, 9, N),
        simd_units=2 ** rng.integers(4, 8, N),
        lanes=rng.integers(1, 9, N),
        local_memory_bytes=2 ** rng.integers(12, 22, N),
        register_file_bytes=2 ** rng.integers(13, 18, N),
        io_bandwidth=rng.uniform(5e9, 25e9, N),
    ),
    "fpga": lambda rng: fpga.Configs(
        filter_parallelism=rng.choice([8, 16], N),
        channel_parallelism=rng.choice([8, 16], N),
        pixel_parallelism=2 ** rng.integers(2, 7, N),
        input_buffer_words=2 ** rng.integers(10, 14, N),
        weight_buffer_words=2 ** rng.integers(10, 14, N),
        output_buffer_words=2 ** rng.integers(10, 14, N),
        memory_bits=rng.choice([256, 512], N),
        pooling_engine=rng.random(N) < 0.5,
        pipelined=rng.random(N) < 0.5,
        dsp_slices=rng.integers(100, 10000, N),
        memory_blocks=rng.integers(100, 4000, N),
        clock_hz=rng.uniform(1e8, 4e8, N),
    ),
    "roofline": lambda rng: roofline.Configs(
        macs_per_s_8=rng.uniform(1e12, 3e14, N),
        macs_per_s_16=rng.uniform(1e12, 1e14, N),
        macs_per_s_32=rng.uniform(1e11, 1e13, N),
        vector_ops_per_s=rng.uniform(1e11, 1e13, N),
        depthwise_efficiency=rng.uniform(0.01, 1, N),
        dram_bandwidth=rng.uniform(1e10, 2e12, N),
        memory_bytes=2 ** rng.integers(28, 36, N),
        cache_bytes=2 ** rng.integers(16, 26, N),
        launch_s=rng.uniform(0, 1e-5, N),
        occupancy_knee=rng.integers(1, 300_000, N),
        clock_hz=1e9,
    ),
    "measured": lambda rng: measured.Configs(
        **{rate: rng.uniform(1e-12, 1e-9, N) for rate in measured.RATES},
        fixed_s=rng.uniform(0, 1e-3, N),
        granule=rng.choice([1, 16, 128], N),
        resident_bytes=rng.integers(0, 2**22, N),
        spill=rng.choice(measured.SPILLS, N),
    ),
}
# family -> parameters that, doubled, never make a network slower
FASTER = {
    "spatial": ("dram_bandwidth",),
    "edge": ("io_bandwidth", "pe_x", "pe_y", "lanes", "simd_units"),
    "fpga": ("memory_bits", "filter_parallelism", "channel_parallelism", "pixel_parallelism"),
    "roofline": ("dram_bandwidth", "macs_per_s_8", "cache_bytes", "vector_ops_per_s"),
    "measured": (),
}
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
        repeat=draw(st.integers(1, 3)),
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
            elementwise("add", elements=draw(sizes), batch=batch),
            dense(
                "dense",
                batch=batch,
                in_features=draw(st.integers(1, 10**5)),
                out_features=draw(sizes),
                weight_bits=draw(bits),
            ),
        ]
    )


def some_networks(n: int = 20) -> Layers:
    rng = np.random.default_rng(2)

    def network():
        size, channels = int(rng.choice([7, 14, 32])), int(rng.choice([8, 24, 64]))
        at = dict(height=size, width=size, batch=int(rng.integers(1, 4)))
        rows = [
            conv("c", **at, in_channels=3, out_channels=channels, kernel=3),
            depthwise("d", **at, channels=channels, kernel=5, stride=2),
            normalization("n", elements=size * channels, channels=channels),
            conv("g", **at, in_channels=channels, out_channels=16, kernel=1, groups=4, repeat=2),
            dense("f", in_features=channels, out_features=10, weight_bits=16),
        ]
        return Layers.from_rows(rows[: rng.integers(1, 6)])

    return Layers.concat([network() for _ in range(n)])


def figures(cost):
    names = (
        "cycles",
        "latency_s",
        "interval_s",
        *ENERGIES,
        "dram_bytes",
        "sram_bytes",
        "utilization",
        "area_mm2",
        "reason_code",
    )
    return {name: getattr(cost, name) for name in names}


def test_every_family_has_a_table_of_random_designs_and_a_class():
    assert set(RANDOM) | {"systolic"} == set(FAMILIES) == set(CONFIGS)
    assert {each.configs.FAMILY for each in DEVICES.values()} == set(FAMILIES) - {"measured"}


@pytest.mark.parametrize("family", RANDOM)
@settings(max_examples=40, deadline=None)
@given(layers=any_networks(), seed=st.integers(0, 2**32 - 1))
def test_any_price_is_finite_and_not_negative(family, layers, seed):
    configs = RANDOM[family](np.random.default_rng(seed))
    cost = price(layers, configs)
    for name, values in figures(cost).items():
        assert np.isfinite(values).all() and (values >= 0).all(), name
    for name in ("cycles", "latency_s", "interval_s", "energy_j", "sram_bytes"):
        assert (getattr(cost, name) > 0).all(), name
    assert (cost.utilization <= 1).all()
    assert (cost.interval_s <= cost.latency_s * (1 + 1e-12)).all()
    weights = layers.operand_bytes * layers.repeat
    if family in ("edge", "roofline", "measured"):
        assert (cost.dram_bytes >= weights.sum() * (1 - 1e-12)).all()
    doubled = price(layers.with_batch(2 * layers.batch[0]), configs)
    if family != "spatial":  # there a larger batch may use the array better than its parts
        assert (doubled.latency_s >= cost.latency_s * (1 - 1e-12)).all()
    assert (doubled.arithmetic_j > cost.arithmetic_j).all()
    for parameter in FASTER[family]:
        columns = {name: getattr(configs, name) for name in configs.FIELDS}
        more = type(configs)(**columns | {parameter: columns[parameter] * 2})
        shared = ~columns["pipelined"] if family == "fpga" else slice(None)
        faster = price(layers, more).latency_s[:, shared]
        assert (faster <= cost.latency_s[:, shared] * (1 + 1e-12)).all(), parameter


@pytest.mark.parametrize("family", RANDOM)
def test_grids_pairs_and_each_alone_agree(family):
    layers, configs = some_networks(N), RANDOM[family](np.random.default_rng(3))
    grid, paired = price(layers, configs), price(layers, configs, "paired")
    at = np.arange(N)
    for name, values in figures(grid).items():
        np.testing.assert_allclose(figures(paired)[name], values[at, at], rtol=1e-12, err_msg=name)
        for i in (0, 7, 23):
            alone = figures(price(layers.network(i), configs[i]))[name]
            np.testing.assert_allclose(alone[0, 0], values[i, i], rtol=1e-12, err_msg=name)
    many = layers.take(np.arange(N).repeat(40))  # rows on the last axis of a block
    for name, values in figures(price(many, configs)).items():
        np.testing.assert_allclose(values[::40], figures(grid)[name], rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("name", DEVICES)
def test_every_kind_of_row_is_priced_on_every_device(name):
    at = dict(batch=3, activation_bits=8)
    layers = Layers.from_rows(
        [
            embedding("e", vocabulary=100, features=64, lookups=5, **at),
            lstm("l", steps=7, in_features=32, units=48, **at),
            attention("a", sequence=5, features=64, heads=4, **at),
            mixture_of_experts("m", tokens=5, features=64, hidden=128, experts=8, active=2, **at),
            dense("d", in_features=48, out_features=10, **at),
        ]
    )
    table = price(layers.as_networks(), device(name))
    for column, values in figures(table).items():
        assert np.isfinite(values).all() and (values >= 0).all(), column
    assert (table.latency_s > 0).all() and table.feasible.all()


@pytest.mark.parametrize("name", [name for name in DEVICES if name not in ("tpu-v1", "bitfusion")])
def test_the_layer_table_of_every_device_sums_to_the_network(name):
    layers, config = some_networks(), device(name)
    for i in range(layers.n_networks):
        network = layers.network(i)
        cost = price(network, config)
        if cost.feasible[0, 0]:
            table = price_layers(network, config)
            assert table["layer"].tolist() == network.names.tolist()
            for column in ("latency_s", "energy_j", "dram_bytes", "sram_bytes"):
                np.testing.assert_allclose(table[column].sum(), getattr(cost, column)[0, 0])
            assert set(table.bound) <= {"compute", "vector", "dram", "sram", "fill", "launch"}


@pytest.mark.parametrize(
    "name, bits, tops",
    [
        ("tpu-v1", 8, 92),
        ("tpu-v2", 16, 45),
        ("tpu-v3", 16, 123),
        ("eyeriss", 16, 0.0672),
        ("edge-nahas", 8, 26),
        ("zcu102", 8, 1.2),
        ("vck190", 8, 65),
        ("a100", 8, 624),
        ("a100", 16, 312),
        ("a100", 32, 19.5),
        ("rtx3090", 16, 142),
        ("rtx3090", 32, 35.6),
    ],
)
def test_devices_peak_as_published(name, bits, tops):
    layers = Layers.from_rows(
        [
            conv(
                "c",
                height=56,
                width=56,
                in_channels=256,
                out_channels=256,
                kernel=3,
                weight_bits=bits,
                activation_bits=bits,
            )
        ]
    )
    cost = price(layers, device(name))
    peak = 2 * layers.macs / (cost.utilization * cost.latency_s)[0] / 1e12
    np.testing.assert_allclose(peak, tops, rtol=0.03)


def test_eyeriss_runs_alexnet_as_published():
    cost, chips = eyeriss_alexnet()
    assert np.abs(cost.latency_s * 1e3 / ALEXNET_MS - 1).mean() < 0.04
    np.testing.assert_allclose(on_chip_mw(cost), ALEXNET_MW, rtol=0.1)
    active = spatial.active_elements(spatial.work_of(ALEXNET), spatial.machines(chips))
    np.testing.assert_array_equal(active, ALEXNET_ACTIVE)


def test_eyeriss_maps_alexnet_as_published():
    """The letters of JSSC 2017, table III; its t and r of C3 and q of C4 and C5 differ, at the same
    active elements."""
    laid = spatial.mapping(spatial.work_of(ALEXNET), spatial.machines(device("eyeriss")))
    assert laid.e.tolist() == [7, 27, 13, 13, 13]
    assert laid.p.tolist() == [16] * 5
    assert laid.n.tolist() == [1, 1, 4, 4, 4]
    assert (laid.r * laid.t).tolist() == [2, 1, 4, 4, 4]


def test_zeros_gated_save_energy_and_no_time():
    columns = device("eyeriss").row(0)
    dense_, sparse = (
        price(ALEXNET, spatial.Configs(**columns | {"activation_density": share}))
        for share in (1.0, 0.3)
    )
    assert (sparse.energy_j < dense_.energy_j).all()
    np.testing.assert_array_equal(sparse.latency_s, dense_.latency_s)


def test_a_row_on_the_roofline_by_hand():
    """One million outputs of 512 multiplications, well above the knee."""
    layers = Layers.from_rows([dense("d", batch=1000, in_features=512, out_features=1000)])
    config = roofline.Configs(**device("a100").row(0) | {"cache_bytes": 2})
    macs, moved = 512e6, 1000 * 512 + 512 * 1000 + 1000 * 1000
    expected = max(macs / 312e12, moved / 1555e9) + 4e-6
    np.testing.assert_allclose(price(layers, config).latency_s, expected)
    assert price(layers, config).dram_bytes.item() == moved
    few = Layers.from_rows([dense("d", in_features=10**6, out_features=16)])
    cached = price_layers(few, device("a100"))
    assert cached.bound[0] == "compute"  # 16 outputs keep few of the threads busy
    huge = Layers.from_rows([dense("d", batch=10**5, in_features=10**6, out_features=16)])
    assert "larger than the memory" in price(huge, device("a100")).reason(0, 0)


def test_depthwise_rows_use_a_processor_badly():
    at = dict(height=56, width=56, batch=64, kernel=3)
    layers = Layers.from_rows([depthwise("d", **at, channels=128)])
    slow, fast = (
        price(
            layers,
            roofline.Configs(
                **device("a100").row(0) | {"depthwise_efficiency": share, "dram_bandwidth": 1e15}
            ),
        )
        for share in (0.1, 0.2)
    )
    np.testing.assert_allclose((slow.latency_s - 4e-6) / (fast.latency_s - 4e-6), 2)


def test_a_row_on_the_shared_engine_by_hand():
    """10 x 10 pixels by 8, 20 channels by 16, 40 filters by 16, nine taps."""
    layers = Layers.from_rows(
        [conv("c", height=10, width=10, in_channels=20, out_channels=40, kernel=3)]
    )
    cost = price(layers, device("zcu102"))
    assert cost.cycles[0, 0] == pytest.approx(13 * 2 * 3 * 9)
    assert cost.dram_bytes[0, 0] == 100 * 20 + 9 * 20 * 40 + 100 * 40
    assert fpga.engine_slices(device("zcu102")) == 512
    assert fpga.engine_blocks(device("zcu102")) == 256
    wide = Layers.from_rows(
        [conv("c", height=10, width=10, in_channels=20, out_channels=40, kernel=3, weight_bits=9)]
    )
    assert price(wide, device("zcu102")).cycles[0, 0] == pytest.approx(2 * cost.cycles[0, 0])


def pipeline(**changes) -> fpga.Configs:
    return fpga.Configs(**device("zcu102").row(0) | {"pipelined": True} | changes)


@pytest.mark.parametrize(
    "name, wide",
    [
        ("eyeriss", {"dram_bandwidth": 1e15}),
        ("edge-nahas", {"io_bandwidth": 1e15}),
        ("zcu102", {"memory_bits": 2**30}),
    ],
)
def test_steps_that_wait_for_each_other_share_no_tile(name, wide):
    config = DEVICES[name].configs(**device(name).row(0) | wide)

    def state_product(steps):
        rows = lstm("l", steps=steps, in_features=64, units=64, batch=2)
        return price(Layers.from_rows([rows[1]]), config).cycles[0, 0]

    np.testing.assert_allclose(state_product(6), 2 * state_product(3))


def test_a_pipeline_runs_at_the_pace_of_its_slowest_stage():
    at = dict(height=16, width=16, kernel=3, batch=5)
    layers = Layers.from_rows(
        [
            conv("a", **at, in_channels=8, out_channels=8),
            conv("b", **at, in_channels=8, out_channels=24),
        ]
    )
    config = pipeline(dsp_slices=100, dsp_clock_ratio=1)
    cost = price(layers, config)
    work = np.array([256 * 72 * 8, 256 * 72 * 24])
    stages = np.ceil(work / np.floor(work / work.sum() * 200)) / 300e6
    np.testing.assert_allclose(price_layers(layers, config).latency_s, stages)
    np.testing.assert_allclose(cost.latency_s[0, 0], stages.sum() + 4 * stages.max())
    np.testing.assert_allclose(cost.interval_s[0, 0], 5 * stages.max())
    np.testing.assert_allclose(cost.utilization[0, 0], 1, rtol=0.01)
    assert cost.dram_bytes[0, 0] == 5 * 256 * (8 + 24)


def test_designs_that_do_not_fit_say_why():
    layers = Layers.from_rows(
        [dense(f"d{i}", in_features=1000, out_features=1000) for i in range(3)]
    )

    def reason(config):
        return price(layers, config).reason(0, 0)

    shared = device("zcu102").row(0)
    assert reason(device("zcu102")) == "feasible"
    assert "more DSP slices" in reason(fpga.Configs(**shared | {"dsp_slices": 511}))
    assert "buffers need more memory" in reason(fpga.Configs(**shared | {"memory_blocks": 255}))
    assert reason(pipeline()) == "feasible"
    assert "weights and windows" in reason(pipeline(memory_blocks=600))
    assert "more layers than multipliers" in reason(pipeline(dsp_slices=1, dsp_clock_ratio=1))
    wide = Layers.from_rows([dense("d", in_features=8, out_features=8, weight_bits=17)])
    for name in ("zcu102", "edge-nahas", "eyeriss"):
        assert "at most 16 bits" in price(wide, device(name)).reason(0, 0)
    small = edge.Configs(**device("edge-nahas").row(0) | {"register_file_bytes": 255})
    assert "less than one sum" in price(layers, small).reason(0, 0)
    long = Layers.from_rows(
        [conv("c", height=32, width=32, in_channels=1, out_channels=1, kernel=13)]
    )
    assert "input scratchpad" in price(long, device("eyeriss")).reason(0, 0)


def test_a_row_on_the_edge_by_hand():
    """16 x 16 pixels on 4 x 4 elements, four lanes over pixels, 64 filters on 64 units."""
    layers = Layers.from_rows(
        [conv("c", height=16, width=16, in_channels=32, out_channels=64, kernel=3)]
    )
    fast = edge.Configs(**device("edge-nahas").row(0) | {"io_bandwidth": 1e15})
    cost = price(layers, fast)
    assert cost.cycles[0, 0] == pytest.approx(16 / 4 * 9 * 32 / 4)
    assert cost.utilization[0, 0] == pytest.approx(1)
    assert cost.dram_bytes[0, 0] == 9 * 32 * 64
    head = Layers.from_rows([dense("d", in_features=64, out_features=16 * 256)])
    assert price(head, fast).cycles[0, 0] == pytest.approx(64 / 4)


@pytest.mark.parametrize("name", ["eyeriss", "edge-nahas", "zcu102", "a100"])
def test_wider_words_never_cost_less(name):
    def network(width):
        return Layers.from_rows(
            [
                conv(
                    "c",
                    height=16,
                    width=16,
                    in_channels=32,
                    out_channels=32,
                    kernel=3,
                    weight_bits=width,
                    activation_bits=width,
                )
            ]
        )

    for narrow, wide in pairwise(price(network(width), device(name)) for width in (2, 4, 8, 16)):
        assert narrow.latency_s <= wide.latency_s
        assert narrow.energy_j <= wide.energy_j
