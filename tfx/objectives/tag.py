"""Token classification: a class for every token, or for the first token of every word."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from tfx.data import examples as data
from tfx.data.cache import dtype_of, encode_rows
from tfx.nn.losses import softmax_cross_entropy
from tfx.objectives import inputs
from tfx.objectives.classify import class_index, number_of

ROWS, HEADS = "tagged", ("tokens",)
READS = "ids"


@dataclass(frozen=True)
class Config:
    """What is minimised."""

    labels: str = ""  # names of the classes in order: "O,B-PER,I-PER"; "": 0,1,...


def examples(config: Config, given: data.Given) -> data.Examples:
    """Rows of words and their tags. With `truncate`, training leaves out the last words of what is
    long; evaluation refuses that, for every word is to be told."""
    c, v = given, given.vocabulary
    names, around = config.labels.split(",") if config.labels else [], len(v.pair([])[0])
    before, room = v.pair([-1])[0].index(-1), c.max_length - around

    def encode(words, tags):
        found = {"ids": [], "tags": []}
        empty = long = 0
        for number, (row, labels) in enumerate(zip(words, tags, strict=True)):
            if len(row) != len(labels):
                raise data.RowError(number, f"{len(row)} words, {len(labels)} tags; mend it")
            with data.row(number):
                pieces = pieces_of(v, row)
                numbers = [number_of(label, names, c.classes) for label in labels]
            ids = [each for piece in pieces for each in piece]
            is_long = len(ids) > room
            empty, long = empty + (not ids), long + is_long
            if is_long and not c.train:
                raise data.RowError(
                    number,
                    f"{len(ids) + around} tokens, data.max_length is {c.max_length}; raise it, or "
                    "split the row",
                )
            if c.train and (not ids or (is_long and not c.truncate)):
                continue
            found["ids"].append(ids[:room])
            found["tags"].append(spread(numbers, pieces)[:room])
        return found, empty, long

    recipe = ["tagged", v.fingerprint, c.train, c.max_length, c.truncate, names, c.classes]
    dtypes = {"ids": dtype_of(v), "tags": np.int32}
    limit = f"more than data.max_length={c.max_length} tokens; data.truncate cuts them"
    rows = encode_rows(c.corpora, c.folder, recipe, dtypes, encode, c.progress, limit)
    ids, tags = rows.columns["ids"], rows.columns["tags"]

    def make(numbers, draw):
        made = []
        for n in numbers.tolist():
            row = inputs.framed(v, ids[n].astype(np.int32))
            labels = np.full(len(row["ids"]), IGNORED)
            labels[before : before + len(tags[n])] = tags[n]
            made.append(make_example(row, labels=labels.tolist(), classes=c.classes))
        return made

    axes = inputs.axes(v, targets="T", weights="T")
    return data.of_rows(rows, [ids.lengths + around], make, axes)


IGNORED = -100  # the label of a token that is not scored


def pieces_of(vocabulary, words: Sequence[str]) -> list[list[int]]:
    """Ids of every word, one or more."""
    # A space tells byte-level BPE that a word begins; others do not see it.
    pieces = vocabulary.encode([f" {word}" if at else word for at, word in enumerate(words)])
    # A word that a tokenizer drops whole is one that it does not know.
    return [piece or [inputs.special(vocabulary).get("unk")] for piece in pieces]


def spread(labels: Sequence[int], words: Sequence[Sequence[int]]) -> list[int]:
    """Labels of words as labels of their tokens: the first token of a word has the word's, all
    others are ignored (Devlin et al., 2019, section 5.3).

    Args:
      words: the tokens of every word, one or more.
    """
    each = zip(labels, words, strict=True)
    return [n for label, word in each for n in (label, *[IGNORED] * (len(word) - 1))]


def make_example(
    inputs: dict, rng=None, *, labels: Sequence[int], classes: int
) -> dict[str, np.ndarray]:
    """A row of `inputs.frame` and a label a token, `IGNORED` where there is none.

    Raises:
      ValueError: a label out of range, or not one a token.
    """
    if len(labels) != len(inputs["ids"]):
        raise ValueError(f"{len(labels)} labels for {len(inputs['ids'])} tokens; give each one")
    scored = np.array([label != IGNORED for label in labels], bool)
    found = [class_index(n if s else 0, classes) for n, s in zip(labels, scored, strict=True)]
    return inputs | {"targets": np.array(found, np.int32), "weights": scored.astype(np.float32)}


def loss(apply, params, batch, rngs, train):
    """Cross-entropy of `logits` [B, T, L] with `targets` [B, T] of `weights` [B, T].

    Returns:
      Its sum over the tokens that are scored, their number, and sums: `nll`, `accuracy`.
    """
    logits_BTL = apply(params, batch, rngs=rngs, train=train)["logits"]
    weights_BT = batch["weights"]
    nll, correct = softmax_cross_entropy(logits_BTL, batch["targets"], weights_BT)
    return nll, weights_BT.sum().astype(jnp.float32), {"nll": nll, "accuracy": correct}
