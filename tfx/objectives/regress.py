"""Regression: one number for a text, or a pair of texts."""

import math

import jax.numpy as jnp
import numpy as np


def make_example(inputs: dict, rng=None, *, value: float) -> dict[str, np.ndarray]:
    """A row of `inputs.frame` and its number. Raises ValueError where that is not finite."""
    if not math.isfinite(value):
        raise ValueError(f"{value!r} is no number to learn; take its row out of the data")
    return inputs | {"value": np.float32(value)}


def loss(apply, params, batch, rngs, train):
    """Squared error of `logits` [B, 1] against `value` [B]; rows without a token do not count.

    Returns:
      Its sum over rows, their number, and a sum: `absolute_error`.
    """
    logits_BL = apply(params, batch, rngs=rngs, train=train)["logits"]
    weights_B = batch["mask"].any(-1).astype(jnp.float32)
    error_B = (logits_BL[:, 0].astype(jnp.float32) - batch["value"]) * weights_B
    return (error_B**2).sum(), weights_B.sum(), {"absolute_error": jnp.abs(error_B).sum()}
