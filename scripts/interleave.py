"""How are several programs timed fairly on one machine? A process each, and turns.

A contender is a process. It prepares itself (imports, compiles, warms up) and then works a
round whenever it is asked to. Rounds go A B C A B C .., so that whatever else the machine does
meets all of them, and figures are medians. Needs nothing but the standard library: a worker
may run under any interpreter.

The protocol, on standard input and output, one line each: the worker says `{"ready": true}`;
for each line that it reads it works one round and says `{"seconds": .., "cpu_seconds": ..}`
with whatever the round returns; it exits where its input ends.
"""

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

# How threads wait for each other. Spinning is faster, until somebody else needs the core.
OPENMP = {"stock OpenMP": {}, "passive OpenMP": {"OMP_WAIT_POLICY": "PASSIVE"}}


def serve(prepare: Callable[[], Callable[[], dict]]) -> None:
    """The worker's side. `prepare` returns the function that works one round and returns what
    it found; it must have finished, not only begun, the work."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply
    work = prepare()
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        found = work()
        spent = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        print(json.dumps(spent | found), file=replies, flush=True)


@dataclass
class Contender:
    """A worker process; `with` starts it, waits until it is ready, and ends it.

    Attributes:
      count: what each round gets done, in the unit that is compared.
    """

    name: str
    command: Sequence[str]
    count: float
    setting: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    replies: list[dict] = field(default_factory=list)

    def __enter__(self):
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        environment = os.environ | self.environment
        self._process = subprocess.Popen(self.command, env=environment, **pipes)
        self._reply()
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()

    def round(self) -> None:
        self._process.stdin.write("round\n")
        self._process.stdin.flush()
        self.replies.append(self._reply())

    def _reply(self):
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise RuntimeError(f"{self.name} {self.setting}: ended with status {status}")
        return json.loads(line)

    def rates(self, spent: str = "seconds") -> list[float]:
        """Of every round: what was done a second."""
        return [self.count / reply[spent] for reply in self.replies]


def variants(name: str, command: Sequence[str], count: float, **choices) -> Iterator[Contender]:
    """A contender for every combination of flags, and of how OpenMP's threads wait."""
    for waiting, *values in itertools.product(OPENMP, *choices.values()):
        flags = [f"--{flag}={value}" for flag, value in zip(choices, values, strict=True)]
        setting = ", ".join([waiting, *(flag.strip("-") for flag in flags)])
        yield Contender(name, [*command, *flags], count, setting, OPENMP[waiting])


def fastest(contenders: Iterable[Contender]) -> Contender:
    """The one with the best of two rounds, each alone on the machine; its slate is clean."""

    def seconds(contender):
        with contender:
            contender.round()
            contender.round()
        best = min(reply["seconds"] for reply in contender.replies)
        print(f"{contender.name}, {contender.setting}: {best:.2f} s", file=sys.stderr)
        contender.replies.clear()
        return best

    return min(contenders, key=seconds)


def interleave(contenders: Sequence[Contender], rounds: int) -> None:
    """Let all work so many rounds in turn. All live at once, one works at a time."""
    running = []
    try:
        for contender in contenders:
            running.append(contender.__enter__())
        for number, contender in itertools.product(range(rounds), running):
            contender.round()
            print(f"round {number + 1}, {contender.name}", file=sys.stderr)
    finally:
        for contender in running:
            contender.__exit__()


def ratio(contender: Contender, reference: Contender) -> float:
    """How many times faster than the reference: the median over rounds."""
    return median(a / b for a, b in zip(contender.rates(), reference.rates(), strict=True))


def table(rows: Sequence[dict[str, str]]) -> str:
    """Markdown, all but the first column to the right; columns are the keys of the first row."""
    columns = list(rows[0])
    lines = [columns, *[[row.get(column, "") for column in columns] for row in rows]]
    first, *others = (max(map(len, cells)) for cells in zip(*lines, strict=True))
    shown = [[line[0].ljust(first), *map(str.rjust, line[1:], others)] for line in lines]
    shown.insert(1, ["-" * first, *("-" * (width - 1) + ":" for width in others)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in shown)
