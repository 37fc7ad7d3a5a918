"""The data sets: what is embedded, what is read from disk, and what is refused."""

import hashlib
import os
import subprocess
import sys
import tarfile
import urllib.error
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nas import data
from nas.data import DataError, Images

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data" / "cifar10_jpeg.npz"
SAMPLE = ROOT / "nas" / "samples" / "cifar10.npz"


@pytest.fixture(scope="module")
def sample():
    return data.load("cifar10-sample")


@pytest.fixture(scope="module")
def pack():
    with np.load(SAMPLE, allow_pickle=False) as arrays:
        return dict(arrays)


def synthetic_records(number):
    """Records whose every byte says where it is: file, record, plane, row and column."""
    row = np.arange(data.N_RECORDS)[:, None, None, None]
    plane, i, j = np.arange(3)[:, None, None], np.arange(32)[:, None], np.arange(32)
    pixels = (row + 11 * number + 50 * plane + 3 * i + j) % 256
    records = np.empty((data.N_RECORDS, data.RECORD_BYTES), np.uint8)
    records[:, 0] = np.arange(data.N_RECORDS) % 10
    records[:, 1:] = pixels.astype(np.uint8).reshape(data.N_RECORDS, -1)
    return records


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    """A complete `cifar-10-batches-bin` of synthetic records."""
    folder = tmp_path_factory.mktemp("cifar10") / data.FOLDER
    folder.mkdir()
    for number, name in enumerate(data.FILES):
        synthetic_records(number).tofile(folder / name)
    return folder


@pytest.fixture(scope="module")
def archive(layout, tmp_path_factory):
    """The same as an archive, its members in another order than FILES, among others."""
    path = tmp_path_factory.mktemp("archive") / data.ARCHIVE
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        decoy = tarfile.TarInfo("../test_batch.bin")  # neither read nor written anywhere
        tar.addfile(decoy)
        for name in reversed(data.FILES):
            tar.add(layout / name, f"{data.FOLDER}/{name}")
    return path


@pytest.fixture
def damaged(layout, tmp_path):
    """Make a copy of the layout that lacks one file, of links to the others."""

    def without(name):
        folder = tmp_path / data.FOLDER
        folder.mkdir()
        for other in set(data.FILES) - {name}:
            (folder / other).symlink_to(layout / other)
        return folder

    return without


def refused(match, name, path=None, **kwargs):
    """Both `check` and `load` raise a one-line DataError that matches."""
    for function in (data.check, data.load):
        with pytest.raises(DataError, match=match) as caught:
            function(name, path, **kwargs)
        assert "\n" not in str(caught.value)


# The embedded sample


def test_sample_parts_are_balanced(sample):
    for part, per_class in ((sample.train, 650), (sample.validation, 150), (sample.test, 200)):
        assert part.x.shape == (10 * per_class, 32, 32, 3) and part.x.dtype == np.uint8
        assert part.y.dtype == np.int32 and len(part) == 10 * per_class
        assert np.bincount(part.y).tolist() == [per_class] * 10
    assert sample.name == "cifar10-sample" and len(sample.classes) == 10


def test_sample_parts_share_no_image(sample):
    pixels = [
        {image.tobytes() for image in part.x}
        for part in (sample.train, sample.validation, sample.test)
    ]
    assert len(set.union(*pixels)) == 10_000


def test_sample_file_is_small_and_its_rows_come_from_the_right_parts(pack):
    data.check("cifar10-sample")
    assert SAMPLE.stat().st_size < 10_000_000
    index, n_train = pack["index"], pack["n_train"]
    assert len(np.unique(index)) == 10_000
    assert index[:n_train].max() < 50_000 <= index[n_train:].min()


def test_sample_images_are_those_of_the_full_set(pack):
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is not there, so nothing to compare the sample with")
    with np.load(SHARED, allow_pickle=False) as full:
        jpeg, sizes, labels = full["jpeg"], full["sizes"], full["labels"]
    index, ends = pack["index"], np.cumsum(sizes, dtype=np.int64)
    assert np.array_equal(pack["labels"], labels[index])
    assert np.array_equal(pack["sizes"], sizes[index])
    copied = np.concatenate([jpeg[ends[i] - sizes[i] : ends[i]] for i in index])
    assert np.array_equal(pack["jpeg"], copied)


