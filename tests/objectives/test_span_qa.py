"""Question answering: windows over long contexts, answers as tokens, tokens as answers."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfx.data import examples as data
from tfx.data import sources, vocabulary
from tfx.objectives import span_qa
from tfx.objectives.inputs import Special

SPECIAL = Special(pad=0, cls=1, sep=2)
TEXT = "The leader was  John Smith (1895-1943), a Japanese painter\nof note."


def ask(text=TEXT, pattern=r"\w{1,5}|[^\w\s]", question=(7, 8), id="q1"):
    """A question about a text whose tokens are pieces of at most five letters."""
    offsets = np.array([match.span() for match in re.finditer(pattern, text)]).reshape(-1, 2)
    return span_qa.Question(id, list(question), [*range(10, 10 + len(offsets))], offsets, text)


def rows_of(question, **settings):
    return span_qa.make_examples(question, special=SPECIAL, **settings)


@pytest.mark.parametrize(
    "answer, tokens",
    [
        ("1895", "1895"),
        ("John Smith", "John Smith"),
        ("Japan", "Japan"),  # a part of a word that is a token
        ("Japanese painter", "Japanese painter"),
        ("apan", "Japan"),  # a part of a token: all of it
        ("painter\nof", "painter\nof"),
        (TEXT, TEXT),
    ],
)
def test_an_answer_is_the_tokens_that_have_its_characters(answer, tokens):
    question = ask()
    first, last = span_qa.answer_tokens(question, answer, TEXT.index(answer))
    assert TEXT[question.offsets[first][0] : question.offsets[last][1]] == tokens


@pytest.mark.parametrize(
    "answer, begin, message",
    [
        ("1895", 27, r"question q1: its answer '1895' is not at character 27 .*'\(189'"),
        ("1895", -1, "not at character -1"),
        ("note.", 999, "not at character 999"),
        ("", 3, "not at character 3"),
        ("  ", 14, "no token .* has a character of its answer"),
    ],
)
def test_an_answer_that_is_not_in_the_text_is_refused(answer, begin, message):
    with pytest.raises(ValueError, match=message):
        rows_of(ask(), answer=(answer, begin))


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 37])
@pytest.mark.parametrize("room, stride", [(10, 4), (10, 10), (10, 99), (1, 1)])
def test_windows_cover_the_context(count, room, stride):
    spans = span_qa.windows(count, room, stride)
    assert spans[0][0] == 0 and spans[-1][1] == count
    assert all(0 < end - start <= room for start, end in spans if count)
    steps = np.diff([start for start, _ in spans])
    assert (steps == min(room, stride)).all()
    assert {n for span in spans for n in range(*span)} == {*range(count)}
    assert len(spans) == 1 or spans[-2][1] < count


def test_the_window_with_most_context_of_the_authors():
    """the man went to the | to the store and bought | and bought a gallon of: `bought` is the
    third's, with one token before and three behind it."""
    best = span_qa.best_windows([(0, 5), (3, 8), (6, 11)], 11)
    assert best[7] == 2 and best.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2]


def test_one_row_where_all_fits():
    (row,) = rows_of(ask("a b c"), answer=("b", 2))
    assert row["ids"].tolist() == [1, 7, 8, 2, 10, 11, 12, 2]
    assert row["at"].tolist() == [-1, -1, -1, -1, 0, 1, 2, -1]
    assert (row["start"], row["end"], row["impossible"]) == (5, 5, False)
    assert row["best"].tolist() == [False] * 4 + [True] * 3 + [False]


def test_no_answer_is_the_first_token():
    (row,) = rows_of(ask("a b c"))
    assert (row["start"], row["end"], row["impossible"]) == (0, 0, True)
    (row,) = rows_of(ask(""))
    assert row["ids"].tolist() == [1, 7, 8, 2, 2] and row["impossible"]


def test_the_context_can_come_first_and_the_null_last():
    (row,) = rows_of(ask("a b c"), family="xlnet", context_first=True)
    assert row["ids"].tolist() == [10, 11, 12, 2, 7, 8, 2, 1]
    assert row["types"].tolist() == [0, 0, 0, 0, 1, 1, 1, 2]
    assert row["start"] == row["end"] == 7 and row["at"].tolist()[:4] == [0, 1, 2, -1]


