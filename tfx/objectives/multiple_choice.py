"""Multiple choice: which of a few texts goes on. Each is read by itself and made one number; the
softmax is over these (Radford et al., 2018, section 3.3; Devlin et al., 2019, section 4.4)."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from tfx.nn.losses import softmax_cross_entropy
from tfx.objectives.classify import class_index


def make_example(choices: Sequence[dict], rng=None, *, label: int) -> dict[str, np.ndarray]:
    """Rows of `inputs.frame`, one a choice, as arrays [C, T] padded with 0; and which is right.

    Raises:
      ValueError: there is no such choice.
    """
    length = max(len(choice["ids"]) for choice in choices)
    padded = lambda row: np.pad(row, (0, length - len(row)))
    stacked = {key: np.stack([padded(c[key]) for c in choices]) for key in choices[0]}
    return stacked | {"label": class_index(label, len(choices))}


def loss(apply, params, batch, rngs, train):
    """Cross-entropy of `logits` [B, C] with `label` [B]. Choices without a token cannot be right;
    rows without any do not count.

    Returns:
      Its sum over rows, their number, and sums: `nll`, `correct`.
    """
    logits_BC = apply(params, batch, rngs=rngs, train=train)["logits"]
    there_BC = batch["mask"].any(-1)
    weights_B = there_BC.any(-1).astype(jnp.float32)
    logits_BC = jnp.where(there_BC, logits_BC, -jnp.inf)
    nll, correct = softmax_cross_entropy(logits_BC, batch["label"], weights_B)
    return nll, weights_B.sum(), {"nll": nll, "correct": correct}
