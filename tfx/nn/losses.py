"""Losses: sums over positions, never means. Parts of a batch (micro-batches, devices, hosts)
hold unequal numbers of tokens; only sums add up."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

# How many logits to hold at a time. The logits of a batch are the largest array of a small
# model; on a CPU they are made in parts that stay in its cache.
AT_ONCE = {"cpu": 1 << 21}
AT_ONCE_ELSEWHERE = 1 << 28


def smoothed_targets(vocab: int, smoothing: float, convention: str) -> tuple[float, float, float]:
    """Label smoothing (Szegedy et al., 2016): probability of the target, of every other
    token, and the constant that is taken off the loss.

    "uniform" mixes in the uniform distribution: smoothing / V to all tokens (PyTorch,
    fairseq up to a rescaling). "tensor2tensor" spreads smoothing over the V - 1 others and
    subtracts the entropy of the smoothed distribution, so that a perfect model has loss 0.
    """
    if convention == "uniform":
        return 1 - smoothing + smoothing / vocab, smoothing / vocab, 0.0
    if convention != "tensor2tensor":
        raise ValueError(f"smoothing {convention!r}: choose from uniform, tensor2tensor")
    on, off = 1 - smoothing, smoothing / (vocab - 1)
    entropy = -(on * math.log(on) + (vocab - 1) * off * math.log(off + 1e-20))
    return on, off, entropy


def cross_entropy(
    states_BTD: jax.Array,
    table_VD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    smoothing: float = 0.0,
    convention: str = "uniform",
    z_loss: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Label-smoothed cross-entropy of the logits `states table^T`, which are never held whole.

    Args:
      states_BTD, table_VD: what the logits are the product of; float32 or bfloat16.
      targets_BT: ids in [0, V); outside of it the result is undefined.
      weights_BT: 0 for padding.
      smoothing, convention: see `smoothed_targets`.
      z_loss: factor on the squared log normaliser, which keeps logits from drifting
        (Chowdhery et al., 2022, section 5).

    Returns:
      Sums over positions, float32, in nats: the loss, differentiable with respect to states
      and table; and the plain negative log-likelihood, a metric without a gradient.
    """
    smoothed = smoothed_targets(table_VD.shape[0], smoothing, convention)
    rows = (states_BTD.reshape(-1, states_BTD.shape[-1]), targets_BT.ravel(), weights_BT.ravel())
    return _sums(table_VD, *rows, smoothed, z_loss)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _sums(table_VD, states_RD, targets_R, weights_R, smoothed, z_loss):
    return _in_parts(table_VD, states_RD, targets_R, weights_R, smoothed, z_loss, False)[0]


def _forward(table_VD, states_RD, targets_R, weights_R, smoothed, z_loss):
    sums, gradients = _in_parts(table_VD, states_RD, targets_R, weights_R, smoothed, z_loss, True)
    return sums, jax.tree.map(lambda g, x: g.astype(x.dtype), gradients, (table_VD, states_RD))


def _backward(smoothed, z_loss, gradients, cotangents):
    scale = lambda gradient: (gradient * cotangents[0]).astype(gradient.dtype)
    return *map(scale, gradients), None, None


_sums.defvjp(_forward, _backward)


