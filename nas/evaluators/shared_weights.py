"""Scores a candidate in a fraction of a second by weights that all candidates share.

The shared weights (`nas/supernet.py`) are trained once a run and kept with its checkpoints. A short
training of them favours cells of skips, whose few weights every step trains, and ranks cells worse
than their parameter count does (`benchmarks/supernet_figures.py`): a screen of cells and bits
for those who train them long, never the last word. So a final training is the proxy's, from fresh
weights; let `final.top` leave it several designs to choose from.

What a score cannot see must be fixed in the space: the width, depth and resolution, which are those
of the shared weights, and how a candidate is trained. Otherwise a search would settle it by the
price of the hardware alone, or by chance.
"""

from __future__ import annotations

import resource
import time
from pathlib import Path

from nas import data
from nas.checkpoint import Checkpoint
from nas.evaluators.proxy import Proxy
from nas.run_dir import read_tensors, waiting_lock, write_tensors
from nas.trial import Metrics
from search_spaces import cell
from search_spaces.precision import GROUPS, precisions
from search_spaces.quantizers import FULL_BITS
from search_spaces.space import Choices, Space

SEED = 0  # of the shared weights: the same in every run on the same data
LEARNING_RATE = 0.1
SIZES = ("width", "depth", "resolution")
# a score sees them, or accuracy does not need them
FREE = ("cell.edge", "bits.weights.", "bits.activations.", "bits.ends", "hw.", "serve.")
FIXED = ("cell.", "train.")  # no score sees them


class SharedWeights:
    """Screens cells and bit-widths by weights that all of them share; finals as the proxy's.

    dataset, path: as `nas.data.load`. width, depth, resolution: of every candidate. epochs: of the
    shared weights. images: how many training images they see, class-balanced; 0 for all.
    score_images: how many validation images score a candidate; 0 for all. final_epochs: of a final
    training.
    """

    in_process = False
    verb = "scored"
    example, tested = "image", "images"
    metrics, final_metrics = Proxy.metrics, Proxy.final_metrics

    def __init__(
        self,
        *,
        family: str = "cell",
        dataset: str = "cifar10-sample",
        path: str = "",
        width: int = 8,
        depth: int = 1,
        resolution: int = 16,
        epochs: int = 60,
        images: int = 0,
        score_images: int = 1000,
        final_epochs: int = 16,
    ):
        if family != "cell":
            raise ValueError(
                f"shared weights are of the network 'cell'; got '{family}': set space.network, or "
                "evaluator.name=proxy"
            )
        self.proxy = Proxy(dataset=dataset, path=path, images=images, final_epochs=final_epochs)
        self.sizes = {"width": width, "depth": depth, "resolution": resolution}
        for name, value, least in (
            *((name, value, 1) for name, value in self.sizes.items()),
            ("epochs", epochs, 1),
            ("score_images", score_images, 0),
        ):
            if value < least:
                raise ValueError(f"evaluator.{name} is {value}; it must be at least {least}")
        self.epochs, self.score_images = epochs, score_images

    def check(self, space: Space) -> None:
        """Raise ValueError where the space leaves open what a score cannot see, or the data are
        missing or damaged; TensorFlow is not needed."""
        for name, own in self.sizes.items():
            decision = f"cell.{name}"
            values = space.decisions[space.column[decision]].values
            if values != (own,):
                raise ValueError(
                    f"shared weights have one {name}, evaluator.{name} = {own}, but '{decision}' "
                    f"may be {', '.join(map(str, values))}; set both to one value"
                )
        for decision in space.decisions:
            name, values = decision.name, decision.values
            if not name.startswith((*FREE, *FIXED)):
                raise ValueError(
                    f"shared weights do not have '{name}'; leave it out of the space, or take "
                    "evaluator.name=proxy"
                )
            if len(values) > 1 and not name.startswith(FREE):
                raise ValueError(
                    f"shared weights cannot tell the values of '{name}' apart "
                    f"({', '.join(map(str, values))}); fix it to one, such as --set "
                    f"{name}={values[0]}, or take evaluator.name=proxy"
                )
        data.check(self.proxy.dataset, self.proxy.path or None)
        n = data.DATASETS[self.proxy.dataset].n_validation
        if self.score_images > n:
            raise ValueError(
                f"evaluator.score_images is {self.score_images}, but {self.proxy.dataset} has {n} "
                "validation images; 0 takes them all"
            )

    def start(self, folder: Path | None = None) -> None:
        """Load the data, and train the shared weights, or load them where `folder` has them.

        Of several workers that begin together one trains; the others wait for what it writes.
        """
        from nas.supernet import Supernet

        self.proxy.start()
        resolution = self.sizes["resolution"]
        validation, n = self.proxy.parts["validation"], self.score_images
        scored = data.subset(validation, n, seed=0) if n else validation
        train = self.proxy.parts["proxy"]
        alike = data.subset(train, min(len(scored), len(train)), seed=0)
        self.proxy.parts |= {"scored": scored, "alike": alike}
        self.scored, self.alike = (self.proxy.part(p, resolution) for p in ("scored", "alike"))
        self.supernet = Supernet(**self.sizes)
        path = folder and folder / "shared_weights.h5"
        with waiting_lock(path and path.with_suffix(".lock")):
            if path and path.exists():
                self.supernet.set_tensors(read_tensors(path))
            else:
                self.supernet.fit(
                    *self.proxy.part("proxy", resolution),
                    epochs=self.epochs,
                    learning_rate=LEARNING_RATE,
                    seed=SEED,
                )
                if path:
                    write_tensors(path, self.supernet.tensors())
        full = [FULL_BITS] * len(GROUPS)
        skips = [list(cell.EDGE_OPS).index("skip")] * len(cell.EDGES)
        self.supernet.score([skips], full, full, *self.scored)  # the first one builds the graph

    def evaluate(self, choices: Choices, *, seed: int) -> Metrics:
        """Accuracy and loss on validation images by the shared weights; the same for every seed.

        train_loss: on as many training images. Raises ValueError where the shared weights are of
        another width, depth or resolution.
        """
        start, before = time.perf_counter(), time.process_time()
        for name, own in self.sizes.items():
            if choices[f"cell.{name}"] != own:
                raise ValueError(
                    f"cell.{name} is {choices[f'cell.{name}']}, the shared weights have {own}"
                )
        options = list(cell.EDGE_OPS)
        edges = [options.index(choices[f"cell.edge{i}{j}"]) for i, j in cell.EDGES]
        bits = [list(column) for column in zip(*precisions(choices), strict=True)]
        accuracy, loss = self.supernet.score([edges], *bits, *self.scored)
        _, train_loss = self.supernet.score([edges], *bits, *self.alike)
        return {
            "accuracy": float(accuracy[0]),
            "loss": float(loss[0]),
            "train_loss": float(train_loss[0]),
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - before,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }

    def finalize(
        self, choices: Choices, *, seed: int, weights: Path, checkpoint: Checkpoint | None = None
    ) -> Metrics:
        """The proxy's final training, from fresh weights."""
        return self.proxy.finalize(choices, seed=seed, weights=weights, checkpoint=checkpoint)
