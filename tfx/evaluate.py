"""How good is a model? Validation loss while it trains; BLEU, chrF and TER of its translations,
each with the signature of sacreBLEU (Post, 2018) that says what was measured."""

import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
import sacrebleu.metrics

import tfx
from tfx import assemble, bucket, hosts, metrics, objectives, sharding, translate, workdir
from tfx.config import Config, fingerprint


def make_eval_step(loss):
    """(params, batch, frozen) -> sums, jitted."""

    def eval_step(params, batch, frozen=None):
        value, weight, sums = loss(params, batch, None, False, frozen)
        return {"loss": value, "weight": weight} | sums

    return jax.jit(eval_step)


def make_validation(config: Config, parts, directory: Path, mesh, say):
    """validate(weights, step, last, memory, writer): run what is due at a step.

    `parts` is what tfx/train.py puts together. Returns the value that "best" goes by (larger is better), or None.
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
    pairs = lines(config, "valid", every.sentences) if every.bleu_every else None
    run = translate.Run(config, model, None, parts.ids, 0, mesh)

    def validate(weights, step, last, memory, writer):
        due = lambda n: n and (step % n == 0 or last)
        value, shown = None, []
        if due(every.every):
            step_of = partial(eval_step, frozen=parts.frozen)
            numbers = losses(config.objective, step_of, weights, batches, mesh)
            writer.write(step, "valid", **numbers)
            shown.append(metrics.quality(numbers))
            value = {
                "loss": -numbers.get("nll", numbers["loss"]),
                "accuracy": numbers.get("accuracy"),
            }.get(every.monitor)
        if due(every.bleu_every):
            run.params = weights
            memory["bleu"] = bleu(run, *pairs)
            writer.write(step, "valid", bleu=memory["bleu"])
            shown.append(f"BLEU {memory['bleu']:.2f} on {len(pairs[0]):,} sentences")
            value = memory["bleu"] if every.monitor == "bleu" else value
        if shown:
            say(f"step {step:,}  valid  " + "  ".join(shown))
        return value

    return validate


def losses(objective, step, params, batches, mesh) -> dict[str, float]:
    """The means over a split of all that an objective adds up; see `means`.

    Args:
      objective: its Config.
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
    total = {name: float(np.sum([row[name] for row in rows])) for name in rows[0]}
    return means(objective, total)


def means(objective, total: dict[str, float]) -> dict[str, float]:
    """Mean loss, nats and whatever else an objective adds up; of tokens also the perplexity."""
    found = objectives.means(objective, total)
    if objectives.predicts_tokens(objective):
        found["perplexity"] = metrics.perplexity(found["nll"])
    return found


def of_text(config: Config) -> dict:
    """The metrics of translation, by the name they have in scores.jsonl.

    `bleu_tok_lc` is what papers before sacreBLEU report: lower-cased, on tokenised text. It is
    not comparable with `bleu`.
    """
    make = sacrebleu.metrics
    old = "none" if config.eval.tokenized else "13a"
    return {
        "bleu": make.BLEU(tokenize=config.eval.tokenize),
        "chrf": make.CHRF(),
        "ter": make.TER(),
        "bleu_tok_lc": make.BLEU(lowercase=True, tokenize=old, force=True),
    }


def score(config: Config, hypotheses: Sequence[str], references: Sequence[str]) -> list[dict]:
    """Rows {metric, score, signature} of translations against one reference each."""
    rows = []
    for name, metric in of_text(config).items():
        result = metric.corpus_score(hypotheses, [references])
        signature = str(metric.get_signature())
        row = {"metric": name, "score": round(result.score, 4), "signature": signature}
        if name.startswith("bleu"):
            row["detail"] = result.format(signature=False).partition("= ")[2]
        rows.append(row)
    return rows


def bleu(run: translate.Run, sources: Sequence[str], references: Sequence[str]) -> float:
    """BLEU of a run's translations, as the config says."""
    return of_text(run.config)["bleu"].corpus_score(run.translate(sources), [references]).score


def lines(config: Config, split: str, most: int = 0) -> tuple[list[str], list[str]]:
    """Sources and references of a split, in order; the first `most` if that is not 0."""
    chunks = (chunk for corpus in assemble.corpora(config, split) for chunk in corpus.chunks())
    pairs = (pair for chunk in chunks for pair in zip(*chunk, strict=True))
    pairs = list(itertools.islice(pairs, most or None))
    return [source for source, _ in pairs], [target for _, target in pairs]


def evaluate(
    directory: str | Path, split: str = "test", step=None, average: int = 0, say=print, **settings
) -> list[dict]:
    """Translate a split, score it, append the rows to the workdir's scores.jsonl.

    The translations are kept in `translations/SPLIT.STEP.txt`. Of several processes, all
    translate everything, together; one scores and writes, and has the rows.

    Args:
      average: translate with the mean of the last so many checkpoints.
      settings: fields of `tfx.schema.Decode` to change.
    """
    began, directory = time.time(), hosts.in_turn(lambda: bucket.local(directory))
    config = workdir.read_config(directory)
    how = dataclasses.replace(config.decode, **settings)
    values = dataclasses.asdict(how) | dict(tfx=tfx.__version__, config=fingerprint(config))
    values |= dict(split=split, step=step, average=average)
    hosts.agree(values, "start all of them with the same words, on one workdir that they share")
    sources, references = lines(config, split)
    run = translate.load(directory, step, average)
    hypotheses = [found[0].text for found in run.search(sources, how)]
    common = {
        "split": split,
        "step": run.step,
        "averaged": average,
        "sentences": len(sources),
        "synthetic": config.data.source == "synthetic",
        "references": hashlib.sha256("\n".join(references).encode()).hexdigest()[:16],
        "decode": dataclasses.asdict(how),
        "config": fingerprint(config),
        "version": tfx.__version__,
        "revision": workdir.revision(),
        "seconds": round(time.time() - began, 1),
    }
    write = lambda: write_down(directory, config, hypotheses, references, common, say)
    return hosts.in_turn(lambda: write() if hosts.leads() else [])


def write_down(directory: Path, config: Config, hypotheses, references, common, say) -> list[dict]:
    """Keep the translations, score them, append the rows; `common` is what all rows share."""
    bucket.pull(directory)  # rows of evaluations that ended meanwhile
    split, step, average = (common[key] for key in ("split", "step", "averaged"))
    name = f"{split}.{step}" + (f".average{average}" if average else "")
    kept = directory / "translations" / f"{name}.txt"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("".join(f"{line}\n" for line in hypotheses), encoding="utf-8", newline="\n")
    rows = [row | common for row in score(config, hypotheses, references)]
    with (directory / "scores.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    kind = "synthetic held-out " if common["synthetic"] else ""
    say(f"{len(hypotheses):,} {kind}pairs of {split}, step {step:,}, {common['seconds']} s")
    for row in rows:
        say(f"  {row['metric']:<12}{row['score']:7.2f}  {row['signature']}")
    bucket.publish(directory)
    return rows
