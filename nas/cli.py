"""The command: parse, assemble, call. The only module that prints."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import shlex
import sys
import textwrap
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NoReturn

A_RUN = "the directory of a run"
INDENT = {"width": 100, "initial_indent": " " * 23, "subsequent_indent": " " * 23}


class Parser(argparse.ArgumentParser):
    """Whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"nas: {message}; see '{self.prog} --help'\n")


def parser() -> Parser:
    top = Parser(
        prog="nas",
        description="Search network cells, bit-widths, batch sizes and the accelerator "
        "they run on, together.",
    )
    top.add_argument(
        "--version", action="version", version=f"nas-codesign {metadata.version('nas-codesign')}"
    )
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run, text: str) -> Parser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        sub.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
        return sub

    search = command("search", run_search, "begin a search; see 'nas list presets'")
    search.add_argument("preset", help="a preset's name or a TOML file")
    search.add_argument(
        "--run", dest="run_dir", metavar="DIR", help="a new directory for the run (runs/PRESET-NNN)"
    )
    search.add_argument("--seed", type=int, help="of everything random in the run")
    resume = command("resume", run_resume, "go on with a run from where it was left")
    resume.add_argument("dir", metavar="DIR", help=A_RUN)
    for sub in (search, resume):
        sub.add_argument("--trials", type=int, help="how many candidates to train")
        sub.add_argument("--hours", type=float, help="ask for no new candidates after so long")
        sub.add_argument("--workers", type=int, help="processes that train, one core each")
        sub.add_argument(
            "--dask",
            metavar="ADDRESS",
            help="of a Dask scheduler whose workers train: tcp://HOST:PORT, tls://HOST:PORT, "
            "file:///PATH of a scheduler file, or local",
        )
        sub.add_argument(
            "--trial-timeout",
            type=float,
            metavar="S",
            help="end an attempt at a trial after so many seconds, and retry it",
        )
        sub.add_argument(
            "--trial-memory",
            type=int,
            metavar="MIB",
            help="end a worker that holds more, and retry its trial",
        )
        sub.add_argument(
            "--deterministic",
            action=argparse.BooleanOptionalAction,
            default=None,
            help="tell trials in the order of asking, so that a run depends on its seed alone, "
            "with any number of workers (the default); else as they land",
        )

    comparing = command("compare", run_compare, "compare controllers on equal budgets")
    comparing.add_argument("preset", help="a preset's name or a TOML file")
    comparing.add_argument(
        "--controllers",
        required=True,
        metavar="A,B,C",
        type=names,
        help="of 'nas list controllers'",
    )
    comparing.add_argument("--seeds", type=int, default=10, metavar="N", help="runs of each (10)")
    comparing.add_argument(
        "--budgets",
        type=numbers,
        default=[30, 50, 100],
        metavar="K,L",
        help="after how many trials to compare (30,50,100)",
    )
    comparing.add_argument(
        "--to", metavar="DIR", help="for comparison.html and .csv (runs/PRESET-compared-NNN)"
    )
    comparing.add_argument("--workers", type=int, help="processes, one core each")
    for sub in (search, comparing):
        sub.add_argument("--data", metavar="DIR", help="where the data set lies")
        sub.add_argument(
            "--table",
            dest="data",
            metavar="FILE",
            help="the table of a preset that looks designs up",
        )
        sub.add_argument(
            "--set",
            dest="assignments",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="change a setting or narrow a decision: "
            "--set evaluator.epochs=5 --set cell.width=[8,16]",
        )

    status = command("status", run_status, "say how far a run is")
    status.add_argument("dir", metavar="DIR", help=A_RUN)
    repairing = command("repair", run_repair, "save what can be saved of a damaged run")
    repairing.add_argument("dir", metavar="DIR", help=A_RUN)
    rerunning = command("rerun", run_rerun, "train one trial again, and compare")
    rerunning.add_argument("dir", metavar="DIR", help=A_RUN)
    rerunning.add_argument(
        "--trial", type=int, required=True, metavar="ID", help="its id in the leaderboard"
    )
    report = command("report", run_report, "print the leaderboard; write it as a page or a table")
    report.add_argument("dirs", metavar="DIR", nargs="+", help="runs; several are compared")
    report.add_argument(
        "--top", type=positive, default=10, metavar="K", help="how many designs (10)"
    )
    report.add_argument("--html", metavar="FILE", help="write the report to FILE")
    report.add_argument("--csv", metavar="FILE", help="write the whole leaderboard to FILE")
    export = command("export", run_export, "write a design that was trained to the end as Keras")
    export.add_argument("dir", metavar="DIR", help=A_RUN)
    which = export.add_mutually_exclusive_group(required=True)
    which.add_argument("--trial", type=int, metavar="ID", help="one of the final trainings")
    which.add_argument("--best", action="store_true", help="the first of the leaderboard")
    export.add_argument(
        "--to", required=True, metavar="FILE.keras", help="and FILE.json, which describes it"
    )
    pricing = command("price", run_price, "price a Keras model on accelerators")
    pricing.add_argument("model", metavar="MODEL.keras", help="as model.save writes it")
    pricing.add_argument(
        "--accelerator",
        dest="accelerators",
        action="append",
        required=True,
        metavar="NAME|FILE.json",
        help="of 'nas list accelerators', or a file of 'nas measure'; again for a column more",
    )
    pricing.add_argument(
        "--batch", type=positive, default=1, metavar="N", help="examples at once (1)"
    )
    for operand in ("weight", "activation"):
        pricing.add_argument(
            f"--{operand}-bits",
            type=int,
            metavar="N",
            help="8, or those that a measured device was measured at",
        )
    pricing.add_argument(
        "--skip",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="pass over layers of this name, path (outer/inner) or class",
    )
    pricing.add_argument("--layers", action="store_true", help="and what bounds each layer")
    pricing.add_argument("--training", action="store_true", help="one training step instead")
    pricing.add_argument("--json", action="store_true", help="one JSON object")
    measuring = command("measure", run_measure, "time this machine and save it as a device")
    measuring.add_argument(
        "--to", required=True, metavar="DEVICE.json", help="for nas price --accelerator"
    )
    measuring.add_argument("--threads", type=int, metavar="N", help="to run networks on (all)")
    listing = command("list", run_list, "what there is to name in a search")
    listing.add_argument(
        "what",
        choices=(
            "spaces",
            "controllers",
            "evaluators",
            "rewards",
            "metrics",
            "accelerators",
            "presets",
        ),
        help="spaces: decisions and their values; controllers, evaluators and rewards: names and "
        "options; metrics: for rewards and constraints; accelerators: devices; presets: searches",
        metavar="WHAT",
    )
    return top


