import dataclasses

import numpy as np
import pytest

import tfx
from tfx import translate
from tfx.train import train

LINES = ["red one", "", "three green blue", "two", "one one two three red red"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, toy_config):
    directory = tmp_path_factory.mktemp("run")
    values = {"train.steps": 400, "train.log_every": 100, "model.dropout": 0.0, "optim.lr": 0.02}
    train(toy_config(values | {"model.norm": "pre", "checkpoint.every": 200}), directory)
    return directory


@pytest.fixture(scope="module")
def run(workdir):
    return tfx.load(workdir)


def texts(found):
    return [[hypothesis.text for hypothesis in line] for line in found]


def test_a_loaded_run_has_what_people_rely_on(run):
    assert run.step == 400
    assert run.config.model.width == 16
    assert run.tokenizer.target.vocab_size == 40
    assert set(run.params) == {"encoder", "decoder", "target_embed"}


def test_one_line_out_for_each_line_in_and_empty_ones_stay_empty(run):
    out = run.translate(LINES)
    assert [bool(line) for line in out] == [bool(line) for line in LINES]
    assert out[0] == "one red"  # it has learned something


def test_a_translation_does_not_depend_on_its_neighbours(run):
    together = run.translate(LINES)
    assert [run.translate([line])[0] for line in LINES] == together
    assert run.translate(LINES[::-1])[::-1] == together


def test_what_is_cut_is_told(run, caplog):
    data = dataclasses.replace(run.config.data, truncate=True, max_length=4)
    short = dataclasses.replace(run, config=dataclasses.replace(run.config, data=data))
    assert not caplog.records
    short.translate(["two", "one two one two one two", "red"])
    cut = "1 line is cut to 3 tokens; the first: line 2 has 6 tokens, the model takes at most 3"
    assert f"{cut} (data.max_length)" in caplog.text


def test_more_lines_than_a_chunk_keep_their_order(run, monkeypatch):
    whole = run.translate(LINES * 3)
    monkeypatch.setattr(translate, "CHUNK", 4)
    assert run.translate(LINES * 3) == whole == run.translate(LINES) * 3


@pytest.mark.parametrize("method", ["beam", "greedy"])
def test_the_score_of_a_hypothesis_is_what_forced_decoding_gives_it(run, method):
    how = dataclasses.replace(run.config.decode, method=method, alpha=0.0)
    lines = [line for line in LINES if line]
    best = [found[0] for found in run.search(lines, how)]
    scores = run.score(lines, [found.text for found in best])
    close = [abs(a.score - b) < 1e-3 for a, b in zip(best, scores, strict=True)]
    assert sum(close) > len(lines) / 2  # the rest were spelled in other pieces, or cut


def test_hypotheses_come_best_first(run):
    for found in run.search(LINES, dataclasses.replace(run.config.decode, beam=3)):
        scores = [hypothesis.score for hypothesis in found]
        assert scores == sorted(scores, reverse=True)


def test_samples_depend_on_the_seed_and_the_line_number_alone(run):
    how = dataclasses.replace(run.config.decode, method="sample", beam=2)
    first = texts(run.search(LINES, how, seed=1))
    assert texts(run.search(LINES, how, seed=1)) == first
    assert texts(run.search(LINES[:3], how, seed=1)) == first[:3]
    assert texts(run.search(LINES, how, seed=2)) != first


def test_every_head_of_every_layer_can_be_looked_at(run):
    weights = run.attention(["red one two", "blue"], ["two one red", "blue"])
    for name, queries, keys in (("encoder", 16, 16), ("decoder", 16, 16), ("cross", 16, 16)):
        assert weights[name].shape == (1, 2, 2, queries, keys)
        np.testing.assert_allclose(weights[name].sum(-1), 1, atol=1e-5)
    length = len(run.tokenizer.source.encode(["blue"])[0]) + 1
    assert (weights["cross"][:, 1, :, :, length:] == 0).all()
    assert (np.triu(weights["decoder"][0, 0, 0], 1) == 0).all()


def test_an_ensemble_of_equals_is_the_one(workdir, run):
    both = tfx.load([workdir, workdir])
    assert len(both.others) == 1
    assert both.translate(LINES) == run.translate(LINES)


def test_a_line_that_is_too_long_is_named_and_not_cut(run):
    with pytest.raises(
        ValueError, match=r"line 2 has [\d,]+ tokens, the model takes at most 1,023"
    ):
        run.translate(["red", "red " * 1100], long="fail")


def test_an_average_of_one_checkpoint_twice_is_that_checkpoint(workdir, run, tmp_path, capsys):
    translate.average(workdir, tmp_path / "one", last=1)
    averaged = tfx.load(tmp_path / "one")
    assert averaged.translate(LINES) == run.translate(LINES)
    assert "the mean of 1 checkpoints" in capsys.readouterr().out


def test_an_average_is_the_mean(workdir, tmp_path):
    translate.average(workdir, tmp_path / "two", last=2)
    table = lambda r: np.asarray(r.params["target_embed"]["embedding"])
    a, b = (table(tfx.load(workdir, step=step)) for step in (200, 400))
    np.testing.assert_allclose(table(tfx.load(tmp_path / "two")), (a + b) / 2, atol=1e-6)
    np.testing.assert_allclose(table(tfx.load(workdir, average=2)), (a + b) / 2, atol=1e-6)


def test_what_is_not_there(workdir, tmp_path, toy_config):
    with pytest.raises(FileNotFoundError, match="no run here"):
        tfx.load(tmp_path)
    with pytest.raises(ValueError, match="no step 7; there are 200, 400"):
        tfx.load(workdir, step=7)
    with pytest.raises(ValueError, match="5 checkpoints to average, but only 2"):
        tfx.load(workdir, average=5)
    with pytest.raises(ValueError, match="holds something; choose another folder"):
        translate.average(workdir, workdir, last=2)
