"""Multiple choice: a softmax over the choices there are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfx.data import examples as data
from tfx.data import vocabulary
from tfx.data.sources import Corpus
from tfx.objectives import multiple_choice
from tfx.objectives.inputs import Special, frame

SPECIAL = Special(cls=2, sep=3)
CHOICES = [frame("bert", SPECIAL, [9], ending) for ending in ([5], [6, 7], [])]


def test_choices_are_rows_of_one_length():
    made = multiple_choice.make_example(CHOICES, label=1)
    assert made["ids"].tolist() == [
        [2, 9, 3, 5, 3, 0],
        [2, 9, 3, 6, 7, 3],
        [2, 9, 3, 3, 0, 0],
    ]
    assert made["mask"].sum(-1).tolist() == [5, 6, 4] and made["types"][1].tolist()[3:] == [1] * 3
    for label in (-1, 3):
        with pytest.raises(ValueError, match=r"0\.\.2"):
            multiple_choice.make_example(CHOICES, label=label)


def test_missing_choices_and_rows_count_for_nothing():
    mask_BCT = np.ones((3, 3, 2), int)
    mask_BCT[1, 2] = mask_BCT[2] = 0
    batch = {"mask": mask_BCT, "label": np.array([2, 1, 0])}
    logits_BC = jnp.array([[0.0, 0, 1], [0, 0, 50], [1, 2, 3]])

    def run(logits):
        return multiple_choice.loss(lambda *_, **__: {"logits": logits}, None, batch, None, False)

    total, weight, sums = run(logits_BC)
    np.testing.assert_allclose(total, np.log(2 + np.e) - 1 + np.log(2), rtol=1e-6)
    assert weight == 2 and sums["accuracy"] == 1 and sums["nll"] == total
    gradient = jax.grad(lambda logits: run(logits)[0])(logits_BC)
    assert np.isfinite(gradient).all()
    assert gradient[0].all() and gradient[1, :2].all()
    assert not gradient[1, 2] and not gradient[2].any()


# Examples of a data set.

WORDS = ["alpha", "beta", "gamma", "delta"]
BERT, ROBERTA, GPT2, XLNET = (
    vocabulary.learn(*each, [" ".join(WORDS)] * 9)
    for each in (("bert", 24), ("roberta", 265), ("gpt2", 260), ("xlnet", 22))
)


def of_data(folder, *rows, vocab=BERT, train=False, length=20, **more):
    corpus = Corpus("toy", lambda: iter([tuple(map(list, zip(*rows, strict=True)))]), 1.0, "", "")
    given = data.Given([corpus], vocab, folder, train, length, 64, **more)
    found = multiple_choice.examples(multiple_choice.Config(), given)
    numbers = np.arange(len(found.lengths[0]))
    return found, found.make(numbers, data.Draw(0, 0, 0, numbers, (length,)))


ROWS = [
    ("alpha", ["beta", "gamma delta", "alpha"], 1),
    ("beta gamma", ["alpha", "beta", "delta"], "2"),
]


@pytest.mark.parametrize("vocab", [BERT, ROBERTA, GPT2, XLNET], ids=lambda v: v.family)
def test_each_choice_is_framed_with_the_text(tmp_path, vocab):
    found, made = of_data(tmp_path, *ROWS, vocab=vocab)
    assert found.sizes(20) == {"C": 3} and set(found.axes.values()) == {"CT", ""}
    for row, example, length in zip(ROWS, made, found.lengths[0], strict=True):
        text, choices, label = row
        assert example["label"] == int(label) and example["ids"].shape == (3, length)
        for n, choice in enumerate(choices):
            ids = vocab.pair(*vocab.encode([text, choice]))[0]
            assert example["ids"][n][: len(ids)].tolist() == ids
            assert example["mask"][n].sum() == len(ids)


def test_rows_that_do_not_fit(tmp_path):
    long = ("alpha", ["beta", "gamma " * 9, "x"], 0)
    found, _ = of_data(tmp_path, ROWS[0], long, train=True)
    (part,) = found.parts
    assert (part.kept, part.too_long) == (1, 1)
    with pytest.raises(ValueError, match=r"^toy: row 2: \d+ tokens, data\.max_length is 20; raise"):
        of_data(tmp_path, ROWS[0], long)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("text, choice", [("alpha", "gamma " * 9), ("gamma " * 9, "beta")])
def test_what_is_long_can_be_cut(tmp_path, train, text, choice):
    row = (text, ["beta", choice, "x"], 1)
    found, (_, made) = of_data(tmp_path, ROWS[0], row, train=train, truncate=True)
    (part,) = found.parts
    assert (part.kept, part.too_long, made["label"], found.lengths[0][1]) == (2, 1, 1, 20)
    [first], [short, longest, _] = BERT.encode([text]), BERT.encode(row[1])
    pair = lambda other: BERT.pair(*data.cut(first, longest, 17)[:1], other)[0]
    for ids, wanted in zip(made["ids"], (short, data.cut(first, longest, 17)[1]), strict=False):
        assert ids[: len(pair(wanted))].tolist() == pair(wanted)
    assert made["mask"].sum(-1).max() == 20


@pytest.mark.parametrize(
    "row, match",
    [
        (("alpha", ["a", "b", "c"], 3), r"^toy: row 2: label 3 is not one of the 3 classes 0\.\.2"),
        (("alpha", ["a", "b", "c"], "-1"), "^toy: row 2: label -1 is not"),
        (("alpha", ["a", "b", "c"], "a"), "^toy: row 2: label 'a' is not"),
        (("alpha", ["a", "b"], 0), "rows have 2 to 3 choices; give all as many"),
    ],
)
def test_a_wrong_row_is_refused(tmp_path, row, match):
    with pytest.raises(ValueError, match=match):
        of_data(tmp_path, ROWS[0], row, train=True)
