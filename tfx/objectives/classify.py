"""Classification: which of a few classes a text, or a pair of texts, is of."""

import operator
import re
from dataclasses import dataclass
from typing import Annotated

import jax.numpy as jnp
import numpy as np

from tfx.data import examples as data
from tfx.nn.losses import softmax_cross_entropy
from tfx.objectives import inputs

ROWS, HEADS = "labelled", ("classify",)
READS = "ids"


@dataclass(frozen=True)
class Config:
    """What is minimised."""

    labels: str = ""  # names of the classes in order: "negative,positive"; "": 0,1,...
    language: Annotated[float, "x >= 0"] = 0.0  # weight of the language model's loss beside (GPT)


def examples(config: Config, given: data.Given) -> data.Examples:
    """Rows of one text or two and their class."""
    v, names = given.vocabulary, config.labels.split(",") if config.labels else []
    if names and len(names) != given.classes:
        raise ValueError(
            f"objective.labels has {len(names)} names, model.classes = {given.classes}; set one "
            "after the other"
        )
    value = lambda label: [number_of(label, names, given.classes)]
    rows, lengths = data.texts(given, value, np.int32, ["classes", names, given.classes])

    def make(row, rng, value):
        return make_example(row, label=int(value), classes=given.classes)

    axes = inputs.axes(v, label="")
    return data.of_rows(rows, [lengths], inputs.rows_of(v, rows, make), axes)


def number_of(label, names: list[str], classes: int) -> int:
    """The class of a label as the data has it: a name, or a number. Raises ValueError."""
    if label in names:
        return names.index(label)
    if isinstance(label, str) and re.fullmatch("-?[0-9]+", label):
        label = int(label)
    if names and isinstance(label, str):
        raise ValueError(
            f'label "{label}" is none of objective.labels = "{",".join(names)}"; correct the row '
            "or the list"
        )
    return int(class_index(label, classes))


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
            "of the data to these, or set model.classes"
        )
    return np.int32(index)


def make_example(inputs: dict, rng=None, *, label: int, classes: int) -> dict[str, np.ndarray]:
    """A row of `inputs.frame` and its class. Raises ValueError where there is no such class."""
    return inputs | {"label": class_index(label, classes)}


def loss(apply, params, batch, rngs, train):
    """Cross-entropy of `logits` [B, L] with `label` [B]; rows without a token do not count.

    Returns:
      Its sum over rows, their number, and sums: `nll`, and `accuracy`, the rows got right.
    """
    logits_BL = apply(params, batch, rngs=rngs, train=train)["logits"]
    weights_B = batch["mask"].any(-1).astype(jnp.float32)
    nll, correct = softmax_cross_entropy(logits_BL, batch["label"], weights_B)
    return nll, weights_B.sum(), {"nll": nll, "accuracy": correct}
