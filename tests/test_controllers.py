"""Controllers: one contract over the table, then what each one promises."""

import base64
import json

import numpy as np
import pytest

from nas.controllers import CONTROLLERS, make, policy, shared, surrogate
from nas.controllers.policy_gradient import clipped
from nas.controllers.shared import Seen
from nas.pareto import hypervolume
from nas.trial import Proposal, Status, Trial
from search_spaces.space import Decision, Space

OPS = ("none", "skip", "conv1x1", "conv3x3")
SPACE = Space(
    [
        Decision("depth", (1, 2, 3)),
        Decision("op.0", OPS),
        Decision("op.1", OPS, {"depth": (2, 3)}),
        Decision("op.2", OPS, {"depth": (3,)}),
        Decision("kernel.2", (3, 5), {"op.2": ("conv1x1", "conv3x3")}),
        Decision("bits", (2, 4, 8, 16, 32)),
        Decision("dataflow", ("os", "ws", "is")),
        Decision("fixed", ("only",)),
        Decision("rows", (8, 16, 32, 64)),
        Decision("columns", (8, 16, 32, 64)),
    ]
)
TINY = Space([Decision("a", (1, 2)), Decision("b", (1, 2, 3), {"a": (2,)})])  # 4 designs


def objectives_of(trials, n_objectives=1, seed=0):
    """Additive functions of a design: what its active decisions' values are worth, summed."""
    encodings = np.array([t.proposal.encoding for t in trials])
    worth = np.random.default_rng(seed).normal(size=(n_objectives, len(SPACE), SPACE.sizes.max()))
    chosen = worth[:, np.arange(len(SPACE)), encodings]  # [objectives, n, d]
    return np.where(SPACE.active(encodings), chosen, 0).sum(2).T


def trials_of(proposals, first=0):
    return [Trial(first + i, p, 0, Status.COMPLETE) for i, p in enumerate(proposals)]


def search(controller, n_trials, *, seed=0, n_objectives=1, in_flight=2, failures=0.0):
    """Run a controller with trials in flight; (encodings [n, d], objectives [n, m])."""
    rng = np.random.default_rng(seed)
    flight, encodings, told = [], [], []
    while len(told) < n_trials:
        flight += trials_of(controller.ask(in_flight + 1 - len(flight)), len(encodings))
        trial = flight.pop(0)
        values = objectives_of([trial], n_objectives, seed)
        if rng.random() < failures:
            values[:] = np.nan
        controller.tell([trial], values)
        encodings.append(trial.proposal.encoding)
        told.append(values[0])
    return np.array(encodings), np.array(told)


def to_json(state):
    """A state as text, arrays as their bytes; only the top level may hold arrays."""
    return json.dumps(
        {
            k: [v.dtype.str, v.shape, base64.b64encode(v.tobytes()).decode()]
            if isinstance(v, np.ndarray)
            else {"json": v}
            for k, v in state.items()
        },
        allow_nan=False,
    )


def from_json(text):
    def array(dtype, shape, data):
        return np.frombuffer(base64.b64decode(data), dtype).reshape(shape)  # read-only

    return {k: v["json"] if isinstance(v, dict) else array(*v) for k, v in json.loads(text).items()}


# -- the contract ----------------------------------------------------------------------------------

each = pytest.mark.parametrize("name", CONTROLLERS)
each_of_several = pytest.mark.parametrize(
    "name", [name for name in CONTROLLERS if name not in ("policy_gradient", "tunas")]
)


@pytest.fixture(autouse=True)
def large_spaces_begin_early(monkeypatch):
    """The surrogate looks at SPACE as at a large one, and at TINY as a whole."""
    monkeypatch.setattr(surrogate, "MAX_ENUMERATED", 1000)


