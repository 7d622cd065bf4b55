"""What a run takes over from another one, or from a folder of Hugging Face, and what it refuses."""

import dataclasses
import functools
import random
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn

from tfx import adopt, assemble, models, pretrained, sharding, workdir
from tfx import config as configs
from tfx import train as training
from tfx.data import vocabulary
from tfx.models import bert
from tfx.setup import create_state

FIXTURES = Path(__file__).parent / "fixtures/hf"
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(54))]
# Shapes of the reference folders.
SHAPE = {"width": 16, "heads": 4, "mlp": 20, "depth": 2, "max_length": 18, "vocab": 59}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Sentences, and sentences with a class."""
    place, rng = tmp_path_factory.mktemp("text"), random.Random(0)
    lines = [" ".join(rng.choices(PIECES[5:], k=rng.randint(2, 12))) for _ in range(60)]
    (place / "lines.txt").write_text("".join(f"{line}\n" for line in lines))
    (place / "rows.tsv").write_text("".join(f"{line}\t{len(line) % 2}\n" for line in lines))
    return place


def vocab_in(folder, pieces=PIECES):
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A function: a reference folder with a tokenizer beside it."""

    def make(name):
        place = tmp_path_factory.mktemp("hf") / "folder"
        return vocab_in(shutil.copytree(FIXTURES / name, place, copy_function=shutil.copyfile))

    return make


def config_of(text, objective, family="bert", **changes):
    config = configs.defaults(family, "small" if family == "gpt2" else "base", objective)
    lines, rows = (str(text / name) for name in ("lines.txt", "rows.tsv"))
    split = rows if objective in ("classify", "distill_task") else lines
    config.data.update(source="files", train=split, valid=split, max_length=16)
    config.model.update(SHAPE | {"vocab": 0})
    config.batch.update(tokens=128, shapes=1)
    config.optim.update(name="sgd", lr=0.1, schedule="constant", warmup=0)
    config.train.update(steps=2, log_every=1)
    config.eval.every = 0
    for key, value in changes.items():
        section, _, leaf = key.replace("__", ".").rpartition(".")
        (config[section] if section else config)[leaf] = value
    return configs.freeze(config)


@pytest.fixture(scope="module")
def run(text, folder, tmp_path_factory):
    """The workdir of a BERT that learned masked text, and what its parameters are."""
    place = tmp_path_factory.mktemp("run")
    tokens = str(folder("bert/BertForMaskedLM"))
    training.train(config_of(text, "masked_lm", model__head="mlm", tokenizer__path=tokens), place)
    return place


def params_in(place):
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        return adopt._by_path(jax.device_get(adopt.load(str(place), mesh)[1]))


def begun(config, where):
    """What a run takes over, by its path (None: it begins anew), and what it says of that."""
    mesh, said = sharding.make_mesh(), []
    where.mkdir(exist_ok=True)
    with jax.set_mesh(mesh):
        parts = training.put_together(config, where, mesh, said.append)
        given = adopt.parameters(config, parts.model, mesh, said.append)
    return jax.device_get(given), said[-1]


def starts(config, where):
    """The parameters of step 0, and what they would be if nothing was taken over."""
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        parts = training.put_together(config, where, mesh, lambda line: None)
        given = adopt.parameters(config, parts.model, mesh, lambda line: None)
        rest = config, parts.model, parts.tx, parts.shardings
        states = [create_state(*rest, given), create_state(*rest)]
    return [adopt._by_path(jax.device_get(state.params)) for state in states]


def told(line):
    """What a start says: how many arrays, which are new, which are left."""
    counts, *lists = line.split(": ", 1)[1].split("; ")
    named = dict(each.split(": ", 1) for each in lists if ": " in each)
    split = lambda name: {*named.get(name, "").split(", ")} - {""}
    return counts, split("new here"), split("left there")


PARTS = ("kernel", "bias")
CLASSIFY = {"model__head": "classify", "model__classes": 2}


def equal(found, wanted, paths):
    assert paths
    for path in paths:
        np.testing.assert_array_equal(found[path], wanted[path], err_msg=path)


@pytest.mark.parametrize("kind", ["workdir", "folder"])
def test_another_head_starts_anew_and_the_body_as_it_was(text, run, folder, tmp_path, kind):
    place = run if kind == "workdir" else folder("bert/BertForMaskedLM")
    there = params_in(place)
    config = config_of(text, "classify", init_from=str(place), **CLASSIFY)
    given, line = begun(config, tmp_path)
    counts, new, left = told(line)
    body = given.keys() & there.keys()
    heads = (f"{name}/{part}" for name in ("classifier", "pool/dense") for part in PARTS)
    assert new == given.keys() - body == {*heads}
    assert left == there.keys() - body and all(path.startswith("lm/") for path in left)
    assert counts == f"{len(body)} of {len(given)} arrays"
    equal(given, there, body)
    if kind == "workdir":
        here, own = starts(config, tmp_path)
        equal(here, there, body)
        equal(here, own, new)
        assert any((here[path] != own[path]).any() for path in body)


