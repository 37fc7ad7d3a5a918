"""The surrogate's parts against closed forms, and what it does with known costs."""

import numpy as np
import pytest
from scipy.special import ndtri
from threadpoolctl import threadpool_info, threadpool_limits

from nas import config
from nas.controllers import gaussian_process, make, surrogate
from nas.controllers.expected_improvement import (
    OPTIMISM,
    Pool,
    Prospects,
    Scalarization,
    disjoint,
    expected_length,
    normal_quadrature,
)
from nas.controllers.gaussian_process import GaussianProcess, negative_log_likelihood
from nas.controllers.outlook import Unknown
from nas.outlook import N_ACCELERATORS
from nas.pareto import hypervolume
from nas.pricing import price_designs
from nas.trial import Proposal, Status, Trial
from search_spaces import cell
from search_spaces.space import Decision, Space

SIZES = [3, 2, 4]


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, (40, sum(SIZES))).astype(float)
    return x, np.sin(x @ rng.normal(size=sum(SIZES))) + 5


def naive(model, x, y, at):
    """The posterior by the textbook (Rasmussen and Williams, equations 2.25 and 2.26)."""
    weights = np.repeat(np.exp(model.params[:-1]), SIZES)
    noise = np.exp(model.params[-1])

    def k(a, b):
        return np.exp(-((a[:, None] - b) ** 2 @ weights))

    z = (y - y.mean()) / y.std()
    inverse = np.linalg.inv(k(x, x) + noise * np.eye(len(x)))
    scale = z @ inverse @ z / len(x) * y.var()
    covariance = k(at, at) - k(at, x) @ inverse @ k(x, at)
    return y.mean() + y.std() * k(at, x) @ inverse @ z, scale * covariance


def test_the_posterior_is_the_textbooks(data):
    x, y = data
    model = GaussianProcess(SIZES, 2)
    at = np.random.default_rng(1).integers(0, 2, (15, sum(SIZES))).astype(float)
    model.condition(x, y, np.arange(len(x)))
    mean, variance, k = model.predict(at)
    expected, covariance = naive(model, x, y, at)
    assert mean == pytest.approx(expected, rel=1e-4)
    assert variance == pytest.approx(np.diag(covariance), rel=2e-2, abs=1e-5)
    assert model.covariance(at, k, 3) == pytest.approx(covariance[3], abs=1e-4)


def test_some_inducing_points_are_nearly_as_good_as_all(data):
    x, _ = data
    y = x @ np.arange(sum(SIZES))
    model = GaussianProcess(SIZES, 2)
    model.condition(x, y, np.arange(len(x)))
    exact = model.predict(x)
    model.condition(x, y, np.arange(0, len(x), 2))
    fewer = model.predict(x)
    assert np.corrcoef(exact[0], fewer[0])[0, 1] > 0.95


def test_the_likelihoods_gradient_against_finite_differences(data):
    x, y = data
    parts = np.split(x, np.cumsum(SIZES)[:-1], axis=1)
    distances = np.array([gaussian_process.squared_distances(p, p).ravel() for p in parts])
    z = gaussian_process.standardized(y)
    params = np.array([-1.0, -2.0, -0.5, -3.0])
    _, gradient = negative_log_likelihood(params, distances, z)
    for i in range(len(params)):
        step = np.eye(len(params))[i] * 1e-5
        ends = [negative_log_likelihood(params + s, distances, z)[0] for s in (step, -step)]
        assert gradient[i] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


def test_fitting_finds_the_block_that_matters():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, (120, sum(SIZES))).astype(float)
    model = GaussianProcess(SIZES, 0)
    model.fit(x, x[:, 3] - 2 * x[:, 3] * x[:, 4] + 0.01 * rng.normal(size=120), 50)
    assert model.params[1] > max(model.params[0], model.params[2]) + 2


def test_quadrature_is_exact_for_polynomials():
    nodes, weights = normal_quadrature(1)
    assert [weights @ nodes[:, 0] ** k for k in range(5)] == pytest.approx([1, 0, 1, 0, 3])
    nodes, weights = normal_quadrature(3)
    assert weights @ (nodes**2).prod(axis=1) == pytest.approx(1)


