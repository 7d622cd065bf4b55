"""T5: its sizes, what may know of what, what config.json and old files say, the reference; and its
bias, ALiBi and rotary positions in the stacks of others."""

import dataclasses
import functools
import re
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tfx import flops, models
from tfx.lab import parity
from tfx.models import bert, hf, t5, transformer
from tfx.models.t5 import FORMAT, SIZES, V1_1, Config
from tfx.nn import position

FIXTURES = Path(__file__).parent.parent / "fixtures/hf/t5"
RANDOM = np.random.default_rng(0)
KEY = jax.random.key(0)
SMALL = dict(width=12, depth=2, heads=3, key_width=5, value_width=5, mlp=20, vocab=31)
# Few buckets, so that far is near.
TINY = Config(**SMALL, decoder_depth=1, position_buckets=6, position_furthest=7)
LATER = dataclasses.replace(TINY, **V1_1)
HEADS = ("lm", "none", "encoder", "classify", "tokens", "span")


def ids(*shape):
    return RANDOM.integers(2, 31, shape).astype(np.int32)


def drawn(config):
    """Random parameters, norms' too, which see what is near in the text."""

    def draw(path, box):
        scale = path[-1].key == "scale"
        return RANDOM.normal(scale, 0.4, box.shape).astype(np.float32)

    shapes = nn.unbox(models.shapes(models.build(config)))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def runs(config):
    """Its outputs for a batch, with parameters."""
    apply = functools.partial(models.build(config).apply, method="predict")
    return functools.partial(jax.jit(apply), {"params": drawn(config)})


# ------------------------------------------------------------------------- size


@pytest.mark.parametrize(
    "size, parameters",
    [
        ("small", 60_506_624),
        ("base", 222_903_552),
        ("large", 737_668_096),
        ("3b", 2_851_598_336),
        ("11b", 11_307_321_344),
        ("v1_1-small", 76_961_152),
        ("v1_1-base", 247_577_856),
        ("v1_1-large", 783_150_080),
        ("v1_1-xl", 2_849_757_184),
        ("v1_1-xxl", 11_135_332_352),
    ],
)
def test_every_published_size_has_its_parameters(size, parameters):
    assert size in SIZES and len(SIZES) == 10
    shapes = models.shapes(models.build(Config(**SIZES[size], vocab=32_128, scan=True)))
    assert sum(int(np.prod(x.shape)) for x in jax.tree.leaves(nn.unbox(shapes))) == parameters


def test_parameters_start_as_wide_as_in_the_authors_code():
    config = Config(width=48, heads=4, key_width=32, value_width=32, mlp=300)
    wanted = {
        "target_embed/embedding": 1.0,
        "unembed/embedding": 1.0,
        "decoder/layers/cross_attention/query/kernel": (48 * 32) ** -0.5,
        "encoder/layers/self_attention/key/kernel": 48**-0.5,
        "encoder/layers/self_attention/value/kernel": 48**-0.5,
        "decoder/layers/self_attention/out/kernel": (4 * 32) ** -0.5,
        "encoder/layers/feed_forward/gate/kernel": 48**-0.5,
        "encoder/layers/feed_forward/up/kernel": 48**-0.5,
        "encoder/layers/feed_forward/down/kernel": 300**-0.5,
        "decoder/distance/embedding": 48**-0.5,
    }
    for path, width in wanted.items():
        rule = next(init for rule, init in t5.initial(config).items() if re.search(rule, path))
        assert np.std(rule(KEY, (99, 99))) == pytest.approx(width, rel=0.05), path


def test_the_formula_counts_what_xla_counts():
    config = Config(width=128, depth=2, heads=4, key_width=48, value_width=48, mlp=512, vocab=500)
    for head in ("lm", "encoder"):
        model = models.build(dataclasses.replace(config, head=head, **V1_1))
        text = {name: jnp.ones((4, 24), jnp.int32) for name in model.INPUTS}
        params = {"params": nn.unbox(models.shapes(model))}
        program = jax.jit(functools.partial(model.apply, method="predict"))
        theirs = program.lower(params, text).compile().cost_analysis()["flops"]
        parts = flops.FORMULAS[t5](model.config, (4, 24, 24), 1)
        ours = parts.total() - parts["logits"]  # which are not multiplied out
        assert ours <= theirs <= 1.06 * ours
        assert (parts["logits"] > 0) == (head == "lm")


# ------------------------------------------------------- what may know of what


