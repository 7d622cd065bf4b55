"""Span corruption: write what was cut out of a text. Raffel et al. (2020), section 3.1.4.

    text      Thank you for inviting me to your party last week
    source    Thank you <X> me to your party <Y> week
    target    <X> for inviting <Y> last <Z>

In the source a sentinel stands for every span that was cut out, in the target for every stretch
that was kept; sentinels count down from the last id of the vocabulary. The figure's last one, <Z>,
stands for "week". Texts that are cut at random start with a stretch that is kept and end with a
span that is not, as in the authors' code, so their target ends without one: it is with EOS, and
without a last sentinel, that 512 tokens of source have 114 of target.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from tfx.data import examples as data
from tfx.objectives import inputs, seq2seq, text_to_text
from tfx.objectives.inputs import Special

ROWS, HEADS = "text", ("lm",)
READS = "source"
loss = text_to_text.loss


@dataclass(frozen=True)
class Config(seq2seq.Config):
    """What is minimised."""

    label_smoothing: Annotated[float, "0 <= x < 1"] = 0.0
    density: Annotated[float, "0 < x < 1"] = 0.15  # share of the tokens that is cut out
    mean_span: Annotated[float, "x >= 1"] = 3.0  # tokens of a span
    whole: bool = False  # a file is one text, not each of its lines


def counts(length: int, density: float = 0.15, mean_span: float = 3.0) -> tuple[int, int]:
    """How many tokens of a text are cut out, and in how many spans."""
    noise = min(max(round(length * density), 1), length - 1)
    return noise, min(max(round(noise / mean_span), 1), noise, length - noise)


def raw_length(inputs: int, density: float = 0.15, mean_span: float = 3.0) -> tuple[int, int]:
    """The longest text whose source has at most `inputs` tokens, and the length of its target;
    both sides with their EOS.

    Raises:
      ValueError: `inputs` has no room for a text of two tokens.
    """
    if inputs < 3:
        raise ValueError(f"a source of {inputs} tokens holds no text, sentinel and end; 3 do")

    def both(length):
        noise, spans = counts(length, density, mean_span)
        return length - noise + spans + 1, noise + spans + 1

    length = 2
    while both(length + 1)[0] <= inputs:
        length += 1
    return length, both(length)[1]


def segmentation(items: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths of the parts, none empty, that items are cut into; all ways are equally likely."""
    cuts = np.sort(rng.choice(items - 1, parts - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=items)


def noise_mask(
    length: int, rng: np.random.Generator, density: float = 0.15, mean_span: float = 3.0
) -> np.ndarray:
    """What is cut out of a text, True: spans that alternate with stretches that are kept, such a
    one being the first."""
    noise, spans = counts(length, density, mean_span)
    cut, kept = segmentation(noise, spans, rng), segmentation(length - noise, spans, rng)
    return np.repeat(np.tile([False, True], spans), np.stack([kept, cut], 1).ravel())


def corrupt(ids: np.ndarray, noise: np.ndarray, vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """Source and target of a text, without EOS.

    Args:
      noise: what is cut out.
      vocab: size of the tokenizer's vocabulary; sentinels are vocab - 1, vocab - 2, ...

    Raises:
      ValueError: the text has a sentinel of its own.
    """

    def collapse(runs):
        first = runs & ~np.append(False, runs[:-1])
        sentinels = vocab - np.cumsum(first)
        if len(ids) and ids.max() >= sentinels[-1]:
            raise ValueError(
                f"id {ids.max()} of the text is one of the {vocab - sentinels[-1]} sentinels below "
                f"{vocab}; use a tokenizer with more of them, or shorter texts"
            )
        return np.where(first, sentinels, ids)[first | ~runs].astype(np.int32)

    return collapse(noise), collapse(~noise)


def make_example(
    ids,
    rng: np.random.Generator,
    *,
    special: Special,
    vocab: int,
    density: float = 0.15,
    mean_span: float = 3.0,
) -> dict[str, np.ndarray]:
    """A text with spans cut out, and these spans.

    Raises:
      ValueError: fewer than 2 tokens, of which none can be cut out and one kept.
    """
    if len(ids) < 2:
        raise ValueError(f"a text of {len(ids)} tokens has no span to cut out; leave it out")
    ids = np.asarray(ids, np.int32)
    sides = corrupt(ids, noise_mask(len(ids), rng, density, mean_span), vocab)
    return text_to_text.make_example(*sides, special=special)


def examples(config: Config, given: data.Given) -> data.Examples:
    """Blocks of text whose sources fill a row, cut anew in every epoch."""
    v, rates = given.vocabulary, (config.density, config.mean_span)
    if not v.sentinels or v.sentinels[0] != v.vocab_size - 1:
        raise ValueError(
            f"tokenizer.kind={v.kind} has no sentinels at the end of its {v.vocab_size} pieces, "
            "which span corruption needs; use t5"
        )

    def lengths(tokens):
        noise, spans = np.array([counts(n, *rates) for n in np.unique(tokens)]).T
        at = np.searchsorted(np.unique(tokens), tokens)
        return tokens - noise[at] + spans[at] + 1, noise[at] + spans[at] + 1

    settings = dict(zip(("density", "mean_span"), rates, strict=True))
    make = lambda block, rng: make_example(
        block.ids, rng, special=inputs.special(v), vocab=v.vocab_size, **settings
    )
    step, target = raw_length(given.max_length, *rates)
    if target > given.max_length:
        raise ValueError(
            f"objective.density = {config.density}: a row of data.max_length = {given.max_length} "
            f"tokens has a target of {target}; lower it"
        )
    spans, text = counts(step, *rates)[1], data.stream(given, config.whole, None)
    if spans > len(v.sentinels):
        raise ValueError(
            f"a row of data.max_length = {given.max_length} tokens has {spans} spans, the "
            f"tokenizer {len(v.sentinels)} sentinels; lower that, or raise objective.mean_span"
        )
    if (largest := int(text.flat.max())) >= v.sentinels[spans - 1]:
        raise ValueError(
            f"the text spells {v.tokens([largest])[0]}, which stands for a span; take it out"
        )
    how = dict(lengths=lengths, recipe=["spans", *rates])
    return data.blocks(given, text, step, make, seq2seq.AXES, **how)
