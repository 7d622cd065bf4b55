"""What the reference implementation computed, all families do; and the comparison can fail."""

import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tfx.lab import parity
from tfx.main import main
from tfx.models import bart, bert, xlnet

FOLDERS = sorted(
    path.parent for path in (Path(__file__).parent.parent / "fixtures/hf").glob("*/*/io.npz")
)
QUICK = {"BertForPreTraining", "MarianMTModel"}  # the others take minutes together


@pytest.mark.parametrize(
    "folder",
    [
        pytest.param(path, id=path.name, marks=[] if path.name in QUICK else [pytest.mark.slow])
        for path in FOLDERS
    ],
)
def test_agrees_with_the_reference(folder):
    found = list(parity.check(folder))
    assert found and not [each for each in found if not each.fits]


@pytest.fixture
def small(tmp_path):
    """A folder of one case with one output, that fits."""
    source = next(path for path in FOLDERS if path.name == "BertModel")
    folder = shutil.copytree(source, tmp_path / "bert", copy_function=shutil.copyfile)
    arrays = dict(np.load(folder / "io.npz"))
    case = next(iter(arrays)).split("/")[0]
    keep = (f"{case}/in/", f"{case}/out/last_hidden_state")
    np.savez(folder / "io.npz", **{k: x for k, x in arrays.items() if k.startswith(keep)})
    return folder


def test_prints_what_fits(small, capsys):
    assert main(["parity", f"{small}"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert "last_hidden_state" in first and first.endswith("fits")
    assert last.endswith("1 of 1 fit")


def test_float64_is_nearer_to_float64(small):
    arrays = dict(np.load(small / "io.npz"))
    (wide,) = parity.check(small, float64=True)
    assert wide.difference < 2e-6
    key = next(key for key in arrays if "/out/" in key)
    arrays[key.replace("/out/", "/out64/")] = arrays.pop(key).astype(np.float64)
    np.savez(small / "io.npz", **arrays)
    assert next(parity.check(small, float64=True)).difference == wide.difference


def test_a_wrong_weight_shows(small, capsys):
    tensors = load_file(small / "model.safetensors")
    name = next(name for name in tensors if name.endswith("attention.self.value.weight"))
    save_file(tensors | {name: tensors[name].T.copy()}, small / "model.safetensors")
    assert main(["parity", f"{small}"]) == 1
    printed = capsys.readouterr().out
    assert "does not fit: at most 1e-05" in printed and printed.endswith("0 of 1 fit\n")


@pytest.mark.parametrize(
    "change, error",
    [
        (lambda t: t.pop("pooler.dense.bias"), "missing: pooler.dense.bias"),
        (lambda t: t.update(more=np.zeros(2, np.float32)), "not of this model: more"),
        (
            lambda t: t.update({"pooler.dense.bias": np.zeros(3, np.float32)}),
            r"of another shape: pooler.dense.bias is \[3\], the model wants \[",
        ),
    ],
)
def test_weights_that_do_not_fit_are_listed(small, change, error, capsys):
    tensors = load_file(small / "model.safetensors")
    change(tensors)
    save_file(tensors, small / "model.safetensors")
    with pytest.raises(ValueError, match=error):
        list(parity.check(small))
    assert main(["parity", f"{small}"]) == 2


def test_another_family_is_named(small):
    path = small / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "mamba"}))
    with pytest.raises(ValueError, match=r'model_type "mamba": tfx has .*bert'):
        list(parity.check(small))


def test_what_is_absent_is_not_checked(small):
    """A search and a probe of which meta.json says nothing, or no meta.json at all."""
    arrays = dict(np.load(small / "io.npz"))
    (key,) = (key for key in arrays if "/out/" in key)
    arrays["eps_probe/out/hidden_states"] = arrays[key]
    arrays |= {"gen_prompt/in/input_ids": np.ones((1, 2), int), "gen_prompt/out/greedy": np.ones(3)}
    np.savez(small / "io.npz", **arrays)
    meta = json.loads((small / "meta.json").read_text())
    for about in ({}, {"cases": meta["cases"]}, None):
        if about is None:
            (small / "meta.json").unlink()
        else:
            (small / "meta.json").write_text(json.dumps(about))
        assert [each.fits for each in parity.check(small)] == [True]


