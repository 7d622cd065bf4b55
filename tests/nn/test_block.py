"""A block is its formula; a stack is its blocks, however it runs them."""

import functools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from tfx.nn.attention import Attention
from tfx.nn.block import REMAT, SAVEABLE, Block, Stack, remat_policy, unstack
from tfx.nn.mlp import Mlp
from tfx.nn.norm import LayerNorm

RANDOM = np.random.default_rng(0)
B, T, S, D, H, K, F = 2, 3, 4, 6, 2, 5, 7
KEY = jax.random.key(0)
norm = functools.partial(LayerNorm, 1e-6)


def normal(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def block(order="post", dropout=0.0, cross=False):
    """What makes such a block."""
    attention, mlp = functools.partial(Attention, H, K, K), functools.partial(Mlp, F)
    return functools.partial(Block, attention, mlp, norm, order, dropout, cross)


def drawn(module, *inputs):
    """Random parameters, biases and norms too."""
    shapes = nn.unbox(jax.eval_shape(module.init, KEY, *inputs))
    return jax.tree.map(lambda s: 0.5 * normal(*s.shape), shapes)


x_BTD, memory_BSD = normal(B, T, D), normal(B, S, D)
causal_11TT = np.tril(np.ones((1, 1, T, T), bool))
padding_B11S = np.arange(S)[None, None, None] < np.array([4, 2])[:, None, None, None]


# --------------------------------------------------------------------- one block


def by_hand(p, order, x, mask, memory=None, memory_mask=None):
    """The formulas of the two orders, in NumPy."""

    def layer_norm(p, x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

    def attention(p, x, y, mask):
        q, k, v = (
            np.einsum("btd,dhk->bhtk", z, p[name]["kernel"]) + p[name]["bias"][:, None]
            for name, z in (("query", x), ("key", y), ("value", y))
        )
        scores = np.where(mask, q @ k.swapaxes(-1, -2) / np.sqrt(K), -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return np.einsum("bhtk,hkd->btd", weights @ v, p["out"]["kernel"]) + p["out"]["bias"]

    def mlp(p, x):
        hidden = np.maximum(x @ p["up"]["kernel"] + p["up"]["bias"], 0)
        return hidden @ p["down"]["kernel"] + p["down"]["bias"]

    def around(norm, part, x):
        if order == "pre":
            return x + part(layer_norm(norm, x))
        return layer_norm(norm, x + part(x))

    x = around(p["self_norm"], lambda y: attention(p["self_attention"], y, y, mask), x)
    if memory is not None:
        read = lambda y: attention(p["cross_attention"], y, memory, memory_mask)
        x = around(p["cross_norm"], read, x)
    return around(p["mlp_norm"], lambda y: mlp(p["feed_forward"], y), x)


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("order", ["post", "pre"])
def test_a_block_is_its_formula(order, cross):
    arguments = (x_BTD, causal_11TT) + ((memory_BSD, padding_B11S) if cross else ())
    layer = block(order, cross=cross)()
    params = drawn(layer, *arguments)
    got_BTD, cache = jax.jit(layer.apply)(params, *arguments)
    want_BTD = by_hand(params["params"], order, *arguments)
    np.testing.assert_allclose(got_BTD, want_BTD, atol=1e-5 * max(1, np.abs(want_BTD).max()))
    assert cache is None


@pytest.mark.parametrize("order", ["post", "pre"])
def test_dropout_falls_on_the_output_of_every_part(order):
    """At a rate near 1 nothing is left of the parts, not even their biases."""
    layer, arguments = block(order, 1 - 1e-6, cross=True)(), (x_BTD, None, memory_BSD)
    params = drawn(layer, *arguments)
    got_BTD = layer.apply(params, *arguments, train=True, rngs={"dropout": KEY})[0]
    want_BTD = x_BTD
    for part in ("self_norm", "cross_norm", "mlp_norm") if order == "post" else ():
        want_BTD = norm().apply({"params": params["params"][part]}, want_BTD)
    np.testing.assert_allclose(got_BTD, want_BTD, atol=1e-6)


# ----------------------------------------------------------------------- a stack

DEPTH = 2


def stack(scan=False, remat="none", dropout=0.3, layerdrop=0.3, **kwargs):
    return Stack(block("post", dropout, True), DEPTH, D, norm, scan, remat, layerdrop, **kwargs)


@pytest.fixture(scope="module")
def params():
    return drawn(stack(), x_BTD, None, memory_BSD)


def trained(module, params):
    """Output and gradients of a training step with dropout on."""

    def run(params, x_BTD, memory_BSD):
        arguments = (x_BTD, causal_11TT, memory_BSD, padding_B11S)
        y_BTD = module.apply(params, *arguments, train=True, rngs={"dropout": KEY})[0]
        return jnp.square(y_BTD).sum(), y_BTD

    differentiate = jax.value_and_grad(run, (0, 1, 2), has_aux=True)
    (_, y_BTD), gradients = jax.jit(differentiate)(params, x_BTD, memory_BSD)
    return y_BTD, gradients


@pytest.fixture(scope="module")
def unrolled(params):
    return trained(stack(), params)


NAMED = ["save_names:query,part_out", "offload:key_value,attention_out"]


@pytest.mark.parametrize("remat", ["full", "dots", *NAMED])
def test_neither_scan_nor_remat_changes_an_output_or_a_gradient(params, unrolled, remat):
    """With dropout on: the same keys give the same masks."""
    got = trained(stack(True, remat), params)
    assert jax.tree.structure(got) == jax.tree.structure(unrolled)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(unrolled), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()))


@pytest.mark.parametrize("remat", [*REMAT, *NAMED])
def test_remat_is_for_training_only(params, remat):
    def checkpoints(train):
        run = lambda params: stack(True, remat).apply(
            params, x_BTD, None, memory_BSD, train=train, rngs={"dropout": KEY}
        )
        return "remat2[" in str(jax.make_jaxpr(run)(params))

    assert checkpoints(train=True) == (remat != "none") and not checkpoints(train=False)


def unrolled_layer(params, remat):
    """The first layer, not scanned, as a function of parameters, input and memory; and those."""
    layer = Stack(block("post", 0.0, True), 1, D, None, False, remat)
    one = {"params": {"layers": jax.tree.map(lambda p: p[:1], params["params"]["layers"])}}
    run = lambda params, x_BTD, memory_BSD: layer.apply(
        *(params, x_BTD, causal_11TT, memory_BSD, padding_B11S), train=True, rngs={"dropout": KEY}
    )[0]
    return run, one, x_BTD, memory_BSD


def test_no_policy_changes_a_gradient_where_layers_are_unrolled(params):
    def gradients(remat):
        run, *arguments = unrolled_layer(params, remat)
        loss = lambda *arguments: jnp.square(run(*arguments)[..., 1:]).sum()
        return jax.tree.leaves(jax.jit(jax.grad(loss, (0, 1, 2)))(*arguments))

    want = gradients("none")
    for remat in ("full", "dots", *NAMED):
        for a, b in zip(gradients(remat), want, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()))


