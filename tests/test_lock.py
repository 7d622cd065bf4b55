"""One process at a time writes in a place, whoever comes; and who is gone keeps nobody out."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tfx import lock

HOLD = """
import sys, time
from tfx import lock
held = lock.Lock(sys.argv[1], "train")
held.acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of tmp_path."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@contextlib.contextmanager
def holding(directory, seconds=0.0, path=None):
    with lock.Lock(directory, "train", path) as held:
        held.acquire(seconds)
        yield held


def left(directory, age, **changes):
    """A lock of another machine, whose last sign of life is so old."""
    holder = lock._here() | {
        "verb": "train",
        "token": "theirs",
        "machine": "another",
        "host": "far",
    }
    path = directory / lock.NAME
    path.write_text(json.dumps(holder | changes))
    os.utime(path, (time.time() - age,) * 2)
    return path


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_lock_is_there_while_it_is_held(tmp_path):
    with holding(tmp_path / "new"):
        holder = json.loads((tmp_path / "new" / lock.NAME).read_text())
        assert (holder["verb"], holder["pid"]) == ("train", os.getpid())
        with pytest.raises(lock.Held, match=f"tfx train .process {os.getpid()} on host"):
            lock.check(tmp_path / "new")
    assert names(tmp_path / "new") == []
    lock.check(tmp_path / "new")
    lock.check(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_what_is_made_is_locked_before_it_is_there(tmp_path):
    with lock.making(tmp_path / "new", "average"):
        assert names(tmp_path) == [".new.lock"]
        with pytest.raises(lock.Held, match=r"new: tfx average \(process"):
            lock.check(tmp_path / "new")
        with pytest.raises(lock.Held), lock.making(tmp_path / "new", "import"):
            pytest.fail("two make one thing")
        with lock.making(tmp_path / "other", "average"):
            pass
    assert names(tmp_path) == []


def test_a_holder_that_lives_is_named_at_once(holder, tmp_path):
    for attempt in (lock.check, lock.Lock(tmp_path, "train").acquire):
        began = time.monotonic()
        with pytest.raises(lock.Held) as caught:
            attempt(*[tmp_path] * (attempt is lock.check))
        assert time.monotonic() - began < 1
        text = str(caught.value)
        assert f"tfx train (process {holder.pid} on host " in text and "since 20" in text
        assert "\n" not in text and "choose another place" in text
    assert names(tmp_path) == [lock.NAME]


def test_a_process_that_stands_still_lives(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "LEASE", 0.0)
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(lock.Held):
        lock.Lock(tmp_path, "train").acquire()


def test_the_lock_of_a_process_that_died_is_taken_over_and_that_is_said(holder, tmp_path, caplog):
    holder.kill()
    with lock.Lock(tmp_path, "train") as held:  # a zombie: nobody has asked for its end yet
        held.acquire(seconds=10)  # which takes a moment
        assert f"taking over from tfx train (process {holder.pid} " in caplog.text
        held.confirm()
    assert names(tmp_path) == []


def test_the_number_of_a_dead_process_may_be_that_of_another_one(tmp_path):
    """Of this one, which began at another time."""
    holder = lock._here() | {"verb": "train", "token": "theirs", "born": "1"}
    (tmp_path / lock.NAME).write_text(json.dumps(holder))
    with holding(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", "\udcff"])
def test_a_damaged_lock_is_one_of_somebody_until_its_lease_is_over(text, tmp_path):
    path = tmp_path / lock.NAME
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(lock.Held, match="another process"):
        lock.check(tmp_path)
    os.utime(path, (time.time() - lock.LEASE - 1,) * 2)
    with holding(tmp_path):
        pass


def test_on_other_machines_signs_of_life_count(tmp_path, caplog):
    left(tmp_path, 1)
    with pytest.raises(lock.Held, match="on host far"):
        lock.Lock(tmp_path, "train").acquire()
    left(tmp_path, lock.LEASE + 1)
    with holding(tmp_path):
        assert "on host far" in caplog.text


def test_who_is_neither_fresh_nor_gone_is_waited_for(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    path = left(tmp_path, lock.FRESH + 1)
    threading.Timer(0.3, lambda: os.utime(path)).start()
    with pytest.raises(lock.Held):
        lock.Lock(tmp_path, "train").acquire()
    assert "waiting 104 s for a sign of life of tfx train" in caplog.text
    left(tmp_path, lock.LEASE - 0.5)
    began = time.monotonic()
    with holding(tmp_path):
        assert time.monotonic() - began > 0.4


def test_a_holder_gives_signs_of_life_and_ends_its_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    before = threading.active_count()
    with lock.Lock(tmp_path, "train") as held:
        held.acquire()
        os.utime(tmp_path / lock.NAME, (0, 0))
        (tmp_path / "clock").touch()
        while (tmp_path / lock.NAME).stat().st_mtime < (tmp_path / "clock").stat().st_mtime - 1:
            time.sleep(0.01)
        (tmp_path / lock.NAME).unlink()
        while not (tmp_path / lock.NAME).exists():
            time.sleep(0.01)
    assert threading.active_count() == before and names(tmp_path) == ["clock"]


def test_who_was_taken_over_saves_nothing_more_and_leaves_the_lock_alone(tmp_path):
    with lock.Lock(tmp_path, "train") as held:
        held.acquire()
        left(tmp_path, 0)
        with pytest.raises(lock.Held, match=r"on host far, .* has taken over; .* saves nothing"):
            held.confirm()
    assert "theirs" in (tmp_path / lock.NAME).read_text()


def test_somebody_may_wait_for_a_short_work(tmp_path):
    path = lock.inside(tmp_path, ".scores.lock")
    first = lock.Lock(tmp_path, "eval", path)
    first.acquire()
    threading.Timer(0.3, first.release).start()
    with holding(tmp_path, 20, path):
        pass
    with holding(tmp_path, path=path), holding(tmp_path):
        pass  # which are two locks


RACE = """
import sys, time
from tfx import lock
held = lock.Lock(sys.argv[1], "train")
while not __import__("os").path.exists(sys.argv[1] + "/go"):
    time.sleep(0.001)
try:
    held.acquire()
    print("won", flush=True)
except lock.Held:
    print("lost", flush=True)
sys.stdin.readline()  # the winner lives until all have tried
held.release()
"""


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_that_start_at_once_one_wins(stale, tmp_path):
    if stale:
        left(tmp_path, 0, **lock._here() | {"born": "1"})
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    racers = [subprocess.Popen([sys.executable, "-c", RACE, tmp_path], **pipes) for _ in range(8)]
    (tmp_path / "go").touch()
    said = [racer.stdout.readline() for racer in racers]
    for racer in racers:
        racer.communicate("\n")
    assert sorted(said) == ["lost\n"] * 7 + ["won\n"]
    assert names(tmp_path) == ["go"]


ENDED = """
import sys, time
from tfx import lock
with lock.making(sys.argv[1] + "/new", "average"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_gives_a_lock_back(number, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", ENDED, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 128 + number and names(tmp_path) == []


def test_what_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file/run: cannot write here"):
        lock.Lock(tmp_path / "file" / "run", "train").acquire()


def test_a_file_system_without_links_will_do(tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with holding(tmp_path), pytest.raises(lock.Held):
        lock.Lock(tmp_path, "train").acquire()
    assert names(tmp_path) == []
