"""The processes of a run: how they join, agree, take turns and stop together; and what each one
keeps of memory and compiled programs.

A run is one process per host, all of the same program. Whatever has to be the same in all of
them is compared or decided here; a run of one process passes through unchanged.
"""

import contextlib
import ctypes
import faulthandler
import json
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tfx import terminal

JOINING = 300  # seconds that processes wait for each other at the start
LEAVING = 60  # and at the end: an error in one of them ends all of them after that time
INSISTED = 5  # that a process still gets after a second signal
PATIENT = 5  # before it is said who is waited for
ASKING = (signal.SIGTERM, signal.SIGINT)  # signals by which somebody asks a process to end


class Stopped(Exception):
    """A signal ended the run after it had saved; the exit code is 128 + `signal`."""

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} after saving step {step}")
        self.signal = number


def join(
    distributed: str = "auto",
    coordinator: str = "",
    num_processes: int = 0,
    process_id: int = -1,
    seconds: float = JOINING,
) -> None:
    """Become one process of a run of several; to be called before anything touches a device.

    Args:
      distributed: on; off; or auto: on where something is given below, or where JAX detects a
        cluster (TPU VM, GKE, Slurm, Open MPI).
      coordinator: HOST:PORT where process 0 listens and all others find it; empty: as detected.
      num_processes, process_id: how many, and which one this is, from 0; 0 and -1: as detected.
      seconds: how long to wait for the others. After that, the process ends with one line that
        says why, and exit code 2: JAX itself would abort it with a stack trace of C++.

    Raises:
      ValueError: what is given is no such thing; the port is taken; nothing is detected.
    """
    given = bool(coordinator) or num_processes != 0 or process_id != -1
    if distributed not in ("auto", "on", "off"):
        raise ValueError(f"--distributed={distributed}: choose from auto, on, off")
    if given and distributed == "off":
        raise ValueError("--distributed=off leaves no place for --coordinator and process numbers")
    _, _, port = coordinator.rpartition(":")
    if coordinator and not (re.fullmatch(r".+:\d+", coordinator) and 0 < int(port) < 1 << 16):
        raise ValueError(f"--coordinator={coordinator}: want HOST:PORT, such as 10.0.0.1:1234")
    if num_processes < 0 or not -1 <= process_id < (num_processes or 1 << 30):
        raise ValueError(
            f"--process_id={process_id} of --num_processes={num_processes}: processes count from 0"
        )
    if distributed == "off":
        return
    if coordinator and process_id == 0:
        _check_port(coordinator)
    # Orbax would save, but not stop, at this service's word; `stop_requests` does both.
    jax.config.update("jax_enable_preemption_service", False)
    leave = partial(_leave, coordinator, num_processes, seconds)
    tell = partial(_tell_who_is_missing, coordinator, num_processes, process_id, seconds)
    with _timer(seconds, leave), _timer(PATIENT, tell):
        try:
            jax.distributed.initialize(
                coordinator or None,
                num_processes or None,
                process_id if process_id >= 0 else None,
                initialization_timeout=int(seconds) + 60,  # the deadline comes first
                shutdown_timeout_seconds=LEAVING,
            )
        except (ValueError, RuntimeError) as error:
            # The public way to ask JAX whether it detects a cluster, or may still join one.
            alone = re.match("coordinator_address should be|.* must be called before", str(error))
            if distributed == "on" or given or not alone:
                raise ValueError(
                    f"cannot join the run: {str(error).rstrip('.')}; give --coordinator=HOST:PORT, "
                    "--num_processes and --process_id, or --distributed=off for one process"
                ) from error


def _check_port(coordinator: str) -> None:
    try:
        socket.create_server(("", int(coordinator.rpartition(":")[2]))).close()
    except OSError as error:  # JAX would crash on a port that is taken
        why = f"process 0 cannot listen: {error.strerror}"
        raise ValueError(f"--coordinator={coordinator}: {why}") from error


def _leave(coordinator: str, num_processes: int, seconds: float) -> None:
    """End this process, with a line that says why it is still alone."""
    why = _unreachable(coordinator) or f"not all {num_processes or 'of the'} processes came"
    where = f"--coordinator={coordinator}" if coordinator else "cannot join the run"
    fix = "check that every process starts with the same one"
    terminal.tell(f"error: {where}: {why} within {seconds:g} s; {fix}")
    os._exit(2)


def _tell_who_is_missing(
    coordinator: str, num_processes: int, process_id: int, seconds: float
) -> None:
    """Print a line that says for whom this process waits."""
    why = _unreachable(coordinator) if process_id > 0 else ""
    several = [n for n in range(1, num_processes) if n != process_id]
    missing = [0] if why or not several else several
    shown = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
    others = f"process {shown}" if len(missing) == 1 else f"processes {shown}"
    if not num_processes or process_id < 0:
        others = "the other processes of the run"
    where = f" at {coordinator}" if coordinator else ""
    here = f"process {process_id}" if process_id >= 0 else "this process"
    reason = f"; {why}" if why else ""
    terminal.tell(f"{here} waits for {others} to join{where}, {seconds:g} s at most{reason}")


def _unreachable(coordinator: str) -> str:
    """Why process 0 cannot be reached; empty where it can, or it is not known where."""
    host, _, port = coordinator.rpartition(":")
    try:
        if coordinator:
            socket.create_connection((host, int(port)), timeout=5).close()
    except socket.gaierror:
        return f"{host} is no known host"
    except OSError as error:
        return f"process 0 does not answer there ({error.strerror or error})"
    return ""


