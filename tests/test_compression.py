"""Compression: what is pruned, factored or coded is what the hardware model is told of."""

import numpy as np
import pytest
from test_cell import design
from test_ops import keras_macs, keras_params

from hwmodel import device, price
from hwmodel.workload import COLUMNS, Layers, depthwise
from search_spaces import cell, compression, joint
from search_spaces.compression import (
    STAGES,
    Compression,
    compressions,
    factored,
    n_kept,
    narrowed,
    svd_start,
)
from search_spaces.network import IMAGE, Network, Plan
from search_spaces.ops import (
    Activation,
    Add,
    AveragePool,
    Convolution,
    Dense,
    GlobalPool,
    LowRankConvolution,
    Precision,
)
from search_spaces.precision import GROUPS, precisions

ENDS = GROUPS.index("ends")
BITS = [Precision(8, 8)] * len(GROUPS)


def chain(first, second) -> Network:
    """Stem, two convolutions with an activation and a pooling between, head."""
    plan = Plan()
    at = plan.add("stem", Convolution(6, 3, image=True), IMAGE, group=ENDS)
    at = plan.add("relu0", Activation(), at, group=0)
    at = plan.add("a", Convolution(first, 3), at, group=0)
    at = plan.add("relu1", Activation(), at, group=0)
    at = plan.add("pool", AveragePool(2, stride=2), at, group=0)
    at = plan.add("b", Convolution(second, 1), at, group=1)
    at = plan.add("mean", GlobalPool(), at, group=ENDS)
    plan.add("dense", Dense(10), at, group=ENDS)
    return Network(tuple(plan.steps), (8, 8, 3), GROUPS)


def residual() -> Network:
    """A convolution whose readers are another one, and a sum before a third."""
    plan = Plan()
    at = plan.add("stem", Convolution(8, 3, image=True), IMAGE, group=ENDS)
    a = plan.add("a", Convolution(8, 3), at, group=0)
    relu = plan.add("relu", Activation(), a, group=0)
    b = plan.add("b", Convolution(8, 1), relu, group=0)
    both = plan.add("sum", Add(), a, b, group=0)
    c = plan.add("c", Convolution(8, 3), both, group=0)
    plan.add("dense", Dense(10), c, group=ENDS)
    return Network(tuple(plan.steps), (4, 4, 3), GROUPS)


def row(layers: Layers, name: str) -> dict:
    [at] = np.flatnonzero(layers.names == name)
    return {field: column[at] for field, column in layers.columns.items()}


def same(one: Layers, other: Layers) -> None:
    for field in COLUMNS:
        assert one.columns[field].tolist() == other.columns[field].tolist(), field


def test_a_search_that_names_none_of_it_goes_without():
    assert len(compression.SPACE.restrict({})) == 0
    pruned = compression.SPACE.restrict({"prune.method": ["none", "nm"]})
    assert pruned.names == ("prune.method", "prune.nm")
    assert len(compression.SPACE.restrict({"compress.weights": "codebook"})) == 2
    with pytest.raises(ValueError, match=r"named but not 'prune\.method'"):
        compression.SPACE.restrict({"prune.density.stage0": 0.5})
    assert compressions(design()) == [Compression()] * len(GROUPS)
    plain = design()
    same(cell.layers(plain), cell.network(plain).layers(precisions(plain), 1))


def test_every_choice_of_the_space_is_a_compression_with_a_price():
    for encoding in compression.SPACE.sample(40, np.random.default_rng(0)):
        choices = design(**compression.SPACE.decode(encoding))
        groups = compressions(choices)
        assert len(groups) == len(GROUPS) and groups[ENDS] == Compression()
        layers, plain = cell.layers(choices), cell.layers(design())
        tables = layers.codebook_bytes.sum()
        assert layers.parameter_bytes.sum() - tables <= plain.parameter_bytes.sum()
        cost = price(layers, device("systolic-edge-16"))
        assert cost.feasible.all() and np.isfinite(cost.latency_s).all()


