"""Numbers reach their files, and where they cannot, nothing stops."""

import errno
import logging
import os
import struct
import subprocess
import sys
import textwrap
import threading

import jax
import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from tfx import metrics, records


def events(workdir):
    """Those of all event files, in order; whole ones alone."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        rest = path.read_bytes()
        while rest:
            (size,) = struct.unpack("<Q", rest[:8])
            head, content = rest[:8], rest[12 : 12 + size]
            sums = struct.unpack("<I", rest[8:12]) + struct.unpack(
                "<I", rest[12 + size : 16 + size]
            )
            assert sums == (masked_crc32c(head), masked_crc32c(content))
            found.append(Event.FromString(content))
            rest = rest[16 + size :]
    return found


def test_tensorboard_gets_every_row_and_forgets_what_died(tmp_path):
    with metrics.Writer(tmp_path, 0) as writer:
        writer.write(1, "train", loss=1.5, lr=0.25)
        writer.write(2, "valid", loss=2.5)
    with metrics.Writer(tmp_path, 1) as writer:
        writer.write(2, "train", loss=3.5)
    version, start, first, *_ = found = events(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (1, SessionLog.START)
    values = {each.tag: each.simple_value for each in first.summary.value}
    assert first.step == 1 and values == {"train/loss": 1.5, "train/lr": 0.25}
    starts = [each.step for each in found if each.HasField("session_log")]
    assert starts == [1, 2] and len(found) == 7


@pytest.fixture
def full(monkeypatch):
    """A set; files whose appends it counts cannot be written while it says so."""
    state, append = {"full": False, "asked": 0}, records.Log.append

    def write(self, record):
        state["asked"] += 1
        if state["full"]:
            append(self, record[: len(record) // 2])
            self._end -= len(record) // 2  # as an error leaves it
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, record)

    monkeypatch.setattr(records.Log, "append", write)
    return state


@pytest.mark.parametrize("first", [1, 2, 5])
def test_a_full_disk_is_told_once_and_costs_the_rows_of_that_time(first, full, tmp_path, caplog):
    with metrics.Writer(tmp_path, 0) as writer:
        for step in range(1, 41):
            full["full"] = first <= step < first + 30  # tensorboardX's queue held 10
            writer.write(step, "train", loss=float(step))
    kept = [*range(1, first), *range(first + 30, 41)]
    assert [row["step"] for row in metrics.read(tmp_path)] == kept
    assert [each.step for each in events(tmp_path) if each.summary.value] == kept
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        f"{tmp_path}/{name}: cannot be written (No space left on device); training goes on"
        for name in ("metrics.jsonl", "tensorboard")
    ]


LIMITED = """
import resource, sys
from tfx import metrics
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
with metrics.Writer(sys.argv[1], 0) as writer:
    for step in range(1, 500):
        writer.write(step, "train", loss=0.5)
print("went on")
"""


def test_a_file_that_the_system_lets_grow_no_more(tmp_path):
    command = [sys.executable, "-c", LIMITED, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "went on\n" and done.stderr.count("File too large") == 2
    steps = [row["step"] for row in metrics.read(tmp_path)]
    assert 10 < len(steps) < 100 and steps == [*range(1, len(steps) + 1)]


@pytest.mark.parametrize("name", ["tensorboard", "metrics.jsonl"])
def test_what_is_in_the_way_of_one_file_leaves_the_other(name, tmp_path, caplog):
    (tmp_path / name).mkdir() if name == "metrics.jsonl" else (tmp_path / name).write_text("")
    with metrics.Writer(tmp_path, 0) as writer:
        for step in (1, 2):
            writer.write(step, "train", loss=1.0)
    assert len(caplog.records) == 1 and f"{name}: cannot be written" in caplog.text
    if name == "tensorboard":
        assert len(metrics.read(tmp_path)) == 2
    else:
        assert len(events(tmp_path)) == 4


def test_lines_that_are_no_rows_stop_no_start(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"step": 1, "split": "train"}\n\xff\xfe\n[]\n7\n{"step": "2", "split": "train"}\n{"split'
        b'\n{"step": 1}\n{"step": 2, "split": "valid"}\n{"step": 9, "split": "train"}\n{"step": 1, '
    )
    with metrics.Writer(tmp_path, 2) as writer:
        writer.write(3, "train", loss=1.0)
    assert [row["step"] for row in metrics.read(tmp_path)] == [1, 2, 3]
    assert "7 lines are no rows, and left out" in caplog.text
    assert len(path.read_bytes().splitlines()) == 3


def test_writers_leave_no_threads_and_no_open_files(tmp_path):
    count = lambda: (threading.active_count(), len(os.listdir("/proc/self/fd")))
    before = count()
    for start in range(50):
        with metrics.Writer(tmp_path, start) as writer:
            writer.write(start + 1, "train", loss=1.0)
    assert count() == before


def test_a_profile_that_cannot_be_written_is_told(tmp_path, caplog):
    (tmp_path / "profile").write_text("")
    with metrics.Profile(tmp_path, tmp_path, (1, 2), pytest.fail) as trace:
        trace.start()
        jax.block_until_ready(jnp.ones(2) + 1)
        trace.stop()
    assert f"{tmp_path}/profile: cannot be written" in caplog.text


class Closed:
    """A stream that nobody reads any more."""

    encoding = "utf-8"

    def __init__(self, terminal, file):
        self.isatty, self.fileno = lambda: terminal, file.fileno

    def write(self, text):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    def flush(self):
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("terminal", [False, True])
def test_a_screen_that_nobody_sees_stops_nothing(terminal, monkeypatch, capsys, tmp_path):
    file = (tmp_path / "file").open("w")
    monkeypatch.setattr(sys, "stdout", Closed(terminal, file))
    monkeypatch.setenv("TERM", "xterm")
    numbers = {"loss": 1.0, "lr": 0.1, "tokens_per_second": 1.0, "epoch": 0.5}
    with metrics.Screen(3) as screen:
        for step in (1, 2, 3):
            screen.say("line")
            screen.step(step, numbers)
            logging.getLogger("tfx").warning("careful")
    monkeypatch.undo()
    file.close()
    told = capsys.readouterr().err
    assert told.count("training goes on") == 1 and "warning: standard output: Broken pipe" in told


READER = """
import sys
from tfx import metrics
with metrics.Screen(3) as screen:
    for step in range(2000):
        screen.say("line" * 20)
print("still here", file=sys.stderr)
"""


def test_a_reader_that_has_enough_stops_nothing():
    """As `tfx train | head -1`: rich would end the process."""
    pipe = '"$0" -c "$1" | head -1; exit ${PIPESTATUS[0]}'
    command = ["bash", "-c", pipe, sys.executable, textwrap.dedent(READER)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == "line" * 20 + "\n"
    assert "training goes on" in done.stderr and "still here" in done.stderr
