"""Where in the sequence a token stands."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.nn import initializers

from tfx.nn.linear import parameter


def sinusoid(length: int, width: int) -> np.ndarray:
    """Table [length, width]: Vaswani et al. (2017), 3.5, sine and cosine interleaved.

    Made in NumPy float64: float32 angles are off by 1e-4 at position 1000.
    """
    angles = np.arange(length)[:, None] / 10000 ** (np.arange(0, width, 2) / width)
    table = np.stack([np.sin(angles), np.cos(angles)], axis=-1)
    return table.reshape(length, -1)[:, :width].astype(np.float32)


class Positions(nn.Module):
    """Vectors added to embeddings: fixed sinusoids or a learned table.

    Attributes:
      kind: "sinusoid", "learned" or "none".
      length: rows of the table; callers check that no position exceeds it.
    """

    kind: str
    length: int

    @nn.compact
    def __call__(self, x_BTD: jax.Array, start=0, positions_BT=None) -> jax.Array:
        """Add the vectors of positions start, start + 1, ... (or of `positions_BT`) to x.

        With one position for all T (parallel queries of one step), pass `positions_BT`.
        """
        if self.kind == "none":
            return x_BTD
        width = x_BTD.shape[-1]
        if self.kind == "learned":
            init = initializers.normal(width**-0.5)
            table_SD = parameter(self, "embedding", init, "SD", (self.length, width))
        else:
            table_SD = jnp.asarray(sinusoid(self.length, width))
        if positions_BT is None:
            p_BTD = jax.lax.dynamic_slice_in_dim(table_SD, start, x_BTD.shape[1])[None]
        else:
            p_BTD = jnp.take(table_SD, positions_BT, axis=0)
        return x_BTD + p_BTD.astype(x_BTD.dtype)
