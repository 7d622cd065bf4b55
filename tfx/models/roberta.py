"""RoBERTa: Liu et al. (2019), "A Robustly Optimized BERT Pretraining Approach". BERT's model,
trained longer and otherwise: tfx/objectives/masked_lm.py.

    section 3.1, 4   L   H     A
    base             12  768   12
    large            24  1024  16

Differs from the paper: nothing. It has one token type, which is added all the same, and positions
start behind that of padding: two rows of the table before the first token's, as fairseq has it.
"""

from dataclasses import dataclass, replace

import jax.numpy as jnp

from tfx.models import bert, distilbert, hf, layers

check = layers.check
initial = bert.initial
MODEL = bert.Bert


@dataclass(frozen=True)
class Config(bert.Config):
    """Shape of the model. Defaults are RoBERTa base."""

    epsilon: layers.Epsilon = 1e-5
    position_offset: layers.Count = 2
    types: layers.Count = 1
    pooler_dropout: layers.Rate = 0.1
    head: bert.Head = "mlm"


SIZES = {name: bert.SIZES[name] for name in ("base", "large")}


def names(config: Config) -> dict:
    """Where parameters are in Hugging Face's files."""
    found = bert.names(config) | {
        "lm/dense": "lm_head.dense",
        "lm/norm": "lm_head.layer_norm",
        "lm/bias": "lm_head.bias" if config.tie else "lm_head.decoder.bias",
        "unembed": "lm_head.decoder",
    }
    if config.head == "classify":
        found |= {"pool/dense": "classifier.dense", "classifier": "classifier.out_proj"}
    return found


def special(theirs: dict, tensors: dict) -> dict:
    """What the files say and no single field does."""
    offset = theirs.get("pad_token_id", 1) + 1
    length = theirs.get("max_position_embeddings", 512) - offset
    own = {"position_offset": offset, "max_length": length, "head_activation": "gelu"}
    own["tie"] = hf.tied(theirs, tensors, "lm_head.decoder", bert.WORDS)
    # The head that classifies brings a pooler of its own.
    pooler = {"pooler": "tanh"} if "classifier.dense.weight" in tensors else {"pooler_dropout": 0.0}
    return bert.special(theirs, tensors) | own | pooler


def unspecial(config: Config) -> dict:
    """The same, back."""
    rows = config.max_length + config.position_offset
    own = {"model_type": "roberta", "pad_token_id": config.position_offset - 1}
    return bert.unspecial(config) | own | {"max_position_embeddings": rows}


def batch(about: dict, theirs: dict) -> dict:
    """Theirs, where positions count tokens, and padding has the one before the first."""
    pad, given = about.get("pad_token_id", 1), hf.one_text(theirs)
    token = given["ids"] != pad
    rows = given.get("positions", jnp.cumsum(token, -1) * token + pad)
    return given | {"positions": rows - (pad + 1)}


FORMAT = replace(
    bert.FORMAT,
    prefix="roberta.",
    head="lm_head|classifier|qa_outputs",
    heads=distilbert.FORMAT.heads,
    names=names,
    ignored=r"position_ids$|lm_head\.(decoder\.|bias)",
    special=special,
    unspecial=unspecial,
    batch=batch,
)
