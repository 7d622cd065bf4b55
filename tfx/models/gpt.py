"""GPT: Radford et al. (2018), "Improving Language Understanding by Generative Pre-Training". A
Transformer's decoder alone, trained to predict the next token, then fine-tuned with a head.

    section 4.1   L   D    A   d_ff  positions  parameters
    base          12  768  12  3072        512  (not said; 116,534,784 with 40,478 tokens)

Differs from the paper: positions have a table of their own (the authors keep them in that of the
tokens, so that their logits are over positions too), and elements of embeddings are dropped, not
whole rows of the table. There are no start, delimiter and extract tokens: a head reads the last
token, and two texts follow each other (GPT-2's with its end of text between them). GELU is the
tanh form, as in the authors' code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.nn import initializers

from tfx.models import hf, layers
from tfx.models.layers import Layers
from tfx.nn.attention import KeyValues
from tfx.nn.block import Block, Stack
from tfx.nn.dropout import Dropout
from tfx.nn.kernels import Visible
from tfx.nn.linear import Embed, Linear, Product
from tfx.nn.mlp import ACTIVATIONS

# What a multiple choice reads of states [B, C, T, D], the choices of a row, or [B, T, D]. All but
# the first go along the axis behind B, whatever it is: Hugging Face's code.
SUMMARIES = {
    "token": lambda states, last: jnp.take_along_axis(states, last[..., None, None], -2)[..., 0, :],
    "first": lambda states, last: states[:, 0],
    "last": lambda states, last: states[:, -1],
    "mean": lambda states, last: states.mean(1),
}


@dataclass(frozen=True)
class Config(Layers):
    """Shape of the model. Defaults are GPT's."""

    width: layers.Positive = 768
    depth: layers.Positive = 12
    heads: layers.Positive = 12
    mlp: layers.Positive = 3072
    attention_dropout: layers.Rate = 0.1
    epsilon: layers.Epsilon = 1e-5
    position: layers.Position = "learned"
    max_length: layers.Positive = 512
    activation: layers.Activation = "gelu_tanh"
    embedding_dropout: layers.Rate = 0.1  # on embeddings, where `dropout` is on the other outputs
    by_depth: bool = False  # attention scores are divided by the number of the layer, from 1
    tie: bool = True  # the table of embeddings gives the logits
    head: Literal["none", "causal", "classify", "tokens", "span", "choice"] = "causal"
    classes: layers.Positive = 2  # of the heads classify and tokens; 1: a regression
    head_dropout: layers.Rate = 0.1  # before the layer that classifies, tags or chooses
    summary: Literal["token", "first", "last", "mean"] = "token"  # what the head choice reads
    summary_width: Literal["one", "width", "none"] = "one"  # what it makes of that; none: itself
    summary_activation: Literal["none", layers.Activation] = "none"


SIZES = {"base": {}}


def check(config: Config) -> None:
    """Raise a ValueError where fields do not fit each other."""
    layers.check(config)
    if config.head == "choice" and config.summary not in SUMMARIES:
        choices = ", ".join(SUMMARIES)
        raise ValueError(f"model.summary (summary_type) = '{config.summary}': tfx has {choices}")


def initial(config: Config) -> dict:
    """How parameters start, by their path: section 4.1."""
    return {"kernel$|embedding$": initializers.normal(0.02)}


LAYER = {  # ours -> theirs
    **{
        f"self_attention/{ours}": hf.At("h.{n}.attn.c_attn", part, 3)
        for part, ours in enumerate(("query", "key", "value"))
    },
    "self_attention/out": "h.{n}.attn.c_proj",
    "self_norm": "h.{n}.ln_1",
    "feed_forward/up": "h.{n}.mlp.c_fc",
    "feed_forward/down": "h.{n}.mlp.c_proj",
    "mlp_norm": "h.{n}.ln_2",
}
HEAD = {
    "classify": "score",
    "tokens": "classifier",
    "span": "qa_outputs",
    "choice": "multiple_choice_head.summary",
}


def names(config: Config) -> dict:
    """Where parameters are in Hugging Face's files."""
    return {
        "embed": "tokens_embed",
        "positions": "positions_embed",
        **{f"decoder/layers/{ours}": theirs for ours, theirs in LAYER.items()},
        "unembed": "lm_head",
        "classifier": hf.At(HEAD.get(config.head, ""), flipped=True),
    }


