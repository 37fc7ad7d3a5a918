"""Training and scoring of language models.

Truncated back-propagation: a text is cut into as many streams as there are sequences in a batch,
read side by side, and the state goes on from one piece to the next (Mikolov et al., 2010; Zaremba
et al., 1409.2329). Training may take the softmax over a sample of words (Jean et al., 1412.2007,
section 3.1); scores are always of the whole vocabulary.

TensorFlow is imported with this module, and only workers import it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nas import codebook
from nas.layout import MIN_CLIP, MIN_STEP, Layout
from nas.program import Program, Switches
from nas.reader import Graph, Magnitudes, Table
from nas.text import Text, check_length, streams
from nas.train import Trainer, schedule
from search_spaces.compression import Compression
from search_spaces.quantizers import (
    FULL_BITS,
    activation_clip,
    activation_levels,
    quantize_weights,
)
from search_spaces.sequence import TABLES, LanguageModel
from search_spaces.training import REFERENCE_BATCH

CLIP_NORM = 1.0  # of the gradient over everything learned
SAMPLING_POWER = 0.75  # words are drawn by their counts to this power
SCORE_STREAMS, SCORE_WORDS = 50, 100  # a text is scored in so many streams, so many words at once
CLIP_WORDS = 8  # of each stream, from which the first clips take their range
# First clips are wide, as nothing is learned of what lies beyond them, and fresh tables and states
# are small only before training: but no wider than leaves a step of a quarter.
NARROWEST_CLIP, WIDEST_CLIP, COARSEST_STEP = 1.0, 4.0, 0.25
RIGHT_AGAIN = 1e9  # what a drawn word loses that is the right one


class LanguageProgram(Program):
    """The compiled training step and scores of one language model.

    Words are int32 [steps + 1, n], the targets being those one step on; a state is a list of
    arrays [n, ...], which is given and comes back.
    """

    network: LanguageModel

    def step(self, *arguments) -> tuple[float, list[np.ndarray]]:
        """One update; returns (loss, new state).

        words, weight_bits, activation_bits, rate, dropout's share, seed int32 [2]; where the loss
        is sampled: the words drawn int32 [k], the logarithm of how often each was expected [k], and
        that of the targets [steps, n]; then the state.
        """
        loss, _, *state = self._step(*arguments, *self._powers())
        return loss, state

    def losses(self, words, weight_bits, activation_bits, state) -> tuple:
        """(-ln p of each target by the whole vocabulary [steps, n], words that each expert was
        given [experts], new state)."""
        found, loads, *state = self._losses(words, weight_bits, activation_bits, *state)
        return found, loads, state

    def scores(self, words, weight_bits, activation_bits, state) -> tuple[np.ndarray, list]:
        """(scores of what follows the last but one row [n, vocabulary], new state); the last row
        of the words is not read."""
        found, *state = self._scores(words, weight_bits, activation_bits, *state)
        return found, state

    def _build(self) -> None:
        self._build_variables()
        place = tf.compat.v1.placeholder
        words = place(tf.int32, [None, None])
        bits = [place(tf.int32, [len(self.network.groups)]) for _ in range(2)]
        state = [place(tf.float32, [None, *shape]) for shape in self.network.state_shapes]
        rate, share = place(tf.float32, []), place(tf.float32, [])
        seed = place(tf.int32, [2])
        drawn = []
        if self.switches.sampled:
            expected = place(tf.float32, [None]), place(tf.float32, [None, None])
            drawn = [place(tf.int32, [None]), *expected]
        powers = [place(tf.float32, []) for _ in range(2 * (self.switches.optimizer == "adam"))]

        values = self.values.read_value()
        weights = self._weights(values, *bits)
        activation_bits = tf.unstack(bits[1]) if self.switches.quantizer else None
        before, targets = words[:-1], words[1:]

        def read(finish, drop=None):
            reader = Graph(weights, activation_bits, finish, drop)
            return *self.network.run(reader, before, state), reader

        def trained(x, table, bias):
            if not drawn:
                return self._full_loss(x, table, bias, targets)
            return self._sampled_loss(x, table, bias, targets, *drawn)

        losses, kept, reader = read(trained, (share, seed))
        loss = tf.reduce_mean(losses)
        [gradient] = tf.gradients(loss + sum(reader.penalties), [values])
        gradient = tf.clip_by_norm(gradient, CLIP_NORM)
        update = self._update(values, gradient, rate, powers)
        call = self.session.make_callable
        arguments = [words, *bits, rate, share, seed, *drawn, *state, *powers]
        self._step = call([loss, update, *kept], arguments)
        (x, table, bias), kept, reader = read(lambda *given: given)
        losses = self._full_loss(x, table, bias, targets)
        loads = tf.concat([*reader.loads, tf.zeros(0)], 0)
        self._losses = call([losses, loads, *kept], [words, *bits, *state])
        scores = self._all(x[-1:], table, bias)[0]
        self._scores = call([scores, *kept], [words, *bits, *state])

    def _update(self, values, gradient, rate, powers):
        """As of `Program`; but Adam, whose every step is about the rate, moves quantization steps
        by that share of themselves: most are about as small as a rate."""
        if self.switches.optimizer != "adam":
            return super()._update(values, gradient, rate, powers)
        first = sum(self.layout.parts[:3])
        ranges = values[first:]
        with tf.control_dependencies([ranges]):
            moved = super()._update(values, gradient, rate, powers)
        with tf.control_dependencies([moved]):
            change = self.values.read_value()[first:] - ranges
            return self.values[first:].assign(ranges + tf.abs(ranges) * change).op

    def _weights(self, values, weight_bits, activation_bits):
        """Per step of the model its tensors by name: tables as they are, others quantized."""
        layout, quantized = self.layout, bool(self.switches.quantizer)
        kernels, others, clips, steps = tf.split(values, layout.parts)
        pieces = tf.split(kernels, layout.kernel_sizes)
        steps = tf.abs(steps) + MIN_STEP
        bits = tf.gather(weight_bits, np.array([p.group for p in layout.kernels], np.int32))
        small = [
            i for i, place in enumerate(layout.kernels) if not place.parameter.name.endswith(TABLES)
        ]
        if quantized:
            sizes = [layout.kernel_sizes[i] for i in small]
            flat = quantize_weights(
                tf.concat([pieces[i] for i in small], 0),
                tf.gather(steps, small),
                tf.gather(bits, small),
                np.repeat(np.arange(len(small), dtype=np.int32), sizes),
                sizes,
            )
            for i, piece in zip(small, tf.split(flat, sizes), strict=True):
                pieces[i] = piece
        weights: list[dict] = [{} for _ in self.network.steps]
        for i, (place, piece) in enumerate(zip(layout.kernels, pieces, strict=True)):
            tensor = tf.reshape(piece, place.parameter.shape)
            if i not in small:
                tensor = Table(tensor, steps[i], bits[i]) if quantized else Table(tensor)
            weights[place.step][place.parameter.name] = tensor
        pieces = tf.split(others, layout.other_sizes)
        for place, piece in zip(layout.others, pieces, strict=True):
            weights[place.step][place.parameter.name] = piece
        # as `Program` scales a clip's gradient
        sizes = np.array([REFERENCE_BATCH * self.network.width_of(p) for p in layout.clips])
        share = tf.constant(1 / np.sqrt(sizes), tf.float32)
        clips = clips * share + tf.stop_gradient(clips - clips * share)
        groups = np.array([p.group for p in layout.clips], np.int32)
        used = activation_clip(tf.abs(clips) + MIN_CLIP, tf.gather(activation_bits, groups))
        for place, clip in zip(layout.clips, tf.unstack(used), strict=True):
            weights[place.step][place.parameter.name] = clip
        return weights

    @staticmethod
    def _all(x, table: Table, bias):
        """Scores of every word: [steps, n, vocabulary]."""
        flat = tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), table.whole, transpose_b=True) + bias
        return tf.reshape(flat, [*tf.unstack(tf.shape(x)[:-1]), bias.shape[0]])

    def _full_loss(self, x, table: Table, bias, targets):
        scores = self._all(x, table, bias)
        return tf.nn.sparse_softmax_cross_entropy_with_logits(targets, scores)

    @staticmethod
    def _sampled_loss(x, table: Table, bias, targets, drawn, expected, of_targets):
        """-ln of the share of the right word among those drawn, the scores less the logarithm of
        how often a word was expected among them (Jean et al., 1412.2007, equation 6)."""
        right = tf.reduce_sum(x * table.at(targets), -1) + tf.gather(bias, targets) - of_targets
        flat = tf.reshape(x, [-1, x.shape[-1]])
        others = tf.matmul(flat, table.at(drawn), transpose_b=True)
        others += tf.gather(bias, drawn) - expected
        again = tf.equal(tf.reshape(targets, [-1, 1]), drawn)
        others -= RIGHT_AGAIN * tf.cast(again, tf.float32)
        right = tf.reshape(right, [-1, 1])
        return tf.reduce_logsumexp(tf.concat([right, others], 1), 1) - right[:, 0]


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
    seconds so far. seconds: of it all. flops: floating-point operations a second of its epochs, a
    softmax over all words counted whether it was sampled or not. words_per_s: of the same.
    """

    network: LanguageModel
    recipe: TextRecipe
    program: LanguageProgram
    values: np.ndarray
    curve: list[dict]
    seconds: float
    words_per_s: float

    @property
    def flops(self) -> float:
        return self.network.training_flops * self.words_per_s

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
            total, loads = (
                total + losses[there[at : at + SCORE_WORDS]].sum(dtype=float),
                loads + own,
            )
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


