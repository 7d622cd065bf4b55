"""Every kind of row is read as it was written, from each format that holds it, or refused in a line
that says where and why."""

import gzip
import json
import re

import pytest

from tfx.data import rows, sources


def read(kind: str, path: str, fields: str = "", split: str = "train") -> list[tuple]:
    (corpus,) = sources.open_split("files", path, fields, split, kind)
    return [row for chunk in corpus.chunks() for row in zip(*chunk, strict=True)]


def write(name: str, content) -> str:
    """A file of text, or of JSON: of a list a row a line."""
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    elif isinstance(content, dict):
        content = json.dumps(content)
    with (gzip.open if name.endswith(".gz") else open)(name, "wb") as file:
        file.write(content.encode())
    return name


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(kind: str, path: str, message: str, fields: str = "", split: str = "train"):
    with pytest.raises(ValueError, match=message) as error:
        read(kind, path, fields, split)
    assert "\n" not in str(error.value)


# ---- text ----------------------------------------------------------------------------------------


def test_text():
    lines = [("a b",), ("",), ("  ",), ("c",)]
    assert read("text", write("a.txt", "a b\n\n  \nc")) == lines
    assert read("text", write("a.tokens.gz", "a b\r\n\r\n  \r\nc\r\n")) == lines
    assert read("text", write("a.jsonl", [{"text": text} for (text,) in lines])) == lines
    assert read("text", write("b.jsonl", [{"de": "x"}]), "de") == [("x",)]
    assert read("text", write("a.tsv", "1\ta b\n2\t\n3\t  \n4\tc\n"), "2") == lines
    refused("text", "a.txt", r'data.fields="text" means nothing to a.txt, plain text', "text")
    refused("text", "a.txt,a.txt", r'"a.txt,a.txt" must be one text or .tsv or .jsonl file')


def test_plain_text_is_the_same_whatever_its_name():
    write("a.txt", "a\n"), write("b", "a\n"), write("c.gz", "a\n"), write("d.tsv", "a\n")
    same = [
        corpus.fingerprint
        for corpus in sources.open_split("files", "a.txt b c.gz", "", "train", "text")
    ]
    (other,) = sources.open_split("files", "d.tsv", "", "train", "text")
    assert len(set(same)) == 1 and other.fingerprint not in same


# ---- labelled ------------------------------------------------------------------------------------


def test_labels():
    assert read("labelled", write("a.tsv", "good \t1\nbad\t0\n")) == [("good ", "1"), ("bad", "0")]
    several = [{"text": "a", "label": label} for label in ("x", 1, 0.5, -1)]
    labels = [label for _, label in read("labelled", write("a.jsonl", several))]
    assert labels == ["x", 1, 0.5, -1] and [type(label) for label in labels] == [
        str,
        int,
        float,
        int,
    ]


def test_two_texts():
    write("a.tsv", "id\tsentence1\tsentence2\tlabel\n7\ta\tb\tyes\n")
    expected = [("a", "b", "yes")]
    assert read("labelled", "a.tsv", "sentence1,sentence2,label") == expected
    assert read("labelled", write("b.tsv", "a\tb\tyes\n"), "1,2,3") == expected
    assert (
        read("labelled", write("a.jsonl", [{"a": "a", "b": "b", "c": "yes"}]), "a,b,c") == expected
    )


def test_a_header_names_columns():
    """SST-2 as GLUE has it."""
    write("a.tsv.gz", "sentence\tlabel\nfine \t1\n")
    assert read("labelled", "a.tsv.gz", "sentence,label") == [("fine ", "1")]
    assert read("pair", "a.tsv.gz", "label,sentence") == [("1", "fine ")]
    refused(
        "labelled",
        "a.tsv.gz",
        r'^a.tsv.gz:1: the header has no column "text" \(it has: sentence, label\); set',
        "text,label",
    )
    write("a.tsv", "sentence\tlabel\nfine\n")
    refused("labelled", "a.tsv", r"^a.tsv:2: 1 tab-separated columns, too few", "sentence,label")
    refused("labelled", write("c.tsv", ""), "^c.tsv: an empty file", "sentence,label")
    refused("text", write("b.tsv", "a\n"), r'^b.tsv:1: the header has no column "\+1"', "+1")


