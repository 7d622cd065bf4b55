"""Permutation language modelling: predict some tokens of a text in a random order, each from those
that come before it in that order. Yang et al. (2019), sections 2.2 to 2.5, and the authors' code.

    row     before [reuse] A <sep> B <sep> <cls>     types 0 0 0 1 1 2
    half           first    second

The first half is text that goes on in A. It never sees the second; the second sees all of it.
Within a half, what is not predicted is seen by all, and sees what is not predicted; targets come in
random order, each seeing those before it but not itself. What is before the row is memory: all of
the row sees it, the model has read it first, and no gradient enters it.

Differs from the authors' code: <sep> and <cls> are never targets, so their number is exact. Memory
is not kept from the batch before, whose weights were others, but made of the text; so it does not
see what is before itself, and a batch is a function of the seed and the step. As in their code, n
counts tokens, not words, though a span begins where a word does.
"""

import functools
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from tfx.data import examples as data
from tfx.objectives import causal_lm, inputs, seq2seq
from tfx.objectives.inputs import Special, frame

ROWS, HEADS = "text", ("lm",)
READS = "ids"


@dataclass(frozen=True)
class Config(seq2seq.Config):
    """What is minimised."""

    label_smoothing: Annotated[float, "0 <= x < 1"] = 0.0
    predictions: Annotated[int, "x >= 0"] = 0  # of a row; 0: one token in CONTEXT
    reuse: Annotated[int, "x >= 0"] = 0  # tokens of the first half; 0: half of a row
    memory: Annotated[int, "x >= 0"] = 0  # tokens before a row that the model reads first


LONGEST = 5  # tokens of a span
CONTEXT = 6  # K: one token in so many is predicted


