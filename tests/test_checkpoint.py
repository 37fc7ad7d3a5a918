"""A training that is kept and goes on: the same to the bit; no code is loaded."""

import io
import json
import threading
import zipfile

import numpy as np
import pytest
from test_cell import design

from nas.augment import USUAL
from nas.checkpoint import Checkpoint, Parked, checksum, key_of, partial_path
from nas.pruning import Pruning
from nas.train import Recipe, Trainer
from search_spaces import cell
from search_spaces.compression import UNCOMPRESSED, Compression, factored

BITS = (4, 4, 4, 8)
BASE = dict(batch=50, epochs=3, learning_rate=0.1, warmup=0.2, weight_bits=BITS,
            activation_bits=BITS)  # fmt: skip
STAGES = 3


def stages(**each):
    return (*[Compression(**each)] * STAGES, UNCOMPRESSED)


RECIPES = {
    "plain": {},
    "adam, moved images": {"optimizer": "adam", "augmentation": USUAL},
    "lars, summed up": {"optimizer": "lars", "micro_batch": 30},
    "float16": {"precision": "float16", "weight_bits": (32,) * 4, "activation_bits": (32,) * 4},
    "rigl": {"compressions": stages(density=0.3), "pruning": Pruning("rigl")},
    "group lasso": {"compressions": stages(filters=0.5), "pruning": Pruning("group_lasso")},
    "codebook": {"compressions": stages(index_bits=3)},
}


class AfterSteps:
    """Is set after so many steps."""

    def __init__(self, n):
        self.left = n

    def is_set(self):
        self.left -= 1
        return self.left < 0


def outcome(trained):
    curve = [{k: v for k, v in each.items() if k != "seconds"} for each in trained.curve]
    return curve, trained.values.tobytes(), [m.tobytes() for each in trained.moments for m in each]


@pytest.mark.parametrize("name", RECIPES)
def test_a_training_that_was_parked_ends_as_an_undisturbed_one(tmp_path, images, trainer, name):
    (x, y), _ = images
    x, y = x[:200], y[:200]
    network, recipe = cell.network(design()), Recipe(**{**BASE, **RECIPES[name]})
    whole = outcome(trainer.fit(network, x, y, recipe, seed=3))
    path, n_parked = tmp_path / "partial" / "trial-000000.npz", 0
    for steps in (0, 2, 3, 2, 10**6):  # 4 steps an epoch: inside, and at the end of one
        try:
            checkpoint = Checkpoint(path, "key", AfterSteps(steps))
            other = Trainer() if name == "plain" else trainer  # as in another process
            kept = outcome(other.fit(network, x, y, recipe, seed=3, checkpoint=checkpoint))
        except Parked:
            n_parked += 1
    assert n_parked == 4 and kept == whole
    assert not list(path.parent.glob("*.part"))


def test_factors_of_low_rank_go_on_too(tmp_path, images, trainer):
    (x, y), _ = images
    network = factored(cell.network(design()), 0.25)
    recipe = Recipe(**BASE, whole_until=0.3, compressions=stages(density=0.5),
                    pruning=Pruning("rigl"))  # fmt: skip
    whole = outcome(trainer.fit(network, x[:200], y[:200], recipe, seed=1))
    path = tmp_path / "a.npz"
    for steps in (0, 2, 2, 10**6):
        try:
            checkpoint = Checkpoint(path, "key", AfterSteps(steps))
            kept = trainer.fit(network, x[:200], y[:200], recipe, seed=1, checkpoint=checkpoint)
        except Parked:
            continue
    assert outcome(kept) == whole


def test_what_is_lost_is_the_work_since_the_last_file(tmp_path):
    checkpoint = Checkpoint(tmp_path / "a.npz", "key", interval_s=1e9)
    checkpoint.offer(lambda: pytest.fail("not due"))
    checkpoint.interval_s = 0
    checkpoint.notes["curve"] = [1.5]
    checkpoint.offer(lambda: {"values": np.arange(3, dtype=np.float32)})
    other = Checkpoint(tmp_path / "a.npz", "key")
    assert other.load()["values"].tolist() == [0, 1, 2] and other.notes == {"curve": [1.5]}
    assert Checkpoint(tmp_path / "a.npz", "another").load() is None
    assert Checkpoint(tmp_path / "none.npz", "key").load() is None


def test_where_weights_go_is_no_part_of_a_task():
    task = {"id": 1, "kind": "final", "seed": 2, "choices": {"a": 1}}
    assert key_of("proxy", {}, task) == key_of("proxy", {}, {**task, "weights": "elsewhere"})
    assert key_of("proxy", {}, task) != key_of("proxy", {}, {**task, "seed": 3})
    assert key_of("proxy", {}, task) != key_of("proxy", {"epochs": 2}, task)


def test_a_damaged_or_hostile_file_is_as_good_as_none(tmp_path):
    path = tmp_path / "a.npz"
    Checkpoint(path, "key").keep({"values": np.arange(8)})
    assert (Checkpoint(path, "key").load()["values"] == np.arange(8)).all()
    whole = path.read_bytes()
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        path.write_bytes(flipped)
        assert Checkpoint(path, "key").load() is None
        path.write_bytes(whole[:at])
        assert Checkpoint(path, "key").load() is None
    code = io.BytesIO()
    np.save(code, np.array([Exception("code")], object), allow_pickle=True)
    for values in (code.getvalue(), npy(np.arange(8)).replace(b"}", b"{")):
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("about.npy", npy(np.array(json.dumps({"key": "key", "notes": {}}))))
            file.writestr("values.npy", values)
        path.write_bytes(archive.getvalue() + checksum(archive.getvalue()))
        assert Checkpoint(path, "key").load() is None


def npy(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def test_names_stay_in_the_folder(tmp_path):
    assert partial_path(tmp_path, {"kind": "trial", "id": 7}) == (
        tmp_path / "partial" / "trial-000007.npz"
    )
    with pytest.raises(ValueError):
        partial_path(tmp_path, {"kind": "trial", "id": "../../x"})


def test_rungs_before_the_break_are_kept(tmp_path):
    from test_end_to_end import small_choices

    from nas.evaluators.proxy import Proxy

    evaluator = Proxy(epochs=3, images=200)
    evaluator.start()
    choices = {**small_choices(), "train.batch": 50, "cell.width": 4, "cell.depth": 1}
    limits = [(1, 0.0), (2, 0.0)]
    whole = evaluator.evaluate(choices, seed=1, stop_below=limits)
    for steps in (5, 4, 10**6):
        park = AfterSteps(steps)
        try:
            checkpoint = Checkpoint(tmp_path / "a.npz", "key", park)
            kept = evaluator.evaluate(choices, seed=1, stop_below=limits, checkpoint=checkpoint)
        except Parked:
            continue
    assert [epoch for epoch, _ in kept["rungs"]] == [1, 2]
    for name in ("accuracy", "loss", "train_loss", "rungs", "epochs"):
        assert kept[name] == whole[name]


def test_a_park_is_an_event_that_another_thread_sets(tmp_path):
    park = threading.Event()
    checkpoint = Checkpoint(tmp_path / "a.npz", "key", park)
    checkpoint.offer(dict)
    park.set()
    with pytest.raises(Parked):
        checkpoint.offer(dict)
    assert (tmp_path / "a.npz").exists()