@pytest.mark.parametrize(
    "row, message",
    [
        ({"text": "a"}, r'no key "label" \(it has: text\); set data.fields$'),
        ({"text": "a", "label": None}, r'"label" is NoneType, not a label; write text or a number'),
        ({"text": "a", "label": True}, r'"label" is bool, not a label'),
        ({"text": "a", "label": [1]}, r'"label" is list, not a label'),
        (
            {"text": "a", "label": "\ud800"},
            r'"label" holds NUL or half a surrogate pair; remove it',
        ),
        ({"text": 1, "label": 1}, r'"text" is int, not text; set data.fields$'),
    ],
)
def test_bad_labels(row, message):
    refused(
        "labelled", write("a.jsonl", [{"text": "a", "label": 1}, row]), rf"^a.jsonl:2: {message}"
    )


@pytest.mark.parametrize(
    "kind, name, fields, message",
    [
        ("labelled", "a.jsonl", "a", r'must be two JSON keys \(or three\), such as "text,label"'),
        ("labelled", "a.jsonl", "a,b,c,d", r"must be two JSON keys \(or three\)"),
        ("labelled", "a.jsonl", "a,", r"must be two JSON keys"),
        (
            "labelled",
            "a.tsv",
            "1",
            r'must be two column numbers from 1 .*\(or three\), such as "1,2"',
        ),
        ("labelled", "a.tsv", "1,0", r'must be two column numbers from 1, such as "1,2"'),
        ("choices", "a.jsonl", "a,b", r'must be three JSON keys, such as "text,choices,label"'),
        ("tagged", "a.conll", "1", r"must be two column numbers from 1, of the word and its tag"),
        ("tagged", "a.tsv", "", r'"a.tsv" must be one .conll or .txt or .jsonl file \(.gz too\)'),
        ("questions", "a.jsonl", "", r'"a.jsonl" must be one .json file'),
        ("questions", "a.json", "a,b,c,d", r'data.fields="a,b,c,d" means nothing to a.json, SQuAD'),
        ("labelled", "a.tsv,a.tsv", "", r'"a.tsv,a.tsv" must be one .tsv or .jsonl file'),
        ("label", "a.tsv", "", r'"label" is no kind of rows: pair, references, text, labelled'),
        ("tagged", "a.conll,tag=x", "", r"tag=x has no text to stand before in tagged rows"),
    ],
)
def test_refused_before_anything_is_read(kind, name, fields, message):
    for made in ("a.jsonl", "a.tsv", "a.conll", "a.json"):
        write(made, "not read\n")
    with pytest.raises(ValueError, match=message) as error:
        sources.open_split("files", name, fields, "train", kind)
    assert "\n" not in str(error.value)


# ---- references ----------------------------------------------------------------------------------


def test_references():
    several = [
        {"source": "a", "target": "x", "references": ["y", "z"]},
        {"source": "b", "target": "w", "references": []},
    ]
    write("a.jsonl", several)
    three = "source,target,references"
    assert read("references", "a.jsonl", three) == [("a", ["x", "y", "z"]), ("b", ["w"])]
    assert read("references", "a.jsonl") == [("a", ["x"]), ("b", ["w"])]
    assert read("pair", "a.jsonl", three) == [("a", "x"), ("b", "w")], "what is trained on"
    assert read("references", write("a.tsv", "a\tx\ty\n"), "1,2,3") == [("a", ["x", "y"])]
    write("a.en", "a\nb\n"), write("a.de", "x\n\n")
    assert read("references", "a.en,a.de") == [("a", ["x"]), ("b", [""])]
    assert read("references", "a.en,a.de,tag=<t>") == [("<t> a", ["x"]), ("<t> b", [""])]
    # Any number of columns, keys or files; what is empty is no reference.
    table = write("b.tsv", "a\tx\ty\tz\nb\tw\t\tv\nc\t\t\t\n")
    found = [("a", ["x", "y", "z"]), ("b", ["w", "v"]), ("c", [""])]
    assert read("references", table, "1,2,3,4") == found
    assert read("pair", table, "1,2,3,4") == [("a", "x"), ("b", "w"), ("c", "")]
    keys = [
        {"s": "a", "t": "x", "u": "y", "v": ["z", "w"]},
        {"s": "b", "t": "w", "u": "", "v": None},
    ]
    found = [("a", ["x", "y", "z", "w"]), ("b", ["w"])]
    assert read("references", write("d.jsonl", keys), "s,t,u,v") == found
    write("b.de", "y\n\n"), write("c.de", "\nz\n")
    parallel = "a.en,a.de,b.de,c.de"
    assert read("references", parallel, "", "test") == [("a", ["x", "y"]), ("b", ["", "z"])]
    assert read("pair", parallel, "", "valid") == [("a", "x"), ("b", "")]
    refused("pair", parallel, "data.train: .* must be two line-parallel text files")
    short = "a.en,a.de," + write("e.de", "x\n")
    refused("references", short, "a.en has 2 lines, e.de has 1; ", "", "test")
    refused("references", table, "must be 5 column numbers from 1", "1,2,3,4,0")
    refused(
        "references",
        write("c.jsonl", [several[0] | {"references": [1]}]),
        r'^c.jsonl:1: "references"\[0\] is int, not text',
        three,
    )


