"""Schedules are their formulas; optimisers are PyTorch's, clipped and masked as told; what is
frozen stays as it is, and lower layers are as slow as they should be."""

import functools
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from tfx import checkpoint, models, optim, sharding
from tfx.models import bert, t5
from tfx.schema import Optim
from tfx.setup import create_state, init_state

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


# ------------------------------------------------------------------- fine-tuning

LAYERS = 3
BERT = bert.Config(
    width=8, depth=LAYERS, heads=2, mlp=16, vocab=11, max_length=6, head="classify", classes=3
)
ADAMW = replace(CONSTANT, name="adamw", weight_decay=0.1, clip=1.0)


@functools.cache
def started(config=BERT):
    """Parameters that are no zeros, and their shapes."""
    shapes = nn.unbox(models.shapes(models.build(config)))
    return gradients(shapes, 0), shapes


def gradients(like, step):
    """Random numbers, none of them 0."""
    draw = np.random.default_rng(step).standard_normal
    return jax.tree.map(lambda x: jnp.asarray(draw(x.shape), jnp.float32), like)


def taken(config, params, shapes, grads):
    """Parameters after an update with each of some gradients, by path; layers apart."""
    tx = optim.build(config, 10, 8, shapes)
    state, update = tx.init(params), jax.jit(tx.update)
    for gradient in grads:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return apart(params)


def apart(tree):
    """Arrays by path, those of a stack layer by layer."""
    found = {}
    for several, leaf in optim.paths(tree):
        parts = leaf if "/layers/" in several[0] else [leaf]
        found |= dict(zip(several, map(np.asarray, parts), strict=True))
    return found


def test_layers_are_slower_the_lower_they_are():
    """As BEiT counts them: the head 1, the top layer d, the one below d^2, embeddings d^(N + 1)."""
    _, shapes = started()
    factors = optim.factors(Optim(layer_decay=0.5), shapes)
    table = jax.tree.map(lambda factor, s: np.broadcast_to(factor, s.shape), factors, shapes)
    wanted = {"embed/": 4, "positions/": 4, "types": 4, "norm/": 4, "pool/": 0, "classifier/": 0}
    wanted |= {f"encoder/layers/{n}/": LAYERS - n for n in range(LAYERS)}
    for path, values in apart(table).items():
        power = next(power for start, power in wanted.items() if path.startswith(start))
        assert (values == 0.5**power).all(), path


def test_encoder_and_decoder_count_their_own_layers():
    config = t5.Config(
        width=8, depth=2, decoder_depth=3, heads=2, key_width=4, value_width=4, mlp=16, vocab=11
    )
    _, shapes = started(config)
    factors = optim.factors(Optim(layer_decay=0.5), shapes)
    for stack, powers in ("encoder", [2, 1]), ("decoder", [3, 2, 1]):
        for factor in jax.tree.leaves(factors[stack]["layers"]):
            np.testing.assert_array_equal(factor.ravel(), [0.5**power for power in powers])
        # What all layers share is with the head.
        assert factors[stack]["norm"]["scale"] == factors[stack]["distance"]["embedding"] == 1
    assert factors["target_embed"]["embedding"] == 0.5**4


@pytest.mark.parametrize("family", models.MODELS)
def test_every_family_has_embeddings_below_its_layers(family):
    config = models.MODELS[family].Config(
        width=8, depth=2, heads=2, mlp=16, vocab=11, position="learned", embedding_norm=True
    )
    _, shapes = started(config)
    factors = jax.tree.leaves_with_path(optim.factors(Optim(layer_decay=0.5), shapes))
    slow = {path[0].key for path, factor in factors if factor.max() == 0.5**3}
    sides = {"source_norm", "target_norm", "target_embed", "positions", "target_positions"}
    one = {"embed", "positions", "norm"} | {"bert": {"types"}, "roberta": {"types"}}.get(
        family, {"xlnet": {"mask"}}.get(family, set())
    )
    assert slow == (sides if "target_embed" in shapes else one)


