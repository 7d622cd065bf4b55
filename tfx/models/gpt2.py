"""GPT-2: Radford et al. (2019), "Language Models are Unsupervised Multitask Learners". GPT's model
with norms before the layers, not behind them, and one at the end.

    Table 2   L   D     A   parameters (the paper's; exactly, with 50,257 tokens)
    small     12  768   12   117M      124,439,808
    medium    24  1024  16   345M      354,823,168
    large     36  1280  20   762M      774,030,080
    xl        48  1600  25  1542M    1,557,611,200

    and one for a few megabytes of characters:
    nano       6   384   6  10.7M and the vocabulary

Differs from the paper: nothing. It does not say how many heads there are (64 wide, the authors'
code), and says that layers on the residual path start smaller by 1 / sqrt(N), with N those layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax.numpy as jnp
from jax.nn import initializers

from tfx.models import gpt, layers

check = gpt.check
MODEL = gpt.GPT


@dataclass(frozen=True)
class Config(gpt.Config):
    """Shape of the model. Defaults are GPT-2 small."""

    norm: Literal["post", "pre"] = "pre"
    max_length: layers.Positive = 1024


SIZES = {
    "small": {},
    "medium": dict(width=1024, depth=24, heads=16, mlp=4096),
    "large": dict(width=1280, depth=36, heads=20, mlp=5120),
    "xl": dict(width=1600, depth=48, heads=25, mlp=6400),
    "nano": dict(width=384, depth=6, heads=6, mlp=1536, max_length=256),
}


def initial(config: Config) -> dict:
    """How parameters start, by their path: section 2.3, and the authors' code."""
    return {
        "positions/embedding$": initializers.normal(0.01),
        "(out|down)/kernel$": initializers.normal(0.02 / (2 * config.depth) ** 0.5),
        "kernel$|embedding$": initializers.normal(0.02),
    }


def names(config: Config) -> dict:
    """Where parameters are in Hugging Face's files."""
    return gpt.names(config) | {"embed": "wte", "positions": "wpe", "decoder/norm": "ln_f"}


def special(theirs: dict, tensors: dict) -> dict:
    """What the files say and no single field does."""
    if theirs.get("add_cross_attention"):
        raise ValueError("config.json: add_cross_attention = true: tfx's GPT-2 reads no encoder")
    tables = {"tokens_embed.weight": tensors["wte.weight"]} if "wte.weight" in tensors else {}
    found = gpt.special(theirs, tensors | tables)
    found |= {"vocab": theirs.get("vocab_size", 50257)}
    found |= {"mlp": theirs.get("n_inner") or found["mlp"]}
    found |= {} if theirs.get("scale_attn_weights", True) else {"attention": "dot"}
    found |= {"activation": theirs.get("activation_function", "gelu_new")}
    if "classifier.weight" in tensors:
        rates = (theirs.get(key) for key in ("classifier_dropout", "hidden_dropout"))
        found["head_dropout"] = next((rate for rate in rates if rate is not None), 0.1)
    return found


def unspecial(config: Config) -> dict:
    """The same, back."""
    return gpt.about_head(config) | {
        "model_type": "gpt2",
        "n_inner": config.mlp,
        "scale_attn_weights": config.attention == "scaled",
        "classifier_dropout": config.head_dropout,
    }


def batch(about: dict, theirs: Mapping[str, Any]) -> dict:
    """Theirs. Positions that start again say, without mask and cache, that another text begins."""
    given = gpt.batch(about, theirs)
    caches = theirs.get("use_cache", about.get("use_cache", True))
    if caches or "mask" in given or "positions" not in given:
        return given
    follows = jnp.diff(given["positions"], axis=-1) == 1
    segments = jnp.pad(jnp.cumsum(~follows, -1), ((0, 0), (1, 0))) + 1
    return given | {"segments": jnp.broadcast_to(segments, given["ids"].shape)}


FORMAT = replace(
    gpt.FORMAT,
    heads=gpt.FORMAT.heads
    | {
        "ForTokenClassification": {"head": "tokens"},
        "ForQuestionAnswering": {"head": "span"},
    },
    config={ours: theirs for ours, theirs in gpt.FORMAT.config.items() if ours != "activation"}
    | {"activation": "activation_function", "by_depth": "scale_attn_by_inverse_layer_idx"},
    names=names,
    special=special,
    unspecial=unspecial,
    aliases={"wte.weight": "lm_head.weight"},
    batch=batch,
)
