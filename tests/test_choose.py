"""The choices of tfx/choose.py against sorting."""

import functools

import jax
import numpy as np
import pytest

from tfx import choose
from tfx.choose import DEAD

# What these tests cost is compiling: no optimisation.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.parametrize("vocab", [5, 128, 1000])
def test_best_is_lax_top_k_ties_included(vocab):
    rng = np.random.default_rng(vocab)
    logits_BWV = rng.integers(-3, 4, (12, 3, vocab)).astype(np.float32)  # most values are ties
    offsets_BW = rng.integers(-2, 2, (12, 3)).astype(np.float32)
    logits_BWV[:9] = rng.normal(size=(9, 3, vocab))
    logits_BWV[:9, :, [0, 3]] = 50  # must not draw attention to their block
    logits_BWV[10, 1], offsets_BW[11, 0] = np.nan, np.nan
    best = jit(choose.best, static_argnums=2)
    scores_BC, beams_BC, ids_BC = map(np.asarray, best(logits_BWV, offsets_BW, 6))
    flat_BWV = logits_BWV + offsets_BW[..., None]
    flat_BWV[..., [0, 3]] = DEAD
    flat_BWV[np.isnan(flat_BWV)] = DEAD
    expected_BC, places_BC = jax.lax.top_k(flat_BWV.reshape(12, -1), 6)
    np.testing.assert_array_equal(scores_BC, expected_BC)
    alive_BC = expected_BC > DEAD
    np.testing.assert_array_equal((beams_BC * vocab + ids_BC)[alive_BC], places_BC[alive_BC])
    assert (ids_BC[~alive_BC] == choose.NONE).all()


def test_normaliser_is_logsumexp():
    logits_BWV = np.random.default_rng(0).normal(size=(2, 3, 300)).astype(np.float32) * 30
    logits_BWV[0, 0, :290] = DEAD
    peak_BW = logits_BWV.max(-1)
    expected_BW = peak_BW + np.log(np.exp(logits_BWV - peak_BW[..., None]).sum(-1))
    np.testing.assert_allclose(jit(choose.normaliser)(logits_BWV), expected_BW, rtol=1e-6)


def test_largest_finds_the_border_exactly():
    """By count, as for top-k, and by share, as for top-p; against sorting."""
    p_BWV = np.random.default_rng(0).uniform(size=(2, 3, 200)).astype(np.float32) ** 9
    p_BWV /= p_BWV.max(-1, keepdims=True)
    sorted_BWV = np.sort(p_BWV)[..., ::-1]
    largest = jit(choose.largest)
    for k in (1, 7, 199, 200, 500):
        kept_BWV = largest(p_BWV, np.ones_like(p_BWV), np.full((2, 3), k, np.float32))
        np.testing.assert_array_equal(kept_BWV, p_BWV >= sorted_BWV[..., [min(k, 200) - 1]])
    for share in (0.1, 0.5, 0.9, 0.999):
        need_BW = share * p_BWV.sum(-1)
        count_BW = (np.cumsum(sorted_BWV, axis=-1) < need_BW[..., None]).sum(-1) + 1
        np.testing.assert_array_equal(largest(p_BWV, p_BWV, need_BW).sum(-1), count_BW)
