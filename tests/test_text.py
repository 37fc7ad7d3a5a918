"""Texts: read, checked and cut as the search expects them."""

import gzip

import numpy as np
import pytest

from nas import config as configuration
from nas import text
from nas.data import DataError
from nas.evaluators.language import Language
from search_spaces import joint


def test_sentences_become_words_as_in_penn_treebank():
    assert text.tokenized("It doesn't cost $3,000.50, he's sure!") == [
        "it", "does", "n't", "cost", "N", "he", "'s", "sure",
    ]  # fmt: skip


def test_what_python_brings_is_text_enough():
    found = text.load("python-docs")
    parts = found.train, found.validation, found.test
    assert sum(map(len, parts)) >= 100_000 and min(map(len, parts)) > 10_000
    assert len(found.words) == text.N_DOCS_WORDS and found.words[found.end] == text.END
    assert len(set(found.words)) == len(found.words) and text.UNKNOWN in found.words
    counts = np.bincount(found.train, minlength=len(found.words))
    assert (np.diff(counts) <= 0).all() or counts[0] == counts.max(), "frequent words first"
    for part in parts:
        assert part.dtype == np.int32 and part[-1] == found.end
        assert (part == found.words.index(text.UNKNOWN)).mean() < 0.12


def test_no_sentence_is_in_two_parts():
    found = text.load("python-docs")
    unknown = found.words.index(text.UNKNOWN)

    def sentences(part):
        ends = np.flatnonzero(part == found.end)
        pieces = np.split(part, ends + 1)
        return {tuple(p.tolist()) for p in pieces if len(p) > 6 and unknown not in p}

    train, validation, test = map(sentences, (found.train, found.validation, found.test))
    assert len(test) > 300 and not test & train and not test & validation


def test_words_outside_the_vocabulary_are_unknown():
    parts = [[["a", "b", "a"], ["b", "<unk>"]], [["a", "c"]], [["d"]]]
    found = text.numbered("t", parts)
    assert found.words == ("<eos>", "a", "b", "<unk>")
    assert [found.words[i] for i in found.validation] == ["a", "<unk>", "<eos>"]
    assert [found.words[i] for i in found.test] == ["<unk>", "<eos>"]


def test_streams_predict_every_word_once():
    tokens = np.arange(10, 21, dtype=np.int32)
    words, there = text.streams(tokens, 3, first=7)
    assert words.shape == (5, 3) and there.shape == (4, 3) and there.sum() == 11
    assert words[0].tolist() == [7, 13, 17], "the word before each stream's first"
    np.testing.assert_array_equal(np.sort(words[1:][there]), tokens)
    for column in range(3):
        assert words[1:, column][there[:, column]].tolist() == list(
            range(10 + 4 * column, min(14 + 4 * column, 21))
        )


def write_ptb(folder, lines, **changed):
    """Three files in Mikolov's names; `changed` replaces the lines of one."""
    for part, name in text.FILES.items():
        opened = gzip.open if part == "test" else open
        path = folder / (name + (".gz" if part == "test" else ""))
        with opened(path, "wt") as file:
            file.write("\n".join(changed.get(part, lines)) + "\n")
    return folder


@pytest.fixture
def small_ptb(monkeypatch):
    """Penn Treebank as if it were three lines."""
    monkeypatch.setattr(text, "N_WORDS", 5)
    monkeypatch.setattr(text, "N_TOKENS", dict.fromkeys(text.N_TOKENS, 9))
    return [" the cat <unk> ", " the N cat cat "]


