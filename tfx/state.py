"""Everything a run must remember to go on as if it had never stopped."""

from typing import Any

import jax
from flax import struct


class TrainState(struct.PyTreeNode):
    """One pytree. The data position is `step` itself: batch = f(seed, step).

    Attributes:
      step: updates done.
      params: float32.
      opt_state: the optimiser's.
      rng: key of the run; each step folds its number in.
      ema: moving average of the parameters, or None.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    rng: jax.Array
    ema: Any = None

    @property
    def weights(self):
        """The parameters to evaluate and translate with."""
        return self.params if self.ema is None else self.ema
