"""The three sources give the same kind of corpus, and refuse in one line what cannot be one."""

import gzip
import importlib.util
import json
import re
import socket
import sys
import time

import numpy as np
import pytest

from tfx.data import sources, tfds
from tfx.data.sources import open_split


def pairs(corpus: sources.Corpus) -> list[tuple[str, str]]:
    return [pair for chunk in corpus.chunks() for pair in zip(*chunk, strict=True)]


def files(spec: str, fields: str = "") -> list[sources.Corpus]:
    return open_split("files", spec, fields, "train")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(**contents: str):
    """Files in the working directory: a_en="..." is a.en; the last part gz packs it."""
    for name, content in contents.items():
        name, raw = name.replace("_", "."), content.encode()
        with open(name, "wb") as file:
            file.write(gzip.compress(raw) if name.endswith(".gz") else raw)


# ---- files ---------------------------------------------------------------------------------------


def test_every_format_gives_the_same_pairs():
    expected = [("a b", "x"), ("", "y"), ("c", "")]
    rows = "\n".join(json.dumps({"source": s, "target": t}) for s, t in expected)
    write(a_en="a b\n\nc\n", a_de="x\ny\n\n", b_tsv="a b\tx\n\ty\nc\t", c_jsonl=rows)
    write(a_en_gz="a b\r\n\r\nc", b_tsv_gz="a b\tx\tmore\n\ty\nc\t\n", c_jsonl_gz=rows)
    specs = ["a.en,a.de", "a.en.gz,a.de", "b.tsv", "b.tsv.gz", "c.jsonl", "c.jsonl.gz"]
    corpora = files(" ".join(specs))
    assert [corpus.name for corpus in corpora] == specs
    for corpus in corpora:
        assert pairs(corpus) == expected
        assert pairs(corpus) == expected, "a second time"
        assert (corpus.weight, corpus.tag) == (1.0, "")


def test_fields_choose_columns_and_keys():
    write(a_tsv="id\tA\tB\n", a_jsonl='{"de": "B", "en": "A", "n": 1}\n')
    assert pairs(files("a.tsv", "3,2")[0]) == [("B", "A")]
    assert pairs(files("a.jsonl", "en,de")[0]) == [("A", "B")]


def test_options():
    write(a_en="a\n \nb\n", a_de="x\ny\nz\n")
    (corpus,) = files("a.en,a.de,weight=2.5,tag=<2de>")
    assert (corpus.name, corpus.weight, corpus.tag) == ("a.en,a.de", 2.5, "<2de>")
    assert pairs(corpus) == [("<2de> a", "x"), (" ", "y"), ("<2de> b", "z")]


def test_chunks_are_short(monkeypatch):
    monkeypatch.setattr(sources, "CHUNK", 2)
    write(a_en="1\n2\n3\n4\n5\n", a_de="1\n2\n3\n4\n5\n")
    (corpus,) = files("a.en,a.de")
    assert [len(source) for source, _ in corpus.chunks()] == [2, 2, 1]


def test_the_fingerprint_is_of_the_content():
    write(a_en="a\n", a_de="x\n", b_en_gz="a\n", b_de="x\n", c_de="y\n", d_tsv="a\tx\n")
    same, copy, other, swapped, tagged, weighed, tsv = (
        corpus.fingerprint
        for corpus in files(
            "a.en,a.de b.en.gz,b.de a.en,c.de a.de,a.en a.en,a.de,tag=t a.en,a.de,weight=2 d.tsv"
        )
    )
    assert re.fullmatch("[0-9a-f]{64}", same)
    assert same == copy == weighed
    assert len({same, other, swapped, tagged, tsv}) == 5
    assert files("d.tsv", "1,2")[0].fingerprint == tsv != files("d.tsv", "2,1")[0].fingerprint


