"""This very machine as a device: time networks on it, fit its rates, check them on others.

TensorFlow runs in a process of its own, started with the threads that were asked for: once it is
loaded, a process cannot change them.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from hwmodel import Layers, price
from hwmodel.calibrate import Calibration, calibrate
from hwmodel.devices import save_device
from nas.timing import THREADS, read_timed

N_FITTED, N_UNSEEN = 40, 20
ROUNDS = 15
FAMILY = "cpu"


class Measurement(NamedTuple):
    """A fitted device and its relative errors |predicted / measured - 1| on networks that the fit
    has not seen: `errors`, `measured_s`, `predicted_s` [n_unseen]."""

    calibration: Calibration
    measured_s: np.ndarray
    predicted_s: np.ndarray

    @property
    def errors(self) -> np.ndarray:
        return np.abs(self.predicted_s / self.measured_s - 1)

    @property
    def summary(self) -> str:
        """The error on unseen networks, in words."""
        return (
            f"on {len(self.errors)} unseen networks of {self.measured_s.min() * 1e3:.2g} to "
            f"{self.measured_s.max() * 1e3:.2g} ms, the median error is "
            f"{np.median(self.errors):.1%}, the 90th percentile "
            f"{np.percentile(self.errors, 90):.1%}"
        )


def measure(threads: int | None = None, *, seed: int = 0, shown: bool = False) -> Measurement:
    """Time N_FITTED + N_UNSEEN networks with TensorFlow on `threads` of this machine (all that this
    process may use), fit a device to the first, predict the others. `shown`: a progress bar.

    Raises ValueError for threads that the machine does not have, RuntimeError where timing fails.
    """
    return fit_and_check(*time_networks(check_threads(threads), seed, shown))


def fit_and_check(layers: Layers, seconds: np.ndarray) -> Measurement:
    """Fit to all but the last N_UNSEEN networks of `layers`, timed at `seconds` [n_networks], and
    predict those."""
    fitted, unseen = np.split(np.arange(layers.n_networks), [layers.n_networks - N_UNSEEN])
    found = calibrate(layers.take(fitted), seconds[fitted], FAMILY)
    predicted_s = price(layers.take(unseen), found.configs).latency_s[:, 0]
    return Measurement(found, seconds[unseen], predicted_s)


def measure_to(path: str | Path, threads: int | None = None, *, shown: bool = False) -> Measurement:
    """`measure`, and the device saved at `path`, which `hwmodel.device` and `nas price` can name.

    Raises, before anything is timed, ValueError for a path that cannot be written or is no .json.
    """
    path = Path(path)
    if path.suffix != ".json":
        raise ValueError(f"a device is saved to a file that ends in .json, got '{path}'")
    if not path.parent.is_dir():
        raise ValueError(f"no directory {path.parent} to write {path.name} into")
    threads = check_threads(threads)
    measured = measure(threads, shown=shown)
    provenance = (
        f"{cpu_name()}, {threads} of its threads, TensorFlow in float32. "
        f"{measured.calibration.provenance} Measured again, {measured.summary}. Only latency was "
        "measured: energies are those of 45 nm."
    )
    save_device(path, measured.calibration.configs, provenance)
    return measured


def check_threads(threads: int | None) -> int:
    """The number of threads to use; all that there are unless given."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if threads is not None and not 1 <= threads <= there:
        raise ValueError(f"threads must be 1 to {there}, as many as there are here; got {threads}")
    return threads or there


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def time_networks(threads: int, seed: int, shown: bool) -> tuple[Layers, np.ndarray]:
    """The rows of the networks, and the seconds that each took."""
    n_networks = N_FITTED + N_UNSEEN
    with tempfile.TemporaryDirectory() as folder:
        timed = Path(folder) / "timed.npz"
        arguments = [str(timed), str(n_networks), str(seed), str(ROUNDS)]
        total = n_networks + ROUNDS
        with (
            timing_process(arguments, threads) as lines,
            tqdm(total=total, disable=not shown, unit="step", desc="timing") as bar,
        ):
            for line in lines:
                bar.set_postfix_str(json.loads(line)["done"], refresh=False)
                bar.update()
        return read_timed(timed)


@contextmanager
def timing_process(arguments: list[str], threads: int) -> Iterator[Iterator[str]]:
    """The lines that `nas.timing` writes, on that many threads. Raises RuntimeError where it fails,
    with its last line."""
    environment = {
        "OMP_NUM_THREADS": str(threads),
        THREADS: str(threads),
        "TF_NUM_INTEROP_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
        "KERAS_BACKEND": "tensorflow",
    }
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "nas.timing", *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **environment},
        )
        try:
            yield process.stdout
            if process.wait():
                errors.seek(0)
                last = (errors.read().strip() or "no message").splitlines()[-1]
                raise RuntimeError(f"timing ended with exit status {process.returncode}: {last}")
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
