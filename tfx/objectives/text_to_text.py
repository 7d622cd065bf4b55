"""Every task as text to text: Raffel et al. (2020), section 2.4 and appendix D.

    sst2 sentence: it confirms fincher 's status         ->  positive
    stsb sentence1: A plane lands. sentence2: A plane .. ->  3.8
    summarize: marouane fellaini and adnan januzaj ...   ->  the belgian duo ...

Beside the texts, what differs from translation is where the decoder starts: from padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

import numpy as np

from tfx.data.examples import Examples, Given
from tfx.data.families import Ends
from tfx.data.sources import Corpus, RowError, told
from tfx.objectives import seq2seq
from tfx.objectives.inputs import Special

ROWS, HEADS = seq2seq.ROWS, seq2seq.HEADS
READS = "source"
loss = seq2seq.loss


@dataclass(frozen=True)
class Config(seq2seq.Config):
    """What is minimised."""

    label_smoothing: Annotated[float, "0 <= x < 1"] = 0.0
    prefix: str = ""  # in front of every source: "summarize: "
    labels: str = ""  # "negative,positive": the words that targets 0, 1, ... stand for


def make_example(source, target, rng=None, *, special: Special) -> dict[str, np.ndarray]:
    """What is fed and what is predicted, from the ids of both texts; `rng` is not needed."""
    return seq2seq.make_example(source, target, Ends(special.get("pad"), (), (special.get("eos"),)))


def examples(config: Config, given: Given) -> Examples:
    """Pairs of texts."""
    prefixed = lambda lines: [f"{config.prefix}{line}" if line.strip() else line for line in lines]
    change = lambda source, target: (prefixed(source), target)
    corpora = changed(given.corpora, change, config)
    return seq2seq.examples(config, given._replace(corpora=corpora))


def read(config: Config, corpora: Sequence[Corpus]) -> list[Corpus]:
    """The corpora, their targets as the words of their classes."""
    names = config.labels.split(",")

    def words(source, target):
        for row, label in enumerate(target):
            if label not in names and not (label.isdecimal() and int(label) < len(names)):
                raise RowError(
                    row,
                    f'label "{label}" is none of objective.labels={config.labels} nor a number '
                    f"below {len(names)}; correct the data or the list",
                )
        return source, [each if each in names else names[int(each)] for each in target]

    return changed(corpora, words, config) if config.labels else list(corpora)


def changed(corpora: Sequence[Corpus], change, config: Config) -> list[Corpus]:
    """Corpora whose chunks are changed, as a config says: by change(columns)."""

    def chunks_of(corpus):
        before = 0
        for chunk in corpus.chunks():
            with told(corpus, before):
                columns = change(*chunk)
            yield columns
            before += len(chunk[0])

    return [
        replace(
            corpus,
            chunks=partial(chunks_of, corpus),
            fingerprint=f"{corpus.fingerprint} {config.prefix} {config.labels}",
        )
        for corpus in corpora
    ]