@pytest.mark.parametrize(
    "spec, fields, message",
    [
        ("a.en,b.de", "", r"data.train: a.en has 3 lines, b.de has 2; line-parallel"),
        ("a.en,none.de", "", r"/none.de: no such file"),
        ("a.en,empty", "", r"^empty: empty file, no usable rows"),
        ("a.en,.", "", r"a directory; name a text file"),
        ("train", "", r'data.train: "train" must be two line-parallel text files'),
        ("a.en,b.de,a.en", "", r"must be two line-parallel text files"),
        ("  ", "", r"data.train is empty; name at least one corpus"),
        ("a.en,,a.en", "", r"holds an empty name"),
        ("weight=2", "", r"holds an empty name"),
        ("a.en,a.en,weight=0", "", r"data.train: weight=0 must be a number above 0"),
        ("a.en,a.en,weight=nan", "", r"weight=nan must be"),
        ("a.en,a.en,weight=two", "", r"weight=two must be"),
        ("a.en,a.en,wieght=2", "", r'"wieght=2" is no option; weight=NUMBER or tag=WORD'),
        ("a.tsv", "0,1", r'data.fields="0,1" must be two column numbers from 1'),
        ("a.tsv", "en,de", r'a.tsv:1: the header has no column "en" \(it has: a, b\); set'),
        ("a.jsonl", "en", r'data.fields="en" must be two JSON keys'),
        ("page.tsv", "", r"page.tsv: a web page, not the data"),
    ],
)
def test_refused_before_anything_is_read(spec, fields, message):
    write(a_en="1\n2\n3\n", b_de="1\n2\n", empty="", a_tsv="a\tb\n", a_jsonl="{}\n")
    write(page_tsv="<!doctype html>")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        files(spec, fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, row, message",
    [
        ("tsv", "one", r":2: 1 tab-separated columns, too few for data.fields="),
        ("tsv", "a\tb\xff", r":2: byte 4 is not UTF-8"),
        ("jsonl", "{", r":2: not JSON \(Expecting.*\); write one object a line"),
        ("jsonl", "", r":2: not JSON"),
        ("jsonl", "[" * 100_000, r":2: not JSON"),
        ("jsonl", "[1]", r":2: not a JSON object"),
        ("jsonl", '{"en": "a", "target": "b"}', r':2: no key "source" \(it has: en, target\)'),
        ("jsonl", '{"source": 1, "target": "b"}', r':2: "source" is int, not text'),
        ("jsonl", '{"source": "\\ud800", "target": "b"}', r':2: "source" holds NUL or half'),
        ("jsonl", '{"source": "a", "target": "\\u0000"}', r':2: "target" holds NUL or half'),
    ],
)
def test_a_bad_row_is_named(name, row, message):
    good = {"tsv": "a\tb", "jsonl": '{"source": "a", "target": "b"}'}[name]
    with open(f"a.{name}", "wb") as file:
        file.write(f"{good}\n{row}\n".encode("latin-1"))
    (corpus,) = files(f"a.{name}")
    with pytest.raises(ValueError, match=rf"^a\.{name}{message}") as error:
        pairs(corpus)
    assert "\n" not in str(error.value)


# ---- synthetic -----------------------------------------------------------------------------------


def test_the_embedded_corpus():
    (corpus,) = open_split("synthetic", "valid", "", "valid")
    some = next(corpus.chunks())
    assert some == next(corpus.chunks())
    assert len(some[0]) == len(some[1]) > 0 and all(map(str.strip, some[0] + some[1]))
    (train,) = open_split("synthetic", "train,weight=2", "", "train")
    assert train.fingerprint != corpus.fingerprint and train.weight == 2


def test_what_is_no_source():
    with pytest.raises(ValueError, match=r'data.valid="dev": the synthetic splits are train, v'):
        open_split("synthetic", "dev", "", "valid")
    for source in ("file", "tfds:", "tfds", ""):
        with pytest.raises(ValueError, match=f'data.source="{source}": no such source; synth'):
            open_split(source, "train", "", "train")


# ---- TFDS ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data folder in which the set "tiny_pairs" was prepared, by naming it."""
    library = pytest.importorskip("tensorflow_datasets")
    features = library.features

    class TinyPairs(library.core.GeneratorBasedBuilder):
        VERSION = library.core.Version("1.2.3")

        def _info(self):
            texts = {key: features.Text() for key in ("en", "de", "note")}
            return library.core.DatasetInfo(
                builder=self,
                features=features.FeaturesDict(
                    texts | {"label": features.ClassLabel(num_classes=2)}
                ),
                supervised_keys=("de", "en"),
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(10), "test": self._generate_examples(2)}

        def _generate_examples(self, count):
            for i in range(count):
                note = b"\xff" if i else "fine"
                yield i, {"en": f"en {i}" * (i > 0), "de": f"dé {i}", "note": note, "label": 0}

    data_dir = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(data_dir))
        open_split("tfds:tiny_pairs", "train", "", "train")
    return data_dir


@pytest.fixture
def tfds_dir(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))


def test_tfds(tfds_dir, monkeypatch):
    monkeypatch.setattr(tfds, "CHUNK", 4)
    whole, part = open_split(
        "tfds:tiny_pairs", "train train[:40%],weight=2,tag=<x>", "en,de", "train"
    )
    assert [len(source) for source, _ in whole.chunks()] == [4, 4, 2]
    assert sorted(pairs(whole)) == [("", "dé 0")] + [(f"en {i}", f"dé {i}") for i in range(1, 10)]
    assert pairs(part) == [(f"<x> {s}" if s else s, t) for s, t in pairs(whole)[:4]]
    assert (whole.name, part.weight, part.tag) == ("tfds:tiny_pairs train", 2.0, "<x>")
    (swapped,) = open_split("tfds:tiny_pairs", "train", "", "train")  # supervised_keys
    assert pairs(swapped) == [(t, s) for s, t in pairs(whole)]
    (named,) = open_split("tfds:tiny_pairs", "train", "de,en", "valid")
    assert named.fingerprint == swapped.fingerprint
    assert len({corpus.fingerprint for corpus in (whole, part, swapped)}) == 3


