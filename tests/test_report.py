"""The report: what it shows, that it loads and runs nothing foreign, and runs in every state."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import tomli_w

from nas import config as configuration
from nas import pareto, words
from nas.pricing import price_designs
from nas.report import drawing, explain, report
from nas.report.charts import _ticks
from nas.report.course import hypervolumes
from nas.report.findings import gather
from nas.report.page import Html, escaped, table, tag
from nas.report.results import text_table
from nas.reward import violations
from nas.run import Run
from nas.run_dir import RunDir
from nas.store import Store
from nas.trial import Proposal, Status, Trial
from nas.words import MINUS, NONE, TIMES
from search_spaces import FAMILIES, hardware, precision

SPACE = {
    "network": "cell",
    "cell.width": [4, 8],
    "cell.depth": [1, 2],
    "cell.resolution": 16,
    "hw.rows": [8, 16],
    "hw.columns": [8, 16],
    "hw.multiplier": ["fixed16", "composable"],
    "hw.sram_input_kib": [64, 256],
    "hw.sram_weight_kib": 64,
    "hw.sram_output_kib": 64,
    "hw.bandwidth_gbps": [4, 16],
    "hw.clock_mhz": [200, 400],
    "bits.weights.stage0": [4, 8],
    "bits.activations.stage0": [4, 8],
}
PARETO = {"name": "pareto", "objectives": ["accuracy", "-latency_s", "-energy_j"]}
ATTACK = "</script></pre><script>alert(1)</script><img src=x onerror=alert(2)>'\"&"


def begin(path, **settings) -> Run:
    """A run in which nothing has happened yet."""
    config = configuration.complete({"preset": "test", "space": SPACE, **settings})
    run_dir = RunDir(path)
    run_dir.path.mkdir()
    Store(run_dir.store, create=True).close()
    run_dir.create(tomli_w.dumps({**config, "versions": {"numpy": "0.0"}}))
    return Run(path)


def training(accuracy: float, **more) -> dict:
    """The metrics of a training, its loss lost."""
    curve = [{"epoch": 1, "accuracy": accuracy / 2}, {"epoch": 2, "accuracy": accuracy}]
    nan = float("nan")
    lost = {"loss": nan, "train_loss": nan}
    return {"accuracy": accuracy, **lost, "seconds": 3.0, "curve": curve, **more}


def outcomes(run: Run, n: int, error: str) -> list[Trial]:
    """`n` trials, truly priced: what breaks a constraint is infeasible, of the others every third
    failed; and made-up accuracies. Then one that repeats the first trained, and an open one."""
    rng = np.random.default_rng(3)
    encodings = run.space.sample(n, rng)
    priced = price_designs("cell", [run.space.decode(row) for row in encodings])
    trials = []
    for i, (encoding, (metrics, reason)) in enumerate(zip(encodings, priced, strict=True)):
        trial = Trial(i, Proposal(encoding), i, Status.COMPLETE, metrics)
        broken = [reason] if reason else violations(run.constraints, metrics)
        if broken:
            trial.status, trial.error = Status.INFEASIBLE, broken[0]
        elif i % 3 == 1:
            trial.status, trial.error = Status.FAILED, error
        else:
            trial.metrics |= training(float(rng.uniform(0.2, 0.6)))
        trials.append(trial)
    first = next(trial for trial in trials if trial.status is Status.COMPLETE)
    repeat = Trial(n, first.proposal, n, Status.COMPLETE, first.metrics, None, first.id)
    return [*trials, repeat, Trial(n + 1, Proposal(encodings[-1]), n + 1)]


def fill(run: Run, n: int = 12, *, final: bool = True, error: str = "it broke") -> Run:
    """The run with made-up outcomes, and a final training of its best design."""
    store = Store(run.dir.store)
    for trial in outcomes(run, n, error):
        store.insert(trial)
    if final:
        best = int(run.leaderboard()["trial"].iloc[0])
        longer = training(0.7, test_accuracy=0.64, n_test=900, epochs=9)
        store.save_final(best, longer, "best.weights.h5")
    store.close()
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A finished run under a scalar reward."""
    return fill(begin(tmp_path_factory.mktemp("runs") / "first"))


