"""Kernels in two factors: trained whole for a while, and then as the nearest factors.

A network of `LowRankConvolution` starts as the network of whole convolutions; at a share of the
steps every kernel becomes its best factors of the rank (Denton et al., 1404.0736, section 3.2, and
Zhang et al., 1505.06798: `compression.svd_start`), all else is taken over by name, and training
goes on, without the momentum of before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from nas.checkpoint import joined, parts
from nas.layout import Layout
from search_spaces.compression import svd_start
from search_spaces.network import Network
from search_spaces.ops import Convolution, LowRankConvolution
from search_spaces.quantizers import initial_step


def whole(network: Network) -> Network:
    """The network with every pair of factors as one convolution."""
    return replace(
        network,
        steps=tuple(
            step._replace(op=Convolution(step.op.filters, step.op.kernel, step.op.stride))
            if isinstance(step.op, LowRankConvolution)
            else step
            for step in network.steps
        ),
    )


def factored_values(
    values: np.ndarray, network: Network, weight_bits: Sequence[int], method: str = "lsq"
) -> np.ndarray:
    """Learned values of a network with factors from those of `whole(network)`; each factor has a
    fresh quantization step."""
    before, after = Layout(whole(network)), Layout(network)
    tensors = before.named(values)
    for step in network.steps:
        if isinstance(step.op, LowRankConvolution):
            tensors.pop(f"{step.name}/kernel.step")
            factors = svd_start(tensors.pop(f"{step.name}/kernel"), step.op.rank)
            for name, factor in zip(("down", "up"), factors, strict=True):
                size = initial_step(factor, int(weight_bits[step.group]), method)
                tensors |= {f"{step.name}/{name}": factor, f"{step.name}/{name}.step": size}
    return after.joined(tensors)


class LowRank:
    """Replaces the stepper's program at a step; what else a recipe does begins then.

    make: gives the program of the factored network; begin: the techniques that follow.
    """

    def __init__(self, stepper, network: Network, at: int, make: Callable, begin: Callable):
        self.stepper, self.network, self.at = stepper, network, at
        self.make, self.begin = make, begin
        self.following: list = []

    def __call__(self, step: int, *arguments) -> None:
        for technique in self.following:
            technique(step, *arguments)
        if step == self.at:
            values = self.stepper.program.get_values()
            self.stepper.program = self.make()
            recipe = self.stepper.recipe
            self.stepper.program.start(
                factored_values(values, self.network, recipe.weight_bits, recipe.method)
            )
            self.following = self.begin()

    def state(self) -> dict[str, np.ndarray]:
        factored = self.stepper.program.network == self.network
        following = joined([technique.state() for technique in self.following])
        return {"factored": np.array(factored), **following}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        own = dict(state)
        if own.pop("factored"):
            self.stepper.program = self.make()
            self.stepper.program.start(np.zeros(Layout(self.network).n, np.float32))
            self.following = self.begin()
            for technique, each in zip(
                self.following, parts(own, len(self.following)), strict=True
            ):
                technique.restore(each)
