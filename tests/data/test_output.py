"""A file is whole or as it was before, whatever ends the writing."""

import gzip
import io
import os
import signal
import stat
import sys
import threading

import pytest

from tfx.data import output


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def save(path, content="new\n", inputs=()):
    with output.open_text(str(path), inputs) as out:
        out.write(content)


def test_a_file_is_there_when_it_is_whole(tmp_path):
    with output.open_text(f"{tmp_path}/a") as out:
        out.write("ü\u2028\n")
        out.flush()
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_bytes() == "ü\u2028\n".encode()
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("ending", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("name", ["a", "a.gz"])
def test_an_error_leaves_what_was_there(tmp_path, ending, name):
    (tmp_path / name).write_text("old\n")
    with pytest.raises(ending), output.open_text(f"{tmp_path}/{name}") as out:
        out.write("new\n")
        raise ending
    assert (tmp_path / name).read_text() == "old\n" and names(tmp_path) == [name]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("new", [output.open_text, output.new_folder])
def test_a_signal_is_an_error_while_something_is_half_written(tmp_path, number, new):
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as ended, new(f"{tmp_path}/a"):
            os.kill(os.getpid(), number)
            signal.pause()
        assert ended.value.code == 128 + number and names(tmp_path) == []
        save(tmp_path / "b")
        assert signal.getsignal(number) == signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN)  # as under nohup
        with output.open_text(f"{tmp_path}/b") as out:
            os.kill(os.getpid(), number)
            out.write("newer\n")
        assert (tmp_path / "b").read_text() == "newer\n"
    finally:
        signal.signal(number, before)


def test_files_are_written_from_any_thread(tmp_path):
    thread = threading.Thread(target=save, args=(tmp_path / "a",))
    thread.start()
    thread.join()
    assert names(tmp_path) == ["a"]


def test_the_mode_is_that_of_before_or_as_the_umask_has_it(tmp_path):
    umask = os.umask(0o027)
    try:
        save(tmp_path / "new")
        with output.new_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(umask)
    assert mode(tmp_path / "new") == 0o640 and mode(tmp_path / "folder") == 0o750
    (tmp_path / "old").touch()
    (tmp_path / "old").chmod(0o604)
    save(tmp_path / "old")
    output.write(tmp_path / "old", b"newer\n")
    assert mode(tmp_path / "old") == 0o604


def test_a_link_is_followed(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder/file")
    for content in ("one\n", "two\n"):
        save(tmp_path / "link", content)
        assert (tmp_path / "folder" / "file").read_text() == content
    assert (tmp_path / "link").is_symlink() and names(tmp_path / "folder") == ["file"]


def test_gzip_has_the_same_bytes_each_time(tmp_path):
    for name in ("a.gz", "b.gz"):
        save(tmp_path / name, "Grüße\n" * 99)
    packed = (tmp_path / "a.gz").read_bytes()
    assert packed == (tmp_path / "b.gz").read_bytes() and b"a.gz" not in packed
    assert gzip.decompress(packed).decode() == "Grüße\n" * 99


@pytest.mark.parametrize("name", ["f", "./f", "link", "hard", "folder/../f", "{}/f"])
def test_an_output_that_is_an_input_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "f").write_text("text\n")
    (tmp_path / "link").symlink_to("f")
    os.link("f", "hard")
    name = name.format(tmp_path)
    for path, other in (("f", name), (name, "f")):
        with pytest.raises(ValueError, match=f"^{path}: is the input {other}; choose another out"):
            save(path, inputs=["/dev/null", other])
    assert (tmp_path / "f").read_text() == "text\n"
    save("new", inputs=["f", "missing", "-"])


def test_standard_input_and_output_are_compared_too(tmp_path, monkeypatch):
    file = tmp_path / "f"
    file.write_text("text\n")
    real = os.fstat
    monkeypatch.setattr(os, "fstat", lambda number: file.stat() if number < 2 else real(number))
    for path, other in ((str(file), "-"), (str(file), "/dev/stdin"), ("-", str(file)), ("-", "-")):
        with pytest.raises(ValueError, match="; choose another output"):
            output.check(path, [other])


@pytest.mark.parametrize(
    "path, message",
    [
        ("", r"^--output= is empty; name a file"),
        ("folder", r"^folder: a directory; name a file in it"),
        ("new/", r"^new/: a directory"),
        ("no/a", r"^no/a: the folder /.*/no is missing; make it"),
        ("file/a", r"^file/a: the folder /.*/file is missing"),
        ("gs://bucket/a", r"^gs://bucket/a: want a file on this machine"),
        ("a.de.xz", r"^a.de.xz: tfx packs .gz alone; choose another name than .xz"),
    ],
)
def test_what_cannot_be_an_output_is_refused_at_once(tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=message):
        output.check(path)


def test_a_file_or_a_folder_that_is_read_only_is_refused_at_once(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(os, "access", lambda path, how: str(path) != str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"file: cannot be written \(read-only\)"):
        output.check(f"{tmp_path}/file")
    monkeypatch.setattr(os, "access", lambda path, how: False)
    with pytest.raises(ValueError, match=f"new/one: cannot write to {tmp_path}; choose another"):
        output.check_folder(tmp_path / "new" / "one")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.undo()
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ValueError, match=r"a: cannot write to /.* \(Permission denied\)"):
        save(tmp_path / "a")


def test_pipes_and_devices_are_written_to_at_once(tmp_path):
    save("/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with output.open_text(f"{tmp_path}/pipe") as out:
        out.write("one\n")
        out.flush()
        assert os.read(reader, 99) == b"one\n"
    os.close(reader)
    with (tmp_path / "opened").open("w") as file:
        file.write("before\n")
        file.flush()
        save(f"/dev/fd/{file.fileno()}")
    assert (tmp_path / "opened").read_text() == "before\nnew\n"
    assert names(tmp_path) == ["opened", "pipe"]


@pytest.mark.parametrize("path", ["-", "/dev/stdout"])
def test_standard_output(capsys, path):
    save(path, "ä\u2028\n")
    assert capsys.readouterr().out == "ä\u2028\n"


def test_what_a_full_disk_refuses_is_named():
    with pytest.raises(OSError, match="No space left") as error:
        save("/dev/full")
    assert error.value.filename == "/dev/full"


def test_a_folder_is_there_when_it_is_whole(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "a/new"):
        with pytest.raises(ValueError, match="later"), output.new_folder(tmp_path / name) as part:
            (part / "file").touch()
            raise ValueError("later")
        assert not (tmp_path / name / "file").exists()
        with output.new_folder(tmp_path / name) as part:
            (part / "file").touch()
            assert not (tmp_path / name / "file").exists()
        assert names(tmp_path / name) == ["file"]
    assert names(tmp_path) == ["a", "empty"] and names(tmp_path / "a") == ["new"]


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "file").touch()
    holds = pytest.raises(ValueError, match="holds something; choose another folder")
    for path in (tmp_path, tmp_path / "file"):
        with holds, output.new_folder(path):
            raise AssertionError("nothing is to be written")
    with holds, output.new_folder(tmp_path / "new"):
        (tmp_path / "new").mkdir()  # somebody else's
        (tmp_path / "new" / "mine").touch()
    assert names(tmp_path / "new") == ["mine"] and names(tmp_path) == ["file", "new"]


def test_a_stream_of_text_takes_the_place_of_standard_output(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    with output.open_text("-") as out:
        out.write("ä\n")
    assert out.buffer.getvalue() == "ä\n".encode()
