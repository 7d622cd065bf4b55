import json
import math
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tfx import assemble, evaluate, translate, workdir
from tfx import config as configs
from tfx.data import exercises
from tfx.data.tokenizer import Tokenizer
from tfx.objectives import inputs
from tfx.train import train


@pytest.fixture(scope="module")
def config(toy_config):
    return toy_config({"train.steps": 4, "eval.every": 2})


def test_a_split_is_translated_scored_and_written_down(config, tmp_path, capsys, toy):
    train(config, tmp_path)
    evaluate.evaluate(tmp_path, "valid", beam=1)
    evaluate.evaluate(tmp_path, "valid", average=1, method="greedy")
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [row["metric"] for row in rows[:4]] == ["bleu", "chrf", "ter", "bleu_tok_lc"]
    assert {row["step"] for row in rows} == {4}
    assert rows[0]["decode"]["beam"] == 1 and rows[4]["decode"]["method"] == "greedy"
    assert rows[0]["references"] == rows[4]["references"]
    assert rows[0]["sentences"] == 24 and rows[0]["synthetic"] is False
    for field in ("signature", "config", "version", "revision", "split"):
        assert field in rows[0]
    names = ["valid.4.beam1.txt", "valid.4.average1.method-greedy.txt"]
    assert [rows[at]["file"] for at in (0, 4)] == [f"translations/{name}" for name in names]
    assert {path.name for path in (tmp_path / "translations").iterdir()} == {*names}
    kept = (tmp_path / rows[0]["file"]).read_text()
    assert kept.count("\n") == (toy / "valid.a").read_text().count("\n")
    assert "BLEU" in capsys.readouterr().out.upper()


def test_a_split_that_is_none_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="--split=dev: choose from train, valid, test"):
        evaluate.evaluate(tmp_path / "nowhere", "dev")


def test_scores_of_the_embedded_corpus_say_that_it_is_synthetic(
    config, toy_config, tmp_path, capsys
):
    synthetic = toy_config(
        {"data.source": "synthetic", "data.train": "valid", "data.valid": "valid"}
        | {"data.test": "test", "tokenizer.vocab": 200, "train.steps": 1}
    )
    train(synthetic, tmp_path)
    capsys.readouterr()
    rows = evaluate.evaluate(tmp_path, "valid", method="greedy", extra=2)
    assert all(row["synthetic"] for row in rows)
    assert "synthetic" in capsys.readouterr().out


# -------------------------------------------------------------------------------- other tasks


def trained(config, folder):
    train(config, folder)
    rows = evaluate.evaluate(folder, "valid", say=lambda line: None)
    return {row["metric"]: row["score"] for row in rows}, rows


def test_classes_are_those_that_the_model_gives_each_text_alone(exercise, tmp_path):
    labels = ",".join(exercises.CLASSES)
    config = exercise("bert", "classify", "bert", model__head="classify", objective__labels=labels)
    found, rows = trained(config, tmp_path)
    assert [row["main"] for row in rows] == [True, False, False]
    [chunk] = assemble.corpora(config, "valid")[0].chunks()
    texts, wanted = chunk
    said = (tmp_path / "answers" / "valid.4.txt").read_text().splitlines()
    assert len(said) == len(texts)
    right = [ours == theirs for ours, theirs in zip(said, wanted, strict=True)]
    assert found["accuracy"] == pytest.approx(100 * np.mean(right), abs=1e-3)
    run = translate.load(tmp_path)
    predict = jax.jit(partial(run.model.apply, {"params": run.params}, method="predict"))
    for at in range(0, len(texts), 97):
        [ids] = run.tokenizer.encode(texts[at : at + 1])
        row = inputs.framed(run.tokenizer, ids)
        logits = predict({key: x[None] for key, x in row.items()})["logits"]
        assert exercises.CLASSES[int(logits.argmax())] == said[at]
    assert "accuracy" in workdir.progress(tmp_path)[1]["metric"]


@pytest.mark.parametrize(
    "family, head", [("bert", "span"), pytest.param("xlnet", "beam", marks=pytest.mark.slow)]
)
def test_answers_are_pieces_of_their_contexts(exercise, tmp_path, family, head):
    config = exercise(
        family,
        "span_qa",
        family,
        model__head=head,
        objective__no_answer=True,
        objective__stride=16,
        data__max_length=128,
        batch__tokens=4096,
    )
    found, _ = trained(config, tmp_path)
    assert {"exact", "f1", "best_exact", "best_f1"} <= found.keys()
    assert found["best_exact"] >= found["exact"] and found["best_f1"] >= found["f1"]
    contexts = {}
    for ids, _, texts, _ in assemble.corpora(config, "valid")[0].chunks():
        contexts |= dict(zip(ids, texts, strict=True))
    lines = (tmp_path / "answers" / "valid.4.txt").read_text().splitlines()
    answers = {row["id"]: row["answer"] for row in map(json.loads, lines)}
    for row in map(json.loads, lines):
        texts, marks = zip(*row["n_best"], strict=True)
        assert list(marks) == sorted(marks, reverse=True) and len({*texts}) == len(texts) <= 20
        assert row["answer"] == ("" if row["margin"] > 0 else texts[0])
    assert answers.keys() == contexts.keys()
    assert all(answer in contexts[id] for id, answer in answers.items())


