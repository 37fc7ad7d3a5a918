"""Trains a language model briefly on a text, quantized as chosen, and scores it on validation text.

The final training is the same with more epochs and all of the text; it alone is scored on the test
text, and its weights are kept.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from pathlib import Path

from nas import text
from nas.run_dir import write_tensors
from nas.trial import Metrics
from search_spaces import TEXTS
from search_spaces.precision import precisions
from search_spaces.recurrent import compressions
from search_spaces.space import Choices, Space
from search_spaces.training import peak_learning_rate, warmup_share


class Language:
    """The evaluator of language models.

    family: of networks, in `search_spaces.TEXTS`. dataset, path: as `nas.text.load`. epochs: of a
    candidate; final_epochs: of a final training. tokens: how many words of the training text a
    candidate sees in an epoch, from the beginning; 0 for all.
    """

    in_process = False
    example, tested = "sequence", "words"
    metrics = ("perplexity", "loss", "train_loss")
    final_metrics = ("test_perplexity",)

    def __init__(
        self,
        *,
        family: str = "recurrent",
        dataset: str = "python-docs",
        path: str = "",
        epochs: int = 3,
        tokens: int = 0,
        final_epochs: int = 12,
    ):
        for name, value, least in (
            ("epochs", epochs, 1),
            ("tokens", tokens, 0),
            ("final_epochs", final_epochs, 1),
        ):
            if value < least:
                raise ValueError(f"evaluator.{name} is {value}; it must be at least {least}")
        if family not in TEXTS:
            raise ValueError(
                f"evaluator 'language' trains no networks '{family}'; known: {', '.join(TEXTS)}"
            )
        self.family, self.network = family, TEXTS[family].network
        self.dataset, self.path = dataset, path
        self.epochs, self.tokens, self.final_epochs = epochs, tokens, final_epochs

    def check(self, space: Space) -> None:
        """Raise ValueError where the text is missing or damaged, its vocabulary is not that of the
        space, or a batch of sequences is longer than it; TensorFlow is not needed."""
        found = text.load(self.dataset, self.path or None)
        values = {decision.name: decision.values for decision in space.decisions}
        if values["text.vocabulary"] != (len(found.words),):
            raise ValueError(
                f"text.vocabulary may be {', '.join(map(str, values['text.vocabulary']))}, but "
                f"{self.dataset} has {len(found.words)} different words; set it to that"
            )
        if self.tokens > len(found.train):
            raise ValueError(
                f"evaluator.tokens is {self.tokens:,}, but {self.dataset} has "
                f"{len(found.train):,} words to train on; 0 takes them all"
            )
        n_active, n_experts = (values.get(f"experts.{name}", (1,)) for name in ("active", "n"))
        several = [n for n in n_experts if n > 1]
        if several and max(n_active) > min(several):
            raise ValueError(
                f"experts.active may be {max(n_active)}, more than the {min(several)} of experts.n;"
                " name fewer active ones, or more experts"
            )
        units, heads = values["rnn.units"], values.get("memory.heads", (1,))
        if odd := [(u, h) for u in units for h in heads if u % h]:
            raise ValueError(
                f"rnn.units {odd[0][0]} do not divide into memory.heads {odd[0][1]}; name others"
            )
        text.check_length(
            self.tokens or len(found.train), max(values["train.batch"]), max(values["train.words"])
        )

    def start(self, folder: Path | None = None) -> None:
        """Load the text and TensorFlow, once, in the process that trains."""
        from nas.language import TextTrainer

        self.text = text.load(self.dataset, self.path or None)
        self.trainer = TextTrainer()

    def _fit(self, choices: Choices, seed: int, n_tokens: int, epochs: int, stop=None):
        from nas.language import TextRecipe

        bits = precisions(choices)
        recipe = TextRecipe(
            batch=choices["train.batch"],
            words=choices["train.words"],
            epochs=epochs,
            learning_rate=peak_learning_rate(choices),
            warmup=warmup_share(choices),
            weight_bits=tuple(p.weights for p in bits),
            activation_bits=tuple(p.activations for p in bits),
            dropout=choices["train.dropout"],
            compressions=tuple(compressions(choices)),
            samples=choices["train.samples"],
            optimizer=choices["train.optimizer"],
            schedule=choices.get("train.schedule", "triangle"),
        )
        tokens = self.text.train[: n_tokens or None]
        return self.trainer.fit(self.network(choices), tokens, recipe, seed=seed, stop=stop)

    def _scored(self, trained, part: str):
        """`language.Score` on a part."""
        return trained.score(getattr(self.text, part), self.text.end)

    def fidelity(self, rung: int) -> int:
        """A rung is the epochs of its trainings; the first are those of every candidate."""
        if isinstance(rung, bool) or not isinstance(rung, int) or rung < self.epochs:
            raise ValueError(
                f"fidelities.rungs are whole numbers of epochs, from evaluator.epochs = "
                f"{self.epochs} up; got {rung!r}"
            )
        return rung

    def evaluate(
        self,
        choices: Choices,
        *,
        seed: int,
        stop_below: Sequence[tuple[int, float]] = (),
        fidelity: int | None = None,
    ) -> Metrics:
        """Validation perplexity and loss of a short training, with its curve and what it took.

        fidelity: its epochs, where they are not those of every candidate.
        stop_below: (epochs, 1 / perplexity), after so many of which the training ends unless its
        own is that high; then `stopped_at` says so. `rungs` are these.
        """
        before = time.process_time()
        limits, rungs, stopped = dict(stop_below), [], False

        def stop(epoch: int, trained_so_far) -> bool:
            nonlocal stopped
            if epoch in limits:
                rungs.append([epoch, 1 / self._scored(trained_so_far(), "validation").perplexity])
                stopped = rungs[-1][1] < limits[epoch]
            return stopped

        trained = self._fit(choices, seed, self.tokens, fidelity or self.epochs, stop)
        found = self._scored(trained, "validation")
        epochs = len(trained.curve)
        asked = {"rungs": rungs} if limits else {}
        return {
            **{name: value for name, value in found._asdict().items() if value is not None},
            "train_loss": trained.curve[-1]["loss"],
            "epochs": epochs,
            "seconds": trained.seconds,
            "words_per_s": trained.words_per_s,
            "flops": trained.flops,
            "peak_share": trained.flops / self.trainer.peak("float32"),
            "cpu_seconds": time.process_time() - before,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "curve": trained.curve,
            **asked,
            **({"stopped_at": epochs} if stopped else {}),
        }

    def finalize(self, choices: Choices, *, seed: int, weights: Path) -> Metrics:
        """Train longer on all of the training text, score on test text, let the model write, and
        write its weights."""
        from nas.language import sample

        trained = self._fit(choices, seed, 0, self.final_epochs)
        found, test = self._scored(trained, "validation"), self._scored(trained, "test")
        prompt, written = sample(trained, self.text, seed=seed)
        write_tensors(weights, trained.tensors())
        return {
            **{name: value for name, value in found._asdict().items() if value is not None},
            "test_perplexity": test.perplexity,
            "test_loss": test.loss,
            "n_test": len(self.text.test),
            "epochs": self.final_epochs,
            "seconds": trained.seconds,
            "curve": trained.curve,
            "prompt": prompt,
            "written": written,
        }