def special(theirs: dict, tensors: dict) -> dict:
    """What the files say and no single field does."""
    projects, summary = theirs.get("summary_use_proj", True), theirs.get("summary_type")
    one = theirs.get("summary_proj_to_labels", True)
    activation = theirs.get("summary_activation") or "none"
    found = {
        "vocab": theirs.get("vocab_size", 40478),
        "mlp": 4 * theirs.get("n_embd", 768),
        "tie": hf.tied(theirs, tensors, "lm_head", "tokens_embed"),
        "summary": {None: "token", "cls_index": "token"}.get(summary, summary),
        "summary_width": "none" if not projects else "one" if one else "width",
        "summary_activation": hf.ACTIVATIONS.get(activation, activation),
    }
    # Their GELU is always the tanh form.
    found |= {"activation": "gelu_tanh"} if theirs.get("afn", "gelu") == "gelu" else {}
    classes = tensors.get("score.weight", tensors.get("classifier.weight"))
    return found if classes is None else found | {"classes": len(classes)}


def unspecial(config: Config) -> dict:
    """The same, back."""
    activations = {"gelu_tanh": "gelu", "relu": "relu", "silu": "silu"}
    if config.activation not in activations or config.mlp != 4 * config.width:
        raise ValueError(
            f"model.activation = '{config.activation}', model.mlp = {config.mlp}: Hugging Face's "
            f"GPT has {', '.join(activations)}, and an mlp of 4 widths; --format=jax writes any"
        )
    afn = activations[config.activation]
    return about_head(config) | {"model_type": "openai-gpt", "afn": afn}


def unread(config: Config) -> set[str]:
    """Fields that the head of a config makes nothing of."""
    choice = {"summary", "summary_width", "summary_activation"}
    return set() if config.head == "choice" else choice


def about_head(config: Config) -> dict:
    """What their configuration says of the head."""
    back = {ours: theirs for theirs, ours in reversed(hf.ACTIVATIONS.items())}
    return {
        "num_labels": config.classes,
        "summary_type": {"token": "cls_index"}.get(config.summary, config.summary),
        "summary_use_proj": config.summary_width != "none",
        "summary_proj_to_labels": config.summary_width == "one",
        "summary_activation": back.get(config.summary_activation),
    }


def batch(about: dict, theirs: Mapping[str, Any]) -> dict:
    """Theirs. A multiple choice reads the tokens it is told or the last ones; a class is read off
    the last id that is not that of padding, whatever the mask."""
    given, last = hf.one_text(theirs), theirs.get("mc_token_ids")
    if last is None:
        ids, pad = jnp.asarray(given["ids"]), about.get("pad_token_id")
        choice = any("DoubleHeads" in name for name in about.get("architectures") or ())
        is_token = jnp.ones_like(ids) if choice or pad is None else ids != pad
        last = _last(is_token)
    return given | {"last": jnp.asarray(last)}


def outputs(config: Config, found: dict, seen: dict) -> dict:
    """Outputs as Hugging Face names them."""
    found, lm = dict(found), found.get("lm")
    found.pop("lm", None)
    if config.head == "choice":
        found["mc_logits"] = found["logits"]
        found["logits"] = lm.reshape(*found["states"].shape[:-1], lm.shape[-1])
    found = hf.of_one_text(found, {"encoder": seen["decoder"]})
    if config.head == "choice":  # they have choices apart in the last states alone
        *states, _ = found["hidden_states"]
        states = [*states, found["last_hidden_state"]]
        found |= {f"hidden_states.{n}": x for n, x in enumerate(states)}
    return found


FORMAT = hf.Format(
    prefix="transformer.",
    head="lm_head|score|classifier|qa_outputs|multiple_choice_head",
    heads={
        "LMHeadModel": {"head": "causal"},
        "Model": {"head": "none"},
        "ForSequenceClassification": {"head": "classify", "head_dropout": 0.0},
        "DoubleHeadsModel": {"head": "choice"},
    },
    config={
        "width": "n_embd",
        "depth": "n_layer",
        "heads": "n_head",
        "dropout": "resid_pdrop",
        "embedding_dropout": "embd_pdrop",
        "attention_dropout": "attn_pdrop",
        "head_dropout": "summary_first_dropout",
        "epsilon": "layer_norm_epsilon",
        "max_length": "n_positions",
        "activation": "afn",
        "tie": "tie_word_embeddings",
        "vocab": "vocab_size",
    },
    names=names,
    ignored=r"\.attn\.(masked_)?bias$|lm_head\.weight$|position_ids$",
    transposed=False,
    special=special,
    unspecial=unspecial,
    unread=unread,
    aliases={"tokens_embed.weight": "lm_head.weight"},
    causal=True,
    batch=batch,
    outputs=outputs,
)


