"""Tables of measured designs: what they must hold, and whole searches on them."""

import gzip
import math
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import nas
from nas import cli, config, feasibility
from nas.evaluators.table import Table, TableError

SHARED = Path(__file__).parents[2] / "shared/data/nas_bench_201.csv.gz"
OPS, WIDTHS = ("conv", "pool", "skip"), (8, 16, 32)


def rows() -> list[dict]:
    """27 designs: accuracy and latency grow with the width; one accuracy was never measured."""
    found = []
    for a, b, width in product(OPS, OPS, WIDTHS):
        short = 30 + 5 * OPS.index(a) + 2 * OPS.index(b) + math.log2(width)
        found.append(
            {
                "arch": f"|{a}~0|+|{b}~1|",
                "width": width,
                "val": "" if (a, b, width) == ("pool", "skip", 8) else short,
                "test": short + 20 - OPS.index(b),
                "time": 1.5 * width,
                "latency_ms_phone": 0.1 * width * (1 + OPS.index(a)),
                "note": "text",
            }
        )
    return found


def write(path: Path, table: list[dict]) -> Path:
    text = "\n".join([",".join(table[0]), *(",".join(map(str, row.values())) for row in table)])
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


PATTERN = r"^\|(?P<edge0>\w+)~0\|\+\|(?P<edge1>\w+)~1\|$"
OPTIONS = {
    "decisions": ["arch", "width"],
    "patterns": {"arch": PATTERN},
    "costs": ["latency_*"],
    "fidelities": [
        {"accuracy": "0.01 * val", "seconds": "time", "cost": 1},
        {"test_accuracy": "0.01 * test", "cost": "time"},
    ],
}


@pytest.fixture
def path(tmp_path) -> Path:
    return write(tmp_path / "table.csv.gz", rows())


def test_columns_become_decisions_metrics_costs_and_fidelities(path):
    table = Table(path=str(path), **OPTIONS)
    assert table.space.names == ("arch.edge0", "arch.edge1", "width")
    assert [d.values for d in table.space.decisions] == [OPS, OPS, WIDTHS]
    assert table.metrics == ("accuracy", "seconds", "cost", "latency_ms_phone")
    assert table.final_metrics == ("test_accuracy", "cost")
    for row in rows():
        a, b = (part.split("~")[0] for part in row["arch"].strip("|").split("|+|"))
        choices = {"arch.edge0": a, "arch.edge1": b, "width": row["width"], "other": 3}
        if row["val"]:
            measured = table.evaluate(choices, seed=1)
            assert measured["accuracy"] == pytest.approx(row["val"] / 100)
            assert (measured["seconds"], measured["cost"]) == (row["time"], 1)
        [(known, reason)] = table.price([choices])
        assert known == {"latency_ms_phone": row["latency_ms_phone"]} and reason is None
        final = table.evaluate(choices, seed=1, fidelity=1)
        assert final == pytest.approx({"test_accuracy": row["test"] / 100, "cost": row["time"]})


def test_without_fidelities_all_numbers_are_metrics(path):
    table = Table(path=str(path), decisions=["arch", "width"], patterns={"arch": PATTERN})
    assert table.metrics == ("val", "test", "time", "latency_ms_phone")
    assert table.final_metrics == ()


def long_rows() -> list[dict]:
    """Each design at 1 and at 9 epochs; the latency is the same at both."""
    return [
        {"depth": d, "op": op, "epochs": e, "accuracy": d * e / 100 + (op == "conv") / 50,
         "latency_ms": 2.0 * d}
        for e in (9, 1) for d in (1, 2, 3) for op in ("conv", "pool")
    ]  # fmt: skip


LONG = {"decisions": ["depth", "op"], "fidelity": "epochs", "costs": ["latency_*"]}


