"""How good is a trained model? A split is answered, as its kind of task wants it, and scored: rows
of scores.jsonl, each with a signature that says what was measured, on which data, how decoded."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
    sharding,
    translate,
    validate,
    workdir,
)
from tfx import config as configs
from tfx.config import Config, fingerprint
from tfx.data.text import one_line
from tfx.objectives import causal_lm
from tfx.predict import Asked

SPLITS = ("train", "valid", "test")
# What answers depend on, beside the parameters and the text.
DECIDES = ("decode.", "objective.", "data.fields", "data.max_length", "data.truncate")
DECIDES += ("data.source",)
LONGEST = 100  # characters of a file's name, ends left out
LOG = logging.getLogger("tfx")


def evaluate(
    directory: str | Path,
    split: str = "",
    step: int | None = None,
    average: int = 0,
    config: Config | None = None,
    say=print,
    **settings,
) -> list[dict]:
    """Answer a split, score it, append the rows to the workdir's scores.jsonl.

    The answers are kept in `translations/` or `answers/`, in a file that rows name (`file_name`).
    Of several processes, all answer everything, together; one scores and writes, and has the rows.

    Args:
      split: train, valid or test; by default test if there is one, or else valid.
      average: use the mean of the last so many checkpoints.
      config: instead of the run's own, where data or search are to be others.
      settings: fields of `tfx.schema.Decode` to change.

    Returns:
      Rows over the whole split, the main one first; of several corpora then those of each, which
      have its name as `corpus`.

    Raises:
      ValueError: there is no such split, or no text in it; a metric is not installed; a row is too
        long for the model.
    """
    if split not in ("", *SPLITS):
        raise ValueError(f"--split={split}: choose from {', '.join(SPLITS)}")
    began, directory = time.time(), hosts.in_turn(lambda: bucket.local(directory))
    trained = workdir.read_config(directory)
    config = config or trained
    config = dataclasses.replace(config, decode=dataclasses.replace(config.decode, **settings))
    values = dataclasses.asdict(config.decode) | dict(tfx=tfx.__version__)
    values |= dict(config=fingerprint(config), split=split, step=step, average=average)
    hosts.agree(values, "start all of them with the same words, on one workdir that they share")
    split = split or _usual(config, directory, say if hosts.leads() else assemble.silent)
    rows = assemble.objective(config).ROWS
    if rows == "pair":
        scores.require(config.eval)
    about = _which(config, split)
    if not writable(directory) and hosts.leads():
        LOG.warning("%s: cannot write here; scores are shown and not kept", directory)
    with _folder(directory) as folder:
        run = translate.load(directory, step, average, config)
        run = dataclasses.replace(run, config=config)
        found = TASKS.get(rows, others)(Asked(run, split, config.decode, folder))
    common = {"split": split, "step": run.step, "averaged": average} | about
    # Equal where one evaluation may take the place of the other.
    common["identity"] = _hash([json.dumps([about["fingerprint"], decides(config)])])[:8]
    common |= {"sentences": len(found.lines), "references": _hash(found.references)}
    common |= _how(trained, config)
    common |= {"version": tfx.__version__, "revision": workdir.revision()}
    common["seconds"] = round(time.time() - began, 1)
    write = lambda: write_down(directory, trained, config, found, common, say)
    return hosts.in_turn(lambda: write() if hosts.leads() else [])


def _usual(config: Config, directory: Path, say) -> str:
    """The split that is evaluated where none is named."""
    if config.data.test.split():
        return "test"
    if config.data.valid.split():
        say("no test data (data.test is empty): this is valid")
        return "valid"
    raise ValueError(
        f"{directory}: nothing to evaluate, data.test and data.valid are empty; name the text: "
        "--config.data.test=SOURCE,TARGET"
    )


def _which(config: Config, split: str) -> dict[str, Any]:
    """Which data a split is: as it was named, in short, and by its content."""
    corpora = assemble.corpora(config, split)
    return {
        "data": getattr(config.data, split),
        "test_set": "+".join(assemble.names(config, corpora)),
        "fingerprint": _hash([corpus.fingerprint for corpus in corpora]),
        "synthetic": config.data.source == "synthetic",
    }


def _how(trained: Config, config: Config) -> dict[str, Any]:
    """How answers are found: by which run, and what is not as in its own config."""
    return {
        "objective": objectives.name_of(config.objective),
        "decode": dataclasses.asdict(config.decode),
        "changed": changes(trained, config),
        "config": fingerprint(trained),
    }


def _hash(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


# ---------------------------------------------------------------------------- answers


class Answers(NamedTuple):
    """What a model made of a split.

    Attributes:
      lines: its answers, a line each.
      references: what they are compared with, as text.
      score: corpus number, or None for all -> rows {metric, score, signature}, the main one first.
    """

    lines: list[str]
    references: list[str]
    score: Callable[[int | None], list[dict]]


def pairs(asked: Asked) -> Answers:
    """Search for texts: BLEU, chrF and TER, or ROUGE, or how many are the right word of a few."""
    config, how = asked.config, asked.config.eval
    sources, references = assemble.lines(config, asked.split)
    assemble.check_sources(config, asked.run.tokenizer, asked.split, sources)
    found = [hypotheses[0].text for hypotheses in asked.run.search(sources, asked.how)]
    if getattr(config.objective, "labels", ""):
        found = [line.strip() for line in found]
        columns, score = (found, [label for [label] in references]), scores.accuracy
    elif how.metric == "rouge":
        columns, score = (found, references, sources), scores.summaries
    else:
        found = list(map(one_line, found))
        columns = found, [list(map(one_line, several)) for several in references]
        score = partial(scores.translation, how)
    parts = validate.slices(assemble.sizes(assemble.corpora(config, asked.split)))

    def score_part(corpus: int | None) -> list[dict]:
        part = slice(None) if corpus is None else parts[corpus]
        return score(*(column[part] for column in columns))

    return Answers(found, ["\n".join(several) for several in references], score_part)


def text(asked: Asked) -> Answers:
    """Predict tokens: the perplexity of those that the objective asks for; of a causal language
    model, with all it read before, of words and characters too."""
    config, run = asked.config, asked.run
    step = validate.make_eval_step(assemble.make_loss(config, run.model))
    rows = sharding.batch_parts(run.mesh)
    with jax.set_mesh(run.mesh):
        each = [
            validate.totals(step, run.params, batches, run.mesh)
            for batches in validate.by_corpus(config, asked.examples(), rows)
        ]
    counts = None
    if isinstance(config.objective, causal_lm.Config):
        counts = causal_lm.opened(config.objective, asked.given()).counts

    def score(corpus: int | None) -> list[dict]:
        part = slice(None) if corpus is None else slice(corpus, corpus + 1)
        numbers = None if counts is None else counts[part].sum(0).tolist()
        return _perplexities(config, run.tokenizer.kind, validate.added(each[part]), numbers)

    return Answers([], [], score)


def _perplexities(config: Config, kind: str, total: dict, counts: Sequence[int] | None):
    """Rows of a text.

    Args:
      total: what the objective added up.
      counts: words, line ends and characters; None: of tokens alone.
    """
    means = validate.means(config.objective, total)
    what = f"tokens:{total['weight']:.0f}|tokenizer:{kind}|length:{config.data.max_length}"
    if counts is not None:
        what += f"|stride:{config.objective.stride or config.data.max_length}"

    def row(metric, score, more=""):
        return {"metric": metric, "score": score, "signature": what + more}

    rows = [row(metric, means[metric]) for metric in ("perplexity", "nll")]
    if "nsp_accuracy" in means:
        rows.append(row("nsp_accuracy", 100 * means["nsp_accuracy"], f"|rows:{total['rows']:.0f}"))
    if counts is not None:
        words, line_ends, characters = counts
        each = scores.word_perplexity(total["nll"], words + line_ends)
        bits = scores.bits_per_character(total["nll"], characters)
        rows.append(row("word_perplexity", each, f"|words:{words}|line_ends:{line_ends}"))
        rows.append(row("bits_per_character", bits, f"|characters:{characters}"))
    return rows


def others(asked: Asked) -> Answers:
    """Answer rows as tfx/predict.py does; of several corpora each once more by itself, for how they
    are scored is known there alone."""
    task = predict.task(asked.config)
    found, corpora = task(asked), assemble.corpora(asked.config, asked.split)
    rows = {None: found.rows}
    for number, corpus in enumerate(corpora if len(corpora) > 1 else []):
        try:
            rows[number] = task(asked._replace(rows=[corpus])).rows
        except ValueError as error:  # too few rows for a measure, such as a correlation
            LOG.warning("%s: %s", corpus.name, error)
            rows[number] = []
    return Answers(found.lines, found.references, rows.get)


TASKS = {"pair": pairs, "text": text}  # by the rows that an objective reads


# ------------------------------------------------------------------------ what is kept


def write_down(
    directory: Path, trained: Config, config: Config, found: Answers, common: dict, say
) -> list[dict]:
    """Keep the answers, score them, show the scores, append the rows.

    Args:
      trained: the run's own config.
      common: what all rows share.
    """
    kept = writable(directory)
    bucket.pull(directory)  # rows of evaluations that ended meanwhile
    if found.lines and kept:
        with _alone(directory), _or_warn("answers"):
            common = common | {"file": file_name(directory, trained, config, common)}
            path = directory / common["file"]
            path.parent.mkdir(exist_ok=True)
            text = "".join(f"{one_line(line)}\n" for line in found.lines)
            path.write_text(text, encoding="utf-8", newline="\n")
    # The main measure of an evaluation is what `tfx list` shows.
    rows = [row | common | {"main": not n} for n, row in enumerate(found.score(None))]
    rows += _of_corpora(config, found, common)
    try:
        _show(rows, "pairs" if assemble.objective(config).ROWS == "pair" else "rows", say)
    finally:  # even where who reads it has had enough, such as `head`
        if kept:
            with _alone(directory), _or_warn("scores"):
                records.append(directory / "scores.jsonl", rows)
    bucket.publish(directory)
    return rows


def _show(rows: list[dict], unit: str, say) -> None:
    first = rows[0]
    kind = "synthetic held-out " if first["synthetic"] else ""
    what = f"{first['sentences']:,} {kind}{unit} of " if first["sentences"] else kind
    name = "" if first["synthetic"] else f" ({first['test_set']})"
    say(f"{what}{first['split']}{name}, step {first['step']:,}, {first['seconds']} s")
    corpora = [f"/{row['corpus']}" if "corpus" in row else "" for row in rows]
    names = [row["metric"] + corpus for row, corpus in zip(rows, corpora, strict=True)]
    width = max(12, *(len(name) + 2 for name in names))
    for name, row in zip(names, rows, strict=True):
        say(f"  {name:<{width}}{row['score']:7.2f}  {row['signature']}")


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Wait for other evaluations that write there; a run may train there meanwhile."""
    with lock.Lock(directory, "eval", lock.inside(directory, ".scores.lock")) as held:
        held.acquire(seconds=60)
        yield


