"""A small search of language models through the command: killed, resumed, reported, exported."""

import html
import json
import re
import signal
import subprocess

import keras
import numpy as np
import pytest
from test_end_to_end import command, nas_command, wait_until_told

import nas
from nas import text
from nas.export import export_keras

SMALL = [
    "ptb-quickstart", "--trials", "4", "--seed", "3", "--set", "evaluator.tokens=6000",
    "--set", "evaluator.epochs=2", "--set", "evaluator.final_epochs=1",
    "--set", 'rnn.cell=["gru", "dag"]', "--set", "dag.nodes=2", "--set", "rnn.units=64",
    "--set", "embed.width=64", "--set", "train.batch=32", "--set", "train.words=35",
    "--set", "train.samples=256", "--set", "early_stopping.epochs=[1]",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def finished(folder):
    """A small run, undisturbed, on two workers."""
    done = nas_command("search", *SMALL, "--run", folder / "a", "--workers", 2, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "a", done


def test_a_run_leaves_its_leaderboard_and_report(finished):
    path, done = finished
    assert re.search(r"test perplexity [\d,.]+ on [\d,]+ untouched test words", done.stdout)
    run = nas.Run(path)
    table = run.leaderboard()
    trained = [t for t in run.trials() if t.status == "complete" and t.repeats is None]
    assert len(trained) == 4 and all(t.metrics["perplexity"] > 1 for t in trained)
    assert {len(t.metrics["rungs"]) for t in trained} == {1}
    assert set(table["found"]) == {"search", "sweep"} and table["latency_s"].gt(0).all()
    (metrics, _) = next(iter(run.finals().values()))
    assert metrics["test_perplexity"] == table["test_perplexity"][0]
    page = (path / "report.html").read_text()
    said = html.unescape(re.sub(r"<[^>]*>", " ", page))
    for phrase in ("The recurrent cell", "What it writes", metrics["written"].split(" ")[0],
                   "test words that the search never saw", "Validation perplexity"):  # fmt: skip
        assert phrase in said
    shown = said[said.index("Search report") : said.index("How to get it again")]
    assert " image" not in shown.lower()


def test_a_killed_run_ends_as_the_undisturbed_one(folder, finished):
    path = folder / "b"
    process = subprocess.Popen(
        command("search", *SMALL, "--run", path, "--workers", 2), cwd=folder,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )  # fmt: skip
    wait_until_told(path, 2, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    last = nas_command("resume", path, cwd=folder)
    assert last.returncode == 0, last.stderr
    ours, theirs = (p / "leaderboard.csv" for p in (path, finished[0]))
    assert ours.read_bytes() == theirs.read_bytes()


def test_the_exported_model_has_the_perplexity_that_the_run_says(finished, folder):
    run = nas.Run(finished[0])
    trial, (metrics, _) = next(iter(run.finals().items()))
    model = keras.models.load_model(export_keras(run, trial, folder / "best.keras"))
    said = json.loads((folder / "best.json").read_text())
    held_out = text.load("python-docs")
    assert tuple(said["words"]) == held_out.words
    n = 50  # nas.language.SCORE_STREAMS
    words, there = text.streams(held_out.test, n, held_out.end)
    state = [keras.ops.zeros((n, *s.shape[1:])) for s in model.inputs[1:]]
    total = 0.0
    for before, after, real in zip(words[:-1], words[1:], there):
        scores, *state = model([keras.ops.convert_to_tensor(before), *state])
        scores = np.asarray(scores, np.float64)
        shifted = scores - scores.max(1, keepdims=True)
        losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(n), after]
        total += losses[real].sum()
    perplexity = np.exp(total / len(held_out.test))
    assert perplexity == pytest.approx(metrics["test_perplexity"], rel=1e-4)
    assert said["test_perplexity"] == metrics["test_perplexity"]
    kernels = {v.path for v in model.variables if v.name in ("kernel", "embeddings")}
    assert said["kernels"].keys() <= kernels
