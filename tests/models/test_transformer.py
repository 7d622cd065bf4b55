"""The paper's model: its size, what may know of what, cached = uncached, and PyTorch's numbers."""

import dataclasses
import functools
import typing
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from tfx import models, optim, sharding
from tfx.models.transformer import SIZES, Config, Transformer, check
from tfx.nn.kernels import KERNELS
from tfx.nn.losses import cross_entropy
from tfx.schema import Optim

FIXTURES = Path(__file__).parent.parent / "fixtures"
RANDOM = np.random.default_rng(0)
KEY = jax.random.key(0)
WIDTH, HEADS, VOCAB = 16, 4, 29
TINY = Config(width=WIDTH, depth=2, heads=HEADS, mlp=32, vocab=VOCAB, max_length=32, scan=True)


def ids(rows, length, pad_from=None):
    """Random ids; in row n all from position pad_from[n] on is padding."""
    made = RANDOM.integers(4, VOCAB, (rows, length)).astype(np.int32)
    ends = length if pad_from is None else np.array(pad_from)[:, None]
    return np.where(np.arange(length) < ends, made, 0)


def shapes_of(config, boxed=False):
    one = np.ones((1, 1), np.int32)
    tree = jax.eval_shape(Transformer(config).init, KEY, {"source": one, "target_in": one})
    return tree if boxed else nn.unbox(tree)


def drawn(config):
    """Random parameters of unit gain: biases, and norms that are not the identity."""

    def draw(path, s):
        fan = 1 if len(s.shape) < 3 else WIDTH
        return (RANDOM.standard_normal(s.shape) * 0.7 * fan**-0.5).astype(np.float32) + (
            path[-1].key == "scale"
        )

    return jax.tree_util.tree_map_with_path(draw, shapes_of(config))


# ------------------------------------------------------------------------- size


def count(config):
    return sum(int(np.prod(s.shape)) for s in jax.tree.leaves(shapes_of(config)))


def formula(c):
    """Parameters by the paper's table, written out."""
    d, f, h, depth = c.width, c.mlp, c.heads, c.decoder_depth or c.depth
    k, v = c.key_width or d // h, c.value_width or d // h
    attention = 2 * d * h * (k + v) + (h * (2 * k + v) + d) * c.attention_bias
    mlp, norm = d * f + f + f * d + d, 2 * d
    encoder, decoder = attention + mlp + 2 * norm, 2 * attention + mlp + 3 * norm
    tables = {
        "all": c.vocab,
        "decoder": c.vocab + c.source_vocab,
        "none": 2 * c.vocab + c.source_vocab,
    }
    positions = 2 * c.max_length * d * (c.position == "learned")
    return c.depth * encoder + depth * decoder + tables[c.tie] * d + positions


@pytest.mark.parametrize("size", SIZES)
def test_every_row_of_the_papers_table_has_its_parameters(size):
    config = Config(**SIZES[size], vocab=37_000, scan=True)
    assert count(config) == formula(config)


@pytest.mark.parametrize(
    "size, bias, parameters",
    [
        ("base", True, 63_082_496),
        ("base", False, 63_045_632),
        ("big", True, 214_245_376),
        ("big", False, 214_171_648),
    ],
)
def test_base_and_big_at_37000_pieces(size, bias, parameters):
    config = Config(**SIZES[size], vocab=37_000, attention_bias=bias, scan=True)
    assert count(config) == formula(config) == parameters


@pytest.mark.parametrize("tie, tables", [("all", 1), ("decoder", 2), ("none", 3)])
def test_untied_embeddings_are_tables_of_their_own(tie, tables):
    source = 0 if tie == "all" else 31
    config = dataclasses.replace(TINY, tie=tie, source_vocab=source, decoder_depth=1)
    assert count(config) == formula(config)
    names = [name for name in shapes_of(config)["params"] if name.endswith("embed")]
    assert len(names) == tables


