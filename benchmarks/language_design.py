"""The designs and recipes that the benchmarks of language models share."""

from __future__ import annotations

from nas import text
from search_spaces.precision import precisions

BATCH, WORDS, UNITS, SAMPLES = 64, 35, 128, 512
GROUPS = ("embedding", "recurrent", "output")
CACHE = {
    "memory.kind": "cache", "memory.slots": 256, "memory.share": 0.1, "memory.sharpness": 6,
}  # fmt: skip
ACCELERATOR = {
    "hw.rows": 32,
    "hw.columns": 32,
    "hw.dataflow": "ws",
    "hw.weight_plane": True,
    "hw.multiplier": "fixed8",
    "hw.sram_input_kib": 256,
    "hw.sram_weight_kib": 256,
    "hw.sram_output_kib": 256,
    "hw.bandwidth_gbps": 16,
    "hw.clock_mhz": 700,
}


def bits(n: int) -> dict:
    """All weights and activations of `n` bits."""
    kinds = "weights", "activations"
    return {f"bits.{kind}.{group}": n for kind in kinds for group in GROUPS}


def design(found: text.Text, **choices) -> dict:
    """Choices of one model: an LSTM of 8 bits, unless told otherwise."""
    return {
        "text.vocabulary": len(found.words),
        "rnn.cell": "lstm",
        "rnn.units": UNITS,
        "embed.width": UNITS,
        "embed.tied": False,
        "train.words": WORDS,
        "train.batch": BATCH,
        "serve.words": WORDS,
        "serve.batch": 1,
        **ACCELERATOR,
        **bits(8),
        **choices,
    }


def recipe(choices: dict, epochs: int, **given):
    from nas.language import TextRecipe

    weights, activations = zip(*precisions(choices), strict=True)
    settings = dict(
        batch=choices["train.batch"],
        words=choices["train.words"],
        epochs=epochs,
        learning_rate=0.008,
        warmup=0.1,
        weight_bits=weights,
        activation_bits=activations,
        samples=SAMPLES,
    )
    return TextRecipe(**{**settings, **given})


def show(*cells) -> None:
    print(
        "  ".join(f"{cell:>14}" if i else f"{cell:<34}" for i, cell in enumerate(cells)), flush=True
    )
