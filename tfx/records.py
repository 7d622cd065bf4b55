"""Files of JSON rows, a row a line: appended to by processes that may die, read by whoever comes
later. What is no row is left out when a file is read, and never stops the reader."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Read the rows of a file; there are none where it is missing.

    Returns:
      The rows, and how many lines hold none: cut off, not UTF-8, not JSON, not an object.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], 0
    found = [_row(line) for line in lines if line.strip()]
    rows = [row for row in found if row is not None]
    return rows, len(found) - len(rows)


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add rows to a file by a single write, on lines of their own: behind half a line, which a
    process left that died, a new one begins."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    with path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        torn = file.read(1) not in (b"", b"\n")
        file.write(("\n" if torn else "").encode() + text.encode())


class Log:
    """A file that grows record by record; of one that failed half-way, the next takes the place."""

    def __init__(self, path: Path):
        path.touch()
        self._file = path.open("r+b", buffering=0)
        self._end = self._file.seek(0, os.SEEK_END)

    def append(self, record: bytes) -> None:
        """Write a whole record, or raise OSError and leave the file as if it never began."""
        self._file.seek(self._end)
        self._file.truncate()
        rest = memoryview(record)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._end += len(record)

    def close(self) -> None:
        self._file.close()
