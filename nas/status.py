"""How far a run is, in lines of text; safe while it runs."""

from __future__ import annotations

import time
from pathlib import Path

from nas import words
from nas.fidelities import correlations
from nas.progress import Progress
from nas.run import Run
from nas.store import Store


def status(path: str | Path) -> list[str]:
    """Trials by their state, the best so far, the rate and the time left, and who works on it."""
    run = Run(path)
    holder = run.dir.holder()
    with run.store() as store:
        counts = {
            "trained": store.count("status = 'complete' AND repeats IS NULL"),
            "told": store.count("told IS NOT NULL"),
            "running": store.count("status = 'running'"),
            "failed": store.count("status = 'failed' AND repeats IS NULL"),
            "infeasible": store.count("status = 'infeasible'"),
            "repeated": store.count("repeats IS NOT NULL"),
        }
        if run.config["early_stopping"]["epochs"]:
            stopped = "json_extract(metrics, '$.stopped_at') IS NOT NULL AND repeats IS NULL"
            counts["of the trained stopped early"] = store.count(stopped)
        n_finals, workers, rate = len(store.finals()), store.workers(), trials_a_second(store)
        rungs = run.config["fidelities"]["rungs"]
        agreements = correlations(store.trials(), run.front.needs[0]) if rungs else []
        with Progress(run.config["trials"], run, store, shown=False) as seen:
            best, n_front = seen.best, len(seen.front)
        failures = "SELECT id, error FROM trials WHERE status = 'failed' ORDER BY id DESC LIMIT 1"
        failed = list(store.rows(failures))
    total = run.config["trials"]
    wanted = run.config["final"]["top"] if run.evaluator.final_metrics else 0
    n_done = counts["trained"] + counts["failed"]
    lines = [
        f"{path}: {n_done} of {total} trials, "
        + ", ".join(f"{n} {name}" for name, n in counts.items())
        + f", {n_finals} of {wanted} final trainings"
    ]
    if best is not None:
        name = run.front.needs[0]
        figure = words.ascii(words.value(name, best))
        lines.append(
            f"best {words.ascii(words.label(name))} so far: {figure}; {n_front} on the front"
        )
    lines += [f"the last that failed, trial {id}: {error}" for id, error in failed]
    for each in agreements:
        name = words.label(run.front.needs[0])
        lines.append(words.ascii(f"{name}: {words.agreement(each, rungs)}"))
    if rate and holder and n_done < total:
        left = words.ascii(words.duration((total - n_done) / rate))
        lines.append(f"{60 * rate:.3g} trials a minute; {left} left")
    if holder:
        lines += [worker_line(number, *worker) for number, worker in enumerate(workers)]
        lines.append(f"in use by {holder}")
    elif run.dir.report.exists() and not counts["running"] and n_done >= total:
        lines.append("done")
    else:
        lines.append(f"not running; go on with: nas resume {path}")
    return lines


def trials_a_second(store: Store, n: int = 20) -> float | None:
    """Over the last `n` trainings that ended; None of fewer than two."""
    ends = [
        row[0]
        for row in store.rows(
            "SELECT finished_at FROM trials WHERE status IN ('complete', 'failed') AND "
            "repeats IS NULL ORDER BY id DESC LIMIT ?",
            (n,),
        )
    ]
    spread = max(ends, default=0) - min(ends, default=0)
    return (len(ends) - 1) / spread if spread > 0 else None


def worker_line(number: int, worker: dict, at: float) -> str:
    """What a worker does."""
    task = worker["kind"] if worker["task"] is None else f"{worker['kind']} {worker['task']}"
    seconds = worker["seconds"] + max(time.time() - at, 0)
    return (
        f"worker {number} (process {worker['pid']}): {task} for {seconds:.0f} s, "
        f"{worker['memory_mib']} MiB"
    )
