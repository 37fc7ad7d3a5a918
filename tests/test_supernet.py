"""Shared weights: the path chosen is the network itself, and nothing else moves."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from test_cell import design

import nas
from nas import config, supernet
from nas.evaluators import EVALUATORS
from nas.layout import MIN_CLIP, MIN_STEP, Layout
from nas.open_cell import OPTIONS, UnitScale, live_cells, random_cells, reaches_output
from nas.program import Program, Switches
from nas.scoring import StatisticsContext, accuracy_and_loss
from nas.supernet import Supernet
from search_spaces import cell
from search_spaces.network import Step, live
from search_spaces.ops import Operation
from search_spaces.precision import BITS, GROUPS
from search_spaces.quantizers import dequantized

SIZE = {"cell.width": 4, "cell.depth": 1, "cell.resolution": 16}
CELLS = [
    "conv_3x3 skip conv_1x1 skip none avg_pool_3x3",
    "conv_1x1 conv_3x3 conv_3x3 conv_1x1 conv_1x1 conv_3x3",
    "none none none avg_pool_3x3 none none",
    "skip avg_pool_3x3 none none conv_3x3 skip",
    "conv_3x3 conv_3x3 none skip skip none",  # one convolution leads nowhere
]
WEIGHT_BITS, ACTIVATION_BITS = [3, 8, 32, 4], [8, 2, 5, 16]
MIXED = np.int32(WEIGHT_BITS), np.int32(ACTIVATION_BITS)


def row(edges: str) -> list[int]:
    return [OPTIONS.index(word) for word in edges.split()]


@pytest.fixture(scope="module")
def images():
    """96 images of noise, tinted by their classes."""
    rng = np.random.default_rng(0)
    labels = np.arange(96, dtype=np.int32) % 10
    tints = rng.normal(0, 3, (10, 1, 1, 3))
    return (tints[labels] + rng.normal(0, 1, (96, 16, 16, 3))).astype(np.float32), labels


@pytest.fixture(scope="module")
def net():
    found = Supernet(4, 1, 16, batch=32)
    yield found
    found.close()


@pytest.fixture
def trained(net, images):
    """Its weights after an epoch or two, so that no tensor is what it was made as."""
    net.fit(*images, epochs=2, learning_rate=0.05, seed=3)
    return net


def own_network(edges: str):
    """The cell's own network, with one scale for its head, as the supernet has."""
    network = cell.network(design(edges, **SIZE))
    steps = list(network.steps)
    at = next(i for i, step in enumerate(steps) if step.name == "head.relu1")

    def moved(j):
        return j + (j >= at)

    before = steps[at].inputs[0]
    head = [s._replace(inputs=tuple(map(moved, s.inputs))) for s in steps[at:]]
    head[0] = head[0]._replace(inputs=(at,))
    scale = Step("head.scale", UnitScale(), (before,), steps[at].group)
    return replace(network, steps=(*steps[:at], scale, *head))


def own_tensors(tensors: dict, network, weight_bits, activation_bits) -> list[dict]:
    """Per step of a cell's own network its tensors out of those of a supernet: kernels, their
    steps as `kernel.step`, and clips, as they are learned."""
    out: list[dict] = [{} for _ in network.steps]
    for place in network.places:
        step, name = network.steps[place.step].name, place.parameter.name
        prefix = f"{step}/"
        if ".edge" in step:
            cell_and_edge, kind = step.rsplit(".", 1)
            prefix = f"{cell_and_edge}/{kind}/"
        found = tensors[prefix + name]
        if name == "clip":
            found = found[BITS.index(activation_bits[place.group])]
        if name == "kernel":
            at = BITS.index(weight_bits[place.group])
            out[place.step]["kernel.step"] = tensors[prefix + "step"][at]
        out[place.step][name] = found
    return out


@pytest.mark.parametrize("edges", CELLS)
def test_a_score_is_that_of_the_cells_own_network_with_these_weights(trained, images, edges):
    x, y = images
    network = own_network(edges)
    weights = own_tensors(trained.tensors(), network, WEIGHT_BITS, ACTIVATION_BITS)
    for step, tensors in zip(network.steps, weights):
        if "kernel" in tensors:
            size = abs(tensors["kernel.step"]) + MIN_STEP
            tensors["kernel"] = dequantized(tensors["kernel"], size, WEIGHT_BITS[step.group])
        if "clip" in tensors:
            tensors["clip"] = tf.constant(abs(tensors["clip"]) + MIN_CLIP, tf.float32)
    scores = network.apply(x, weights, MIXED[1], StatisticsContext(True)).numpy()
    expected = accuracy_and_loss(scores, y)
    accuracy, loss = trained.score([row(edges)], *MIXED, x, y)
    assert accuracy[0] == pytest.approx(expected[0], abs=1.5 / len(y))
    assert loss[0] == pytest.approx(expected[1], rel=1e-3)


