import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import jax
import pytest

from tfx import hosts


def run(code, *words, timeout=60):
    """Python in a process of its own; its exit code, what it wrote to stderr, and its seconds."""
    began = time.time()
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    return done.returncode, done.stderr, time.time() - began


def free_port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def test_where_no_cluster_is_detected_a_run_has_one_process():
    code = "from tfx import hosts; hosts.join(); print(hosts.leads(), hosts.gather('x'))"
    assert run(code)[0] == 0
    hosts.join()  # devices are in use here, so no cluster could be joined: nor is one wanted
    assert jax.process_count() == 1 and hosts.leads()


@pytest.mark.parametrize(
    "words, message",
    [
        (dict(distributed="yes"), "--distributed=yes: choose from auto, on, off"),
        (dict(distributed="off", num_processes=2), "--distributed=off leaves no place"),
        (dict(coordinator="somewhere"), "want HOST:PORT"),
        (dict(coordinator="a:1", num_processes=2, process_id=2), "count from 0"),
        (dict(num_processes=-1), "count from 0"),
        (dict(coordinator="a:99999", num_processes=2, process_id=0), "want HOST:PORT"),
    ],
)
def test_flags_that_make_no_sense_are_refused_at_once(words, message):
    with pytest.raises(ValueError, match=message):
        hosts.join(**words)


@pytest.mark.parametrize("words", ["distributed='on'", "coordinator='127.0.0.1:1'"])
def test_what_is_neither_given_nor_detected_is_asked_for(words):
    code, error, _ = run(f"from tfx import hosts; hosts.join({words})")
    assert code == 1
    assert "ValueError: cannot join the run" in error and "give --coordinator" in error


def test_a_coordinators_port_that_is_taken_is_refused():
    with socket.create_server(("", 0)) as server:
        where = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"{where}: process 0 cannot listen: .*in use"):
            hosts.join("on", where, 2, 0)


@pytest.mark.parametrize(
    "host, process, why",
    [
        ("127.0.0.1", 1, "process 0 does not answer there"),
        ("no-such-host.invalid", 1, "no-such-host.invalid is no known host"),
        ("127.0.0.1", 0, "not all 2 processes came within 3 s"),
    ],
)
def test_who_waits_in_vain_ends_in_time_with_the_cause_in_one_line(host, process, why):
    where = f"{host}:{free_port()}"
    code = "import sys; from tfx import hosts; hosts.join('on', sys.argv[1], 2, {}, seconds=3)"
    exit_code, error, seconds = run(code.format(process), where)
    assert exit_code == 2 and seconds < 40
    assert [line for line in error.splitlines() if line.startswith("error:")] == [
        line for line in error.splitlines() if f"--coordinator={where}" in line and why in line
    ]


@pytest.fixture
def two(monkeypatch):
    """Set what the other process says; this one is process `here`."""

    def others(said, here=0):
        both = lambda text: [text, said] if here == 0 else [said, text]
        monkeypatch.setattr(hosts, "gather", both)
        monkeypatch.setattr(hosts, "leads", lambda: here == 0)

    return others


def test_processes_that_differ_are_told_in_what_and_how(two):
    mine = {"tfx": "0.1.0", "optim.lr": 1.0, "seed": 0}
    two(json.dumps(mine))
    hosts.agree(mine, "never said")
    two(json.dumps(mine | {"optim.lr": 2.0, "new": 1}))
    with pytest.raises(ValueError) as error:
        hosts.agree(mine, "start again")
    assert str(error.value) == (
        "the processes differ: optim.lr is 1.0 on process 0 and 2.0 on process 1; "
        "new is null on process 0 and 1 on process 1; start again"
    )


def test_what_fails_in_one_process_ends_all(two):
    def fail():
        raise FileNotFoundError("a.txt: no such file")

    two("")
    assert hosts.in_turn(lambda: 3) == 3
    with pytest.raises(FileNotFoundError):
        hosts.in_turn(fail)
    two("a.txt: no such file", here=1)
    with pytest.raises(ValueError, match=r"process 0: a\.txt: no such file"):
        hosts.in_turn(lambda: pytest.fail("process 0 could not write what this would read"))


def test_a_signal_sets_a_flag_and_a_second_one_acts():
    received, before = [], signal.signal(signal.SIGTERM, lambda number, frame: received.append(1))
    try:
        with hosts.stop_requests() as stopping:
            assert stopping() == 0
            os.kill(os.getpid(), signal.SIGTERM)
            assert stopping() == signal.SIGTERM and not received
            os.kill(os.getpid(), signal.SIGTERM)
            assert received
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_second_signal_ends_a_process_that_waits_forever():
    """Outside of Python, where no handler of Python runs."""
    code = """
        import ctypes, os, signal, threading, time
        from tfx import hosts
        hosts.INSISTED = 1

        def twice():
            for _ in range(2):
                time.sleep(0.5)
                os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=twice).start()
        with hosts.stop_requests():
            mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
            lock(mutex), lock(mutex)
    """
    assert run(code)[0] == 128 + signal.SIGTERM


