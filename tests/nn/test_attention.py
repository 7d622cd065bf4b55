"""The equation, what a mask means, every way to score, and agreement with PyTorch."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tfx import sharding
from tfx.nn.attention import SCORES, Attention, KeyValues, attend
from tfx.nn.kernels import KERNELS, Visible

FIXTURE = np.load(Path(__file__).parent.parent / "fixtures/attention.npz")
RANDOM = np.random.default_rng(0)
B, T, S, D, H, K = 2, 3, 5, 8, 4, 6


def normal(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


# ---------------------------------------------------------------- the equation


def test_is_a_mean_weighted_by_the_softmax_of_scores():
    scores_BHTS, v_BSHK = normal(B, H, T, S), normal(B, S, H, K)
    y_BTHK, weights_BHTS = attend(scores_BHTS, v_BSHK)
    np.testing.assert_allclose(weights_BHTS, softmax(scores_BHTS), atol=1e-6)
    want_BTHK = np.einsum("BHTS,BSHK->BTHK", softmax(scores_BHTS), v_BSHK)
    np.testing.assert_allclose(y_BTHK, want_BTHK, atol=1e-5)


@pytest.mark.parametrize("axes", ["B1TS", "11TS", "B11S", "BHTS"])
def test_weights_sum_to_one_over_the_keys_that_a_mask_allows(axes):
    mask = RANDOM.random([{"B": B, "H": H, "T": T, "S": S, "1": 1}[a] for a in axes]) < 0.5
    mask[..., 1] = True
    scores_BHTS, v_BSHK = 10 * normal(B, H, T, S), normal(B, S, H, K)
    weights_BHTS = attend(scores_BHTS, v_BSHK, mask)[1]
    full_BHTS = np.broadcast_to(mask, weights_BHTS.shape)
    np.testing.assert_allclose(weights_BHTS.sum(-1), 1, rtol=1e-5)
    assert not np.any(np.where(full_BHTS, 0, weights_BHTS))
    want_BHTS = softmax(np.where(full_BHTS, scores_BHTS, -np.inf))
    np.testing.assert_allclose(weights_BHTS, want_BHTS, atol=1e-6)


def test_a_query_that_may_read_nothing_gets_zeros_and_finite_gradients():
    mask_B1TS = np.ones((B, 1, T, S), bool)
    mask_B1TS[1, :, 2] = False

    def read(scores_BHTS, v_BSHK):
        y_BTHK, weights_BHTS = attend(scores_BHTS, v_BSHK, mask_B1TS)
        return jnp.square(y_BTHK).sum() + weights_BHTS.sum(), (y_BTHK, weights_BHTS)

    arguments = normal(B, H, T, S), normal(B, S, H, K)
    differentiate = jax.jit(jax.grad(read, (0, 1), has_aux=True))
    gradients, (y_BTHK, weights_BHTS) = differentiate(*arguments)
    assert not np.any(y_BTHK[1, 2]) and not np.any(weights_BHTS[1, :, 2])
    assert np.all(np.any(y_BTHK[0], -1))
    assert all(np.isfinite(g).all() for g in gradients)
    assert not np.any(gradients[0][1, :, 2])


def test_no_gradient_reaches_a_masked_key():
    """Causality: query t knows nothing of keys after t."""
    causal_11TS = np.tril(np.ones((1, 1, S, S), bool))

    def outputs(scores_BHTS, v_BSHK):
        return attend(scores_BHTS, v_BSHK, causal_11TS)[0].sum((0, 2, 3))

    arguments = normal(1, H, S, S), normal(1, S, H, K)
    by_scores, by_values = jax.jit(jax.jacrev(outputs, (0, 1)))(*arguments)
    reached_TS = np.abs(by_values).sum((1, 3, 4)) > 0
    np.testing.assert_array_equal(reached_TS, causal_11TS[0, 0])
    assert not np.any(np.where(causal_11TS[None], 0, by_scores))


def test_padding_keys_change_nothing():
    """Whatever stands there, infinities aside, and however many there are."""
    scores_BHTS, v_BSHK = normal(B, H, T, S), normal(B, S, H, K)
    y_BTHK, weights_BHTS = attend(scores_BHTS, v_BSHK)
    more = np.concatenate([scores_BHTS, 1e9 * normal(B, H, T, 4)], -1)
    values = np.concatenate([v_BSHK, 1e9 * normal(B, 4, H, K)], 1)
    mask_11TS = np.arange(S + 4)[None, None, None] < S
    padded_BTHK, padded_BHTS = attend(more, values, mask_11TS)
    np.testing.assert_allclose(padded_BTHK, y_BTHK, atol=1e-6)
    np.testing.assert_allclose(padded_BHTS[..., :S], weights_BHTS, atol=1e-6)


def test_the_order_of_keys_does_not_matter():
    order = RANDOM.permutation(S)
    scores_BHTS, v_BSHK, mask_B1TS = normal(B, H, T, S), normal(B, S, H, K), normal(B, 1, T, S) > 0
    y_BTHK, weights_BHTS = attend(scores_BHTS, v_BSHK, mask_B1TS)
    other = attend(scores_BHTS[..., order], v_BSHK[:, order], mask_B1TS[..., order])
    np.testing.assert_allclose(other[0], y_BTHK, atol=1e-6)
    np.testing.assert_allclose(other[1], weights_BHTS[..., order], atol=1e-6)


def test_dropout_falls_on_the_weights_that_are_used_not_on_those_returned():
    scores_BHTS, v_BSHK = normal(B, H, T, S), normal(B, S, H, K)
    weights_BHTS = attend(scores_BHTS, v_BSHK)[1]
    kept_BHTS = np.where(normal(B, H, T, S) > 0, 2.0, 0.0).astype(np.float32)
    dropped = attend(scores_BHTS, v_BSHK, dropout=lambda weights: weights * kept_BHTS)
    want_BTHK = np.einsum("BHTS,BSHK->BTHK", kept_BHTS * weights_BHTS, v_BSHK)
    np.testing.assert_allclose(dropped[0], want_BTHK, atol=1e-5)
    np.testing.assert_array_equal(dropped[1], weights_BHTS)


def test_weights_are_float32_and_the_mean_has_the_type_of_the_values():
    scores, values = (jnp.asarray(normal(*s), jnp.bfloat16) for s in ((B, H, T, S), (B, S, H, K)))
    y_BTHK, weights_BHTS = attend(scores, values, np.ones((1, 1, 1, S), bool))
    assert y_BTHK.dtype == jnp.bfloat16 and weights_BHTS.dtype == jnp.float32
    np.testing.assert_allclose(weights_BHTS.sum(-1), 1, rtol=1e-6)


# -------------------------------------------------------------------- the scores


class Scored(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, q_BTHK, k_BSHK):
        return SCORES[self.kind](self, q_BTHK, k_BSHK)


FORMULAS = {
    "scaled": lambda q, k, head, p: q @ k / np.sqrt(len(q)),
    "dot": lambda q, k, head, p: q @ k,
    "general": lambda q, k, head, p: q @ p["score_matrix"][head] @ k,
    "additive": lambda q, k, head, p: p["score_vector"][head] @ np.tanh(q + k),
}


@pytest.mark.parametrize("kind", SCORES)
def test_every_score_is_its_formula(kind):
    q_BTHK, k_BSHK = normal(B, T, H, K), normal(B, S, H, K)
    shapes = jax.eval_shape(Scored(kind).init, jax.random.key(0), q_BTHK, k_BSHK)
    params = jax.tree.map(lambda s: normal(*s.shape), nn.unbox(shapes))
    scores_BHTS = Scored(kind).apply(params, q_BTHK, k_BSHK)
    for b, h, t, s in np.ndindex(B, H, T, S):
        q, k, learned = q_BTHK[b, t, h], k_BSHK[b, s, h], params.get("params")
        want = FORMULAS[kind](q.astype(float), k.astype(float), h, learned)
        assert abs(scores_BHTS[b, h, t, s] - want) < 1e-4
    for name, box in shapes.get("params", {}).items():
        assert box.names == {"score_matrix": tuple("HKK"), "score_vector": tuple("HK")}[name]


def test_scaling_keeps_the_variance_of_scores_at_one():
    """The reason that the paper gives for it, section 3.2.1."""
    q_BTHK, k_BSHK = normal(1, 64, 2, 256), normal(1, 64, 2, 256)
    assert 0.8 < Scored("scaled").apply({}, q_BTHK, k_BSHK).var() < 1.2
    assert 200 < Scored("dot").apply({}, q_BTHK, k_BSHK).var() < 310


# -------------------------------------------------------------------- the module


def drawn(module, *inputs):
    """Random parameters, biases too."""
    return jax.tree.map(
        lambda s: 0.5 * normal(*s.shape),
        nn.unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs)),
    )


class Reading(nn.Module):
    """Attention of x over y, in one call."""

    attention: Attention

    def __call__(self, x_BTD, y_BSD, mask_B1TS=None, train=False):
        seen = self.attention.keys_values(y_BSD)
        return self.attention(x_BTD, seen, mask_B1TS, train)


@pytest.mark.parametrize("score", SCORES)
def test_heads_are_separate_attentions_whose_outputs_add_up(score):
    """Concatenating heads and projecting them is the sum of single heads' projections."""
    x_BTD, y_BSD = normal(B, T, D), normal(B, S, D)
    together = Reading(Attention(H, K, 5, score))
    params = drawn(together, x_BTD, y_BSD)
    tree = params["params"]["attention"]
    alone, total = Reading(Attention(1, K, 5, score)), (1 - H) * tree["out"]["bias"]
    for h in range(H):
        one = {
            p: {k: v[..., h : h + 1, :] for k, v in tree[p].items()}
            for p in ("query", "key", "value")
        }
        one["out"] = {"kernel": tree["out"]["kernel"][h : h + 1], "bias": tree["out"]["bias"]}
        one |= {k: tree[k][h : h + 1] for k in ("score_matrix", "score_vector") if k in tree}
        total = total + np.asarray(alone.apply({"params": {"attention": one}}, x_BTD, y_BSD))
    np.testing.assert_allclose(together.apply(params, x_BTD, y_BSD), total, atol=1e-4)


