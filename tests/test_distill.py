"""Teachers: trained once and kept, given, refused; and students that learn their scores."""

import keras
import numpy as np
import pytest
from test_cell import design

from nas import config
from nas.augment import OFF, Augmentation, View
from nas.distill import KerasTeacher, Lessons, TrainedTeacher
from nas.evaluators.proxy import Proxy
from nas.train import Recipe, Trainer
from search_spaces import IMAGES as FAMILIES
from search_spaces import cell

RNG = np.random.default_rng(0)
CENTRES = RNG.normal(0, 1, (10, 16, 16, 3))
Y = (np.arange(300) % 10).astype(np.int32)
X = (CENTRES[Y] + RNG.normal(0, 1, (300, 16, 16, 3))).astype(np.float32)
NETWORK = cell.network(design())
FULL = (32,) * 4


class Recorded:
    """A trainer that counts what it trains."""

    def __init__(self):
        self.trainer, self.n_fits = Trainer(), 0

    def fit(self, *arguments, **named):
        self.n_fits += 1
        return self.trainer.fit(*arguments, **named)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_teacher(family):
    module = FAMILIES[family]
    choices = module.TEACHER | {f"{family}.resolution": 16}
    narrowed = module.SPACE.restrict({name: [value] for name, value in choices.items()})
    named = [d for d in narrowed.decisions if d.name in choices]
    assert {d.name for d in named} == set(choices), "all of its choices are in the space"
    assert all(len(d.values) == 1 for d in narrowed.decisions), "and nothing is left open"
    assert module.network(choices).training_flops > 1e6


def test_a_teacher_is_trained_once_and_then_loaded(tmp_path):
    first, second = Recorded(), Recorded()
    options = dict(epochs=1, folder=tmp_path)
    teacher = TrainedTeacher("mobile", first, X, Y, **options)
    again = TrainedTeacher("mobile", second, X, Y, **options)
    assert (first.n_fits, second.n_fits) == (1, 0)
    np.testing.assert_array_equal(teacher.class_scores(X[:50]), again.class_scores(X[:50]))
    assert not list(tmp_path.glob("*.part"))
    small = X[:, :8, :8]
    TrainedTeacher("mobile", second, small, Y, **options)
    assert second.n_fits == 1, "another resolution is another teacher"


def test_a_student_learns_what_the_teacher_says():
    """Scores that contradict the labels: class c is called c + 1."""
    lessons = 8 * np.eye(10, dtype=np.float32)[(Y + 1) % 10]
    trainer = Trainer()
    followed = {}
    for weight in (0.0, 0.9):
        recipe = Recipe(20, 4, 0.1, 0.2, FULL, FULL, distill_weight=weight, temperature=1.0)
        trained = trainer.fit(NETWORK, X, Y, recipe, seed=0, teacher=lambda view: lessons)
        answers = trained.class_scores(X).argmax(1)
        followed[weight] = (answers == (Y + 1) % 10).mean(), (answers == Y).mean()
    assert followed[0.9][0] > 0.9 and followed[0.0][1] > 0.9


def test_a_summed_step_is_taught_as_a_whole_one_is():
    lessons = RNG.normal(0, 2, (300, 10)).astype(np.float32)
    curves = []
    for micro_batch in (100, 512):
        recipe = Recipe(100, 1, 1e-6, 0.2, FULL, FULL, distill_weight=0.5, temperature=4.0,
                        micro_batch=micro_batch)  # fmt: skip
        trained = Trainer().fit(NETWORK, X, Y, recipe, seed=0, teacher=lambda view: lessons)
        curves.append(trained.curve[0]["loss"])
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def test_a_missing_teacher_is_named():
    recipe = Recipe(20, 1, 0.1, 0.2, FULL, FULL, distill_weight=0.3)
    with pytest.raises(ValueError, match=r"weigh 0\.3 in the loss, and none is given"):
        Trainer().fit(NETWORK, X, Y, recipe, seed=0)


def test_lessons_are_of_what_the_student_sees():
    class Sums:
        normalization, n_calls = "pixels", 0

        def class_scores(self, images):
            self.n_calls += 1
            return images[:, :4].sum((1, 2))

    teacher = Sums()
    lessons = Lessons(teacher, lambda: X)
    still = View(OFF, (0, 2), 0)
    np.testing.assert_array_equal(lessons(still), lessons(View(OFF, (0, 2), 1)))
    assert teacher.n_calls == 1, "images that are not moved are scored once"
    view = View(Augmentation("random", 0.125), (0, 2), 1)
    np.testing.assert_allclose(lessons(view), view(X)[:, :4].sum((1, 2)))


def model(path, classes=10, size=16, softmax=False):
    activation = "softmax" if softmax else None
    layers = [keras.layers.Flatten(), keras.layers.Dense(classes, activation=activation)]
    keras.Sequential([keras.Input((size, size, 3)), *layers]).save(path)
    return str(path)


def test_a_given_model_teaches_by_its_scores(tmp_path):
    images = RNG.integers(0, 256, (300, 16, 16, 3)).astype(np.float32)
    path = model(tmp_path / "t.keras")
    teacher = KerasTeacher(path)
    expected = keras.models.load_model(path).predict(images, verbose=0)
    np.testing.assert_allclose(teacher.class_scores(images), expected, rtol=1e-4, atol=1e-2)
    soft = KerasTeacher(model(tmp_path / "s.keras", softmax=True))
    probabilities = soft.model.predict(images / 5000, verbose=0)
    np.testing.assert_allclose(soft.class_scores(images / 5000), np.log(probabilities), atol=1e-4)


def space(**narrowed):
    table = {**config.read("quickstart"), "evaluator": {"name": "proxy"}}
    table["space"] = {**table["space"], **narrowed}
    return config.make_space(config.complete(table))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 7}, r"gives \(7,\) for an image, and the data have 10 classes"),
        ({"size": 32}, r"reads images of \(32, 32, 3\), a candidate's are \(16, 16, 3\)"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_before_training(tmp_path, arguments, message):
    proxy = Proxy(teacher=model(tmp_path / "t.keras", **arguments))
    with pytest.raises(ValueError, match=message):
        proxy.check(space())


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "t.keras").write_text("no")
    for path in (tmp_path / "t.keras", tmp_path / "missing.keras"):
        with pytest.raises(ValueError, match=r"evaluator\.teacher: no Keras model in"):
            Proxy(teacher=str(path)).check(space())
