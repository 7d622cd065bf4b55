"""Marian's variant of the original Transformer: Junczys-Dowmunt et al. (2018), "Marian: Fast Neural
Machine Translation in C++". The models of OPUS-MT (Tiedemann and Thottingal, 2020) are of it.

    OPUS-MT      N  d_model  d_ff   h
    opus         6      512  2048   8
    opus-big     6     1024  4096  16

Differs from Vaswani et al. (2017): sines and cosines in two halves, not interleaved; SiLU; a bias
on the logits; an epsilon of 1e-5; decoding begins with the id of padding.
"""

import dataclasses
from dataclasses import dataclass

import jax
import numpy as np
from flax import linen as nn

from tfx.models import hf, layers, transformer

check = transformer.check
initial = transformer.initial
MODEL = transformer.Transformer


@dataclass(frozen=True)
class Config(transformer.Config):
    """Shape of the model. Defaults are those of OPUS-MT."""

    epsilon: layers.Epsilon = 1e-5
    position: layers.Position = "sinusoid_halves"
    max_length: layers.Positive = 512
    activation: layers.Activation = "silu"
    output_bias: bool = True


SIZES = {"opus": {}, "opus-big": dict(width=1024, mlp=4096, heads=16)}


def of_transformer(config: transformer.Config, boxed, params) -> tuple[Config, dict]:
    """The same model as one of Marian's: the axis of the residual stream in another order, which
    nothing sees but the positions, so that the sines come first and the cosines behind them.

    Args:
      boxed: shapes of the parameters, with their axis letters.

    Raises:
      ValueError: Marian's computes something else.
    """
    c = config
    if c.position != "sinusoid" or c.width % 2:
        raise ValueError(f"model.position = '{c.position}': Marian's are sinusoids, of even width")
    order = np.r_[0 : c.width : 2, 1 : c.width : 2]

    def turned(box, x):
        x = np.asarray(x)
        for axis in (n for n, letter in enumerate(box.names) if letter == "D"):
            x = np.take(x, order, axis)
        return x

    is_box = lambda x: isinstance(x, nn.Partitioned)
    params = jax.tree.map(turned, boxed, params, is_leaf=is_box)
    fields = dataclasses.asdict(c) | {"position": "sinusoid_halves", "output_bias": True}
    return Config(**fields), {"output_bias": np.zeros(c.vocab, np.float32)} | params


LAYER = {  # ours -> theirs
    **{
        f"{ours}_attention/{part}": f"{theirs}_attn.{name}_proj"
        for ours, theirs in (("self", "self"), ("cross", "encoder"))
        for part, name in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out"))
    },
    "self_norm": "self_attn_layer_norm",
    "cross_norm": "encoder_attn_layer_norm",
    "feed_forward/up": "fc1",
    "feed_forward/down": "fc2",
    "mlp_norm": "final_layer_norm",
}


def names(config: Config) -> dict:
    """Where parameters are in Hugging Face's files."""
    found = {
        f"{stack}/layers/{ours}": f"{stack}.layers.{{n}}.{theirs}"
        for stack in ("encoder", "decoder")
        for ours, theirs in LAYER.items()
    }
    one = config.tie in ("all", "inputs")
    return found | {
        "target_embed": "shared" if one else "decoder.embed_tokens",
        "source_embed": "encoder.embed_tokens",
        "unembed": "lm_head",
        "positions": "encoder.embed_positions",
        "target_positions": "decoder.embed_positions",
        "source_norm": "encoder.layernorm_embedding",
        "target_norm": "decoder.layernorm_embedding",
        "output_bias": hf.At("final_logits_bias", ones=1),
    }


def special(theirs: dict, tensors: dict) -> dict:
    """What the files say and no single field does."""
    for key in ("normalize_before", "add_final_layer_norm", "normalize_embedding"):
        if theirs.get(key) and theirs["model_type"] == "marian":
            raise ValueError(f"config.json: {key} = true: tfx has no such variant of Marian")
    if theirs.get("encoder_layerdrop", 0) != theirs.get("decoder_layerdrop", 0):
        raise ValueError("config.json: encoder_layerdrop and decoder_layerdrop differ; tfx has one")
    tables = {f"{stack}.embed_tokens.weight" for stack in ("encoder", "decoder")}
    two = not theirs.get("share_encoder_decoder_embeddings", True)
    if tables <= tensors.keys():  # which says more than the configuration
        shared = tensors.get("shared.weight")
        two = not all(np.array_equal(tensors[name], shared) for name in tables)
    table = "decoder.embed_tokens" if two else "shared"
    own = "lm_head.weight" in tensors and not hf.tied(theirs, tensors, "lm_head", table)
    found = {"tie": ("none" if two else "inputs") if own else ("decoder" if two else "all")}
    if two:
        found |= {
            "source_vocab": theirs["vocab_size"],
            "vocab": theirs.get("decoder_vocab_size") or theirs["vocab_size"],
        }
    return found


def unspecial(config: Config) -> dict:
    """The same, back."""
    if config.tie == "inputs":
        raise ValueError("model.tie = 'inputs': Hugging Face's has one table, two, or three")
    return {
        "model_type": "marian",
        "is_encoder_decoder": True,
        "vocab_size": config.source_vocab or config.vocab,
        "tie_word_embeddings": config.tie != "none",
        "share_encoder_decoder_embeddings": config.tie == "all",
        "decoder_vocab_size": config.vocab,
        "decoder_layers": config.decoder_depth or config.depth,
        "decoder_attention_heads": config.decoder_heads or config.heads,
        "decoder_ffn_dim": config.decoder_mlp or config.mlp,
        "decoder_layerdrop": config.layerdrop,
    }


FORMAT = hf.Format(
    prefix="model.",
    head="final_logits_bias|lm_head",
    heads={"Model": {"output_bias": False}, "MTModel": {"output_bias": True}},
    config={
        "width": "d_model",
        "depth": "encoder_layers",
        "heads": "encoder_attention_heads",
        "mlp": "encoder_ffn_dim",
        "decoder_depth": "decoder_layers",
        "decoder_heads": "decoder_attention_heads",
        "decoder_mlp": "decoder_ffn_dim",
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "mlp_dropout": "activation_dropout",
        "layerdrop": "encoder_layerdrop",
        "max_length": "max_position_embeddings",
        "activation": "activation_function",
        "scale_embeddings": "scale_embedding",
        "vocab": "vocab_size",
    },
    names=names,
    ignored=r"embed_positions\.weight$|embed_tokens\.weight$|lm_head\.weight$|^shared\.weight$",
    special=special,
    unspecial=unspecial,
    batch=lambda about, theirs: hf.two_texts(
        theirs, about["decoder_start_token_id"], about["pad_token_id"]
    ),
    outputs=lambda config, *found: hf.of_two_texts(*found),
)
