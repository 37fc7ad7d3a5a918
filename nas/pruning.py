"""Pruning while a network trains, to exact densities, by masks that are set between its steps.

What is kept is chosen among *candidates*, weights or filters, that compete within *segments*: all
the weights of a kernel, M weights that follow each other along its depth, or all the filters of a
convolution. Every segment keeps a fixed number, so that the densities that are priced hold kernel
by kernel, to the weight:

    magnitude, rigl, static   the weights of a kernel; max(1, round(density * weights)) are kept
    nm                        M weights along K, the kernel flattened to [K, filters]; N are kept,
                              and ceil(N/M of them) of the shorter last ones
    filters, group_lasso      the filters of a convolution; `compression.n_kept` of them

A filter that is not kept has no weights, scale or shift, so that it gives exactly 0, in the batch's
statistics and in fixed ones, and so do the operations on single channels behind it, whose shifts
are held at 0 too: the network computes what one without these channels would.

The imports are NumPy's alone; a program of TensorFlow is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nas.layout import Layout
from search_spaces.compression import STRUCTURED, UNSTRUCTURED, Compression, n_kept
from search_spaces.network import IMAGE

# static: a random pattern from the first step, what prune-and-grow is to be better than
METHODS = (*STRUCTURED, "nm", *UNSTRUCTURED)
SCORES = ("l2", "l1", "gamma")

FIRST_CUT, LAST_CUT, N_CUTS = 0.1, 0.6, 20  # shares of the steps, and how often
SWAPS_UNTIL, FIRST_SWAP, N_SWAPS = 0.75, 0.3, 20  # Evci et al., 1911.11134, section 3 and 4.1


@dataclass(frozen=True)
class Pruning:
    """How what is left out is found; how much it is, `Recipe.compressions` says.

    method: of METHODS, or "none". score: of a filter, the L2 or L1 norm of its weights (Li et al.,
    1608.08710) or the size of its normalization's scale (Liu et al., 1708.06519); group lasso takes
    the L2 norm. lasso: the weight of group lasso's term in the loss. Raises ValueError.
    """

    method: str = "none"
    score: str = "l2"
    lasso: float = 0.01

    def __post_init__(self):
        for name, value, known in (
            ("method", self.method, ("none", *METHODS)),
            ("score", self.score, SCORES),
        ):
            if value not in known:
                raise ValueError(f"unknown pruning {name} {value!r}; known: {', '.join(known)}")
        if not 0 <= self.lasso < np.inf:
            raise ValueError(f"the weight of group lasso must be at least 0, got {self.lasso!r}")
        if self.score != "l2" and self.method != "filters":
            raise ValueError(
                f"pruning score {self.score!r} is of filters, but the method is {self.method!r}; "
                "use 'l2'"
            )


UNPRUNED = Pruning()


def check(pruning: Pruning, compressions: Sequence[Compression], groups: Sequence[str]) -> None:
    """Raise ValueError where a group is to be pruned in a way that the method does not know."""
    for group, each in zip(groups, compressions, strict=True):
        if not 0 < each.density <= 1:
            raise ValueError(
                f"group '{group}': the density must be above 0 and at most 1, got {each.density!r}"
            )
        if each.nm is not None and not 1 <= each.nm[0] <= each.nm[1]:
            raise ValueError(
                f"group '{group}': N:M keeps N of every M weights, 1 <= N <= M; got "
                f"{each.nm[0]}:{each.nm[1]}"
            )
        asked = {
            "a share of filters": each.filters < 1,
            "N:M": each.nm is not None,
            "a density": each.density < 1,
        }
        [known] = [
            what
            for what, methods in zip(
                asked, (STRUCTURED, ("nm",), (*UNSTRUCTURED, "none")), strict=True
            )
            if pruning.method in methods
        ]
        for what, is_asked in asked.items():
            if is_asked and (what != known or pruning.method == "none"):
                raise ValueError(
                    f"group '{group}' asks for {what}, but pruning is '{pruning.method}'; "
                    f"methods: {', '.join(METHODS)}"
                )


def best(scores: np.ndarray, segments: np.ndarray, n_keep: np.ndarray) -> np.ndarray:
    """Which candidates are the `n_keep` [segments] highest of their segment: bool [candidates].

    scores, segments: [candidates]. Of equal scores the first are taken.
    """
    order = np.lexsort((-scores, segments))
    sizes = np.bincount(segments, minlength=len(n_keep))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen = np.zeros(len(order), bool)
    chosen[order] = rank < np.repeat(n_keep, sizes)
    return chosen


class Pattern:
    """The candidates of a network: what belongs to each, and where each competes.

    candidate: int64 [n], the candidate that each learned value lives and dies with; n_candidates
    for what always stays. segment: int64 [n_candidates]. n_keep: int64 [segments].
    """

    def __init__(self, layout: Layout, compressions: Sequence[Compression]):
        self.layout, self.compressions = layout, compressions
        self.candidate = np.full(layout.n, -1)
        self._segments: list[np.ndarray] = []
        self._n_keep: list[np.ndarray] = []
        self.n_candidates = 0
        for place in layout.kernels:
            self._add_weights(place)
        self._add_filters()
        self.candidate[self.candidate < 0] = self.n_candidates
        self.segment = np.concatenate([np.zeros(0, np.int64), *self._segments])
        self.n_keep = np.concatenate([np.zeros(0, np.int64), *self._n_keep])
        self.sizes = np.bincount(self.segment, minlength=len(self.n_keep))

    def _compete(self, segment: np.ndarray, n_keep) -> np.ndarray:
        """Add candidates; segment: of each, from 0. Returns their numbers, in the same shape."""
        n_segments = sum(map(len, self._n_keep))
        self._segments.append(segment.ravel() + n_segments)
        self._n_keep.append(np.atleast_1d(n_keep))
        first, self.n_candidates = self.n_candidates, self.n_candidates + segment.size
        return np.arange(first, self.n_candidates).reshape(segment.shape)

    def _add_weights(self, place) -> None:
        """The single weights of a kernel, where its group asks for a density or for N:M."""
        each, shape = self.compressions[place.group], place.parameter.shape
        own = self.layout.slice(place)
        if each.density < 1:
            n = int(np.prod(shape))
            self.candidate[own] = self._compete(
                np.zeros(n, np.int64), max(1, round(each.density * n))
            )
        elif each.nm is not None and not self._by_channel(place.step):
            n, m = each.nm
            depth, filters = int(np.prod(shape[:-1])), shape[-1]
            blocks = np.minimum(m, depth - np.arange(0, depth, m))  # their lengths
            column = np.repeat(np.arange(len(blocks)), blocks)
            segment = column[:, None] * filters + np.arange(filters)
            n_keep = np.repeat(-(-blocks * n // m), filters)
            self.candidate[own] = self._compete(segment, n_keep).ravel()

    def _add_filters(self) -> None:
        """The filters of every convolution whose group keeps a share, and what follows them."""
        network = self.layout.network
        followed: list[np.ndarray] = []  # per step: of each output channel its filter, or -1
        for i, step in enumerate(network.steps):
            channels = np.full(step.op.shape(network.inputs[i])[-1], -1)
            share = self.compressions[step.group].filters
            if hasattr(step.op, "filters"):
                if share < 1:
                    none = np.zeros(len(channels), np.int64)
                    channels = self._compete(none, n_kept(share, len(channels)))
            elif step.op.drops_channels and self._by_channel(i) and step.inputs[0] != IMAGE:
                channels = followed[step.inputs[0]]
            followed.append(channels)
            if channels.max() < 0:
                continue
            for place in network.places:
                if place.step == i and place.parameter.shape[-1:] == channels.shape:
                    shaped = np.broadcast_to(channels, place.parameter.shape)
                    self.candidate[self.layout.slice(place)] = shaped.ravel()

    def _by_channel(self, step: int) -> bool:
        """Whether each output channel of an operation reads one input channel, its own."""
        op = self.layout.network.steps[step].op
        kernels = [p for p in self.layout.kernels if p.step == step]
        return not hasattr(op, "filters") and all(p.parameter.shape[-2] == 1 for p in kernels)

    def totals(self, numbers: np.ndarray, start: int = 0) -> np.ndarray:
        """The sum over the values of each candidate: float64 [n_candidates]; `numbers` are of the
        learned values from `start` on."""
        own = self.candidate[start : start + len(numbers)]
        return np.bincount(own, numbers, self.n_candidates + 1)[: self.n_candidates]

    def spread(self, numbers: np.ndarray, otherwise) -> np.ndarray:
        """`numbers` [n_candidates] for each learned value [n]; `otherwise` for what stays."""
        return np.append(numbers, otherwise)[self.candidate]

    def mask(self, chosen: np.ndarray) -> np.ndarray:
        """For `Program.set_mask`: what stays where the `chosen` candidates do."""
        return self.spread(chosen, True).astype(np.float32)

    def scores(self, values: np.ndarray, score: str = "l2") -> np.ndarray:
        """How much each candidate counts, by the learned values [n]: float64 [n_candidates]."""
        n = self.layout.n_weights
        if score == "gamma":
            sizes = np.zeros(self.layout.n)
            for place in self.layout.others:
                if place.parameter.kind == "scale":
                    own = self.layout.slice(place)
                    sizes[own] = np.abs(values[own])
            return self.totals(sizes)
        kernels = values[:n].astype(np.float64)
        return self.totals(np.abs(kernels) if score == "l1" else kernels**2)


def milestones(first: int, last: int, n: int) -> dict[int, float]:
    """Up to `n` steps in equal distances after `first`, the last of them `last`: each with how far
    it is on the way, in (0, 1]."""
    way = np.arange(1, n + 1) / n
    at = np.maximum(np.rint(first + way * (last - first)).astype(int), first + 1)
    return dict(zip(at.tolist(), way.tolist(), strict=True))


def between(first: int, last: int, share: float) -> int:
    """The step at a share of the way."""
    return first + round(share * (last - first))


class GradualPruning:
    """The lowest candidates go, more and more of them, and do not come back.

    How many have gone follows Zhu & Gupta (1710.01878, eq. 1) in each segment: quickly at first,
    1 - (1 - t)^3 of what is to go, over N_CUTS cuts from FIRST_CUT to LAST_CUT of the steps.
    """

    def __init__(self, stepper, pattern: Pattern, pruning: Pruning, steps: tuple[int, int], seed):
        self.stepper, self.pattern, self.score = stepper, pattern, pruning.score
        self.cuts = milestones(between(*steps, FIRST_CUT), between(*steps, LAST_CUT), N_CUTS)

    def __call__(self, step: int, rate: float, images, labels, rows) -> None:
        if step in self.cuts:
            pattern, program = self.pattern, self.stepper.program
            left = (1 - self.cuts[step]) ** 3
            n_keep = pattern.n_keep + np.rint((pattern.sizes - pattern.n_keep) * left).astype(int)
            scores = pattern.scores(program.get_values(), self.score)
            program.set_mask(pattern.mask(best(scores, pattern.segment, n_keep)))

    def state(self) -> dict[str, np.ndarray]:
        return {}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """The mask is the program's."""