def test_penn_treebank_is_read_plain_or_gzipped(tmp_path, small_ptb):
    found = text.load("ptb", write_ptb(tmp_path, small_ptb))
    assert set(found.words) == {"the", "cat", "<unk>", "N", "<eos>"}
    assert found.words[:1] == ("cat",) and len(found.test) == 9
    np.testing.assert_array_equal(found.train, found.test)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"train": [""]}, "the train part of ptb has no sentence"),
        ({"validation": ["", " "]}, "the validation part of ptb has no sentence"),
        ({"train": ["the cat", "the N cat dog"], "validation": ["the dog bird"]},
         "vocabularies of ptb do not match: 'bird' of the validation part"),
        ({"train": ["the cat <unk> dog emu", "N"]}, "has 7 different words, expected 5"),
        ({"test": ["the cat"]}, "ptb.test.txt in .* has 3 tokens, expected 9; .*--data"),
    ],
)  # fmt: skip
def test_damaged_texts_are_refused_in_a_line(tmp_path, small_ptb, changed, said):
    with pytest.raises(DataError, match=said) as refused:
        text.load("ptb", write_ptb(tmp_path, small_ptb, **changed))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ptb",), "ptb needs the folder of its files; Penn Treebank is licensed: get ptb.train"),
        (("ptb", "absent"), "no such folder: 'absent'; Penn Treebank is licensed"),
        (("ptb", "."), "neither ptb.train.txt nor ptb.train.txt.gz is in '.'"),
        (("ptp",), "unknown text 'ptp'; did you mean 'ptb'"),
        (("python-docs", "x"), "comes with Python and takes no path, got 'x'"),
    ],
)
def test_missing_texts_say_how_to_get_them(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=said):
        text.load(*arguments)


def test_a_damaged_archive_is_named(tmp_path, small_ptb):
    (write_ptb(tmp_path, small_ptb) / "ptb.test.txt.gz").write_bytes(b"no gzip at all")
    with pytest.raises(DataError, match=r"cannot read ptb .*gzip"):
        text.load("ptb", tmp_path)


def quickstart(**space):
    table = configuration.read("ptb-quickstart")
    table["space"] |= space
    return table


@pytest.mark.parametrize(
    ("options", "space", "said"),
    [
        ({}, {"text.vocabulary": 10_000}, "text.vocabulary may be 10000, but python-docs has 4000"),
        ({"tokens": 10**7}, {}, "evaluator.tokens is 10,000,000, but python-docs has"),
        ({"tokens": 2000}, {}, "train.words 35 is longer than the data: 2,000 words in 64 seq"),
        ({"dataset": "ptb"}, {}, "ptb needs the folder of its files"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_a_run(options, space, said):
    named = {"text.vocabulary": 4000, "train.batch": 64, "train.words": [16, 35]}
    with pytest.raises(ValueError, match=said):
        Language(**options).check(joint("recurrent").restrict(named | space))


def test_evaluators_know_their_families():
    complete = configuration.complete
    with pytest.raises(ValueError, match="'language' trains no networks 'cell'; known: recurrent"):
        complete({"space": {"network": "cell"}, "evaluator": {"name": "language"}})
    with pytest.raises(ValueError, match="no networks 'recurrent' to train on images"):
        complete({"space": {"network": "recurrent"}})
    with pytest.raises(ValueError, match=r"evaluator.epochs is 0; it must be at least 1"):
        complete(quickstart() | {"evaluator": {"name": "language", "epochs": 0}})


def test_rewards_take_a_number_over_perplexity():
    config = configuration.complete(quickstart())
    reward = configuration.make_reward(config)
    assert reward.goals == ("-perplexity", "-latency_s", "-energy_j")
    targets = list(config["reward"]["targets"].values())
    assert reward.of(np.array([[160.0, *targets]]))[0, 0] == pytest.approx(0.5)
    wrong = quickstart() | {"reward": {"name": "mnasnet", "quality": "80 over perplexity"}}
    with pytest.raises(ValueError, match="quality is a metric or a number over one, got '80 over"):
        configuration.complete(wrong)
    wrong = quickstart() | {"reward": {"name": "tunas"}}
    with pytest.raises(ValueError, match="unknown metric 'accuracy'"):
        configuration.complete(wrong)
