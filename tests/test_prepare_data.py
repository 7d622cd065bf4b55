"""scripts/prepare_data.py: what is in the folder is checked, the rest fetched or asked for."""

import copy
import gzip
import hashlib
import importlib.util
import io
import json
import re
import tarfile
import time
import tomllib
import urllib.error
import zipfile
from email.message import Message
from pathlib import Path

import pytest

from tfx.data import sources

SCRIPT = Path(__file__).parents[1] / "scripts" / "prepare_data.py"


@pytest.fixture
def script(monkeypatch):
    """The script as a module; nothing but file: URLs can be opened."""
    spec = importlib.util.spec_from_file_location("prepare_data", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    opened = module.urllib.request.urlopen

    def urlopen(url, **kwargs):
        if not url.startswith("file:"):
            raise urllib.error.URLError("no network in this test")
        return opened(url, **kwargs)

    monkeypatch.setattr(module.urllib.request, "urlopen", urlopen)
    return module


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tar(path: Path, **members: bytes | tarfile.TarInfo) -> bytes:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path.read_bytes()


@pytest.fixture
def web(tmp_path):
    (tmp_path / "web").mkdir()
    return tmp_path / "web"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def run(script, name: str, out: Path, capsys) -> tuple[int, str, str]:
    code = script.main([name, "--out", str(out)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


# ---- files as they are ---------------------------------------------------------------------------


@pytest.fixture
def plain(script, web, monkeypatch):
    """A data set of two files, one of them in a folder of its own."""
    (web / "a.en.gz").write_bytes(gzip.compress(b"A\n"))
    (web / "a.tok.en").write_bytes(b"a\n")
    place = lambda name, **more: {
        "urls": [f"{web.as_uri()}/"],
        "sha256": f"{sha256((web / name).read_bytes())}  {name}\n",
        **more,
    }
    places = [place("a.en.gz"), place("a.tok.en", folder="tok/")]
    monkeypatch.setitem(script.DATA_SETS, "plain", {"about": "", "from": places})
    return "plain"


def test_fetched_once_then_checked(script, plain, web, out, capsys):
    code, printed, _ = run(script, plain, out, capsys)
    assert code == 0 and "0 of 2 files found" in printed and "ready" in printed
    assert (out / "a.en.gz").read_bytes() == (web / "a.en.gz").read_bytes()
    assert (out / "tok" / "a.tok.en").read_bytes() == b"a\n"
    for file in web.iterdir():
        file.unlink()
    code, printed, _ = run(script, plain, out, capsys)
    assert code == 0 and "2 of 2 files found" in printed and "<-" not in printed


def test_a_plain_file_may_be_there_gzipped(script, plain, web, out, capsys):
    (out / "tok").mkdir(parents=True)
    (out / "tok" / "a.tok.en.gz").write_bytes(gzip.compress(b"a\n", 1))
    code, printed, _ = run(script, plain, out, capsys)
    assert code == 0 and "1 of 2 files found" in printed
    assert not (out / "tok" / "a.tok.en").exists()


def test_what_is_there_and_wrong_is_refused_and_kept(script, plain, web, out, capsys):
    out.mkdir()
    (out / "a.en.gz").write_bytes(b"mine")
    code, _, error = run(script, plain, out, capsys)
    right = sha256((web / "a.en.gz").read_bytes())
    assert code == 2
    assert error == (
        f"error: {out}/a.en.gz: sha256 is {sha256(b'mine')}, not {right}; delete it and run again\n"
    )
    assert (out / "a.en.gz").read_bytes() == b"mine"


def test_a_download_that_is_wrong_leaves_nothing(script, plain, web, out, capsys):
    right = sha256((web / "a.en.gz").read_bytes())
    (web / "a.en.gz").write_bytes(b"<html>")
    code, _, error = run(script, plain, out, capsys)
    assert code == 2 and f"what came is {sha256(b'<html>')}, not {right}" in error
    assert not list(out.glob("a.en*"))


def test_a_download_cut_short(script, plain, out, capsys, monkeypatch):
    class Response(io.BytesIO):
        headers = Message()

    Response.headers["Content-Length"] = "1000"
    monkeypatch.setattr(script.urllib.request, "urlopen", lambda *a, **k: Response(b"part"))
    code, _, error = run(script, plain, out, capsys)
    assert code == 2 and "4 of 1,000 bytes came" in error
    assert not list(out.glob("a.en*"))


NAMES = tomllib.loads(SCRIPT.with_suffix(".toml").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_offline(script, name, out, capsys):
    start = time.monotonic()
    code, _, error = run(script, name, out, capsys)
    assert time.monotonic() - start < 5
    assert code == 2 and error.count("\n") == 1
    assert "cannot be fetched (no network in this test" in error
    assert f"put into {out} by hand" in error
    for file, (_, urls) in script._files(script.DATA_SETS[name]["from"]):
        assert re.search(
            rf"{re.escape(file)}[^;]* from [^;]*{re.escape(urls[0].rpartition('/')[0])}", error
        )


def test_a_plain_file_that_is_trusted_is_held_to_afterwards(script, plain, web, out, capsys):
    (place, _) = script.DATA_SETS[plain]["from"]
    place["sha256"] = "?  a.en.gz\n"
    code, printed, _ = run(script, plain, out, capsys)
    assert code == 0 and "a.en.gz: no sha256 is published; on first use trusted" in printed
    first = sha256((out / "a.en.gz").read_bytes())
    (out / "a.en.gz").write_bytes(b"other")
    code, _, error = run(script, plain, out, capsys)
    assert code == 2 and f"sha256 is {sha256(b'other')}, not {first}" in error


def test_out_is_a_file(script, plain, out, capsys):
    out.write_text("")
    code, _, error = run(script, plain, out, capsys)
    assert code == 2 and "File exists" in error


# ---- archives ------------------------------------------------------------------------------------


@pytest.fixture
def corpus(script, web, monkeypatch):
    """A data set in two archives of every format that is read."""
    sgm = '<doc docid="1">\n<seg id="1"> {} &amp; </seg>\n<seg id="2">zwei</seg>\n</doc>\n'
    one = tar(
        web / "one.tgz",
        **{
            "t/europarl.de": b"a\r\n\nc\rc\nd\n\xff\n\0\n",
            "t/europarl.en": b"A\r\nB\nC\nD\nE\nF\n",
            "t/europarl.fr": b"not wanted",
            "giga.de.gz": gzip.compress("ü\n".encode()),
            "giga.en.gz": gzip.compress(b"U\n"),
        },
    )
    dev = tar(
        web / "dev.tgz",
        **{
            "./dev/2013.de": b"v\n",
            "./dev/2013.en": b"V\n",
            "dev/2014-src.de.sgm": sgm.format("eins").encode(),
            "dev/2014-ref.en.sgm": sgm.format("one").encode(),
        },
    )
    data = {
        "about": "",
        "languages": ["de", "en"],
        "train": [["one.tgz", "t/europarl.{side}"], ["one.tgz", "giga.{side}.gz"]],
        "valid": [["dev.tgz", "dev/2013.{side}"]],
        "test": [["dev.tgz", "dev/2014-{role}.{side}.sgm"]],
        "from": [
            {
                "urls": [f"{web.as_uri()}/"],
                "sha256": f"{sha256(one)}  one.tgz\n{sha256(dev)}  dev.tgz\n",
            }
        ],
    }
    monkeypatch.setitem(script.DATA_SETS, "corpus", data)
    return "corpus"


def test_archives_become_line_parallel_text(script, corpus, out, capsys):
    code, printed, _ = run(script, corpus, out, capsys)
    assert code == 0
    made = {path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".de", ".en")}
    assert made == {
        "train.de": "a\nc\rc\nd\nü\n".encode(),
        "train.en": b"A\nC\nD\nU\n",
        "valid.de": b"v\n",
        "valid.en": b"V\n",
        "test.de": b"eins &amp;\nzwei\n",
        "test.en": b"one &amp;\nzwei\n",
    }
    assert "train: 4 pairs; 3 left out" in printed
    sums = dict(
        reversed(line.split("  ")) for line in (out / "SHA256SUMS").read_text().splitlines()
    )
    assert {name: sha256(content) for name, content in made.items()}.items() <= sums.items()
    assert not list(out.glob(".*")), "nothing temporary is left"


def test_archives_may_be_deleted_once_unpacked(script, corpus, web, out, capsys):
    assert run(script, corpus, out, capsys)[0] == 0
    for folder in (web, out):
        for path in folder.glob("*.tgz"):
            path.unlink()
    code, printed, _ = run(script, corpus, out, capsys)
    assert code == 0 and "ready: train.de train.en valid.de" in printed
    (out / "train.en").write_bytes(b"other\n")
    code, _, error = run(script, corpus, out, capsys)
    assert code == 2 and re.search(r"train.en: sha256 is \w{64}, not \w{64}; delete it", error)
    (out / "SHA256SUMS").write_text("nonsense\n")
    code, _, error = run(script, corpus, out, capsys)
    assert code == 2 and "SHA256SUMS: not a list of sha256 sums" in error


def test_unequal_sides(script, corpus, web, out, capsys):
    data = script.DATA_SETS[corpus]
    data["valid"] = [["one.tgz", "t/europarl.{side}"]]
    files = {
        "t/europarl.de": b"a\nb\n",
        "t/europarl.en": b"a\n",
        "giga.de.gz": b"",
        "giga.en.gz": b"",
    }
    data["from"][0]["sha256"] = f"{sha256(tar(web / 'one.tgz', **files))}  one.tgz\n?  dev.tgz\n"
    code, _, error = run(script, corpus, out, capsys)
    assert code == 2 and "europarl.de and europarl.en are not parallel" in error


@pytest.fixture
def talks(script, web, monkeypatch):
    """The real iwslt14_de_en, with an archive of ours."""
    data = copy.deepcopy(script.DATA_SETS["iwslt14_de_en"])
    data["from"][0]["urls"] = [f"{web.as_uri()}/gone/", f"{web.as_uri()}/"]
    monkeypatch.setitem(script.DATA_SETS, "iwslt14_de_en", data)
    head = "<url>http://x</url>\n<keywords>k</keywords>\n<talkid>1</talkid>\n<title>Titel</title>\n"
    body = "".join(f"Satz {i} .\n" for i in range(50)) + "{}\n" + "w " * 200 + "\n"
    body += '<reviewer href="http://x">R</reviewer>\n'
    files = {
        "de-en/train.tags.de-en.de": (head + body.format("eins zwei drei vier")).encode(),
        "de-en/train.tags.de-en.en": (head + body.format("one two")).encode(),
    }
    for side in ("de", "en"):
        for test in ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012"):
            xml = f'<mteval>\n<seg id="1"> {test} {side} </seg>\n</mteval>\n'
            files[f"de-en/IWSLT14.{test}.de-en.{side}.xml"] = xml.encode()
    tar(web / "de-en.tgz", **files)
    return "iwslt14_de_en"


def test_talks(script, talks, web, out, capsys):
    code, printed, _ = run(script, talks, out, capsys)
    assert code == 0 and "train + valid: 51 pairs; 2 left out" in printed
    every = ["Titel", *(f"Satz {i} ." for i in range(50))]
    held_out = every[22::23]
    for side in ("de", "en"):
        assert (out / f"valid.{side}").read_text().splitlines() == held_out
        assert (out / f"train.{side}").read_text().splitlines() == [
            line for line in every if line not in held_out
        ]
        test = (out / f"test.{side}").read_text().splitlines()
        assert test[0] == f"TED.dev2010 {side}" and len(test) == 5
    digest = sha256((web / "de-en.tgz").read_bytes())
    assert f"de-en.tgz: no sha256 is published; on first use trusted and kept: {digest}" in printed


def test_trusted_on_first_use_held_to_afterwards(script, talks, web, out, capsys):
    assert run(script, talks, out, capsys)[0] == 0
    first = sha256((out / "de-en.tgz").read_bytes())
    second = tar(out / "de-en.tgz", other=b"another archive")
    code, _, error = run(script, talks, out, capsys)
    assert code == 2 and f"sha256 is {sha256(second)}, not {first}" in error


# ---- files made of others ------------------------------------------------------------------------


@pytest.fixture
def made(script, web, monkeypatch):
    """A data set of which every kind of file is made."""
    with zipfile.ZipFile(web / "a.zip", "w") as archive:
        archive.writestr("a/wiki.train.tokens", " = A = \n \n")
        archive.writestr("../evil", "not wanted")
    rows = [
        {"id": "x", "source": ["One  sentence. ", "Two\nlines."], "target": ["A\u2028b", " c "]},
        {"source": ["Three."], "target": ["d"]},
    ]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (web / "rows.jsonl").write_text(lines)  # no newline at the end
    (web / "input.txt").write_text("0123456789\n" * 2)
    row = lambda name: f"{sha256((web / name).read_bytes())}  {name}\n"
    data = {
        "about": "",
        "from": [
            {
                "urls": [f"{web.as_uri()}/"],
                "sha256": f"{row('a.zip')}?  rows.jsonl\n{row('input.txt')}",
            }
        ],
        "make": [
            ["train.txt", "a.zip", "a/wiki.train.tokens"],
            ["rows.pairs.jsonl", "rows.jsonl"],
            ["head.txt", "input.txt", "0:0.9"],
            ["tail.txt", "input.txt", "0.9:1"],
        ],
        "known": f"{sha256(b'elsewhere')}  train.txt\n",
        "pairs": {"source": "source", "target": ["target"]},
    }
    monkeypatch.setitem(script.DATA_SETS, "made", data)
    return "made"


def test_files_are_made(script, made, web, out, capsys):
    code, printed, _ = run(script, made, out, capsys)
    assert code == 0 and "ready: train.txt rows.pairs.jsonl head.txt tail.txt" in printed
    assert (out / "train.txt").read_text() == " = A = \n \n"
    assert (out / "head.txt").read_text() == "0123456789\n01234567"
    assert (out / "tail.txt").read_text() == "89\n"
    rows = (out / "rows.pairs.jsonl").read_text().removesuffix("\n").split("\n")
    assert [json.loads(row) for row in rows] == [
        {"source": "One sentence. Two lines.", "target": "A b", "references": ["c"]},
        {"source": "Three.", "target": "d", "references": []},
    ]
    for folder in (web, out):
        for name in ("a.zip", "rows.jsonl", "input.txt"):
            (folder / name).unlink()
    code, printed, _ = run(script, made, out, capsys)
    assert code == 0 and "0 of 3 files found" in printed and "<-" not in printed
    (out / "tail.txt").write_text("8")
    code, _, error = run(script, made, out, capsys)
    assert code == 2 and "tail.txt: sha256 is" in error


def test_what_is_made_can_be_read(script, made, out, capsys):
    assert run(script, made, out, capsys)[0] == 0
    fields, path = "source,target,references", str(out / "rows.pairs.jsonl")
    (corpus,) = sources.open_split("files", path, fields, "valid", "references")
    (chunk,) = corpus.chunks()
    assert chunk == (["One sentence. Two lines.", "Three."], [["A b", "c"], ["d"]])


def test_what_lies_there_from_elsewhere_is_taken(script, made, web, out, capsys):
    out.mkdir()
    (out / "train.txt.gz").write_bytes(gzip.compress(b"elsewhere"))
    (out / "rows.jsonl.gz").write_bytes(gzip.compress((web / "rows.jsonl").read_bytes()))
    for file in web.iterdir():
        file.unlink()
    code, printed, error = run(script, made, out, capsys)
    # The archive is not asked for, for nothing of it is wanted; rows are made of what is there.
    assert code == 2 and "input.txt cannot be fetched" in error
    assert "rows.pairs.jsonl <- rows.jsonl\n" in printed and (out / "rows.pairs.jsonl").exists()
    assert "a.zip <-" not in printed and (out / "train.txt").read_bytes() == b"elsewhere"


@pytest.mark.parametrize(
    "row, pair",
    [
        ({"dialogue": "a\nb", "summary": "c"}, ("a\nb", "c", [])),
        ({"dialogue": "a", "summary1": "c", "summary2": "d"}, ("a", "c", ["d"])),
        ({"dialogue": "a"}, None),
        ({"summary": "a"}, None),
        ({"dialogue": 1, "summary": "a"}, None),
        ([], None),
    ],
)
def test_rows_with_several_keys(script, tmp_path, row, pair):
    keys = {"source": "dialogue", "target": ["summary", "summary1", "summary2"]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    made = io.BytesIO()
    if pair is None:
        with pytest.raises(ValueError, match=r"a.jsonl:1: not a row of it \(.*\); delete it$"):
            script._shape(tmp_path / "a.jsonl", [], keys, made)
        return
    script._shape(tmp_path / "a.jsonl", [], keys, made)
    assert tuple(json.loads(made.getvalue()).values()) == pair


@pytest.mark.parametrize("harm", ["cut", "page", "empty", "lacking"])
def test_a_damaged_zip(script, tmp_path, harm):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good", "x" * 1000)
    whole = path.read_bytes()
    broken = {"cut": whole[:-40], "page": b"<html>", "empty": b"", "lacking": whole}
    path.write_bytes(broken[harm])
    with pytest.raises(ValueError, match=r"a.zip: damaged, or another archive \(.*; delete it"):
        script._shape(path, ["better"], None, io.BytesIO())


# ---- hostile and damaged archives ----------------------------------------------------------------


def member(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "evil",
    [
        member("../evil", tarfile.REGTYPE),
        member("a/../../evil", tarfile.REGTYPE),
        member("evil", tarfile.SYMTYPE, "/etc/passwd"),
        member("evil", tarfile.SYMTYPE, "../../evil"),
        member("evil", tarfile.LNKTYPE, "../evil"),
        member("evil", tarfile.CHRTYPE),
        member("evil", tarfile.FIFOTYPE),
    ],
    ids=lambda m: f"{m.name}-{m.type.decode()}",
)
def test_a_hostile_archive_is_refused(script, tmp_path, evil):
    tar(tmp_path / "a.tgz", evil=evil, good=b"x")
    with pytest.raises(ValueError, match=r"a.tgz: unsafe or damaged archive \(.+\); delete it"):
        script.unpack(tmp_path / "a.tgz", {"good"}, tmp_path / "deep" / "er")
    assert not [path for path in tmp_path.rglob("*") if "evil" in path.name]


@pytest.fixture(autouse=True)
def deep(tmp_path):
    (tmp_path / "deep").mkdir()


def test_only_wanted_plain_files_come_out(script, tmp_path):
    info = member("good", tarfile.SYMTYPE, "other")
    tar(tmp_path / "a.tgz", other=b"x", good=info)
    with pytest.raises(ValueError, match=r"a.tgz: good is not a plain file"):
        script.unpack(tmp_path / "a.tgz", {"good"}, tmp_path / "deep" / "a")
    tar(tmp_path / "b.tgz", **{"good": b"x", "/abs": b"y", "other": b"z"})
    script.unpack(tmp_path / "b.tgz", {"good"}, tmp_path / "deep" / "b")
    assert [path.name for path in (tmp_path / "deep" / "b").rglob("*")] == ["good"]


def test_caps(script, tmp_path, monkeypatch):
    tar(tmp_path / "a.tgz", **{f"m{i}": b"x" * 10 for i in range(10)})
    for cap, value in (("MEMBERS", 9), ("BYTES", 99)):
        with monkeypatch.context() as patch:
            patch.setattr(script, cap, value)
            with pytest.raises(ValueError, match=r"a.tgz: over "):
                script.unpack(tmp_path / "a.tgz", {"m9"}, tmp_path / "deep" / cap)
    script.unpack(tmp_path / "a.tgz", {"m9"}, tmp_path / "deep" / "whole")


@pytest.mark.parametrize("harm", ["cut", "page", "empty", "lacking"])
def test_a_damaged_archive(script, tmp_path, harm):
    whole = tar(tmp_path / "a.tgz", good=b"x" * 1000)
    broken = {"cut": whole[:-40], "page": b"<html>no</html>", "empty": b"", "lacking": whole}
    (tmp_path / "a.tgz").write_bytes(broken[harm])
    message = "does not hold better" if harm == "lacking" else "unsafe or damaged archive"
    with pytest.raises(ValueError, match=f"a.tgz: {message}.*; delete it"):
        script.unpack(tmp_path / "a.tgz", {"better"}, tmp_path / "deep" / "a")


# ---- the table -----------------------------------------------------------------------------------


# No sum of these is published.
TRUSTED = {"iwslt14_de_en", "policyqa", "scitldr", "dialogsum"}


def test_the_table(script):
    for name, data in script.DATA_SETS.items():
        files = dict(script._files(data["from"]))
        for sum_, urls in files.values():
            assert re.fullmatch(r"[0-9a-f]{64}", sum_) or (not sum_ and name in TRUSTED)
            assert all(url.startswith("https://") for url in urls)
        for split in script.SPLITS:
            for archive, template in data.get(split, ()):
                assert archive in files and "{side}" in template
        made = [file for file, *_ in data.get("make", ())]
        assert len(made) == len(set(made)) and not set(made) & files.keys()
        for _, source, *part in data.get("make", ()):
            assert source in files and bool(part) != ("pairs" in data)
        assert dict(script._table(data.get("known", ""))).keys() <= set(made)


def test_help_says_what_there_is(script, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(["--help"])
    printed = capsys.readouterr().out
    assert stop.value.code == 0 and all(name in printed for name in script.DATA_SETS)
