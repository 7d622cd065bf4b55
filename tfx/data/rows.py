"""What is a row? The columns of every kind of corpus, and how a file holds them.

    pair        sentences and their translations       .tsv .jsonl, or two line-parallel files
    references  the same with several translations     the same, or more line-parallel files
    text        lines; blank ones separate documents   any text file, .tsv .jsonl
    labelled    a text, or two, and a class or number  .tsv .jsonl
    questions   SQuAD, 1.1 or 2.0                       .json
    tagged      words and a tag for each                .conll .txt .jsonl
    choices     a text and ways to go on                .jsonl

Every value is checked where it is read; what is wrong is told in one line, FILE:LINE first.
"""

import gzip
import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from tfx.data import text

KINDS = {
    "pair": ("source", "target"),
    "references": ("source", "references"),
    "text": ("text",),
    "labelled": ("text", "label"),
    "questions": ("id", "question", "context", "answers"),
    "tagged": ("tokens", "tags"),
    "choices": ("text", "choices", "label"),
}
# With one field more than usual.
LONGER = {"labelled": ("text", "second", "label")}
COUNTS = ("no", "one", "two", "three", "four")
SQUAD = "mend the file, or fetch it again (SQuAD is data[].paragraphs[].qas[])"

Rows = Callable[[], Iterator[tuple]]


def keys_of(kind: str) -> tuple[str, ...]:
    """What the fields of a kind are called where nothing else is said."""
    return KINDS["pair" if kind == "references" else kind]


def columns(kind: str, fields: str, what: str, such_as: str) -> list[tuple[str, str]]:
    """(column, field) of what `fields` chooses, by the names of the kind where it is empty.

    Of pairs, all fields behind the first two hold further references: pairs leave them out.

    Raises ValueError where it holds too many or too few of `what`, such as `such_as`.
    """
    usual = keys_of(kind)
    names = fields.split(",") if fields else usual
    if len(names) == len(usual) and all(names):
        return list(zip(usual, names, strict=True))
    if kind in LONGER and len(names) == 1 + len(usual) and all(names):
        return list(zip(LONGER[kind], names, strict=True))
    if kind in ("pair", "references") and len(names) > 2 and all(names):
        further = ["references"] * (len(names) - 2) if kind == "references" else []
        return list(zip([*usual, *further], names, strict=False))
    more = f" (or {COUNTS[len(usual) + 1]})" * (kind == "labelled")
    raise ValueError(
        f'data.fields="{fields}" must be {COUNTS[len(usual)]} {what}{more}, such as "{such_as}"'
    )


# --------------------------------------------------------------------------- line by line


def _lines(kind: str, path: str, fields: str) -> tuple[Rows, str]:
    if fields:
        raise ValueError(f'data.fields="{fields}" means nothing to {path}, plain text; unset it')
    return lambda: ((line,) for line in text.lines(path)), ""


def _tsv(kind: str, path: str, fields: str) -> tuple[Rows, str]:
    """Tab-separated columns, without quoting: by number, or by the name that the first line has."""
    numbers = ",".join(str(at) for at, _ in enumerate(keys_of(kind), 1))
    fields = fields or numbers
    what = "column numbers from 1 or names of the header"
    chosen = columns(kind, fields, what, numbers)
    named = not all(field.isdecimal() for _, field in chosen)
    if named:
        first = next(text.lines(path), None)
        if first is None:
            raise ValueError(f"{path}: an empty file; fetch or write it again")
        have = first.split("\t")
        if lacking := [field for _, field in chosen if field not in have]:
            raise ValueError(
                f'{path}:1: the header has no column "{lacking[0]}" (it has: {", ".join(have)}); '
                "set data.fields"
            )
        chosen = [(column, have.index(field)) for column, field in chosen]
    else:
        chosen = [(column, int(field) - 1) for column, field in chosen]
    if min(at for _, at in chosen) < 0:
        count = COUNTS[len(chosen)] if len(chosen) < len(COUNTS) else len(chosen)
        raise ValueError(
            f'data.fields="{fields}" must be {count} column numbers from 1, such as "{numbers}"'
        )
    last = max(at for _, at in chosen)

    def rows():
        lines = enumerate(text.lines(path), 1)
        for number, line in itertools.islice(lines, int(named), None):
            cells = line.split("\t")
            if len(cells) <= last:
                raise ValueError(
                    f"{path}:{number}: {len(cells)} tab-separated columns, too few for "
                    f'data.fields="{fields}"; mend the line or set data.fields'
                )
            yield tuple([cells[at]] if name == "references" else cells[at] for name, at in chosen)

    return rows, fields


def _jsonl(kind: str, path: str, fields: str) -> tuple[Rows, str]:
    """Values of one JSON object a line."""
    fields = fields or ",".join(keys_of(kind))
    chosen = columns(kind, fields, "JSON keys", ",".join(keys_of(kind)))

    def rows():
        for number, line in enumerate(text.lines(path), 1):
            where = f"{path}:{number}"
            row = _object(line, where)
            values = tuple(_value(row, key, CHECKS[name], where) for name, key in chosen)
            if kind == "tagged":
                _paired(*values, where)
            yield values

    return rows, fields


def _object(line: str, where: str) -> dict:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", error)
        raise ValueError(f"{where}: not JSON ({reason}); write one object a line") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: not a JSON object; write {{KEY: TEXT, ...}}")
    return row


def _value(row: dict, key: str, check: Callable[[Any, str], Any], where: str):
    if key not in row:
        raise ValueError(f'{where}: no key "{key}" (it has: {", ".join(row)}); set data.fields')
    return check(row[key], f'{where}: "{key}"')


# ------------------------------------------------------------------------- words and tags


