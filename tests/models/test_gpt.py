"""GPT and GPT-2: their size, who sees what, prompts, heads, and Hugging Face's files."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tfx import decode, flops, models
from tfx.lab import parity
from tfx.models import gpt, gpt2, hf
from tfx.objectives import causal_lm, classify, multiple_choice

RANDOM = np.random.default_rng(0)
FIXTURES = Path(__file__).parent.parent / "fixtures/hf"
ROWS, LENGTH, VOCAB = 2, 7, 29
SMALL = dict(width=16, depth=2, heads=2, mlp=64, vocab=VOCAB, max_length=32)
TINY = {"gpt": gpt.Config(**SMALL), "gpt2": gpt2.Config(**SMALL)}
BOTH = pytest.mark.parametrize("family", TINY)
PLACES = pytest.mark.parametrize(
    "family, position",
    [
        ("gpt", "learned"),
        ("gpt2", "learned"),
        ("gpt", "rotary"),
        ("gpt2", "alibi"),
        ("gpt", "t5"),
        ("gpt", "xlnet"),
    ],
)


def drawn(config):
    """A model with random parameters, large enough to matter."""
    model = models.build(config)
    draw = lambda s: 0.4 * RANDOM.standard_normal(s.shape).astype(np.float32)
    return model, {"params": jax.tree.map(draw, nn.unbox(models.shapes(model)))}


@functools.cache
def runner(model):
    return jax.jit(lambda params, batch: model.apply(params, batch, method="predict"))


def predict(model, params, **batch):
    found = runner(model)(params, batch)
    return {name: x.logits() if hasattr(x, "logits") else x for name, x in found.items()}


def ids(*shape):
    return RANDOM.integers(4, VOCAB, shape or (ROWS, LENGTH)).astype(np.int32)


# ------------------------------------------------------------------------- size


@pytest.mark.parametrize(
    "family, size, vocab, parameters",
    [
        (gpt, "base", 40_478, 116_534_784),
        (gpt2, "small", 50_257, 124_439_808),
        (gpt2, "medium", 50_257, 354_823_168),
        (gpt2, "large", 50_257, 774_030_080),
        (gpt2, "xl", 50_257, 1_557_611_200),
        (gpt2, "nano", 65, 10_770_816),
    ],
)
def test_sizes_have_their_parameters(family, size, vocab, parameters):
    """Those that are published; a head that gives logits by the table adds none."""
    for head in ("none", "causal"):
        model = models.build(family.Config(**family.SIZES[size], vocab=vocab, head=head))
        assert sum(s.size for s in jax.tree.leaves(nn.unbox(models.shapes(model)))) == parameters


@BOTH
def test_how_parameters_start(family):
    """Normal, 0.02 wide; GPT-2's positions half as wide, and less the nearer they are to the
    residual, the deeper it is."""
    model = models.build(dataclasses.replace(TINY[family], width=64, mlp=256, depth=8, vocab=300))
    params = jax.jit(lambda key: nn.unbox(models.parameters(model, key)))(jax.random.key(0))
    width = {"positions/embedding": 0.01, "out/kernel": 0.005, "down/kernel": 0.005}
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith(("/bias", "/scale")):
            assert (x == name.endswith("scale")).all(), name
            continue
        special = [std for end, std in width.items() if name.endswith(end) and family == "gpt2"]
        std = special[0] if special else 0.02
        assert 0.9 * std < x.std() < 1.1 * std and abs(x.mean()) < 0.1 * std, name


def test_the_formula_counts_what_xla_counts():
    config = dataclasses.replace(TINY["gpt2"], width=128, mlp=512, vocab=500)
    model, shape = models.build(config), (2, 32)
    logits = lambda params, batch: model.apply(params, batch)
    params, batch = {"params": nn.unbox(models.shapes(model))}, {"ids": ids(*shape)}
    program = jax.jit(logits).lower(params, batch).compile()
    ours = flops.forward(config, (*shape, 0))
    assert 0.97 * ours <= program.cost_analysis()["flops"] <= 1.08 * ours
    # A token alone reads itself and all before; a text at once counts its whole square.
    steps = sum(flops.forward(config, (2, n, 1)) - flops.forward(config, (2, n, 0)) for n in (0, 8))
    per_token = 2 * 2 * (4 * 128**2 + 2 * 128 * 512) * 2
    logits = 2 * 2 * 128 * 500 * (2 - 8)  # of the prompt none are wanted
    assert steps == 2 * per_token + logits + 2 * 2 * 2 * 2 * 128 * (1 + 9)


# ------------------------------------------------------------------------- who sees what


@PLACES
def test_no_token_sees_what_comes_after_it(family, position):
    """By gradient, to the embeddings of the text."""
    model, params = drawn(dataclasses.replace(TINY[family], position=position, tie=False))
    table = params["params"]["embed"]["embedding"]

    def logits(table_VD):
        tree = params["params"] | {"embed": {"embedding": table_VD}}
        found = model.apply({"params": tree}, {"ids": np.arange(LENGTH)[None]})
        return jnp.square(found[0]).sum(-1)

    gradient = jax.jit(jax.jacrev(logits))(table)[:, :LENGTH]
    np.testing.assert_array_equal(np.abs(gradient).max(-1) > 0, np.tri(LENGTH, dtype=bool))


@PLACES
def test_padding_changes_nothing(family, position):
    """Behind a text, before it, or both."""
    model, params = drawn(dataclasses.replace(TINY[family], position=position))
    text, before = ids(3, 5), np.arange(3)[:, None]
    places = np.arange(LENGTH)[None] - before
    mask = (places >= 0) & (places < 5)
    padded = np.where(mask, np.take_along_axis(text, places.clip(0, 4), 1), 0)
    batch = dict(ids=padded, mask=mask.astype(np.int32), positions=places.clip(0, 4))
    logits = predict(model, params, **batch)["logits"]
    logits = np.take_along_axis(logits, (before + np.arange(5)[None])[..., None], 1)
    np.testing.assert_allclose(logits, predict(model, params, ids=text)["logits"], atol=1e-4)


def test_packed_texts_do_not_see_each_other():
    model, params = drawn(TINY["gpt2"])
    stream = np.array([3, 11, 12, 3, 13, 14, 15, 3])
    block = causal_lm.make_example(stream, separator=3)
    packed = predict(model, params, **{key: x[None] for key, x in block.items()})["logits"]
    for first, stop in ((0, 3), (3, 7)):
        alone = predict(model, params, ids=stream[None, first:stop])["logits"]
        np.testing.assert_allclose(packed[:, first:stop], alone, atol=1e-4)


def test_scanned_and_rematerialised_layers_are_the_same_with_their_gradients():
    text, config = ids(), dataclasses.replace(TINY["gpt2"], by_depth=True)
    _, params = drawn(config)

    def found(**changes):
        model = models.build(dataclasses.replace(config, **changes))
        score = lambda params: jnp.square(model.apply(params, {"ids": text})).mean()
        return jax.jit(jax.value_and_grad(score))(params)

    ours, want = (jax.tree.leaves(found(**c)) for c in (dict(scan=True, remat="full"), {}))
    for a, b in zip(ours, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------- decoding


def going_on(model, params, batch, tokens, masks):
    """Logits of each step behind prompts, [T, B, W, V]."""
    apply = functools.partial(model.apply, params)
    rows = len(batch["ids"])
    context = jax.jit(lambda batch: apply(batch, method="start"))(batch)
    step = jax.jit(lambda *arguments: apply(*arguments, method="step"))
    cache, found = model.init_cache(rows, masks.shape[-1]), []
    for t, (tokens_BW, mask_BWS) in enumerate(zip(tokens, masks, strict=True)):
        logits_BWV, cache = step(tokens_BW, cache, t, mask_BWS, context)
        found.append(logits_BWV)
    return np.stack(found)


@PLACES
def test_steps_behind_a_prompt_are_the_parallel_form(family, position):
    """Two hypotheses a row, each of which sees the prompt and its own tokens; prompts of 5 tokens,
    of 3 behind padding and of 3 before it."""
    model, params = drawn(dataclasses.replace(TINY[family], position=position, by_depth=True))
    prompts, more = [ids(5), ids(3), ids(3)], ids(3, 2, 3)
    padded = lambda rows: np.stack([np.pad(x, pad) for x, pad in zip(rows, pads, strict=True)])
    pads = [(0, 0), (2, 0), (0, 2)]
    batch = {"ids": padded(prompts), "mask": padded([np.ones_like(x) for x in prompts])}
    begin = np.array([prompt[-1] for prompt in prompts])
    tokens = [np.tile(begin[:, None], 2), *np.moveaxis(more, 2, 0)]
    slot = np.arange(8)
    own = [(slot // 2 <= t) & (slot % 2 == np.arange(2)[:, None]) for t in range(4)]
    found = going_on(model, params, batch, tokens, np.tile(own, (3, 1, 1, 1)).swapaxes(0, 1))
    for row, w in np.ndindex(3, 2):
        text = np.concatenate([prompts[row], more[row, w]])
        want = predict(model, params, ids=np.pad(text, (0, 8 - len(text)))[None])["logits"]
        want = want[0, len(prompts[row]) - 1 : len(text)]
        np.testing.assert_allclose(found[:, row, w], want, atol=1e-4)


def test_a_search_goes_on_with_the_likeliest_token():
    """Greedy, against the parallel form read again for every token."""
    model, params = drawn(TINY["gpt2"])
    prompts = ids(ROWS, 4)
    apply, limit = functools.partial(model.apply, params), 6

    @jax.jit
    def search(batch):
        return decode.greedy(
            functools.partial(apply, method="step"),
            functools.partial(model.init_cache, ROWS),
            apply(batch, method="start"),
            jnp.full(ROWS, limit),
            limit,
            begin_B=batch["ids"][:, -1],
            ids=decode.OURS._replace(eos=-2, banned=()),
        )

    text = np.pad(prompts, ((0, 0), (0, limit)))
    for n in range(4, 4 + limit):
        text[:, n] = predict(model, params, ids=text)["logits"][:, n - 1].argmax(-1)
    np.testing.assert_array_equal(search({"ids": prompts}).tokens_BWT[:, 0], text[:, 4:])


# ------------------------------------------------------------------------- tasks


@pytest.mark.parametrize("family, head", [("gpt", "classify"), ("gpt2", "choice")])
def test_a_text_is_judged_by_its_last_token(family, head):
    """Whatever stands on either side of it; and the language model is there beside it."""
    model, params = drawn(dataclasses.replace(TINY[family], head=head, classes=3))
    text = ids(6, LENGTH)
    shaped = lambda x: x.reshape((2, 3, -1) if head == "choice" else x.shape)
    found = lambda **batch: predict(model, params, **jax.tree.map(shaped, batch))
    short = found(ids=text[:, :5])
    assert short["logits"].shape == ((2, 3) if head == "choice" else (6, 3))
    assert short["lm"].shape == (6, 5, VOCAB)
    mask = np.tile(np.arange(LENGTH) < 5, (6, 1)).astype(np.int32)
    padded = found(ids=text, mask=mask)
    np.testing.assert_allclose(padded["logits"], short["logits"], atol=1e-4)
    last = np.full(6, 4).reshape((2, 3) if head == "choice" else 6)
    given = predict(model, params, ids=shaped(text), last=last)
    np.testing.assert_allclose(given["logits"], short["logits"], atol=1e-4)


@pytest.mark.parametrize(
    "family, task", [("gpt2", None), ("gpt", classify), ("gpt", multiple_choice)]
)
def test_it_learns_the_objectives_of_its_paper(family, task):
    """Language modelling, and a task with language modelling beside it."""
    head = {None: "causal", classify: "classify", multiple_choice: "choice"}[task]
    rates = dict(dropout=0.0, attention_dropout=0.0, embedding_dropout=0.0, head_dropout=0.0)
    model = models.build(dataclasses.replace(TINY[family], depth=1, head=head, **rates))
    params = jax.jit(lambda key: nn.unbox(models.parameters(model, key)))(jax.random.key(0))
    text = np.arange(48).reshape(4, 2, 6) % 5 + 4
    mask = np.ones_like(text)
    if task is None:
        batch = {"ids": text[..., :-1], "targets": text[..., 1:], "weights": mask[..., 1:] * 1.0}
        batch = {name: x.reshape(8, -1) for name, x in batch.items()}
    else:
        batch = {"ids": text, "mask": mask, "label": np.arange(4) % 2}
        if task is classify:
            batch |= {"ids": text[:, 0], "mask": mask[:, 0]}
    loss = causal_lm.with_task(task.loss) if task else causal_lm.loss
    apply = lambda params, batch, rngs, train: model.apply(
        {"params": params}, batch, train, rngs=rngs, method="predict"
    )

    def mean(params):
        total, weight, sums = loss(apply, params, batch, {"dropout": jax.random.key(1)}, True)
        assert task is None or "lm" in sums
        return total / weight

    step, values = jax.jit(jax.value_and_grad(mean)), []
    for _ in range(25):
        value, gradient = step(params)
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient)
        values.append(float(value))
    assert values[-1] < 0.8 * values[0]


# ------------------------------------------------------------------------- Hugging Face


@pytest.mark.parametrize(
    "family, head", [(f, head) for f in (gpt, gpt2) for head in f.FORMAT.heads]
)
@pytest.mark.parametrize("tie", [True, False])
def test_files_come_back_bit_for_bit(family, head, tie):
    changes = {"head_dropout": 0.1} | family.FORMAT.heads[head] | {"tie": tie}
    changes |= dict(embedding_dropout=0.3, epsilon=1e-3, summary_activation="tanh")
    if family is gpt2:
        changes |= dict(by_depth=True, attention="dot", mlp=24, activation="silu")
    config = dataclasses.replace(family.Config(**SMALL), **changes)
    model, params = drawn(config)
    boxed, has_head = models.shapes(model), head != "Model"
    tensors = hf.to_tensors(family.FORMAT, config, boxed, params["params"], has_head)
    clean, theirs = family.FORMAT.clean(tensors), family.FORMAT.from_config(config)
    found = family.FORMAT.to_config(family.Config, theirs, clean, head)
    assert found == config
    back = hf.from_tensors(family.FORMAT, found, boxed, tensors)
    jax.tree.map(np.testing.assert_array_equal, back, params["params"])
    fused = tensors["transformer." * has_head + "h.1.attn.c_attn.weight"]
    assert fused.shape == (16, 48)
    key = params["params"]["decoder"]["layers"]["self_attention"]["key"]["kernel"][1]
    np.testing.assert_array_equal(fused[:, 16:32].reshape(16, 2, 8), key)


@pytest.mark.parametrize("family, table", [(gpt, "tokens_embed"), (gpt2, "wte")])
def test_one_table_may_have_either_name_and_two_that_differ_are_two(family, table):
    config = family.Config(**SMALL)
    model, params = drawn(config)
    boxed = models.shapes(model)
    tensors = hf.to_tensors(family.FORMAT, config, boxed, params["params"], True)
    theirs, x = family.FORMAT.from_config(config), tensors.pop(f"transformer.{table}.weight")

    def read(**tables):
        clean = family.FORMAT.clean(tensors | {n.replace("__", "."): t for n, t in tables.items()})
        found = family.FORMAT.to_config(family.Config, theirs, clean, "LMHeadModel")
        boxed = models.shapes(models.build(found))
        return found.tie, hf.from_tensors(family.FORMAT, found, boxed, clean)["embed"]["embedding"]

    for tables in ({"lm_head__weight": x}, {f"transformer__{table}__weight": x}):
        tied, found = read(**tables)
        assert tied
        np.testing.assert_array_equal(found, x)
    same, other = ({f"transformer__{table}__weight": x, "lm_head__weight": x + n} for n in (0, 1))
    assert read(**same)[0] and not read(**other)[0]


@pytest.mark.parametrize("family, vocab", [(gpt, 40_478), (gpt2, 50_257)])
def test_what_a_config_does_not_say_is_what_their_class_says(family, vocab):
    found = family.FORMAT.to_config(family.Config, {}, {}, "LMHeadModel")
    assert found == family.Config(vocab=vocab)


@pytest.mark.parametrize(
    "family, theirs, error",
    [
        (gpt, {"afn": "mish"}, "config.json: afn = 'mish': tfx has gelu, relu"),
        (gpt2, {"activation_function": "mish"}, "activation_function = 'mish': tfx has gelu"),
        (gpt2, {"add_cross_attention": True}, "add_cross_attention = true: tfx's GPT-2 reads no"),
        (gpt2, {"summary_type": "attn"}, r"\(summary_type\) = 'attn': tfx has token, first, last"),
    ],
)
def test_what_tfx_has_not_is_refused_by_its_name(family, theirs, error):
    with pytest.raises(ValueError, match=error):
        models.build(family.FORMAT.to_config(family.Config, theirs, {}, "DoubleHeadsModel"))


def test_what_their_gpt_has_not_is_not_written():
    for changes in (dict(activation="gelu"), dict(mlp=60)):
        with pytest.raises(ValueError, match="an mlp of 4 widths; --format=jax writes any"):
            gpt.FORMAT.from_config(dataclasses.replace(TINY["gpt"], **changes))


def test_their_words_for_options():
    read = lambda family, **theirs: family.FORMAT.to_config(family.Config, theirs, {}, "Model")
    assert read(gpt, afn="gelu").activation == "gelu_tanh"  # theirs always is
    assert read(gpt2, activation_function="gelu").activation == "gelu"
    assert read(gpt2, scale_attn_weights=False).attention == "dot"
    assert read(gpt2, n_embd=24, n_inner=None).mlp == 96
    assert read(gpt2, summary_proj_to_labels=False).summary_width == "width"
    assert read(gpt2, summary_use_proj=False).summary_width == "none"


def test_a_class_is_read_off_the_last_id_that_is_no_padding():
    """Whatever the mask; of one row without an id for padding, off the last one."""
    last = lambda text, **about: gpt.batch(about, {"input_ids": np.array(text)})["last"].tolist()
    assert last([[5, 0, 6, 0], [0, 0, 7, 8], [0, 0, 0, 0]], pad_token_id=0) == [2, 3, 0]
    assert last([[5, 0, 6, 0]]) == [3]
    assert last([[[5, 0], [6, 7]]], pad_token_id=0, architectures=["GPT2DoubleHeadsModel"]) == [
        [1, 1]
    ]


def test_positions_that_start_again_begin_another_text():
    """In GPT-2, where there is neither a mask nor a cache."""
    theirs = {"input_ids": ids(1, 5), "position_ids": np.array([[3, 4, 0, 1, 0]])}
    found = gpt2.batch({}, theirs | {"use_cache": False})
    assert found["segments"].tolist() == [[1, 1, 2, 2, 3]]
    for more in ({}, {"use_cache": False, "attention_mask": np.ones((1, 5))}):
        assert "segments" not in gpt2.batch({}, theirs | more)


@pytest.mark.parametrize(
    "folder", ["openai-gpt/OpenAIGPTDoubleHeadsModel", "gpt2/GPT2LMHeadModel_options"]
)
def test_agrees_with_the_reference(folder):
    """Of a few folders; of all in tests/lab/test_parity.py."""
    found = list(parity.check(FIXTURES / folder))
    assert found and not [each for each in found if not each.fits]


def test_what_sees_nothing_is_not_compared():
    """Padding in front, and a loss that counts what is predicted there; all else is."""
    config, mask = TINY["gpt2"], np.array([[0, 0, 1, 1], [1, 1, 1, 1]])
    logits = np.zeros((2, 4, VOCAB))
    labels = np.where(mask, 5, -100)
    hidden = parity.hide(config, {"logits": logits}, {"attention_mask": mask, "labels": labels})
    np.testing.assert_array_equal(np.isnan(hidden["logits"]).all(-1), mask == 0)
    assert np.isnan(hidden["loss"])
    labels[0, 2] = -100  # which the padding before it predicts
    hidden = parity.hide(config, {"logits": logits}, {"attention_mask": mask, "labels": labels})
    np.testing.assert_allclose(hidden["loss"], np.log(VOCAB), rtol=1e-6)
