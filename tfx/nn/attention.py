"""Attention: every query reads a mean of values, weighted by how well its key matches.

`attend` is the equation. `Attention` puts learned projections around it, or around a kernel
of tfx/nn/kernels.py, and serves encoder self-attention, causal self-attention and
cross-attention alike: what differs is only which keys and values it is given, and the mask.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jax.nn import initializers

from tfx.nn import kernels
from tfx.nn.dropout import Dropout
from tfx.nn.kernels import Visible
from tfx.nn.linear import Linear, parameter, wide
from tfx.nn.position import rotate


def attend(scores_BHTS, v_BSHK, mask_B1TS=None, dropout=lambda weights: weights):
    """softmax(scores) v: Vaswani et al. (2017), equation 1, given the scores.

    Args:
      scores_BHTS: match of query t and key s, per head.
      v_BSHK: values.
      mask_B1TS: True where query t may read key s; any axis but S may be 1. A query that
        may read nothing gets zeros.
      dropout: applied to the weights.

    Returns:
      The weighted means [B, T, H, K] and the weights [B, H, T, S], float32, before dropout.
    """
    scores_BHTS = wide(scores_BHTS)
    if mask_B1TS is not None:
        scores_BHTS = jnp.where(mask_B1TS, scores_BHTS, -1e30)
    weights_BHTS = jax.nn.softmax(scores_BHTS)
    if mask_B1TS is not None:
        weights_BHTS = jnp.where(mask_B1TS, weights_BHTS, 0)
    used_BHTS = dropout(weights_BHTS).astype(v_BSHK.dtype)
    # Spelled as a plain batched matrix product, which is the fast one on CPUs.
    v_BHSK = v_BSHK.swapaxes(1, 2)
    y_BHTK = jnp.einsum("BHTS,BHSK->BHTK", used_BHTS, v_BHSK)
    return y_BHTK.swapaxes(1, 2), weights_BHTS


def scaled_dot(module, q_BTHK, k_BSHK):
    """q k^T / sqrt(K): Vaswani et al. (2017), equation 1."""
    q_BTHK = q_BTHK * jnp.asarray(q_BTHK.shape[-1] ** -0.5, q_BTHK.dtype)
    return jnp.einsum("BTHK,BSHK->BHTS", q_BTHK, k_BSHK)


def dot(module, q_BTHK, k_BSHK):
    """q k^T, not scaled: Luong et al. (2015), "dot"."""
    return jnp.einsum("BTHK,BSHK->BHTS", q_BTHK, k_BSHK)


def general(module, q_BTHJ, k_BSHK):
    """q W k^T with a learned matrix [J, K] per head, J = K: Luong et al. (2015), "general"."""
    heads, width = q_BTHJ.shape[-2:]
    init = initializers.glorot_uniform(in_axis=1, out_axis=2, batch_axis=0)
    matrix_HJK = parameter(module, "score_matrix", init, "HKK", (heads, width, width))
    q_BTHK = jnp.einsum("BTHJ,HJK->BTHK", q_BTHJ, matrix_HJK.astype(q_BTHJ.dtype))
    return jnp.einsum("BTHK,BSHK->BHTS", q_BTHK, k_BSHK)


def additive(module, q_BTHK, k_BSHK):
    """v tanh(q + k): Bahdanau et al. (2015), A.1.2; their two matrices are the query and
    key projections. Takes memory B*T*S*H*K."""
    heads, width = q_BTHK.shape[-2:]
    init = initializers.normal(width**-0.5)
    vector_HK = parameter(module, "score_vector", init, "HK", (heads, width))
    sum_BTSHK = jnp.tanh(q_BTHK[:, :, None] + k_BSHK[:, None])
    return jnp.einsum("BTSHK,HK->BHTS", sum_BTSHK, vector_HK.astype(q_BTHK.dtype))


SCORES = {"scaled": scaled_dot, "dot": dot, "general": general, "additive": additive}


@struct.dataclass
class KeyValues:
    """What an attention reads. Made from the text itself, from an encoder's output, or
    kept from earlier steps as a cache. Each head's keys lie together, as the product with
    queries wants them: a cache in any other order would be copied at every step."""

    k_BHSK: jax.Array
    v_BHSK: jax.Array

    def write(self, new: "KeyValues", slot: jax.Array) -> "KeyValues":
        """These, with `new` [B, H, W, K] in the slots from `slot` on."""
        update = lambda old, part: jax.lax.dynamic_update_slice_in_dim(old, part, slot, 2)
        return jax.tree.map(update, self, new)


class Attention(nn.Module):
    """Multi-head attention: Vaswani et al. (2017), 3.2.2.

    Attributes:
      key_width, value_width: of one head (the paper's d_k and d_v).
      score: one of `SCORES`.
      dropout: on the attention weights.
      bias: whether the four projections have one.
      kernel: one of `kernels.KERNELS`, "xla" (`attend`) or "auto"; see `kernels.choose`. Calls
        that need the scores are "xla" in any case: those with an explicit mask, which
        decoding has, those with a bias, and those whose weights are wanted.
      rotary: whether queries and keys are turned by their positions (`position.rotate`).

    The weights [B, H, T, S] of each call are sown as "weights" into the collection
    "intermediates".
    """

    heads: int
    key_width: int
    value_width: int
    score: str = "scaled"
    dropout: float = 0.0
    bias: bool = True
    kernel: str = "auto"
    rotary: bool = False

    def setup(self):
        keys = {"H": self.heads, "K": self.key_width}
        values = {"H": self.heads, "K": self.value_width}
        self.query = Linear("BTD,DHK->BTHK", keys, self.bias)
        self.key = Linear("BSD,DHK->BSHK", keys, self.bias)
        self.value = Linear("BSD,DHK->BSHK", values, self.bias)
        self.drop = Dropout(self.dropout)

    def keys_values(self, y_BSD: jax.Array, positions_BS: jax.Array | None = None) -> KeyValues:
        """Project what is to be read; `positions_BS`: where it stands, None: 0, 1, 2, ..."""
        k_BSHK, v_BSHK = checkpoint_name((self.key(y_BSD), self.value(y_BSD)), "key_value")
        k_BSHK = self._turned(k_BSHK, positions_BS)
        return KeyValues(k_BSHK.swapaxes(1, 2), v_BSHK.swapaxes(1, 2))

    @nn.compact
    def __call__(self, x_BTD, keys_values: KeyValues, mask=None, train: bool = False):
        """Read `keys_values` with queries made from x; returns [B, T, D].

        Args:
          mask: a `Visible`, or a bool array as `attend` takes it; None: all is read.
        """
        mask = Visible.of(mask)
        q_BTHK = self._turned(checkpoint_name(self.query(x_BTD), "query"), mask.queries_BT)
        k_BSHK, v_BSHK = keys_values.k_BHSK.swapaxes(1, 2), keys_values.v_BHSK.swapaxes(1, 2)
        kernel = self._kernel(q_BTHK, k_BSHK, v_BSHK, mask, train)
        if kernel == "xla":
            scores_BHTS = self.scores(q_BTHK, k_BSHK, mask, x_BTD.shape[-1])
            if mask.bias_BHTS is not None:
                scores_BHTS += mask.bias_BHTS
            mask_B1TS = mask.mask(q_BTHK.shape[1], k_BSHK.shape[1])
            dropout = lambda weights: self.drop(weights, train)
            y_BTHK, weights_BHTS = attend(scores_BHTS, v_BSHK, mask_B1TS, dropout)
            self.sow("intermediates", "weights", weights_BHTS)
            y_BTHK = checkpoint_name(y_BTHK, kernels.OUT)
        else:
            scale = self.key_width ** kernels.SCALES[self.score]
            segments = mask.replace(queries_BT=None, keys_BS=None)
            y_BTHK = kernels.run(kernel, q_BTHK, k_BSHK, v_BSHK, segments, scale)
        out = Linear("BTHK,HKD->BTD", {"D": x_BTD.shape[-1]}, self.bias, name="out")
        return out(y_BTHK)

    def scores(self, q_BTHK, k_BSHK, mask: Visible, width: int) -> jax.Array:
        """How well each key matches each query [B, H, T, S]; `width` is that of x."""
        return SCORES[self.score](self, q_BTHK, k_BSHK)

    def _turned(self, x_BTHK, positions_BT):
        if not self.rotary:
            return x_BTHK
        positions_BT = jnp.arange(x_BTHK.shape[1])[None] if positions_BT is None else positions_BT
        return rotate(x_BTHK, positions_BT)

    def _kernel(self, q_BTHK, k_BSHK, v_BSHK, mask: Visible, train: bool) -> str:
        """Which kernel runs; said in the log."""
        if self.is_initializing():
            return "xla"
        needs = "" if mask.allowed_B1TS is None else "its mask is explicit"
        needs = needs if mask.bias_BHTS is None else "a bias is added to its scores"
        if self.is_mutable_collection("intermediates"):
            needs = "its weights are wanted"
        rate = self.dropout if train else 0.0
        rest = dict(score=self.score, dropout=rate, needs_scores=needs)
        facts = kernels.facts_of(q_BTHK, k_BSHK, v_BSHK, mask, **rest)
        chosen, reasons = kernels.choose(self.kernel, facts)
        kernels.say(chosen, tuple(reasons.items()))
        return chosen
