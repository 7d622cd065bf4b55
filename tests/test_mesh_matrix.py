"""One config on every mesh: the numbers agree with one device, and the work is really cut up."""

import dataclasses
import re
import subprocess
import sys
from typing import NamedTuple

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import tfx
from tfx import assemble, optim, records, sharding, translate, workdir
from tfx import config as configs
from tfx import train as training
from tfx.data import tokenizer
from tfx.schema import MESHES, Mesh
from tfx.setup import create_state, init_state

STEPS = 20
MODEL = dict(width=16, depth=2, heads=8, mlp=32, dropout=0.1, attention_dropout=0.1)
BYTES = tokenizer.Tokenizer("bytes", tokenizer.Bytes(), tokenizer.Bytes())


class Sized(NamedTuple):
    """All that a model needs of a tokenizer; 8 devices divide it."""

    vocab_sizes: tuple[int, int]


SIZED = Sized((264, 264))


SHAPES = {
    **{name: dict(sizes) for name, sizes in MESHES.items()},
    "all": dict(tensor=2, sequence=2),
}
SHAPES["all"] |= dict(data=1, fsdp=2)


def settings(**model):
    c = configs.defaults("transformer", "base")
    c.model.update(MODEL | model)
    c.optim.update(schedule="constant", lr=3e-3)
    c.objective.label_smoothing = 0.1
    return configs.freeze(c)


def one_device():
    return sharding.make_mesh(devices=jax.devices()[:1])


def batch(seed, rows=8, length=16):
    rng = np.random.default_rng(seed)
    real = np.arange(length)[None] < rng.integers(6, length + 1, rows)[:, None]
    draw = lambda: (rng.integers(4, 12, (rows, length)) * real).astype(np.int32)
    return dict(source=draw(), target_in=draw(), target_out=draw(), weights=real.astype(np.float32))


def put_together(config, mesh, ids=SIZED):
    """The training step, where its state lies, and the state at step 0."""
    model = assemble.build_model(config, ids)
    tx = optim.build(config.optim, STEPS, config.model.width)
    like, shardings = init_state(config, model, tx, mesh)
    step = training.make_train_step(config, assemble.make_loss(config, model), tx, shardings)
    return step, like, create_state(config, model, tx, shardings)


def losses(config, mesh):
    """Of every step, and the parameters at the end."""
    with jax.set_mesh(mesh):
        step, _, state = put_together(config, mesh)
        told = []
        for n in range(STEPS):
            state, sums = step(state, sharding.put_batch(batch(n), mesh))
            told.append(float(sums["loss"] / sums["weight"]))
    return np.array(told), jax.device_get(state.params)


@pytest.fixture(scope="module")
def alone():
    return losses(settings(), one_device())


def also(name):
    """Others cut in this way and in one more."""
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [*map(also, ("dp", "fsdp", "tp")), "fsdp_tp", "sp", "all"])
def test_twenty_steps_are_those_of_one_device(alone, name, capfd):
    """Dropout included. What differs is the order of sums in float32."""
    found, _ = losses(settings(), sharding.make_mesh(**SHAPES[name]))
    assert "rematerialization" not in capfd.readouterr().err  # an array sent around whole
    assert alone[0][-1] < alone[0][0] - 0.05  # it learns, so an update that is lost would show
    np.testing.assert_allclose(found, alone[0], rtol=2e-6)


def test_scanned_is_unscanned_when_cut_up(alone):
    mesh = sharding.make_mesh(**SHAPES["fsdp_tp"])
    found, params = losses(settings(scan=True, remat="full"), mesh)
    np.testing.assert_allclose(found, alone[0], rtol=2e-6)
    jax.tree.map(lambda x, y: np.testing.assert_equal(x.shape, y.shape), params, alone[1])


SPECS = {  # of an mlp's first kernel [N, D, F] and of the embedding [V, D]; what cuts activations
    "dp": (P(), P(), {"data"}),
    "fsdp": (P(None, "fsdp"), P(None, "fsdp"), {"fsdp"}),
    "tp": (P(None, None, "tensor"), P("tensor"), {"tensor"}),
    "fsdp_tp": (P(None, "fsdp", "tensor"), P("tensor", "fsdp"), {"fsdp", "tensor"}),
    "sp": (P(), P(), {"sequence"}),
}


@pytest.mark.parametrize("name", SPECS)
def test_parameters_updates_and_activations_lie_as_the_tables_say(name):
    mesh, (kernel, embedding, cuts) = sharding.make_mesh(**SHAPES[name]), SPECS[name]
    with jax.set_mesh(mesh):
        step, like, state = put_together(settings(), mesh)
        rows = sharding.put_batch(batch(0), mesh)
        lowered = step.lower(like, rows)
        state, _ = step(state, rows)
    moments = [optax.tree.get(state.opt_state, name) for name in ("mu", "nu")]
    for tree in (state.params, *moments):
        for leaf, spec in (
            (tree["encoder"]["layers"]["feed_forward"]["up"]["kernel"], kernel),
            (tree["target_embed"]["embedding"], embedding),
        ):
            wanted = jax.NamedSharding(mesh, spec)
            assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), (name, leaf.sharding)
    # A constraint that reached the program names the mesh axes of its dimensions.
    found = re.findall(r"sharding_constraint.*?<@mesh, (\[[^>]*\])>", lowered.as_text())
    assert all(any(f'"{axis}"' in each for each in found) for axis in cuts)


