"""How a candidate is trained and served: batch sizes, and the learning rate that goes with them."""

from __future__ import annotations

from search_spaces.space import Choices, Decision, Space

REFERENCE_BATCH = 128  # the batch whose learning rate is `train.learning_rate` itself
MAX_MICRO_BATCH = 512  # larger batches are summed up from gradients of so many images

SPACE = Space(
    [
        Decision("train.batch", (32, 64, 128, 256, 512)),
        Decision("train.learning_rate", (0.05, 0.1, 0.2, 0.4)),
        # the rate follows the batch in proportion (Goyal et al., 1706.02677) or by its root
        Decision("train.lr_rule", ("linear", "sqrt"), {"train.batch": (32, 64, 256, 512)}),
        Decision("train.warmup", (0.1, 0.3), {"train.batch": (128, 256, 512)}),
        Decision("serve.batch", (1, 4, 16, 64)),
    ]
)


def peak_learning_rate(choices: Choices) -> float:
    """The highest learning rate of the schedule, scaled from the reference batch."""
    ratio = choices["train.batch"] / REFERENCE_BATCH
    rule = choices.get("train.lr_rule", "linear")
    return choices["train.learning_rate"] * (ratio if rule == "linear" else ratio**0.5)


def warmup_share(choices: Choices) -> float:
    """The share of the steps over which the rate rises; small batches need next to none."""
    return choices.get("train.warmup", 0.05)
