"""Where a run's numbers go: a person's terminal, `metrics.jsonl`, TensorBoard files."""

import json
import logging
import math
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from tfx import bucket, records, terminal

LOG = logging.getLogger("tfx")


def perplexity(nll: float) -> float:
    """exp of a mean negative log-likelihood in nats; inf instead of an overflow."""
    return math.exp(nll) if nll < 700 else math.inf


def quality(numbers: dict[str, float]) -> str:
    """How well a model does, for a person: its loss, and what is there of perplexity and
    accuracy."""
    shown = f"loss {numbers['loss']:.3f}"
    if "perplexity" in numbers:
        shown += f"  ppl {numbers['perplexity']:.2f}"
    return shown + (f"  accuracy {numbers['accuracy']:.1%}" if "accuracy" in numbers else "")


def clock(seconds: float) -> str:
    """1:02:03 or 02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"


class Expendable:
    """Work that training can do without: where it fails, a warning says so, once, and training
    goes on. It is tried again at the next occasion, for a disk may have room again."""

    def __init__(self, what: str):
        self._what, self._warned = what, False

    def attempt(self, function: Callable, *args) -> Any:
        """function(*args), or None where that raises."""
        try:
            return function(*args)
        except Exception as error:
            if not self._warned:
                self._warned = True
                LOG.warning("%s: cannot be written (%s); training goes on", self._what, _why(error))
            return None


def _why(error: BaseException) -> str:
    return getattr(error, "strerror", None) or f"{error}" or type(error).__name__


class Writer:
    """One row of numbers goes to `metrics.jsonl` and to TensorBoard.

    Rows beyond `start`, left by a run that died after its last checkpoint, are cut off:
    the file holds one history. With no workdir nothing is written: of several processes one writes.
    Both are by-products: nothing here blocks or raises.
    """

    def __init__(self, workdir: str | Path | None, start: int):
        self._sinks = []
        if workdir is not None:
            rows, events = Path(workdir) / "metrics.jsonl", Path(workdir) / "tensorboard"
            self._sinks = [
                (Expendable(f"{rows}"), Rows(rows, start)),
                (Expendable(f"{events}"), Events(events, start)),
            ]
        for expendable, sink in self._sinks:
            expendable.attempt(sink.open)

    def write(self, step: int, split: str, **numbers: float) -> None:
        """Add a row. `split` is train, valid or test."""
        for expendable, sink in self._sinks:
            expendable.attempt(sink.write, step, split, numbers)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for expendable, sink in self._sinks:
            expendable.attempt(sink.close)


class Rows:
    """`metrics.jsonl`, of which steps up to `start` are kept."""

    def __init__(self, path: Path, start: int):
        self._path, self._start = path, start
        self._log, self._began = None, time.time()

    def open(self) -> None:
        if self._log is not None:
            return
        rows, damaged = _history(self._path)
        if damaged:
            LOG.warning("%s: %d lines are no rows, and left out", self._path, damaged)
        if self._path.exists():
            part = self._path.with_suffix(".part")
            kept = (row for row in rows if row["step"] <= self._start)
            part.write_text("".join(json.dumps(row) + "\n" for row in kept))
            os.replace(part, self._path)
        self._log = records.Log(self._path)

    def write(self, step: int, split: str, numbers: dict[str, float]) -> None:
        self.open()
        row = {"step": step, "split": split} | numbers
        row["seconds"] = round(time.time() - self._began, 3)
        self._log.append(json.dumps(row).encode() + b"\n")

    def close(self) -> None:
        if self._log is not None:
            self._log.close()


class Events:
    """A file of events in the format of TensorBoard, written at once and without a thread: that of
    tensorboardX ends at the first error, and whoever writes then waits for it forever."""

    def __init__(self, folder: Path, start: int):
        host = socket.gethostname()
        name = f"events.out.tfevents.{time.time():.0f}.{host}.{os.getpid()}"
        self._path, self._start = folder / name, start
        self._log, self._begun = None, False

    def open(self) -> None:
        if self._log is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._log = records.Log(self._path)

    def write(self, step: int, split: str, numbers: dict[str, float]) -> None:
        self.open()
        values = [
            {"tag": f"{split}/{name}", "simple_value": value} for name, value in numbers.items()
        ]
        begin = b"" if self._begun else self._first()
        self._log.append(begin + _event(step=step, summary={"value": values}))
        self._begun = True

    def _first(self) -> bytes:
        """The version, and that what other files have from the first step on does not count."""
        version = _event(file_version="brain.Event:2")
        return version + _event(step=self._start + 1, session_log={"status": "START"})

    def close(self) -> None:
        if self._log is not None:
            self._log.close()


def _event(**fields) -> bytes:
    """A record of an event file: its length, 8 bytes, their masked CRC-32C, a protocol buffer and
    its masked CRC-32C; all little-endian."""
    from tensorboardX.proto.event_pb2 import Event  # here: only training waits for it
    from tensorboardX.record_writer import masked_crc32c

    content = Event(wall_time=time.time(), **fields).SerializeToString()
    length = struct.pack("<Q", len(content))
    sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, content)]
    return length + sums[0] + content + sums[1]


def _history(path: Path) -> tuple[list[dict], int]:
    """The rows of a `metrics.jsonl`, and how many lines are none."""
    rows, damaged = records.read(path)
    kept = [row for row in rows if isinstance(row.get("step"), int) and "split" in row]
    return kept, damaged + len(rows) - len(kept)


def read(workdir: str | Path, split: str | None = None) -> list[dict]:
    """The rows of a workdir's `metrics.jsonl`; what is no row there is left out."""
    rows, _ = _history(bucket.place(workdir) / "metrics.jsonl")
    return [row for row in rows if split in (None, row["split"])]


