"""Multiple choice: a softmax over the choices there are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
