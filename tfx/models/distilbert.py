"""DistilBERT: Sanh et al. (2019), "a distilled version of BERT". Every other layer of BERT base,
without token types and pooler; how it is trained: tfx/objectives/distill.py.

    section 2   L  H    A    parameters (the paper's)
    base        6  768  12         66M

Differs from the paper: nothing is dropped before the span head.
"""

from dataclasses import dataclass
from typing import Literal

from tfx.models import bert, hf, layers

check = layers.check
initial = bert.initial
MODEL = bert.Bert


@dataclass(frozen=True)
class Config(bert.Config):
    """Shape of the model. Defaults are DistilBERT base."""

    depth: layers.Positive = 6
    types: layers.Count = 0
    pooler: Literal["none", "tanh", "relu"] = "relu"
    head: bert.Head = "mlm"
    head_dropout: layers.Rate = 0.2


SIZES = {"base": {}}
LAYER = {  # ours -> theirs
    "self_attention/query": "attention.q_lin",
    "self_attention/key": "attention.k_lin",
    "self_attention/value": "attention.v_lin",
    "self_attention/out": "attention.out_lin",
    "self_norm": "sa_layer_norm",
    "feed_forward/up": "ffn.lin1",
    "feed_forward/down": "ffn.lin2",
    "mlp_norm": "output_layer_norm",
}


def names(config: Config) -> dict:
    """Where parameters are in Hugging Face's files."""
    layer = lambda name: f"transformer.layer.{{n}}.{name}"
    return {
        "embed": bert.WORDS,
        "positions": "embeddings.position_embeddings",
        "norm": "embeddings.LayerNorm",
        **{f"encoder/layers/{ours}": layer(theirs) for ours, theirs in LAYER.items()},
        "pool/dense": "pre_classifier",
        "lm/dense": "vocab_transform",
        "lm/norm": "vocab_layer_norm",
        "lm/bias": "vocab_projector.bias",
        "unembed": "vocab_projector",
        "classifier": "qa_outputs" if config.head == "span" else "classifier",
    }


def special(theirs: dict, tensors: dict) -> dict:
    """What the files say and no single field does."""
    found = {} if "pre_classifier.weight" in tensors else {"pooler": "none"}
    found["tie"] = hf.tied(theirs, tensors, "vocab_projector", bert.WORDS)
    classes = tensors.get("classifier.weight")
    return found if classes is None else found | {"classes": len(classes)}


def unspecial(config: Config) -> dict:
    """The same, back."""
    if config.head == "none" and config.pooler != "none":
        raise ValueError(
            f"model.pooler = '{config.pooler}': Hugging Face's DistilBertModel has none, only its "
            "classifiers have one"
        )
    about = {"model_type": "distilbert", "num_labels": config.classes}
    return about | {"tie_word_embeddings": config.tie}


FORMAT = hf.Format(
    prefix="distilbert.",
    head="vocab_|pre_classifier|classifier|qa_outputs",
    heads={
        name: head
        for name, head in bert.FORMAT.heads.items()
        if name not in ("ForPreTraining", "ForNextSentencePrediction")
    },
    config={
        "width": "dim",
        "depth": "n_layers",
        "heads": "n_heads",
        "mlp": "hidden_dim",
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "head_dropout": "seq_classif_dropout",
        "max_length": "max_position_embeddings",
        "activation": "activation",
        "head_activation": "activation",
        "vocab": "vocab_size",
    },
    names=names,
    ignored=r"position_ids$|vocab_projector\.weight$",
    special=special,
    unspecial=unspecial,
    unread=bert.unread,
)
