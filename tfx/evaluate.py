"""How good is a trained model? A split is answered, as its kind of task wants it, and scored: rows
of scores.jsonl, each with a signature that says what was measured."""

import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import tfx
from tfx import assemble, bucket, hosts, objectives, scores, sharding, translate, validate, workdir
from tfx.config import Config, fingerprint
from tfx.data import examples as data
from tfx.objectives import causal_lm, inputs, span_qa
from tfx.schema import Decode

SPLITS = ("train", "valid", "test")


class Outcome(NamedTuple):
    """What a model made of a split.

    Attributes:
      lines: its answers, a line each.
      references: what they were compared with, as text.
      rows: {metric, score, signature}, the main one first.
    """

    lines: list[str]
    references: list[str]
    rows: list[dict]


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
    run = dataclasses.replace(translate.load(directory, step, average), config=config)
    name = objectives.name_of(config.objective)
    asked = Asked(run, split, how, directory)
    found = TASKS.get(name, TASKS[assemble.objective(config).ROWS])(asked)
    common = {
        "split": split,
        "step": run.step,
        "averaged": average,
        "sentences": len(found.lines),
        "synthetic": config.data.source == "synthetic",
        "references": hashlib.sha256("\n".join(found.references).encode()).hexdigest()[:16],
        "objective": name,
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
    with (directory / "scores.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    kind = "synthetic held-out " if common["synthetic"] else ""
    unit = "pairs" if pairs else "rows"
    what = f"{len(found.lines):,} {kind}{unit} of {split}" if found.lines else f"{kind}{split}"
    say(f"{what}, step {step:,}, {common['seconds']} s")
    width = max(12, *(len(row["metric"]) + 2 for row in rows))
    for row in rows:
        say(f"  {row['metric']:<{width}}{row['score']:7.2f}  {row['signature']}")
    bucket.publish(directory)
    return rows


# --------------------------------------------------------------------- reading answers off


class Asked(NamedTuple):
    """What is to be answered, and by whom."""

    run: translate.Run
    split: str
    how: Decode
    directory: Path

    @property
    def config(self) -> Config:
        """Of the run."""
        return self.run.config

    def given(self) -> data.Given:
        """What the objective makes examples of, without leaving any out."""
        return assemble.given(self.config, self.run.tokenizer, self.directory, self.split, False)

    def batches(self):
        """The split, once through."""
        where = (self.run.tokenizer, self.directory, self.split)
        multiple = sharding.batch_parts(self.run.mesh)
        return assemble.open_batches(self.config, *where, multiple=multiple, train=False)

    def outputs(self, *names: str, unseen: str = "") -> dict[int, dict[str, np.ndarray]]:
        """Of every example by its number, what the model predicts and what is in the batch; the
        model does not see what `unseen` names."""
        run, batches, found = self.run, self.batches(), {}

        def predict(params, batch):
            index = batch.pop("index")
            seen = {name: x for name, x in batch.items() if name != unseen}
            made = run.model.apply({"params": params}, seen, method="predict")
            return index, {name: made[name] if name in made else batch[name] for name in names}

        step = jax.jit(predict, out_shardings=sharding.replicated(run.mesh))
        with jax.set_mesh(run.mesh):
            for number in range(batches.steps_per_epoch):
                batch = assemble.fetch(batches, number, run.mesh)
                index, made = jax.device_get(step(run.params, batch))
                for row in np.flatnonzero(index >= 0).tolist():
                    found[int(index[row])] = {name: made[name][row] for name in names}
        return dict(sorted(found.items()))


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


def labels(asked: Asked) -> Outcome:
    """Classes: how many are right, and of two classes what GLUE reports beside it."""
    found = asked.outputs("logits", "label").values()
    mine = [int(each["logits"].argmax()) for each in found]
    theirs = [int(each["label"]) for each in found]
    rows = scores.accuracy(mine, theirs)
    if getattr(asked.config.model, "classes", 0) == 2 and "classify" in _heads(asked):
        rows += scores.f1(mine, theirs) + scores.matthews(mine, theirs)
    name = _namer(asked)
    return Outcome(list(map(name, mine)), list(map(name, theirs)), rows)


def _heads(asked: Asked) -> tuple[str, ...]:
    return assemble.objective(asked.config).HEADS


def _namer(asked: Asked):
    names = getattr(asked.config.objective, "labels", "")
    return names.split(",").__getitem__ if names else str


def numbers(asked: Asked) -> Outcome:
    """Numbers: how they go with the given ones."""
    found = asked.outputs("logits", "value").values()
    mine = [float(each["logits"][0]) for each in found]
    theirs = [float(each["value"]) for each in found]
    rows = scores.pearson(mine, theirs) + scores.spearman(mine, theirs)
    return Outcome([f"{x:.4f}" for x in mine], [f"{x:.4f}" for x in theirs], rows)


def tags(asked: Asked) -> Outcome:
    """Tags of words: accuracy and, where they mark spans, F1 of these."""
    name, mine, theirs = _namer(asked), [], []
    for each in asked.outputs("logits", "targets", "weights").values():
        scored = each["weights"] > 0
        mine.append([name(int(n)) for n in each["logits"][scored].argmax(-1)])
        theirs.append([name(int(n)) for n in each["targets"][scored]])
    rows = scores.tagging(mine, theirs)
    return Outcome([" ".join(t) for t in mine], [" ".join(t) for t in theirs], rows)


def questions(asked: Asked) -> Outcome:
    """Answers cut out of a text: exact matches and F1; where there may be none, also the best that
    a threshold could do. A line has the likeliest answers with their scores, and by what margin
    there being none is better than the first: what a threshold is compared with."""
    config, given = asked.config.objective, asked.given()
    read = span_qa.Questions(config, given)
    beams = asked.config.model.head == "beam"  # which would take the true start for known
    names = (*span_qa.OF_BEAMS, "impossible") if beams else span_qa.OF_SPANS
    outputs = asked.outputs(*names, unseen="start")
    windows = [[] for _ in range(len(read))]
    for number in outputs:
        windows[read.question_of[number]].append(number)
    lines, predicted, certain, nulls, gold = [], {}, {}, {}, {}  # files may share ids
    for at, found in enumerate(windows):
        question = read.question(at)
        answers, nulls[at] = span_qa.n_best(
            question,
            [read.window(number) for number in found],
            [outputs[number] for number in found],
            special=inputs.special(given.vocabulary),
            count=config.n_best,
            longest=config.longest,
        )
        threshold = config.threshold if config.no_answer else None
        predicted[at] = span_qa.predict(answers, nulls[at], threshold)
        certain[at] = span_qa.predict(answers, nulls[at])
        gold[at] = read.answers[at]
        likeliest = [[answer.text, round(answer.score, 4)] for answer in answers]
        margin = round(nulls[at], 4) if answers else None
        line = {"id": question.id, "answer": predicted[at], "margin": margin, "n_best": likeliest}
        lines.append(json.dumps(line, ensure_ascii=False))
    rows = scores.squad(predicted, gold)
    if config.no_answer:
        for metric, (score, threshold) in scores.best_threshold(nulls, certain, gold).items():
            signature = f"objective.threshold:{threshold:.4f}"
            rows.append({"metric": f"best_{metric}", "score": score, "signature": signature})
    return Outcome(lines, [json.dumps(each) for each in gold.values()], rows)


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


TASKS = {  # by the rows that an objective reads, or by its name where that says more
    "pair": pairs,
    "labelled": labels,
    "choices": labels,
    "regress": numbers,
    "tagged": tags,
    "questions": questions,
    "text": text,
}
