"""Losses against their formulas, and hand-written gradients against autodiff."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfx.nn import losses
from tfx.nn.losses import cross_entropy, smoothed_targets

FIXTURE = np.load(Path(__file__).parent.parent / "fixtures/numerics.npz")
RANDOM = np.random.default_rng(0)
B, T, D, V = 3, 5, 4, 11
states_BTD = RANDOM.standard_normal((B, T, D)).astype(np.float32)
table_VD = RANDOM.standard_normal((V, D)).astype(np.float32)
targets_BT = RANDOM.integers(0, V, (B, T))
weights_BT = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0.5, 2, 1, 1, 0]], np.float32)
SETTINGS = [
    (0.0, "uniform", 0.0),
    (0.1, "uniform", 0.0),
    (0.3, "uniform", 1e-2),
    (0.0, "tensor2tensor", 0.0),
    (0.3, "tensor2tensor", 1e-2),
]


def plain(states, table, targets, weights, smoothing, convention, z_loss, np=np):
    """Both sums, one formula a line."""
    logits = states @ table.T
    vocab = logits.shape[-1]
    normaliser = np.log(np.exp(logits).sum(-1, keepdims=True))
    log, target = logits - normaliser, np.eye(vocab)[targets]
    if convention == "uniform":
        wanted, constant = (1 - smoothing) * target + smoothing / vocab, 0.0
    else:
        off = smoothing / (vocab - 1)
        wanted = (1 - smoothing) * target + off * (1 - target)
        constant = -(1 - smoothing) * np.log(1 - smoothing)
        constant -= smoothing * np.log(off) if smoothing else 0.0
    loss = -(wanted * log).sum(-1) - constant + z_loss * normaliser[..., 0] ** 2
    return (weights * loss).sum(), (weights * -(target * log).sum(-1)).sum()


def agree(arguments, settings):
    """Sums with float64, and the gradient of a multiple of the loss with autodiff."""

    def of(f, **kwargs):
        def scaled(states, table, targets, weights):
            loss, nll = f(states, table, targets, weights, *settings, **kwargs)
            return 0.7 * loss, (loss, nll)

        return jax.jit(jax.grad(scaled, (0, 1), has_aux=True))(*arguments)

    (got, sums), (want, _) = of(cross_entropy), of(plain, np=jnp)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()))
    exact = plain(*(x.astype(float) for x in arguments[:2]), *arguments[2:], *settings)
    np.testing.assert_allclose(sums, exact, rtol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS)
def test_sums_and_gradients_are_those_of_the_formula(settings):
    agree((states_BTD, table_VD, targets_BT, weights_BT), settings)


def test_parts_are_the_whole(monkeypatch):
    """Logits made 64 rows at a time: the last part is not full, and two hold padding only."""
    monkeypatch.setattr(losses, "AT_ONCE", {})
    monkeypatch.setattr(losses, "AT_ONCE_ELSEWHERE", 1)
    states = RANDOM.standard_normal((6, 50, D)).astype(np.float32)
    targets, weights = RANDOM.integers(0, V, (6, 50)), RANDOM.random((6, 50)).astype(np.float32)
    weights[1:4] = weights[5, 3:7] = 0
    arguments = (states, table_VD, targets, weights)
    assert "scan" in str(jax.make_jaxpr(cross_entropy)(*arguments))
    agree(arguments, (0.1, "tensor2tensor", 1e-2))
    nothing = jax.jit(cross_entropy)(*arguments[:3], np.zeros_like(weights))
    np.testing.assert_array_equal(nothing, 0)


def logits_entropy(logits, targets, weights, *settings):
    """Of logits, which are a product with the identity."""
    return cross_entropy(logits, jnp.eye(logits.shape[-1]), targets, weights, *settings)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("convention", ["uniform", "tensor2tensor"])
def test_agrees_with_torch(convention, smoothing):
    logits, targets = FIXTURE["smoothing/in/logits"], FIXTURE["smoothing/in/targets"]
    one = lambda weights: logits_entropy(
        logits[None], targets[None], weights[None], smoothing, convention
    )
    want = FIXTURE[f"smoothing/out/{convention}_{smoothing}"]
    np.testing.assert_allclose(jax.vmap(one)(jnp.eye(6))[0], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("convention", ["uniform", "tensor2tensor"])
def test_smoothed_targets_are_a_distribution_which_minimises_the_loss(convention):
    on, off, constant = smoothed_targets(V, 0.2, convention)
    assert on + (V - 1) * off == pytest.approx(1)
    best_BTV = np.log(np.where(np.eye(V)[targets_BT] > 0, on, off)).astype(np.float32)
    of = lambda logits_BTV: logits_entropy(logits_BTV, targets_BT, weights_BT, 0.2, convention)[0]
    loss, gradient = jax.value_and_grad(of)(best_BTV)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    entropy = -(on * np.log(on) + (V - 1) * off * np.log(off))
    assert loss == pytest.approx((entropy - constant) * weights_BT.sum(), abs=1e-4)
    assert (abs(loss) < 1e-4) == (convention == "tensor2tensor")


@pytest.mark.parametrize("rubbish", [np.inf, -np.inf, np.nan])
def test_what_stands_at_padding_poisons_neither_sums_nor_gradients(rubbish):
    poisoned_BTD = np.where(weights_BT[..., None] > 0, states_BTD, np.float32(rubbish))
    poisoned_BTD[1, 3, 2] = 0
    of = lambda *x: cross_entropy(*x, targets_BT, weights_BT, 0.1, "uniform", 0.01)[0]
    differentiate = jax.jit(jax.value_and_grad(of, (0, 1)))
    got, want = differentiate(poisoned_BTD, table_VD), differentiate(states_BTD, table_VD)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
    for a, b in zip(got[1], want[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert not np.any(got[1][0][weights_BT == 0])


def test_sums_of_micro_batches_add_up():
    """Which hold unequal numbers of tokens."""
    arguments = (states_BTD, targets_BT, weights_BT)
    sums = jax.jit(lambda states, *rest: jnp.array(cross_entropy(states, table_VD, *rest, 0.1)))
    parts = [sums(*(x[i : i + 1] for x in arguments)) for i in range(B)]
    np.testing.assert_allclose(np.sum(parts, 0), sums(*arguments), rtol=1e-6)


def test_large_logits_stay_finite():
    sums = cross_entropy(states_BTD * 1e4, table_VD, targets_BT, weights_BT, 0.1, "uniform", 1e-4)
    assert np.isfinite(sums).all()


def test_bfloat16_states_give_float32_sums_and_bfloat16_gradients():
    states, table = (jnp.asarray(x, jnp.bfloat16) for x in (states_BTD, table_VD))
    of = lambda *x: cross_entropy(*x, targets_BT, weights_BT, 0.1)[0]
    loss, gradients = jax.jit(jax.value_and_grad(of, (0, 1)))(states, table)
    assert loss.dtype == jnp.float32 and {g.dtype for g in gradients} == {jnp.dtype(jnp.bfloat16)}
    exact = of(states.astype(jnp.float32), table.astype(jnp.float32))
    np.testing.assert_allclose(loss, exact, rtol=1e-5)


def test_the_plain_log_likelihood_is_a_metric_without_a_gradient():
    of = lambda states: cross_entropy(states, table_VD, targets_BT, weights_BT, 0.1)[1]
    assert not np.any(jax.grad(of)(states_BTD))


def test_an_unknown_convention_is_refused():
    with pytest.raises(ValueError, match=r"'eps'.*uniform, tensor2tensor"):
        cross_entropy(states_BTD, table_VD, targets_BT, weights_BT, 0.1, "eps")


# Losses of few classes, of a teacher, of states; and how means become one sum.


def test_a_sum_of_means_is_one_quotient():
    total, weight = losses.sum_of_means((1.0, 6.0, 4.0), (0.5, 9.0, 3.0), (2.0, 0.0, 0.0))
    assert float(total / weight) == 6 / 4 + 0.5 * 9 / 3 and weight == 4
    gradient = jax.grad(lambda x: losses.sum_of_means((1.0, x, 4.0), (1.0, x, 0.0))[0])(1.0)
    assert gradient == 1
    # Parts with the same ratio of weights add up to the whole.
    parts = [losses.sum_of_means((1.0, s, 2.0), (0.5, s, 1.0)) for s in (3.0, 5.0)]
    whole = losses.sum_of_means((1.0, 8.0, 4.0), (0.5, 8.0, 2.0))
    np.testing.assert_allclose(np.sum(parts, 0), whole)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_few_classes(dtype):
    logits_BTL = jnp.asarray(RANDOM.standard_normal((B, T, 4)), dtype)
    classes_BT = RANDOM.integers(0, 4, (B, T))
    nll, correct = losses.softmax_cross_entropy(logits_BTL, classes_BT, weights_BT)
    exact = np.asarray(logits_BTL, float)
    log = exact - np.log(np.exp(exact).sum(-1, keepdims=True))
    chosen = np.take_along_axis(log, classes_BT[..., None], -1)[..., 0]
    np.testing.assert_allclose(nll, -(chosen * weights_BT).sum(), rtol=1e-5)
    np.testing.assert_allclose(correct, ((exact.argmax(-1) == classes_BT) * weights_BT).sum())
    assert nll.dtype == jnp.float32


def test_classes_that_cannot_be_and_rows_that_do_not_count():
    logits_BL = jnp.array([[1.0, -jnp.inf, 2.0], [jnp.nan, jnp.inf, 0.0]])
    run = lambda x: losses.softmax_cross_entropy(x, jnp.array([2, 0]), jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(run(logits_BL), [np.log(1 + np.exp(-1)), 1], rtol=1e-6)
    gradient = jax.grad(lambda x: run(x)[0])(logits_BL)
    assert np.isfinite(gradient).all() and not gradient[1].any() and gradient[0, 1] == 0


def plain_divergence(student, teacher, weights, temperature, np=np):
    def log_softmax(states, table):
        logits = states @ table.T / temperature
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    p, q = log_softmax(*teacher), log_softmax(*student)
    return temperature**2 * ((np.exp(p) * (p - q)).sum(-1) * weights).sum()


@pytest.mark.parametrize("count, at_once", [(5, 1 << 20), (50, 1)])
def test_divergence_and_its_gradient_whole_or_in_parts(monkeypatch, count, at_once):
    """In parts: 64 rows at a time, of 150; the last part is not full."""
    monkeypatch.setattr(losses, "AT_ONCE", {})
    monkeypatch.setattr(losses, "AT_ONCE_ELSEWHERE", at_once)
    draw = lambda *shape: RANDOM.standard_normal(shape).astype(np.float32)
    student, teacher = (draw(B, count, D), table_VD), (draw(B, count, 6), draw(V, 6))
    weights = (RANDOM.random((B, count)) < 0.7).astype(np.float32)

    def of(f, **kwargs):
        scaled = lambda student, teacher: 0.7 * f(student, teacher, weights, 2.0, **kwargs)
        return jax.jit(jax.value_and_grad(scaled, (0, 1)))(student, teacher)

    (got, gradients), (want, wanted) = of(losses.distillation), of(plain_divergence, np=jnp)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for a, b in zip(gradients[0], wanted[0], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()))
    assert not any(g.any() for g in gradients[1])
    program = str(
        jax.make_jaxpr(losses.distillation, static_argnums=3)(student, teacher, weights, 2.0)
    )
    assert ("scan" in program) == (at_once == 1)


def test_padding_poisons_no_divergence_and_no_cosine():
    rubbish_BTD = np.where(weights_BT[..., None] > 0, states_BTD, np.float32(np.nan))
    teacher = rubbish_BTD[::-1, ::-1], table_VD
    teacher = (np.nan_to_num(teacher[0]), table_VD)
    run = lambda x: losses.distillation((x, table_VD), teacher, weights_BT, 2.0)
    alike = lambda x: losses.cosine_distance(x, states_BTD[::-1], weights_BT)
    for of in (run, alike):
        got, want = (jax.value_and_grad(of)(x) for x in (rubbish_BTD, states_BTD))
        np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
        np.testing.assert_allclose(got[1], want[1], atol=1e-6)


def test_cosine_distance():
    x, y = states_BTD, states_BTD[:, ::-1]
    cosine = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
    got = losses.cosine_distance(x, y, weights_BT)
    np.testing.assert_allclose(got, ((1 - cosine) * weights_BT).sum(), rtol=1e-5)
    np.testing.assert_allclose(losses.cosine_distance(x, 3 * x, weights_BT), 0, atol=1e-5)
    np.testing.assert_allclose(
        losses.cosine_distance(x, -x, weights_BT), 2 * weights_BT.sum(), rtol=1e-5
    )
    still = jax.grad(lambda x: losses.cosine_distance(x, states_BTD, weights_BT))(0 * x)
    assert np.isfinite(still).all()
