"""Bit-widths: of weights and of activations, a stage each; first and last layer apart. And how a
training comes by them."""

from __future__ import annotations

from search_spaces.ops import Precision
from search_spaces.space import Choices, Decision, Space

GROUPS = ("stage0", "stage1", "stage2", "ends")  # "ends": the first and the last layer
TEXT_GROUPS = ("embedding", "recurrent", "output")  # of language models
# quantization-aware by LSQ or DoReFa, or fixed point after a training in float
METHODS = ("lsq", "dorefa", "post_training")
BITS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)
RANKS = (16, 32, 64)  # of a table of words whose rows a product brings to their width

SPACE = Space(
    [
        Decision(f"bits.{operand}.{group}", BITS, usual=BITS[1:])
        for operand in ("weights", "activations")
        for group in GROUPS[:-1]
    ]
    + [
        Decision("bits.ends", (4, 8, 16, 32)),
        Decision("bits.method", METHODS, usual=()),
    ]
)

# What a language model without it has nothing to store in, or to round: a table that is shared with
# the embedding is in its bits, and only a narrow table is read by a product of the embedding's.
TEXT_WHEN = {
    "bits.weights.output": {"embed.tied": (False,)},
    "bits.activations.embedding": {"embed.rank": RANKS},
}
# Every activation of a language model is signed, so that one bit has no level but 0.
TEXT_BITS = [
    Decision(name, BITS[first:], TEXT_WHEN.get(name, {}), usual=BITS[1:])
    for first, operand in enumerate(("weights", "activations"))
    for name in (f"bits.{operand}.{group}" for group in TEXT_GROUPS)
]


def groups(choices: Choices) -> tuple[str, ...]:
    """The names of the bit-width groups of a design."""
    return GROUPS if "bits.ends" in choices else TEXT_GROUPS


def quantization_method(choices: Choices) -> str:
    """How weights come by their bits, of METHODS."""
    return choices.get("bits.method", METHODS[0])


def precisions(choices: Choices) -> list[Precision]:
    """The precision of every group, in the order of `groups`.

    Without bits of their own, output weights have those of the embedding whose table they are, and
    what is looked up those in which the cells read it.
    """
    if "bits.ends" not in choices:
        instead = {
            "bits.weights.output": choices["bits.weights.embedding"],
            "bits.activations.embedding": choices["bits.activations.recurrent"],
        }
        choices = instead | choices
    found = [
        Precision(choices[f"bits.weights.{group}"], choices[f"bits.activations.{group}"])
        for group in groups(choices)
        if group != "ends"
    ]
    if "bits.ends" in choices:
        found.append(Precision(choices["bits.ends"], choices["bits.ends"]))
    return found