def test_the_scale_of_the_head_is_a_factor_of_its_weights(trained, images):
    """In float, and where nothing is clipped: the plain network, its last kernel rescaled."""
    x, y = images
    full = np.full(len(GROUPS), 32, np.int32)
    plain = cell.network(design(CELLS[0], **SIZE))
    weights = own_tensors(trained.tensors(), plain, full, full)
    for tensors in weights:
        if "clip" in tensors:
            tensors["clip"] = tf.constant(tensors["clip"], tf.float32)
    names = [step.name for step in plain.steps]
    head = names.index("head.relu1")
    stem_to_head = replace(plain, steps=plain.steps[:head])
    values = whole_output(stem_to_head, x, weights, full)
    weights[names.index("head.dense")]["kernel"] = weights[-1]["kernel"] / np.sqrt(
        (values**2).mean()
    )
    scores = plain.apply(x, weights, full, StatisticsContext(True)).numpy()
    _, loss = trained.score([row(CELLS[0])], full, full, x, y)
    assert loss[0] == pytest.approx(accuracy_and_loss(scores, y)[1], rel=1e-3)


def whole_output(network, x, weights, bits) -> np.ndarray:
    """What the last step gives, whole [n, h, w, c]."""
    seen = []

    class Seen(Operation):
        def apply(self, tensors, weights, bits, context):
            seen.append(tensors[0].numpy())
            return tensors[0]

    last = len(network.steps) - 1
    steps = (*network.steps, Step("seen", Seen(), (last,), 0))
    replace(network, steps=steps).apply(
        x, [*weights[: last + 1], {}], bits, StatisticsContext(True)
    )
    return seen[0]


@pytest.mark.parametrize("edges", CELLS[:4])
def test_a_step_is_that_of_the_cells_own_program_and_moves_nothing_else(trained, images, edges):
    x, y = images
    bits = np.full(len(GROUPS), 8, np.int32)
    rows = np.arange(32, dtype=np.int32)
    # momenta everywhere, which must not move what is not chosen
    every = random_cells(6, np.random.default_rng(1))
    trained.train(x, y, np.tile(rows, (6, 1)), np.full(6, 0.01, np.float32), every,
                  *np.tile(bits, (2, 6, 1)))  # fmt: skip
    before = trained.tensors()
    trained.set_tensors(before)  # and none where both begin
    network = own_network(edges)
    program = Program(network, Switches())
    layout = Layout(network)
    values = np.empty(layout.n, np.float32)
    kernels, others, clips, steps = layout.split(values)
    own = own_tensors(before, network, bits, bits)
    kernels[:] = np.concatenate([own[p.step][p.parameter.name].ravel() for p in layout.kernels])
    others[:] = np.concatenate([own[p.step][p.parameter.name].ravel() for p in layout.others])
    clips[:] = [own[p.step]["clip"] for p in layout.clips]
    steps[:] = [own[p.step]["kernel.step"] for p in layout.kernels]
    program.start(values)
    expected = program.step(x[rows], y[rows], bits, bits, 0.1)
    loss = trained.train(x, y, rows[None], np.float32([0.1]), [row(edges)], bits[None], bits[None])
    np.testing.assert_allclose(loss, expected[:2], rtol=1e-4)
    after, named = trained.tensors(), layout.named(program.get_values())
    program.close()
    moved = set()
    for step, tensors in zip(network.steps, own_tensors(after, network, bits, bits)):
        for name, tensor in tensors.items():
            theirs = named[f"{step.name}/{name}"]
            ours = np.abs(tensor) if name in ("clip", "kernel.step") else tensor
            np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-5, err_msg=step.name)
            prefix = step.name
            if ".edge" in prefix:
                prefix = "/".join(prefix.rsplit(".", 1))
            moved.add(f"{prefix}/{name.removeprefix('kernel.')}")
    tables = {name for name in after if name.endswith(("/step", "/clip"))}
    others = np.array([b != 8 for b in BITS])
    for name, tensor in after.items():
        if name not in moved:
            np.testing.assert_array_equal(tensor, before[name], err_msg=name)
        elif name in tables:
            np.testing.assert_array_equal(tensor[others], before[name][others], err_msg=name)
        elif name.endswith("kernel"):
            assert (tensor != before[name]).any(), name