@each
def test_asks_inside_the_space(name):
    controller = make(name, SPACE, seed=0)
    encodings, _ = search(controller, 60)
    assert (SPACE.validate(encodings) == encodings).all()  # in range, and canonical
    for row in encodings[::10]:
        assert (SPACE.encode(SPACE.decode(row)) == row).all()
    assert controller.ask(0) == []
    proposals = controller.ask(7)
    assert len(proposals) == 7
    assert all(p.encoding.dtype == np.int64 for p in proposals)
    # every value of every decision can come up
    fresh = make(name, SPACE, seed=1)
    rows = np.array([p.encoding for p in fresh.ask(20)])
    assert all(len(set(rows[:, i])) > 1 for i in np.flatnonzero(SPACE.sizes > 1))


@each
def test_deterministic_under_a_seed(name):
    runs = [search(make(name, SPACE, seed=seed), 36)[0] for seed in (3, 3, 4)]
    assert (runs[0] == runs[1]).all()
    assert (runs[0] != runs[2]).any()


@each
@pytest.mark.parametrize("n_trials", [0, 3, 28, 47])
def test_restored_is_indistinguishable(name, n_trials):
    original = make(name, SPACE, seed=0)
    search(original, n_trials, failures=0.2)
    waiting = trials_of(original.ask(3))
    state = original.state()
    text = to_json(state)
    restored = make(name, SPACE, seed=99)
    search(restored, 5)  # whatever it did before is forgotten
    restored.restore(from_json(text))
    assert to_json(restored.state()) == text
    for controller in (original, restored):
        controller.tell(waiting, objectives_of(waiting))
    first, second = (search(c, 20, seed=7, failures=0.2)[0] for c in (original, restored))
    assert (first == second).all()
    assert to_json(original.state()) == to_json(restored.state())
    assert to_json(state) == text  # a state does not change when its controller goes on


@each_of_several
def test_several_objectives(name):
    original = make(name, SPACE, seed=0, n_objectives=2)
    encodings, _ = search(original, 33, n_objectives=2, failures=0.2)
    assert (SPACE.validate(encodings) == encodings).all()
    restored = make(name, SPACE, seed=9, n_objectives=2)
    restored.restore(from_json(to_json(original.state())))
    first, second = (search(c, 15, seed=7, n_objectives=2)[0] for c in (original, restored))
    assert (first == second).all()
    assert to_json(original.state()) == to_json(restored.state())


@each
def test_failures_do_not_stop_a_search(name):
    controller = make(name, SPACE, seed=0)
    search(controller, 20, failures=1.0)
    encodings, told = search(controller, 30, failures=0.5)
    assert 0 < np.isnan(told).sum() < len(told)
    assert (SPACE.validate(encodings) == encodings).all()
    for value in controller.state().values():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            assert np.isfinite(value).all()


@each
def test_how_results_are_grouped_does_not_matter(name):
    together, apart = make(name, SPACE, seed=0), make(name, SPACE, seed=0)
    trials = trials_of(together.ask(25))
    apart.ask(25)
    together.tell(trials, objectives_of(trials))
    for trial in trials:
        apart.tell([trial], objectives_of([trial]))
    assert to_json(together.state()) == to_json(apart.state())


@each
def test_a_design_is_not_proposed_twice_while_others_are_left(name):
    proposals = [make(name, TINY, seed=0).ask(4), make(name, TINY, seed=1).ask(6)]
    designs = [{tuple(p.encoding) for p in asked} for asked in proposals]
    assert len(designs[0]) == len(designs[1]) == 4
    assert len(proposals[1]) == 6  # and none is refused when nothing is left
    told = make(name, TINY, seed=0)
    known = trials_of([Proposal(np.array([1, i])) for i in range(3)])
    told.tell(known, np.zeros((3, 1)))
    assert told.ask(1)[0].encoding.tolist() == [0, 0]


