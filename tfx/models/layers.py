"""What all families have in common: the shape of their layers, and the stack that it describes."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import jax.numpy as jnp

from tfx.nn.attention import Attention, KeyValues
from tfx.nn.block import Block, Stack, remat_policy
from tfx.nn.kernels import SCALES, Visible
from tfx.nn.mlp import ACTIVATIONS, GATED, Mlp
from tfx.nn.norm import NORMS
from tfx.nn.position import Bias, Positions
from tfx.nn.relative import RelativeAttention

Positive = Annotated[int, "x >= 1"]
Count = Annotated[int, "x >= 0"]
Rate = Annotated[float, "0 <= x < 1"]
Epsilon = Annotated[float, "x > 0"]
Position = Literal[
    "sinusoid", "sinusoid_halves", "learned", "rotary", "alibi", "t5", "xlnet", "none"
]
Activation = Literal[*ACTIVATIONS, *GATED]
RUNTIME = {"runtime": True}  # set from the tokenizer and the training section, not by people


@dataclass(frozen=True)
class Layers:
    """Shape of the layers. A family's Config has these and some of its own."""

    width: Positive = 512
    depth: Positive = 6
    heads: Positive = 8
    key_width: Count = 0  # of one head; 0: width / heads
    value_width: Count = 0  # of one head; 0: width / heads
    mlp: Positive = 2048
    dropout: Rate = 0.1  # embeddings, and the output of every attention and mlp
    attention_dropout: Rate = 0.0  # attention weights
    mlp_dropout: Rate = 0.0  # inside the mlp
    layerdrop: Rate = 0.0
    norm: Literal["post", "pre"] = "post"
    norm_kind: Literal["layer", "rms"] = "layer"
    final_norm: Literal["auto", "on", "off"] = "auto"  # auto: after a pre-norm stack
    epsilon: Epsilon = 1e-6
    attention: Literal["scaled", "dot", "general", "additive"] = "scaled"
    attention_bias: bool = True
    position: Position = "sinusoid"
    position_buckets: Annotated[int, "x >= 4"] = 32  # t5: of distances
    position_furthest: Positive = 128  # t5: distances beyond share a bucket
    position_offset: Count = 0  # learned: rows of the table before that of position 0
    max_length: Positive = 1024  # positions a side
    embedding_norm: bool = False  # a norm on the embeddings too
    activation: Activation = "relu"
    mlp_bias: bool = True
    scan: bool = False
    remat: str = "none"  # none | full | dots | save_names:A,B | offload:A,B: tfx/nn/block.py
    kernel: Literal["auto", "xla", "cudnn", "splash", "ring"] = "auto"  # tfx/nn/kernels.py
    vocab: Count = 0  # rows of the embedding; 0: as many as the tokenizer has pieces
    dtype: str = dataclasses.field(default="float32", metadata=RUNTIME)


def check(config: Layers) -> None:
    """Raise a ValueError where fields do not fit each other."""
    c = config
    if c.width % c.heads and not (c.key_width and c.value_width):
        near = [h for h in range(1, c.width + 1) if c.width % h == 0]
        near = min(near, key=lambda h: abs(h - c.heads))
        raise ValueError(
            f"model.heads = {c.heads} does not divide model.width = {c.width}; "
            f"the nearest that does is {near}"
        )
    if c.position == "rotary" and key_width(c) % 2:
        raise ValueError(f"model.position = 'rotary' turns pairs: heads of {key_width(c)} are odd")
    if c.position == "t5" and c.position_furthest <= c.position_buckets // 2:
        raise ValueError(
            f"model.position_furthest = {c.position_furthest}: want more than half of "
            f"model.position_buckets = {c.position_buckets}, which hold one distance each"
        )
    if c.position == "xlnet" and c.attention not in SCALES:
        raise ValueError(
            f"model.position = 'xlnet' adds to products of queries and keys, which model.attention "
            f"= '{c.attention}' has not; set that to {' or '.join(SCALES)}"
        )
    try:
        remat_policy(c.remat)
    except ValueError as error:
        raise ValueError(f"model.{error}") from None
    whole = c.attention not in SCALES or c.attention_dropout > 0
    if c.kernel not in ("auto", "xla") and whole:
        raise ValueError(
            f"model.kernel = '{c.kernel}' never holds the scores: set it to 'auto', or "
            f"model.attention_dropout to 0 and model.attention to {' or '.join(SCALES)}"
        )


def key_width(config: Layers) -> int:
    """Of one head."""
    return config.key_width or config.width // config.heads


def value_width(config: Layers) -> int:
    """Of one head."""
    return config.value_width or config.width // config.heads


def attention(config: Layers):
    """Makes one attention of a config."""
    c = config
    sizes = c.heads, key_width(c), value_width(c)
    rest = dict(score=c.attention, dropout=c.attention_dropout, bias=c.attention_bias)
    plain = partial(Attention, *sizes, **rest, kernel=c.kernel, rotary=c.position == "rotary")
    if c.position != "xlnet":
        return plain
    relative = partial(RelativeAttention, *sizes, **rest)
    # What reads another text is at no distance from it.
    return lambda rotary=True, **own: relative(**own) if rotary else plain(rotary=False)


def positions(config: Layers) -> Positions:
    """What a config adds to its embeddings for their positions."""
    return Positions(config.position, config.max_length, config.position_offset)


def norm(config: Layers):
    """Makes one norm of a config."""
    return partial(NORMS[config.norm_kind], config.epsilon)


def init_cache(config: Layers, batch: int, slots: int) -> tuple[KeyValues, ...]:
    """Empty keys and values of `slots` decoded tokens, per layer."""
    c = config
    zeros = lambda width: jnp.zeros((batch, c.heads, slots, width), c.dtype)
    return (KeyValues(zeros(key_width(c)), zeros(value_width(c))),) * c.depth


def parallel(t, mask_BWS) -> Visible:
    """What W parallel tokens at position t may see of a cache whose slots s hold the tokens of
    position s // W: see tfx/decode.py."""
    _, beams, slots = mask_BWS.shape
    places = jnp.full((1, beams), t), jnp.arange(slots)[None] // beams
    return Visible(allowed_B1TS=mask_BWS[:, None], queries_BT=places[0], keys_BS=places[1])


def stack(
    config: Layers, causal=False, cross=False, kind: type[Stack] = Stack, block=Block, **parts
) -> Stack:
    """The stack of a config.

    Args:
      causal: nothing sees what comes after it, so that relative positions need look back alone.
      cross: every layer reads a memory.
      kind, block, parts: a family's own stack, block and parts of a block, where it has some.
    """
    c = config
    usual = dict(
        attention=attention(c),
        mlp=partial(Mlp, c.mlp, c.activation, c.mlp_dropout, c.mlp_bias),
        norm=norm(c),
        order=c.norm,
        dropout=c.dropout,
        cross=cross,
    )
    block = partial(block, **usual | parts)
    last = c.final_norm == "on" or (c.final_norm == "auto" and c.norm == "pre")
    table = c.position_buckets, c.position_furthest
    bias = partial(Bias, c.position, c.heads, *table, both_ways=not causal)
    return kind(
        *(block, c.depth, c.width, norm(c) if last else None),
        *(c.scan, c.remat, c.layerdrop),
        bias=bias if c.position in ("t5", "alibi") else None,
    )
