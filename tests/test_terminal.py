"""A person may close what is printed to."""

import subprocess
import sys

import pytest

CODE = """
import contextlib, sys
from tfx import terminal
terminal.tell("one")
with contextlib.suppress(OSError):
    print("two")
terminal.settle(sys.stdout)
terminal.settle(None)
sys.exit(3)
"""


@pytest.mark.parametrize("out, err", [("", ""), (">/dev/full", "2>/dev/full"), (">&-", "2>&-")])
def test_who_cannot_be_told_is_not_told_and_the_exit_code_stays(out, err):
    done = subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {out} {err}', sys.executable, CODE],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3
    assert (done.stdout, done.stderr) == (("", "") if out else ("two\n", "one\n"))


def test_a_reader_that_has_gone_is_no_error():
    code = CODE.replace('"two"', '"two" * 100_000')
    reader = '"$0" -c "$1" | true; exit ${PIPESTATUS[0]}'
    done = subprocess.run(["bash", "-c", reader, sys.executable, code], capture_output=True)
    assert done.returncode == 3 and done.stderr == b"one\n"
