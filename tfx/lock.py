"""One writer a workdir. Whoever writes there holds its lock, the file `.lock`, which says who that
is; of a run of several processes the one that leads holds it for all.

The lock is a lease (Gray and Cheriton, 1989): its holder gives a sign of life every BEAT seconds.
On one machine nobody waits for it to run out, for there a process either lives or does not. On
other machines, which share the directory or the bucket, a lock without a sign of life for LEASE
seconds is taken over. Ages are measured by the clock of the file system, never by those of two
machines.

    with lock.making("runs/averaged", "average"): ...
"""

import contextlib
import datetime
import functools
import json
import logging
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tfx import bucket
from tfx.data import output

NAME = ".lock"
BEAT = 5.0  # seconds between signs of life
FRESH = 15.0  # whose last one is not older than this lives
LEASE = 120.0  # who gave none for so long is gone
PAUSE = 0.05  # between two tries
PATIENCE = 20.0  # with a bucket that does not answer
LOG = logging.getLogger("tfx")


class Held(ValueError):
    """Another process writes there."""


class Found(NamedTuple):
    """A lock that is there: what it says of its holder, the time of the last sign of life, and a
    version that no other lock has."""

    holder: dict[str, Any]
    time: float
    version: Any


class Lock:
    """The right to write into a directory or a bucket; given back where its block ends.

    Args:
      directory: the workdir, or its mirror; made where it is missing.
      verb: what the holder does there: "train".
      path: of the lock, by default `inside(directory)`.
    """

    def __init__(self, directory: str | os.PathLike, verb: str, path: Path | None = None):
        self._where = bucket.home(directory)
        self._place = _place(path or inside(directory))
        self._me = _here() | {"verb": verb, "token": secrets.token_hex(8)}
        self._beating, self._over = None, threading.Event()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.release()

    def acquire(self, seconds: float = 0.0) -> None:
        """Take the lock, or take it over from a holder that is gone, which is said.

        Args:
          seconds: how long to wait for a holder that lives.

        Raises:
          Held: a ValueError in one line, with the holder's host, process and start.
          ValueError: nothing can be written there.
        """
        until = time.monotonic() + seconds
        try:
            self._place.make()
            while not (self._place.create(self._text) or self._take_over(until)):
                time.sleep(PAUSE)
        except OSError as error:
            raise ValueError(f"{self._where}: cannot write here ({error.strerror})") from error
        self._over.clear()
        self._beating = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._beating.start()

    @property
    def _text(self) -> str:
        return json.dumps(self._me)

    def _take_over(self, until: float) -> bool:
        """Whether the lock could be taken from who holds it; Held where that one lives."""
        found = self._place.find()
        if found is None:
            return False  # it was just given back
        if self._is_mine(found):
            return True  # the answer of the bucket got lost
        if _lives_here(found.holder) is None:
            self._await_lease(found, until)
        elif _lives_here(found.holder):
            if time.monotonic() >= until:
                raise Held(_refusal(self._where, found.holder))
            return False
        again = self._place.find()
        if again is None or again.version != found.version:
            return False
        taken = self._place.replace(again, self._text)
        if taken:
            LOG.warning("%s: taking over from %s, which is gone", self._where, _who(found.holder))
        return taken

    def _await_lease(self, found: Found, until: float) -> None:
        """Wait until a holder on another machine gives a sign of life, or for too long none."""
        age = self._place.now() - found.time
        if age >= FRESH and age < LEASE:
            line = "%s: waiting %.0f s for a sign of life of %s"
            LOG.warning(line, self._where, LEASE - age, _who(found.holder))
        while age < LEASE:
            if age < FRESH and time.monotonic() >= until:
                raise Held(_refusal(self._where, found.holder))
            time.sleep(min(1.0, BEAT))
            again = self._place.find()
            if again is None or again.holder != found.holder:
                return
            age = self._place.now() - again.time

    def _is_mine(self, found: Found) -> bool:
        return found.holder.get("token") == self._me["token"]

    def confirm(self) -> None:
        """Raise Held where another process has taken over, for this one gave no sign of life for
        too long; to be called before something is saved."""
        found = None
        if self._beating is not None:
            with contextlib.suppress(OSError, ValueError):  # the save itself will say what is wrong
                found = self._place.find()
        if found is not None and not self._is_mine(found):
            who = _who(found.holder)
            raise Held(f"{self._where}: {who} has taken over; this process saves nothing more")

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            with contextlib.suppress(Exception):  # the next one may arrive
                found = self._place.find()
                if found is None:  # somebody removed the file
                    self._place.create(self._text)
                elif self._is_mine(found):
                    self._place.beat(found, self._text)

    def release(self) -> None:
        """Give the lock back, if this process still holds it."""
        beating, self._beating = self._beating, None
        if beating is None:
            return
        self._over.set()
        beating.join()
        with contextlib.suppress(Exception):  # where the place is gone, the lock is too
            found = self._place.find()
            if found is not None and self._is_mine(found):
                self._place.remove(found)


