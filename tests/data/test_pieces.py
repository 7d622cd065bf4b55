"""tfx/data/pieces.py: what a text teaches, the same every time."""

import json
import random
import re
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfx.data import pieces, vocabulary


def sentences(n=300):
    draw = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(200)]
    return [" ".join(draw.choices(words, k=draw.randint(1, 9))) for _ in range(n)]


LINES = sentences()
SIZES = {"bert": 120, "roberta": 330, "gpt2": 330, "t5": 220, "xlnet": 120}
FIRST = {
    "bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    "roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    "gpt2": ["<|endoftext|>"],
    "t5": ["<pad>", "</s>", "<unk>"],
    "xlnet": ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>"],
    "chars": ["<pad>", "</s>", "<unk>", "<s>"],
    "bytes": ["<pad>", "</s>", "<unk>", "<s>"],
}


@pytest.mark.parametrize("kind", pieces.LEARN)
def test_special_tokens_come_where_the_family_has_them(kind):
    learned = vocabulary.learn(kind, SIZES.get(kind, 0), LINES)
    assert learned.vocab_size == SIZES.get(kind, learned.vocab_size)
    assert learned.tokens(range(len(FIRST[kind]))) == FIRST[kind]
    assert learned.decode(learned.encode(LINES)) == LINES
    assert {"unk"} >= {
        role
        for role, number in learned.special.items()
        if number in {i for row in learned.encode(LINES) for i in row}
    }


def test_sentinels_are_the_last_ids_of_t5_the_first_one_last():
    learned = vocabulary.learn("t5", 220, LINES)
    assert learned.sentinels == list(range(219, 119, -1))
    assert learned.tokens([219, 120]) == ["<extra_id_0>", "<extra_id_99>"]
    assert learned.encode(["<extra_id_1> ba"])[0][0] == 218


def test_the_same_text_gives_the_same_bytes_in_any_process():
    """The trainers of `tokenizers` hash with another seed in every process."""
    script = (
        "import json, sys; from tfx.data import vocabulary; about = json.load(sys.stdin)\n"
        "for kind, size in about['sizes'].items():\n"
        "    print(kind, vocabulary.learn(kind, size, about['lines']).fingerprint)"
    )
    given = json.dumps({"sizes": SIZES, "lines": LINES})
    run = lambda: subprocess.run(
        [sys.executable, "-c", script], input=given, capture_output=True, text=True, check=True
    )
    here = [f"{k} {vocabulary.learn(k, n, LINES).fingerprint}" for k, n in SIZES.items()]
    assert run().stdout.split("\n")[:-1] == here == run().stdout.split("\n")[:-1]


@pytest.mark.parametrize("kind, size", [("bert", 5 + 4 + 1), ("gpt2", 1 + 256 + 1)])
def test_the_most_frequent_pair_becomes_a_piece_first(kind, size):
    learned = vocabulary.learn(kind, size, ["ab xb", "ab"])
    assert learned.tokens([size - 1]) == ["ab"]
    assert learned.encode(["ab"]) == [[size - 1]]


def test_characters_are_those_of_the_text_and_the_end_of_a_line():
    learned = vocabulary.learn("chars", 0, ["abba", "é c"])
    assert learned.tokens(range(4, learned.vocab_size)) == ["\n", " ", "a", "b", "c", "é"]
    assert learned.encode(["ab\n", "x<s>"]) == [[6, 7, 4], [2, 2, 2, 2]]


def test_bytes_are_their_number_plus_four():
    learned = vocabulary.learn("bytes", 0, [])
    assert learned.vocab_size == 260
    assert learned.encode(["\x00é\xff"]) == [[4 + byte for byte in "\x00é\xff".encode()]]
    assert learned.decode([[*range(4), 4 + 0xC3]]) == ["<unk>�"]


