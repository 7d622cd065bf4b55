"""One config on every mesh: the numbers agree with one device, and the work is really cut up."""

import dataclasses
import re
from typing import NamedTuple

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from tfx import assemble, optim, sharding, translate
from tfx import config as configs
from tfx import train as training
from tfx.data import tokenizer
from tfx.schema import MESHES
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