@pytest.mark.parametrize("position", ["t5", "alibi", "rotary", "learned", "sinusoid"])
def test_no_output_knows_a_later_input(position):
    """By gradient: each target position has an id of its own, and so a row of the table."""
    config = dataclasses.replace(TINY, tie="none", position=position, key_width=6, max_length=9)
    model, params = models.build(config), drawn(config)
    batch = {"source": ids(1, 8), "target_in": RANDOM.permutation(np.arange(2, 31))[None, :7]}

    def outputs(table_VD):
        tree = params | {"target_embed": {"embedding": table_VD}}
        found = model.apply({"params": tree}, batch, method="predict")
        return jnp.square(found["logits"].logits()).sum((0, 2))

    by_row = jax.jit(jax.jacrev(outputs))(params["target_embed"]["embedding"])
    reached_TT = np.abs(by_row).max(-1)[:, batch["target_in"][0]] > 0
    np.testing.assert_array_equal(reached_TT, np.tri(7, dtype=bool))


@pytest.mark.parametrize("position", ["t5", "alibi", "rotary"])
def test_padding_changes_nothing_on_either_side(position):
    """So a text that begins later is read the same: only distances are seen."""
    run = runs(dataclasses.replace(TINY, position=position, key_width=6, value_width=6))
    source, target, ones = ids(2, 5), ids(2, 4), np.ones((2, 5), np.int32)
    want = run({"source": source, "source_mask": ones, "target_in": target})["states"]
    for sides in ((0, 4), (4, 0), (3, 1)):
        padded = {
            key: np.pad(x, ((0, 0), sides), constant_values=key == "source")
            for key, x in (("source", source), ("source_mask", ones))
        }
        got = run(padded | {"target_in": np.pad(target, ((0, 0), (0, 2)))})["states"]
        np.testing.assert_allclose(got[:, :4], want, atol=1e-5)
    late = padded | {"target_in": np.pad(target, ((0, 0), (2, 0)))}
    assert np.abs(run(late)["states"][:, 2:] - want).max() > 1e-3, "padding of a target is seen"
    got = run(late | {"target_mask": np.pad(ones[:, :4], ((0, 0), (2, 0)))})["states"]
    np.testing.assert_allclose(got[:, 2:], want, atol=1e-5)


def test_one_bias_for_all_layers_of_a_stack(monkeypatch):
    config = dataclasses.replace(TINY, depth=4, decoder_depth=3)
    apply = functools.partial(models.build(config).apply, method="predict")
    params, made = {"params": drawn(config)}, []
    bucket = position.bucket
    counted = lambda *a: made.append(a) or bucket(*a)
    monkeypatch.setattr(position, "bucket", counted)
    jax.eval_shape(apply, params, {"source": ids(2, 5), "target_in": ids(2, 4)})
    assert len(made) == 2
    shapes = {name: params["params"][name]["distance"] for name in ("encoder", "decoder")}
    assert jax.tree.map(np.shape, shapes) == {key: {"embedding": (6, 3)} for key in shapes}


def test_scan_is_unrolled():
    batch, params = {"source": ids(2, 6), "target_in": ids(2, 5)}, {"params": drawn(LATER)}

    def states(scan):
        model = models.build(dataclasses.replace(LATER, scan=scan))
        return jax.jit(functools.partial(model.apply, method="predict"))(params, batch)["states"]

    np.testing.assert_allclose(states(True), states(False), atol=1e-5)


def test_dropout_falls_on_embeddings_outputs_weights_inner_layers_and_final_norms(monkeypatch):
    found = []
    bits = lambda key, shape: found.append(shape) or jnp.zeros(shape, jnp.uint32)
    monkeypatch.setattr("tfx.nn.dropout.random_bits", bits)
    model = models.build(dataclasses.replace(TINY, depth=1))
    run = functools.partial(model.apply, train=True, rngs={"dropout": KEY}, method="predict")
    batch = {"source": ids(2, 6), "target_in": ids(2, 5)}
    jax.eval_shape(run, {"params": nn.unbox(models.shapes(model))}, batch)
    assert Counter(found) == {
        (2, 6, 12): 1 + 2 + 1,
        (2, 5, 12): 1 + 3 + 1,
        (2, 6, 20): 1,
        (2, 5, 20): 1,
        (2, 3, 6, 6): 1,
        (2, 3, 5, 5): 1,
        (2, 3, 5, 6): 1,
    }


# ------------------------------------------------------------ cached = uncached

