"""Translation: predict each token of the target, given the source and the tokens before.

source      s1 ... sn EOS
target_in   BOS t1 ... tm
target_out  t1 ... tm EOS
"""

import itertools
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from tfx.data.cache import Pairs, encode_corpora
from tfx.data.examples import Draw, Examples, Given
from tfx.data.families import Ends
from tfx.data.tokenizer import Tokenizer
from tfx.nn.losses import cross_entropy

ROWS, HEADS = "pair", ("lm",)
READS = "source"
AXES = {"source": "S", "target_in": "T", "target_out": "T"}


@dataclass(frozen=True)
class Config:
    """What is minimised."""

    label_smoothing: Annotated[float, "0 <= x < 1"] = 0.1
    smoothing: Literal["uniform", "tensor2tensor"] = "uniform"
    z_loss: Annotated[float, "x >= 0"] = 0.0


def make_example(source, target, ends: Ends = Tokenizer.ends) -> dict[str, np.ndarray]:
    """What is fed and what is predicted, from the ids of both sides."""
    around = lambda ids: np.concatenate([ends.before, ids, ends.after]).astype(np.int32)
    target_out = around(target)
    return {
        "source": around(source),
        "target_in": np.concatenate([[ends.begin], target_out[:-1]]).astype(np.int32),
        "target_out": target_out,
    }


def examples(config: Config, given: Given) -> Examples:
    """The pairs of parallel text."""
    pairs = encode_corpora(
        given.corpora,
        given.vocabulary,
        given.folder,
        train=given.train,
        max_length=given.max_length,
        sampling=given.sampling,
        truncate=given.truncate,
        progress=given.progress,
    )
    return of_pairs(pairs, given.vocabulary)


def of_pairs(pairs: Pairs, ids) -> Examples:
    """Pairs as examples, with what the vocabularies of both sides put around a text."""
    ends, around = ids.ends, len(ids.ends.around)
    # Padding is told from tokens by its id, where that is 0 as ours is.
    masked = ids.special["pad"] != 0

    def make(numbers: np.ndarray, draw: Draw) -> list[dict]:
        if pairs.sampling:
            sides = drawn(pairs, numbers, draw)
        else:
            sides = zip(pairs.source.take(numbers), pairs.target.take(numbers), strict=True)
        made = [make_example(*each, ends) for each in sides]
        mask = lambda example: {"source_mask": np.ones_like(example["source"])}
        return [example | mask(example) for example in made] if masked else made

    axes = AXES | {"source_mask": "S"} if masked else AXES
    return Examples(
        tuple(side.lengths + around for side in (pairs.source, pairs.target)),
        pairs.parts,
        pairs.fingerprint,
        pairs.folder,
        make,
        axes,
        sampled=pairs.sampled,
        sampling=pairs.sampling,
        unit="pairs",
    )


def drawn(pairs: Pairs, numbers: np.ndarray, draw: Draw) -> list:
    """Random segmentations of pairs, those of one row together no longer than it."""
    sides, plain = [], (pairs.source, pairs.target)
    for name, group in itertools.groupby(zip(draw.rows, numbers, strict=True), lambda at: at[0]):
        members = [int(pair) for _, pair in group]
        seeds = np.random.SeedSequence((draw.seed, draw.step, int(name)))
        seeds = seeds.generate_state(2 * len(members)).reshape(-1, 2)
        row = [pairs.sampled(*each) for each in zip(members, seeds, strict=True)]
        for place, pair in enumerate(members):
            used = (sum(map(len, side)) + len(row) for side in zip(*row, strict=True))
            if all(n <= most for n, most in zip(used, draw.lengths, strict=True)):
                break
            row[place] = [side[pair].astype(np.int32) for side in plain]
        sides += row
    return sides


def loss(apply, params, batch, rngs, train, *, label_smoothing, smoothing, z_loss):
    """Label-smoothed cross-entropy.

    Returns:
      Its sum over target tokens, their number, and sums of metrics: the plain negative
      log-likelihood.
    """
    factors = apply(params, batch, rngs=rngs, train=train)["logits"].factors()
    targets_BT, weights_BT = batch["target_out"], batch["weights"]
    settings = (label_smoothing if train else 0.0, smoothing, z_loss if train else 0.0)
    total, nll = cross_entropy(*factors, targets_BT, weights_BT, *settings)
    return total, weights_BT.sum(), {"nll": nll}
