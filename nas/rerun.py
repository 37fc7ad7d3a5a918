"""One trial trained again from its record, and compared with it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from nas import config as configuration
from nas.run import Run, make_executor
from nas.search import task_of
from nas.trial import Status

# of the machine and its load, not of the candidate
MEASURED = ("seconds", "cpu_seconds", "trained_per_s", "flops", "peak_share", "peak_rss_bytes")


def rerun(path: str | Path, id: int, data: str | Path = "") -> tuple[list[list[str]], bool]:
    """Lines of cells, recorded and again and their difference, a metric each; whether all are the
    same. The run is not changed. data: where the data set lies now, if it was moved. Raises
    ValueError for a trial that was not trained."""
    run = Run(path, data)
    trial = run.trial(id)
    if trial.status is not Status.COMPLETE:
        raise ValueError(f"trial {id} is {trial.status}: there is no training to compare with")
    if trial.repeats is not None:
        raise ValueError(f"trial {id} repeats trial {trial.repeats}; train that one again")
    run.evaluator.check(run.space)
    fidelities = configuration.make_fidelities(run.config)
    with make_executor(run, n_workers=1) as executor:
        executor.submit(task_of(trial, run.space, fidelities, kind="rerun"))
        result = executor.wait()
    if "error" in result:
        raise RuntimeError(f"trial {id} failed this time: {result['error']}")
    again = numbers(result["metrics"])
    recorded = {k: v for k, v in numbers(trial.metrics).items() if k in again}
    lines = [["metric", "recorded", "again", "difference"]]
    for name, value in again.items():
        before = recorded.get(name, math.nan)
        lines.append([name, f"{before:.9g}", f"{value:.9g}", f"{value - before:.3g}"])
    return lines, recorded == again


def numbers(metrics: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The figures of a training by name, those of its curve too, but not what it took."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if name in MEASURED:
            continue
        if isinstance(value, (int, float)):
            found[prefix + name] = value
        elif name == "curve":
            for each in value:
                found |= numbers(each, f"epoch {each['epoch']} ")
    return found
