"""Real runs of the preset `recipes`, with a teacher and early stopping."""

import keras
import pytest

import nas
from nas import cli, data
from nas.early_stopping import stopped
from nas.export import export_keras
from nas.trial import Status

SETTINGS = {
    "space": {
        "train.batch": 32,
        "train.precision": ["float32", "float16"],
        "bits.method": ["lsq", "dorefa", "post_training"],
        "image.normalization": "image",
        "distill.weight": [0, 0.5],
        "distill.temperature": 4,
    },
    "evaluator": {"images": 320, "epochs": 3, "final_epochs": 1, "teacher_epochs": 1},
    "early_stopping": {"epochs": [1, 2], "reduction": 2},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [
        nas.search("recipes", run_dir=folder / str(workers), trials=8, workers=workers, seed=2,
                   settings=SETTINGS, progress=False)
        for workers in (1, 2)
    ]  # fmt: skip


def own(run):
    return [t for t in run.trials() if t.status is Status.COMPLETE and t.repeats is None]


def test_workers_change_nothing_and_share_one_teacher(runs):
    one, two = (run.dir.leaderboard.read_bytes() for run in runs)
    assert one == two
    ends = [[(t.id, t.metrics.get("stopped_at"), t.metrics["rungs"]) for t in own(run)]
            for run in runs]  # fmt: skip
    assert ends[0] == ends[1]
    for run in runs:
        assert [p.name for p in run.dir.checkpoints.glob("teacher-*.h5")] == ["teacher-16.h5"]


def test_what_was_stopped_is_on_no_leaderboard(runs, capsys):
    run = runs[0]
    ended = {t.id for t in own(run) if stopped(t)}
    assert ended and len(ended) < 8
    table = run.leaderboard()
    assert set(table["trial"]) == {t.id for t in own(run)} - ended
    assert set(run.finals()) <= set(table["trial"])
    cli.main(["status", str(run.dir.path)])
    said = capsys.readouterr().out
    assert "8 trained, 8 told, 0 running, 0 failed" in said
    assert f"{len(ended)} of the trained stopped early" in said
    report = run.dir.report.read_text()
    assert "stopped early" in report


def test_a_resumed_run_keeps_its_end(runs):
    before = runs[1].dir.leaderboard.read_bytes()
    nas.resume(runs[1].dir.path, progress=False)
    assert runs[1].dir.leaderboard.read_bytes() == before


def test_the_exported_model_normalizes_each_image(runs, tmp_path):
    trial, (metrics, _) = next(iter(runs[0].finals().items()))
    model = keras.models.load_model(export_keras(runs[0], trial, tmp_path / "best.keras"))
    test = data.load("cifar10-sample").test
    right = (model.predict(data.resize(test.x, 16), verbose=0).argmax(-1) == test.y).mean()
    assert right == pytest.approx(metrics["test_accuracy"], abs=3 / len(test))