def kept(capsys, params, remat):
    """What the backward pass of a layer finds: names, and what has none and is no input."""
    jax.ad_checkpoint.print_saved_residuals(*unrolled_layer(params, remat))
    lines = capsys.readouterr().out.splitlines()
    named = Counter(re.findall(r" named '(.*?)'", "\n".join(lines)))
    inputs = re.compile(r" from the argument | from a constant| of squeeze .*unstack| named ")
    return named, [line for line in lines if not inputs.search(line)]


# In one layer.
TIMES = {"query": 2, "key_value": 2 * 2, "attention_out": 2, "mlp_hidden": 1, "part_out": 3}


def test_full_keeps_the_inputs_alone_and_names_keep_what_they_name(capsys, params):
    assert {*TIMES} == {*SAVEABLE}
    assert kept(capsys, params, "full") == ({}, [])
    assert len(kept(capsys, params, "none")[1]) > len(TIMES)
    for names in (["query"], ["key_value", "part_out"], ["query", "attention_out"]):
        want = {name: TIMES[name] for name in names}
        assert kept(capsys, params, f"save_names:{','.join(names)}") == (want, [])


def test_offloading_keeps_on_the_host_what_is_named(capsys, params):
    named, others = kept(capsys, params, "offload:query")
    assert not named and len(others) == TIMES["query"]
    assert all(line.startswith(f"f32<host>[{B},{T},{H},{K}]") for line in others)


@pytest.mark.parametrize(
    "remat", ["", "half", "Full", "full:query", "save_names", "save_names:", "offload:query,scores"]
)
def test_an_unknown_policy_is_refused_with_all_that_there_are(remat):
    want = f"remat = '{remat}': choose from none, full, dots, save_names:A,B and offload:A,B"
    with pytest.raises(ValueError) as error:
        remat_policy(remat)
    assert str(error.value).startswith(want) and str(error.value).endswith(", ".join(SAVEABLE))