def test_choices_become_columns_of_their_stage_and_the_ends_stay():
    choices = design(
        **{"compress.weights": "codebook", "compress.codebook": 4, "prune.method": "rigl"},
        **{f"prune.density.{s}": d for s, d in zip(STAGES, (1, 0.5, 0.1), strict=True)},
    )
    layers = cell.layers(choices)
    weighted = layers.weights > 0
    for stage, density in enumerate((1, 0.5, 0.1)):
        own = weighted & np.char.startswith(layers.names.astype(str), f"stage{stage}")
        assert own.any() and (layers.density[own] == density).all()
        assert (layers.index_bits[own] == 2).all()
    ends = np.isin(layers.names, ["stem", "head.dense"])
    assert (layers.density[ends] == 1).all() and not layers.index_bits[ends | ~weighted].any()
    nm = cell.layers(design(**{"prune.method": "nm", "prune.nm": "4:8"}))
    convolutions = (nm.kernel_height > 1) & (nm.weights > 0) & (nm.names != "stem")
    assert convolutions.any() and (nm.nm_n[convolutions] == 4).all()
    assert (nm.nm_m[convolutions] == 8).all() and not nm.nm_m[ends].any()


@pytest.mark.parametrize("entries, index_bits", [(2, 1), (4, 2), (16, 4), (64, 6), (256, 8)])
def test_a_codebook_of_all_words_is_none(entries, index_bits):
    chosen = {"compress.weights": "codebook", "compress.codebook": entries}
    wide = design(**chosen, **{f"bits.weights.{stage}": 16 for stage in STAGES})
    assert {each.index_bits for each in compressions(wide)[:-1]} == {index_bits}
    narrow = design(**chosen, **{f"bits.weights.{stage}": index_bits or 1 for stage in STAGES})
    assert compressions(narrow) == [Compression()] * len(GROUPS)
    cell.layers(narrow)


def test_depthwise_kernels_have_no_pattern_along_their_one_channel():
    kernel = depthwise("d", height=8, width=8, channels=8, kernel=3)
    assert Compression(nm=(2, 4)).stored(kernel) == kernel
    assert Compression(density=0.5).stored(kernel).density == 0.5
    assert Compression(nm=(2, 4), index_bits=3).stored(kernel).index_bits == 3


def test_a_chain_without_filters_is_the_chain_built_narrower():
    pruned = [Compression(filters=0.3), Compression(filters=0.5), *[Compression()] * 2]
    same(chain(10, 9).layers(BITS, 2, pruned), chain(3, 4).layers(BITS, 2))
    assert [n_kept(0.1, n) for n in (4, 16, 32)] == [1, 2, 3]


def test_sums_read_whole_tensors_and_products_only_what_is_left():
    network = residual()
    pruned = [Compression(filters=0.25), *[Compression()] * 3]
    layers, whole = network.layers(BITS, 1, pruned), network.layers(BITS, 1)
    assert (row(layers, "a")["k"], row(layers, "a")["n"]) == (9 * 8, 2)
    assert row(layers, "relu")["vector_ops"] * 4 == row(whole, "relu")["vector_ops"]
    assert (row(layers, "b")["k"], row(layers, "b")["n"]) == (2, 2)
    assert row(layers, "sum") == row(whole, "sum")
    assert (row(layers, "c")["k"], row(layers, "c")["n"]) == (9 * 8, 2)
    assert (row(layers, "dense")["k"], row(layers, "dense")["n"]) == (4 * 4 * 2, 10)
    assert row(layers, "stem") == row(whole, "stem")
    # The price alone is of fewer filters: the graph keeps its tensors.
    assert network == residual()
    for (op, inputs), step, own in zip(
        narrowed(network, [Compression()] * 4), network.steps, network.inputs, strict=True
    ):
        assert op == step.op and inputs == own