@pytest.mark.parametrize(
    "changes, more",
    [
        (dict(norm="pre"), 2 * 2 * 16),  # final norms
        (dict(norm_kind="rms"), -2 * (2 + 3) * 16),  # no biases
        (dict(activation="swiglu"), 4 * (16 * 32 + 32)),  # gates
        (dict(attention="general"), 6 * 4 * 4 * 4),
        (dict(attention="additive"), 6 * 4 * 4),
        (dict(position="none", scale_embeddings=False, remat="full", dropout=0.5), 0),
    ],
)
def test_each_choice_costs_what_it_must(changes, more):
    assert count(dataclasses.replace(TINY, **changes)) == formula(TINY) + more


def test_parameters_remember_their_axes():
    specs = nn.get_partition_spec(
        shapes_of(dataclasses.replace(TINY, position="learned"), boxed=True)
    )
    shapes = shapes_of(dataclasses.replace(TINY, position="learned"))
    sizes = {"N": 2, "D": 16, "H": 4, "K": 4, "F": 32, "V": 29, "S": 32}
    jax.tree.map(
        lambda s, p: [sizes[a] for a in p] == list(s.shape) or pytest.fail(str(p)), shapes, specs
    )


# ------------------------------------------------------- what may know of what


@pytest.fixture(scope="module")
def tiny():
    """Logits of a batch, compiled, of a model that all these tests share."""
    params = drawn(TINY)
    return functools.partial(jax.jit(Transformer(TINY).apply), params)


def test_no_output_knows_a_later_input():
    """By gradient: each target position has an id of its own, and so a row of the table."""
    config = dataclasses.replace(TINY, tie="none")
    model, params = Transformer(config), drawn(config)
    batch = {"source": ids(1, 8), "target_in": RANDOM.permutation(np.arange(4, VOCAB))[None, :7]}

    def outputs(table_VD):
        tree = params["params"] | {"target_embed": {"embedding": table_VD}}
        return jnp.square(model.apply({"params": tree}, batch)).sum((0, 2))

    table_VD = params["params"]["target_embed"]["embedding"]
    by_row = jax.jit(jax.jacrev(outputs))(table_VD)
    reached_TT = np.abs(by_row).max(-1)[:, batch["target_in"][0]] > 0
    np.testing.assert_array_equal(reached_TT, np.tri(7, dtype=bool))


def test_padding_changes_nothing_on_either_side(tiny):
    source, target = ids(3, 5), ids(3, 4)
    pad = lambda x, length: np.pad(x, ((0, 0), (0, length - x.shape[1])))
    short = tiny({"source": source, "target_in": target})
    long = tiny({"source": pad(source, 8), "target_in": pad(target, 7)})
    assert short.shape == (3, 4, VOCAB) and short.dtype == jnp.float32
    np.testing.assert_allclose(long[:, :4], short, atol=1e-5)


def test_rows_of_a_batch_know_nothing_of_each_other(tiny):
    batch = {"source": ids(3, 8, [8, 3, 1]), "target_in": ids(3, 7, [2, 7, 5])}
    order = np.array([2, 0, 1])
    other = tiny({k: x[order] for k, x in batch.items()})
    np.testing.assert_allclose(other, tiny(batch)[order], atol=1e-5)


def test_packed_sentences_are_as_if_alone(tiny):
    """Two sentences a row, positions restarting, padding at the end."""
    lengths = {"source": ([5, 2, 1], [3, 4, 6]), "target": ([3, 1, 4], [4, 4, 2])}
    packed, alone = {}, ({}, {})
    for side, name, length in (("source", "source", 8), ("target", "target_in", 7)):
        rows, segments, positions = np.zeros((3, 3, length), np.int32)
        for n, parts in enumerate(zip(*lengths[side], strict=True)):
            start = 0
            for part, size in enumerate(parts):
                sentence = alone[part].setdefault(name, np.zeros((3, length), np.int32))
                sentence[n, :size] = rows[n, start : start + size] = ids(1, size)[0]
                segments[n, start : start + size] = part + 1
                positions[n, start : start + size] = np.arange(size)
                start += size
        packed |= {name: rows, f"{side}_segments": segments, f"{side}_positions": positions}
    together = tiny(packed)
    for part, batch in enumerate(alone):
        logits = tiny(batch)
        for n, size in enumerate(lengths["target"][part]):
            start = part * lengths["target"][0][n]
            np.testing.assert_allclose(
                together[n, start : start + size], logits[n, :size], atol=1e-5
            )


