"""The comparison of a found cell with an LSTM: fair, decided by validation, gone on with."""

import argparse
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from test_language import PLAIN, designs, markov_text, recipe

from benchmarks import language_search
from nas.language import TextTrainer
from search_spaces import recurrent

FOUND = designs(1, seed=2, **{"rnn.layers": 1})[0]
LSTM = designs(1, seed=3, **PLAIN)[2]


@pytest.fixture
def trainings(monkeypatch):
    """What was trained, (units, dropout, seed, epochs), instead of training it: small shares of
    dropout are best on validation words, and worst on test words."""
    seen = []

    def final_scores(name, data, choices, cache, epochs, seed, partial):
        share = choices["train.dropout"]
        seen.append((choices["rnn.units"], share, seed, epochs))
        return {"validation": 100 + share + seed, "test": 200 - share + 10 * seed,
                "epochs": epochs, "cpu_s": 1.0}  # fmt: skip

    def searched(folder, hours, preset, settings, **given):
        return SimpleNamespace(best=LSTM if "reward" in settings else FOUND, settings=settings)

    def pool(n, context):
        return ThreadPoolExecutor(1)

    monkeypatch.setattr(language_search, "final_scores", final_scores)
    monkeypatch.setattr(language_search, "ProcessPoolExecutor", pool)
    monkeypatch.setattr(language_search, "searched", searched)
    monkeypatch.setattr(language_search, "best_of", lambda run: run.best)
    monkeypatch.setattr(language_search, "words_per_s", lambda found, choices: 10.0)
    return seen


def test_both_are_as_large_tried_as_often_and_chosen_by_validation(
    trainings, tmp_path, capsys, monkeypatch
):
    found = SimpleNamespace(name="python-docs", train=np.zeros(1000, np.int32))
    options = argparse.Namespace(data="python-docs", to=str(tmp_path / "new"), hours=1.0,
                                 train_hours=1.0, trials=10, params=10**6)  # fmt: skip
    rows = []
    monkeypatch.setattr(language_search, "show", lambda *row: rows.append(row))
    for _ in range(2):  # the second time everything is known
        language_search.show_search(found, options)
    n = len(language_search.DROPOUTS) + language_search.SEEDS - 1
    assert len(trainings) == 2 * n and len(rows) == 2 * (2 * n + 1)
    assert {epochs for *_, epochs in trainings} == {int(3600 * 10.0 / 1000 / n)}
    least = min(language_search.DROPOUTS)
    assert [share for _, share, seed, _ in trainings if seed] == [least] * 4
    sizes = [int(row[1].replace(",", "")) for row in rows if row[0] != "cell"]
    assert max(sizes) < 1.1 * min(sizes), "as near as steps of four units come"
    assert language_search.n_params(LSTM) in sizes, "the peer is as its search found it"
    said = capsys.readouterr().out
    assert f"found, 3 seeds: test {210 - least:.2f} +- 10.00" in said
    options.hours = 2.0
    with pytest.raises(ValueError, match="name another"):
        language_search.show_search(found, options)


def test_a_cache_can_be_added_to_trained_weights():
    trainer, tokens = TextTrainer(), markov_text(300)
    plain, cached = LSTM | {"memory.kind": "none"}, LSTM | language_search.CACHE
    trained, again = (
        trainer.fit(recurrent.network(choices), tokens, recipe(32), seed=0)
        for choices in (plain, cached)
    )
    added = language_search.rescored(trainer, trained, cached)
    assert added.score(tokens, 0) == again.score(tokens, 0) != trained.score(tokens, 0)
    taken = language_search.rescored(trainer, again, plain)
    assert taken.score(tokens, 0) == trained.score(tokens, 0)


def test_an_hour_is_of_trainings_not_of_the_clock(monkeypatch, tmp_path):
    """What was searched before an interruption counts; what is left is searched."""
    seconds, asked = [], []

    def trial():
        status = language_search.Status.COMPLETE
        return SimpleNamespace(status=status, repeats=None, metrics={"cpu_seconds": seconds[-1]})

    class Run:
        def __init__(self, path=None):
            pass

        def trials(self):
            return [trial() for _ in seconds]

    def resume(folder, hours):
        asked.append(hours)
        seconds.append(1800.0)
        return Run()

    (tmp_path / "config.toml").touch()
    monkeypatch.setattr(language_search.nas, "Run", Run)
    monkeypatch.setattr(language_search.nas, "resume", resume)
    language_search.searched(tmp_path, 1.0, "ptb")
    assert asked == [1.0, 0.75, 0.5, 0.25]