def test_a_stack_is_its_blocks_and_its_final_norm(params):
    """Scanned or not, with attention weights collected in the same shape."""
    arguments = (causal_11TT, memory_BSD, padding_B11S)
    y_BTD = x_BTD
    layers = params["params"]["layers"]
    for n in range(DEPTH):
        one = jax.tree.map(lambda p, n=n: p[n], layers)
        y_BTD = by_hand(one, "post", y_BTD, *arguments)
    want_BTD = norm().apply({"params": params["params"]["norm"]}, y_BTD.astype(np.float32))
    sown = []
    for scan in (False, True):
        got, state = jax.jit(functools.partial(stack(scan).apply, mutable=["intermediates"]))(
            params, x_BTD, *arguments
        )
        np.testing.assert_allclose(got[0], want_BTD, atol=1e-4)
        sown.append(state["intermediates"]["layers"][0])
    shapes = {"self_attention": (DEPTH, B, H, T, T), "cross_attention": (DEPTH, B, H, T, S)}
    for name, shape in shapes.items():
        one, other = (s[name]["weights"][0] for s in sown)
        assert one.shape == other.shape == shape
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_what_was_read_of_a_memory_serves_as_well(params):
    """`read` once, then attend: one pair of keys and values a layer."""
    module = stack()
    direct = module.apply(params, x_BTD, causal_11TT, memory_BSD, padding_B11S)[0]
    read = module.apply(params, memory_BSD, method="read")
    assert len(read) == DEPTH and read[0].k_BHSK.shape == (B, H, S, K)
    got = module.apply(params, x_BTD, causal_11TT, read, padding_B11S)[0]
    np.testing.assert_allclose(got, direct, atol=1e-6)


def test_the_parameters_do_not_depend_on_how_layers_are_run():
    trees = [
        jax.eval_shape(stack(s, r).init, KEY, x_BTD, None, memory_BSD)
        for s in (0, 1)
        for r in REMAT
    ]
    shapes = [jax.tree.map(lambda s: (s.shape, s.dtype), nn.unbox(tree)) for tree in trees]
    specs = [nn.get_partition_spec(tree)["params"]["layers"] for tree in trees]
    assert all(s == shapes[0] for s in shapes) and all(s == specs[0] for s in specs)
    assert specs[0]["self_attention"]["query"]["kernel"] == P("N", "D", "H", "K")
    assert specs[0]["feed_forward"]["up"]["bias"] == P("N", "F")
    assert shapes[0]["params"]["layers"]["mlp_norm"]["scale"][0] == (DEPTH, D)


def test_every_layer_starts_as_it_would_alone():
    """Of its own random numbers, and with fans that know nothing of the depth."""
    module = Stack(block(), DEPTH, 64)
    layers = nn.unbox(jax.jit(module.init)(KEY, jnp.zeros((1, 1, 64)), None))["params"]["layers"]
    kernel_NDF, limit = np.asarray(layers["feed_forward"]["up"]["kernel"]), np.sqrt(6 / (64 + F))
    assert 0.9 * limit < np.abs(kernel_NDF).max() <= limit
    assert all(np.abs(kernel_NDF[n] - kernel_NDF[n - 1]).max() > limit for n in range(DEPTH))


# --------------------------------------------------------------------- layerdrop


def test_a_layer_is_skipped_as_often_as_told_and_apart_from_others():
    """Both layers of a stack are skipped with probability rate^2."""
    module = Stack(block(), DEPTH, D, layerdrop=0.6)
    params = drawn(module, x_BTD, None)
    run = lambda key: module.apply(params, x_BTD, None, train=True, rngs={"dropout": key})[0]
    y_RBTD = jax.jit(jax.vmap(run))(jax.random.split(KEY, 4000))
    skipped = (y_RBTD == x_BTD[None]).all((1, 2, 3)).mean()
    rate = 0.6**DEPTH
    assert abs(skipped - rate) < 5 * np.sqrt(rate * (1 - rate) / 4000)


def test_layerdrop_near_one_keeps_the_input_and_evaluation_skips_nothing(params):
    module, arguments = stack(True, layerdrop=1 - 1e-6), (x_BTD, causal_11TT, memory_BSD)
    y_BTD = module.apply(params, *arguments, train=True, rngs={"dropout": KEY})[0]
    want_BTD = norm().apply({"params": params["params"]["norm"]}, x_BTD)
    np.testing.assert_allclose(y_BTD, want_BTD, atol=1e-6)
    evaluated = lambda module: str(jax.make_jaxpr(module.apply)(params, *arguments))
    assert evaluated(module) == evaluated(stack(True, layerdrop=0.0))


def test_unstack_takes_apart_what_was_stacked():
    tree = {"a": normal(3, 2, 4), "b": {"c": normal(3)}}
    parts = unstack(tree, 3)
    for n, part in enumerate(parts):
        np.testing.assert_array_equal(part["a"], tree["a"][n])
        np.testing.assert_array_equal(part["b"]["c"], tree["b"]["c"][n])
