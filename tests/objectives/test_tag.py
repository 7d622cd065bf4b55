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
    assert tag.spread([4, 5], [-1, 0, 0, 1, -1]) == [NO, 4, NO, 5, NO]
    assert tag.spread([], [-1, -1]) == [NO, NO]


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


def of_data(folder, rows, vocab=BERT, train=False, length=24, classes=3, labels="O,A,B"):
    corpus = Corpus("toy", lambda: iter([tuple(map(list, zip(*rows, strict=True)))]), 1.0, "", "")
    given = data.Given([corpus], vocab, folder, train, length, 64, classes=classes)
    found = tag.examples(tag.Config(labels), given)
    numbers = np.arange(len(found.lengths[0]))
    return found, found.make(numbers, data.Draw(0, 0, 0, numbers, length))


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
    with pytest.raises(ValueError, match=r"^row 2 has \d+ tokens, data\.max_length is 24; raise"):
        of_data(tmp_path, rows)


@pytest.mark.parametrize(
    "row, settings, match",
    [
        ((["a", "b"], ["O"]), {}, "^row 2: 2 words, 1 tags; mend it"),
        ((["a"], ["C"]), {}, '^row 2: label "C" is none of objective.labels = "O,A,B"'),
        ((["a"], ["-1"]), {"labels": ""}, r"^row 2: label -1 is not one of the 3 classes 0\.\.2"),
    ],
)
def test_a_wrong_row_is_told_by_its_number(tmp_path, row, settings, match):
    good = (["a"], ["0" if settings else "O"])
    for train in (True, False):
        with pytest.raises(ValueError, match=match):
            of_data(tmp_path, [good, row], train=train, **settings)
