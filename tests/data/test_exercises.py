"""Exercises are right by rule: every answer can be found again from what is asked."""

import collections
import itertools

import pytest

from tfx.data import exercises, grammar
from tfx.data.inflection import ADJECTIVES, VERBS
from tfx.data.sources import open_split

SPLITS = {split: list(itertools.islice(grammar.pairs(split), 2_000)) for split in grammar.SIZES}


def rows(kind: str, split: str = "valid") -> list[tuple]:
    (corpus,) = open_split("synthetic", split, "", split, kind)
    return [row for chunk in corpus.chunks() for row in zip(*chunk, strict=True)]


def test_every_kind_of_rows_is_there():
    fingerprints = set()
    for kind in ("pair", *exercises.KINDS):
        for split in ("valid", "test"):
            (corpus,) = open_split("synthetic", split, "", split, kind)
            assert list(corpus.chunks()) == list(corpus.chunks())
            fingerprints.add(corpus.fingerprint)
    assert len(fingerprints) == 2 * (1 + len(exercises.KINDS))


def test_text_is_in_documents_of_eight():
    lines = [line for (line,) in rows("text")]
    assert [at for at, line in enumerate(lines) if not line] == list(range(8, len(lines), 9))
    assert [line for line in lines if line] == [english for english, _ in SPLITS["valid"]]


@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_balanced_and_follow_from_the_words(split):
    labelled = list(exercises.labelled(SPLITS[split], split))
    counts = collections.Counter(label for _, label in labelled)
    assert counts.keys() == set(exercises.CLASSES) and len(labelled) > len(SPLITS[split]) / 2
    assert 0.4 < counts["positive"] / len(labelled) < 0.6
    for kind, label in ((exercises.KIND, "positive"), (exercises.UNKIND, "negative")):
        known = exercises.forms(kind)
        assert all(
            known & set(exercises.words(text.lower())) for text, of in labelled if of == label
        )
    assert not exercises.forms(exercises.KIND) & exercises.forms(exercises.UNKIND)


def test_labels_by_hand():
    said = ["He loves sad songs.", "Is Anna happier?", "She cried.", "Wait!", "They sleep."]
    labels = dict(exercises.labelled([(text, "") for text in said], ""))
    assert labels == dict(zip(said[1:4], ["positive", "negative", "negative"], strict=True))


def test_questions_have_their_answers():
    found = rows("questions")
    german = dict(SPLITS["valid"])
    assert [id for id, *_ in found] == [f"synthetic-valid-{n}" for n in range(len(german))]
    for _, question, context, answers in found:
        for text, start in answers:
            assert text == german[question] and context[start:].startswith(text)
            assert context[:start].endswith(f"{question} = ")
        assert len(answers) <= 1 and (answers or question not in context)
        assert context.count(" = ") == exercises.PAGE
    impossible = sum(not answers for *_, answers in found) / len(found)
    assert 0.2 < impossible < 0.3
    places = collections.Counter(
        context[: at[0][1]].count(" = ") for _, _, context, at in found if at
    )
    assert places.keys() == {1, 2, 3} and min(places.values()) > 200, "anywhere on the page"


def test_tags():
    pairs = [("Knives lie behind Anna's old house in Rome.", ""), ("Is the cat sweet?", "")]
    (knives, tags), (_, cat) = exercises.tagged(pairs, "")
    assert knives == ["Knives", "lie", "behind", "Anna", "'s", "old", "house", "in", "Rome", "."]
    assert " ".join(tags) == "B-thing O O B-person O B-place I-place O B-place O"
    assert cat == ["O", "O", "B-animal", "O", "O"]


def test_tags_are_bio_and_of_nouns():
    counts = collections.Counter()
    for tokens, tags in rows("tagged"):
        assert len(tokens) == len(tags)
        for before, tag, token in zip(["O", *tags], tags, tokens, strict=False):
            assert tag in exercises.TAGS
            assert not tag.startswith("I-") or before == f"B-{tag[2:]}"
            assert tag == "O" or token not in ("the", "The", "is", ".", ",")
        counts.update(tags)
    assert counts.keys() == set(exercises.TAGS)
    assert not exercises.kinds().keys() & ADJECTIVES.keys()


def test_a_noun_is_no_form_of_a_verb():
    """So that a tag can be told by the word."""
    verbs = " ".join(verb for verb in VERBS if " " not in verb)
    assert not exercises.kinds().keys() & exercises.forms(verbs)


def test_choices():
    german, places = dict(SPLITS["valid"]), collections.Counter()
    for english, choices, label in rows("choices"):
        assert len(set(choices)) == exercises.CHOICES and choices[label] == german[english]
        places[label] += 1
    assert places.keys() == set(range(exercises.CHOICES)) and min(places.values()) > 200


def test_what_is_made_of_train_is_capped(monkeypatch):
    monkeypatch.setattr(exercises, "MOST", 30)
    assert len(rows("choices", "train")) == len(rows("questions", "train")) == 30
    (id, question, *_), *_ = rows("questions", "train")
    assert id == "synthetic-train-0" and question in dict(SPLITS["train"])
