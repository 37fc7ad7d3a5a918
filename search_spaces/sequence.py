"""Operations over sequences of words, each written once.

An operation says what it does in `run(do, x, state)`, and a *reader* carries it out:

    Count       (counting.py) widths alone: its parameters, and its rows for the hardware model
    Graph       (nas/reader.py) functional TensorFlow over many steps at once, for training
    KerasStep   (keras_step.py) standard Keras layers of one step, for the exported model

A reader offers `lookup`, `quantized`, `product`, `split`, `scan`, `dropout`, `scores` and the
functions of FUNCTIONS, and what `memory.py` needs; sums, differences and products of tensors are
written as such. What `scan` goes over waits for the step before; all else is done for all steps at
once.

Precision in hardware is that of `ops`: products read activations in the chosen bits, signed, the
clip learned; sums, gates and states between them are kept in 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from hwmodel.workload import Layers
from search_spaces.counting import Count, Words
from search_spaces.keras_step import KerasStep
from search_spaces.network import Place, Step, places
from search_spaces.ops import Parameter, Precision, rows_of

if TYPE_CHECKING:
    from search_spaces.compression import Compression

FUNCTIONS = ("tanh", "relu", "sigmoid", "identity")
TABLES = "/table", "/rows"  # as the names of kernels end of which a step reads a few rows
SCORE_BIASES = "scores/bias", "scores.bias/column"  # of a table of its own, and of a shared one


class Operation:
    """What all operations share: parameters and costs are counted from `run`.

    shape, parameters, cost: as of `ops.Operation`; a shape is (width,), one word's. state: the
    shapes of what it keeps from step to step, one sequence's.
    """

    def run(self, do, x, state: tuple) -> tuple:
        """(output, new state)."""
        raise NotImplementedError

    @property
    def state(self) -> tuple[tuple[int, ...], ...]:
        return ()

    @property
    def in_training(self) -> Operation:
        """The same without what only serving has, its parameters unchanged."""
        return self

    def counted(self, width: int, **serving) -> Count:
        count = Count(**serving)
        state = tuple(Words(count, shape[-1]) for shape in self.state)
        count.out, _ = self.run(count, Words(count, width), state)
        return count

    def shape(self, inputs) -> tuple[int]:
        return (self.counted(inputs[0][0]).out.width,)

    def parameters(self, inputs) -> list[Parameter]:
        return self.counted(inputs[0][0]).parameters

    def cost(
        self,
        name: str,
        inputs,
        precision: Precision,
        batch: int,
        steps: int,
        tied_bits: int = 0,
        index_bits: int = 0,
    ) -> list:
        """Rows of `steps` words of `batch` sequences; tied_bits: of a table of another operation
        that it shares; index_bits: of weights in a codebook, as of `hwmodel`."""
        serving = dict(batch=batch, steps=steps, tied_bits=tied_bits, index_bits=index_bits)
        return self.counted(inputs[0][0], name=name, precision=precision, **serving).rows

    def keras_weights(self, name, weights, moments) -> dict[str, list]:
        """Where tensors go in the layers of `KerasStep`: layer name -> arrays."""
        found: dict[str, list] = {}
        for parameter, tensor in weights.items():
            layer, _, what = parameter.partition("/")
            if what in ("kernel", "bias"):  # a bias comes behind its kernel
                found.setdefault(f"{name}.{layer}", []).append(tensor)
            elif what == "table":
                found[f"{name}.{layer}"] = [tensor]
            elif what == "column":
                found[f"{name}.{layer}"] = [tensor[:, None]]
            elif what == "rows":  # of a product whose outputs are rows: transposed in Keras
                found.setdefault(f"{name}.{layer}", []).append(np.ascontiguousarray(tensor.T))
        return found


@dataclass(frozen=True)
class Embedding(Operation):
    """Words as vectors, from a table of `vocabulary` rows.

    rank: of the table, which is then followed by a product that widens it to `width` (Lan et al.,
    1909.11942, section 3.1); 0: the table itself is that wide.
    """

    vocabulary: int
    width: int
    rank: int = 0

    def run(self, do, x, state):
        y = do.lookup("words", x, self.vocabulary, self.rank or self.width)
        if self.rank:
            y = do.product("widen", do.quantized("narrow", y), self.width)
        return do.dropout(y), state


@dataclass(frozen=True)
class Output(Operation):
    """The score of every word of the vocabulary as the next one.

    tied: the table that is shared with the embedding (Press & Wolf, 1608.05859), "" for one of its
    own; table_width: of that table; what is wider or narrower is projected first.
    """

    vocabulary: int
    tied: str = ""
    table_width: int = 0

    def features(self, do, x):
        """What the table is multiplied with."""
        x = do.dropout(x)
        if self.tied and self.table_width != do.width(x):
            x = do.product("project", do.quantized("wide", x), self.table_width)
        return do.quantized("features", x)

    def run(self, do, x, state):
        x = self.features(do, x)
        return do.scores("scores", x, self.vocabulary, self.tied or None), state


@dataclass(frozen=True)
class LanguageModel:
    """Operations one after the other, from words to the scores of the next word; hashable: equal
    ones share a compiled program.

    groups: the names of the bit-width groups. served: words of a sequence that is priced; trained:
    words that gradients go back over. Neither changes what is learned.
    """

    steps: tuple[Step, ...]
    vocabulary: int
    groups: tuple[str, ...]
    served: int = field(default=1, compare=False)
    trained: int = field(default=1, compare=False)

    @cached_property
    def inputs(self) -> list[list[tuple[int]]]:
        """The shapes that each step reads."""
        shape, inputs = (1,), []
        for step in self.steps:
            inputs.append([shape])
            shape = step.op.shape([shape])
        return inputs

    @cached_property
    def places(self) -> list[Place]:
        """Every learned tensor, in the order of the steps."""
        return places(self.steps, self.inputs)

    def width_of(self, clip: Place) -> int:
        """How many words a clip bounds of one word's activations."""
        counted = self.steps[clip.step].op.counted(self.inputs[clip.step][0][0])
        return counted.clipped[clip.parameter.name]

    @cached_property
    def in_training(self) -> LanguageModel:
        """The model whose steps are trained: of the same parameters, without what only serves."""
        return replace(
            self, steps=tuple(step._replace(op=step.op.in_training) for step in self.steps)
        )

    @property
    def state_shapes(self) -> list[tuple[int, ...]]:
        """What all steps keep, in shapes of one sequence."""
        return [shape for step in self.steps for shape in step.op.state]

    def run(self, do, words, state: Sequence) -> tuple:
        """What the reader `do` makes of it: (scores, new state as one list)."""
        x, given, kept = words, iter(state), []
        for i, step in enumerate(self.steps):
            do.enter(i, step)
            own = tuple(next(given) for _ in step.op.state)
            x, own = step.op.run(do, x, own)
            kept += own
        return x, kept

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates a word."""
        full = [Precision(8, 8)] * len(self.groups)
        return int(self.rows(full, 1, 1).macs[0])

    @property
    def training_flops(self) -> int:
        """Floating-point operations of a training step a word, scores of all words included."""
        return 6 * self.in_training.macs

    def rows(
        self,
        precisions: Sequence[Precision],
        batch: int,
        steps: int,
        compressions: Sequence[Compression] | None = None,
    ) -> Layers:
        """Rows of `steps` words of `batch` sequences."""
        rows = []
        for step, inputs in zip(self.steps, self.inputs, strict=True):
            precision = precisions[step.group]
            tied_bits = precisions[self.steps[0].group].weights  # the embedding's
            index_bits = compressions[step.group].index_bits if compressions else 0
            given = precision, batch, steps, tied_bits, index_bits
            rows += rows_of(step.name, step.op, inputs, *given)
        return Layers.from_rows(rows)

    def layers(
        self,
        precisions: Sequence[Precision],
        batch: int,
        compressions: Sequence[Compression] | None = None,
    ) -> Layers:
        """Rows for the hardware model: `batch` sequences of `served` words; precisions and
        compressions: one a group, of which only codebooks are known here."""
        return self.rows(precisions, batch, self.served, compressions)

    def training_layers(self, bits: int, batch: int) -> Layers:
        """Rows of the forward pass in training, all words of `bits`, as `hwmodel.training` takes
        them: `batch` sequences of `trained` words, the scores of the whole vocabulary."""
        full = [Precision(bits, bits)] * len(self.groups)
        return self.in_training.rows(full, batch, self.trained)

    def keras(
        self, clips: Sequence[float] | None = None, activation_bits: Sequence[int] | None = None
    ):
        """One step as a plain functional `keras.Model`, with its own fresh weights.

        From [words int32 [n], states [n, ...]] to [scores [n, vocabulary], new states]: called
        once a word, with the states of the call before, zeros at first. clips: as of
        `Network.keras`, the learned ones in order, with activation_bits one a group.
        """
        import keras

        words = keras.Input((), dtype="int32", name="words")
        states = [keras.Input(shape, name=f"state{i}") for i, shape in enumerate(self.state_shapes)]
        scores, kept = self.run(KerasStep(clips, activation_bits), words, states)
        return keras.Model([words, *states], [scores, *kept])