def test_a_row_a_design_and_fidelity(tmp_path):
    table = Table(path=str(write(tmp_path / "long.csv", long_rows())), **LONG)
    assert table.space.n_designs == 6 and table.metrics == ("cost", "accuracy", "latency_ms")
    for row in long_rows():
        design = {"depth": row["depth"], "op": row["op"]}
        found = table.evaluate(design, seed=0, fidelity=0 if row["epochs"] == 1 else 1)
        assert found == pytest.approx({"cost": row["epochs"], "accuracy": row["accuracy"]})
        assert table.price([design])[0][0] == {"latency_ms": row["latency_ms"]}
    named = [{"accuracy": "accuracy@1", "cost": 1}, {"test": "0.5 * accuracy@9", "cost": 9}]
    table = Table(path=table.path, fidelities=named, **LONG)
    assert table.final_metrics == ("test", "cost")
    assert table.evaluate({"depth": 2, "op": "pool"}, seed=0, fidelity=1)["test"] == 0.09


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:-1], "lacks 1 of the 12 rows of 6 designs at epochs 1, 9"),
        (lambda t: t + [t[0]], "row 13 is the same design as one before it, at the same epochs"),
        (lambda t: [r for r in t if (r["depth"], r["op"]) != (2, "conv")],
         "lacks 1 of the 6 designs of its space, the first depth = 2, op = conv"),
        (lambda t: [{**r, "epochs": "long" if r["epochs"] > 1 else "short"} for r in t],
         "its values .* are no numbers"),
        (lambda t: [{"d": r["depth"], **r} for r in t if r.pop("epochs")], "no column 'epochs'"),
    ],
)  # fmt: skip
def test_a_long_table_that_is_not_whole_is_refused(tmp_path, change, message):
    path = write(tmp_path / "long.csv", change(long_rows()))
    with pytest.raises(TableError, match=message):
        Table(path=str(path), **LONG)


def test_columns_of_a_narrower_space(path):
    table = Table(path=str(path), **OPTIONS)
    narrow = table.space.restrict({"width": [16, 32], "arch.edge0": ["pool", "skip"]})
    designs = narrow.enumerate()
    columns = table.columns(narrow, designs)
    for i, row in enumerate(designs):
        expected = table.evaluate(narrow.decode(row), seed=0)
        assert columns["accuracy"][i] == pytest.approx(expected["accuracy"], nan_ok=True)


def test_parquet_is_read_where_pyarrow_is(tmp_path):
    pandas, _ = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    frame = pandas.DataFrame(rows()).assign(val=lambda f: pandas.to_numeric(f["val"]))
    frame.to_parquet(tmp_path / "table.parquet")
    table = Table(path=str(tmp_path / "table.parquet"), **OPTIONS)
    assert table.space.n_designs == 27


def test_parquet_without_pyarrow_is_said(tmp_path, monkeypatch):
    import pandas

    def missing(path):
        raise ImportError("no pyarrow")

    monkeypatch.setattr(pandas, "read_parquet", missing)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(TableError, match="needs 'pip install pyarrow'"):
        Table(path=str(tmp_path / "t.parquet"), decisions=["a"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:-2], r"lacks 2 of the 27 designs of its space, the first arch.edge0 = skip"),
        (lambda t: t + [t[3]], "rows 4 and 28 are the same design"),
        (lambda t: [{**r, "width": "" if i == 4 else r["width"]} for i, r in enumerate(t)],
         "row 5 has no value for the decision 'width'"),
        (lambda t: [{**r, "arch": "?" if i == 4 else r["arch"]} for i, r in enumerate(t)],
         r"'\?' in row 5 does not match evaluator.patterns.arch"),
        (lambda t: [{k: v for k, v in r.items() if k != "width"} for r in t],
         "has no column 'width'"),
        (lambda t: [{k: v for k, v in r.items() if k != "val"} for r in t],
         "the metric 'accuracy': .* has no column of that name 'val'"),
        (lambda t: [{**r, "val": "good"} for r in t], "has no column of numbers 'val'"),
        (lambda t: [{k: v for k, v in r.items() if k[:3] != "lat"} for r in t],
         r"evaluator.costs: no column of numbers .* is called 'latency_\*'"),
    ],
)  # fmt: skip
def test_a_table_that_is_not_whole_is_refused(tmp_path, change, message):
    path = write(tmp_path / "broken.csv", change(rows()))
    with pytest.raises(TableError, match=message):
        Table(path=str(path), **OPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": ""}, "evaluator.path is empty; .* --table FILE"),
        ({"path": "nowhere.csv"}, "no table nowhere.csv"),
        ({"decisions": []}, "evaluator.decisions is empty"),
        ({"decisions": ["width"]}, "evaluator.patterns has 'arch', which is not among"),
        ({"decisions": ["arch", "widht"]}, "no column 'widht'; did you mean 'width'"),
        ({"patterns": {"arch": "("}}, "is no regular expression"),
        ({"patterns": {"arch": "conv"}}, "has no named groups"),
        ({"fidelities": [{"accuracy": "half * val"}]}, 'is a column or "0.01 \\* column"'),
        ({"fidelities": [{"cost": 1}], "costs": []}, "no column of numbers besides"),
        ({"decisions": ["arch", "width", "time", "val", "test"]}, "no value|rows for the"),
    ],
)
def test_options_that_do_not_fit_are_refused(path, options, message):
    with pytest.raises(TableError, match=message):
        Table(**{"path": str(path), **OPTIONS, **options})