@pytest.mark.parametrize("family, context_first", [("bert", False), ("xlnet", True)])
@pytest.mark.parametrize("length", [8, 11, 100])
def test_long_contexts_become_several_rows(family, context_first, length):
    question = ask()
    answer = ("John Smith", TEXT.index("John"))
    span = span_qa.answer_tokens(question, *answer)
    settings = dict(family=family, context_first=context_first, length=length, stride=2)
    rows = rows_of(question, answer=answer, **settings)
    assert all(len(row["ids"]) <= length for row in rows)
    seen = np.concatenate([row["at"][row["best"]] for row in rows])
    assert sorted(seen.tolist()) == [*range(len(question.context))]  # each is some row's, once
    whole = 0
    for row in rows:
        context = row["at"] >= 0
        assert (row["ids"][context] == np.array(question.context)[row["at"][context]]).all()
        inside = {*span} <= {*row["at"].tolist()}
        assert row["impossible"] == (not inside)
        if inside:
            assert (row["at"][row["start"]], row["at"][row["end"]]) == span
            whole += 1
        else:
            assert row["ids"][row["start"]] == row["ids"][row["end"]] == SPECIAL.cls
    assert whole


def test_a_question_that_leaves_no_room_is_refused():
    with pytest.raises(ValueError, match=r"question q1: its 2 tokens leave no room .* rows of 5"):
        rows_of(ask(), length=5)
    assert rows_of(ask(), length=6)
    with pytest.raises(ValueError, match="1 offsets, 3 tokens"):
        rows_of(ask("a b c")._replace(offsets=np.zeros((1, 2))))


# From logits to text.


def logits_for(rows, span, high=9.0):
    """Logits that say `span`, two tokens of the context, in each row that has them."""
    made = []
    for row in rows:
        ends = {}
        for name, token in zip(("start", "end"), span, strict=True):
            ends[name] = logits = np.zeros(len(row["at"]) + 3)  # the batch was padded
            logits[len(row["at"]) :] = 99
            logits[: len(row["at"])][row["at"] == token] = high
        made.append(ends)
    return made


@pytest.mark.parametrize("length, stride", [(100, 50), (11, 2), (9, 1)])
def test_every_answer_is_found_back(length, stride):
    question = ask()
    rows = rows_of(question, length=length, stride=stride)
    for first in range(len(question.context)):
        for last in range(first, min(first + 2, len(question.context))):
            logits = logits_for(rows, (first, last))
            answers, _ = span_qa.n_best(question, rows, logits, special=SPECIAL)
            want = TEXT[question.offsets[first][0] : question.offsets[last][1]]
            assert answers[0].text == want == TEXT[answers[0].begin : answers[0].end]
            assert answers[0].score == 18


def test_the_best_are_those_of_an_exhaustive_search():
    question, rng = ask(), np.random.default_rng(0)
    rows = rows_of(question, length=12, stride=4)
    logits = [{key: rng.normal(size=len(row["at"])) for key in ("start", "end")} for row in rows]
    best = {}
    for row, made in zip(rows, logits, strict=True):
        at, start, end = row["at"], made["start"], made["end"]
        for i in range(len(at)):
            for j in range(i, min(i + 3, len(at))):
                if row["best"][i] and at[j] >= 0:
                    text = TEXT[question.offsets[at[i]][0] : question.offsets[at[j]][1]]
                    best[text] = max(best.get(text, -np.inf), start[i] + end[j])
    answers, margin = span_qa.n_best(question, rows, logits, special=SPECIAL, count=15, longest=3)
    want = sorted(best.items(), key=lambda pair: -pair[1])[:15]
    assert [answer.text for answer in answers] == [text for text, _ in want]
    np.testing.assert_allclose([answer.score for answer in answers], [score for _, score in want])
    assert margin == min(made["start"][0] + made["end"][0] for made in logits) - answers[0].score


def test_a_beam_answers_with_the_ends_of_likely_starts():
    question = ask("one two three four five")
    (row,) = rows_of(question, family="xlnet", context_first=True)
    assert row["ids"].tolist()[-1] == SPECIAL.cls
    assert row["allowed"].tolist() == [True] * 5 + [False] * 4 + [True]
    found = {  # of the starts 1 and 3 the two likeliest ends each, the first of both first
        "start_probs": np.array([0.5, 0.25]),
        "start_at": np.array([1, 3]),
        "end_probs": np.array([0.5, 0.75, 0.25, 0.25]),
        "end_at": np.array([2, 4, 0, 9]),  # 0 is before 1, and 9 is no part of the context
        "impossible": np.float32(-0.5),
    }
    answers, margin = span_qa.n_best(question, [row], [found], special=SPECIAL)
    assert [answer.text for answer in answers] == ["two three", "four five"]
    np.testing.assert_allclose([np.exp(answer.score) for answer in answers], [1 / 4, 3 / 16])
    assert margin == -0.5
    (only,), _ = span_qa.n_best(question, [row], [found], special=SPECIAL, count=1)
    assert only == answers[0]
    assert span_qa.n_best(question, [row], [found], special=SPECIAL, longest=1) == ([], np.inf)


