"""Attention that knows how far each key is from its query, and whether it is of the same segment:
Dai et al. (2019), "Transformer-XL", 3.3, and Yang et al. (2019), "XLNet", 2.5.

A score has three parts, q k + q r + q s. r is made of a sinusoid of the distance, s is one of two
vectors of a head, and q has a learned vector added, another one in each part.

Axis letters here: L distances, falling by one; G groups of rows that have distances of their own.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.nn import initializers

from tfx.nn.attention import Attention
from tfx.nn.kernels import SCALES, Visible
from tfx.nn.linear import Linear, parameter
from tfx.nn.position import sinusoid

INIT = initializers.normal(0.02)


@struct.dataclass
class Related(Visible):
    """What is visible, and how queries are related to keys.

    Attributes:
      encodings_GLD: sinusoids of the distances S, S - 1, ... 1 - T, where the queries are the last
        T of the S keys; see `encodings`. G divides B: the first rows take the first, and so on.
      apart_BTS: True where query and key are of different segments; None: there are none.
    """

    encodings_GLD: jax.Array | None = None
    apart_BTS: jax.Array | None = None


def encodings(queries: int, keys: int, width: int, clamp: int = 0, ways=(1,)) -> jax.Array:
    """Sinusoids [G, L, D] of the distances from the last `queries` of `keys` positions.

    Args:
      clamp: distances beyond it are as far; 0: none is.
      ways: a sign for each group; -1 takes the text as running backwards.
    """
    distances = np.multiply.outer(ways, np.arange(keys, -queries, -1))
    distances = np.clip(distances, -clamp, clamp) if clamp else distances
    return jnp.stack([jnp.asarray(sinusoid(each, width, halves=True)) for each in distances])


def shift(scores_BHTL: jax.Array, keys: int) -> jax.Array:
    """From scores by distance, those by key [B, H, T, S]: what is at T - t + s in row t goes to s.

    No element is looked up: read on with one column less, every row begins one further left.
    """
    *rest, queries, count = scores_BHTL.shape
    scores = scores_BHTL.reshape(*rest, count, queries)[..., 1:, :]
    return scores.reshape(*rest, queries, count - 1)[..., :keys]


class RelativeAttention(Attention):
    """Multi-head attention with relative encodings. It always runs the equation.

    Without a `Related` mask, distances are those of the mask's positions, or of a text that reads
    itself; they must be less than the number of keys.

    Attributes:
      segments: whether segments are told apart, where the mask says which are.
    """

    segments: bool = False

    def scores(self, q_BTHK, k_BSHK, mask: Visible, width: int) -> jax.Array:
        """The sum of the parts, scaled as one product is."""
        if not isinstance(mask, Related):
            mask = Related(queries_BT=mask.queries_BT, keys_BS=mask.keys_BS)
        of_head = q_BTHK.shape[2:]

        def with_bias(name):
            bias_HK = parameter(self, name, INIT, "HK", of_head)
            return q_BTHK + bias_HK[None, None].astype(q_BTHK.dtype)

        scores_BHTS = jnp.einsum("BTHK,BSHK->BHTS", with_bias("content_bias"), k_BSHK)
        scores_BHTS += self._of_distance(with_bias("position_bias"), k_BSHK, mask, width)
        if self.segments:
            q_BTHK = with_bias("segment_bias")
            vectors_CHK = parameter(self, "segment_vectors", INIT, "CHK", (2, *of_head))
            both_BHTC = jnp.einsum("BTHK,CHK->BHTC", q_BTHK, vectors_CHK.astype(q_BTHK.dtype))
            if mask.apart_BTS is not None:
                same_BHT1, apart_BHT1 = jnp.split(both_BHTC, 2, -1)
                scores_BHTS += jnp.where(mask.apart_BTS[:, None], apart_BHT1, same_BHT1)
        scale = self.key_width ** SCALES[self.score]
        return scores_BHTS * jnp.asarray(scale, scores_BHTS.dtype)

    def _of_distance(self, q_BTHK, k_BSHK, mask: Related, width: int) -> jax.Array:
        queries, keys = q_BTHK.shape[1], k_BSHK.shape[1]
        anywhere = mask.encodings_GLD is None and mask.queries_BT is not None
        encodings_GLD = mask.encodings_GLD
        if encodings_GLD is None:
            encodings_GLD = encodings(keys if anywhere else queries, keys, width)
        sizes = {"H": self.heads, "K": self.key_width}
        distance = Linear("GLD,DHK->GLHK", sizes, bias=False, name="distance")
        r_GLHK = distance(encodings_GLD.astype(q_BTHK.dtype))
        groups = zip(jnp.split(q_BTHK, len(r_GLHK)), r_GLHK, strict=True)
        groups = [jnp.einsum("BTHK,LHK->BHTL", q_BTHK, r_LHK) for q_BTHK, r_LHK in groups]
        scores_BHTL = jnp.concatenate(groups)
        if not anywhere:
            return shift(scores_BHTL, keys)
        keys_BS = jnp.arange(keys)[None] if mask.keys_BS is None else mask.keys_BS
        distance_BTS = mask.queries_BT[:, :, None] - keys_BS[:, None]
        return jnp.take_along_axis(scores_BHTL, (keys - distance_BTS)[:, None], -1)

    def _kernel(self, *_) -> str:
        return "xla"
