"""XLNet: Yang et al. (2019), "Generalized Autoregressive Pretraining for Language Understanding".

    A.4     L   H     A   parameters (counted)
    large   24  1024  16       360M
    base    12  768   12       117M      (of the authors' release)

A text is read by two streams that share all weights. The content stream is an ordinary encoder.
The query stream has one row for each token to predict: it knows where that token is, but not what
it is, and reads the states of the content stream. Both may read a memory: the states of earlier
text. How tokens to predict are chosen: tfx/objectives/permutation_lm.py.

Differs from the paper: as in the authors' code, a query that may read nothing reads the mean of
all. The exact form of GELU is Hugging Face's; the authors have the tanh form. Dropout hides the
same parts of the relative encodings for the whole batch.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.nn import initializers

from tfx.models import hf, layers
from tfx.models.heads import Answer
from tfx.models.layers import Count, Layers, Positive
from tfx.nn.block import Block
from tfx.nn.dropout import Dropout
from tfx.nn.kernels import HIDDEN
from tfx.nn.linear import Embed, Linear, parameter
from tfx.nn.mlp import ACTIVATIONS
from tfx.nn.relative import Related, encodings


@dataclass(frozen=True)
class Config(Layers):
    """Shape of the model. Defaults are XLNet large."""

    width: Positive = 1024
    depth: Positive = 24
    heads: Positive = 16
    mlp: Positive = 4096
    attention_dropout: layers.Rate = 0.1
    mlp_dropout: layers.Rate = 0.1
    epsilon: layers.Epsilon = 1e-12
    attention_bias: bool = False
    position: layers.Position = "xlnet"
    activation: layers.Activation = "gelu"
    causal: bool = False  # nothing sees what comes after it (Transformer-XL)
    same_length: bool = False  # causal: all see equally far back
    bi_data: bool = False  # the second half of a batch runs backwards
    clamp: Count = 0  # distances beyond it are as far; 0: none is
    memory: Count = 0  # tokens that the next segment reads, at most; 0: all
    reuse: Count = 0  # of each segment, only so many first tokens are kept; 0: all
    tie: bool = True  # the table of embeddings gives the logits
    head: Literal["none", "lm", "classify", "tokens", "choice", "span", "beam"] = "lm"
    classes: Positive = 2  # of the heads classify and tokens; 1: a regression
    summary: Literal["last", "first", "mean"] = "last"  # state that stands for a text
    summary_dense: bool = True
    head_activation: Literal[*ACTIVATIONS, "none"] = "tanh"
    head_dropout: layers.Rate = 0.1
    start_top: Positive = 5  # of the head beam: starts to follow
    end_top: Positive = 5  # and ends of each


SIZES = {"large": {}, "base": dict(width=768, depth=12, heads=12, mlp=3072)}


def check(config: Config) -> None:
    """Raise a ValueError where fields do not fit each other."""
    layers.check(config)
    for name in ("bi_data", "clamp"):
        if config.position != "xlnet" and getattr(config, name):
            raise ValueError(f"model.{name} = {getattr(config, name)} is for position = 'xlnet'")


def initial(config: Config) -> dict:
    """How parameters start, by their path: normal with 0.02, all but norms and biases of layers."""
    return {"kernel$|embedding$|_bias$|vectors$|mask$": initializers.normal(0.02)}


# ------------------------------------------------------------------ in Hugging Face's files

HEADED = {"query": "q", "key": "k", "value": "v", "out": "o", "distance": "r"}
LAYER = {  # ours -> theirs
    **{
        f"self_attention/{ours}/kernel": hf.At(
            f"layer.{{n}}.rel_attn.{theirs}", flipped=ours != "out", heads=True
        )
        for ours, theirs in HEADED.items()
    },
    "self_attention/content_bias": "layer.{n}.rel_attn.r_w_bias",
    "self_attention/position_bias": "layer.{n}.rel_attn.r_r_bias",
    "self_attention/segment_bias": "layer.{n}.rel_attn.r_s_bias",
    "self_attention/segment_vectors": "layer.{n}.rel_attn.seg_embed",
    "self_norm": "layer.{n}.rel_attn.layer_norm",
    "feed_forward/up": "layer.{n}.ff.layer_1",
    "feed_forward/down": "layer.{n}.ff.layer_2",
    "mlp_norm": "layer.{n}.ff.layer_norm",
}
CLASSIFIERS = {"tokens": "classifier", "span": "qa_outputs"}


def names(config: Config) -> dict:
    """Where parameters are in Hugging Face's files."""
    return {
        "embed": "word_embedding",
        "mask": hf.At("mask_emb", ones=2),
        **{f"encoder/layers/{ours}": theirs for ours, theirs in LAYER.items()},
        "unembed": "lm_loss",
        "lm_bias": "lm_loss.bias",
        "summary": "sequence_summary.summary",
        "classifier": CLASSIFIERS.get(config.head, "logits_proj"),
        "answer/start": "start_logits.dense",
        "answer/end_hidden": "end_logits.dense_0",
        "answer/end_norm": "end_logits.LayerNorm",
        "answer/end": "end_logits.dense_1",
        "answer/impossible_hidden": "answer_class.dense_0",
        "answer/impossible": "answer_class.dense_1",
    }


