"""Language models: priced, built, trained, scored and exported alike."""

import keras
import numpy as np
import pytest
from test_checkpoint import AfterSteps

from nas import language, text
from nas.checkpoint import Checkpoint, Parked
from nas.export import filled
from nas.language import TextRecipe, TextTrainer, zero_state
from nas.language_program import CLIP_NORM
from nas.layout import Layout
from nas.program import Switches
from search_spaces import joint, recurrent
from search_spaces.compression import UNCOMPRESSED, Compression
from search_spaces.ops import Precision
from search_spaces.precision import precisions
from search_spaces.sequence import LanguageModel

WORDS = 40
CELLS = ("dag", "tree", "lstm", "gru")
SMALL = {"rnn.units": 32, "embed.width": 64, "rnn.layers": [1, 2], "embed.rank": [0, 16],
         "tree.leaves": [2, 4], "memory.slots": [16],
         "memory.kind": ["none", "soft", "hard", "cache"], "experts.n": [1, 8, 32],
         "dag.nodes": [1, 2, 3, 5], "dag.gates": ["highway", "none"]}  # fmt: skip

PLAIN = {"rnn.layers": 1, "embed.rank": 0, "memory.kind": "none", "experts.n": 1}


def designs(n, seed=0, **narrowed):
    """Choices of n random language models of each cell, small ones over few words."""
    rng, found = np.random.default_rng(seed), []
    for cell in CELLS:
        space = joint("recurrent").restrict({**SMALL, **narrowed, "rnn.cell": cell})
        found += [space.decode(row) | {"text.vocabulary": WORDS} for row in space.sample(n, rng)]
    return found


def markov_text(n, seed=0):
    """Word numbers of a chain in which every word has three that may follow."""
    rng = np.random.default_rng(seed)
    follows = np.random.default_rng(1).integers(0, WORDS, (WORDS, 3))
    tokens = np.zeros(n, np.int32)
    for i, which in enumerate(rng.integers(0, 3, n - 1)):
        tokens[i + 1] = follows[tokens[i], which]
    return tokens


def recipe(bits=8, **given):
    settings = dict(batch=8, words=12, epochs=2, learning_rate=0.01, warmup=0.1,
                    weight_bits=(bits,) * 3, activation_bits=(bits,) * 3, samples=16)  # fmt: skip
    return TextRecipe(**{**settings, **given})


@pytest.fixture(scope="module")
def trainer():
    return TextTrainer()


def keras_macs(model):
    """Multiply-accumulates of one word, counted from the built layers and products alone."""
    total = 0
    for op in model.operations:
        if isinstance(op, keras.layers.Dense):
            total += int(np.prod(op.kernel.shape))
        elif type(op).__name__ == "Matmul":
            x, _ = op._inbound_nodes[0].input_tensors
            total += int(np.prod(op.output.shape[1:])) * x.shape[-1]
    return total


@pytest.mark.parametrize("choices", designs(3))
def test_priced_and_built_models_agree(choices):
    model, network = recurrent.build(choices), recurrent.network(choices)
    table = recurrent.layers(choices)
    n_words = choices["serve.batch"] * choices["serve.words"]
    assert table.params[0] == model.count_params()
    assert keras_macs(model) == network.macs
    whole = table.macs[0] / n_words  # experts in use are filled up to the same load
    assert whole >= network.macs and (choices.get("experts.n", 1) > 1 or whole == network.macs)
    learned = Layout(network)
    assert table.params[0] == sum(learned.parts[:2])
    assert model.outputs[0].shape == (None, WORDS)
    states = [tuple(s.shape[1:]) for s in model.inputs[1:]]
    assert states == [tuple(s.shape[1:]) for s in model.outputs[1:]] == network.state_shapes


def stepped(model, words, there):
    """Mean -ln p of targets by a Keras model called word by word."""
    state = [keras.ops.zeros((words.shape[1], *s.shape[1:])) for s in model.inputs[1:]]
    total = 0.0
    for before, after, real in zip(words[:-1], words[1:], there, strict=True):
        scores, *state = model([keras.ops.convert_to_tensor(before), *state])
        scores = np.asarray(scores, np.float64)
        log_sum = np.log(np.exp(scores - scores.max(1, keepdims=True)).sum(1)) + scores.max(1)
        total += (log_sum - scores[np.arange(len(after)), after])[real].sum()
    return total / there.sum()


@pytest.mark.parametrize(("choices", "bits"), zip(
    designs(1, seed=5, **{"embed.tied": True}) + designs(1, seed=6, **{"embed.tied": False}),
    [4, 6, 32, 5, 8, 4, 5, 32]))  # fmt: skip
def test_the_exported_model_scores_what_the_trained_one_does(choices, bits, trainer, tmp_path):
    network = recurrent.network(choices)
    trained = trainer.fit(network, markov_text(500), recipe(bits, dropout=0.1), seed=0)
    model, kernels = filled(network, trained.tensors(), [Precision(bits, bits)] * 3)
    model.save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    held_out = markov_text(210, seed=7)
    loss = trained.score(held_out, first=0).loss
    words, there = text.streams(held_out, language.SCORE_STREAMS, 0)
    # 1e-8 apart, unless a sum in another order rounds to the other level, as the fourth's at 4 bits
    assert stepped(model, words, there) == pytest.approx(loss, abs=1e-4)
    assert {grid["bits"] for grid in kernels.values()} == {bits}
    assert len(kernels) == len(Layout(network).kernels)