def inside(directory: str | os.PathLike, name: str = NAME) -> Path:
    """Where the lock of a workdir lies."""
    return bucket.home(directory) / name


def beside(directory: str | os.PathLike) -> Path:
    """Where the lock of a directory lies that is not there yet."""
    where = bucket.home(directory)
    return where.parent / f".{where.name}{NAME}"


@contextlib.contextmanager
def making(directory: str | os.PathLike, verb: str) -> Iterator[None]:
    """Hold the lock of a directory that is to be new, while it is made. It is given back where
    SIGTERM or SIGHUP ends the process, too, which in here raise SystemExit."""
    check(directory)
    with Lock(directory, verb, beside(directory)) as held:
        held.acquire()
        with output.signals_as_exceptions():
            yield


def check(directory: str | os.PathLike) -> None:
    """Raise Held where another process writes in a directory, or makes it; no lock is taken."""
    for path in (inside(directory), beside(directory)):
        place = _place(path)
        found = place.find()
        if found is None:
            continue
        lives = _lives_here(found.holder)
        if lives or (lives is None and place.now() - found.time < FRESH):
            raise Held(_refusal(bucket.home(directory), found.holder))


def _refusal(where: Path, holder: dict[str, Any]) -> str:
    return f"{where}: {_who(holder)} writes here; wait for it, stop it, or choose another place"


# -------------------------------------------------------------------------- who holds it


def _here() -> dict[str, Any]:
    """What tells this process from all others, and what a person wants to know of it."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": f"{now:%Y-%m-%d %H:%M:%S} UTC",
        "machine": _machine(),
        "born": _stat(os.getpid())[1],
    }


def _who(holder: dict[str, Any]) -> str:
    """For a person: "tfx train (process 17 on host vm, since 2026-01-31 10:20:30 UTC)"."""
    if not holder:
        return "another process (its lock is damaged)"
    verb, pid, host, since = (holder.get(key) for key in ("verb", "pid", "host", "since"))
    return f"tfx {verb} (process {pid} on host {host}, since {since})"


@functools.cache
def _machine() -> str:
    """Where the number of a process means the same: this boot of it, and this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return ""


