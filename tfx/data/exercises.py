"""What can be practised on the embedded grammar besides translation? Rows for every kind of task.

SYNTHETIC, as the grammar is: made of its pairs by rule, so that every answer is right, and what
can be learned is the rule. For tests, and for trying out a task within minutes.

    text        the English sentences, in documents of eight
    labelled    has a sentence more kind words, or more unkind ones?
    questions   a page of a phrase book: how is that said? One sentence in four is not on it
    tagged      who and what a sentence speaks of: the [old man] bought a [watch] in [Paris]
    choices     which of four German sentences means the same?
"""

import random
import re
from collections.abc import Iterator, Sequence

from tfx.data.inflection import ADJECTIVES, CITIES, NAMES, NOUNS, VERBS

VERSION = 1  # goes up with every change of what the rows are
SEED = 2018
MOST = 20_000  # pairs of a split that are used, but for text
DOCUMENT = 8  # sentences
PAGE = 3  # pairs
CHOICES = 4

Pairs = Sequence[tuple[str, str]]

CLASSES = ("negative", "positive")
UNKIND = """broken chase cry dangerous expensive forget heavy hide hungry lose need old quiet sad
    sell steal tired wait"""
KIND = """beautiful bring dance famous fresh friendly give happy help interesting invite laugh love
    rich smart strong sweet thank trust"""
# A noun with the adjective before it, as the spans of Tjong Kim Sang & De Meulder (2003): B- begins
# one, I- goes on, O is outside.
TAGS = (
    "O",
    *(f"{mark}-{kind}" for kind in ("person", "animal", "thing", "place") for mark in "BI"),
)


def words(sentence: str) -> list[str]:
    """Words and punctuation marks; Anna's are two."""
    return re.findall(r"'s\b|\w+|[^\w\s]", sentence)


def forms(bases: str) -> frozenset[str]:
    """Of English adjectives and verbs."""
    found = set()
    for base in bases.split():
        if base in ADJECTIVES:
            found |= {base, ADJECTIVES[base].english_comparative}
        else:
            verb = VERBS[base]
            found |= {verb.base, verb.third, verb.past, verb.participle, verb.gerund}
    return frozenset(found)


def kinds() -> dict[str, str]:
    """Of what kind the nouns and names are."""
    things = {"text": "thing", "food": "thing", "city": "place"}
    found = {name: one.kind for name, one in (NAMES | CITIES).items()}
    for noun in NOUNS.values():
        found |= {noun.singular: noun.kind, noun.plural: noun.kind}
    return {word: things.get(kind, kind) for word, kind in found.items()}


def text(pairs: Pairs, split: str) -> Iterator[tuple[str]]:
    for number, (english, _) in enumerate(pairs, 1):
        yield (english,)
        if number % DOCUMENT == 0:
            yield ("",)


def labelled(pairs: Pairs, split: str) -> Iterator[tuple[str, str]]:
    """Sentences that have as many words of one sort as of the other are left out."""
    kind, unkind = forms(KIND), forms(UNKIND)
    for english, _ in pairs:
        said = words(english.lower())
        if balance := sum((word in kind) - (word in unkind) for word in said):
            yield english, CLASSES[balance > 0]


def questions(pairs: Pairs, split: str) -> Iterator[tuple]:
    rng = random.Random(SEED)
    for number in range(len(pairs)):
        first = min(number // PAGE * PAGE, len(pairs) - PAGE)
        asked, _ = pairs[(number + PAGE * (rng.random() < 0.25)) % len(pairs)]
        lines, answers, at = [], [], 0
        for english, german in pairs[first : first + PAGE]:
            line = f"{english} = {german}"
            answers += [(german, at + len(english) + 3)] * (english == asked)
            lines, at = [*lines, line], at + len(line) + 1
        yield f"synthetic-{split}-{number}", asked, " ".join(lines), answers


def tagged(pairs: Pairs, split: str) -> Iterator[tuple[list[str], list[str]]]:
    kind_of = kinds()
    for english, _ in pairs:
        tokens = words(english)
        found = [kind_of.get(word, kind_of.get(word.lower())) for word in tokens]
        tags = [f"B-{kind}" if kind else "O" for kind in found]
        for at, word in enumerate(tokens[:-1]):
            if word.lower() in ADJECTIVES and tags[at + 1] != "O":
                tags[at], tags[at + 1] = tags[at + 1], tags[at + 1].replace("B-", "I-")
        yield tokens, tags


def choices(pairs: Pairs, split: str) -> Iterator[tuple[str, list[str], int]]:
    rng = random.Random(SEED)
    for number, (english, german) in enumerate(pairs):
        first = min(number // CHOICES * CHOICES, len(pairs) - CHOICES)
        drawn = sorted((rng.random(), target) for _, target in pairs[first : first + CHOICES])
        among = [target for _, target in drawn]
        yield english, among, among.index(german)


KINDS = {
    "text": text,
    "labelled": labelled,
    "questions": questions,
    "tagged": tagged,
    "choices": choices,
}
