"""Learned contractions and look-ups. One string says everything about a linear layer:
`Linear("BTD,DHK->BTHK", {"H": 8, "K": 64})` derives the kernel's shape, the fans of its
initialiser, the bias's shape and the axis letters for sharding.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers

from tfx.sharding import constrain


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
        table_VD = self.embedding.astype(x_BTD.dtype)
        out = jnp.float32
        logits_BTV = jnp.einsum("BTD,VD->BTV", x_BTD, table_VD, preferred_element_type=out)
        return constrain(logits_BTV, "BTV")
