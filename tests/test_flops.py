"""The formula is the sum one would write down, and what programs do where they can be counted."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax.extend.core import jaxprs_in_params

from tfx import flops, models
from tfx.models.transformer import Config, Transformer
from tfx.objectives import OBJECTIVES

SHAPE = 2, 3, 5  # rows, source, target
SMALL = Config(width=8, depth=1, heads=2, mlp=16, vocab=11)


def test_one_small_model_by_hand():
    encoder = 4 * 2 * (6 * 8 * 8) + 2 * 2 * (2 * 3 * 3 * 8) + 2 * 2 * (6 * 8 * 16)
    own = 4 * 2 * (10 * 8 * 8) + 2 * 2 * (2 * 5 * 5 * 8)
    across = 2 * 2 * (10 * 8 * 8) + 2 * 2 * (6 * 8 * 8) + 2 * 2 * (2 * 5 * 3 * 8)
    mlp, logits = 2 * 2 * (10 * 8 * 16), 2 * (10 * 8 * 11)
    assert flops.forward(SMALL, SHAPE) == encoder + own + across + mlp + logits
    assert flops.training(SMALL, SHAPE) == 3 * flops.forward(SMALL, SHAPE)


def test_sizes_count_where_they_are_used():
    count = lambda **changes: flops.forward(dataclasses.replace(SMALL, **changes), SHAPE)
    assert count(key_width=4, value_width=4) == count()
    assert count(vocab=12) - count() == 2 * 10 * 8
    assert count(activation="swiglu") - count() == 2 * (6 + 10) * 8 * 16
    assert count(activation="geglu_tanh") == count(activation="swiglu")
    assert count(attention="general") - count() == 2 * (6 + 10 + 10) * 2 * 4 * 4
    both, more = count(depth=2), count(depth=2, decoder_depth=1)
    assert both - more == count(depth=1, decoder_depth=2) - count()
    assert count(scan=True, remat="full") == count()


def test_a_search_shares_what_is_made_of_the_source():
    """As many more targets, but keys and values of the source once."""
    rows, source, target = SHAPE
    shared = 2 * 2 * (rows * source * 8 * 8)  # keys and values across, of one layer
    encoder = flops.forward(SMALL, SHAPE) - flops.forward(SMALL, (rows, 0, target))
    assert encoder > shared
    three = flops.forward(SMALL, SHAPE, beams=3)
    steps = lambda beams: flops.forward(SMALL, SHAPE, beams) - flops.forward(SMALL, SHAPE, 0)
    assert three == flops.forward(SMALL, SHAPE, 0) + 3 * steps(1)


def test_remat_repeats_the_layers_or_only_their_attention():
    again = lambda remat: flops.recomputed(dataclasses.replace(SMALL, remat=remat), SHAPE)
    logits = 2 * 10 * 8 * 11
    assert again("none") == 0
    assert again("full") == flops.forward(SMALL, SHAPE) - logits
    assert again("save_names:attention_out") == again("full")  # at most
    assert again("dots") == 2 * 2 * 8 * (2 * 3 * 3 + 2 * 5 * 5 + 2 * 5 * 3)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(key_width=16, value_width=48, decoder_depth=1),
        dict(activation="swiglu", attention="general"),
    ],
)
def test_xla_counts_the_same_in_an_unrolled_forward_pass(changes):
    sizes = dict(width=128, depth=2, heads=4, mlp=512, vocab=1000, dropout=0.0)
    config = Config(**sizes | changes)
    model, shape = Transformer(config), (4, 24, 40)
    batch = {
        name: jax.ShapeDtypeStruct((shape[0], length), jnp.int32)
        for name, length in zip(("source", "target_in"), shape[1:], strict=True)
    }
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), _zeros(batch)))
    program = jax.jit(model.apply).lower(params, batch).compile()
    ours, theirs = flops.forward(config, shape), program.cost_analysis()["flops"]
    assert ours <= theirs <= 1.05 * ours  # theirs has norms, softmax and residuals too


def _zeros(batch):
    return {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in batch.items()}


# ------------------------------------------------------ batches of every family and objective

ROWS, LENGTH, CHOSEN, CHOICES = 2, 24, 4, 3
TEXT = dict(ids="BT", mask="BT")
TAGGED = TEXT | dict(targets="BT", weights="BT")
MASKED = TEXT | dict(masked="BP", targets="BP", weights="BP")
PERMUTED = TEXT | dict(perm_mask="BTT", target_mapping="BPT", targets="BP", weights="BP")
PAIR = dict(source="BT", target_in="BS", target_out="BS", weights="BS")
CHOICE = dict(ids="BCT", mask="BCT", label="B")
LABEL, SPAN = TEXT | dict(label="B"), TEXT | dict(start="B", end="B")
COUNTED = [
    ("transformer", {}, "seq2seq", PAIR),
    ("t5", dict(head="lm"), "text_to_text", PAIR),
    ("t5", dict(head="classify"), "classify", LABEL),
    ("t5", dict(head="span"), "span_qa", SPAN),
    ("t5", dict(head="tokens"), "tag", TAGGED),
    ("bert", dict(head="mlm"), "masked_lm", MASKED),
    ("bert", dict(head="pretraining"), "masked_lm", MASKED | dict(nsp="B")),
    ("bert", dict(head="classify"), "classify", LABEL),
    ("bert", dict(head="choice"), "multiple_choice", CHOICE),
    ("bert", dict(head="mlm"), "causal_lm", TAGGED),  # logits of all, as distillation wants them
    ("roberta", dict(head="mlm"), "masked_lm", MASKED),
    ("roberta", dict(head="tokens"), "tag", TAGGED),
    ("distilbert", dict(head="mlm"), "masked_lm", MASKED),
    ("distilbert", dict(head="span"), "span_qa", SPAN),
    ("gpt", dict(head="causal"), "causal_lm", TAGGED),
    ("gpt2", dict(head="classify"), "classify", LABEL),
    ("gpt2", dict(head="choice"), "multiple_choice", CHOICE),
    ("xlnet", dict(head="lm"), "permutation_lm", PERMUTED),
    ("xlnet", dict(head="choice"), "multiple_choice", CHOICE),
]


def shapes_of(axes):
    """A batch without numbers."""
    sizes = dict(B=ROWS, T=LENGTH, S=LENGTH // 2, P=CHOSEN, C=CHOICES)
    dtype = lambda name: jnp.float32 if name in ("weights", "target_mapping") else jnp.int32
    shape = lambda letters: tuple(sizes[letter] for letter in letters)
    return {name: jax.ShapeDtypeStruct(shape(at), dtype(name)) for name, at in axes.items()}


def products(jaxpr):
    """FLOPs of the matrix products of a jaxpr, and of those inside of its parts."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            summed = math.prod(left[axis] for axis in contracted)
            total += 2 * summed * math.prod(equation.outvars[0].aval.shape)
        inner = map(products, jaxprs_in_params(equation.params))
        total += equation.params.get("length", 1) * sum(inner)
    return total


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("family, settings, objective, axes", COUNTED)
def test_programs_have_the_products_of_the_formula(family, settings, objective, axes, scan):
    """Of the loss, from the batch on: what it leaves out is next to nothing."""
    sizes = dict(width=64, depth=3, heads=4, mlp=256, vocab=500, scan=scan)
    config = models.MODELS[family].Config(**sizes, **settings)
    model, batch = models.build(config), shapes_of(axes)
    apply = lambda params, batch, rngs, train: model.apply(
        {"params": params}, batch, train, rngs=rngs, method="predict"
    )
    loss = OBJECTIVES[objective].loss
    if objective in ("seq2seq", "text_to_text"):
        loss = partial(loss, label_smoothing=0.0, smoothing="uniform", z_loss=0.0)
    program = lambda params, batch: loss(apply, params, batch, None, False)
    found = jax.make_jaxpr(program)(nn.unbox(models.shapes(model)), batch)
    ours = flops.forward(config, flops.shape_of(batch))
    assert ours <= products(found.jaxpr) <= 1.03 * ours


