"""Text is encoded once: into flat integer arrays on disk, which every later run maps into memory.

A cache is a folder of raw arrays, `NAME.DTYPE`, and a list of their sizes and checksums.
It is filled under another name and renamed when whole, so one that exists is complete.
"""

import hashlib
import json
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, compress, pairwise
from pathlib import Path

import numpy as np

from tfx.data.sources import Corpus
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


def offsets_of(lengths) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


@dataclass(frozen=True)
class Part:
    """What one corpus gave. Pairs with an empty side or too many tokens are dropped in training;
    in evaluation they are kept, and counted in `pairs` too."""

    name: str
    weight: float
    pairs: int  # kept
    empty: int
    too_long: int


@dataclass(frozen=True)
class Pairs:
    """Encoded pairs, corpus after corpus, without special ids.

    With subword sampling the text is kept too, and `sampled` segments it anew.
    """

    source: Ragged
    target: Ragged
    parts: tuple[Part, ...]
    fingerprint: str  # sha256: equal when text, order, ids and weights are
    folder: Path  # where plans made from these pairs are kept
    texts: tuple[Ragged, Ragged] | None = None  # UTF-8, when sampling
    tokenizer: Tokenizer | None = None
    sampling: float = 0.0

    @property
    def report(self) -> dict[str, int]:
        """Pairs kept, with an empty side, and too long, over all corpora."""
        return {
            name: sum(getattr(part, name) for part in self.parts)
            for name in ("pairs", "empty", "too_long")
        }

    def sampled(self, pair: int, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of one pair in a segmentation drawn from two seeds, one a side."""
        sides = zip((self.tokenizer.source, self.tokenizer.target), self.texts, seeds, strict=True)
        draw = lambda side, text, seed: side.encode_sampled(
            [text[pair].tobytes().decode()], [seed], self.sampling
        )
        return tuple(np.array(draw(*each)[0], np.int32) for each in sides)


def encode_corpora(
    corpora: Sequence[Corpus],
    tokenizer: Tokenizer,
    cache_dir: str | Path,
    *,
    train: bool,
    max_length: int,
    sampling: float = 0.0,
    progress: Callable[[int], None] = lambda pairs: None,
) -> Pairs:
    """The corpora as ids, from the cache when the same was encoded before.

    Training keeps the pairs that have two non-empty sides of at most `max_length` tokens, the
    end of sentence counted; evaluation keeps every pair in order. `progress` is told the number
    of pairs read so far; a cache that exists calls it never.

    Raises:
      ValueError: no pair is usable; the cache is damaged; subword sampling of bytes.
    """
    if sampling and tokenizer.kind == "bytes":
        raise ValueError("tokenizer.sampling needs subwords; kind=bytes has none, set it to 0")
    keep_text = train and sampling > 0
    contents = [corpus.fingerprint for corpus in corpora]
    recipe = [VERSION, contents, tokenizer.fingerprint, train, max_length, keep_text]
    key = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()
    folder = Path(cache_dir, key[:32])

    fill = lambda partial: _encode(
        corpora, tokenizer, partial, train, max_length, progress, keep_text
    )
    arrays = cached(folder, fill)
    ragged = lambda name: Ragged(arrays[name], arrays[f"{name}_offsets"])
    counts = arrays["counts"].reshape(len(corpora), 3).tolist()
    weights = [corpus.weight for corpus in corpora]
    return Pairs(
        source=ragged("source"),
        target=ragged("target"),
        parts=tuple(
            Part(corpus.name, corpus.weight, *of_corpus)
            for corpus, of_corpus in zip(corpora, counts, strict=True)
        ),
        fingerprint=hashlib.sha256(json.dumps([key, weights]).encode()).hexdigest(),
        folder=folder.parent,
        texts=(ragged("source_text"), ragged("target_text")) if keep_text else None,
        tokenizer=tokenizer if keep_text else None,
        sampling=sampling if keep_text else 0.0,
    )


def _encode(corpora, tokenizer, folder, train, max_length, progress, keep_text) -> None:
    """Writes every usable pair, and how many were usable, empty and too long in each corpus."""
    sides = (tokenizer.source, tokenizer.target)
    ids = [_Writer(folder, name, _dtype(side)) for name, side in zip(SIDES, sides, strict=True)]
    texts = [_Writer(folder, f"{name}_text", np.uint8) for name in SIDES] if keep_text else []
    counts, read = [], 0
    for corpus in corpora:
        pairs = empty = too_long = 0
        for chunk in corpus.chunks():
            rows = [side.encode(lines) for side, lines in zip(sides, chunk, strict=True)]
            lengths = np.array([[len(row) for row in side] for side in rows])
            is_empty = lengths.min(0) == 0
            is_long = ~is_empty & (lengths.max(0) + 1 > max_length)
            keep = ~(is_empty | is_long) if train else np.ones_like(is_empty)
            for writer, side in zip(ids, rows, strict=True):
                writer.add(list(compress(side, keep)))
            for writer, lines in zip(texts, chunk, strict=False):
                writer.add([line.encode() for line in compress(lines, keep)])
            pairs, empty = pairs + int(keep.sum()), empty + int(is_empty.sum())
            too_long, read = too_long + int(is_long.sum()), read + len(keep)
            progress(read)
        counts.append([pairs, empty, too_long])
    total, empty, too_long = np.sum(counts, axis=0).tolist()
    if not total:
        raise ValueError(
            f"no usable pairs in {', '.join(corpus.name for corpus in corpora)}: of {read} read, "
            f"{empty} have an empty side and {too_long} more than data.max_length={max_length} "
            "tokens a side"
        )
    for writer in ids + texts:
        writer.close()
    np.array(counts, np.int64).tofile(folder / "counts.int64")


def _dtype(side) -> type:
    return np.uint16 if side.vocab_size < 1 << 16 else np.int32


class _Writer:
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
        partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
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
