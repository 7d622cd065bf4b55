"""Classification: labels are checked, and what is counted is rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfx.data import examples as data
from tfx.data import vocabulary
from tfx.data.sources import Corpus
from tfx.objectives import classify
from tfx.objectives.inputs import Special, frame

ROW = frame("bert", Special(cls=2, sep=3), [5, 6])
LOGITS_BL = np.array([[2.0, 0, 0], [0, 1, 3], [9, 9, 9]], np.float32)
BATCH = {"mask": np.array([[1, 1], [1, 0], [0, 0]]), "label": np.array([0, 1, 0])}


@pytest.mark.parametrize("label", [0, 2, np.int64(1), True])
def test_a_row_and_its_class(label):
    made = classify.make_example(ROW, label=label, classes=3)
    assert list(made) == ["ids", "mask", "types", "label"] and made["label"] == label


@pytest.mark.parametrize("label", [-1, 3, 1.0, "1", None])
def test_a_label_out_of_range_is_refused(label):
    with pytest.raises(ValueError, match=r"label .* is not one of the 3 classes 0\.\.2"):
        classify.make_example(ROW, label=label, classes=3)


def run(logits_BL, batch=BATCH):
    return classify.loss(lambda *_, **__: {"logits": logits_BL}, None, batch, None, True)


def test_sums_over_rows_that_hold_a_token():
    total, weight, sums = run(jnp.asarray(LOGITS_BL))
    nll = [np.log(np.exp(x).sum()) - x[n] for x, n in zip(LOGITS_BL, (0, 1), strict=False)]
    np.testing.assert_allclose(total, sum(nll), rtol=1e-6)
    assert weight == 2 and sums["nll"] == total and sums["accuracy"] == 1


def test_a_row_of_filling_moves_nothing():
    gradient = jax.grad(lambda logits_BL: run(logits_BL)[0])(LOGITS_BL)
    assert not gradient[2].any() and gradient[:2].all()


# Examples of a data set.

BERT = vocabulary.learn("bert", 8, ["a b c a b c"])
IDS = {word: BERT.encode([word])[0][0] for word in "abc"}


def of_data(folder, rows, labels="", classes=2, train=False, length=8, **more):
    corpus = Corpus("toy", lambda: iter([tuple(map(list, zip(*rows, strict=True)))]), 1.0, "", "")
    given = data.Given([corpus], BERT, folder, train, length, 64, classes=classes, **more)
    found = classify.examples(classify.Config(labels), given)
    numbers = np.arange(len(found.lengths[0]))
    return found, found.make(numbers, data.Draw(0, 0, 0, numbers, (length,)))


@pytest.mark.parametrize(
    "labels, given",
    [("", ["0", 1]), ("no,yes", ["no", "yes"]), ("no,yes", ["0", 1]), ("1,0", "10")],
)
def test_labels_are_names_or_numbers(tmp_path, labels, given):
    found, made = of_data(tmp_path, [("a b", given[0]), ("c", given[1])], labels)
    assert [int(row["label"]) for row in made] == [0, 1]
    a, b, c = (IDS[word] for word in "abc")
    cls, sep = BERT.special["cls"], BERT.special["sep"]
    assert [row["ids"].tolist() for row in made] == [[cls, a, b, sep], [cls, c, sep]]
    assert found.lengths[0].tolist() == [4, 3] and found.axes["label"] == ""


def test_two_texts_have_types(tmp_path):
    _, (row,) = of_data(tmp_path, [("a b", "c", "1")])
    assert row["types"].tolist() == [0, 0, 0, 0, 1, 1] and row["label"] == 1


@pytest.mark.parametrize(
    "label, labels, match",
    [
        ("2", "", r"^toy: row 2: label 2 is not one of the 2 classes 0\.\.1; map the labels"),
        ("-1", "", "^toy: row 2: label -1 is not"),
        ("--1", "", "^toy: row 2: label '--1' is not"),
        (0.5, "", r"^toy: row 2: label 0\.5 is not"),
        ("maybe", "no,yes", '^toy: row 2: label "maybe" is none of objective.labels = "no,yes"'),
        (2, "no,yes", "^toy: row 2: label 2 is not"),
        ("0", "a,b,c", "objective.labels has 3 names, model.classes = 2; set one after"),
    ],
)
def test_a_wrong_label_is_told_with_its_row(tmp_path, label, labels, match):
    for train in (True, False):
        with pytest.raises(ValueError, match=match):
            of_data(tmp_path, [("a", "no" if labels else "0"), ("b", label)], labels, train=train)