def test_the_same_head_is_taken_too(text, run, tmp_path):
    config = config_of(text, "masked_lm", init_from=str(run), model__head="mlm")
    given, line = begun(config, tmp_path)
    assert told(line) == (f"{len(given)} of {len(given)} arrays", set(), set())
    equal(given, params_in(run), given.keys())


def test_a_head_of_other_classes_starts_anew(text, folder, tmp_path):
    place = folder("bert/BertForSequenceClassification")  # of three
    config = config_of(text, "classify", init_from=str(place), **CLASSIFY)
    given, line = begun(config, tmp_path)
    new = {f"classifier/{part}" for part in PARTS}
    assert told(line)[1:] == (new, set()) and not any(given[path] is not None for path in new)
    equal(given, params_in(place), given.keys() - new)


@pytest.mark.parametrize(
    "name, family, objective, head",
    [
        ("distilbert/DistilBertForMaskedLM", "distilbert", "classify", "classify"),
        ("bert/BertModel", "bert", "masked_lm", "mlm"),
    ],
)
def test_folders_of_other_families_and_heads(text, folder, tmp_path, name, family, objective, head):
    """With BERT's tokenizer in the workdir already."""
    place, where = folder(name), tmp_path / "run"
    found = pretrained.read(place).model.config
    names = ("max_length", "vocab", "types", "position_offset")
    shape = {f"model__{key}": getattr(found, key) for key in names} | {"data__max_length": 8}
    config = config_of(text, objective, family, init_from=str(place), model__head=head, **shape)
    where.mkdir()
    vocabulary.of_folder(folder("bert/BertModel")).save(where)
    given, line = begun(config, where)
    _, new, _ = told(line)
    equal(given, params_in_folder(place), given.keys() - new)
    assert {"embed/embedding", "encoder/layers/self_attention/query/kernel"} <= given.keys() - new


def params_in_folder(place):
    return adopt._by_path(pretrained.read(place).params)


def test_the_tokenizer_is_taken_from_there(text, run, folder, tmp_path):
    place = folder("bert/BertForMaskedLM")
    for number, origin in enumerate((run, place)):
        where = tmp_path / str(number)
        where.mkdir()
        config = config_of(text, "classify", init_from=str(origin), **CLASSIFY)
        ids = assemble.open_tokenizer(config, where)
        assert ids.fingerprint == vocabulary.of_folder(place).fingerprint
        assert vocabulary.load(where).fingerprint == ids.fingerprint


@pytest.mark.slow
def test_pre_train_then_fine_tune(text, folder, tmp_path, capsys):
    """From a folder to masked text to classes: what each start says, and that each trains."""
    place = folder("bert/BertForMaskedLM")
    first, second = tmp_path / "mlm", tmp_path / "classes"
    training.train(config_of(text, "masked_lm", init_from=str(place), model__head="mlm"), first)
    out = capsys.readouterr().out
    assert f"starting from {place}" in out and "new here" not in out
    config = config_of(text, "classify", init_from=str(first), optim__lr=1e-30, **CLASSIFY)
    summary = training.train(config, second)
    assert np.isfinite(summary["loss"])
    assert "new here: classifier/bias" in " ".join(capsys.readouterr().out.split())
    before, after = params_in(first), params_in(second)
    for path in before.keys() & after.keys():
        np.testing.assert_array_equal(before[path], after[path], err_msg=path)
    shutil.rmtree(first)  # a run that has begun reads nothing from there
    longer = dataclasses.replace(config.train, steps=config.train.steps + 1)
    summary = training.train(dataclasses.replace(config, train=longer), second)
    assert summary["step"] == longer.steps


# What is refused.


def refused(config, where, match):
    with pytest.raises((ValueError, FileNotFoundError), match=match) as raised:
        training.train(config, where)
    assert "\n" not in str(raised.value)
    assert not any((where / "checkpoints").glob("*"))


def test_another_family(text, run, tmp_path):
    config = config_of(text, "causal_lm", "gpt2", init_from=str(run))
    refused(config, tmp_path / "run", r"holds a bert, model\.name is gpt2; start from a gpt2")


@pytest.mark.parametrize(
    "change, match",
    [
        ({"model__width": 32}, "is 16 wide, model.width is 32"),
        ({"model__depth": 3}, r"does not fit.*there \(2, .*here \(3, "),
        ({"model__mlp": 24}, r"feed_forward/up/.*there .*20\).*here .*24\)"),
        ({"model__max_length": 32}, r"positions/embedding: there \(18, 16\), here \(32, 16\)"),
    ],
)
def test_another_shape(text, run, tmp_path, change, match):
    config = config_of(text, "classify", init_from=str(run), **CLASSIFY | change)
    refused(config, tmp_path / "run", match)


