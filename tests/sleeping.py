"""An evaluator that sleeps where others train, for tests of what runs trials."""

from __future__ import annotations

import os
import time
from pathlib import Path


class Sleeping:
    """Takes `seconds`, or a choice of that name; does what the choice `does` says first."""

    in_process = False
    metrics = ("accuracy", "loss", "train_loss")
    final_metrics = ()

    def __init__(self, *, seconds: float = 0.0, path: str = ""):
        self.seconds, self.path = seconds, path

    def start(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.n = 0

    def evaluate(self, choices, *, seed: int):
        self.n += 1
        time.sleep(choices.get("seconds", self.seconds))
        said = Path(self.path).read_text() if self.path else ""
        about = {"pid": os.getpid(), "n": self.n, "said": said, "folder": str(self.folder)}
        return {"accuracy": seed % 97 / 97, "threads": os.environ["OMP_NUM_THREADS"], **about}

    def finalize(self, choices, *, seed: int, weights: Path):
        weights.write_bytes(b"weights of %d" % seed)
        return {"accuracy": 1.0, "wrote": str(weights)}
