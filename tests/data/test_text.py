"""Every line of the bad-input table: what is kept, what is refused, and in which words."""

import codecs
import gzip
import hashlib
import io
import os
import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfx.data import text

CAP = text.LINE_CAP


def write(folder, content: bytes, name="a.txt"):
    path = folder / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


@pytest.fixture(params=["file", "gzip", "stream"])
def read(request, tmp_path):
    """The lines of some bytes, by each of the three ways in."""

    def read(content: bytes) -> list[str]:
        if request.param == "stream":
            return list(text.lines(io.BytesIO(content)))
        name = {"file": "a.txt", "gzip": "a.txt.gz"}[request.param]
        return list(text.lines(write(tmp_path, content, name)))

    return read


@pytest.mark.parametrize(
    "content, lines",
    [
        (b"", []),
        (b"\n", [""]),
        (b"a\nb\n", ["a", "b"]),
        (b"a\nb", ["a", "b"]),
        (b"a\n\nb\n", ["a", "", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\r\r\nb\r", ["a\r", "b"]),
        (b"a\rb\nc\n", ["a\rb", "c"]),
        (b"\xef\xbb\xbfa\nb\n", ["a", "b"]),
        (b"a\n\xef\xbb\xbfb\n", ["a", "\ufeffb"]),
        ("a\u2028b\u2029c\u0085d\fe\vf\x1cg\n".encode(), ["a\u2028b\u2029c\u0085d\fe\vf\x1cg"]),
        ("Grüße\t你好 🙂\n".encode(), ["Grüße\t你好 🙂"]),
        (b"x" * CAP + b"\ny\n", ["x" * CAP, "y"]),
        (b" a \n", [" a "]),
    ],
)
def test_what_a_line_is(read, content, lines):
    assert read(content) == lines


@pytest.mark.parametrize(
    "content, message",
    [
        (b"a\nb\xff\n", r":2: byte 2 is not UTF-8 \(0xff\); convert"),
        (b"a\n\xed\xa0\x80\n", r":2: byte 1 is not UTF-8"),  # a surrogate
        (b"a\nb\xc3", r":2: byte 2 is not UTF-8"),  # cut inside a character
        (b"\xef\xbb\xbfab\xe9\n", r":1: byte 6 is not UTF-8 \(0xe9\)"),
        (b"a\nb\0\n", r":2: byte 2 is NUL; remove it"),
        (b"a\n" + b"x" * (CAP + 1) + b"\n", r":2: a line of more than 1,048,576 bytes; split"),
        (b"a\n" + b"x" * (5 * CAP), r":2: a line of more than 1,048,576 bytes"),
        (codecs.BOM_UTF16_LE + "a\n".encode("utf-16-le"), r": UTF-16 text; convert it \(iconv"),
        (codecs.BOM_UTF16_BE + "a\n".encode("utf-16-be"), r": UTF-16 text"),
        (codecs.BOM_UTF32_LE + "a\n".encode("utf-32-le"), r": UTF-32 text"),
        (codecs.BOM_UTF32_BE + "a\n".encode("utf-32-be"), r": UTF-32 text"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            r": a Git LFS pointer.*git lfs pull",
        ),
        (b"<!DOCTYPE html>\n<title>404</title>", r": a web page, not the data; fetch the file"),
        (b"\xef\xbb\xbf\n <HTML>", r": a web page"),
        (b"PK\x03\x04rest", r": a zip archive; unpack it"),
        (b"\xfd7zXZ\x00rest", r": xz data"),
        (b"\x28\xb5\x2f\xfdrest", r": zstandard data"),
        (b"BZh91AY&SYrest", r": bzip2 data"),
    ],
)
def test_what_is_refused(read, content, message):
    with pytest.raises(ValueError, match=message) as error:
        read(content)
    assert "\n" not in str(error.value)


def test_lines_before_a_bad_one_are_given(tmp_path):
    lines = text.lines(write(tmp_path, b"a\nb\n\xff\n"))
    assert [next(lines), next(lines)] == ["a", "b"]
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path))}/a.txt:3: byte 1"):
        next(lines)


