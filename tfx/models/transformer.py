"""The original Transformer: Vaswani et al. (2017), "Attention Is All You Need".

    Table 3        N  d_model  d_ff   h  d_k  d_v  P_drop  parameters (the paper's)
    base           6      512  2048   8   64   64     0.1          65M
    A.h1 ... h32                  1, 4, 16, 32 heads, d_k = d_v = 512 / h
    B.k16, B.k32                  d_k = 16, 32 (d_v stays 64)       58M, 60M
    C.n2, n4, n8   2, 4, 8                                          36M, 50M, 80M
    C.d256, d1024  d_model 256 with d_k = d_v = 32; 1024 with 128   28M, 168M
    C.f1024, f4096 d_ff 1024; 4096                                  53M, 90M
    D.p0, D.p2     P_drop 0.0; 0.2
    E.learned      learned positions
    big            6     1024  4096  16   64   64     0.3         213M

Rows D of label smoothing are the base model with `objective.label_smoothing` 0.0 and 0.2.

Differs from the paper: nothing by default. The paper leaves open the norms' epsilon
(1e-6, tensor2tensor's), biases in attention (used, as in tensor2tensor's later versions
and PyTorch; base at a vocabulary of 37,000 then has 63,082,496 parameters), and the
initialisation (Glorot uniform; embeddings normal with variance 1 / d_model).
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from tfx.nn.attention import Attention, KeyValues
from tfx.nn.block import Block, Stack, remat_policy
from tfx.nn.dropout import Dropout
from tfx.nn.kernels import SCALES, Visible
from tfx.nn.linear import Embed
from tfx.nn.mlp import Mlp
from tfx.nn.norm import NORMS
from tfx.nn.position import Positions

Positive = Annotated[int, "x >= 1"]
Count = Annotated[int, "x >= 0"]
Rate = Annotated[float, "0 <= x < 1"]
RUNTIME = {"runtime": True}  # set from the tokenizer and the training section, not by people


@dataclass(frozen=True)
class Config:
    """Shape of the model. Defaults are the paper's base model."""

    width: Positive = 512
    depth: Positive = 6
    decoder_depth: Count = 0  # 0: as the encoder
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
    epsilon: Annotated[float, "x > 0"] = 1e-6
    attention: Literal["scaled", "dot", "general", "additive"] = "scaled"
    attention_bias: bool = True
    position: Literal["sinusoid", "learned", "none"] = "sinusoid"
    max_length: Positive = 1024  # positions a side
    activation: Literal[
        "relu", "gelu", "gelu_tanh", "silu", "reglu", "geglu", "geglu_tanh", "swiglu", "glu"
    ] = "relu"
    tie: Literal["all", "decoder", "none"] = "all"  # which embeddings are one table
    scale_embeddings: bool = True  # by sqrt(width)
    scan: bool = False
    remat: str = "none"  # none | full | dots | save_names:A,B | offload:A,B: tfx/nn/block.py
    kernel: Literal["auto", "xla", "cudnn", "splash", "ring"] = "auto"  # tfx/nn/kernels.py
    vocab: int = dataclasses.field(default=0, metadata=RUNTIME)
    source_vocab: int = dataclasses.field(default=0, metadata=RUNTIME)
    dtype: str = dataclasses.field(default="float32", metadata=RUNTIME)


SIZES = {
    "base": {},
    "big": dict(width=1024, mlp=4096, heads=16, dropout=0.3),
    "A.h1": dict(heads=1),
    "A.h4": dict(heads=4),
    "A.h16": dict(heads=16),
    "A.h32": dict(heads=32),
    "B.k16": dict(key_width=16),
    "B.k32": dict(key_width=32),
    "C.n2": dict(depth=2),
    "C.n4": dict(depth=4),
    "C.n8": dict(depth=8),
    "C.d256": dict(width=256),
    "C.d1024": dict(width=1024),
    "C.f1024": dict(mlp=1024),
    "C.f4096": dict(mlp=4096),
    "D.p0": dict(dropout=0.0),
    "D.p2": dict(dropout=0.2),
    "E.learned": dict(position="learned"),
}


def check(config: Config) -> None:
    """Raise a ValueError where fields do not fit each other."""
    if config.width % config.heads and not (config.key_width and config.value_width):
        near = [h for h in range(1, config.width + 1) if config.width % h == 0]
        near = min(near, key=lambda h: abs(h - config.heads))
        raise ValueError(
            f"model.heads = {config.heads} does not divide model.width = {config.width}; "
            f"the nearest that does is {near}"
        )
    if config.tie == "all" and config.source_vocab not in (0, config.vocab):
        raise ValueError(
            "model.tie = 'all' needs one vocabulary: set tokenizer.joint = true, or model.tie = "
            "'decoder'"
        )
    try:
        remat_policy(config.remat)
    except ValueError as error:
        raise ValueError(f"model.{error}") from None
    whole = config.attention not in SCALES or config.attention_dropout > 0
    if config.kernel not in ("auto", "xla") and whole:
        raise ValueError(
            f"model.kernel = '{config.kernel}' never holds the scores: set it to 'auto', or "
            f"model.attention_dropout to 0 and model.attention to {' or '.join(SCALES)}"
        )


