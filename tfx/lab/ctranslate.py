"""How is an encoder-decoder of ours a model of CTranslate2 (Klein et al., 2020)? Its specification
is filled with our arrays; its own converters read other frameworks' files.

Needs nothing of tfx but this file, so that an interpreter without JAX can do it too. `c` is the
model's part of a config as a dict, whose `vocab` and `source_vocab` are rows of the embeddings;
`arrays` are parameters under Marian's names in Hugging Face's files, with weights [out, in], and
`layer_norm` under a stack for a norm that ends it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

ACTIVATIONS = {
    "relu": "RELU",
    "gelu": "GELU",
    "gelu_tanh": "GELUTanh",
    "gelu_sigmoid": "GELUSigmoid",
    "silu": "SWISH",
}
ONLY = {  # the values that a field may have
    "norm_kind": ("layer",),
    "attention": ("scaled",),
    "mlp_bias": (True,),
    "position": ("sinusoid", "sinusoid_halves", "learned"),
    "activation": tuple(ACTIVATIONS),
}


def misfits(c: Mapping[str, Any]) -> list[str]:
    """What of a config CTranslate2 has not, or is not filled in here."""
    found = [f"model.{key} = {c[key]!r}" for key, known in ONLY.items() if c[key] not in known]
    whole = c["width"] // c["heads"]
    widths = ("key_width", "value_width")
    found += [f"model.{key} = {c[key]}" for key in widths if c[key] not in (0, whole)]
    if c["norm"] == "post" and c["final_norm"] == "on":
        found.append("model.final_norm = 'on' behind norms that are 'post'")
    return found


def specification(c, arrays: Mapping[str, np.ndarray], vocabularies: Sequence[Sequence[str]], say):
    """The filled specification; `.save(folder)` writes the model.

    Args:
      vocabularies: pieces of the source and of the target, one for each row.
      say: what else its config.json says: decoder_start_token, eos_token and so on.

    Raises:
      ValueError: CTranslate2 has no such model.
    """
    from ctranslate2 import specs

    if found := misfits(c):
        raise ValueError(f"CTranslate2 is not given {', '.join(found)}; try --format=jax")
    parts = dict(
        pre_norm=c["norm"] == "pre",
        no_final_norm=c["final_norm"] == "off",
        activation=specs.Activation[ACTIVATIONS[c["activation"]]],
        layernorm_embedding=c["embedding_norm"],
    )
    sizes = [(c["depth"], c["heads"])]
    sizes += [(c["decoder_depth"] or c["depth"], c["decoder_heads"] or c["heads"])]
    kinds = specs.TransformerEncoderSpec, specs.TransformerDecoderSpec
    stacks = [kind(*size, **parts) for kind, size in zip(kinds, sizes, strict=True)]
    spec = specs.TransformerSpec(*stacks)
    spec.config.layer_norm_epsilon = c["epsilon"]
    for key, value in say.items():
        setattr(spec.config, key, value)
    for stack, name in zip(stacks, ("encoder", "decoder"), strict=True):
        _fill(stack, f"model.{name}", c, arrays)
    target = _table("model.decoder.embed_tokens", arrays)
    spec.encoder.embeddings[0].weight = _table("model.encoder.embed_tokens", arrays)
    spec.decoder.embeddings.weight = target
    spec.decoder.projection.weight = arrays.get("lm_head.weight", target)
    if "final_logits_bias" in arrays:
        spec.decoder.projection.bias = arrays["final_logits_bias"].reshape(-1)
    spec.register_source_vocabulary(list(vocabularies[0]))
    spec.register_target_vocabulary(list(vocabularies[1]))
    spec.validate()
    spec.optimize()
    return spec


def positions(kind: str, length: int, width: int) -> np.ndarray:
    """Vaswani et al. (2017), 3.5: sines and cosines [length, width] side by side, or in halves."""
    angle = np.arange(length)[:, None] / 10000 ** (np.arange(0, width, 2) / width)
    both = np.stack([np.sin(angle), np.cos(angle)], -1 if kind == "sinusoid" else 1)
    return both.reshape(length, -1)[:, :width].astype(np.float32)


def _table(name: str, arrays) -> np.ndarray:
    return arrays.get(f"{name}.weight", arrays.get("model.shared.weight"))


def _fill(stack, name: str, c, arrays) -> None:
    """One stack; it has attention to the other where its layers have."""

    def linear(part, *names):
        part.weight = np.concatenate([arrays[f"{name}.weight"] for name in names])
        if f"{names[0]}.bias" in arrays:
            part.bias = np.concatenate([arrays[f"{name}.bias"] for name in names])

    def norm(part, name):
        part.gamma, part.beta = arrays[f"{name}.weight"], arrays[f"{name}.bias"]

    def attention(part, name, groups):
        for projection, group in zip(part.linear, groups, strict=True):
            linear(projection, *(f"{name}.{letter}_proj" for letter in group))
        norm(part.layer_norm, f"{name}_layer_norm")

    learned = f"{name}.embed_positions.weight"
    stack.scale_embeddings = c["scale_embeddings"]
    stack.position_encodings.encodings = (
        arrays[learned][c["position_offset"] :]
        if learned in arrays
        else positions(c["position"], c["max_length"], c["width"])
    )
    if c["embedding_norm"]:
        norm(stack.layernorm_embedding, f"{name}.layernorm_embedding")
    if hasattr(stack, "layer_norm"):
        norm(stack.layer_norm, f"{name}.layer_norm")
    for i, layer in enumerate(stack.layer):
        at = f"{name}.layers.{i}"
        attention(layer.self_attention, f"{at}.self_attn", (("q", "k", "v"), ("out",)))
        if hasattr(layer, "attention"):
            groups = (("q",), ("k", "v"), ("out",))
            attention(layer.attention, f"{at}.encoder_attn", groups)
        linear(layer.ffn.linear_0, f"{at}.fc1")
        linear(layer.ffn.linear_1, f"{at}.fc2")
        norm(layer.ffn.layer_norm, f"{at}.final_layer_norm")
