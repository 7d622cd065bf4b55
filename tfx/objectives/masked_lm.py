"""Masked language modelling, with or without a question about two sentences.

    text     [CLS] my dog is hairy [SEP]
    ids      [CLS] my dog is [MASK] [SEP]     of 10 that are chosen 8 are [MASK], 1 is a random
    masked   4                                token, 1 stays what it is
    targets  hairy

BERT (Devlin et al., 2019, sections 3.1 and A.2, and the authors' code) chooses once: hand the same
generator in every epoch. RoBERTa (Liu et al., 2019, section 4.1) chooses anew: derive it from the
epoch too.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from typing import Annotated, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from tfx.data import examples as data
from tfx.data.cache import Ragged, Writer, cached, dtype_of, encode_rows
from tfx.nn.losses import cross_entropy, softmax_cross_entropy, sum_of_means
from tfx.objectives import inputs as rows
from tfx.objectives import seq2seq
from tfx.objectives.inputs import Special

ROWS, HEADS = "text", ("mlm", "pretraining")
READS = "ids"
OVER = {"nsp_nll": "rows", "nsp_accuracy": "rows"}  # what these are a mean over


@dataclass(frozen=True)
class Config(seq2seq.Config):
    """What is minimised."""

    label_smoothing: Annotated[float, "0 <= x < 1"] = 0.0
    recipe: Literal["bert", "roberta"] = "bert"
    rate: Annotated[float, "0 < x < 1"] = 0.15  # share of the tokens that is masked
    whole_words: bool = False
    pairs: Literal["none", "next", "order"] = "none"  # a question about two sentences of a row
    static: bool = False  # the same masks in every epoch
    copies: Annotated[int, "x >= 1"] = 1  # of training text, each paired and masked by itself


RECIPES = {  # how many tokens are masked where so many are expected
    "bert": lambda expected, rng: max(1, round(expected)),
    "roberta": lambda expected, rng: int(expected + rng.random()),
}


def make_example(
    inputs: dict,
    rng: np.random.Generator,
    *,
    special: Special,
    vocab: int,
    recipe: str = "bert",
    rate: float = 0.15,
    most: int | None = None,
    starts: np.ndarray | None = None,
    nsp: int | None = None,
) -> dict[str, np.ndarray]:
    """A row of `inputs.frame`, some of its tokens masked.

    Args:
      vocab: how many ids random tokens are drawn from.
      recipe: "bert" masks max(1, round(rate n)) of n tokens, those of the frame counted, and draws
        from all ids; "roberta" int(rate n + U(0, 1)), and never draws a special one.
      most: the budget of a row. None: what the recipe asks for.
      starts: [vocab], whether an id begins a word. Words are then masked whole, and one that does
        not fit the budget any more is passed over. None: every token by itself.
      nsp: the answer to the question about two sentences.

    Returns:
      The row with masked `ids`, and 1-D arrays over what was chosen, by position: `masked` (the
      position), `targets` (the id), `weights` (1). Special tokens are never chosen.
    """
    if recipe not in RECIPES:
        raise ValueError(f"no masking recipe '{recipe}': choose from {', '.join(RECIPES)}")
    ids, length = inputs["ids"], len(inputs["ids"])
    budget = RECIPES[recipe](rate * length, rng)
    budget = budget if most is None else min(budget, most)
    masked = choose(ids, rng, special, budget, starts)
    drawn = draw(len(masked), rng, vocab, () if recipe == "bert" else special.ids)
    example = inputs | {
        "ids": replace(ids, masked, drawn, special.get("mask"), rng),
        "masked": masked.astype(np.int32),
        "targets": ids[masked],
        "weights": np.ones(len(masked), np.float32),
    }
    return example if nsp is None else example | {"nsp": np.int32(nsp)}


def most_masked(length: int, rate: float = 0.15) -> int:
    """How many tokens of a row of `length` either recipe masks at most: the P of its batch."""
    return max(1, int(np.ceil(rate * length)))


def choose(ids, rng, special: Special, budget: int, starts=None) -> np.ndarray:
    """Positions to mask, in order: words in random order, as long as they fit the budget."""
    framing = [i for i in (special.cls, special.sep, special.pad, special.bos, special.eos)]
    places = np.flatnonzero(~np.isin(ids, [i for i in framing if i is not None]))
    begins = np.ones(len(places), bool)
    if starts is not None:  # what follows a special token begins a word, whatever it is
        begins = starts[ids[places]] | (np.diff(places, prepend=-2) > 1)
    word = np.cumsum(begins) - 1
    sizes = np.bincount(word)
    taken = np.zeros(len(sizes), bool)
    for n in rng.permutation(len(sizes)):
        if budget <= 0:
            break
        if sizes[n] <= budget:
            taken[n] = True
            budget -= sizes[n]
    return places[taken[word]]


def draw(count: int, rng, vocab: int, never: Sequence[int]) -> np.ndarray:
    """Ids below `vocab`, each as likely as any other, but none of `never`, which are in order."""
    drawn = rng.integers(vocab - len(never), size=count)
    for id in never:
        drawn += drawn >= id
    return drawn


def replace(ids, masked, drawn, mask: int, rng) -> np.ndarray:
    """The ids with those at `masked` changed: 80% to `mask`, 10% to `drawn`, 10% to themselves."""
    chance = rng.random(len(masked))
    changed = ids.copy()
    changed[masked] = np.where(chance < 0.8, mask, np.where(chance < 0.9, drawn, ids[masked]))
    return changed


def loss(
    apply,
    params,
    batch,
    rngs,
    train,
    *,
    label_smoothing: float = 0.0,
    smoothing: str = "uniform",
    z_loss: float = 0.0,
):
    """Cross-entropy of the masked tokens, `masked`, `targets`, `weights` [B, P]; plus, where the
    batch has `nsp` [B], that of the question about two sentences.

    Of the states only the masked ones are multiplied with the vocabulary.

    Returns:
      A sum over masked tokens and their number: the quotient is the mean over masked tokens plus
      the mean over rows (`losses.sum_of_means`). Sums: `nll` of the masked tokens; with `nsp` also
      `nsp_nll`, `nsp_accuracy` and `rows`.
    """
    outputs = apply(params, batch, rngs=rngs, train=train)
    states_BTD, table_VD = outputs["logits"].factors()
    states_BPD = jnp.take_along_axis(states_BTD, batch["masked"][..., None], 1)
    targets_BP, weights_BP = batch["targets"], batch["weights"]
    settings = (label_smoothing if train else 0.0, smoothing, z_loss if train else 0.0)
    total, nll = cross_entropy(states_BPD, table_VD, targets_BP, weights_BP, *settings)
    weight, sums = weights_BP.sum(), {"nll": nll}
    if "nsp" not in batch:
        return total, weight, sums
    rows_B = batch["mask"].any(-1).astype(jnp.float32)
    nsp, correct = softmax_cross_entropy(outputs["nsp"], batch["nsp"], rows_B)
    total, weight = sum_of_means((1.0, total, weight), (1.0, nsp, rows_B.sum()))
    return total, weight, sums | {"nsp_nll": nsp, "nsp_accuracy": correct, "rows": rows_B.sum()}


class Documents(Sequence):
    """The runs of rows first:last that are not empty; each is read when it is asked for."""

    def __init__(self, rows: Ragged, first: int, last: int):
        full = np.diff(rows.offsets[first : last + 1]) > 0
        edges = np.flatnonzero(np.diff(full, prepend=False, append=False))
        self._rows, self._bounds = rows, first + edges.reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._bounds)

    def __getitem__(self, index: int) -> list[np.ndarray]:
        return [self._rows[row] for row in range(*self._bounds[index])]


class Pair(NamedTuple):
    """Two stretches of text, and the answer to the question about them."""

    first: np.ndarray
    second: np.ndarray
    label: int


def next_sentences(
    documents: Sequence[Sequence], index: int, rng: np.random.Generator, *, length: int
) -> list[Pair]:
    """Pairs from one document for the question whether the second follows the first: 0, or 1
    where it is from another document.

    One in two is; so is every one whose first is all there was. The sentences that would have
    followed are then used for the next pair.

    Args:
      documents: of sentences of ids, none of them empty.
      length: of a row, `[CLS] first [SEP] second [SEP]`, at most.

    Raises:
      ValueError: there is no other document.
    """
    if len(documents) < 2:
        raise ValueError("the next sentence is drawn from another document, and there is but one")
    document, target, made = documents[index], _target(length, rng), []
    start = 0
    while start < len(document):
        stop = _fill(document, start, target)
        cut = start + (int(rng.integers(1, stop - start)) if stop - start > 1 else 1)
        first = np.concatenate(document[start:cut])
        label = int(cut == stop or rng.random() < 0.5)
        if label:
            other = int(rng.integers(len(documents) - 1))
            other = documents[other + (other >= index)]
            begin = int(rng.integers(len(other)))
            second = other[begin : _fill(other, begin, target - len(first))]
        else:
            second = document[cut:stop]
        pair = truncate(first, np.concatenate(second), length - 3, rng)
        made.append(Pair(*pair, label))
        start = cut if label else stop
    return made


def sentence_order(document: Sequence, rng: np.random.Generator, *, length: int) -> list[Pair]:
    """Pairs from a document for the question of their order: 0, or 1 where they were swapped
    (Lan et al., 2020, section 3.1). A last sentence that is left alone makes none."""
    target, made, start = _target(length, rng), [], 0
    while start + 1 < len(document):
        stop = max(_fill(document, start, target), start + 2)
        cut = start + int(rng.integers(1, stop - start))
        sides = [np.concatenate(document[start:cut]), np.concatenate(document[cut:stop])]
        label = int(rng.random() < 0.5)
        pair = truncate(*(sides[::-1] if label else sides), length - 3, rng)
        made.append(Pair(*pair, label))
        start = stop
    return made


def _target(length: int, rng) -> int:
    """Tokens to collect for the pairs of a document: as many as fit, or for one in ten fewer, for
    later tasks have short texts too."""
    return int(rng.integers(2, length - 2)) if rng.random() < 0.1 else length - 3


def _fill(document, start: int, target: int) -> int:
    """The end of the sentences from `start` on that together have `target` tokens; at least one."""
    count = 0
    for stop in range(start, len(document)):
        count += len(document[stop])
        if count >= target:
            return stop + 1
    return len(document)


def truncate(first, second, length: int, rng) -> tuple[np.ndarray, np.ndarray]:
    """Both, no longer than `length` together: tokens are taken off the longer one, at its front or
    at its back."""
    sides = [[0, len(first)], [0, len(second)]]
    size = lambda side: side[1] - side[0]
    while sum(map(size, sides)) > length:
        longer = sides[0] if size(sides[0]) > size(sides[1]) else sides[1]
        if rng.random() < 0.5:
            longer[0] += 1
        else:
            longer[1] -= 1
    return first[slice(*sides[0])], second[slice(*sides[1])]


def examples(config: Config, given: data.Given) -> data.Examples:
    """Rows of text with masks: blocks of a stream, or pairs of stretches of one document."""
    c, v = config, given.vocabulary
    settings = dict(
        special=rows.special(v),
        vocab=v.vocab_size,
        recipe=c.recipe,
        rate=c.rate,
        most=None,
        starts=v.starts_word if c.whole_words else None,
    )
    masks = dict(masked="P", targets="P", weights="P")
    more = dict(sizes=lambda length: {"P": most_masked(length, c.rate)})
    recipe = ["masked", c.recipe, c.rate, c.whole_words, c.static]
    if c.pairs == "none" and c.copies > 1:
        raise ValueError(
            f"objective.copies = {c.copies}: copies are paired anew, and objective.pairs = none; "
            "set them to 1"
        )
    if c.pairs == "none":
        around = len(v.pair([])[0])
        make = lambda block, rng: make_example(rows.framed(v, block.ids), rng, **settings)
        return data.blocks(
            given,
            data.stream(given, False, v.special.get("sep")),
            given.max_length - around,
            make,
            rows.axes(v, **masks),
            lengths=lambda tokens: (tokens + around,),
            static=c.static,
            recipe=recipe,
            **more,
        )
    found = paired(config, given)
    first, second, label = (found[name] for name in ("first", "second", "label"))

    def make(numbers, draw):
        made = []
        for number in numbers.tolist():
            rng = draw.rng(number, 0 if c.static else None)
            row = rows.framed(v, first[number].astype(np.int32), second[number].astype(np.int32))
            made.append(make_example(row, rng, **settings, nsp=int(label.flat[number])))
        return made

    lengths = first.lengths + second.lengths + len(v.pair([], [])[0])
    axes = rows.axes(v, **masks, nsp="")
    return data.of_rows(found["rows"], [lengths], make, axes, recipe, **more)


def paired(config: Config, given: data.Given) -> dict:
    """Pairs of stretches of the documents of all corpora, as `next_sentences` or `sentence_order`
    makes them: kept, and read again. A line is a sentence, a blank one ends a document."""
    c, v = config, given.vocabulary
    # Some families put more around two texts than the three of BERT.
    length = given.max_length + 3 - len(v.pair([], [])[0])
    dtype, order = dtype_of(v), c.pairs == "order"
    encode = lambda lines: ({"ids": v.encode(lines)}, sum(not line.strip() for line in lines), 0)
    rest = [v.fingerprint, "sentences"]
    lines = encode_rows(given.corpora, given.folder, rest, {"ids": dtype}, encode, given.progress)
    copies = c.copies if given.train else 1
    recipe = [lines.fingerprint, c.pairs, length, copies, given.seed]
    name = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()

    def pairs(documents):
        for copy, index in np.ndindex(copies, len(documents)):
            rng = np.random.default_rng((given.seed, copy, index))
            if order:
                yield sentence_order(documents[index], rng, length=length)
            else:
                yield next_sentences(documents, index, rng, length=length)

    def fill(folder):
        first, second = (Writer(folder, name, dtype) for name in ("first", "second"))
        labels, counts, start = [], [], 0
        for part in lines.parts:
            before = len(labels)
            for made in pairs(Documents(lines.columns["ids"], start, start + part.kept)):
                first.add([pair.first for pair in made])
                second.add([pair.second for pair in made])
                labels += [pair.label for pair in made]
            counts.append(len(labels) - before)
            start += part.kept
        if not labels:
            raise ValueError("no document of two sentences; write a sentence a line")
        first.close()
        second.close()
        np.array(labels, np.int8).tofile(folder / "label.int8")
        np.array(counts, np.int64).tofile(folder / "counts.int64")

    arrays = cached(lines.folder / f"sentences-{name[:32]}", fill)
    counts = zip(lines.parts, arrays["counts"].tolist(), strict=True)
    parts = tuple(changed(part, kept=count, empty=0) for part, count in counts)
    ragged = {key: Ragged(arrays[key], arrays[f"{key}_offsets"]) for key in ("first", "second")}
    label = Ragged(arrays["label"], np.arange(len(arrays["label"]) + 1))
    return ragged | {"label": label, "rows": changed(lines, parts=parts, fingerprint=name)}
