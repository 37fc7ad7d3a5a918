"""The evaluator: what a space must not hold, and candidates of every training technique."""

from pathlib import Path

import numpy as np
import pytest
from test_cell import design

from nas import config, data
from nas.evaluators.proxy import Proxy
from search_spaces import joint
from search_spaces.training import (
    ADAM_RATE,
    BATCHES,
    REFERENCE_BATCH,
    peak_learning_rate,
)

OPTIONS = dict(images=200, epochs=2, final_epochs=1, teacher_epochs=1)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    made = Proxy(**OPTIONS)
    made.start(tmp_path_factory.mktemp("checkpoints"))
    for name, images in made.parts.items():  # fewer of each, for the test's time
        made.parts[name] = data.subset(images, 200, seed=0)
    return made


def narrowed(**values):
    return joint("cell").restrict({"cell.resolution": 16, "train.batch": 32, **values})


def test_batches_reach_from_8_to_32768_and_a_search_has_the_usual_ones():
    assert tuple(2**k for k in range(3, 16)) == BATCHES
    usual = joint("cell").restrict({})
    by_name = {d.name: d.values for d in usual.decisions}
    assert by_name["train.batch"] == (32, 64, 128, 256, 512)
    assert by_name["train.lr_rule"] == ("linear", "sqrt")
    techniques = ("augment.", "image.", "distill.", "train.optimizer", "train.schedule",
                  "train.precision", "bits.method")  # fmt: skip
    assert not [name for name in by_name if name.startswith(techniques)], "off unless named"


@pytest.mark.parametrize(("rule", "exponent"), [("linear", 1), ("sqrt", 0.5), ("none", 0)])
def test_the_rate_follows_the_batch_by_its_rule(rule, exponent):
    choices = {"train.batch": 4096, "train.learning_rate": 0.1, "train.lr_rule": rule}
    expected = 0.1 * (4096 / REFERENCE_BATCH) ** exponent
    assert peak_learning_rate(choices) == pytest.approx(expected)
    adam = peak_learning_rate({**choices, "train.optimizer": "adam"})
    assert adam == pytest.approx(expected * ADAM_RATE)


@pytest.mark.parametrize(
    ("options", "values", "message"),
    [
        ({}, {"train.batch": [32, 8192]}, "may be 8192, more than the 6500 training images"),
        ({"images": 300}, {"train.batch": 512}, "may be 512, more than the 300 training images"),
        ({"images": 7000}, {}, "images is 7000, but cifar10-sample has 6500 training images"),
        ({}, {"bits.method": ["lsq", "post_training"], "bits.weights.stage1": [1, 4]},
         "'bits.weights.stage1' may be 1, which bits.method post_training cannot take"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_named_before_the_run(options, values, message):
    with pytest.raises(ValueError, match=message):
        Proxy(**options).check(narrowed(**values))
    Proxy(**options | {"images": 0}).check(narrowed())


def test_products_are_in_the_precision_asked_for():
    with pytest.raises(ValueError, match="precision is 'int8'; choose auto or one of float32"):
        Proxy(precision="int8")
    assert Proxy(precision="float32").precision == "float32"
    cpu = Path("/proc/cpuinfo")
    multiplies = cpu.is_file() and "bf16" in cpu.read_text()
    assert Proxy().precision == ("bfloat16" if multiplies else "float32")


@pytest.mark.parametrize(
    "choices",
    [
        {"train.optimizer": "lars", "train.schedule": "cosine", "augment.flip": "alternating"},
        {"train.optimizer": "adam", "train.schedule": "constant", "image.normalization": "none"},
        {"train.precision": "float16", "image.normalization": "image", "bits.method": "dorefa"},
        {"train.precision": "bfloat16", "bits.method": "post_training", "augment.cutout": 0.25},
        {"distill.weight": 0.5, "distill.temperature": 4, "augment.crop": 0.125},
    ],
    ids=lambda choices: " ".join(map(str, choices.values())),
)
def test_every_technique_trains_and_counts_what_it_did(proxy, choices):
    metrics = proxy.evaluate(design(**choices), seed=0)
    first, last = (point["loss"] for point in metrics["curve"])
    assert last < first + 0.1 and 0 <= metrics["accuracy"] <= 1 and metrics["epochs"] == 2
    assert metrics == {**metrics, "accuracy": pytest.approx(metrics["accuracy"])}
    other = proxy.evaluate(design(), seed=0)
    assert other["curve"][0]["loss"] != metrics["curve"][0]["loss"], "it is another training"


def test_a_second_worker_and_a_resumed_one_reuse_the_teacher(proxy, monkeypatch):
    choices = design(**{"distill.weight": 0.9, "distill.temperature": 2})
    first = proxy.evaluate(choices, seed=3)
    second = Proxy(**OPTIONS)
    second.start(proxy.folder)
    second.parts = proxy.parts
    n_fits = []
    fit = second.trainer.fit
    monkeypatch.setattr(second.trainer, "fit", lambda *a, **k: n_fits.append(1) or fit(*a, **k))
    again = second.evaluate(choices, seed=3)
    assert len(n_fits) == 1, "the student alone"
    assert [c["loss"] for c in again["curve"]] == [c["loss"] for c in first["curve"]]


def test_a_candidate_below_the_limit_ends_there_and_says_so(proxy):
    whole = proxy.evaluate(design(), seed=0, stop_below=[(1, 0.0)])
    assert "stopped_at" not in whole and whole["epochs"] == 2
    [[epoch, accuracy]] = whole["rungs"]
    ended = proxy.evaluate(design(), seed=0, stop_below=[(1, accuracy + 0.01)])
    assert ended["stopped_at"] == ended["epochs"] == epoch == 1 == len(ended["curve"])
    assert ended["rungs"] == whole["rungs"] and ended["accuracy"] == accuracy
    plain = proxy.evaluate(design(), seed=0)
    assert plain["accuracy"] == whole["accuracy"], "being judged changes nothing"
    assert "rungs" not in plain


def test_a_longer_fidelity_is_that_many_epochs(proxy):
    assert proxy.fidelity(6) == 6
    longer = proxy.evaluate(design(), seed=0, fidelity=4)
    assert longer["epochs"] == len(longer["curve"]) == 4
    with pytest.raises(ValueError, match="= 2 up; got 1"):
        proxy.fidelity(1)


def test_finals_are_augmented_as_usual_unless_the_choices_say_otherwise(proxy, monkeypatch,
                                                                        tmp_path):  # fmt: skip
    recipes = []
    fit = proxy.trainer.fit

    def noted(network, images, labels, recipe, **named):
        recipes.append(recipe)
        return fit(network, images, labels, recipe, **named)

    monkeypatch.setattr(proxy.trainer, "fit", noted)
    for choices in ({}, {"augment.flip": "none"}):
        proxy.finalize(design(**choices), seed=0, weights=tmp_path / "w.h5")
        proxy.evaluate(design(**choices), seed=0)
    moves = [(r.augmentation.flip, r.augmentation.crop) for r in recipes]
    assert moves == [("random", 0.125), ("none", 0), ("none", 0.125), ("none", 0)]


def test_the_preset_of_recipes_fixes_the_network_and_frees_its_training():
    whole = config.complete(config.read("recipes"))
    space = config.make_space(whole)
    config.make_evaluator(whole).check(space)
    free = [d.name for d in space.decisions if len(d.values) > 1]
    assert all(name.startswith(("train.", "augment.", "image.")) for name in free)
    assert {"train.optimizer", "train.schedule", "augment.cutout", "image.normalization"} <= set(
        free)  # fmt: skip
    assert np.log10(float(space.n_designs)) > 3
