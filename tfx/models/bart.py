"""BART: Lewis et al. (2020), "Denoising Sequence-to-Sequence Pre-training".

    section 2   N   d_model  d_ff   h
    base        6       768  3072  12
    large       12     1024  4096  16

Differs from Vaswani et al. (2017), as the paper says: GELU, learned positions (two rows of the
table come before the first), and a norm on the embeddings, which are not scaled.
"""

from dataclasses import dataclass, replace

from jax.nn import initializers

from tfx.models import layers, marian, t5, transformer

check = transformer.check
MODEL = transformer.Transformer


@dataclass(frozen=True)
class Config(transformer.Config):
    """Shape of the model. Defaults are BART base."""

    width: layers.Positive = 768
    heads: layers.Positive = 12
    mlp: layers.Positive = 3072
    attention_dropout: layers.Rate = 0.1
    mlp_dropout: layers.Rate = 0.1
    epsilon: layers.Epsilon = 1e-5
    position: layers.Position = "learned"
    position_offset: layers.Count = 2
    embedding_norm: bool = True
    activation: layers.Activation = "gelu"
    scale_embeddings: bool = False
    output_bias: bool = True


SIZES = {"base": {}, "large": dict(width=1024, depth=12, heads=16, mlp=4096)}


def initial(config: Config) -> dict:
    """How parameters start, by their path: normal, 0.02 wide."""
    return {"kernel$|embedding$": initializers.normal(0.02)}


def unspecial(config: Config) -> dict:
    """What no single field of ours says."""
    if config.tie == "decoder" and config.output_bias:
        raise ValueError("model.tie = 'decoder': Hugging Face's BART has one table, or three")
    about = {"model_type": "bart", "tie_word_embeddings": config.tie == "all"}
    return marian.unspecial(config) | about


def batch(about: dict, theirs: dict) -> dict:
    """Theirs, for ours. Where they do not say what the decoder reads, it is the source."""
    given = marian.FORMAT.batch(about, theirs)
    return {"target_in": t5.shifted(given["source"], about["decoder_start_token_id"])} | given


FORMAT = replace(
    marian.FORMAT,
    heads={"Model": {"output_bias": False}, "ForConditionalGeneration": {"output_bias": True}},
    ignored=r"embed_tokens\.weight$|lm_head\.weight$|^shared\.weight$",
    unspecial=unspecial,
    batch=batch,
)
