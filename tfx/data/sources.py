"""Where do sentence pairs come from? Three kinds of source, one way to read them: as chunks.

    synthetic   the embedded grammar, tfx/data/grammar.py
    files       line-parallel text, .tsv, .jsonl, each also .gz
    tfds:NAME   TensorFlow Datasets

A split is one corpus or several, separated by white space; a corpus is names separated by
commas, then options:

    a.en,a.de    b.tsv,weight=2    c.jsonl.gz,tag=<2de>    train[:90%],weight=0.5
"""

import functools
import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tfx.data import grammar, text, tfds

CHUNK = 1 << 14  # pairs

Chunks = Callable[[], Iterator[tuple[list[str], list[str]]]]


@dataclass(frozen=True)
class Corpus:
    """Sentence pairs that can be read any number of times.

    `chunks()` yields (sources, targets), equally long lists of at most 65,536 strings; the tag
    is already in front of every source that is not blank, and empty lines are kept as "".
    A pair of weight w is met w times an epoch. The fingerprint is a sha256 over the content,
    whatever its path, and the tag.
    """

    name: str
    chunks: Chunks
    weight: float = 1.0
    tag: str = ""
    fingerprint: str = ""


def open_split(source: str, spec: str, fields: str, split: str) -> list[Corpus]:
    """The corpora that `data.source`, `data.SPLIT` (= `spec`) and `data.fields` describe.

    `fields`: JSONL keys (default "source,target"), TSV columns from 1 (default "1,2"), TFDS
    features (default: supervised_keys). Files are counted and sniffed here, before anything
    expensive. Raises ValueError or FileNotFoundError, one line each.
    """
    if not spec.split():
        raise ValueError(f"data.{split} is empty; name at least one corpus")
    if source not in ("synthetic", "files") and not re.match("tfds:.", source):
        raise ValueError(f'data.source="{source}": no such source; synthetic, files or tfds:NAME')
    corpora = []
    for corpus in spec.split():
        names, weight, tag = _parse(corpus, f"data.{split}")
        if source == "files":
            chunks, identity = _files(names, fields, f"data.{split}")
        elif len(names) > 1:
            raise ValueError(f'data.{split}: "{corpus}" must be one split, not {len(names)}')
        elif source == "synthetic":
            chunks, identity = _synthetic(names[0], f"data.{split}")
        else:
            chunks, identity = tfds.open_split(source.removeprefix("tfds:"), names[0], fields)
        fingerprint = hashlib.sha256(f"{identity}\n{tag}".encode()).hexdigest()
        name = ",".join(names) if source == "files" else f"{source} {names[0]}"
        corpora.append(Corpus(name, _tagged(chunks, tag), weight, tag, fingerprint))
    return corpora


def _parse(corpus: str, where: str) -> tuple[list[str], float, str]:
    """Names, weight and tag of one corpus."""
    options, names = {"weight": "1", "tag": ""}, []
    for part in corpus.split(","):
        if not (option := re.match(r"([a-z_]+)=", part)):
            names.append(part)
        elif option[1] in options:
            options[option[1]] = part[option.end() :]
        else:
            raise ValueError(f'{where}: "{part}" is no option; weight=NUMBER or tag=WORD')
    try:
        weight = float(options["weight"])
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ValueError(f"{where}: weight={options['weight']} must be a number above 0")
    if not all(names) or not names:
        raise ValueError(f'{where}: "{corpus}" holds an empty name; separate names by one comma')
    return names, weight, options["tag"]


def _tagged(chunks: Chunks, tag: str) -> Chunks:
    def tagged():
        for source, target in chunks():
            # A blank source stays blank, so that it is still seen, and counted, as wordless.
            yield [f"{tag} {line}" if line.strip() else line for line in source], target

    return tagged if tag else chunks


