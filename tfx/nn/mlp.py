"""The position-wise feed-forward network, plain or gated."""

import functools

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from tfx.nn.dropout import Dropout
from tfx.nn.linear import Linear

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_sigmoid": lambda x: x * jax.nn.sigmoid(1.702 * x),  # Hendrycks and Gimpel (2016), 2
    "silu": jax.nn.silu,
    "tanh": jax.nn.tanh,
}
# Shazeer (2020): activation(x W) * (x V). His names: ReGLU, GEGLU, SwiGLU, GLU.
GATED = {
    "reglu": jax.nn.relu,
    "geglu": ACTIVATIONS["gelu"],
    "geglu_tanh": ACTIVATIONS["gelu_tanh"],
    "swiglu": jax.nn.silu,
    "glu": jax.nn.sigmoid,
}


class Mlp(nn.Module):
    """Vaswani et al. (2017), equation 2, or a gated variant of Shazeer (2020).

    Attributes:
      hidden: width of the inner layer (the paper's d_ff).
      activation: one of `ACTIVATIONS` or `GATED`.
      dropout: on the inner layer.
    """

    hidden: int
    activation: str = "relu"
    dropout: float = 0.0
    bias: bool = True

    @nn.compact
    def __call__(self, x_BTD: jax.Array, train: bool = False) -> jax.Array:
        inner = functools.partial(Linear, "BTD,DF->BTF", {"F": self.hidden}, self.bias)
        if self.activation in GATED:
            h_BTF = GATED[self.activation](inner(name="gate")(x_BTD)) * inner(name="up")(x_BTD)
        else:
            h_BTF = ACTIVATIONS[self.activation](inner(name="up")(x_BTD))
        h_BTF = Dropout(self.dropout)(checkpoint_name(h_BTF, "mlp_hidden"), train)
        return Linear("BTF,FD->BTD", {"D": x_BTD.shape[-1]}, self.bias, name="down")(h_BTF)