@pytest.mark.parametrize("name", [also("dp"), "fsdp_tp", "sp"])
@pytest.mark.parametrize("method", ["beam", also("greedy")])
def test_translations_are_those_of_one_device(name, method):
    config = settings()
    lines = [f"line {n} " + "abc " * (n % 5) for n in range(11)] + [""]
    how = dataclasses.replace(config.decode, method=method, beam=3, extra=6)

    def found(mesh):
        with jax.set_mesh(mesh):
            _, _, state = put_together(config, mesh, BYTES)
        model = assemble.build_model(config, BYTES)
        run = translate.Run(config, model, state.params, BYTES, 0, mesh)
        return [hypothesis for each in run.search(lines, how) for hypothesis in each]

    one, many = found(one_device()), found(sharding.make_mesh(**SHAPES[name]))
    assert [h.text for h in one] == [h.text for h in many]
    np.testing.assert_allclose([h.score for h in one], [h.score for h in many], rtol=1e-4)


ALONE = """
import dataclasses, sys
import jax
from tfx import train as training, workdir
from tfx.main import main
from tfx.schema import Mesh
assert jax.device_count() == 1
run, out = sys.argv[1:]
text = [f"--source={out}/source", f"--target={out}/target"]
for words in (
    ["translate", f"--workdir={run}", f"--input={out}/source", f"--output={out}/translated"],
    ["score", f"--workdir={run}", *text, f"--output={out}/scored"],
    ["eval", f"--workdir={run}", "--split=valid", "--config.mesh=dp"],
    ["average", f"--workdir={run}", "--last=2", f"--out={out}/averaged"],
    ["translate", f"--workdir={out}/averaged", f"--input={out}/source", f"--output={out}/mean"],
    ["export", f"--workdir={run}", f"--to={out}/exported", "--format=jax", "--shape=2,8"],
    ["translate", f"--workdir={run}", f"--input={out}/source", "--config.mesh.tensor=4"],
):
    print("code", main(words))
config = workdir.read_config(run)
train = dataclasses.replace(config.train, steps=3)
training.train(dataclasses.replace(config, train=train, mesh=Mesh()), run)
"""


def test_what_was_trained_on_eight_devices_is_used_on_one_and_back(toy_config, tmp_path, caplog):
    """By every verb, on the mesh that fits there, which is said; and training goes on there."""
    pytest.importorskip("flatbuffers")
    sizes = {f"mesh.{axis}": size for axis, size in MESHES["fsdp_tp"].items()}
    few = {"decode.method": "greedy", "decode.beam": 1, "eval.sentences": 4}
    config = toy_config(sizes | few | {"train.steps": 2, "checkpoint.every": 1})
    run = tmp_path / "run"
    training.train(config, run)
    lines, targets = ["red one", "", "three green blue"], ["one red", "", "blue green"]
    for name, texts in (("source", lines), ("target", targets)):
        (tmp_path / name).write_text("".join(f"{text}\n" for text in texts))
    many = tfx.load(run)
    assert many.mesh.shape["tensor"] == 2 and not caplog.records
    translated, scored = many.translate(lines), many.score(lines, targets)

    done = subprocess.run(
        [sys.executable, "-c", ALONE, run, tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    codes = re.findall(r"^code (\d)$", done.stdout, re.M)
    assert codes == ["0"] * 6 + ["2"]
    was = "mesh(data=1, fsdp=-1, tensor=2, sequence=1)"
    notice = f"warning: 1 device here, the run was trained on {was}: using dp"
    assert done.stderr.count(f"{notice}\n") == 5  # not where another mesh was asked for
    asked = r"tensor=4, sequence=1\) does not cover the device: .* or --config.mesh=dp"
    assert re.search(asked, done.stderr)
    assert (tmp_path / "translated").read_text().splitlines() == translated
    there = [float(line) for line in (tmp_path / "scored").read_text().splitlines()]
    np.testing.assert_allclose(there, scored, rtol=1e-4, atol=1e-3)
    assert (tmp_path / "exported" / "program.bin").exists()
    assert [row["split"] for row in records.read(run / "scores.jsonl")[0]][:1] == ["valid"]

    # And back: one step was made on one device, the next one is made on eight.
    fsdp = dataclasses.replace(workdir.read_config(run), mesh=Mesh(1, -1, 2, 1))
    assert tfx.load(run, config=fsdp).mesh.shape["fsdp"] == 4
    train = dataclasses.replace(config.train, steps=4)
    assert training.train(dataclasses.replace(config, train=train), run)["step"] == 4
    assert len(tfx.load(tmp_path / "averaged").translate(lines)) == 3


def test_an_ensemble_lies_on_one_mesh_that_fits_all_of_it(toy_config, tmp_path, caplog):
    sizes = {f"mesh.{axis}": size for axis, size in MESHES["fsdp_tp"].items()}
    few = {"decode.method": "greedy", "decode.beam": 1, "train.steps": 1}
    training.train(toy_config(sizes | few), tmp_path / "a")
    training.train(toy_config(few | {"seed": 1}), tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer.model"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    both = tfx.load([tmp_path / "a", tmp_path / "b"])
    assert dict(both.mesh.shape) == dict(data=8, fsdp=1, tensor=1, sequence=1)
    assert "8 devices here, the run was trained on mesh(data=1, fsdp=-1" in caplog.text
    assert len(both.translate(["red one"])) == 1
