"""Memories and experts: what they compute, what they cost, and what is refused."""

import numpy as np
import pytest
import tensorflow as tf
from test_language import WORDS, designs, markov_text, recipe

from hwmodel.workload import Layers
from nas import language
from nas.evaluators.language import Language
from nas.language import TextTrainer
from nas.layout import Layout
from nas.pricing import price_designs
from nas.reader import Graph, Table
from search_spaces import joint, recurrent
from search_spaces.compression import Compression
from search_spaces.memory import Experts, HardMemory, SoftMemory
from search_spaces.network import Step
from search_spaces.ops import Precision

WIDTH, STEPS, N = 8, 11, 3


def run(op, x, seed=0):
    """(output [steps, n, width], weights) of an operation by the graph's reader, in float."""
    rng = np.random.default_rng(seed)
    weights = {
        p.name: rng.normal(0, 0.5, p.shape).astype(np.float32)
        for p in op.parameters([(x.shape[-1],)])
    }
    given = {
        name: Table(tf.constant(w)) if name.endswith("/table") else tf.constant(w)
        for name, w in weights.items()
    }
    reader = Graph([given], None, None)
    reader.enter(0, Step("op", op, (-1,), 0))
    state = tuple(tf.zeros((x.shape[1], *shape)) for shape in op.state)
    pieces = []
    for piece in (x[:4], x[4:]):  # what is kept goes on
        y, state = op.run(reader, tf.constant(piece), state)
        pieces.append(y.numpy())
    return np.concatenate(pieces), weights, reader


@pytest.fixture
def x():
    return np.random.default_rng(1).normal(0, 1, (STEPS, N, WIDTH)).astype(np.float32)


def softmax(scores):
    shifted = np.exp(scores - scores.max())
    return shifted / shifted.sum()