def test_bfloat16_is_of_activations_only(tiny):
    config = dataclasses.replace(TINY, dtype="bfloat16")
    model, (params,) = Transformer(config), tiny.args
    assert {s.dtype for s in jax.tree.leaves(shapes_of(config))} == {np.dtype("float32")}
    batch = {"source": ids(3, 8), "target_in": ids(3, 7)}
    predict = functools.partial(model.apply, method="predict")
    factors = jax.tree.leaves(jax.eval_shape(predict, params, batch))
    assert {x.dtype for x in factors} == {jnp.dtype("bfloat16")}
    logits_BTV, exact_BTV = jax.jit(model.apply)(params, batch), tiny(batch)
    assert logits_BTV.dtype == jnp.float32
    assert 0 < np.abs(logits_BTV - exact_BTV).max() < 0.1 * np.abs(exact_BTV).max()


@pytest.mark.parametrize(
    "rate, sites",
    [
        # The sums of embeddings and positions, and the output of every attention and mlp.
        ("dropout", {(2, 6, WIDTH): 1 + 2, (2, 5, WIDTH): 1 + 3}),
        ("attention_dropout", {(2, 4, 6, 6): 1, (2, 4, 5, 5): 1, (2, 4, 5, 6): 1}),
        ("mlp_dropout", {(2, 6, 32): 1, (2, 5, 32): 1}),
    ],
)
def test_dropout_falls_on_the_papers_sites_and_on_those_asked_for(monkeypatch, rate, sites):
    drawn_for = []
    bits = lambda key, shape: drawn_for.append(shape) or jnp.zeros(shape, jnp.uint32)
    monkeypatch.setattr("tfx.nn.dropout.random_bits", bits)
    config = dataclasses.replace(TINY, depth=1, scan=False, **{"dropout": 0.0, rate: 0.5})
    run = functools.partial(Transformer(config).apply, train=True, rngs={"dropout": KEY})
    jax.eval_shape(run, shapes_of(config), {"source": ids(2, 6), "target_in": ids(2, 5)})
    assert Counter(drawn_for) == sites


@pytest.mark.parametrize("scan", [False, True])
def test_attention_weights_of_all_layers_and_heads_can_be_had(scan):
    config = dataclasses.replace(TINY, scan=scan, decoder_depth=3)
    batch = {"source": ids(2, 6), "target_in": ids(2, 5)}
    run = functools.partial(Transformer(config).apply, mutable=["intermediates"])
    sown = jax.eval_shape(run, shapes_of(config), batch)[1]["intermediates"]
    got = {
        f"{side} {name}": weights["weights"][0].shape
        for side in ("encoder", "decoder")
        for name, weights in sown[side]["layers"][0].items()
    }
    assert got == {
        "encoder self_attention": (2, 2, HEADS, 6, 6),
        "decoder self_attention": (3, 2, HEADS, 5, 5),
        "decoder cross_attention": (3, 2, HEADS, 5, 6),
    }


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(width=16, heads=5), r"model.heads = 5 does not divide model.width = 16; .* is 4$"),
        (dict(width=16, heads=5, key_width=3), "does not divide"),
        (dict(tie="all", vocab=29, source_vocab=30), r"one vocabulary: .*tie = 'decoder'$"),
        (dict(remat="save_names:all"), r"^model.remat = 'save_names:all': choose from none, full"),
        (dict(kernel="ring", attention_dropout=0.1), r"^model.kernel = 'ring' never .* scaled or"),
        (dict(kernel="splash", attention="additive"), r"^model.kernel = 'splash' never .* dot$"),
    ],
)
def test_fields_that_do_not_fit_are_refused_in_one_line(changes, message):
    config = dataclasses.replace(TINY, **changes)
    for refuse in (check, models.build):
        with pytest.raises(ValueError, match=message) as error:
            refuse(config)
        assert "\n" not in str(error.value)


def test_heads_need_not_divide_the_width_when_their_widths_are_given():
    config = dataclasses.replace(TINY, heads=5, key_width=3, value_width=2)
    assert isinstance(models.build(config), Transformer)
    assert count(config) == formula(config)