@pytest.fixture(scope="module")
def page(run) -> str:
    return report([run])


def content(page: str) -> str:
    """The page without its two scripts, whose text is ours and Plotly's."""
    return re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)


def text(page: str) -> str:
    """What a reader sees, without the charts' data."""
    visible = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", page, flags=re.DOTALL)
    plain = html.unescape(re.sub(r"<[^>]+>", " ", visible)).replace(words.SPACE, " ")
    return " ".join(plain.split())


def charts(page: str) -> list[dict]:
    found = re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    return [json.loads(data) for data in found]


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


CHAPTERS = ["The front", "The best design", "The leaderboard", "The search", "How to get it again"]


# -- what it shows ---------------------------------------------------------------------------------


def test_chapters_in_order(page):
    assert headings(page) == CHAPTERS


def test_summary_counts_what_was_done(run, page):
    found = gather(run)
    n = len(found.trained)
    pairs = n * run.sweep.n_accelerators
    assert f"{n} designs of {words.power(run.space.n_designs)}".replace(words.SPACE, " ") in text(
        page
    )
    assert f"{run.sweep.n_accelerators:,} accelerators of the space: {pairs:,} pairs" in text(page)
    # 0.64 of 900: the standard error is sqrt(0.64 x 0.36 / 900) = 1.6 points
    assert "reaches 64.0 % (± 1.6) on 900 test images that the search never saw" in text(page)


def test_counts_of_outcomes_and_reasons(run, page):
    trials = run.trials()
    n_failed = sum(t.status is Status.FAILED for t in trials)
    n_trained = len(gather(run).trained)
    assert n_trained + n_failed + 3 == len(trials)
    assert (
        f"Of {len(trials)} proposals by the controller “surrogate”, {n_trained} were trained, "
        f"1 was infeasible, {n_failed} failed, 1 repeated an earlier one and 1 is "
        "still open."
    ) in text(page)
    assert f"{n_failed} failed it broke" in text(page)


def test_front_chart_holds_every_row_and_marks_the_best(run, page):
    board = run.leaderboard()
    traces = {trace["name"]: trace for trace in charts(page)[0]["data"] if trace.get("hovertext")}
    assert set(traces) == {"found by the sweep", "as the search proposed it"}
    hovers = [hover for trace in traces.values() for hover in trace["hovertext"]]
    assert len(hovers) == len(board)
    assert all("bits w/a" in hover and "MHz" in hover and "SRAM" in hover for hover in hovers)
    [best] = [trace for trace in charts(page)[0]["data"] if trace["name"] == "best design"]
    assert best["x"] == [board["latency_s"].iloc[0]]
    assert best["y"] == [board["accuracy"].iloc[0]]


def test_front_line_is_the_best_accuracy_within_each_latency(run, page):
    board = run.leaderboard()
    [line] = [trace for trace in charts(page)[0]["data"] if trace["name"] == "front"]
    for x, y in zip(line["x"], line["y"], strict=True):
        assert y == board["accuracy"][board["latency_s"] <= x].max()


def test_cheaper_designs_nearly_as_good_are_offered(run, page):
    board = run.leaderboard()
    section = page.split("What could be chosen instead")[1].split("</table>")[0]
    for metric in ("latency_s", "energy_j", "area_mm2"):
        for points in (1, 5):
            near = board[board["accuracy"] >= board["accuracy"].max() - points / 100]
            trials = near["trial"][near[metric] == near[metric].min()].astype(str)
            rows = [r for r in section.split("<tr>") if f"least {words.label(metric)} within" in r]
            assert any(f"<td>{trial}</td>" in row for trial in trials for row in rows)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (33.0, 40.0, [34, 36, 38, 40]),
        (0.3, 0.95, [0.4, 0.6, 0.8]),
        (5.5, 60.0, [10, 20, 50]),
        (1.6e-5, 7e-3, [2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3]),
        (1e-6, 1.0, [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1]),
        (3.0, 3.0, [3]),
    ],
)
def test_ticks_are_round_and_several(low, high, ticks):
    np.testing.assert_allclose(_ticks(low, high), ticks)


