"""The worker process: reads tasks, one JSON line each, and writes their results the same way.

`python -m nas.worker` is started by the executor, one a core. The first line names the evaluator
and the folder of what it keeps; each other line is a task. It ends when its input does, even in the
middle of a training: so it never outlives the process that started it.
"""

from __future__ import annotations

import json
import os
import pkgutil
import queue
import sys
import threading
import traceback
from pathlib import Path
from typing import TextIO


def read_lines(lines: TextIO, tasks: queue.SimpleQueue) -> None:
    """Hand every line over; when the input ends, end the process at once."""
    for line in lines:
        tasks.put(json.loads(line))
    os._exit(0)


def main() -> None:
    # results have the real standard output to themselves; what libraries print goes to the log
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(message: dict) -> None:
        results.write(json.dumps(message) + "\n")
        results.flush()

    tasks: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=read_lines, args=(sys.stdin, tasks), daemon=True).start()
    setup = tasks.get()
    if setup["cpu"] is not None:
        os.sched_setaffinity(0, {setup["cpu"]})
    from nas.compare import Simulation
    from nas.evaluators import EVALUATORS, perform

    try:
        known = {**EVALUATORS, Simulation.name: Simulation}
        name = setup["evaluator"]
        evaluator = (known.get(name) or pkgutil.resolve_name(name))(**setup["options"])
        evaluator.start(Path(setup["folder"]) if setup["folder"] else None)
    except Exception as error:  # nothing can be evaluated: say so and stop
        traceback.print_exc()
        answer({"ready": False, "error": f"{type(error).__name__}: {error}"})
        return
    answer({"ready": True})
    while True:
        task = tasks.get()
        answer({"id": task["id"], "kind": task["kind"], **perform(evaluator, task)})


if __name__ == "__main__":
    main()