HANGS = """
import sys, time
from tfx import config, train

make = train.make_train_step

def slow(*arguments):
    step, done = make(*arguments), []
    def run(*arguments):
        done.append(1)
        time.sleep(60 if len(done) == 4 else 0)
        return step(*arguments)
    return run

train.make_train_step = slow
chosen = config.tiny(config.defaults())
chosen.data.update(source="files", train=sys.argv[2])
chosen.tokenizer.kind, chosen.eval.every = "bytes", 0
chosen.train.update(steps=8, watchdog=2)
train.train(config.freeze(chosen), sys.argv[1])
"""


def test_a_step_that_hangs_ends_the_process_with_all_stacks(toy, tmp_path):
    code, error, _ = run(HANGS, tmp_path, f"{toy}/train.a,{toy}/train.b")
    assert code == 1
    assert "Timeout" in error and "in _loop" in error and "Thread" in error


def test_the_watchdog_sleeps_until_the_first_piece_of_work_is_done():
    code = """
        import time
        from tfx import hosts
        with hosts.watchdog(1) as alive:
            time.sleep(2)
            alive()
            time.sleep(0.5)
            alive()
        time.sleep(1.5)
        with hosts.watchdog(0) as alive:
            alive()
    """
    assert run(code)[0] == 0


@pytest.fixture
def heard():
    """Signals that reach the handlers from before, each of which only notes them."""
    numbers, received = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP), []
    note = lambda number, frame: received.append(number)
    before = [signal.signal(number, note) for number in numbers]
    yield received
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_terminal_that_closes_may_say_so_many_times(number, heard):
    """The shell hands SIGHUP on, the system sends it again, and a session's end brings SIGTERM."""
    with hosts.stop_requests() as stopping:
        for each in (signal.SIGHUP, signal.SIGHUP, number, signal.SIGHUP):
            os.kill(os.getpid(), each)
            assert stopping() == signal.SIGHUP and not heard
        os.kill(os.getpid(), signal.SIGTERM)
        if number != signal.SIGHUP:  # somebody insists
            assert heard == [signal.SIGTERM]
        assert stopping() == signal.SIGHUP
    assert signal.getsignal(signal.SIGHUP) not in (signal.SIG_DFL, signal.SIG_IGN)


def test_under_nohup_a_closed_terminal_is_ignored(heard):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with hosts.stop_requests() as stopping:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stopping() == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping() == signal.SIGTERM
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_stop_requests_leave_no_threads_and_no_open_files():
    count = lambda: (threading.active_count(), len(os.listdir("/proc/self/fd")))
    before = count()
    for _ in range(50):
        with hosts.stop_requests(), hosts.watchdog(60) as alive:
            alive()
    until = time.time() + 10  # the threads end by themselves
    while count() != before and time.time() < until:
        time.sleep(0.05)
    assert count() == before


@pytest.mark.parametrize(
    "process, count, told",
    [
        (
            1,
            2,
            "process 1 waits for process 0 to join at {}, 4 s at most; process 0 does not answer",
        ),
        (0, 2, "process 0 waits for process 1 to join at {}, 4 s at most"),
        (0, 4, "process 0 waits for processes 1, 2, 3 to join at {}, 4 s at most"),
        (0, 99, "process 0 waits for processes 1, 2, 3, 4, 5, 6, 7, 8, ... to join at {}"),
    ],
)
def test_who_is_waited_for_is_said_long_before_the_end(process, count, told):
    where = f"127.0.0.1:{free_port()}"
    code = (
        "import sys; from tfx import hosts; hosts.PATIENT = 1; "
        f"hosts.join('on', sys.argv[1], {count}, {process}, seconds=4)"
    )
    exit_code, error, _ = run(code, where)
    lines = [line for line in error.splitlines() if line.startswith(("process ", "error: "))]
    assert exit_code == 2 and len(lines) == 2 and lines[1].startswith("error: ")
    assert lines[0].startswith(told.format(where))


def test_a_process_without_standard_error_is_watched_too():
    code = """
        import sys
        sys.__stderr__ = None
        from tfx import hosts
        with hosts.watchdog(60) as alive:
            alive()
    """
    assert run(code)[0] == 0
