"""Every activation and every gate against its formula."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tfx.nn.mlp import ACTIVATIONS, GATED, Mlp

FIXTURE = np.load(Path(__file__).parent.parent / "fixtures/numerics.npz")
RANDOM = np.random.default_rng(0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu_tanh(x):
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


FORMULAS = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
    "gelu_tanh": gelu_tanh,
    "gelu_sigmoid": lambda x: x * sigmoid(1.702 * x),
    "silu": lambda x: x * sigmoid(x),
    "glu": sigmoid,
}
GATES = {"reglu": "relu", "geglu": "gelu", "geglu_tanh": "gelu_tanh", "swiglu": "silu"}


@pytest.mark.parametrize(
    "name, stored", [("gelu", "gelu_erf"), ("gelu_tanh", "gelu_tanh"), ("silu", "silu")]
)
def test_activations_agree_with_torch(name, stored):
    want = FIXTURE[f"activation/out/{stored}"]
    got = ACTIVATIONS[name](FIXTURE["activation/in/x"])
    assert (np.abs(got - want) <= 1e-6 * np.abs(want).clip(1)).all()


@pytest.mark.parametrize("activation", [*ACTIVATIONS, *GATED])
def test_is_its_formula(activation):
    x_BTD = RANDOM.standard_normal((2, 3, 4)).astype(np.float32)
    layer, f = Mlp(5, activation), FORMULAS[GATES.get(activation, activation)]
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x_BTD)
    draw = lambda s: RANDOM.standard_normal(s.shape).astype(np.float32)
    params = jax.tree.map(draw, nn.unbox(shapes)["params"])

    def linear(name, x):
        return x @ params[name]["kernel"].astype(float) + params[name]["bias"]

    if activation in GATED:
        h_BTF = f(linear("gate", x_BTD)) * linear("up", x_BTD)
    else:
        h_BTF = f(linear("up", x_BTD))
    y_BTD = layer.apply({"params": params}, x_BTD)
    np.testing.assert_allclose(y_BTD, linear("down", h_BTF), atol=1e-4)


def test_without_bias_there_is_none():
    shapes = jax.eval_shape(
        Mlp(5, "swiglu", bias=False).init, jax.random.key(0), jnp.ones((1, 1, 4))
    )
    assert {k: set(v) for k, v in shapes["params"].items()} == {
        "gate": {"kernel"},
        "up": {"kernel"},
        "down": {"kernel"},
    }


def test_dropout_falls_on_the_inner_layer():
    """With identity matrices the inner layer can be read off the output."""
    layer, x_BTD = Mlp(64, dropout=0.5, bias=False), jnp.ones((8, 16, 64))
    params = {"params": {"up": {"kernel": jnp.eye(64)}, "down": {"kernel": jnp.eye(64)}}}
    y_BTD = layer.apply(params, x_BTD, train=True, rngs={"dropout": jax.random.key(0)})
    assert set(np.unique(y_BTD)) == {0.0, 2.0}
    np.testing.assert_array_equal(layer.apply(params, x_BTD), x_BTD)
