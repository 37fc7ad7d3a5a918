"""Text to search on: Penn Treebank, and a corpus that every Python brings with it.

`load` reads a data set, checks it, and gives word numbers for train, validation and test; a search
sees the first two only. `check` raises what `load` would.

Penn Treebank: Marcus et al., 1993, as prepared by Mikolov et al., "Recurrent neural network based
language model", 2010: lower case, no punctuation, numbers as N, rare words as <unk>, an <eos> after
every sentence. It is licensed, and never part of this package.

`python-docs` is made of what CPython itself ships (Python Software Foundation License 2.0): the
help topics of `pydoc_data` and the docstrings of `MODULES`, every sentence once, brought into the
same form. Another release of Python has another text; a run records which it had.
"""

from __future__ import annotations

import ast
import functools
import gzip
import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nas.data import DataError
from search_spaces.space import nearest

UNKNOWN, END = "<unk>", "<eos>"
PARTS = ("train", "validation", "test")

FILES = {"train": "ptb.train.txt", "validation": "ptb.valid.txt", "test": "ptb.test.txt"}
N_TOKENS = {"train": 929_589, "validation": 73_760, "test": 82_430}
N_WORDS = 10_000
REMEDY = (
    f"Penn Treebank is licensed: get {', '.join(FILES.values())} of Mikolov's simple-examples.tgz "
    "(http://www.fit.vutbr.cz/~imikolov/rnnlm/), plain or .gz, and name their folder with --data"
)

# Modules and packages of the standard library with much prose, in every release from 3.11 on.
MODULES = (  # noqa: SIM905
    "_pydecimal argparse ast asyncio base64 bdb bisect calendar cmd code codecs collections "
    "concurrent configparser contextlib copy csv dataclasses datetime difflib dis doctest email "
    "enum filecmp fileinput fractions ftplib functools getopt gettext glob heapq hmac html http "
    "imaplib importlib inspect io ipaddress json linecache locale logging mailbox mimetypes "
    "multiprocessing netrc numbers optparse os pathlib pdb pickle pickletools pkgutil platform "
    "plistlib poplib posixpath pprint profile pstats pyclbr pydoc queue random re runpy sched "
    "selectors shelve shlex shutil smtplib socket socketserver ssl statistics string subprocess "
    "sysconfig tarfile tempfile textwrap threading timeit tokenize trace traceback typing "
    "unittest urllib uuid venv warnings wave weakref webbrowser wsgiref xml xmlrpc zipapp zipfile"
).split()
SKIPPED = {"test", "tests", "_test", "__pycache__"}  # folders inside packages
BLOCK = 20  # sentences in a row that go to the same part: of ten blocks, one each is held out
N_DOCS_WORDS = 4_000  # the most frequent of the training part, <unk> and <eos> among them
LEAST_WORDS = 3  # of a sentence
LEAST_TOKENS = 100_000

WORD = re.compile(r"[a-z_]+?(?=n't\b)|n't\b|'(?:s|re|ve|ll|d|m)\b|[a-z_]+|\d[\d.,]*")


@dataclass(frozen=True, eq=False)
class Text:
    """Three parts as word numbers, int32 [tokens]; a search must never look at `test`.

    words: number -> word, the most frequent of the training part first.
    """

    name: str
    words: tuple[str, ...]
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    @functools.cached_property
    def end(self) -> int:
        """The number of <eos>."""
        return self.words.index(END)


def load(name: str, path: str | Path | None = None) -> Text:
    """Return the data set `name`, one of `SOURCES`.

    path: of `ptb`, the folder with its three files; `python-docs` takes none.

    Raises DataError: unknown name, files missing or damaged, a text with no sentence, an empty
    part, a vocabulary that does not match.
    """
    source = _source(name, path)
    try:
        return source.load(path)
    except OSError as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"cannot read {name} ({line}); {source.remedy}") from error