class GroupLasso:
    """Filters shrink towards 0 while they train, and the smallest go at LAST_CUT of the steps.

    The term lasso * sqrt(weights) * |filter| a filter (Yuan & Lin 2006, eq. 2.1; Wen et al.,
    1608.03665), by its proximal step after every update: each filter is shortened by rate * lasso *
    sqrt(weights), to 0 where it is no longer. One at 0 is gone at once, but for as many as are to
    stay: the longest of each convolution are never shortened to 0.
    """

    def __init__(self, stepper, pattern: Pattern, pruning: Pruning, steps: tuple[int, int], seed):
        self.stepper, self.pattern, self.lasso = stepper, pattern, pruning.lasso
        self.last = max(between(*steps, LAST_CUT), steps[0] + 1)
        n = pattern.layout.n_weights
        self.roots = np.sqrt(pattern.totals(np.ones(n)))
        self.alive = np.ones(pattern.n_candidates, bool)

    def __call__(self, step: int, rate: float, images, labels, rows) -> None:
        if step > self.last:
            return
        pattern, program = self.pattern, self.stepper.program
        values = program.get_values()
        lengths = np.sqrt(pattern.scores(values))
        longest = best(lengths, pattern.segment, pattern.n_keep)
        factors = shrinkage(lengths, rate * self.lasso * self.roots)
        factors[longest & (factors == 0)] = 1
        n = pattern.layout.n_weights
        values[:n] *= pattern.spread(factors, 1.0)[:n].astype(np.float32)
        program.set_values(values)
        alive = longest if step == self.last else factors > 0
        if (alive != self.alive).any():
            self.alive = alive
            program.set_mask(pattern.mask(alive))

    def state(self) -> dict[str, np.ndarray]:
        return {"alive": self.alive}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        self.alive = state["alive"]