@pytest.fixture(scope="module")
def prepared_tasks(prepared):
    """In the same folder the set "tiny_tasks", which has features for every kind of row."""
    library = pytest.importorskip("tensorflow_datasets")
    f = library.features

    class TinyTasks(library.core.GeneratorBasedBuilder):
        VERSION = library.core.Version("1.0.0")

        def _info(self):
            features = {
                "text": f.Text(),
                "other": f.Text(),
                "label": f.ClassLabel(names=["no", "yes"]),
                "score": np.float32,
                "id": np.str_,
                "question": f.Text(),
                "context": f.Text(),
                "answers": f.Sequence({"text": f.Text(), "answer_start": np.int32}),
                "tokens": f.Sequence(f.Text()),
                "tags": f.Sequence(f.ClassLabel(names=["O", "B-a"])),
                "choices": f.Sequence(f.Text()),
            }
            return library.core.DatasetInfo(builder=self, features=f.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(3):
                answers = {"text": ["ü"] * i, "answer_start": [0] * i}
                yield (
                    i,
                    {
                        "text": f"t {i}",
                        "other": f"o {i}",
                        "label": i - 1,  # -1: not told
                        "score": i / 2,
                        "id": f"q{i}",
                        "question": "Q",
                        "context": "ü c",
                        "answers": answers,
                        "tokens": ["a", "b"][:i],
                        "tags": ["O", "B-a"][:i],
                        "choices": ["x", "y"],
                    },
                )

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(prepared))
        open_split("tfds:tiny_tasks", "train", "", "train", "text")


@pytest.mark.parametrize(
    "kind, fields, rows",
    [
        ("text", "", [("t 0",), ("t 1",), ("t 2",)]),
        ("text", "other", [("o 0",), ("o 1",), ("o 2",)]),
        ("pair", "text,other", [("t 0", "o 0"), ("t 1", "o 1"), ("t 2", "o 2")]),
        ("references", "text,other", [("t 0", ["o 0"]), ("t 1", ["o 1"]), ("t 2", ["o 2"])]),
        (
            "references",
            "text,other,text,tokens",
            [
                ("t 0", ["o 0", "t 0"]),
                ("t 1", ["o 1", "t 1", "a"]),
                ("t 2", ["o 2", "t 2", "a", "b"]),
            ],
        ),
        ("pair", "text,other,tokens", [("t 0", "o 0"), ("t 1", "o 1"), ("t 2", "o 2")]),
        ("labelled", "", [("t 0", -1), ("t 1", "no"), ("t 2", "yes")]),
        ("labelled", "other,score", [("o 0", 0.0), ("o 1", 0.5), ("o 2", 1.0)]),
        (
            "labelled",
            "text,other,label",
            [("t 0", "o 0", -1), ("t 1", "o 1", "no"), ("t 2", "o 2", "yes")],
        ),
        (
            "questions",
            "",
            [(f"q{n}", "Q", "ü c", [("ü", 0)] * n) for n in range(3)],
        ),
        ("tagged", "", [([], []), (["a"], ["O"]), (["a", "b"], ["O", "B-a"])]),
        (
            "choices",
            "",
            [("t 0", ["x", "y"], -1), ("t 1", ["x", "y"], "no"), ("t 2", ["x", "y"], "yes")],
        ),
    ],
)
def test_tfds_kinds(prepared_tasks, tfds_dir, kind, fields, rows):
    (corpus,) = open_split("tfds:tiny_tasks", "train", fields, "train", kind)
    found = pairs(corpus)
    assert sorted(found, key=str) == sorted(rows, key=str)
    plain = {str, int, float, list}
    assert {type(value) for row in found for value in row} <= plain, "no arrays, nothing of NumPy"


@pytest.mark.parametrize(
    "kind, fields, message",
    [
        ("pair", "", r"supervised_keys must name two text.*\"SOURCE,TARGET\" with two of: "),
        ("text", "label", r'data.fields=label must name features for text; set data.fields="TEXT"'),
        ("labelled", "label,text", r"must name features for text, label; .* with some of: .*other"),
        ("labelled", "text,other,tokens", r"must name features for text, second, label; "),
        ("labelled", "text", r"data.fields=text must name features for text, label"),
        ("questions", "id,question,context,tokens", r"for id, question, context, answers"),
        ("tagged", "tokens,label", r"must name features for tokens, tags"),
    ],
)
def test_tfds_refuses_other_features(prepared_tasks, tfds_dir, kind, fields, message):
    with pytest.raises(ValueError, match=message) as error:
        open_split("tfds:tiny_tasks", "train", fields, "train", kind)
    assert "\n" not in str(error.value)


