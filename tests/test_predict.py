"""What is said of new text is what evaluation says of the same rows."""

import json
import math

import pytest

from tfx import assemble, evaluate, translate
from tfx.data import exercises
from tfx.main import main
from tfx.predict import answer_lines
from tfx.train import train


def rows_of(config):
    chunks = (chunk for corpus in assemble.corpora(config, "valid") for chunk in corpus.chunks())
    return [row for chunk in chunks for row in zip(*chunk, strict=True)]


def trained(config, folder):
    train(config, folder)
    evaluate.evaluate(folder, "valid", say=lambda line: None)


def answers_of(folder):
    return (folder / "answers" / "valid.4.txt").read_text().splitlines()


def test_lines_are_answered_in_order_and_empty_ones_not(exercise, tmp_path, capsys):
    names = ",".join(exercises.CLASSES)
    config = exercise("bert", "classify", "bert", model__head="classify", objective__labels=names)
    trained(config, tmp_path)
    texts, wanted = [text for text, _ in rows_of(config)[:30]], answers_of(tmp_path)[:30]
    run = translate.load(tmp_path)
    found = answer_lines(run, [" ", *texts, ""])
    assert [answer.text for answer in found] == ["", *wanted, ""]
    sure = [answer.probability for answer in found]
    assert math.isnan(sure[0]) and all(1 / len(exercises.CLASSES) < p <= 1 for p in sure[1:-1])
    [alone] = answer_lines(run, texts[-1:])
    assert alone.probability == pytest.approx(sure[-2], abs=1e-5)  # whatever is beside it
    file = tmp_path / "lines.txt"
    file.write_text("".join(f"{text}\n" for text in ["", *texts]))
    capsys.readouterr()
    assert main(["predict", f"--workdir={tmp_path}", f"--input={file}", "--scores"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "" and [line.split("\t")[1] for line in rest] == wanted
    assert main(["predict", f"--workdir={tmp_path}", f"--input={file}"]) == 0
    assert capsys.readouterr().out.splitlines() == ["", *wanted]


def test_wrong_lines_are_refused_in_one_line(exercise, tmp_path, capsys):
    names = ",".join(exercises.CLASSES)
    config = exercise("bert", "classify", "bert", model__head="classify", objective__labels=names)
    train(config, tmp_path)
    file = tmp_path / "lines.txt"
    for content, why in (
        ("a\n\na\tb\tc\n", f"{file}:3: 3 columns; want TEXT, or TEXT<tab>TEXT"),
        ("a\nb\tc\n", f"{file}: lines of 1 and of 2 texts; give all as many"),
        ("a\n\n" + "a " * 99, f"{file}:3: 101 tokens, the model takes at most 64"),
    ):
        file.write_text(content)
        words = [f"--workdir={tmp_path}", f"--input={file}", "--long=fail"]
        assert main(["predict", *words]) == 2
        assert capsys.readouterr().err.startswith(f"error: {why}")
    assert main(["predict", f"--workdir={tmp_path}", f"--input={file}"]) == 0
    assert main(["predict", f"--workdir={tmp_path}", "--input=nowhere.txt"]) == 2


def test_tags_and_choices(exercise, tmp_path):
    names = dict(objective__labels=",".join(exercises.TAGS), model__classes=len(exercises.TAGS))
    tags = exercise("bert", "tag", "bert", model__head="tokens", **names)
    trained(tags, tmp_path / "tag")
    words = [" ".join(words) for words, _ in rows_of(tags)[:20]]
    found = answer_lines(translate.load(tmp_path / "tag"), words)
    assert [answer.text for answer in found] == answers_of(tmp_path / "tag")[:20]
    assert [len(a.text.split()) for a in found] == [len(line.split()) for line in words]
    head = dict(model__head="choice", data__max_length=128)
    choices = exercise("bert", "multiple_choice", "bert", **head)
    trained(choices, tmp_path / "choice")
    lines = ["\t".join([text, *several]) for text, several, _ in rows_of(choices)[:20]]
    found = answer_lines(translate.load(tmp_path / "choice"), lines)
    assert [answer.text for answer in found] == answers_of(tmp_path / "choice")[:20]


@pytest.mark.parametrize("none", [True, False])
def test_an_answer_is_a_piece_of_its_context(exercise, tmp_path, none):
    config = exercise("bert", "span_qa", "bert", model__head="span", objective__no_answer=True)
    train(config, tmp_path)
    lines = ["\t".join([question, context]) for _, question, context, _ in rows_of(config)[:20]]
    if not none:
        saved = json.loads((tmp_path / "config.json").read_text())
        saved["objective"]["no_answer"] = False
        (tmp_path / "config.json").write_text(json.dumps(saved))
    run = translate.load(tmp_path)
    found = [answer.text for answer in answer_lines(run, lines)]
    assert all(answer in line.split("\t")[1] for answer, line in zip(found, lines, strict=True))
    assert none or all(found)  # one that knows no missing answers always has one


def test_what_writes_text_of_its_own_is_no_classifier(toy_config, tmp_path):
    train(toy_config({"train.steps": 1, "eval.every": 0}), tmp_path)
    with pytest.raises(ValueError, match=r"no classes and no answers .*; use tfx translate"):
        answer_lines(translate.load(tmp_path), ["a"])