def _stat(pid: int) -> tuple[str, str]:
    """The state of a process, and when it began, for numbers are used again; empty where that is
    not shown: elsewhere than on Linux, or to others than its user."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]


def _lives_here(holder: dict[str, Any]) -> bool | None:
    """Whether the process of a lock lives; None where it is one of another machine."""
    if (holder.get("host"), holder.get("machine")) != (socket.gethostname(), _machine()):
        return None
    state, born = _stat(holder["pid"])
    if state:
        return state not in "ZX" and born == holder["born"]
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _parsed(text: str | bytes) -> dict[str, Any]:
    """What a lock says; nothing where it is damaged, as a power cut leaves a file."""
    try:
        holder = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return holder if isinstance(holder, dict) else {}


# ------------------------------------------------------------------------ where it lies


def _place(path: Path) -> "_Folder | _Bucket":
    return _Folder(path) if isinstance(path, Path) else _Bucket(path)


class _Folder:
    """A lock as a file, on a file system of one machine or of many."""

    def __init__(self, path: Path):
        self._folder, self._path = path.parent, path

    def make(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)

    def create(self, text: str) -> bool:
        """Write the lock if there is none. A link is made or not, on NFS too, and leads to a file
        that is whole."""
        part = self._written(secrets.token_hex(8), text)
        try:
            os.link(part, self._path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            return self._made(self._path, text)
        finally:
            part.unlink(missing_ok=True)
        return True

    def _made(self, path: Path, text: str) -> bool:
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return False
        return True

    def _written(self, suffix: str, text: str) -> Path:
        path = self._path.with_name(f"{self._path.name}.{suffix}")
        try:
            path.write_text(text, "utf-8")
        except OSError:  # a full disk: leave nothing there
            path.unlink(missing_ok=True)
            raise
        return path

    def find(self) -> Found | None:
        try:
            content, at = self._path.read_bytes(), self._path.stat().st_mtime
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Found(_parsed(content), at, content)

    def now(self) -> float:
        """The time, as the file system tells it."""
        try:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                return os.fstat(file.fileno()).st_mtime
        except OSError:  # nothing can be written here
            return time.time()

    def replace(self, found: Found, text: str) -> bool:
        """Put another lock in the place of one that was found. Of several processes that want to,
        the one may that makes a file called after the old lock."""
        token = found.holder.get("token", "damaged")
        turn = self._path.with_name(f"{self._path.name}.{token}.over")
        if not self._made(turn, text):
            with contextlib.suppress(FileNotFoundError):
                if self.now() - turn.stat().st_mtime > FRESH:  # whoever made it died right here
                    turn.unlink()
            return False
        try:
            again = self.find()
            if again is None or again.version != found.version:
                return False
            os.replace(self._written(secrets.token_hex(8), text), self._path)
            return True
        finally:
            turn.unlink(missing_ok=True)

    def beat(self, found: Found, text: str) -> None:
        os.utime(self._path)

    def remove(self, found: Found) -> None:
        self._path.unlink()


class _Bucket:
    """A lock as an object of Cloud Storage, written on condition of its generation."""

    def __init__(self, path: Path):
        from google.cloud import storage
        from google.cloud.storage.retry import DEFAULT_RETRY

        self._how = dict(timeout=PATIENCE, retry=DEFAULT_RETRY.with_timeout(PATIENCE))
        self._url = f"{path.parent}"
        holder, _, self._name = f"{path}".removeprefix("gs://").partition("/")
        self._bucket = storage.Client().bucket(holder)

    def make(self) -> None:
        """A bucket has no folders."""

    def create(self, text: str) -> bool:
        return self._write(text, 0)

    def _write(self, text: str, generation: int) -> bool:
        """Write the lock if its generation is this one; 0: if there is none."""
        from google.api_core import exceptions

        try:
            blob = self._bucket.blob(self._name)
            blob.upload_from_string(text, if_generation_match=generation, **self._how)
        except exceptions.PreconditionFailed:
            return False
        except exceptions.GoogleAPIError as error:
            raise ValueError(f"cannot write to {self._url}: {error}") from error
        return True

    def find(self) -> Found | None:
        from google.api_core import exceptions

        try:
            blob = self._bucket.get_blob(self._name, **self._how)
            if blob is None:
                return None
            content = blob.download_as_bytes(if_generation_match=blob.generation, **self._how)
        except (exceptions.NotFound, exceptions.PreconditionFailed):
            return None  # it was just given back, or changed
        except exceptions.GoogleAPIError as error:
            raise ValueError(f"cannot read {self._url}: {error}") from error
        return Found(_parsed(content), blob.updated.timestamp(), blob.generation)

    def now(self) -> float:
        """The time, as the bucket tells it."""
        from google.api_core import exceptions

        probe = self._bucket.blob(f"{self._name}.{secrets.token_hex(8)}")
        try:
            probe.upload_from_string(b"", **self._how)
            probe.delete(**self._how)
        except exceptions.GoogleAPIError:  # nothing can be written here
            return time.time()
        return probe.updated.timestamp()

    def replace(self, found: Found, text: str) -> bool:
        return self._write(text, found.version)

    def beat(self, found: Found, text: str) -> None:
        self._write(text, found.version)

    def remove(self, found: Found) -> None:
        blob = self._bucket.blob(self._name)
        blob.delete(if_generation_match=found.version, **self._how)