def test_a_soft_memory_attends_over_the_last_states(x):
    op = SoftMemory(WIDTH, slots=4, heads=2, key=3)
    y, weights, _ = run(op, x)
    for n in range(N):
        for t in range(STEPS):
            past = [x[s, n] if s >= 0 else np.zeros(WIDTH) for s in range(t - 4, t)]
            query = (x[t, n] @ weights["query/kernel"]).reshape(2, 3)
            keys = np.array([s @ weights["key/kernel"] for s in past]).reshape(4, 2, 3)
            values = np.array(past).reshape(4, 2, WIDTH // 2)
            found = [softmax(keys[:, h] @ query[h] / 3**0.5) @ values[:, h] for h in range(2)]
            expected = x[t, n] + np.concatenate(found) @ weights["read/kernel"]
            np.testing.assert_allclose(y[t, n], expected, atol=1e-5)


def test_a_hard_memory_recalls_what_came_after_the_same_hash(x):
    x = np.tile(x[:3], (4, 1, 1))[:STEPS]  # comes back, so that entries are found again
    op = HardMemory(WIDTH, slots=16)
    y, weights, _ = run(op, x)
    n_found = 0
    for n in range(N):
        table, last = np.zeros((16, WIDTH)), 0
        for t in range(STEPS):
            signs = x[t, n] @ weights["hash/kernel"] > 0
            now = int(signs[:4] @ 2 ** np.arange(4))
            table[last] = x[t, n]
            expected = x[t, n] + table[now] @ weights["read/kernel"]
            np.testing.assert_allclose(y[t, n], expected, atol=1e-5)
            n_found += (table[now] != 0).any()
            last = now
    assert n_found > N * STEPS / 2


def test_a_cache_gives_words_that_came_after_similar_features_their_share(trainer):
    [choices] = designs(1, **{"rnn.layers": 1, "embed.rank": 0, "experts.n": 1, "memory.slots": 16,
                              "memory.kind": "cache", "embed.tied": False})[2:3]  # fmt: skip
    choices |= {"memory.share": 0.3, "memory.sharpness": 6}
    cached = recurrent.network(choices)
    plain = recurrent.network(choices | {"memory.kind": "none"})
    assert cached.in_training == plain and Layout(cached).parts == Layout(plain).parts
    tokens, held_out = markov_text(600), markov_text(60, seed=3)
    float_weights = recipe(32)
    found, base = (trainer.fit(n, tokens, float_weights, seed=0) for n in (cached, plain))
    np.testing.assert_array_equal(found.values, base.values)

    named = {name: value.astype(float) for name, value in base.tensors().items()}
    h = c = np.zeros(32)
    seen, last, total, before = [(np.zeros(32), 0)] * 16, np.zeros(32), 0.0, 0
    for word in held_out:
        sums = named["embedding/words/table"][before] @ named["cell0/input/kernel"]
        sums += named["cell0/input/bias"] + h @ named["cell0/state/kernel"]
        enter, forget, new, leave = np.split(sums, 4)
        enter, forget, leave = (1 / (1 + np.exp(-x)) for x in (enter, forget + 1, leave))
        c = forget * c + enter * np.tanh(new)
        h = leave * np.tanh(c)
        unit = h / np.linalg.norm(h)
        chances = softmax(h @ named["output/scores/rows"].T + named["output/scores/bias"])
        shares = softmax(np.array([6 * unit @ key for key, _ in seen]))
        of_none = sum(s for s, (_, number) in zip(shares, seen, strict=True) if number == 0)
        own = sum(s for s, (_, number) in zip(shares, seen, strict=True) if number == word + 1)
        total -= np.log((1 - 0.3 * (1 - of_none)) * chances[word] + 0.3 * own)
        seen, last, before = [*seen[1:], (last, before + 1)], unit, word
    expected = total / len(held_out)
    program = found.program
    program.set_values(found.values)
    bits, state = np.full(3, 32, np.int32), language.zero_state(cached, 1)
    words = np.append(0, held_out).astype(np.int32)[:, None]
    total = 0.0
    for at in (0, 25, 50):  # what is kept goes on
        losses, _, state = program.losses(words[at : at + 26][: 61 - at], bits, bits, state)
        total += losses.sum()
    np.testing.assert_allclose(total / len(held_out), expected, rtol=1e-5)
    scores, _ = program.scores(words, bits, bits, language.zero_state(cached, 1))
    np.testing.assert_allclose(np.exp(scores).sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(-scores[0, held_out[-1]], losses[-1, 0], rtol=1e-4)


@pytest.mark.parametrize(("n", "active"), [(2, 1), (8, 2), (32, 4)])
def test_words_go_to_their_best_experts(x, n, active):
    op = Experts(n, active, hidden=5)
    y, weights, reader = run(op, x)
    rows, columns = op.sides
    assert rows * columns == n
    for t in range(STEPS):
        for i in range(N):
            lists = x[t, i] @ weights["router/kernel"]
            shares = softmax((lists[:rows, None] + lists[rows:]).ravel())
            expected = x[t, i].astype(float)
            for e in np.argsort(-shares)[:active]:
                up = weights["up/table"][e].reshape(WIDTH, 5)
                down = weights["down/table"][e].reshape(5, WIDTH)
                expected = expected + shares[e] * (np.maximum(x[t, i] @ up, 0) @ down)
            np.testing.assert_allclose(y[t, i], expected, atol=1e-4)
    assert sum(load.numpy().sum() for load in reader.loads) == STEPS * N * active
    even = [penalty.numpy() / op.balance for penalty in reader.penalties]
    assert all(0.5 < value < n for value in even)


def test_only_active_experts_multiply_and_all_are_stored():
    macs, routers, stored = [], [], []
    for n in (4, 64, 2048):
        table = Layers.from_rows(Experts(n, 2, 16).cost("e", [(32,)], Precision(8, 8), 1, 1))
        own = table.names != "e.router"
        macs.append(table.row_macs[own].sum())
        routers.append(table.row_macs[~own].sum())
        stored.append(table.row_params[own].sum())
    assert set(macs) == {2 * 2 * 32 * 16}
    assert stored == [n * 2 * 32 * 16 for n in (4, 64, 2048)]
    assert routers == [32 * 4, 32 * 16, 32 * 96], "two lists, not one score an expert"


def test_a_soft_read_grows_with_the_table_and_a_hard_one_does_not():
    space = joint("recurrent").restrict({"rnn.cell": "lstm", "rnn.units": 64,
                                         "memory.kind": ["none", "soft", "hard"]})  # fmt: skip
    base = space.decode(space.sample(1, np.random.default_rng(0))[0])
    base = {k: v for k, v in base.items() if not k.startswith("memory.")}

    def latencies(**given):
        designs = [base | given | {"memory.slots": n} for n in (16, 256, 4096)]
        return [metrics["latency_s"] for metrics, _ in price_designs("recurrent", designs)]

    soft = latencies(**{"memory.kind": "soft", "memory.heads": 2, "memory.key": 16})
    hard = latencies(**{"memory.kind": "hard"})
    assert soft[0] < soft[1] < soft[2] and soft[2] > 1.2 * soft[0]
    assert hard[0] == hard[1] == hard[2] < soft[2]


@pytest.fixture(scope="module")
def trainer():
    return TextTrainer()


def with_experts(balance):
    [choices] = designs(1, **{"rnn.layers": 1, "memory.kind": "none", "experts.n": 8,
                              "experts.active": 2, "experts.hidden": 32,
                              "experts.balance": [0, 0.1]})[3:]  # fmt: skip
    return recurrent.network(choices | {"experts.balance": balance})


def test_the_loss_keeps_the_load_even(trainer):
    variation = {
        balance: trainer.fit(
            with_experts(balance), markov_text(4000), recipe(epochs=3, learning_rate=0.03), seed=0
        ).score(markov_text(500, seed=2), first=0).load_variation
        for balance in (0, 0.1)
    }  # fmt: skip
    assert 0 <= variation[0.1] < 0.9 * variation[0]


def test_a_codebook_leaves_few_different_words(trainer):
    [choices] = designs(1, **{"rnn.layers": 1, "embed.rank": 0, "embed.tied": True,
                              "experts.n": 1, "memory.kind": "none"})[2:3]  # fmt: skip
    choices |= {"embed.codebook": 16, "bits.weights.embedding": 8}
    network = recurrent.network(choices)
    compressions = recurrent.compressions(choices)
    assert compressions == [Compression(index_bits=4), Compression(), Compression()]
    settings = recipe(compressions=tuple(compressions))
    trained = trainer.fit(network, markov_text(1500), settings, seed=0)
    layout = Layout(network)
    entries = [len(np.unique(trained.values[layout.slice(p)])) for p in layout.kernels]
    assert entries[0] <= 16 and min(entries[1:]) > 500
    table = recurrent.layers(choices)
    assert table.parameter_bytes[0] == WORDS * 64 * 4 / 8 + 16, "indices, and a codebook"
    plain = recurrent.layers(choices | {"embed.codebook": 0})
    assert plain.parameter_bytes[0] == WORDS * 64


def test_variation_is_relative():
    assert language.variation(np.array([2.0, 2.0])) == 0
    assert language.variation(np.array([0.0, 4.0])) == 1


def test_what_cannot_be_built_is_refused_in_a_line():
    with pytest.raises(ValueError, match=r"4 active experts of 2; choose experts.active of at"):
        Experts(2, 4, 16)
    with pytest.raises(ValueError, match="is a power of two, got 6"):
        Experts(6, 2, 16)
    with pytest.raises(ValueError, match="200 units do not divide into 16 heads"):
        SoftMemory(200, 16, 16, 8)
    named = {"text.vocabulary": 4000, "train.batch": 16, "train.words": 16}
    space = joint("recurrent").restrict(named | {"experts.n": [1, 2, 64], "experts.active": [2, 4]})
    with pytest.raises(ValueError, match=r"experts.active may be 4, more than the 2 of experts.n"):
        Language().check(space)
    space = joint("recurrent").restrict(
        named | {"rnn.units": 650, "memory.kind": "soft", "memory.heads": 4}
    )
    with pytest.raises(ValueError, match=r"rnn.units 650 do not divide into memory.heads 4"):
        Language().check(space)