@each
def test_objectives_of_another_shape_are_refused(name):
    controller = make(name, SPACE, seed=0)
    trials = trials_of(controller.ask(2))
    for wrong in (np.zeros(2), np.zeros((2, 2)), np.zeros((1, 1))):
        with pytest.raises(ValueError, match=r"need the shape \(2, 1\)"):
            controller.tell(trials, wrong)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("evolutoin", {}, "unknown controller 'evolutoin'; did you mean 'evolution'"),
        (3, {}, "unknown controller '3'"),
        ("evolution", {"populaton": 4}, "no option 'populaton'; did you mean 'population'"),
        ("evolution", {"population": 4.5}, "expected a whole number such as 20, got 4.5"),
        ("evolution", {"population": True}, "expected a whole number"),
        ("evolution", {"population": 4}, "sample=5 and population=4"),
        ("evolution", {"sample": 0}, "sample is from 1"),
        ("random", {"population": 4}, "'random' has no option 'population'; it has none"),
        ("policy_gradient", {"batch": 0}, "batch must be at least 1, got 0"),
        ("policy_gradient", {"learning_rate": -1}, "learning_rate must be above 0, got -1"),
        ("policy_gradient", {"baseline": 1.0}, "baseline must be from 0 to below 1"),
        ("policy_gradient", {"entropy": float("nan")}, "entropy must be at least 0"),
        (
            "policy_gradient",
            {"algorithm": "a2c"},
            "algorithm must be 'reinforce' or 'ppo', got 'a2c'",
        ),
        ("policy_gradient", {"n_objectives": 2}, "choose the reward mnasnet, tunas or weighted"),
        ("tunas", {"n_objectives": 2}, "tunas follows one reward, got 2 objectives"),
        ("tunas", {"learning_rate": 0.0}, "learning_rate must be above 0, got 0"),
        ("nsga2", {"population": 1}, "population must be at least 2, got 1"),
        ("nsga2", {"crossover": 1.5}, "crossover is a chance from 0 to 1, got 1.5"),
        ("local_search", {"start": 0}, "start must be at least 1, got 0"),
        ("surrogate", {"start": 1}, "start must be at least 2, got 1"),
        ("surrogate", {"candidates": 3}, "candidates must be at least 16, got 3"),
    ],
)
def test_what_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, SPACE, seed=0, **options)


def test_a_space_of_one_design_is_refused():
    with pytest.raises(ValueError, match="leaves nothing to search"):
        make("random", Space([Decision("fixed", ("only",))]), seed=0)


def test_seen_designs():
    seen = Seen()
    rows = SPACE.sample(300, np.random.default_rng(0))
    new = [seen.add(row) for row in rows]
    assert sum(new) == len(seen) == len(np.unique(rows, axis=0))
    again = Seen(seen.keys())
    assert (again.keys() == seen.keys()).all() and seen.keys().dtype == np.uint64
    assert not any(again.add(row.astype(np.int32)) for row in rows)


# -- evolution -------------------------------------------------------------------------------------


def test_mutation_changes_one_decision_and_what_hangs_on_it():
    rng = np.random.default_rng(0)
    n_changed = []
    for parent in SPACE.sample(500, rng):
        child = shared.mutate(parent, SPACE, rng)[0]
        assert (SPACE.validate(child)[0] == child).all()
        kept = SPACE.active(parent)[0] & SPACE.active(child)[0]
        n_changed.append((parent != child)[kept].sum())
    share = np.bincount(n_changed) / len(n_changed)
    assert share[0] < 0.05  # only where a second change switched the first one off
    # how often one decision moves is geometric
    assert share[1] == pytest.approx(1 - shared.ANOTHER_CHANGE, abs=0.07)


def test_decisions_switched_on_are_uniform():
    rng = np.random.default_rng(0)
    parent = np.zeros(len(SPACE), np.int64)
    children = np.array([shared.mutate(parent, SPACE, rng)[0] for _ in range(6000)])
    switched_on = children[children[:, 0] == 2]  # depth 3: op.2 is new, kernel.2 may be
    counts = np.bincount(switched_on[:, 3], minlength=4)
    assert len(switched_on) > 200
    assert counts / counts.sum() == pytest.approx(np.full(4, 0.25), abs=0.08)