SHAPE = dict(width=12, heads=3, key_width=4, value_width=4, mlp=20, vocab=31)


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        dataclasses.replace(LATER, position="alibi"),
        transformer.Config(**SHAPE, position="t5", position_buckets=6, position_furthest=7),
        transformer.Config(**SHAPE, position="alibi"),
        transformer.Config(**SHAPE, position="rotary"),
    ],
    ids=lambda config: f"{type(config).__module__.rpartition('.')[2]}-{config.position}",
)
def test_decoding_step_by_step_is_teacher_forcing(config):
    """Two hypotheses a sentence, each seeing what it wrote itself."""
    config = dataclasses.replace(config, depth=1)
    model, params = models.build(config), {"params": drawn(config)}
    source, target_BWT, slots = ids(2, 6), ids(2, 2, 9), 2 * 11
    source[1, 4:] = 0
    jit = lambda method: jax.jit(functools.partial(model.apply, params, method=method))
    context, step = jit("start")({"source": source}), jit("step")
    cache, forced = model.init_cache(2, slots), jit("predict")
    batch = {"source": np.repeat(source, 2, 0), "target_in": target_BWT.reshape(4, 9)}
    want_BWTV = forced(batch)["logits"].logits().reshape(2, 2, 9, -1)
    for t in range(9):
        mine_WS = np.arange(slots)[None] % 2 == np.arange(2)[:, None]
        mask_BWS = np.broadcast_to(mine_WS & (np.arange(slots) < 2 * t + 2), (2, 2, slots))
        got_BWV, cache = step(target_BWT[..., t], cache, jnp.int32(t), mask_BWS, context)
        np.testing.assert_allclose(got_BWV, want_BWTV[:, :, t], atol=2e-5)


# -------------------------------------------------------------------- one text


def test_a_text_is_read_at_its_last_end():
    config = dataclasses.replace(TINY, head="classify", classes=3)
    run, text, end = runs(config), ids(2, 5), np.ones((2, 1), np.int32)
    text = np.concatenate([text[:, :2], end, text[:, 2:], end], 1)
    mask = np.ones_like(text)
    want = run({"ids": text, "mask": mask})
    assert want["logits"].shape == (2, 3)
    longer = {key: np.pad(x, ((0, 0), (0, 3))) for key, x in (("ids", text), ("mask", mask))}
    np.testing.assert_allclose(run(longer)["logits"], want["logits"], atol=1e-5)
    named = {
        "source": text,
        "source_mask": mask,
        "target_in": np.pad(text[:, :-1], ((0, 0), (1, 0))),
    }
    np.testing.assert_array_equal(run(named)["logits"], want["logits"])
    cut = run({"ids": text[:, :3], "mask": mask[:, :3]})["states"]
    assert np.abs(cut[:, 2] - want["states"][:, 2]).max() > 1e-3  # the encoder looks ahead


@pytest.mark.parametrize(
    "head, shapes",
    [
        ("encoder", {"states": (2, 6, 12)}),
        ("tokens", {"states": (2, 6, 12), "logits": (2, 6, 4)}),
        ("span", {"states": (2, 6, 12), "start": (2, 6), "end": (2, 6)}),
    ],
)
def test_heads_of_one_text(head, shapes):
    model = models.build(dataclasses.replace(TINY, head=head, classes=4))
    assert model.INPUTS == ("ids",)
    params = {"params": nn.unbox(models.shapes(model))}
    assert ("decoder" in params["params"]) == (head == "span")
    found = jax.eval_shape(
        functools.partial(model.apply, method="predict"), params, {"ids": ids(2, 6)}
    )
    assert jax.tree.map(jnp.shape, found) == shapes


# ------------------------------------------------------------- files of others


def written(config, params):
    """Their config.json and tensors of a model."""
    boxed = models.shapes(models.build(config))
    about = FORMAT.from_config(config)
    return about, hf.to_tensors(FORMAT, config, boxed, params, config.head != "none")


def read(about, tensors, head):
    tensors = FORMAT.clean(tensors)
    config = FORMAT.to_config(Config, about, tensors, head)
    boxed = models.shapes(models.build(config))
    return config, hf.from_tensors(FORMAT, config, boxed, tensors)


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("changes", [{}, V1_1 | dict(start=3, eos=7, epsilon=1e-3)])
def test_written_and_read_again_it_is_the_same_to_the_last_bit(head, changes):
    config = dataclasses.replace(TINY, head=head, classes=2 if head == "span" else 4, **changes)
    if head != "lm":
        config = dataclasses.replace(config, tie="all")  # has no output table
    if head not in ("classify", "tokens"):
        config = dataclasses.replace(config, classes=2)
    params = drawn(config)
    name = next(name for name, said in FORMAT.heads.items() if said == {"head": head})
    again, back = read(*written(config, params), name)
    assert again == config
    same(back, params)


def test_copies_and_unused_tables_of_old_files_are_passed_over():
    params = drawn(TINY)
    about, tensors = written(TINY, params)
    copies = {
        f"{side}.embed_tokens.weight": tensors["shared.weight"] for side in ("encoder", "decoder")
    }
    copies["lm_head.weight"] = tensors["shared.weight"]
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    old = tensors | copies | {unused: np.zeros((6, 3))}
    assert read(about, old, "WithLMHeadModel")[0] == TINY
    same(read(about, old, "WithLMHeadModel")[1], params)
    for gone in ("shared.weight", "encoder.embed_tokens.weight"):
        del old[gone]
        same(read(about, old, "ForConditionalGeneration")[1], params)


