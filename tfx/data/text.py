"""How are lines of text read so that nothing is lost, glued together or misread?

A line ends at a newline byte and nowhere else: a lone CR, U+2028, U+0085, a form feed stay
inside their line, so that two parallel files keep the same count whatever they hold. One CR
before the newline and a byte order mark at the start of the file are taken off. All else that
is not clean UTF-8 text is refused, in one line that says where, what, and what to do; or, where a
line must not cost the whole file, left out and counted (`LineErrors`).
"""

import codecs
import functools
import gzip
import hashlib
import logging
import os
import re
import select
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

LINE_CAP = 1 << 20  # bytes
CHUNK = 1 << 20
PATIENCE = 0.05  # seconds that a line waits for others to come through a pipe
ACTIONS = ("cut", "skip", "fail")
GZIP = b"\x1f\x8b"

# How the first bytes of what is not text begin: what it is, what to do. UTF-32 goes before
# UTF-16, whose little-endian mark is its prefix.
NOT_TEXT = (
    (GZIP, "gzip data", "unpack it (gzip -dc)"),
    (b"PK\x03\x04", "a zip archive", "unpack it (unzip)"),
    (b"BZh91AY&SY", "bzip2 data", "unpack it (bzip2 -dc)"),
    (b"\xfd7zXZ\x00", "xz data", "unpack it (xz -dc)"),
    (b"\x28\xb5\x2f\xfd", "zstandard data", "unpack it (zstd -dc)"),
    (codecs.BOM_UTF32_LE, "UTF-32 text", "convert it (iconv -f UTF-32 -t UTF-8)"),
    (codecs.BOM_UTF32_BE, "UTF-32 text", "convert it (iconv -f UTF-32 -t UTF-8)"),
    (codecs.BOM_UTF16_LE, "UTF-16 text", "convert it (iconv -f UTF-16 -t UTF-8)"),
    (codecs.BOM_UTF16_BE, "UTF-16 text", "convert it (iconv -f UTF-16 -t UTF-8)"),
    (b"version https://git-lfs.", "a Git LFS pointer, not the data", "fetch it (git lfs pull)"),
)


class LineErrors:
    """What is done about lines that cannot be used as they are, and how many there were.

    Args:
      action: of a line with too many tokens: cut it, skip it (nothing is computed and its answer is
        empty), or fail (ValueError). A line that is no text is skipped, or fails.
      name: of the text, for messages.
      fix: what to do about a line that is too long, for the error.

    As a context manager it logs a warning at its end: how many, and the first of them.
    """

    def __init__(self, action: str = "cut", name: str = "", fix: str = ""):
        if action not in ACTIONS:
            raise ValueError(f"--long={action}: choose from {', '.join(ACTIONS)}")
        self.action, self.name = action, name
        self._fix = fix or "split the line, or use --long=cut or --long=skip"
        self._counts = {}  # outcome: (how many lines, the first of them)

    def no_text(self, message: str) -> None:
        """Record a line that cannot be decoded."""
        if self.action == "fail":
            raise ValueError(message)
        self._record(message, "left empty")

    def too_long(self, number: int, tokens: int, room: int, limit: str) -> bool:
        """Record line `number` (from 1), which has more tokens than there is room for.

        Args:
          limit: what says so: a key of the config.

        Returns:
          Whether to cut it; otherwise it is skipped.
        """
        where = f"{self.name}:{number}:" if self.name else f"line {number} has"
        message = f"{where} {tokens:,} tokens, the model takes at most {room:,} ({limit})"
        if self.action == "fail":
            raise ValueError(f"{message}; {self._fix}")
        self._record(message, "left empty" if self.action == "skip" else f"cut to {room:,} tokens")
        return self.action == "cut"

    def _record(self, message: str, outcome: str) -> None:
        count, first = self._counts.get(outcome, (0, message))
        self._counts[outcome] = count + 1, first

    def __enter__(self):
        return self

    def __exit__(self, kind, *exception):
        for outcome, (count, first) in self._counts.items():
            lines = "1 line is" if count == 1 else f"{count:,} lines are"
            logging.getLogger("tfx").warning("%s %s; the first: %s", lines, outcome, first)
        self._counts = {}


def check(path: str | os.PathLike) -> None:
    """Raise what reading a file would raise at its beginning; a pipe is left alone."""
    if os.path.isfile(path) or not os.path.exists(path) or os.path.isdir(path):
        next(_chunks(path), None)


def lines(
    source: str | os.PathLike | BinaryIO, errors: LineErrors | None = None
) -> Iterator[str | None]:
    """Lines of a text file, plain or .gz, or of a buffered binary stream such as `stdin.buffer`.

    Never holds more than a line and a chunk. An empty source has no lines; a last line
    without a newline counts. Raises ValueError or FileNotFoundError, `FILE:LINE: what; fix`.

    Args:
      errors: what to do about a line that is no text; None is yielded where it lets that pass.
    """
    name, number = _name(source), 0
    for raws in _raw_lines(source):
        for raw in raws:
            number += 1
            yield _line(raw, name, number, errors)


def chunks(
    source: str | os.PathLike | BinaryIO, most: int, errors: LineErrors | None = None
) -> Iterator[list[str | None]]:
    """Lines in lists of `most`; of a pipe fewer, where no more of them come at once.

    Whoever writes a line into the pipe and waits gets a list of that line alone. Arguments and
    errors as in `lines`.
    """
    name, before, held, deadline = _name(source), 0, [], 0.0
    with _opened(source) as stream:
        for raws in _raw_lines(stream):
            deadline = time.monotonic() + PATIENCE if not held else deadline
            held += raws
            whole = len(held) - len(held) % most if _has_more(stream, deadline) else len(held)
            yield from _lists(held[:whole], most, name, before, errors)
            held, before = held[whole:], before + whole
    yield from _lists(held, most, name, before, errors)


