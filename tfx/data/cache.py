"""Text is encoded once: into flat integer arrays on disk, which every later run maps into memory.

A cache is a folder of raw arrays, `NAME.DTYPE`, and a list of their sizes and checksums.
It is filled under another name and renamed when whole, so one that exists is complete.
"""

import hashlib
import json
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, compress, pairwise
from pathlib import Path

import numpy as np

from tfx.data.sources import Corpus, told
from tfx.data.tokenizer import Tokenizer

SIDES = ("source", "target")
VERSION = 1  # of what is stored; a change makes older caches unknown


@dataclass(frozen=True)
class Ragged:
    """Rows of unequal length in one flat array: row i is flat[offsets[i]:offsets[i + 1]]."""

    flat: np.ndarray
    offsets: np.ndarray  # int64, one more than rows

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]], dtype=np.int32) -> "Ragged":
        rows = list(rows)
        flat = np.fromiter(chain.from_iterable(rows), dtype)
        return cls(flat, offsets_of([len(row) for row in rows]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.flat[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def take(self, rows: np.ndarray) -> list[np.ndarray]:
        """Several rows, as int32."""
        start, sizes = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        ends = np.cumsum(sizes)
        cells = np.repeat(start - (ends - sizes), sizes) + np.arange(sizes.sum())
        flat = self.flat[cells].astype(np.int32)
        return [flat[first:last] for first, last in pairwise([0, *ends.tolist()])]


def totals(parts: Sequence["Part"]) -> dict[str, int]:
    """Rows kept, empty, and too long, over all corpora."""
    names = ("kept", "empty", "too_long")
    return {name: sum(getattr(part, name) for part in parts) for name in names}


def offsets_of(lengths) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


@dataclass(frozen=True)
class Part:
    """What one corpus gave. Rows that are empty, or have too many tokens, are dropped in training;
    in evaluation they are kept, and counted in `kept` too."""

    name: str
    weight: float
    kept: int
    empty: int
    too_long: int


@dataclass(frozen=True)
class Rows:
    """Encoded rows, corpus after corpus: a ragged array for each of their columns."""

    columns: dict[str, Ragged]
    parts: tuple[Part, ...]
    fingerprint: str  # sha256: equal when text, order, ids and weights are
    folder: Path  # where plans made from these rows are kept


@dataclass(frozen=True)
class Pairs:
    """Encoded pairs, corpus after corpus, without special ids.

    With subword sampling the text is kept too, and `sampled` segments it anew.
    """

    source: Ragged
    target: Ragged
    parts: tuple[Part, ...]
    fingerprint: str
    folder: Path
    texts: tuple[Ragged, Ragged] | None = None  # UTF-8, when sampling
    tokenizer: Tokenizer | None = None
    sampling: float = 0.0

    def sampled(self, pair: int, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of one pair in a segmentation drawn from two seeds, one a side."""
        sides = zip((self.tokenizer.source, self.tokenizer.target), self.texts, seeds, strict=True)
        draw = lambda side, text, seed: side.encode_sampled(
            [text[pair].tobytes().decode()], [seed], self.sampling
        )
        return tuple(np.array(draw(*each)[0], np.int32) for each in sides)


def encode_rows(
    corpora: Sequence[Corpus],
    cache_dir: str | Path,
    recipe: Sequence,
    dtypes: Mapping[str, type],
    encode: Callable[..., tuple[dict[str, list], int, int]],
    progress: Callable[[int], None] = lambda rows: None,
    limit: str = "none is",
) -> Rows:
    """The corpora as arrays, from the cache when the same was encoded before.

    Args:
      recipe: JSON of all that decides the arrays, but for the text.
      dtypes: of each column.
      encode: a chunk's columns -> ({column: rows that are kept}, how many were empty, how many too
        long), or a RowError.
      progress: is told the number of rows read so far; a cache that exists calls it never.
      limit: what "too long" means, for the error.

    Raises:
      ValueError: no row is usable; the cache is damaged.
    """
    contents = [corpus.fingerprint for corpus in corpora]
    key = hashlib.sha256(json.dumps([VERSION, contents, *recipe]).encode()).hexdigest()

    def fill(partial: Path) -> None:
        writers = {name: Writer(partial, name, dtype) for name, dtype in dtypes.items()}
        counts, read = np.zeros((len(corpora), 3), np.int64), 0
        for corpus, sums in zip(corpora, counts, strict=True):
            start = read
            for chunk in corpus.chunks():
                with told(corpus, read - start):
                    rows, empty, too_long = encode(*chunk)
                for name, writer in writers.items():
                    writer.add(rows[name])
                sums += [len(rows[next(iter(dtypes))]), empty, too_long]
                read += len(chunk[0])
                progress(read)
        total, empty, too_long = counts.sum(0).tolist()
        if not total:
            raise ValueError(
                f"no usable rows in {', '.join(corpus.name for corpus in corpora)}: of {read} "
                f"read, {empty} are empty on some side and {too_long} too long ({limit})"
            )
        for writer in writers.values():
            writer.close()
        counts.tofile(partial / "counts.int64")

    arrays = cached(Path(cache_dir, key[:32]), fill)
    counts = arrays["counts"].reshape(len(corpora), 3).tolist()
    weights = [corpus.weight for corpus in corpora]
    return Rows(
        {name: Ragged(arrays[name], arrays[f"{name}_offsets"]) for name in dtypes},
        tuple(
            Part(corpus.name, corpus.weight, *of_corpus)
            for corpus, of_corpus in zip(corpora, counts, strict=True)
        ),
        hashlib.sha256(json.dumps([key, weights]).encode()).hexdigest(),
        Path(cache_dir),
    )


def encode_corpora(
    corpora: Sequence[Corpus],
    tokenizer,
    cache_dir: str | Path,
    *,
    train: bool,
    max_length: int,
    sampling: float = 0.0,
    truncate: bool = False,
    progress: Callable[[int], None] = lambda pairs: None,
) -> Pairs:
    """Sentence pairs as ids; see `encode_rows`.

    Training keeps the pairs that have two non-empty sides of at most `max_length` tokens, what
    stands around a text counted; evaluation keeps every pair in order.

    Args:
      tokenizer: has `source`, `target` and `ends`: a Tokenizer or a Vocabulary.
      truncate: longer sides are cut, not left out.

    Raises:
      ValueError: no pair is usable; the cache is damaged; subword sampling of what has none.
    """
    sides = (tokenizer.source, tokenizer.target)
    if sampling and not hasattr(sides[0], "encode_sampled"):
        raise ValueError(
            f"tokenizer.sampling needs kind=bpe or unigram; kind={tokenizer.kind}: set it to 0"
        )
    keep_text = train and sampling > 0
    texts = [f"{name}_text" for name in SIDES] if keep_text else []
    dtypes = {name: dtype_of(side) for name, side in zip(SIDES, sides, strict=True)}
    recipe = [tokenizer.fingerprint, train, max_length, keep_text] + ["cut"] * truncate
    room = max_length - len(tokenizer.ends.around)
    rows = encode_rows(
        corpora,
        cache_dir,
        recipe,
        dtypes | dict.fromkeys(texts, np.uint8),
        partial(_encode_pairs, sides, texts, train, truncate, room),
        progress,
        f"more than data.max_length={max_length} tokens a side; data.truncate cuts them",
    )
    return Pairs(
        **{name: rows.columns[name] for name in SIDES},
        parts=rows.parts,
        fingerprint=rows.fingerprint,
        folder=rows.folder,
        texts=tuple(rows.columns[name] for name in texts) or None,
        tokenizer=tokenizer if keep_text else None,
        sampling=sampling if keep_text else 0.0,
    )


def _encode_pairs(sides, texts, train: bool, truncate: bool, room: int, *lines):
    """What a chunk gives, for `encode_rows`; `texts` name the columns that keep it as it is."""
    rows = [side.encode(each) for side, each in zip(sides, lines, strict=True)]
    lengths = np.array([[len(row) for row in side] for side in rows])
    is_empty = lengths.min(0) == 0
    is_long = ~is_empty & (lengths.max(0) > room)
    keep = ~(is_empty | is_long & (not truncate)) if train else np.ones_like(is_empty)
    cut = room if truncate else None
    kept = {
        name: [row[:cut] for row in compress(side, keep)]
        for name, side in zip(SIDES, rows, strict=True)
    }
    for name, each in zip(texts, lines, strict=False):
        kept[name] = [line.encode() for line in compress(each, keep)]
    return kept, int(is_empty.sum()), int(is_long.sum())


def dtype_of(side) -> type:
    """The smallest that holds the ids of a vocabulary."""
    return np.uint16 if side.vocab_size < 1 << 16 else np.int32


class Writer:
    """One ragged array, written piece by piece; no file stays open in between."""

    def __init__(self, folder: Path, name: str, dtype):
        self._dtype = np.dtype(dtype)
        self._flat = folder / f"{name}.{self._dtype}"
        self._flat.touch()
        self._offsets = folder / f"{name}_offsets.int64"
        self._lengths = [np.zeros(0, np.int64)]

    def add(self, rows: Sequence[Sequence[int]]) -> None:
        with self._flat.open("ab") as file:
            np.fromiter(chain.from_iterable(rows), self._dtype).tofile(file)
        self._lengths.append(np.fromiter(map(len, rows), np.int64, len(rows)))

    def close(self) -> None:
        offsets_of(np.concatenate(self._lengths)).tofile(self._offsets)


def cached(folder: Path, fill: Callable[[Path], None]) -> dict[str, np.ndarray]:
    """The memory-mapped arrays of a cache by name, after `fill` where it does not exist.

    fill(partial) writes `NAME.DTYPE` files into a temporary folder; a run that is killed
    meanwhile leaves that folder, which nobody reads.
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Not by tempfile, whose folders nobody else may read: a workdir can be several people's.
        partial = folder.with_name(f"{folder.name}.partial-{secrets.token_hex(6)}")
        partial.mkdir()
        try:
            fill(partial)
            sums = {path.name: _sum(path) for path in sorted(partial.iterdir())}
            (partial / "sums.json").write_text(json.dumps(sums))
            partial.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was first, with the same content
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    try:
        sums = json.loads((folder / "sums.json").read_text())
        bad = [name for name, saved in sums.items() if _sum(folder / name) != saved]
    except (OSError, ValueError, AttributeError):
        bad = ["a file is missing or unreadable"]
    if bad:
        raise ValueError(
            f"the cache {folder} is damaged ({bad[0]}); delete that folder, it will be made again"
        )
    return {Path(name).stem: _map(folder / name) for name in sums}


def _map(path: Path) -> np.ndarray:
    dtype = path.suffix[1:]
    if not path.stat().st_size:  # an empty file cannot be mapped
        return np.zeros(0, dtype)
    return np.asarray(np.memmap(path, dtype, mode="r"))


def _sum(path: Path) -> list[int]:
    """Size and CRC-32 of a file."""
    size, crc = 0, 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]