# ours -> theirs, and what it is where it is not said; theirs may be null
SPECIAL = {
    "key_width": ("d_head", 0),
    "value_width": ("d_head", 0),
    "memory": ("mem_len", 512),
    "reuse": ("reuse_len", 0),
    "head_activation": ("summary_activation", "tanh"),
}
OLD = {"width": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads"}


def special(theirs: dict, tensors: dict) -> dict:
    """What the files say and no single field does."""
    for name, known in {
        "attn_type": ("bi", "uni"),
        "summary_type": ("last", "first", "mean", "cls_index"),
        "summary_proj_to_labels": (False, None),
        "summary_first_dropout": (0, None),
    }.items():
        if name in theirs and theirs[name] not in known:
            raise ValueError(f"{name} = {theirs[name]!r}: tfx has {', '.join(map(repr, known))}")
    found = {ours: theirs[name] for ours, name in OLD.items() if name in theirs}
    for ours, (name, default) in SPECIAL.items():
        found[ours] = theirs.get(name, default) or ("none" if ours == "head_activation" else 0)
    found["vocab"] = theirs.get("vocab_size", theirs.get("n_token", 32_000))
    found["causal"] = theirs.get("attn_type") == "uni"
    found["clamp"] = max(theirs.get("clamp_len") or 0, 0)
    # Their model never says where the class token is: it is the last one.
    summary = theirs.get("summary_type", "last")
    found["summary"] = "last" if summary == "cls_index" else summary
    found["tie"] = hf.tied(theirs, tensors, "lm_loss", "word_embedding")
    classes = tensors.get("classifier.weight", tensors.get("logits_proj.weight"))
    return found if classes is None else found | {"classes": len(classes)}


def unspecial(config: Config) -> dict:
    """What no single field of ours says."""
    c = config
    return {
        "model_type": "xlnet",
        "num_labels": c.classes,
        "d_head": layers.key_width(c),
        "attn_type": "uni" if c.causal else "bi",
        "mem_len": c.memory or None,
        "reuse_len": c.reuse or None,
        "clamp_len": c.clamp or -1,
        "tie_word_embeddings": c.tie,
        **({"summary_activation": ""} if c.head_activation == "none" else {}),
    }


def unread(config: Config) -> set[str]:
    """Fields that the head of a config makes nothing of."""
    summary = {"summary", "summary_dense", "head_activation"}
    found = set() if config.head in ("classify", "choice") else summary
    found |= set() if config.head == "beam" else {"start_top", "end_top"}
    return found | (set() if config.head == "lm" else {"tie"})


def to_batch(about: dict, theirs: dict) -> dict:
    """Our batch, from the arguments of their model."""
    batch = hf.one_text(theirs)
    names = {"perm_mask": "perm_mask", "target_mapping": "target_mapping", "cls": "cls_index"}
    names |= {"start": "start_positions", "end": "end_positions"}
    batch |= {ours: theirs[name] for ours, name in names.items() if theirs.get(name) is not None}
    batch |= {key: batch[key].reshape(-1) for key in ("cls", "start", "end") if key in batch}
    if theirs.get("input_mask") is not None:
        batch["mask"] = 1 - theirs["input_mask"]
    if theirs.get("p_mask") is not None:
        batch["allowed"] = 1 - theirs["p_mask"]
    if theirs.get("mems") is not None:
        batch["memory"] = jnp.moveaxis(theirs["mems"], 2, 0)
    *rows, length = batch["ids"].shape
    rest = batch["target_mapping"].shape[1] if "target_mapping" in batch else length
    return {"cls": jnp.full(rows, rest - 1)} | batch


OUTPUTS = {
    "states": "last_hidden_state",
    "start": "start_logits",
    "end": "end_logits",
    "start_probs": "start_top_log_probs",
    "start_at": "start_top_index",
    "end_probs": "end_top_log_probs",
    "end_at": "end_top_index",
    "impossible": "cls_logits",
}


def to_outputs(config: Config, found: dict, seen: dict) -> dict:
    """Outputs as Hugging Face names them; of two streams, those of each."""
    outputs = {OUTPUTS.get(key, key): x for key, x in found.items()}
    outputs["mems"] = jnp.moveaxis(outputs.pop("memory"), 0, 2)
    seen = seen["encoder"]
    states_NBTD, streams = seen["states"][0], seen["layers"][0]["self_attention"]["weights"]
    if len(streams) == 1:
        return outputs | {"hidden_states": states_NBTD, "attentions": streams[0]}
    cut = streams[0].shape[-2]
    for n, x_BTD in enumerate(states_NBTD):
        both = x_BTD[:, :cut], x_BTD[:, cut:]
        outputs |= {f"hidden_states.{2 * n + m}": x for m, x in enumerate(both)}
    for m, weights_NBHTS in enumerate(streams):
        outputs |= {f"attentions.{n}.{m}": x for n, x in enumerate(weights_NBHTS)}
    return outputs


FORMAT = hf.Format(
    prefix="transformer.",
    head="lm_loss|sequence_summary|logits_proj|classifier|qa_outputs|start_logits|end_logits|answer",
    heads={
        "Model": {"head": "none"},
        "LMHeadModel": {"head": "lm"},
        "ForSequenceClassification": {"head": "classify"},
        "ForTokenClassification": {"head": "tokens"},
        "ForMultipleChoice": {"head": "choice"},
        "ForQuestionAnsweringSimple": {"head": "span"},
        "ForQuestionAnswering": {"head": "beam"},
    },
    config={
        "width": "d_model",
        "depth": "n_layer",
        "heads": "n_head",
        "mlp": "d_inner",
        "attention_dropout": "dropout",
        "mlp_dropout": "dropout",
        "dropout": "dropout",
        "epsilon": "layer_norm_eps",
        "activation": "ff_activation",
        "same_length": "same_length",
        "bi_data": "bi_data",
        "summary": "summary_type",
        "summary_dense": "summary_use_proj",
        "head_activation": "summary_activation",
        "head_dropout": "summary_last_dropout",
        "start_top": "start_n_top",
        "end_top": "end_n_top",
        "vocab": "vocab_size",
    },
    names=names,
    ignored=r"lm_loss\.weight$",
    special=special,
    unspecial=unspecial,
    unread=unread,
    batch=to_batch,
    outputs=to_outputs,
)


# ------------------------------------------------------------------ the model


@struct.dataclass
class Streams(Related):
    """What the streams see.

    Attributes:
      content_B1TS, query_B1TS: added to the scores of each, whatever else is.
      places_BPT: 1 where a row of the query stream stands; None: there is no such stream.
    """

    content_B1TS: jax.Array | None = None
    query_B1TS: jax.Array | None = None
    places_BPT: jax.Array | None = None

    def only(self, hidden_B1TS: jax.Array) -> "Streams":
        """What one of them sees."""
        rest = 0.0 if self.bias_BHTS is None else self.bias_BHTS
        return self.replace(bias_BHTS=rest + hidden_B1TS)


class TwoStream(Block):
    """A layer of both streams: x [B, T + P, D] is content, then queries. Its cache is a memory
    [B, M, D], and after it what was read: that and the content."""

    def look_back(self, y_BTD, mask, cache, slot, train):
        """Section 2.3: both streams read the content, the queries from their places in it."""
        if mask is None:  # its shapes are wanted
            return super().look_back(y_BTD, mask, cache, slot, train)
        attention, places_BPT = self.self_attention, mask.places_BPT
        length = mask.content_B1TS.shape[2]
        content_BTD, query_BPD = y_BTD[:, :length], y_BTD[:, length:]
        read_BSD = jnp.concatenate([cache, content_BTD], 1)
        seen = attention.keys_values(read_BSD, mask.keys_BS)
        y_BTD = attention(content_BTD, seen, mask.only(mask.content_B1TS), train)
        if places_BPT is not None:
            x_BTD = jnp.einsum("BPT,BPD->BTD", places_BPT, query_BPD)
            x_BTD = attention(x_BTD, seen, mask.only(mask.query_B1TS), train)
            query_BPD = jnp.einsum("BPT,BTD->BPD", places_BPT, x_BTD)
            y_BTD = jnp.concatenate([y_BTD, query_BPD], 1)
        return y_BTD, read_BSD


class XLNet(nn.Module):
    """Encoder of one text, or of two in one row, in two streams; and the head of its task."""

    config: Config
    INPUTS = ("ids",)

    def setup(self):
        c = self.config
        self.embed = Embed(c.vocab, c.width, dtype=c.dtype)
        self.mask_D = parameter(self, "mask", initializers.normal(0.02), "D", (c.width,))
        self.positions = layers.positions(c)
        if c.embedding_norm:
            self.norm = layers.norm(c)()
        self.drop = Dropout(c.dropout)
        attention = layers.attention(c)
        if c.position == "xlnet":
            attention = partial(attention, segments=True)
        self.encoder = layers.stack(c, c.causal, block=TwoStream, attention=attention)
        if c.head == "lm":
            self.unembed = self.embed if c.tie else Embed(c.vocab, c.width, dtype=c.dtype)
            self.bias_V = parameter(self, "lm_bias", initializers.zeros, "V", (c.vocab,))
        elif c.head == "beam":
            self.answer = Answer(c.width, layers.norm(c), c.start_top, c.end_top)
        elif c.head != "none":
            spec = "BTD,DL->BTL" if c.head in CLASSIFIERS else "BD,DL->BL"
            self.classifier = Linear(spec, {"L": {"choice": 1, "span": 2}.get(c.head, c.classes)})
        if c.head in ("classify", "choice") and c.summary_dense:
            self.summary = Linear("BD,DE->BE", {"E": c.width})
        self.head_drop = Dropout(c.head_dropout)

    def encode(self, batch, train: bool = False):
        """States of `batch["ids"]` [B, T], and memory for the text that follows, [B, N, M, D],
        which no gradient enters.

        The batch may have `mask` [B, T], 0 on padding; `types` [B, T]; `memory`, as this returns
        it, seen by all; `perm_mask` [B, T, T], 1 where the token of a row cannot see that of a
        column, other than itself; and `target_mapping` [B, P, T], 1 at the place of each token to
        predict: then states are those of the query stream [B, P, D], else of the content [B, T, D].
        """
        c, (rows, length) = self.config, batch["ids"].shape
        if c.bi_data and rows % 2 and not self.is_initializing():
            raise ValueError(f"model.bi_data halves a batch: {rows} rows are odd; take one more")
        x_BTD = self.embed(batch["ids"])
        memory_NBMD = jnp.zeros((c.depth, rows, 0, c.width), x_BTD.dtype)
        if "memory" in batch:
            memory_NBMD = jnp.moveaxis(batch["memory"], 1, 0).astype(x_BTD.dtype)
        kept = memory_NBMD.shape[2]
        streams = self._streams(batch, kept, x_BTD.dtype, train)
        at_BTD = self.positions(jnp.zeros_like(x_BTD))
        x_BTD += at_BTD
        if (places_BPT := streams.places_BPT) is not None:
            query_BPD = jnp.einsum("BPT,BTD->BPD", places_BPT, at_BTD)
            query_BPD += self.mask_D.astype(x_BTD.dtype)[None, None]
            x_BTD = jnp.concatenate([x_BTD, query_BPD], 1)
        x_BTD = self.drop(self.norm(x_BTD) if c.embedding_norm else x_BTD, train)
        x_BTD, read = self.encoder(x_BTD, streams, cache=memory_NBMD, train=train)
        x_BTD = self.drop(x_BTD if places_BPT is None else x_BTD[:, length:], train)
        read_NBSD = jnp.stack(read)[:, :, : kept + (c.reuse or length)]
        memory_BNMD = jnp.moveaxis(read_NBSD[:, :, -c.memory :], 0, 1)
        return x_BTD, jax.lax.stop_gradient(memory_BNMD)

    def _streams(self, batch, kept: int, dtype, train: bool) -> Streams:
        c, length = self.config, batch["ids"].shape[1]
        s_S, t_T = jnp.arange(kept + length), kept + jnp.arange(length)
        s_11S, t_1T1 = s_S[None, None], t_T[None, :, None]
        hidden_BTS = (s_11S > t_1T1) & c.causal
        hidden_BTS |= (s_11S < t_1T1 - kept) & (c.causal and c.same_length)
        behind_memory = lambda x_BTT: jnp.pad(x_BTT, ((0, 0), (0, 0), (kept, 0)))
        if "mask" in batch:
            hidden_BTS |= behind_memory(batch["mask"][:, None] == 0)
        if "perm_mask" in batch:
            hidden_BTS |= behind_memory(batch["perm_mask"] > 0)
        cost = lambda hidden_BTS: jnp.where(hidden_BTS, HIDDEN, 0.0)[:, None]
        found = dict(queries_BT=t_T[None], keys_BS=s_S[None], query_B1TS=cost(hidden_BTS))
        found["content_B1TS"] = cost(hidden_BTS & (s_11S != t_1T1))
        if "target_mapping" in batch:
            found["places_BPT"] = batch["target_mapping"].astype(dtype)
        if c.position == "xlnet":
            ways = (1, -1) if c.bi_data else (1,)
            made_GLD = encodings(length, kept + length, c.width, c.clamp, ways)
            found["encodings_GLD"] = self.drop(made_GLD.astype(dtype), train)
        if "types" in batch:  # a memory is of type 0, whatever it was
            types_B1T = batch["types"][:, None]
            found["apart_BTS"] = types_B1T.swapaxes(1, 2) != behind_memory(types_B1T)
        return Streams(**found)

    def predict(self, batch, train: bool = False) -> dict:
        """What the head makes of a batch, and what `encode` returns: `states` and `memory`. The
        others are `logits` (of a language model, a `Product`), of spans `start` and `end` [B, T],
        and of the head beam what `Answer` finds, where `start` [B] may be known and `allowed`
        [B, T] said. Of a multiple choice, all of the batch is [B, C, T] and `logits` are [B, C].

        A text is summed up by its last token, or the one at `cls` [B].
        """
        c, choices = self.config, batch["ids"].shape[:-1]
        if c.head == "choice":
            sizes = {"cls": (-1,)} | dict.fromkeys(
                ("ids", "mask", "types"), (-1, batch["ids"].shape[-1])
            )
            flat = {key: batch[key].reshape(shape) for key, shape in sizes.items() if key in batch}
            batch = batch | flat
        x_BTD, memory_BNMD = self.encode(batch, train)
        found = {"states": x_BTD, "memory": memory_BNMD}
        if c.head == "lm":
            return found | {"logits": self.unembed.product(x_BTD, self.bias_V)}
        if c.head == "tokens":
            return found | {"logits": self.classifier(x_BTD)}
        if c.head == "span":
            logits_BTL = self.classifier(x_BTD)
            return found | {"start": logits_BTL[..., 0], "end": logits_BTL[..., 1]}
        if c.head == "beam":
            known = batch.get("allowed"), batch.get("start")
            return found | self.answer(x_BTD, _last(batch), *known)
        if c.head == "none":
            return found
        logits_BL = self.classifier(self._summary(x_BTD, batch, train))
        return found | {"logits": logits_BL.reshape(choices) if c.head == "choice" else logits_BL}

    def _summary(self, x_BTD, batch, train: bool) -> jax.Array:
        c, at_B11 = self.config, _last(batch)[:, None, None]
        if c.summary == "mean":
            x_BD = x_BTD.mean(1)
        else:
            at_B11 = at_B11 if c.summary == "last" else jnp.zeros_like(at_B11)
            x_BD = jnp.take_along_axis(x_BTD, at_B11, 1)[:, 0]
        x_BD = self.summary(x_BD) if c.summary_dense else x_BD
        x_BD = x_BD if c.head_activation == "none" else ACTIVATIONS[c.head_activation](x_BD)
        return self.head_drop(x_BD, train)


def _last(batch) -> jax.Array:
    """Where the token is that stands for a text [B]."""
    if "cls" in batch:
        return batch["cls"]
    mask_BT = batch.get("mask", jnp.ones_like(batch["ids"]))
    return mask_BT.shape[1] - 1 - jnp.argmax(mask_BT[:, ::-1] > 0, 1)


MODEL = XLNet
