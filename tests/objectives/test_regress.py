"""Regression: squared errors of rows, summed."""

import jax.numpy as jnp
import numpy as np
import pytest

from tfx.data import examples as data
from tfx.data import vocabulary
from tfx.data.sources import Corpus
from tfx.objectives import regress


def test_sums_over_rows_that_hold_a_token():
    batch = {"mask": np.array([[1, 1], [1, 0], [0, 0]]), "value": np.float32([1.5, -1, 7])}
    apply = lambda *_, **__: {"logits": jnp.array([[1.0], [2.0], [0.0]])}
    total, weight, sums = regress.loss(apply, None, batch, None, True)
    assert (total, weight, sums["absolute_error"]) == (0.25 + 9, 2, 3.5)


def test_a_value_is_a_number():
    assert regress.make_example({"ids": [1]}, value=3)["value"].dtype == np.float32
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="no number"):
            regress.make_example({}, value=value)


# Examples of a data set.

BERT = vocabulary.learn("bert", 8, ["a b c a b c"])


def of_data(folder, rows, classes=1):
    corpus = Corpus("toy", lambda: iter([tuple(map(list, zip(*rows, strict=True)))]), 1.0, "", "")
    given = data.Given([corpus], BERT, folder, True, 8, 64, classes=classes)
    found = regress.examples(regress.Config(), given)
    numbers = np.arange(len(found.lengths[0]))
    return found.make(numbers, data.Draw(0, 0, 0, numbers, (8,)))


def test_rows_and_their_numbers(tmp_path):
    made = of_data(tmp_path, [("a", "b c", "3.25"), ("b", "c", -2), ("c", "a", "1e-3")])
    assert [row["value"] for row in made] == [np.float32(x) for x in (3.25, -2, 1e-3)]
    assert made[0]["types"].tolist() == [0, 0, 0, 1, 1, 1]


def test_what_is_no_number_is_told_with_its_row(tmp_path):
    for label in ("good", "nan", "inf", None):
        with pytest.raises(
            ValueError, match=rf'^toy: row 2: "{label}" is no number to learn; correct'
        ):
            of_data(tmp_path, [("a", "1"), ("b", label)])
    with pytest.raises(ValueError, match=r"model\.classes = 2: a regression has one output; set 1"):
        of_data(tmp_path, [("a", "1")], classes=2)
