"""What each training technique does to a network's accuracy and to its price.

    python benchmarks/training_features.py [--only PART ...] [--sets SET ...] [--seeds 5]
        [--data DIR]

One network of convolutions (three stages of one cell, 8 channels, 16x16), trained by the evaluator
as a candidate is, once a seed, on the embedded sample (6,500 images x 3) and on CIFAR-10 (10,000
images x 2; the part batch all 45,000 x 2), and scored on validation images. Beside each row its
latency and energy an image on two accelerators of 8 x 8 multipliers: one of fixed 16-bit units, and
one of bit-serial units that skips zero weights. CIFAR-10 lies in `--data` as its binary layout, or
is made of ../shared/data.

Parts: bits, teacher, density, batch, precision, storage.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nas.executor import LocalExecutor
from nas.pricing import price_designs

SHARED = Path(__file__).parents[2] / "shared" / "data"
ARRAY = {
    "hw.rows": 8,
    "hw.columns": 8,
    "hw.dataflow": "ws",
    "hw.weight_plane": True,
    "hw.sram_input_kib": 64,
    "hw.sram_weight_kib": 64,
    "hw.sram_output_kib": 64,
    "hw.bandwidth_gbps": 16,
    "hw.clock_mhz": 400,
}
ACCELERATORS = {
    "fixed 16-bit": {**ARRAY, "hw.multiplier": "fixed16", "hw.skips_zeros": False},
    "bit-serial, skips zeros": {**ARRAY, "hw.multiplier": "bit-serial", "hw.skips_zeros": True},
}
EDGES = {"01": "conv_3x3", "02": "none", "12": "conv_3x3", "03": "skip", "13": "none"}
BASE = {
    **{f"cell.edge{pair}": op for pair, op in {**EDGES, "23": "conv_3x3"}.items()},
    "cell.width": 8,
    "cell.depth": 1,
    "cell.resolution": 16,
    "train.batch": 64,
    "train.learning_rate": 0.2,
    "train.lr_rule": "linear",
    "serve.batch": 1,
}
STAGES = ("stage0", "stage1", "stage2")


def bits(n: int, **more) -> dict:
    """Weights and activations of `n` bits; the first and the last layer of 8, or all of 32."""
    chosen = {f"bits.{kind}.{s}": n for kind in ("weights", "activations") for s in STAGES}
    return {**chosen, "bits.ends": 32 if n == 32 else 8, **more}


def density(method: str, share: float) -> dict:
    ratios = {f"prune.density.{stage}": share for stage in STAGES}
    return bits(8, **{"prune.method": method, **ratios})


def batch(n: int, rule: str) -> dict:
    return bits(32, **{"train.batch": n, "train.lr_rule": rule, "train.warmup": 0.3})


PARTS: dict[str, dict[str, dict]] = {
    "bits": {
        "32 bits": bits(32),
        **{f"{n} bits, aware": bits(n) for n in (8, 6, 4, 2, 1)},
        "2 bits, DoReFa": bits(2, **{"bits.method": "dorefa"}),
        **{
            f"{n} bits, post-training": bits(n, **{"bits.method": "post_training"})
            for n in (8, 6, 4, 2)
        },
    },
    "teacher": {
        "no teacher": bits(4),
        **{
            f"teacher, weight {weight}, temperature {t}": bits(
                4, **{"distill.weight": weight, "distill.temperature": t}
            )
            for weight, t in ((0.5, 2), (0.9, 4))
        },
    },
    "density": {
        "dense": bits(8),
        **{f"filters {share:.0%}": density("filters", share) for share in (0.5, 0.25, 0.1)},
        "group lasso 25%": density("group_lasso", 0.25),
        **{f"N:M {nm}": bits(8, **{"prune.method": "nm", "prune.nm": nm}) for nm in ("2:4", "1:4")},
        "magnitude 10%": density("magnitude", 0.1),
        **{f"prune-and-grow {share:.0%}": density("rigl", share) for share in (0.25, 0.1)},
        **{f"static {share:.0%}": density("static", share) for share in (0.25, 0.1)},
    },
    "batch": {
        f"batch {n}, {'rate fixed' if rule == 'none' else rule + ' rule'}": batch(n, rule)
        for n in (32, 512, 2048, 8192)
        for rule in ("none", "linear", "sqrt")
    }
    | {f"batch {n}, LARS": batch(n, "linear") | {"train.optimizer": "lars"} for n in (2048, 8192)},
    "precision": {
        name: bits(32, **{"train.precision": name}) for name in ("float32", "bfloat16", "float16")
    },
    "storage": {
        "plain": bits(8),
        **{
            f"codebook of {n}": bits(8, **{"compress.weights": "codebook", "compress.codebook": n})
            for n in (64, 16, 4)
        },
        **{
            f"rank {share:.0%}": bits(8, **{"compress.weights": "low_rank", "compress.rank": share})
            for share in (0.5, 0.25)
        },
    },
}


@contextlib.contextmanager
def cifar10(folder: str | None) -> Iterator[str | None]:
    """Where CIFAR-10 lies in its binary layout; None where it is not at hand."""
    if folder or not (SHARED / "unpack_cifar10.py").is_file():
        yield folder
        return
    with tempfile.TemporaryDirectory() as made:
        subprocess.run([sys.executable, SHARED / "unpack_cifar10.py", made], check=True)
        yield str(Path(made) / "cifar-10-batches-bin")


def priced(choices: dict) -> str:
    """Latency and energy on each accelerator, or that it cannot run."""
    cells = []
    for hardware in ACCELERATORS.values():
        [(metrics, reason)] = price_designs("cell", [{**choices, **hardware}])
        # a reason beside metrics is an accelerator too small for the words
        cells.append(
            "cannot run it".rjust(20)
            if reason
            else f"{metrics['latency_s'] * 1e6:7.1f} us {metrics['energy_j'] * 1e6:6.2f} uJ"
        )
    [(metrics, _)] = price_designs("cell", [{**choices, **ACCELERATORS["fixed 16-bit"]}])
    return f"{metrics['weight_bytes'] / 1024:6.1f} KiB  {cells[0]:>20}  {cells[1]:>20}"


def trained_price(choices: dict) -> str:
    """What a training step of the choice costs on the fixed 16-bit accelerator."""
    [(metrics, reason)] = price_designs(
        "cell", [{**choices, **ACCELERATORS["fixed 16-bit"]}], ("train_step_s",)
    )
    if reason:
        return reason
    return (
        f"a step of {metrics['train_step_s'] * 1e3:.2f} ms, {metrics['train_energy_j'] * 1e6:.0f} "
        f"uJ an image, {metrics['train_memory_bytes'] / 2**20:.1f} MiB"
    )


def run_part(part: str, executor: LocalExecutor, seeds: int) -> None:
    rows = {name: {**BASE, **extra} for name, extra in PARTS[part].items()}
    tasks = [(name, seed) for name in rows for seed in range(seeds)]
    for id, (name, seed) in enumerate(tasks):
        executor.submit({"id": id, "kind": "trial", "seed": seed, "choices": rows[name]})
    found: dict[str, list] = {name: [] for name in rows}
    for _ in tasks:
        result = executor.wait()
        name, _ = tasks[result["id"]]
        found[name].append(result.get("error") or result["metrics"]["accuracy"])
    names = list(ACCELERATORS)
    print(f"\n  {part:36} {'accuracy':14} {'weights':>10}  {names[0]:>20}  {names[1]:>20}")
    for name, choices in rows.items():
        errors = [each for each in found[name] if isinstance(each, str)]
        if errors:
            print(f"  {name:36} {errors[0]}")
            continue
        text = f"{np.mean(found[name]):.3f} +- {np.std(found[name], ddof=min(1, seeds - 1)):.3f}"
        price = trained_price(choices) if part in ("batch", "precision") else priced(choices)
        print(f"  {name:36} {text:14} {price}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--seeds", type=int, default=5)
    both = ["sample", "cifar10"]
    parser.add_argument("--sets", nargs="+", choices=both, default=both, metavar="SET")
    parser.add_argument("--data", help="CIFAR-10, binary layout; made of ../shared/data without")
    options = parser.parse_args()
    with cifar10(options.data) as folder, tempfile.TemporaryDirectory() as scratch:
        sample = {"dataset": "cifar10-sample", "epochs": 3}
        whole = {"dataset": "cifar10", "path": folder, "epochs": 2}
        large = [part for part in options.only if part == "batch"]  # 8,192 need images
        small = [part for part in options.only if part != "batch"]
        sets = []
        if "sample" in options.sets:
            sets = [("the embedded sample, 6,500 x 3", sample, options.only)]
        if folder and "cifar10" in options.sets:
            sets += [
                ("CIFAR-10, 10,000 x 2", {**whole, "images": 10000}, small),
                ("CIFAR-10, 45,000 x 2", whole, large),
            ]
        elif not folder:
            print("CIFAR-10 is not at hand (--data): its half is skipped")
        for number, (name, evaluator, parts) in enumerate(sets):
            if not parts:
                continue
            own = Path(scratch) / str(number)
            own.mkdir()
            with LocalExecutor(2, "proxy", evaluator, own / "log") as executor:
                print(f"\n{name}, {options.seeds} seeds, validation accuracy")
                for part in parts:
                    run_part(part, executor, options.seeds)


if __name__ == "__main__":
    main()
