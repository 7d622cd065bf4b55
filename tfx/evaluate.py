"""How good is a trained model? A split is answered, as its kind of task wants it, and scored: rows
of scores.jsonl, each with a signature that says what was measured."""

import dataclasses
import hashlib
import time
from pathlib import Path

import jax

import tfx
from tfx import (
    assemble,
    bucket,
    hosts,
    lock,
    objectives,
    predict,
    records,
    scores,
    translate,
    validate,
    workdir,
)
from tfx.config import Config, fingerprint
from tfx.objectives import causal_lm
from tfx.predict import Asked, Outcome

SPLITS = ("train", "valid", "test")


def evaluate(
    directory: str | Path,
    split: str = "test",
    step: int | None = None,
    average: int = 0,
    config: Config | None = None,
    say=print,
    **settings,
) -> list[dict]:
    """Answer a split, score it, append the rows to the workdir's scores.jsonl.

    The answers are kept in `translations/SPLIT.STEP.txt` or `answers/SPLIT.STEP.txt`. Of several
    processes, all answer everything, together; one scores and writes, and has the rows.

    Args:
      average: use the mean of the last so many checkpoints.
      config: instead of the run's own, where data or search are to be others.
      settings: fields of `tfx.schema.Decode` to change.
    """
    if split not in SPLITS:
        raise ValueError(f"--split={split}: choose from {', '.join(SPLITS)}")
    began, directory = time.time(), hosts.in_turn(lambda: bucket.local(directory))
    trained = workdir.read_config(directory)
    config = config or trained
    how = dataclasses.replace(config.decode, **settings)
    values = dataclasses.asdict(how) | dict(tfx=tfx.__version__, config=fingerprint(config))
    values |= dict(split=split, step=step, average=average)
    hosts.agree(values, "start all of them with the same words, on one workdir that they share")
    run = translate.load(directory, step, average, config=config)
    run = dataclasses.replace(run, config=config)
    task = TASKS.get(assemble.objective(config).ROWS) or predict.task(config)
    found = task(Asked(run, split, how, directory))
    common = {
        "split": split,
        "step": run.step,
        "averaged": average,
        "sentences": len(found.lines),
        "synthetic": config.data.source == "synthetic",
        "references": hashlib.sha256("\n".join(found.references).encode()).hexdigest()[:16],
        "objective": objectives.name_of(config.objective),
        "decode": dataclasses.asdict(how),
        "config": fingerprint(trained),
        "version": tfx.__version__,
        "revision": workdir.revision(),
        "seconds": round(time.time() - began, 1),
    }
    write = lambda: write_down(directory, config, found, common, say)
    return hosts.in_turn(lambda: write() if hosts.leads() else [])


def write_down(directory: Path, config: Config, found: Outcome, common: dict, say) -> list[dict]:
    """Keep the answers, append the rows; `common` is what all rows share."""
    # A run may train there meanwhile; only evaluations wait for each other.
    with lock.Lock(directory, "eval", lock.inside(directory, ".scores.lock")) as held:
        held.acquire(seconds=60)
        return _write_down(directory, config, found, common, say)


def _write_down(directory: Path, config: Config, found: Outcome, common: dict, say) -> list[dict]:
    bucket.pull(directory)  # rows of evaluations that ended meanwhile
    split, step, average = (common[key] for key in ("split", "step", "averaged"))
    name = f"{split}.{step}" + (f".average{average}" if average else "")
    pairs = assemble.objective(config).ROWS == "pair"
    if found.lines:
        kept = directory / ("translations" if pairs else "answers") / f"{name}.txt"
        kept.parent.mkdir(exist_ok=True)
        text = "".join(f"{line}\n" for line in found.lines)
        kept.write_text(text, encoding="utf-8", newline="\n")
    # The main measure of an evaluation is what `tfx list` shows.
    rows = [row | common | {"main": not n} for n, row in enumerate(found.rows)]
    records.append(directory / "scores.jsonl", rows)
    kind = "synthetic held-out " if common["synthetic"] else ""
    unit = "pairs" if pairs else "rows"
    what = f"{len(found.lines):,} {kind}{unit} of {split}" if found.lines else f"{kind}{split}"
    say(f"{what}, step {step:,}, {common['seconds']} s")
    width = max(12, *(len(row["metric"]) + 2 for row in rows))
    for row in rows:
        say(f"  {row['metric']:<{width}}{row['score']:7.2f}  {row['signature']}")
    bucket.publish(directory)
    return rows


# -------------------------------------------------------------------------- texts


def pairs(asked: Asked) -> Outcome:
    """Texts: BLEU, chrF and TER, or ROUGE, or how many are the right word of a few."""
    config, how = asked.config, asked.config.eval
    sources, references = assemble.lines(config, asked.split)
    hypotheses = [found[0].text for found in asked.run.search(sources, asked.how)]
    if getattr(config.objective, "labels", ""):
        rows = scores.accuracy([line.strip() for line in hypotheses], references)
    elif how.metric == "rouge":
        corpora = assemble.corpora(config, asked.split, "references")
        chunks = (chunk for corpus in corpora for chunk in corpus.chunks())
        several = [each for _, texts in chunks for each in texts]
        rows = scores.summaries(hypotheses, several, sources)
    else:
        rows = scores.translation(how, hypotheses, references)
    return Outcome(hypotheses, references, rows)


def text(asked: Asked) -> Outcome:
    """How well tokens are predicted: the perplexity of those that the objective asks for; of a
    causal language model, with all it read before, of words and characters too."""
    config, run = asked.config, asked.run
    step = validate.make_eval_step(assemble.make_loss(config, run.model))
    with jax.set_mesh(run.mesh):
        total = validate.totals(step, run.params, asked.batches(), run.mesh)
    means = validate.means(config.objective, total)
    what = f"tokens:{total['weight']:.0f}|tokenizer:{run.tokenizer.kind}"
    what += f"|length:{config.data.max_length}"
    causal = isinstance(config.objective, causal_lm.Config)
    if causal:
        what += f"|stride:{config.objective.stride or config.data.max_length}"

    def row(metric, score, more=""):
        return {"metric": metric, "score": score, "signature": what + more}

    rows = [row(metric, means[metric]) for metric in ("perplexity", "nll")]
    if "nsp_accuracy" in means:
        rows.append(row("nsp_accuracy", 100 * means["nsp_accuracy"], f"|rows:{total['rows']:.0f}"))
    if causal:
        stream = causal_lm.opened(config.objective, asked.given())
        words, characters = stream.words, stream.characters
        each = scores.word_perplexity(total["nll"], words)
        bits = scores.bits_per_character(total["nll"], characters)
        rows.append(row("word_perplexity", each, f"|words:{words}"))
        rows.append(row("bits_per_character", bits, f"|characters:{characters}"))
    return Outcome([], [], rows)


TASKS = {"pair": pairs, "text": text}  # by the rows that an objective reads
