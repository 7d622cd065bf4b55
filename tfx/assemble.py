"""From a config to the parts of a run: tokenizer, model, batches."""

import collections
import dataclasses
import inspect
import itertools
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from flax import linen as nn

from tfx import bucket, checkpoint, models, sharding
from tfx.data import pipeline, sources, tokenizer, vocabulary
from tfx.data.cache import totals
from tfx.data.examples import Examples, Given
from tfx.data.rows import KINDS, LONGER
from tfx.objectives import OBJECTIVES, causal_lm, name_of
from tfx.schema import Config


def silent(line: str) -> None:
    """Says nothing."""


def objective(config: Config):
    """The file of a config's objective."""
    return OBJECTIVES[name_of(config.objective)]


def corpora(config: Config, split: str, kind: str = "") -> list[sources.Corpus]:
    """The corpora of train, valid or test, of the kind of rows that the objective reads."""
    data, home = config.data, objective(config)
    found = sources.open_split(
        data.source, getattr(data, split), data.fields, split, kind or home.ROWS
    )
    return home.read(config.objective, found) if hasattr(home, "read") else found


def lines(config: Config, split: str, most: int = 0) -> tuple[list[str], list[list[str]]]:
    """Read the sources of a split, in order, and all references of each.

    Args:
      most: of several corpora, the first lines of each, as `sizes` divides so many; 0: all.
    """
    has_labels = getattr(config.objective, "labels", "")
    opened = corpora(config, split, "pair" if has_labels else "references")
    counts = sizes(opened, most) if most and len(opened) > 1 else [most or None] * len(opened)
    found = ([], [])
    for corpus, count in zip(opened, counts, strict=True):
        rows = (row for chunk in corpus.chunks() for row in zip(*chunk, strict=True))
        for source, references in itertools.islice(rows, count):
            found[0].append(source)
            found[1].append([references] if has_labels else references)
    return found


def sizes(corpora: Sequence[sources.Corpus], most: int = 0) -> list[int]:
    """Count the rows of each corpus.

    Args:
      most: where they have more together, that many of them: so many of each corpus as it has of
        all rows, but one or more.
    """
    counts = [sum(len(chunk[0]) for chunk in corpus.chunks()) for corpus in corpora]
    if not most or most >= sum(counts):
        return counts
    exact = [most * count / sum(counts) for count in counts]
    shares = [int(share) for share in exact]
    by_rest = sorted(range(len(counts)), key=lambda at: shares[at] - exact[at])
    for at in by_rest[: most - sum(shares)]:
        shares[at] += 1
    for at, share in enumerate(shares):
        if not share and max(shares) > 1:
            shares[shares.index(max(shares))] -= 1
            shares[at] = 1
    return shares


def names(config: Config, corpora: Sequence[sources.Corpus]) -> list[str]:
    """Short names of corpora, all different: newstest2014 of data/newstest2014.en,... ."""
    found = [corpus.name for corpus in corpora]
    if config.data.source == "files":
        paths = [Path(name.partition(",")[0].removesuffix(".gz")) for name in found]
        found = [path.stem for path in paths]
        if len(set(found)) < len(found):
            found = [f"{path.parent.name}-{path.stem}".strip("-") for path in paths]
    seen, different = collections.Counter(), []
    for name in found:
        seen[name] += 1
        different.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return different


def open_tokenizer(config: Config, directory: Path, say=silent):
    """The workdir's tokenizer; at first use it is that of `init_from`, or the one that is named,
    or is learned from the training text; and kept.

    Raises:
      ValueError: `init_from` and `tokenizer.path` are two places.
    """
    if len(places := {config.init_from, config.tokenizer.path} - {""}) > 1:
        raise ValueError(
            f"tokenizer.path = {config.tokenizer.path}: the tokenizer is that of init_from = "
            f"{config.init_from}; leave one of them out"
        )
    if not (directory / "tokenizer.json").exists():
        place = next(iter(places), "")
        taken = config.init_from or (place and Path(place).is_dir())
        made = tokenizer_of(place) if taken else _learned(config)
        made.save(directory)
    ids = tokenizer.load(directory)
    sizes = " and ".join(f"{n:,}" for n in sorted(set(ids.vocab_sizes)))
    say(f"tokenizer: {ids.kind}, {sizes} pieces")
    return ids


def tokenizer_of(place: str):
    """The tokenizer of a workdir or a folder of Hugging Face."""
    if checkpoint.is_run(place):
        return tokenizer.load(bucket.local(place))
    return vocabulary.of_folder(place)


