"""BERT: Devlin et al. (2019), "Pre-training of Deep Bidirectional Transformers".

    section 3   L   H     A   parameters (the paper's)
    base        12  768   12       110M
    large       24  1024  16       340M

    and of Google's later small ones (Turc et al., 2019): tiny, mini, small, medium
    tiny        2   128   2        4.4M
    mini        4   256   4       11.3M
    small       4   512   8       29.1M
    medium      8   512   8       41.7M

Differs from the paper: nothing. The exact form of GELU is that of the first release of the
authors' code and of Hugging Face; later releases have the tanh form (`activation = gelu_tanh`).
"""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers

from tfx.models import hf, layers
from tfx.models.heads import MaskedLM, Pooler
from tfx.models.layers import Count, Layers
from tfx.nn.dropout import Dropout
from tfx.nn.kernels import Visible
from tfx.nn.linear import Embed, Linear, parameter

check = layers.check
Head = Literal["none", "pretraining", "mlm", "nsp", "classify", "tokens", "choice", "span"]


@dataclass(frozen=True)
class Config(Layers):
    """Shape of the model. Defaults are BERT base."""

    width: layers.Positive = 768
    depth: layers.Positive = 12
    heads: layers.Positive = 12
    mlp: layers.Positive = 3072
    attention_dropout: layers.Rate = 0.1
    epsilon: layers.Epsilon = 1e-12
    position: layers.Position = "learned"
    max_length: layers.Positive = 512
    embedding_norm: bool = True
    activation: layers.Activation = "gelu"
    types: Count = 2  # token types; 0: none
    pooler: Literal["none", "tanh", "relu"] = "tanh"  # the layer that makes a text's vector
    pooler_dropout: layers.Rate = 0.0  # before it
    head: Literal["none", "pretraining", "mlm", "nsp", "classify", "tokens", "choice", "span"] = (
        "pretraining"
    )
    classes: layers.Positive = 2  # of the heads classify and tokens; 1: a regression
    head_dropout: layers.Rate = 0.1
    head_activation: layers.Activation = "gelu"  # of the masked LM
    tie: bool = True  # the table of embeddings gives its logits


SIZES = {
    "base": {},
    "large": dict(width=1024, depth=24, heads=16, mlp=4096),
    "tiny": dict(width=128, depth=2, heads=2, mlp=512),
    "mini": dict(width=256, depth=4, heads=4, mlp=1024),
    "small": dict(width=512, depth=4, heads=8, mlp=2048),
    "medium": dict(width=512, depth=8, heads=8, mlp=2048),
}


def initial(config: Config) -> dict:
    """How parameters start, by their path: the authors' truncated normal of 0.02."""
    return {"kernel$|embedding$|types$": initializers.truncated_normal(0.02)}


