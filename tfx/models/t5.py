"""T5: Raffel et al. (2020), "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer", and its version 1.1 (their code, 2020; Flan-T5's sizes are these).

    sections 2.1, 3.1.2, 3.7       N  d_model   d_ff    h  d_kv  parameters
    small                          6      512   2048    8    64        60M
    base                          12      768   3072   12    64       220M
    large                         24     1024   4096   16    64       770M
    3b                            24     1024  16384   32   128       2.8B
    11b                           24     1024  65536  128   128        11B
    v1_1-small                     8      512   1024    6    64        77M
    v1_1-base                     12      768   2048   12    64       248M
    v1_1-large                    24     1024   2816   16    64       783M
    v1_1-xl                       24     2048   5120   32    64       2.8B
    v1_1-xxl                      24     4096  10240   64    64        11B

N layers a side. Norms come first and have no mean and no bias, nor has any linear layer a bias;
scores are not scaled; what a token knows of positions is a bias on its scores, one table for all
layers of a stack. Version 1.1 has a gated mlp, and an output table of its own whose input is not
scaled; it was trained without dropout, which comes back in fine-tuning.

Differs from the paper: nothing. Heads that classify are Hugging Face's; the paper has every task
as text.
"""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

from tfx.models import hf, layers, transformer
from tfx.models.heads import Pooler
from tfx.nn.dropout import Dropout
from tfx.nn.linear import Linear, Product
from tfx.nn.mlp import GATED


@dataclass(frozen=True)
class Config(transformer.Config):
    """Shape of the model. Defaults are T5 small."""

    key_width: layers.Count = 64
    value_width: layers.Count = 64
    attention_dropout: layers.Rate = 0.1
    mlp_dropout: layers.Rate = 0.1
    norm: Literal["post", "pre"] = "pre"
    norm_kind: Literal["layer", "rms"] = "rms"
    attention: Literal["scaled", "dot", "general", "additive"] = "dot"
    attention_bias: bool = False
    mlp_bias: bool = False
    position: layers.Position = "t5"
    scale_embeddings: bool = False
    scale_output: bool = True  # states by 1 / sqrt(width), before the logits
    start: layers.Count = 0  # the id that the decoder reads first
    eos: layers.Count = 1  # the id whose last state in a text is the text's: head "classify"
    head: Literal["lm", "none", "encoder", "classify", "tokens", "span"] = "lm"
    classes: layers.Positive = 2  # of the heads classify and tokens; 1: a regression
    head_dropout: layers.Rate = 0.0


V1_1 = dict(activation="geglu_tanh", tie="inputs", scale_output=False)
SIZES = {
    "small": {},
    "base": dict(width=768, depth=12, heads=12, mlp=3072),
    "large": dict(width=1024, depth=24, heads=16, mlp=4096),
    "3b": dict(width=1024, depth=24, heads=32, mlp=16384, key_width=128, value_width=128),
    "11b": dict(width=1024, depth=24, heads=128, mlp=65536, key_width=128, value_width=128),
    "v1_1-small": V1_1 | dict(depth=8, heads=6, mlp=1024),
    "v1_1-base": V1_1 | dict(width=768, depth=12, heads=12, mlp=2048),
    "v1_1-large": V1_1 | dict(width=1024, depth=24, heads=16, mlp=2816),
    "v1_1-xl": V1_1 | dict(width=2048, depth=24, heads=32, mlp=5120),
    "v1_1-xxl": V1_1 | dict(width=4096, depth=24, heads=64, mlp=10240),
}
ENCODER = ("encoder", "tokens")  # heads without a decoder
check = transformer.check


def initial(config: Config) -> dict:
    """How parameters start, by their path: the authors' code, where queries start small in place
    of a scale on the scores."""
    c, width = config, layers.key_width(config)
    return {
        "embed/embedding$": initializers.normal(1.0),
        "query/kernel$": initializers.normal((c.width * width) ** -0.5),
        "out/kernel$": initializers.normal((c.heads * layers.value_width(c)) ** -0.5),
        "down/kernel$": initializers.normal(c.mlp**-0.5),
        "kernel$|embedding$": initializers.normal(c.width**-0.5),
    }


ATTENTION = {  # ours -> theirs
    f"{ours}_attention/{part}": f"{theirs}.{name}"
    for ours, theirs in (("self", "0.SelfAttention"), ("cross", "1.EncDecAttention"))
    for part, name in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o"))
}


