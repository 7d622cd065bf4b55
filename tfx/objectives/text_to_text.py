"""Every task as text to text: Raffel et al. (2020), section 2.4 and appendix D.

    sst2 sentence: it confirms fincher 's status         ->  positive
    stsb sentence1: A plane lands. sentence2: A plane .. ->  3.8
    summarize: marouane fellaini and adnan januzaj ...   ->  the belgian duo ...

Beside the texts, what differs from translation is where the decoder starts: from padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, NamedTuple

import numpy as np

from tfx.data.examples import Examples, Given
from tfx.data.families import Ends
from tfx.data.sources import Corpus
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


class Task(NamedTuple):
    """How a row of a task becomes text.

    Attributes:
      source: what the model reads, with the row's fields in braces.
      labels: the words of its classes; none: the target is a text, or a number (stsb).
    """

    source: str
    labels: tuple[str, ...] = ()


TASKS = {
    "cola": Task("cola sentence: {sentence}", ("unacceptable", "acceptable")),
    "sst2": Task("sst2 sentence: {sentence}", ("negative", "positive")),
    "mrpc": Task(
        "mrpc sentence1: {sentence1} sentence2: {sentence2}", ("not_equivalent", "equivalent")
    ),
    "stsb": Task("stsb sentence1: {sentence1} sentence2: {sentence2}"),
    "qqp": Task(
        "qqp question1: {question1} question2: {question2}", ("not_duplicate", "duplicate")
    ),
    "mnli": Task(
        "mnli hypothesis: {hypothesis} premise: {premise}",
        ("entailment", "neutral", "contradiction"),
    ),
    "qnli": Task(
        "qnli question: {question} sentence: {sentence}", ("entailment", "not_entailment")
    ),
    "rte": Task(
        "rte sentence1: {sentence1} sentence2: {sentence2}", ("entailment", "not_entailment")
    ),
    "squad": Task("question: {question} context: {context}"),
    "summarize": Task("summarize: {text}"),
    "translate": Task("translate {source_language} to {target_language}: {text}"),
}


def source(task: str, **fields: str) -> str:
    """What the model reads of a row. Raises ValueError where the task or a field is not there."""
    try:
        return TASKS[task].source.format(**fields)
    except KeyError as missing:
        known = f"its fields are {', '.join(fields)}" if task in TASKS else f"tasks: {[*TASKS]}"
        raise ValueError(f"text-to-text task '{task}' has no {missing}; {known}") from None


def number(value: float) -> str:
    """A similarity of STS-B as text, rounded to the nearest 0.2: a class of 26."""
    return f"{round(value * 5) / 5:.1f}"


def label(task: str, text: str) -> int | None:
    """The class that a generated text names; None: none of the task's, which is never right."""
    labels = TASKS[task].labels
    return labels.index(text.strip()) if text.strip() in labels else None


def make_example(source, target, rng=None, *, special: Special) -> dict[str, np.ndarray]:
    """What is fed and what is predicted, from the ids of both texts; `rng` is not needed."""
    return seq2seq.make_example(source, target, Ends(special.get("pad"), (), (special.get("eos"),)))


def examples(config: Config, given: Given) -> Examples:
    """Pairs of texts."""
    prefixed = lambda lines: [f"{config.prefix}{line}" if line.strip() else line for line in lines]
    change = lambda _, source, target: (prefixed(source), target)
    corpora = changed(given.corpora, change, config)
    return seq2seq.examples(config, given._replace(corpora=corpora))


def read(config: Config, corpora: Sequence[Corpus]) -> list[Corpus]:
    """The corpora, their targets as the words of their classes."""
    names = config.labels.split(",")

    def words(number, source, target):
        for row, label in enumerate(target, number):
            if label not in names and not (label.isdecimal() and int(label) < len(names)):
                raise ValueError(
                    f'row {row:,}: label "{label}" is none of objective.labels={config.labels} nor '
                    f"a number below {len(names)}; correct the data or the list"
                )
        return source, [each if each in names else names[int(each)] for each in target]

    return changed(corpora, words, config) if config.labels else list(corpora)


def changed(corpora: Sequence[Corpus], change, config: Config) -> list[Corpus]:
    """Corpora whose chunks are changed, as a config says: by change(number of the first row from
    1, columns)."""

    def chunks_of(corpus):
        number = 1
        for chunk in corpus.chunks():
            yield change(number, *chunk)
            number += len(chunk[0])

    return [
        replace(
            corpus,
            chunks=partial(chunks_of, corpus),
            fingerprint=f"{corpus.fingerprint} {config.prefix} {config.labels}",
        )
        for corpus in corpora
    ]