LAYER = {  # ours -> theirs
    "self_attention/query": "attention.self.query",
    "self_attention/key": "attention.self.key",
    "self_attention/value": "attention.self.value",
    "self_attention/out": "attention.output.dense",
    "self_norm": "attention.output.LayerNorm",
    "feed_forward/up": "intermediate.dense",
    "feed_forward/down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
WORDS = "embeddings.word_embeddings"


def names(config: Config) -> dict:
    """Where parameters are in Hugging Face's files."""
    nsp, span = config.head in ("pretraining", "nsp"), config.head == "span"
    bias = "bias" if config.tie else "decoder.bias"
    return {
        "embed": WORDS,
        "positions": "embeddings.position_embeddings",
        "types": "embeddings.token_type_embeddings.weight",
        "norm": "embeddings.LayerNorm",
        **{f"encoder/layers/{ours}": f"encoder.layer.{{n}}.{name}" for ours, name in LAYER.items()},
        "pool/dense": "pooler.dense",
        "lm/dense": "cls.predictions.transform.dense",
        "lm/norm": "cls.predictions.transform.LayerNorm",
        "lm/bias": f"cls.predictions.{bias}",
        "unembed": "cls.predictions.decoder",
        "classifier": "cls.seq_relationship" if nsp else "qa_outputs" if span else "classifier",
    }


def special(theirs: dict, tensors: dict) -> dict:
    """What the files say and no single field does."""
    if theirs.get("is_decoder"):
        raise ValueError("config.json: is_decoder = true: tfx has no such variant of BERT")
    found = {} if "pooler.dense.weight" in tensors else {"pooler": "none"}
    found["tie"] = hf.tied(theirs, tensors, "cls.predictions.decoder", WORDS)
    classes = tensors.get("classifier.weight", tensors.get("classifier.out_proj.weight"))
    return found if classes is None else found | {"classes": len(classes)}


def unspecial(config: Config) -> dict:
    """The same, back."""
    if not config.types:
        raise ValueError(
            "model.types = 0: Hugging Face's BERT has at least one; set 1 and train on"
        )
    about = {"model_type": "bert", "num_labels": config.classes}
    return about | {"tie_word_embeddings": config.tie}


def unread(config: Config) -> set[str]:
    """Fields that the head of a config makes nothing of."""
    masked = config.head in ("pretraining", "mlm")
    found = set() if masked else {"head_activation", "tie"}
    return found | ({"pooler"} if config.head in ("mlm", "tokens", "span") else set())


FORMAT = hf.Format(
    prefix="bert.",
    head="cls|classifier|qa_outputs",
    heads={
        "Model": {"head": "none"},
        "ForPreTraining": {"head": "pretraining"},
        "ForMaskedLM": {"head": "mlm"},
        "ForNextSentencePrediction": {"head": "nsp"},
        "ForSequenceClassification": {"head": "classify"},
        "ForTokenClassification": {"head": "tokens"},
        "ForMultipleChoice": {"head": "choice"},
        "ForQuestionAnswering": {"head": "span"},
    },
    config={
        "width": "hidden_size",
        "depth": "num_hidden_layers",
        "heads": "num_attention_heads",
        "mlp": "intermediate_size",
        "dropout": "hidden_dropout_prob",
        "attention_dropout": "attention_probs_dropout_prob",
        "epsilon": "layer_norm_eps",
        "max_length": "max_position_embeddings",
        "activation": "hidden_act",
        "head_activation": "hidden_act",
        "types": "type_vocab_size",
        "vocab": "vocab_size",
    },
    names=names,
    ignored=r"position_ids$|cls\.predictions\.(decoder\.|bias)",
    special=special,
    unspecial=unspecial,
    unread=unread,
)


class Bert(nn.Module):
    """Encoder of one text, or of two in one row, and the head of its task."""

    config: Config
    INPUTS = ("ids",)

    def setup(self):
        c = self.config
        self.embed = Embed(c.vocab, c.width, dtype=c.dtype)
        self.positions = layers.positions(c)
        if c.types:
            init = initializers.normal(c.width**-0.5)
            self.types_LD = parameter(self, "types", init, "LD", (c.types, c.width))
        if c.embedding_norm:
            self.norm = layers.norm(c)()
        self.drop = Dropout(c.dropout)
        self.encoder = layers.stack(c)
        if c.head in ("pretraining", "mlm"):
            self.lm = MaskedLM(c.head_activation, layers.norm(c))
            self.unembed = self.embed if c.tie else Embed(c.vocab, c.width, dtype=c.dtype)
        if c.pooler != "none" and c.head not in ("mlm", "tokens", "span"):
            self.pool = Pooler(c.pooler, c.pooler_dropout)
        self.head_drop = Dropout(c.head_dropout)
        classes = {"pretraining": 2, "nsp": 2, "choice": 1, "span": 2}.get(c.head, c.classes)
        if c.head not in ("none", "mlm"):
            by_token = c.head in ("tokens", "span")
            spec = "BTD,DL->BTL" if by_token else "BD,DL->BL"
            self.classifier = Linear(spec, {"L": classes})

    def encode(self, batch, train: bool = False):
        """States [B, T, D] of `batch["ids"]` [B, T]. `mask` [B, T], 0 on padding, `types`,
        `positions` and, of packed texts, `segments` may be there too."""
        packed_BT = batch.get("segments")
        x_BTD = self.embed(batch["ids"])
        x_BTD = self.positions(x_BTD, 0, batch.get("positions"))
        if self.config.types:
            types_BT = batch.get("types", jnp.zeros_like(batch["ids"]))
            x_BTD += self.types_LD[types_BT].astype(x_BTD.dtype)
        x_BTD = self.norm(x_BTD) if self.config.embedding_norm else x_BTD
        mask_BT = batch.get("mask") if packed_BT is None else packed_BT
        seen = Visible(packed_BT, mask_BT, scattered="mask" in batch)
        return self.encoder(self.drop(x_BTD, train), seen, train=train)[0]

    def predict(self, batch, train: bool = False) -> dict:
        """What the head makes of a batch: `states` [B, T, D] and, where there are such, `pooled`
        [B, D], `logits` (of a masked LM, a `Product`), `nsp` [B, 2], `start` and `end` [B, T].
        Of a multiple choice, all of the batch is [B, C, T] and `logits` are [B, C]."""
        c, choices = self.config, batch["ids"].shape[:-1]
        if c.head == "choice":
            batch = {key: x.reshape(-1, x.shape[-1]) for key, x in batch.items()}
        x_BTD = self.encode(batch, train)
        found = {"states": x_BTD}
        if c.head in ("pretraining", "mlm"):
            found["logits"] = self.lm(x_BTD, self.unembed)
        if c.head in ("tokens", "span"):
            logits_BTL = self.classifier(self.head_drop(x_BTD, train and c.head == "tokens"))
            if c.head == "tokens":
                return found | {"logits": logits_BTL}
            return found | {"start": logits_BTL[..., 0], "end": logits_BTL[..., 1]}
        if c.pooler == "none" or c.head == "mlm":
            return found
        found["pooled"] = pooled_BD = self.pool(x_BTD[:, 0], train)
        if c.head == "none":
            return found
        name = "nsp" if c.head in ("pretraining", "nsp") else "logits"
        # Pre-training drops nothing here: the authors' code.
        dropped_BD = self.head_drop(pooled_BD, train and name == "logits")
        logits_BL = self.classifier(dropped_BD)
        return found | {name: logits_BL.reshape(choices) if c.head == "choice" else logits_BL}


MODEL = Bert