def names(config: Config) -> dict:
    """Where parameters are in Hugging Face's files."""
    top = "transformer." if config.head in ("classify", "tokens") else ""
    up, found = "wi_1" if config.activation in GATED else "wi", {}
    for stack, last in ("encoder", 1), ("decoder", 2):
        layer = ATTENTION | {
            "self_norm": "0.layer_norm",
            "cross_norm": "1.layer_norm",
            "mlp_norm": f"{last}.layer_norm",
            "feed_forward/gate": f"{last}.DenseReluDense.wi_0",
            "feed_forward/up": f"{last}.DenseReluDense.{up}",
            "feed_forward/down": f"{last}.DenseReluDense.wo",
        }
        block = f"{top}{stack}.block"
        found |= {f"{stack}/layers/{ours}": f"{block}.{{n}}.layer.{n}" for ours, n in layer.items()}
        found[f"{stack}/distance"] = f"{block}.0.layer.0.SelfAttention.relative_attention_bias"
        found[f"{stack}/norm"] = f"{top}{stack}.final_layer_norm"
    classifiers = {"classify": "classification_head.out_proj", "span": "qa_outputs"}
    return found | {
        "target_embed": f"{top}shared",
        "unembed": "lm_head",
        "pool/dense": "classification_head.dense",
        "classifier": classifiers.get(config.head, "classifier"),
    }


THEIR_GATED = {"relu": "reglu", "gelu": "geglu", "gelu_tanh": "geglu_tanh", "silu": "swiglu"}


def activation(theirs: dict) -> str:
    """The activation that a config.json says in one field, or in three, of which the later two
    then count. "gated-gelu" alone means the form with tanh."""
    said = theirs.get("feed_forward_proj", "relu")
    kind, _, name = said.rpartition("-")
    name = theirs.get("dense_act_fn", "gelu_new" if said == "gated-gelu" else name)
    gated, plain = theirs.get("is_gated_act", kind == "gated"), hf.ACTIVATIONS.get(name)
    found = THEIR_GATED.get(plain) if gated else plain
    if found is None:
        known = [name for name, ours in hf.ACTIVATIONS.items() if not gated or ours in THEIR_GATED]
        raise ValueError(
            f'config.json: feed_forward_proj = "{said}": tfx has no {"gated " * gated}"{name}", '
            f"but {', '.join(known)}"
        )
    return found


def start(theirs: dict) -> int:
    """The id that the decoder of a config.json reads first."""
    found = theirs.get("decoder_start_token_id")
    return theirs.get("pad_token_id") or 0 if found is None else found


def special(theirs: dict, tensors: dict) -> dict:
    """What the files say and no single field does."""
    if isinstance(eos := theirs.get("eos_token_id"), list):
        raise ValueError(f"config.json: eos_token_id = {eos}: tfx has one; leave the others out")
    # Newer versions of transformers write that the tables are one even where they are not.
    own = tensors.get("lm_head.weight")
    tied = own is None or np.array_equal(own, tensors.get("shared.weight"))
    scaled = theirs.get("scale_decoder_outputs", theirs.get("tie_word_embeddings") is not False)
    found = {
        "activation": activation(theirs),
        "tie": "all" if tied else "inputs",
        "scale_output": bool(scaled) and theirs.get("model_type") != "mt5",
        "decoder_depth": theirs.get("num_decoder_layers") or 0,
        "eos": 1 if eos is None else eos,
        "start": start(theirs),
    }
    last = tensors.get("classifier.weight", tensors.get("classification_head.out_proj.weight"))
    return found if last is None else found | {"classes": len(last)}


def unspecial(config: Config) -> dict:
    """The same, back."""
    plain = {gated: ours for ours, gated in THEIR_GATED.items()}
    gated = config.activation in plain
    # Of both forms of GELU theirs takes "gelu", where it is gated, for that with tanh.
    back = {ours: name for name, ours in reversed(hf.ACTIVATIONS.items())}
    back |= {"gelu": "gelu_python"} if gated else {}
    if (kind := plain.get(config.activation, config.activation)) not in back:
        choices = ", ".join((*back, *plain))
        raise ValueError(f"model.activation = '{kind}': Hugging Face's T5 has {choices}")
    name = back[kind]
    return {
        "model_type": "t5",
        "d_kv": layers.key_width(config),
        "is_encoder_decoder": config.head not in ENCODER,
        "feed_forward_proj": "gated-" + name.removesuffix("_new") if gated else name,
        "dense_act_fn": name,
        "is_gated_act": gated,
        "num_decoder_layers": config.decoder_depth or config.depth,
        "tie_word_embeddings": config.scale_output,  # what they take it for
        "scale_decoder_outputs": config.scale_output,
        "num_labels": config.classes,
    }


def batch(about: dict, theirs: dict) -> dict:
    """Theirs, for ours."""
    labels = theirs.get("labels")
    classes = any("SequenceClassification" in name for name in about.get("architectures") or ())
    if labels is not None and (classes or labels.ndim != 2):
        theirs = {**theirs, "labels": None}  # they are no text
    return hf.two_texts(theirs, start(about), about.get("pad_token_id") or 0)


def outputs(config: Config, found: dict, seen: dict) -> dict:
    """Ours, as they name them."""
    one = hf.of_one_text(found, seen)
    return one | hf.of_two_texts(found, seen) if "decoder" in seen else one


