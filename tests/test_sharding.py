"""The program is written for one big device: cut up, it computes the same."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from tfx import sharding
from tfx.models.transformer import Config, Transformer
from tfx.nn.linear import Embed, Linear
from tfx.objectives import seq2seq

KEY = jax.random.key(0)


# ----------------------------------------------------------------------- meshes


@pytest.mark.parametrize(
    "sizes, shape",
    [
        ({}, (8, 1, 1, 1)),
        (dict(data=2, fsdp=2, tensor=2), (2, 2, 2, 1)),
        (dict(data=1, tensor=2, sequence=-1), (1, 1, 2, 4)),
        (dict(data=2, fsdp=-1), (2, 4, 1, 1)),
    ],
)
def test_a_mesh_covers_all_devices(sizes, shape):
    mesh = sharding.make_mesh(**sizes)
    assert mesh.axis_names == ("data", "fsdp", "tensor", "sequence")
    assert mesh.devices.shape == shape and len(set(mesh.devices.flat)) == 8
    assert sharding.batch_parts(mesh) == shape[0] * shape[1]


@pytest.mark.parametrize(
    "sizes, message",
    [
        (dict(data=3), r"data=3, .* does not cover the 8 devices: its sizes multiply to 3; set"),
        (dict(data=2, tensor=2), "multiply to 4"),
        (dict(data=16), "multiply to 16"),
        (dict(tensor=3), "data=-1, .*tensor=3.* multiply to 6"),
        (dict(tensor=16), "multiply to 0"),
        (dict(data=-1, fsdp=-1), "one of them may be -1"),
        (dict(data=0), "at least 1"),
        (dict(fsdp=-2), "at least 1"),
    ],
)
def test_a_mesh_that_would_not_is_refused_in_one_line(sizes, message):
    with pytest.raises(ValueError, match=message) as error:
        sharding.make_mesh(**sizes)
    assert "\n" not in str(error.value)


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device as `mesh_utils` sees one."""

    id: int
    slice_index: int
    process_index: int
    platform: str = "gpu"
    device_kind: str = "imagined"


