"""One string says everything about a linear layer, and embeddings serve both ends."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from tfx.nn.linear import Embed, Linear

RANDOM = np.random.default_rng(0)
CASES = [  # spec, sizes, kernel shape, its fans, bias letters
    ("BTD,DHK->BTHK", {"H": 3, "K": 5}, (48, 3, 5), (48, 15), "HK"),
    ("BTHK,HKD->BTD", {"D": 48}, (3, 5, 48), (15, 48), "D"),
    ("BTD,DF->BTF", {"F": 7}, (48, 7), (48, 7), "F"),
    ("BD,DV->BV", {"V": 9}, (48, 9), (48, 9), "V"),
]
LETTERS = {"B": 2, "T": 4, "D": 48, "H": 3, "K": 5, "F": 7, "V": 9}


def normal(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def shape_of(letters):
    return tuple(LETTERS[a] for a in letters)


@pytest.mark.parametrize("spec, sizes, kernel, fans, bias", CASES)
def test_one_string_gives_every_shape_and_axis(spec, sizes, kernel, fans, bias):
    inputs, kernel_axes, outputs = spec.replace("->", ",").split(",")
    x = jnp.zeros(shape_of(inputs))
    y, boxed = jax.eval_shape(Linear(spec, sizes).init_with_output, jax.random.key(0), x)
    params, specs = nn.unbox(boxed)["params"], nn.get_partition_spec(boxed)["params"]
    assert y.shape == shape_of(outputs)
    assert params["kernel"].shape == kernel == shape_of(kernel_axes)
    assert params["bias"].shape == shape_of(bias)
    assert specs == {"kernel": P(*kernel_axes), "bias": P(*bias)}
    bare = jax.eval_shape(Linear(spec, sizes, bias=False).init, jax.random.key(0), x)
    assert set(bare["params"]) == {"kernel"}


@pytest.mark.parametrize("spec, sizes, kernel, fans, bias", CASES)
def test_computes_its_einsum_and_adds_its_bias(spec, sizes, kernel, fans, bias):
    x, kernel, bias_value = normal(*shape_of(spec.split(",")[0])), normal(*kernel), normal(1)[0]
    params = {"kernel": kernel, "bias": np.full(shape_of(bias), bias_value)}
    want = np.einsum(spec, x.astype(float), kernel) + bias_value
    np.testing.assert_allclose(Linear(spec, sizes).apply({"params": params}, x), want, atol=1e-4)


def test_each_output_has_its_own_bias():
    bias_HK = normal(3, 5)
    params = {"kernel": np.zeros((48, 3, 5), np.float32), "bias": bias_HK}
    y_BTHK = Linear(*CASES[0][:2]).apply({"params": params}, jnp.zeros((2, 4, 48)))
    np.testing.assert_array_equal(y_BTHK, np.broadcast_to(bias_HK, (2, 4, 3, 5)))


@pytest.mark.parametrize(
    "spec, sizes, shape, fans",
    [
        ("BTD,DHK->BTHK", {"H": 8, "K": 40}, (1, 1, 96), (96, 320)),
        ("BTHK,HKD->BTD", {"D": 320}, (1, 1, 8, 12), (96, 320)),
        ("BTD,DF->BTF", {"F": 40}, (1, 1, 800), (800, 40)),
    ],
)
def test_starts_as_glorot_uniform_of_the_contraction(spec, sizes, shape, fans):
    """Heads are outputs on the way in and inputs on the way out."""
    params = Linear(spec, sizes).init(jax.random.key(1), jnp.zeros(shape))["params"]
    kernel, limit = np.asarray(nn.unbox(params["kernel"])).ravel(), math.sqrt(6 / sum(fans))
    assert limit * 0.999 < np.abs(kernel).max() <= limit
    # Five standard errors; the variance of a uniform sample's variance is 0.8 v^2 / n.
    variance, n = limit**2 / 3, kernel.size
    assert abs(kernel.mean()) < 5 * math.sqrt(variance / n)
    assert abs(kernel.var() / variance - 1) < 5 * math.sqrt(0.8 / n)
    assert not np.any(nn.unbox(params["bias"]))


def test_a_given_initialiser_is_used():
    layer = Linear("BD,DF->BF", {"F": 3}, kernel_init=nn.initializers.constant(2.0))
    params = nn.unbox(layer.init(jax.random.key(0), jnp.zeros((1, 4))))["params"]
    np.testing.assert_array_equal(params["kernel"], np.full((4, 3), 2.0))


def test_keeps_the_type_of_its_input_and_float32_parameters():
    x = jnp.ones((1, 2, 48), jnp.bfloat16)
    y, params = jax.eval_shape(Linear(*CASES[0][:2]).init_with_output, jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(params)} == {np.dtype("float32")}


def test_an_input_of_another_rank_is_refused():
    with pytest.raises(ValueError):
        Linear(*CASES[0][:2]).init(jax.random.key(0), jnp.zeros((4, 48)))


# ------------------------------------------------------------------ embeddings


def test_embeddings_are_scaled_rows_and_logits_are_not_scaled():
    table_VD, ids_BT, x_BTD = normal(9, 6), np.array([[0, 8, 3], [3, 3, 1]]), normal(2, 3, 6)
    embed, params = Embed(9, 6, scale=2.5), {"params": {"embedding": table_VD}}
    np.testing.assert_allclose(embed.apply(params, ids_BT), 2.5 * table_VD[ids_BT], rtol=1e-6)
    logits_BTV = embed.apply(params, x_BTD, method="logits")
    np.testing.assert_allclose(logits_BTV, x_BTD @ table_VD.T, atol=1e-5)


def test_a_tied_table_learns_from_both_its_uses():
    ids_BT, weight_BTV = np.array([[0, 8, 3]]), normal(1, 3, 9)
    embed = Embed(9, 6, scale=2.5)

    def loss(read_VD, written_VD):
        x_BTD = embed.apply({"params": {"embedding": read_VD}}, ids_BT)
        logits = embed.apply({"params": {"embedding": written_VD}}, x_BTD, method="logits")
        return (logits * weight_BTV).sum()

    table_VD = normal(9, 6)
    read, written = jax.grad(loss, (0, 1))(table_VD, table_VD)
    tied = jax.grad(lambda table_VD: loss(table_VD, table_VD))(table_VD)
    np.testing.assert_allclose(tied, read + written, atol=1e-5)
    unused = np.setdiff1d(np.arange(9), ids_BT)
    assert not np.any(read[unused]) and np.all(np.any(written != 0, axis=-1))


def test_embedding_rows_start_with_unit_length():
    boxed = Embed(2000, 64).init(jax.random.key(0), jnp.zeros((1, 1), int))
    table_VD = np.asarray(nn.unbox(boxed)["params"]["embedding"])
    assert nn.get_partition_spec(boxed)["params"]["embedding"] == P("V", "D")
    assert abs(table_VD.mean()) < 5 * 64**-0.5 / table_VD.size**0.5
    # The variance of a normal sample's variance is 2 v^2 / n.
    assert abs(table_VD.var() * 64 - 1) < 5 * math.sqrt(2 / table_VD.size)


def test_embed_decides_the_type_of_activations_and_logits_are_float32():
    embed = Embed(9, 6, dtype="bfloat16")
    params = {"params": {"embedding": normal(9, 6)}}
    x_BTD = embed.apply(params, np.array([[1, 2]]))
    assert x_BTD.dtype == jnp.bfloat16
    assert embed.apply(params, x_BTD, method="logits").dtype == jnp.float32
