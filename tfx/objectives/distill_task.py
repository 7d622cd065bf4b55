"""Distillation of a classifier: learn the labels, and what the teacher makes of them.

Half the cross-entropy with the labels, half the divergence from the teacher at temperature 2: the
second step of distillation of Sanh et al. (2019), section 4.1, whose teacher was fine-tuned.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from tfx.data import examples as data
from tfx.nn.losses import distillation
from tfx.objectives import classify, distill

ROWS, HEADS = classify.ROWS, classify.HEADS
READS = "ids"
make_example = classify.make_example


@dataclass(frozen=True)
class Config(classify.Config):
    """What is minimised."""

    teacher: str = ""  # a workdir, or a folder of Hugging Face: a classifier of the same classes
    temperature: Annotated[float, "x > 0"] = 2.0
    soft: Annotated[float, "0 <= x <= 1"] = 0.5  # weight of the divergence from the teacher


def examples(config: Config, given: data.Given) -> data.Examples:
    """As of `classify`."""
    distill.named(config.teacher)
    return classify.examples(config, given)


def check(config: Config, model, teacher) -> None:
    """Raises a ValueError where a teacher's model does not tell the classes of the student's."""
    there = teacher.classes if getattr(teacher, "head", "lm") in HEADS else 0
    if there != model.classes:
        raise ValueError(
            f"it tells {there} classes apart, the model {model.classes}; name a classifier of the "
            "same"
        )


def loss(
    apply,
    params,
    batch,
    rngs,
    train,
    *,
    teacher: Callable[[dict], dict],
    temperature: float = 2.0,
    soft: float = 0.5,
):
    """(1 - soft) * cross-entropy + soft * divergence of `logits` [B, L], over rows with a token.

    Args:
      teacher: batch -> what its model returns, `logits`; no gradient enters it.

    Returns:
      Its sum over rows, their number, and sums: `nll`, `accuracy`, `divergence`.
    """
    mine = apply(params, batch, rngs=rngs, train=train)
    nll, weight, sums = classify.loss(lambda *_, **__: mine, params, batch, rngs, train)
    identity_LL = jnp.eye(mine["logits"].shape[-1])
    factors = lambda outputs: (outputs["logits"][:, None].astype(jnp.float32), identity_LL)
    weights_B1 = batch["mask"].any(-1, keepdims=True).astype(jnp.float32)
    theirs = jax.lax.stop_gradient(teacher(batch))
    divergence = distillation(factors(mine), factors(theirs), weights_B1, temperature)
    total = (1 - soft) * nll + soft * divergence
    return total, weight, sums | {"divergence": divergence}
