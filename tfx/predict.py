"""What does a trained model say of rows? Their class, a number, the tags of their words, which
choice is right, the answer to a question. Rows are those of a split, or lines of new text.

run = tfx.load("runs/sst2")
answer_lines(run, ["A charming and often affecting journey."])
"""

import dataclasses
import functools
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from tfx import assemble, objectives, scores, sharding, translate
from tfx.config import Config
from tfx.data import examples as data
from tfx.data.sources import Corpus, in_chunks
from tfx.data.text import LineErrors
from tfx.objectives import inputs, span_qa, tag
from tfx.schema import Decode


class Outcome(NamedTuple):
    """What a model made of a split.

    Attributes:
      lines: its answers, a line each.
      references: what they were compared with, as text.
      rows: {metric, score, signature}, the main one first.
      probabilities: of the answers, where they are one of a few.
    """

    lines: list[str]
    references: list[str]
    rows: list[dict]
    probabilities: Sequence[float] = ()


class Asked(NamedTuple):
    """What is to be answered, and by whom.

    Attributes:
      rows: instead of the split's.
      shapes: of batches; by default such as suit the rows.
    """

    run: translate.Run
    split: str
    how: Decode
    directory: Path
    rows: Sequence[Corpus] | None = None
    shapes: Sequence[tuple] | None = None

    @property
    def config(self) -> Config:
        """Of the run."""
        return self.run.config

    def given(self) -> data.Given:
        """What the objective makes examples of, without leaving any out."""
        return assemble.given(*self._where(), False, rows=self.rows)

    def examples(self) -> data.Examples:
        """The split, encoded."""
        return assemble.open_examples(*self._where(), train=False, rows=self.rows)

    def batches(self):
        """The split, once through."""
        how = dict(multiple=sharding.batch_parts(self.run.mesh), train=False, shapes=self.shapes)
        return assemble.open_batches(*self._where(), **how, rows=self.rows)

    def _where(self) -> tuple:
        return self.config, self.run.tokenizer, self.directory, self.split

    def outputs(self, *names: str, unseen: str = "") -> dict[int, dict[str, np.ndarray]]:
        """Of every example by its number, what the model predicts and what is in the batch; the
        model does not see what `unseen` names."""
        run, batches, found = self.run, self.batches(), {}
        step = _predictor(run.model, run.mesh, names, unseen)
        with jax.set_mesh(run.mesh):
            for number in range(batches.steps_per_epoch):
                batch = assemble.fetch(batches, number, run.mesh)
                index, made = jax.device_get(step(run.params, batch))
                for row in np.flatnonzero(index >= 0).tolist():
                    found[int(index[row])] = {name: made[name][row] for name in names}
        return dict(sorted(found.items()))


@functools.lru_cache
def _predictor(model, mesh, names: tuple[str, ...], unseen: str):
    """(params, batch) -> index and outputs, jitted once, however often lines are answered."""

    def predict(params, batch):
        index = batch.pop("index")
        seen = {name: x for name, x in batch.items() if name != unseen}
        made = model.apply({"params": params}, seen, method="predict")
        return index, {name: made[name] if name in made else batch[name] for name in names}

    return jax.jit(predict, out_shardings=sharding.replicated(mesh))


def labels(asked: Asked) -> Outcome:
    """Classes: how many are right, and of two classes what GLUE reports beside it."""
    found = asked.outputs("logits", "label").values()
    mine = [int(each["logits"].argmax()) for each in found]
    theirs = [int(each["label"]) for each in found]
    rows, heads = scores.accuracy(mine, theirs), assemble.objective(asked.config).HEADS
    if getattr(asked.config.model, "classes", 0) == 2 and "classify" in heads:
        rows += scores.f1(mine, theirs) + scores.matthews(mine, theirs)
    name = _namer(asked)
    sure = [float(1 / np.exp(each["logits"] - each["logits"].max()).sum()) for each in found]
    return Outcome(list(map(name, mine)), list(map(name, theirs)), rows, sure)


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


