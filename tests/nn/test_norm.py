"""Norms are right where the obvious formula is not, and give float32 truth to any type."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from tfx.nn.norm import NORMS, LayerNorm, RMSNorm

FIXTURE = np.load(Path(__file__).parent.parent / "fixtures/numerics.npz")
RANDOM = np.random.default_rng(0)


def plain(width, bias=True):
    params = {"scale": np.ones(width, np.float32), "bias": np.zeros(width, np.float32)}
    return {"params": params if bias else {"scale": params["scale"]}}


@pytest.mark.parametrize("epsilon", [1e-5, 1e-6])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_agrees_with_float64(kind, epsilon):
    """Ordinary rows, large means, variances below epsilon, a constant row, a huge one."""
    x_BTD, scale_D, bias_D = (FIXTURE[f"norm/in/{k}"] for k in ("x", "scale", "bias"))
    params = {"scale": scale_D, "bias": bias_D} if kind == "layer" else {"scale": scale_D}
    y_BTD = NORMS[kind](epsilon).apply({"params": params}, x_BTD[None])[0]
    want_BTD = FIXTURE[f"norm/out/{kind}_norm_{epsilon:.0e}"]
    # Taking off a mean loses as many digits as the mean is larger than the spread.
    lost = np.abs(x_BTD.mean(-1)) / np.sqrt(x_BTD.var(-1) + epsilon) if kind == "layer" else 0
    bound = 2e-6 * (1 + np.broadcast_to(lost, len(x_BTD))) * np.abs(want_BTD).max(-1).clip(1)
    assert (np.abs(y_BTD - want_BTD).max(-1) <= bound).all()


def test_two_passes_survive_a_large_mean_and_one_pass_does_not():
    x_BTD = (1e4 + RANDOM.standard_normal((4, 8, 256))).astype(np.float32)
    exact = x_BTD.astype(float)
    exact = (exact - exact.mean(-1, keepdims=True)) / exact.std(-1, keepdims=True)
    y_BTD = LayerNorm(1e-6).apply(plain(256), x_BTD)
    assert np.abs(y_BTD - exact).max() < 1e-3
    mean = x_BTD.mean(-1, keepdims=True)
    one_pass = np.square(x_BTD).mean(-1, keepdims=True) - np.square(mean)
    with np.errstate(invalid="ignore"):
        one_pass = (x_BTD - mean) / np.sqrt(one_pass + 1e-6)
    assert not np.abs(one_pass - exact).max() < 1


def test_layer_norm_centres_and_forgets_shift_and_scale():
    x_BTD = RANDOM.standard_normal((2, 3, 32)).astype(np.float32)
    y_BTD = LayerNorm(1e-6).apply(plain(32), x_BTD)
    np.testing.assert_allclose(y_BTD.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(y_BTD.var(-1), 1, atol=1e-5)
    np.testing.assert_allclose(LayerNorm(1e-6).apply(plain(32), 7 * x_BTD + 3), y_BTD, atol=1e-5)


def test_rms_norm_forgets_scale_but_not_shift():
    x_BTD = RANDOM.standard_normal((2, 3, 32)).astype(np.float32)
    norm, params = RMSNorm(1e-6), plain(32, bias=False)
    y_BTD = norm.apply(params, x_BTD)
    np.testing.assert_allclose(np.square(y_BTD).mean(-1), 1, atol=1e-5)
    np.testing.assert_allclose(norm.apply(params, 7 * x_BTD), y_BTD, atol=1e-5)
    assert np.abs(norm.apply(params, x_BTD + 3) - y_BTD).max() > 0.1


@pytest.mark.parametrize("kind", NORMS)
def test_bfloat16_in_and_out_with_float32_between(kind):
    x_BTD = jnp.asarray(RANDOM.standard_normal((2, 3, 64)) + 100, jnp.bfloat16)
    params = plain(64, bias=kind == "layer")
    y_BTD = NORMS[kind](1e-6).apply(params, x_BTD)
    assert y_BTD.dtype == jnp.bfloat16
    exact = NORMS[kind](1e-6).apply(params, x_BTD.astype(jnp.float32))
    np.testing.assert_array_equal(y_BTD, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize("kind, names", [("layer", {"scale", "bias"}), ("rms", {"scale"})])
def test_parameters_start_as_the_identity_and_lie_along_the_width(kind, names):
    boxed = NORMS[kind](1e-6).init(jax.random.key(0), jnp.ones((1, 2, 5)))
    assert set(boxed["params"]) == names
    for name, value in nn.unbox(boxed)["params"].items():
        np.testing.assert_array_equal(value, np.full(5, float(name == "scale")))
        assert nn.get_partition_spec(boxed)["params"][name] == P("D")
