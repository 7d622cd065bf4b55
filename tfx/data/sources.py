"""Where do rows come from? Three kinds of source, one way to read them: as chunks.

    synthetic   the embedded grammar, tfx/data/grammar.py, and exercises made of it
    files       as tfx/data/rows.py lists them for every kind of row, each also .gz
    tfds:NAME   TensorFlow Datasets

A split is one corpus or several, separated by white space; a corpus is names separated by
commas, then options:

    a.en,a.de    b.tsv,weight=2    c.jsonl.gz,tag=<2de>    train[:90%],weight=0.5
"""

import contextlib
import functools
import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tfx.data import exercises, grammar, text, tfds
from tfx.data.rows import FORMATS, KINDS

CHUNK = 1 << 14  # rows
TAGGED = ("source", "text", "question")  # the column that a tag is put in front of

Chunks = Callable[[], Iterator[tuple[list, ...]]]


@dataclass(frozen=True)
class Corpus:
    """Rows of one kind that can be read any number of times.

    `chunks()` yields a tuple of lists, one for each column of the kind (`rows.KINDS`), equally
    long and of at most 65,536 values; the tag is already in front of every source (text, question)
    that is not blank, and empty lines are kept as "". A row of weight w is met w times an epoch.
    The fingerprint is a sha256 over the content, whatever its path, and the tag.
    """

    name: str
    chunks: Chunks
    weight: float = 1.0
    tag: str = ""
    fingerprint: str = ""


class RowError(ValueError):
    """What is wrong with one row of a chunk.

    Attributes:
      at: which one, from 0.
    """

    def __init__(self, at: int, why):
        super().__init__(f"{why}")
        self.at = at


@contextlib.contextmanager
def told(corpus: Corpus, before: int) -> Iterator[None]:
    """A wrong row is told by where it stands: its chunk has so many before it."""
    try:
        yield
    except RowError as error:
        raise ValueError(f"{corpus.name}: row {before + error.at + 1:,}: {error}") from None


def open_split(source: str, spec: str, fields: str, split: str, kind: str = "pair") -> list[Corpus]:
    """The corpora that `data.source`, `data.SPLIT` (= `spec`) and `data.fields` describe.

    `fields`: JSONL keys (default: the columns of the kind), TSV columns by number from 1 (default)
    or by the names of a header, TFDS features (default: supervised_keys, or the columns). Files are
    counted and sniffed here, before anything expensive.

    The columns of a kind of rows:

        pair        source, target: str
        references  source: str; references: list of str. Read as pairs are: the target, and what
                    the fields, or the line-parallel files, behind the first two hold
        text        text: str
        labelled    text: str; with three fields second: str; label: str, int or float
        questions   id, question, context: str; answers: list of (text, its first character)
        tagged      tokens: list of str; tags: as many labels
        choices     text: str; choices: list of str; label

    Raises ValueError or FileNotFoundError, one line each.
    """
    if kind not in KINDS:
        raise ValueError(f'"{kind}" is no kind of rows: {", ".join(KINDS)}')
    if not spec.split():
        raise ValueError(f"data.{split} is empty; name at least one corpus")
    if source not in ("synthetic", "files") and not re.match("tfds:.", source):
        raise ValueError(f'data.source="{source}": no such source; synthetic, files or tfds:NAME')
    corpora = []
    for corpus in spec.split():
        names, weight, tag = _parse(corpus, f"data.{split}")
        if source == "files":
            chunks, identity = _files(kind, names, fields, f"data.{split}")
        elif len(names) > 1:
            raise ValueError(f'data.{split}: "{corpus}" must be one split, not {len(names)}')
        elif source == "synthetic":
            chunks, identity = _synthetic(kind, names[0], f"data.{split}")
        else:
            data_set = source.removeprefix("tfds:")
            chunks, identity = tfds.open_split(data_set, names[0], fields, kind)
        chunks = _tagged(chunks, tag, kind, f"data.{split}")
        if kind == "references":
            chunks = _referenced(chunks)
        fingerprint = hashlib.sha256(f"{identity}\n{tag}".encode()).hexdigest()
        name = ",".join(names) if source == "files" else f"{source} {names[0]}"
        corpora.append(Corpus(name, chunks, weight, tag, fingerprint))
    return corpora


