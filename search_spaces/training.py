"""How a candidate is trained and served: batches, the rule of the learning rate, and what a search
may choose besides: optimizer, schedule, precision, what is done to the images, a teacher.

The latter are off unless a search names them.
"""

from __future__ import annotations

from search_spaces.space import Choices, Decision, Space

REFERENCE_BATCH = 128  # the batch whose learning rate is `train.learning_rate` itself
MAX_MICRO_BATCH = 512  # larger batches are summed up from gradients of so many images
BATCHES = tuple(2**k for k in range(3, 16))
SCALED = tuple(batch for batch in BATCHES if batch != REFERENCE_BATCH)
WARMED_UP = tuple(batch for batch in BATCHES if batch >= REFERENCE_BATCH)
# Adam's rates are those of momentum times this, so that 0.1 is its usual 0.001.
ADAM_RATE = 0.01
PRECISIONS = ("float32", "bfloat16", "float16")  # of the products of a training

SPACE = Space(
    [
        Decision("train.batch", BATCHES, usual=(32, 64, 128, 256, 512)),
        Decision("train.learning_rate", (0.05, 0.1, 0.2, 0.4)),
        # the rate follows the batch in proportion (Goyal et al., 1706.02677), by its root, or not
        Decision(
            "train.lr_rule",
            ("linear", "sqrt", "none"),
            {"train.batch": SCALED},
            usual=("linear", "sqrt"),
        ),
        Decision("train.warmup", (0.1, 0.3), {"train.batch": WARMED_UP}),
        Decision("train.optimizer", ("momentum", "lars", "adam"), usual=()),
        Decision("train.schedule", ("triangle", "cosine", "steps", "constant"), usual=()),
        Decision("train.precision", PRECISIONS, usual=()),
        Decision("augment.flip", ("none", "random", "alternating"), usual=()),
        Decision("augment.crop", (0, 0.0625, 0.125), usual=()),  # of the side, either way
        Decision("augment.cutout", (0, 0.25, 0.5), usual=()),  # of the side
        Decision("image.normalization", ("channel", "image", "none"), usual=()),
        Decision("distill.weight", (0, 0.3, 0.5, 0.9), usual=()),  # of the teacher in the loss
        Decision("distill.temperature", (1, 2, 4, 8), {"distill.weight": (0.3, 0.5, 0.9)}),
        Decision("serve.batch", (1, 4, 16, 64)),
    ]
)
SCALING = {"linear": 1.0, "sqrt": 0.5, "none": 0.0}  # rule -> exponent of the batch


def peak_learning_rate(choices: Choices) -> float:
    """The highest learning rate of the schedule, scaled from the reference batch and, of Adam, to
    its own size."""
    ratio = choices["train.batch"] / REFERENCE_BATCH
    rate = choices["train.learning_rate"] * ratio ** SCALING[choices.get("train.lr_rule", "linear")]
    return rate * ADAM_RATE if choices.get("train.optimizer") == "adam" else rate


def warmup_share(choices: Choices) -> float:
    """The share of the steps over which the rate rises; small batches need next to none."""
    return choices.get("train.warmup", 0.05)
