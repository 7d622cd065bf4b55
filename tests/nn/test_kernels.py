"""Every kernel is the reference, forward and back, under every mask; the right one is chosen."""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfx import sharding
from tfx.nn import kernels
from tfx.nn.attention import attend
from tfx.nn.kernels import KERNELS, Facts, Visible, choose

RANDOM = np.random.default_rng(0)
B, H, K = 2, 2, 8
SCALE = K**-0.5


def normal(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def segments(*rows):
    """[[2, 1], [3]] -> [[1, 1, 2], [1, 1, 1]]; -n stands for n positions of padding."""
    number = lambda row: np.cumsum([size > 0 for size in row]) * (np.array(row) > 0)
    return np.array([np.repeat(number(row), np.abs(row)) for row in rows], np.int32)


def reference(q_BTHK, k_BSHK, v_BSHK, visible, scale):
    scores_BHTS = scale * jnp.einsum("BTHK,BSHK->BHTS", q_BTHK, k_BSHK)
    return attend(scores_BHTS, v_BSHK, visible.mask(q_BTHK.shape[1], k_BSHK.shape[1]))[0]


def agree(kernel, T, S, visible, value_width=K, rows=B, tolerance=2e-5):
    """Outputs, and gradients of all three inputs, are those of the reference."""
    sizes = (rows, T, H, K), (rows, S, H, K), (rows, S, H, value_width), (rows, T, H, value_width)
    *inputs, weight_BTHK = (normal(*size) for size in sizes)

    def both(attention):
        def loss(q_BTHK, k_BSHK, v_BSHK, visible):
            y_BTHK = attention(q_BTHK, k_BSHK, v_BSHK, visible, SCALE)
            return (weight_BTHK * y_BTHK).sum(), y_BTHK

        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*inputs, visible)

    got, want = both(kernel), both(reference)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=tolerance * max(1, np.abs(b).max()))
    return got[1]


# ------------------------------------------------------------------ the mask


