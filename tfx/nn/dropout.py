"""Dropout (Srivastava et al., 2014) whose random bits cost next to nothing.

A counter-based generator such as threefry spends a fifth of a small model's training
time on a CPU on dropout alone. One keep-or-drop decision does not need cryptographic
bits: here every element's index is mixed with the 64-bit key of the site, the layer and
the step by a short integer hash, which the compiler fuses into the multiplication that
uses it. `tests/nn/test_dropout.py` tests uniformity and independence over positions,
sites and steps. The mask depends on the key and the element alone, so it is the same on
any mesh of devices.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn


def random_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform uint32 [*shape] from a PRNG key: three rounds of xor-shift and multiply.

    The first two multipliers are those of Wellons's `lowbias32` search; the second half of
    the key enters after the first, so that no two keys give shifted copies of one stream,
    and before the second xor-shift, without which its high bits would change few others.
    """
    data = jax.random.key_data(key).astype(jnp.uint32)
    x = jnp.full(shape, data[0])
    stride = 1
    for axis in reversed(range(len(shape))):
        # Strides wrap modulo 2^32: harmless, all that matters is that neighbours differ.
        x += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    x = ((x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)) ^ data[-1]
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    x = (x ^ (x >> 16)) * jnp.uint32(0x9E3779B1)
    return x ^ (x >> 15)


class Dropout(nn.Module):
    """Zero a share `rate` of the elements while training, and scale up the others."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if not train or self.rate == 0.0:
            return x
        bits = random_bits(self.make_rng("dropout"), x.shape)
        keep = bits >= jnp.uint32(math.floor(self.rate * 2**32))
        return jnp.where(keep, x * jnp.asarray(1 / (1 - self.rate), x.dtype), 0)
