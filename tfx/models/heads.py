"""What stands on top of the layers of a pre-trained model: one thing per task."""

import jax
from flax import linen as nn
from jax.nn import initializers

from tfx.nn.dropout import Dropout
from tfx.nn.linear import Embed, Linear, Product, parameter
from tfx.nn.mlp import ACTIVATIONS


class MaskedLM(nn.Module):
    """Logits of the masked tokens: Devlin et al. (2019), their code. A dense layer, a norm, and
    the embeddings as the output layer, with a bias of its own.

    Attributes:
      norm: makes the norm.
    """

    activation: str
    norm: nn.Module

    @nn.compact
    def __call__(self, x_BTD: jax.Array, embed: Embed) -> Product:
        dense = Linear("BTD,DE->BTE", {"E": x_BTD.shape[-1]}, name="dense")
        x_BTD = self.norm(name="norm")(ACTIVATIONS[self.activation](dense(x_BTD)))
        return embed.product(
            x_BTD, parameter(self, "bias", initializers.zeros, "V", (embed.vocab,))
        )


class Pooler(nn.Module):
    """One vector for a text: a dense layer on the state of one of its tokens.

    Attributes:
      activation: one of `mlp.ACTIVATIONS`.
      dropout: on that state (RoBERTa).
    """

    activation: str
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x_BD: jax.Array, train: bool = False) -> jax.Array:
        x_BD = Dropout(self.dropout)(x_BD, train)
        dense = Linear("BD,DE->BE", {"E": x_BD.shape[-1]}, name="dense")
        return ACTIVATIONS[self.activation](dense(x_BD))
