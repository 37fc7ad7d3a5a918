"""The command: every user's mistake is one line, exit status 2, and nothing is written."""

import subprocess
import sys
from pathlib import Path

import pytest

import nas
from nas import cli, config
from nas.data import DataError
from nas.trial import METRICS
from search_spaces import FAMILIES, hardware

TABLE = Path(__file__).parents[2] / "shared/data/nas_bench_201.csv.gz"


def run(capsys, *arguments):
    """(exit status, standard output, standard error) of the command in this process."""
    try:
        cli.main(list(map(str, arguments)))
        status = 0
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.toml").write_text("trials = [1")
    (tmp_path / "own.toml").write_text('trials = 3\n[controller]\nname = "evolution"\nsample = 2\n')
    (tmp_path / "data").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    return tmp_path


MISTAKES = [
    (["quickstar"], "unknown preset 'quickstar'; did you mean 'quickstart'?"),
    (["none.toml"], "no file none.toml"),
    (["broken.toml"], "broken.toml is not TOML"),
    (["quickstart", "--set", "trails=3"], "unknown key 'trails'; did you mean 'trials'?"),
    (["quickstart", "--trials", "0"], "trials must be at least 1; got 0"),
    (["quickstart", "--hours", "-1"], "hours must be at least 0"),
    (["quickstart", "--workers", "0"], "workers must be at least 1; got 0"),
    (["quickstart", "--seed", "-1"], "seed must be at least 0; got -1"),
    (["quickstart", "--set", "trials=many"], "trials must be a whole number; got 'many'"),
    (["quickstart", "--set", "seed=1.5"], "seed must be a whole number; got 1.5"),
    (["quickstart", "--set", "trials"], "--set takes key=value, got 'trials'"),
    (["quickstart", "--trials", "many"], "argument --trials: invalid int value: 'many'; see 'nas"),
    (["quickstart", "--set", "final.top=-1"], "final.top must be at least 0; got -1"),
    (["quickstart", "--set", "contrller.name=random"], "did you mean 'controller.name'?"),
    (["quickstart", "--set", "reward.targets.latency=1"], "did you mean 'latency_s'?"),
    (["quickstart", "--set", "evaluator.epochs.first=1"], "cannot set 'first' in 'epochs'"),
    (["quickstart", "--set", "controller.name=evolutoin"], "did you mean 'evolution'?"),
    (["quickstart", "--set", "controller.strat=9"], "did you mean 'start'?"),
    (["quickstart", "--set", "controller.start=ten"], "expected a whole number"),
    (["quickstart", "--set", "reward.name=mnas"], "did you mean 'mnasnet'?"),
    (["quickstart", "--set", "reward.targets={latency=1.0}"], "unknown metric 'latency'"),
    (["quickstart", "--set", "evaluator.epochs=0"], "evaluator.epochs is 0"),
    (["quickstart", "--set", "evaluator.epoch=2"], "did you mean 'epochs'?"),
    (["quickstart", "--set", "evaluator.dataset=cifar"], "did you mean 'cifar10'?"),
    (["quickstart", "--set", "space.network=cel"], "unknown network 'cel'"),
    (["quickstart", "--set", "cell.widht=8"], "did you mean 'cell.width'?"),
    (["quickstart", "--set", "cell.width=7"], "decision 'cell.width': 7 is not one of"),
    (["quickstart", "--set", "cell.width=[]"], "an empty list leaves no choice"),
    (["quickstart", "--set", 'constraints=["area < 3"]'], "constraint 'area < 3' is not"),
    (["quickstart", "--set", 'constraints=["arae_mm2 <= 3"]'], "did you mean 'area_mm2'?"),
    (["quickstart", "--set", "final.tops=1"], "unknown key 'final.tops'"),
    (["quickstart", "--set", "reward.name=pareto", "--set", "controller.name=policy_gradient",
      "--set", "controller.population=3"], "has no option"),
    (["cifar10", "--data", "nowhere"], "nowhere"),
    (["cifar10", "--data", "data"], "data"),
    (["quickstart", "--run", "full"], "full exists and is not a run"),
    (["own.toml", "--run", "own.toml"], "own.toml exists and is not a run"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistakes_are_one_line_and_write_nothing(here, capsys, arguments, message):
    before = sorted(here.rglob("*"))
    status, out, err = run(capsys, "search", *arguments)
    assert status == 2 and not out
    assert message in err and err.startswith("nas: ") and err.count("\n") == 1, err
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("command", ["resume", "status", "report"])
def test_a_directory_that_is_no_run_is_named(here, capsys, command):
    for directory, message in (("nowhere", "nowhere is no directory"),
                               ("full", "full is not a run")):  # fmt: skip
        status, _, err = run(capsys, command, directory)
        assert status == 2 and message in err and err.count("\n") == 1


def test_a_damaged_run_is_named(here, capsys):
    run_dir = here / "damaged"
    run_dir.mkdir()
    (run_dir / "config.toml").write_text("trials = ")
    status, _, err = run(capsys, "status", run_dir)
    assert status == 2 and "config.toml is damaged" in err
    (run_dir / "config.toml").write_text("trials = 3\nquestions = 4\n")
    status, _, err = run(capsys, "status", run_dir)
    assert status == 2 and "unknown key 'questions'" in err
    (run_dir / "config.toml").write_text("trials = 3\n")
    status, _, err = run(capsys, "status", run_dir)
    assert status == 2 and "trials.sqlite is missing" in err


def test_debug_shows_the_traceback(here):
    with pytest.raises(ValueError, match="unknown preset"):
        cli.main(["--debug", "search", "nope"])


@pytest.mark.parametrize(
    "what",
    ["spaces", "controllers", "evaluators", "rewards", "metrics", "accelerators", "presets"],
)
def test_lists_are_printed(capsys, what):
    status, out, _ = run(capsys, "list", what)
    assert status == 0 and len(out.splitlines()) >= 1 and all(out.splitlines())


def test_lists_say_what_can_be_set_and_in_what_unit(capsys):
    _, out, _ = run(capsys, "list", "controllers")
    assert "population=20, sample=5" in out and "n_objectives" not in out
    _, out, _ = run(capsys, "list", "metrics")
    assert {line.split()[0] for line in out.splitlines()} >= set(METRICS)


def test_spaces_are_listed_with_every_family_of_accelerators(capsys):
    _, out, _ = run(capsys, "list", "spaces")
    titles = [line for line in out.splitlines() if not line.startswith(" ")]
    for name in (*FAMILIES, *hardware.FAMILIES):
        if name != "systolic":
            assert any(name in title for title in titles), name
    assert "  hw.rows" in out


def test_every_option_has_help():
    commands = next(a for a in cli.parser()._actions if a.dest == "command").choices
    for name, command in commands.items():
        silent = [a.dest for a in command._actions if a.help is None]
        assert not silent, f"nas {name}: {silent}"


def test_settings_are_merged_in_order(here):
    table = config.read("own.toml")
    config.assign(table, "controller.sample=3")
    config.assign(table, "cell.width=[8, 4]")
    config.assign(table, "evaluator.dataset=cifar10-sample")
    config.assign(table, "reward.targets={latency_s = 1e-3, energy_j = 1e-4}")
    config.assign(table, "reward.targets.latency_s=2e-3")
    whole = config.complete(table)
    assert whole["trials"] == 3 and whole["preset"] == "own"
    assert whole["reward"]["targets"] == {"latency_s": 2e-3, "energy_j": 1e-4}
    assert whole["controller"] == {"name": "evolution", "sample": 3, "population": 20}
    assert config.make_space(whole).decisions[6].values == (4, 8)
    assert config.complete(whole) == whole, "a complete configuration is its own completion"


def test_another_name_drops_the_options_of_the_one_before():
    table = config.read("quickstart")
    config.assign(table, "controller.start=5")
    config.assign(table, "controller.name=policy_gradient")
    config.assign(table, "controller.units=32")
    whole = config.complete(table)
    assert whole["controller"]["units"] == 32 and "start" not in whole["controller"]
    config.override(table, "reward", {"name": "pareto", "objectives": ["accuracy", "-area_mm2"]})
    assert config.make_reward(config.complete({**table, "controller": {"name": "random"}})).names


@pytest.mark.parametrize("name", config.presets())
def test_every_preset_is_valid(name):
    table = config.read(name)
    if table["evaluator"]["name"] == "table":
        if not TABLE.exists():
            pytest.skip(f"{TABLE} is not there")
        config.override(table, "evaluator", {"path": str(TABLE)})
    whole = config.complete(table)
    assert config.make_space(whole).n_designs > whole["trials"]


def test_the_python_interface_raises_what_the_command_prints(here):
    with pytest.raises(ValueError, match="did you mean 'quickstart'"):
        nas.search("quickstrat")
    with pytest.raises(DataError):
        nas.search("cifar10", data="nowhere")
    assert sorted(p.name for p in here.iterdir()) == ["broken.toml", "data", "full", "own.toml"]


def test_help_is_fast_and_imports_nothing_heavy():
    script = (
        "import sys, nas.cli\n"
        "nas.cli.parser().format_help()\n"
        "heavy = {'tensorflow', 'keras', 'pandas', 'plotly', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