def test_gzip_and_its_name_must_agree(tmp_path):
    packed = write(tmp_path, b"a\n", "a.gz").rename(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"a.txt: gzip data in a file not named .gz; rename it"):
        list(text.lines(packed))
    (plain := tmp_path / "b.gz").write_bytes(b"a\n")
    with pytest.raises(ValueError, match=r"b.gz: named .gz but not gzip data; rename it or fetch"):
        list(text.lines(plain))
    plain.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"b.gz: a Git LFS pointer"):
        list(text.lines(plain))
    with pytest.raises(ValueError, match=r"<stdin>: gzip data; unpack it"):
        list(text.lines(io.BytesIO(gzip.compress(b"a\n"))))
    with pytest.raises(ValueError, match=r"c.gz: gzip data; unpack it"):
        list(text.lines(write(tmp_path, gzip.compress(b"a\n"), "c.gz")))


@pytest.mark.parametrize("harm", ["cut", "flipped", "tail"])
def test_damaged_gzip(tmp_path, harm):
    path = write(tmp_path, os.urandom(5000).hex().encode() + b"\n", "a.gz")
    packed = bytearray(path.read_bytes())
    if harm == "flipped":
        packed[len(packed) // 2] ^= 64
    path.write_bytes({"cut": packed[:-9], "flipped": packed, "tail": packed + b"junk"}[harm])
    with pytest.raises(ValueError, match=r"a.gz: damaged gzip data \(.+\); fetch it again"):
        list(text.lines(path))


def test_what_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=rf"{re.escape(str(tmp_path))}/no.txt: no such file"
    ):
        list(text.lines("no.txt"))
    with pytest.raises(ValueError, match=r"a directory; name a text file in it"):
        list(text.lines(tmp_path))
    os.mkfifo("pipe")
    with pytest.raises(ValueError, match=r"pipe: a pipe, and this is read more than once"):
        text.scan("pipe")


def test_the_stream_is_named_in_its_errors():
    stream = io.BytesIO(b"\xff\n")
    with pytest.raises(ValueError, match=r"^<stdin>:1: byte 1"):
        list(text.lines(stream))
    assert not stream.closed


class Dribble(io.BytesIO):
    """A stream that comes in small pieces, as a pipe does."""

    def read1(self, size=-1):
        return super().read1(3)


@given(
    st.binary(max_size=60).map(lambda b: b.replace(b"\0", b"\n"))
    | st.text("ab\r\n\u2028ä").map(str.encode)
)
def test_any_bytes(content):
    """Either all lines, as splitting the whole at newlines gives them, or one refusal."""
    expected = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    expected = expected[: -1 if expected[-1] == b"" else None]
    for stream in (io.BytesIO(content), Dribble(content)):
        try:
            lines = list(text.lines(stream))
        except ValueError as error:
            assert re.match(r"<stdin>:(\d+: byte \d+ is not UTF-8| )", str(error))
        else:
            assert [line.encode() for line in lines] == [
                raw.removesuffix(b"\r") for raw in expected
            ]


@pytest.mark.parametrize(
    "content, count", [(b"a\nb\n", 2), (b"a\nb", 2), (b"\n", 1), (b"a\rb\xe2\x80\xa8c\n", 1)]
)
def test_scan_counts_and_hashes_what_is_unpacked(tmp_path, content, count):
    expected = (count, hashlib.sha256(content).hexdigest())
    assert text.scan(write(tmp_path, content)) == expected
    assert text.scan(write(tmp_path, content, "elsewhere.gz")) == expected
    assert count == len(list(text.lines(io.BytesIO(content))))


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_scan_refuses_an_empty_file(tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name}: empty file, no usable rows"):
        text.scan(write(tmp_path, b"", name))


def test_a_file_is_never_whole_in_memory(tmp_path):
    path = write(tmp_path, b"x" * 99 + b"\n", "big")
    path.write_bytes(path.read_bytes() * 200_000)
    tracemalloc.start()
    for read in (text.scan, lambda p: sum(map(len, text.lines(p)))):
        read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * CAP < path.stat().st_size / 3


def test_a_huge_line_is_refused_before_it_is_read(tmp_path):
    with open(write(tmp_path, b"x" * (40 * CAP)), "rb") as stream:
        with pytest.raises(ValueError, match="a line of more than"):
            list(text.lines(stream))
        assert stream.tell() < 4 * CAP


@given(st.text(alphabet="a \r\n\u2028\x85\f"))
def test_one_line_is_what_any_reader_takes_for_a_line(content):
    made = text.one_line(content)
    assert len(list(text.lines(io.BytesIO(f"{made}\n".encode())))) == 1
    assert len(io.StringIO(f"{made}\n", newline=None).readlines()) == 1
    assert made.replace(" ", "") == re.sub("[ \r\n]", "", content), "nothing else is lost"