@struct.dataclass
class Context:
    """What decoding reads of prompts: per layer keys and values, once for all hypotheses, which of
    them are there, where they stand, and where the last token of each stands."""

    memory: tuple[KeyValues, ...]
    mask_BS: jax.Array
    places_BS: jax.Array
    begin_B1: jax.Array


class Reader(Block):
    """A block that decodes behind a prompt: its cache is a pair then, that of the prompt, which
    stays as it is, and its own."""

    def look_back(self, y_BTD, mask, cache, slot, train):
        if not isinstance(cache, tuple):
            return super().look_back(y_BTD, mask, cache, slot, train)
        prompt, own = cache
        own = own.write(self.self_attention.keys_values(y_BTD, mask.queries_BT), slot)
        seen = jax.tree.map(lambda *parts: jnp.concatenate(parts, 2), prompt, own)
        return self.self_attention(y_BTD, seen, mask, train), (prompt, own)


class ByDepth(Stack):
    """A stack whose attention scores are divided by the number of their layer, from 1 (Mistral's
    training of GPT-2, against overflow in float16)."""

    def setup(self):
        super().setup()
        number_N = jnp.arange(1, self.depth + 1)

        def share(path, x):
            path = jax.tree_util.keystr(path, simple=True, separator="/")
            number = number_N.reshape(-1, *(1,) * (x.ndim - 1)).astype(x.dtype)
            return x / number if path.startswith("self_attention/query") else x

        self.layers = jax.tree_util.tree_map_with_path(share, self.layers)


