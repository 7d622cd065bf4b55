"""A plan is of the real program: who talks to whom, what is cut, what fits, and what is refused."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh

from tfx import config as configs
from tfx import flops, models, sharding, train
from tfx.lab import plan as planning
from tfx.lab.collectives import Collective, Traffic
from tfx.lab.plan import Plan, plan, show, sweep_mesh, table, to_json
from tfx.sharding import Misfit

SHAPE = ROWS, LENGTH, _ = 8, 16, 16
WIDTH, VOCAB = 16, 64
TABLE = 4 * WIDTH * VOCAB  # bytes
GOLDEN = sorted(Path(__file__).parent.glob("plan_*.json"))


def small(**changes):
    """A tiny config; keys are those of the config, with __ for dots."""
    config = configs.tiny(configs.defaults())
    config.tokenizer.vocab, config.batch.tokens = VOCAB, 512
    for key, value in changes.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    return configs.freeze(config)


@pytest.fixture
def planned(capfd):
    """plan(small(...)) on 8 CPU devices; no sharding was beyond the partitioner."""

    def make(decode=False, shape=SHAPE, **changes):
        found = plan(small(**changes), "cpu", shape=shape, decode=decode)
        assert "Involuntary full rematerialization" not in capfd.readouterr().err
        return found, {c.kind: c for c in found.traffic.collectives}

    return make


# ------------------------------------------------------------ simulated devices


def test_data_parallelism_sums_gradients_and_nothing_else(planned):
    found, said = planned(model__tie="none")
    assert found.mesh == dict(data=8, fsdp=1, tensor=1, sequence=1)
    sums = 3  # loss, weight, log-likelihood
    assert said.keys() == {"all-reduce"}
    assert said["all-reduce"].bytes == 4 * found.parameters + 4 * sums
    assert found.parameter_bytes == 4 * found.parameters
    assert found.fits and found.capacity is found.seconds is found.mfu is found.remedy is None


def test_fully_sharded_parameters_and_optimiser_are_cut(planned):
    found, said = planned(mesh__data=2, mesh__fsdp=4)
    batch, whole = 4 * ROWS * LENGTH * 4 // 8, 4 * found.parameters
    assert found.parameter_bytes < whole / 3  # the rest has no axis D
    assert found.arguments - batch == pytest.approx(3 * found.parameter_bytes, abs=100)  # Adam
    assert said["all-gather"].sent == said["all-gather"].bytes * 3 / 4


@pytest.mark.parametrize("scan", [pytest.param(False, marks=pytest.mark.slow), True])
def test_tensor_parallelism_sums_what_its_cut_matrices_make(planned, scan):
    found, said = planned(mesh__data=4, mesh__tensor=2, model__scan=scan)
    assert said.keys() == {"all-reduce"}
    gradients = found.parameter_bytes + 2 * TABLE // 2  # of a table used in three places
    array = 4 * (ROWS // 4) * LENGTH * WIDTH  # activations
    forward = 2 + 3  # after attention and mlp: encoder, decoder
    backward = 4 + 7  # before query, key, value, mlp; across query, key and value too
    others = 2 + 1  # two look-ups; the logits' states
    rest = said["all-reduce"].bytes - gradients - array * (forward + backward + others)
    assert 0 <= rest < array  # the softmax over a cut vocabulary: numbers a token


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [
        dict(mesh__data=1, mesh__fsdp=8),
        dict(mesh__data=1, mesh__fsdp=4, mesh__tensor=2),
        dict(mesh__data=2, mesh__fsdp=2, mesh__tensor=2),
        dict(mesh__data=4, mesh__sequence=2),
    ],
    ids=str,
)
def test_no_mesh_is_beyond_the_partitioner(planned, sizes):
    planned(**sizes)


def test_a_search_compiles_too(planned):
    found, said = planned(decode=True, mesh__data=4, mesh__tensor=2)
    assert found.program == "search" and found.shape == SHAPE
    assert found.flops == flops.forward(planning._model(small()).config, SHAPE, beams=2)
    assert found.traffic.unknown  # it ends when all sentences have
    assert "all-reduce" in said


def test_every_micro_batch_sums_its_gradients(planned):
    """In a loop, whose length the program tells."""
    found, said = planned(model__tie="none", train__accum=2, shape=(2 * ROWS, LENGTH, LENGTH))
    assert said["all-reduce"].bytes == 2 * (4 * found.parameters + 4 * 3)
    assert found.traffic.unknown == 0


# --------------------------------------------------------------------- the page


EXAMPLE = Plan(
    topology="v5e:4x4",
    program="training step",
    devices=16,
    kind="TPU v5 lite",
    mesh=dict(data=16, fsdp=1, tensor=1, sequence=1),
    settings=dict(remat="none"),
    parameters=1000,
    parameter_bytes=4000,
    shape=(32, 64, 64),
    fits=True,
    arguments=2**30,
    temporaries=2**31,
    memory=3 * 2**30,
    capacity=16 * 2**30,
    flops=int(16 * 197e12),
    repeated=0,
    traffic=Traffic((Collective("all-reduce", 3, 4000, 7500),), 2),
    compute=1.0,
    hbm=2.0,
    ici=0.5,
)


def test_the_largest_bound_is_the_step_and_bounds_mfu():
    assert EXAMPLE.seconds == 2.0 and EXAMPLE.mfu == pytest.approx(0.5)
    page = show(EXAMPLE)
    for said in (
        "training step on v5e:4x4: 16 x TPU v5 lite",
        "fits in 16.0 GiB, 13.0 GiB to spare",
        "bound by memory; 3.5e+03 ms if nothing overlaps",
        "50.0%",
        "in loops of unknown length, counted once: 2",
        "197 TFLOP/s",
    ):
        assert said in page, page
    assert len(page.splitlines()) < 30 and max(map(len, page.splitlines())) <= 100


def test_json_holds_all_that_the_page_says():
    tree = json.loads(to_json(EXAMPLE))
    assert tree["traffic"]["collectives"][0]["kind"] == "all-reduce"
    assert tree["seconds"] == 2.0 and tree["mesh"]["data"] == 16 and tree["shape"] == [32, 64, 64]


@pytest.fixture
def pretend(monkeypatch):
    """Plans without compiling: a step takes `memory(config)` and `seconds(config)`."""
    tried = []

    def use(memory, seconds=lambda config: 1.0):
        def fake(config, topology, there, decode, shape):
            mesh = dict(planning._mesh(config, there).shape)
            tried.append(mesh | {"remat": config.model.remat, "accum": config.train.accum})
            fits, time = memory(config) <= 10, seconds(config)
            changes = dict(mesh=mesh, fits=fits, memory=memory(config), capacity=10, compute=time)
            return dataclasses.replace(EXAMPLE, **changes, hbm=0.0, ici=0.0, shape=SHAPE)

        monkeypatch.setattr(planning, "_plan", fake)
        return tried

    return use


@pytest.mark.parametrize(
    "memory, remedy",
    [
        (lambda c: 11 - 5 * (c.model.remat == "full"), "model.remat=full"),
        (lambda c: 11 - 5 * (c.mesh.fsdp == 2), "mesh.data=1, mesh.fsdp=2"),
        (lambda c: 40 / c.train.accum, "train.accum=4"),
        (
            lambda c: 40 - 25 * (c.model.remat == "full") - 10 * (c.mesh.fsdp == 2),
            "model.remat=full, mesh.data=1, mesh.fsdp=2, train.accum=4",
        ),
        (lambda c: 11, None),
    ],
)
def test_what_would_make_it_fit_is_tried_in_order(pretend, memory, remedy):
    pretend(memory)
    found = plan(small(mesh__data=2, mesh__tensor=2, mesh__sequence=2), "cpu")
    if memory(small()) > 10:
        assert not found.fits
        assert (found.remedy or "").partition(" (")[0] == (remedy or "")
        assert ("DOES NOT FIT" in show(found)) and (remedy or "nothing that was tried") in show(
            found
        )


def test_a_sweep_ranks_the_meshes_that_divide_and_fit(pretend):
    tried = pretend(lambda c: 20 - 15 * (c.mesh.tensor == 2), lambda c: 1.0 / c.mesh.fsdp)
    plans = sweep_mesh(small(), "cpu")
    cut = lambda p: (p.mesh["data"], p.mesh["fsdp"], p.mesh["tensor"])
    assert len(plans) == len(tried) and {p.mesh["tensor"] for p in plans} == {1, 2}  # 2 heads
    assert [p.fits for p in plans] == sorted((p.fits for p in plans), reverse=True)
    assert cut(plans[0]) == (1, 4, 2) and plans[0].fits
    lines = table(plans).splitlines()
    assert [line.split()[:3] for line in lines[7:-2]] == [[*map(str, cut(p))] for p in plans] + [[]]
    assert (
        lines[-1] == "the first: --config.mesh.data=1 --config.mesh.fsdp=4 --config.mesh.tensor=2"
    )
    assert "no mesh divides" in table([])


def test_what_libtpu_says_of_memory_is_understood():
    said = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (28.50G) exceeds available HBM (15.75G)."
    )
    assert planning._too_much(said) == 28.5 * 2**30
    said = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.00M of 15.75G hbm."
    assert planning._too_much(said) == 2**29
    assert planning._too_much("INTERNAL: Used 3.00G of 2.00G") == 0


# ------------------------------------------------------------------ wrong input


@pytest.mark.parametrize(
    "topology",
    [
        "v9:4x4",
        "v5e",
        "v5e:4by4",
        "",
        "tpu",
        "v5e:3x5",
        "v5e:4x4x4",
        "v5e:64x64",
        "v4:4x4",
        "v4:0x2x2",
    ],
)
def test_an_unknown_topology_is_refused_with_known_ones(topology):
    with pytest.raises(ValueError, match=r"want one such as cpu, v4:.*v5e:.*v5p.*v6e.*tpu7x") as e:
        plan(small(), topology)
    assert "\n" not in str(e.value)


def test_without_libtpu_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(planning.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "tfx-research\[tpu\]"') as error:
        plan(small(), "v5e:2x2")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes, shape, message",
    [
        (dict(mesh__data=3), SHAPE, "does not cover the 8 devices"),
        (dict(mesh__data=2, mesh__tensor=4), SHAPE, "heads 2 "),
        (dict(), (12, 16, 16), "a batch of 12 rows: .* into 8; want 8 or 16"),
        (dict(train__accum=2), (8, 16, 16), "into 16; want 16"),
        (dict(), (8, 16, 5000), "at most 1024 .model.max_length."),
        (dict(), (0, 16, 16), "at least 1"),
        (dict(mesh__data=4, mesh__sequence=2), (8, 15, 16), "length of 15"),
    ],
)
def test_what_cannot_be_is_refused_before_it_is_compiled(monkeypatch, changes, shape, message):
    monkeypatch.setattr(planning, "_compiled", None)
    with pytest.raises(ValueError, match=message):
        plan(small(**changes), "cpu", shape=shape)


def test_rows_fill_the_batch_and_divide_the_mesh():
    config = small(batch__tokens=64 * 21, train__accum=2)
    mesh = planning._mesh(config, jax.devices())
    assert planning._shape(config, mesh, False, None) == (16, 64, 64)
    with pytest.raises(Misfit):
        planning._shape(config, mesh, False, (21, 64, 64))


# ----------------------------------------------------------------- golden plans


def _config(golden):
    config = configs.load(golden["config"])
    configs.override(config, [f"--config.{change}" for change in golden["changes"]])
    return configs.freeze(config)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_plans_hold_without_a_compiler(path):
    golden = json.loads(path.read_text())
    model = planning._model(_config(golden))
    mesh = AbstractMesh(tuple(golden["mesh"].values()), tuple(golden["mesh"]))
    like = sharding.place(models.shapes(model), mesh)
    assert train.count(like) == golden["parameters"]
    assert flops.training(model.config, golden["shape"]) == golden["flops"]
    cut = [math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(like)]
    assert 4 * sum(cut) == golden["parameter_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_plans_compile(path):
    pytest.importorskip("libtpu")
    golden = json.loads(path.read_text())
    found = json.loads(to_json(plan(_config(golden), golden["topology"])))
    found["kinds"] = [c["kind"] for c in found["traffic"]["collectives"]]
    assert {key: found.get(key, golden[key]) for key in golden} == golden


def test_a_tpu_is_planned_for(capfd):
    pytest.importorskip("libtpu")
    found = plan(small(model__scan=True, train__dtype="bfloat16"), "v5e:2x2", shape=SHAPE)
    assert found.devices == 4 and found.kind == "TPU v5 lite" and found.fits
    assert [c.kind for c in found.traffic.collectives] == ["all-reduce"]
    assert found.capacity == 16 * 2**30 and 0 < found.mfu < 1
    assert "Involuntary full rematerialization" not in capfd.readouterr().err
    assert "bound by" in show(found)
