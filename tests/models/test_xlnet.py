"""XLNet: its size, who sees what, memory = one long text, and Hugging Face's numbers."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tfx import flops, models
from tfx.lab import parity
from tfx.models import hf, xlnet
from tfx.models.xlnet import SIZES, Config
from tfx.objectives import permutation_lm
from tfx.objectives.inputs import Special

RANDOM = np.random.default_rng(0)
FIXTURES = Path(__file__).parent.parent / "fixtures/hf/xlnet"
ROWS, LENGTH, VOCAB = 2, 7, 29
TINY = Config(width=16, depth=2, heads=2, mlp=24, vocab=VOCAB, max_length=32)


def drawn(config):
    """A model with random parameters, large enough to matter."""
    model = models.build(config)
    draw = lambda s: 0.4 * RANDOM.standard_normal(s.shape).astype(np.float32)
    params = jax.tree.map(draw, nn.unbox(models.shapes(model)))
    return model, {"params": params}


@functools.cache
def runner(model):
    return jax.jit(lambda params, batch: model.apply(params, batch, method="predict"))


def predict(model, params, **batch):
    return runner(model)(params, batch)


def started(config):
    """A model with the parameters that it starts with."""
    model = models.build(config)
    init = jax.jit(lambda key: nn.unbox(models.parameters(model, key)))
    return model, init(jax.random.key(0))


def ids(rows=ROWS, length=LENGTH):
    return RANDOM.integers(4, VOCAB, (rows, length)).astype(np.int32)


def order(length=LENGTH, rows=ROWS):
    """A random order of the tokens of each row: their ranks, and who cannot see whom."""
    rank_BT = np.stack([RANDOM.permutation(length) for _ in range(rows)])
    return rank_BT, (rank_BT[:, :, None] <= rank_BT[:, None]).astype(np.float32)


def at(places_BP, length=LENGTH):
    return np.eye(length, dtype=np.float32)[places_BP]


# ------------------------------------------------------------------------- size


@pytest.mark.parametrize(
    "size, head, parameters",
    [
        ("base", "none", 116_718_336),
        ("base", "lm", 116_718_336 + 32_000),
        ("large", "none", 360_268_800),
        ("large", "lm", 360_268_800 + 32_000),
    ],
)
def test_published_sizes_have_their_parameters(size, head, parameters):
    model = models.build(Config(**SIZES[size], vocab=32_000, head=head))
    assert sum(s.size for s in jax.tree.leaves(nn.unbox(models.shapes(model)))) == parameters


def test_all_starts_normal_but_norms_and_biases_of_layers():
    _, params = started(dataclasses.replace(TINY, width=64, vocab=300, head="beam"))
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith("/bias"):
            assert not x.any(), name
        elif name.endswith("/scale"):
            assert (x == 1).all(), name
        else:
            assert 0.013 < x.std() < 0.027 and abs(x.mean()) < 0.01, name


def test_the_formula_counts_what_xla_counts():
    config = dataclasses.replace(TINY, width=128, mlp=512, vocab=500)
    model, (rows, length, count) = models.build(config), (2, 32, 8)
    batch = {"ids": ids(rows, length), "perm_mask": np.zeros((rows, length, length))}
    two = {"target_mapping": at(RANDOM.integers(0, length, (rows, count)), length)}
    logits = lambda params, batch: model.apply(params, batch, method="predict")["logits"].logits()
    for more, predicted in (({}, 0), (two, count)):
        program = jax.jit(logits).lower({"params": nn.unbox(models.shapes(model))}, batch | more)
        ours = flops.forward(config, (rows, length, predicted))
        assert 0.97 * ours <= program.compile().cost_analysis()["flops"] <= 1.08 * ours


# ------------------------------------------------------------------------- who sees what


POSITIONS = ["xlnet", "rotary", "t5", "alibi", "learned", "sinusoid"]


@pytest.mark.parametrize("position", POSITIONS)
def test_a_target_sees_what_its_order_permits_and_nothing_else(position):
    """By gradient, to the embeddings of the text; whatever the positions are made of."""
    depth = 1 + (position == "xlnet")
    model, params = drawn(dataclasses.replace(TINY, position=position, depth=depth))
    rank_BT, perm_mask = order(rows=1)
    batch = {"perm_mask": perm_mask, "target_mapping": at(np.arange(LENGTH)[None])}
    table = params["params"]["embed"]["embedding"]

    def logits(table_VD):
        params["params"]["embed"]["embedding"] = table_VD
        return model.apply(params, {"ids": np.arange(LENGTH)[None]} | batch, method="predict")

    gradient = jax.jit(jax.jacrev(lambda table_VD: logits(table_VD)["states"][0].sum(-1)))(table)
    seen_TS = np.abs(gradient[:, :LENGTH]).max(-1) > 1e-6
    want_TS = perm_mask[0] == 0
    first = rank_BT[0] == 0  # it may see nothing, and reads the mean of all
    np.testing.assert_array_equal(seen_TS[~first], want_TS[~first])


def test_all_targets_at_once_are_each_predicted_alone():
    """The chain rule: scrambling what comes later in the order changes no prediction, and the
    content stream is what it is without the other."""
    model, params = drawn(TINY)
    rank_BT, perm_mask = order()
    text, types = ids(), RANDOM.integers(0, 3, (ROWS, LENGTH))
    both = dict(ids=text, types=types, perm_mask=perm_mask)
    places_BP = np.argsort(rank_BT, 1)[:, 2:]  # in the order of their ranks
    together = predict(model, params, **both, target_mapping=at(places_BP))
    for p in range(places_BP.shape[1]):
        known = rank_BT < p + 2
        alone = both | dict(ids=np.where(known, text, ids()))
        alone = predict(model, params, **alone, target_mapping=at(places_BP[:, p : p + 1]))
        logits = (found["logits"].logits() for found in (together, alone))
        np.testing.assert_allclose(next(logits)[:, p], next(logits)[:, 0], atol=1e-5)
    content = predict(model, params, **both)
    np.testing.assert_allclose(content["memory"], together["memory"], atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side):
    model, params = drawn(TINY)
    text, types = ids(), RANDOM.integers(0, 2, (ROWS, LENGTH))
    padded = lambda x: np.pad(x, ((0, 0), (3, 0) if side == "left" else (0, 3)))
    pad = {"ids": padded(text), "types": padded(types), "mask": padded(np.ones_like(text))}
    alone = predict(model, params, ids=text, types=types)["states"]
    states = predict(model, params, **pad)["states"]
    states = states[:, 3:] if side == "left" else states[:, :LENGTH]
    np.testing.assert_allclose(states, alone, atol=1e-5)


@pytest.mark.parametrize("head", ["classify", "choice"])
def test_a_text_is_summed_up_by_its_last_token(head):
    model, params = drawn(dataclasses.replace(TINY, head=head, classes=3))
    text, mask = ids(6), (np.arange(LENGTH) < 5).astype(np.int32)
    shaped = lambda x: x.reshape((2, 3, -1) if head == "choice" else x.shape)
    logits = lambda **batch: predict(model, params, **jax.tree.map(shaped, batch))["logits"]
    short = logits(ids=text[:, :5])
    assert short.shape == ((2, 3) if head == "choice" else (6, 3))
    padded = logits(ids=text, mask=np.tile(mask, (6, 1)))
    np.testing.assert_allclose(padded, short, atol=1e-5)


def test_the_second_half_of_a_batch_may_run_backwards():
    model, params = drawn(dataclasses.replace(TINY, bi_data=True))
    text = ids(1)
    states = predict(model, params, ids=np.concatenate([text, text[:, ::-1]]))["states"]
    np.testing.assert_allclose(states[1, ::-1], states[0], atol=1e-5)
    with pytest.raises(ValueError, match="bi_data halves a batch: 3 rows are odd"):
        predict(model, params, ids=ids(3))


# ------------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    "position, scan", [("xlnet", False), ("xlnet", True), ("rotary", False), ("t5", True)]
)
def test_memory_is_one_long_text_whose_start_does_not_see_its_end(position, scan):
    """Of the first segment the reused part is kept; the second one is read by both streams."""
    config = dataclasses.replace(TINY, position=position, reuse=4, scan=scan)
    model, params = drawn(config)
    first, second, (_, perm_mask) = ids(), ids(), order()
    inside = np.zeros((ROWS, LENGTH, LENGTH), np.float32)
    inside[:, :4, 4:] = 1  # what is reused does not see what is not
    kept = predict(model, params, ids=first, perm_mask=inside)["memory"]
    target_mapping = at(RANDOM.integers(0, LENGTH, (ROWS, 3)))
    last = dict(perm_mask=perm_mask, target_mapping=target_mapping)
    short = predict(model, params, ids=second, memory=kept, **last)

    long, hidden = (
        np.concatenate([first[:, :4], second], 1),
        np.zeros((ROWS, 4 + LENGTH, 4 + LENGTH)),
    )
    hidden[:, :4, 4:] = 1
    hidden[:, 4:, 4:] = perm_mask
    places = np.pad(target_mapping, ((0, 0), (0, 0), (4, 0)))
    whole = predict(model, params, ids=long, perm_mask=hidden, target_mapping=places)
    np.testing.assert_allclose(short["states"], whole["states"], atol=2e-5)


def test_a_causal_model_goes_on_from_any_memory():
    model, params = drawn(dataclasses.replace(TINY, causal=True))
    text = ids(length=9)
    whole, kept = predict(model, params, ids=text), np.zeros((ROWS, 2, 0, 16), np.float32)
    for n in range(0, 9, 3):
        part = predict(model, params, ids=text[:, n : n + 3], memory=kept)
        kept = part["memory"]
        np.testing.assert_allclose(part["states"], whole["states"][:, n : n + 3], atol=1e-5)
    assert kept.shape == (ROWS, 2, 9, 16)
    gradient = jax.grad(lambda params: predict(model, params, ids=text)["memory"].sum())(params)
    assert not any(g.any() for g in jax.tree.leaves(gradient))  # it is a constant


@pytest.mark.parametrize(
    "most, reuse, want", [(0, 0, "abcdefg"), (4, 0, "defg"), (4, 2, "bcde"), (2, 2, "de")]
)
def test_what_is_kept_is_the_reused_part_and_then_the_last_of_all(most, reuse, want):
    """Memory abc, text defg: of its first layer, whose input are the embeddings."""
    model, params = drawn(dataclasses.replace(TINY, memory=most, reuse=reuse, depth=1))
    old, text = RANDOM.standard_normal((ROWS, 1, 3, 16)).astype(np.float32), ids(length=4)
    found = predict(model, params, ids=text, memory=old)["memory"]
    new = params["params"]["embed"]["embedding"][text][:, None]
    both = np.concatenate([old, new], 2)
    np.testing.assert_array_equal(found, both[:, :, ["abcdefg".index(one) for one in want]])


def test_scanned_and_rematerialised_layers_are_the_same_with_their_gradients():
    batch = dict(ids=ids(), target_mapping=at(RANDOM.integers(0, LENGTH, (ROWS, 3))))
    batch |= dict(perm_mask=order()[1], memory=RANDOM.standard_normal((ROWS, 2, 3, 16)))
    batch["memory"] = batch["memory"].astype(np.float32)
    _, params = drawn(TINY)

    def found(**changes):
        model = models.build(dataclasses.replace(TINY, **changes))
        score = lambda params: jnp.square(_apply(model, params, batch)["states"]).sum()
        return jax.jit(jax.value_and_grad(score))(params)

    ours, want = (jax.tree.leaves(found(**c)) for c in (dict(scan=True, remat="full"), {}))
    for a, b in zip(ours, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def _apply(model, params, batch):
    rngs = {"dropout": jax.random.key(0)}  # of rate 0
    off = dataclasses.replace(model.config, dropout=0.0, attention_dropout=0.0, mlp_dropout=0.0)
    return xlnet.XLNet(off).apply(params, batch, True, method="predict", rngs=rngs)


# ------------------------------------------------------------------------- tasks


def test_it_learns_the_objective_of_its_paper():
    """The batch of permutation_lm is the batch of XLNet, and its loss falls."""
    special, rng = Special(pad=0, sep=1, cls=2), np.random.default_rng(0)
    text = lambda count: 4 + np.arange(count) % 5
    rest = dict(special=special, starts=np.ones(VOCAB, bool), predictions=6)
    rows = [permutation_lm.make_example(text(12), text(6), text(5), rng, **rest) for _ in range(4)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    model, params = started(dataclasses.replace(TINY, depth=1))
    rngs = {"dropout": jax.random.key(1)}
    apply = lambda params, batch, rngs, train: model.apply(
        {"params": params}, batch, train, rngs=rngs, method="predict"
    )

    def mean(params):
        total, weight, _ = permutation_lm.loss(apply, params, batch, rngs, True)
        return total / weight

    step = jax.jit(jax.value_and_grad(mean))
    first, _ = step(params)
    for _ in range(20):
        value, gradient = step(params)
        params = jax.tree.map(lambda p, g: p - 0.3 * g, params, gradient)
    assert value < 0.8 * first


def test_likely_answers_are_what_known_starts_say():
    model, params = drawn(dataclasses.replace(TINY, head="beam", start_top=3, end_top=2))
    batch = {"ids": ids(), "cls": np.array([6, 2])}
    batch["allowed"] = np.arange(LENGTH)[None] != batch["cls"][:, None]
    found = predict(model, params, **batch)
    probs = jax.nn.softmax(found["start"])
    np.testing.assert_allclose(found["start_probs"], -np.sort(-probs)[:, :3], rtol=1e-6)
    for w in range(3):
        known = predict(model, params, **batch, start=found["start_at"][:, w])
        ends_BT = np.asarray(jax.nn.softmax(known["end"]))
        np.testing.assert_allclose(
            found["end_probs"][:, w::3], -np.sort(-ends_BT)[:, :2], rtol=1e-5
        )
        np.testing.assert_array_equal(found["end_at"][:, w::3], np.argsort(-ends_BT)[:, :2])
    assert (found["start_at"] != batch["cls"][:, None]).all()


# ------------------------------------------------------------------------- Hugging Face


@pytest.mark.parametrize("head", xlnet.FORMAT.heads)
def test_files_come_back_bit_for_bit(head):
    about = dict(clamp=3, reuse=2, causal=True, head_activation="none", activation="gelu_tanh")
    about |= xlnet.FORMAT.heads[head] | dict(tie=head != "LMHeadModel", dropout=0.1)
    config = dataclasses.replace(TINY, **about, key_width=8, value_width=8, max_length=1024)
    model, params = drawn(config)
    boxed, has_head = models.shapes(model), head != "Model"
    tensors = hf.to_tensors(xlnet.FORMAT, config, boxed, params["params"], has_head)
    clean, theirs = xlnet.FORMAT.clean(tensors), xlnet.FORMAT.from_config(config)
    found = xlnet.FORMAT.to_config(Config, theirs, clean, head)
    assert found == dataclasses.replace(config, classes=found.classes)
    back = hf.from_tensors(xlnet.FORMAT, found, boxed, tensors)
    jax.tree.map(np.testing.assert_array_equal, back, params["params"])
    name = "transformer." * has_head + "layer.1.rel_attn.o"
    assert tensors[name].shape == (16, 2, 8)
    kernel = params["params"]["encoder"]["layers"]["self_attention"]["out"]["kernel"][1]
    np.testing.assert_array_equal(np.einsum("dnh->nhd", tensors[name]), kernel)


def test_what_a_config_does_not_say_is_what_their_class_says():
    found = xlnet.FORMAT.to_config(Config, {}, {}, "LMHeadModel")
    assert found == Config(vocab=32_000, memory=512)
    old = dict(n_token=50, hidden_size=32, num_attention_heads=4, attn_type="uni")
    found = xlnet.FORMAT.to_config(Config, old, {}, "LMHeadModel")
    assert (found.vocab, found.width, found.heads, found.causal) == (50, 32, 4, True)


@pytest.mark.parametrize(
    "said, match",
    [
        (dict(attn_type="both"), "attn_type = 'both': tfx has 'bi', 'uni'"),
        (dict(summary_type="attn"), "summary_type = 'attn': tfx has 'last'"),
        (dict(summary_proj_to_labels=True), "summary_proj_to_labels = True"),
    ],
)
def test_what_would_compute_something_else_is_refused(said, match):
    with pytest.raises(ValueError, match=match):
        xlnet.FORMAT.to_config(Config, said, {}, "LMHeadModel")


def test_options_of_relative_positions_are_theirs_alone():
    with pytest.raises(ValueError, match=r"model.clamp = 3 is for position = 'xlnet'"):
        models.build(dataclasses.replace(TINY, clamp=3, position="t5"))


SLOW = {"XLNetLMHeadModel": pytest.mark.slow}  # it learns, too
FOLDERS = [
    pytest.param(path.parent, marks=SLOW.get(path.parent.name, ()), id=path.parent.name)
    for path in sorted(FIXTURES.glob("*/io.npz"))
]


@pytest.mark.parametrize("folder", FOLDERS)
def test_hugging_face_computes_the_same(folder):
    assert not [found for found in parity.check(folder) if not found.fits]
