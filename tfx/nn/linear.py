"""Learned contractions and look-ups. One string says everything about a linear layer:
`Linear("BTD,DHK->BTHK", {"H": 8, "K": 64})` derives the kernel's shape, the fans of its
initialiser, the bias's shape and the axis letters for sharding.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.nn import initializers

from tfx.sharding import constrain


def wide(x: jax.Array) -> jax.Array:
    """x in float32, or in float64 where it is that already."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@struct.dataclass
class Product:
    """Logits as the product that they are, so that a loss never need hold them whole:
    states [B, T, D] times a table [V, D], plus a bias [V] where there is one."""

    states_BTD: jax.Array
    table_VD: jax.Array
    bias_V: jax.Array | None = None

    def factors(self) -> tuple[jax.Array, jax.Array]:
        """States and table whose product is all of it: a bias is one more column."""
        if self.bias_V is None:
            return self.states_BTD, self.table_VD
        one_BT1 = jnp.ones_like(self.states_BTD[..., :1])
        bias_V1 = self.bias_V[:, None].astype(self.table_VD.dtype)
        return jnp.concatenate([self.states_BTD, one_BT1], -1), jnp.concatenate(
            [self.table_VD, bias_V1], -1
        )

    def logits(self) -> jax.Array:
        """[B, T, V], float32 at least."""
        x_BTD, table_VD = self.states_BTD, self.table_VD.astype(self.states_BTD.dtype)
        out = jnp.promote_types(x_BTD.dtype, jnp.float32)
        logits_BTV = jnp.einsum("BTD,VD->BTV", x_BTD, table_VD, preferred_element_type=out)
        logits_BTV = logits_BTV if self.bias_V is None else logits_BTV + self.bias_V[None, None]
        return constrain(logits_BTV, "BTV")


def parameter(module: nn.Module, name: str, init, axes: str, shape: tuple[int, ...]) -> jax.Array:
    """A float32 parameter that remembers its axis letters."""
    return module.param(name, nn.with_logical_partitioning(init, tuple(axes)), shape, jnp.float32)


class Linear(nn.Module):
    """A learned contraction with an optional bias.

    Attributes:
      spec: einsum string "input,kernel->output" in axis letters.
      sizes: sizes of the letters that the input does not have.
      kernel_init: default: uniform by Glorot and Bengio (2010), from the contraction's fans.
    """

    spec: str
    sizes: Mapping[str, int]
    bias: bool = True
    kernel_init: initializers.Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs, kernel_axes, outputs = self.spec.replace("->", ",").split(",")
        size = dict(zip(inputs, x.shape, strict=True)) | dict(self.sizes)
        init = self.kernel_init or initializers.variance_scaling(
            1.0,
            "fan_avg",
            "uniform",
            in_axis=[i for i, a in enumerate(kernel_axes) if a in inputs],
            out_axis=[i for i, a in enumerate(kernel_axes) if a not in inputs],
        )
        shape = tuple(size[a] for a in kernel_axes)
        kernel = parameter(self, "kernel", init, kernel_axes, shape)
        # One matrix product: with several kernel axes XLA's CPU backend copies and transposes.
        kept = sum(a not in kernel_axes for a in inputs)
        x_rows = x.reshape(*x.shape[:kept], -1)
        matrix = kernel.astype(x.dtype).reshape(x_rows.shape[-1], -1)
        y = (x_rows @ matrix).reshape([size[a] for a in outputs])
        if self.bias:
            axes = "".join(a for a in outputs if a in kernel_axes)
            bias = parameter(self, "bias", initializers.zeros, axes, tuple(size[a] for a in axes))
            y += bias.astype(x.dtype).reshape([size[a] if a in axes else 1 for a in outputs])
        return constrain(y, outputs)


class Embed(nn.Module):
    """A table of vectors: looked up on the way in, multiplied by on the way out.

    Attributes:
      scale: factor on looked-up vectors; sqrt(width) in Vaswani et al. (2017), 3.4.
      dtype: type of the activations, here and in all that follows.
    """

    vocab: int
    width: int
    scale: float = 1.0
    dtype: str = "float32"

    def setup(self):
        init = initializers.normal(self.width**-0.5)
        self.embedding = parameter(self, "embedding", init, "VD", (self.vocab, self.width))

    def __call__(self, ids_BT: jax.Array) -> jax.Array:
        """Vectors [B, T, D] of ids [B, T]."""
        # Whole vectors first: looked up in pieces, they would have to be sent around twice.
        table_VD = constrain(self.embedding, "VD")
        x_BTD = jnp.take(table_VD, ids_BT, axis=0) * self.scale
        return constrain(x_BTD.astype(self.dtype), "BTD")

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Float32 logits [B, T, V]: the table as the output layer (Press and Wolf, 2017)."""
        return self.product(x_BTD).logits()

    def product(self, x_BTD: jax.Array, bias_V: jax.Array | None = None) -> Product:
        """The same, not multiplied out."""
        return Product(x_BTD, self.embedding.astype(x_BTD.dtype), bias_V)