def _synthetic(split: str, where: str) -> tuple[Chunks, str]:
    if split not in ("train", "valid", "test"):
        raise ValueError(f'{where}="{split}": the synthetic splits are train, valid and test')
    return lambda: _in_chunks(iter(_drawn(split))), f"synthetic {grammar.VERSION} {split}"


@functools.cache
def _drawn(split: str) -> list[tuple[str, str]]:
    """A first run reads the corpus twice, for the vocabulary and for the ids; drawing it takes
    seconds."""
    return list(grammar.pairs(split))


def _files(names: list[str], fields: str, where: str) -> tuple[Chunks, str]:
    """Counted and hashed now, read later."""
    paths = [str(Path(name).expanduser()) for name in names]
    kind = paths[0].removesuffix(".gz").rpartition(".")[2]
    if len(paths) == 1 and kind in ROWS:
        parse, fields = ROWS[kind](fields)
        _, digest = text.scan(paths[0])
        return lambda: _in_chunks(_rows(paths[0], parse)), f"{kind} {digest} {fields}"
    if len(paths) != 2:
        raise ValueError(
            f'{where}: "{",".join(names)}" must be two line-parallel text files, "a.en,a.de", '
            "or one .tsv or .jsonl file (.gz too)"
        )
    (sources, source_digest), (targets, target_digest) = map(text.scan, paths)
    if sources != targets:
        raise ValueError(
            f"{where}: {paths[0]} has {sources:,} lines, {paths[1]} has {targets:,}; "
            "line-parallel files have equally many"
        )
    pairs = lambda: zip(*map(text.lines, paths), strict=True)
    return lambda: _in_chunks(pairs()), f"lines {source_digest} {target_digest}"


def _in_chunks(pairs: Iterator[tuple[str, str]]) -> Iterator[tuple[list[str], list[str]]]:
    while chunk := list(itertools.islice(pairs, CHUNK)):
        source, target = zip(*chunk, strict=True)
        yield list(source), list(target)


def _rows(path: str, parse: Callable[[str, str], tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.lines(path), 1):
        yield parse(line, f"{path}:{number}")


def _tsv(fields: str):
    """How a line gives a pair: two of its tab-separated columns; no quoting, no header."""
    fields = fields or "1,2"
    if not re.fullmatch(r"[1-9]\d*,[1-9]\d*", fields):
        raise ValueError(f'data.fields="{fields}" must be two column numbers from 1, such as "1,2"')
    source, target = (int(field) - 1 for field in fields.split(","))

    def parse(line: str, where: str) -> tuple[str, str]:
        columns = line.split("\t")
        if len(columns) <= max(source, target):
            raise ValueError(
                f"{where}: {len(columns)} tab-separated columns, too few for "
                f'data.fields="{fields}"; mend the line or set data.fields'
            )
        return columns[source], columns[target]

    return parse, fields


def _jsonl(fields: str):
    """How a line gives a pair: two string values of a JSON object."""
    fields = fields or "source,target"
    keys = fields.split(",")
    if len(keys) != 2:
        raise ValueError(f'data.fields="{fields}" must be two JSON keys, such as "source,target"')

    def parse(line: str, where: str) -> tuple[str, str]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", error)
            raise ValueError(f"{where}: not JSON ({reason}); write one object a line") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: not a JSON object; write {{KEY: TEXT, ...}}")
        return _value(row, keys[0], where), _value(row, keys[1], where)

    return parse, fields


def _value(row: dict, key: str, where: str) -> str:
    if key not in row:
        raise ValueError(f'{where}: no key "{key}" (it has: {", ".join(row)}); set data.fields')
    value = row[key]
    if not isinstance(value, str):
        raise ValueError(f'{where}: "{key}" is {type(value).__name__}, not text; set data.fields')
    if "\0" in value or re.search("[\ud800-\udfff]", value):
        raise ValueError(f'{where}: "{key}" holds NUL or half a surrogate pair; remove it')
    return value


ROWS = {"tsv": _tsv, "jsonl": _jsonl}