def test_a_start_that_is_refused_leaves_the_workdir_to_the_next(text, run, tmp_path):
    config = config_of(text, "classify", init_from=str(run), **CLASSIFY)
    deeper = dataclasses.replace(config, model=dataclasses.replace(config.model, depth=3))
    refused(deeper, tmp_path, "does not fit")
    workdir.check(tmp_path, config)
    assert not (tmp_path / "tokenizer.json").exists()
    workdir.prepare(tmp_path, config)
    (tmp_path / "tokenizer.json").write_text("{}")  # but not what another start has made
    refused(config, tmp_path, "is damaged")
    with pytest.raises(ValueError, match=r"holds another run: model\.depth was 2, is 3"):
        workdir.check(tmp_path, deeper)


def test_a_tokenizer_of_another_size(text, folder, tmp_path):
    place = vocab_in(folder("bert/BertForMaskedLM"), [*PIECES, "more", "and_more"])
    config = config_of(text, "classify", init_from=str(place), **CLASSIFY)
    refused(config, tmp_path / "run", r"says vocab_size=59, the tokenizer has 61 ids; put the")


def test_two_places_for_one_tokenizer(text, run, tmp_path):
    changes = dict(init_from=str(run), tokenizer__path=str(tmp_path / "other"))
    config = config_of(text, "classify", **changes, **CLASSIFY)
    refused(config, tmp_path / "run", "the tokenizer is that of init_from = .*; leave one of them")


def test_a_folder_without_a_tokenizer_or_without_anything(text, tmp_path):
    bare = FIXTURES / "bert/BertForMaskedLM"
    config = config_of(text, "classify", init_from=str(bare), **CLASSIFY)
    refused(config, tmp_path / "run", "has no tokenizer; put one there")
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    config = config_of(text, "classify", init_from=str(nothing), **CLASSIFY)
    refused(config, tmp_path / "run", "neither a workdir with a checkpoint nor a folder of Hugging")


# A student.


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A BERT of twelve layers, in a folder."""
    place, rng = tmp_path_factory.mktemp("deep") / "folder", np.random.default_rng(0)
    model = models.build(bert.Config(**SHAPE | {"depth": 12, "head": "mlm"}))
    draw = lambda like: rng.normal(size=like.shape).astype(np.float32)
    pretrained.write(place, model, jax.tree.map(draw, nn.unbox(models.shapes(model))))
    return vocab_in(place)


@pytest.mark.parametrize("depth, layers", [(6, [0, 2, 4, 7, 9, 11]), (2, [0, 11]), (12, range(12))])
def test_a_student_starts_as_every_second_layer_of_its_teacher(text, deep, tmp_path, depth, layers):
    both = {"init_from": str(deep), "objective__teacher": str(deep)}
    config = config_of(text, "distill", "distilbert", model__depth=depth, **both)
    given, line = begun(config, tmp_path)
    _, new, left = told(line)
    assert not new and left == {"types"}
    assert ("; layers" in line) == (depth < 12)
    assert depth == 12 or line.endswith(f"; layers {', '.join(map(str, layers))}")
    there = params_in_folder(deep)
    for path, x in given.items():
        want = there[path][np.array(layers)] if "/layers/" in path else there[path]
        np.testing.assert_array_equal(x, want, err_msg=path)


def test_layers_are_left_out_for_a_student_alone(text, deep, tmp_path):
    config = config_of(text, "masked_lm", init_from=str(deep), model__head="mlm", model__depth=6)
    refused(config, tmp_path / "run", r"there \(12, .*here \(6, ")


@pytest.mark.parametrize("shape", [dict(fsdp=4, tensor=2, data=1), dict(tensor=8, data=1)])
def test_what_was_trained_on_another_mesh_is_read_on_this_one(shape, run, folder):
    """Eight devices do not divide 4 heads: such arrays lie whole on each."""
    mesh = sharding.make_mesh(**shape)
    for place in (str(run), str(folder("bert/BertForMaskedLM"))):
        with jax.set_mesh(mesh):
            model, params = adopt.load(place, mesh)
            words = {"ids": np.full((8, 6), 7), "mask": np.ones((8, 6), np.int32)}
            predict = functools.partial(model.apply, method="predict")
            jax.jit(predict)({"params": params}, words)
        found, here = adopt._by_path(jax.device_get(params)), params_in(place)
        assert found.keys() == here.keys()
        for path in here:
            np.testing.assert_array_equal(found[path], here[path], err_msg=path)