def _in_parts(table_VD, states_RD, targets_R, weights_R, smoothed, z_loss, gradients: bool):
    """The two sums, and the gradients of the loss: made on the way forward, while each part
    of the logits is at hand, they need no second look at them."""
    count, vocab = states_RD.shape[0], table_VD.shape[0]
    rows = max(AT_ONCE.get(jax.default_backend(), AT_ONCE_ELSEWHERE) // vocab, 64)
    part = functools.partial(_part, table_VD, smoothed, z_loss, gradients)
    if rows >= count or jax.sharding.get_abstract_mesh().size > 1:
        # Over several devices parts would cost a reduction of the table's gradient each.
        return part((states_RD, targets_R, weights_R))
    # Padding goes last: parts that hold nothing else are skipped.
    order_R = jnp.argsort(weights_R <= 0, stable=True)
    inputs = [_cut(x[order_R], rows) for x in (states_RD, targets_R, weights_R)]
    nothing = jax.tree.map(
        jnp.zeros_like, jax.eval_shape(part, jax.tree.map(lambda x: x[0], inputs))
    )

    def add(carry, inputs):
        some = (inputs[2] > 0).any()
        (sums, grads) = lax.cond(some, part, lambda _: nothing, inputs)
        table, states = grads if gradients else (None, None)
        return jax.tree.map(jnp.add, carry, (sums, table)), states

    start = (nothing[0], nothing[1][0] if gradients else None)
    (sums, table), states = lax.scan(add, start, inputs)
    if not gradients:
        return sums, None
    states_RD = states.reshape(-1, states.shape[-1])[jnp.argsort(order_R)]
    return sums, (table, states_RD)


def _cut(x, size: int):
    """Rows in parts of `size`, the last one filled up with zeros."""
    parts = -(-len(x) // size)
    x = jnp.pad(x, [(0, parts * size - len(x))] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(parts, size, *x.shape[1:])


def _part(table_VD, smoothed, z_loss, gradients, inputs):
    states_RD, targets_R, weights_R = inputs
    on, off, constant = smoothed
    # Positions of weight 0 must not poison the sums: 0 * inf is nan.
    states_RD = jnp.where(weights_R[:, None] > 0, states_RD, 0)
    exact = dict(preferred_element_type=jnp.float32)
    logits_RV = jnp.einsum("RD,VD->RV", states_RD, table_VD, **exact)
    normaliser_R = jax.nn.logsumexp(logits_RV, axis=-1)
    target_R = jnp.take_along_axis(logits_RV, targets_R[:, None], -1)[:, 0]
    loss_R = normaliser_R - (on - off) * target_R - constant + z_loss * normaliser_R**2
    if off:
        loss_R -= off * logits_RV.sum(-1)
    sums = (loss_R @ weights_R, (normaliser_R - target_R) @ weights_R)
    if not gradients:
        return sums, None
    scale_R = 1 + 2 * z_loss * normaliser_R
    softmax_RV = jnp.exp(logits_RV - normaliser_R[:, None])
    vocab_RV = lax.broadcasted_iota(jnp.int32, logits_RV.shape, 1)
    wanted_RV = jnp.where(vocab_RV == targets_R[:, None], on, off)
    gradient_RV = weights_R[:, None] * (scale_R[:, None] * softmax_RV - wanted_RV)
    gradient_RV = gradient_RV.astype(states_RD.dtype)
    table_VD, states_RD = (
        jnp.einsum("RD,RV->DV", states_RD, gradient_RV, **exact).T,
        jnp.einsum("RV,VD->RD", gradient_RV, table_VD, **exact),
    )
    return sums, (table_VD, states_RD)


def log_probabilities(
    states_BTD: jax.Array, table_VD: jax.Array, targets_BT: jax.Array
) -> jax.Array:
    """Log-probability of each target under the logits `states table^T`, which are never held whole.

    Args:
      states_BTD, table_VD, targets_BT: as in `cross_entropy`.

    Returns:
      [B, T], float32, in nats.
    """
    rows = (states_BTD.reshape(-1, states_BTD.shape[-1]), targets_BT.ravel())
    count, vocab = targets_BT.size, table_VD.shape[0]
    size = max(AT_ONCE.get(jax.default_backend(), AT_ONCE_ELSEWHERE) // vocab, 64)

    def part(inputs):
        states_RD, targets_R = inputs
        exact = dict(preferred_element_type=jnp.float32)
        logits_RV = jnp.einsum("RD,VD->RV", states_RD, table_VD, **exact)
        target_R = jnp.take_along_axis(logits_RV, targets_R[:, None], -1)[:, 0]
        return target_R - jax.nn.logsumexp(logits_RV, axis=-1)

    if size >= count or jax.sharding.get_abstract_mesh().size > 1:
        return part(rows).reshape(targets_BT.shape)
    cut = functools.partial(_cut, size=size)
    logp_R = lax.map(part, jax.tree.map(cut, rows)).ravel()[:count]
    return logp_R.reshape(targets_BT.shape)


def sum_of_means(*terms: tuple[float, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """One (sum, weight) whose quotient is the sum of several means.

    Papers add means that are taken over different things: over masked tokens and over pairs of
    sentences (BERT), over tokens and over masked tokens (DistilBERT). For terms (c, s, w) the
    result is (w_0 (c_0 s_0 / w_0 + c_1 s_1 / w_1 + ...), w_0). Over the parts of a batch these
    add up to the mean of every term weighted by the parts' w_0: the paper's loss exactly for one
    part, and for several as long as the ratios of their weights are the same.

    A term of weight 0 is left out.
    """
    weight = terms[0][2]
    ratio = lambda w: jnp.where(w > 0, weight / jnp.where(w > 0, w, 1), 0)
    return sum(c * s * ratio(w) for c, s, w in terms), weight


def softmax_cross_entropy(
    logits_BL: jax.Array, targets_B: jax.Array, weights_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of few classes, whose logits are at hand.

    Args:
      logits_BL: of any leading axes, those of targets and weights; -inf where a class cannot be.
      targets_B: in [0, L); outside of it the result is undefined.
      weights_B: 0 for what does not count, whatever its logits.

    Returns:
      Sums, float32: the negative log-likelihood, and how often the likeliest class was right.
    """
    logits_BL = jnp.where(weights_B[..., None] > 0, logits_BL.astype(jnp.float32), 0)
    chosen_B1 = jnp.take_along_axis(jax.nn.log_softmax(logits_BL), targets_B[..., None], -1)
    right_B = logits_BL.argmax(-1) == targets_B
    return -(chosen_B1[..., 0] * weights_B).sum(), (right_B * weights_B).sum()


def distillation(
    student: tuple[jax.Array, jax.Array],
    teacher: tuple[jax.Array, jax.Array],
    weights_BT: jax.Array,
    temperature: float,
) -> jax.Array:
    """The divergence KL(teacher || student) of softened distributions, times temperature^2, which
    keeps the size of its gradient (Hinton et al., 2015, section 2).

    Args:
      student, teacher: states [B, T, D] and table [V, D], each of its own width; the logits are
        their product, of which as little is held at a time as `cross_entropy` holds.
      weights_BT: 0 for padding.

    Returns:
      The sum over positions, float32, differentiable with respect to the student alone.
    """
    rows = lambda x: x.reshape(-1, x.shape[-1])
    inputs = rows(student[0]), lax.stop_gradient(rows(teacher[0])), weights_BT.ravel()
    tables = student[1], lax.stop_gradient(teacher[1])
    part = jax.checkpoint(functools.partial(_divergence, temperature))
    count, held = weights_BT.size, 2 * tables[0].shape[0]
    size = max(AT_ONCE.get(jax.default_backend(), AT_ONCE_ELSEWHERE) // held, 64)
    if size >= count or jax.sharding.get_abstract_mesh().size > 1:
        return part(tables, inputs)
    cut = functools.partial(_cut, size=size)
    add = lambda total, inputs: (total + part(tables, inputs), None)
    return lax.scan(add, jnp.zeros(()), jax.tree.map(cut, inputs))[0]


def _divergence(temperature, tables, inputs):
    *states, weights_R = inputs

    def log_softmax(states_RD, table_VD):
        states_RD = jnp.where(weights_R[:, None] > 0, states_RD, 0)
        exact = dict(preferred_element_type=jnp.float32)
        logits_RV = jnp.einsum("RD,VD->RV", states_RD, table_VD, **exact)
        return jax.nn.log_softmax(logits_RV / temperature)

    student_RV, teacher_RV = map(log_softmax, states, tables)
    divergence_R = (jnp.exp(teacher_RV) * (teacher_RV - student_RV)).sum(-1)
    return temperature**2 * (divergence_R @ weights_R)


def cosine_distance(x_BTD: jax.Array, y_BTD: jax.Array, weights_BT: jax.Array) -> jax.Array:
    """The sum over positions of 1 - cos(x, y), float32: PyTorch's CosineEmbeddingLoss."""
    keep = lambda v: jnp.where(weights_BT[..., None] > 0, v.astype(jnp.float32), 0)
    x_BTD, y_BTD = keep(x_BTD), keep(y_BTD)
    length = lambda v: jnp.sqrt((v * v).sum(-1) + 1e-12)
    cosine_BT = (x_BTD * y_BTD).sum(-1) / (length(x_BTD) * length(y_BTD))
    return ((1 - cosine_BT) * weights_BT).sum()
