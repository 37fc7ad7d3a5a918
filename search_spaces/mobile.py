"""MobileNet-like networks: inverted residuals with linear bottlenecks.

MobileNetV2 (Sandler et al., arXiv 1801.04381): a block expands its input by a 1 x 1 convolution,
filters each channel by itself, and projects back without an activation; where shapes allow, its
input is added. Expansion, kernel, depth and squeeze-excite are chosen a stage, as in MnasNet (Tan
et al., 1807.11626) and MobileNetV3 (Howard et al., 1905.02244).

Where we differ: squeeze-excite scales the sums before the activation, so that the projection reads
what one quantization leaves; a bottleneck is quantized, signed, where the next block's product
reads it, and its sums go on to the addition.
"""

from __future__ import annotations

from hwmodel.workload import Layers
from search_spaces.compression import compressions, factored, rank_share
from search_spaces.network import ACTIVATION, IMAGE, Network, Plan, add_head, live
from search_spaces.ops import Add, Convolution, Dense, DepthwiseConvolution, Gate, GlobalPool
from search_spaces.precision import GROUPS, precisions
from search_spaces.space import Choices, Decision, Space

FILTERS = (16, 32, 64)  # of the stages, times the width
HEAD_EXPANSION = 4  # of the last 1 x 1 convolution: 1280 / 320 in MobileNetV2
DIVISOR = 4  # numbers of channels are multiples of it

SPACE = Space(
    [
        decision
        for stage in range(3)
        for decision in (
            Decision(f"mobile.stage{stage}.expansion", (1, 2, 3, 4, 5, 6)),
            Decision(f"mobile.stage{stage}.kernel", (3, 5, 7)),
            Decision(f"mobile.stage{stage}.depth", (1, 2, 3, 4)),
            # channels of the squeeze over those that it scales; 0: none
            Decision(f"mobile.stage{stage}.squeeze", (0.0, 0.25)),
        )
    ]
    + [
        Decision("mobile.width", (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)),
        Decision("mobile.resolution", (16, 24, 32)),
        ACTIVATION,
    ]
)

# A large member of the family, for students to learn from. Its resolution is the student's.
TEACHER = {"mobile.width": 1.5} | {
    f"mobile.stage{stage}.{name}": value
    for stage in range(3)
    for name, value in (("expansion", 4), ("kernel", 3), ("depth", 3), ("squeeze", 0.25))
}


def divisible(channels: float) -> int:
    """The nearest multiple of DIVISOR, no less than it nor than nine tenths of `channels`."""
    nearest = max(DIVISOR, int(channels + DIVISOR / 2) // DIVISOR * DIVISOR)
    return nearest + DIVISOR if nearest < 0.9 * channels else nearest


def add_squeeze_excite(plan: Plan, name: str, source: int, channels: int, ratio: float, group: int):
    """Write down what scales each channel of a step's sums; returns the scaled sums."""
    at = plan.add(f"{name}.pool", GlobalPool(sums=True), source, group=group)
    at = plan.activated(at, "linear", group)
    at = plan.add(f"{name}.squeeze", Dense(divisible(ratio * channels)), at, group=group)
    at = plan.activated(at, "relu", group)
    at = plan.add(f"{name}.excite", Dense(channels), at, group=group)
    return plan.add(f"{name}.gate", Gate(), source, at, group=group)


def add_block(
    plan: Plan,
    name: str,
    source: int,
    *,
    channels: tuple[int, int],
    expansion: int,
    kernel: int,
    squeeze: float,
    stride: int,
    group: int,
    function: str,
    entry: str,
) -> int:
    """Write one block down. channels: (in, out); entry: what the block's input passes through."""
    n_in, n_out = channels
    wide = expansion * n_in
    at = plan.activated(source, entry, group)
    if expansion > 1:
        at = plan.add(f"{name}.expand", Convolution(wide, 1), at, group=group)
        at = plan.activated(at, function, group)
    at = plan.add(f"{name}.depthwise", DepthwiseConvolution(kernel, stride), at, group=group)
    if squeeze:
        at = add_squeeze_excite(plan, name, at, wide, squeeze, group)
    at = plan.activated(at, function, group)
    at = plan.add(f"{name}.project", Convolution(n_out, 1), at, group=group)
    if stride == 1 and n_in == n_out:
        at = plan.add(f"{name}.add", Add(), source, at, group=group)
    return at


def network(choices: Choices) -> Network:
    """The network of `choices`: three stages of blocks between a stem and a head."""
    function = choices.get("net.activation", "relu")
    filters = [divisible(n * choices["mobile.width"]) for n in FILTERS]
    ends = GROUPS.index("ends")
    plan = Plan()
    n_in, entry = filters[0], function
    at = plan.add("stem", Convolution(n_in, 3, image=True), IMAGE, group=ends)
    for stage, n_out in enumerate(filters):
        for i in range(choices[f"mobile.stage{stage}.depth"]):
            at = add_block(
                plan,
                f"stage{stage}.block{i}",
                at,
                channels=(n_in, n_out),
                expansion=choices[f"mobile.stage{stage}.expansion"],
                kernel=choices[f"mobile.stage{stage}.kernel"],
                squeeze=choices[f"mobile.stage{stage}.squeeze"],
                stride=2 if stage and not i else 1,
                group=stage,
                function=function,
                entry=entry,
            )
            n_in, entry = n_out, "linear"
    at = plan.activated(at, "linear", 2)
    at = plan.add("head.conv", Convolution(HEAD_EXPANSION * n_in, 1), at, group=2)
    add_head(plan, at, function, ends)
    resolution = choices["mobile.resolution"]
    whole = Network(live(plan.steps), (resolution, resolution, 3), GROUPS)
    return factored(whole, rank_share(choices))


def build(choices: Choices):
    """The float network of `choices` as a `keras.Model`, freshly initialized."""
    return network(choices).keras()


def layers(choices: Choices) -> Layers:
    """Its rows for the hardware model, in the chosen bits, at the serving batch."""
    bits, compressed = precisions(choices), compressions(choices)
    return network(choices).layers(bits, choices["serve.batch"], compressed)