def _learned(config: Config):
    c, read, rows = config.tokenizer, corpora(config, "train"), objective(config).ROWS
    chunks = (chunk for corpus in read for chunk in corpus.chunks())
    if c.kind in ("bpe", "unigram", "bytes") and rows == "pair":
        tags = sorted({corpus.tag for corpus in read} - {""})
        settings = dict(joint=c.joint, lowercase=c.lowercase, path=c.path, tags=tags)
        return tokenizer.build(c.kind, c.vocab, chunks, **settings)
    if c.path:
        raise ValueError(f"tokenizer.path={c.path}: want a workdir or a folder of Hugging Face")
    return vocabulary.learn(c.kind, c.vocab, _lines(rows, chunks), lowercase=c.lowercase)


TEXTS = {  # the columns of rows that are text, as lines
    **dict.fromkeys(("source", "target", "text", "second", "question"), iter),
    "context": lambda column: (text for text, _ in itertools.groupby(column)),  # many questions'
    "tokens": partial(map, " ".join),
    "choices": itertools.chain.from_iterable,
}


def _lines(kind: str, chunks) -> Iterator[str]:
    """All that is text in rows of a kind: no ids, labels or tags."""
    for chunk in chunks:
        names = KINDS[kind] if len(chunk) == len(KINDS[kind]) else LONGER[kind]
        for name, column in zip(names, chunk, strict=True):
            yield from TEXTS[name](column) if name in TEXTS else ()


def build_model(config: Config, ids):
    """The model of a config, for the vocabulary of a tokenizer.

    Raises:
      ValueError: the embedding has fewer rows than the tokenizer has pieces.
    """
    source, target = ids.vocab_sizes
    if 0 < config.model.vocab < max(source, target):
        pieces = max(source, target)
        raise ValueError(
            f"model.vocab = {config.model.vocab}: the tokenizer has {pieces:,} pieces; "
            "put the one beside it that the model was trained with, or set model.vocab = 0"
        )
    return model_for(config, source, target)


def model_for(config: Config, source: int, target: int):
    """The model of a config, for so many pieces a side."""
    runtime = dict(vocab=config.model.vocab or target, dtype=config.train.dtype)
    if hasattr(config.model, "source_vocab"):
        runtime["source_vocab"] = config.model.vocab or source
    return models.build(dataclasses.replace(config.model, **runtime))


def make_loss(config: Config, model, teacher: nn.Module | None = None):
    """The objective of a config as loss(params, batch, rngs, train, frozen) -> (sum, weight,
    sums); `frozen` are the parameters of the teacher, if it has one."""
    home, settings = objective(config), dataclasses.asdict(config.objective)
    known = inspect.signature(home.loss).parameters
    # A config names the teacher; the loss takes what it says.
    chosen = {name: x for name, x in settings.items() if name in known and name != "teacher"}
    task = home.loss
    if settings.get("language"):
        task = causal_lm.with_task(task, settings["language"])

    def loss(params, batch, rngs, train, frozen=None):
        own = dict(chosen)
        if teacher is not None:
            run = partial(teacher.apply, {"params": frozen}, method="predict")
            own["teacher"] = run
        return task(partial(_predict, model), params, batch, rngs, train, **own)

    return loss


def _predict(model, params, batch, rngs=None, train=False):
    return model.apply({"params": params}, batch, train, rngs=rngs, method="predict")


def open_batches(
    config: Config,
    ids,
    directory: Path,
    split: str,
    *,
    multiple: int,
    parts: int = 1,
    shapes=None,
    train: bool | None = None,
    say=silent,
    rows: Sequence[sources.Corpus] | None = None,
) -> pipeline.Batches:
    """Batches of a split: shuffled epochs to train on, or once through.

    Args:
      train: which of the two; by default as the split is called.
      multiple: the rows of every batch are a multiple of this,
      parts: and, where that is less, filled up to a multiple of this.
      shapes: static shapes to use again, so that evaluation compiles nothing new.
      rows: instead of the split's.
    """
    train = split == "train" if train is None else train
    examples = open_examples(config, ids, directory, split, train=train, say=say, rows=rows)
    return batched(config, examples, multiple=multiple, parts=parts, shapes=shapes, train=train)


def batched(
    config: Config,
    examples: Examples,
    *,
    multiple: int,
    train: bool,
    parts: int = 1,
    shapes=None,
    corpus: int | None = None,
) -> pipeline.Batches:
    """Batches of examples, as `open_batches` makes them; of one corpus alone where it is given."""
    c = config
    return pipeline.Batches(
        examples,
        tokens=c.batch.tokens,
        kind=c.batch.kind,
        shapes=shapes or c.batch.shapes,
        multiple=multiple,
        parts=parts,
        max_length=c.data.max_length,
        seed=c.seed,
        train=train,
        positions=c.model.max_length,
        corpus=corpus,
    )