def by_hand(query, key, causal, t, s):
    return (
        (key is None or key[s] > 0)
        and (query is None or query[t] == key[s])
        and (not causal or s <= t)
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("given", ["nothing", "padding", "segments"])
def test_a_mask_is_its_rule_position_by_position(given, causal):
    query, key = segments([2, 2, -1], [1, 3, -1]), segments([3, 1, -2], [2, -1, 3])
    visible = {
        "nothing": Visible(causal=causal),
        "padding": Visible(None, key > 0, causal),
        "segments": Visible(query, key, causal),
    }[given]
    rule = {"nothing": (None, None), "padding": (None, key), "segments": (query, key)}[given]
    mask = visible.mask(5, 6)
    if mask is None:
        assert given == "nothing" and not causal
        return
    mask_BTS = np.broadcast_to(mask, (B, 1, 5, 6))[:, 0]
    for b, t, s in np.ndindex(B, 5, 6):
        assert mask_BTS[b, t, s] == by_hand(*(r if r is None else r[b] for r in rule), causal, t, s)


def test_a_mask_of_a_part_is_a_part_of_the_mask():
    whole_11TS = Visible(causal=True).mask(8, 8)
    part_11TS = Visible(causal=True).mask(3, 4, 5 - 2)
    np.testing.assert_array_equal(part_11TS, whole_11TS[:, :, 5:8, 2:6])


# --------------------------------------------------------- agreement, one device

LONG, SHORT = 150, 130  # no multiples of splash's block of 128
SELF = segments([100, 30, -20], [7, 120, -23])
CROSS = segments([60, 60, -10], [100, 20, -10])
NO_KEY = np.array([[0] * SHORT, [1] * SHORT], np.int32)  # a sentence of padding alone
CASES = {
    "all": (LONG, SHORT, Visible()),
    "causal": (LONG, LONG, Visible(causal=True)),
    "padding": (LONG, SHORT, Visible(None, CROSS > 0)),
    "causal padding": (LONG, LONG, Visible(None, SELF > 0, True)),
    "packed": (LONG, LONG, Visible(SELF, SELF)),
    "packed causal": (LONG, LONG, Visible(SELF, SELF, True)),
    "packed cross": (LONG, SHORT, Visible(SELF, CROSS)),
    "no key": (LONG, SHORT, Visible(None, NO_KEY)),
}


@pytest.mark.parametrize("case", CASES)
def test_splash_is_the_reference(case):
    y_BTHK = agree(functools.partial(kernels.splash, interpret=True), *CASES[case])
    if case == "no key":
        assert not np.any(y_BTHK[0]) and np.any(y_BTHK[1])
    if case.startswith("packed"):
        assert not np.any(y_BTHK[SELF == 0])


def test_splash_takes_values_of_another_width():
    agree(functools.partial(kernels.splash, interpret=True), 128, 256, Visible(), value_width=5)


@pytest.mark.parametrize("case", [name for name in CASES if "packed" not in name])
def test_what_cudnn_is_told_is_the_reference(case):
    """By another implementation of the same function; cuDNN itself needs its device."""
    y_BTHK = agree(functools.partial(kernels.cudnn, implementation="xla"), *CASES[case])
    if case == "no key":
        assert not np.any(y_BTHK[0]) and np.any(y_BTHK[1])


# ---------------------------------------------------------- agreement, a mesh

MESHES = [dict(sequence=8), dict(data=2, tensor=2, sequence=2), dict(fsdp=2, sequence=4)]
FEW_SELF, FEW_CROSS = segments([5, 6, -2], [12, 1]), segments([3, 8], [4, 4, -3])
ON_A_MESH = {
    "all": (13, 11, Visible()),
    "causal": (13, 13, Visible(causal=True)),
    "padding": (13, 11, Visible(None, FEW_CROSS > 0)),
    "causal, padding first": (13, 13, Visible(None, FEW_SELF[:, ::-1] > 0, True)),
    "packed causal": (13, 13, Visible(FEW_SELF, FEW_SELF, True)),
    "packed cross": (13, 11, Visible(FEW_SELF, FEW_CROSS)),
    "no key": (16, 16, Visible(None, np.arange(2)[:, None] * np.ones(16, np.int32))),
}


@pytest.mark.parametrize("case", ON_A_MESH)
@pytest.mark.parametrize("sizes", MESHES[:2], ids=str)
def test_a_ring_is_the_reference(sizes, case):
    """Though the sequence does not divide among the devices."""
    with jax.set_mesh(sharding.make_mesh(**{"data": 1} | sizes)):
        y_BTHK = agree(functools.partial(kernels.run, "ring"), *ON_A_MESH[case], value_width=5)
    if case == "no key":
        assert not np.any(y_BTHK[0]) and np.any(y_BTHK[1])


def test_a_ring_passes_shares_to_neighbours_and_gathers_nothing():
    T = 64
    q_BTHK = jax.ShapeDtypeStruct((B, T, H, K), jnp.float32)
    with jax.set_mesh(sharding.make_mesh(data=1, sequence=8)):
        place = jax.NamedSharding(jax.sharding.get_mesh(), jax.P(None, "sequence"))
        loss = lambda *x: kernels.run("ring", *x, Visible(causal=True), SCALE).sum()
        program = jax.jit(jax.grad(loss, (0, 1, 2)), in_shardings=(place,) * 3)
        text = program.lower(*(q_BTHK,) * 3).compile().as_text()
    assert "collective-permute" in text and "all-gather" not in text
    assert f"[{B},{H},{T // 8},{T // 8}]" in text  # scores of two shares, and never
    assert f",{T}]" not in text and f",{T},{H},{K}]" not in text  # of all keys, nor they


def test_a_ring_keeps_its_share_and_no_score():
    """What the backward pass finds grows with the length, not with its square."""
    with jax.set_mesh(sharding.make_mesh(data=1, sequence=8)):
        q_BTHK, k_BSHK, v_BSHK = (normal(1, 32, 1, 4) for _ in range(3))
        run = lambda *x: kernels.run("ring", *x, Visible(causal=True), SCALE)
        kept = jax.tree.leaves(jax.vjp(run, q_BTHK, k_BSHK, v_BSHK)[1])
        assert max(x.size for x in kept) == q_BTHK.size


@pytest.mark.parametrize("name", ["splash", "cudnn"])
def test_kernels_of_one_device_run_on_each_devices_share(monkeypatch, name):
    """Rows over data and fsdp, heads over tensor."""
    shapes = []
    settings = {"splash": dict(interpret=True), "cudnn": dict(implementation="xla")}[name]

    def local(q_BTHK, *rest, **kwargs):
        shapes.append(q_BTHK.shape)
        return getattr(kernels, name)(q_BTHK, *rest, **kwargs, **settings)

    monkeypatch.setitem(KERNELS, name, local)
    length = {"splash": 130, "cudnn": 7}[name]
    keys_BS = np.arange(length)[None] < np.array([[3], [1], [length], [5]])
    with jax.set_mesh(sharding.make_mesh(data=2, fsdp=2, tensor=2)):
        run = functools.partial(kernels.run, name)
        agree(run, length, length, Visible(None, keys_BS, True), rows=4)
    assert {*shapes} == {(1, length, H // 2, K)}


def test_bfloat16_is_summed_in_float32():
    """A ring rounds weights once and the result once, not each sum on its way."""
    inputs = [jnp.asarray(normal(1, 256, 8, K), jnp.bfloat16) for _ in range(3)]
    with jax.set_mesh(sharding.make_mesh(data=1, sequence=8)):
        got = jax.jit(lambda *x: kernels.run("ring", *x, Visible(), SCALE))(*inputs)
    q_BTHK, k_BSHK, v_BSHK = (x.astype(jnp.float32) for x in inputs)
    want = reference(q_BTHK, k_BSHK, v_BSHK, Visible(), SCALE)
    sizes = reference(q_BTHK, k_BSHK, jnp.abs(v_BSHK), Visible(), SCALE)
    assert got.dtype == jnp.bfloat16
    assert np.all(np.abs(got.astype(jnp.float32) - want) <= 2**-8 * (np.abs(want) + sizes) + 1e-5)


# ------------------------------------------------------------------- the choice

GPU = Facts("gpu", "bfloat16", B=8, T=512, S=512, H=8, K=64, value_width=64)
TPU = dataclasses.replace(GPU, backend="tpu")
RING = dataclasses.replace(GPU, backend="cpu", T=8192, S=8192, mesh=(("sequence", 8),))
MESH = (("data", 2), ("fsdp", 2), ("tensor", 4), ("sequence", 1))


@pytest.mark.parametrize(
    "facts, chosen", [(GPU, "cudnn"), (TPU, "splash"), (RING, "ring")], ids=lambda x: str(x)[:25]
)
def test_auto_takes_the_kernel_that_fits_and_says_why_not_the_others(facts, chosen):
    name, reasons = choose("auto", facts)
    assert name == chosen and {*reasons} == {*KERNELS} - {chosen} and all(reasons.values())
    assert choose(chosen, facts) == (chosen, {}) and choose("xla", facts) == ("xla", {})
    assert choose("auto", dataclasses.replace(facts, mesh=facts.mesh or MESH))[0] == chosen


@pytest.mark.parametrize(
    "facts, changes, why",
    [
        (GPU, dict(backend="cpu"), "it is for gpu, this is cpu"),
        (GPU, dict(dtype="float32"), "it takes bfloat16 or float16, not float32"),
        (GPU, dict(K=36, value_width=36), "heads of 36 and 36: .* multiples of 8 up to 128"),
        (GPU, dict(K=136, value_width=136), "heads of 136"),
        (GPU, dict(value_width=32), "heads of 64 and 32"),
        (GPU, dict(packed=True), "packed segments"),
        (GPU, dict(scattered=True), "padding at the end alone"),
        (GPU, dict(mesh=(("sequence", 2),)), "the mesh cuts the sequence into 2"),
        (GPU, dict(mesh=MESH, B=6), "B = 6 does not divide into the 4 parts"),
        (TPU, dict(backend="gpu"), "it is for tpu, this is gpu"),
        (TPU, dict(score="additive"), 'the score "additive" is no plain product'),
        (TPU, dict(dropout=0.1), "attention weights are dropped at rate 0.1"),
        (TPU, dict(mesh=MESH, H=6), "H = 6 does not divide into the 4 parts"),
        (TPU, dict(mesh=(("sequence", 2),)), "the mesh cuts the sequence into 2"),
        (RING, dict(mesh=()), "the mesh does not cut the sequence"),
        (RING, dict(dropout=0.1), "dropped at rate 0.1"),
    ],
)
def test_a_kernel_that_cannot_run_is_refused_with_the_reason(facts, changes, why):
    name = choose("auto", facts)[0]
    changed = dataclasses.replace(facts, **changes)
    chosen, reasons = choose("auto", changed)
    assert chosen == "xla" or (facts, chosen) == (TPU, "cudnn")
    with pytest.raises(ValueError, match=f'^attention kernel "{name}": .*{why}') as error:
        choose(name, changed)
    assert reasons[name] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("facts, short", [(TPU, 127), (RING, 8191)], ids=["splash", "ring"])
def test_a_kernel_that_would_not_pay_is_taken_only_when_asked_for(facts, short):
    name, facts = choose("auto", facts)[0], dataclasses.replace(facts, S=short)
    chosen, reasons = choose("auto", facts)
    assert chosen == "xla" and reasons[name].startswith(f"{short} positions")
    assert choose(name, facts) == (name, {})


@pytest.mark.parametrize("wanted", ["auto", "xla", *KERNELS])
def test_a_call_that_needs_the_scores_has_them_whatever_is_wanted(wanted):
    chosen, reasons = choose(wanted, dataclasses.replace(GPU, needs_scores="its mask is explicit"))
    assert chosen == "xla" and reasons == dict.fromkeys(KERNELS, "its mask is explicit")


def test_facts_are_those_of_the_arrays_and_of_the_mesh_in_use():
    q_BTHK, k_BSHK, v_BSHK = (jnp.ones(s) for s in ((2, 3, 4, 5), (2, 6, 4, 5), (2, 6, 4, 7)))
    alone = kernels.facts_of(q_BTHK, k_BSHK, v_BSHK, Visible(), dropout=0.5)
    assert alone == Facts("cpu", "float32", 2, 3, 6, 4, 5, 7, dropout=0.5)
    packed = Visible(jnp.ones((2, 3)), jnp.ones((2, 6)))
    with jax.set_mesh(sharding.make_mesh(data=2, tensor=4)):
        facts = kernels.facts_of(q_BTHK, k_BSHK, v_BSHK, packed)
    assert facts.packed and dict(facts.mesh) == dict(data=2, fsdp=1, tensor=4, sequence=1)
    assert facts.backend == "cpu"


def test_a_choice_is_logged_once(caplog):
    kernels.say.cache_clear()
    with caplog.at_level(logging.INFO, "tfx"):
        for facts in (GPU, GPU, dataclasses.replace(GPU, B=16), TPU):
            chosen, reasons = choose("auto", facts)
            kernels.say(chosen, tuple(reasons.items()))
        kernels.say("ring", ())
    assert [m.partition(" (")[0].split()[-1] for m in caplog.messages] == [
        "cudnn",
        "splash",
        "ring",
    ]
    assert "no splash: it is for tpu, this is gpu; no ring: " in caplog.messages[0]