def test_ordered_values_move_to_a_neighbour_half_of_the_time():
    rng = np.random.default_rng(0)

    def shares(index, size, ordered):
        n = 8000
        moved = shared.move(np.full(n, index), np.full(n, size), np.full(n, ordered), rng)
        return np.bincount(moved, minlength=size) / n

    # a neighbour with 1/2, or any of the four others with 1/2
    assert shares(2, 5, True) == pytest.approx([1 / 8, 3 / 8, 0, 3 / 8, 1 / 8], abs=0.02)
    assert shares(0, 5, True) == pytest.approx([0, 5 / 8, 1 / 8, 1 / 8, 1 / 8], abs=0.02)
    assert shares(4, 5, True) == pytest.approx([1 / 8, 1 / 8, 1 / 8, 5 / 8, 0], abs=0.02)
    assert shares(0, 2, True).tolist() == [0, 1]
    assert shares(2, 5, False) == pytest.approx([1 / 4, 1 / 4, 0, 1 / 4, 1 / 4], abs=0.02)


def test_order_is_by_rank_then_room():
    points = np.array([[0, 0], [0, 4], [1, 3], [3.9, 0.1], [4, 0]])
    assert shared.order(points).tolist() == [1, 4, 2, 3, 0]
    assert shared.order(np.array([[1.0], [3.0], [2.0]])).tolist() == [1, 2, 0]
    assert shared.order(np.array([[1.0], [3.0], [3.0], [np.nan], [3.0]])).tolist() == [
        1,
        2,
        4,
        0,
        3,
    ]


def test_a_population_ages_and_failures_do_not_enter():
    controller = make("evolution", SPACE, seed=0, population=3, sample=3)
    trials = trials_of(controller.ask(5))
    values = np.array([[9.0], [1.0], [np.nan], [2.0], [3.0]])
    controller.tell(trials, values)
    assert controller.state()["objectives"].ravel().tolist() == [1, 2, 3]  # the best has aged out


def best(name, n_trials, seed, **options):
    return search(make(name, SPACE, seed=seed, **options), n_trials, seed=seed)[1].max()


def test_evolution_beats_random_search():
    gaps = [best("evolution", 200, seed) - best("random", 200, seed) for seed in range(8)]
    assert np.mean(gaps) > 0.5 and np.min(gaps) > -0.2


def test_evolution_beats_random_search_to_the_front():
    def volume(name, seed):
        controller = make(name, SPACE, seed=seed, n_objectives=2)
        return hypervolume(search(controller, 200, seed=seed, n_objectives=2)[1], np.zeros(2))

    ratios = [volume("evolution", seed) / volume("random", seed) for seed in range(6)]
    assert np.mean(ratios) > 1.05


# -- local search and NSGA-II ----------------------------------------------------------------------


def test_local_search_goes_round_the_best_and_begins_anew():
    controller = make("local_search", SPACE, seed=0, start=3)
    told = []

    def step(value_of):
        trials = trials_of(controller.ask(1))
        told.append(trials[0].proposal.encoding)
        controller.tell(trials, np.array([[value_of(told[-1])]]))

    step(lambda row: 0.0)
    step(lambda row: 1.0)
    step(lambda row: -1.0)
    best = told[1]
    neighbours = {tuple(row) for row in SPACE.neighbours(best)}
    for _ in range(5):
        step(lambda row: 0.5)  # none is better: the best stays the centre
        assert tuple(told[-1]) in neighbours
    step(lambda row: 2.0)
    better = {tuple(row) for row in SPACE.neighbours(told[-1])}
    for _ in range(len(better - {tuple(row) for row in told})):
        step(lambda row: 0.0)
        assert tuple(told[-1]) in better
    step(lambda row: 0.0)  # a local optimum: a random design
    assert tuple(told[-1]) not in better | neighbours


def test_local_search_reaches_the_optimum_of_an_additive_objective():
    """Such an objective has no other local optimum where nothing is conditional."""
    space = Space([Decision(f"d{i}", (0, 1, 2)) for i in range(5)])
    controller = make("local_search", space, seed=0)
    reached = []
    for _ in range(60):
        trials = trials_of(controller.ask(1))
        reached.append(trials[0].proposal.encoding.sum())
        controller.tell(trials, np.array([[reached[-1]]], float))
    assert max(reached) == 10


def test_the_best_of_parents_and_children_survive():
    controller = make("nsga2", SPACE, seed=0, population=3)
    trials = trials_of(controller.ask(6))
    controller.tell(trials, np.array([[1.0], [5.0], [np.nan], [4.0], [0.0], [6.0]]))
    assert [values[0] for _, values in controller.parents] == [6, 5, 4]