TASKS = {  # by the rows that an objective reads, or by its name where that says more
    "labelled": labels,
    "choices": labels,
    "regress": numbers,
    "tagged": tags,
    "questions": questions,
}


def task(config: Config):
    """What answers and scores rows, as a config's objective wants it."""
    name = objectives.name_of(config.objective)
    return TASKS.get(name) or TASKS[assemble.objective(config).ROWS]


# ----------------------------------------------------------------------- new text

CHUNK = sys.maxsize  # lines that are answered together: all that there are
LINES = {  # by the rows that an objective reads: what is between the tabs of a line, and how often
    "labelled": ("TEXT, or TEXT<tab>TEXT", 1, 2),
    "tagged": ("words apart by blanks", 1, 1),
    "choices": ("TEXT<tab>CHOICE<tab>CHOICE ...", 3, math.inf),
    "questions": ("QUESTION<tab>CONTEXT", 2, 2),
}


class Answer(NamedTuple):
    """Of a line: a class, a number, tags, or a piece of its context.

    Attributes:
      probability: of a class, or a choice; nan of others.
    """

    text: str
    probability: float = math.nan


def answer_lines(
    run: translate.Run,
    lines: Sequence[str | None],
    errors: LineErrors | None = None,
    before: int = 0,
) -> list[Answer]:
    """What the model says of each line, in order, and nothing of an empty one. Lines are as LINES
    says; they are read as evaluation reads the rows of a split.

    Args:
      lines: None stands for one that could not be read.
      errors: what to do about a line with more tokens than data.max_length. By default it is cut:
        the longer one of two texts, the end of a question, the last of words to tag, which then
        get no tag.
      before: how many lines came before; it numbers them, for errors.

    Raises:
      TypeError: one string is given instead of several.
      ValueError: the run writes texts, or goes on with them; a line has other columns.
    """
    translate.refuse_string(lines)
    if errors is None:
        with LineErrors(name="text") as errors:
            return answer_lines(run, lines, errors, before)
    kind, name = assemble.objective(run.config).ROWS, errors.name
    if kind not in LINES:
        other = "tfx translate" if kind == "pair" else "tfx generate, or tfx eval"
        raise ValueError(f"this run has no classes and no answers to choose from; use {other}")
    numbered = enumerate(lines, before + 1)
    rows = {n: _row(kind, line, f"{name}:{n}") for n, line in numbered if line and line.strip()}
    if len(widths := {len(row) for row in rows.values()}) > 1:
        raise ValueError(
            f"{name}: lines of {min(widths) - 1} and of {max(widths) - 1} texts; give all as many"
        )
    rows = _fitting(run, kind, rows, errors)
    if not rows:
        return [Answer("")] * len(lines)
    objective = run.config.objective
    if isinstance(objective, span_qa.Config) and not objective.no_answer:
        # Nobody knows the answers: they may be missing here. The model's may not.
        objective = dataclasses.replace(objective, no_answer=True, threshold=math.inf)
    data = dataclasses.replace(run.config.data, truncate=True)
    config = dataclasses.replace(run.config, objective=objective, data=data)
    run = dataclasses.replace(run, config=config)
    # What is wrong with a row is told by its number: an empty line has one too.
    numbers = range(before + 1, before + len(lines) + 1)
    some = next(iter(rows.values()))
    filled = [rows.get(n, some) for n in numbers]
    with tempfile.TemporaryDirectory() as folder:
        corpora = [Corpus(name, lambda: in_chunks(iter(filled)))]
        shapes = _shapes(run, len(filled))
        asked = Asked(run, "test", run.config.decode, Path(folder), corpora, shapes)
        found = task(run.config)(asked)
    said = found.lines
    if kind == "questions":
        said = [json.loads(line)["answer"] for line in said]
    known = found.probabilities or [math.nan] * len(said)
    answers = zip(numbers, map(Answer, said, known), strict=True)
    return [answer if n in rows else Answer("") for n, answer in answers]


