"""Images to search on: CIFAR-10 and the sample of it that is embedded in the package.

`load` reads a data set, checks it, and splits it into train, validation and test; a search
sees the first two only. `check` finds out beforehand, cheaply, whether `load` would succeed.

CIFAR-10: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

import difflib
import hashlib
import http.client
import io
import os
import tarfile
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
FOLDER = "cifar-10-batches-bin"
FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
N_RECORDS, RECORD_BYTES = 10_000, 3_073  # a file's records; a label byte and 3 x 32 x 32 pixels
ARCHIVE = "cifar-10-binary.tar.gz"
ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # as published beside the archive
ORIGIN = "https://www.cs.toronto.edu/~kriz/"
SAMPLE_SHA256 = "c48cfdeadbb7942e541e04fe57c37144b37dc94c439c483098347da30d6dbca7"
SPLIT_SEED = 2009  # one validation split for every run, so that their accuracies compare
REMEDY = f"download {ORIGIN}{ARCHIVE} and pass it, or its extracted folder, with --data"
SAMPLE_REMEDY = "install the package again"


class DataError(ValueError):
    """Data that cannot be used; one line: what is wrong, the value received, what to try next."""


@dataclass(frozen=True, eq=False)
class Images:
    """Pixels `x`, uint8 [n, 32, 32, 3] (RGB, 0..255), and labels `y`, int32 [n] (0..9)."""

    x: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint parts. The search must never look at `test`; label i means `classes[i]`."""

    name: str
    train: Images
    validation: Images
    test: Images
    classes: tuple[str, ...]


def load(name: str, path: str | Path | None = None, *, validation: int | None = None) -> Dataset:
    """Return the data set `name`, one of `DATASETS`.

    Args:
        path: for `cifar10`, the folder `cifar-10-batches-bin`, a folder that contains it, the
            official `cifar-10-binary.tar.gz`, or a folder that contains that. Only the six
            files of images are read. None asks `keras.datasets`, which downloads the images into
            Keras's own cache unless they are there, and unpickles them: the one pickle of this
            project, and never reached when a path is given. The embedded `cifar10-sample` takes
            no path.
        validation: number of images held out of the training images, as evenly over the classes
            as possible and the same ones in every run; by default 5,000 of the 50,000 of
            `cifar10` and 1,500 of the 8,000 of the sample.

    Raises:
        DataError: unknown name, data missing or damaged, no network, `validation` out of range.
    """
    source, n = _source(name, path, validation)
    train, test = _read(source.load, name, path)
    held_out = np.zeros(len(train), bool)
    held_out[balanced_rows(train.y, n, SPLIT_SEED)] = True
    return Dataset(name, _take(train, ~held_out), _take(train, held_out), test, CLASSES)


def check(name: str, path: str | Path | None = None, *, validation: int | None = None) -> None:
    """Raise the DataError that `load` with the same arguments would, without decoding an image.

    The sample: its checksum. A CIFAR-10 folder: every file's presence, size and labels. The
    archive: its checksum, which vouches for what is inside. `cifar10` without a path: only
    whether Keras's cache has a copy (unopened) or else whether the download server answers
    within ten seconds; what Keras then delivers is checked by `load`.
    """
    source, _ = _source(name, path, validation)
    _read(source.check, name, path)


def subset(images: Images, n: int, seed: int) -> Images:
    """Return `n` of the images, as evenly over the classes as possible, in their given order.

    The same seed gives the same images, and a smaller `n` a subset of them.

    Raises:
        DataError: `n` is not between 1 and `len(images)`.
    """
    return _take(images, balanced_rows(images.y, n, seed))


