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
from typing import Literal

import jax
from flax import linen as nn
from flax import struct
from jax.nn import initializers

from tfx.models import layers
from tfx.models.layers import RUNTIME, Count, Layers
from tfx.nn.attention import KeyValues
from tfx.nn.dropout import Dropout
from tfx.nn.kernels import Visible
from tfx.nn.linear import Embed, Product, parameter


@dataclass(frozen=True)
class Config(Layers):
    """Shape of the model. Defaults are the paper's base model."""

    decoder_depth: Count = 0  # 0: as the encoder; the same of the two below
    decoder_heads: Count = 0
    decoder_mlp: Count = 0
    tie: Literal["all", "inputs", "decoder", "none"] = "all"  # which embeddings are one table
    scale_embeddings: bool = True  # by sqrt(width)
    output_bias: bool = False  # on the logits
    source_vocab: int = dataclasses.field(default=0, metadata=RUNTIME)


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


def initial(config: Config) -> dict:
    """As the modules say: Glorot uniform, embeddings normal with variance 1 / d_model."""
    return {}


def check(config: Config) -> None:
    """Raise a ValueError where fields do not fit each other."""
    layers.check(config)
    layers.check(decoder(config))
    if config.tie in ("all", "inputs") and config.source_vocab not in (0, config.vocab):
        raise ValueError(
            f"model.tie = '{config.tie}' needs one vocabulary: set tokenizer.joint = true, or "
            "model.tie = 'decoder'"
        )


def decoder(config: Config) -> Config:
    """The config, with the decoder's depth, heads and mlp where it has its own."""
    c = config
    own = dict(depth=c.decoder_depth, heads=c.decoder_heads, mlp=c.decoder_mlp)
    return dataclasses.replace(c, **{name: value for name, value in own.items() if value})


@struct.dataclass
class Context:
    """What decoding reads of a source: per decoder layer keys and values, once per
    sentence, and which of them are padding."""

    memory: tuple[KeyValues, ...]
    mask_B11S: jax.Array


class Transformer(nn.Module):
    """Encoder-decoder of identical layers."""

    config: Config
    INPUTS = ("source", "target_in")

    def setup(self):
        c = self.config
        scale = c.width**0.5 if c.scale_embeddings else 1.0
        embed = partial(Embed, width=c.width, scale=scale, dtype=c.dtype)
        self.target_embed = embed(c.vocab)
        one = c.tie in ("all", "inputs")
        self.source_embed = self.target_embed if one else embed(c.source_vocab or c.vocab)
        self.unembed = embed(c.vocab) if c.tie in ("inputs", "none") else self.target_embed
        self.positions = layers.positions(c)
        if c.position == "learned":
            self.target_positions = layers.positions(c)
        if c.embedding_norm:
            self.source_norm, self.target_norm = layers.norm(c)(), layers.norm(c)()
        if c.output_bias:
            self.bias_V = parameter(self, "output_bias", initializers.zeros, "V", (c.vocab,))
        self.drop = Dropout(c.dropout)
        self.encoder = layers.stack(c)
        self.decoder = layers.stack(decoder(c), causal=True, cross=True)

    def encode(self, batch, train: bool = False):
        """States [B, S, D] of `batch["source"]` [B, S]; id 0 is padding, unless
        `batch["source_mask"]` says which are tokens."""
        packed_BS = batch.get("source_segments")
        itself = Visible(packed_BS, _tokens(batch), scattered="source_mask" in batch)
        x_BSD = self.source_embed(batch["source"])
        x_BSD = self.positions(x_BSD, 0, batch.get("source_positions"))
        x_BSD = self.source_norm(x_BSD) if self.config.embedding_norm else x_BSD
        return self.encoder(self.drop(x_BSD, train), itself, train=train)[0]

    def decode(self, batch, memory_BSD, train: bool = False):
        """States [B, T, D] of `batch["target_in"]` [B, T], each seeing itself, those before
        it (but where `batch["target_mask"]` is 0) and the memory."""
        packed_BT = batch.get("target_segments")
        # Padding is last, so what comes before a token is none, unless a mask says otherwise.
        mask_BT, scattered = batch.get("target_mask", packed_BT), "target_mask" in batch
        itself = Visible(packed_BT, mask_BT, causal=True, scattered=scattered)
        across = Visible(packed_BT, _tokens(batch), scattered="source_mask" in batch)
        x_BTD = self._embed_target(batch["target_in"], 0, batch.get("target_positions"))
        x_BTD = self.drop(x_BTD, train)
        return self.decoder(x_BTD, itself, memory_BSD, across, train=train)[0]

    def __call__(self, batch, train: bool = False):
        """Float32 logits [B, T, V] of the token after each of `batch["target_in"]`."""
        return self.predict(batch, train)["logits"].logits()

    def predict(self, batch, train: bool = False) -> dict[str, Product]:
        """The same, not multiplied out."""
        return {"logits": self._product(self.decode(batch, self.encode(batch, train), train))}

    def _product(self, x_BTD) -> Product:
        # It is there to be given, not learned: Marian's and BART's leave it alone.
        bias_V = jax.lax.stop_gradient(self.bias_V) if self.config.output_bias else None
        return self.unembed.product(x_BTD, bias_V)

    def _embed_target(self, target_BT, start, positions_BT=None):
        learned = self.config.position == "learned"
        positions = self.target_positions if learned else self.positions
        x_BTD = positions(self.target_embed(target_BT), start, positions_BT)
        return self.target_norm(x_BTD) if self.config.embedding_norm else x_BTD

    # Decoding, one position at a time: see tfx/decode.py.

    def start(self, batch) -> Context:
        """Encode sources and project them for every decoder layer."""
        mask_B11S = (_tokens(batch) > 0)[:, None, None]
        return Context(self.decoder.read(self.encode(batch)), mask_B11S)

    def init_cache(self, batch: int, slots: int) -> tuple[KeyValues, ...]:
        """Empty keys and values of `slots` decoded tokens, per decoder layer."""
        return layers.init_cache(decoder(self.config), batch, slots)

    def step(self, tokens_BW, cache, t, mask_BWS, context: Context):
        """Logits [B, W, V] after W parallel tokens at position t, written to the cache's
        slots t * W to t * W + W - 1; `mask_BWS` says which slots each may see."""
        beams = tokens_BW.shape[1]
        itself = layers.parallel(t, mask_BWS)
        x_BWD = self._embed_target(tokens_BW, 0, itself.queries_BT)
        x_BWD, cache = self.decoder(
            x_BWD, itself, context.memory, context.mask_B11S, cache, t * beams
        )
        return self._product(x_BWD).logits(), cache


def _tokens(batch) -> jax.Array:
    """What is no padding in a source, [B, S]: a mask, or the segments of packed sentences."""
    found = batch.get("source_segments", batch.get("source_mask"))
    return batch["source"] > 0 if found is None else found


MODEL = Transformer