def test_an_output_that_ours_lacks_does_not_end_the_rest(small, capsys):
    arrays = dict(np.load(small / "io.npz"))
    case = next(iter(arrays)).split("/")[0]
    np.savez(small / "io.npz", **{f"{case}/out/aura": np.ones(2)} | arrays)
    found = {each.output: each for each in parity.check(small)}
    assert found["aura"].difference == float("inf") and found["last_hidden_state"].fits
    assert main(["parity", f"{small}"]) == 1
    assert capsys.readouterr().out.endswith("1 of 2 fit\n")


def test_a_search_fits_in_float64(tmp_path):
    source = next(path for path in FOLDERS if path.name == "GPT2LMHeadModel")
    folder = shutil.copytree(source, tmp_path / "gpt2", copy_function=shutil.copyfile)
    keep, arrays = re.compile("gen_prompt/(in/|out/beam4$)"), np.load(folder / "io.npz")
    np.savez(folder / "io.npz", **{k: x for k, x in arrays.items() if keep.match(k)})
    (found,) = parity.check(folder, float64=True)
    assert found.fits


def test_what_barts_decoder_reads_by_default_is_the_source():
    about, ids = dict(decoder_start_token_id=2, pad_token_id=1), np.array([[0, 7, 8, 2]])
    read = lambda **more: bart.FORMAT.batch(about, {"input_ids": ids} | more)["target_in"].tolist()
    assert read() == [[2, 0, 7, 8]]
    assert read(labels=np.array([[5, -100]])) == [[2, 5]]
    assert read(decoder_input_ids=ids) == ids.tolist()


LOGITS = np.array([[0.5, -1.0, 2.0], [1.5, 0.0, -0.5]], np.float32)
TRUE = np.array([[1, 0, 0], [0, 1, 1]], np.float32)
SQUARES = ((LOGITS - TRUE) ** 2).mean()
BINARY = (np.log1p(np.exp(LOGITS)) - TRUE * LOGITS).mean()
NLL = (np.log(np.exp(LOGITS).sum(-1)) - LOGITS[range(2), [2, 0]]).mean()


@pytest.mark.parametrize(
    "problem, classes, labels, wanted",
    [
        (None, 3, np.array([2, 0]), NLL),
        (None, 3, np.array([[2], [0]]), NLL),
        (None, 3, TRUE, BINARY),
        ("multi_label_classification", 3, TRUE.astype(int), BINARY),
        ("regression", 3, TRUE, SQUARES),
        (None, 1, np.array([1, 0]), ((LOGITS[:, 0] - [1, 0]) ** 2).mean()),
    ],
)
def test_what_a_class_is_says_which_loss_it_has(problem, classes, labels, wanted):
    config = bert.Config(head="classify", classes=classes)
    outputs, theirs = {"logits": LOGITS[:, :classes]}, {"labels": labels}
    found = parity.loss(config, outputs, theirs, problem)["loss"]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_positions_may_be_a_column():
    config, outputs = bert.Config(head="span"), {"start_logits": LOGITS, "end_logits": LOGITS}
    theirs = {"start_positions": np.array([[2], [0]]), "end_positions": np.array([[2], [0]])}
    np.testing.assert_allclose(parity.loss(config, outputs, theirs)["loss"], NLL, rtol=1e-6)
    batch = xlnet.to_batch({}, {"input_ids": np.ones((2, 3), int)} | theirs)
    assert batch["start"].tolist() == batch["end"].tolist() == [2, 0]


@pytest.mark.parametrize("least", [{"min_length": 4}, {"min_new_tokens": 2}])
def test_a_search_obeys_what_is_forced(least):
    """Behind two tokens it ends after two more, and the others keep their probability; nothing
    is forced at the second token, which is there, but at the last."""
    logits_V = np.array([1.0, 3.0, 2.0], np.float32)
    apply = lambda *_, method: (logits_V[None, None], None)
    forced = {"forced_bos_token_id": 0, "forced_eos_token_id": 2}
    step = parity._ruled(apply, 2, 4, 1, least | forced)
    found_TV = [jax.nn.log_softmax(step(None, None, t, None, None)[0][0, 0])[:3] for t in range(4)]
    plain_V = np.array(jax.nn.log_softmax(logits_V))
    early_V = np.where([False, True, False], -np.inf, plain_V)
    last_V = [-np.inf, -np.inf, 0]
    np.testing.assert_allclose(found_TV, [early_V, early_V, plain_V, last_V], rtol=1e-6)
