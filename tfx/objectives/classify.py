"""Classification: which of a few classes a text, or a pair of texts, is of."""

import operator

import jax.numpy as jnp
import numpy as np

from tfx.nn.losses import softmax_cross_entropy


def class_index(label, classes: int) -> np.int32:
    """The label as an index. JAX would take -1 for the last class and clamp what is too large.

    Raises:
      ValueError: the label is no whole number in [0, classes).
    """
    try:
        index = operator.index(label)
    except TypeError:
        index = -1
    if not 0 <= index < classes:
        raise ValueError(
            f"label {label!r} is not one of the {classes} classes 0..{classes - 1}; map the labels "
            "of the data to these, or set the number of classes"
        )
    return np.int32(index)


def make_example(inputs: dict, rng=None, *, label: int, classes: int) -> dict[str, np.ndarray]:
    """A row of `inputs.frame` and its class. Raises ValueError where there is no such class."""
    return inputs | {"label": class_index(label, classes)}


def loss(apply, params, batch, rngs, train):
    """Cross-entropy of `logits` [B, L] with `label` [B]; rows without a token do not count.

    Returns:
      Its sum over rows, their number, and sums: `nll`, and `correct`, the rows got right.
    """
    logits_BL = apply(params, batch, rngs=rngs, train=train)["logits"]
    weights_B = batch["mask"].any(-1).astype(jnp.float32)
    nll, correct = softmax_cross_entropy(logits_BL, batch["label"], weights_B)
    return nll, weights_B.sum(), {"nll": nll, "correct": correct}