def test_children_have_the_values_of_their_parents_but_for_a_mutation():
    space = Space([Decision(f"d{i}", tuple("abcdefgh")) for i in range(10)])
    controller = make("nsga2", space, seed=0, population=2)
    controller.tell(
        trials_of([Proposal(np.zeros(10, int)), Proposal(np.ones(10, int))]), np.zeros((2, 1))
    )
    children = controller._offspring(2000)
    foreign = (children > 1).sum(axis=1)
    assert foreign.mean() == pytest.approx(6 / 7, abs=0.06)  # one mutation in ten, one in 7 to 0, 1
    mixed = (children == 0).any(axis=1) & (children == 1).any(axis=1)
    assert 0.4 < mixed.mean() < 0.8  # two different parents half of the time, crossed nine in ten


def test_nsga2_beats_random_search_to_the_front():
    def volume(name, seed):
        controller = make(name, SPACE, seed=seed, n_objectives=2)
        return hypervolume(search(controller, 200, seed=seed, n_objectives=2)[1], np.zeros(2))

    assert np.mean([volume("nsga2", seed) / volume("random", seed) for seed in range(6)]) > 1.05


# -- policy gradient -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_policy():
    rng = np.random.default_rng(0)
    params = policy.initialize(SPACE, 5, rng)
    return {name: 5 * value for name, value in params.items()}  # far from uniform


def test_gradient_against_finite_differences(small_policy):
    rng = np.random.default_rng(1)
    encodings = SPACE.sample(6, rng)
    a, b = rng.normal(size=(2, 6))

    def value(params):
        steps = policy.replay(params, SPACE, encodings)
        return a @ policy.log_probability(steps) + b @ policy.entropy(steps)

    steps = policy.replay(small_policy, SPACE, encodings)
    grads = policy.gradient(small_policy, SPACE, steps, a, b)
    for name, array in small_policy.items():
        for _ in range(40):
            at = tuple(rng.integers(array.shape))
            ends = []
            for step in (1e-5, -1e-5):
                moved = array.copy()
                moved[at] += step
                ends.append(value({**small_policy, name: moved}))
            difference = (ends[0] - ends[1]) / 2e-5
            assert grads[name][at] == pytest.approx(difference, rel=1e-5, abs=1e-8), (name, at)


def test_probabilities_of_all_designs_sum_to_one(small_policy):
    space = Space(SPACE.decisions[:6])
    params = policy.initialize(space, 5, np.random.default_rng(0))
    log_p = policy.log_probability(policy.replay(params, space, space.enumerate()))
    assert np.exp(log_p).sum() == pytest.approx(1)


def test_samples_follow_the_probabilities():
    params = policy.initialize(TINY, 5, np.random.default_rng(0))
    params["heads"] *= 20
    designs = TINY.enumerate()
    p = np.exp(policy.log_probability(policy.replay(params, TINY, designs)))
    drawn = policy.sample(params, TINY, 20_000, np.random.default_rng(1))
    shares = [(drawn == design).all(1).mean() for design in designs]
    assert shares == pytest.approx(p, abs=0.015)
    assert np.ptp(p) > 0.1


def test_entropy_of_an_untrained_policy_is_that_of_fair_choices():
    params = {
        name: 0 * array
        for name, array in policy.initialize(SPACE, 4, np.random.default_rng()).items()
    }
    design = np.zeros((1, len(SPACE)), np.int64)
    steps = policy.replay(params, SPACE, design)
    fair = np.log(SPACE.sizes[SPACE.active(design)[0]]).sum()
    assert policy.entropy(steps) == pytest.approx([fair])
    assert policy.log_probability(steps) == pytest.approx([-fair])


def test_inactive_decisions_have_no_gradient(small_policy):
    design = np.zeros((1, len(SPACE)), np.int64)  # depth 1: op.1, op.2 and kernel.2 are off
    steps = policy.replay(small_policy, SPACE, design)
    grads = policy.gradient(small_policy, SPACE, steps, np.ones(1), np.ones(1))
    off = np.repeat(~SPACE.active(design)[0], SPACE.sizes)
    assert not grads["heads"][:, off].any() and grads["heads"][:, ~off].any()


