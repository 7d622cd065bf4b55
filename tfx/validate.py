"""How good is a model while it trains? Every so many steps: its losses over a split, and the BLEU
of its translations."""

from functools import partial
from pathlib import Path

import jax
import numpy as np

from tfx import assemble, metrics, objectives, scores, sharding, translate
from tfx.schema import Config


def make_eval_step(loss):
    """(params, batch, frozen) -> sums, jitted."""

    def eval_step(params, batch, frozen=None):
        value, weight, sums = loss(params, batch, None, False, frozen)
        return {"loss": value, "weight": weight} | sums

    return jax.jit(eval_step)


def make(config: Config, parts, directory: Path, mesh, say):
    """validate(weights, step, last, memory, writer): run what is due at a step.

    `parts` is what tfx/train.py puts together. Returns the value that "best" goes by, larger
    being better, or None.
    """
    every, model = config.eval, parts.model
    if not (every.every or every.bleu_every):
        return lambda *_: None
    eval_step = make_eval_step(parts.loss)
    batches = None
    if every.every:
        batches = assemble.open_batches(
            config,
            parts.ids,
            directory,
            "valid",
            multiple=sharding.batch_parts(mesh),
            shapes=parts.batches.shapes if config.batch.kind == "bucket" else None,
            say=say,
        )
    pairs = assemble.lines(config, "valid", every.sentences) if every.bleu_every else None
    run = translate.Run(config, model, None, parts.ids, 0, mesh)

    def validate(weights, step, last, memory, writer):
        due = lambda n: n and (step % n == 0 or last)
        value, shown = None, []
        if due(every.every):
            step_of = partial(eval_step, frozen=parts.frozen)
            numbers = means(config.objective, totals(step_of, weights, batches, mesh))
            writer.write(step, "valid", **numbers)
            shown.append(metrics.quality(numbers))
            value = {
                "loss": -numbers.get("nll", numbers["loss"]),
                "accuracy": numbers.get("accuracy"),
            }.get(every.monitor)
        if due(every.bleu_every):
            run.params = weights
            memory["bleu"] = scores.bleu(config.eval, run.translate(pairs[0]), pairs[1])
            writer.write(step, "valid", bleu=memory["bleu"])
            shown.append(f"BLEU {memory['bleu']:.2f} on {len(pairs[0]):,} sentences")
            value = memory["bleu"] if every.monitor == "bleu" else value
        if shown:
            say(f"step {step:,}  valid  " + "  ".join(shown))
        return value

    return validate


def totals(step, params, batches, mesh) -> dict[str, float]:
    """What an objective adds up, over a split.

    Args:
      step: jitted (params, batch) -> dict of sums, "weight" among them.
    """
    rows = []
    for number in range(batches.steps_per_epoch):
        batch = assemble.fetch(batches, number, mesh)
        batch.pop("index", None)
        rows.append(step(params, batch))
        # As in training, two in flight: with many, devices of several processes can lock up.
        jax.block_until_ready(rows[-2:][0])
    rows = jax.device_get(rows)
    return {name: float(np.sum([row[name] for row in rows])) for name in rows[0]}


def means(objective, total: dict[str, float]) -> dict[str, float]:
    """Mean loss, nats and whatever else an objective adds up; of tokens also the perplexity."""
    found = objectives.means(objective, total)
    if objectives.predicts_tokens(objective):
        found["perplexity"] = metrics.perplexity(found["nll"])
    return found