def test_leaderboard_has_one_row_a_network(run, page):
    section = page.split("<h2>The leaderboard</h2>")[1].split("</section>")[0]
    rows = re.findall(r"<tr><td>(\d+)</td><td>(\d+)</td>", section)
    ids = run.leaderboard()["trial"].drop_duplicates().tolist()
    assert [int(trial) for _, trial in rows] == ids[:15]
    assert str(run.dir.leaderboard) in section


def test_best_design_is_drawn_and_explained(run, page):
    found = gather(run)
    choices = found.designs[0]
    graph = page.split("<figcaption>The cell")[0].rsplit("<svg", 1)[1]
    for i, j in drawing.cell_live(choices):
        assert drawing.OPERATIONS[choices[f"cell.edge{i}{j}"]][1] in html.unescape(graph)
    assert f"Of the systolic family, {choices['hw.rows']} {TIMES} {choices['hw.columns']}: " in (
        text(page)
    )
    n_layers = int(FAMILIES["cell"].layers(choices).repeat.sum())
    assert f"of the {n_layers} layers, which are bound by" in text(page)


def test_commands_and_settings(run, page):
    assert f"nas search {run.dir.config} --run {run.dir.path}-again" in text(page)
    assert "nas export" in text(page)
    assert html.escape(run.dir.config.read_text()) in page


def test_the_config_of_a_run_is_one_to_search_with(run):
    assert configuration.complete(configuration.read(str(run.dir.config))) == run.config


def test_the_same_run_gives_the_same_text(run, page):
    assert report([Run(run.dir.path)]) == page


# -- states of a run -------------------------------------------------------------------------------


def test_nothing_proposed_yet(tmp_path):
    page = report([begin(tmp_path / "empty")])
    assert headings(page) == ["The search", "How to get it again"]
    assert "No design has been trained yet" in text(page)
    assert "has proposed nothing yet" in text(page)
    assert not charts(page)


def test_where_all_failed_the_report_says_why(tmp_path):
    run = begin(tmp_path / "failed")
    store = Store(run.dir.store)
    for i, row in enumerate(run.space.sample(3, np.random.default_rng(0))):
        store.insert(Trial(i, Proposal(row), i, Status.FAILED, error="the disk is full"))
    store.close()
    page = text(report([run]))
    assert "No design was trained, of" in page and "3 failed. Most often: the disk is full." in page


def test_all_trained_are_outside_the_constraints(tmp_path):
    run = fill(begin(tmp_path / "none", constraints=["accuracy >= 0.99"]), final=False)
    page = report([run])
    assert headings(page) == ["The search", "How to get it again"]
    assert "trained, none within the constraints (accuracy >= 0.99)" in text(page)
    assert len(charts(page)) == 2


def test_infeasible_reasons_are_grouped(tmp_path):
    run = fill(begin(tmp_path / "small", constraints=["area_mm2 <= 0.9"]), 30, final=False)
    errors = [t.error for t in run.trials() if t.error and "breaks" in t.error]
    assert len(set(errors)) > 1
    assert f"{len(errors)} infeasible breaks area_mm2 <= 0.9" in text(report([run]))


def test_without_finals_the_accuracy_is_of_validation(tmp_path):
    run = fill(begin(tmp_path / "short"), final=False)
    page = report([run])
    assert "on validation images. It serves" in text(page)
    assert "nas export" not in page


def test_several_objectives(tmp_path):
    page = report([fill(begin(tmp_path / "pareto", reward=PARETO))])
    assert headings(page) == CHAPTERS
    assert "ranked by their front in accuracy, latency and energy" in text(page)
    volumes = charts(page)[2]["data"][0]["y"]
    assert volumes == sorted(volumes)
    assert volumes[-1] == 1


