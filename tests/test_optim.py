"""Schedules are their formulas; optimisers are PyTorch's, clipped and masked as told."""

import math
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tfx import optim
from tfx.schema import Optim

FIXTURE = np.load(Path(__file__).parent / "fixtures/numerics.npz")
CONSTANT = Optim(lr=0.01, schedule="constant", warmup=0)


def rates(steps, width=64, total=1000, **settings):
    """Learning rates of the updates with these numbers, counted from 1."""
    schedule = optim.schedule(Optim(**settings), total, width)
    return [float(schedule(step - 1)) for step in steps]


@pytest.mark.parametrize(
    "name, pairs",
    [
        ("noam", {1: 2 / 8 / 1000, 100: 2 / 80, 50: 1 / 80, 400: 1 / 80, 1000: 2 / 8 / 1000**0.5}),
        ("rsqrt", {1: 0.02, 50: 1.0, 100: 2.0, 400: 1.0, 900: 2 / 3}),
        ("linear", {1: 0.02, 50: 1.0, 100: 2.0, 550: 1.0, 1000: 0.0, 1500: 0.0}),
        ("cosine", {1: 0.02, 50: 1.0, 100: 2.0, 550: 1.0, 1000: 0.0, 1500: 0.0, 400: 1.5}),
        ("constant", {1: 0.02, 50: 1.0, 100: 2.0, 1000: 2.0}),
    ],
)
def test_schedules_pass_through_these_points(name, pairs):
    """Factor 2, 100 steps of warm-up of 1000, width 64."""
    got = rates(pairs, schedule=name, lr=2.0, warmup=100)
    np.testing.assert_allclose(got, list(pairs.values()), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", optim.SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_schedules_rise_and_then_never_rise_again(name, warmup):
    got = np.array(rates(range(1, 60), total=60, schedule=name, warmup=warmup))
    top = max(warmup, 1) - 1
    assert np.isfinite(got).all() and (got > 0).all()
    assert (np.diff(got[: top + 1]) > 0).all() and (np.diff(got[top:]) <= 1e-7).all()


def test_noam_is_the_papers_formula():
    """Equation 3 at the base model's width and warm-up."""
    steps = [1, 1000, 4000, 100_000]
    want = [512**-0.5 * min(s**-0.5, s * 4000**-1.5) for s in steps]
    np.testing.assert_allclose(rates(steps, width=512), want, rtol=1e-5)


def test_the_first_update_is_not_wasted():
    """Updates are counted from 1: at 0 done, the rate is not 0."""
    assert all(rates([1], schedule=name, warmup=10)[0] > 0 for name in optim.SCHEDULES)


# ------------------------------------------------------------------- optimisers


def run(config, start, gradients, name="kernel"):
    """Parameters after every update."""
    optimiser, params, steps = (
        optim.build(config, len(gradients), 1),
        {name: jnp.asarray(start)},
        [],
    )
    state, update = optimiser.init(params), jax.jit(optimiser.update)
    for gradient in gradients:
        updates, state = update({name: jnp.asarray(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        steps.append(params[name])
    return np.array(steps)


@pytest.mark.parametrize("name, decay", [("adam", 0.0), ("adamw", 0.01)])
def test_adam_is_torchs(name, decay):
    start, gradients = FIXTURE["optim/in/start"], FIXTURE["optim/in/gradients"]
    got = run(replace(CONSTANT, name=name, weight_decay=decay), start, gradients)
    np.testing.assert_allclose(got, FIXTURE[f"optim/out/{name}"], rtol=1e-5, atol=1e-6)


def test_no_decay_means_none_whatever_the_optimisers_default():
    start, gradients = FIXTURE["optim/in/start"], FIXTURE["optim/in/gradients"]
    got = run(replace(CONSTANT, name="adamw"), start, gradients)
    np.testing.assert_array_equal(got, run(CONSTANT, start, gradients))


def test_decay_takes_matrices_and_tables_and_spares_biases_and_norms():
    tree = {
        "embed": {"embedding": 1},
        "dense": {"kernel": 1, "bias": 1},
        "norm": {"scale": 1, "bias": 1},
        "layers": {"norm": {"scale": 1}},
    }
    assert optim.decayed(tree) == {
        "embed": {"embedding": True},
        "dense": {"kernel": True, "bias": False},
        "norm": {"scale": False, "bias": False},
        "layers": {"norm": {"scale": False}},
    }
    config, nothing = (
        replace(CONSTANT, name="adamw", weight_decay=0.5),
        np.zeros((1, 4), np.float32),
    )
    for name, left in {"kernel": 1 - 0.01 * 0.5, "bias": 1.0, "scale": 1.0}.items():
        np.testing.assert_allclose(run(config, np.ones(4, np.float32), nothing, name)[0], left)


def test_clipping_shortens_long_gradients_and_leaves_short_ones():
    config = replace(CONSTANT, name="sgd", lr=1.0, clip=2.0)
    for gradient, update in [([3.0, 4.0], [1.2, 1.6]), ([0.3, 0.4], [0.3, 0.4])]:
        got = run(config, np.zeros(2, np.float32), [np.array(gradient, np.float32)])[0]
        np.testing.assert_allclose(-got, update, rtol=1e-6)
    long = run(
        replace(config, clip=0.0), np.zeros(2, np.float32), [np.array([3.0, 4.0], np.float32)]
    )
    np.testing.assert_allclose(-long[0], [3.0, 4.0])


@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize(
    "name", ["adam", "adamw", "adafactor", "lion", "lamb", "adagrad", "sgd", "nadamw"]
)
def test_optimisers_of_optax_go_by_name(name, decay):
    config = replace(CONSTANT, name=name, weight_decay=decay)
    params = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}
    if decay and name in ("adam", "adagrad", "sgd"):
        with pytest.raises(ValueError, match=f"optim.weight_decay = 0.01, but .*'{name}'"):
            optim.build(config, 10, 8)
        return
    optimiser = optim.build(config, 10, 8)
    once = lambda params: optimiser.update(params, optimiser.init(params), params)[0]
    updates = jax.eval_shape(once, params)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)


@pytest.mark.parametrize("name", ["adma", "chain", "linear_schedule", "__name__"])
def test_a_name_that_is_no_optimiser_is_refused(name):
    with pytest.raises(ValueError, match=f"optim.name = '{name}' is no optimiser of optax"):
        optim.build(replace(CONSTANT, name=name), 10, 8)


def test_the_schedule_reaches_the_optimiser():
    config = Optim(name="sgd", lr=1.0, schedule="rsqrt", warmup=2)
    got = run(config, np.zeros(1, np.float32), np.ones((8, 1), np.float32))[:, 0]
    np.testing.assert_allclose(
        -np.diff(got, prepend=0), [0.5, 1, *((2 / s) ** 0.5 for s in range(3, 9))], rtol=1e-5
    )
    assert math.isclose(-got[1], 1.5, rel_tol=1e-6)