@pytest.mark.parametrize(("m", "ball"), [(2, np.pi / 4), (3, np.pi / 6)])
def test_scalarizations_add_up_to_the_hypervolume(m, ball):
    """The volume is that of the unit ball's positive part times the mean (lemma 5)."""
    rng = np.random.default_rng(m)
    points = np.vstack([rng.random((20, m)), np.ones((1, m)) * [1.0, *[0.0] * (m - 1)]])
    means = [
        Scalarization(np.zeros(m), np.ones(m), rng)(points).max(axis=0).mean() for _ in range(200)
    ]
    assert ball * np.mean(means) == pytest.approx(hypervolume(points, np.zeros(m)), rel=0.02)
    one = Scalarization(np.array([1.0]), np.array([3.0]), rng)(np.array([[0.0], [2.0], [np.nan]]))
    assert one.ravel().tolist() == [0, 0.5, 0]


def test_the_length_below_a_normal_variable():
    """E[max(Y - 0, 0)] of a standard normal is 1 / sqrt(2 pi); all else by Monte Carlo."""
    zero, inf = np.zeros(1), np.full(1, np.inf)
    assert expected_length(zero, zero + 1, zero, inf)[0, 0] == pytest.approx((2 * np.pi) ** -0.5)
    draws = np.random.default_rng(0).normal(0.3, 0.5, (400_000, 1))
    lower, upper = np.array([-1.0, 0.0, 0.5, 0.9]), np.array([0.2, 0.7, np.inf, np.inf])
    for least, most in [(-np.inf, np.inf), (0.1, np.inf), (-np.inf, 0.8), (0.1, 0.6), (2.9, 3.0)]:
        lengths = np.clip(draws - lower, 0, upper - lower)
        expected = (lengths * ((draws >= least) & (draws <= most))).mean(axis=0)
        got = expected_length(np.array([0.3]), np.array([0.5]), lower, upper, least, most)
        assert got[0] == pytest.approx(expected, abs=3e-3)


@pytest.mark.parametrize("c", [1, 2, 3])
def test_disjoint_boxes_have_the_volume_of_the_union(c):
    points = np.random.default_rng(c).random((5, 7, c))
    points[2, 3:] = -np.inf  # as designs that are ruled out
    lower, upper = disjoint(points)
    sides = np.maximum(np.maximum(upper, 0) - np.maximum(lower, 0), 0)
    for row, volume in zip(points, sides.prod(axis=2).sum(axis=1), strict=True):
        finite = row[np.isfinite(row).all(axis=1)]
        assert volume == pytest.approx(hypervolume(finite, np.zeros(c)))


class Sketch(Unknown):
    """Objectives are measurements and then costs, as they come."""

    def __init__(self, n_measured, n_costs, bounds=None):
        super().__init__(n_measured, 1)
        self.sources = np.array([*range(n_measured), *[-1] * n_costs])
        self.bounds = self.bounds if bounds is None else np.array(bounds, float)

    def objectives(self, measured, known):
        shape = np.broadcast_shapes(measured.shape[:-1], known.shape[:-1])
        parts = [np.broadcast_to(part, (*shape, part.shape[-1])) for part in (measured, known)]
        values = np.concatenate(parts, axis=-1)
        return np.where(np.isnan(values).any(axis=-1, keepdims=True), np.nan, values)