def test_rare_characters_are_left_out_where_all_would_fill_the_vocabulary():
    assert pieces._frequent({"a": 9_999, "☃": 1}, 19) == ["a"]
    assert pieces._frequent({"a": 9_999, "☃": 1}, 20) == ["a", "☃"]
    assert pieces._frequent({"b": 1, "a": 1, "c": 2}, 3) == ["c", "a", "b"]
    learned = vocabulary.learn("bert", 9, ["ab" * 5000, "ab", "☃"])
    assert learned.encode(["☃ ab"])[0][0] == learned.special["unk"]


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "t5", "xlnet"])
def test_a_vocabulary_that_is_too_large_or_small_names_one_that_fits(kind):
    with pytest.raises(ValueError, match=r"largest possible value is \d+$") as error:
        vocabulary.learn(kind, 50_000, LINES)
    largest = int(re.search(r"\d+$", str(error.value))[0])
    assert vocabulary.learn(kind, largest, LINES).vocab_size == largest
    with pytest.raises(ValueError, match=r"smallest possible value is \d+$") as error:
        vocabulary.learn(kind, 115 if kind == "t5" else 20, LINES)
    smallest = int(re.search(r"\d+$", str(error.value))[0])
    assert vocabulary.learn(kind, smallest, LINES).vocab_size == smallest


@pytest.mark.parametrize("kind", ["bert", "t5", "xlnet"])
@pytest.mark.parametrize("lines", [[], [""], [" ", "\t"]])
def test_no_text_is_said(kind, lines):
    with pytest.raises(ValueError, match="no line of training text"):
        vocabulary.learn(kind, 200, lines)


@pytest.mark.parametrize(
    "kind, settings, message",
    [
        ("word2vec", {}, "tokenizer.kind=word2vec cannot be learned; choose one of bert, roberta"),
        ("gpt2", {"lowercase": True}, "tokenizer.lowercase=True with tokenizer.kind=gpt2"),
        ("t5", {"vocab": 103}, "tokenizer.vocab=103 leaves no piece beside the special ones"),
        ("xlnet", {"vocab": 9}, "tokenizer.vocab=9 leaves no piece beside the special ones"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        vocabulary.learn(kind, settings.pop("vocab", 300), LINES, **settings)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5", "xlnet", "chars"])
def test_surrogates_are_no_text(kind):
    with pytest.raises(ValueError, match=r"line 2 holds a lone surrogate \(U\+D800\)"):
        vocabulary.learn(kind, 300, ["a", "b\ud800"])


@pytest.mark.parametrize("kind", ["bert", "t5", "xlnet"])
def test_lower_case_folds_case(kind):
    size = SIZES[kind]
    [upper, lower] = vocabulary.learn(kind, size, LINES, lowercase=True).encode(["BA DA", "ba da"])
    assert upper == lower
    [upper, lower] = vocabulary.learn(kind, size, LINES).encode(["BA DA", "ba da"])
    assert upper != lower


def test_huge_texts_are_sampled_evenly(monkeypatch):
    monkeypatch.setattr(pieces, "SAMPLE", 10)
    assert pieces.evenly(range(10)) == list(range(10))
    assert pieces.evenly(range(11)) == list(range(0, 11, 2))
    assert pieces.evenly(range(100)) == list(range(0, 100, 16))


def test_bytes_have_the_letters_of_gpt2():
    assert len(set(pieces.BYTES)) == 256 and pieces.BYTES.isprintable()
    assert pieces.BYTES[ord("A")] == "A" and pieces.BYTES[0xE9] == "é"
    assert [pieces.BYTES[byte] for byte in b" \n\t\r\x00"] == ["Ġ", "Ċ", "ĉ", "č", "Ā"]


@pytest.mark.parametrize(
    "text, plain, places",
    [
        ("``Ça''  va\t½", '"Ca"  va 1⁄2', [0, 2, 3, 4, 6, 7, 8, 9, 10, 11, 11, 11]),
        ("e\u0301\u00a0İ", "e I", [0, 2, 3]),
        ("", "", []),
    ],
)
def test_text_without_accents_knows_its_places(text, plain, places):
    assert pieces.without_accents(text) == (plain, places)
    assert pieces.without_accents(text, lowercase=True) == (plain.lower(), places)


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_without_accents_is_that_of_the_authors(text):
    """Their order: quotes, then decomposition of all of it, then the marks go."""
    plain, places = pieces.without_accents(text, lowercase=True)
    theirs = unicodedata.normalize("NFKD", text.replace("``", '"').replace("''", '"'))
    theirs = "".join(c for c in theirs if not unicodedata.combining(c)).lower()
    assert plain.split() == theirs.split()
    assert len(plain) == len(places) and places == sorted(places)
