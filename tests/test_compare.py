"""The comparison of controllers: its measures, its files, and that it is fair and repeatable."""

import json
import re

import numpy as np
import pytest
from test_table import command, rows, settings, toml, write

from nas import reward
from nas.compare import band, compare, measures, picked, trainings, truth_of
from nas.pareto import hypervolume
from nas.trial import Proposal, Status, Trial

JUDGE = reward.make("pareto", known=("a", "b"), objectives=["a", "-b"])


def trial(a, b, status=Status.COMPLETE, repeats=None) -> Trial:
    return Trial(0, Proposal(np.zeros(1, int)), 0, status, {"a": a, "b": b}, repeats=repeats)


FOUND = [trial(0.2, 3), trial(np.nan, 1, Status.FAILED), trial(0.5, 4), trial(0.4, 5), trial(1, 2)]


def test_measures_by_hand():
    """The true front is (1, 2) and (0.2, 1): its reference lies a tenth of the extent outside."""
    truth = truth_of(JUDGE, [*FOUND, trial(0.2, 1)])
    assert truth.score == 1 and truth.reference == pytest.approx([0.12, -2.1])
    whole = (1 - 0.12) * 0.1 + (0.2 - 0.12) * 1.0
    assert truth.volume == pytest.approx(whole)
    found = measures(JUDGE, [[each] for each in FOUND], truth)
    assert found["regret"] == pytest.approx([0.8, 0.8, 0.5, 0.5, 0])
    assert found["hypervolume"] == pytest.approx([0, 0, 0, 0, 0.88 * 0.1 / whole])


def test_several_designs_a_training_count_together():
    truth = truth_of(JUDGE, FOUND)
    together = measures(JUDGE, [FOUND[:3], FOUND[3:]], truth)
    apart = measures(JUDGE, [[each] for each in FOUND], truth)
    for measure in together:
        assert together[measure] == [apart[measure][2], apart[measure][4]]


def test_hypervolume_is_that_of_the_points_so_far():
    rng = np.random.default_rng(0)
    found = [trial(*values) for values in rng.random((40, 2))]
    truth = truth_of(JUDGE, found)
    shares = measures(JUDGE, [[each] for each in found], truth)["hypervolume"]
    points = JUDGE(found)
    for k in (1, 7, 40):
        expected = hypervolume(points[:k], truth.reference) / truth.volume
        assert shares[k - 1] == pytest.approx(expected)
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1)


def test_picks_and_what_is_a_training():
    assert [p and p.metrics["a"] for p in picked(JUDGE, FOUND[1:])] == [None, 0.5, 0.5, 1]
    others = [trial(1, 1, Status.INFEASIBLE), trial(1, 1, repeats=0)]
    assert trainings(FOUND + others) == FOUND


def test_bands_are_students():
    middle, half = band(np.array([[1.0, 0.0], [3.0, 0.0]]))
    # two seeds, standard error 1, and 12.706 of Student's t for one degree of freedom
    assert middle.tolist() == [2, 0] and half == pytest.approx([12.706, 0], abs=1e-3)
    assert np.isnan(band(np.ones((1, 2)))[1]).all()


def test_no_design_to_compare_with_is_said():
    with pytest.raises(ValueError, match="no design was evaluated"):
        truth_of(JUDGE, FOUND[1:2])


# -- whole comparisons -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("compare")
    return toml(folder, settings(write(folder / "table.csv", rows())))


def test_a_comparison_on_a_table(own, tmp_path, capsys):
    arguments = ["compare", own, "--controllers", "random,evolution", "--seeds", 3,
                 "--budgets", "5,15", "--workers", 2]  # fmt: skip
    status, out, err = command(capsys, *arguments, "--to", tmp_path / "a")
    assert status == 0, err
    assert out.count("after 5") == 3 and out.count("evolution") == 3 and "+-" in out
    import pandas

    table = pandas.read_csv(tmp_path / "a/comparison.csv")
    assert len(table) == 2 * 3 * 15
    assert table.groupby(["controller", "seed"])["trainings"].max().eq(15).all()
    for _, one in table.groupby(["controller", "seed"]):
        assert one["regret"].diff().max() <= 0 <= one["regret"].min()
        assert one["hypervolume"].diff().min() >= 0 and one["hypervolume"].max() <= 1 + 1e-9
    assert table["test accuracy of the pick"].max() <= 0.68
    page = (tmp_path / "a/comparison.html").read_text()
    assert page.count('<script type="application/json"') == 3 and "95 % confidence" in page
    drawn = [json.loads(data) for data in re.findall(r'/json">(.*?)</script>', page)]
    assert all(0 <= y <= 1 for each in drawn for trace in each["data"] for y in trace["y"])
    assert re.search(r"random +\d+\.\d\d \+- \d+\.\d\d %", out), "shares are in per cent"
    assert command(capsys, *arguments, "--to", tmp_path / "b")[0] == 0
    first, again = (tmp_path / f"{name}/comparison.csv" for name in "ab")
    assert first.read_bytes() == again.read_bytes(), "seeds decide"


def test_exhausting_the_space_reaches_the_truth(own, tmp_path):
    found = compare(own, ["random"], seeds=2, budgets=[27], to=tmp_path, progress=False)
    assert found.curves["regret"]["random"][:, -1] == pytest.approx([0, 0])
    assert found.curves["hypervolume"]["random"][:, -1] == pytest.approx([1, 1])


def test_labels_with_options(own, tmp_path):
    settings = {
        "small": {"name": "evolution", "population": 4, "sample": 2},
        "large": {"name": "evolution", "population": 12},
    }
    found = compare(own, settings, seeds=2, budgets=[20], to=tmp_path, progress=False)
    curves = found.curves["hypervolume"]
    assert list(curves) == ["small", "large"]
    assert (curves["small"] != curves["large"]).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--controllers", "evolutoin"], "did you mean 'evolution'"),
        (["--controllers", ","], "name at least one controller"),
        (["--controllers", "policy_gradient"], "choose the reward"),
        (["--controllers", "random", "--seeds", "0"], "seeds must be at least 1; got 0"),
        (["--controllers", "random", "--budgets", "0,5"], "budgets are at least 1"),
        (["--controllers", "random", "--budgets", "99"], "the space has only 27 designs"),
        (["--controllers", "random", "--table", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_mistakes_write_nothing(own, tmp_path, capsys, arguments, message):
    status, out, err = command(capsys, "compare", own, *arguments, "--to", tmp_path / "x")
    assert status == 2 and not out and message in err and err.count("\n") == 1, err
    assert not (tmp_path / "x").exists()


def test_a_comparison_of_trainings_is_of_runs_that_go_on(tmp_path):
    small = ["evaluator.images=300", "evaluator.epochs=1", "cell.width=8", "cell.depth=1",
             "train.batch=64", "in_flight=2"]  # fmt: skip
    options = {"seeds": 1, "to": tmp_path, "assignments": small, "workers": 1, "progress": False}
    long = compare("quickstart", ["random"], budgets=[2], **options)
    assert (tmp_path / "random/seed-0/leaderboard.csv").exists()
    assert long.curves["hypervolume"]["random"].shape == (1, 2)
    short = compare("quickstart", ["random"], budgets=[1], **options)  # nothing is trained again
    assert short.curves["hypervolume"]["random"].tolist() == [[1.0]]
    options["assignments"] = [*small, "train.batch=128"]
    with pytest.raises(ValueError, match="is a run with other settings"):
        compare("quickstart", ["random"], budgets=[2], **options)
