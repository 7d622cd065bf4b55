"""How are lines of text read so that nothing is lost, glued together or misread?

A line ends at a newline byte and nowhere else: a lone CR, U+2028, U+0085, a form feed stay
inside their line, so that two parallel files keep the same count whatever they hold. One CR
before the newline and a byte order mark at the start of the file are taken off. All else that
is not clean UTF-8 text is refused, in one line that says where, what, and what to do.
"""

import codecs
import functools
import gzip
import hashlib
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

LINE_CAP = 1 << 20  # bytes
CHUNK = 1 << 20
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


def lines(source: str | os.PathLike | BinaryIO) -> Iterator[str]:
    """Lines of a text file, plain or .gz, or of a buffered binary stream such as `stdin.buffer`.

    Never holds more than a line and a chunk. An empty source has no lines; a last line
    without a newline counts. Raises ValueError or FileNotFoundError, `FILE:LINE: what; fix`.
    """
    name, count, rest = _name(source), 0, b""
    for chunk in _chunks(source):
        *whole, rest = (rest + chunk).split(b"\n")
        for number, raw in enumerate(whole, count + 1):
            yield _line(raw, name, number)
        count += len(whole)
        if len(rest) > LINE_CAP:
            break
    if rest:
        yield _line(rest, name, count + 1)


def one_line(text: str) -> str:
    """Replace each line end by a space, so that a file of texts has a line for each.

    A line feed, a carriage return, or both together: what `lines`, or a program that knows all
    kinds of line ends, takes for one. U+2028 and its like stay, as `lines` leaves them.
    """
    return re.sub("\r\n|\r|\n", " ", text)


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


def _line(raw: bytes, name: str, number: int) -> str:
    line = decode(raw, name, number).removesuffix("\r")
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
