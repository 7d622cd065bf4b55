"""Which pairs meet in which batch? Static shapes, packed rows, and the order of every epoch.

Everything here works on lengths alone. What is batched are items: pairs, or rows packed with
several pairs. An epoch is a permutation of the items of each bucket, cut into batches, and a
permutation of the batches; both are functions of (seed, epoch).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from tfx.data.cache import Ragged, offsets_of

OPEN = 256  # rows that packing fills at the same time
WINDOW = 1024  # pairs that packing sorts at the same time


def round_up(number, step: int):
    """The next multiple of `step`, of an integer or of an array of them."""
    return -(-number // step) * step


def shuffle(n: int, *key: int) -> np.ndarray:
    """A permutation of range(n), int32, that depends on the key alone.

    Made from the raw bits of a bit generator, the one stream that NumPy promises to keep.
    """
    low = max(n - 1, 0).bit_length()
    bits = np.random.Philox(np.random.SeedSequence(key)).random_raw(n)
    # The index in the low bits makes keys unique: any sorting algorithm gives the same order.
    keys = np.sort((bits >> low << low) | np.arange(n, dtype=np.uint64))
    return (keys & np.uint64((1 << low) - 1)).astype(np.int32)


@dataclass(frozen=True)
class Mix:
    """Items that every epoch has, and groups of which a rotating share joins each epoch."""

    always: np.ndarray
    rotating: Sequence[tuple[np.ndarray, Fraction]] = ()

    def most(self) -> int:
        """No epoch has more items, and those with fewer lack one per group at most."""
        return len(self.always) + sum(math.ceil(len(ids) * share) for ids, share in self.rotating)

    def ever(self) -> np.ndarray:
        """The items of all epochs."""
        return np.concatenate([self.always, *(ids for ids, _ in self.rotating)])

    def items(self, epoch: int) -> np.ndarray:
        """The items of an epoch, unshuffled. Turns follow each other without gap or overlap."""
        taken = [self.always]
        for ids, share in self.rotating:
            start, stop = (math.floor(turn * len(ids) * share) for turn in (epoch, epoch + 1))
            taken.append(ids.take(np.arange(start, stop), mode="wrap"))
        return np.concatenate(taken)

    def where(self, chosen: np.ndarray) -> "Mix":
        """Those items whose place in `chosen` is True."""
        inside = lambda ids: ids[chosen[ids]]
        return Mix(inside(self.always), [(inside(ids), share) for ids, share in self.rotating])


def mix(corpora: Sequence[tuple[int, float]], seed: int) -> Mix:
    """Pairs of several corpora, each given as (pairs, weight), numbered one after the other.

    A pair of weight w is there floor(w) times, and in a share w - floor(w) of the epochs.
    """
    always, rotating, first = [np.zeros(0, np.int32)], [], 0
    for number, (pairs, weight) in enumerate(corpora):
        ids = np.arange(first, first + pairs, dtype=np.int32)
        always.append(np.repeat(ids, int(weight)))
        if share := Fraction(weight - int(weight)).limit_denominator(10**6):
            rotating.append((ids[shuffle(pairs, seed, number)], share))
        first += pairs
    return Mix(np.concatenate(always), rotating)


def best_sizes(lengths: np.ndarray, rows: Callable, most: int) -> list[tuple[int, int]]:
    """At most `most` buckets that hold items with the fewest positions, filler rows included.

    Exact, by dynamic programming over where buckets end. O(most * d^2), d distinct lengths.

    Args:
      lengths: of every item; a bucket has the length of its longest.
      rows: length -> rows of a batch, for arrays.

    Returns:
      (rows, length) of every bucket, ascending.
    """
    ends, counts = np.unique(lengths, return_counts=True)
    before, height = offsets_of(counts), rows(ends)
    batches = -(-(before[1:] - before[:-1, None]) // height)
    # cost[i, j]: positions of one bucket for the distinct lengths i..j.
    cost = np.where(np.tri(len(ends), k=-1, dtype=bool), np.inf, batches * height * ends)
    totals, starts = [cost[0]], []
    for _ in range(min(most, len(ends)) - 1):
        either = totals[-1][:-1, None] + cost[1:]
        starts.append(either.argmin(0))
        totals.append(either.min(0))
    more = int(np.argmin([total[-1] for total in totals]))
    chosen = [len(ends) - 1]
    for start in reversed(starts[:more]):
        chosen.append(int(start[chosen[-1]]))
    return [(int(height[end]), int(ends[end])) for end in reversed(chosen)]


def narrowed(sides: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> list[tuple]:
    """Of buckets by the longest side, ascending (rows, length): (rows, length of each side), each
    as long as what the bucket holds. The second side of a summary is much shorter than the first.

    Args:
      sides: lengths of every item, an array a side.
    """
    of_item = np.searchsorted([length for _, length in sizes], np.maximum.reduce(sides))
    inside = (of_item == bucket for bucket in range(len(sizes)))
    tops = ([int(side[chosen].max()) for side in sides] for chosen in inside)
    return [(rows, *top) for (rows, _), top in zip(sizes, tops, strict=True)]


@dataclass(frozen=True)
class Bucket:
    """Items that share one static shape: rows, and the length of each side."""

    rows: int
    lengths: tuple[int, ...]
    mix: Mix

    @property
    def steps(self) -> int:
        """Batches in an epoch, the same number in each."""
        return -(-self.mix.most() // self.rows)


def places(sides: Sequence[np.ndarray], sizes: Sequence[tuple]) -> np.ndarray:
    """Of every item the first of `sizes`, (rows, length of each side), that holds it; -1: none."""
    found = np.full(len(sides[0]), -1)
    for number, (_, *lengths) in reversed(list(enumerate(sizes))):
        found[np.all([side <= n for side, n in zip(sides, lengths, strict=True)], axis=0)] = number
    return found


def bucketed(sides: Sequence[np.ndarray], mix: Mix, sizes: Sequence[tuple]) -> list[Bucket]:
    """Items in the first of `sizes` that holds them; none is empty."""
    found = places(sides, sizes)
    within = (mix.where(found == number) for number in range(len(sizes)))
    shapes = ((rows, tuple(lengths)) for rows, *lengths in sizes)
    buckets = [Bucket(*shape, items) for shape, items in zip(shapes, within, strict=True)]
    return [bucket for bucket in buckets if bucket.steps]


class Epoch(NamedTuple):
    items: np.ndarray  # batch after batch; -1: a filler row
    bucket: np.ndarray  # of every batch
    start: np.ndarray  # of every batch, in items


def epoch(buckets: Sequence[Bucket], number: int, seed: int | None) -> Epoch:
    """All batches of one epoch. seed None: in order, without shuffling."""
    items, start, first = [], [], 0
    for index, bucket in enumerate(buckets):
        taken = bucket.mix.items(number)
        if seed is not None:
            taken = taken[shuffle(len(taken), seed, number, index)]
        slots = bucket.steps * bucket.rows
        items += [taken, np.full(slots - len(taken), -1, np.int32)]
        start.append(first + bucket.rows * np.arange(bucket.steps))
        first += slots
    of_batch = np.repeat(np.arange(len(buckets)), [bucket.steps for bucket in buckets])
    starts = np.concatenate(start)
    if seed is not None:
        order = shuffle(len(starts), seed, number, len(buckets))
        of_batch, starts = of_batch[order], starts[order]
    return Epoch(np.concatenate(items), of_batch, starts)


def pack(source: np.ndarray, target: np.ndarray, length: int, seed: int) -> Ragged:
    """Pairs as rows of at most `length` tokens on either side, by best fit.

    Pairs come shuffled, sorted longest first in windows, and go to the open row that they fill
    most; when they fit in none, the fullest makes place for a new one. About 5 us a pair.

    Args:
      source, target: tokens of every pair, none above `length`.

    Returns:
      Indices of the pairs in every row.
    """
    order = shuffle(len(source), seed)
    window = np.arange(len(order)) // WINDOW
    order = order[np.lexsort((-np.maximum(source, target)[order], window))]
    free_source, free_target = np.full((2, OPEN), length, np.int32)
    name, names, never = np.arange(OPEN), OPEN, 2 * length + 1
    row = np.empty(len(order), np.int64)
    needs = zip(source[order].tolist(), target[order].tolist(), strict=True)
    for number, (more_source, more_target) in enumerate(needs):
        left_source, left_target = free_source - more_source, free_target - more_target
        rest = left_source + left_target
        rest[(left_source | left_target) < 0] = never
        slot = rest.argmin()
        if rest[slot] == never:
            slot = (free_source + free_target).argmin()
            free_source[slot] = free_target[slot] = length
            name[slot], names = names, names + 1
        free_source[slot] -= more_source
        free_target[slot] -= more_target
        row[number] = name[slot]
    sizes = np.bincount(row)
    return Ragged(order[np.argsort(row, kind="stable")], offsets_of(sizes[sizes > 0]))