def test_what_is_not_chosen_rests_and_then_goes_on_with_its_momentum(trained, images):
    """A rate of 0 leaves all weights as they are and moves momenta alone."""
    x, y = images
    bits = np.full((1, len(GROUPS)), 8, np.int32)
    order, kernel = np.arange(32, dtype=np.int32)[None], "stage0.cell0.edge03/conv_3x3/kernel"
    one, other = "none none none conv_3x3 none none", "none none none conv_1x1 none none"
    begun, ends = trained.tensors(), []
    for between in ((), (other, other), (one, one)):
        trained.set_tensors(begun)
        for edges, rate in ((one, 0), *((edges, 0) for edges in between), (one, 0.05)):
            trained.train(x, y, order, np.float32([rate]), [row(edges)], bits, bits)
        ends.append(trained.tensors()[kernel])
    np.testing.assert_array_equal(ends[1], ends[0])
    assert np.abs(ends[2] - begun[kernel]).sum() > 1.2 * np.abs(ends[0] - begun[kernel]).sum()


def test_fits_repeat_themselves_to_the_bit_and_learn(net, images):
    options = {"epochs": 40, "learning_rate": 0.05, "bits": [4, 8, 32]}
    curve = net.fit(*images, **options, seed=5)
    first = net.tensors()
    assert curve[-1]["loss"] < curve[0]["loss"] - 0.2
    assert curve[-1]["accuracy"] > curve[0]["accuracy"]
    assert net.fit(*images, **options, seed=5) == curve
    for name, tensor in net.tensors().items():
        np.testing.assert_array_equal(tensor, first[name], err_msg=name)
    assert net.fit(*images, epochs=1, learning_rate=0.05, seed=6)[0] != curve[0]


def test_scoring_many_equals_scoring_one_by_one(trained, images, monkeypatch):
    cells = random_cells(7, np.random.default_rng(2))
    bits = np.random.default_rng(3).choice(np.int32(BITS), (2, 7, len(GROUPS)))
    many = trained.score(cells, *bits, *images)
    ones = [trained.score([c], w, a, *images) for c, w, a in zip(cells, *bits)]
    np.testing.assert_array_equal(many, np.array(ones)[:, :, 0].T)
    assert len(set(many[1].tolist())) == 7


def test_images_are_scored_in_equal_parts(trained, images):
    """More than SCORE_BATCH: 960 images as two parts of 480, each by its own statistics."""
    x, y = (np.concatenate([part] * 10) for part in images)
    x = x + np.random.default_rng(0).normal(0, 0.3, x.shape).astype(np.float32)
    assert supernet.SCORE_BATCH < len(x) <= 2 * supernet.SCORE_BATCH
    cells = random_cells(2, np.random.default_rng(2))
    whole = np.array(trained.score(cells, *MIXED, x, y))
    halves = [trained.score(cells, *MIXED, x[rows], y[rows])
              for rows in (slice(0, 480), slice(480, 960))]  # fmt: skip
    np.testing.assert_allclose(whole, np.mean(halves, 0), rtol=1e-5)


def test_tensors_come_back_and_those_of_another_size_are_refused(net, trained, images):
    tensors = trained.tensors()
    cells = random_cells(3, np.random.default_rng(0))
    scores = trained.score(cells, *MIXED, *images)
    net.start(0, images[0])
    assert not np.array_equal(net.score(cells, *MIXED, *images)[1], scores[1])
    net.set_tensors(tensors)
    np.testing.assert_array_equal(net.score(cells, *MIXED, *images), scores)
    with pytest.raises(ValueError, match=r"'stem/kernel' is \(3, 3, 3, 5\), expected"):
        net.set_tensors({**tensors, "stem/kernel": np.zeros((3, 3, 3, 5), np.float32)})
    del tensors["head.dense/kernel"]
    with pytest.raises(ValueError, match=r"'head\.dense/kernel' is missing"):
        net.set_tensors(tensors)


def test_live_edges_are_those_that_the_cells_network_has():
    every = np.array(list(itertools.product(range(len(OPTIONS)), repeat=6)), np.int32)
    connected = reaches_output(every)
    some = np.random.default_rng(0).choice(len(every), 300, replace=False)
    for edges, leads in zip(every[some], connected[some]):
        choices = design(" ".join(OPTIONS[k] for k in edges), **SIZE)
        try:
            network = cell.network(choices)
        except cell.DisconnectedError:
            assert not leads
            with pytest.raises(cell.DisconnectedError, match="does not depend on its input"):
                live_cells(edges)
            continue
        assert leads
        built = {s.name.split(".")[2] for s in live(network.steps) if "stage0.cell0.edge" in s.name}
        ours = {f"edge{i}{j}" for (i, j), k in zip(cell.EDGES, live_cells(edges)[0])
                if OPTIONS[k] not in ("none", "skip")}  # fmt: skip
        assert ours == built
    drawn = random_cells(500, np.random.default_rng(0))
    assert drawn.shape == (500, 6) and reaches_output(drawn).all()
    np.testing.assert_array_equal(live_cells(drawn), drawn)