def test_scores_are_those_of_a_plain_lstm(trainer):
    """The full softmax over an LSTM written down in NumPy, weight by weight."""
    choices = designs(1, **PLAIN, **{"embed.tied": False})[2]
    assert choices["rnn.cell"] == "lstm"
    network = recurrent.network(choices)
    trained = trainer.fit(network, markov_text(1500), recipe(32), seed=3)
    named = trained.tensors()
    tokens = markov_text(90, seed=8)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    h, c, total, before = np.zeros(32), np.zeros(32), 0.0, 5
    for word in tokens:
        x = named["embedding/words/table"][before].astype(np.float64)
        sums = x @ named["cell0/input/kernel"] + named["cell0/input/bias"]
        i, f, g, o = np.split(sums + h @ named["cell0/state/kernel"], 4)
        c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        scores = h @ named["output/scores/rows"].T + named["output/scores/bias"]
        total += np.log(np.exp(scores).sum()) - scores[word]
        before = word
    words, state, found = np.append(5, tokens)[:, None], zero_state(network, 1), []
    bits = np.full(3, 32, np.int32)
    trained.program.set_values(trained.values)
    for piece in (words[:41], words[40:]):  # the state goes on
        losses, _, state = trained.program.losses(piece, bits, bits, state)
        found.append(losses)
    assert np.concatenate(found).sum() == pytest.approx(total, rel=1e-5)
    found = trained.program.scores(words, bits, bits, zero_state(network, 1))[0]
    np.testing.assert_allclose(found[0], scores, atol=1e-4)


@pytest.mark.parametrize("choices", designs(1, seed=11, **PLAIN))
def test_training_learns_what_follows(choices, trainer):
    """Three words may follow each, so that a perplexity of 3 is the least there is."""
    if choices["rnn.cell"] in ("dag", "tree"):  # functions that all learn it
        usual = {"function": "tanh", "combine": "add"}
        choices = {k: usual.get(k.rpartition(".")[2], v) for k, v in choices.items()}
    network = recurrent.network(choices)
    tokens = markov_text(6_000)
    trained = trainer.fit(network, tokens, recipe(epochs=4, learning_rate=0.04), seed=0)
    perplexity, loss, _ = trained.score(markov_text(1000, seed=9), first=0)
    assert perplexity == pytest.approx(np.exp(loss)) and 2.8 < perplexity < 8
    losses = [point["loss"] for point in trained.curve]
    assert losses == sorted(losses, reverse=True) and len(losses) == 4


def test_equal_seeds_give_equal_bits_whatever_ran_before(trainer):
    network = recurrent.network(designs(1, **PLAIN)[0])
    settings = recipe(dropout=0.3)
    first = trainer.fit(network, markov_text(1500), settings, seed=4)
    trainer.fit(network, markov_text(1500), settings, seed=5)
    again = trainer.fit(network, markov_text(1500), settings, seed=4)
    np.testing.assert_array_equal(first.values, again.values)
    other = trainer.fit(network, markov_text(1500), settings, seed=6)
    assert (other.values != first.values).mean() > 0.9


@pytest.mark.parametrize(("number", "given"), [
    (0, {"dropout": 0.3}),
    (2, {"samples": 0, "optimizer": "momentum"}),
    (3, {"compressions": (Compression(index_bits=3), UNCOMPRESSED, UNCOMPRESSED)}),
])  # fmt: skip
def test_a_training_that_was_parked_ends_as_an_undisturbed_one(tmp_path, trainer, number, given):
    """Also in the middle of an epoch, with what memories and experts hold, in a fresh process."""
    choices = designs(1, seed=5, **{"memory.kind": "hard", "experts.n": 8})[number]
    network, settings, tokens = recurrent.network(choices), recipe(**given), markov_text(500)
    whole = trainer.fit(network, tokens, settings, seed=4)
    path, n_parked = tmp_path / "a.npz", 0
    for steps in (0, 2, 4, 10**6):  # 5 steps an epoch: before, inside, at the end of one
        try:
            checkpoint = Checkpoint(path, "key", AfterSteps(steps))
            other = TextTrainer() if n_parked == 1 else trainer
            kept = other.fit(network, tokens, settings, seed=4, checkpoint=checkpoint)
        except Parked:
            n_parked += 1
    assert n_parked == 3
    np.testing.assert_array_equal(kept.values, whole.values)
    assert [p["loss"] for p in kept.curve] == [p["loss"] for p in whole.curve]


