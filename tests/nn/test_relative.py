"""Scores are the papers' sum, written out; distances alone matter; any stack may have them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tfx import models
from tfx.models import bert, transformer
from tfx.nn.kernels import Visible
from tfx.nn.position import sinusoid
from tfx.nn.relative import Related, RelativeAttention, encodings, shift

RANDOM = np.random.default_rng(0)
ROWS, QUERIES, KEYS, WIDTH, HEADS, HEAD = 2, 3, 5, 8, 2, 3


def normal(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def attention():
    """Attention that tells segments apart, and random parameters of it."""
    module = RelativeAttention(HEADS, HEAD, HEAD, bias=False, segments=True)
    run = lambda module, x_BTD, y_BSD, mask: module(x_BTD, module.keys_values(y_BSD), mask)
    call = jax.jit(lambda params, *inputs: module.apply(params, *inputs, method=run))
    x_BTD = normal(1, 2, WIDTH)
    shapes = jax.eval_shape(lambda key: module.init(key, x_BTD, x_BTD, None, method=run), key())
    return call, jax.tree.map(lambda s: normal(*s.shape), nn.unbox(shapes))


def key():
    return jax.random.key(0)


def written_out(params, x_BTD, y_BSD, apart_BTS, far, sign_B):
    """The sum of the papers, a query and a key at a time."""
    kernel = {name: p["kernel"] for name, p in params.items() if isinstance(p, dict)}
    y_BTD = np.zeros_like(x_BTD)
    for b, t, h in np.ndindex(len(x_BTD), QUERIES, HEADS):
        q_K, scores = x_BTD[b, t] @ kernel["query"][:, h], []
        for s in range(KEYS):
            distance = np.clip(sign_B[b] * (t + KEYS - QUERIES - s), -far, far)
            r_D = sinusoid(np.array([distance]), WIDTH, halves=True)[0]
            score = (q_K + params["content_bias"][h]) @ (y_BSD[b, s] @ kernel["key"][:, h])
            score += (q_K + params["position_bias"][h]) @ (r_D @ kernel["distance"][:, h])
            vector_K = params["segment_vectors"][int(apart_BTS[b, t, s]), h]
            scores.append(score + (q_K + params["segment_bias"][h]) @ vector_K)
        weights_S = np.exp(np.array(scores) * HEAD**-0.5)
        mean_K = weights_S / weights_S.sum() @ (y_BSD[b] @ kernel["value"][:, h])
        y_BTD[b, t] += mean_K @ kernel["out"][h]
    return y_BTD


@pytest.mark.parametrize("far, ways", [(99, (1,)), (2, (1,)), (99, (1, -1)), (2, (1, -1))])
def test_a_score_is_the_sum_of_its_parts(attention, far, ways):
    call, params = attention
    x_BTD, y_BSD = normal(ROWS, QUERIES, WIDTH), normal(ROWS, KEYS, WIDTH)
    apart_BTS = RANDOM.random((ROWS, QUERIES, KEYS)) < 0.5
    made_GLD = encodings(QUERIES, KEYS, WIDTH, far, ways)
    ours = call(params, x_BTD, y_BSD, Related(encodings_GLD=made_GLD, apart_BTS=apart_BTS))
    sign_B = np.repeat(ways, ROWS // len(ways))
    want = written_out(params["params"], x_BTD, y_BSD, apart_BTS, far, sign_B)
    np.testing.assert_allclose(ours, want, rtol=2e-5, atol=2e-5)


def test_a_shift_puts_each_distance_at_its_key():
    scores_BHTL = normal(1, 2, QUERIES, QUERIES + KEYS)
    shifted = np.asarray(shift(jnp.asarray(scores_BHTL), KEYS))
    for t, s in np.ndindex(QUERIES, KEYS):
        np.testing.assert_array_equal(shifted[..., t, s], scores_BHTL[..., t, QUERIES - t + s])


def test_positions_may_stand_anywhere_in_any_order(attention):
    """Given one by one they are looked up; those of a text that reads itself are shifted."""
    call, params = attention
    x_BTD, order = normal(ROWS, KEYS, WIDTH), np.array([3, 0, 4, 1, 2])
    plain = call(params, x_BTD, x_BTD, None)
    far = Visible(queries_BT=7 + order[None], keys_BS=7 + jnp.arange(KEYS)[None])
    some = call(params, x_BTD[:, order], x_BTD, far)
    np.testing.assert_allclose(some, plain[:, order], rtol=1e-5, atol=1e-5)


def test_the_type_of_the_activations_stays(attention):
    call, params = attention
    x_BTD = jnp.ones((1, 4, WIDTH), jnp.bfloat16)
    assert call(params, x_BTD, x_BTD, None).dtype == jnp.bfloat16


TINY = dict(width=16, heads=2, mlp=24, vocab=23, dropout=0.0, position="xlnet", max_length=16)


def test_an_encoder_may_have_distances_for_positions():
    """It then sees the order of its words, and not where they begin."""
    config = bert.Config(**TINY, depth=1, head="none", pooler="none", attention_dropout=0.0)
    model = models.build(config)
    params = nn.unbox(models.parameters(model, key()))
    params = jax.tree.map(lambda p: p + 0.3 * normal(*p.shape), params)
    see = jax.jit(lambda batch: model.apply({"params": params}, batch, method="predict")["states"])
    ids = RANDOM.integers(0, 23, (1, 6))
    assert np.abs(see({"ids": ids}) - see({"ids": ids[:, ::-1]})[:, ::-1]).max() > 0.01
    pad = np.pad(ids, ((0, 0), (3, 0)))
    shifted = see({"ids": pad, "mask": np.arange(9)[None] > 2})[:, 3:]
    np.testing.assert_allclose(shifted, see({"ids": ids}), atol=1e-5)


def test_a_decoder_with_a_cache_computes_what_it_computes_without():
    model = models.build(transformer.Config(**TINY, depth=2))
    params = nn.unbox(models.parameters(model, key()))
    params = {"params": jax.tree.map(lambda p: p + 0.3 * normal(*p.shape), params)}
    # Only what reads its own text has distances.
    layer = params["params"]["decoder"]["layers"]
    assert "distance" in layer["self_attention"] and "distance" not in layer["cross_attention"]
    source, target = RANDOM.integers(1, 23, (2, 5)), RANDOM.integers(1, 23, (2, 6))
    apply = lambda method: jax.jit(functools.partial(model.apply, params, method=method))
    whole = apply("__call__")({"source": source, "target_in": target})
    context, cache, step = apply("start")({"source": source}), model.init_cache(2, 6), apply("step")
    for t in range(6):
        seen_BWS = jnp.broadcast_to(jnp.arange(6) <= t, (2, 1, 6))
        logits, cache = step(target[:, t : t + 1], cache, t, seen_BWS, context)
        np.testing.assert_allclose(logits[:, 0], whole[:, t], rtol=1e-4, atol=1e-4)


def test_scores_that_are_no_products_cannot_have_distances():
    config = transformer.Config(**TINY, attention="additive")
    with pytest.raises(ValueError, match=r"'xlnet'.*'additive' has not; set that to scaled or dot"):
        models.build(config)
