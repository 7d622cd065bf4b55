"""What translation feeds, what it predicts, and that it counts and sums."""

import jax.numpy as jnp
import numpy as np
import pytest

from tfx.nn.linear import Product
from tfx.nn.losses import cross_entropy
from tfx.objectives import OBJECTIVES, seq2seq


@pytest.mark.parametrize(
    "source, target, example",
    [
        ([5, 6, 7], [8, 9], ([5, 6, 7, 1], [3, 8, 9], [8, 9, 1])),
        ([5], [4], ([5, 1], [3, 4], [4, 1])),
        ([], [], ([1], [3], [1])),
    ],
)
def test_both_sides_end_and_the_target_begins(source, target, example):
    made = seq2seq.make_example(np.array(source, np.int32), np.array(target, np.int32))
    assert list(made) == ["source", "target_in", "target_out"]
    assert all(x.dtype.kind == "i" for x in made.values())
    assert tuple(x.tolist() for x in made.values()) == example


STATES_BTD, TABLE_VD = (np.random.default_rng(0).normal(size=n) for n in ((2, 3, 4), (7, 4)))
BATCH = {
    "target_out": np.array([[4, 5, 1], [6, 1, 0]]),
    "weights": np.array([[1, 1, 1], [1, 1, 0]], np.float32),
}
SETTINGS = dict(label_smoothing=0.1, smoothing="tensor2tensor", z_loss=1e-3)


@pytest.mark.parametrize("train, rate, z_loss", [(True, 0.1, 1e-3), (False, 0.0, 0.0)])
def test_returns_sums_and_regularises_while_training_only(train, rate, z_loss):
    calls = []

    def apply(params, batch, *, rngs, train):
        calls.append((params, batch is BATCH, rngs, train))
        return {"logits": Product(jnp.asarray(STATES_BTD), jnp.asarray(TABLE_VD))}

    total, weight, metrics = seq2seq.loss(apply, "params", BATCH, "rngs", train, **SETTINGS)
    assert calls == [("params", True, "rngs", train)]
    rest = BATCH["target_out"], BATCH["weights"], rate, "tensor2tensor", z_loss
    assert weight == 5 and set(metrics) == {"nll"}
    want = cross_entropy(jnp.asarray(STATES_BTD), jnp.asarray(TABLE_VD), *rest)
    np.testing.assert_allclose([total, metrics["nll"]], want, rtol=1e-6)


def test_is_found_by_its_name():
    assert OBJECTIVES["seq2seq"] is seq2seq
