"""What is kept beside a run, so that it can go on, be explained and be read again?

    config.json      every value, resolved: what translating and resuming read
    overrides.txt    the `--config.KEY=VALUE` of the last start
    starts.jsonl     a line per start: when, how, with which versions and git revision

A config file is never copied here and never executed from here. A workdir may lie in a bucket:
then `prepare` returns its mirror on this machine (tfx/bucket.py).
"""

import contextlib
import datetime
import importlib.metadata
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tfx
from tfx import bucket, records
from tfx import config as configs
from tfx.data import output
from tfx.schema import Config

FOLDERS = ("checkpoints", "data", "tensorboard")
INSIDE = (*FOLDERS, "answers", "launch", "profile", "translations", "vocabulary")  # of a run
DEEPEST = 3  # levels below a directory where runs are looked for
FILES = ("config.json", "overrides.txt", "starts.jsonl", "tokenizer.json")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "sentencepiece")


def prepare(
    directory: str | os.PathLike, config: Config, provenance: dict[str, Any] | None = None
) -> Path:
    """Make a workdir, or take up one that holds the same run, and write down its start.

    Args:
      provenance: how the run was started: `argv`, a list, and `overrides`, {key: value}.

    Returns:
      The absolute path; of a URL, that of a mirror.

    Raises:
      ValueError: the directory cannot be written, or holds another run; see
        `tfx.config.MAY_CHANGE` for what may differ.
    """
    check_place(directory)
    check(directory, config)
    path = bucket.local(directory).absolute()
    provenance = {"argv": [], "overrides": {}} | (provenance or {})
    overrides = as_arguments(provenance["overrides"])
    start = {"time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    start |= {"argv": provenance["argv"], "config": configs.fingerprint(config), "git": revision()}
    try:
        path.mkdir(parents=True, exist_ok=True)
        output.write(path / "overrides.txt", "".join(f"{x}\n" for x in overrides).encode())
        output.write(path / "config.json", configs.to_json(config).encode())
        records.append(path / "starts.jsonl", [start | versions()])
    except OSError as error:
        raise ValueError(f"{path}: cannot write here ({error.strerror})") from error
    bucket.publish(path)
    return path


def check(directory: str | os.PathLike, config: Config) -> None:
    """Raises what `prepare` would raise; nothing is written."""
    path = bucket.home(directory)
    # A start that ended before it had a tokenizer has left nothing to go on from.
    if not all((path / name).exists() for name in ("config.json", "tokenizer.json")):
        return
    old, new = configs.decides(read_config(path)), configs.decides(config)
    if differ := configs.diff(old, new):
        shown = "; ".join(f"{key} was {a}, is {b}" for key, a, b in differ[:5])
        more = f"; and {len(differ) - 5} more" if len(differ) > 5 else ""
        raise ValueError(f"{path}: holds another run: {shown}{more}; choose another workdir")


def check_place(directory: str | os.PathLike) -> None:
    """Refuse a directory that no run can live in; what is there stays as it is.

    Raises:
      ValueError: it cannot be written, or what the run keeps there is no folder, or no file.
    """
    path = bucket.home(directory)
    if not isinstance(path, Path):
        return  # a bucket says so by itself, when it is opened
    try:
        there = next(each for each in (path, *path.parents) if each.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ValueError(f"{path}: cannot write here ({error.strerror})") from error
    for name in FOLDERS:
        if (path / name).exists() and not (path / name).is_dir():
            raise ValueError(f"{path / name}: a file where the run keeps a folder; move it away")
    for name in FILES:
        if (path / name).is_dir():
            raise ValueError(f"{path / name}: a folder where the run keeps a file; move it away")


def check_new(directory: str | os.PathLike) -> None:
    """Raises ValueError where `new` cannot make a workdir, for something is there."""
    place = bucket.place(directory)
    if isinstance(place, Path):
        output.check_folder(place)
    elif place.exists() and any(place.iterdir()):
        raise ValueError(f"{directory}: holds something; choose another folder")


@contextlib.contextmanager
def new(
    directory: str | os.PathLike, config: Config, provenance: dict[str, Any] | None = None
) -> Iterator[Path]:
    """Make a workdir of what is written inside, which is there when it is whole; see `prepare`.

    In a bucket, where a folder cannot be renamed, the checkpoint comes last: without one it is no
    run that anything can be done with.

    Raises:
      ValueError: something is there already.
    """
    check_new(directory)
    place = bucket.place(directory)
    if isinstance(place, Path):
        with output.new_folder(place) as folder:
            yield prepare(folder, config, provenance)
    else:
        yield prepare(directory, config, provenance)


def split(names: str) -> list[str]:
    """The workdirs that a list of names separated by commas means.

    A name may have a comma: as many parts as together are the name of a run are one.
    """
    parts, found = names.split(","), []
    while parts:
        count = len(parts)
        while count > 1 and not _is_run(",".join(parts[:count])):
            count -= 1
        found.append(",".join(parts[:count]))
        parts = parts[count:]
    return found


def _is_run(name: str) -> bool:
    return (bucket.place(name) / "config.json").exists()


@contextlib.contextmanager
def given_back(directory: Path, new: bool):
    """A start that is refused in here leaves a `new` workdir to whoever comes next: without a
    config that binds it, and without a tokenizer that was learned for that."""
    try:
        yield
    except (ValueError, FileNotFoundError):
        for name in ("config.json", "tokenizer.json") if new else ():
            (directory / name).unlink(missing_ok=True)
        raise


def last_start(directory: str | os.PathLike) -> str:
    """The last line of starts.jsonl; empty where there is none."""
    path = Path(directory) / "starts.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return lines[-1].decode(errors="replace") if lines else ""


def read_config(directory: str | os.PathLike) -> Config:
    """The config of the run in a workdir, from its JSON.

    Raises:
      FileNotFoundError: there is no run.
      ValueError: the file is damaged, or of a version with other keys.
    """
    path = bucket.place(directory) / "config.json"
    try:
        return configs.from_json(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{directory}: no run here (config.json is missing)") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def changed(
    directory: str | os.PathLike, overrides: list[str], free: tuple[str, ...] = ()
) -> Config:
    """The config of the run in a workdir, with overrides (`--config.KEY=VALUE`) of what is `free`
    to change, and of what describes the machine.

    Raises:
      ValueError: one is neither, or no value of its key.
    """
    chosen = configs.thaw(read_config(directory))
    for key in configs.override(chosen, overrides):
        if not key.startswith(free + configs.MACHINE):
            only, machine = (
                ", ".join(f"{each}*" if each.endswith(".") else each for each in keys)
                for keys in (free, configs.MACHINE)
            )
            raise ValueError(
                f"{key}: is fixed once a run is trained; only "
                + (f"{only} may change, and " if only else "")
                + f"what describes the machine: {machine}"
            )
    return configs.freeze(chosen)


def read_overrides(directory: str | os.PathLike) -> list[str]:
    """The keys that the command line changed at the last start."""
    path = bucket.place(directory) / "overrides.txt"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return [line.removeprefix("--config.").partition("=")[0] for line in lines]


def as_arguments(overrides: dict[str, Any]) -> Iterable[str]:
    """`--config.KEY=VALUE` for each, as one would type them."""
    for key, value in overrides.items():
        yield f"--config.{key}={str(value).lower() if isinstance(value, bool) else value}"


def find(root: str | os.PathLike) -> list[Path]:
    """The workdirs in a directory and the directories below it, and the directory itself if it is
    one; in order."""
    root = bucket.place(root)
    if found := sorted(_workdirs(root, DEEPEST)):
        return found
    raise FileNotFoundError(f"{root}: no runs here")


def _workdirs(folder: Path, levels: int) -> Iterator[Path]:
    is_run = (folder / "config.json").exists()
    if is_run:
        yield folder
    below = folder.iterdir() if levels and folder.is_dir() else ()
    with contextlib.suppress(PermissionError):  # what may not be looked into hides nothing else
        for each in below:
            inside = is_run and each.name in INSIDE
            if not (inside or each.name.startswith(".")) and each.is_dir():
                yield from _workdirs(each, levels - 1)


def progress(directory: str | os.PathLike) -> tuple[int, dict[str, Any] | None]:
    """The step of the last checkpoint (0: none), and the main row of the last evaluation."""
    path = bucket.place(directory)
    # In a bucket, one that is being written has its name already; this file comes last.
    whole = lambda saved: isinstance(saved, Path) or (saved / "commit_success.txt").exists()
    found = [saved for saved in path.glob("checkpoints/*") if saved.name.isdigit()]
    steps = [int(saved.name) for saved in found if whole(saved)]
    scored, _ = records.read(path / "scores.jsonl")
    rows = [row for row in scored if row.get("main", row.get("metric") == "bleu")]
    rows = [row for row in rows if isinstance(row.get("score"), int | float) and "metric" in row]
    return max(steps, default=0), rows[-1] if rows else None


def versions() -> dict[str, str]:
    """{package: version} of what a result may depend on."""
    found = {"tfx": tfx.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def revision() -> str:
    """The git commit of this code, with "+" where tracked files were changed since.

    Empty where the code does not lie in a repository of its own.
    """
    root = Path(__file__).parent.parent
    if (root / "REVISION").exists():  # a copy that `tfx launch` made
        return (root / "REVISION").read_text("utf-8").strip()
    if not (root / ".git").exists():
        return ""
    git = lambda *words: subprocess.run(
        ["git", "-C", root, *words], capture_output=True, text=True, timeout=10, check=True
    ).stdout.strip()
    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + "+" * bool(changed)
    except (OSError, subprocess.SubprocessError):
        return ""