def test_a_sampled_softmax_of_every_word_is_the_full_one(trainer):
    """With the exact expectations in place of draws, both have the same loss and gradient."""
    network = recurrent.network(designs(1, **PLAIN, **{"embed.tied": False})[2])
    layout, words = Layout(network), markov_text(8 * 13).reshape(13, 8)
    bits, state = np.full(3, 32, np.int32), zero_state(network, 8)
    values, every = layout.initial(0, bits), np.arange(WORDS, dtype=np.int32)
    moved, losses = [], []
    expected = (every, np.zeros(WORDS, np.float32), np.zeros((12, 8), np.float32))
    for sampled in (False, True):
        switches = Switches(quantizer="", optimizer="momentum", sampled=sampled)
        program = trainer.program(network, switches)
        program.start(values)
        seed = np.zeros(2, np.int32)
        drawn = expected if sampled else ()
        losses.append(program.step(words, bits, bits, 0.5, 0.0, seed, *drawn, *state)[0])
        moved.append(program.get_values())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    np.testing.assert_allclose(*moved, atol=1e-5)
    assert np.abs(moved[0] - values).max() > 1e-3


def test_gradients_are_clipped(trainer):
    network = recurrent.network(designs(1, **PLAIN)[3])
    program = trainer.program(network, Switches("", optimizer="momentum", sampled=False))
    layout, bits = Layout(network), np.full(3, 32, np.int32)
    values = 3 * layout.initial(0, bits)
    program.start(values)
    words = markov_text(8 * 13).reshape(13, 8)
    program.step(words, bits, bits, 1.0, 0.0, np.zeros(2, np.int32), *zero_state(network, 8))
    moved = np.linalg.norm(program.get_values() - values)
    assert moved < 1.9 * CLIP_NORM * 1.01  # Nesterov's first step is 1 + 0.9 gradients


def test_a_known_cell_counts_what_it_is_known_for():
    [choices] = [c for c in designs(1, **PLAIN) if c["rnn.cell"] == "lstm"]
    rows = {row.name: row for row in recurrent.network(choices).steps[1].op.cost(
        "cell", [(64,)], Precision(4, 8), batch=3, steps=7)}  # fmt: skip
    assert (rows["cell.input"].m, rows["cell.input"].k, rows["cell.input"].n) == (21, 64, 128)
    state = rows["cell.state"]
    assert (state.m, state.k, state.n, state.steps) == (21, 32, 128, 7), "words wait in turn"
    assert state.weight_bits == 4 and rows["cell.gates"].steps == 7
    assert rows["cell.gates"].output_bits == 8


def test_a_tied_table_is_stored_once_and_multiplied_in_its_own_bits():
    [choices] = designs(1, **PLAIN, **{"embed.tied": True})[3:]
    choices |= {"bits.weights.embedding": 3, "bits.weights.output": 8, "embed.width": 32}
    table = recurrent.layers(choices)
    scores = list(table.names).index("output.scores")
    assert table.weight_bits[scores] == 3 and table.params[0] < 2 * WORDS * 32 + 10_000
    assert table.row_params[scores] == WORDS, "its biases"
    untied = recurrent.layers(choices | {"embed.tied": False})
    assert untied.params[0] - table.params[0] == WORDS * 32
    assert untied.weight_bits[list(untied.names).index("output.scores")] == 8


def test_serving_is_priced_by_the_words_of_a_sequence():
    [choices] = designs(1, **PLAIN)[:1]
    one, many = (recurrent.layers(choices | {"serve.words": n}) for n in (1, 35))
    assert many.macs[0] == 35 * one.macs[0] and many.params[0] == one.params[0]
    lookups = [t.gather_bytes[0] for t in (one, many)]
    assert lookups[1] == 35 * lookups[0] > 0, "random reads"


def test_models_that_only_serve_otherwise_share_a_program():
    [choices] = designs(1, **PLAIN)[:1]
    network = recurrent.network(choices)
    again = recurrent.network(choices | {"serve.words": 128, "train.words": 8})
    assert network == again and hash(network) == hash(again)
    assert again.layers(precisions(choices), 1).macs[0] == 128 * network.macs
    assert isinstance(again, LanguageModel)


def test_a_text_shorter_than_a_step_is_refused(trainer):
    network = recurrent.network(designs(1, **PLAIN)[0])
    with pytest.raises(ValueError, match=r"train.words 12 is longer than the data: 90 words in 8"):
        trainer.fit(network, markov_text(90), recipe(), seed=0)


def test_an_untrained_model_has_the_perplexity_of_counts(trainer):
    """Before the first step scores are next to those of a model of single words."""
    network = recurrent.network(designs(1, **PLAIN, **{"embed.tied": False})[2])
    often = 1 / np.arange(1, WORDS + 1)
    tokens = np.random.default_rng(0).choice(WORDS, 4000, p=often / often.sum())
    program = trainer.program(network, recipe(32).switches)
    program.start(language.first_values(network, recipe(32), tokens, 0))
    words, bits = language.side_by_side(tokens, 8)[:60], np.full(3, 32, np.int32)
    losses, _, _ = program.losses(words, bits, bits, zero_state(network, 8))
    shares = language.shares_of(tokens, WORDS)
    of_counts = -np.log(shares[words[1:]]).mean()
    assert losses.mean() == pytest.approx(of_counts, abs=0.05) and of_counts < 3.1 < np.log(WORDS)