@pytest.mark.parametrize(
    ("n_measured", "n_costs", "bounds"),
    [
        (1, 1, None),
        (2, 0, None),
        (1, 2, None),
        (2, 1, None),
        (1, 3, None),
        (1, 1, [(5.2, np.inf)]),
        (2, 1, [(5.0, np.inf), (-np.inf, 5.6)]),
    ],
)
def test_expected_improvement_is_what_all_variants_add_on_average(
    data, n_measured, n_costs, bounds
):
    """A mean of hypervolumes: of a network's designs together, if they keep the bounds."""
    rng = np.random.default_rng(n_measured * 10 + n_costs)
    x, y = data
    outlook = Sketch(n_measured, n_costs, bounds)
    models = [GaussianProcess(SIZES, 2) for _ in range(n_measured)]
    for model in models:
        model.condition(x, y + 0.3 * rng.normal(size=len(y)), np.arange(len(x)))
    costs = rng.random((4, 4, n_costs))
    costs[0, 1] = np.nan  # ruled out
    front = np.hstack([5 + 0.5 * rng.random((5, n_measured)), rng.random((5, n_costs))])
    at = np.random.default_rng(1).integers(0, 2, (4, sum(SIZES))).astype(float)
    pool = Pool(np.zeros((4, 1), int), at, costs)
    prospects = Prospects(pool, models, outlook, front, rng)
    got = prospects._of_front(np.arange(4)) * prospects.scalarize.range.prod()
    volume = hypervolume(front, prospects.low)
    quantiles = ndtri((np.arange(n_nodes := 100 if n_measured == 1 else 24) + 0.5) / n_nodes)
    nodes = quantiles[np.indices((n_nodes,) * n_measured).reshape(n_measured, -1).T]
    least, most = outlook.bounds.T
    expected = np.zeros(4)
    for row in range(4):
        for measured in prospects.mean[row] + nodes * np.sqrt(prospects.variance[row]):
            points = outlook.objectives(measured, costs[row])
            points = points[~np.isnan(points).any(axis=1)]
            if ((measured >= least) & (measured <= most)).all():
                joined = np.vstack([front, points])
                expected[row] += hypervolume(joined, prospects.low) - volume
    expected /= len(nodes)
    assert got == pytest.approx(expected, abs=(0.03 if bounds is None else 0.06) * expected.max())
    assert expected.max() > 0.01 * volume


@pytest.mark.parametrize(("n_measured", "n_costs"), [(2, 0), (1, 1), (1, 2), (2, 1), (0, 2)])
def test_designs_are_sifted_by_their_best_variant_in_each_direction(data, n_measured, n_costs):
    """The costs' part is taken once for all; the same comes of every variant by itself."""
    rng = np.random.default_rng(n_measured * 10 + n_costs)
    x, y = data
    outlook = Sketch(max(n_measured, 1), n_costs)
    if not n_measured:  # what is measured is no objective
        outlook.sources = outlook.sources[1:]
        outlook.objectives = lambda measured, known: known
    models = [GaussianProcess(SIZES, 2) for _ in range(outlook.n_measured)]
    for model in models:
        model.condition(x, y + 0.3 * rng.normal(size=len(y)), np.arange(len(x)))
    costs = rng.random((6, 4, max(n_costs, 1)))[..., :n_costs]
    if n_costs:
        costs[0, 1], costs[1] = np.nan, np.nan  # a variant ruled out, and all of a design
    front = np.hstack([5 + 0.5 * rng.random((5, n_measured)), rng.random((5, n_costs)) / 2])
    at = rng.integers(0, 2, (6, sum(SIZES))).astype(float)
    prospects = Prospects(Pool(np.zeros((6, 1), int), at, costs), models, outlook, front, rng)
    rows = np.array([5, 0, 1, 3])
    values = prospects.values(rows, OPTIMISM).max(axis=1)
    gain = np.maximum(values - prospects.reached, 0).mean(axis=1)
    expected = gain + 1e-6 * values.mean(axis=1)
    assert prospects.optimistic(rows) == pytest.approx(expected, rel=1e-5)
    assert gain.max() > 0.001
    assert gain.min() == 0 or not n_costs, "what is ruled out gains nothing"


# -- the search ------------------------------------------------------------------------------------

SPACE = Space([Decision(f"net.{i}", tuple("abcd")) for i in range(5)] + [Decision("hw", (1, 2, 4))])


class Bench(Unknown):
    """Accuracy is a sum over the network's values; cost falls with `hw`; some are ruled out."""

    def __init__(self):
        super().__init__(1, 5)
        self.sources = np.array([0, -1])
        self.worth = np.random.default_rng(0).normal(size=(5, 4))

    def accuracy(self, encodings):
        values = self.worth[np.arange(5), encodings[..., :5]].sum(axis=-1)
        return values + np.where(encodings[..., 0] == encodings[..., 1], 1.0, 0.0)

    def variants(self, encodings):
        designs = np.repeat(encodings[:, None], 3, axis=1)
        designs[:, :, 5] = [0, 1, 2]
        costs = (1.0 + encodings[:, :1]) / (1 + np.arange(3))
        costs[encodings[:, 1] == 3] = np.nan
        return designs, costs[..., None]

    def measured(self, trials, objectives):
        return objectives[:, :1]

    def objectives(self, measured, known):
        shape = (*known.shape[:-1], 1)
        return np.concatenate([np.broadcast_to(measured, shape), -known], axis=-1)


