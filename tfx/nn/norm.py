"""Normalisation over the width, in float32."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers

from tfx.nn.linear import parameter, wide


class LayerNorm(nn.Module):
    """Ba, Kiros and Hinton (2016). The variance is taken in two passes: the one-pass
    E[x^2] - E[x]^2 loses all its digits when the mean is large."""

    epsilon: float

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        width = (x_BTD.shape[-1],)
        scale_D = parameter(self, "scale", initializers.ones, "D", width)
        bias_D = parameter(self, "bias", initializers.zeros, "D", width)
        y_BTD = wide(x_BTD)
        y_BTD -= y_BTD.mean(-1, keepdims=True)
        y_BTD *= jax.lax.rsqrt(jnp.square(y_BTD).mean(-1, keepdims=True) + self.epsilon)
        return (y_BTD * scale_D[None, None] + bias_D[None, None]).astype(x_BTD.dtype)


class RMSNorm(nn.Module):
    """Zhang and Sennrich (2019): no mean, no bias."""

    epsilon: float

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        scale_D = parameter(self, "scale", initializers.ones, "D", (x_BTD.shape[-1],))
        y_BTD = wide(x_BTD)
        y_BTD *= jax.lax.rsqrt(jnp.square(y_BTD).mean(-1, keepdims=True) + self.epsilon)
        return (y_BTD * scale_D[None, None]).astype(x_BTD.dtype)


NORMS = {"layer": LayerNorm, "rms": RMSNorm}
