"""Validation: what is measured while a model trains, on what, and which value is the best one.

Every so many steps: the losses of a split, and the BLEU of its translations; of several corpora
for each of them, and over all.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tfx import assemble, checkpoint, metrics, objectives, scores, sharding, translate
from tfx import config as configs
from tfx.data.examples import Examples
from tfx.data.pipeline import Batches
from tfx.data.text import one_line
from tfx.schema import Config

Measure = dict[str, Any]

# ------------------------------------------------------------------ the best value


def measure(config: Config) -> Measure:
    """What decides the value that "best" and patience go by: settings and the data's fingerprint.

    Values of unlike measures say nothing about each other.

    Returns:
      JSON, of one level; empty where nothing is evaluated.
    """
    if not (config.eval.every or config.eval.bleu_every):
        return {}
    found = {"eval.monitor": config.eval.monitor}
    contents = [corpus.fingerprint for corpus in assemble.corpora(config, "valid")]
    found["data.valid"] = hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:16]
    if config.eval.monitor == "bleu":
        flat = configs.flatten(configs.to_dict(config))
        search = [key for key in flat if key.startswith("decode.") and key != "decode.tokens"]
        found |= {key: flat[key] for key in ("eval.sentences", "eval.tokenize", *search)}
    return found


def take_up(memory: dict[str, Any], now: Measure, say) -> dict[str, Any]:
    """What a run goes on with: best and patience begin anew where they are of another measure.

    What earlier versions have saved is of an unknown one.
    """
    before = memory.get("measure")
    # A key that one of two versions did not know makes no difference.
    shared = before.keys() & now.keys() if before and now else set()
    differ = [each for each in configs.diff(before or {}, now) if each[0] in shared]
    if not now or (shared and not differ):
        return memory
    if memory["best"] is not None:
        why = "; ".join(
            "the validation data changed" if key == "data.valid" else f"{key} was {old}, is {new}"
            for key, old, new in differ
        )
        say(f"{why or 'what the best value was of is unknown'}: best and patience begin anew")
    return memory | {"measure": now, "best": None, "stale": 0}


def improves(memory: dict[str, Any], value: float | None) -> bool:
    """Whether an evaluation is the best so far; a run's memory counts those that are not.

    Args:
      value: larger is better; None: nothing that "best" goes by was measured. One that is not
        finite is never best.
    """
    if value is None:
        return False
    better = math.isfinite(value) and (memory["best"] is None or value > memory["best"])
    memory["best"] = value if better else memory["best"]
    memory["stale"] = 0 if better else memory["stale"] + 1
    return better


def finished(config: Config, directory) -> tuple[str, dict]:
    """Why the run in a workdir has nothing left to do, and its summary; "" where it goes on."""
    with checkpoint.Checkpoints(directory) as saved:
        step = saved.steps[-1] if saved.steps else 0
        memory = saved.meta() if step else {}
    summary = {"step": step, "compiled": 0, "memory": memory}
    if "stale" not in memory:  # nothing is saved, or averaged parameters alone
        return "", summary
    known = f"step {step:,} of {config.train.steps:,} is saved"
    if step >= config.train.steps:
        return f"{known}; raise train.steps to go on", summary
    patience, stale = config.eval.patience, memory["stale"]
    if patience and "measure" in memory:  # earlier versions kept none
        stale = take_up(memory, measure(config), assemble.silent)["stale"]
    if not patience or stale < patience:
        return "", summary
    why = f"{stale} evaluations brought no gain (eval.patience = {patience})"
    return f"{known}, and {why}; raise eval.patience, or set it to 0, to go on", summary


# ------------------------------------------------------------------ the validation data


class Text(NamedTuple):
    """A split that is translated while a run trains.

    Attributes:
      references: all of each source.
      sizes: sources of each corpus.
    """

    sources: list[str]
    references: list[list[str]]
    sizes: list[int]


class Data(NamedTuple):
    """The validation data of a run.

    Attributes:
      names: of the corpora.
      examples: what losses are taken of; None: of nothing.
      text: what is translated; None: nothing.
    """

    names: list[str]
    examples: Examples | None
    text: Text | None


def read(config: Config, ids, directory: Path, say) -> Data | None:
    """Read and encode the validation data; None where nothing is evaluated.

    Raises:
      ValueError: what cannot be evaluated, such as a row that is too long for the model.
    """
    if not (config.eval.every or config.eval.bleu_every):
        return None
    examples = text = None
    if config.eval.every:
        examples = assemble.open_examples(config, ids, directory, "valid", train=False, say=say)
    corpora = assemble.corpora(config, "valid")
    if config.eval.bleu_every:
        most = config.eval.sentences
        sources, references = assemble.lines(config, "valid", most)
        assemble.check_sources(config, ids, "valid", sources, most)
        several = len(corpora) > 1
        sizes = assemble.sizes(corpora, most) if several else [len(sources)]
        text = Text(sources, [list(map(one_line, each)) for each in references], sizes)
    return Data(assemble.names(config, corpora), examples, text)


# ------------------------------------------------------------------ the evaluations


class Validation:
    """Evaluates a model while it trains.

    Args:
      parts: what tfx/train.py puts together, `valid` among it.

    Attributes:
      measure: of the value that "best" goes by.
    """

    def __init__(self, config: Config, parts, mesh, say):
        self._config, self._say, self._mesh = config, say, mesh
        self._valid: Data | None = parts.valid
        self.measure = measure(config)
        if self._valid is None:
            return
        if self._valid.examples is not None:
            shapes = parts.batches.shapes if config.batch.kind == "bucket" else None
            rows = sharding.batch_parts(mesh)
            self._batches = by_corpus(config, self._valid.examples, rows, shapes)
            self._step = partial(make_eval_step(parts.loss), frozen=parts.frozen)
        self._run = translate.Run(config, parts.model, None, parts.ids, 0, mesh)

    def evaluate(self, weights, step: int, last: bool, memory: dict, writer) -> float | None:
        """Measure what is due at a step, write it and say it.

        Returns:
          The value that "best" goes by, larger being better; None where it is not due.
        """
        every, value, shown = self._config.eval, None, []
        due = lambda n: n and (step % n == 0 or last)
        if due(every.every):
            numbers = self._losses(weights, step, writer)
            shown.append(metrics.quality(numbers))
            value = {
                "loss": -numbers.get("nll", numbers["loss"]),
                "accuracy": numbers.get("accuracy"),
            }.get(every.monitor)
        if due(every.bleu_every):
            memory["bleu"] = self._bleu(weights, step, writer)
            shown.append(
                f"BLEU {memory['bleu']:.2f} on {len(self._valid.text.sources):,} sentences"
            )
            value = memory["bleu"] if every.monitor == "bleu" else value
        if shown:
            self._say(f"step {step:,}  valid  " + "  ".join(shown))
        return value

    def _losses(self, weights, step: int, writer) -> dict[str, float]:
        each = [totals(self._step, weights, batches, self._mesh) for batches in self._batches]
        numbers = means(self._config.objective, added(each))
        row = dict(numbers)
        if len(each) > 1:
            for name, total in zip(self._valid.names, each, strict=True):
                found = means(self._config.objective, total)
                row |= {f"{key}/{name}": number for key, number in found.items()}
                self._say(f"step {step:,}  valid  {name}: {metrics.quality(found)}")
        writer.write(step, "valid", **row)
        return numbers

    def _bleu(self, weights, step: int, writer) -> float:
        self._run.params = weights
        sources, references, sizes = self._valid.text
        found = list(map(one_line, self._run.translate(sources)))
        score = partial(scores.bleu, self._config.eval)
        row = {"bleu": score(found, references)}
        if len(sizes) > 1:
            for name, part in zip(self._valid.names, slices(sizes), strict=True):
                if found[part]:  # eval.sentences may be fewer than corpora
                    row[f"bleu/{name}"] = score(found[part], references[part])
                    self._say(f"step {step:,}  valid  {name}: BLEU {row[f'bleu/{name}']:.2f}")
        writer.write(step, "valid", **row)
        return row["bleu"]


def slices(sizes: Sequence[int]) -> list[slice]:
    """Where corpora of such sizes are, one after the other."""
    return [slice(*ends) for ends in pairwise(accumulate(sizes, initial=0))]


def make_eval_step(loss):
    """(params, batch, frozen) -> sums, jitted."""

    def eval_step(params, batch, frozen=None):
        value, weight, sums = loss(params, batch, None, False, frozen)
        return {"loss": value, "weight": weight} | sums

    return jax.jit(eval_step)


def by_corpus(config: Config, examples: Examples, multiple: int, shapes=None) -> list[Batches]:
    """Batches of each corpus, all of the same shapes; see `assemble.open_batches`."""
    several = range(len(examples.parts)) if len(examples.parts) > 1 else [None]
    how = dict(multiple=multiple, shapes=shapes, train=False)
    return [assemble.batched(config, examples, corpus=number, **how) for number in several]


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
    return added(jax.device_get(rows))


def added(rows: Sequence[dict]) -> dict[str, float]:
    """The sums of dicts of sums."""
    return {name: float(np.sum([row[name] for row in rows])) for name in rows[0]}


def means(objective, total: dict[str, float]) -> dict[str, float]:
    """Mean loss, nats and whatever else an objective adds up; of tokens also the perplexity."""
    found = objectives.means(objective, total)
    if objectives.predicts_tokens(objective):
        found["perplexity"] = metrics.perplexity(found["nll"])
    return found