class GPT(nn.Module):
    """Decoder of one text, and the head of its task."""

    config: Config
    INPUTS = ("ids",)

    def setup(self):
        c = self.config
        self.embed = Embed(c.vocab, c.width, dtype=c.dtype)
        self.unembed = self.embed if c.tie else Embed(c.vocab, c.width, dtype=c.dtype)
        self.positions = layers.positions(c)
        if c.embedding_norm:
            self.norm = layers.norm(c)()
        self.drop, self.head_drop = Dropout(c.embedding_dropout), Dropout(c.head_dropout)
        self.decoder = layers.stack(c, True, kind=ByDepth if c.by_depth else Stack, block=Reader)
        outputs = {"classify": c.classes, "tokens": c.classes, "span": 2}
        outputs["choice"] = {"one": 1, "width": c.width}.get(c.summary_width)
        if count := outputs.get(c.head):
            spec = "BTD,DL->BTL" if c.head in ("tokens", "span") else "BD,DL->BL"
            self.classifier = Linear(spec, {"L": count}, bias=c.head != "classify")

    def decode(self, batch, train: bool = False):
        """States [B, T, D] of `batch["ids"]` [B, T], each seeing itself and those before it. There
        may be `mask` [B, T], 0 on padding, `positions`, `types`, ids of what is added to each
        token, and, of packed texts, `segments`."""
        packed_BT = batch.get("segments")
        mask_BT = batch.get("mask") if packed_BT is None else packed_BT
        seen = Visible(packed_BT, mask_BT, causal=True, scattered="mask" in batch)
        x_BTD = self._embed(batch["ids"], batch.get("positions"), batch.get("types"))
        return self.decoder(self.drop(x_BTD, train), seen, train=train)[0]

    def __call__(self, batch, train: bool = False):
        """Float32 logits [B, T, V] of the token after each."""
        return self._product(self.decode(batch, train)).logits()

    def predict(self, batch, train: bool = False) -> dict:
        """What the head makes of a batch: `states` [B, T, D] and, where there are such, `logits`
        (of a language model, a `Product`), `start` and `end` [B, T]. Of a classification [B, L] or
        a multiple choice [B, C], whose ids are [B, C, T], also `lm`, the language model's: both
        read the token at `last`, without it the last one that the mask says to be one."""
        c, shape = self.config, batch["ids"].shape
        of_tokens = ("ids", "mask", "types", "positions", "segments")
        rows = {key: batch[key].reshape(-1, shape[-1]) for key in of_tokens if key in batch}
        x_BTD = self.decode(rows, train)
        found = {"states": x_BTD.reshape(*shape, -1)}
        if c.head == "causal":
            found["logits"] = self._product(x_BTD)
        elif c.head == "tokens":
            found["logits"] = self.classifier(self.head_drop(x_BTD, train))
        elif c.head == "span":
            logits_BTL = self.classifier(x_BTD)
            found |= {"start": logits_BTL[..., 0], "end": logits_BTL[..., 1]}
        elif c.head in ("classify", "choice"):
            last = batch["last"] if "last" in batch else _last(batch.get("mask", batch["ids"] >= 0))
            found |= {"logits": self._summarise(found["states"], last, train)}
            found |= {"lm": self._product(x_BTD)} if c.tie or c.head == "choice" else {}
        return found

    def _embed(self, ids_BT, positions_BT, types_BT=None):
        x_BTD = self.positions(self.embed(ids_BT), 0, positions_BT)
        x_BTD = x_BTD if types_BT is None else x_BTD + self.embed(types_BT)
        return self.norm(x_BTD) if self.config.embedding_norm else x_BTD

    def _product(self, x_BTD) -> Product:
        return self.unembed.product(x_BTD)

    def _summarise(self, states, last, train):
        c = self.config
        read = SUMMARIES[c.summary if c.head == "choice" else "token"](states, last)
        read = self.head_drop(read, train)
        if c.head == "classify":
            return self.classifier(read)
        if c.summary_width != "none":
            made = self.classifier(read.reshape(-1, read.shape[-1]))
            read = made.reshape(*read.shape[:-1], -1)
        if c.summary_activation != "none":
            read = ACTIVATIONS[c.summary_activation](read)
        return read[..., 0] if c.summary_width == "one" else read

    # Decoding, one position at a time: see tfx/decode.py.

    def start(self, batch) -> Context:
        """Read prompts `batch["ids"]` [B, P], padded on either side where `mask` is 0, but for
        their last token: that is the one to begin with."""
        ids_BS = batch["ids"]
        mask_BS = batch.get("mask", jnp.ones_like(ids_BS)) > 0
        places_BS = batch.get("positions", jnp.maximum(jnp.cumsum(mask_BS, -1) - 1, 0))
        places_BS = jnp.broadcast_to(places_BS, ids_BS.shape)
        placed = dict(queries_BT=places_BS, keys_BS=places_BS)
        seen = Visible(None, mask_BS, causal=True, scattered=True, **placed)
        x_BSD = self._embed(ids_BS, places_BS, batch.get("types"))
        _, memory = self.decoder(x_BSD, seen, cache=self.init_cache(*ids_BS.shape))
        last_B1 = _last(mask_BS)[:, None]
        mask_BS &= jnp.arange(ids_BS.shape[1])[None] < last_B1
        begin_B1 = jnp.take_along_axis(places_BS, last_B1, -1)
        return Context(memory, mask_BS, places_BS, begin_B1)

    def init_cache(self, batch: int, slots: int) -> tuple[KeyValues, ...]:
        """Empty keys and values of `slots` decoded tokens, per layer."""
        return layers.init_cache(self.config, batch, slots)

    def step(self, tokens_BW, cache, t, mask_BWS, context: Context):
        """Logits [B, W, V] after W parallel tokens, t positions behind the last of the prompt, and
        the cache, where they are written to the slots t * W to t * W + W - 1; `mask_BWS` says
        which slots each may see."""
        W, c = tokens_BW.shape[1], context
        itself = layers.parallel(t, mask_BWS)
        before_BWS = jnp.broadcast_to(c.mask_BS[:, None], (len(tokens_BW), W, c.mask_BS.shape[1]))
        itself = Visible(
            allowed_B1TS=jnp.concatenate([before_BWS, mask_BWS], -1)[:, None],
            queries_BT=c.begin_B1 + itself.queries_BT,
            keys_BS=jnp.concatenate([c.places_BS, c.begin_B1 + itself.keys_BS], -1),
        )
        x_BWD = self._embed(tokens_BW, itself.queries_BT)
        both = tuple(zip(c.memory, cache, strict=True))
        x_BWD, both = self.decoder(x_BWD, itself, cache=both, slot=t * W)
        return self._product(x_BWD).logits(), tuple(own for _, own in both)


def _last(is_token):
    """Where the last of them is, along the last axis; 0 where there is none."""
    is_token = is_token > 0
    return (jnp.cumsum(is_token, -1) * is_token).argmax(-1)


MODEL = GPT
