"""May a short hash stand in for a real generator? Its bits under test, then the layer.

Bounds are five standard errors or more of what independent fair bits would show, over all
the numbers that a test looks at; keys are fixed, so a test that passes once passes always.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tfx.nn.dropout import Dropout, random_bits

RANDOM = np.random.default_rng(0)
KEY = jax.random.key(2017)
bits = functools.partial(jax.jit, static_argnums=1)(random_bits)
many = functools.partial(jax.jit, static_argnums=1)(jax.vmap(random_bits, (0, None)))


@pytest.fixture(scope="module")
def stream():
    """Four million words of one key."""
    return np.asarray(bits(KEY, (2**22,)))


def uniform(values, count):
    """Whether a chi-square test finds `values` uniform over range(count)."""
    expected = len(values) / count
    found = np.square(np.bincount(values, minlength=count) - expected).sum() / expected
    return abs(found - (count - 1)) < 5 * np.sqrt(2 * (count - 1))


def standardised(words, rate):
    """Which words a rate drops, as numbers of mean 0 and variance 1."""
    dropped = words < np.uint32(rate * 2**32)
    return (dropped.astype(np.float32) - rate) / np.float32(np.sqrt(rate * (1 - rate)))


def signs(words):
    """All bits of words [n], as -1 and 1 [n, 32]."""
    ones = np.unpackbits(words.astype("<u4").view(np.uint8).reshape(-1, 4), axis=1)
    return 2 * ones.astype(np.float32) - 1


# --------------------------------------------------------------- within a stream


@pytest.mark.parametrize("position", range(4))
def test_every_byte_is_uniform_and_every_bit_balanced(stream, position):
    byte = stream.view(np.uint8)[position::4]
    assert uniform(byte, 256)
    shares = [(byte >> bit & 1).mean() for bit in range(8)]
    assert np.abs(np.array(shares) - 0.5).max() < 5 * 0.5 / np.sqrt(len(byte))


@pytest.mark.parametrize("top", [1, 4, 12, 16])
def test_the_top_bits_which_decide_are_uniform(stream, top):
    assert uniform(stream >> np.uint32(32 - top), 2**top)


@pytest.mark.parametrize("bit", [0, 15, 31])
def test_runs_of_ten_decisions_show_every_pattern_equally_often(stream, bit):
    flags = (stream[: 10 * (len(stream) // 10)] >> np.uint32(bit) & 1).reshape(-1, 10)
    assert uniform(flags @ (1 << np.arange(10)), 2**10)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_neighbours_are_independent(stream, rate):
    """Neighbours in a row, in a column of usual widths, and in the next sentence."""
    lags = [*range(1, 65), *(stride * k for stride in (64, 128, 512, 50 * 512) for k in (1, 2, 3))]
    x = standardised(stream[: 2**21], rate)
    found = np.array([x[:-lag] @ x[lag:] / (len(x) - lag) for lag in lags])
    assert np.abs(found).max() < 5 / np.sqrt(len(x))


@pytest.mark.parametrize("lag", [1, 2, 64, 128, 512])
def test_no_bit_foretells_any_bit_of_a_neighbour(stream, lag):
    x = signs(stream[: 2**17 + lag])
    found = np.einsum("ri,rj->ij", x[:-lag], x[lag:]) / 2**17
    assert np.abs(found).max() < 5.5 / np.sqrt(2**17)


def test_the_stream_follows_the_row_major_index():
    np.testing.assert_array_equal(bits(KEY, (3, 5, 7)).ravel(), bits(KEY, (105,)))


# ----------------------------------------------------------------- between keys


def halves(first, second):
    """Keys from their two words."""
    return jax.random.wrap_key_data(jnp.asarray(np.stack([first, second], -1), jnp.uint32))


def strongest(x):
    """The largest correlation between two rows."""
    found = np.abs(x @ x.T) / x.shape[1]
    return np.max(found - np.diag(np.diag(found)))


def flipped(share):
    """Largest distance from one half."""
    return np.abs(share - 0.5).max()


@pytest.mark.parametrize("word", [0, 1])
def test_flipping_a_key_bit_flips_half_of_all_bits(word):
    one = np.array(RANDOM.integers(0, 2**32, 2, dtype=np.uint32))
    others = np.tile(one, (32, 1))
    others[:, word] ^= np.uint32(1) << np.arange(32, dtype=np.uint32)
    changed = np.asarray(many(halves(*others.T), (2**15,))) ^ np.asarray(
        bits(halves(*one), (2**15,))
    )
    share = np.stack([signs(words).mean(0) / 2 + 0.5 for words in changed])
    assert flipped(share) < 0.03


def test_flipping_an_index_bit_flips_half_of_all_bits(stream):
    index = RANDOM.integers(0, len(stream), 2**15)
    changed = [stream[index] ^ stream[index ^ (1 << bit)] for bit in range(22)]
    share = np.stack([signs(words).mean(0) / 2 + 0.5 for words in changed])
    assert flipped(share) < 0.03


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize(
    "keys",
    [
        lambda: jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(32)),
        lambda: jax.random.split(KEY, 32),
        lambda: jax.vmap(jax.random.key)(jnp.arange(32)),
    ],
    ids=["steps", "layers", "seeds"],
)
def test_masks_of_related_keys_are_independent(keys, rate):
    words = np.asarray(many(keys(), (2**16,)))
    assert strongest(standardised(words, rate)) < 5 / 2**8


def test_even_keys_that_differ_in_one_bit_give_other_masks():
    """Keys of equal first halves, as no generator gives them: almost independent."""
    keys = halves(np.full(32, 7), 1 << np.arange(32, dtype=np.uint32))
    assert strongest(standardised(np.asarray(many(keys, (2**16,))), 0.5)) < 0.15


def test_no_key_repeats_the_stream_of_another_at_any_shift():
    """Correlation at all shifts at once, by Fourier transform."""
    n = 2**17
    keys = jnp.concatenate(
        [
            jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(6)),
            # As near as keys get: one stream would begin inside another.
            halves(np.array([5, 6, 1005, 70005]), np.array([1, 3, 2, 2**31 + 1])),
        ]
    )
    spectra = np.fft.rfft(standardised(np.asarray(many(keys, (n,))), 0.5))
    for i in range(len(spectra)):
        found = np.fft.irfft(spectra[:i].conj() * spectra[i], n=n) / n
        assert np.abs(found).max(initial=0) < 7 / np.sqrt(n)


class Sites(nn.Module):
    """Dropout in two layers, one of them used twice."""

    def setup(self):
        self.one, self.two = Dropout(0.5), Dropout(0.5)

    def __call__(self, x):
        return self.one(x, True), self.two(x, True), self.one(x, True)


def test_sites_and_steps_of_a_model_drop_independently():
    run = jax.jit(lambda key: jnp.stack(Sites().apply({}, jnp.ones(2**16), rngs={"dropout": key})))
    x = np.concatenate([run(jax.random.fold_in(KEY, step)) for step in range(4)]) - 1
    assert x.shape == (12, 2**16) and strongest(x) < 5 / 2**8


# -------------------------------------------------------------------- the layer


def dropped(x, rate, key=KEY, train=True):
    return Dropout(rate).apply({}, x, train, rngs={"dropout": key})


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
def test_keeps_its_share_and_scales_what_it_keeps(rate):
    y = np.asarray(dropped(jnp.ones((64, 50, 128)), rate))
    kept = y != 0
    assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / y.size)
    np.testing.assert_array_equal(y[kept], np.float32(1 / (1 - rate)))


def test_preserves_the_expectation_of_every_element():
    x = RANDOM.standard_normal(50).astype(np.float32)
    y = jax.jit(jax.vmap(lambda key: dropped(x, 0.3, key)))(jax.random.split(KEY, 20_000))
    error = np.abs(x) * np.sqrt(0.3 / 0.7 / len(y))
    assert (np.abs(np.asarray(y).mean(0) - x) < 5 * error).all()


def test_the_gradient_passes_the_same_mask():
    x, c = RANDOM.standard_normal((2, 8, 16, 4)).astype(np.float32)
    y, gradient = jax.jit(
        lambda x: (dropped(x, 0.5), jax.grad(lambda x: (dropped(x, 0.5) * c).sum())(x))
    )(x)
    np.testing.assert_allclose(gradient, np.where(np.asarray(y) != 0, 2 * c, 0), rtol=1e-6)


def test_a_sharded_array_has_the_mask_of_an_unsharded_one():
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    x = jnp.ones((8, 6, 10))
    spread = jax.device_put(x, NamedSharding(mesh, P("a", None, "b")))
    y = jax.jit(dropped, static_argnums=1)(spread, 0.5)
    assert len(y.sharding.device_set) == 8
    np.testing.assert_array_equal(y, dropped(x, 0.5))


@pytest.mark.parametrize("rate, train", [(0.5, False), (0.0, True)])
def test_does_nothing_when_off_and_asks_for_no_key(rate, train):
    x = jnp.ones(3)
    assert Dropout(rate).apply({}, x, train) is x


def test_keeps_the_type_of_its_input():
    y = dropped(jnp.ones((4, 64), jnp.bfloat16), 0.1)
    assert y.dtype == jnp.bfloat16
    assert set(np.unique(y.astype(float))) == {0.0, float(jnp.bfloat16(1 / 0.9))}


def test_a_dropped_infinity_is_gone():
    y = np.asarray(dropped(jnp.full(64, jnp.inf), 0.5))
    assert set(y.tolist()) == {0.0, np.inf}