FORMAT = hf.Format(
    prefix="",
    head="",
    heads={  # the first that fits is taken where a file does not say
        "ForConditionalGeneration": {"head": "lm"},
        "WithLMHeadModel": {"head": "lm"},  # as it was called first
        "ForSequenceClassification": {"head": "classify"},
        "ForTokenClassification": {"head": "tokens"},
        "ForQuestionAnswering": {"head": "span"},
        "EncoderModel": {"head": "encoder"},
        "Model": {"head": "none"},
    },
    config={
        "width": "d_model",
        "key_width": "d_kv",
        "value_width": "d_kv",
        "depth": "num_layers",
        "heads": "num_heads",
        "mlp": "d_ff",
        "dropout": "dropout_rate",
        "attention_dropout": "dropout_rate",
        "mlp_dropout": "dropout_rate",
        "head_dropout": "classifier_dropout",
        "epsilon": "layer_norm_epsilon",
        "position_buckets": "relative_attention_num_buckets",
        "position_furthest": "relative_attention_max_distance",
        "start": "decoder_start_token_id",
        "eos": "eos_token_id",
        "vocab": "vocab_size",
    },
    names=names,
    # Copies of the embeddings, and a table of old files that nothing reads.
    ignored=r"embed_tokens\.weight$|^lm_head\.weight$|EncDecAttention\.relative_attention_bias\.",
    special=special,
    unspecial=unspecial,
    unread=lambda config: set() if config.head == "lm" else {"tie", "scale_output"},
    aliases={  # in this order: the encoder's copy may be the decoder's
        f"{top}{name}.weight": f"{top}{copy}.weight"
        for top in ("", "transformer.")
        for name, copy in (
            ("encoder.embed_tokens", "decoder.embed_tokens"),
            ("shared", "encoder.embed_tokens"),
        )
    },
    batch=batch,
    outputs=outputs,
)


def shifted(ids_BT, start: int):
    """The ids one to the right, behind `start`."""
    return jnp.pad(ids_BT[:, :-1], ((0, 0), (1, 0)), constant_values=start)


class T5(transformer.Transformer):
    """Encoder-decoder, or encoder alone, and the head of its task."""

    config: Config

    @property
    def INPUTS(self):
        return ("source", "target_in") if self.config.head in ("lm", "none") else ("ids",)

    def setup(self):
        super().setup()
        c, by_text = self.config, self.config.head == "classify"
        if by_text:
            self.pool = Pooler("tanh", c.head_dropout)
        if c.head in ("classify", "tokens", "span"):
            self.head_drop = Dropout(c.head_dropout)
            classes = 2 if c.head == "span" else c.classes
            self.classifier = Linear("BD,DL->BL" if by_text else "BTD,DL->BTL", {"L": classes})

    def encode(self, batch, train: bool = False):
        """As the Transformer's; dropout falls on what comes out too."""
        return self.drop(super().encode(batch, train), train)

    def decode(self, batch, memory_BSD, train: bool = False):
        """As the Transformer's; dropout falls on what comes out too."""
        return self.drop(super().decode(batch, memory_BSD, train), train)

    def predict(self, batch, train: bool = False) -> dict:
        """What the head makes of a batch: `states` of the last stack [B, T, D] and, where there
        are such, `logits` (of the language model, a `Product`), `start` and `end` [B, T].

        Args:
          batch: `source` and `target_in`, with a mask each; or one text, `ids` and `mask`. Where
            there is no `target_in` the decoder reads the source too, shifted. What is to be
            classified has `Config.eos` in it.
        """
        head = self.config.head
        if "ids" in batch:
            mask_BS = batch.get("mask", jnp.ones_like(batch["ids"]))
            batch = batch | {"source": batch["ids"], "source_mask": mask_BS}
        if "target_in" not in batch:
            batch = batch | {"target_in": shifted(batch["source"], self.config.start)}
        x_BTD = self.encode(batch, train)
        x_BTD = x_BTD if head in ENCODER else self.decode(batch, x_BTD, train)
        found = {"states": x_BTD}
        if head == "lm":
            return found | {"logits": self._product(x_BTD)}
        if head == "classify":
            # The last end of the source, at the same place of what the decoder reads.
            ends_BS = batch["source"][:, ::-1] == self.config.eos
            last_B11 = ends_BS.shape[1] - 1 - ends_BS.argmax(-1)[:, None, None]
            x_BD = self.pool(jnp.take_along_axis(x_BTD, last_B11, 1)[:, 0], train)
            return found | {"logits": self.classifier(self.head_drop(x_BD, train))}
        if head == "tokens":
            return found | {"logits": self.classifier(self.head_drop(x_BTD, train))}
        if head == "span":
            logits_BTL = self.classifier(x_BTD)
            return found | {"start": logits_BTL[..., 0], "end": logits_BTL[..., 1]}
        return found

    def _product(self, x_BTD) -> Product:
        scale = self.config.width**-0.5 if self.config.scale_output else 1.0
        return super()._product(x_BTD * scale)


MODEL = T5