def _parse(corpus: str, where: str) -> tuple[list[str], float, str]:
    """Names, weight and tag of one corpus."""
    options, names = {"weight": "1", "tag": ""}, []
    for part in corpus.split(","):
        if not (option := re.match(r"([a-z_]+)=", part)):
            names.append(part)
        elif option[1] in options:
            options[option[1]] = part[option.end() :]
        else:
            raise ValueError(f'{where}: "{part}" is no option; weight=NUMBER or tag=WORD')
    try:
        weight = float(options["weight"])
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ValueError(f"{where}: weight={options['weight']} must be a number above 0")
    if not all(names) or not names:
        raise ValueError(f'{where}: "{corpus}" holds an empty name; separate names by one comma')
    return names, weight, options["tag"]


def _tagged(chunks: Chunks, tag: str, kind: str, where: str) -> Chunks:
    if not tag:
        return chunks
    at = next((at for at, column in enumerate(KINDS[kind]) if column in TAGGED), None)
    if at is None:
        raise ValueError(f"{where}: tag={tag} has no text to stand before in {kind} rows; drop it")

    def tagged():
        for chunk in chunks():
            # A blank source stays blank, so that it is still seen, and counted, as wordless.
            lines = [f"{tag} {line}" if line.strip() else line for line in chunk[at]]
            yield (*chunk[:at], lines, *chunk[at + 1 :])

    return tagged


def _referenced(chunks: Chunks) -> Chunks:
    """Turn (source, target, lists of further ones ...) into (source, all of them). Where a text of
    the further ones is empty, that row has fewer."""

    def referenced():
        for source, *columns in chunks():
            columns[0] = [[target] for target in columns[0]]
            rows = zip(*columns, strict=True)
            yield source, [[*first, *filter(None, itertools.chain(*more))] for first, *more in rows]

    return referenced


def _synthetic(kind: str, split: str, where: str) -> tuple[Chunks, str]:
    if split not in ("train", "valid", "test"):
        raise ValueError(f'{where}="{split}": the synthetic splits are train, valid and test')
    identity = f"synthetic {grammar.VERSION} {split}"
    if kind in ("pair", "references"):
        return lambda: in_chunks(iter(_drawn(split))), identity
    most = None if kind == "text" else exercises.MOST
    rows = lambda: exercises.KINDS[kind](_drawn(split, most), split)
    return lambda: in_chunks(rows()), f"{identity} {kind} {exercises.VERSION}"


@functools.cache
def _drawn(split: str, most: int | None = None) -> list[tuple[str, str]]:
    """A first run reads the corpus twice, for the vocabulary and for the ids; drawing it takes
    seconds."""
    return list(itertools.islice(grammar.pairs(split), most))


def _files(kind: str, names: list[str], fields: str, where: str) -> tuple[Chunks, str]:
    """Counted and hashed now, read later."""
    paths = [str(Path(name).expanduser()) for name in names]
    suffix, formats = paths[0].removesuffix(".gz").rpartition(".")[2], FORMATS[kind]
    is_pairs = kind in ("pair", "references")
    if len(paths) == 1 and (reader := formats.get(suffix, formats.get(""))):
        rows, fields = reader(kind, paths[0], fields)
        _, digest = text.scan(paths[0])
        what = "" if is_pairs else f"{kind} "
        return lambda: in_chunks(rows()), f"{what}{suffix * (suffix in formats)} {digest} {fields}"
    # Behind the first two there are further references, which training would not read.
    most = 2 if where == "data.train" else math.inf
    if not (is_pairs and 2 <= len(paths) <= most):
        endings = " or ".join(f".{suffix}" for suffix in formats if suffix)
        parallel = 'two line-parallel text files, "a.en,a.de", or ' * is_pairs
        other = "text or " * ("" in formats)
        raise ValueError(
            f'{where}: "{",".join(names)}" must be {parallel}one {other}{endings} file (.gz too)'
        )
    counts, digests = zip(*map(text.scan, paths), strict=True)
    for path, count in zip(paths, counts, strict=True):
        if count != counts[0]:
            raise ValueError(
                f"{where}: {paths[0]} has {counts[0]:,} lines, {path} has {count:,}; "
                "line-parallel files have equally many"
            )
    rows = partial(_parallel, paths if kind == "references" else paths[:2])
    return lambda: in_chunks(rows()), f"lines {' '.join(digests)}"


def _parallel(paths: list[str]) -> Iterator[tuple]:
    for source, target, *further in zip(*map(text.lines, paths), strict=True):
        yield source, target, *([line] for line in further)


def in_chunks(rows: Iterator[tuple]) -> Iterator[tuple[list, ...]]:
    """Rows as chunks of columns."""
    while chunk := list(itertools.islice(rows, CHUNK)):
        yield tuple(map(list, zip(*chunk, strict=True)))