def split(
    stream: np.ndarray, bounds: np.ndarray, begin: int, length: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, int]:
    """Segments A and B of a row, together `length` tokens.

    A is the text from `begin` on up to the end of some sentence. B is what follows (label 1) or,
    one time in two and where A fills the row, text from anywhere in the stream (label 0).

    Args:
      stream: ids.
      bounds: where its sentences begin, in order, and its length.

    Raises:
      ValueError: the stream has not more than `length` tokens from `begin` on.
    """
    if begin + length >= len(stream):
        raise ValueError(
            f"a row takes more than {length} tokens, and from {begin} on the stream has "
            f"{len(stream) - begin}; make fewer rows of it"
        )
    after = bounds[np.searchsorted(bounds, begin, "right") :]  # ends of sentences
    filled = int(np.searchsorted(after, begin + length))
    cuts, stop = after[:filled], int(after[filled])
    label = int(len(cuts) > 0 and rng.random() < 0.5)
    cut = int(rng.choice(cuts)) if len(cuts) else stop
    if label:
        second = stream[cut:stop]
    else:
        wanted = max(1, length - (cut - begin))
        at = int(rng.integers(len(stream) - wanted))
        first_of = bounds[np.searchsorted(bounds, at, "right") - 1]
        second = stream[first_of : bounds[np.searchsorted(bounds, at + wanted)]]
    # Tokens are taken off the end of the longer one until both fit.
    kept = min(cut - begin, max(length - len(second), (length + 1) // 2))
    return stream[begin : begin + kept], second[: length - kept], label


def choose(
    allowed: np.ndarray, begins: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Which tokens of a half to predict: spans of 1 to 5 tokens, n of them with a probability
    proportional to 1 / n, each somewhere in a stretch of n K tokens that is otherwise kept.

    Args:
      allowed: what may be predicted.
      begins: where a word begins, and so may a span.
      count: how many tokens to predict. Where spans give fewer, single ones are added.

    Raises:
      ValueError: fewer are allowed.
    """
    if allowed.sum() < count:
        raise ValueError(
            f"{count} tokens to predict, of {allowed.sum()} there are; lower the count"
        )
    length, chosen = len(allowed), np.zeros(len(allowed), bool)
    sizes = np.arange(1, LONGEST + 1)
    chances = 1 / sizes / (1 / sizes).sum()
    starts, at, left = np.flatnonzero(begins), 0, count
    while left and at < length:
        n = min(int(rng.choice(sizes, p=chances)), left)
        before = int(rng.integers(n * CONTEXT))
        first = np.searchsorted(starts, at + before)
        if first == len(starts) or starts[first] + n > length:
            break
        span = slice(starts[first], starts[first] + n)
        chosen[span] = allowed[span]
        left -= int(allowed[span].sum())
        at = span.stop + n * CONTEXT - before
    single = rng.choice(np.flatnonzero(allowed & ~chosen), left, replace=False)
    chosen[single] = True
    return chosen


def hidden(targets: np.ndarray, functional: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[T, T] of one half: True where the token of a row cannot see that of a column.

    Tokens have ranks: -1 where they are neither target nor functional, and by a random order
    elsewhere. What has rank -1 is seen by all. The others are seen from higher ranks and, unless
    they are targets, by themselves.
    """
    rank = np.where(targets | functional, rng.permutation(len(targets)), -1)
    reach = np.where(targets, rank, rank + 1)
    return (reach[:, None] <= rank[None]) & (rank >= 0)[None]


def make_example(
    reuse,
    first,
    second,
    rng: np.random.Generator,
    *,
    special: Special,
    starts: np.ndarray,
    predictions: int | None = None,
) -> dict[str, np.ndarray]:
    """A row: the reused text, and segments A and B.

    Args:
      starts: [vocab], whether an id begins a word.
      predictions: P, half of them (the smaller half) in A and B. None: a K-th of the row, 85 of
        512.

    Returns:
      `ids`, `mask`, `types` [T]; `perm_mask` [T, T], True where a row cannot see a column;
      `target_mapping` [P, T], 1 at each target's position; `targets` and `weights` [P].
    """
    row = frame("xlnet", special, np.concatenate([reuse, first]).astype(np.int32), second)
    ids, length = row["ids"], len(row["ids"])
    middle = len(reuse)
    functional = np.isin(ids, [special.get("sep"), special.get("cls")])
    predictions = length // CONTEXT if predictions is None else predictions
    halves = slice(0, middle), slice(middle, length)
    chosen, perm_mask = np.zeros(length, bool), np.zeros((length, length), bool)
    counts = predictions - predictions // 2, predictions // 2
    for half, count in zip(halves, counts, strict=True):
        chosen[half] = choose(~functional[half], starts[ids[half]], count, rng)
        perm_mask[half, half] = hidden(chosen[half], functional[half], rng)
    perm_mask[:middle, middle:] = True
    places = np.flatnonzero(chosen)
    return row | {
        "perm_mask": perm_mask,
        "target_mapping": (places[:, None] == np.arange(length)).astype(np.float32),
        "targets": ids[places],
        "weights": np.ones(predictions, np.float32),
    }


@functools.wraps(causal_lm.loss, assigned=())  # whose settings it has
def loss(apply, params, batch, rngs, train, **settings):
    """As `causal_lm.loss`, of the query stream at the targets, `targets` and `weights` [B, P]; what
    the model makes of `before` [B, M], where the batch has it, is memory."""
    if "before" in batch:
        read = apply(params, {"ids": batch["before"]}, rngs=rngs, train=train)
        batch = batch | {"memory": read["memory"]}
    return causal_lm.loss(apply, params, batch, rngs, train, **settings)


def examples(config: Config, given: data.Given) -> data.Examples:
    """Rows of data.max_length tokens, each `reuse` further on in the text than the one before: what
    was its first half is then memory. A line is a sentence."""
    c, v, length = config, given.vocabulary, given.max_length
    reuse = c.reuse or length // 2
    text, room = data.stream(given, False, None), length - len(v.pair([], [])[0]) - reuse
    if room < 2:
        raise ValueError(
            f"objective.reuse={reuse} leaves {room} tokens of data.max_length={length} for the two "
            "segments; lower it"
        )
    lines = [
        text.bounds[slice(*np.searchsorted(text.bounds, [first, last + 1]))] - first
        for first, last in zip(text.starts, text.stops, strict=True)
    ]
    predictions = c.predictions or length // CONTEXT
    settings = dict(special=inputs.special(v), starts=v.starts_word, predictions=predictions)

    def make(block, rng):
        # Both segments are of one corpus.
        corpus = np.searchsorted(text.stops, block.start, "right")
        first, last = text.starts[corpus], text.stops[corpus]
        before, kept = block.ids[: c.memory], block.ids[c.memory :][:reuse]
        begin = block.start - first + c.memory + reuse
        sides = split(text.flat[first:last], lines[corpus], begin, room, rng)[:2]
        sides = [side.astype(np.int32) for side in sides]
        example = make_example(kept, *sides, rng, **settings)
        return example | ({"before": before} if c.memory else {})

    return data.blocks(
        given,
        text,
        reuse,
        make,
        inputs.axes(
            v,
            **dict(perm_mask="TT", target_mapping="PT", targets="P", weights="P"),
            **({"before": "M"} if c.memory else {}),
        ),
        lengths=lambda tokens: (np.full(len(tokens), length),),
        reach=c.memory + reuse + room + 1,
        full=True,
        recipe=["permuted", predictions, c.memory],
        sizes=lambda _: {"P": predictions, "M": c.memory},
    )
