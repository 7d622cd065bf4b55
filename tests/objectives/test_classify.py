"""Classification: labels are checked, and what is counted is rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
