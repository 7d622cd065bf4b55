"""Distillation: the three losses by their formulas, which tokens, which layers."""

from math import ceil, sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfx.data import examples as data
from tfx.data import vocabulary
from tfx.data.sources import Corpus
from tfx.nn.linear import Product
from tfx.objectives import distill
from tfx.objectives.inputs import Special, frame

SPECIAL = Special(pad=0, cls=1, sep=2, mask=3)
VOCAB = 40
EVEN = distill.token_weights(np.ones(VOCAB), SPECIAL)


def row(size):
    return frame("bert", SPECIAL, np.arange(10, 10 + size))


def test_rare_tokens_are_likelier():
    weights = distill.token_weights(np.array([5, 9, 9, 9, 0, 1, 100]), SPECIAL)
    np.testing.assert_allclose(weights, [0, 0, 0, 0, 1, 1, 100**-0.7])
    # One of two tokens is chosen: ceil(0.15 * 4) of the row.
    weights = distill.token_weights(np.array([1] * 10 + [1, 20] + [1] * 28), SPECIAL)
    rng, trials = np.random.default_rng(0), 4000
    made = [
        distill.make_example(row(2), rng, special=SPECIAL, weights=weights) for _ in range(trials)
    ]
    rare, chance = sum(x["weights"][1] for x in made), 1 / (1 + 20**-0.7)
    assert all(x["weights"].sum() == 1 for x in made)
    assert abs(rare - trials * chance) < 4 * sqrt(trials * chance * (1 - chance))


@pytest.mark.parametrize("size", [0, 1, 5, 30])
def test_a_share_of_the_tokens_is_masked(size):
    before, places = row(size), set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        made = distill.make_example(before, rng, special=SPECIAL, weights=EVEN)
        assert made["weights"].sum() == min(ceil(0.15 * (size + 2)), size)
        places.add(tuple(np.flatnonzero(made["weights"])))
        assert (made["targets"] == before["ids"]).all()
        assert (made["ids"] == before["ids"])[made["weights"] == 0].all()
        assert not made["weights"][np.isin(before["ids"], SPECIAL.ids)].any()
    assert len(places) > 1 or size < 2


def test_determinism():
    def make(seed):
        rng = np.random.default_rng(seed)
        return distill.make_example(row(30), rng, special=SPECIAL, weights=EVEN)["ids"].tolist()

    assert make(1) == make(1) != make(2)


# The loss.

RANDOM = np.random.default_rng(0)
draw = lambda *shape: RANDOM.normal(size=shape).astype(np.float32)
STUDENT, TEACHER = (draw(2, 4, 3), draw(7, 3)), (draw(2, 4, 5), draw(7, 5))
STATES_BTD, WANTED_BTD = draw(2, 4, 6), draw(2, 4, 6)
BATCH = {
    "mask": np.array([[1, 1, 1, 1], [1, 1, 0, 0]]),
    "targets": np.array([[1, 2, 3, 4], [5, 6, 0, 0]]),
    "weights": np.float32([[0, 1, 0, 1], [1, 0, 0, 0]]),
}


def run(student, states, teacher, wanted, **settings):
    outputs = lambda factors, states: {"logits": Product(*factors), "states": states}
    theirs = lambda batch: outputs(teacher, wanted)
    apply = lambda *_, **__: outputs(student, states)
    return distill.loss(apply, None, BATCH, None, True, teacher=theirs, **settings)


def means(masked_only=False):
    """Each loss as the mean that it is, one formula a line."""
    mask, masked = BATCH["mask"] > 0, BATCH["weights"] > 0
    mine, theirs = (states @ table.T for states, table in (STUDENT, TEACHER))
    log = lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True))
    p, q = log(theirs / 2), log(mine / 2)
    divergence = (np.exp(p) * (p - q)).sum(-1)[masked if masked_only else mask].mean() * 4
    nll = -np.take_along_axis(log(mine), BATCH["targets"][..., None], -1)[..., 0][masked].mean()
    norm = lambda x: np.linalg.norm(x, axis=-1)
    cosine = (STATES_BTD * WANTED_BTD).sum(-1) / norm(STATES_BTD) / norm(WANTED_BTD)
    return divergence, nll, 1 - cosine[mask].mean()


@pytest.mark.parametrize("masked_only", [False, True])
def test_five_two_one(masked_only):
    total, weight, sums = run(STUDENT, STATES_BTD, TEACHER, WANTED_BTD, masked_only=masked_only)
    divergence, nll, cosine = means(masked_only)
    np.testing.assert_allclose(total / weight, 5 * divergence + 2 * nll + cosine, rtol=1e-5)
    assert weight == 6 and sums["masked"] == 3
    np.testing.assert_allclose(sums["nll"], 3 * nll, rtol=1e-5)
    np.testing.assert_allclose(
        sums["divergence"], (3 if masked_only else 6) * divergence, rtol=1e-5
    )
    np.testing.assert_allclose(sums["cosine"], 6 * cosine, rtol=1e-5)