@pytest.mark.parametrize(
    "said, own, tie, scaled",
    [
        ({}, False, "all", True),
        (dict(tie_word_embeddings=False), True, "inputs", False),
        # As transformers 5 writes version 1.1 again.
        (dict(tie_word_embeddings=True, scale_decoder_outputs=False), True, "inputs", False),
        (dict(tie_word_embeddings=False, scale_decoder_outputs=True), False, "all", True),
        (dict(tie_word_embeddings=False), False, "all", False),
        (dict(model_type="mt5"), True, "inputs", False),
        (dict(model_type="mt5"), False, "all", False),
    ],
)  # fmt: skip
def test_tables_are_one_where_they_are_and_states_scaled_where_it_is_said(said, own, tie, scaled):
    table = RANDOM.standard_normal((4, 2))
    tensors = {"shared.weight": table, "lm_head.weight": table + own}
    found = t5.special(said, tensors)
    assert (found["tie"], found["scale_output"]) == (tie, scaled)


@pytest.mark.parametrize(
    "said, ours",
    [
        ({}, "relu"),
        (dict(feed_forward_proj="gelu"), "gelu"),
        (dict(feed_forward_proj="gated-gelu"), "geglu_tanh"),
        (dict(feed_forward_proj="gated-gelu", dense_act_fn="gelu", is_gated_act=True), "geglu"),
        (dict(feed_forward_proj="gated-gelu_new"), "geglu_tanh"),
        (dict(feed_forward_proj="gated-silu", dense_act_fn="silu"), "swiglu"),
        (dict(feed_forward_proj="relu", is_gated_act=True), "reglu"),
    ],
)
def test_the_activation_is_what_three_fields_say(said, ours):
    assert t5.activation(said) == ours
    back = FORMAT.from_config(dataclasses.replace(TINY, activation=ours))
    assert t5.activation(back) == ours


@pytest.mark.parametrize(
    "said, message",
    [
        (dict(feed_forward_proj="gated-mish"), '^config.json: feed_forward_proj = "gated-mish": '),
        (dict(feed_forward_proj="gated-tanh"), 'tfx has no gated "tanh", but gelu, relu, silu'),
        (dict(dense_act_fn="mish"), 'tfx has no "mish", but gelu, relu, tanh, silu'),
        (dict(eos_token_id=[1, 2]), r"^config.json: eos_token_id = \[1, 2\]: tfx has one"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(said, message):
    with pytest.raises(ValueError, match=message):
        t5.special(said, {})


def test_too_near_a_furthest_distance_is_refused():
    with pytest.raises(ValueError, match=r"^model.position_furthest = 16: want more than half of"):
        models.build(dataclasses.replace(TINY, position_buckets=32, position_furthest=16))


def test_the_decoder_of_theirs_reads_labels_one_to_the_right():
    labels, source = np.array([[7, 8, -100, 1]]), np.array([[4, 5]])
    about = {"decoder_start_token_id": 2, "pad_token_id": 0}
    found = FORMAT.batch(about, {"input_ids": source, "labels": labels})
    np.testing.assert_array_equal(found["target_in"], [[2, 7, 8, 0]])
    classes = FORMAT.batch(about, {"input_ids": source, "labels": np.array([3])})
    assert "target_in" not in classes


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the reference folders are not there")
def test_a_classifier_agrees_with_the_reference_in_float64():
    """It has all of the model but the logits; the other folders: tests/lab/test_parity.py."""
    found = list(parity.check(FIXTURES / "T5ForSequenceClassification", float64=True))
    assert found and not [each for each in found if not each.fits]


# ------------------------------------------------------ positions in other stacks


@pytest.mark.parametrize("position", ["t5", "alibi", "rotary"])
def test_bert_sees_distances_alone_where_its_config_says_so(position):
    """A text further to the right is the same text; the order of its words still counts."""
    small = dict(width=12, depth=2, heads=3, mlp=20, vocab=31, max_length=16)
    config = bert.Config(**small, position=position, head="none", pooler="none")
    run, text = runs(config), ids(2, 5)
    assert "positions" not in run.args[0]["params"]
    want = run({"ids": text})["states"]
    mask = np.pad(np.ones_like(text), ((0, 0), (6, 2)))
    moved = run({"ids": np.pad(text, ((0, 0), (6, 2))), "mask": mask})["states"]
    np.testing.assert_allclose(moved[:, 6:11], want, atol=2e-5)
    turned = run({"ids": text[:, ::-1]})["states"][:, ::-1]
    # ALiBi's distances are the same both ways: what is read backwards is read the same.
    assert (np.abs(turned - want).max() > 1e-3) == (position != "alibi")