def test_pieces_that_hold_the_space_before_them():
    """SentencePiece's: the answer is without it, and found where it is written."""
    question = ask("see John Smith there", pattern=r"\s?\w+")
    assert span_qa.answer_tokens(question, "John Smith", 4) == (1, 2)
    rows = rows_of(question)
    (best, *_), _ = span_qa.n_best(question, rows, logits_for(rows, (1, 2)), special=SPECIAL)
    assert (best.text, best.begin, best.end) == ("John Smith", 4, 14)


def test_the_threshold_decides_whether_there_is_an_answer():
    answers = [span_qa.Answer("a", 3.0, 0, 1), span_qa.Answer("b", 1.0, 2, 3)]
    assert span_qa.predict(answers, margin=99.0) == "a"
    assert span_qa.predict(answers, margin=0.5, threshold=0.0) == ""
    assert span_qa.predict(answers, margin=0.5, threshold=1.0) == "a"
    assert span_qa.predict([], margin=0.0) == ""
    question = ask("")
    (row,) = rows_of(question)
    logits = {"start": np.ones(5), "end": np.ones(5)}
    assert span_qa.n_best(question, [row], [logits], special=SPECIAL) == ([], np.inf)


# The loss.


def test_the_mean_of_both_ends_over_rows_and_tokens_that_are_there():
    batch = {
        "mask": np.array([[1, 1, 1], [1, 1, 0], [0, 0, 0]]),
        "start": np.array([0, 1, 0]),
        "end": np.array([2, 1, 0]),
    }
    rng = np.random.default_rng(0)
    start_BT, end_BT = (rng.normal(size=(3, 3)).astype(np.float32) for _ in range(2))
    start_BT[0], end_BT[0] = [3, 0, 0], [0, 0, 3]

    def run(start_BT, end_BT):
        outputs = {"start": start_BT, "end": end_BT}
        return span_qa.loss(lambda *_, **__: outputs, None, batch, None, True)

    def nll(logits_T, place, count):
        return np.log(np.exp(logits_T[:count]).sum()) - logits_T[place]

    total, weight, sums = run(jnp.asarray(start_BT), jnp.asarray(end_BT))
    want = nll(start_BT[0], 0, 3) + nll(end_BT[0], 2, 3)
    want += nll(start_BT[1], 1, 2) + nll(end_BT[1], 1, 2)
    np.testing.assert_allclose([total, sums["nll"]], [want / 2] * 2, rtol=1e-5)
    right = [start_BT[1, 1] > start_BT[1, 0] and end_BT[1, 1] > end_BT[1, 0], True]
    assert weight == 2 and sums["accuracy"] == sum(right)
    gradients = jax.grad(lambda *x: run(*x)[0], (0, 1))(jnp.asarray(start_BT), jnp.asarray(end_BT))
    for gradient in gradients:
        assert ((gradient != 0) == batch["mask"]).all()


def test_half_of_the_question_whether_there_is_an_answer_comes_on_top():
    batch = {
        "mask": np.array([[1, 1], [1, 1], [0, 0]]),
        "start": np.array([0, 1, 0]),
        "end": np.array([0, 1, 0]),
    }
    outputs = {"start": jnp.zeros((3, 2)), "end": jnp.zeros((3, 2)), "impossible": jnp.ones(3)}
    run = lambda batch: span_qa.loss(lambda *_, **__: outputs, None, batch, None, True)
    plain, weight, sums = run(batch)
    total, *_ = run(batch | {"impossible": np.array([True, False, True])})
    none = np.log1p(np.exp(-1)) + np.log1p(np.exp(1))
    np.testing.assert_allclose(total, plain + none / 2, rtol=1e-6)
    assert weight == 2 and sums["nll"] == plain


# Examples of a data set.

PAGE = " ".join(f"In {1900 + n} the painter John sold {n} pictures in Paris;" for n in range(12))
LINES = [PAGE, "Where did John sell pictures in 1905? Who was it?"] * 3
VOCABULARIES = {
    kind: vocabulary.learn(kind, size, LINES)
    for kind, size in (("bert", 90), ("roberta", 300), ("xlnet", 52))
}


