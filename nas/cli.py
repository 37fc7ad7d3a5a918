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
from pathlib import Path
from typing import TYPE_CHECKING

from nas.arguments import parser

if TYPE_CHECKING:
    from search_spaces import Space

INDENT = {"width": 100, "initial_indent": " " * 23, "subsequent_indent": " " * 23}


def main(arguments: list[str] | None = None) -> None:
    """Errors are one line on standard error: exit status 2 for bad input, 1 for a failure."""
    options = parser().parse_args(arguments)
    warnings = logging.StreamHandler()
    warnings.setLevel(logging.WARNING)
    warnings.setFormatter(logging.Formatter("nas: %(message)s"))
    logging.getLogger("nas").addHandler(warnings)
    try:
        COMMANDS[options.command](options)
    except KeyboardInterrupt as interrupt:
        print("", *getattr(interrupt, "__notes__", ()), sep="\n", file=sys.stderr)
        sys.exit(130)
    except (ValueError, RuntimeError, OSError) as error:
        if options.debug:
            raise
        notes = getattr(error, "__notes__", ())
        if isinstance(error, BrokenPipeError) and not notes:  # what reads us has gone, as head does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        from nas import words
        from nas.run_dir import is_full

        text = words.printable(" ".join(str(error).split())) or type(error).__name__
        if is_full(error):
            text = f"nothing more can be written ({text}): make room and go on"
        print(f"nas: {text}", *notes, sep="\n", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)
    finally:
        logging.getLogger("nas").removeHandler(warnings)


def run_search(options: argparse.Namespace) -> None:
    import nas
    from nas.run import new_run_dir

    directory = options.run_dir or new_run_dir(options.preset)
    with resumable(directory):
        run = nas.search(
            options.preset,
            run_dir=directory,
            data=options.data,
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
            options.dir,
            data=options.data,
            **given(options, "trials", "hours", "workers", "deterministic"),
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
        data=options.data,
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


def run_dashboard(options: argparse.Namespace) -> None:
    from nas.dashboard import server

    with server(options.dirs, options.port) as serving:
        host, port = serving.server_address
        print(f"http://{host}:{port}/ shows {', '.join(options.dirs)}; Ctrl-C ends it", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            serving.serve_forever()


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

    lines, same = rerun(options.dir, options.trial, options.data)
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


def print_space(title: str, space: Space) -> None:
    print(f"{title}: {len(space)} decisions, {space.n_designs:.2g} designs")
    for decision in space.decisions:
        notes = [f"when {k} in {list(v)}" for k, v in decision.when.items()]
        if decision.usual is not None:
            usual = ", ".join(map(str, decision.usual))
            notes.append(f"unless named: {usual or 'off'}")
        print(
            f"  {decision.name:24} {', '.join(map(str, decision.values))}"
            + (f"   ({'; '.join(notes)})" if notes else "")
        )


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
        from search_spaces import FAMILIES, hardware, joint

        for family in FAMILIES:
            print_space(family, joint(family))
        for name, accelerators in hardware.FAMILIES.items():
            if name != "systolic":  # shown with each network
                print_space(f'accelerators = "{name}"', accelerators.space)


COMMANDS = {
    "search": run_search,
    "resume": run_resume,
    "compare": run_compare,
    "status": run_status,
    "dashboard": run_dashboard,
    "repair": run_repair,
    "rerun": run_rerun,
    "report": run_report,
    "export": run_export,
    "price": run_price,
    "measure": run_measure,
    "list": run_list,
}


if __name__ == "__main__":
    main()