def first_values(network: LanguageModel, recipe: TextRecipe, words: np.ndarray, seed: int):
    """Fresh values of a training; the clips take their range from `words` int32 [steps, n]."""
    layout = Layout(network)
    values = layout.initial(seed, recipe.weight_bits)
    if recipe.switches.quantizer:
        weights = [
            {
                name: Table(tf.constant(tensor)) if name.endswith(TABLES) else tf.constant(tensor)
                for name, tensor in own.items()
            }
            for own in layout.weights(values)
        ]
        reader = Magnitudes(weights, lambda x, *_: x)
        state = [tf.constant(part) for part in zero_state(network, words.shape[1])]
        network.run(reader, tf.constant(words), state)
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
    ) -> TrainedText:
        """Train from fresh weights on a text, int32 [n]. stop: as of `Trainer.fit`.

        Deterministic as `Trainer.fit`. Raises ValueError where the text is shorter than a step
        needs, FloatingPointError where the loss stops being a number.
        """
        batch, length = recipe.batch, recipe.words
        check_length(len(tokens), batch, length)
        start = time.perf_counter()
        rng = np.random.default_rng([seed, 1])
        read = tokens[: len(tokens) // batch * batch].reshape(batch, -1).T  # [steps, batch]
        program = self.program(network, recipe.switches)
        program.start(first_values(network, recipe, read[:CLIP_WORDS], seed))
        n_steps = (len(read) - 1) // length
        rates = schedule(
            n_steps * recipe.epochs, recipe.learning_rate, recipe.warmup, recipe.schedule
        ).reshape(recipe.epochs, n_steps)
        bits = np.int32(recipe.weight_bits), np.int32(recipe.activation_bits)
        coded = []
        if program.switches.tied:
            codebook.check(program.layout, recipe.compressions)
            coded.append(codebook.Codebook(Holder(program), recipe.compressions, (0, rates.size)))
        draw = Draw(tokens, network.vocabulary, recipe.samples, rng)
        curve, spent = [], 0.0

        def trained() -> TrainedText:
            words_per_s = n_steps * length * batch * len(curve) / spent
            seconds = time.perf_counter() - start
            return TrainedText(
                network, recipe, program, program.get_values(), curve, seconds, words_per_s
            )

        for epoch in range(recipe.epochs):
            begun, seen = time.perf_counter(), []
            state = zero_state(network, batch)
            first = int(rng.integers(len(read) - n_steps * length))  # so that cuts differ
            for i, rate in enumerate(rates[epoch]):
                words = read[first + i * length : first + (i + 1) * length + 1]
                noise = np.array([seed % 2**31, 1000 * (epoch * n_steps + i)], np.int32)
                loss, state = program.step(
                    words, *bits, rate, recipe.dropout, noise, *draw(words[1:]), *state
                )
                seen.append(loss)
                for technique in coded:
                    technique(epoch * n_steps + i + 1, rate, None, None, None)
            if not np.isfinite(seen).all():
                raise FloatingPointError(
                    f"the training loss is {np.mean(seen)} in epoch {epoch + 1} at learning rate "
                    f"{recipe.learning_rate:.3g}; a lower train.learning_rate may help"
                )
            spent += time.perf_counter() - begun
            curve.append(
                {
                    "epoch": epoch + 1,
                    "loss": float(np.mean(seen)),
                    "seconds": time.perf_counter() - start,
                }
            )
            if stop and epoch + 1 < recipe.epochs and stop(epoch + 1, trained):
                break
        return trained()


class Holder(NamedTuple):
    """What a technique asks of a stepper."""

    program: LanguageProgram


class Draw:
    """The words that a sampled softmax is over, drawn anew for every step, by their counts in the
    training text; nothing where it is over all."""

    def __init__(self, tokens: np.ndarray, vocabulary: int, n: int, rng: np.random.Generator):
        counts = np.bincount(tokens, minlength=vocabulary) + 1.0
        shares = counts**SAMPLING_POWER
        self.shares = shares / shares.sum()
        self.ends = np.cumsum(self.shares)
        self.n, self.rng = n, rng

    def __call__(self, targets: np.ndarray) -> tuple:
        if not self.n:
            return ()
        at = np.searchsorted(self.ends, self.rng.random(self.n) * self.ends[-1])
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