def names(text: str) -> list[str]:
    """`a,b,c` as a list."""
    return [name.strip() for name in text.split(",") if name.strip()]


def numbers(text: str) -> list[int]:
    """`30,50` as a list."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"whole numbers with commas between, as 30,50; got '{text}'"
        ) from None


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1; got {text}")
    return int(text)


def main(arguments: list[str] | None = None) -> None:
    """Errors are one line on standard error: exit status 2 for bad input, 1 for a failure."""
    options = parser().parse_args(arguments)
    warnings = logging.StreamHandler()
    warnings.setLevel(logging.WARNING)
    warnings.setFormatter(logging.Formatter("nas: %(message)s"))
    logging.getLogger("nas").addHandler(warnings)
    try:
        options.run(options)
    except KeyboardInterrupt as interrupt:
        print("", *getattr(interrupt, "__notes__", ()), sep="\n", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader has gone, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, RuntimeError, OSError) as error:
        if options.debug:
            raise
        from nas.run_dir import is_full

        text = " ".join(str(error).split()) or type(error).__name__
        if is_full(error):
            text = f"nothing more can be written ({text}): make room and go on"
        print(f"nas: {text}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)


def run_search(options: argparse.Namespace) -> None:
    import nas
    from nas.run import new_run_dir

    directory = options.run_dir or new_run_dir(options.preset)
    with resumable(directory):
        run = nas.search(
            options.preset,
            run_dir=directory,
            data=options.data or "",
            assignments=tuple(options.assignments),
            **given(options, "trials", "hours", "workers", "seed", "deterministic"),
        )
    show_result(run)


def given(options: argparse.Namespace, *names: str) -> dict:
    """The settings that were given: by `names`, the limits, and the cluster."""
    found = {name: getattr(options, name) for name in names}
    if options.dask is not None:
        found["cluster"] = {"dask": options.dask}
    limits = {name: getattr(options, name) for name in ("trial_timeout", "trial_memory")}
    limits = {name: value for name, value in limits.items() if value is not None}
    return {name: value for name, value in found.items() if value is not None} | (
        {"limits": limits} if limits else {}
    )


def run_resume(options: argparse.Namespace) -> None:
    import nas

    with resumable(options.dir):
        run = nas.resume(
            options.dir, **given(options, "trials", "hours", "workers", "deterministic")
        )
    show_result(run)


def run_compare(options: argparse.Namespace) -> None:
    from nas import words
    from nas.compare import compare
    from nas.run import RUNS
    from nas.run_dir import next_run

    to = options.to or next_run(RUNS, f"{Path(options.preset).stem}-compared")
    found = compare(
        options.preset,
        options.controllers,
        seeds=options.seeds,
        budgets=options.budgets,
        to=to,
        data=options.data or "",
        workers=options.workers,
        assignments=tuple(options.assignments),
    )
    for measure in found.curves:
        print_aligned([[words.ascii(cell) for cell in line] for line in found.lines(measure)])
    print(f"charts: {Path(to) / 'comparison.html'}\ntable:  {Path(to) / 'comparison.csv'}")


@contextlib.contextmanager
def resumable(directory: str | Path) -> Iterator[None]:
    """Says how to go on where a search was interrupted, or could not go on."""
    try:
        yield
    except ValueError:
        raise
    except (KeyboardInterrupt, RuntimeError, OSError) as error:
        error.add_note(f"stopped; go on with: nas resume {shlex.quote(str(directory))}")
        raise


def show_result(run) -> None:
    """The leaderboard, the best design and where everything is; exit status 1 without a design."""
    from nas import words

    best = print_table(run, 10)
    for trial, (metrics, _) in run.finals().items():
        names = [name for name in run.evaluator.final_metrics if name != "cost"]
        figures = [f"{words.label(name)} {words.value(name, metrics[name])}" for name in names]
        on = (
            f" on {metrics['n_test']:,} untouched test {run.evaluator.tested}"
            if "n_test" in metrics
            else ""
        )
        which = f"trial {trial}{', the best design' if trial == best else ''}"
        print(words.ascii(f"{which}, trained longer: {', '.join(figures)}{on}"))
    print(f"report:      {run.dir.report}\nleaderboard: {run.dir.leaderboard}")
    if best is None:
        sys.exit(1)


def print_table(run, top: int) -> int | None:
    """The first `top` designs of a leaderboard, each on its best accelerator; the best's trial."""
    from nas import words
    from nas.report.findings import gather
    from nas.report.results import summary, text_table

    found = gather(run)
    if not found.designs:
        print(words.ascii(summary(found)))
        return None
    print_aligned([[words.ascii(cell) for cell in line] for line in text_table(found, top)])
    return int(found.board["trial"][0])


