"""Sinusoids are the paper's; start, explicit positions and packing read the same table."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tfx.nn.position import Positions, sinusoid

FIXTURE = np.load(Path(__file__).parent.parent / "fixtures/numerics.npz")
RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("length, width", [(9, 2), (60, 16)])
def test_sinusoids_are_interleaved_sines_and_cosines(length, width):
    want = FIXTURE[f"sinusoid/out/{length}x{width}"]
    np.testing.assert_array_equal(sinusoid(length, width), want)


def test_far_positions_are_exact_to_float32():
    table_SD = sinusoid(5000, 512)
    for position, column in [(1000, 0), (4999, 0), (4999, 6), (3333, 510)]:
        angle = position / 10000 ** (column / 512)
        assert abs(table_SD[position, column] - math.sin(angle)) < 1e-7
        assert abs(table_SD[position, column + 1] - math.cos(angle)) < 1e-7


def test_a_shift_is_one_rotation_for_all_positions():
    """PE(p + k) is a linear function of PE(p): why the paper chose sinusoids."""
    table = sinusoid(50, 8).astype(float).reshape(50, 4, 2)
    angle = 7 / 10000 ** (np.arange(0, 8, 2) / 8)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    shifted = np.einsum("ijd,pdj->pdi", rotation, table)
    np.testing.assert_allclose(shifted[:-7], table[7:], atol=1e-6)


def test_an_odd_width_ends_with_a_sine():
    assert sinusoid(4, 5).shape == (4, 5)
    np.testing.assert_allclose(sinusoid(4, 5)[:, 4], np.sin(np.arange(4) / 10000 ** (4 / 5)))


@pytest.fixture(params=["sinusoid", "learned"])
def added(request):
    """The module, its parameters and its table [20, 6]."""
    module, x_BTD = Positions(request.param, 20), jnp.zeros((1, 20, 6))
    table_SD = RANDOM.standard_normal((20, 6)).astype(np.float32)
    if request.param == "sinusoid":
        assert not module.init(jax.random.key(0), x_BTD)
        return module, {}, sinusoid(20, 6)
    params = nn.unbox(module.init(jax.random.key(0), x_BTD))["params"]
    assert jax.tree.map(jnp.shape, params) == {"embedding": (20, 6)}
    return module, {"params": {"embedding": table_SD}}, table_SD


def test_adds_the_table_from_start_on(added):
    module, params, table_SD = added
    x_BTD = RANDOM.standard_normal((2, 4, 6)).astype(np.float32)
    np.testing.assert_allclose(module.apply(params, x_BTD), x_BTD + table_SD[:4], rtol=1e-6)
    later = jax.jit(module.apply)(params, x_BTD, 16)
    np.testing.assert_allclose(later, x_BTD + table_SD[16:], rtol=1e-6)


def test_adds_the_vectors_of_given_positions(added):
    module, params, table_SD = added
    x_BTD, positions_BT = np.zeros((2, 4, 6), np.float32), np.array([[0, 1, 0, 1], [5, 5, 5, 19]])
    y_BTD = module.apply(params, x_BTD, positions_BT=positions_BT)
    np.testing.assert_array_equal(y_BTD, table_SD[positions_BT])
    one_for_all = module.apply(params, x_BTD, 0, np.full((1, 4), 7))
    np.testing.assert_array_equal(one_for_all, np.broadcast_to(table_SD[7], (2, 4, 6)))


def test_keeps_the_type_of_its_input(added):
    module, params, _ = added
    assert module.apply(params, jnp.zeros((1, 4, 6), jnp.bfloat16)).dtype == jnp.bfloat16


def test_none_adds_nothing_and_has_no_parameters():
    x_BTD = np.ones((1, 4, 6), np.float32)
    y_BTD, params = Positions("none", 4).init_with_output(jax.random.key(0), x_BTD)
    assert not params
    np.testing.assert_array_equal(y_BTD, x_BTD)
