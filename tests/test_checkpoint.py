import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import tfx
from tfx import assemble, checkpoint, sharding
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
