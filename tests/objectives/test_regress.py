"""Regression: squared errors of rows, summed."""

import jax.numpy as jnp
import numpy as np
import pytest

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