# ---------------------------------------------------------------------- kernels


def test_a_config_may_ask_for_every_kernel_that_there_is():
    hint = typing.get_type_hints(Config)["kernel"]
    assert {*typing.get_args(hint)} == {"auto", "xla", *KERNELS}


def packed_batch():
    """Two sentences a row, on both sides, of lengths that 8 does not divide."""
    batch = {"source": ids(2, 11, [11, 9]), "target_in": ids(2, 13, [10, 13])}
    for side, name, cut in (("source", "source", 4), ("target", "target_in", 7)):
        real_BT, places = batch[name] > 0, np.arange(batch[name].shape[1])
        batch[f"{side}_segments"] = np.where(real_BT, 1 + (places >= cut), 0)
        batch[f"{side}_positions"] = np.where(places < cut, places, places - cut) + 0 * real_BT
    return batch


def test_a_model_on_a_ring_learns_what_it_would_alone():
    """Losses and gradients; in a scan, under a policy that keeps what the ring made."""
    batch = packed_batch()
    config = dataclasses.replace(TINY, remat="save_names:attention_out")
    params, weight_BTV = drawn(config), RANDOM.standard_normal((*batch["target_in"].shape, VOCAB))
    real_BT1 = batch["target_segments"][..., None] > 0

    def run(kernel):
        model = Transformer(dataclasses.replace(config, kernel=kernel, dropout=0.0))

        def loss(params):
            logits_BTV = model.apply(params, batch, train=True, rngs={"dropout": KEY})
            return jnp.where(real_BT1, weight_BTV * logits_BTV, 0).sum()

        return jax.jit(jax.value_and_grad(loss))(params)

    (alone, want), mesh = run("xla"), sharding.make_mesh(data=1, tensor=2, sequence=4)
    with jax.set_mesh(mesh):
        together, got = run("ring")
    np.testing.assert_allclose(together, alone, rtol=1e-4)
    close_gradients(got, want)


# ------------------------------------------------------------ cached = uncached


@pytest.mark.parametrize(
    "beams, changes",
    [
        (1, dict(key_width=3, value_width=5)),
        (3, dict(norm="pre", position="learned", tie="decoder", activation="swiglu")),
        (3, dict(norm_kind="rms", attention="additive", tie="none")),
    ],
)
def test_decoding_step_by_step_is_teacher_forcing(beams, changes):
    """Any tree of beams: each step gives the logits that its own ancestors would give."""
    config = dataclasses.replace(TINY, depth=1, decoder_depth=2, **changes)
    model, params, rows, length = Transformer(config), drawn(config), 2, 5
    source, tokens_BTW = (
        ids(rows, 6, [6, 3]),
        ids(rows * length, beams).reshape(rows, length, beams),
    )
    parents_BTW = RANDOM.integers(0, beams, tokens_BTW.shape)
    slots = beams * (length + 2)  # more than are ever written

    context = jax.jit(functools.partial(model.apply, method="start"))(params, {"source": source})
    cache = model.apply(params, rows, slots, method="init_cache")
    step = jax.jit(functools.partial(model.apply, method="step"))
    seen_BWS, told = np.zeros((rows, beams, slots), bool), np.zeros((rows, beams, length), np.int32)
    stepped, prefixes = [], []
    for t in range(length):
        inherit = lambda x, t=t: np.take_along_axis(x, parents_BTW[:, t, :, None], axis=1)
        seen_BWS, told = inherit(seen_BWS), inherit(told)
        seen_BWS[:, np.arange(beams), t * beams + np.arange(beams)] = True
        told[:, :, t] = tokens_BTW[:, t]
        logits_BWV, cache = step(params, tokens_BTW[:, t], cache, jnp.int32(t), seen_BWS, context)
        assert logits_BWV.shape == (rows, beams, VOCAB) and logits_BWV.dtype == jnp.float32
        stepped.append(logits_BWV)
        prefixes.append(told.copy())

    target = np.stack(prefixes).reshape(-1, length)  # [T * B * W, T]
    batch = {"source": np.tile(np.repeat(source, beams, 0), (length, 1)), "target_in": target}
    forced = jax.jit(model.apply)(params, batch).reshape(length, rows, beams, length, VOCAB)
    for t in range(length):
        np.testing.assert_allclose(stepped[t], forced[t, :, :, t], atol=2e-5)


