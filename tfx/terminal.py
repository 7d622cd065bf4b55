"""The streams of a person, who may close a terminal or a pipe while a run goes on: what can no
longer be said there ends nothing."""

import os
import sys
from typing import TextIO


def tell(line: str) -> None:
    """Print a line on standard error, if anybody is there."""
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        mute(sys.stderr)


def settle(stream: TextIO | None) -> None:
    """Write out what a stream still holds, or drop it: Python would end with code 120 over it.
    None: a process that was started without one."""
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        mute(stream)


def mute(stream: TextIO) -> None:
    """Let a stream that cannot be written to lead nowhere from now on."""
    try:
        file = stream.fileno()
    except (OSError, ValueError, AttributeError):  # it has none, or that is closed
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, file)
    os.close(nowhere)
