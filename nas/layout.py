"""Everything that a network learns, end to end in one flat vector.

Kernels come first, then normalization scales, shifts and biases, then a clip an activation, then a
quantization step a kernel: quantizing all weights, masking them and applying the optimizer are
single passes over it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from search_spaces.network import Network, Place
from search_spaces.quantizers import dequantized, initial_clip, initial_step

MIN_STEP, MIN_CLIP = 1e-8, 1e-6  # added to the magnitude of what is learned


@dataclass(frozen=True)
class Layout:
    """Where every learned tensor of `network` lies in a vector float32 [n]."""

    network: Network

    def _of_kind(self, *kinds: str) -> list[Place]:
        return [p for p in self.network.places if p.parameter.kind in kinds]

    @cached_property
    def kernels(self) -> list[Place]:
        return self._of_kind("kernel")

    @cached_property
    def others(self) -> list[Place]:
        """Scales and shifts."""
        return self._of_kind("scale", "shift")

    @cached_property
    def clips(self) -> list[Place]:
        return self._of_kind("clip")

    @cached_property
    def kernel_sizes(self) -> list[int]:
        return [int(np.prod(p.parameter.shape)) for p in self.kernels]

    @cached_property
    def other_sizes(self) -> list[int]:
        return [int(np.prod(p.parameter.shape)) for p in self.others]

    @cached_property
    def parts(self) -> list[int]:
        """How long each part is: kernels, others, clips, steps."""
        n_kernels = sum(self.kernel_sizes), len(self.kernels)
        return [n_kernels[0], sum(self.other_sizes), len(self.clips), n_kernels[1]]

    @property
    def n(self) -> int:
        return sum(self.parts)

    @property
    def n_weights(self) -> int:
        """How many kernel weights there are: the first part."""
        return self.parts[0]

    @cached_property
    def owner(self) -> np.ndarray:
        """The kernel that each kernel weight belongs to: int32 [n_weights]."""
        return np.repeat(np.arange(len(self.kernels), dtype=np.int32), self.kernel_sizes)

    @cached_property
    def _slices(self) -> dict[tuple[int, str], slice]:
        places = [*self.kernels, *self.others, *self.clips]
        sizes = [*self.kernel_sizes, *self.other_sizes, *[1] * len(self.clips)]
        ends = np.cumsum(sizes).tolist()
        return {
            (place.step, place.parameter.name): slice(end - size, end)
            for place, size, end in zip(places, sizes, ends, strict=True)
        }

    def slice(self, place: Place) -> slice:
        """Where a tensor's values lie."""
        return self._slices[place.step, place.parameter.name]

    def split(self, vector: np.ndarray) -> list[np.ndarray]:
        """Views of the four parts."""
        return np.split(vector, np.cumsum(self.parts)[:-1])

    def pieces(self, part: np.ndarray) -> list[np.ndarray]:
        """Views of each kernel, in its shape, of a vector of all of them [n_weights]."""
        ends = np.cumsum(self.kernel_sizes)[:-1]
        return [
            piece.reshape(place.parameter.shape)
            for piece, place in zip(np.split(part, ends), self.kernels, strict=True)
        ]

    def initial(self, seed: int, weight_bits, method: str = "lsq") -> np.ndarray:
        """Fresh weights and first quantization steps; clips are 1 yet."""
        rng = np.random.default_rng(seed)
        drawn, steps = {}, []
        for place in self.network.places:
            if place.parameter.kind == "kernel":
                fan_in = int(np.prod(place.parameter.shape[:-1]))
                deviation = place.parameter.deviation or np.sqrt(2 / fan_in)
                kernel = rng.normal(0, deviation, place.parameter.shape)
                drawn[id(place)] = kernel.astype(np.float32)
                bits = int(weight_bits[place.group])
                steps.append(initial_step(drawn[id(place)], bits, method))
        fills = [
            np.full(size, place.parameter.kind == "scale", np.float32)
            for place, size in zip(self.others, self.other_sizes, strict=True)
        ]
        kernels = [drawn[id(place)].ravel() for place in self.kernels]
        ones = np.ones(len(self.clips), np.float32)
        return np.concatenate([*kernels, *fills, ones, np.array(steps, np.float32)])

    def set_clips(self, vector: np.ndarray, activations: np.ndarray, activation_bits) -> None:
        """Set first clips in place, for the mean size of what every activation gives [clips]."""
        bits = np.asarray(activation_bits)[[p.group for p in self.clips]]
        if len(self.clips):
            self.split(vector)[2][:] = initial_clip(activations, bits)

    def steps_and_clips(self, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(steps [kernels], clips [clips]) as quantization uses them: positive."""
        _, _, clips, steps = self.split(vector)
        return np.abs(steps) + np.float32(MIN_STEP), np.abs(clips) + np.float32(MIN_CLIP)

    def set_ranges(self, vector: np.ndarray, steps: np.ndarray, clips: np.ndarray) -> None:
        """Set steps [kernels] and clips [clips] in place; inverse of `steps_and_clips`."""
        _, _, own_clips, own_steps = self.split(vector)
        own_clips[:], own_steps[:] = clips - np.float32(MIN_CLIP), steps - np.float32(MIN_STEP)

    def weights(
        self, vector: np.ndarray, weight_bits=None, method: str = "lsq"
    ) -> list[dict[str, np.ndarray]]:
        """Per step of the network a dictionary of its tensors; with `weight_bits` [groups] its
        kernels hold the values that their integers stand for by the method."""
        kernels, others, _, _ = self.split(vector)
        steps, clips = self.steps_and_clips(vector)
        out: list[dict[str, np.ndarray]] = [{} for _ in self.network.steps]
        for place, kernel, step in zip(self.kernels, self.pieces(kernels), steps, strict=True):
            if weight_bits is not None:
                kernel = dequantized(kernel, step, int(weight_bits[place.group]), method)
            out[place.step][place.parameter.name] = kernel
        ends = np.cumsum(self.other_sizes)[:-1]
        for place, piece in zip(self.others, np.split(others, ends), strict=True):
            out[place.step][place.parameter.name] = piece.reshape(place.parameter.shape)
        for place, clip in zip(self.clips, clips, strict=True):
            out[place.step][place.parameter.name] = clip
        return out

    def named(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """Every learned tensor by `step/parameter`, and `step/parameter.step` of every kernel.

        Kernels are the float ones that training holds; `quantizers.integer_weights` makes them
        the integers that run.
        """
        out = {}
        for step, tensors in zip(self.network.steps, self.weights(vector), strict=True):
            out |= {f"{step.name}/{name}": tensor for name, tensor in tensors.items()}
        for place, size in zip(self.kernels, self.steps_and_clips(vector)[0], strict=True):
            name = self.network.steps[place.step].name
            out[f"{name}/{place.parameter.name}.step"] = size
        return out

    def joined(self, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        """The vector of tensors by name; inverse of `named`."""

        def of(place: Place, suffix: str = "") -> np.ndarray:
            name = f"{self.network.steps[place.step].name}/{place.parameter.name}{suffix}"
            return np.ravel(tensors[name])

        parts = [
            *map(of, [*self.kernels, *self.others]),
            *(of(place) - MIN_CLIP for place in self.clips),
            *(of(place, ".step") - MIN_STEP for place in self.kernels),
        ]
        return np.concatenate(parts).astype(np.float32)