def _lists(raws: list[bytes], most: int, name: str, before: int, errors) -> Iterator[list]:
    for at in range(0, len(raws), most):
        some = enumerate(raws[at : at + most], before + at + 1)
        yield [_line(raw, name, number, errors) for number, raw in some]


def _has_more(stream: BinaryIO, deadline: float) -> bool:
    """Whether reading does not block, now or before a time of `time.monotonic`; at the end of a
    stream it does not."""
    poll = select.poll()
    try:
        poll.register(stream, select.POLLIN)
    except OSError:  # no file of the system: all of it is there
        return True
    return bool(poll.poll(1000 * max(deadline - time.monotonic(), 0)))


def one_line(text: str) -> str:
    """Replace each line end by a space, so that a file of texts has a line for each; and each NUL,
    which `lines` refuses.

    A line feed, a carriage return, or both together: what `lines`, or a program that knows all
    kinds of line ends, takes for one. U+2028 and its like stay, as `lines` leaves them.
    """
    return re.sub("\r\n|[\r\n\0]", " ", text)


def decode(raw: bytes, name: str, number: int) -> str:
    """`raw` as text; ValueError at NAME:NUMBER unless it is UTF-8, without NUL, within the cap."""
    where = f"{name}:{number}"
    if len(raw) > LINE_CAP:
        raise ValueError(f"{where}: a line of more than {LINE_CAP:,} bytes; split or remove it")
    if (at := raw.find(b"\0")) >= 0:
        raise ValueError(f"{where}: byte {at + 1} is NUL; remove it (tr -d '\\000')")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: byte {error.start + 1} is not UTF-8 (0x{raw[error.start]:02x}); "
            "convert the file (iconv -t UTF-8) or remove the line"
        ) from None


def scan(path: str | os.PathLike) -> tuple[int, str]:
    """Number of lines of a file and the sha256 of its bytes, unpacked when .gz.

    One quick pass before anything expensive. Refuses an empty file, and what can be read only
    once, such as a pipe.
    """
    if Path(path).is_fifo():
        raise ValueError(f"{path}: a pipe, and this is read more than once; save it to a file")
    found = os.stat(path) if os.path.exists(path) else None
    return _scanned(path, found and (found.st_size, found.st_mtime_ns))


@functools.lru_cache
def _scanned(path: str | os.PathLike, version) -> tuple[int, str]:
    """A run asks several times; `version` is another when the file is."""
    count, last, digest = 0, b"", hashlib.sha256()
    for last in _chunks(path):
        count += last.count(b"\n")
        digest.update(last)
    if not last:
        raise ValueError(f"{path}: empty file, no usable rows; name one that holds text")
    return count + (not last.endswith(b"\n")), digest.hexdigest()


def _raw_lines(source: str | os.PathLike | BinaryIO) -> Iterator[list[bytes]]:
    """After every reading the lines that ended there; of one that is beyond the cap just so much
    that it shows."""
    rest, dropping = b"", False
    for chunk in _chunks(source):
        first, *others = chunk.split(b"\n")
        if dropping and not others:
            continue
        *whole, rest = others if dropping else (rest + first, *others)
        dropping = len(rest) > LINE_CAP
        if dropping:
            whole.append(rest[: LINE_CAP + 1])
            rest = b""
        yield whole
    if rest:
        yield [rest]


def _line(raw: bytes, name: str, number: int, errors: LineErrors | None = None) -> str | None:
    try:
        line = decode(raw, name, number).removesuffix("\r")
    except ValueError as error:
        if errors is None:
            raise
        errors.no_text(f"{error}")
        return None
    return line.removeprefix("\ufeff") if number == 1 else line


def _chunks(source: str | os.PathLike | BinaryIO) -> Iterator[bytes]:
    """The bytes of a file (unpacked) or stream, once its first ones have been found to be text."""
    name = _name(source)
    with _opened(source) as stream:
        try:
            chunk = stream.read1(CHUNK)
            _refuse_other_than_text(chunk[:512], name)
            while chunk:
                yield chunk
                chunk = stream.read1(CHUNK)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{name}: damaged gzip data ({error}); fetch it again") from None


def _open(path: str | os.PathLike) -> BinaryIO:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise FileNotFoundError(f"{Path(path).absolute()}: no such file; check the path") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: a directory; name a text file in it") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None


@contextmanager
def _opened(source: str | os.PathLike | BinaryIO) -> Iterator[BinaryIO]:
    if hasattr(source, "read1"):
        yield source
        return
    with _open(source) as file:
        head, named_gzip = file.peek(512)[:512], str(source).endswith(".gz")
        if not named_gzip and head.startswith(GZIP):
            raise ValueError(f"{source}: gzip data in a file not named .gz; rename it {source}.gz")
        if not named_gzip:
            yield file
        elif head.startswith(GZIP):
            with gzip.open(file) as unpacked:
                yield unpacked
        else:
            _refuse_other_than_text(head, str(source))
            raise ValueError(f"{source}: named .gz but not gzip data; rename it or fetch it again")


def _refuse_other_than_text(head: bytes, name: str):
    for mark, what, fix in NOT_TEXT:
        if head.startswith(mark):
            raise ValueError(f"{name}: {what}; {fix}")
    if head.removeprefix(codecs.BOM_UTF8).lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise ValueError(f"{name}: a web page, not the data; fetch the file itself")


def _name(source: str | os.PathLike | BinaryIO) -> str:
    return str(getattr(source, "name", "<stdin>") if hasattr(source, "read1") else source)