def test_attention_dropout_changes_the_output_and_not_the_sown_weights():
    x_BTD, y_BSD = normal(B, T, D), normal(B, S, D)
    reading = Reading(Attention(H, K, K, dropout=0.5))
    params = drawn(reading, x_BTD, y_BSD)
    run = lambda **kwargs: reading.apply(params, x_BTD, y_BSD, mutable=["intermediates"], **kwargs)
    y_BTD, sown = run()
    dropped_BTD, other = run(train=True, rngs={"dropout": jax.random.key(0)})
    assert np.abs(y_BTD - dropped_BTD).max() > 0.1
    weights, others = (s["intermediates"]["attention"]["weights"][0] for s in (sown, other))
    assert weights.shape == (B, H, T, S)
    np.testing.assert_array_equal(weights, others)


def test_bias_is_in_all_four_projections_or_in_none():
    x_BTD = jnp.zeros((1, 1, D))
    for bias in (True, False):
        reading = Reading(Attention(H, K, 5, bias=bias))
        params = jax.eval_shape(reading.init, jax.random.key(0), x_BTD, x_BTD)["params"][
            "attention"
        ]
        assert {p: "bias" in params[p] for p in params} == dict.fromkeys(
            ("query", "key", "value", "out"), bias
        )


def test_write_replaces_its_slots_and_no_others():
    old = KeyValues(normal(B, H, S, K), normal(B, H, S, 2))
    new = KeyValues(normal(B, H, 2, K), normal(B, H, 2, 2))
    written = jax.jit(KeyValues.write)(old, new, 3)
    for part in ("k_BHSK", "v_BHSK"):
        want = getattr(old, part).copy()
        want[:, :, 3:5] = getattr(new, part)
        np.testing.assert_array_equal(getattr(written, part), want)


