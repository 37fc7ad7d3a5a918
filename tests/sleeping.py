"""An evaluator that sleeps where others train, for tests of what runs trials."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import nas


class Sleeping:
    """Sleeps for the choice `seconds`; the choice `kills` ends its worker or its Dask worker."""

    in_process = False
    metrics = ("accuracy", "loss", "train_loss")
    final_metrics = ()

    def __init__(self, *, path: str = ""):
        self.path = path

    def start(self, folder: Path | None = None) -> None:
        self.folder, self.n = folder, 0

    def evaluate(self, choices, *, seed: int, fidelity: int | None = None):
        """What this process is and has, among the metrics."""
        if "kills" in choices:
            os.kill(os.getpid() if choices["kills"] == "worker" else os.getppid(), signal.SIGKILL)
        time.sleep(choices.get("seconds", 0))
        self.n += 1
        return {
            "accuracy": seed / 97,
            "pid": os.getpid(),
            "n": self.n,
            "folder": str(self.folder),
            "path": self.path,
            "said": "".join(file.read_text() for file in Path(self.path).glob("*.txt")),
            "package": nas.__file__,
            "threads": os.environ["OMP_NUM_THREADS"],
            "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
        }

    def finalize(self, choices, *, seed: int, weights: Path):
        weights.write_bytes(b"weights of %d" % seed)
        return {"accuracy": 1.0, "wrote": str(weights)}
