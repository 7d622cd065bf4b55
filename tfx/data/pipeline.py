"""How examples become batches: batch = f(seed, step), of few static shapes, for any host.

    batches = Batches(examples, tokens=4096)
    batches.batch(step)             the whole batch of any step, at once
    batches.batch(step, slice(4))   rows 0..3 of it, of batches.rows(step): what one host needs

With subword sampling, shapes and plan stay those of the plain encoding with room for growth:
lengths are stretched so that 9 of 10 rows fit as drawn (97 of 100 after rounding, on Multi30k);
in the others, pairs go back to their plain segmentation, which always fits, until the row does.
So every epoch has the same number of steps, and a row is drawn from (seed, step, row) alone.
"""

import hashlib
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tfx.data import plan
from tfx.data.cache import Ragged, cached, offsets_of
from tfx.data.examples import Draw, Examples

Shape = tuple[int, ...]  # rows, and the length of each side
NONE = np.zeros(0, np.int32)
GRAIN = 4  # lengths are multiples of it: odd ones compute badly, 8 pads 5% more (Multi30k)
PROBES = 2048  # pairs drawn to learn how much subword sampling lengthens rows
LONG = 64  # evaluation: examples beyond the given shapes share one, a multiple of this long


class Batches:
    """Every batch of every epoch, by its step.

    An epoch has every example exactly once (a corpus of weight w: every example floor(w) times,
    and a rotating share of them once more) and `steps_per_epoch` batches. Examples are shuffled
    inside their bucket, then batches are shuffled. A batch that is not full ends in rows of zeros.

    Args:
      tokens: padded positions a side and batch; rows are a multiple of `multiple`, and never
        fewer, even if that takes more tokens.
      parts: rows of zeros are added up to a multiple of it. So a plan made for some devices goes
        on, example for example, on any other number of them.
      kind: bucket (one example a row) or pack (of pairs: many a row of `max_length`).
      shapes: how many static shapes there may be; or, for evaluation, the shapes themselves.
      train: False: every example once, short ones first; no shuffling, weights or packing.
      positions: evaluation: the length that no shape is rounded up beyond; 0: any.
      corpus: evaluation: the number of the corpus whose examples alone are taken, in the shapes of
        all; None: all are.

    Attributes:
      shapes: of what `batch` can return: (rows, length of each side).
      multiple: as given.
      steps_per_epoch, examples_per_epoch, tokens_per_epoch (of the target, ends included).
      padding: the share of positions on all sides, filler rows too, that hold no token.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        tokens: int,
        kind: str = "bucket",
        shapes: int | Sequence[Shape] = 5,
        multiple: int = 1,
        parts: int = 1,
        max_length: int = 256,
        seed: int = 0,
        train: bool = True,
        positions: int = 0,
        corpus: int | None = None,
    ):
        self.examples = examples
        self._train, self._seed, self.multiple = train, seed, multiple
        self._packed: Ragged | None = None
        rows = lambda length: np.maximum(tokens // length // multiple, 1) * multiple
        lengths, kept = examples.lengths, [part.kept for part in examples.parts]
        growth = 1.0  # of lengths, by subword sampling
        if not train:
            taken = np.repeat([corpus in (None, number) for number in range(len(kept))], kept)
            positions = positions or max(map(np.max, lengths)) + LONG
            self._buckets = _evaluation(lengths, shapes, rows, max_length, positions, taken)
        elif (longest := max(map(np.max, lengths))) > max_length:
            raise ValueError(f"a side of {longest} tokens is above data.max_length={max_length}")
        else:
            mix = plan.mix([(part.kept, part.weight) for part in examples.parts], seed)
            room = lengths
            if examples.sampling:
                growth, room = _stretched(examples, lengths, max_length if kind == "pack" else 1)
                room = [np.minimum(n, max_length) for n in room]
            if kind == "pack":
                mix, self._packed = _packing(examples, room, mix, max_length, seed)
                both = (max_length,) * len(lengths)
                self._buckets = [plan.Bucket(int(rows(max_length)), both, mix)]
            else:
                self._buckets = _bucketing(room, mix, rows, shapes, max_length)
        self._now: tuple[int, plan.Epoch | None] = (-1, None)

        # Told once: a host whose rows are all filler must not guess.
        one = Draw(seed, 0, 0, np.zeros(1, int), self._buckets[-1].lengths)
        first = examples.make(np.zeros(1, int), one)[0]
        self._dtypes = {key: np.asarray(first[key]).dtype for key in examples.axes}

        self._heights = [-(-bucket.rows // parts) * parts for bucket in self._buckets]
        sized = list(zip(self._heights, self._buckets, strict=True))
        self.shapes = [(height, *bucket.lengths) for height, bucket in sized]
        self.steps_per_epoch = sum(bucket.steps for bucket in self._buckets)
        times = np.repeat([part.weight for part in examples.parts], kept) if train else taken
        self.examples_per_epoch = round(times.sum())
        self.tokens_per_epoch = round(growth * times @ lengths[-1])
        cells = sum(bucket.steps * height * sum(bucket.lengths) for height, bucket in sized)
        self.padding = float(1 - growth * times @ sum(lengths) / cells)

    def shape(self, step: int) -> Shape:
        """That of the batch of a step."""
        epoch, position = self._epoch(step)
        return self.shapes[epoch.bucket[position]]

    def rows(self, step: int) -> int:
        """How many rows the batch of a step has."""
        return self.shape(step)[0]

    def batch(self, step: int, rows: slice | np.ndarray = slice(None)) -> dict[str, np.ndarray]:
        """The batch of a step, or those rows of it that one host needs.

        Returns:
          The arrays of `Examples.make` by their names, with an axis of rows in front, 0 on
          padding. Of pairs also float32 `weights`: 1 on the tokens of target_out; packed,
          {source,target}_segments (1, 2, ... for the pairs of a row, 0 on padding) and
          {source,target}_positions (from 0 in each pair). In evaluation also `index` [rows]: the
          number of the example; -1: a filler row.
        """
        epoch, position = self._epoch(step)
        bucket = self._buckets[epoch.bucket[position]]
        items = np.full(self.rows(step), -1, np.int32)
        items[: bucket.rows] = epoch.items[epoch.start[position] :][: bucket.rows]
        row, numbers = self._members(items[rows])
        names = np.arange(len(items))[rows]
        when = divmod(step, self.steps_per_epoch)[0] if self._train else 0, step
        draw = Draw(self._seed, *when, names[row], bucket.lengths)
        made = self.examples.make(numbers, draw)
        first, last = bucket.lengths[0], bucket.lengths[-1]
        sizes = {"S": first, "T": last} | dict(self.examples.sizes(last))
        batch = {}
        for key, letters in self.examples.axes.items():
            arrays = [example[key] for example in made]
            shape = (len(items[rows]), *(sizes[letter] for letter in letters))
            dtype = self._dtypes[key]
            if letters not in ("S", "T"):
                batch[key] = _stacked(key, arrays, row, np.zeros(shape, dtype))
                continue
            cells, segments, positions = _lay_out(arrays, row, sizes[letters])
            batch[key] = _fill(shape, cells, np.concatenate([NONE.astype(dtype), *arrays]), dtype)
            if key == "target_out":
                batch["weights"] = _fill(shape, cells, 1, np.float32)
            if self._packed and key in ("source", "target_out"):
                side = key.split("_")[0]
                batch[f"{side}_segments"] = _fill(shape, cells, segments)
                batch[f"{side}_positions"] = _fill(shape, cells, positions)
        return batch if self._train else batch | {"index": items[rows]}

    def _epoch(self, step: int) -> tuple[plan.Epoch, int]:
        """The epoch of a step, of which the last one used is kept, and the place in it."""
        number, position = divmod(step, self.steps_per_epoch)
        kept, epoch = self._now
        if kept != number:
            epoch = plan.epoch(self._buckets, number, self._seed if self._train else None)
            self._now = number, epoch
        return epoch, position

    def _members(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row and number of every example in a batch, row after row."""
        row = np.flatnonzero(items >= 0)
        if self._packed is None:
            return row, items[row]
        groups = [self._packed[item] for item in items[row].tolist()]
        return np.repeat(row, [len(ids) for ids in groups]), np.concatenate([NONE, *groups])


