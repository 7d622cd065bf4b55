"""How much arithmetic is in a step, and how fast could a device do it?

Counted by formula: the matrix products, two operations for a multiplication and an addition,
so 2 m n k for [m, k] times [k, n]. Attention counts the full square of queries and keys, masked
or not (the convention of Narayanan et al., 2021, "Megatron-LM", appendix), logits are counted,
and a backward pass costs two forward ones. Look-ups, norms, softmax and dropout are left out, and
heads that make a few numbers of a text or a token. XLA's own count is no substitute: it takes the
body of a loop over layers once.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from tfx import models
from tfx.nn.mlp import GATED

# Rows; tokens of a source; of a target, or of one text those that are predicted: `shape_of`.
Shape = tuple[int, int, int]


class Chip(NamedTuple):
    """What one device of JAX can do at best."""

    flops: float  # a second, bfloat16, dense
    memory: float  # bytes
    bandwidth: float  # bytes a second, to its memory
    links: float  # bytes a second that it sends to other chips, all links together, one way


GIB = 2**30
# Cloud TPU documentation, one page a generation (docs.cloud.google.com/tpu/docs/v5e, ...): it
# gives links both ways together, here halved; v4 from its paper (Jouppi et al., 2023: six links
# of 50 GB/s). NVIDIA's data sheets of the A100 80GB, H100 and H200 SXM: dense, NVLink one way.
CHIPS = {
    "v4": Chip(275e12, 32 * GIB, 1228e9, 300e9),
    "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9),
    "v5p": Chip(459e12, 95 * GIB, 2765e9, 600e9),
    "v6e": Chip(918e12, 32 * GIB, 1638e9, 400e9),
    "TPU7x": Chip(2307e12 / 2, 96 * GIB, 7380e9 / 2, 600e9 / 2),  # a chip is two devices
    "A100": Chip(312e12, 80 * GIB, 2039e9, 300e9),
    "H100": Chip(989e12, 80 * GIB, 3350e9, 450e9),
    "H200": Chip(989e12, 141 * GIB, 4800e9, 450e9),
}
KINDS = {"TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e"}  # as JAX calls them


def chip(kind: str) -> Chip | None:
    """The chip of a `device_kind`, such as "TPU v4" or "NVIDIA H100 80GB HBM3"; None for a CPU
    and whatever else is not in the table."""
    words = [KINDS.get(kind, ""), *re.split(r"[ -]", kind)]
    return next((CHIPS[word] for word in words if word in CHIPS), None)


def mfu(flops: float, seconds: float, devices: int, kind: str) -> float | None:
    """Model FLOPs utilisation (Chowdhery et al., 2022, appendix B): the share of the devices'
    peak that `flops` in `seconds` are. None where the peak is not known."""
    found = chip(kind)
    return flops / (seconds * devices * found.flops) if found else None


def shape_of(batch: Mapping) -> Shape:
    """The shape of a batch of any objective: rows, and the lengths of source and target. Of one
    text, `ids` [B, T] or [B, C, T], the last number is how many tokens are singled out to be
    predicted: `masked` [B, P] or `target_mapping` [B, P, T] say which; 0 where nothing does."""
    if "ids" not in batch:
        return *batch["source"].shape, batch["target_in"].shape[1]
    *rows, length = batch["ids"].shape
    chosen = next((batch[name] for name in ("masked", "target_mapping") if name in batch), None)
    return math.prod(rows), length, 0 if chosen is None else chosen.shape[1]


def forward(config, shape: Shape, beams: int = 1) -> int:
    """FLOPs of a forward pass of a model config over a batch.

    Args:
      beams: hypotheses of each source, `shape`'s target being the longest of them: then this
        is what a search costs that keeps keys and values.
    """
    return FORMULAS[models.family(config)](config, shape, beams).total()


def training(config, shape: Shape) -> int:
    """FLOPs of one training step, forward and backward, without what is computed twice."""
    return 3 * forward(config, shape)


def recomputed(config, shape: Shape) -> int:
    """FLOPs that a training step repeats to save memory: `remat` of a model config. Not part of
    the model's own, so MFU never counts them. Where single names are saved, at most so many."""
    parts = FORMULAS[models.family(config)](config, shape, 1)
    layers = ("projections", "attention", "mlp")
    again = {"none": (), "dots": ("attention",)}.get(config.remat, layers)
    return sum(parts[name] for name in again)


