"""What a recipe does to the weights between the steps: pruning, codebooks, low-rank factors.

A technique is an object that is called after every step; it sees the training begin when it is
made, and its end in the last call. It changes masks, clusters or values of the stepper's program.
A recipe that asks for none has none, and costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np

from nas import codebook, low_rank, pruning
from nas.layout import Layout
from search_spaces.network import Network

if TYPE_CHECKING:
    from nas.program import Program
    from nas.train import Recipe, Stepper


class Technique(Protocol):
    def __call__(
        self, step: int, rate: float, images: np.ndarray, labels: np.ndarray, rows: np.ndarray
    ) -> None:
        """step: how many are done, from 1 to all; rate: of the last one; rows: its images."""

    def state(self) -> dict[str, np.ndarray]:
        """All that `restore` needs beside the program's own state."""

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on as the technique that gave `state`, before the program is restored."""


def check(network: Network, recipe: Recipe) -> None:
    """Raise ValueError where the network cannot be compressed as the recipe asks."""
    if not 0 <= recipe.whole_until < 1:
        raise ValueError(
            f"whole_until, the share of the steps before kernels are factored, must be at least 0 "
            f"and below 1, got {recipe.whole_until!r}"
        )
    if not recipe.compressions:
        return
    if len(recipe.compressions) != len(network.groups):
        raise ValueError(
            f"{len(recipe.compressions)} compressions for {len(network.groups)} bit-width groups "
            f"({', '.join(network.groups)}); give one a group"
        )
    pruning.check(recipe.pruning, recipe.compressions, network.groups)
    codebook.check(Layout(network), recipe.compressions)


def first_network(network: Network, recipe: Recipe) -> Network:
    """The network that training starts with."""
    return low_rank.whole(network) if recipe.whole_until else network


def begin(
    network: Network,
    recipe: Recipe,
    stepper: Stepper,
    make: Callable[[], Program],
    n_steps: int,
    seed: int,
) -> list[Technique]:
    """The techniques of a training, in the order of their calls; `stepper.program` is started.

    make: gives the program of `network` itself, where training starts with another.
    """

    def begun(first: int) -> list[Technique]:
        steps, found = (first, n_steps), []
        if stepper.program.switches.masked:
            pattern = pruning.Pattern(stepper.program.layout, recipe.compressions)
            technique = pruning.TECHNIQUES[recipe.pruning.method]
            found.append(technique(stepper, pattern, recipe.pruning, steps, seed))
        if stepper.program.switches.tied:
            found.append(codebook.Codebook(stepper, recipe.compressions, steps))
        return found

    if stepper.program.network == network:
        return begun(0)
    at = max(1, round(recipe.whole_until * n_steps))
    return [low_rank.LowRank(stepper, network, at, make, partial(begun, at))]
