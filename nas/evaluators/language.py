"""Trains a language model briefly on a text, quantized as chosen, and scores it on validation text.

The final training is the same with more epochs and all of the text; it alone is scored on the test
text, and its weights are kept.
"""

from __future__ import annotations

from pathlib import Path

from nas import text
from nas.evaluators.training import Training, check_least
from nas.trial import Metrics
from search_spaces import TEXTS
from search_spaces.precision import precisions
from search_spaces.recurrent import compressions
from search_spaces.space import Choices, Space
from search_spaces.training import peak_learning_rate, warmup_share


class Language(Training):
    """The evaluator of language models.

    family: of networks, in `search_spaces.TEXTS`. dataset, path: as `nas.text.load`. epochs: of a
    candidate; final_epochs: of a final training. tokens: how many words of the training text a
    candidate sees in an epoch, from the beginning; 0 for all.
    """

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
        check_least(epochs=(epochs, 1), tokens=(tokens, 0), final_epochs=(final_epochs, 1))
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

    def _fit(self, choices: Choices, seed: int, epochs: int, final: bool, **course):
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
        tokens = self.text.train[: None if final else self.tokens or None]
        return self.trainer.fit(self.network(choices), tokens, recipe, seed=seed, **course)

    def _scored(self, trained, choices: Choices, part: str) -> Metrics:
        found = trained.score(getattr(self.text, part), self.text.end)
        return {name: value for name, value in found._asdict().items() if value is not None}

    def _quality(self, scored: Metrics) -> float:
        return 1 / scored["perplexity"]

    def _tested(self, trained, seed: int) -> Metrics:
        """The model writes, too."""
        from nas.language import sample

        prompt, written = sample(trained, self.text, seed=seed)
        return {"n_test": len(self.text.test), "prompt": prompt, "written": written}
