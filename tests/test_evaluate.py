import json

import pytest

from tfx import evaluate
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
    kept = (tmp_path / "translations" / "valid.4.txt").read_text()
    assert kept.count("\n") == (toy / "valid.a").read_text().count("\n")
    assert "BLEU" in capsys.readouterr().out.upper()


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