def test_policy_gradient_learns():
    gains, gaps = [], []
    for seed in range(4):
        told = search(make("policy_gradient", SPACE, seed=seed), 200, seed=seed)[1]
        gains.append(told[150:].mean() - told[:50].mean())
        gaps.append(told.max() - best("random", 200, seed))
    assert np.min(gains) > 2
    assert np.mean(gaps) > 0.5


def test_policy_gradient_leaves_what_fails():
    controller = make("policy_gradient", SPACE, seed=0)
    shares = []
    for _ in range(40):
        trials = trials_of(controller.ask(5))
        failed = np.array([t.proposal.encoding[6] == 0 for t in trials])  # one of three dataflows
        # rewards below zero: a failure that counted as zero would look good
        controller.tell(trials, np.where(failed, np.nan, objectives_of(trials)[:, 0] - 50)[:, None])
        shares.append(failed.mean())
    assert np.mean(shares[-10:]) < 0.5 * np.mean(shares[:10])


# -- PPO and TuNAS ---------------------------------------------------------------------------------


def test_the_clipped_objective_against_finite_differences():
    rng = np.random.default_rng(0)
    log_ratios, advantages, clip, step = rng.normal(0, 0.3, 200), rng.normal(size=200), 0.2, 1e-6

    def value(log_ratios):
        ratios = np.exp(log_ratios)
        return np.minimum(ratios * advantages, np.clip(ratios, 1 - clip, 1 + clip) * advantages)

    slopes = (value(log_ratios + step) - value(log_ratios - step)) / (2 * step)
    assert clipped(advantages, np.exp(log_ratios), clip) == pytest.approx(slopes, abs=1e-6)


def test_ppo_is_restored_and_learns():
    original = make("policy_gradient", SPACE, seed=0, algorithm="ppo")
    search(original, 13)
    restored = make("policy_gradient", SPACE, seed=5, algorithm="ppo")
    restored.restore(from_json(to_json(original.state())))
    first, second = (search(c, 20, seed=7)[0] for c in (original, restored))
    assert (first == second).all()
    told = [
        search(make("policy_gradient", SPACE, seed=s, algorithm="ppo"), 200, seed=s)[1]
        for s in range(2)
    ]
    assert np.min([t[150:].mean() - t[:50].mean() for t in told]) > 2


def test_ppo_takes_what_others_proposed():
    controller = make("policy_gradient", SPACE, seed=0, algorithm="ppo", batch=3)
    before = controller.params["heads"].copy()
    trials = trials_of([Proposal(row) for row in SPACE.sample(3, np.random.default_rng(0))])
    controller.tell(trials, np.arange(3.0)[:, None])
    assert (controller.params["heads"] != before).any()


def test_the_gradient_of_categoricals_against_finite_differences():
    controller = make("tunas", SPACE, seed=0, warmup=0)
    rng = np.random.default_rng(0)
    controller.params["logits"] = rng.normal(size=controller.exists.shape)
    taken = {}
    controller.adam.ascend = lambda params, grads: taken.update(grads)
    design = SPACE.sample(1, rng)[0]
    on = SPACE.active(design)[0]
    controller._climb(design, 1.0)

    def log_p(logits):
        controller.params["logits"] = logits
        return controller._log_p()[np.arange(len(design)), design][on].sum()

    logits = controller.params["logits"]
    for i, j in np.argwhere(controller.exists):
        step = np.zeros_like(logits)
        step[i, j] = 1e-6
        slope = (log_p(logits + step) - log_p(logits - step)) / 2e-6
        assert taken["logits"][i, j] == pytest.approx(slope, abs=1e-7)


def test_tunas_waits_and_then_learns():
    controller = make("tunas", SPACE, seed=0, warmup=20)
    search(controller, 20)
    assert not controller.params["logits"].any()
    told = search(controller, 200)[1]
    assert told[150:].mean() - told[:50].mean() > 2
    assert not controller.params["logits"][~controller.exists].any()