def prefetch(fn: Callable[[int], object], start: int, depth: int = 2) -> Iterator[tuple]:
    """(step, fn(step)) for step = start, start + 1, ..., computed `depth` ahead in one thread.

    What fn raises is raised at its step. Closing the generator ends the thread.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        ahead = deque(pool.submit(fn, start + more) for more in range(depth))
        for step in itertools.count(start):
            ahead.append(pool.submit(fn, step + depth))
            yield step, ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _evaluation(sides, shapes, rows, max_length, positions, taken) -> list[plan.Bucket]:
    if isinstance(shapes, int):
        up = lambda n: np.where(n > max_length, _rounded(n, positions), _rounded(n, max_length))
        rounded = [up(lengths) for lengths in sides]
        sizes = plan.best_sizes(np.maximum.reduce(rounded), rows, shapes)
        sizes = plan.narrowed(rounded, sizes)
    else:
        sizes = sorted(set(shapes), key=lambda size: max(size[1:]))
        beyond = plan.places(sides, sizes) < 0
        if beyond.any():
            longest = [min(int(plan.round_up(n[beyond].max(), LONG)), positions) for n in sides]
            sizes.append((int(rows(max(longest))), *longest))
    short_first = np.argsort(np.maximum.reduce(sides), kind="stable").astype(np.int32)
    return plan.bucketed(sides, plan.Mix(short_first[taken[short_first]]), sizes)


def _bucketing(sides, mix, rows, most, max_length) -> list[plan.Bucket]:
    rounded = [_rounded(n, max_length) for n in sides]
    sizes = plan.best_sizes(np.maximum.reduce(rounded)[mix.ever()], rows, most)
    return plan.bucketed(sides, mix, plan.narrowed(rounded, sizes))


def _rounded(lengths, most: int) -> np.ndarray:
    return np.minimum(plan.round_up(lengths, GRAIN), most)


def _packing(examples, lengths, mix, max_length, seed) -> tuple[plan.Mix, Ragged]:
    """Packed rows as items, and the pairs in each; from disk when packed before."""

    def fill(folder: Path) -> None:
        groups = [mix.always, *(ids for ids, _ in mix.rotating)]
        packed = [plan.pack(*(side[ids] for side in lengths), max_length, seed) for ids in groups]
        members = [ids[rows.flat] for ids, rows in zip(groups, packed, strict=True)]
        np.concatenate(members).astype(np.int32).tofile(folder / "pairs.int32")
        sizes = np.concatenate([rows.lengths for rows in packed])
        offsets_of(sizes).tofile(folder / "offsets.int64")
        np.array([len(rows) for rows in packed], np.int64).tofile(folder / "rows.int64")

    recipe = json.dumps([examples.fingerprint, examples.sampling, max_length, seed])
    name = "pack-" + hashlib.sha256(recipe.encode()).hexdigest()[:32]
    arrays = cached(examples.folder / name, fill)
    rows = np.arange(arrays["rows"].sum(), dtype=np.int32)
    always, *rest = np.split(rows, np.cumsum(arrays["rows"])[:-1])
    shares = [share for _, share in mix.rotating]
    table = Ragged(arrays["pairs"], arrays["offsets"])
    return plan.Mix(always, list(zip(rest, shares, strict=True))), table


def _stretched(examples: Examples, lengths, row: int) -> tuple[float, list[np.ndarray]]:
    """The mean growth by sampling, and lengths with room for it: enough for 9 of 10 rows.

    Around its mean, a sum of n tokens spreads like the square root of n. Rows hold `row` tokens
    or, where it is above that, one pair.
    """
    count = len(lengths[0])
    some = np.linspace(0, count - 1, min(count, PROBES)).astype(int)
    drawn = [examples.sampled(pair, (2 * pair, 2 * pair + 1)) for pair in some.tolist()]
    drawn = np.array([[len(ids) + 1 for ids in sides] for sides in drawn]).T
    plain = np.stack([side[some] for side in lengths])
    growth = drawn.sum() / plain.sum()
    spread = np.quantile((drawn - growth * plain) / np.sqrt(plain), 0.9)
    room = lambda n: np.ceil(n * growth + n * spread / np.sqrt(np.maximum(n, row)))
    return float(growth), [np.maximum(n, room(n)).astype(np.int64) for n in lengths]


def _lay_out(arrays: list, row: np.ndarray, length: int) -> tuple[np.ndarray, ...]:
    """Where arrays go that stand side by side in their row, rows being `length` long.

    Returns:
      Of every element: its index in the flattened batch, which array of the row it belongs to
      (from 1), and its position there.
    """
    sizes = np.fromiter(map(len, arrays), np.int64, len(arrays))
    before = np.cumsum(sizes) - sizes
    leader = np.searchsorted(row, row)  # the first array of the same row
    offset = before - before[leader]
    if len(row) and (ends := offset + sizes).max() > length:
        raise ValueError(f"an example has {ends.max()} tokens, its row has {length}")
    each = lambda values: np.repeat(values, sizes)
    positions = np.arange(sizes.sum()) - each(before)
    segments = each(np.arange(len(row)) - leader + 1)
    return each(row * length + offset) + positions, segments, positions


def _fill(shape: tuple[int, int], cells: np.ndarray, values, dtype=np.int32) -> np.ndarray:
    array = np.zeros(shape, dtype)
    array.ravel()[cells] = values
    return array


def _stacked(key: str, arrays: list, row: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Arrays of whatever axes, one a row, each in the first corner of its own."""
    for at, one in zip(row.tolist(), arrays, strict=True):
        if any(have > room for have, room in zip(np.shape(one), batch.shape[1:], strict=True)):
            raise ValueError(f"an example has {key} {np.shape(one)}, a row has {batch.shape[1:]}")
        batch[(at, *map(slice, np.shape(one)))] = one
    return batch
