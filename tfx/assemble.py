"""From a config to the parts of a run: tokenizer, model, batches."""

import dataclasses
import time
from pathlib import Path

import jax

from tfx import models, sharding
from tfx.data import pipeline, sources, tokenizer
from tfx.objectives import OBJECTIVES
from tfx.schema import Config


def silent(line: str) -> None:
    """Says nothing."""


def corpora(config: Config, split: str) -> list[sources.Corpus]:
    """The corpora of train, valid or test."""
    data = config.data
    return sources.open_split(data.source, getattr(data, split), data.fields, split)


def open_tokenizer(config: Config, directory: Path, say=silent) -> tokenizer.Tokenizer:
    """The workdir's tokenizer; at first use it is learned from the training text and kept."""
    if not (directory / "tokenizer.json").exists():
        c, read = config.tokenizer, corpora(config, "train")
        chunks = (chunk for corpus in read for chunk in corpus.chunks())
        tags = sorted({corpus.tag for corpus in read} - {""})
        settings = dict(joint=c.joint, lowercase=c.lowercase, path=c.path, tags=tags)
        tokenizer.build(c.kind, c.vocab, chunks, **settings).save(directory)
    ids = tokenizer.load(directory)
    sizes = " and ".join(f"{n:,}" for n in sorted(set(ids.vocab_sizes)))
    say(f"tokenizer: {ids.kind}, {sizes} pieces")
    return ids


def build_model(config: Config, ids: tokenizer.Tokenizer):
    """The model of a config, for the vocabulary of a tokenizer."""
    source, target = ids.vocab_sizes
    runtime = dict(vocab=target, source_vocab=source, dtype=config.train.dtype)
    return models.build(dataclasses.replace(config.model, **runtime))


def open_batches(
    config: Config,
    ids,
    directory: Path,
    split: str,
    *,
    multiple: int,
    parts: int = 1,
    shapes=None,
    say=silent,
) -> pipeline.Batches:
    """Batches of a split: shuffled epochs for train, once through for the others.

    Args:
      multiple: the rows of every batch are a multiple of this,
      parts: and, where that is less, filled up to a multiple of this.
      shapes: static shapes to use again, so that evaluation compiles nothing new.
    """
    train, c, began = split == "train", config, time.time()

    def progress(read: int) -> None:
        nonlocal began
        if time.time() - began > 5:
            began = time.time()
            say(f"{split}: {read:,} pairs encoded")

    pairs = pipeline.encode_corpora(
        corpora(c, split),
        ids,
        directory / "data",
        train=train,
        max_length=c.data.max_length,
        sampling=c.tokenizer.sampling if train else 0.0,
        progress=progress,
    )
    batches = pipeline.Batches(
        pairs,
        OBJECTIVES[c.objective.name].make_example,
        tokens=c.batch.tokens,
        kind=c.batch.kind,
        shapes=shapes or c.batch.shapes,
        multiple=multiple,
        parts=parts,
        max_length=c.data.max_length,
        seed=c.seed,
        train=train,
    )
    longest, most = max(max(shape[1:]) for shape in batches.shapes), c.model.max_length
    if longest > most:
        raise ValueError(
            f"{split} has pairs of up to {longest} tokens a side, model.max_length is {most}"
        )
    report = pairs.report
    dropped = [f"{report[k]:,} {k.replace('_', ' ')}" for k in ("empty", "too_long") if report[k]]
    note = f", dropped {' and '.join(dropped)}" if train and dropped else ""
    say(f"{split}: {report['pairs']:,} pairs{note}")
    return batches


def fetch(batches: pipeline.Batches, step: int, mesh) -> dict[str, jax.Array]:
    """The batch of a step, on its devices; each process builds only the rows on its own."""
    rows = batches.rows(step)
    here = batches.batch(step, sharding.rows_here(rows, mesh))
    return sharding.put_batch(here, mesh, rows)
