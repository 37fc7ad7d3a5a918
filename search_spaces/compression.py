"""Smaller networks: what of the weights is left out, and how the rest is stored.

Off unless a search names it. Weights are stored as they are, as indices into a codebook (Han et
al., 1510.00149), or as two factors of low rank (Jaderberg et al., 1405.3866; Zhang et al.,
1505.06798). Pruned are whole filters (a ratio a stage, as AMC's, He et al., 1802.03494; or by group
lasso, Wen et al., 1608.03665), N of every M weights along a product's depth (Zhou et al.,
2102.04010), or single weights: by magnitude (Han et al., 1506.02626), by prune-and-grow (Evci et
al., 1911.11134), or at random before the first step ("static", what the others should beat). The
first and the last layer are left alone.

Training keeps full tensors and masks. Prices are of the tensors without what is masked, so that a
pruned filter must be silent: its scale and shift are zero, and so is what it hands on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hwmodel.workload import DEPTHWISE, Row, with_storage
from search_spaces.ops import Convolution, LowRankConvolution, Shape
from search_spaces.precision import GROUPS
from search_spaces.quantizers import UnbuildableError
from search_spaces.space import Choices, Decision, Space

if TYPE_CHECKING:
    from search_spaces.network import Network

STAGES = GROUPS[:-1]  # the groups that can be compressed
STRUCTURED = ("filters", "group_lasso")
UNSTRUCTURED = ("magnitude", "rigl", "static")
RATIOS = {"prune.method": STRUCTURED + UNSTRUCTURED}

SPACE = Space(
    [
        Decision("compress.weights", ("plain", "codebook", "low_rank"), usual=()),
        Decision("compress.codebook", (2, 4, 16, 64, 256), {"compress.weights": ("codebook",)}),
        # of the rank that the whole kernel has
        Decision("compress.rank", (0.125, 0.25, 0.5), {"compress.weights": ("low_rank",)}),
        Decision("prune.method", ("none", *STRUCTURED, "nm", *UNSTRUCTURED), usual=()),
        *(
            Decision(f"prune.density.{stage}", (1, 0.75, 0.5, 0.25, 0.1), RATIOS)
            for stage in STAGES
        ),
        Decision("prune.nm", ("2:4", "1:4", "4:8", "1:2"), {"prune.method": ("nm",)}),
    ]
)


@dataclass(frozen=True)
class Compression:
    """What becomes of the weights of one bit-width group; nothing, as it stands.

    filters: the share of every convolution's filters that is kept; density: the share of the
    weights that is not zero, in no pattern; nm: (N, M), N non-zeros in every M weights along K, not
    of depthwise kernels, whose K is one channel; index_bits: of indices into a codebook a layer.
    Raises ValueError for a share of filters outside (0, 1]; `hwmodel` checks the others.
    """

    filters: float = 1.0
    density: float = 1.0
    nm: tuple[int, int] | None = None
    index_bits: int = 0

    def __post_init__(self):
        if not 0 < self.filters <= 1:
            raise ValueError(
                f"the share of filters kept must be above 0 and at most 1, got {self.filters!r}"
            )

    @property
    def prunes(self) -> bool:
        """Whether some weights are zero."""
        return self.filters < 1 or self.density < 1 or self.nm is not None

    def stored(self, row: Row) -> Row:
        """A row of the hardware model with its weights stored so.

        Raises UnbuildableError where a codebook has more entries than the layer has weights.
        """
        if not row.weights or self == UNCOMPRESSED:
            return row
        if self.index_bits and row.weights < 2**self.index_bits:
            raise UnbuildableError(
                f"a codebook of {2**self.index_bits} entries is more than the {row.weights} "
                f"weights of '{row.name}'; choose a smaller compress.codebook or a wider network"
            )
        nm = None if row.kind == DEPTHWISE else self.nm
        density = None if self.density == 1 else self.density
        return with_storage(row, index_bits=self.index_bits, density=density, nm=nm)


UNCOMPRESSED = Compression()


def compressions(choices: Choices) -> list[Compression]:
    """The compression of every group, in the order of GROUPS.

    A codebook of as many entries as there are words in the chosen bits has all of them: such
    weights are stored as they are.
    """
    method = choices.get("prune.method", "none")
    nm = tuple(map(int, choices["prune.nm"].split(":"))) if method == "nm" else None
    index_bits = (choices.get("compress.codebook", 1) - 1).bit_length()
    found = []
    for stage in STAGES:
        ratio = choices.get(f"prune.density.{stage}", 1)
        found.append(
            Compression(
                filters=ratio if method in STRUCTURED else 1,
                density=ratio if method in UNSTRUCTURED else 1,
                nm=nm,
                index_bits=index_bits if index_bits < choices[f"bits.weights.{stage}"] else 0,
            )
        )
    return [*found, UNCOMPRESSED]


def n_kept(share: float, n_filters: int) -> int:
    """How many of a convolution's filters a share keeps: at least one."""
    return max(1, round(share * n_filters))


