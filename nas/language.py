"""Training and scoring of language models.

Truncated back-propagation: a text is cut into as many streams as there are sequences in a batch,
read side by side, and the state goes on from one piece to the next (Mikolov et al., 2010; Zaremba
et al., 1409.2329). Training may take the softmax over a sample of words (Jean et al., 1412.2007,
section 3.1); scores are always of the whole vocabulary.

TensorFlow is imported with this module, and only workers import it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nas import codebook
from nas.checkpoint import Checkpoint
from nas.course import Course, schedule
from nas.language_program import LanguageProgram
from nas.layout import Layout
from nas.program import Switches
from nas.reader import Magnitudes, Table
from nas.text import Text, check_length, streams
from nas.train import Trainer
from search_spaces.compression import Compression
from search_spaces.quantizers import FULL_BITS, activation_levels
from search_spaces.sequence import SCORE_BIASES, TABLES, LanguageModel

SAMPLING_POWER = 0.75  # words are drawn by their counts to this power
SCORE_STREAMS, SCORE_WORDS = 50, 100  # a text is scored in so many streams, so many words at once
CLIP_WORDS = 8  # of each stream, from which the first clips take their range
# First clips are wide, as nothing is learned of what lies beyond them, and fresh tables and states
# are small only before training: but no wider than leaves a step of a quarter.
NARROWEST_CLIP, WIDEST_CLIP, COARSEST_STEP = 1.0, 4.0, 0.25


@dataclass(frozen=True)
class TextRecipe:
    """How one training goes.

    batch: sequences side by side. words: of each, that gradients go back over. learning_rate,
    warmup, schedule: as of `train.Recipe`. dropout: share of what is dropped behind the embedding
    and before the output. samples: words that the softmax is over in training; 0: all.
    compressions: one a bit-width group, of which only codebooks are known here.
    """

    batch: int
    words: int
    epochs: int
    learning_rate: float
    warmup: float
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    dropout: float = 0.0
    samples: int = 0
    compressions: tuple[Compression, ...] = ()
    optimizer: str = "adam"
    schedule: str = "triangle"

    @property
    def switches(self) -> Switches:
        full = set(self.weight_bits) | set(self.activation_bits) == {FULL_BITS}
        return Switches(
            quantizer="" if full else "lsq",
            optimizer=self.optimizer,
            sampled=self.samples > 0,
            tied=any(each.index_bits for each in self.compressions),
        )


class Score(NamedTuple):
    """perplexity: exp of loss, the mean -ln p. load_variation: the coefficient of variation of the
    words that each expert was given, where there are experts."""

    perplexity: float
    loss: float
    load_variation: float | None


@dataclass(frozen=True)
class TrainedText:
    """What a training leaves.

    values: everything learned, as `Layout` has it. curve: per epoch epoch, loss of training and
    seconds so far. seconds: of it all. per_s: words a second of its epochs; flops: floating-point
    operations, a softmax over all words counted whether it was sampled or not.
    """

    network: LanguageModel
    recipe: TextRecipe
    program: LanguageProgram
    values: np.ndarray
    curve: list[dict]
    seconds: float
    per_s: float

    @property
    def flops(self) -> float:
        return self.network.training_flops * self.per_s

    @property
    def _bits(self) -> tuple[np.ndarray, np.ndarray]:
        return np.int32(self.recipe.weight_bits), np.int32(self.recipe.activation_bits)

    def score(self, tokens: np.ndarray, first: int) -> Score:
        """Of every word of a text by the whole vocabulary, the state carried on; first: the word
        before it."""
        self.program.set_values(self.values)
        words, there = streams(tokens, min(SCORE_STREAMS, len(tokens)), first)
        state, total, loads = zero_state(self.network, words.shape[1]), 0.0, 0.0
        for at in range(0, len(there), SCORE_WORDS):
            piece = words[at : at + SCORE_WORDS + 1]
            losses, own, state = self.program.losses(piece, *self._bits, state)
            total += losses[there[at : at + SCORE_WORDS]].sum(dtype=float)
            loads = loads + own
        loss = float(total / len(tokens))
        return Score(perplexity(loss), loss, variation(loads) if len(loads) else None)

    def continued(
        self, prompt: np.ndarray, n: int, avoid: Sequence[int], seed: int, temperature: float = 0.8
    ) -> list[int]:
        """`n` words that follow a prompt, drawn by their probabilities sharpened by the
        temperature, those of `avoid` never."""
        self.program.set_values(self.values)
        rng = np.random.default_rng(seed)
        state, found = zero_state(self.network, 1), []
        piece = np.append(prompt, 0)[:, None].astype(np.int32)
        for _ in range(n):
            scores, state = self.program.scores(piece, *self._bits, state)
            scores = scores[0].astype(np.float64) / temperature
            scores[list(avoid)] = -np.inf
            shares = np.exp(scores - scores.max())
            found.append(int(rng.choice(len(shares), p=shares / shares.sum())))
            piece = np.array([[found[-1]], [0]], np.int32)
        return found

    def tensors(self) -> dict[str, np.ndarray]:
        """Every learned tensor as `Layout.named`."""
        return Layout(self.network).named(self.values)


def variation(loads: np.ndarray) -> float:
    """Standard deviation over mean."""
    return float(loads.std() / loads.mean())


def perplexity(loss: float) -> float:
    """exp of a mean -ln p; infinite where that is past all numbers."""
    with np.errstate(over="ignore"):
        return float(np.exp(loss))


def zero_state(network: LanguageModel, n: int) -> list[np.ndarray]:
    return [np.zeros((n, *shape), np.float32) for shape in network.state_shapes]


def shares_of(tokens: np.ndarray, vocabulary: int, power: float = 1.0) -> np.ndarray:
    """How much of a text each word is [vocabulary], all counted once more than they come, and to a
    power."""
    counts = (np.bincount(tokens, minlength=vocabulary) + 1.0) ** power
    return counts / counts.sum()


def side_by_side(tokens: np.ndarray, n: int) -> np.ndarray:
    """A text as `n` equal streams, int32 [steps, n]; what is left over is left out."""
    return tokens[: len(tokens) // n * n].reshape(n, -1).T


def first_values(network: LanguageModel, recipe: TextRecipe, tokens: np.ndarray, seed: int):
    """Fresh values of a training on a text.

    The scores begin as the logarithms of how often words come, less their mean, so that the first
    steps need not find them: short trainings end far better for it (2 x 200,000 words of Penn
    Treebank, an LSTM of 128 units: perplexity 254, from zero 415). The clips take their range from
    the first words.
    """
    layout = Layout(network)
    values = layout.initial(seed, recipe.weight_bits)
    logs = np.log(shares_of(tokens, network.vocabulary))
    for place in layout.others:
        if place.parameter.name in SCORE_BIASES:
            values[layout.slice(place)] = logs - logs.mean()
    if recipe.switches.quantizer:
        weights = [
            {
                name: Table(tf.constant(tensor)) if name.endswith(TABLES) else tf.constant(tensor)
                for name, tensor in own.items()
            }
            for own in layout.weights(values)
        ]
        reader = Magnitudes(weights, lambda x, *_: x)
        words = side_by_side(tokens, recipe.batch)[:CLIP_WORDS]
        trained = network.in_training
        state = [tf.constant(part) for part in zero_state(trained, recipe.batch)]
        trained.run(reader, tf.constant(words), state)
        names = [
            f"{network.steps[p.step].name}/{p.parameter.name.partition('/')[0]}"
            for p in layout.clips
        ]
        means = [np.mean(reader.found[name]) for name in names]
        layout.set_clips(values, np.array(means), recipe.activation_bits)
        levels = activation_levels(np.array(recipe.activation_bits), "linear")
        wide = np.clip(COARSEST_STEP * levels, NARROWEST_CLIP, WIDEST_CLIP)
        clips = layout.split(values)[2]
        clips[:] = np.maximum(clips, wide[[p.group for p in layout.clips]])
    return values


class TextTrainer(Trainer):
    """Trains language models in one process: keeps the last few compiled programs."""

    compile = LanguageProgram

    def fit(
        self,
        network: LanguageModel,
        tokens: np.ndarray,
        recipe: TextRecipe,
        *,
        seed: int,
        stop: Callable[[int, Callable[[], TrainedText]], bool] | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> TrainedText:
        """Train from fresh weights on a text, int32 [n]. stop, checkpoint: as of `Trainer.fit`.

        Deterministic as `Trainer.fit`. Raises ValueError where the text is shorter than a step
        needs, FloatingPointError where the loss stops being a number.
        """
        batch, length = recipe.batch, recipe.words
        check_length(len(tokens), batch, length)
        start = time.perf_counter()
        program = self.program(network, recipe.switches)
        stepper = TextStepper(program, recipe, tokens, seed)
        program.start(first_values(network, recipe, tokens, seed))
        n_steps = (len(stepper.read) - 1) // length
        rates = schedule(
            n_steps * recipe.epochs, recipe.learning_rate, recipe.warmup, recipe.schedule
        ).reshape(recipe.epochs, n_steps)
        between = []
        if program.switches.tied:
            codebook.check(program.layout, recipe.compressions)
            between.append(codebook.Codebook(stepper, recipe.compressions, (0, rates.size)))
        course = Course(rates, [stepper, *between], start, checkpoint)

        def trained() -> TrainedText:
            values, per_s = program.get_values(), course.steps_per_s * length * batch
            return TrainedText(
                network, recipe, program, values, course.curve, course.seconds, per_s
            )

        def begin(epoch: int):
            rng = np.random.default_rng([seed, 2, epoch])
            first = int(rng.integers(len(stepper.read) - n_steps * length))  # so that cuts differ

            def step(i: int, rate: float) -> tuple[float]:
                if i == 0:
                    stepper.forget()
                number = epoch * n_steps + i
                loss = stepper.step(first + i * length, number, rate)
                for technique in between:
                    technique(number + 1, rate, None, None, None)
                return (loss,)

            return step

        return course.run(("loss",), begin, trained, stop)


class TextStepper:
    """Takes the steps of a recipe, and carries the state of its streams from one to the next.

    read: the text in as many streams as a batch has sequences, int32 [steps, batch].
    """

    def __init__(self, program: LanguageProgram, recipe: TextRecipe, tokens: np.ndarray, seed: int):
        self.program, self.recipe, self.seed = program, recipe, seed
        self.bits = np.int32(recipe.weight_bits), np.int32(recipe.activation_bits)
        self.read = side_by_side(tokens, recipe.batch)
        self.draw = Draw(tokens, program.network.vocabulary, recipe.samples)
        self.forget()

    def forget(self) -> None:
        """Begin with the state of no words."""
        self.carried = zero_state(self.program.network.in_training, self.recipe.batch)

    def step(self, at: int, number: int, rate: float) -> float:
        """One update by the words from `at` of every stream on; the loss. number: of the steps of
        the training, which its draws depend on."""
        words = self.read[at : at + self.recipe.words + 1]
        noise = np.array([self.seed % 2**31, 1000 * number], np.int32)
        drawn = self.draw(words[1:], np.random.default_rng([self.seed, 1, number]))
        loss, self.carried = self.program.step(
            words, *self.bits, rate, self.recipe.dropout, noise, *drawn, *self.carried
        )
        return loss

    def state(self) -> dict[str, np.ndarray]:
        """All that `restore` needs to go on from here."""
        carried = {f"carried{i}": part for i, part in enumerate(self.carried)}
        return {**carried, **self.program.state()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on as the stepper of the same program, recipe, text and seed that gave `state`."""
        self.carried = [state[f"carried{i}"] for i in range(len(self.carried))]
        self.program.restore(state)


class Draw:
    """The words that a sampled softmax is over, drawn for a step by their counts in the training
    text; nothing where it is over all."""

    def __init__(self, tokens: np.ndarray, vocabulary: int, n: int):
        self.shares = shares_of(tokens, vocabulary, SAMPLING_POWER)
        self.ends = np.cumsum(self.shares)
        self.n = n

    def __call__(self, targets: np.ndarray, rng: np.random.Generator) -> tuple:
        if not self.n:
            return ()
        at = np.searchsorted(self.ends, rng.random(self.n) * self.ends[-1])
        drawn = np.minimum(at, len(self.ends) - 1).astype(np.int32)
        expected = np.log(self.n * self.shares).astype(np.float32)
        return drawn, expected[drawn], expected[targets]


def sample(trained: TrainedText, text: Text, *, n_prompt: int = 8, n: int = 24, seed: int = 0):
    """(prompt, what follows) in words: the beginning of the validation text, and what the model
    makes of it; <unk> is not drawn."""
    prompt = text.validation[:n_prompt]
    avoid = [text.words.index("<unk>")] if "<unk>" in text.words else []
    drawn = trained.continued(prompt, n, avoid, seed)
    return tuple(" ".join(text.words[i] for i in some) for some in (prompt, drawn))
