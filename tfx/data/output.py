"""Files and folders that are whole or not there at all.

A file is written beside its place, under a temporary name, and renamed when it is whole. Whatever
ends it before (an error, Ctrl-C, SIGTERM, SIGHUP) leaves what was there before, and no other file.
"""

import contextlib
import errno
import gzip
import io
import os
import re
import secrets
import shutil
import signal
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

STANDARD = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")  # names of standard output
STDIN = ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # a write that the system refuses
PACKED = re.compile(r"\.(bz2|xz|zst|lz4|zip|7z)$")


def check(path: str, inputs: Sequence[str] = ()) -> None:
    """Raise what can be known before anything is computed: that a file cannot be written.

    Args:
      path: "-" for standard output.
      inputs: what is read meanwhile, "-" for standard input. None of them may be the same file,
        by whatever name or link.

    Raises:
      ValueError: it is one of the inputs, a directory, in a bucket, named as if it were packed in
        a way that tfx does not write, or in a folder that is missing.
    """
    if not path:
        raise ValueError("--output= is empty; name a file, or - for standard output")
    for name in inputs:
        if _same_file(path, name):
            shown = "standard output" if path in STANDARD else path
            raise ValueError(f"{shown}: is the input {name}; choose another output")
    if path in STANDARD:
        return
    if "://" in path:
        raise ValueError(f"{path}: want a file on this machine; copy it there afterwards")
    if os.path.isdir(path) or path.endswith("/"):
        raise ValueError(f"{path}: a directory; name a file in it")
    if found := PACKED.search(path):
        raise ValueError(f"{path}: tfx packs .gz alone; choose another name than {found[0]}")
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        raise ValueError(f"{path}: the folder {folder} is missing; make it (mkdir -p)")
    if os.path.exists(path) and not os.access(path, os.W_OK):
        raise ValueError(f"{path}: cannot be written (read-only); choose another output")


@contextlib.contextmanager
def open_text(path: str, inputs: Sequence[str] = ()) -> Iterator[TextIO]:
    """Open a text file for writing, in UTF-8 with plain newlines; it is there when it is whole.

    A name that ends in .gz is packed. Standard output ("-"), pipes and devices are written to at
    once. The mode of a file that was there is kept.

    Raises:
      ValueError: as `check` says, or the folder cannot be written.
    """
    check(path, inputs)
    try:
        if path in STANDARD:
            with _standard_output() as out:
                yield out
        elif _is_special(path):
            with _text(path, path) as out:
                yield out
        else:
            with signals_as_exceptions(), replacing(path) as part, _text(part, path) as out:
                yield out
    except OSError as error:
        if error.errno in FULL and not error.filename:
            error.filename = "standard output" if path in STANDARD else path
        raise


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield the path of an empty file beside `path`, which takes its place at the end.

    Where `path` is a symbolic link, what it leads to is replaced. The mode is that of the file that
    was there, or as the umask has it.

    Raises:
      ValueError: no file can be made there.
    """
    target = Path(os.path.realpath(path))
    part = _beside(target)
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except OSError as error:
        raise ValueError(f"{path}: cannot write to {part.parent} ({error.strerror})") from error
    try:
        mode = _mode(target if target.exists() else part)
        yield part
        if _mode(part) != mode:
            part.chmod(mode)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def write(path: str | os.PathLike, content: bytes) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as part:
        part.write_bytes(content)


def check_folder(path: str | os.PathLike) -> None:
    """Raise a ValueError where a new folder cannot be made: something is there already, or nothing
    can be written beside it."""
    if os.path.lexists(path) and not (os.path.isdir(path) and not os.listdir(path)):
        raise ValueError(f"{path}: holds something; choose another folder")
    if os.path.ismount(path):
        raise ValueError(f"{path}: something is mounted there; name a new folder in it")
    above = Path(os.path.realpath(path)).parent
    while not above.exists():
        above = above.parent
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise ValueError(f"{path}: cannot write to {above}; choose another folder")


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield an empty folder beside `path`, which becomes `path` at the end.

    Raises:
      ValueError: something is there already, or no folder can be made there.
    """
    check_folder(path)
    target = Path(os.path.realpath(path))
    part = _beside(target)
    with signals_as_exceptions(), contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, part, ignore_errors=True)
        try:
            part.mkdir(parents=True)
        except OSError as error:
            raise ValueError(f"{path}: cannot write to {part.parent} ({error.strerror})") from error
        yield part
        check_folder(path)  # somebody else may have been there first
        os.rename(part, target)


def _beside(target: Path) -> Path:
    """A hidden name in the same folder that nothing has."""
    return target.with_name(f".tfx-{secrets.token_hex(6)}.part")


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _same_file(path: str, other: str) -> bool:
    """Whether an output is an input, where that matters: of regular files."""
    try:
        ours = os.fstat(1) if path in STANDARD else os.stat(path)
        theirs = os.fstat(0) if other in STDIN else os.stat(other)
    except OSError:  # one of them is not there
        return False
    return stat.S_ISREG(ours.st_mode) and os.path.samestat(ours, theirs)


def _is_special(path: str) -> bool:
    """Whether it is no file that could be replaced: a pipe, a device, what a process has open."""
    opened = path == "/dev/stderr" or path.startswith(("/dev/fd/", "/proc/"))
    return opened or (os.path.exists(path) and not os.path.isfile(path))


@contextlib.contextmanager
def _standard_output() -> Iterator[TextIO]:
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    try:
        yield sys.stdout
        sys.stdout.flush()
    except OSError as error:
        if error.errno in FULL:  # what could not be written is not tried again at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


@contextlib.contextmanager
def _text(path: str | os.PathLike, name: str) -> Iterator[TextIO]:
    """The file at `path`, packed where `name` says so, always into the same bytes."""
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(open(path, "ab"))
        if name.endswith(".gz"):
            raw = stack.enter_context(gzip.GzipFile("", "wb", 6, raw, mtime=0))
        yield stack.enter_context(io.TextIOWrapper(raw, encoding="utf-8", newline="\n"))


@contextlib.contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Have SIGTERM and SIGHUP raise SystemExit, where they would end the process at once; a second
    one does."""
    before = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(number, frame) -> None:
        restore()
        raise SystemExit(128 + number)

    try:
        with contextlib.suppress(ValueError):  # not the main thread: leave signals alone
            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) == signal.SIG_DFL:
                    before[number] = signal.signal(number, stop)
        yield
    finally:
        restore()