@contextlib.contextmanager
def _timer(seconds: float, act: Callable[[], None]):
    """Call a function from another thread if the block is still open then."""
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def leads() -> bool:
    """Whether this is the one process that writes files and talks to a person."""
    return jax.process_index() == 0


def gather(text: str) -> list[str]:
    """What every process says here, in their order."""
    if jax.process_count() == 1:
        return [text]
    said = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(said))).ravel()
    rows = multihost_utils.process_allgather(np.pad(said, (0, sizes.max() - len(said))))
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def agree(values: dict[str, Any], remedy: str) -> None:
    """Compare what has to be the same in all processes, before it is used.

    Args:
      values: JSON.
      remedy: what to do where they are not.

    Raises:
      ValueError: in all processes, with what differs and each one's value.
    """
    every, lines = [json.loads(text) for text in gather(json.dumps(values))], []
    for key in dict.fromkeys(key for each in every for key in each):
        found = {}
        for process, each in enumerate(every):
            found.setdefault(json.dumps(each.get(key)), []).append(str(process))
        if len(found) > 1:
            shown = (f"{value} on process {', '.join(where)}" for value, where in found.items())
            lines.append(f"{key} is {' and '.join(shown)}")
    if lines:
        raise ValueError(f"the processes differ: {'; '.join(lines[:5])}; {remedy}")


def in_turn(make: Callable[[], Any]) -> Any:
    """make() in process 0, and then, when what it wrote is there to be read, in all others.

    Raises:
      what make() raised; ValueError in the processes where it raised nothing.
    """
    result = error = None
    for turn in (True, False):
        if leads() == turn:
            try:
                result = make()
            except Exception as raised:
                error = raised
        # One without a text, such as a broken pipe, is one all the same.
        errors = gather("" if error is None else f"{error}" or type(error).__name__)
        for process, text in enumerate(errors):
            if text:
                raise error or ValueError(f"process {process}: {text}")
    return result


@contextlib.contextmanager
def watchdog(seconds: float):
    """Yields alive(), to be called whenever a piece of work is done. From the first call on, if
    `seconds` pass without another, the stacks of all threads go to stderr and the process ends
    with exit code 1, for a scheduler to start it again. 0: never.

    It is a thread of C that does this: also where Python itself hangs.
    """
    with open(os.devnull, "w") as nowhere:  # of a process without standard error
        stacks = sys.__stderr__ or nowhere
        alive = lambda: faulthandler.dump_traceback_later(seconds, exit=True, file=stacks)
        try:
            yield alive if seconds else lambda: None
        finally:
            faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def stop_requests():
    """While open, SIGTERM, SIGINT and SIGHUP only set a flag; a second SIGTERM or SIGINT acts as it
    would without this, and `INSISTED` seconds later the process ends, whatever it is waiting for.

    A terminal that is closed may send SIGHUP twice, and what ends a session SIGTERM too: SIGHUP
    never counts as a first or second word of a person. Where it is ignored (nohup), it stays so.

    A handler that raised would tear the step or the save that is running. Yields a
    function that returns the signal's number, or 0; of several processes, each has to call it
    equally often, and all are told the same at the same call.
    """
    received = []

    def handle(number, frame):
        received.append(number)
        for each in ASKING if number in ASKING else ():
            signal.signal(each, old[each])

    old, told = {}, _everywhere()
    with contextlib.suppress(ValueError):  # not the main thread: leave signals alone
        for number in ASKING:
            old[number] = signal.signal(number, handle)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            old[signal.SIGHUP] = signal.signal(signal.SIGHUP, handle)
    try:
        with _insistence() if old else contextlib.nullcontext():
            yield lambda: told(received[0] if received else 0)
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)


@contextlib.contextmanager
def _insistence():
    """The second half of `stop_requests`. Python's handlers wait for the main thread, which may
    wait for a host that hangs; what C writes into a pipe, another thread reads."""
    over, (ear, mouth) = threading.Event(), os.pipe()
    os.set_blocking(mouth, False)

    def listen():
        heard = []
        while len(heard) < 2 and (number := os.read(ear, 1)):
            heard += {*number} & {*ASKING}
        os.close(ear)
        if len(heard) == 2 and not over.wait(INSISTED):
            os._exit(128 + heard[1])

    before = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    threading.Thread(target=listen, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(mouth)
        if jax.process_count() == 1:  # others may keep a process from leaving
            over.set()


def _everywhere() -> Callable[[int], int]:
    """A function: the largest number that any process gave to the call before this one.

    JAX's own preemption service does not serve: it takes the handler of SIGTERM for itself, so
    that a second signal no longer ends the process, and knows neither SIGINT nor which it was.
    The largest of all is one small program on the devices, in line between two steps. Its result
    is read a call later, when it has long been there, so no step waits for it.
    """
    if jax.process_count() == 1:
        return lambda number: number
    mesh = Mesh(jax.devices(), "all")
    each, whole = NamedSharding(mesh, PartitionSpec("all")), NamedSharding(mesh, PartitionSpec())
    largest, under_way = jax.jit(jax.numpy.max, out_shardings=whole), []

    def told(number: int) -> int:
        mine = np.array([number], np.int32)
        with jax.set_mesh(mesh):
            flags = jax.make_array_from_callback((mesh.size,), each, lambda _: mine)
            under_way.append(largest(flags))
        return int(under_way.pop(0)) if len(under_way) > 1 else 0

    return told


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