def test_the_prediction_is_the_logits_as_a_product():
    config = dataclasses.replace(TINY, tie="none", depth=1, norm="pre")
    model, params = Transformer(config), drawn(config)
    batch = {"source": ids(2, 6), "target_in": ids(2, 5)}
    both = lambda model, batch: (model(batch), model.predict(batch)["logits"].factors())
    run = jax.jit(functools.partial(model.apply, method=both))
    logits_BTV, (states_BTD, table_VD) = run(params, batch)
    np.testing.assert_array_equal(table_VD, params["params"]["unembed"]["embedding"])
    np.testing.assert_allclose(np.asarray(states_BTD) @ table_VD.T, logits_BTV, atol=1e-4)


# ---------------------------------------------------------------------- PyTorch

PARTS = {  # ours -> names in torch.nn.Transformer's encoder and decoder, and in the paper's model
    "self_attention": ("self_attn", "self_attn", "self_attn"),
    "cross_attention": (None, "multihead_attn", "encoder_attn"),
    "self_norm": ("norm1", "norm1", "self_attn_layer_norm"),
    "cross_norm": (None, "norm2", "encoder_attn_layer_norm"),
    "mlp_norm": ("norm2", "norm3", "final_layer_norm"),
    "up": ("linear1", "linear1", "fc1"),
    "down": ("linear2", "linear2", "fc2"),
}


def under(file, prefix):
    return {k.removeprefix(prefix): file[k] for k in file.files if k.startswith(prefix)}


def stack_of(p, layers, names, cross):
    """The layers of one of our stacks, depth first, from arrays under PyTorch's names."""

    def linear(name):
        return {"kernel": p[f"{name}.weight"].T, "bias": p[f"{name}.bias"]}

    def norm(name):
        return {"scale": p[f"{name}.weight"], "bias": p[f"{name}.bias"]}

    def attention(name):
        if f"{name}.in_proj_weight" in p:
            rows = (np.split(p[f"{name}.in_proj_{x}"], 3) for x in ("weight", "bias"))
            parts = [{"kernel": weight.T, "bias": bias} for weight, bias in zip(*rows, strict=True)]
        else:
            parts = [linear(f"{name}.{x}_proj") for x in "qkv"]
        split = lambda x: x.reshape(*x.shape[:-1], HEADS, -1)
        tree = dict(zip(("query", "key", "value"), jax.tree.map(split, parts), strict=True))
        out = linear(f"{name}.out_proj")
        return tree | {"out": out | {"kernel": out["kernel"].reshape(HEADS, -1, WIDTH)}}

    def layer(prefix):
        at = lambda part: f"{prefix}.{names[part]}"
        tree = {"feed_forward": {part: linear(at(part)) for part in ("up", "down")}}
        for side in ("self", "cross") if cross else ("self",):
            tree[f"{side}_attention"] = attention(at(f"{side}_attention"))
            tree[f"{side}_norm"] = norm(at(f"{side}_norm"))
        return tree | {"mlp_norm": norm(at("mlp_norm"))}

    made = [layer(f"{layers}.{n}") for n in range(3 if cross else 2)]
    return {"layers": jax.tree.map(lambda *x: np.stack(x), *made)}


def from_torch(p):
    """Our tree of torch.nn.Transformer's parameters, or of their gradients."""
    tree = {}
    for column, side in enumerate(("encoder", "decoder")):
        names = {part: torch[column] for part, torch in PARTS.items()}
        tree[side] = stack_of(p, f"{side}.layers", names, side == "decoder")
        tree[side]["norm"] = {"scale": p[f"{side}.norm.weight"], "bias": p[f"{side}.norm.bias"]}
    return tree


def from_paper(p):
    """Our tree of the paper's model under the names of Marian checkpoints."""
    names = {part: torch[2] for part, torch in PARTS.items()}
    tree = {
        s: stack_of(p, f"model.{s}.layers", names, s == "decoder") for s in ("encoder", "decoder")
    }
    return tree | {"target_embed": {"embedding": p["model.shared.weight"]}}


