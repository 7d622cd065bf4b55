"""The process that a run lives in: what it keeps of programs and memory, and the signals that
ask it to stop."""

import contextlib
import ctypes
import os
import signal
from pathlib import Path

import jax


class Stopped(Exception):
    """A signal ended the run after it had saved; the exit code is 128 + `signal`."""

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} after saving step {step}")
        self.signal = number


def keep_memory() -> None:
    """Have glibc keep freed memory. By default it gives large blocks back to the system, and a
    training step on a CPU then spends a tenth of its time faulting the same pages in again.
    To be called before threads start."""
    trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8
    with contextlib.suppress(OSError, AttributeError):  # another C library: as it is
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in (
            (trim_threshold, -1),
            (top_pad, 1 << 26),
            (mmap_max, 0),
            (arena_max, 1),
        ):
            mallopt(option, value)


def keep_compiled() -> None:
    """Keep compiled programs in a private folder, so that a second run starts at once.

    Private, because a program found there is executed. JAX_COMPILATION_CACHE_DIR names
    another folder; an empty value keeps nothing.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = home / "tfx" / "compiled"
        with contextlib.suppress(OSError):  # a read-only home: compile anew each time
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)
            jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@contextlib.contextmanager
def stop_requests():
    """While open, SIGTERM and SIGINT only set a flag; a second one acts at once.

    A handler that raised would tear the step or the save that is running. Yields a
    function that returns the signal's number, or 0.
    """
    received = []

    def handle(number, frame):
        received.append(number)
        for each, previous in old.items():
            signal.signal(each, previous)

    old = {}
    with contextlib.suppress(ValueError):  # not the main thread: leave signals alone
        for number in (signal.SIGTERM, signal.SIGINT):
            old[number] = signal.signal(number, handle)
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)
