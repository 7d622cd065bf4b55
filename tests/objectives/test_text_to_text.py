"""Tasks as text: prefixes, the words of labels, and the ids that an encoder-decoder is fed."""

import numpy as np
import pytest

from tfx.data import examples as data
from tfx.data import vocabulary
from tfx.data.sources import Corpus
from tfx.objectives import seq2seq, text_to_text
from tfx.objectives.inputs import Special

SPECIAL = Special(pad=0, eos=1)


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


# Examples of a data set.

T5 = vocabulary.learn("t5", 116, ["alpha beta gamma delta"] * 9)


def corpus(rows, size=2):
    chunks = [rows[n : n + size] for n in range(0, len(rows), size)]
    each = lambda: (tuple(map(list, zip(*chunk, strict=True))) for chunk in chunks)
    return Corpus("toy", each, 1.0, "", repr(rows))


def of_data(folder, rows, **settings):
    config = text_to_text.Config(**settings)
    corpora = text_to_text.read(config, [corpus(rows)])
    given = data.Given(corpora, T5, folder, False, 32, 512)
    found = text_to_text.examples(config, given)
    numbers = np.arange(len(found.lengths[0]))
    return found, found.make(numbers, data.Draw(0, 0, 0, numbers, (32,)))


def test_a_prefix_stands_before_every_source_that_is_not_blank(tmp_path):
    _, made = of_data(tmp_path, [("alpha", "beta"), (" ", "x"), ("beta", "y")], prefix="gamma: ")
    end = T5.special["eos"]
    wanted = [[*ids, end] for ids in T5.encode(["gamma: alpha", " ", "gamma: beta"])]
    assert [row["source"].tolist() for row in made] == wanted
    targets = [[*ids, end] for ids in T5.encode(["beta", "x", "y"])]
    assert [row["target_out"].tolist() for row in made] == targets
    assert all(row["target_in"][0] == T5.special["pad"] for row in made)


def test_labels_become_their_words(tmp_path):
    rows = [("alpha", "0"), ("beta", "1"), ("gamma", "beta")]
    _, made = of_data(tmp_path, rows, labels="alpha,beta")
    said = T5.decode([row["target_out"].tolist() for row in made])
    assert said == ["alpha", "beta", "beta"]


def test_other_prefixes_and_labels_are_other_data(tmp_path):
    rows = [("alpha", "0"), ("beta", "1")]
    settings = ({"labels": "a,b"}, {"labels": "a,c"}, {"labels": "a,b", "prefix": "x "})
    assert len({of_data(tmp_path, rows, **each)[0].fingerprint for each in settings}) == 3


@pytest.mark.parametrize("label", ["2", "-1", "gamma", ""])
def test_a_wrong_label_is_told_with_its_row(tmp_path, label):
    rows = [("alpha", "0")] * 4 + [("beta", label)]
    for _ in range(2):  # the count begins anew
        with pytest.raises(
            ValueError, match=rf'^toy: row 5: label "{label}" is none of objective\.lab'
        ):
            of_data(tmp_path, rows, labels="alpha,beta")
