"""The worker process: reads tasks, one JSON line each, and writes their results the same way.

`python -m nas.worker` is started by the executor. The first line names the evaluator, the folder of
what it keeps and the heartbeat; each other line is a task, or the wish to park the one at work.
Between results it writes a beat, at twice the pace that is asked for. It ends when its input does,
even in the middle of a training: so it never outlives the process that started it.
"""

from __future__ import annotations

import contextlib
import json
import os
import pkgutil
import queue
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TextIO


def read_lines(lines: TextIO, tasks: queue.SimpleQueue) -> None:
    """Hand every task over, with the event that is set where it is to be parked; when the input
    ends, end the process at once."""
    park = threading.Event()
    for line in lines:
        message = json.loads(line)
        if "park" in message:
            park.set()
        else:
            park = threading.Event()
            tasks.put((message, park))
    os._exit(0)


def beat(answer, interval_s: float) -> None:
    """Give a sign of life for ever."""
    while True:
        time.sleep(interval_s)
        answer({"beat": True})


def main() -> None:
    # results have the real standard output to themselves; what libraries print goes to the log
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with contextlib.suppress(OSError):  # where memory is short, the system ends a worker first
        Path("/proc/self/oom_score_adj").write_text("500")
    writing = threading.Lock()

    def answer(message: dict) -> None:
        with writing:
            results.write(json.dumps(message) + "\n")
            results.flush()

    tasks: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=read_lines, args=(sys.stdin, tasks), daemon=True).start()
    setup, _ = tasks.get()
    threading.Thread(target=beat, args=(answer, setup["heartbeat"] / 2), daemon=True).start()
    if setup["cpus"]:
        os.sched_setaffinity(0, setup["cpus"])
    from nas.checkpoint import Checkpoint, key_of, partial_path
    from nas.compare import Simulation
    from nas.evaluators import EVALUATORS, perform

    folder = Path(setup["folder"]) if setup["folder"] else None
    try:
        known = {**EVALUATORS, Simulation.name: Simulation}
        name = setup["evaluator"]
        evaluator = (known.get(name) or pkgutil.resolve_name(name))(**setup["options"])
        evaluator.start(folder)
    except Exception as error:  # nothing can be evaluated: say so and stop
        traceback.print_exc()
        answer({"ready": False, "error": f"{type(error).__name__}: {error}"})
        return
    answer({"ready": True})
    while True:
        task, park = tasks.get()
        checkpoint = folder and Checkpoint(
            partial_path(folder, task), key_of(setup["evaluator"], setup["options"], task), park
        )
        outcome = perform(evaluator, task, checkpoint)
        answer({"id": task["id"], "kind": task["kind"], **outcome})


if __name__ == "__main__":
    main()
