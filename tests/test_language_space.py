"""The space of language models: every decision that counts changes what is trained or priced."""

import numpy as np
import pytest

from nas.layout import Layout
from nas.report.recurrent import brief
from search_spaces import joint, recurrent
from search_spaces.precision import precisions
from search_spaces.training import peak_learning_rate

SPACE = joint("recurrent").restrict({
    "text.vocabulary": 1000, "rnn.units": [32, 64], "rnn.layers": [1, 2], "embed.width": [32, 64],
    "embed.rank": [0, 16, 32, 64], "embed.codebook": [0, 4, 16, 64],
    "memory.kind": ["none", "soft", "hard", "cache"], "memory.slots": [16, 32, 64],
    "memory.sharpness": [3, 6],
    "experts.n": [1, 4, 8, 16], "experts.balance": [0, 0.01], "experts.hidden": [32, 64],
    "dag.gates": ["highway", "none"], "train.optimizer": ["adam", "momentum"],
    "train.samples": [0, 128], "train.schedule": ["triangle", "cosine"],
    "train.lr_rule": ["linear", "sqrt", "none"], "serve.words": [8, 35],
    "serve.batch": [1, 4],
})  # fmt: skip
RECIPE = ("train.batch", "train.words", "train.dropout", "train.samples", "train.optimizer",
          "train.schedule")  # fmt: skip


def consequences(choices):
    """All that training and hardware see of a design but for the accelerator."""
    network, bits = recurrent.network(choices), precisions(choices)
    packed = recurrent.compressions(choices)
    layout, layers = Layout(network), recurrent.layers(choices)
    kernels = [(p.parameter, bits[p.group].weights, packed[p.group]) for p in layout.kernels]
    clips = [(p.parameter, bits[p.group].activations) for p in layout.clips]
    priced = [value.tobytes() for value in vars(layers).values() if isinstance(value, np.ndarray)]
    recipe = [choices[name] for name in RECIPE] + [peak_learning_rate(choices)]
    return network.steps, kernels, clips, recipe, priced


@pytest.mark.parametrize("cell", ["dag", "tree", "lstm", "gru"])
def test_two_values_of_an_active_decision_are_two_designs(cell):
    space, rng = SPACE.restrict({"rnn.cell": cell}), np.random.default_rng(0)
    met, rows = set(), space.sample(60, rng)
    for row in rows:
        choices = space.decode(row)
        if choices.get("experts.active", 1) > choices["experts.n"]:
            continue
        before = consequences(choices)
        undone = [n for n in choices if n not in met and not n.startswith("hw.")]
        for name in undone[:12]:  # those that were tried the least first
            i = space.column[name]
            for value in np.delete(np.arange(space.sizes[i]), row[i]):
                other = row.copy()
                other[i] = value
                changed = space.decode(other)
                if changed.get("experts.active", 1) <= changed["experts.n"]:
                    assert consequences(changed) != before, (name, choices, changed[name])
        met.update(undone[:12])
    several = [n for n in space.names if space.sizes[space.column[n]] > 1]
    assert met >= {name for name in several if not name.startswith("hw.")}


def test_what_a_shared_table_and_a_whole_one_leave_undecided():
    named = {"embed.rank": [0, 32], "embed.tied": [False, True], "embed.codebook": [0, 64]}
    space = joint("recurrent").restrict(named)
    for row in space.sample(50, np.random.default_rng(0)):
        choices = space.decode(row)
        assert ("bits.weights.output" in choices) == (not choices["embed.tied"])
        assert ("bits.activations.embedding" in choices) == (choices["embed.rank"] > 0)
        coded = choices["bits.weights.embedding"] > 6  # indices of 64 entries are shorter
        assert ("embed.codebook" in choices) == coded
        embedding, cells, output = precisions(choices)
        if choices["embed.tied"]:
            assert output.weights == embedding.weights
        if not choices["embed.rank"]:
            assert embedding.activations == cells.activations


def test_a_network_is_named_with_all_that_it_is_made_of():
    choices = {"rnn.cell": "lstm", "rnn.units": 96, "embed.width": 64, "rnn.layers": 2}
    assert brief(choices) == "2 × LSTM, 96 units, 64 wide"
    choices |= {"memory.kind": "soft", "memory.slots": 16, "experts.n": 1}
    assert brief(choices) == "2 × LSTM, 96 units, 64 wide, soft memory of 16"
    choices |= {"memory.kind": "cache", "experts.n": 8, "rnn.layers": 1}
    assert brief(choices) == "LSTM, 96 units, 64 wide, cache of 16, 8 experts"
