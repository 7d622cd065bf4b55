"""Where a run's numbers go: a person's terminal, `metrics.jsonl`, TensorBoard files."""

import json
import logging
import math
import time
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from tfx import bucket
from tfx.data import output

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


class Writer:
    """One row of numbers goes to `metrics.jsonl` and to TensorBoard.

    Rows beyond `start`, left by a run that died after its last checkpoint, are cut off:
    the file holds one history. With no workdir nothing is written: of several processes one writes.
    """

    def __init__(self, workdir: str | Path | None, start: int):
        from tensorboardX import SummaryWriter

        self._file = self._board = None
        if workdir is None:
            return
        self._path = Path(workdir) / "metrics.jsonl"
        self._began = time.time()
        if self._path.exists():
            rows = [r for r in self._path.read_text().splitlines() if _step(r) <= start]
            output.write(self._path, "".join(row + "\n" for row in rows).encode())
        self._file = self._path.open("a", buffering=1)
        board = str(Path(workdir) / "tensorboard")
        self._board = SummaryWriter(board, purge_step=start + 1, flush_secs=30)

    def write(self, step: int, split: str, **numbers: float) -> None:
        """Add a row. `split` is train, valid or test."""
        if self._file is None:
            return
        row = {"step": step, "split": split} | numbers
        self._file.write(json.dumps(row | {"seconds": round(time.time() - self._began, 3)}) + "\n")
        for name, value in numbers.items():
            self._board.add_scalar(f"{split}/{name}", value, step)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self._file is not None:
            self._file.close()
            self._board.close()


def _step(row: str) -> int:
    try:
        return json.loads(row)["step"]
    except (ValueError, KeyError, TypeError):  # a half-written last line
        return 1 << 62


def read(workdir: str | Path, split: str | None = None) -> list[dict]:
    """The rows of a workdir's `metrics.jsonl`."""
    path = bucket.place(workdir) / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if _step(line) < 1 << 62]
    return [row for row in rows if split in (None, row["split"])]


class Profile:
    """A trace of what host and devices do from step `first` to step `last`, in WORKDIR/profile.

    With no workdir nothing is traced: of several processes one is. All run the same program, and
    who is late shows in the collectives of the others. `home` is the workdir as people know it.
    """

    def __init__(self, workdir: str | Path | None, home, steps: tuple[int, ...], say):
        self.first, self.last = steps or (0, 0)
        self._path, self._home = workdir and f"{workdir}/profile", f"{home}/profile"
        self._say, self._running = say, False

    def start(self) -> None:
        """To be called when all that went before is done."""
        if self._path:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every call of every function would drown the rest
            jax.profiler.start_trace(self._path, profiler_options=options)
            self._running = True

    def stop(self) -> None:
        """Write what was traced, if anything is; to be called when the last step is done."""
        if self._running:
            self._running = False
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

    `quiet`: nothing at all; of several processes one talks.
    """

    def __init__(self, total: int, start: int = 0, quiet: bool = False):
        self.console = Console(highlight=False, soft_wrap=True, quiet=quiet)
        self._total, self._start, self._began = total, start, time.time()
        columns = [BarColumn(bar_width=20), TextColumn("{task.description}")]
        self._bar = Progress(*columns, console=self.console, transient=True)
        self._task = self._bar.add_task("compiling the first step", total=total, completed=start)
        if self.console.is_terminal:
            self._bar.start()
        self._heard = logging.Handler()
        self._heard.emit = lambda record: self.say(record.getMessage())

    def say(self, line: str) -> None:
        """A line that stays."""
        self.console.print(Text(line))

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
            self._bar.update(self._task, completed=step, description=line)
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
            self._bar.stop()