def _conll(kind: str, path: str, fields: str) -> tuple[Rows, str]:
    """A word a line, columns apart by blanks, an empty line after each sentence."""
    if fields and not re.fullmatch(r"[1-9]\d*,[1-9]\d*", fields):
        raise ValueError(
            f'data.fields="{fields}" must be two column numbers from 1, of the word and its tag, '
            'such as "1,4"; by default the first and the last column'
        )
    chosen = [int(field) - 1 for field in fields.split(",")] if fields else [0, -1]

    def rows():
        words, wide = [], 0
        for number, line in enumerate(itertools.chain(text.lines(path), [""]), 1):
            # White space of other kinds may well be part of a word.
            cells = [] if line.startswith("-DOCSTART-") else re.findall(r"[^ \t]+", line)
            if cells:
                wide = wide or len(cells)
                if not max(1, *chosen) < len(cells) == wide:
                    raise ValueError(
                        f"{path}:{number}: {len(cells)} columns, and {wide} in the first line; "
                        "write a word a line, its tag last, an empty line after each sentence"
                    )
                words.append([cells[at] for at in chosen])
            elif words:
                yield tuple(map(list, zip(*words, strict=True)))
                words = []

    return rows, fields


def _paired(tokens: list, tags: list, where: str):
    if len(tokens) != len(tags):
        raise ValueError(f"{where}: {len(tokens)} tokens, {len(tags)} tags; give each token one")


# ------------------------------------------------------------------------------- questions


def _squad(kind: str, path: str, fields: str) -> tuple[Rows, str]:
    """Rajpurkar et al. (2016, 2018). What cannot be answered has no answers."""
    if fields:
        raise ValueError(f'data.fields="{fields}" means nothing to {path}, SQuAD; unset it')

    def rows():
        with (gzip.open if path.endswith(".gz") else open)(
            path, "rt", encoding="utf-8-sig"
        ) as file:
            try:
                whole = json.load(file)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}: not JSON ({error}); {SQUAD}") from None
        if not isinstance(whole, dict):
            raise ValueError(f"{path}: {type(whole).__name__}, not an object; {SQUAD}")
        seen = set()
        for article, at in _items(whole, "data", f"{path}: "):
            for paragraph, here in _items(article, "paragraphs", at):
                yield from _questions(paragraph, here, seen)

    return rows, ""


def _questions(paragraph: dict, at: str, seen: set[str]) -> Iterator[tuple]:
    context = _of(paragraph, "context", str, at)
    for question, here in _items(paragraph, "qas", at):
        name = _of(question, "id", str, here)
        if name in seen:
            raise ValueError(f'{here}id: "{name}" is the id of an earlier question; {SQUAD}')
        seen.add(name)
        impossible = "is_impossible" in question and _of(question, "is_impossible", bool, here)
        answers = [] if impossible else _items(question, "answers", here)
        yield (
            name,
            _of(question, "question", str, here),
            context,
            [(_of(one, "text", str, it), _of(one, "answer_start", int, it)) for one, it in answers],
        )


def _of(node: dict, key: str, kind: type, at: str):
    """The value that SQuAD has at this place, whose name ends in a dot."""
    if key not in node:
        raise ValueError(f'{at.rstrip(": .")} has no "{key}"; {SQUAD}')
    value = node[key]
    if type(value) is not kind:
        raise ValueError(f"{at}{key} is {type(value).__name__}, not {kind.__name__}; {SQUAD}")
    return _text(value, f"{at}{key}") if kind is str else value


def _items(node: dict, key: str, at: str) -> Iterator[tuple[dict, str]]:
    """The objects of a list, and the names of their places."""
    for number, item in enumerate(_of(node, key, list, at)):
        here = f"{at}{key}[{number}]"
        if not isinstance(item, dict):
            raise ValueError(f"{here} is {type(item).__name__}, not an object; {SQUAD}")
        yield item, f"{here}."


# ---------------------------------------------------------------------------------- values


def _text(value, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where} is {type(value).__name__}, not text; set data.fields")
    if "\0" in value or re.search("[\ud800-\udfff]", value):
        raise ValueError(f"{where} holds NUL or half a surrogate pair; remove it")
    return value


def _label(value, where: str) -> str | int | float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{where} is {type(value).__name__}, not a label; write text or a number")
    return _text(value, where) if isinstance(value, str) else value


def _list(check: Callable, what: str, least: int = 0) -> Callable:
    def listed(value, where: str) -> list:
        if not isinstance(value, list):
            raise ValueError(f"{where} is {type(value).__name__}, not a list of {what}")
        if len(value) < least:
            raise ValueError(f"{where} has {len(value)} of the {least} {what} that it takes")
        return [check(one, f"{where}[{at}]") for at, one in enumerate(value)]

    return listed


def _references(value, where: str) -> list[str]:
    if value is None:  # no further ones for this row
        return []
    return [_text(value, where)] if isinstance(value, str) else _list(_text, "texts")(value, where)


CHECKS = {  # of the columns that JSONL has
    **dict.fromkeys(("source", "target", "text", "second"), _text),
    "references": _references,
    "label": _label,
    "tokens": _list(_text, "words"),
    "tags": _list(_label, "tags"),
    "choices": _list(_text, "texts", least=2),
}
PARALLEL = {"tsv": _tsv, "jsonl": _jsonl}
# By what a name ends in, .gz aside; "": in anything else. Each is (kind, path, fields) -> how rows
# are read, and the fields that are read.
FORMATS = {
    "pair": PARALLEL,
    "references": PARALLEL,
    "text": PARALLEL | {"": _lines},
    "labelled": PARALLEL,
    "questions": {"json": _squad},
    "tagged": {"conll": _conll, "txt": _conll, "jsonl": _jsonl},
    "choices": {"jsonl": _jsonl},
}
