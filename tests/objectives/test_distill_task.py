"""Distillation of a classifier: half labels, half teacher."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfx.objectives import classify, distill_task

MINE, THEIRS = (np.random.default_rng(n).normal(size=(3, 4)).astype(np.float32) for n in (0, 1))
BATCH = {"mask": np.array([[1, 1], [1, 0], [0, 0]]), "label": np.array([2, 1, 0])}


def run(mine, theirs, **settings):
    apply = lambda *_, **__: {"logits": mine}
    teacher = lambda batch: {"logits": theirs}
    return distill_task.loss(apply, None, BATCH, None, True, teacher=teacher, **settings)


def test_both_losses_by_their_formulas():
    log = lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True))
    p, q = log(THEIRS / 2), log(MINE / 2)
    divergence = 4 * (np.exp(p) * (p - q))[:2].sum()
    nll = -log(MINE)[[0, 1], [2, 1]].sum()
    total, weight, sums = run(MINE, THEIRS)
    np.testing.assert_allclose(total, 0.5 * nll + 0.5 * divergence, rtol=1e-5)
    np.testing.assert_allclose([sums["nll"], sums["divergence"]], [nll, divergence], rtol=1e-5)
    assert weight == 2 and distill_task.make_example is classify.make_example


def test_the_student_alone_learns_and_from_rows_with_tokens_alone():
    arguments = jnp.asarray(MINE), jnp.asarray(THEIRS)
    mine, theirs = jax.grad(lambda *x: run(*x, soft=1.0)[0], (0, 1))(*arguments)
    assert not theirs.any() and mine[:2].any(-1).all() and not mine[2].any()


def test_a_teacher_of_other_classes_is_refused():
    teacher = lambda classes, head="classify": SimpleNamespace(classes=classes, head=head)
    with pytest.raises(ValueError, match="tells 3 classes apart, the model 4; name a classifier"):
        distill_task.check(None, SimpleNamespace(classes=4), teacher(3))
    distill_task.check(None, SimpleNamespace(classes=3), teacher(3))
    with pytest.raises(ValueError, match="tells 0 classes apart"):
        distill_task.check(None, SimpleNamespace(classes=3), teacher(3, head="mlm"))
