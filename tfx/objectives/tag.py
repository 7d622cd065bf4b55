"""Token classification: a class for every token, or for the first token of every word."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from tfx.nn.losses import softmax_cross_entropy
from tfx.objectives.classify import class_index

IGNORED = -100  # the label of a token that is not scored


def spread(labels: Sequence[int], words: Sequence[int]) -> list[int]:
    """Labels of words as labels of tokens: the first token of a word has the word's, all others
    are ignored (Devlin et al., 2019, section 5.3).

    Args:
      words: of every token, the number of its word; -1: it is of none.
    """
    firsts = [word >= 0 and word not in words[:at] for at, word in enumerate(words)]
    return [labels[w] if first else IGNORED for w, first in zip(words, firsts, strict=True)]


def make_example(
    inputs: dict, rng=None, *, labels: Sequence[int], classes: int
) -> dict[str, np.ndarray]:
    """A row of `inputs.frame` and a label a token, `IGNORED` where there is none.

    Raises:
      ValueError: a label out of range, or not one a token.
    """
    if len(labels) != len(inputs["ids"]):
        raise ValueError(f"{len(labels)} labels for {len(inputs['ids'])} tokens; give each one")
    scored = np.array([label != IGNORED for label in labels], bool)
    found = [class_index(n if s else 0, classes) for n, s in zip(labels, scored, strict=True)]
    return inputs | {"targets": np.array(found, np.int32), "weights": scored.astype(np.float32)}


def loss(apply, params, batch, rngs, train):
    """Cross-entropy of `logits` [B, T, L] with `targets` [B, T] of `weights` [B, T].

    Returns:
      Its sum over the tokens that are scored, their number, and sums: `nll`, `correct`.
    """
    logits_BTL = apply(params, batch, rngs=rngs, train=train)["logits"]
    weights_BT = batch["weights"]
    nll, correct = softmax_cross_entropy(logits_BTL, batch["targets"], weights_BT)
    return nll, weights_BT.sum().astype(jnp.float32), {"nll": nll, "correct": correct}