@pytest.mark.parametrize(
    "axes, shape",
    [
        (PAIR, (ROWS, LENGTH, LENGTH // 2)),
        (LABEL, (ROWS, LENGTH, 0)),
        (TAGGED, (ROWS, LENGTH, 0)),
        (CHOICE, (ROWS * CHOICES, LENGTH, 0)),
        (MASKED, (ROWS, LENGTH, CHOSEN)),
        (PERMUTED, (ROWS, LENGTH, CHOSEN)),
    ],
)
def test_batches_have_a_shape(axes, shape):
    assert flops.shape_of(shapes_of(axes)) == shape


def test_every_family_has_a_formula():
    assert {*flops.FORMULAS} == {*models.MODELS.values()}


# --------------------------------------------------------------------------------------- chips


@pytest.mark.parametrize(
    "kind, name",
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "TPU7x"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
    ],
)
def test_chips_are_found_by_what_jax_calls_them(kind, name):
    assert flops.chip(kind) is flops.CHIPS[name]


def test_mfu_is_a_share_of_the_peak_and_unknown_on_a_cpu():
    peak = flops.CHIPS["v5e"].flops
    assert flops.mfu(4 * peak, 2.0, 8, "TPU v5 lite") == pytest.approx(0.25)
    assert flops.mfu(1e12, 1.0, 1, "cpu") is None