def test_states_of_other_widths_can_be_left_out():
    narrow = STATES_BTD[..., :2]
    total, weight, _ = run(STUDENT, narrow, TEACHER, WANTED_BTD, cosine=0)
    divergence, nll, _ = means()
    np.testing.assert_allclose(total / weight, 5 * divergence + 2 * nll, rtol=1e-5)


def test_the_student_alone_learns_and_from_tokens_alone():
    arguments = jax.tree.map(jnp.asarray, (STUDENT, STATES_BTD, TEACHER, WANTED_BTD))
    gradients = jax.grad(lambda *x: run(*x)[0], (0, 1, 2, 3))(*arguments)
    assert not any(g.any() for g in jax.tree.leaves(gradients[2:]))
    for gradient in (gradients[0][0], gradients[1]):
        assert ((np.abs(gradient).sum(-1) > 0) == BATCH["mask"]).all()


def test_a_student_like_its_teacher_loses_nothing_but_the_masked_tokens():
    total, _, sums = run(TEACHER, WANTED_BTD, TEACHER, WANTED_BTD)
    np.testing.assert_allclose([sums["divergence"], sums["cosine"]], 0, atol=1e-5)
    np.testing.assert_allclose(total, 2 * sums["nll"] * 6 / 3, rtol=1e-5)


# The start.


def test_layers_of_the_authors():
    assert distill.student_layers(12, 6) == [0, 2, 4, 7, 9, 11]
    assert distill.student_layers(12, 1) == [0] and distill.student_layers(6, 3) == [0, 3, 5]
    for teacher in range(1, 30):
        for student in range(1, teacher + 1):
            layers = distill.student_layers(teacher, student)
            assert len({*layers}) == student and layers == sorted(layers) and layers[0] == 0
            assert student == 1 or layers[-1] == teacher - 1
    for student in (0, 5):
        with pytest.raises(ValueError, match="of a teacher of 4"):
            distill.student_layers(4, student)


# Examples of a data set.

LINES = ["a a a a b", "a a c a a a"] * 12
BERT = vocabulary.learn("bert", 8, LINES)


def of_data(folder, epoch=0, train=True, teacher="there", **settings):
    corpus = Corpus("toy", lambda: iter([(LINES,)]), 1.0, "", "")
    given = data.Given([corpus], BERT, folder, train, 18, 64)
    found = distill.examples(distill.Config(teacher, **settings), given)
    numbers = np.arange(len(found.lengths[0]))
    return found, found.make(numbers, data.Draw(0, epoch, 0, numbers, (18,)))


@pytest.mark.parametrize("rate", [0.15, 0.5])
def test_blocks_keep_their_text_as_targets(tmp_path, rate):
    stream = [id for ids in BERT.encode(LINES) for id in (BERT.special["sep"], *ids)]
    found, made = of_data(tmp_path, rate=rate)
    for row in made:
        assert row["weights"].sum() == ceil(rate * 18) and len(row["ids"]) == 18
        text = row["targets"][1:-1].tolist()
        assert any(stream[n : n + 16] == text for n in range(len(stream)))
        assert (row["ids"] == row["targets"])[row["weights"] == 0].all()
    assert (found.lengths[0] == 18).all() and found.axes["weights"] == "T"


def test_rare_words_of_the_text_are_masked_more_often(tmp_path, monkeypatch):
    monkeypatch.setattr(distill, "SLICE", 10)  # all are counted, however many at a time
    rare = {BERT.encode([word])[0][0] for word in "bc"}
    masked, there = np.zeros(2), np.zeros(2)
    for epoch in range(40):
        for row in of_data(tmp_path, epoch)[1]:
            is_rare = np.isin(row["targets"], [*rare])
            often = row["targets"] == BERT.encode(["a"])[0][0]
            there += [is_rare.sum(), often.sum()]
            masked += [row["weights"][is_rare].sum(), row["weights"][often].sum()]
    assert masked[0] / there[0] > 2 * masked[1] / there[1]


def test_what_a_loss_is_without_its_teacher():
    apply = lambda *_, **__: {"logits": Product(*STUDENT), "states": STATES_BTD}
    total, weight, sums = distill.loss(apply, None, BATCH, None, False)
    np.testing.assert_allclose(total / weight, means()[1], rtol=1e-5)
    assert weight == 3 and sums.keys() == {"nll", "masked"}


def test_a_teacher_is_named(tmp_path):
    with pytest.raises(ValueError, match=r'objective\.teacher = "": name a workdir, or a folder'):
        of_data(tmp_path, teacher="")