def test_tfds_names_of_columns_that_are_not_there(tfds_dir):
    message = r"tiny_pairs: the names id, question, context, answers must name features for id"
    with pytest.raises(ValueError, match=message):
        open_split("tfds:tiny_pairs", "train", "", "train", "questions")


def test_tfds_needs_no_tensorflow(tfds_dir):
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    "name, spec, fields, message",
    [
        ("tiny_pair", "train", "", r'no data set "tiny_pair"; did you mean tiny_pairs'),
        (
            "wmt14_translate/de-em",
            "train",
            "",
            r'wmt14_translate has no config "de-em"; did you mean de-en',
        ),
        ("wmt14_translate/de-en:9.9.9", "train", "", r"cannot be loaded at version 9.9.9"),
        ("no name", "train", "", r"tfds:no name: "),
        ("tiny_pairs", "trian", "", r"tiny_pairs trian: Unknown split.*\(it has: train, test\)"),
        ("tiny_pairs", "train[:0]", "", r"tiny_pairs train\[:0\]: "),
        ("tiny_pairs", "train,test", "", r'"train,test" must be one split, not 2'),
        (
            "tiny_pairs",
            "train",
            "en,fr",
            r"data.fields=en,fr must name two text features.*: en, de, note",
        ),
        ("tiny_pairs", "train", "en,label", r"data.fields=en,label must name two text features"),
        ("glue/sst2", "train", "", r"supervised_keys must name two.*with two of: sentence"),
    ],
)
def test_tfds_refuses(tfds_dir, name, spec, fields, message):
    with pytest.raises(ValueError, match=message) as error:
        open_split(f"tfds:{name}", spec, fields, "train")
    assert "\n" not in str(error.value)


def test_tfds_text_is_checked(tfds_dir):
    (corpus,) = open_split("tfds:tiny_pairs", "train", "note,en", "train")
    with pytest.raises(ValueError, match=r"^tfds:tiny_pairs train:\d+: byte 1 is not UTF-8"):
        pairs(corpus)


def test_tfds_offline(prepared, folder, monkeypatch):
    """Within seconds: what to fetch, from where, into which folder; what is there is left out."""

    def refuse(*args, **kwargs):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    manual = folder / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "wiki-titles.tgz").write_text("")
    start = time.monotonic()
    with pytest.raises(ValueError) as error:
        open_split("tfds:wmt14_translate/de-en", "train", "en,de", "train")
    assert time.monotonic() - start < 10
    message = str(error.value)
    assert message.startswith(f"tfds:wmt14_translate/de-en: not prepared in {folder}/wmt14_tr")
    assert f"into {manual} and run again: " in message
    for file in ("europarl-v7.tgz", "commoncrawl.tgz", "nc-v9.tgz"):
        assert re.search(
            rf"training-parallel-{file} \(\d.* from http://www.statmt.org/.*{file}", message
        )
    assert "wiki-titles" not in message and "\n" not in message
    has_tensorflow = importlib.util.find_spec("tensorflow")
    assert ('pip install "tfx-research[prepare]"' in message) == (not has_tensorflow)


def test_tfds_says_when_preparing_needs_tensorflow(prepared, folder, monkeypatch):
    library = pytest.importorskip("tensorflow_datasets")

    def fail(*args, **kwargs):
        raise RuntimeError("extracting: No module named 'tensorflow'")

    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    monkeypatch.setattr(library.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(
        ValueError, match=r'needs TensorFlow, once; pip install "tfx-research\[prep'
    ):
        open_split("tfds:tiny_pairs", "train", "", "train")


def test_tfds_prepared_as_tfrecord(prepared, folder, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    version = folder / "tiny_pairs" / "1.2.3"
    version.mkdir(parents=True)
    for path in (prepared / "tiny_pairs" / "1.2.3").iterdir():
        text = path.read_bytes()
        if path.name == "dataset_info.json":
            text = text.replace(b"array_record", b"tfrecord")
        (version / path.name).write_bytes(text)
    with pytest.raises(ValueError, match=rf"{version} is prepared as tfrecord, .*as array_record"):
        open_split("tfds:tiny_pairs", "train", "", "train")


def test_tfds_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ValueError, match=r'not installed; pip install "tfx-research\[tfds\]"'):
        open_split("tfds:wmt14_translate/de-en", "train", "", "train")
