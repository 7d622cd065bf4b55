"""Question answering by a span of the context: Rajpurkar et al. (2016, 2018); Devlin et al. (2019),
sections 4.2 and 4.3, and the authors' code.

    [CLS] question [SEP] context [SEP]      start, end: first and last token of the answer

A context that does not fit is read in several windows, each a row of its own, a stride apart. Where
an answer is not in a window, or there is none, start and end are [CLS]. Answers are found back by
the characters that tokens stand for, so they are pieces of the context as it was written.

XLNet's head `beam` (Yang et al., 2019, their code) finds an end for each of the likeliest starts,
and says by itself whether there is no answer.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from tfx.data import examples as data
from tfx.data.cache import Rows, dtype_of, encode_rows
from tfx.nn.losses import softmax_cross_entropy
from tfx.objectives import inputs
from tfx.objectives.inputs import Special, frame

ROWS, HEADS = "questions", ("beam", "span")
READS = "ids"


@dataclass(frozen=True)
class Config:
    """What is minimised, and how answers are read off."""

    stride: Annotated[int, "x >= 1"] = 128  # tokens from one window of a long context to the next
    n_best: Annotated[int, "x >= 1"] = 20  # answers to weigh
    longest: Annotated[int, "x >= 1"] = 30  # tokens of an answer
    no_answer: bool = False  # questions may have none (SQuAD 2.0)
    threshold: float = 0.0  # how much better than an answer none must be


class Question(NamedTuple):
    """One question, its texts tokenized.

    Attributes:
      id: what errors call it.
      question, context: ids.
      offsets: [n, 2], where in `text` each token of the context begins and ends, in characters.
      text: the context as it was written.
    """

    id: str
    question: Sequence[int]
    context: Sequence[int]
    offsets: np.ndarray
    text: str


def answer_tokens(question: Question, answer: str, begin: int) -> tuple[int, int]:
    """The first and the last token of the context that have characters of an answer.

    Raises:
      ValueError: the text does not have the answer where it is said to be.
    """
    end, text = begin + len(answer), question.text
    there = text[begin:end] if begin >= 0 else ""
    if not answer or there != answer:
        raise ValueError(
            f"question {question.id}: its answer {answer!r} is not at character {begin} of its "
            f"context, where {there!r} is; correct answer_start or leave the question out"
        )
    firsts, lasts = np.asarray(question.offsets).reshape(-1, 2).T
    tokens = np.flatnonzero((firsts < end) & (lasts > begin))
    if not len(tokens):
        raise ValueError(
            f"question {question.id}: no token of its context has a character of its answer "
            f"{answer!r}; leave the question out"
        )
    return int(tokens[0]), int(tokens[-1])


def windows(count: int, room: int, stride: int) -> list[tuple[int, int]]:
    """Starts and ends of the windows over a context of `count` tokens, `room` a window and at most
    `stride` further on each time. An empty context has one."""
    made = [(0, min(room, count))]
    while made[-1][1] < count:
        start = made[-1][0] + min(room, stride)
        made.append((start, min(start + room, count)))
    return made


def best_windows(spans: Sequence[tuple[int, int]], count: int) -> np.ndarray:
    """For each of `count` tokens the window that has most of its context: on the side where it has
    less of it; of two alike the longer, then the earlier."""
    starts, ends = np.array(spans).T[..., None]
    token = np.arange(count)
    context = np.minimum(token - starts, ends - 1 - token)
    return np.argmax(np.where(context >= 0, context + 0.01 * (ends - starts), -1), 0)


def make_examples(
    question: Question,
    rng=None,
    *,
    special: Special,
    family: str = "bert",
    context_first: bool = False,
    length: int = 384,
    stride: int = 128,
    answer: tuple[str, int] | None = None,
) -> list[dict[str, np.ndarray]]:
    """The windows of a question.

    Args:
      family, context_first: what frame holds the two, and in which order (XLNet's: context first).
      length: tokens of a row, at most.
      stride: how far one window begins after the other. An answer is read off the window that has
        most of its first token's context, so windows should overlap by two answers.
      answer: its text and the character where it begins; None: there is none.

    Returns:
      Of each window a row of `inputs.frame`; `start` and `end`, positions in it, and `impossible`
      (no answer in it, so that both are the position of [CLS]); `allowed` [T], where these may
      be; and for reading answers off, `at` [T], which token of the context each is (-1: none), and
      `best` [T], whether that has no window with more context.

    Raises:
      ValueError: the answer is not in the text; or the question leaves the context no room.
    """
    count = len(question.context)
    if len(question.offsets) != count:
        raise ValueError(f"question {question.id}: {len(question.offsets)} offsets, {count} tokens")
    span = None if answer is None else answer_tokens(question, *answer)
    both = (lambda q, c: (c, q)) if context_first else (lambda q, c: (q, c))
    framed = lambda special, q, c: frame(family, special, *both(q, c))
    room = length - len(framed(special, question.question, [])["ids"])
    if room < 1:
        raise ValueError(
            f"question {question.id}: its {len(question.question)} tokens leave no room for the "
            f"context in rows of {length}; make rows longer, or leave the question out"
        )
    spans, made = windows(count, room, stride), []
    best = np.append(best_windows(spans, count), -1)
    # The same frame around the numbers of the tokens says where each of them went.
    nowhere = Special(*[-1] * len(Special._fields))
    for number, (first, last) in enumerate(spans):
        row = framed(special, question.question, question.context[first:last])
        at = framed(nowhere, np.full(len(question.question), -1), np.arange(first, last))["ids"]
        inside = span is not None and first <= span[0] and span[1] < last
        start, end = (
            np.flatnonzero(at == token)[0] if inside else null_position(row["ids"], special)
            for token in span or (-1, -1)
        )
        allowed = (at >= 0) | (row["ids"] == special.get("cls"))
        places = {"start": np.int32(start), "end": np.int32(end), "allowed": allowed}
        places |= {"impossible": np.bool_(not inside), "at": at, "best": best[at] == number}
        made.append(row | places)
    return made


def null_position(ids: np.ndarray, special: Special) -> int:
    """Where a row has its [CLS], which stands for no answer."""
    return int(np.flatnonzero(ids == special.get("cls"))[0])


def loss(apply, params, batch, rngs, train):
    """The mean of two cross-entropies: of `start` [B] with the logits of the same name [B, T], and
    of `end`. Padding cannot be chosen; rows without a token do not count. The head `beam` knows the
    start when it looks for the end; where the batch has `impossible` [B], half of the cross-entropy
    of what it says about that comes on top.

    Returns:
      Its sum over rows, their number, and sums: `nll` of start and end, and `accuracy`, rows with
      both of them right.
    """
    outputs = apply(params, batch, rngs=rngs, train=train)
    there_BT = batch["mask"] > 0
    weights_B = there_BT.any(-1).astype(jnp.float32)
    logits = {key: jnp.where(there_BT, outputs[key], -jnp.inf) for key in ("start", "end")}
    nll = sum(
        softmax_cross_entropy(logits_BT, batch[key], weights_B)[0]
        for key, logits_BT in logits.items()
    )
    right_B = weights_B
    for key, logits_BT in logits.items():
        right_B = right_B * (logits_BT.argmax(-1) == batch[key])
    total = nll / 2
    if "impossible" in outputs and "impossible" in batch:
        none_B = optax.sigmoid_binary_cross_entropy(outputs["impossible"], batch["impossible"])
        total += (none_B * weights_B).sum() / 2
    return total, weights_B.sum(), {"nll": nll / 2, "accuracy": right_B.sum()}


class Answer(NamedTuple):
    """A piece of the context.

    Attributes:
      score: its start logit plus its end logit; of the head beam, its log-probability.
      begin, end: its characters.
    """

    text: str
    score: float
    begin: int
    end: int


OF_SPANS, OF_BEAMS = ("start", "end"), ("start_probs", "start_at", "end_probs", "end_at")


def span_scores(made: dict, ends_of: np.ndarray) -> np.ndarray:
    """Logits of starts and ends [T], added up for every answer: see `n_best`."""
    start, end = (np.asarray(made[name], np.float64) for name in OF_SPANS)
    return start[: len(ends_of), None] + end[ends_of]


def beam_scores(made: dict, ends_of: np.ndarray) -> np.ndarray:
    """Log-probabilities of the answers that `heads.Answer` has followed; -inf of the others."""
    starts, at, ends, stop = (np.asarray(made[name]) for name in OF_BEAMS)
    at, starts = (np.tile(x, len(stop) // len(x)) for x in (at, starts))
    scores, size = np.full(ends_of.shape, -np.inf), stop - at
    there = (size >= 0) & (size < ends_of.shape[1]) & (stop < len(ends_of))
    with np.errstate(divide="ignore"):
        scores[at[there], size[there]] = (np.log(starts) + np.log(ends))[there]
    return scores


def n_best(
    question: Question,
    rows: Sequence[dict],
    outputs: Sequence[dict],
    *,
    special: Special,
    count: int = 20,
    longest: int = 30,
) -> tuple[list[Answer], float]:
    """The likeliest answers to a question, over all of its windows.

    Args:
      rows: its windows, in any order.
      outputs: what the model makes of each: logits `start` and `end`, [T] or longer (what stands
        beyond a row is not looked at); or what `heads.Answer` finds.
      count: answers at most.
      longest: tokens of an answer at most.

    Returns:
      Answers, best first, none twice; and by how much there being none is better than the first of
      them: the least that a window has for it, less that answer's score; of the head beam its
      logit of there being none, the least of a window.
    """
    text, found, null, beams = question.text, [], np.inf, "start_at" in outputs[0]
    for row, made in zip(rows, outputs, strict=True):
        at, size = row["at"], len(row["at"])
        cls = null_position(row["ids"], special)
        none = made["impossible"] if beams else made["start"][cls] + made["end"][cls]
        null = min(null, float(none))
        # Column n of a row: an answer of n + 1 tokens from there on.
        ends_of = np.arange(size)[:, None] + np.arange(longest)
        within = ends_of < size
        ends_of = np.minimum(ends_of, size - 1)
        allowed = within & row["best"][:, None] & (at[ends_of] >= 0)
        scores = (beam_scores if beams else span_scores)(made, ends_of)
        scores = np.where(allowed, scores, -np.inf).ravel()
        for flat in np.argsort(-scores, kind="stable")[:count]:
            if scores[flat] == -np.inf:
                break
            first, last = at[flat // longest], at[ends_of.flat[flat]]
            begin, stop = int(question.offsets[first][0]), int(question.offsets[last][1])
            piece = text[begin:stop]
            # SentencePiece counts the space before a word as the word's.
            begin += len(piece) - len(piece.lstrip())
            found.append(
                Answer(piece.strip(), float(scores[flat]), begin, begin + len(piece.strip()))
            )
    best = {}
    for answer in sorted(found, key=lambda answer: -answer.score):
        if answer.text:
            best.setdefault(answer.text, answer)
    answers = list(best.values())[:count]
    if not answers:
        return [], np.inf
    return answers, null if beams else null - answers[0].score


def predict(answers: Sequence[Answer], margin: float, threshold: float | None = None) -> str:
    """The text of the best answer; "" where there is none, or where there being none is better by
    a margin of more than `threshold` (None: there always is one, SQuAD 1.1)."""
    if not answers or (threshold is not None and margin > threshold):
        return ""
    return answers[0].text


# ------------------------------------------------------------------- from a data set


def examples(config: Config, given: data.Given) -> data.Examples:
    """The windows of all questions."""
    opened = Questions(config, given)
    axes = inputs.axes(given.vocabulary, start="", end="")
    if given.vocabulary.family == "xlnet":  # its head beam asks for more
        axes |= {"allowed": "T"} | ({"impossible": ""} if config.no_answer else {})

    def make(numbers, draw):
        windows = [opened.window(number) for number in numbers.tolist()]
        return [{key: window[key] for key in axes} for window in windows]

    recipe = ["windows", given.max_length, config.stride]
    return data.of_rows(opened.rows, [opened.lengths], make, axes, recipe, unit="windows")


class Questions:
    """The questions of a data set, tokenized, and the windows over their contexts.

    Attributes:
      rows: of the cache; a part's `kept` counts windows.
      lengths: [n] tokens of every window.
      question_of: [n] which question each is of.
      answers: of every question its texts; none: it has no answer.
    """

    COLUMNS = ("id", "question", "context", "offsets", "text", "answers")

    def __init__(self, config: Config, given: data.Given):
        v = given.vocabulary
        self._settings = dict(
            special=inputs.special(v),
            family=v.family,
            context_first=v.family == "xlnet",
            length=given.max_length,
            stride=config.stride,
        )
        dtypes = [np.uint8, dtype_of(v), dtype_of(v), np.int32, np.uint8, np.uint8]
        rows = encode_rows(
            given.corpora,
            given.folder,
            ["questions", v.fingerprint, config.no_answer],
            dict(zip(self.COLUMNS, dtypes, strict=True)),
            lambda *columns: _encoded(v, config, *columns),
            given.progress,
        )
        self._columns, count = rows.columns, len(rows.columns["id"])
        texts = (data.text_of(self._columns["answers"], at) for at in range(count))
        self._answers = [[tuple(answer) for answer in json.loads(text)] for text in texts]
        sides = [self._columns[name].lengths for name in ("question", "context")]
        sizes = zip(*sides, strict=True)
        made, around = [], len(v.pair([], [])[0])
        for at, (asked, read) in enumerate(sizes):
            if (room := given.max_length - around - asked) < 1:
                self._windows(at)  # which says so
            made.append([asked + around + b - a for a, b in windows(read, room, config.stride)])
        # Each window's place is a question and a number.
        self.question_of = np.repeat(np.arange(count), [len(each) for each in made])
        self._number = np.concatenate([np.arange(len(each)) for each in made])
        self.lengths = np.concatenate(made)
        bounds = np.cumsum([0, *(part.kept for part in rows.parts)])
        counts = np.diff(np.searchsorted(self.question_of, bounds))
        parts = zip(rows.parts, counts, strict=True)
        parts = tuple(part.__class__(part.name, part.weight, int(n), 0, 0) for part, n in parts)
        self.rows = Rows(rows.columns, parts, rows.fingerprint, rows.folder)

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def answers(self) -> list[list[str]]:
        return [[text for text, _ in answers] for answers in self._answers]

    def question(self, at: int) -> Question:
        """One question."""
        columns, text = self._columns, lambda name: data.text_of(self._columns[name], at)
        ids = (columns[name][at].astype(np.int32) for name in ("question", "context"))
        return Question(text("id"), *ids, columns["offsets"][at].reshape(-1, 2), text("text"))

    def window(self, number: int) -> dict[str, np.ndarray]:
        """One row of `make_examples`."""
        return self._windows(int(self.question_of[number]))[self._number[number]]

    def _windows(self, at: int) -> list[dict[str, np.ndarray]]:
        answer = next(iter(self._answers[at]), None)
        return make_examples(self.question(at), **self._settings, answer=answer)


def _encoded(vocabulary, config: Config, ids, questions, contexts, answers):
    """Rows of the cache from those of the data."""
    found = {name: [] for name in Questions.COLUMNS}
    encoded, last = vocabulary.encode(questions), (None, None)
    for id, question, context, several in zip(ids, encoded, contexts, answers, strict=True):
        if not several and not config.no_answer:
            raise ValueError(
                f"question {id} has no answer; set objective.no_answer=true (SQuAD 2.0), or "
                "leave such questions out"
            )
        if context != last[0]:  # a paragraph's questions follow each other
            last = context, vocabulary.encode_with_offsets(context)
        tokens, offsets = last[1]
        whole = Question(id, question, tokens, np.array(offsets).reshape(-1, 2), context)
        for text, begin in several:
            answer_tokens(whole, text, begin)
        row = (id.encode(), question, tokens, whole.offsets.ravel(), context.encode())
        for name, value in zip(found, (*row, json.dumps(several).encode()), strict=True):
            found[name].append(value)
    return found, 0, 0