class Profile:
    """A trace of what host and devices do from step `first` to step `last`, in WORKDIR/profile.

    With no workdir nothing is traced: of several processes one is. All run the same program, and
    who is late shows in the collectives of the others. `home` is the workdir as people know it.
    A by-product: nothing here raises.
    """

    def __init__(self, workdir: str | Path | None, home, steps: tuple[int, ...], say):
        self.first, self.last = steps or (0, 0)
        self._path, self._home = workdir and f"{workdir}/profile", f"{home}/profile"
        self._say, self._running = say, False
        self._expendable = Expendable(self._home)

    def start(self) -> None:
        """To be called when all that went before is done."""
        if self._path:
            self._expendable.attempt(self._start)

    def _start(self) -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # every call of every function would drown the rest
        jax.profiler.start_trace(self._path, profiler_options=options)
        self._running = True

    def stop(self) -> None:
        """Write what was traced, if anything is; to be called when the last step is done."""
        if self._running:
            self._running = False
            self._expendable.attempt(self._stop)

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._say(
            f"profile: the trace from step {self.first:,} on is in {self._home}; "
            f"pip install xprof; xprof --logdir={self._home}"
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.stop()


class Screen:
    """Progress for a person: a live bar on a terminal, a plain line now and then elsewhere; and
    what the logger "tfx" says.

    `quiet`: nothing at all; of several processes one talks. A terminal or a pipe that is closed, or
    a full disk behind it, is no reason to stop: nothing here raises.
    """

    def __init__(self, total: int, start: int = 0, quiet: bool = False):
        self.console = Console(highlight=False, soft_wrap=True, quiet=quiet)
        self._total, self._start, self._began = total, start, time.time()
        columns = [BarColumn(bar_width=20), TextColumn("{task.description}")]
        self._bar = Progress(*columns, console=self.console, transient=True)
        self._task = self._bar.add_task("compiling the first step", total=total, completed=start)
        self._stream, self._failed = sys.stdout, False
        if self.console.is_terminal:
            self._show(self._bar.start)
        self._heard = logging.Handler()
        self._heard.emit = lambda record: self.say(record.getMessage())

    def say(self, line: str) -> None:
        """A line that stays."""
        if self.console.is_terminal:
            self._show(self.console.print, Text(line))
        elif not self.console.quiet:
            self._show(self._print, line)

    def _print(self, line: str) -> None:
        self.console.file.write(f"{line}\n")
        self.console.file.flush()

    def _show(self, show: Callable, *args) -> None:
        try:
            show(*args)
        except (Exception, SystemExit) as error:  # where a pipe is closed, rich would exit
            if not self._failed:
                self._failed = True
                why = "Broken pipe" if isinstance(error, SystemExit) else _why(error)
                terminal.tell(f"warning: standard output: {why}; training goes on")

    def step(self, step: int, numbers: dict[str, float], bleu: float | None = None) -> None:
        """The state of training after `step` updates."""
        rate = (time.time() - self._began) / max(step - self._start, 1)
        line = (
            f"step {step:,}/{self._total:,}  {quality(numbers)}  lr {numbers['lr']:.2e}  "
            f"{numbers['tokens_per_second']:,.0f} tok/s  epoch {numbers['epoch']:.2f}  "
            f"ETA {clock(rate * (self._total - step))}"
        )
        line += "" if bleu is None else f"  BLEU {bleu:.1f}"
        if self.console.is_terminal:
            self._show(partial(self._bar.update, self._task, completed=step, description=line))
        else:
            self.say(line)

    def __enter__(self):
        self._before = LOG.level, LOG.propagate, LOG.handlers
        if not self.console.quiet:
            LOG.setLevel(logging.INFO)
            LOG.propagate = False  # a library may have made a handler for all
            LOG.handlers = [self._heard]
        return self

    def __exit__(self, *exception):
        level, LOG.propagate, LOG.handlers = self._before
        LOG.setLevel(level)
        if self.console.is_terminal:
            self._show(self._bar.stop)
        terminal.settle(self._stream)
