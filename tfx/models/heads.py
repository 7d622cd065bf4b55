"""What stands on top of the layers of a pre-trained model: one thing per task."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers

from tfx.nn.dropout import Dropout
from tfx.nn.kernels import HIDDEN
from tfx.nn.linear import Embed, Linear, Product, parameter, wide
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


class Answer(nn.Module):
    """Where an answer starts, where it ends if it starts there, and whether there is none: Yang et
    al. (2019), their code for SQuAD.

    Attributes:
      norm: makes the norm.
      starts, ends: how many likely starts to follow, and likely ends of each.
    """

    width: int
    norm: Callable[..., nn.Module]
    starts: int
    ends: int

    def setup(self):
        hidden = partial(Linear, "BRE,ED->BRD", {"D": self.width})
        logit = partial(Linear, "BRD,DL->BRL", {"L": 1})
        self.start, self.end, self.impossible = logit(), logit(), logit(bias=False)
        self.end_hidden, self.end_norm, self.impossible_hidden = hidden(), self.norm(), hidden()

    def ends_of(self, x_BTD, begin_BWD) -> jax.Array:
        """Logits [B, T, W] of ending at t, having begun at w."""
        pairs = (
            jnp.repeat(x_BTD, begin_BWD.shape[1], 1),
            jnp.tile(begin_BWD, (1, x_BTD.shape[1], 1)),
        )
        hidden_BRD = jnp.tanh(self.end_hidden(jnp.concatenate(pairs, -1)))
        return self.end(self.end_norm(hidden_BRD)).reshape(*x_BTD.shape[:2], -1)

    def none_at(self, begin_B1D, cls_B1D) -> jax.Array:
        """Logits [B] of there being no answer."""
        pair_B1E = jnp.concatenate([begin_B1D, cls_B1D], -1)
        return wide(self.impossible(jnp.tanh(self.impossible_hidden(pair_B1E)))[:, 0, 0])

    def __call__(self, x_BTD, cls_B, allowed_BT=None, start_B=None) -> dict[str, jax.Array]:
        """Logits of `start` [B, T], and of an answer being `impossible` [B]. Where the start is
        known, those of the `end` [B, T]; else probabilities of the likeliest of each and where
        they are: `start_probs`, `start_at` [B, W], `end_probs`, `end_at` [B, ends * W].

        Args:
          cls_B: position of the token that stands for no answer.
          allowed_BT: 1 where an answer may start or end.
        """
        allowed_BT = jnp.ones(x_BTD.shape[:2]) if allowed_BT is None else allowed_BT
        only = lambda logits_BTW: jnp.where(allowed_BT[..., None] > 0, wide(logits_BTW), HIDDEN)
        state = lambda at_BW: jnp.take_along_axis(x_BTD, at_BW[..., None], 1)
        start_BT, cls_B1D = only(self.start(x_BTD))[..., 0], state(cls_B[:, None])
        if start_B is not None:
            begin_B1D = state(start_B[:, None])
            end_BT = only(self.ends_of(x_BTD, begin_B1D))[..., 0]
            impossible_B = self.none_at(begin_B1D, cls_B1D)
            return {"start": start_BT, "end": end_BT, "impossible": impossible_B}
        length = x_BTD.shape[1]
        probs_BT = jax.nn.softmax(start_BT)
        start_probs_BW, start_at_BW = jax.lax.top_k(probs_BT, min(self.starts, length))
        probs_BTW = jax.nn.softmax(only(self.ends_of(x_BTD, state(start_at_BW))), 1)
        ends = jax.lax.top_k(probs_BTW.swapaxes(1, 2), min(self.ends, length))
        end_probs, end_at = (found.swapaxes(1, 2).reshape(len(x_BTD), -1) for found in ends)
        mean_B1D = jnp.einsum("BTD,BT->BD", x_BTD, probs_BT.astype(x_BTD.dtype))[:, None]
        return {
            "start": start_BT,
            "start_probs": start_probs_BW,
            "start_at": start_at_BW,
            "end_probs": end_probs,
            "end_at": end_at,
            "impossible": self.none_at(mean_B1D, cls_B1D),
        }