# ---- questions -----------------------------------------------------------------------------------


def question(id="1", **more) -> dict:
    answers = [{"text": "b", "answer_start": 2}]
    return {"id": id, "question": "What?", "answers": answers} | more


def squad(*questions, context="a b c") -> dict:
    return {
        "version": "x",
        "data": [{"paragraphs": [{"context": context, "qas": list(questions)}]}],
    }


def test_questions():
    several = [{"text": "b", "answer_start": 2}, {"text": "b c", "answer_start": 2}]
    impossible = question("3", is_impossible=True, plausible_answers=several, answers=[])
    whole = squad(question(), question("2", answers=several, is_impossible=False), impossible)
    whole["data"].append({"title": "no paragraphs", "paragraphs": []})
    whole["data"] += squad(question("4"), context="x b")["data"]
    expected = [
        ("1", "What?", "a b c", [("b", 2)]),
        ("2", "What?", "a b c", [("b", 2), ("b c", 2)]),
        ("3", "What?", "a b c", []),
        ("4", "What?", "x b", [("b", 2)]),
    ]
    assert read("questions", write("a.json", whole)) == expected
    assert read("questions", write("a.json.gz", whole)) == expected
    tagged = read("questions", "a.json,tag=<q>")
    assert tagged == [(id, f"<q> {asked}", *rest) for id, asked, *rest in expected]
    marked = "\ufeff" + json.dumps(whole)
    assert read("questions", write("b.json", marked)) == expected


@pytest.mark.parametrize(
    "whole, message",
    [
        ([], r"a.json: list, not an object; mend the file, or fetch it again \(SQuAD is data\[\]"),
        ({}, r'a.json has no "data"'),
        ({"data": {}}, r"a.json: data is dict, not list"),
        ({"data": ["x"]}, r"a.json: data\[0\] is str, not an object"),
        ({"data": [{"paragraphs": []}, {}]}, r'a.json: data\[1\] has no "paragraphs"'),
        (
            squad(question(), context=3),
            r"a.json: data\[0\].paragraphs\[0\].context is int, not str",
        ),
        (
            squad(question(), question()),
            r'a.json: .*qas\[1\].id: "1" is the id of an earlier question',
        ),
        (squad(question(7)), r"^a.json: data\[0\].paragraphs\[0\].qas\[0\].id is int, not str"),
        (squad(question(question="\0")), r"qas\[0\].question holds NUL or half"),
        (squad(question(is_impossible=1)), r"qas\[0\].is_impossible is int, not bool"),
        (squad(question(answers=None)), r"qas\[0\].answers is NoneType, not list"),
        (
            squad({"id": "1", "question": "a"}),
            r'data\[0\].paragraphs\[0\].qas\[0\] has no "answers"',
        ),
        (squad(question(answers=["b"])), r"qas\[0\].answers\[0\] is str, not an object"),
        (squad(question(answers=[{"text": "b"}])), r'answers\[0\] has no "answer_start"'),
        (
            squad(question(answers=[{"text": "b", "answer_start": "2"}])),
            r"a.json: data\[0\].paragraphs\[0\].qas\[0\].answers\[0\].answer_start is str, not int",
        ),
    ],
)
def test_damaged_questions(whole, message):
    with open("a.json", "w") as file:
        json.dump(whole, file)
    refused("questions", "a.json", message)


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"data": [', r"^a.json: not JSON \(Expecting value.*\); mend"),
        ("[" * 100_000, r"^a.json: not JSON"),
        ("<!doctype html>", r"^a.json: a web page, not the data"),
        ("version https://git-lfs.github.com", r"^a.json: a Git LFS pointer"),
        ("", r"^a.json: empty file"),
    ],
)
def test_what_is_no_json(content, message):
    refused("questions", write("a.json", content), message)


