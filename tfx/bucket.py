"""How does a run live in a bucket? A workdir `gs://BUCKET/NAME` is worked on in a mirror of it.

Orbax reads and writes checkpoints in the bucket itself. What else a workdir holds is small, and
is appended to and read as files are: `local` brings it into a private folder, the mirror, and
`publish` takes back what changed there. A mirror ends with its process, and so the bucket is all
that counts. It tells one story at any time, for whoever saves a checkpoint publishes first: what
belongs to a checkpoint is there before it, and what lies beyond the last one, left by a run that
died, is cut off when the run goes on. Encoded text is not taken along; each machine keeps its
own in `~/.cache/tfx/data`, under names made from its content.
"""

import atexit
import contextlib
import functools
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

SECONDS = 10  # until a bucket that does not answer is given up
MARK = ".bucket"  # the file that makes a folder a mirror: it holds the URL


def place(directory: str | os.PathLike) -> Path:
    """The path of a directory; of a URL, one that is read like any other (`etils.epath.Path`).

    Raises:
      ValueError: a URL that is none of a bucket, or of one that does not open.
    """
    text = os.fspath(directory)
    if "://" not in text:
        return Path(directory).expanduser()
    if not (found := re.match("gs://([^/]+)", text)):
        raise ValueError(f"{text}: want a directory or gs://BUCKET/NAME; no other URL will do")
    _open(found[1])
    from etils import epath

    return epath.Path(text)


@functools.cache
def _open(bucket: str) -> None:
    # The path that is tested: one with neither TensorFlow nor gRPC, and without the memory of
    # what a folder held before other processes wrote to it.
    os.environ.setdefault("EPATH_USE_TF", "false")
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it tells what it raises, too
    import fsspec

    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    try:
        fsspec.get_filesystem_class("gs")
        from google.cloud import storage
    except ImportError:
        raise ValueError(f'gs://{bucket}: install gcsfs: pip install "tfx-research[gcs]"') from None
    try:
        # As Orbax does, which would fail late.
        storage.Client().get_bucket(bucket, timeout=SECONDS, retry=None)
    except Exception as error:
        raise ValueError(f"gs://{bucket} does not open: {error}") from error


def home(directory: str | os.PathLike) -> Path:
    """Where a workdir is, and its checkpoints: of a mirror, the path in the bucket."""
    mark = Path(directory, MARK)
    where = place(mark.read_text("utf-8") if mark.exists() else directory)
    return where.absolute() if isinstance(where, Path) else where


def local(directory: str | os.PathLike) -> Path:
    """A directory to work in: itself, or of a URL a new mirror."""
    where = place(directory)
    if isinstance(where, Path):
        return where
    mirror = Path(tempfile.mkdtemp(prefix="tfx-"))
    atexit.register(lambda: any(_changed(mirror)) or shutil.rmtree(mirror, ignore_errors=True))
    (mirror / MARK).write_text(f"{where}", "utf-8")
    with contextlib.suppress(OSError):  # a read-only home: encode anew each time
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tfx" / "data"
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        (mirror / "data").symlink_to(cache, target_is_directory=True)
    pull(mirror)
    return mirror


def pull(directory: Path) -> None:
    """Bring the files that lie in the workdir itself, not below, where `directory` mirrors one;
    a file that changed here stays."""
    if not (directory / MARK).exists():
        return
    import fsspec

    system, newer = fsspec.filesystem("gs"), set(_changed(directory))
    with contextlib.suppress(FileNotFoundError):  # no such workdir yet
        for entry in system.ls(f"{home(directory)}", detail=True):
            file = directory / Path(entry["name"]).name
            if file.name.startswith("."):  # a lock, and what would be another mark
                continue
            if entry["type"] == "file" and file not in newer:
                file.write_bytes(system.cat_file(entry["name"]))
                os.utime(file, (0, 0))


def publish(directory: Path) -> None:
    """Take what changed to the bucket, where `directory` is a mirror. JSON comes last: it vouches
    for the rest.

    Raises:
      ValueError: the bucket does not take it; the mirror then outlives the process.
    """
    if not (directory / MARK).exists():
        return
    import fsspec

    system, url = fsspec.filesystem("gs"), home(directory)
    for file in sorted(_changed(directory), key=lambda file: file.suffix == ".json"):
        os.utime(file, (0, 0))  # before it is read: what is written meanwhile is a change
        try:
            system.pipe_file(f"{url}/{file.relative_to(directory)}", file.read_bytes())
        except Exception as error:
            os.utime(file)
            raise ValueError(f"cannot write to {url}: {error}; see {directory}") from error


@contextlib.contextmanager
def published(directory: Path) -> Iterator[None]:
    """Publish in the end, whatever happened."""
    try:
        yield
    finally:
        publish(directory)


def _changed(mirror: Path) -> Iterator[Path]:
    """Files that are not as in the bucket: those that are have the time 0."""
    for folder, below, names in os.walk(mirror):
        below[:] = [name for name in below if (folder, name) != (f"{mirror}", "data")]
        for file in (Path(folder, name) for name in names if not name.startswith(".")):
            if file.stat().st_mtime_ns:
                yield file
