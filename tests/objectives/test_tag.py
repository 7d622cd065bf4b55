"""Token classification: which tokens are scored, and that the others are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
