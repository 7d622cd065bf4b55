"""Language modelling: predict each token from those before it (Radford et al., 2018 and 2019).

stream   <sep> d o c 1 <sep> d o c 2 <sep>      documents, one after the other
block    ids      x1 x2 ... xn
         targets  x2 x3 ... xn+1                of which the next block's ids begin with xn+1
"""

from dataclasses import dataclass
from typing import Annotated

import jax.numpy as jnp
import numpy as np

from tfx.data import examples as data
from tfx.nn.losses import cross_entropy, sum_of_means
from tfx.objectives import seq2seq

ROWS, HEADS = "text", ("causal",)
READS = "ids"


@dataclass(frozen=True)
class Config(seq2seq.Config):
    """What is minimised."""

    label_smoothing: Annotated[float, "0 <= x < 1"] = 0.0
    whole: bool = False  # a file is one text, line ends are tokens; else each line is a text
    separate: bool = False  # texts of a block do not see each other
    stride: Annotated[int, "x >= 0"] = 0  # evaluation: tokens between blocks; 0: a block


def examples(config: Config, given: data.Given) -> data.Examples:
    """Blocks of text. In evaluation every token is predicted once; with a stride, all but those
    of the first block from data.max_length - stride tokens or more."""
    v, c, length = given.vocabulary, config, given.max_length
    apart = v.special.get("eos")
    if c.separate and (c.whole or apart is None):
        raise ValueError(
            f"objective.separate: {'a whole file' if c.whole else v.kind} has no token between "
            "texts; set it to false"
        )
    if c.stride > length:
        raise ValueError(f"objective.stride={c.stride}: want at most data.max_length={length}")
    step = length if given.train else c.stride or length
    settings = dict(separator=apart) if c.separate else {}

    def make(block, rng):
        return make_example(block.ids, seen=(length - step) * block.later, **settings)

    names = ("ids", "targets", "weights") + ("segments", "positions") * c.separate
    return data.blocks(
        given,
        opened(config, given),
        step,
        make,
        dict.fromkeys(names, "T"),
        lengths=lambda tokens: (tokens - 1,),
        reach=length + 1,
        recipe=["causal", c.separate],
    )


def opened(config: Config, given: data.Given) -> data.Stream:
    """The text that blocks are cut from. Raises ValueError where line ends would be lost."""
    v = given.vocabulary
    if config.whole and not v.encode(["\n"])[0]:
        raise ValueError(
            f"objective.whole: tokenizer.kind={v.kind} has no token for a line end; set "
            "objective.whole=false, or another tokenizer.kind"
        )
    return data.stream(given, config.whole, v.special.get("eos"))


def make_example(
    ids, rng=None, *, seen: int = 0, separator: int | None = None
) -> dict[str, np.ndarray]:
    """A block: its tokens but the last, and its tokens but the first as what they predict.

    Args:
      ids: two tokens or more.
      seen: leading targets that are context, of weight 0.
      separator: where it is given, documents do not see each other: `segments` counts them from
        1 and `positions` from 0 within each, a separator being the first of its document. None:
        attention crosses them, as in the papers.

    Raises:
      ValueError: there is nothing to predict.
    """
    if len(ids) < 2:
        raise ValueError(f"a block of {len(ids)} tokens predicts nothing; it takes 2 or more")
    ids = np.asarray(ids, np.int32)
    count = len(ids) - 1
    example = {
        "ids": ids[:-1],
        "mask": np.ones(count, np.int32),
        "targets": ids[1:],
        "weights": (np.arange(count) >= seen).astype(np.float32),
    }
    if separator is not None:
        begins = ids[:-1] == separator
        begins[0] = True
        first = np.flatnonzero(begins)
        segments = np.cumsum(begins, dtype=np.int32)
        positions = np.arange(count, dtype=np.int32) - first[segments - 1].astype(np.int32)
        example |= {"segments": segments, "positions": positions}
    return example


def loss(
    apply,
    params,
    batch,
    rngs,
    train,
    *,
    label_smoothing: float = 0.0,
    smoothing: str = "uniform",
    z_loss: float = 0.0,
):
    """Cross-entropy of `targets` [B, T] of `weights` [B, T].

    Returns:
      Its sum over tokens, their number, and a sum: `nll`, without smoothing.
    """
    factors = apply(params, batch, rngs=rngs, train=train)["logits"].factors()
    targets_BT, weights_BT = batch["targets"], batch["weights"]
    settings = (label_smoothing if train else 0.0, smoothing, z_loss if train else 0.0)
    total, nll = cross_entropy(*factors, targets_BT, weights_BT, *settings)
    return total, weights_BT.sum(), {"nll": nll}


def with_task(task, coefficient: float = 0.5):
    """The loss of a task, and that of language modelling on its texts beside it (Radford et al.,
    2018, equation 5): task + coefficient * LM, the latter a mean over each text's tokens and then
    over texts.

    Args:
      task: a loss of this drawer. The model is called once, and returns `lm`, logits of tokens,
        beside what the task asks for.

    Returns:
      A loss that has the LM's mean among its sums, times the weight as they all are: `lm`.
    """

    def loss(apply, params, batch, rngs, train, **settings):
        outputs = apply(params, batch, rngs=rngs, train=train)
        if "lm" not in outputs:
            raise ValueError(
                f"objective.language = {coefficient}: the model has no language model beside its "
                "head; set it to 0, or model.name to gpt or gpt2"
            )
        rest = (params, batch, rngs, train)
        total, weight, sums = task(lambda *_, **__: outputs, *rest, **settings)
        # The choices of a multiple choice are texts like any other.
        ids_BT, mask_BT = (x.reshape(-1, x.shape[-1]) for x in (batch["ids"], batch["mask"]))
        weights_BT = mask_BT[:, 1:].astype(jnp.float32)
        count_B1 = weights_BT.sum(-1, keepdims=True)
        states_BTD, table_VD = outputs["lm"].factors()
        weights_BT = weights_BT / jnp.maximum(count_B1, 1)
        lm, _ = cross_entropy(states_BTD[:, :-1], table_VD, ids_BT[:, 1:], weights_BT)
        texts = (count_B1 > 0).sum().astype(jnp.float32)
        lm, _ = sum_of_means((1.0, 0.0, weight), (1.0, lm, texts))
        return total + coefficient * lm, weight, sums | {"lm": lm}

    return loss
