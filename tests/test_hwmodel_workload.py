"""Rows count what the layers' definitions say; a table of networks is the sum of its parts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel import Configs, device, price, price_layers, systolic
from hwmodel.config import DATAFLOWS
from hwmodel.layer_row import DRAM_BURST_BYTES
from hwmodel.workload import (
    COLUMNS,
    Layers,
    attention,
    conv,
    dense,
    depthwise,
    elementwise,
    embedding,
    gru,
    lstm,
    mixture_of_experts,
    normalization,
    pool,
    transposed_conv,
    with_storage,
)


def test_convolution_is_a_product_with_the_batch_in_m():
    row = conv(
        "c",
        batch=2,
        height=32,
        width=16,
        in_channels=8,
        out_channels=12,
        kernel=(3, 5),
        stride=2,
        groups=4,
        bias=True,
    )
    assert (row.m, row.k, row.n, row.groups) == (2 * 16 * 8, 3 * 5 * 2, 3, 4)
    assert row.output_words == 2 * 16 * 8 * 12
    assert row.params == 3 * 5 * 2 * 12 + 12


@pytest.mark.parametrize("size", [5, 8, 9])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", ["same", "valid", 1])
def test_output_size_and_touched_words_by_walking_the_windows(size, kernel, stride, padding):
    if padding == "same":
        n_out = -(-size // stride)
        before = max(0, (n_out - 1) * stride + kernel - size) // 2
    else:
        before = 0 if padding == "valid" else padding
        n_out = len(range(0, size + 2 * before - kernel + 1, stride))
    touched = {
        at
        for start in range(n_out)
        for at in range(start * stride - before, start * stride - before + kernel)
        if 0 <= at < size
    }
    row = conv(
        "c",
        height=size,
        width=size,
        in_channels=1,
        out_channels=1,
        kernel=kernel,
        stride=stride,
        padding=padding,
    )
    assert row.m == n_out**2
    assert row.input_words == len(touched) ** 2


def test_resnet_stem_and_mobilenet_depthwise_have_their_published_counts():
    stem = Layers.from_rows(
        [conv("stem", height=224, width=224, in_channels=3, out_channels=64, kernel=7, stride=2)]
    )
    assert stem.macs.tolist() == [118_013_952]
    separable = depthwise("dw", height=112, width=112, channels=32, kernel=3)
    assert separable.m * separable.k * separable.groups == 112 * 112 * 32 * 9
    assert separable.vector_ops == 112 * 112 * 32 * 9


def test_vector_rows_count_operations_and_words():
    added = elementwise("add", elements=100, n_inputs=3, batch=2)
    assert (added.vector_ops, added.input_words, added.output_words) == (400, 600, 200)
    pooled = pool("pool", height=8, width=8, channels=4, kernel=2)
    assert (pooled.vector_ops, pooled.output_words) == (8 * 8 * 4, 4 * 4 * 4)
    normal = normalization("bn", elements=64, channels=4)
    assert (normal.vector_ops, normal.params) == (128, 8)


def test_counts_beyond_2_to_the_24_are_exact():
    rows = [dense("d", batch=2**20 + 1, in_features=2**20 + 1, out_features=2**11 + 1)]
    assert Layers.from_rows(rows).macs[0] == (2**20 + 1) ** 2 * (2**11 + 1)


def two_networks() -> Layers:
    block = conv("c", height=8, width=8, in_channels=4, out_channels=4, kernel=3)
    first = Layers.from_rows(
        [block, pool("p", height=8, width=8, channels=4, kernel=2), block, block]
    )
    return Layers.concat([first, Layers.from_rows([dense("d", in_features=3, out_features=2)])])


def test_concat_take_and_network_agree():
    both = two_networks()
    assert (both.n_networks, len(both)) == (2, 5)
    swapped = both.take([1, 0, 1])
    assert swapped.macs.tolist() == [both.macs[1], both.macs[0], both.macs[1]]
    assert swapped.names.tolist()[0] == "d"
    assert both.network(-1).params.tolist() == [6]
    with pytest.raises(IndexError):
        both.network(2)


def test_folding_keeps_sums_order_and_the_last_row():
    both = two_networks()
    folded = both.folded()
    assert folded.names.tolist() == ["c", "p", "c", "d"]
    assert folded.repeat.tolist() == [2, 1, 1, 1]
    assert folded.macs.tolist() == both.macs.tolist()
    assert folded.params.tolist() == both.params.tolist()


def test_batch_scales_work_but_not_parameters():
    both = two_networks()
    batched = both.with_batch(np.array([3, 5]))
    assert batched.macs.tolist() == [3 * both.macs[0], 5 * both.macs[1]]
    assert batched.params.tolist() == both.params.tolist()
    rebuilt = Layers.from_rows([dense("d", in_features=3, out_features=2, batch=5)])
    for field in COLUMNS:
        assert batched.network(1)._columns[field].tolist() == rebuilt._columns[field].tolist()
    assert batched.with_batch(1).macs.tolist() == both.macs.tolist()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(height=0), "'bad': height must be a positive integer, got 0"),
        (dict(height=-3), "got -3"),
        (dict(width=float("nan")), "width must be a positive integer, got nan"),
        (dict(kernel=9, padding="valid"), "kernel 9 is larger than the padded height 8"),
        (dict(groups=3), "in_channels 4 is not a multiple of groups 3"),
        (dict(padding="full"), "padding must be 'same', 'valid' or an integer"),
        (dict(padding=-1), "got -1"),
        (dict(weight_bits=33), "weight_bits must be 1 to 32, got 33"),
        (dict(activation_bits=0), "activation_bits must be a positive integer, got 0"),
        (dict(repeat=0), "repeat must be a positive integer"),
        (dict(out_channels=2**50), "past 2**53"),
        (dict(kernel=(3, 3, 3)), "kernel must be an integer or a pair"),
    ],
)
def test_bad_rows_are_refused_by_name(arguments, message):
    good = dict(height=8, width=8, in_channels=4, out_channels=4, kernel=3)
    with pytest.raises(ValueError, match="row 'bad'") as error:
        conv("bad", **{**good, **arguments})
    assert message in str(error.value)


def test_bad_tables_are_refused():
    with pytest.raises(ValueError, match="at least one row"):
        Layers.from_rows([])
    with pytest.raises(ValueError, match="at least one Layers"):
        Layers.concat([])
    with pytest.raises(ValueError, match=r"one value per network \[2\], got shape \[3\]"):
        two_networks().with_batch(np.array([1, 2, 3]))
    with pytest.raises(ValueError, match="positive integers, got 0"):
        two_networks().with_batch(0)


def test_dilated_windows_by_walking_them():
    cases = [(9, 3, 2, 1), (12, 3, 3, 2), (7, 2, 5, 1), (20, 5, 2, 6)]
    for size, kernel, dilation, stride in cases:
        n_out = (size - (kernel - 1) * dilation - 1) // stride + 1
        touched = {i * stride + tap * dilation for i in range(n_out) for tap in range(kernel)}
        row = conv(
            "c",
            height=size,
            width=size,
            in_channels=1,
            out_channels=1,
            kernel=kernel,
            stride=stride,
            dilation=dilation,
            padding="valid",
        )
        assert (row.m, row.input_words) == (n_out**2, len(touched) ** 2)


def test_transposed_convolution_multiplies_every_pixel_by_the_whole_kernel_once():
    row = transposed_conv(
        "t",
        batch=2,
        height=5,
        width=4,
        in_channels=3,
        out_channels=7,
        kernel=(4, 2),
        stride=2,
        bias=True,
    )
    assert row.m * row.k * row.n == 2 * 5 * 4 * 3 * 4 * 2 * 7
    assert row.output_words == 2 * 10 * 8 * 7
    assert row.params == 3 * 8 * 7 + 7
    valid = transposed_conv(
        "t",
        height=5,
        width=4,
        in_channels=1,
        out_channels=1,
        kernel=(4, 2),
        stride=(2, 3),
        padding="valid",
    )
    assert valid.output_words == (4 * 2 + 4) * (3 * 3 + 3)
    with pytest.raises(ValueError, match="'t': padding must be 'same' or 'valid', got 3"):
        transposed_conv(
            "t", height=5, width=4, in_channels=1, out_channels=1, kernel=2, stride=2, padding=3
        )


def test_embedding_reads_bursts_whatever_the_vocabulary():
    def of(vocabulary, features, weight_bits=8):
        return Layers.from_rows(
            [
                embedding(
                    "e",
                    batch=3,
                    lookups=5,
                    vocabulary=vocabulary,
                    features=features,
                    weight_bits=weight_bits,
                )
            ]
        )

    small, large = of(10, 16), of(10**6, 16)
    assert small.gather_bytes[0] == large.gather_bytes[0] == 15 * DRAM_BURST_BYTES
    assert of(10, 100).gather_bytes[0] == 15 * 100
    assert of(10, 300, 4).gather_bytes[0] == 15 * 150
    assert (small.macs[0], large.params[0]) == (0, 16 * 10**6)
    cheap, dear = (price(each, device("systolic-edge-16")) for each in (small, large))
    assert cheap.dram_bytes.item() == dear.dram_bytes.item() == 15 * (DRAM_BURST_BYTES + 16)
    assert (dear.peak_memory_bytes - cheap.peak_memory_bytes).item() == 16 * (10**6 - 10)


def test_recurrent_layers_are_their_gates_products_step_by_step():
    whole, step, gates = lstm("l", steps=7, in_features=5, units=3, batch=2)
    assert (whole.m, whole.k, whole.n, whole.steps) == (14, 5, 12, 1)
    assert (step.m // step.steps, step.k, step.n, step.steps) == (2, 3, 12, 7)
    assert gates.vector_ops == 10 * 2 * 7 * 3
    assert whole.params + step.params == 12 * (5 + 3 + 1)
    _, *steps, _ = gru("g", steps=7, in_features=5, units=3, reset_after=False)
    assert [(row.n, row.steps) for row in steps] == [(6, 7), (3, 7)]
    after = gru("g", steps=7, in_features=5, units=3)
    assert sum(row.params for row in after) == 9 * (5 + 3 + 2)


def test_steps_wait_for_each_other_and_keep_weights_that_fit():
    """A recurrent product costs T small ones; the same product at once fills the array."""
    layer = lstm("l", steps=50, in_features=64, units=64)
    fits = price_layers(Layers.from_rows(layer), device("systolic-edge-16"))
    step = fits.set_index("layer").loc["l.recurrent"]
    alone = Layers.from_rows([dense("d", in_features=64, out_features=256)])
    config = Configs(**device("systolic-edge-16").row(0) | {"dram_bandwidth": 1e15})
    sequential = price_layers(Layers.from_rows(layer), config).set_index("layer").cycles
    edges = 2  # a word of fill and of drain
    assert sequential["l.recurrent"] == 50 * (price(alone, config).cycles.item() - edges)
    assert step.dram_bytes == 64 * 256 + 64 + 64
    small = Configs(**device("systolic-edge-16").row(0) | {"sram_weight_bytes": 2 * 64 * 256 - 2})
    spilled = price_layers(Layers.from_rows(layer), small).set_index("layer")
    assert spilled.dram_bytes["l.recurrent"] == 50 * 64 * 256 + 64 + 64
    assert spilled.dram_bytes["l.input"] == fits.set_index("layer").dram_bytes["l.input"]


def test_attention_counts_as_published():
    """Vaswani et al.: projections 4·S·D², scores and context 2·S²·D."""
    network = Layers.from_rows([attention("a", batch=3, sequence=10, features=64, heads=8)])
    assert network.macs[0] == 3 * (4 * 10 * 64**2 + 2 * 10**2 * 64)
    assert network.params[0] == 4 * 64**2
    softmax = network.vector_ops[network.names == "a.softmax"]
    assert softmax == 5 * 3 * 8 * 10**2
    with pytest.raises(ValueError, match="'a': features 10 is not a multiple of heads 4"):
        attention("a", sequence=3, features=10, heads=4)


def test_a_batch_of_attention_is_more_products_not_taller_ones():
    def of(batch):
        return Layers.from_rows([attention("a", batch=batch, sequence=10, features=64, heads=8)])

    same_as_built(of(2).with_batch(6), of(6))
    scores = of(2).names == "a.scores"
    assert (of(2).m[scores], of(2).groups[scores]) == (10, 16)
    assert of(2).parameter_bytes[scores] == 0
    # Queries, keys and scores are in memory at once, and no weights.
    [alone] = price(of(2).as_networks(), device("systolic-edge-16")).peak_memory_bytes[scores, 0]
    assert alone == 2 * (10 * 64 + 10 * 64 + 8 * 10 * 10)


@pytest.mark.parametrize("batch", [1, 2, 5, 64])
def test_experts_in_use_move_and_all_are_stored(batch):
    def of(batch):
        return Layers.from_rows(
            [
                mixture_of_experts(
                    "m",
                    batch=batch,
                    features=32,
                    hidden=64,
                    experts=16,
                    active=2,
                    imbalance=1.5,
                    bias=True,
                )
            ]
        )

    network = of(batch)
    up = network.names == "m.up"
    in_use = min(16, 2 * batch)
    assert network.groups[up] == in_use
    assert network.m[up] == -(-2 * batch * 3 // (2 * in_use))
    assert network.operand_bytes[up] == in_use * 32 * 64
    assert network.parameter_bytes[up] == 16 * (32 * 64 + 4 * 64)
    assert network.params[0] == 32 * 16 + 16 * (2 * 32 * 64 + 32 + 64)
    same_as_built(of(1).with_batch(batch), network)


def same_as_built(batched: Layers, built: Layers) -> None:
    for field in COLUMNS:
        assert batched._columns[field].tolist() == built._columns[field].tolist(), field


def test_sparse_weights_take_less_room_never_more():
    def bits(**sparsity):
        row = dense("d", in_features=64, out_features=8, **sparsity)
        layers = Layers.from_rows([row])
        assert (
            layers.parameter_bytes == layers.operand_bytes == 512 * (layers.stored_weight_bits / 8)
        )
        return layers.stored_weight_bits.item()

    assert bits() == bits(density=1.0) == 8
    assert bits(nm=(2, 4)) == 2 / 4 * (8 + 2)
    assert bits(nm=(1, 16), weight_bits=4) == (4 + 4) / 16
    assert bits(density=0.25) == 8 / 4 + 1
    assert bits(density=0.99) == 8
    assert bits(nm=(3, 4), weight_bits=1) == 1


def test_zeros_save_time_only_where_they_are_skipped():
    plain = device("systolic-edge-16").row(0) | {"dram_bandwidth": 1e15, "dataflow": "os"}
    dense_machine = Configs(**plain)
    skipping = Configs(**plain | {"skips_zeros": True})

    def cycles(config, **sparsity):
        row = dense("d", batch=16, in_features=640, out_features=16, **sparsity)
        return price(Layers.from_rows([row]), config).cycles.item() - 2  # less fill and drain

    whole = 640 + 16 + 16 - 2
    for sparsity in ({}, dict(nm=(1, 4)), dict(density=0.2)):
        assert cycles(dense_machine, **sparsity) == whole
    assert cycles(skipping) == whole
    assert cycles(skipping, nm=(1, 4)) == 160 + 16 + 16 - 2
    expected = np.ceil(whole * 0.2 * (1 + systolic.SKIP_IMBALANCE))
    assert cycles(skipping, density=0.2) == expected
    assert cycles(skipping, density=1e-3) == np.ceil(whole * systolic.SKIP_FLOOR)
    assert cycles(skipping, density=0.95) == whole


sizes = st.integers(1, 24)
sparsities = st.one_of(
    st.just({}),
    st.floats(1e-3, 1).map(lambda d: dict(density=d)),
    st.integers(1, 16).flatmap(lambda m: st.integers(1, m).map(lambda n: dict(nm=(n, m)))),
)


@st.composite
def compound_networks(draw):
    batch, steps, features, units, heads, experts = (draw(sizes) for _ in range(6))
    weight_bits = draw(st.integers(1, 16))
    ways = dict(
        batch=batch,
        weight_bits=weight_bits,
        index_bits=draw(st.integers(0, weight_bits - 1)),
        repeat=draw(st.integers(1, 3)),
        activation_bits=draw(st.integers(1, 16)),
        **draw(sparsities),
    )
    return Layers.from_rows(
        [
            embedding(
                "table",
                vocabulary=draw(st.integers(1, 10**5)),
                features=features,
                lookups=steps,
                **ways,
            ),
            lstm(
                "lstm",
                steps=steps,
                in_features=features,
                units=units,
                return_sequences=draw(st.booleans()),
                **ways,
            ),
            gru(
                "gru",
                steps=steps,
                in_features=units,
                units=features,
                bias=draw(st.booleans()),
                reset_after=draw(st.booleans()),
                **ways,
            ),
            attention(
                "attention",
                sequence=steps,
                features=features,
                heads=heads,
                head_size=draw(sizes),
                memory=draw(st.one_of(st.none(), sizes)),
                **ways,
            ),
            mixture_of_experts(
                "experts",
                features=features,
                hidden=units,
                experts=experts,
                active=draw(st.integers(1, experts)),
                tokens=steps,
                imbalance=draw(st.floats(1, 4)),
                **ways,
            ),
            transposed_conv(
                "up",
                height=draw(sizes),
                width=draw(sizes),
                in_channels=features,
                out_channels=units,
                kernel=draw(st.integers(1, 5)),
                stride=draw(st.integers(1, 4)),
                **ways,
            ),
        ]
    )


@settings(max_examples=60, deadline=None)
@given(compound_networks(), st.integers(0, 2**32 - 1), st.booleans())
def test_compound_rows_have_sane_prices(network, seed, skips_zeros):
    rng = np.random.default_rng(seed)
    config = Configs(
        rows=rng.integers(1, 80, 30),
        columns=rng.integers(1, 80, 30),
        dataflow=rng.choice(DATAFLOWS, 30),
        sram_input_bytes=2 ** rng.integers(8, 21, 30),
        sram_weight_bytes=2 ** rng.integers(8, 21, 30),
        sram_output_bytes=2 ** rng.integers(8, 21, 30),
        dram_bandwidth=rng.uniform(1e8, 1e12, 30),
        clock_hz=5e8,
        double_weight_plane=rng.random(30) < 0.5,
        skips_zeros=skips_zeros,
    )
    cost = price(network, config)
    for values in (cost.cycles, cost.energy_j, cost.dram_bytes, cost.sram_bytes):
        assert np.isfinite(values).all() and (values > 0).all()
    np.testing.assert_array_equal(cost.cycles, np.floor(cost.cycles))
    assert ((cost.utilization >= 0) & (cost.utilization <= 1)).all()
    moved = network.operand_bytes + network.bias_bytes + network.gather_bytes
    assert (cost.dram_bytes >= (moved * network.repeat).sum() * (1 - 1e-12)).all()
    folded, doubled = network.folded(), network.with_batch(2 * network.batch[0])
    np.testing.assert_array_equal(price(folded, config).cycles, cost.cycles)
    assert doubled.params.tolist() == network.params.tolist()
    assert (price(doubled, config).cycles >= cost.cycles).all()
    pairs = Layers.concat([network] * 30)
    np.testing.assert_array_equal(price(pairs, config, "paired").cycles, cost.cycles[0])


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(density=0), "density must be above 0 and at most 1, got 0"),
        (dict(density=1.5), "got 1.5"),
        (dict(density=float("nan")), "got nan"),
        (dict(density="half"), "got 'half'"),
        (dict(nm=(4, 2)), "1 <= N <= M, N non-zeros in every M, got (4, 2)"),
        (dict(nm=(0, 4)), "got (0, 4)"),
        (dict(nm=4), "got 4"),
        (dict(nm=(2, 4), density=0.5), "give one of them"),
        (dict(units=0), "units must be a positive integer, got 0"),
        (dict(steps=-2), "steps must be a positive integer, got -2"),
        (dict(weight_bits=40), "weight_bits must be 1 to 32, got 40"),
    ],
)
def test_bad_recurrent_layers_and_sparsities_are_refused(options, message):
    with pytest.raises(ValueError) as error:
        lstm("bad", **dict(steps=3, in_features=4, units=5) | options)
    assert message in str(error.value) and "row 'bad" in str(error.value)


def test_bad_experts_and_weights_where_there_are_none_are_refused():
    good = dict(features=4, hidden=8, experts=4, active=2)
    with pytest.raises(ValueError, match="active must be at most the number of experts 4, got 5"):
        mixture_of_experts("m", **good | dict(active=5))
    with pytest.raises(ValueError, match=r"imbalance must be 1 or more, got 0\.5"):
        mixture_of_experts("m", **good, imbalance=0.5)
    with pytest.raises(ValueError, match="row 'p': weight_bits is 4, but the row has no weights"):
        pool("p", height=4, width=4, channels=2, kernel=2, weight_bits=4)


def test_codebook_weights_are_stored_as_indices_and_a_table_and_multiplied_as_words():
    def of(**options):
        row = dense("d", in_features=64, out_features=8, bias=True, **options)
        return Layers.from_rows([row])

    coded = of(weight_bits=16, index_bits=4)
    assert coded.stored_weight_bits == 4 and coded.weight_bits == 16
    assert coded.codebook_bytes == 16 * 2
    assert coded.operand_bytes == 512 * 4 / 8 + 32
    assert coded.parameter_bytes == 512 * 4 / 8 + 32 + 8 * 4
    assert of(weight_bits=16, index_bits=0).operand_bytes == of(weight_bits=16).operand_bytes
    # Only what is not zero has an index; never more than with the zeros.
    assert of(weight_bits=16, index_bits=4, density=0.25).stored_weight_bits == 4 / 4 + 1
    assert of(weight_bits=16, index_bits=4, nm=(2, 4)).stored_weight_bits == (4 + 2) / 2
    assert of(weight_bits=16, index_bits=4, density=0.99).stored_weight_bits == 4
    # As published (Han et al., 1510.00149, section 3): n·b / (n·log2(k) + k·b).
    plain = Layers.from_rows([dense("d", in_features=300, out_features=100, weight_bits=32)])
    shared = Layers.from_rows(
        [dense("d", in_features=300, out_features=100, weight_bits=32, index_bits=5)]
    )
    rate = 30000 * 32 / (30000 * 5 + 32 * 32)
    assert (plain.parameter_bytes / shared.parameter_bytes).item() == pytest.approx(rate)


def test_a_shared_layer_stores_its_codebook_once_and_an_embedding_reads_indices():
    row = dense("d", in_features=64, out_features=8, index_bits=4)
    again = row._replace(weights=0, params=0)
    both = Layers.from_rows([row, again])
    assert both.parameter_bytes.tolist() == [512 / 2 + 16, 0]
    assert both.operand_bytes.tolist() == [512 / 2 + 16] * 2
    table = embedding("e", vocabulary=10, features=1000, index_bits=4)
    assert table.gather_bytes == 500


def test_codebooks_move_fewer_bytes_at_the_same_pace_of_multiplications():
    plain = dict(height=16, width=16, in_channels=32, out_channels=64, kernel=3, weight_bits=8)
    config = Configs(**device("systolic-edge-16").row(0) | {"sram_weight_bytes": 2**22})
    [whole], [coded] = (
        price_layers(Layers.from_rows([conv("c", **plain, **options)]), config).itertuples()
        for options in ({}, dict(index_bits=2))
    )
    words = 9 * 32 * 64
    assert whole.dram_bytes - coded.dram_bytes == words - (words * 2 / 8 + 4)
    assert coded.sram_bytes < whole.sram_bytes
    assert coded.arithmetic_j == whole.arithmetic_j and coded.cycles <= whole.cycles
    # A tile of indices fits where one of words does not; multipliers still see the words.
    tight = Configs(
        **device("systolic-edge-16").row(0) | {"sram_weight_bytes": 2 * 16 * 16, "dataflow": "ws"}
    )
    wide = {**plain, "weight_bits": 16}
    refused, fits = (
        price(Layers.from_rows([conv("c", **wide, **options)]), tight)
        for options in ({}, dict(index_bits=8))
    )
    assert "half of the weight SRAM" in refused.reason(0, 0) and fits.feasible.all()
    too_wide = conv("c", **{**plain, "weight_bits": 32}, index_bits=2)
    assert "weight bits" in price(Layers.from_rows([too_wide]), tight).reason(0, 0)


@pytest.mark.parametrize("index_bits", [8, 20, -1, 2.5, "four"])
def test_indices_that_save_nothing_are_refused(index_bits):
    with pytest.raises(ValueError, match="row 'd': index_bits must be a whole number below") as e:
        dense("d", in_features=4, out_features=4, weight_bits=8, index_bits=index_bits)
    assert f"got {index_bits!r}" in str(e.value)


def test_storage_of_a_row_can_be_chosen_later():
    plain = dense("d", in_features=64, out_features=8)
    for options in (dict(index_bits=3), dict(density=0.3), dict(nm=(1, 4), index_bits=2), {}):
        built = dense("d", in_features=64, out_features=8, **options)
        assert with_storage(plain, **options) == built
        assert with_storage(built) == plain
    with pytest.raises(ValueError, match="index_bits must be a whole number below weight_bits 8"):
        with_storage(plain, index_bits=9)
    with pytest.raises(ValueError, match="row 'p' has no weights to store otherwise"):
        with_storage(pool("p", height=4, width=4, channels=2, kernel=2), density=0.5)
    with pytest.raises(ValueError, match="row 'p': index_bits is 2, but the row has no weights"):
        pool("p", height=4, width=4, channels=2, kernel=2, index_bits=2)