def open_examples(
    config: Config,
    ids,
    directory: Path,
    split: str,
    *,
    train: bool,
    say=silent,
    rows: Sequence[sources.Corpus] | None = None,
) -> Examples:
    """Encode a split, or other rows, as the objective wants it.

    Raises:
      ValueError: a row is longer than the model has positions; the objective, the tokenizer and
        the model do not fit together.
    """
    c, read = config, given(config, ids, directory, split, train, say, rows)
    examples = objective(c).examples(c.objective, read)
    types = getattr(c.model, "types", 2 if models.family(c.model) is models.xlnet else 1)
    if "types" in examples.axes and types == 1:
        raise ValueError(
            f"tokenizer.kind = {ids.kind} marks two texts by token types, which this model does "
            "not tell apart; use the tokenizer of its own family"
        )
    if train and c.batch.kind == "pack" and examples.unit != "pairs":
        raise ValueError(f"batch.kind = pack: packs pairs, not {examples.unit}; set it to bucket")
    where, counts = zip(*((part.name, part.kept) for part in examples.parts), strict=True)
    _fit(config, np.maximum.reduce(examples.lengths), where, counts)
    report = totals(examples.parts)
    if train:
        what = {"empty": "dropped empty", "too_long": "dropped too long"}
    else:  # which keeps all rows
        what = {
            "empty": "empty",
            "too_long": f"longer than data.max_length = {c.data.max_length:,}",
        }
    if c.data.truncate:
        what["too_long"] = "cut"
    counted = [f"{report[key]:,} {word}" for key, word in what.items() if report[key]]
    note = f", {' and '.join(counted)}" if counted else ""
    say(f"{split}: {report['kept']:,} {examples.unit}{note}")
    return examples


def check_sources(config: Config, ids, split: str, texts: Sequence[str], most: int = 0) -> None:
    """Compare the sources of a split with the positions of the model, before any is searched for.

    Args:
      texts, most: what `lines` has read, and of how many.

    Raises:
      ValueError: one is too long, and data.truncate does not cut it.
    """
    if config.data.truncate:
        return
    prefix, around = getattr(config.objective, "prefix", ""), len(ids.ends.around)
    rows = ids.source.encode([f"{prefix}{text}" if text.strip() else text for text in texts])
    opened = corpora(config, split)
    counts = sizes(opened, most) if len(opened) > 1 else [len(texts)]
    lengths = np.array([len(row) + around for row in rows])
    _fit(config, lengths, [corpus.name for corpus in opened], counts)


def _fit(config: Config, lengths: np.ndarray, where: Sequence[str], counts: Sequence[int]) -> None:
    """Refuse rows that have more tokens than the model has positions.

    Args:
      lengths: of all rows, corpus after corpus.
      where, counts: the corpora's names, and how many rows each has.
    """
    most = config.model.max_length
    beyond = np.flatnonzero(lengths > most)
    if not len(beyond):
        return
    first = int(beyond[0])
    corpus = int(np.searchsorted(np.cumsum(counts), first, side="right"))
    row = first - sum(counts[:corpus]) + 1
    more = f", and so are {len(beyond) - 1:,} more rows" if len(beyond) > 1 else ""
    raise ValueError(
        f"{where[corpus]}: row {row:,} is too long{more}: {lengths[first]:,} tokens, and "
        f"model.max_length is {most:,}; shorten it, or set data.truncate = true, which cuts to "
        f"data.max_length = {config.data.max_length:,}; a new run may also raise model.max_length"
    )


def given(
    config: Config, ids, directory: Path, split: str, train: bool, say=silent, rows=None
) -> Given:
    """What the objective makes its examples of: the split, or other rows."""
    began = time.time()

    def progress(read: int) -> None:
        nonlocal began
        if time.time() - began > 5:
            began = time.time()
            say(f"{split}: {read:,} rows encoded")

    return Given(
        corpora(config, split) if rows is None else rows,
        ids,
        directory / "data",
        train,
        config.data.max_length,
        config.model.max_length,
        config.data.truncate,
        config.tokenizer.sampling if train else 0.0,
        getattr(config.model, "classes", 0),
        config.seed,
        progress,
    )


def fetch(batches: pipeline.Batches, step: int, mesh) -> dict[str, jax.Array]:
    """The batch of a step, on its devices; each process builds only the rows on its own."""
    rows = batches.rows(step)
    here = batches.batch(step, sharding.rows_here(rows, mesh))
    return sharding.put_batch(here, mesh, rows)
