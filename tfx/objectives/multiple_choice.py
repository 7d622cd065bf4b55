"""Multiple choice: which of a few texts goes on. Each is read by itself and made one number; the
softmax is over these (Radford et al., 2018, section 3.3; Devlin et al., 2019, section 4.4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import jax.numpy as jnp
import numpy as np

from tfx.data import examples as data
from tfx.data.cache import dtype_of, encode_rows
from tfx.nn.losses import softmax_cross_entropy
from tfx.objectives import inputs
from tfx.objectives.classify import class_index, number_of

ROWS, HEADS = "choices", ("choice",)
READS = "ids"


@dataclass(frozen=True)
class Config:
    """What is minimised."""

    language: Annotated[float, "x >= 0"] = 0.0  # weight of the language model's loss beside (GPT)


def examples(config: Config, given: data.Given) -> data.Examples:
    """Rows of a text, what may follow it, as often as in every other row, and what does."""
    c, v = given, given.vocabulary
    around = len(v.pair([], [])[0])
    room = c.max_length - around

    def encode(texts, choices, labels):
        found = {"text": [], "choices": [], "cuts": [], "label": []}
        long = 0
        rows = zip(v.encode(texts), choices, labels, strict=True)
        for number, (text, several, label) in enumerate(rows):
            ids = v.encode(several)
            longest = max(ids, key=len, default=[])
            is_long = len(text) + len(longest) > room
            long += is_long
            if is_long and c.truncate:
                text, longest = data.cut(text, longest, room)
                ids = [choice[: len(longest)] for choice in ids]
            elif is_long and not c.train:
                raise data.RowError(
                    number,
                    f"{len(text) + len(longest) + around} tokens, data.max_length is "
                    f"{c.max_length}; raise it, or set data.truncate",
                )
            elif is_long:
                continue
            found["text"].append(text)
            found["choices"].append([piece for choice in ids for piece in choice])
            found["cuts"].append([len(choice) for choice in ids])
            with data.row(number):
                found["label"].append([number_of(label, [], len(several))])
        return found, 0, long

    dtypes = {"text": dtype_of(v), "choices": dtype_of(v), "cuts": np.int32, "label": np.int32}
    recipe = ["choices", v.fingerprint, c.train, c.max_length, c.truncate]
    limit = f"more than data.max_length={c.max_length} tokens; data.truncate cuts them"
    rows = encode_rows(c.corpora, c.folder, recipe, dtypes, encode, c.progress, limit)
    text, ids, cuts = (rows.columns[name] for name in ("text", "choices", "cuts"))
    label, several = rows.columns["label"].flat, cuts.lengths
    if len(set(several.tolist())) != 1:
        raise ValueError(f"rows have {min(several)} to {max(several)} choices; give all as many")
    most = np.maximum.reduceat(cuts.flat, cuts.offsets[:-1])

    def make(numbers, draw):
        made = []
        for n in numbers.tolist():
            ends = np.split(ids[n].astype(np.int32), np.cumsum(cuts[n])[:-1])
            choices = [inputs.framed(v, text[n].astype(np.int32), each) for each in ends]
            made.append(make_example(choices, label=int(label[n])))
        return made

    axes = {key: "CT" for key in inputs.axes(v)} | {"label": ""}
    sizes = lambda length: {"C": int(several[0])}
    return data.of_rows(rows, [text.lengths + most + around], make, axes, sizes=sizes)


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
      Its sum over rows, their number, and sums: `nll`, `accuracy`.
    """
    logits_BC = apply(params, batch, rngs=rngs, train=train)["logits"]
    there_BC = batch["mask"].any(-1)
    weights_B = there_BC.any(-1).astype(jnp.float32)
    logits_BC = jnp.where(there_BC, logits_BC, -jnp.inf)
    nll, correct = softmax_cross_entropy(logits_BC, batch["label"], weights_B)
    return nll, weights_B.sum(), {"nll": nll, "accuracy": correct}
