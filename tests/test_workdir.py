import dataclasses
import errno
import json
import os
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


def test_find_looks_below_a_run_too_but_not_into_it(tmp_path):
    """`tfx train --workdir=runs/` makes a run of the folder of all others."""
    for name in ("", "a", "sweep/lr1", "sweep/lr2", "checkpoints/1", "a/vocabulary", ".hidden"):
        workdir.prepare(tmp_path / name, config())
    names = ["", "a", "sweep/lr1", "sweep/lr2"]
    assert workdir.find(tmp_path) == [tmp_path / name for name in names]


@pytest.mark.parametrize("name", ["checkpoints", "data", "tensorboard"])
def test_a_file_in_the_place_of_a_folder_is_refused_at_once(name, tmp_path):
    (tmp_path / name).write_text("")
    for attempt in (workdir.check_place, lambda place: workdir.prepare(place, config())):
        with pytest.raises(ValueError, match=f"{name}: a file where the run keeps a folder"):
            attempt(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "starts.jsonl", "tokenizer.json"])
def test_a_folder_in_the_place_of_a_file_is_refused_at_once(name, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"{name}: a folder where the run keeps a file"):
        workdir.check_place(tmp_path)


def test_a_place_that_cannot_be_written_is_refused_and_nothing_is_made(tmp_path, monkeypatch):
    def refuse(dir):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    workdir.check_place(tmp_path / "new" / "run")
    monkeypatch.setattr(workdir.tempfile, "TemporaryFile", refuse)
    for place in (tmp_path, tmp_path / "new" / "run"):
        with pytest.raises(ValueError, match=r"cannot write here \(Read-only file"):
            workdir.check_place(place)
    assert not any(tmp_path.iterdir())
    with pytest.raises(ValueError, match="cannot write here"):
        workdir.check_place("/proc/nobody/run")


def test_lines_that_are_no_rows_hide_no_others(tmp_path):
    row = {"metric": "bleu", "score": 2.0, "main": True}
    damaged = b'{"metric": "bleu", "score": 1.0}\n\xff\n[1]\n{"score": 3.0, "main": true}\n'
    damaged += b'{"metric": "bleu", "score": "high"}\n'
    (tmp_path / "scores.jsonl").write_bytes(damaged + json.dumps(row).encode() + b'\n{"metri')
    assert workdir.progress(tmp_path) == (0, row)
    (tmp_path / "starts.jsonl").write_bytes(b"\xff\xfe")
    assert workdir.last_start(tmp_path)
    workdir.prepare(tmp_path, config())
    assert json.loads(workdir.last_start(tmp_path))["argv"] == []


def test_what_describes_the_machine_may_change_once_a_run_is_trained(tmp_path):
    workdir.prepare(tmp_path, config(mesh__fsdp=-1, mesh__data=1, mesh__tensor=2))
    words = ["mesh=dp", "batch.tokens=7", "decode.tokens=8", "model.kernel=xla", "model.scan"]
    words += ["model.remat=full", "train.dtype=bfloat16", "hardware=TPU: batch.tokens=9"]
    chosen = workdir.changed(tmp_path, [f"--config.{word}" for word in words])
    assert (chosen.mesh.tensor, chosen.batch.tokens, chosen.train.dtype) == (1, 7, "bfloat16")
    with pytest.raises(
        ValueError, match=r"model.width: is fixed .* only what describes the machine"
    ):
        workdir.changed(tmp_path, ["--config.model.width=8"])
    with pytest.raises(ValueError, match=r"seed: is fixed .* only decode\.\* may change, and what"):
        workdir.changed(tmp_path, ["--config.seed=8"], ("decode.",))
