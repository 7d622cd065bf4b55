import os
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import tfx
from tfx import assemble, checkpoint, lock, sharding
from tfx.state import TrainState
from tfx.train import train

META = {"note": [1, "two"]}


def state(mesh, spec=None, width=8):
    put = lambda x: jax.device_put(x, NamedSharding(mesh, (x.ndim == 2 and spec) or P()))
    params = {"w": put(jnp.arange(8.0 * width).reshape(8, width)), "b": put(jnp.ones(width))}
    moments = jax.tree.map(lambda x: put(2 * x), params)
    return TrainState(jnp.int32(7), params, (moments, None), jax.random.key(3), ema=None)


def like(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def same(a, b):
    a, b = (x.replace(rng=jax.random.key_data(x.rng)) for x in (a, b))
    return all(np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_a_state_comes_back_on_another_mesh_bit_for_bit(tmp_path):
    saved = state(sharding.make_mesh(fsdp=8, data=1), P("fsdp"))
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(saved, META)
    other = state(sharding.make_mesh(tensor=2), P(None, "tensor"))
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        found, meta = checkpoints.restore(like(other))
    assert same(found, saved) and meta == META
    assert found.params["w"].sharding == other.params["w"].sharding


def test_a_model_of_another_shape_is_refused_by_name(tmp_path):
    mesh = sharding.make_mesh()
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state(mesh), META)
        checkpoints.wait()
        wide = state(mesh, width=16)
        with pytest.raises(ValueError, match=r"w: saved \(8, 8\), model \(8, 16\)"):
            checkpoints.restore(like(wide))
        more = wide.replace(params=state(mesh).params | {"extra": jnp.ones(2)})
        with pytest.raises(ValueError, match=r"extra: saved None, model \(2,\)"):
            checkpoints.restore(like(more))


def test_weights_alone_cannot_be_trained_further(tmp_path):
    full = state(sharding.make_mesh())
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_weights(7, full.params, META)
        with pytest.raises(ValueError, match=r"parameters alone; to train on, .*init_from"):
            checkpoints.restore(like(full))
        found = checkpoints.weights(like(full.params))
    assert np.array_equal(found["w"], full.params["w"])


def test_the_moving_average_is_what_translates(tmp_path):
    full = state(sharding.make_mesh())
    full = full.replace(ema=jax.tree.map(lambda x: -x, full.params))
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(full, META)
        checkpoints.wait()
        assert np.array_equal(checkpoints.weights(like(full.params))["w"], -full.params["w"])


def test_which_steps_are_chosen(tmp_path):
    full = state(sharding.make_mesh())
    with checkpoint.Checkpoints(tmp_path, keep_last=9) as checkpoints:
        with pytest.raises(FileNotFoundError, match="no checkpoint yet"):
            checkpoints.choose()
        for step, value in ((1, -3.0), (2, -1.0), (3, -2.0), (4, None)):
            checkpoints.save(full.replace(step=jnp.int32(step)), META, value)
        checkpoints.wait()
        assert checkpoints.choose() == [2]
        assert checkpoints.choose(3) == [3]
        assert checkpoints.choose(last=2) == [3, 4]
        assert checkpoints.choose(best=2) == [2, 3]
        with pytest.raises(ValueError, match="no step 5; there are 1, 2, 3, 4"):
            checkpoints.choose(5)


def test_who_only_reads_lets_a_save_under_way_be(tmp_path):
    half = tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp" / "params"
    half.mkdir(parents=True)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [] and half.exists()
    with checkpoint.Checkpoints(tmp_path, keep_last=1) as checkpoints:
        checkpoints.save(state(sharding.make_mesh()), META)
        assert not half.exists()


def test_the_tokenizer_of_another_run_is_refused(toy_config, tmp_path):
    train(toy_config({"train.steps": 1}), tmp_path)
    for path in tmp_path.glob("tokenizer.*"):
        path.unlink()
    assemble.open_tokenizer(toy_config({"tokenizer.vocab": 39}), tmp_path)
    with pytest.raises(
        ValueError, match=r"does not fit the model|not the one that its checkpoints"
    ):
        tfx.load(tmp_path)


def held():
    """Threads and open files of this process."""
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("saves", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_saves_leave_no_threads_and_no_open_files(saves, tmp_path):
    """With those that are left, a run died at its save 319, of "Too many open files"."""
    full = state(sharding.make_mesh(), width=1)
    with checkpoint.Checkpoints(tmp_path, keep_last=2) as checkpoints:
        for step in range(1, saves + 1):
            checkpoints.save(full.replace(step=jnp.int32(step)), META)
            if step == 5:
                checkpoints.wait()
                before = held()
        checkpoints.wait()
        after = held()
        assert after[0] <= before[0] + 2 and after[1] <= before[1] + 2
        assert checkpoints.steps == [saves - 1, saves]


def test_readers_leave_no_threads_and_no_open_files(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state(sharding.make_mesh(), width=1), META)
    counts = []
    for _ in range(50):
        with checkpoint.Checkpoints(tmp_path) as checkpoints:
            checkpoints.meta()
        counts.append(held())
    # Pools of Orbax go when they are collected.
    threads, files = zip(*counts, strict=True)
    assert min(threads[-10:]) <= min(threads[:10]) + 1 and min(files[-10:]) <= min(files[:10]) + 1


class Failed:
    """A save that ends with an error."""

    def result(self):
        raise OSError("No space left on device")


@pytest.mark.parametrize("ask", ["save", "wait", "close"])
def test_what_went_wrong_with_a_save_is_told_at_the_next_occasion(ask, tmp_path, monkeypatch):
    full = state(sharding.make_mesh())
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        start = checkpoints._orbax.save_checkpointables_async
        fail = lambda *given, **how: Failed()
        monkeypatch.setattr(checkpoints._orbax, "save_checkpointables_async", fail)
        checkpoints.save(full, META)
        monkeypatch.setattr(checkpoints._orbax, "save_checkpointables_async", start)
        given = [full.replace(step=jnp.int32(8)), META] if ask == "save" else []
        with pytest.raises(OSError, match="No space left"):
            getattr(checkpoints, ask)(*given)


def damaged(where, how):
    """Damage one file, or one folder, of a checkpoint."""
    if where.is_dir():
        shutil.rmtree(where)
        where.mkdir() if how == "emptied" else None
    elif how == "deleted":
        where.unlink()
    else:
        content = where.read_bytes()
        where.write_bytes(content[: len(content) // 2] if how == "half" else b"")


TRAINED = {"tokenizer": "t", "data": "d"}
DAMAGES = [
    ("", "emptied", "meta is missing"),
    ("params", "deleted", "params is missing"),
    ("params", "emptied", "params cannot be read"),
    ("optimizer", "deleted", "optimizer is missing"),
    ("meta", "deleted", "meta is missing"),
    ("params/_METADATA", "half", "params cannot be read"),
    ("params/manifest.ocdbt", "emptied", "params cannot be read"),
    ("params/d", "deleted", "params cannot be read"),
    ("optimizer/manifest.ocdbt", "half", "optimizer cannot be read"),
    ("meta/_strings.json", "deleted", "meta cannot be read"),
]


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A workdir with checkpoints 10, 20 and 30, and its state."""
    directory, full = tmp_path_factory.mktemp("three"), state(sharding.make_mesh())
    with checkpoint.Checkpoints(directory) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(full.replace(step=jnp.int32(step)), TRAINED)
    return directory, full


@pytest.mark.parametrize("name, how, why", DAMAGES)
def test_a_damaged_checkpoint_is_one_line_with_those_that_are_whole(
    name, how, why, three, tmp_path
):
    directory, full = three
    run = shutil.copytree(directory, tmp_path / "run")
    damaged(run / "checkpoints/30" / name, how)
    with checkpoint.Checkpoints(run) as checkpoints:
        with pytest.raises(ValueError, match=rf"checkpoints/30 is damaged \({why}\)") as caught:
            checkpoints.meta()
            checkpoints.restore(like(full))
        assert "intact: 10, 20; take --step=20, or move that folder away" in str(caught.value)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
        if name.startswith(("params", "meta")) or not name:
            reads = checkpoints.meta if name.startswith("meta") else weights_of(checkpoints, full)
            with pytest.raises(ValueError, match=r"30 is damaged .*take --step=20"):
                reads(30)
        assert same(checkpoints.restore(like(full), 20)[0].replace(step=full.step), full)


def test_a_value_that_cannot_be_read_is_damage_too(three, tmp_path):
    directory, full = three
    run = shutil.copytree(directory, tmp_path / "run")
    with checkpoint.Checkpoints(run) as checkpoints:
        checkpoints.save(full.replace(step=jnp.int32(40)), TRAINED, 0.5)
    damaged(run / "checkpoints/40/metrics/metrics", "half")
    with pytest.raises(
        ValueError, match=r"40 is damaged \(metrics cannot .*intact: 10, 20, 30; move"
    ):
        checkpoint.Checkpoints(run)


def weights_of(checkpoints, full):
    return lambda step: checkpoints.weights(like(full.params), step)


def test_where_all_are_damaged_that_is_said(three, tmp_path):
    directory, full = three
    run = shutil.copytree(directory, tmp_path / "run")
    for step in (10, 20, 30):
        damaged(run / f"checkpoints/{step}/params/manifest.ocdbt", "emptied")
    message = r"damaged .*and no other one here is intact"
    with checkpoint.Checkpoints(run) as checkpoints, pytest.raises(ValueError, match=message):
        checkpoints.weights(like(full.params), 20)


def test_a_checkpoint_that_a_run_removed_meanwhile_is_not_called_damaged(three, tmp_path):
    directory, full = three
    run = shutil.copytree(directory, tmp_path / "run")
    with checkpoint.Checkpoints(run) as checkpoints:
        shutil.rmtree(run / "checkpoints/10")
        with pytest.raises(ValueError, match="10: was removed while it was read"):
            checkpoints.weights(like(full.params), 10)


def test_a_run_that_saves_here_may_just_be_removing_it(three, tmp_path, monkeypatch):
    directory, full = three
    run = shutil.copytree(directory, tmp_path / "run")
    shutil.rmtree(run / "checkpoints/10/params")  # which is half of the work
    remove = lambda seconds: shutil.rmtree(run / "checkpoints/10")
    monkeypatch.setattr(checkpoint.time, "sleep", remove)
    with lock.Lock(run, "train") as held, checkpoint.Checkpoints(run) as checkpoints:
        held.acquire()
        with pytest.raises(ValueError, match="10: was removed while it was read"):
            checkpoints.weights(like(full.params), 10)