def narrowed(
    network: Network, compressions: Sequence[Compression]
) -> Iterator[tuple[object, list[Shape]]]:
    """(operation, input shapes) of every step without the filters that are pruned.

    What is pruned of a convolution is missing from its readers too, through operations on single
    channels (`Operation.drops_channels`); the others, sums for one, read a whole tensor again.
    """
    if all(each.filters == 1 for each in compressions):
        yield from ((step.op, own) for step, own in zip(network.steps, network.inputs, strict=True))
        return
    outputs: list[Shape] = []
    for step, whole in zip(network.steps, network.inputs, strict=True):
        op, inputs = step.op, whole
        if op.drops_channels:
            inputs = [
                shape if j < 0 else outputs[j] for j, shape in zip(step.inputs, whole, strict=True)
            ]
        if compressions[step.group].filters < 1 and hasattr(op, "filters"):
            op = replace(op, filters=n_kept(compressions[step.group].filters, op.filters))
        outputs.append(op.shape(inputs))
        yield op, inputs


def rank_share(choices: Choices) -> float:
    """The share of the full rank that kernels have; 1: they are not factored."""
    return choices.get("compress.rank", 1)


def factored(network: Network, share: float) -> Network:
    """The network with every square convolution that saves parameters by it in two factors.

    The rank is `share` of the least of k·k·channels and filters, at least 1. Raises ValueError for
    a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share of the rank must be above 0 and at most 1, got {share!r}")
    if share == 1:
        return network
    steps = []
    for step, [shape, *_] in zip(network.steps, network.inputs, strict=True):
        op = step.op
        square = type(op) is Convolution and isinstance(op.kernel, int)
        if square and network.groups[step.group] in STAGES:
            depth = op.kernel**2 * shape[2]
            rank = max(1, round(share * min(depth, op.filters)))
            if rank * (depth + op.filters) < depth * op.filters:
                op = LowRankConvolution(op.filters, op.kernel, rank, op.stride)
        steps.append(step._replace(op=op))
    return replace(network, steps=tuple(steps))


def svd_start(kernel: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The factors of `LowRankConvolution` nearest to a whole kernel [k, k, channels, filters].

    Returns (down [k, k, channels, rank], up [1, 1, rank, filters]), whose product is the best
    approximation of that rank in the sum of squares (Eckart and Young, 1936); each takes the root
    of the singular values. Raises ValueError for a rank below 1 or above the kernel's.
    """
    depth, filters = int(np.prod(kernel.shape[:3])), kernel.shape[3]
    if not 1 <= rank <= min(depth, filters):
        raise ValueError(
            f"a kernel of shape {kernel.shape} has factors of rank 1 to {min(depth, filters)}, "
            f"got {rank}"
        )
    left, values, right = np.linalg.svd(kernel.reshape(depth, filters), full_matrices=False)
    roots = np.sqrt(values[:rank])
    down, up = left[:, :rank] * roots, roots[:, None] * right[:rank]
    return down.reshape(*kernel.shape[:3], rank), up[None, None]
