"""The formula is the sum one would write down, and what XLA counts where XLA counts right."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from tfx import flops
from tfx.models.transformer import Config, Transformer

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