@pytest.mark.parametrize("share", [0.125, 0.25, 0.5])
def test_factors_are_fewer_parameters_and_the_same_shapes(share):
    choices = design(**{"compress.weights": "low_rank", "compress.rank": share})
    network, whole = cell.network(choices), cell.network(design())
    assert network.inputs == whole.inputs
    assert factored(whole, 1) is whole and factored(whole, share) == network
    pairs = [(a.op, b.op, shapes[0]) for a, b, shapes in
             zip(network.steps, whole.steps, whole.inputs, strict=True)]  # fmt: skip
    n_factored = 0
    for op, before, (_, _, channels) in pairs:
        if op == before:
            continue
        n_factored += 1
        depth = before.kernel**2 * channels
        assert op.rank == max(1, round(share * min(depth, before.filters)))
        assert op.rank * (depth + before.filters) < depth * before.filters
        assert (op.filters, op.kernel, op.stride) == (before.filters, before.kernel, before.stride)
    assert n_factored and network.steps[0].op == whole.steps[0].op
    model, layers = cell.build(choices), cell.layers(choices)
    assert layers.macs[0] == keras_macs(model) < cell.layers(design()).macs[0]
    assert layers.params[0] == keras_params(model) < cell.layers(design()).params[0]
    # Half the rank of a square 1 x 1 kernel saves nothing.
    square = {type(op) for op, before, (_, _, channels) in pairs
              if isinstance(before, Convolution) and before.kernel == 1
              and before.filters == channels}  # fmt: skip
    assert square == ({Convolution} if share == 0.5 else {LowRankConvolution})


@pytest.mark.parametrize("shape", [(3, 3, 5, 8), (1, 1, 16, 6), (3, 3, 2, 30)])
def test_the_svd_start_is_the_best_of_its_rank(shape):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=shape)
    flat = kernel.reshape(-1, shape[3])
    values = np.linalg.svd(flat, compute_uv=False)
    for rank in (1, 3, min(flat.shape)):
        down, up = svd_start(kernel, rank)
        assert down.shape == (*shape[:3], rank) and up.shape == (1, 1, rank, shape[3])
        error = flat - down.reshape(-1, rank) @ up[0, 0]
        assert np.linalg.norm(error) == pytest.approx(np.linalg.norm(values[rank:]), abs=1e-9)
        # No random pair of factors, refitted to the kernel, comes nearer.
        basis, _ = np.linalg.qr(rng.normal(size=(len(flat), rank)))
        assert np.linalg.norm(flat - basis @ (basis.T @ flat)) >= np.linalg.norm(error) - 1e-9
        np.testing.assert_allclose(
            np.linalg.norm(down.reshape(-1, rank), axis=0), np.linalg.norm(up[0, 0], axis=1)
        )


def test_factors_of_full_rank_compute_what_the_kernel_does():
    import tensorflow as tf

    from nas.scoring import FixedContext

    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 7, 7, 4)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 4, 6)).astype(np.float32)
    norm = {"gamma": tf.ones(6), "beta": tf.zeros(6)}
    moments = np.zeros(6, np.float32), np.ones(6, np.float32)
    down, up = svd_start(kernel, 6)
    whole, low = (
        op.apply([x], weights | norm, tf.constant(8), FixedContext([moments[0]], [moments[1]]))
        for op, weights in (
            (Convolution(6, 3, 2), {"kernel": kernel}),
            (LowRankConvolution(6, 3, 6, 2), {"down": down, "up": up}),
        )
    )
    np.testing.assert_allclose(low, whole, rtol=1e-4, atol=1e-4)


def test_bad_shares_and_ranks_are_refused():
    with pytest.raises(ValueError, match="filters kept must be above 0 and at most 1, got 0"):
        Compression(filters=0)
    with pytest.raises(ValueError, match=r"share of the rank must be above 0 .* got 1\.5"):
        factored(residual(), 1.5)
    with pytest.raises(ValueError, match="factors of rank 1 to 6, got 7"):
        svd_start(np.zeros((3, 3, 4, 6)), 7)
    with pytest.raises(ValueError, match="row 'a': density must be above 0"):
        residual().layers(BITS, 1, [Compression(density=0.0), *[Compression()] * 3])


def test_the_joint_space_can_hold_it():
    space = joint("cell").restrict(
        {"prune.method": ["none", "magnitude"], "prune.density.stage0": [1, 0.5]}
    )
    assert {n for n in space.names if n.startswith(("prune", "compress"))} == {
        "prune.method", *(f"prune.density.{stage}" for stage in STAGES),
    }  # fmt: skip