def run(controller, bench, n, n_ask=1):
    rows = []
    while len(rows) < n:
        for proposal in controller.ask(n_ask):
            row = proposal.encoding
            rows.append(row)
            _, costs = bench.variants(row[None])
            values = np.array([[bench.accuracy(row), -costs[0, row[5], 0]]])
            controller.tell([Trial(0, proposal, 0, Status.COMPLETE)], values)
    return np.array(rows)


@pytest.mark.parametrize("limit", [50_000, 0])
def test_known_costs_are_used_as_known(monkeypatch, limit):
    monkeypatch.setattr(surrogate, "MAX_ENUMERATED", limit)
    bench = Bench()
    controller = make("surrogate", SPACE, seed=0, n_objectives=2, outlook=bench)
    rows = run(controller, bench, 40)
    assert len({tuple(row[:5]) for row in rows}) == 40  # no network twice, on any accelerator
    assert not (rows[:, 1] == 3).any()  # what is ruled out is never proposed
    assert set(rows[10:, 5]) == {2}  # the cheapest accelerator is best for every network
    every = SPACE.enumerate()
    best = bench.accuracy(every[every[:, 1] != 3]).max()
    assert bench.accuracy(rows).max() == pytest.approx(best)


def test_the_model_computes_on_one_thread(monkeypatch):
    def n_threads():
        return {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"}

    space, seen = Space([Decision("a", tuple(range(9))), Decision("b", tuple(range(9)))]), []
    controller = make("surrogate", space, seed=0, start=2)
    learn = controller._learn
    monkeypatch.setattr(controller, "_learn", lambda: (seen.append(n_threads()), learn()))
    with threadpool_limits(2, "blas"):
        for id in range(4):
            [proposal] = controller.ask(1)
            trial = Trial(id, proposal, 0, Status.COMPLETE)
            controller.tell([trial], proposal.encoding.sum(keepdims=True)[None].astype(float))
        assert n_threads() == {2}
    assert seen == [{1}, {1}]


def test_a_batch_does_not_repeat_itself_and_is_spread():
    bench = Bench()
    controller = make("surrogate", SPACE, seed=0, n_objectives=2, outlook=bench)
    run(controller, bench, 16)
    batch = np.array([p.encoding for p in controller.ask(8)])
    assert len(np.unique(batch[:, :5], axis=0)) == 8
    again = make("surrogate", SPACE, seed=5, n_objectives=2, outlook=bench)
    again.restore(controller.state())
    assert [p.encoding.tolist() for p in again.ask(3)] == [
        p.encoding.tolist() for p in controller.ask(3)
    ]


class Bounded(Bench):
    """Cheap is good, if it is accurate enough: one objective, and a constraint on what is unknown.

    `least` is an accuracy that one network in a hundred reaches."""

    def __init__(self):
        super().__init__()
        every = SPACE.enumerate()
        self.least = np.quantile(self.accuracy(every[every[:, 1] != 3]), 0.99)
        self.bounds = np.array([[self.least, np.inf]])

    def measured(self, trials, objectives):
        return np.array([[self.accuracy(trial.proposal.encoding)] for trial in trials])

    def objectives(self, measured, known):
        return np.broadcast_to(-known, (*known.shape[:-1], 1))


@pytest.mark.parametrize("limit", [50_000, 0])
def test_a_constraint_on_what_training_measures_is_learnt(monkeypatch, limit):
    """All that counts is known but whether a network may be used."""
    monkeypatch.setattr(surrogate, "MAX_ENUMERATED", limit)
    bench = Bounded()
    every = SPACE.enumerate()
    every = every[every[:, 1] != 3]
    costs = (1.0 + every[:, 0]) / (1 + every[:, 5])
    cheapest = costs[bench.accuracy(every) >= bench.least].min()
    controller = make("surrogate", SPACE, seed=0, outlook=bench)
    assert (bench.accuracy(SPACE.sample(10, np.random.default_rng(0))) < bench.least).all()
    found = []
    for _ in range(45):
        [proposal] = controller.ask(1)
        row = proposal.encoding
        controller.tell(
            [Trial(0, proposal, 0, Status.COMPLETE)], -bench.variants(row[None])[1][0, row[5]][None]
        )
        if bench.accuracy(row) >= bench.least:
            found.append((1.0 + row[0]) / (1 + row[5]))
    assert min(found) == pytest.approx(cheapest)


@pytest.mark.parametrize("m", [1, 2])
def test_while_nothing_keeps_the_constraints_the_search_goes_on(m):
    bench = Bounded()
    bench.bounds = np.array([[bench.accuracy(SPACE.enumerate()).max() + 1e3, np.inf]])
    if m == 2:
        bench.sources = np.array([-1, -1])
        bench.objectives = lambda measured, known: np.broadcast_to(-known, (*known.shape[:-1], 2))
    controller = make("surrogate", SPACE, seed=0, n_objectives=m, outlook=bench)
    rows = controller.ask(2)
    for i in range(14):
        trial = Trial(i, rows.pop(0), 0, Status.COMPLETE)
        controller.tell([trial], np.ones((1, m)) if i % 5 else np.full((1, m), np.nan))
        rows += controller.ask(1)
    assert len({tuple(row[:5]) for row in controller.encodings}) == 14


def test_the_next_network_is_that_whose_accelerators_add_most():
    """Of two that are equally accurate, none of whose pairs adds more than the other's, the one
    with two different good accelerators comes before the one with one."""
    outlook = Sketch(1, 2)
    models = [GaussianProcess([1], 1)]
    models[0].condition(np.array([[0.0], [0.0], [5.0]]), np.array([1.0, 1.0, 0.9]), np.arange(3))
    costs = np.array([[[0.9, 0.2], [0.9, 0.2]], [[0.9, 0.2], [0.2, 0.9]], [[0.0, 0.0]] * 2])
    pool = Pool(np.zeros((3, 1), int), np.zeros((3, 1)), costs)
    front = np.array([[0.8, 0.1, 0.1], [0.1, 1.0, 1.0]])
    prospects = Prospects(pool, models, outlook, front, np.random.default_rng(0))
    assert prospects.best(np.arange(3)) == 1
    one, two = prospects._of_front(np.arange(2))
    assert 1.5 * one < two < 2 * one  # they overlap
    prospects.believe(1)
    after = prospects._of_front(np.arange(2))
    assert after[0] < one and after[1] < two  # what is believed found is worth less


def test_surrogate_beats_evolution():
    bench = Bench()

    def best(name, seed):
        controller = make(name, SPACE, seed=seed)
        values = []
        for _ in range(45):
            [proposal] = controller.ask(1)
            values.append(bench.accuracy(proposal.encoding))
            controller.tell([Trial(0, proposal, 0, Status.COMPLETE)], np.array([[values[-1]]]))
        return max(values)

    gaps = [best("surrogate", seed) - best("evolution", seed) for seed in range(4)]
    assert min(gaps) >= 0 and np.mean(gaps) > 0.3


def test_equivalent_cells_have_equal_features():
    """With no edge between them, the two inner nodes can change places."""
    space = Space(cell.SPACE.decisions[:6])
    order = [cell.EDGES.index(e) for e in [(0, 2), (0, 1), (1, 2), (0, 3), (2, 3), (1, 3)]]
    cells = space.sample(300, np.random.default_rng(0))
    cells[:, cell.EDGES.index((1, 2))] = 0
    _, counts, sequences = cell.features(space, cells)
    _, other_counts, other_sequences = cell.features(space, cells[:, order])
    assert (counts == other_counts).all() and (sequences == other_sequences).all()
    # what is not connected does not count
    dead = cells.copy()
    dead[:, cell.EDGES.index((0, 1))] = 0
    moved = dead.copy()
    moved[:, cell.EDGES.index((1, 3))] = 4
    for block, same in zip(cell.features(space, dead), cell.features(space, moved)):
        assert (block == same).all()
    # conv 1x1 on every edge: four ways, of one, two, two and three operations
    full = cell.features(space, np.full((1, 6), cell.SPACE.decisions[0].index("conv_1x1")))[2]
    assert sorted(full[full > 0].tolist()) == [1, 1, 2]


# -- real prices -----------------------------------------------------------------------------------


def configured(**changes):
    table = config.read("quickstart")
    for key, value in changes.items():
        config.override(table, key, value)
    return config.complete({**table, "controller": {"name": "surrogate"}})


PARETO = {"name": "pareto", "objectives": ["accuracy", "-latency_s", "-energy_j"]}


@pytest.mark.parametrize("reward", [{"name": "mnasnet"}, PARETO])
def test_prices_seen_ahead_are_those_of_the_trial(reward):
    settings = configured(reward=reward)
    space, judge = config.make_space(settings), config.make_reward(settings)
    outlook = config.make_outlook(settings)
    encodings = space.sample(6, np.random.default_rng(0))
    designs, known = outlook.variants(encodings)
    assert designs.shape == (6, N_ACCELERATORS, len(space))
    assert (space.validate(designs.reshape(-1, len(space))).reshape(designs.shape) == designs).all()
    measured = np.full((6, 1, 1), 0.7)
    ahead = outlook.objectives(measured, known)
    for row, k in [(0, 0), (1, 7), (2, 20), (3, 40), (4, 3), (5, 47)]:
        encoding = designs[row, k]
        [(metrics, reason)] = price_designs("cell", [space.decode(encoding)])
        ruled_out = reason is not None or metrics["area_mm2"] > 4
        assert np.isnan(ahead[row, k]).any() == ruled_out
        if not ruled_out:
            trial = Trial(0, Proposal(encoding), 0, Status.COMPLETE, {**metrics, "accuracy": 0.7})
            assert ahead[row, k] == pytest.approx(judge([trial])[0])
            assert outlook.measured([trial], judge([trial])).tolist() == [[0.7]]
    kept = outlook.variants(encodings)[1]
    assert np.array_equal(kept, known, equal_nan=True)


def test_losses_are_turned_round_and_constraints_kept():
    settings = configured(reward={"name": "pareto", "objectives": ["-loss", "-area_mm2"]})
    space, outlook = config.make_space(settings), config.make_outlook(settings)
    _, known = outlook.variants(space.sample(4, np.random.default_rng(3)))
    values = outlook.objectives(np.array([[[-2.5]]]), known)
    allowed = ~np.isnan(values).any(axis=2)
    assert allowed.any() and (values[allowed][:, 0] == -2.5).all()
    assert (values[allowed][:, 1] >= -4).all()  # area_mm2 <= 4


def test_a_reward_of_costs_alone_has_no_outlook_but_under_a_constraint_on_training():
    reward = {"name": "pareto", "objectives": ["-latency_s", "-area_mm2"]}
    assert config.make_outlook(configured(reward=reward)) is None
    bounds = ["accuracy >= 0.5", "accuracy >= 0.6", "loss <= 2", "area_mm2 <= 4"]
    settings = configured(reward=reward, constraints=bounds)
    outlook = config.make_outlook(settings)
    assert outlook.unknown == ["accuracy", "loss"] and outlook.sources.tolist() == [-1, -1]
    assert outlook.bounds.tolist() == [[0.6, np.inf], [-2, np.inf]]  # losses are turned round
    controller = config.make_controller(settings)
    encoding = controller.space.sample(1, np.random.default_rng(0))[0]
    good, bad = ({"accuracy": accuracy, "loss": 1.0} for accuracy in (0.7, 0.5))
    for metrics in (good, bad):
        metrics |= {"latency_s": 1e-3, "area_mm2": 3.0}
        trial = Trial(0, Proposal(encoding), 0, Status.COMPLETE, metrics)
        controller.tell([trial], config.make_reward(settings)([trial]))
    assert np.isnan(controller.objectives).all(axis=1).tolist() == [False, True]


def test_an_upper_bound_on_what_is_maximized():
    constraints = ["accuracy <= 0.8", "accuracy >= 0.2"]
    outlook = config.make_outlook(configured(reward=PARETO, constraints=constraints))
    assert outlook.sources.tolist() == [0, -1, -1]
    assert outlook.bounds.tolist() == [[0.2, 0.8]]