def test_sample_is_made_again_bit_for_bit(tmp_path, pack):
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is not there, so the sample cannot be made again")
    out = tmp_path / "again.npz"
    subprocess.run(
        [sys.executable, "-m", "nas.samples.make_cifar10", str(SHARED), str(out)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    with np.load(out, allow_pickle=False) as again:
        assert again.files == list(pack)
        for name, array in again.items():
            assert (array.dtype, array.shape) == (pack[name].dtype, pack[name].shape)
            assert array.tobytes() == pack[name].tobytes()
    assert os.listdir(tmp_path) == ["again.npz"]


def test_damaged_or_absent_sample_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(data.resources, "files", lambda package: tmp_path)
    refused("cannot read cifar10-sample .*install the package again", "cifar10-sample")
    content = bytearray(SAMPLE.read_bytes())
    content[5_000_000] ^= 1
    (tmp_path / "cifar10.npz").write_bytes(content)
    refused("embedded sample is damaged .SHA-256 .*install the package again", "cifar10-sample")


# The binary layout


def test_folder_is_read_as_laid_out(layout):
    data.check("cifar10", layout)
    loaded = data.load("cifar10", str(layout.parent))
    n = data.N_RECORDS
    assert [len(loaded.train), len(loaded.validation), len(loaded.test)] == [45_000, 5_000, n]
    assert np.bincount(loaded.validation.y).tolist() == [500] * 10
    records = synthetic_records(5)
    assert np.array_equal(loaded.test.y, records[:, 0])
    for channel in range(3):
        plane = records[:, 1 + 1024 * channel : 1 + 1024 * (channel + 1)]
        assert np.array_equal(loaded.test.x[..., channel].reshape(n, -1), plane)
    held_out = data.balanced_rows(np.tile(records[:, 0], 5), 5_000, data.SPLIT_SEED)
    kept = np.setdiff1d(np.arange(50_000), held_out)
    for part, rows in ((loaded.train, kept), (loaded.validation, held_out)):
        assert np.array_equal(part.y, rows % n % 10)
        assert np.array_equal(part.x[:, 0, 0, 0], (rows % n + 11 * (rows // n)) % 256)


def test_archive_gives_the_same_as_the_folder(layout, archive, monkeypatch, tmp_path):
    monkeypatch.setattr(data, "ARCHIVE_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.chdir(tmp_path)
    data.check("cifar10", archive)
    expected, found = data.load("cifar10", layout), data.load("cifar10", archive.parent)
    for part in ("train", "validation", "test"):
        assert np.array_equal(getattr(found, part).x, getattr(expected, part).x)
        assert np.array_equal(getattr(found, part).y, getattr(expected, part).y)
    assert not os.listdir(tmp_path) and os.listdir(archive.parent) == [data.ARCHIVE]


def test_archive_of_another_checksum_is_refused(archive):
    refused(f"MD5 .*expected {data.ARCHIVE_MD5}.; if you trust it, extract", "cifar10", archive)


def test_missing_path_is_refused(tmp_path):
    refused("no such data folder .*nowhere.*--data", "cifar10", tmp_path / "nowhere")


def test_folder_without_cifar10_is_refused(tmp_path):
    refused("neither cifar-10-batches-bin nor .*--data", "cifar10", tmp_path)


def test_missing_file_is_refused(damaged):
    refused("data_batch_3.bin missing in .*--data", "cifar10", damaged("data_batch_3.bin"))


def test_unreadable_file_is_refused(damaged):
    folder = damaged("data_batch_3.bin")
    (folder / "data_batch_3.bin").mkdir()
    refused("cannot read cifar10 .IsADirectoryError.*--data", "cifar10", folder)


def test_truncated_file_is_refused(layout, damaged):
    folder = damaged("test_batch.bin")
    content = (layout / "test_batch.bin").read_bytes()
    (folder / "test_batch.bin").write_bytes(content[:-1])
    refused("test_batch.bin .* has 30729999 bytes, expected 30730000", "cifar10", folder)


def test_label_out_of_range_is_refused(damaged):
    folder, records = damaged("data_batch_2.bin"), synthetic_records(1)
    records[77, 0] = 10
    records.tofile(folder / "data_batch_2.bin")
    refused("data_batch_2.bin .* has label 10 in record 77, expected 0 to 9", "cifar10", folder)


# Keras


@pytest.fixture
def keras_gives(monkeypatch):
    """Stand in for `keras.datasets`, whose download a test must not start."""

    def give(load_data):
        cifar10 = SimpleNamespace(load_data=load_data)
        monkeypatch.setitem(sys.modules, "keras", SimpleNamespace())
        monkeypatch.setitem(sys.modules, "keras.datasets", SimpleNamespace(cifar10=cifar10))

    return give


def keras_parts(n_train=50_000):
    return tuple(
        (np.zeros((n, 32, 32, 3), np.uint8), (np.arange(n, dtype=np.uint8) % 10)[:, None])
        for n in (n_train, 10_000)
    )


def test_without_a_path_keras_is_asked(keras_gives):
    keras_gives(keras_parts)
    loaded = data.load("cifar10")
    assert [len(loaded.train), len(loaded.validation), len(loaded.test)] == [45_000, 5_000, 10_000]
    assert loaded.train.y.dtype == np.int32 and loaded.train.y.ndim == 1


def test_keras_without_network_is_refused(keras_gives):
    def no_network():
        raise Exception("URL fetch failure on https://...: None --\nName not known")

    keras_gives(no_network)
    with pytest.raises(DataError, match=r"URL fetch failure .* Name not known.*--data") as caught:
        data.load("cifar10")
    assert "\n" not in str(caught.value)


def test_wrong_images_from_keras_are_refused(keras_gives):
    keras_gives(lambda: keras_parts(n_train=10))
    with pytest.raises(DataError, match=r"gave images \(10, 32, 32, 3\) .*--data"):
        data.load("cifar10")


def test_check_without_a_path_wants_a_cache_or_a_server(tmp_path, monkeypatch):
    def no_network(request, timeout):
        assert request.get_method() == "HEAD"
        raise urllib.error.URLError("Name not known")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(data.urllib.request, "urlopen", no_network)
    with pytest.raises(DataError, match=r"no CIFAR-10 in .* no download .*--data"):
        data.check("cifar10")
    (tmp_path / "datasets" / "cifar-10-batches-py-target").mkdir(parents=True)
    data.check("cifar10")


def test_importing_loads_neither_keras_nor_tensorflow():
    code = "import sys, nas.data; sys.exit(bool({'keras', 'tensorflow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# Arguments


def test_unknown_name_suggests_the_nearest():
    refused("unknown data set 'cifar-10'; did you mean 'cifar10'", "cifar-10")
    refused("unknown data set 'mnist'; choose from cifar10-sample, cifar10", "mnist")


def test_sample_takes_no_path(tmp_path):
    refused("takes no path, got .*use 'cifar10'", "cifar10-sample", tmp_path)


@pytest.mark.parametrize("n", [0, 8_000])
def test_validation_out_of_range_is_refused(n):
    refused(f"1 to 7999 of the 8000 training images, got {n}", "cifar10-sample", validation=n)


# Choosing images


def test_the_split_is_the_same_every_time_and_keeps_the_test_part(sample):
    again, smaller = data.load("cifar10-sample"), data.load("cifar10-sample", validation=1_003)
    assert np.array_equal(again.validation.x, sample.validation.x)
    assert np.array_equal(smaller.test.x, sample.test.x)
    assert [len(smaller.train), len(smaller.validation)] == [6_997, 1_003]
    assert set(np.bincount(smaller.validation.y)) == {100, 101}


def test_subset_is_balanced_deterministic_and_nested(sample):
    few, more = data.subset(sample.train, 205, seed=1), data.subset(sample.train, 500, seed=1)
    assert set(np.bincount(few.y)) == {20, 21}
    assert np.array_equal(few.x, data.subset(sample.train, 205, seed=1).x)
    assert {image.tobytes() for image in few.x} < {image.tobytes() for image in more.x}
    assert not np.array_equal(few.x, data.subset(sample.train, 205, seed=2).x)


def test_subset_of_unequal_classes_takes_all_of_the_small_one():
    y = np.repeat([0, 1, 2], [3, 50, 40]).astype(np.int32)
    rows = data.balanced_rows(y, 33, seed=0)
    assert np.bincount(y[rows]).tolist() == [3, 15, 15]
    assert np.array_equal(data.balanced_rows(y, len(y), seed=0), np.arange(len(y)))


def test_subset_draws_the_same_rows_under_every_numpy():
    assert data.balanced_rows(np.zeros(100, np.int32), 5, seed=0).tolist() == [3, 11, 13, 20, 92]


@pytest.mark.parametrize("n", [0, 2_001])
def test_subset_of_more_than_there_is_is_refused(sample, n):
    with pytest.raises(DataError, match=f"cannot draw {n} of 2000 images; choose 1 to 2000"):
        data.subset(sample.test, n, seed=0)


# Resolution and normalization


def test_resize_to_half_is_the_mean_of_four(sample):
    x = sample.test.x[:300]
    means = x.reshape(300, 16, 2, 16, 2, 3).astype(np.float64).mean(axis=(2, 4))
    resized = data.resize(x, 16)
    assert resized.dtype == np.float32 and np.array_equal(resized, means)


def test_resize_to_the_same_size_changes_nothing(sample):
    assert np.array_equal(data.resize(sample.test.x, 32), sample.test.x)


@pytest.mark.parametrize("size", [1, 12, 24, 40])
def test_resize_weighs_by_area(size):
    """Repeat each pixel `size` times each way; the output is then a mean of whole blocks."""
    x = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 3), dtype=np.uint8)
    fine = x.repeat(size, axis=1).repeat(size, axis=2).astype(np.float64)
    means = fine.reshape(2, size, 6, size, 8, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(data.resize(x, size), means, rtol=1e-7)


def test_resize_to_nothing_is_refused(sample):
    with pytest.raises(DataError, match="0 x 0 pixels"):
        data.resize(sample.test.x, 0)


def test_normalization_gives_zero_mean_and_unit_deviation(sample):
    mean, std = data.normalization(sample.train)
    assert mean.dtype == std.dtype == np.float32 and mean.shape == std.shape == (3,)
    normalized = (sample.train.x / 255 - mean) / std
    np.testing.assert_allclose(normalized.mean(axis=(0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(normalized.std(axis=(0, 1, 2)), 1, atol=1e-6)


@pytest.mark.parametrize("n", [0, 7])
def test_normalization_of_constant_images_is_refused(n):
    with pytest.raises(DataError, match=f"over {n} images"):
        data.normalization(Images(np.full((n, 32, 32, 3), 113, np.uint8), np.zeros(n, np.int32)))