def check(name: str, path: str | Path | None = None) -> Text:
    """Raise the DataError that `load` with the same arguments would; it takes a second or two."""
    return load(name, path)


def tokenized(text: str) -> list[str]:
    """The words of a sentence as Penn Treebank has them: lower case, "n't" and "'s" apart, numbers
    as N, no punctuation."""
    return ["N" if word[0].isdigit() else word for word in WORD.findall(text.lower())]


def numbered(
    name: str, parts: Sequence[Sequence[Sequence[str]]], words: Sequence[str] | None = None
) -> Text:
    """A text from sentences (lists of words) of train, validation and test.

    words: the vocabulary, by default all of the training part, <eos> included, ordered by how
    often they come (then by spelling). Words outside it are <unk>.

    Raises DataError where a part has no sentence, or a word is unknown and there is no <unk>.
    """
    for part, sentences in zip(PARTS, parts, strict=True):
        if not any(sentences):
            raise DataError(
                f"the {part} part of {name} has no sentence (0 words in {len(sentences)} lines); "
                "give a text with one sentence a line"
            )
    counts = Counter(word for sentence in parts[0] for word in sentence)
    counts[END] = len(parts[0])
    if words is None:
        words = counts
    words = tuple(sorted(words, key=lambda word: (-counts[word], word)))
    number = {word: i for i, word in enumerate(words)}
    unknown = number.get(UNKNOWN)
    found = []
    for part, sentences in zip(PARTS, parts, strict=True):
        try:
            found.append(
                np.array(
                    [
                        number[word] if word in number else _known(unknown, word)
                        for sentence in sentences
                        for word in (*sentence, END)
                    ],
                    np.int32,
                )
            )
        except KeyError as error:
            raise DataError(
                f"the vocabularies of {name} do not match: {error.args[0]!r} of the {part} part is "
                f"not among the {len(words):,} words of the training part, and {UNKNOWN} neither"
            ) from error
    return Text(name, words, *found)


def _known(unknown: int | None, word: str) -> int:
    if unknown is None:
        raise KeyError(word)
    return unknown


# Penn Treebank


def _load_ptb(path: str | Path | None) -> Text:
    if path is None:
        raise DataError(f"ptb needs the folder of its files; {REMEDY}")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataError(f"no such folder: {str(folder)!r}; {REMEDY}")
    parts = [[line.split() for line in _lines(folder, FILES[part])] for part in PARTS]
    text = numbered("ptb", parts)
    if len(text.words) != N_WORDS or UNKNOWN not in text.words:
        lack = "" if UNKNOWN in text.words else f", {UNKNOWN} not among them"
        raise DataError(
            f"the training part in {str(folder)!r} has {len(text.words):,} different words{lack}, "
            f"expected {N_WORDS:,} with {UNKNOWN} and {END}; {REMEDY}"
        )
    for part, n in N_TOKENS.items():
        if len(getattr(text, part)) != n:
            raise DataError(
                f"{FILES[part]} in {str(folder)!r} has {len(getattr(text, part)):,} tokens, "
                f"expected {n:,}; {REMEDY}"
            )
    return text


def _lines(folder: Path, name: str) -> list[str]:
    """The lines of a file, plain or gzip, that have a word."""
    for path, opened in ((folder / name, open), (folder / f"{name}.gz", gzip.open)):
        if path.exists():
            try:
                with opened(path, "rt", encoding="utf-8") as file:
                    return [line for line in file if line.strip()]
            except (UnicodeDecodeError, EOFError) as error:
                raise DataError(f"{str(path)!r} is damaged ({error}); {REMEDY}") from error
    raise DataError(f"neither {name} nor {name}.gz is in {str(folder)!r}; {REMEDY}")


# What every Python brings with it


