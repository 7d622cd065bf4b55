"""Tasks as text: the strings of the paper, and the ids that an encoder-decoder is fed."""

import numpy as np
import pytest

from tfx.objectives import seq2seq, text_to_text
from tfx.objectives.inputs import Special

SPECIAL = Special(pad=0, eos=1)


@pytest.mark.parametrize(
    "task, fields, text",
    [
        ("sst2", {"sentence": "a { gem }"}, "sst2 sentence: a { gem }"),
        ("rte", {"sentence1": "A.", "sentence2": "B."}, "rte sentence1: A. sentence2: B."),
        ("mnli", {"premise": "P", "hypothesis": "H"}, "mnli hypothesis: H premise: P"),
        ("squad", {"question": "Who?", "context": "Us."}, "question: Who? context: Us."),
        ("summarize", {"text": "long"}, "summarize: long"),
        (
            "translate",
            {"source_language": "English", "target_language": "German", "text": "Good."},
            "translate English to German: Good.",
        ),
    ],
)
def test_sources_are_those_of_the_paper(task, fields, text):
    assert text_to_text.source(task, **fields) == text


def test_what_is_not_there_is_said():
    with pytest.raises(ValueError, match="'sst2' has no 'sentence'; its fields are text"):
        text_to_text.source("sst2", text="a")
    with pytest.raises(ValueError, match=r"'sst3'.*sst2"):
        text_to_text.source("sst3")


@pytest.mark.parametrize(
    "value, text",
    [(0, "0.0"), (2.57, "2.6"), (3.8, "3.8"), (5.0, "5.0"), (2.75, "2.8"), (0.09, "0.0")],
)
def test_similarities_are_rounded_to_a_fifth(value, text):
    assert text_to_text.number(value) == text


def test_similarities_make_26_classes():
    assert len({text_to_text.number(x) for x in np.linspace(0, 5, 1001)}) == 26


@pytest.mark.parametrize("task", [n for n, task in text_to_text.TASKS.items() if task.labels])
def test_labels_are_found_in_what_is_generated(task):
    for index, word in enumerate(text_to_text.TASKS[task].labels):
        assert text_to_text.label(task, f" {word}") == index
    assert text_to_text.label(task, "hamburger") is None


@pytest.mark.parametrize(
    "source, target, example",
    [
        ([5, 6], [7, 8], ([5, 6, 1], [0, 7, 8], [7, 8, 1])),
        ([], [], ([1], [0], [1])),
    ],
)
def test_the_decoder_starts_from_padding(source, target, example):
    made = text_to_text.make_example(source, target, special=SPECIAL)
    assert list(made) == ["source", "target_in", "target_out"]
    assert tuple(x.tolist() for x in made.values()) == example
    assert all(x.dtype == np.int32 for x in made.values())
    assert text_to_text.loss is seq2seq.loss