def balanced_rows(y: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Return `n` ascending row numbers, int64 [n], drawn evenly over the labels `y` [rows].

    Every class gives the same number, or as close to it as `n` and the class's size permit.

    Raises:
        DataError: `n` is not between 1 and the number of rows.
    """
    if not 1 <= n <= len(y):
        raise DataError(f"cannot draw {n} of {len(y)} images; choose 1 to {len(y)}")
    # Raw output, because NumPy keeps only a bit generator's stream the same between versions.
    order = np.argsort(np.random.PCG64(seed).random_raw(len(y)), kind="stable")
    by_class = order[np.argsort(y[order], kind="stable")]
    counts = np.bincount(y)
    turn = np.empty(len(y), np.int64)  # [rows] a row's place in the queue of its class
    turn[by_class] = np.arange(len(y)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[np.argsort(turn[order], kind="stable")[:n]])


def resize(x: np.ndarray, size: int) -> np.ndarray:
    """Return `x`, uint8 [n, h, w, 3], as float32 [n, size, size, 3], still on the scale 0..255.

    An output pixel is the mean of the area it covers, fractions of input pixels included. All
    sums are of integers below 2^24 (for images up to 256 x 256), which float32 holds exactly,
    so that the result is the correctly rounded mean on every machine.

    Raises:
        DataError: `size` is less than 1.
    """
    if size < 1:
        raise DataError(f"cannot resize images to {size} x {size} pixels; choose a size from 1")
    n, h, w, channels = x.shape
    rows = _overlap(h, size)  # [size, h]
    columns = np.kron(_overlap(w, size).T, np.eye(channels, dtype=np.float32))  # [w*3, size*3]
    out = np.empty((n, size, size * channels), np.float32)
    for part in _chunks(n):
        narrow = x[part].reshape(-1, w * channels).astype(np.float32) @ columns
        np.matmul(rows, narrow.reshape(-1, h, size * channels), out=out[part])
    out /= h * w
    return out.reshape(n, size, size, channels)


def normalization(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and standard deviation of each channel, float32 [3], pixels taken as 0..1.

    Take them from training images, and apply them as `(resize(x, size) / 255 - mean) / std`.

    Raises:
        DataError: there is no image, or a channel has the same value everywhere.
    """
    total, squares = np.zeros((2, *images.x.shape[1:]), np.int64)  # [32, 32, 3] each
    for part in _chunks(len(images)):
        x = images.x[part]
        total += x.sum(axis=0, dtype=np.int64)
        squares += np.square(x, dtype=np.uint16).sum(axis=0, dtype=np.int64)
    n_pixels = max(images.x.size // 3, 1)
    mean = total.sum(axis=(0, 1)) / n_pixels
    variance = squares.sum(axis=(0, 1)) / n_pixels - mean**2  # exactly 0 for a constant channel
    if not variance.all():
        raise DataError(
            f"cannot normalize by a constant channel (variances {variance} over {len(images)} "
            "images); give images that vary"
        )
    return (mean / 255).astype(np.float32), (np.sqrt(variance) / 255).astype(np.float32)


def _overlap(n_in: int, n_out: int) -> np.ndarray:
    """Length that n_out equal cells share with n_in equal pixels, in 1/n_out of a pixel.

    float32 [n_out, n_in], whole numbers; a row sums to n_in.
    """
    cells = np.arange(n_out)[:, None] * n_in
    pixels = np.arange(n_in) * n_out
    shared = np.minimum(cells + n_in, pixels + n_out) - np.maximum(cells, pixels)
    return np.maximum(shared, 0).astype(np.float32)


def _chunks(n: int) -> Iterator[slice]:
    """Consecutive slices of n images, so that temporaries stay small whatever n is."""
    return (slice(start, start + 256) for start in range(0, n, 256))


def _take(images: Images, rows: np.ndarray) -> Images:
    return Images(images.x[rows], images.y[rows])


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


# The embedded sample


def _load_sample(path: None) -> tuple[Images, Images]:
    with np.load(io.BytesIO(_sample_bytes()), allow_pickle=False) as pack:
        jpeg, sizes, labels = pack["jpeg"], pack["sizes"].astype(np.int64), pack["labels"]
        n_train = int(pack["n_train"])
    x = np.empty((len(sizes), 32, 32, 3), np.uint8)
    for row, encoded in enumerate(np.split(jpeg, np.cumsum(sizes)[:-1])):
        x[row] = np.asarray(Image.open(io.BytesIO(encoded)))
    y = labels.astype(np.int32)
    return Images(x[:n_train], y[:n_train]), Images(x[n_train:], y[n_train:])


def _check_sample(path: None) -> None:
    _sample_bytes()


def _sample_bytes() -> bytes:
    content = resources.files("nas.samples").joinpath("cifar10.npz").read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SAMPLE_SHA256:
        raise DataError(
            f"the embedded sample is damaged (SHA-256 {found}, expected {SAMPLE_SHA256}); "
            f"{SAMPLE_REMEDY}"
        )
    return content


# CIFAR-10 in its binary layout


def _load_cifar10(path: str | Path | None) -> tuple[Images, Images]:
    if path is None:
        return _load_from_keras()
    x = np.empty((len(FILES), N_RECORDS, 32, 32, 3), np.uint8)
    y = np.empty((len(FILES), N_RECORDS), np.int32)
    for i, records in _records(_locate(path)):
        y[i] = records[:, 0]
        x[i] = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Images(x[:-1].reshape(-1, 32, 32, 3), y[:-1].ravel()), Images(x[-1], y[-1])


def _check_cifar10(path: str | Path | None) -> None:
    if path is None:
        return _check_keras()
    source = _locate(path)
    if source.is_dir():
        for _ in _records(source):
            pass


def _locate(path: str | Path) -> Path:
    """Return the folder of binary files, or the archive after verifying its checksum."""
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError(f"no such data folder or archive: {str(path)!r}; {REMEDY}")
    if path.is_dir():
        if (path / FOLDER).is_dir():
            return path / FOLDER
        if any((path / name).exists() for name in FILES):
            return path
        if not (path / ARCHIVE).exists():
            raise DataError(f"neither {FOLDER} nor {ARCHIVE} is in {str(path)!r}; {REMEDY}")
        path = path / ARCHIVE
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != ARCHIVE_MD5:
        raise DataError(
            f"{str(path)!r} is not the official {ARCHIVE} (MD5 {found}, expected {ARCHIVE_MD5}); "
            f"if you trust it, extract it and pass the folder {FOLDER}, or {REMEDY}"
        )
    return path


def _records(source: Path) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (position in FILES, records uint8 [10000, 3073]) of each file, checked."""
    missing = set(FILES)
    for name, n_bytes, file in _open_files(source):
        where = f"{name} of {str(source)!r}"
        if n_bytes != N_RECORDS * RECORD_BYTES:
            raise DataError(
                f"{where} has {n_bytes} bytes, expected {N_RECORDS * RECORD_BYTES}; {REMEDY}"
            )
        records = np.frombuffer(file.read(), np.uint8).reshape(N_RECORDS, RECORD_BYTES)
        row = records[:, 0].argmax()
        if records[row, 0] >= len(CLASSES):
            raise DataError(
                f"{where} has label {records[row, 0]} in record {row}, expected 0 to 9; {REMEDY}"
            )
        missing.discard(name)
        yield FILES.index(name), records
    if missing:
        raise DataError(f"{', '.join(sorted(missing))} missing in {str(source)!r}; {REMEDY}")


def _open_files(source: Path) -> Iterator[tuple[str, int, BinaryIO]]:
    """Yield (name, size in bytes, open file) of those of FILES that are there."""
    if source.is_dir():
        for path in (source / name for name in FILES if (source / name).exists()):
            with path.open("rb") as file:
                yield path.name, os.fstat(file.fileno()).st_size, file
        return
    with tarfile.open(source, "r:gz") as archive:
        for member in archive:  # in the archive's own order: it is decompressed once
            folder, _, name = member.name.partition("/")
            if folder == FOLDER and name in FILES and member.isfile():
                yield name, member.size, archive.extractfile(member)


# CIFAR-10 through Keras


def _load_from_keras() -> tuple[Images, Images]:
    try:
        from keras.datasets import cifar10

        parts = cifar10.load_data()
    except Exception as error:  # Keras raises a bare Exception when a download fails
        raise DataError(f"keras.datasets has no CIFAR-10 ({_line(error)}); {REMEDY}") from error
    for (x, y), n in zip(parts, (50_000, 10_000), strict=True):
        if x.shape != (n, 32, 32, 3) or y.size != n or y.max() >= len(CLASSES):
            raise DataError(
                f"keras.datasets gave images {x.shape} and {y.size} labels up to {y.max()}, "
                f"expected ({n}, 32, 32, 3) and labels 0 to 9; {REMEDY}"
            )
    train, test = (Images(x, y.ravel().astype(np.int32)) for x, y in parts)
    return train, test


def _check_keras() -> None:
    cache = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "datasets"
    if any(cache.glob("cifar-10-batches-py*")):
        return
    try:
        urllib.request.urlopen(
            urllib.request.Request(f"{ORIGIN}cifar-10-python.tar.gz", method="HEAD"), timeout=10
        ).close()
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"no CIFAR-10 in {str(cache)!r} and no download ({_line(error)}); {REMEDY}"
        ) from error


class Source(NamedTuple):
    """How to read a data set into (train, test), and how to check it without that."""

    load: Callable[[str | Path | None], tuple[Images, Images]]
    check: Callable[[str | Path | None], None]
    n_train: int
    n_validation: int
    takes_path: bool
    remedy: str


DATASETS = {
    "cifar10-sample": Source(_load_sample, _check_sample, 8_000, 1_500, False, SAMPLE_REMEDY),
    "cifar10": Source(_load_cifar10, _check_cifar10, 50_000, 5_000, True, REMEDY),
}


def _source(name: str, path: str | Path | None, validation: int | None) -> tuple[Source, int]:
    """Return the entry of DATASETS and the number of validation images, arguments checked."""
    if name not in DATASETS:
        nearest = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"choose from {', '.join(DATASETS)}"
        raise DataError(f"unknown data set {name!r}; {hint}")
    source = DATASETS[name]
    if path is not None and not source.takes_path:
        raise DataError(f"{name} is embedded and takes no path, got {str(path)!r}; use 'cifar10'")
    n = source.n_validation if validation is None else validation
    if not 1 <= n < source.n_train:
        raise DataError(
            f"validation must hold 1 to {source.n_train - 1} of the {source.n_train} training "
            f"images, got {n}; leave it out for {source.n_validation}"
        )
    return source, n


def _read(read: Callable, name: str, path: str | Path | None):
    """Return `read(path)`; what the file system raises becomes a DataError."""
    try:
        return read(path)
    except OSError as error:
        raise DataError(f"cannot read {name} ({_line(error)}); {DATASETS[name].remedy}") from error