def shrinkage(lengths: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The proximal step of group lasso as factors: max(0, 1 - threshold / length); 0 of none."""
    safe = np.where(lengths > 0, lengths, 1)
    return np.where(lengths > 0, np.maximum(0, 1 - thresholds / safe), 0)


class PruneAndGrow:
    """RigL (Evci et al., 1911.11134): a pattern at its density from the first step, improved.

    Up to N_SWAPS times until SWAPS_UNTIL of the steps, the smallest of each kernel's weights are
    dropped and as many others grown at 0, those with the largest gradients, which are taken on the
    coming batch; how many, falls by a cosine from FIRST_SWAP of the weights kept. The density of
    every kernel is its group's (their "uniform"). Without gradients it is a static random pattern.
    """

    def __init__(self, stepper, pattern: Pattern, pruning: Pruning, steps: tuple[int, int], seed):
        self.stepper, self.pattern = stepper, pattern
        scores = np.random.default_rng([seed, 2]).random(pattern.n_candidates)
        self.alive = best(scores, pattern.segment, pattern.n_keep)
        stepper.program.set_mask(pattern.mask(self.alive))
        last = between(*steps, SWAPS_UNTIL)
        self.swaps = milestones(steps[0], last, N_SWAPS) if pruning.method == "rigl" else {}

    def __call__(self, step: int, rate: float, images, labels, rows) -> None:
        way = self.swaps.get(step, 1.0)
        if way < 1:
            program = self.stepper.program
            weights = self.pattern.scores(program.get_values())
            gradients = self.stepper.kernel_gradient(images, labels, rows).astype(np.float64)
            self.alive = swapped(
                self.alive,
                weights,
                self.pattern.totals(gradients**2),
                self.pattern,
                FIRST_SWAP * (1 + np.cos(np.pi * way)) / 2,
            )
            program.set_mask(self.pattern.mask(self.alive))

    def state(self) -> dict[str, np.ndarray]:
        return {"alive": self.alive}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        self.alive = state["alive"]


def swapped(
    alive: np.ndarray, weights: np.ndarray, gradients: np.ndarray, pattern: Pattern, share: float
) -> np.ndarray:
    """The candidates after one swap: the `share` of those alive with the smallest `weights` are
    dropped, and as many with the largest `gradients` grown. All arrays [n_candidates].

    One that was just dropped can grow again, and then has not moved (as in the paper's code).
    """
    room = pattern.sizes - pattern.n_keep
    n_swap = np.minimum(np.rint(share * pattern.n_keep).astype(int), room)
    stays = best(np.where(alive, weights, -1), pattern.segment, pattern.n_keep - n_swap)
    return stays | best(np.where(stays, -1, gradients), pattern.segment, n_swap)


TECHNIQUES: dict[str, Callable] = {
    "filters": GradualPruning,
    "nm": GradualPruning,
    "magnitude": GradualPruning,
    "group_lasso": GroupLasso,
    "rigl": PruneAndGrow,
    "static": PruneAndGrow,
}