def test_updates_are_exactly_in_the_ratio_of_the_rates():
    params, shapes = started()
    sgd, grads = replace(CONSTANT, name="sgd", lr=0.5), gradients(params, 1)
    still = jax.tree.map(jnp.zeros_like, params)
    plain = taken(sgd, still, shapes, [grads])
    slow = taken(replace(sgd, layer_decay=0.5), still, shapes, [grads])
    factors = optim.factors(Optim(layer_decay=0.5), shapes)
    factors = apart(jax.tree.map(lambda f, s: np.broadcast_to(f, s.shape), factors, shapes))
    assert plain.keys() == slow.keys()
    for path in plain:
        np.testing.assert_array_equal(slow[path], plain[path] * factors[path], path)


def test_decay_of_weights_slows_down_as_the_rate_does():
    params, shapes = started()
    config = replace(CONSTANT, name="adamw", weight_decay=0.5, layer_decay=0.5)
    nothing, before = jax.tree.map(jnp.zeros_like, params), apart(params)
    after = taken(config, params, shapes, [nothing])
    for n in range(LAYERS):
        name = f"encoder/layers/{n}/feed_forward/up/kernel"
        left = 1 - 0.01 * 0.5 * 0.5 ** (LAYERS - n)
        np.testing.assert_allclose(after[name], left * before[name], rtol=1e-6)


@pytest.mark.parametrize(
    "frozen, names",
    [
        ("^(embed|positions|types|norm)", lambda path: not path.startswith(("enc", "pool", "cl"))),
        ("layers/[01]", lambda path: "layers/0/" in path or "layers/1/" in path),
        ("encoder", lambda path: path.startswith("encoder/")),
        ("layers/1/.*kernel$", lambda path: "layers/1/" in path and path.endswith("kernel")),
        ("bias$|embed/", lambda path: path.endswith("bias") or path.startswith("embed/")),
    ],
)
def test_what_is_frozen_stays_bit_for_bit_and_all_else_moves(frozen, names):
    params, shapes = started()
    config = replace(ADAMW, frozen=frozen, layer_decay=0.5)
    after = taken(config, params, shapes, [gradients(params, step) for step in range(3)])
    for path, before in apart(params).items():
        if names(path):
            assert before.tobytes() == after[path].tobytes(), path
        else:
            assert (before != after[path]).all(), path


def test_numbers_of_layers_are_whole():
    config = replace(BERT, depth=12)
    _, shapes = started(config)
    cases = {
        "layers/1": {1},
        r"layers/\d": set(range(10)),
        "1/self": {1},
        "layers/": set(range(12)),
    }
    for frozen, numbers in cases.items():
        factor = optim.factors(Optim(frozen=frozen), shapes)["encoder"]["layers"]["self_norm"]
        assert {*np.flatnonzero(factor["scale"] == 0).tolist()} == numbers, frozen


def test_what_is_frozen_is_no_part_of_the_norm():
    """However long its gradient is, the others are clipped by themselves."""
    params, shapes = started()
    config = replace(CONSTANT, name="sgd", lr=1.0, clip=0.5, frozen="embed/|layers/1")
    factors = optim.factors(config, shapes)
    huge = jax.tree.map(lambda f, g: jnp.where(f == 0, jnp.inf, g), factors, gradients(params, 1))
    tx = optim.build(config, 10, 8, shapes)
    updates, _ = jax.jit(tx.update)(huge, tx.init(params), params)
    assert optax.tree.norm(updates) == pytest.approx(0.5, rel=1e-5)
    only = jax.tree.map(lambda f, g: jnp.where(f == 0, 0, g), factors, huge)
    wanted = jax.tree.map(lambda g: -0.5 * g / optax.tree.norm(only), only)
    jax.tree.map(lambda u, w: np.testing.assert_allclose(u, w, rtol=1e-5), updates, wanted)


