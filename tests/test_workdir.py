import dataclasses
import json
import subprocess

import pytest

import tfx
from tfx import workdir
from tfx.config import defaults, freeze, to_json


def config(**changes):
    """The default config with `section__key=value` changed."""
    chosen = defaults()
    for key, value in changes.items():
        section, _, leaf = key.rpartition("__")
        (chosen[section] if section else chosen)[leaf] = value
    return freeze(chosen)


def test_a_new_workdir_says_what_was_run_and_how(tmp_path):
    overrides = {"optim.lr": 0.5, "tokenizer.joint": True, "data.train": "a b"}
    path = workdir.prepare(
        tmp_path / "deep" / "run",
        config(optim__lr=0.5),
        {"argv": ["tfx", "train"], "overrides": overrides},
    )
    assert path.is_absolute()
    assert workdir.read_config(path) == config(optim__lr=0.5)
    written = (path / "overrides.txt").read_text().splitlines()
    assert written == [
        "--config.optim.lr=0.5",
        "--config.tokenizer.joint=true",
        "--config.data.train=a b",
    ]
    assert workdir.read_overrides(path) == list(overrides)
    [start] = map(json.loads, (path / "starts.jsonl").read_text().splitlines())
    assert start["argv"] == ["tfx", "train"]
    assert {"time", "git", "config", "tfx", "jax", "flax", "python"} <= start.keys()


def test_a_relative_path_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert workdir.prepare("run", config()) == tmp_path / "run"


def test_a_run_goes_on_with_what_may_change(tmp_path):
    workdir.prepare(tmp_path, config())
    longer = config(
        train__steps=200_000, eval__every=5, decode__beam=9, mesh__fsdp=2, data__test="valid"
    )
    workdir.prepare(tmp_path, longer)
    assert workdir.read_config(tmp_path) == longer
    assert len((tmp_path / "starts.jsonl").read_text().splitlines()) == 2


def test_another_run_is_refused_with_the_difference_and_changes_nothing(tmp_path):
    workdir.prepare(tmp_path, config())
    workdir.check(tmp_path, config(seed=3))  # nothing was learned there yet
    (tmp_path / "tokenizer.json").write_text("{}")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for attempt in (workdir.check, workdir.prepare):
        with pytest.raises(ValueError) as raised:
            attempt(tmp_path, config(optim__lr=0.25, seed=3))
        text = str(raised.value)
        assert "seed was 0, is 3" in text and "optim.lr was 1.0, is 0.25" in text
        assert "\n" not in text
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_long_difference_is_cut(tmp_path):
    workdir.prepare(tmp_path, config())
    (tmp_path / "tokenizer.json").write_text("{}")
    changes = {f"model__{key}": 64 for key in ("width", "depth", "heads", "mlp")}
    other = config(seed=1, optim__lr=2.0, batch__tokens=7, **changes)
    with pytest.raises(ValueError, match="and 2 more"):
        workdir.check(tmp_path, other)


def test_what_cannot_be_a_workdir_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for path in (file, file / "below"):
        with pytest.raises(ValueError, match="cannot write here"):
            workdir.prepare(path, config())
    with pytest.raises(ValueError, match="no other URL will do"):
        workdir.prepare("s3://bucket/run", config())


def test_reading_a_config_that_is_missing_or_damaged(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="no run here"):
            workdir.read_config(path)
    (tmp_path / "config.json").write_text(to_json(config())[:100])
    with pytest.raises(ValueError, match=r"config.json: line \d+: not JSON"):
        workdir.read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"optim": {"lrr": 1}}')
    with pytest.raises(ValueError, match=r"config\.json: optim\.lrr: no such key; did you mean"):
        workdir.read_config(tmp_path)


def test_progress_is_the_last_step_and_the_last_bleu(tmp_path):
    assert workdir.progress(tmp_path) == (0, None)
    for name in ("100", "2000", "300.tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    rows = [{"metric": "bleu", "score": 1.0}, {"metric": "bleu", "score": 2.0}, {"metric": "ter"}]
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert workdir.progress(tmp_path) == (2000, rows[1])


def test_find_takes_a_run_or_a_directory_of_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match="no runs here"):
        workdir.find(tmp_path)
    for name in ("b", "a"):
        workdir.prepare(tmp_path / name, config())
    assert workdir.find(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert workdir.find(tmp_path / "b") == [tmp_path / "b"]


def test_versions_and_revision():
    assert workdir.versions()["tfx"] == tfx.__version__
    assert set(workdir.revision()) <= set("0123456789abcdef+")


def test_the_revision_marks_changed_files(tmp_path, monkeypatch):
    git = lambda *words: subprocess.run(["git", "-C", tmp_path, *words], check=True)
    monkeypatch.setattr(workdir, "__file__", str(tmp_path / "tfx" / "workdir.py"))
    assert workdir.revision() == ""
    git("init", "-q")
    assert workdir.revision() == ""  # no commit yet
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "a")
    assert len(workdir.revision()) == 40
    (tmp_path / "a").write_text("2")
    assert workdir.revision().endswith("+")


def test_an_older_config_without_a_key_reads_with_its_default(tmp_path):
    tree = json.loads(to_json(config()))
    del tree["optim"]["ema"]
    (tmp_path / "config.json").write_text(json.dumps(tree))
    assert workdir.read_config(tmp_path) == config()
    assert dataclasses.is_dataclass(workdir.read_config(tmp_path))