def test_several_runs_are_compared_first(run, tmp_path):
    other = fill(begin(tmp_path / "other", reward=PARETO, evaluator={"name": "proxy", "epochs": 7}))
    page = report([run, other, begin(tmp_path / "empty")])
    assert headings(page)[:2] == ["The best of each", "The fronts"]
    assert headings(page).count("The leaderboard") == 2
    assert "Accuracies do not compare directly" in text(page)
    assert {trace["name"] for trace in charts(page)[0]["data"] if "name" in trace} == {
        "first",
        "other",
    }
    assert all(f'href="#run-{i}"' in page and f'id="run-{i}"' in page for i in (1, 2, 3))


@pytest.mark.parametrize("accelerators", [name for name in hardware.FAMILIES if name != "systolic"])
def test_other_accelerators_are_described_by_their_own_decisions(tmp_path, accelerators):
    widths = ("bits.weights.", "bits.activations.")
    bits = {name: [4, 8] for name in precision.SPACE.names if name.startswith(widths)}
    own = hardware.FAMILIES[accelerators].space.decisions
    narrow = {d.name: list(d.values[:2]) for d in own}
    space = {k: v for k, v in SPACE.items() if not k.startswith(("hw.", "bits."))} | narrow | bits
    space |= {"accelerators": accelerators, "bits.ends": 8}
    run = fill(begin(tmp_path / accelerators, space=space), 16)
    page = report([run])
    assert headings(page) == CHAPTERS
    assert f"Of the {accelerators} family" in text(page)
    for name in narrow:
        phrase = words.decision(name, 0)[0]
        assert phrase in text(page) or name in str(words.SIDES), phrase
    lines = text_table(gather(run), 5)
    assert {"accelerator", "bits w/a", "accuracy"} <= {head.split(" [")[0] for head in lines[0]}
    assert len({len(line) for line in lines}) == 1 and "None" not in str(lines)


def test_a_network_of_no_drawn_family_is_shown_by_its_choices(run, monkeypatch):
    monkeypatch.setattr(drawing, "FAMILIES", {})
    page = report([Run(run.dir.path)])
    assert headings(page) == CHAPTERS
    choices = gather(run).designs[0]
    assert f"width {choices['cell.width']}" in text(page)
    assert "edge01" in text(page) and "<svg" not in page.split("The leaderboard")[1][:2000]


def test_the_front_is_over_what_the_reward_is_made_of(tmp_path):
    goals = ["accuracy", "-area_mm2"]
    run = fill(begin(tmp_path / "area", reward={"name": "pareto", "objectives": goals}))
    board = run.leaderboard()
    points = np.column_stack([board["accuracy"], -board["area_mm2"]])
    assert board["front"].tolist() == pareto.front(points).tolist()
    page = report([run])
    assert "no other is better in accuracy and area at once" in text(page)
    assert charts(page)[0]["layout"]["xaxis"]["title"]["text"] == "area"


# -- a stranger's run ------------------------------------------------------------------------------


def test_nothing_is_loaded_from_anywhere(page):
    assert not re.search(r"""(src|href|action|data|srcset)\s*=\s*["']?[^#"']""", content(page))
    assert "@import" not in content(page)
    assert "url(" not in content(page)
    assert "default-src 'none'" in page


def test_only_the_two_scripts_of_the_page_may_run(page):
    import base64
    import hashlib

    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = {
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    }
    assert len(scripts) == 2
    assert set(re.search(r"script-src ([^;]*);", policy)[1].split()) == hashes


def test_hostile_texts_are_shown_and_never_run(tmp_path):
    name = "<img src=x onerror=alert(3)>"
    run = begin(tmp_path / name, preset=ATTACK, evaluator={"name": "proxy", "path": ATTACK})
    run.dir.create(tomli_w.dumps({**run.config, "versions": {ATTACK: ATTACK}}))
    fill(Run(run.dir.path), error=ATTACK)
    page = report([Run(run.dir.path), run])
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert "<img" not in content(page)
    assert len(re.findall(r"<script>", page)) == 2
    data = json.dumps(charts(page))
    assert "<img" not in data
    assert "&lt;img" in data  # Plotly reads tags in its texts