def close(got, want, tolerance=1e-5):
    assert np.abs(got - want).max() <= tolerance * max(1, np.abs(want).max())


def close_gradients(got, want):
    """To 1e-4 of each tensor's largest; those of key biases are zero but for rounding."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    paths = jax.tree_util.tree_leaves_with_path(want)
    for (path, b), a in zip(paths, jax.tree.leaves(got), strict=True):
        error, size = np.abs(a - b).max(), np.abs(b).max()
        assert error <= 1e-4 * size or (path[-2].key == "key" and error < 1e-5), path


PARITY = dataclasses.replace(TINY, decoder_depth=3, dropout=0.0)


@pytest.mark.parametrize("case", ["post_relu", "post_gelu", "pre_relu", "pre_gelu"])
def test_agrees_with_torch_nn_transformer(case):
    """Which has final norms in both orders, and no embeddings."""
    file = np.load(FIXTURES / "torch_transformer.npz")
    order, activation = case.split("_")
    settings = dict(norm=order, activation=activation, final_norm="on", epsilon=1e-5)
    model, given = Transformer(dataclasses.replace(PARITY, **settings)), under(file, "in/")
    mask_B11S = ~given["source_padding"][:, None, None]
    mask_B1TT = np.tri(5, dtype=bool) & ~given["target_padding"][:, None, None]

    def run(model):
        memory = model.encoder(given["source"], mask_B11S)[0]
        return memory, model.decoder(given["target"], mask_B1TT, memory, mask_B11S)[0]

    def loss(params):
        memory, output = model.apply({"params": params}, method=run)
        return (output * given["loss_weight"]).sum(), (memory, output)

    params, grads = from_torch(under(file, "param/")), under(file, f"{case}/grad/")
    if grads:
        gradient, (memory, output) = jax.jit(jax.grad(loss, has_aux=True))(params)
        close_gradients(gradient, from_torch(grads))
    else:
        memory, output = jax.jit(loss)(params)[1]
    close(memory, file[f"{case}/out/memory"])
    close(output, file[f"{case}/out/output"])


def test_agrees_with_the_papers_model_and_learns_like_it():
    """Logits, both losses, gradients, and six steps of Adam with the paper's schedule."""
    file = np.load(FIXTURES / "vaswani.npz")
    model, batch = Transformer(PARITY), under(file, "in/")
    rest = batch["target_out"], batch["weights"], float(batch["label_smoothing"])
    adam = Optim(lr=float(file["adam/in/factor"]), warmup=int(file["adam/in/warmup"]))
    rates = optim.schedule(adam, 6, WIDTH)
    np.testing.assert_allclose([rates(n) for n in range(6)], file["adam/out/lr"], rtol=1e-6)
    optimiser = optim.build(adam, 6, WIDTH)

    def losses(params):
        found = model.apply({"params": params}, batch, method="predict")
        states_BTD, table_VD = found["logits"].factors()
        conventions = ("uniform", "tensor2tensor")
        both = [cross_entropy(states_BTD, table_VD, *rest, c)[0] for c in conventions]
        one, other = jnp.stack(both) / batch["weights"].sum()
        return one, (one, other, states_BTD @ table_VD.T)

    @jax.jit
    def step(params, state):
        gradient, found = jax.grad(losses, has_aux=True)(params)
        updates, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, gradient, found

    params, found = from_paper(under(file, "param/")), []
    state = optimiser.init(params)
    for n in range(7):
        params, state, gradient, (one, other, logits) = step(params, state)
        found.append(one)
        if n == 0:
            close(logits, file["out/logits"])
            np.testing.assert_allclose(one, file["out/loss_uniform"], rtol=1e-5)
            np.testing.assert_allclose(other, file["out/loss_tensor2tensor"], rtol=1e-5)
            close_gradients(gradient, from_paper(under(file, "grad/")))
    np.testing.assert_allclose(found, file["adam/out/loss"], atol=1e-4)
    memory = jax.jit(functools.partial(model.apply, method="encode"))
    close(memory({"params": from_paper(under(file, "param/"))}, batch), file["out/memory"])