def test_what_is_said_of_two_sentences_is_scored_beside_the_masked_ones(exercise, tmp_path):
    head = dict(model__head="pretraining", objective__pairs="order")
    found, rows = trained(exercise("bert", "masked_lm", "bert", **head), tmp_path)
    run, right = translate.load(tmp_path), []
    where = (run.tokenizer, tmp_path, "valid")
    batches = assemble.open_batches(run.config, *where, multiple=1, train=False)
    predict = jax.jit(partial(run.model.apply, {"params": run.params}, method="predict"))
    for step in range(batches.steps_per_epoch):
        batch = batches.batch(step)
        there, label = batch.pop("index") >= 0, batch.pop("nsp")
        right += (predict(batch)["nsp"].argmax(-1) == label)[there].tolist()
    assert [row["metric"] for row in rows] == ["perplexity", "nll", "nsp_accuracy"]
    assert found["nsp_accuracy"] == pytest.approx(100 * np.mean(right), abs=1e-3)
    assert rows[-1]["signature"].endswith(f"|rows:{len(right)}")


@pytest.mark.parametrize("stride", [0, 5])
def test_perplexity_is_that_of_every_token_from_what_it_may_see(exercise, tmp_path, stride):
    (tmp_path / "text.txt").write_text("a cab\nbad cab abc\n\ncc\n" * 3)
    files = dict(data__source="files", data__train=f"{tmp_path}/text.txt")
    files["data__valid"] = files["data__train"]
    size = dict(data__max_length=12, objective__stride=stride, model__max_length=16)
    config = exercise("gpt2", "causal_lm", "chars", "small", **files, **size)
    found, rows = trained(config, tmp_path / "run")
    run = translate.load(tmp_path / "run")
    ids, end = run.tokenizer.encode(["a cab", "bad cab abc", "cc"]), run.tokenizer.special["eos"]
    text = [end] + 3 * [number for row in ids for number in (*row, end)]
    predict = jax.jit(partial(run.model.apply, {"params": run.params}))
    nll, length, step = 0.0, 12, stride or 12
    row = np.zeros((1, length), int)  # what is after a token changes nothing
    for at in range(1, len(text)):
        # The first block begins the text; later ones begin a whole number of steps behind it.
        start = max(-(-(at - length) // step), 0) * step
        row[0, : at - start] = text[start:at]
        nll -= float(jax.nn.log_softmax(predict({"ids": row})[0, at - start - 1])[text[at]])
    assert found["nll"] == pytest.approx(nll / (len(text) - 1), abs=1e-4)
    # A line end is a word, that of a blank line too.
    words = 3 * (2 + 3 + 0 + 1) + 3 * 4
    assert found["word_perplexity"] == pytest.approx(math.exp(nll / words), rel=1e-3)
    [signature] = [row["signature"] for row in rows if row["metric"] == "word_perplexity"]
    assert signature.endswith("|words:18|line_ends:12")
    characters = 3 * len("a cab\nbad cab abc\ncc\n")
    assert found["bits_per_character"] == pytest.approx(nll / characters / math.log(2), rel=1e-3)
    # Both splits are one text here, which is encoded once.
    assert len(list((tmp_path / "run" / "data").rglob("sizes.*"))) == 1


def test_summaries_are_scored_beside_the_first_sentences_of_what_they_sum_up(exercise, tmp_path):
    pytest.importorskip("rouge_score")
    rows = [("Red sun. Blue sky. Old man. New day.", "Red sun."), ("One two.", "One two.")]
    (tmp_path / "valid.tsv").write_text("".join(f"{one}\t{two}\n" for one, two in rows))
    files = dict(data__source="files", data__valid=f"{tmp_path}/valid.tsv", eval__metric="rouge")
    config = exercise("t5", "text_to_text", "t5", "small", objective__prefix="sum: ", **files)
    said = [[translate.Hypothesis("Blue sky.", 0.0)], [translate.Hypothesis("One two.", 0.0)]]
    ids = SimpleNamespace(source=SimpleNamespace(encode=lambda texts: []), ends=Tokenizer.ends)
    run = SimpleNamespace(config=config, tokenizer=ids, search=lambda *_: said)
    found = evaluate.pairs(evaluate.Asked(run, "valid", config.decode, tmp_path))
    rows = found.score(None)
    score = {row["metric"]: row["score"] for row in rows}
    assert rows[0]["metric"] == "rouge1" and score["rouge1"] == 50.0
    assert score["lead1_rouge1"] == 100.0 > score["lead3_rouge1"] == 75.0


def test_an_evaluation_may_read_other_text(exercise, tmp_path, toy):
    (tmp_path / "other.txt").write_text("The old dog sees a man.\n")
    config = exercise("roberta", "masked_lm", "roberta", tokenizer__vocab=300)
    train(config, tmp_path / "run")
    other = configs.thaw(config)
    other.data.update(source="files", valid=f"{tmp_path}/other.txt")
    rows = evaluate.evaluate(
        tmp_path / "run", "valid", config=configs.freeze(other), say=lambda line: None
    )
    assert rows[0]["metric"] == "perplexity" and rows[0]["synthetic"] is False
