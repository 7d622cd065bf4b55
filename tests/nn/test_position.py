"""Sinusoids are the paper's; start, explicit positions and packing read the same table; what is
relative sees distances alone."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tfx.nn.position import Bias, Positions, bucket, rotate, sinusoid, slopes

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


# ------------------------------------------------------------------ distances


@pytest.mark.parametrize(
    "both_ways, starts",
    [
        # 16 a side: one for each of 0 .. 7, then by 16^(1/8), the square root of 2.
        (True, [*range(8), 8, 12, 16, 23, 32, 46, 64, 91]),
        # One for each of 0 .. 15, then by 8^(1/16), so that 2 is 16/3 buckets further.
        (False, [*range(16), *np.ceil(16 * 8 ** (np.arange(16) / 16)).astype(int)]),
    ],
)
def test_buckets_begin_where_the_paper_has_them(both_ways, starts):
    """32 buckets up to a distance of 128, as all published models have them."""
    far = np.arange(1000)
    want = np.searchsorted(starts, far, side="right") - 1
    np.testing.assert_array_equal(bucket(-far, 32, 128, both_ways), want)
    ahead = want[1:] + 16 if both_ways else np.zeros(999)
    np.testing.assert_array_equal(bucket(far[1:], 32, 128, both_ways), ahead)


@pytest.mark.parametrize("buckets, furthest", [(4, 3), (9, 15), (12, 20), (32, 17), (64, 4096)])
@pytest.mark.parametrize("both_ways", [True, False])
def test_buckets_are_in_order_and_the_last_has_what_lies_beyond(buckets, furthest, both_ways):
    found = bucket(-np.arange(3 * furthest), buckets, furthest, both_ways)
    assert found[0] == 0 and (np.diff(found) >= 0).all()
    a_side = buckets // 2 if both_ways else buckets
    np.testing.assert_array_equal(found[: a_side // 2], np.arange(a_side // 2))
    assert set(found[furthest + 1 :]) == {a_side - 1}


@pytest.mark.parametrize("kind, both_ways", [("t5", True), ("t5", False), ("alibi", True)])
def test_a_bias_is_of_the_distance_alone(kind, both_ways):
    bias = Bias(kind, heads=3, buckets=8, furthest=10, both_ways=both_ways)
    queries_BT, keys_BS = np.array([[0, 5, 30], [2, 2, 9]]), np.array([[0, 1, 60, 7], [9, 3, 2, 1]])
    params = nn.unbox(bias.init(jax.random.key(0), queries_BT, keys_BS))
    apply = jax.jit(bias.apply)
    one_BHTS = apply(params, queries_BT, keys_BS)
    assert one_BHTS.shape == (2, 3, 3, 4) and one_BHTS.dtype == jnp.float32
    np.testing.assert_array_equal(apply(params, queries_BT + 1000, keys_BS + 1000), one_BHTS)
    distance_BTS = keys_BS[:, None] - queries_BT[..., None]
    if kind == "alibi":
        assert not params
        want_BHTS = -slopes(3)[:, None, None] * abs(distance_BTS)[:, None]
    else:
        table_SH = np.asarray(params["params"]["embedding"])
        want_BHTS = np.moveaxis(table_SH[bucket(distance_BTS, 8, 10, both_ways)], -1, 1)
    np.testing.assert_allclose(one_BHTS, want_BHTS, rtol=1e-6)


def test_slopes_of_alibi():
    """Of a power of two a geometric series; of others, what lies between is filled up."""
    np.testing.assert_allclose(slopes(8), 0.5 ** np.arange(1, 9))
    np.testing.assert_allclose(slopes(1), [2**-8])
    np.testing.assert_allclose(slopes(6), [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])


def test_products_of_turned_vectors_see_the_distance_alone():
    q_BTHK, k_BSHK = RANDOM.standard_normal((2, 1, 5, 2, 6)).astype(np.float32)
    places_BT = np.array([[0, 1, 4, 9, 100]])

    def scores(shift):
        turned = [rotate(x, places_BT + shift) for x in (q_BTHK, k_BSHK)]
        return jnp.einsum("BTHK,BSHK->BHTS", *turned)

    np.testing.assert_allclose(scores(57), scores(0), atol=2e-4)
    assert np.abs(scores(0) - jnp.einsum("BTHK,BSHK->BHTS", q_BTHK, k_BSHK)).max() > 0.1
    np.testing.assert_array_equal(rotate(q_BTHK, np.zeros((1, 5), int)), q_BTHK)


def test_each_pair_turns_by_its_angle():
    x_BTHK = np.zeros((1, 1, 1, 4), np.float32)
    x_BTHK[..., 0] = x_BTHK[..., 2] = 1
    slow = 3 / 10000**0.5
    want = [math.cos(3), math.sin(3), math.cos(slow), math.sin(slow)]
    np.testing.assert_allclose(rotate(x_BTHK, np.array([[3]]))[0, 0, 0], want, rtol=1e-6)