def test_data_alone_runs_across_slices_and_nodes():
    slices = [Chip(i, i // 4, 0, "other") for i in range(16)]  # 4 slices of 4
    arranged = sharding.arrange(slices, [8, 1, 2, 1])
    assert arranged.shape == (8, 1, 2, 1) and len({*arranged.flat}) == 16
    for row in range(8):
        assert {d.slice_index for d in arranged[row].flat} == {row // 2}
    nodes = [Chip(i, 0, i // 8) for i in range(16)]  # 2 nodes of 8 GPUs
    arranged = sharding.arrange(nodes, [2, 8, 1, 1])
    assert all({d.process_index for d in arranged[n].flat} == {n} for n in range(2))
    with pytest.raises(sharding.Misfit, match=r"data=1\): .* in 2 slices .* a multiple of 2"):
        sharding.arrange(nodes, [1, 16, 1, 1])


def test_all_that_the_mesh_does_not_divide_is_told_at_once():
    model = Transformer(Config(width=12, depth=1, heads=3, mlp=32, vocab=50, source_vocab=50))
    ids = jnp.zeros((1, 2), int)
    boxed = jax.eval_shape(model.init, KEY, {"source": ids, "target_in": ids})
    sharding.check(boxed, [16, 20], sharding.make_mesh(data=8))
    sharding.check(boxed, [16, 20], sharding.make_mesh(data=2, fsdp=2, sequence=2))
    with pytest.raises(sharding.Misfit) as error:
        mesh = sharding.make_mesh(data=1, fsdp=1, tensor=4, sequence=2)
        sharding.check(boxed, [16, 21], mesh)
    first, _, *lines = str(error.value).split("\n")
    assert first == "mesh(data=1, fsdp=1, tensor=4, sequence=2) does not divide these:"
    found = [" ".join(line.split()) for line in lines]
    assert found == [
        "a length of 21 mesh.sequence=2 20 or 22 1",
        "heads 3 mesh.tensor=4 4 1",
        "vocabulary 50 mesh.tensor=4 48 or 52 1 or 2",
    ]


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(data=2, fsdp=2, tensor=2)


# ---------------------------------------------------------------------- letters


@pytest.mark.parametrize(
    "module, inputs, specs",
    [
        (
            Linear("BTD,DHK->BTHK", {"H": 4, "K": 8}),
            (1, 1, 16),
            {"kernel": P("fsdp", "tensor"), "bias": P("tensor")},
        ),
        (
            Linear("BTHK,HKD->BTD", {"D": 16}),
            (1, 1, 4, 8),
            {"kernel": P("tensor", None, "fsdp"), "bias": P("fsdp")},
        ),
        (
            Linear("BTD,DF->BTF", {"F": 32}),
            (1, 1, 16),
            {"kernel": P("fsdp", "tensor"), "bias": P("tensor")},
        ),
        (Embed(30, 16), (1, 1), {"embedding": P("tensor", "fsdp")}),
    ],
)
def test_parameters_are_cut_along_their_letters(mesh, module, inputs, specs):
    x = jnp.zeros(inputs, int if isinstance(module, Embed) else float)
    boxed = jax.eval_shape(module.init, KEY, x)["params"]
    for made in (
        sharding.of_parameters(boxed, mesh),
        jax.tree.map(lambda s: s.sharding, sharding.place(boxed, mesh)),
    ):
        for name, spec in specs.items():
            rank = len(nn.unbox(boxed)[name].shape)
            assert made[name].is_equivalent_to(jax.NamedSharding(mesh, spec), rank), (name, made)


def test_a_placed_tree_has_the_shapes_of_the_tree(mesh):
    boxed = jax.eval_shape(Embed(30, 16).init, KEY, jnp.zeros((1, 1), int))
    placed = sharding.place(boxed, mesh)["params"]["embedding"]
    assert (placed.shape, placed.dtype) == ((30, 16), jnp.float32)


def test_outside_a_mesh_nothing_is_constrained():
    x_BTD = jnp.zeros((2, 3, 4))
    assert sharding.constrain(x_BTD, "BTD") is x_BTD
    with jax.set_mesh(jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])):
        assert sharding.constrain(x_BTD, "BTD") is x_BTD


@pytest.mark.parametrize(
    "axes, spec",
    [
        ("BTD", P(("data", "fsdp"), "sequence", None)),
        ("BTHK", P(("data", "fsdp"), "sequence", "tensor", None)),
        ("BTF", P(("data", "fsdp"), "sequence", "tensor")),
        ("BTV", P(("data", "fsdp"), "sequence", "tensor")),
    ],
)
def test_under_a_mesh_activations_are_constrained_by_their_letters(mesh, axes, spec):
    with jax.set_mesh(mesh):
        constrain = functools.partial(sharding.constrain, axes=axes)
        jaxpr = jax.make_jaxpr(constrain)(jnp.zeros((4,) * len(axes)))
    (equation,) = jaxpr.eqns
    assert equation.primitive.name == "sharding_constraint"
    assert equation.params["sharding"].spec == spec


def test_rows_of_a_batch_are_cut_over_data_and_fsdp(mesh):
    ids = np.arange(24).reshape(8, 3)
    placed = sharding.put_batch({"source": ids}, mesh)["source"]
    np.testing.assert_array_equal(placed, ids)
    assert {s.data.shape for s in placed.addressable_shards} == {(2, 3)}
    assert placed.sharding == sharding.of_batch(mesh)
    whole = jax.device_put(ids, sharding.replicated(mesh))
    assert {s.data.shape for s in whole.addressable_shards} == {(8, 3)}


# --------------------------------------------------------- sharded = unsharded


SETTINGS = dict(label_smoothing=0.0, smoothing="uniform", z_loss=0.0)


def gradients(model):
    """Of a training step, a function of parameters and batch."""
    apply = functools.partial(model.apply, method="predict")

    def loss(params, batch):
        total, weight, metrics = seq2seq.loss(
            apply, params, batch, {"dropout": KEY}, True, **SETTINGS
        )
        return total, (total, weight, metrics["nll"])

    return jax.grad(loss, has_aux=True)


@pytest.fixture(scope="module")
def step():
    """A model, its parameters, a batch, and what a training step makes of them on one device."""
    sizes = dict(width=16, depth=2, heads=4, mlp=32, vocab=30, max_length=16)
    model, random = Transformer(Config(**sizes, dropout=0.0, scan=True)), np.random.default_rng(0)
    ids = random.integers(4, 30, (3, 4, 8)).astype(np.int32)
    ids[:, 1, 5:] = 0
    batch = dict(zip(("source", "target_in", "target_out"), ids, strict=True))
    batch["weights"] = (batch["target_out"] > 0).astype(np.float32)
    boxed = jax.eval_shape(model.init, KEY, batch)
    draw = lambda s: 0.3 * random.standard_normal(s.shape).astype(np.float32)
    params = jax.tree.map(draw, nn.unbox(boxed))
    return model, boxed, params, batch, jax.jit(gradients(model))(params, batch)


def close(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()))


def test_a_training_step_is_the_same_when_cut_up(step, mesh):
    """Sums and gradients, over data, fsdp and tensor at once."""
    model, boxed, params, batch, want = step
    shardings = sharding.of_parameters(boxed, mesh)
    with jax.set_mesh(mesh):
        run = jax.jit(gradients(model), out_shardings=(shardings, None))
        got = run(jax.device_put(params, shardings), sharding.put_batch(batch, mesh))
    kernel = got[0]["params"]["encoder"]["layers"]["feed_forward"]["up"]["kernel"]
    assert {s.data.shape for s in kernel.addressable_shards} == {(2, 8, 16)}
    close(got, want)


def test_positions_can_be_cut_up_too(step):
    model, _, params, batch, (_, want) = step
    mesh = sharding.make_mesh(data=1, tensor=2, sequence=4)
    apply = functools.partial(model.apply, method="predict")
    loss = functools.partial(seq2seq.loss, apply, rngs=None, train=False, **SETTINGS)
    with jax.set_mesh(mesh):
        total, weight, metrics = jax.jit(loss)(params, sharding.put_batch(batch, mesh))
    close((total, weight, metrics["nll"]), want)


def test_a_run_starts_the_same_on_any_mesh(mesh):
    module, x_BTD = Linear("BTD,DF->BTF", {"F": 32}), jnp.zeros((1, 1, 16))
    init = lambda key: nn.unbox(module.init(key, x_BTD))
    shardings = sharding.of_parameters(jax.eval_shape(module.init, KEY, x_BTD), mesh)
    with jax.set_mesh(mesh):
        spread = jax.jit(init, out_shardings=shardings)(KEY)
    np.testing.assert_array_equal(spread["params"]["kernel"], init(KEY)["params"]["kernel"])
