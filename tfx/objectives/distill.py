"""Distillation: a student learns what its teacher makes of masked text. Sanh et al. (2019).

    5  KL(teacher || student) of the softened distributions of tokens, temperature 2
    2  the cross-entropy of the masked tokens
    1  1 - the cosine of the last hidden states

each a mean over tokens: the first and the last over all of them, as in the authors' code. The
student starts as every second layer of its teacher.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from tfx.data import examples as data
from tfx.nn.losses import cosine_distance, cross_entropy, distillation, sum_of_means
from tfx.objectives import inputs, masked_lm
from tfx.objectives.inputs import Special

ROWS, HEADS = "text", ("mlm", "pretraining")
READS = "ids"
OVER = {"nll": "masked"}
SLICE = 1 << 24  # ids that are counted at a time


@dataclass(frozen=True)
class Config:
    """What is minimised."""

    teacher: str = ""  # a workdir, or a folder of Hugging Face
    temperature: Annotated[float, "x > 0"] = 2.0
    soft: Annotated[float, "x >= 0"] = 5.0  # weight of the divergence from the teacher,
    hard: Annotated[float, "x >= 0"] = 2.0  # of the masked tokens,
    cosine: Annotated[float, "x >= 0"] = 1.0  # and of the hidden states
    masked_only: bool = False  # the divergence over the masked tokens, not over all
    rate: Annotated[float, "0 < x < 1"] = 0.15  # share of the tokens that is masked


def token_weights(counts: np.ndarray, special: Special) -> np.ndarray:
    """How likely each id is to be chosen for masking: the rarer the likelier, special ones never.

    Args:
      counts: [vocab], how often each id is in the text.
    """
    weights = np.maximum(counts, 1) ** -0.7
    weights[special.ids] = 0
    return weights


def make_example(
    inputs: dict,
    rng: np.random.Generator,
    *,
    special: Special,
    weights: np.ndarray,
    rate: float = 0.15,
) -> dict[str, np.ndarray]:
    """A row, ceil(rate * tokens) of its tokens masked; the authors count those of a whole batch.

    Args:
      inputs: of `inputs.frame`.
      weights: [vocab], see `token_weights`; random tokens are drawn from all ids.

    Returns:
      The row with masked `ids`, and `targets` [T] and `weights` [T]: 1 where one was chosen.
    """
    ids = inputs["ids"]
    count = min(math.ceil(rate * len(ids)), np.count_nonzero(weights[ids]))
    with np.errstate(divide="ignore"):  # the first arrivals of a race: drawn without replacement
        arrivals = rng.exponential(size=len(ids)) / weights[ids]
    masked = np.sort(np.argsort(arrivals)[:count])
    drawn = masked_lm.draw(count, rng, len(weights), ())
    changed = masked_lm.replace(ids, masked, drawn, special.get("mask"), rng)
    scored = np.zeros(len(ids), np.float32)
    scored[masked] = 1
    return inputs | {"ids": changed, "targets": ids, "weights": scored}


def loss(
    apply,
    params,
    batch,
    rngs,
    train,
    *,
    teacher: Callable[[dict], dict] | None = None,
    temperature: float = 2.0,
    soft: float = 5.0,
    hard: float = 2.0,
    cosine: float = 1.0,
    masked_only: bool = False,
):
    """The three losses of `targets` and `weights` [B, T], weighted and added up.

    Args:
      teacher: batch -> what its model returns, `logits` and `states`; no gradient enters it. None:
        the loss is that of the masked tokens alone (evaluation).
      soft, hard, cosine: of the divergence, of the masked tokens, of the cosine. States are
        compared only where theirs is above 0, and must then be as wide as the teacher's.
      masked_only: take the divergence over the masked tokens, not over all.

    Returns:
      A sum over tokens and their number, whose quotient is the sum of the means
      (`losses.sum_of_means`); and sums: `nll` and `masked`, of the masked tokens and their number,
      `divergence`, `cosine`.
    """
    mine = apply(params, batch, rngs=rngs, train=train)
    masked_BT, tokens_BT = batch["weights"], batch["mask"].astype(jnp.float32)
    factors = mine["logits"].factors()
    nll, _ = cross_entropy(*factors, batch["targets"], masked_BT)
    tokens, masked = tokens_BT.sum(), masked_BT.sum()
    if teacher is None:
        return nll, masked, {"nll": nll, "masked": masked}
    theirs = jax.lax.stop_gradient(teacher(batch))
    over_BT = masked_BT if masked_only else tokens_BT
    divergence = distillation(factors, theirs["logits"].factors(), over_BT, temperature)
    alike = cosine_distance(mine["states"], theirs["states"], tokens_BT) if cosine else 0.0
    total, weight = sum_of_means(
        (cosine, alike, tokens), (soft, divergence, over_BT.sum()), (hard, nll, masked)
    )
    sums = {"nll": nll, "masked": masked, "divergence": divergence, "cosine": alike}
    return total, weight, sums


def check(config: Config, model, teacher) -> None:
    """Raises a ValueError where the config of a teacher's model does not go with the student's."""
    heads = " or ".join(HEADS)
    if getattr(teacher, "head", "lm") not in HEADS:
        raise ValueError(f"it does not predict masked tokens; name one of model.head {heads}")
    if model.vocab and teacher.vocab and model.vocab != teacher.vocab:
        raise ValueError(
            f"it has {teacher.vocab:,} rows of vocabulary, the model {model.vocab:,}; set "
            f"model.vocab = {teacher.vocab}"
        )
    if config.cosine and model.width != teacher.width:
        raise ValueError(
            f"it is {teacher.width} wide, the model {model.width}; set objective.cosine = 0, or "
            f"model.width = {teacher.width}"
        )


def named(teacher: str) -> None:
    """Raises a ValueError where no teacher is."""
    if not teacher:
        raise ValueError('objective.teacher = "": name a workdir, or a folder of Hugging Face')


def student_layers(teacher: int, student: int) -> list[int]:
    """Which of a teacher's layers a student starts from: the first, the last, and evenly between
    them. 0 2 4 7 9 11 for 12 and 6, as in the authors' code.

    Raises:
      ValueError: the student is the deeper one.
    """
    if not 1 <= student <= teacher:
        raise ValueError(f"a student of {student} layers of a teacher of {teacher}: at most these")
    last = max(student - 1, 1)
    return [(2 * n * (teacher - 1) + last) // (2 * last) for n in range(student)]


def examples(config: Config, given: data.Given) -> data.Examples:
    """Blocks of text, rare tokens of them masked more often than frequent ones."""
    named(config.teacher)
    v = given.vocabulary
    around, text = len(v.pair([])[0]), data.stream(given, False, v.special.get("sep"))
    # A slice at a time: of what is counted, NumPy makes integers of eight bytes.
    slices = (text.flat[at : at + SLICE] for at in range(0, len(text.flat), SLICE))
    counts = sum(np.bincount(ids, minlength=v.vocab_size) for ids in slices)
    weights = token_weights(counts, inputs.special(v))
    settings = dict(special=inputs.special(v), weights=weights, rate=config.rate)
    return data.blocks(
        given,
        text,
        given.max_length - around,
        lambda block, rng: make_example(inputs.framed(v, block.ids), rng, **settings),
        inputs.axes(v, targets="T", weights="T"),
        lengths=lambda tokens: (tokens + around,),
        recipe=["distilled", config.rate],
    )