def print_aligned(lines: list[list[str]]) -> None:
    """Lines of cells in columns, the first line as their heading, and an empty line."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for number, line in enumerate(lines):
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))
    print()


def run_status(options: argparse.Namespace) -> None:
    from nas.status import status

    for line in status(options.dir):
        print(line)


def run_repair(options: argparse.Namespace) -> None:
    from nas.repair import repair

    done = repair(options.dir)
    if done.config_restored:
        print("config.toml restored from the store")
    if done.kept is None:
        print(f"the store of {options.dir} is whole")
        return
    print(f"saved: {done.n_trials} results of trials, {done.n_finals} final trainings")
    few = ", ".join(map(str, done.lost[:20])) + (", ..." if len(done.lost) > 20 else "")
    print(f"lost: {f'trials {few}' if done.lost else 'nothing that is known of'}")
    print(f"the damaged store is kept as {done.kept}")
    print(f"go on with: nas resume {options.dir}; what was saved is not trained again")


def run_rerun(options: argparse.Namespace) -> None:
    from nas.rerun import rerun

    lines, same = rerun(options.dir, options.trial)
    print_aligned(lines)
    print("the same to the bit" if same else "not the same")


def run_report(options: argparse.Namespace) -> None:
    from nas.run import Run
    from nas.run_dir import write_whole

    runs = [Run(directory) for directory in options.dirs]
    for run in runs:
        if len(runs) > 1:
            print(run.dir.path)
        print_table(run, options.top)
    if options.csv:
        import pandas

        tables = [run.leaderboard().assign(run=str(run.dir.path)) for run in runs]
        write_whole(Path(options.csv), pandas.concat(tables).to_csv(index=False))
        print(f"wrote {options.csv}")
    if options.html:
        from nas.report import report

        write_whole(Path(options.html), report(runs))
        print(f"wrote {options.html}")


def run_export(options: argparse.Namespace) -> None:
    from nas.export import export_keras
    from nas.run import Run

    run = Run(options.dir)
    trial = options.trial
    if options.best:
        table = run.leaderboard()
        if not len(table):
            raise ValueError(f"{options.dir} has no trained design yet; go on with nas resume")
        trial = int(table["trial"][0])
    print(f"wrote {export_keras(run, trial, Path(options.to))}")


def run_price(options: argparse.Namespace) -> None:
    from nas.price_model import layer_lines, lines_of, price_model

    prices = price_model(
        options.model,
        options.accelerators,
        batch=options.batch,
        weight_bits=options.weight_bits,
        activation_bits=options.activation_bits,
        skip=options.skip,
        training=options.training,
        by_layer=options.layers,
    )
    if options.json:
        table = {
            "model": options.model,
            "batch": options.batch,
            "training": options.training,
            "prices": [each.as_json() for each in prices],
        }
        print(json.dumps(table))
        return
    step = "training step" if options.training else "inference"
    print(
        f"{options.model}: {prices[0].params:,} parameters; {prices[0].macs:,} "
        f"multiply-accumulates in one {step} of batch {options.batch}\n"
    )
    print_aligned(lines_of(prices))
    for each in prices:
        if each.reason:
            print(f"{each.accelerator} cannot run it: {each.reason}\n")
        if each.layers is not None:
            print(each.accelerator)
            print_aligned(layer_lines(each.layers))


def run_measure(options: argparse.Namespace) -> None:
    from nas.measure import measure_to

    measured = measure_to(options.to, options.threads, shown=sys.stderr.isatty())
    print(f"wrote {options.to}: {measured.summary}")
    print(f"use it: nas price MODEL.keras --accelerator {options.to}")


def run_list(options: argparse.Namespace) -> None:
    from nas import config, controllers, evaluators, reward, table, trial

    tables = {
        "controllers": controllers.CONTROLLERS | controllers.FOREIGN,
        "evaluators": evaluators.EVALUATORS,
        "rewards": reward.REWARDS,
    }
    if options.what in tables:
        for name, cls in tables[options.what].items():
            print(f"{name:22} {(cls.__doc__ or '').splitlines()[0]}")
            known = table.options(cls).items()
            given = [f"{k}={config.plain(v)!r}" for k, v in known if k not in config.HANDED_OVER]
            print(textwrap.fill(", ".join(given) or "no options", **INDENT))
    elif options.what == "metrics":
        for name, text in trial.MEANINGS.items():
            print(f"{name:20} {text}")
    elif options.what == "presets":
        for name, text in config.presets().items():
            print(f"{name:16} {text}")
    elif options.what == "accelerators":
        from hwmodel import DEVICES

        for name, device in DEVICES.items():
            print(f"{name:20} {device.provenance}")
    else:
        from search_spaces import FAMILIES, joint

        for family in FAMILIES:
            space = joint(family)
            print(f"{family}: {len(space)} decisions, {space.n_designs:.2g} designs")
            for decision in space.decisions:
                notes = [f"when {k} in {list(v)}" for k, v in decision.when.items()]
                if decision.usual is not None:
                    usual = ", ".join(map(str, decision.usual))
                    notes.append(f"unless named: {usual or 'off'}")
                print(
                    f"  {decision.name:24} {', '.join(map(str, decision.values))}"
                    + (f"   ({'; '.join(notes)})" if notes else "")
                )


if __name__ == "__main__":
    main()
