"""What is an epoch made of? Examples with numbers, whatever rows they are made from.

An objective makes `Examples` of what is `Given` to it; data/pipeline.py batches them, and knows of
no objective. Text comes as pairs (data/cache.py), as streams that are cut into blocks, or as rows.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfx.data.cache import Part, Ragged, Rows, dtype_of, encode_rows
from tfx.data.sources import Corpus, RowError


class Given(NamedTuple):
    """What examples are made of.

    Attributes:
      vocabulary: a Tokenizer or a Vocabulary.
      folder: where what was encoded is kept.
      max_length: tokens of a row, at most; `most`: positions of the model.
      truncate: whether what is longer is cut; otherwise training leaves it out and evaluation
        refuses it.
      classes: of the model's head.
    """

    corpora: Sequence[Corpus]
    vocabulary: Any
    folder: Path
    train: bool
    max_length: int
    most: int
    truncate: bool = False
    sampling: float = 0.0
    classes: int = 0
    seed: int = 0
    progress: Callable[[int], None] = lambda rows: None


class Draw(NamedTuple):
    """When examples are made: all that chance may depend on.

    Attributes:
      epoch: 0 in evaluation.
      rows: [n], the row of the batch that each example is in.
      lengths: of a row, a side each.
    """

    seed: int
    epoch: int
    step: int
    rows: np.ndarray
    lengths: tuple[int, ...]

    def rng(self, number: int, epoch: int | None = None) -> np.random.Generator:
        """Of one example; another one in every epoch, or in the one that is given."""
        key = (self.seed, self.epoch if epoch is None else epoch, int(number))
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


@dataclass(frozen=True)
class Examples:
    """Numbered examples, corpus after corpus.

    Attributes:
      lengths: tokens of each, what stands around a text counted: an array a side.
      parts: of the corpora; what they kept, added up, is the number of examples.
      fingerprint: equal where the examples are.
      folder: where plans made from them are kept.
      make: (numbers, Draw) -> their arrays, by name.
      axes: of each array by name the axes, a letter each: "T" is as long as the row, or its second
        side, whose first is "S"; another one as long as `sizes(length of the row)` says.
      sampled: of pairs with subword sampling, (number, two seeds) -> ids of both sides.
      sampling: how much of it.
      unit: what they are called.
    """

    lengths: tuple[np.ndarray, ...]
    parts: tuple[Part, ...]
    fingerprint: str
    folder: Path
    make: Callable[[np.ndarray, Draw], list[dict[str, np.ndarray]]]
    axes: Mapping[str, str]
    sizes: Callable[[int], Mapping[str, int]] = lambda length: {}
    sampled: Callable | None = None
    sampling: float = 0.0
    unit: str = "texts"


def of_rows(rows: Rows, lengths, make, axes, recipe: Sequence = (), **more) -> Examples:
    """One example a row; `recipe` is JSON of what else decides them."""
    name = _hash([rows.fingerprint, *recipe])
    return Examples(tuple(lengths), rows.parts, name, rows.folder, make, axes, **more)


# ------------------------------------------------------------------------------- blocks


@dataclass(frozen=True)
class Stream:
    """Text without gaps, a stream a corpus.

    Attributes:
      flat: ids; that of corpus n is flat[starts[n]:stops[n]].
      bounds: where lines begin, and the length of `flat`.
      counts: [corpora, 3], of the text as it was written: words, split at white space; line ends,
        those of blank lines too; characters, line ends counted where a token stands for them.
    """

    flat: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    bounds: np.ndarray
    counts: np.ndarray
    rows: Rows


def stream(given: Given, whole: bool, separator: int | None) -> Stream:
    """The lines of all corpora as ids.

    Args:
      whole: a file is one text, line ends are part of it. Otherwise each line is a text, and blank
        ones are left out.
      separator: stands before the first text of a corpus, between any two, and after the last.
    """
    v, first = given.vocabulary, True
    apart = [] if separator is None or whole else [separator]

    def encode(lines):
        nonlocal first
        texts = [f"{line}\n" for line in lines] if whole else [s for s in lines if s.strip()]
        ids = [[*row, *apart] for row in v.encode(texts)]
        if first and ids:
            ids[0], first = apart + ids[0], False
        sizes = [[len(text.split()), len(text) + len(apart)] for text in texts]
        return {"ids": ids, "sizes": sizes}, len(lines) - len(texts), 0

    recipe = [v.fingerprint, "stream", whole, separator]
    dtypes = {"ids": dtype_of(v), "sizes": np.int64}
    rows = encode_rows(given.corpora, given.folder, recipe, dtypes, encode, given.progress)
    ids, bounds = rows.columns["ids"], np.cumsum([0, *(part.kept for part in rows.parts)])
    sums = np.cumsum(np.pad(rows.columns["sizes"].flat.reshape(-1, 2), ((1, 0), (0, 0))), 0)
    words, characters = np.diff(sums[bounds], axis=0).T
    line_ends = np.array([part.kept + part.empty for part in rows.parts])
    counts = np.stack([words, line_ends, characters], 1)
    ends = ids.offsets[bounds]
    # What is after the last text of a corpus is before the first of the next.
    starts = ends[:-1] - len(apart) * (ends[:-1] > 0)
    return Stream(ids.flat, starts, ends[1:], ids.offsets, counts, rows)


class Block(NamedTuple):
    """A piece of a stream.

    Attributes:
      start: where in its `flat`.
      later: whether a block comes before it.
    """

    ids: np.ndarray
    start: int
    later: bool


def blocks(
    given: Given,
    text: Stream,
    step: int,
    make: Callable[[Block, np.random.Generator], dict],
    axes: Mapping[str, str],
    *,
    lengths: Callable[[np.ndarray], tuple[np.ndarray, ...]],
    reach: int | None = None,
    full: bool = False,
    static: bool = False,
    recipe: Sequence = (),
    **more,
) -> Examples:
    """A stream in blocks, each `step` tokens further on than the one before.

    In training, blocks begin elsewhere in every epoch, by less than a step, so that all cuts are
    met; what is left at either end is not seen then. In evaluation the last one may be shorter.

    Args:
      lengths: of blocks, in tokens -> of what is made of them, a side each.
      reach: tokens that a block reads; by default a step.
      full: leave a shorter one out in evaluation too.
      static: the same blocks, made with the same chance, in every epoch.
    """
    reach, sizes = reach or step, text.stops - text.starts
    full = full or given.train
    if (short := sizes[sizes < (reach if full else 2)]).size:
        raise ValueError(
            f"a corpus of {short[0]:,} tokens does not fill one block of {reach}; lower "
            "data.max_length, or join the files"
        )
    # A token that is left alone, with nothing before it, is no block.
    left = reach - step or 1
    counts = 1 + (sizes - reach) // step if full else np.maximum(-(-(sizes - left) // step), 1)
    corpus = np.repeat(np.arange(len(counts)), counts)
    before = np.arange(len(corpus)) - np.repeat(np.cumsum(counts) - counts, counts)
    spare = np.minimum(sizes - reach - (counts - 1) * step, step - 1)
    moves = given.train and not static

    def made(numbers, draw):
        found = []
        for number in numbers.tolist():
            at = corpus[number]
            # A chance of the corpus, not of a block: those of an epoch move together.
            shift = int(draw.rng(len(corpus) + at).integers(spare[at] + 1)) if moves else 0
            start = int(text.starts[at] + before[number] * step + shift)
            ids = text.flat[start : min(start + reach, text.stops[at])].astype(np.int32)
            block = Block(ids, start, bool(before[number]))
            found.append(make(block, draw.rng(number, 0 if static else None)))
        return found

    parts = tuple(
        replace(part, kept=int(count), empty=0)  # a blank line is no text that is missing
        for part, count in zip(text.rows.parts, counts, strict=True)
    )
    tokens = np.minimum(reach, text.stops[corpus] - text.starts[corpus] - before * step)
    name = _hash([text.rows.fingerprint, step, reach, full, static, *recipe])
    more = {"unit": "blocks"} | more
    return Examples(lengths(tokens), parts, name, text.rows.folder, made, axes, **more)


# --------------------------------------------------------------------------------- rows


def texts(
    given: Given,
    value: Callable[[Any], Sequence[float]],
    dtype: type,
    recipe: Sequence,
) -> tuple[Rows, np.ndarray]:
    """Rows of one text or two and a value, and how long each is with what stands around it.

    Args:
      value: of the last column, the numbers to keep; raises ValueError where it is wrong.

    Returns:
      Columns `first`, `second` (empty where there is one text alone) and `value`.
    """
    v, c = given.vocabulary, given
    around = {two: len(v.pair([], [] if two else None)[0]) for two in (False, True)}

    def encode(*columns):
        *sides, values = columns
        two = len(sides) == 2
        ids = [v.encode(side) for side in sides] + [[[]] * len(values)] * (not two)
        rows, kept = zip(*ids, values, strict=True), []
        room, empty, long = c.max_length - around[two], 0, 0
        for number, (first, second, each) in enumerate(rows):
            is_empty = not first or (two and not second)
            is_long = len(first) + len(second) > room
            empty, long = empty + is_empty, long + is_long
            if is_long and c.truncate:
                first, second = cut(first, second, room)
            elif is_long and not c.train:
                raise RowError(
                    number,
                    f"{len(first) + len(second) + around[two]:,} tokens, data.max_length is "
                    f"{c.max_length}; raise it (the model has {c.most} positions), or set "
                    "data.truncate",
                )
            if not (c.train and (is_empty or (is_long and not c.truncate))):
                with row(number):
                    kept.append((first, second, value(each)))
        names = ("first", "second", "value")
        found = zip(*kept, strict=True) if kept else ((), (), ())
        return dict(zip(names, map(list, found), strict=True)), empty, long

    dtypes = {"first": dtype_of(v), "second": dtype_of(v), "value": dtype}
    recipe = ["texts", v.fingerprint, c.train, c.max_length, c.truncate, *recipe]
    limit = f"more than data.max_length={c.max_length} tokens; data.truncate cuts them"
    rows = encode_rows(c.corpora, c.folder, recipe, dtypes, encode, c.progress, limit)
    first, second = (rows.columns[name].lengths for name in ("first", "second"))
    return rows, first + second + np.where(second > 0, around[True], around[False])


@contextlib.contextmanager
def row(number: int) -> Iterator[None]:
    """What is wrong inside of it is wrong with that row of a chunk."""
    try:
        yield
    except ValueError as error:
        raise RowError(number, error) from None


def cut(first: Sequence, second: Sequence, room: int) -> tuple[Sequence, Sequence]:
    """Both, at most `room` long together: tokens are taken off the end of the longer one."""
    over = len(first) + len(second) - room
    fewer = min(max(len(second) - len(first), 0), over)  # off the second, until both are alike
    more = min(max(len(first) - len(second), 0), over)
    rest = over - fewer - more
    off_first, off_second = more + (rest + 1) // 2, fewer + rest // 2
    return first[: len(first) - off_first], second[: len(second) - off_second]


def text_of(column: Ragged, row: int) -> str:
    """What a cache keeps as UTF-8."""
    return column[row].tobytes().decode()


def _hash(recipe: Sequence) -> str:
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()
