"""Every line of the bad-input table: what is kept, what is refused, and in which words."""

import codecs
import gzip
import hashlib
import io
import itertools
import os
import re
import threading
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
    assert text.one_line("a\nb\r\nc\0d\u2028e\tf") == "a b c d\u2028e\tf"


# ----------------------------------------------------- lines that must not cost the whole file

MIXED = b"a\nb\xff\nc\n" + b"x" * (3 * CAP) + b"\nd\n\0\ne"
KEPT = ["a", None, "c", None, "d", None, "e"]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize("action", ["cut", "skip"])
def test_a_bad_line_costs_that_line(tmp_path, caplog, action, name):
    path = write(tmp_path, MIXED, name)
    with text.LineErrors(action, str(path)) as errors:
        assert list(text.lines(path, errors)) == KEPT
        assert list(text.chunks(path, 3, errors)) == [KEPT[:3], KEPT[3:6], KEPT[6:]]
    assert caplog.messages == [
        f"6 lines are left empty; the first: {path}:2: byte 2 is not UTF-8 (0xff); convert the "
        "file (iconv -t UTF-8) or remove the line"
    ]


def test_a_bad_line_fails_where_it_should(tmp_path):
    path = write(tmp_path, MIXED)
    for read in (text.lines, lambda *given: text.chunks(path, 9, given[1])):
        with pytest.raises(ValueError, match=r"a.txt:2: byte 2 is not UTF-8"):
            list(read(path, text.LineErrors("fail")))
    with pytest.raises(ValueError, match=r"^--long=fial: choose from cut, skip, fail$"):
        text.LineErrors("fial")


def test_what_is_no_text_at_all_is_refused_however_bad_lines_may_be():
    with pytest.raises(ValueError, match="UTF-16 text"):
        list(text.lines(io.BytesIO(codecs.BOM_UTF16_LE + b"a\0"), text.LineErrors("skip")))


def test_lines_that_are_too_long_are_counted_with_what_became_of_them(caplog):
    for action, keep in (("cut", True), ("skip", False)):
        with text.LineErrors(action, "in.en") as errors:
            assert errors.too_long(4, 3200, 127, "model.max_length") is keep
    with text.LineErrors("cut") as errors:
        for number in (2, 1003):
            errors.too_long(number, 200, 127, "data.max_length")
    said = "in.en:4: 3,200 tokens, the model takes at most 127 (model.max_length)"
    assert caplog.messages == [
        f"1 line is cut to 127 tokens; the first: {said}",
        f"1 line is left empty; the first: {said}",
        "2 lines are cut to 127 tokens; the first: line 2 has 200 tokens, the model takes at most "
        "127 (data.max_length)",
    ]
    errors = text.LineErrors("fail", "in.en")
    match = re.escape(f"{said}; split the line, or use --long=cut or --long=skip")
    with pytest.raises(ValueError, match=f"^{match}$"):
        errors.too_long(4, 3200, 127, "model.max_length")


def test_a_file_is_checked_before_it_is_read_and_a_pipe_left_alone(tmp_path):
    text.check(write(tmp_path, b""))
    for name, content in (("a.gz", b"plain"), ("b.txt", gzip.compress(b"a"))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="gzip data"):
            text.check(tmp_path / name)
    for wrong in (tmp_path / "no", tmp_path):
        with pytest.raises((ValueError, FileNotFoundError)):
            text.check(wrong)
    os.mkfifo(tmp_path / "pipe")
    text.check(tmp_path / "pipe")  # which would wait for somebody to write


# ------------------------------------------------------------------------------ pipes


def test_a_line_of_a_pipe_is_given_to_who_waits_for_it():
    reading, writing = os.pipe()
    with open(reading, "rb") as stream:
        chunks = text.chunks(stream, 100)
        for line in (b"one\n", b"two\n", b"thr"):
            os.write(writing, line)
            if line.endswith(b"\n"):
                assert next(chunks) == [line.decode().strip()]
        os.write(writing, b"ee\nfour\nfi")
        assert next(chunks) == ["three", "four"]  # not waiting for the rest of the fifth
        os.write(writing, b"ve\n")
        assert next(chunks) == ["five"]
        os.write(writing, b"six\nseven")
        os.close(writing)
        assert list(itertools.chain(*chunks)) == ["six", "seven"]


def test_half_a_line_behind_a_whole_one_does_not_hold_it_back(monkeypatch):
    reading, writing = os.pipe()
    poll = text._has_more

    def write_meanwhile(stream, deadline):
        if not later:
            later.append(os.write(writing, b"tw"))
        return poll(stream, deadline)

    later = []
    monkeypatch.setattr(text, "_has_more", write_meanwhile)
    with open(reading, "rb") as stream:
        chunks = text.chunks(stream, 100)
        os.write(writing, b"one\n")
        assert next(chunks) == ["one"]
        os.close(writing)
        assert list(chunks) == [["tw"]]


@pytest.mark.parametrize("most", [1, 2048, 1 << 62])
def test_what_comes_fast_comes_in_full_chunks(most):
    reading, writing = os.pipe()
    content = b"".join(b"%d\n" % n for n in range(10_000))

    def send():
        with open(writing, "wb") as file:
            file.write(content)

    thread = threading.Thread(target=send)
    thread.start()
    with open(reading, "rb") as stream:
        found = list(text.chunks(stream, most))
    thread.join()
    assert [int(line) for chunk in found for line in chunk] == list(range(10_000))
    assert all(len(chunk) == min(most, 10_000) for chunk in found[:-1])


def test_a_file_comes_in_full_chunks(tmp_path):
    path = write(tmp_path, b"line\n" * 300_000)  # more than is read at once
    sizes = [len(chunk) for chunk in text.chunks(path, 2048)]
    assert set(sizes[:-1]) == {2048} and sum(sizes) == 300_000
