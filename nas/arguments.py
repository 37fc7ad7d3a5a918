"""What can be asked at the command line."""

from __future__ import annotations

import argparse
from importlib import metadata
from typing import NoReturn

A_RUN = "the directory of a run"


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

    def command(name: str, text: str) -> Parser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
        return sub

    search = command("search", "begin a search; see 'nas list presets'")
    search.add_argument("preset", help="a preset's name or a TOML file")
    search.add_argument(
        "--run", dest="run_dir", metavar="DIR", help="a new directory for the run (runs/PRESET-NNN)"
    )
    search.add_argument("--seed", type=int, help="of everything random in the run")
    resume = command("resume", "go on with a run from where it was left")
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
            help="end an attempt at a trial after so many seconds, and retry it (30 times the "
            "longest before, at least 600)",
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

    comparing = command("compare", "compare controllers on equal budgets")
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
        sub.add_argument(
            "--set",
            dest="assignments",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="change a setting or narrow a decision: "
            "--set evaluator.epochs=5 --set cell.width=[8,16]",
        )

    status = command("status", "say how far a run is")
    status.add_argument("dir", metavar="DIR", help=A_RUN)
    repairing = command("repair", "save what can be saved of a damaged run")
    repairing.add_argument("dir", metavar="DIR", help=A_RUN)
    rerunning = command("rerun", "train one trial again, and compare")
    rerunning.add_argument("dir", metavar="DIR", help=A_RUN)
    rerunning.add_argument(
        "--trial", type=int, required=True, metavar="ID", help="its id in the leaderboard"
    )
    for sub in (search, comparing, resume, rerunning):
        sub.add_argument("--data", metavar="DIR", default="", help="where the data set lies")
        sub.add_argument(
            "--table",
            dest="data",
            metavar="FILE",
            help="the table of a search that looks designs up",
        )
    watching = command("dashboard", "serve the report as it grows, to this machine alone")
    watching.add_argument("dirs", metavar="DIR", nargs="+", help="runs; several are compared")
    watching.add_argument(
        "--port", type=int, default=8768, metavar="N", help="of 127.0.0.1; 0: any (8768)"
    )
    report = command("report", "print the leaderboard; write it as a page or a table")
    report.add_argument("dirs", metavar="DIR", nargs="+", help="runs; several are compared")
    report.add_argument(
        "--top", type=positive, default=10, metavar="K", help="how many designs (10)"
    )
    report.add_argument("--html", metavar="FILE", help="write the report to FILE")
    report.add_argument("--csv", metavar="FILE", help="write the whole leaderboard to FILE")
    export = command("export", "write a design that was trained to the end as Keras")
    export.add_argument("dir", metavar="DIR", help=A_RUN)
    which = export.add_mutually_exclusive_group(required=True)
    which.add_argument("--trial", type=int, metavar="ID", help="one of the final trainings")
    which.add_argument("--best", action="store_true", help="the first of the leaderboard")
    export.add_argument(
        "--to", required=True, metavar="FILE.keras", help="and FILE.json, which describes it"
    )
    pricing = command("price", "price a Keras model on accelerators")
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
    measuring = command("measure", "time this machine and save it as a device")
    measuring.add_argument(
        "--to", required=True, metavar="DEVICE.json", help="for nas price --accelerator"
    )
    measuring.add_argument("--threads", type=int, metavar="N", help="to run networks on (all)")
    listing = command("list", "what there is to name in a search")
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
