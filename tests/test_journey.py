"""One sentence's whole way, as a person goes it: by the command line, stopped in between."""

import json
import os
import signal

import pytest

from tfx import metrics
from tfx.main import main


@pytest.fixture
def arguments(toy):
    split = lambda name: f"{toy}/{name}.a,{toy}/{name}.b"
    values = {
        "data.source": "files",
        "data.train": split("train"),
        "data.valid": split("valid"),
        "data.test": split("valid"),
        "tokenizer.vocab": 40,
        "model.dropout": 0.1,
        "train.steps": 6,
        "eval.every": 3,
        "eval.bleu_every": 6,
        "checkpoint.every": 3,
    }
    return [f"--config.{key}={value}" for key, value in values.items()]


def test_from_text_to_bleu(arguments, toy, tmp_path, capsys, monkeypatch):
    train = ["train", "--config=quickstart:tiny", f"--workdir={tmp_path}/run", *arguments]
    show = metrics.Screen.step

    def interrupt(self, step, *rest):
        show(self, step, *rest)
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(metrics.Screen, "step", interrupt)
    assert main(train) == 143
    monkeypatch.undo()
    assert main(train) == 0
    out = capsys.readouterr().out
    assert "resuming from step 4" in out and "BLEU" in out
    rows = metrics.read(tmp_path / "run", "train")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]

    assert main(["eval", f"--workdir={tmp_path}/run"]) == 0
    scores = (tmp_path / "run" / "scores.jsonl").read_text().splitlines()
    assert json.loads(scores[0])["metric"] == "bleu"

    source, target = toy / "valid.a", tmp_path / "out"
    flags = [f"--workdir={tmp_path}/run", f"--input={source}", f"--output={target}"]
    assert main(["translate", *flags]) == 0
    assert target.read_text().count("\n") == source.read_text().count("\n")

    files = [f"--source={source}", f"--target={toy}/valid.b"]
    capsys.readouterr()
    assert main(["score", f"--workdir={tmp_path}/run", *files]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 24 and all(float(line) < 0 for line in printed)

    other = [f"--workdir={tmp_path}/run", *arguments, "--config.optim.lr=0.5"]
    assert main(["train", "--config=quickstart:tiny", *other]) == 2
    assert "holds another run: optim.lr was" in capsys.readouterr().err
