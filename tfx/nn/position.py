"""Where in the sequence a token stands: what is added to embeddings (`Positions`) or to attention
scores (`Bias`), and by how much queries and keys are turned (`rotate`)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.nn import initializers

from tfx.nn.linear import parameter


def sinusoid(positions: int | np.ndarray, width: int, halves: bool = False) -> np.ndarray:
    """Table [positions, width]: Vaswani et al. (2017), 3.5, sine and cosine interleaved.

    Made in NumPy float64: float32 angles are off by 1e-4 at position 1000.

    Args:
      positions: which ones; a number means those below it.
      halves: first all sines, then all cosines, as Marian and XLNet have them.
    """
    angles = np.arange(0, width, 2) / width
    angles = (np.arange(positions) if np.isscalar(positions) else positions)[
        :, None
    ] / 10000**angles
    parts = np.sin(angles), np.cos(angles)
    table = np.concatenate(parts, -1) if halves else np.stack(parts, -1)
    return table.reshape(len(angles), -1)[:, :width].astype(np.float32)


class Positions(nn.Module):
    """Vectors added to embeddings: fixed sinusoids or a learned table.

    Attributes:
      kind: "sinusoid", "sinusoid_halves" or "learned"; any other adds nothing here.
      length: how many positions there are; callers check that no position exceeds it.
      offset: rows of a learned table before that of position 0 (RoBERTa's and BART's have two).
    """

    kind: str
    length: int
    offset: int = 0

    @nn.compact
    def __call__(self, x_BTD: jax.Array, start=0, positions_BT=None) -> jax.Array:
        """Add the vectors of positions start, start + 1, ... (or of `positions_BT`) to x.

        With one position for all T (parallel queries of one step), pass `positions_BT`.
        """
        width = x_BTD.shape[-1]
        if self.kind == "learned":
            init = initializers.normal(width**-0.5)
            rows = self.length + self.offset
            table_SD = parameter(self, "embedding", init, "SD", (rows, width))
            start += self.offset
            positions_BT = None if positions_BT is None else positions_BT + self.offset
        elif self.kind.startswith("sinusoid"):
            halves = self.kind == "sinusoid_halves"
            table_SD = jnp.asarray(sinusoid(self.length, width, halves))
        else:
            return x_BTD
        if positions_BT is None:
            p_BTD = jax.lax.dynamic_slice_in_dim(table_SD, start, x_BTD.shape[1])[None]
        else:
            p_BTD = jnp.take(table_SD, positions_BT, axis=0)
        return x_BTD + p_BTD.astype(x_BTD.dtype)


def rotate(x_BTHK: jax.Array, positions_BT: jax.Array, base: float = 10000.0) -> jax.Array:
    """Queries or keys, each pair (2i, 2i + 1) of a head turned by position / base^(2i / K): Su et
    al. (2021), "RoFormer", equation 34. Products of the two then see distances alone."""
    width = x_BTHK.shape[-1]
    turns_111K = base ** (-np.arange(0, width, 2)[None, None, None] / width)
    angles_BT1K = positions_BT[..., None, None] * turns_111K.astype(np.float32)
    sin, cos = (f(angles_BT1K).astype(x_BTHK.dtype) for f in (jnp.sin, jnp.cos))
    even, odd = x_BTHK[..., 0::2], x_BTHK[..., 1::2]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], -1)
    return turned.reshape(x_BTHK.shape)


def bucket(distance: np.ndarray, buckets: int, furthest: int, both_ways: bool) -> np.ndarray:
    """Which of `buckets` each distance (key - query) belongs to: Raffel et al. (2020), 2.1.

    Half of the buckets hold one distance each, the others grow by equal factors up to `furthest`
    and hold what lies beyond. `both_ways`: half of all are for keys behind the query; otherwise
    those keys share the bucket of distance 0.

    In NumPy: where a bucket begins at a whole distance, its side is decided by how the logarithm
    is rounded, which compilers do otherwise than the authors' float32.
    """
    behind = 0
    if both_ways:
        buckets //= 2
        behind, distance = (distance > 0) * buckets, np.abs(distance)
    else:
        distance = np.maximum(-distance, 0)
    exact = buckets // 2
    factor = np.maximum(distance, 1).astype(np.float32) / np.float32(exact)
    growth = np.log(factor) / np.float32(math.log(furthest / exact))
    far = exact + (growth * np.float32(buckets - exact)).astype(np.int32)
    return behind + np.where(distance < exact, distance, np.minimum(far, buckets - 1))


def slopes(heads: int) -> np.ndarray:
    """How steeply each head's bias falls: Press et al. (2022), "ALiBi", 3: 2^(-8/H), 2^(-16/H), ...
    For other H than powers of two, those of the next lower one, then every other of the next
    higher one (their code)."""
    whole = 1 << (heads.bit_length() - 1)
    powers = lambda n: 2.0 ** (-8 * np.arange(1, n + 1) / n)
    return np.concatenate([powers(whole), powers(2 * whole)[0::2][: heads - whole]])


class Bias(nn.Module):
    """What is added to attention scores for the distance of a key from a query, per head.

    Attributes:
      kind: "t5": learned, per bucket; "alibi": the distance times minus a fixed slope.
      buckets, furthest, both_ways: of t5; see `bucket`.
    """

    kind: str
    heads: int
    buckets: int = 32
    furthest: int = 128
    both_ways: bool = True

    @nn.compact
    def __call__(self, queries_BT: jax.Array, keys_BS: jax.Array) -> jax.Array:
        """The bias [B, H, T, S], float32, of positions of queries and keys."""
        distance_BTS = keys_BS[:, None] - queries_BT[:, :, None]
        if self.kind == "alibi":
            slopes_1H11 = jnp.asarray(slopes(self.heads), jnp.float32)[None, :, None, None]
            return -slopes_1H11 * jnp.abs(distance_BTS)[:, None]
        shape = (self.buckets, self.heads)
        table_SH = parameter(self, "embedding", initializers.normal(0.02), "SH", shape)
        most = 2 * self.furthest  # beyond `furthest`, however that is rounded, nothing changes
        each_S = bucket(np.arange(-most, most + 1), self.buckets, self.furthest, self.both_ways)
        found_BTSH = jnp.take(table_SH[each_S], distance_BTS + most, axis=0, mode="clip")
        return jnp.moveaxis(found_BTSH, -1, 1)