def test_mistakes_are_named(net, images):
    x, y = images
    with pytest.raises(ValueError, match="in batches of 32, but there are 20 training images"):
        net.fit(x[:20], y[:20], epochs=1, learning_rate=0.1, seed=0)
    with pytest.raises(FloatingPointError, match="the loss of the shared weights is nan"):
        net.fit(x, y, epochs=2, learning_rate=1e30, seed=0)


# -- the evaluator ---------------------------------------------------------------------------------

SPACE = {"cell.width": 4, "cell.depth": 1, "cell.resolution": 16, "train.batch": 128,
         "train.learning_rate": 0.1, "train.warmup": 0.1}  # fmt: skip
OPTIONS_GIVEN = {"name": "shared_weights", "width": 4, "epochs": 1, "images": 256,
                 "score_images": 200, "final_epochs": 1}  # fmt: skip


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        ({"cell.width": [4, 8]}, {}, "evaluator.width = 4, but 'cell.width' may be 4, 8"),
        ({"cell.width": 8}, {}, "evaluator.width = 4, but 'cell.width' may be 8"),
        ({"train.batch": [64, 128]}, {}, "cannot tell the values of 'train.batch' apart"),
        ({"net.activation": "silu"}, {}, "do not have 'net.activation'; leave it out"),
        ({}, {"width": 0}, "evaluator.width is 0; it must be at least 1"),
        ({}, {"epochs": 0}, "evaluator.epochs is 0; it must be at least 1"),
        ({}, {"score_images": 9999}, "score_images is 9999, but cifar10-sample has 1500"),
    ],
)
def test_what_a_score_cannot_see_is_refused_before_the_run(tmp_path, space, options, message):
    settings = {"space": {**SPACE, **space}, "evaluator": {**OPTIONS_GIVEN, **options}}
    with pytest.raises(ValueError, match=message):
        nas.search("quickstart", run_dir=tmp_path / "run", settings=settings, progress=False)
    assert not (tmp_path / "run").exists()


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match="are of the network 'cell'; got 'mobile'"):
        EVALUATORS["shared_weights"](family="mobile")


def test_a_run_by_shared_weights_trains_them_once_and_its_finals_anew(tmp_path):
    settings = {"space": SPACE, "evaluator": OPTIONS_GIVEN, "final": {"top": 1}}
    run = nas.search("quickstart", run_dir=tmp_path / "run", settings=settings, trials=6,
                     workers=2, progress=False)  # fmt: skip
    trained = [t for t in run.trials() if t.status == "complete" and t.repeats is None]
    assert len(trained) == 6 and len({t.metrics["loss"] for t in trained}) == 6
    ((trial, (metrics, weights)),) = run.finals().items()
    assert metrics["n_test"] == 2000 and metrics["epochs"] == 1
    assert trial in run.leaderboard()["trial"].tolist()
    folder = run.dir.checkpoints
    assert {p.name for p in folder.iterdir()} == {weights, "shared_weights.h5",
                                                  "shared_weights.lock"}  # fmt: skip
    # what was kept is loaded, and gives what the run has
    given = {key: value for key, value in run.config["evaluator"].items() if key != "name"}
    again = EVALUATORS["shared_weights"](**given)
    again.check(config.make_space(run.config))
    before = (folder / "shared_weights.h5").stat()
    again.start(folder)
    assert (folder / "shared_weights.h5").stat() == before
    choices = run.space.decode(trained[0].proposal.encoding)
    metrics = again.evaluate(choices, seed=1)
    # a worker has one thread; with more, sums round otherwise, and few bits make it visible
    assert metrics["accuracy"] == pytest.approx(trained[0].metrics["accuracy"], abs=0.02)
    assert metrics["loss"] == pytest.approx(trained[0].metrics["loss"], rel=0.01)
    assert metrics["seconds"] < 1
    with pytest.raises(ValueError, match=r"cell\.width is 8, the shared weights have 4"):
        again.evaluate({**choices, "cell.width": 8}, seed=1)
