"""From a config to the parts of a run: which text a tokenizer is learned from."""

import json

import pytest

from tfx import assemble
from tfx import config as configs


def texts(kind, *chunks):
    return list(assemble._lines(kind, iter(chunks)))


@pytest.mark.parametrize(
    "kind, chunk, wanted",
    [
        ("text", (["a b", "", "a b"],), ["a b", "", "a b"]),
        ("pair", (["a"], ["b"]), ["a", "b"]),
        ("labelled", (["a"], ["good"]), ["a"]),
        ("labelled", (["a"], ["b"], ["good"]), ["a", "b"]),
        ("tagged", ([["Bob", "'s"]], [["B-PER", "O"]]), ["Bob 's"]),
        ("choices", (["a"], [["b", "c"]], ["0"]), ["a", "b", "c"]),
        (
            "questions",
            (["id", "x", "y"], ["Who?", "Who?", "Why?"], ["C", "C", "D"], [[("C", 0)], [], []]),
            ["Who?", "Who?", "Why?", "C", "D"],
        ),
    ],
)
def test_a_tokenizer_is_learned_from_text_alone(kind, chunk, wanted):
    """Of no id, label or tag; a context that questions share is read once."""
    assert texts(kind, chunk, chunk) == wanted * 2


def test_every_kind_of_rows_has_text():
    assert not [kind for kind in assemble.KINDS if not assemble.TEXTS.keys() & assemble.KINDS[kind]]


def test_the_tokenizer_of_a_tagger_knows_words_and_no_tag(tmp_path):
    row = {"tokens": ["the", "old", "man"], "tags": ["O", "XQ", "XQ"]}
    (tmp_path / "tags.jsonl").write_text(f"{json.dumps(row)}\n" * 9)
    c = configs.defaults("gpt2", "nano", "tag")
    c.model.head = "tokens"
    c.data.update(source="files", train=f"{tmp_path}/tags.jsonl")
    c.tokenizer.update(kind="chars")
    chars = assemble.open_tokenizer(configs.freeze(c), tmp_path / "chars")
    unk = chars.special["unk"]
    assert unk not in chars.encode(["the old man"])[0] and chars.encode(["XQ"]) == [[unk] * 2]
    c.tokenizer.update(kind="gpt2", vocab=265)
    pieces = assemble.open_tokenizer(configs.freeze(c), tmp_path / "gpt2")
    # A word inside a text has a piece of its own, with the space before it.
    assert pieces.tokens(pieces.encode([" old man"])[0]) == ["Ġold", "Ġman"]