@struct.dataclass
class Context:
    """What decoding reads of a source: per decoder layer keys and values, once per
    sentence, and which of them are padding."""

    memory: tuple[KeyValues, ...]
    mask_B11S: jax.Array


class Transformer(nn.Module):
    """Encoder-decoder of identical layers."""

    config: Config

    def setup(self):
        c = self.config
        scale = c.width**0.5 if c.scale_embeddings else 1.0
        embed = partial(Embed, width=c.width, scale=scale, dtype=c.dtype)
        self.target_embed = embed(c.vocab)
        self.source_embed = (
            self.target_embed if c.tie == "all" else embed(c.source_vocab or c.vocab)
        )
        self.unembed = embed(c.vocab) if c.tie == "none" else self.target_embed
        self.positions = Positions(c.position, c.max_length)
        if c.position == "learned":
            self.target_positions = Positions(c.position, c.max_length)
        self.drop = Dropout(c.dropout)
        self.encoder = self._stack(c.depth, cross=False)
        self.decoder = self._stack(c.decoder_depth or c.depth, cross=True)

    def _stack(self, depth: int, cross: bool) -> Stack:
        c = self.config
        norm = partial(NORMS[c.norm_kind], c.epsilon)
        head = c.width // c.heads
        block = partial(
            Block,
            attention=partial(
                Attention,
                c.heads,
                c.key_width or head,
                c.value_width or head,
                score=c.attention,
                dropout=c.attention_dropout,
                bias=c.attention_bias,
                kernel=c.kernel,
            ),
            mlp=partial(Mlp, c.mlp, c.activation, c.mlp_dropout),
            norm=norm,
            order=c.norm,
            dropout=c.dropout,
            cross=cross,
        )
        last = c.final_norm == "on" or (c.final_norm == "auto" and c.norm == "pre")
        return Stack(block, depth, c.width, norm if last else None, c.scan, c.remat, c.layerdrop)

    def encode(self, batch, train: bool = False):
        """States [B, S, D] of `batch["source"]` [B, S]; id 0 is padding."""
        source_BS = batch["source"]
        packed_BS = batch.get("source_segments")
        itself = Visible(packed_BS, source_BS > 0 if packed_BS is None else packed_BS)
        x_BSD = self.source_embed(source_BS)
        x_BSD = self.positions(x_BSD, 0, batch.get("source_positions"))
        return self.encoder(self.drop(x_BSD, train), itself, train=train)[0]

    def decode(self, batch, memory_BSD, train: bool = False):
        """States [B, T, D] of `batch["target_in"]` [B, T], each seeing itself, those before
        it and the memory."""
        packed_BT = batch.get("target_segments")
        segments_BS = batch.get("source_segments", batch["source"] > 0)
        itself = Visible(packed_BT, packed_BT, causal=True)  # which hides padding too: it is last
        across = Visible(packed_BT, segments_BS)
        x_BTD = self._embed_target(batch["target_in"], 0, batch.get("target_positions"))
        x_BTD = self.drop(x_BTD, train)
        return self.decoder(x_BTD, itself, memory_BSD, across, train=train)[0]

    def __call__(self, batch, train: bool = False):
        """Float32 logits [B, T, V] of the token after each of `batch["target_in"]`."""
        return self.unembed.logits(self.decode(batch, self.encode(batch, train), train))

    def predict(self, batch, train: bool = False):
        """The logits as the product they are: states [B, T, D] and a table [V, D]."""
        x_BTD = self.decode(batch, self.encode(batch, train), train)
        return x_BTD, self.unembed.embedding.astype(x_BTD.dtype)

    def _embed_target(self, target_BT, start, positions_BT=None):
        learned = self.config.position == "learned"
        positions = self.target_positions if learned else self.positions
        return positions(self.target_embed(target_BT), start, positions_BT)

    # Decoding, one position at a time: see tfx/decode.py.

    def start(self, batch) -> Context:
        """Encode sources and project them for every decoder layer."""
        mask_B11S = (batch["source"] > 0)[:, None, None]
        return Context(self.decoder.read(self.encode(batch)), mask_B11S)

    def init_cache(self, batch: int, slots: int) -> tuple[KeyValues, ...]:
        """Empty keys and values of `slots` decoded tokens, per decoder layer."""
        c, head = self.config, self.config.width // self.config.heads
        zeros = lambda width: jnp.zeros((batch, c.heads, slots, width or head), c.dtype)
        empty = KeyValues(zeros(c.key_width), zeros(c.value_width))
        return (empty,) * (c.decoder_depth or c.depth)

    def step(self, tokens_BW, cache, t, mask_BWS, context: Context):
        """Logits [B, W, V] after W parallel tokens at position t, written to the cache's
        slots t * W to t * W + W - 1; `mask_BWS` says which slots each may see."""
        beams = tokens_BW.shape[1]
        x_BWD = self._embed_target(tokens_BW, 0, jnp.full((1, beams), t))
        mask_B1WS = mask_BWS[:, None]
        x_BWD, cache = self.decoder(
            x_BWD, mask_B1WS, context.memory, context.mask_B11S, cache, t * beams
        )
        return self.unembed.logits(x_BWD), cache