# -- its parts -------------------------------------------------------------------------------------


def test_tags_escape_all_but_html():
    assert tag("p", "<b>", Html("<i>"), None, ["&"], title='"') == (
        '<p title="&quot;">&lt;b&gt;<i>&amp;</p>'
    )
    assert escaped(3) == "3"
    assert "<td>&lt;</td>" in table(["a"], [["<"]])


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (words.number(1234567), "1,234,567"),
        (words.number(0.000123), "0.000123"),
        (words.number(-2.5), f"{MINUS}2.50"),
        (words.number(0), "0"),
        (words.number(float("nan")), NONE),
        (words.quantity(1.32e-5, "s"), "13.2 µs"),
        (words.quantity(9.996e-4, "s"), "1.00 ms"),
        (words.quantity(1.5e6, ""), "1.50 M"),
        (words.quantity(None, "J"), NONE),
        (words.exact(2e-4, "s"), "200 µs"),
        (words.metric("energy_j", 4e-5), "energy 40 µJ"),
        (words.label("-latency_s"), "latency"),
        (words.label("latency_ms_pixel3"), "latency (pixel3)"),
        (words.value("test_accuracy", 0.9437), "94.4 %"),
        (words.value("latency_s", 1.32e-5), "13.2 µs"),
        (words.value("area_mm2", 4.2), "4.20 mm²"),
        (words.value("latency_ms_pixel3", 17.34), "17.3 ms"),
        (words.value("images_per_s", 46451.2), "46,451"),
        (words.label("train_images_per_s"), "train images per second"),
        (words.metric("area_mm2", 0.5), "area 0.5 mm²"),
        (words.ascii(f"1.3 {TIMES} 10¹⁷"), "1.3 x 10^17"),
        (words.value("loss", None), NONE),
        (words.ascii("17.3\u00a0µs ± 2 × 3 mm²"), "17.3 us +- 2 x 3 mm2"),
        (words.percent(0.5), "50.0 %"),
        (words.percent(None), NONE),
        (words.change(0.69), f"{MINUS}31 %"),
        (words.change(1.042), "+4.2 %"),
        (words.change(1.0001), "0 %"),
        (words.power(2_654_208), "2,654,208"),
        (words.power(131_700_000_000_000_000), f"1.3 {TIMES} 10¹⁷"),
        (words.duration(5.94), "5.9 s"),
        (words.duration(83.2), "1 min 23 s"),
        (words.duration(3725), "1 h 2 min"),
        (words.count(1, "trial"), "1 trial"),
        (words.count(2, "was", "were"), "2 were"),
        (words.listed(["a", "b", "c"]), "a, b and c"),
        (words.listed(["a"]), "a"),
        (" ".join(words.decision("hw.sram_input_kib", 64)), "input SRAM 64 KiB"),
        (" ".join(words.decision("hw.weight_plane", True)), "weight plane yes"),
        (" ".join(words.decision("hw.dataflow", "ws")), "dataflow weight-stationary"),
        (words.group("stage0"), "stage 1"),
        (words.group("ends"), "first and last layer"),
    ],
)
def test_figures_in_words(written, expected):
    assert written.replace(words.SPACE, " ") == expected


def test_one_unit_for_a_column():
    assert words.unit([3e-6, 5e-5, 4e-3], "s") == ("µs", 1e-6)


def test_every_choice_has_its_words():
    values = {decision.name: decision.values for decision in hardware.SPACE.decisions}
    assert set(values["hw.dataflow"]) <= words.DATAFLOWS.keys()
    assert set(values["hw.multiplier"]) <= words.MULTIPLIERS.keys()
    assert drawing.FAMILIES.keys() <= FAMILIES.keys()


