"""Rows that are appended and read, and what dying processes leave among them."""

import errno
import threading

import pytest

from tfx import records


def test_rows_come_back_and_what_is_none_is_counted(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert records.read(path) == ([], 0)
    records.append(path, [{"a": 1}, {"a": "ü\u2028"}])
    with path.open("ab") as file:
        file.write(b'[1]\n"text"\n\xff{}\n\n' + b"[" * 100_000 + b'\n{"a": 3, "b')
    records.append(path, [{"a": 4}])
    rows, damaged = records.read(path)
    assert rows == [{"a": 1}, {"a": "ü\u2028"}, {"a": 4}] and damaged == 5


def test_rows_of_several_writers_do_not_mix(tmp_path):
    path, rows = tmp_path / "rows.jsonl", [{"text": letter * 3000} for letter in "abcd"]
    write = lambda row: [records.append(path, [row, row]) for _ in range(50)]
    threads = [threading.Thread(target=write, args=[row]) for row in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found, damaged = records.read(path)
    assert (len(found), damaged) == (400, 0) and found[::2] == found[1::2]


class Disk:
    """A file that takes `room` more bytes, as a disk does that fills."""

    def __init__(self, file):
        self.file, self.room = file, 1 << 30

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = self.file.write(data[: self.room])
        self.room -= count
        return count

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_the_next_record_takes_the_place_of_one_that_failed_half_way(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"old\n")
    log = records.Log(path)
    log._file = disk = Disk(log._file)
    log.append(b"first\n")
    disk.room = 3
    with pytest.raises(OSError, match="No space left"):
        log.append(b"lost, and long\n")
    with pytest.raises(OSError, match="No space left"):
        log.append(b"lost too\n")
    disk.room = 7
    log.append(b"second\n")
    assert path.read_bytes() == b"old\nfirst\nsecond\n"
    log.close()