@functools.cache
def _load_python_docs(path: None) -> Text:
    sentences = list(dict.fromkeys(_sentences(_documents())))
    blocks = [sentences[i : i + BLOCK] for i in range(0, len(sentences), BLOCK)]
    parts: list[list] = [[], [], []]
    for i, block in enumerate(blocks):
        parts[{8: 1, 9: 2}.get(i % 10, 0)] += block
    n_tokens = sum(len(sentence) + 1 for sentence in sentences)
    if n_tokens < LEAST_TOKENS:
        raise DataError(
            f"the sources of this Python's standard library give {n_tokens:,} words, fewer than "
            f"{LEAST_TOKENS:,}; install them (Debian: libpython3-stdlib), or {PYTHON_REMEDY}"
        )
    counts = Counter(word for sentence in parts[0] for word in sentence)
    often = sorted(counts, key=lambda word: (-counts[word], word))[: N_DOCS_WORDS - 2]
    return numbered("python-docs", parts, (*often, UNKNOWN, END))


def _documents() -> Iterable[str]:
    """Help topics, then the docstrings of each module, in a fixed order."""
    if importlib.util.find_spec("pydoc_data"):
        from pydoc_data.topics import topics

        yield from (topics[name] for name in sorted(topics))
    for name in MODULES:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.origin or not spec.origin.endswith(".py"):
            continue
        origin = Path(spec.origin)
        files = [origin]
        if spec.submodule_search_locations:
            files = [
                file
                for file in sorted(origin.parent.rglob("*.py"))
                if SKIPPED.isdisjoint(file.relative_to(origin.parent).parts)
            ]
        for file in files:
            for node in ast.walk(ast.parse(file.read_bytes())):
                if isinstance(
                    node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
                ):
                    yield ast.get_docstring(node) or ""


def _sentences(documents: Iterable[str]) -> Iterable[tuple[str, ...]]:
    for document in documents:
        for paragraph in re.split(r"\n\s*\n", document):
            for sentence in re.split(r"(?<=[.!?:;])\s+", paragraph):
                words = tokenized(sentence)
                if len(words) >= LEAST_WORDS:
                    yield tuple(words)


class Source(NamedTuple):
    """How to read a data set, and what to try where it cannot be."""

    load: Callable[[str | Path | None], Text]
    takes_path: bool
    remedy: str


PYTHON_REMEDY = "search Penn Treebank: evaluator.dataset = ptb, with --data"
SOURCES = {
    "python-docs": Source(_load_python_docs, False, PYTHON_REMEDY),
    "ptb": Source(_load_ptb, True, REMEDY),
}


def _source(name: str, path: str | Path | None) -> Source:
    if name not in SOURCES:
        raise DataError(f"unknown text {name!r}; {nearest(name, SOURCES)}")
    if path is not None and not SOURCES[name].takes_path:
        raise DataError(f"{name} comes with Python and takes no path, got {str(path)!r}; use 'ptb'")
    return SOURCES[name]


# How a text is read


def streams(tokens: np.ndarray, n: int, first: int) -> tuple[np.ndarray, np.ndarray]:
    """A text cut into `n` streams that are read side by side: int32 [steps + 1, n], and which of
    the words but the first row are there, bool [steps, n].

    Every word is predicted once, from the one above it; above the first is `first`, above a
    stream's first the last of the stream before.
    """
    steps = -(-len(tokens) // n)
    padded = np.concatenate([tokens, np.full(steps * n - len(tokens), first, np.int32)])
    targets = padded.reshape(n, steps).T
    before = np.concatenate([[first], padded[:-1]]).astype(np.int32).reshape(n, steps).T
    there = (np.arange(steps * n) < len(tokens)).reshape(n, steps).T
    return np.concatenate([before[:1], targets]), there


def check_length(n_tokens: int, batch: int, words: int) -> None:
    """Raise ValueError where a text is too short for one step of training."""
    longest = n_tokens // batch - 1
    if words > longest:
        raise ValueError(
            f"train.words {words} is longer than the data: {n_tokens:,} words in {batch} sequences "
            f"side by side leave {max(longest, 0)} of each; choose a shorter train.words, a "
            "smaller train.batch or more evaluator.tokens"
        )