def test_what_is_no_table_is_refused(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\x00\xff\xfe")
    (tmp_path / "e.csv").write_text("")
    (tmp_path / "h.csv").write_text("a,b\n")
    (tmp_path / "z.csv.gz").write_bytes(b"not gzip")
    for name in ("t.csv", "e.csv", "h.csv", "z.csv.gz"):
        with pytest.raises(TableError, match=name.replace(".", r"\.")):
            Table(path=str(tmp_path / name), decisions=["a"])


# -- searches --------------------------------------------------------------------------------------


def settings(path, **more) -> dict:
    return {
        "space": {"network": "table"},
        "evaluator": {"name": "table", "path": str(path), **OPTIONS},
        "reward": {"name": "pareto", "objectives": ["accuracy", "-latency_ms_phone"]},
        "trials": 20,
        "in_flight": 1,
        "final": {"top": 2},
        **more,
    }


def toml(folder: Path, table: dict) -> str:
    import tomli_w

    (folder / "own.toml").write_text(tomli_w.dumps(table))
    return str(folder / "own.toml")


def command(capsys, *arguments):
    try:
        cli.main(list(map(str, arguments)))
        status = 0
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_search_from_beginning_to_report(tmp_path, path, capsys):
    own = toml(tmp_path, settings(path))
    status, out, err = command(capsys, "search", own, "--run", tmp_path / "r", "--seed", 1)
    assert status == 0, err
    assert "test accuracy" in out and "latency (phone) ms" in out and "report:" in out
    run = nas.Run(tmp_path / "r")
    board = run.leaderboard()
    trained = [t for t in run.trials() if t.repeats is None]
    assert len(trained) == 20 and sum(t.status == "failed" for t in trained) <= 1
    assert set(board["trial"]) == {t.id for t in trained if t.status == "complete"}
    assert (board["found"] == "search").all() and "area_mm2" not in board
    assert board["test_accuracy"].notna().sum() == 2 == len(run.finals())
    best = board.iloc[0]
    assert best["accuracy"] == max(t.metrics["accuracy"] for t in trained if t.metrics["accuracy"])
    _, out, _ = command(capsys, "status", tmp_path / "r")
    assert "20 of 20 trials" in out and "2 of 2 final trainings" in out and "done" in out
    page = run.dir.report.read_text()
    shown = page.split("<article>")[1].split("<script>")[0]
    for absent in (">nan", ">None", "accelerators", "bits w/a", "mm²"):
        assert absent not in shown
    assert "looked up" in page and "nas export" not in page
    status, _, err = command(capsys, "export", tmp_path / "r", "--best", "--to", "x.keras")
    assert status == 2 and "there is none to export" in err
    status, out, err = command(capsys, "report", tmp_path / "r", "--html", tmp_path / "p.html")
    assert status == 0 and (tmp_path / "p.html").exists()


def test_a_resumed_search_is_the_undisturbed_one(tmp_path, path):
    whole = nas.search(toml(tmp_path, settings(path)), run_dir=tmp_path / "a", progress=False)
    part = nas.search(
        toml(tmp_path, settings(path, trials=8)), run_dir=tmp_path / "b", progress=False
    )
    nas.resume(part.dir.path, trials=20, progress=False)

    def trials_of(run):
        rows = nas.Run(run.dir.path).trials()
        return [(t.proposal.encoding.tolist(), t.metrics, t.status) for t in rows]

    assert trials_of(part) == trials_of(whole)


def test_one_goal_and_an_empty_cell(tmp_path, path):
    """A design that was never measured fails its trial and nothing else."""
    table = settings(path, trials=27, reward={"name": "pareto", "objectives": ["accuracy"]})
    table["controller"] = {"name": "random"}
    run = nas.search(toml(tmp_path, table), run_dir=tmp_path / "r", progress=False)
    failed = [t for t in run.trials() if t.status == "failed"]
    assert [t.error for t in failed] == ["the accuracy is nan"]
    assert len(run.leaderboard()) == 26


def test_constraints_on_known_costs_save_look_ups(tmp_path, path):
    table = settings(
        path, trials=9, constraints=["latency_ms_phone <= 2"], controller={"name": "evolution"}
    )
    run = nas.search(toml(tmp_path, table), run_dir=tmp_path / "r", progress=False)
    infeasible = [t for t in run.trials() if t.status == "infeasible"]
    assert infeasible and all("accuracy" not in t.metrics for t in infeasible)
    assert (run.leaderboard()["latency_ms_phone"] <= 2).all()


def test_known_costs_are_known_to_the_controller(tmp_path, path):
    table = settings(path, constraints=["latency_ms_phone <= 4"], controller={"name": "surrogate"})
    whole = config.complete(table)
    outlook, space = config.make_outlook(whole), config.make_space(whole)
    designs, known = outlook.variants(space.enumerate())
    assert designs.shape == (27, 1, 3) and known.shape == (27, 1, 2)
    latencies = Table(path=str(path), **OPTIONS).columns(space, designs[:, 0])["latency_ms_phone"]
    allowed = latencies <= 4
    assert known[allowed, 0, 0].tolist() == latencies[allowed].tolist()
    assert np.isnan(known[~allowed]).all() and 0 < allowed.sum() < 27
    objectives = outlook.objectives(np.full((1, 1), 0.5), known[allowed])
    assert (objectives[:, 0, 0] == 0.5).all()
    assert (objectives[:, 0, 1] == -latencies[allowed]).all()
    run = nas.search(
        toml(tmp_path, table), run_dir=tmp_path / "r", trials=int(allowed.sum()), progress=False
    )
    statuses = {t.status for t in run.trials() if t.repeats is None}
    assert "infeasible" not in statuses, "none is proposed that is known to break a constraint"


def test_a_reward_of_costs_alone_leaves_nothing_to_learn(path):
    objectives = ["-latency_ms_phone"]
    whole = config.complete(settings(path, reward={"name": "pareto", "objectives": objectives}))
    assert config.make_outlook(whole) is None


MISTAKES = [
    ({"reward": {"name": "pareto", "objectives": ["acuracy"]}}, "did you mean 'accuracy'"),
    ({"reward": {"name": "mnasnet"}}, "reward 'mnasnet': unknown metric 'latency_s'"),
    ({"constraints": ["area_mm2 <= 3"]}, "unknown metric 'area_mm2'"),
    ({"constraints": ["accuracy >= 0.9"]}, "nothing satisfies the constraint 'accuracy >= 0.9'"),
    ({"constraints": ["accuracy >= 0.44", "latency_ms_phone <= 1"]}, "at once; loosen one"),
    ({"trials": 28}, "trials is 28, but the space has only 27 designs"),
    ({"space": {"network": "table", "arch.edge0": "conv", "arch.edge1": "pool", "width": 8}},
     "leaves nothing to search"),
    ({"space": {"network": "table", "arch.edge0": "cnv"}}, "'cnv' is not one of"),
    ({"space": {"network": "cell"}}, "a table is both"),
    ({"evaluator": {"name": "proxy"}}, "a table is both"),
    ({"space": {"network": "cell", "accelerators": "systolik"}, "evaluator": {"name": "proxy"}},
     "unknown accelerators 'systolik'; did you mean 'systolic'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_mistakes_are_one_line_and_write_nothing(tmp_path, path, capsys, change, message):
    own = toml(tmp_path, settings(path, **change))
    before = sorted(tmp_path.rglob("*"))
    status, out, err = command(capsys, "search", own, "--run", tmp_path / "r")
    assert status == 2 and not out and message in err and err.count("\n") == 1, err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ("area_mm2 <= 0.001", "nothing satisfies the constraint 'area_mm2 <= 0.001': area_mm2 is"),
        ("accuracy >= 1.5", "accuracy is from 0 to 1"),
        ("latency_s <= -1", "latency_s is from 0 to inf"),
    ],
)
def test_hardware_constraints_that_nothing_satisfies(constraint, message):
    table = config.read("quickstart") | {"constraints": [constraint]}
    with pytest.raises(ValueError, match=message):
        feasibility.check(config.complete(table))


@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is not there")
def test_nas_bench_201_in_seconds(tmp_path):
    begun = time.process_time()
    run = nas.search("nasbench201", data=SHARED, run_dir=tmp_path / "r", trials=1000, seed=1,
                     controller={"name": "evolution"}, progress=False)  # fmt: skip
    assert time.process_time() - begun < 20
    board = run.leaderboard()
    assert run.space.n_designs == 5**6 == 15_625
    best = board["accuracy"].idxmax()
    assert board["accuracy"][best] > 0.84
    finals = [metrics["test_accuracy"] for metrics, _ in run.finals().values()]
    assert len(finals) == 5 and max(finals) > 0.935
    assert np.isfinite(board["latency_ms_pixel3"]).all()
