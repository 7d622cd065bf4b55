"""Regression: one number for a text, or a pair of texts."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from tfx.data import examples as data
from tfx.objectives import inputs

ROWS, HEADS = "labelled", ("classify",)
READS = "ids"


@dataclass(frozen=True)
class Config:
    """What is minimised: nothing to choose."""


def examples(config: Config, given: data.Given) -> data.Examples:
    """Rows of one text or two and their number."""
    if given.classes != 1:
        raise ValueError(f"model.classes = {given.classes}: a regression has one output; set 1")
    rows, lengths = data.texts(given, number_of, np.float32, ["number"])
    make = lambda row, rng, value: make_example(row, value=float(value))
    v = given.vocabulary
    axes = inputs.axes(v, value="")
    return data.of_rows(rows, [lengths], inputs.rows_of(v, rows, make), axes)


def number_of(label) -> list[float]:
    """The value of a row as the data has it. Raises ValueError where it is no finite number."""
    try:
        value = float(label)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f'"{label}" is no number to learn; correct the row or leave it out')
    return [value]


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