def cell(**edges) -> dict:
    names = {f"cell.edge{i}{j}": "none" for i, j in drawing.EDGES}
    return {**names, **{f"cell.{edge}": op for edge, op in edges.items()}}


def test_only_edges_from_input_to_output_are_built():
    dead_end = cell(edge01="conv_3x3", edge03="skip", edge23="conv_1x1")
    assert drawing.cell_live(dead_end) == {(0, 3)}
    chain = cell(edge01="conv_3x3", edge12="skip", edge23="conv_1x1")
    assert drawing.cell_live(chain) == {(0, 1), (1, 2), (2, 3)}


@pytest.mark.parametrize("seed", range(20))
def test_drawn_edges_are_the_built_ones(seed):
    """The network's own plan names the edges that it builds."""
    from search_spaces import joint

    rng = np.random.default_rng(seed)
    space = joint("cell")
    choices = space.decode(space.sample(1, rng)[0])
    if not drawing.cell_live(choices):
        with pytest.raises(ValueError):
            FAMILIES["cell"].network(choices)
        return
    built = {
        tuple(map(int, found[1]))
        for step in FAMILIES["cell"].network(choices).steps
        if (found := re.search(r"stage0\.cell0\.edge(\d\d)", step.name))
    }
    drawn = {
        edge
        for edge in drawing.cell_live(choices)
        if choices[f"cell.edge{edge[0]}{edge[1]}"] != "skip"
    }
    assert drawn == built


def test_layers_add_up_to_the_price(run):
    found = gather(run)
    layers = explain.layer_prices("cell", found.designs[0])
    assert layers["latency_s"].sum() == pytest.approx(found.board["latency_s"].iloc[0])
    assert sum(bound.share for bound in explain.bounds(layers)) == pytest.approx(1)
    assert sum(explain.energy_shares(layers).values()) == pytest.approx(1)
    assert {bound.name for bound in explain.bounds(layers)} <= explain.BOUNDS.keys()


def test_single_changes_are_priced_as_designs_of_their_own(run):
    choices = gather(run).designs[0]
    changes = explain.changes(run, choices)
    assert [c.latency for c in changes] == sorted(c.latency for c in changes)
    assert {c.decision for c in changes} == {
        name
        for name in run.space.names
        if name.startswith("hw.")
        and name in choices
        and len(run.space.decisions[run.space.column[name]].values) > 1
    }
    [clock] = [c for c in changes if c.decision == "hw.clock_mhz"]
    other = {**choices, "hw.clock_mhz": clock.after}
    [(before, _), (after, _)] = price_designs("cell", [choices, other])
    assert clock.latency == pytest.approx(after["latency_s"] / before["latency_s"])
    assert clock.energy == pytest.approx(after["energy_j"] / before["energy_j"])


def test_hypervolume_grows_to_the_last():
    objectives = np.array([[0.0, 1.0], [np.nan, np.nan], [1.0, 0.0], [0.5, 0.5]])
    assert hypervolumes(objectives).tolist() == [0, 0, 0, 1]
    assert hypervolumes(np.full((2, 2), np.nan)).tolist() == [0, 0]


def test_importing_and_reporting_needs_no_tensorflow(run):
    code = (
        "import sys; from nas.run import Run; from nas.report import report; "
        "assert not {'plotly', 'pandas'} & set(sys.modules), 'slow to import'; "
        f"report([Run({str(run.dir.path)!r})]); assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_techniques_that_the_search_named_are_told():
    from types import SimpleNamespace

    from nas.report.best import techniques

    run = SimpleNamespace(config={"space": {"network": "cell", "accelerators": "systolic"}})
    designs = [{"cell.width": 8, "prune.method": "nm", "prune.nm": "2:4", "hw.skips_zeros": True}]
    assert techniques(SimpleNamespace(run=run, designs=designs)) == [
        ("Techniques", "prune.method nm; prune.nm 2:4")
    ]
    assert techniques(SimpleNamespace(run=run, designs=[{"cell.width": 8}])) == []