def test_moments_are_kept_of_what_moves_alone():
    params, shapes = started()
    numbers = lambda frozen: sum(
        leaf.size
        for leaf in jax.tree.leaves(optim.build(frozen, 10, 8, shapes).init(params))
        if leaf.ndim
    )
    count = lambda name: sum(leaf.size for leaf in jax.tree.leaves(params[name]))
    assert numbers(ADAMW) - numbers(replace(ADAMW, frozen="^encoder")) == 2 * count("encoder")


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "lamb", "nadamw", "lars"])
def test_every_optimiser_can_freeze_and_slow_down(name):
    params, shapes = started()
    config = replace(ADAMW, name=name, frozen="embed/|layers/0", layer_decay=0.9)
    after = taken(config, params, shapes, [gradients(params, 1)])
    for path, before in apart(params).items():
        still = path.startswith("embed/") or "layers/0/" in path
        assert np.isfinite(after[path]).all()
        assert (before == after[path]).all() if still else (before != after[path]).any(), path


def test_without_either_all_is_as_it_was():
    """The same state, so that old checkpoints go on, and the same program."""
    params, shapes = started()
    old, new = optim.build(ADAMW, 10, 8), optim.build(ADAMW, 10, 8, shapes)
    assert jax.tree.structure(old.init(params)) == jax.tree.structure(new.init(params))
    program = lambda tx: str(jax.make_jaxpr(tx.update)(params, tx.init(params), params))
    assert program(old) == program(new)
    slow = optim.build(replace(ADAMW, layer_decay=0.5), 10, 8, shapes)
    assert jax.tree.structure(slow.init(params)) == jax.tree.structure(old.init(params))


@pytest.mark.parametrize(
    "frozen, error",
    [
        ("encodr/layers", "matches no parameter; there are encoder/layers"),
        ("encoder/layers/9", "matches no parameter; there are encoder/layers/"),
        ("layers/0(", "is no regular expression: .*unterminated"),
        (".", "matches every parameter; leave some to train"),
        ("embed|positions|types|norm|encoder|pool|classifier", "matches every parameter"),
    ],
)
def test_a_regex_that_freezes_nothing_or_all_is_refused(frozen, error):
    _, shapes = started()
    config = replace(ADAMW, frozen=frozen)
    with pytest.raises(ValueError, match=f"optim.frozen = .*{error}") as refused:
        optim.check(config, shapes)
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=r"optim\.frozen"):
        optim.build(config, 10, 8, shapes)


def test_a_state_is_sharded_and_comes_back(tmp_path):
    """Two steps, or one, a checkpoint and another one: the same bits."""
    model, (_, shapes) = models.build(BERT), started()
    settings = replace(ADAMW, layer_decay=0.5, frozen="embed/|layers/0")
    tx = optim.build(settings, 10, 8, shapes)
    config, mesh = SimpleNamespace(optim=settings, seed=0), sharding.make_mesh(fsdp=2, data=-1)
    with jax.set_mesh(mesh), checkpoint.Checkpoints(tmp_path) as saved:
        like, shardings = init_state(config, model, tx, mesh)
        assert jax.tree.structure(like.opt_state) == jax.tree.structure(shardings.opt_state)

        @functools.partial(jax.jit, out_shardings=shardings)
        def step(state):
            grads = jax.tree.map(jnp.sin, state.params)
            updates, moved = tx.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            return state.replace(step=state.step + 1, params=params, opt_state=moved)

        state = step(create_state(config, model, tx, shardings))
        saved.save(state, {"note": 1})
        saved.wait()
        again, _ = saved.restore(like)
        for one, two in zip(
            *(jax.tree.leaves(step(s).params) for s in (state, again)), strict=True
        ):
            np.testing.assert_array_equal(one, two)


def test_a_name_that_is_nearly_right_is_told_the_right_one():
    for name, near in (("adm", "adam"), ("AdamW", "adamw"), ("lyon", "lion"), ("nadamW", "nadamw")):
        with pytest.raises(ValueError, match=f"no optimiser of optax; did you mean {near}"):
            optim.build(Optim(name=name), 10, 4)
    assert {"adam", "adamw", "sgd", "lamb", "adafactor", "nadamw"} <= {*optim.names()}


@pytest.mark.parametrize("name", ["lbfgs", "sm3", "rprop"])
def test_what_wants_more_than_a_config_says_is_refused_before_a_step(name):
    with pytest.raises(ValueError, match=f"optim.name = '{name}' does not train here"):
        optim.build(Optim(name=name), 10, 4)
