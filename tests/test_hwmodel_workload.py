"""Rows count what the layers' definitions say; a table of networks is the sum of its parts."""

import numpy as np
import pytest

from hwmodel.workload import (
    COLUMNS,
    Layers,
    conv,
    dense,
    depthwise,
    elementwise,
    normalization,
    pool,
)


def test_convolution_is_a_product_with_the_batch_in_m():
    row = conv("c", batch=2, height=32, width=16, in_channels=8, out_channels=12, kernel=(3, 5),
               stride=2, groups=4, bias=True)
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
    row = conv("c", height=size, width=size, in_channels=1, out_channels=1, kernel=kernel,
               stride=stride, padding=padding)
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
    first = Layers.from_rows([block, pool("p", height=8, width=8, channels=4, kernel=2),
                              block, block])
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