# ------------------------------------------------------------------ masks, kernels


def test_a_visible_is_the_mask_that_it_makes():
    x_BTD, reading = normal(B, S, D), Reading(Attention(H, K, 5))
    params = drawn(reading, x_BTD, x_BTD)
    segments_BS = np.array([[1, 1, 2, 2, 0], [1, 2, 2, 2, 2]])
    for visible in (
        Visible(segments_BS, segments_BS, causal=True),
        Visible(None, segments_BS > 0),
        Visible(causal=True),
        Visible(),
    ):
        got = reading.apply(params, x_BTD, x_BTD, visible)
        want = reading.apply(params, x_BTD, x_BTD, visible.mask(S, S))
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("score", ["scaled", "dot"])
def test_with_a_kernel_attention_is_what_it_was(score):
    """Outputs and the gradients of all parameters, of a ring of 8 and of the equation."""
    x_BTD, y_BSD = normal(B, 16, D), normal(B, 24, D)
    visible = Visible(None, np.arange(24)[None] < np.array([[9], [24]]))
    params = drawn(Reading(Attention(H, K, 5)), x_BTD, y_BSD)

    def loss(params, kernel):
        reading = Reading(Attention(H, K, 5, score, kernel=kernel))
        return jnp.square(reading.apply(params, x_BTD, y_BSD, visible, train=True)).mean()

    with jax.set_mesh(sharding.make_mesh(data=1, sequence=8)):
        run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
        got, want = run(params, "ring"), run(params, "xla")
        assert "ppermute" in str(jax.make_jaxpr(loss, 1)(params, "ring"))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()))