def stack(config, tokens: int, length: int, memory: tuple[int, int] | None = None) -> Counter:
    """FLOPs of the layers of a config, by part, over so many tokens in texts of a length; `memory`
    gives both of what they read, if they do."""
    c, parts = config, Counter()
    head = c.width // c.heads
    widths = c.heads * ((c.key_width or head) + (c.value_width or head))
    for keys, across in [(tokens, length)] + [memory] * (memory is not None):
        parts["projections"] += c.depth * 2 * c.width * widths * (tokens + keys)
        parts["attention"] += c.depth * 2 * widths * tokens * across
        if c.attention == "general":
            parts["attention"] += c.depth * 2 * c.heads * tokens * (c.key_width or head) ** 2
    if c.position == "xlnet":  # 2 * length distances, which rows share
        keys = c.heads * (c.key_width or head)
        parts["attention"] += c.depth * 2 * 2 * length * keys * (tokens + c.width)
    matrices = 3 if c.activation in GATED else 2
    parts["mlp"] += c.depth * 2 * tokens * c.width * c.mlp * matrices
    return parts


def transformer(config, shape: Shape, beams: int) -> Counter:
    """FLOPs of a forward pass, by part."""
    rows, source, target = shape
    sources, targets = rows * source, rows * beams * target  # tokens
    parts = stack(config, sources, source)
    parts += stack(models.transformer.decoder(config), targets, target, (sources, source))
    return parts + Counter(logits=2 * targets * config.width * config.vocab)


def t5(config, shape: Shape, beams: int) -> Counter:
    """The same. Of one text there is no target: a decoder, where the head has one, reads it too."""
    rows, source, target = shape
    if config.head in models.t5.ENCODER:
        return stack(config, rows * source, source)
    parts = transformer(config, (rows, source, target or source), beams)
    return parts if config.head == "lm" else parts - Counter(logits=parts["logits"])


def bert(config, shape: Shape, beams: int) -> Counter:
    """The same. The source of a `shape` is the text, its target the number of tokens whose logits
    a masked language model computes, 0 where those are all."""
    rows, length, predicted = shape
    parts = stack(config, rows * length, length)
    if config.head in ("mlm", "pretraining"):  # a layer on all states, then the table
        parts["logits"] = 2 * rows * length * config.width**2
        parts["logits"] += 2 * rows * (predicted or length) * config.width * config.vocab
    return parts


def xlnet(config, shape: Shape, beams: int) -> Counter:
    """The same. The source of a `shape` is the text, its target the number of tokens that the query
    stream predicts, 0 if there is none. A memory is left out."""
    rows, length, predicted = shape
    parts = stack(config, rows * length, length)
    if predicted:
        again = stack(config, rows * length, length)
        parts["projections"] += again["projections"] // 2  # keys and values are there
        places = 2 * 2 * rows * predicted * length * config.width  # to the text and back
        parts["attention"] += again["attention"] + config.depth * places
        parts["mlp"] += again["mlp"] * predicted // length
    logits = 2 * rows * (predicted or length) * config.width * config.vocab
    return parts + Counter(logits=logits * (config.head == "lm"))


def gpt(config, shape: Shape, beams: int) -> Counter:
    """The same. The source of a `shape` is the text, its target the number of tokens that are
    generated behind it, 0 in training. A language model beside another head is left out."""
    rows, length, more = shape
    tokens = rows * beams * more
    parts = stack(config, rows * length, length) + stack(config, tokens, length + more)
    logits = 2 * (tokens or rows * length) * config.width * config.vocab
    return parts + Counter(logits=logits * (config.head == "causal"))


FORMULAS = {
    models.transformer: transformer,
    models.marian: transformer,
    models.bart: transformer,
    models.t5: t5,
    models.bert: bert,
    models.roberta: bert,
    models.distilbert: bert,
    models.xlnet: xlnet,
    models.gpt: gpt,
    models.gpt2: gpt,
}
