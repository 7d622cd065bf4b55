"""Token classification: which tokens are scored, and that the others are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfx.data import examples as data
from tfx.data import vocabulary
from tfx.data.sources import Corpus
from tfx.objectives import tag
from tfx.objectives.inputs import Special, frame

ROW = frame("bert", Special(cls=2, sep=3), [5, 6, 7])
NO = tag.IGNORED


def test_the_first_token_of_a_word_has_its_label():
    assert tag.spread([4, 5, 4], [[7, 8, 9], [7], [8, 8]]) == [4, NO, NO, 5, 4, NO]
    assert tag.spread([], []) == []


def test_ignored_labels_weigh_nothing():
    made = tag.make_example(ROW, labels=[NO, 1, NO, 0, NO], classes=2)
    assert made["targets"].tolist() == [0, 1, 0, 0, 0]
    assert made["weights"].tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    "labels, message",
    [([NO, -1, 0, 0, NO], "-1 is not"), ([0, 2, 0, 0, 0], "2 is not"), ([0], "1 labels for 5")],
)
def test_wrong_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        tag.make_example(ROW, labels=labels, classes=2)


def test_only_scored_tokens_count_and_learn():
    batch = {"targets": np.array([[0, 1, 0]]), "weights": np.array([[0, 1, 1]], np.float32)}
    logits_BTL = jnp.array([[[9.0, 0], [0, 1], [0, 1]]])
    run = lambda logits: tag.loss(lambda *_, **__: {"logits": logits}, None, batch, None, True)
    total, weight, sums = run(logits_BTL)
    np.testing.assert_allclose(total, 2 * np.log(1 + np.e) - 1, rtol=1e-6)
    assert weight == 2 and sums["accuracy"] == 1 and sums["nll"] == total
    gradient = jax.grad(lambda logits: run(logits)[0])(logits_BTL)
    assert not gradient[0, 0].any() and gradient[0, 1:].all()


# Examples of a data set.

WORDS = ["alpha", "beta", "gamma", "delta", "abdelta"]
BERT, ROBERTA, GPT2, XLNET, T5 = (
    vocabulary.learn(*each, [" ".join(WORDS)] * 9)
    for each in (("bert", 28), ("roberta", 265), ("gpt2", 260), ("xlnet", 22), ("t5", 116))
)


def of_data(folder, rows, vocab=BERT, train=False, length=24, classes=3, labels="O,A,B", **more):
    corpus = Corpus("toy", lambda: iter([tuple(map(list, zip(*rows, strict=True)))]), 1.0, "", "")
    given = data.Given([corpus], vocab, folder, train, length, 64, classes=classes, **more)
    found = tag.examples(tag.Config(labels), given)
    numbers = np.arange(len(found.lengths[0]))
    return found, found.make(numbers, data.Draw(0, 0, 0, numbers, (length,)))


TAGGED = (["abdelta", "beta", "gam", "delta"], ["A", "O", "B", "A"])


@pytest.mark.parametrize("vocab", [BERT, ROBERTA, GPT2, XLNET, T5], ids=lambda v: v.family)
def test_labels_are_on_the_first_piece_of_each_word(tmp_path, vocab):
    words, labels = TAGGED
    _, (made, short) = of_data(tmp_path, [TAGGED, (["beta"], ["B"])], vocab, length=40)
    said = vocab.tokens(made["ids"].tolist())
    places = np.flatnonzero(made["weights"])
    assert ["OAB"[n] for n in made["targets"][places]] == labels
    assert not made["targets"][made["weights"] == 0].any() and short["weights"].sum() == 1
    spelled = [piece.removeprefix("##").lstrip("Ġ▁") for piece in said]
    for word, first, last in zip(words, places, [*places[1:], len(said)], strict=True):
        assert "".join(spelled[first:last]).startswith(word)
    # The words are read as they would be in one text.
    assert made["ids"].tolist() == vocab.pair(vocab.encode([" ".join(words)])[0])[0]


def test_rows_that_do_not_fit(tmp_path):
    rows = [(["beta"], ["A"]), (["beta"] * 20, ["O"] * 20), ([], [])]
    found, made = of_data(tmp_path, rows, train=True)
    (part,) = found.parts
    assert len(made) == part.kept == part.too_long == part.empty == 1
    for cut in (False, True):  # every word is to be told
        with pytest.raises(
            ValueError, match=r"^toy: row 2: \d+ tokens, data\.max_length is 24; raise"
        ):
            of_data(tmp_path, rows, truncate=cut)


def test_training_can_cut_what_is_long(tmp_path):
    rows = [(["beta"], ["A"]), (["beta"] * 20, ["B"] * 20)]
    found, (short, made) = of_data(tmp_path, rows, train=True, truncate=True)
    (part,) = found.parts
    assert (part.kept, part.too_long, found.lengths[0].tolist()) == (2, 1, [len(short["ids"]), 24])
    whole = BERT.pair(BERT.encode([" ".join(["beta"] * 20)])[0])[0]
    assert made["ids"].tolist() == [*whole[:23], whole[-1]]
    assert set(made["targets"][made["weights"] > 0].tolist()) == {2} and not made["weights"][-1]


@pytest.mark.parametrize("vocab", [BERT, ROBERTA, GPT2, XLNET, T5], ids=lambda v: v.family)
@pytest.mark.parametrize("train", [True, False])
def test_a_word_that_has_no_piece_is_scored_as_an_unknown_one(tmp_path, vocab, train):
    words, labels = ["", "beta", "\ufffd", "\u200b", "gamma", ""], ["A", "O", "B", "A", "B", "O"]
    _, (made,) = of_data(tmp_path, [(words, labels)], vocab, train, length=60)
    scored = made["weights"] > 0
    assert ["OAB"[n] for n in made["targets"][scored]] == labels
    assert made["ids"][scored][0] == vocab.special["unk"]


def test_a_row_of_many_words_takes_no_longer_a_word():
    """Of twenty times as many words: far less than four hundred times as long."""
    words = [[7, 8]] * 100_000
    assert tag.spread(range(100_000), words)[::2] == [*range(100_000)]


@pytest.mark.parametrize(
    "row, settings, match",
    [
        ((["a", "b"], ["O"]), {}, "^toy: row 2: 2 words, 1 tags; mend it"),
        ((["a"], ["C"]), {}, '^toy: row 2: label "C" is none of objective.labels = "O,A,B"'),
        (
            (["a"], ["-1"]),
            {"labels": ""},
            r"^toy: row 2: label -1 is not one of the 3 classes 0\.\.2",
        ),
    ],
)
def test_a_wrong_row_is_told_by_its_number(tmp_path, row, settings, match):
    good = (["a"], ["0" if settings else "O"])
    for train in (True, False):
        with pytest.raises(ValueError, match=match):
            of_data(tmp_path, [good, row], train=train, **settings)
