"""Setup of a run: the first state, on its devices."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from tfx import models, sharding
from tfx.schema import Config
from tfx.state import TrainState


def init_state(config: Config, model, tx, mesh) -> tuple[TrainState, TrainState]:
    """Describe the state at step 0 by `jax.ShapeDtypeStruct`s and its shardings: optimiser state
    lies where the parameters lie."""
    boxed = models.shapes(model)
    params, placed = sharding.place(boxed, mesh), sharding.of_parameters(boxed, mesh)
    whole, ema = sharding.replicated(mesh), bool(config.optim.ema)
    opt_state = jax.eval_shape(tx.init, params)
    follow = lambda leaf, param, at: at if leaf.shape == param.shape else whole
    opt_at = optax.tree.map_params(
        tx, follow, opt_state, params, placed, transform_non_params=lambda _: whole
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    step = jax.ShapeDtypeStruct((), jnp.int32)
    shapes = TrainState(step, params, opt_state, key, params if ema else None)
    shardings = TrainState(whole, placed, opt_at, whole, placed if ema else None)
    like = lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at)
    return jax.tree.map(like, shapes, shardings), shardings


def create_state(config: Config, model, tx, shardings: TrainState, given=None) -> TrainState:
    """Make the state at step 0, on its devices.

    Args:
      given: parameters to start from, by their path; None: the model's own start.
    """
    taken = {path: x for path, x in (given or {}).items() if x is not None}

    def create(key, taken):
        name = partial(jax.tree_util.keystr, simple=True, separator="/")
        params = nn.unbox(models.parameters(model, jax.random.fold_in(key, 0)))
        take = lambda path, own: taken.get(name(path), own).astype(own.dtype)
        params = jax.tree_util.tree_map_with_path(take, params)
        ema = jax.tree.map(jnp.copy, params) if config.optim.ema else None
        rng = jax.random.fold_in(key, 1)
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), rng, ema)

    return jax.jit(create, out_shardings=shardings)(jax.random.key(config.seed), taken)
