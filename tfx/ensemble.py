"""Several models that vote: at each token the mean of their probabilities.

Searching takes it from `tfx.decode.ensemble`; here is which models may vote together, and the score
of given targets.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from tfx.nn.losses import log_probabilities
from tfx.schema import Config


def members(directories: Sequence, steps: Sequence[int | None], average: int) -> list[tuple]:
    """(workdir, step) of every model.

    Args:
      steps: one for all; one for each workdir; or, of one workdir, several that vote.
      average: how many last steps to average; then no step may be chosen.

    Raises:
      ValueError: steps and workdirs do not go together.
    """
    if average and list(steps) != [None]:
        shown = ",".join(map(str, steps))
        raise ValueError(f"--step={shown}, --average={average}: want one of the two")
    if len(directories) > 1 and len(steps) not in (1, len(directories)):
        raise ValueError(
            f"{len(steps)} steps of {len(directories)} workdirs; want one for all, or one for each"
        )
    count = max(len(directories), len(steps))
    return [(directories[i % len(directories)], steps[i % len(steps)]) for i in range(count)]


def agreed(runs: Sequence, names: Sequence[str]) -> Config:
    """The config of an ensemble: the first one's, with the lengths that all of them take.

    Args:
      runs: several of `tfx.translate.Run`.
      names: what errors call them.

    Raises:
      ValueError: they cannot vote together.
    """
    first = runs[0]
    for run, name in zip(runs, names, strict=True):
        if wrong := _misfit(first, run, names[0]):
            raise ValueError(f"{name}: {wrong}; no ensemble")
    positions = min(run.config.model.max_length for run in runs)
    around = len(first.tokenizer.ends.around)
    data = dataclasses.replace(
        first.config.data,
        truncate=any(run.config.data.truncate for run in runs),
        max_length=min(run.room()[0] for run in runs) + around,
    )
    model = dataclasses.replace(first.config.model, max_length=positions)
    return dataclasses.replace(first.config, model=model, data=data)


def _misfit(first, run, name: str) -> str:
    """Why a run cannot vote with the first one, which has that name; empty if it can."""
    if "source" not in run.model.INPUTS:
        return "writes no text of another"
    if run.tokenizer.fingerprint != first.tokenizer.fingerprint:
        return f"its tokenizer is not that of {name}"
    pieces, others = run.model.config.vocab, first.model.config.vocab
    if pieces != others:
        return f"its embedding has {pieces:,} rows (model.vocab), that of {name} has {others:,}"
    prefix, other = (getattr(each.config.objective, "prefix", "") for each in (run, first))
    if prefix != other:
        return f'objective.prefix = "{prefix}" is not that of {name}, "{other}"'
    return ""


def score(voters: Sequence, params: Sequence, batch: dict) -> jax.Array:
    """Log-probabilities [B] of the targets of a batch, whose logits are never held whole.

    Args:
      voters, params: models of the family of Transformer, and the parameters of each.
      batch: `source`, `target_in`, `target_out` and `weights`, as `objectives.seq2seq` has them.
    """
    logp = []
    for model, own in zip(voters, params, strict=True):
        logits = model.apply({"params": own}, batch, method="predict")["logits"]
        logp.append(log_probabilities(*logits.factors(), batch["target_out"]))
    logp_BT = functools.reduce(jnp.logaddexp, logp) - math.log(len(logp))
    return jnp.where(batch["weights"] > 0, logp_BT, 0).sum(-1)