def squad(place, *questions, context=PAGE, name="squad.json"):
    """A file: (question, answers), answers being texts or (text, start)."""

    def answer(one):
        text, start = one if isinstance(one, tuple) else (one, context.find(one))
        return {"text": text, "answer_start": start}

    asked = [
        {"id": f"q{n}", "question": question, "answers": [*map(answer, answers)]}
        for n, (question, answers) in enumerate(questions)
    ]
    for each in asked:
        each |= {} if each["answers"] else {"is_impossible": True}
    paragraphs = [{"context": context, "qas": asked}]
    (place / name).write_text(json.dumps({"version": "2.0", "data": [{"paragraphs": paragraphs}]}))
    return str(place / name)


def opened(place, spec, kind="bert", train=False, length=48, no_answer=True, stride=10):
    corpora = sources.open_split("files", spec, "", "train", "questions")
    vocab = VOCABULARIES[kind]
    given = data.Given(corpora, vocab, place / "data", train, length, 512)
    config = span_qa.Config(stride=stride, no_answer=no_answer)
    return span_qa.Questions(config, given), span_qa.examples(config, given)


def made(examples):
    numbers = np.arange(len(examples.lengths[0]))
    return examples.make(numbers, data.Draw(0, 0, 0, numbers, (48,)))


ASKED = [
    ("Who?", ["John", "painter John"]),
    ("Where in 1911?", [("Paris", PAGE.rindex("Paris"))]),
    ("How many?", ["7 pictures in Paris", "7"]),
    ("Why?", []),
    ("All of it?", [PAGE]),
]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("kind", VOCABULARIES)
def test_answers_of_a_file_are_found_back_from_some_window(tmp_path, kind, train):
    read, examples = opened(tmp_path, squad(tmp_path, *ASKED), kind, train)
    assert len(read) == 5 and read.answers == [answers_of(each) for _, each in ASKED]
    rows = made(examples)
    assert len(rows) == len(read.lengths) == sum(part.kept for part in examples.parts) > 10
    found, special = {n: set() for n in range(5)}, VOCABULARIES[kind].special
    for number, (row, length) in enumerate(zip(rows, read.lengths, strict=True)):
        window, at = read.window(number), int(read.question_of[number])
        assert row.keys() == examples.axes.keys() and len(row["ids"]) == length <= 48
        assert all((window[key] == row[key]).all() for key in row)
        start, end, places = int(row["start"]), int(row["end"]), window["at"]
        if window["impossible"]:
            assert start == end and row["ids"][start] == special["cls"]
            continue
        question = read.question(at)
        assert question.text == PAGE and question.id == f"q{at}"
        first, last = (int(question.offsets[places[n]][k]) for k, n in enumerate((start, end)))
        assert question.text[first:last] == read.answers[at][0]
        found[at].add((first, last))
    # The first answer of each; that there is none, and what no window holds, is nowhere.
    starts = [PAGE.index("John"), PAGE.rindex("Paris"), PAGE.index("7 pictures")]
    assert [[first for first, _ in found[n]] for n in range(3)] == [[n] for n in starts]
    assert not found[3] and not found[4]


def answers_of(answers):
    return [answer[0] if isinstance(answer, tuple) else answer for answer in answers]


def test_windows_depend_on_their_length_and_stride(tmp_path):
    spec = squad(tmp_path, *ASKED)
    changes = ({}, {"length": 40}, {"stride": 9}, {"length": 40, "stride": 9})
    each = [opened(tmp_path, spec, **change)[1] for change in changes]
    assert len({examples.fingerprint for examples in each}) == 4
    assert len({len(examples.lengths[0]) for examples in each}) > 2


def test_several_files_count_their_own_windows(tmp_path):
    specs = [
        squad(tmp_path, *ASKED[:2], name="a.json"),
        squad(tmp_path, ("Who?", ["John"]), context="John.", name="b.json"),
    ]
    read, examples = opened(tmp_path, " ".join(specs))
    counts = [part.kept for part in examples.parts]
    assert counts == [int((read.question_of < 2).sum()), 1] and sum(counts) == len(read.lengths)


@pytest.mark.parametrize(
    "questions, settings, match",
    [
        ([("Who?", [("John", 3)])], {}, r"question q0: its answer 'John' is not at character 3 of"),
        (ASKED, {"no_answer": False}, r"question q3 has no answer; set objective\.no_answer=true"),
        (
            [("Who " * 60, ["John"])],
            {},
            r"question q0: its \d+ tokens leave no room for the cont",
        ),
    ],
)
def test_a_wrong_question_is_refused_before_training(tmp_path, questions, settings, match):
    for train in (True, False):
        with pytest.raises(ValueError, match=match) as raised:
            opened(tmp_path, squad(tmp_path, *questions), train=train, **settings)
        assert "\n" not in str(raised.value)