def test_json_that_is_not_utf8():
    with open("a.json", "wb") as file:
        file.write(b'{"data": "\xff"}')
    refused("questions", "a.json", r"^a.json: not JSON \('utf-8' codec can't decode byte 0xff")


# ---- tags ----------------------------------------------------------------------------------------


def test_tags():
    conll = "-DOCSTART- -X- O\n\nAnna NNP B-PER\nsleeps VBZ O\n\n\n. . O\n"
    expected = [(["Anna", "sleeps"], ["B-PER", "O"]), (["."], ["O"])]
    assert read("tagged", write("a.conll", conll)) == expected
    assert read("tagged", write("a.txt.gz", conll.replace(" ", "\t") + "\n")) == expected
    assert read("tagged", "a.conll", "1,2") == [
        (["Anna", "sleeps"], ["NNP", "VBZ"]),
        (["."], ["."]),
    ]
    lists = [{"tokens": tokens, "tags": tags} for tokens, tags in expected]
    assert read("tagged", write("a.jsonl", lists)) == expected
    assert read("tagged", write("b.jsonl", [{"w": ["a b"], "t": [3]}]), "w,t") == [(["a b"], [3])]
    assert read("tagged", write("b.conll", "a\u00a0b\tO\n")) == [(["a\u00a0b"], ["O"])]


@pytest.mark.parametrize(
    "content, fields, message",
    [
        (
            "a O\nb\n",
            "",
            r"^a.conll:2: 1 columns, and 2 in the first line; write a word a line, its",
        ),
        (
            "This is prose.\nIt has words in lines.\n",
            "",
            r"^a.conll:2: 5 columns, and 3 in the first",
        ),
        ("a\n", "", r"^a.conll:1: 1 columns, and 1 in the first line"),
        ("a O\n", "1,3", r"^a.conll:1: 2 columns, and 2 in the first line"),
    ],
)
def test_bad_columns(content, fields, message):
    refused("tagged", write("a.conll", content), message, fields)


@pytest.mark.parametrize(
    "row, message",
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, r"2 tokens, 1 tags; give each token one"),
        ({"tokens": "a b", "tags": ["O"]}, r'"tokens" is str, not a list of words'),
        ({"tokens": ["a"], "tags": [None]}, r'"tags"\[0\] is NoneType, not a label'),
        ({"tokens": [1], "tags": ["O"]}, r'"tokens"\[0\] is int, not text'),
    ],
)
def test_bad_tags(row, message):
    refused("tagged", write("a.jsonl", [row]), rf"^a.jsonl:1: {message}")


# ---- choices -------------------------------------------------------------------------------------


def test_choices():
    several = [
        {"text": "a", "choices": ["b", "c"], "label": 1},
        {"text": "", "choices": ["b", ""], "label": "x"},
    ]
    expected = [("a", ["b", "c"], 1), ("", ["b", ""], "x")]
    assert read("choices", write("a.jsonl", several)) == expected
    assert read("choices", "a.jsonl,tag=<c>") == [("<c> a", ["b", "c"], 1), expected[1]]
    one = write("b.jsonl", [{"text": "a", "choices": ["b"], "label": 0}])
    refused("choices", one, r'^b.jsonl:1: "choices" has 1 of the 2 texts that it takes')


def test_every_kind_has_formats_and_checks():
    assert rows.FORMATS.keys() == rows.KINDS.keys()
    read_from_jsonl = [kind for kind, formats in rows.FORMATS.items() if "jsonl" in formats]
    names = {
        name for kind in read_from_jsonl for name in rows.LONGER.get(kind, ()) + rows.KINDS[kind]
    }
    assert names == rows.CHECKS.keys()
    for kind in rows.KINDS:
        assert re.search(rf"^    {kind} ", rows.__doc__, re.M)