def _shapes(run: translate.Run, rows: int) -> list[tuple[int, int]] | None:
    """Shapes for a few rows, which a batch has room for: the same few, whatever the rows are, so
    that who asks again and again does not compile again and again. None for many."""
    most, parts = run.config.data.max_length, sharding.batch_parts(run.mesh)
    if rows * most > run.config.batch.tokens:
        return None
    rows = -(-translate.round_up(rows, 1) // parts) * parts
    lengths = sorted({min(translate.round_up(n), most) for n in range(1, most + 1)})
    return [(rows, length) for length in lengths]


def _fitting(run: translate.Run, kind: str, rows: dict[int, tuple], errors: LineErrors) -> dict:
    """Rows by their numbers, without those that are skipped. Texts that are too long are left to
    data.truncate, questions and words are cut here."""
    v, most, fitting = run.tokenizer, run.config.data.max_length, {}
    limit = f"data.max_length; it has {run.config.model.max_length:,} positions"
    lengths = _lengths(kind, list(rows.values()), v)
    for (number, row), length in zip(rows.items(), lengths, strict=True):
        if length <= most:
            fitting[number] = row
        elif errors.too_long(number, length, most, limit):
            fitting[number] = CUTS[kind](row, v, most) if kind in CUTS else row
    return fitting


def _lengths(kind: str, rows: list[tuple], v) -> list[int]:
    """The least tokens that each row takes whole, with what stands around a text."""
    count = lambda texts: [len(ids) for ids in v.encode(list(texts))]
    around = {two: len(v.pair([], [] if two else None)[0]) for two in (False, True)}
    match kind:
        case "labelled":
            sides = [count(side) for side in list(zip(*rows, strict=True))[:-1]]
            return [sum(each) + around[len(sides) == 2] for each in zip(*sides, strict=True)]
        case "choices":
            firsts = count(text for text, _, _ in rows)
            longest = [max(count(several)) for _, several, _ in rows]
            return [a + b + around[True] for a, b in zip(firsts, longest, strict=True)]
        case "questions":  # the context is read in windows of a token or more
            return [n + 1 + around[True] for n in count(row[1] for row in rows)]
        case "tagged":
            return [sum(map(len, tag.pieces_of(v, words))) + around[False] for words, _ in rows]


def _cut_words(row: tuple, v, most: int) -> tuple:
    """The first words, as many as fit."""
    words, tags = row
    room = most - len(v.pair([])[0])
    ends = itertools.accumulate(map(len, tag.pieces_of(v, words)))
    kept = sum(end <= room for end in ends)
    return words[:kept], tags[:kept]


def _cut_question(row: tuple, v, most: int) -> tuple:
    """The beginning of a question, which leaves half of a row to the context."""
    where, question, *rest = row
    room = max((most - len(v.pair([], [])[0])) // 2, 1)
    kept, over = 0, len(question) + 1  # characters that fit, and that do not
    while over - kept > 1:
        middle = (kept + over) // 2
        if len(v.encode([question[:middle]])[0]) <= room:
            kept = middle
        else:
            over = middle
    return where, question[:kept], *rest


CUTS = {"tagged": _cut_words, "questions": _cut_question}


def _row(kind: str, line: str, where: str) -> tuple:
    """A line as a row, with any label that there may be: nothing depends on it."""
    cells, (what, least, most) = line.split("\t"), LINES[kind]
    if not least <= len(cells) <= most:
        raise ValueError(f"{where}: {len(cells)} columns; want {what}")
    match kind:
        case "labelled":
            return *cells, "0"
        case "tagged":
            words = cells[0].split()
            return words, ["0"] * len(words)
        case "choices":
            return cells[0], cells[1:], 0
        case "questions":
            return where, *cells, []