@pytest.mark.parametrize("kernel", KERNELS)
def test_calls_that_need_the_scores_need_no_kernel(kernel):
    """Those with an explicit mask, as in decoding; those whose weights are wanted; and `init`."""
    x_BTD, attention = normal(B, S, D), Attention(H, K, K, kernel=kernel)
    params = drawn(Reading(attention), x_BTD, x_BTD)
    Reading(attention).apply(params, x_BTD, x_BTD, np.ones((1, 1, 1, S), bool))
    sown = Reading(attention).apply(
        params, x_BTD, x_BTD, Visible(causal=True), mutable=["intermediates"]
    )[1]
    assert sown["intermediates"]["attention"]["weights"][0].shape == (B, H, S, S)
    with pytest.raises(ValueError, match=f'attention kernel "{kernel}": '):
        Reading(attention).apply(params, x_BTD, x_BTD, Visible(causal=True))


# ----------------------------------------------------------------------- PyTorch


def close(got, want):
    assert np.abs(got - want).max() <= 1e-5 * max(1, np.abs(want).max())


def from_torch(params):
    """The tree of an `Attention` from the names of torch.nn.MultiheadAttention."""
    split = lambda x: x.T.reshape(*x.shape[1:], 4, 4)  # [out, in] -> [in, heads, width]
    rows = zip(
        np.split(params["in_proj_weight"], 3), np.split(params["in_proj_bias"], 3), strict=True
    )
    tree = {
        name: {"kernel": split(kernel), "bias": split(bias)}
        for name, (kernel, bias) in zip(("query", "key", "value"), rows, strict=True)
    }
    kernel = params["out_proj.weight"].T.reshape(4, 4, -1)
    return tree | {"out": {"kernel": kernel, "bias": params["out_proj.bias"]}}


@pytest.mark.parametrize("case", ["mha_cross", "mha_causal"])
def test_agrees_with_torch_multihead_attention(case):
    given = {
        k.rpartition("/")[2]: FIXTURE[k] for k in FIXTURE if k.startswith((f"{case}/", "param/"))
    }
    query = given["query"]
    if case == "mha_cross":
        memory, mask_B1TS = given["memory"], ~given["padding"][:, None, None]
    else:
        memory, mask_B1TS = query, ~given["future"][None, None]
    reading, params = Reading(Attention(4, 4, 4)), {"params": {"attention": from_torch(given)}}
    y_BTD, sown = reading.apply(params, query, memory, mask_B1TS, mutable=["intermediates"])
    close(y_BTD, given["output"])
    close(sown["intermediates"]["attention"]["weights"][0], given["weights"])


def test_agrees_with_torch_scaled_dot_product_attention():
    q_BTHK, k_BSHK, v_BSHK, mask_B1TS = (
        FIXTURE[f"sdpa/in/{k}"] for k in ("q_BTHK", "k_BSHK", "v_BSHK", "allowed")
    )
    scores_BHTS = SCORES["scaled"](None, q_BTHK, k_BSHK)
    close(attend(scores_BHTS, v_BSHK, mask_B1TS)[0], FIXTURE["sdpa/out/out_BTHK"])
