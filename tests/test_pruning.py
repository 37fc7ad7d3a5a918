"""Pruning in training: exact densities, each method's own rule, and silence where filters were."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from test_cell import design
from test_train import model_of

import nas
from hwmodel.systolic import structured_depth
from nas import data, pruning
from nas.export import keras_model
from nas.layout import Layout
from nas.program import Program, Switches
from nas.pruning import Pattern, Pruning, best, milestones, shrinkage, swapped
from nas.train import Recipe, Stepper, Trainer, first_values
from search_spaces import FAMILIES, cell, joint
from search_spaces.compression import UNCOMPRESSED, Compression, compressions, n_kept, narrowed
from search_spaces.network import IMAGE, Network, Plan
from search_spaces.ops import Activation, Convolution, Dense, DepthwiseConvolution
from search_spaces.precision import GROUPS
from search_spaces.quantizers import UnbuildableError

EDGES = "conv_3x3 skip conv_1x1 conv_3x3 skip none"
BITS = (4, 4, 4, 8)
RECIPE = Recipe(batch=50, epochs=1, learning_rate=0.1, warmup=0.2, weight_bits=BITS,
                activation_bits=BITS)  # fmt: skip
DENSITIES = (0.5, 0.25, 0.1)


def stages(**each) -> tuple[Compression, ...]:
    """Compressions of the three stages from tuples of three, and none of the ends."""
    rows = zip(*each.values(), strict=True)
    return (*(Compression(**dict(zip(each, row, strict=True))) for row in rows), UNCOMPRESSED)


def kernels(trained) -> list[tuple]:
    """(place, the float kernel that training holds) of each."""
    layout = Layout(trained.network)
    return list(zip(layout.kernels, layout.pieces(layout.split(trained.values)[0]), strict=True))


def exported_accuracy(trained, x, y) -> float:
    return (model_of(trained).predict(x, verbose=0).argmax(-1) == y).mean()


# -- choosing --------------------------------------------------------------------------------------


def test_the_best_of_each_segment_are_as_many_as_asked():
    rng = np.random.default_rng(0)
    segments = rng.integers(0, 7, 500)
    scores = rng.normal(size=500)
    n_keep = rng.integers(0, 40, 7)
    chosen = best(scores, segments, n_keep)
    for i, n in enumerate(n_keep):
        own = segments == i
        expected = np.sort(scores[own])[::-1][:n]
        np.testing.assert_array_equal(np.sort(scores[own & chosen])[::-1], expected)


def test_cuts_are_spread_and_the_last_is_the_end():
    cuts = milestones(10, 60, 20)
    assert max(cuts) == 60 and cuts[60] == 1 and min(cuts) > 10 and len(cuts) == 20
    assert milestones(0, 1, 20) == {1: 1.0}, "a short training has one cut, the whole one"
    assert list(milestones(3, 3, 5).values())[-1] == 1.0


# -- every method, trained -------------------------------------------------------------------------


@pytest.mark.parametrize("method, bits", [("magnitude", 4), ("rigl", 1), ("static", 2)])
def test_every_kernel_keeps_its_density_to_the_weight(images, trainer, method, bits):
    (x, y), (vx, vy) = images
    recipe = replace(RECIPE, weight_bits=(bits,) * 3 + (8,), pruning=Pruning(method),
                     compressions=stages(density=DENSITIES))  # fmt: skip
    trained = trainer.fit(cell.network(design(EDGES)), x, y, recipe, seed=1)
    for place, kernel in kernels(trained):
        density = (*DENSITIES, 1)[place.group]
        assert np.count_nonzero(kernel) == max(1, round(density * kernel.size))
    computed = Layout(trained.network).pieces(
        np.concatenate([w[p.parameter.name].ravel() for p in Layout(trained.network).kernels
                        for w in [trained.weights[p.step]]])
    )  # fmt: skip
    for (_, kernel), used in zip(kernels(trained), computed, strict=True):
        assert not used[kernel == 0].any(), "what is pruned is 0 in every bit-width"
    accuracy, _ = trained.score(vx, vy)
    assert accuracy > 0.15
    assert exported_accuracy(trained, vx, vy) == pytest.approx(accuracy, abs=2 / len(vy))


def test_n_of_every_m_weights_along_the_depth(images, trainer):
    (x, y), (vx, vy) = images
    patterns = ((2, 4), (3, 16), (1, 2))
    recipe = replace(RECIPE, pruning=Pruning("nm"), compressions=stages(nm=patterns))
    trained = trainer.fit(cell.network(design(EDGES)), x, y, recipe, seed=1)
    n_short = 0
    for place, kernel in kernels(trained):
        flat = kernel.reshape(-1, kernel.shape[-1]) != 0
        if place.group == GROUPS.index("ends"):
            assert flat.all()
            continue
        n, m = patterns[place.group]
        whole = len(flat) // m * m
        blocks = flat[:whole].reshape(-1, m, flat.shape[1]).sum(1)
        assert (blocks == n).all()
        assert (flat[whole:].sum(0) == -(-(len(flat) - whole) * n // m)).all()
        n_short += whole < len(flat)
        # what the accelerator multiplies of each column
        assert (flat.sum(0) == structured_depth(len(flat), n, m)).all()
    assert n_short, "3 x 3 x 8 and 8 are no multiples of 16"
    accuracy, _ = trained.score(vx, vy)
    assert exported_accuracy(trained, vx, vy) == pytest.approx(accuracy, abs=2 / len(vy))


@pytest.mark.parametrize("method", ["filters", "group_lasso"])
def test_filters_go_whole_and_give_exactly_nothing(images, trainer, method):
    (x, y), (vx, vy) = images
    network = cell.network(design(EDGES))
    recipe = replace(RECIPE, pruning=Pruning(method), compressions=stages(filters=DENSITIES))
    trained = trainer.fit(network, x, y, recipe, seed=1)
    tensors, silent = trained.tensors(), {}
    for place, kernel in kernels(trained):
        if network.steps[place.step].name == "head.dense":
            continue
        name = network.steps[place.step].name
        alive = (kernel != 0).any((0, 1, 2))
        assert alive.sum() == n_kept((*DENSITIES, 1)[place.group], len(alive))
        assert (kernel != 0)[..., alive].mean() > 0.99, "nothing else is pruned"
        for part in ("gamma", "beta", "mean", "variance"):
            assert not tensors[f"{name}/{part}"][~alive].any()
        silent[name] = ~alive
    accuracy, _ = trained.score(vx, vy)
    model = model_of(trained)
    assert (model.predict(vx, verbose=0).argmax(-1) == vy).mean() == pytest.approx(
        accuracy, abs=2 / len(vy)
    )
    import keras

    outputs = {name: model.get_layer(f"{name}.norm").output for name in silent}
    for name, maps in keras.Model(model.inputs, outputs).predict(vx[:50], verbose=0).items():
        assert not maps[..., silent[name]].any() and maps[..., ~silent[name]].any()


@pytest.mark.parametrize("n_images", [50, 100])
def test_the_shortest_trainings_end_at_the_density_too(trainer, n_images):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (n_images, 16, 16, 3)).astype(np.float32)
    y = np.arange(n_images, dtype=np.int32) % 10
    for method in pruning.METHODS:
        share = dict(filters=DENSITIES) if method in ("filters", "group_lasso") else (
            dict(nm=[(1, 4)] * 3) if method == "nm" else dict(density=DENSITIES))  # fmt: skip
        recipe = replace(RECIPE, pruning=Pruning(method), compressions=stages(**share))
        trained = trainer.fit(cell.network(design(EDGES)), x, y, recipe, seed=0)
        pattern = Pattern(Layout(trained.network), recipe.compressions)
        alive = pattern.scores(trained.values) > 0
        np.testing.assert_array_equal(np.bincount(pattern.segment, alive), pattern.n_keep)


def test_off_is_the_same_training_to_the_bit(images, trainer):
    (x, y), _ = images
    network = cell.network(design(EDGES))
    plain = trainer.fit(network, x[:500], y[:500], RECIPE, seed=2)
    off = replace(RECIPE, compressions=(UNCOMPRESSED,) * 4, pruning=Pruning("magnitude"))
    assert off.switches == RECIPE.switches
    same = trainer.fit(network, x[:500], y[:500], off, seed=2)
    np.testing.assert_array_equal(plain.values, same.values)
    # density 1 under masks is that training as well, but for what masks multiply
    compiled = Program(network, Switches(masked=True))
    values = first_values(network, RECIPE, x[:64], 2)
    compiled.start(values)
    other = Program(network, Switches())
    other.start(values)
    for program in (compiled, other):
        program.step(x[:50], y[:50], np.int32(BITS), np.int32(BITS), 0.1)
    np.testing.assert_array_equal(compiled.get_values(), other.get_values())


# -- rules of single methods -----------------------------------------------------------------------


def chain() -> Network:
    plan = Plan()
    at = plan.add("stem", Convolution(4, 3, image=True), IMAGE, group=1)
    at = plan.add("relu", Activation(), at, group=0)
    at = plan.add("conv", Convolution(16, 3), at, group=0)
    at = plan.add("relu2", Activation(), at, group=0)
    plan.add("dense", Dense(10), at, group=1)
    return Network(tuple(plan.steps), (8, 8, 3), ("body", "ends"))


RNG = np.random.default_rng(0)
X = RNG.normal(0, 1, (64, 8, 8, 3)).astype(np.float32)
Y = RNG.integers(0, 10, 64).astype(np.int32)
ROWS = np.arange(64)


def started(compression: Compression, method: str, **options):
    """(technique, stepper, pattern) of a chain at its first step, over 100 steps."""
    network, bits = chain(), (8, 8)
    pruned = Pruning(method, **options)
    recipe = Recipe(64, 1, 0.1, 0.1, bits, bits, compressions=(compression, UNCOMPRESSED),
                    pruning=pruned)  # fmt: skip
    stepper = Stepper(Program(network, recipe.switches), recipe)
    stepper.program.start(first_values(network, recipe, X, 1))
    pattern = Pattern(stepper.program.layout, recipe.compressions)
    technique = pruning.TECHNIQUES[method](stepper, pattern, pruned, (0, 100), 1)
    return technique, stepper, pattern


def test_magnitude_follows_the_cubic_and_keeps_the_largest():
    technique, stepper, pattern = started(Compression(density=0.1), "magnitude")
    n = pattern.n_candidates
    assert n == 9 * 4 * 16
    left = {}
    for step in range(1, 101):
        before = pattern.scores(stepper.program.get_values())
        technique(step, 0.1, X, Y, ROWS)
        alive = pattern.scores(stepper.program.get_values()) > 0
        left[step] = alive.sum()
        assert before[alive].min() >= before[~alive].max(initial=0)
    assert left[10] == n and left[60] == left[100] == round(0.1 * n)
    for step in (20, 35, 50):  # Zhu & Gupta, eq. 1: s_f + (s_i - s_f) (1 - t)^3
        expected = round(0.1 * n) + (n - round(0.1 * n)) * (1 - (step - 10) / 50) ** 3
        assert left[step] == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("score", pruning.SCORES)
def test_filters_go_by_their_score(score):
    technique, stepper, _ = started(Compression(filters=0.25), "filters", score=score)
    values, layout = stepper.program.get_values(), stepper.program.layout
    conv = {p.parameter.name: layout.slice(p) for p in [*layout.kernels, *layout.others]
            if layout.network.steps[p.step].name == "conv"}  # fmt: skip
    values[conv["gamma"]] = np.random.default_rng(3).permutation(16) - 7.5
    stepper.program.set_values(values)
    kernel = values[conv["kernel"]].reshape(-1, 16)
    expected = {"l2": np.linalg.norm(kernel, axis=0), "l1": np.abs(kernel).sum(0),
                "gamma": np.abs(values[conv["gamma"]])}[score]  # fmt: skip
    technique(60, 0.1, X, Y, ROWS)
    after = stepper.program.get_values()
    kept = np.flatnonzero(after[conv["gamma"]])
    np.testing.assert_array_equal(kept, np.sort(np.argsort(-expected, kind="stable")[:4]))
    assert not np.delete(after[conv["kernel"]].reshape(-1, 16), kept, axis=1).any()


def test_rigl_swaps_small_weights_for_large_gradients():
    technique, stepper, pattern = started(Compression(density=0.2), "rigl")
    stepper.step(X, Y, ROWS, 0.1)
    before, alive = stepper.program.get_values(), technique.alive.copy()
    gradients = pattern.totals(stepper.kernel_gradient(X, Y, ROWS).astype(np.float64) ** 2)
    n_kept_here = round(0.2 * 576)
    assert alive.sum() == n_kept_here
    step = min(technique.swaps)
    technique(step, 0.1, X, Y, ROWS)
    now = technique.alive
    assert now.sum() == n_kept_here
    grown, dropped = now & ~alive, alive & ~now
    way = technique.swaps[step]
    n_swap = round(0.3 * (1 + np.cos(np.pi * way)) / 2 * n_kept_here)
    assert 0 < grown.sum() == dropped.sum() <= n_swap
    scores = pattern.scores(before)
    # of what was neither kept nor grown, nothing has a larger gradient
    assert gradients[grown].min() >= gradients[~now].max()
    assert scores[dropped].max() <= np.sort(scores[alive])[n_swap - 1]
    values = stepper.program.get_values()
    own = pattern.candidate < pattern.n_candidates
    assert not values[own][~now | grown].any(), "dropped are 0, and grown ones begin at 0"
    np.testing.assert_array_equal(values[own][now & alive], before[own][now & alive])
    stepper.step(X, Y, ROWS, 0.1)
    assert stepper.program.get_values()[own][grown].all(), "and then train"


def test_rigl_stops_and_static_never_moves():
    for method, moves in (("rigl", True), ("static", False)):
        technique, stepper, _ = started(Compression(density=0.2), method)
        seen = []
        for step in range(1, 101):
            stepper.step(X, Y, ROWS, 0.05)
            technique(step, 0.05, X, Y, ROWS)
            seen.append(technique.alive.copy())
        changed = [s for s, (a, b) in enumerate(zip(seen, seen[1:]), 2) if (a != b).any()]
        assert bool(changed) == moves
        assert max(changed, default=0) < 75 and {a.sum() for a in seen} == {round(0.2 * 576)}


def test_a_swap_is_bounded_by_the_room_there_is():
    technique, _, pattern = started(Compression(density=0.95), "rigl")
    rng = np.random.default_rng(1)
    after = swapped(technique.alive, rng.random(576), rng.random(576), pattern, 0.3)
    assert after.sum() == technique.alive.sum() == round(0.95 * 576)


def test_group_lasso_shortens_each_filter_by_its_threshold():
    technique, stepper, _ = started(Compression(filters=0.25), "group_lasso", lasso=0.3)
    layout = stepper.program.layout
    [place] = [p for p in layout.kernels if layout.network.steps[p.step].name == "conv"]

    def filters():
        return stepper.program.get_values()[layout.slice(place)].reshape(-1, 16)

    before = filters()
    technique(1, 0.1, X, Y, ROWS)
    lengths = np.linalg.norm(before, axis=0)
    expected = before * np.maximum(0, 1 - 0.1 * 0.3 * np.sqrt(36) / lengths)
    np.testing.assert_allclose(filters(), expected, rtol=1e-5)
    for step in range(2, 60):
        technique(step, 0.1, X, Y, ROWS)
    # by now all would be 0: those that the density keeps are not
    assert (np.linalg.norm(filters(), axis=0) > 0).sum() == 4
    np.testing.assert_array_equal(shrinkage(np.array([0.0, 1.0, 4.0]), np.array([1.0, 2.0, 1.0])),
                                  [0, 0, 0.75])  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_priced_as_missing_is_silent(family):
    """Filters, and the channels that operations on single channels would hand on of them."""
    named = {"prune.method": "filters", **{f"prune.density.stage{i}": d
             for i, d in enumerate(DENSITIES)}}  # fmt: skip
    space, rng = joint(family).restrict(named), np.random.default_rng(0)
    n_followed = 0
    for encoding in space.sample(6, rng):
        choices = space.decode(encoding)
        try:
            network = FAMILIES[family].network(choices)
        except UnbuildableError:
            continue
        layout, groups = Layout(network), compressions(choices)
        pattern = Pattern(layout, groups)
        mask = pattern.mask(best(rng.random(pattern.n_candidates), pattern.segment, pattern.n_keep))
        priced = [op.shape(shapes)[-1] for op, shapes in narrowed(network, groups)]
        for place in layout.others:
            step = network.steps[place.step]
            own = mask[layout.slice(place)]
            n_alive = np.count_nonzero(own)
            assert n_alive == priced[place.step], (step.name, place.parameter.name)
            n_followed += (
                not hasattr(step.op, "filters") and n_alive < mask[layout.slice(place)].size
            )
    assert bool(n_followed) == (family != "cell"), "which has no depthwise convolutions"


def test_a_silent_channel_stays_silent_through_a_depthwise_convolution():
    plan = Plan()
    at = plan.add("conv", Convolution(8, 3), IMAGE, group=0)
    at = plan.add("relu", Activation("silu"), at, group=0)
    at = plan.add("depthwise", DepthwiseConvolution(3), at, group=0)
    at = plan.add("again", Convolution(6, 1), at, group=1)
    plan.add("dense", Dense(6), at, group=1)
    network = Network(tuple(plan.steps), (4, 4, 3), ("body", "ends"))
    layout = Layout(network)
    pattern = Pattern(layout, (Compression(filters=0.5), UNCOMPRESSED))
    assert pattern.n_candidates == 8 and pattern.n_keep == [4]
    mask = pattern.mask(np.arange(8) < 4)
    for place in [*layout.kernels, *layout.others]:
        kept = mask[layout.slice(place)].reshape(place.parameter.shape)
        if place.group == 0:
            assert kept[..., :4].all() and not kept[..., 4:].any()
        else:
            assert kept.all()
    # M weights of a kernel of one channel would be of several windows: left alone
    patterned = Pattern(layout, (Compression(nm=(1, 2)), UNCOMPRESSED))
    assert patterned.n_candidates == 9 * 3 * 8


@pytest.mark.parametrize("wrong, message", [
    (dict(compressions=stages(density=(0.0, 1, 1)), pruning=Pruning("rigl")),
     r"group 'stage0': the density must be above 0 and at most 1, got 0\.0"),
    (dict(compressions=stages(density=(1, 1.5, 1)), pruning=Pruning("rigl")),
     r"group 'stage1': the density .* got 1\.5"),
    (dict(compressions=stages(nm=[(5, 4)] * 3), pruning=Pruning("nm")),
     r"1 <= N <= M; got 5:4"),
    (dict(compressions=stages(density=DENSITIES)),
     r"asks for a density, but pruning is 'none'"),
    (dict(compressions=stages(filters=DENSITIES), pruning=Pruning("magnitude")),
     r"asks for a share of filters, but pruning is 'magnitude'"),
    (dict(compressions=stages(density=DENSITIES)[:2], pruning=Pruning("rigl")),
     r"2 compressions for 4 bit-width groups"),
])  # fmt: skip
def test_mistakes_are_named_before_training(wrong, message):
    trainer = Trainer()
    x, y = np.zeros((50, 16, 16, 3), np.float32), np.zeros(50, np.int32)
    with pytest.raises(ValueError, match=message):
        trainer.fit(cell.network(design()), x, y, replace(RECIPE, **wrong), seed=0)
    assert not trainer.programs, "nothing was compiled"


def test_unknown_ways_to_prune_are_refused():
    with pytest.raises(ValueError, match=r"unknown pruning method 'lottery'; known: none, filters"):
        Pruning("lottery")
    with pytest.raises(ValueError, match="unknown pruning score 'l3'"):
        Pruning("filters", score="l3")
    with pytest.raises(ValueError, match="score 'gamma' is of filters, but the method is 'rigl'"):
        Pruning("rigl", score="gamma")
    with pytest.raises(ValueError, match="at least 0, got -1"):
        Pruning("group_lasso", lasso=-1)


def test_ratios_a_stage_are_searched_and_exported(tmp_path):
    """AMC's problem is an ordinary run: a controller chooses densities, priced and trained."""
    run = nas.search(
        "prune", run_dir=tmp_path / "run", trials=4, workers=1, seed=3, progress=False,
        assignments=("evaluator.images=400", "evaluator.epochs=1", "evaluator.final_epochs=1",
                     "cell.width=8", "final.top=1"),
    )  # fmt: skip
    trials = [t for t in run.trials() if t.status == "complete" and t.repeats is None]
    assert len(trials) == 4
    names = [f"prune.density.stage{stage}" for stage in range(3)]
    chosen = [run.space.decode(t.proposal.encoding) for t in trials]
    assert len({tuple(choices[name] for name in names) for choices in chosen}) == 4
    macs = {tuple(choices[name] for name in names): t.metrics["macs"]
            for choices, t in zip(chosen, trials)}  # fmt: skip
    assert len(set(macs.values())) == 4
    for a, b in itertools.permutations(macs, 2):
        if all(x <= y for x, y in zip(a, b)):
            assert macs[a] < macs[b]
    best, (metrics, _) = next(iter(run.finals().items()))
    choices = run.space.decode(run.trial(best).proposal.encoding)
    model, _ = keras_model(run, best)
    network = cell.network(choices)
    core = next(layer for layer in model.layers if hasattr(layer, "layers"))
    for step in network.steps:
        if hasattr(step.op, "filters"):
            [kernel] = core.get_layer(step.name).get_weights()
            n_alive = kernel.any((0, 1, 2)).sum()
            share = 1 if step.group == 3 else choices[names[step.group]]
            assert n_alive == n_kept(share, step.op.filters)
    test = data.load("cifar10-sample").test
    images = data.resize(test.x, 16).astype(np.float32)
    right = (model.predict(images, verbose=0).argmax(-1) == test.y).mean()
    # float sums in another order round a few activations to their other neighbour
    assert right == pytest.approx(metrics["test_accuracy"], abs=4 / len(test))