def _of_corpora(config: Config, found: Answers, common: dict) -> list[dict]:
    """Rows of each corpus, where there are several."""
    corpora, rows = assemble.corpora(config, common["split"]), []
    if len(corpora) == 1:
        return rows
    sizes = assemble.sizes(corpora) if found.lines else [0] * len(corpora)
    for number, name in enumerate(assemble.names(config, corpora)):
        own = {"corpus": name, "sentences": sizes[number], "main": False}
        own["fingerprint"] = _hash([corpora[number].fingerprint])
        rows += [row | common | own for row in found.score(number)]
    return rows


def changes(trained: Config, config: Config) -> dict[str, Any]:
    """What answers depend on and an evaluation changed, {key: value}, but for the data itself."""
    old, new = decides(trained), decides(config)
    return {key: value for key, value in new.items() if old.get(key) != value}


def decides(config: Config) -> dict[str, Any]:
    """{key: value} of what answers depend on, beside parameters and text."""
    flat = configs.flatten(configs.to_dict(config))
    return {k: v for k, v in flat.items() if k.startswith(DECIDES) and k != "decode.tokens"}


def file_name(directory: Path, trained: Config, config: Config, common: dict) -> str:
    """Name the file of answers: SPLIT.STEP, and behind it what is not as in the run's own config.

        translations/test.30.txt
        translations/test.30.average5.newstest2014.beam8.txt

    Where that is the file of another evaluation already (the config, or a text of that name, has
    changed since), it ends in a hash.
    """
    split, changed = common["split"], changes(trained, config)
    folder = "translations" if assemble.objective(config).ROWS == "pair" else "answers"
    words = [split, str(common["step"])]
    if common["averaged"]:
        words.append(f"average{common['averaged']}")
    usual = ".".join(words)
    if getattr(trained.data, split) != getattr(config.data, split) or "data.source" in changed:
        words.append(common["test_set"])
    words += [_word(key.rpartition(".")[2], value) for key, value in changed.items()]
    name = ".".join(re.sub(r"[^\w.+-]+", "-", word) for word in words)
    if len(name) > LONGEST:
        name = f"{usual}.{common['identity']}"
    for row in records.read(directory / "scores.jsonl")[0]:
        # Earlier versions had one file for all that a checkpoint was asked.
        average = f".average{row['averaged']}" if row.get("averaged") else ""
        theirs = row.get("file", f"{folder}/{row.get('split')}.{row.get('step')}{average}.txt")
        if theirs == f"{folder}/{name}.txt" and row.get("identity") != common["identity"]:
            return f"{folder}/{name}.{common['identity']}.txt"
    return f"{folder}/{name}.txt"


def _word(key: str, value) -> str:
    """A setting as a part of a file's name: beam8, method-greedy, no_answer."""
    if isinstance(value, bool):
        return key if value else f"not-{key}"
    return f"{key}-{value}" if isinstance(value, str) else f"{key}{value}"


def writable(directory: Path) -> bool:
    """Whether scores and answers can be kept there, as far as the system says."""
    kept = [directory, *(directory / name for name in ("scores.jsonl", "translations", "answers"))]
    return all(os.access(path, os.W_OK) for path in kept if path.exists())


@contextlib.contextmanager
def _folder(directory: Path) -> Iterator[Path]:
    """Where encoded text is kept: the workdir, or what is thrown away where that is read-only."""
    if writable(directory):
        yield directory
    else:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)


@contextlib.contextmanager
def _or_warn(what: str) -> Iterator[None]:
    """An evaluation that cannot be written down has been made all the same."""
    try:
        yield
    except OSError as error:
        LOG.warning("the %s are not kept: %s (%s)", what, error.filename, error.strerror)
