"""tfx/data/families.py: what the files of each family say, in cases small enough to do by hand."""

import json

import pytest
import sentencepiece
from tokenizers import Tokenizer

from tfx.data import pieces, vocabulary

BERT = "[PAD] [UNK] [CLS] [SEP] [MASK] un ##aff ##able cafe 漢 , a ##a A"
GPT = ["<unk>", "l", "o", "w", "w</w>", "lo", "low</w>", "e", ",</w>", "o</w>"]
LETTERS = [*dict.fromkeys("Ġhelo"), "he", "ll", "hell", "hello", "Ġhello", "Ċ", "Ã", "©"]


def folder(path, files, **config):
    """A Hugging Face folder of texts, bytes and what goes into JSON."""
    for name, content in (files | {"config.json": config}).items():
        if not isinstance(content, bytes):
            text = content if isinstance(content, str) else json.dumps(content)
            content = text.encode()
        (path / name).write_bytes(content)
    return path


def lines(words):
    return "".join(f"{word}\n" for word in words.split())


def numbered(words):
    return {word: number for number, word in enumerate(words)}


def byte_level(*special):
    merges = "#version: 0.2\nh e\nl l\nhe ll\nhell o\nĠ hello\n"
    return {"vocab.json": numbered([*LETTERS, *special]), "merges.txt": merges}


@pytest.mark.parametrize(
    "text, tokens",
    [
        ("Unaffable, CAFÉ", "un ##aff ##able , cafe"),
        ("aa\u00a0a\x00a", "a ##a a ##a"),
        ("a漢a", "a 漢 a"),
        ("unx [MASK]un", "[UNK] [MASK] un"),
        ("a" * 100, "a" + " ##a" * 99),
        ("a" * 101, "[UNK]"),
        ("", ""),
    ],
)
def test_wordpiece_takes_the_longest_piece_of_lower_case_words(tmp_path, text, tokens):
    found = vocabulary.of_folder(folder(tmp_path, {"vocab.txt": lines(BERT)}, model_type="bert"))
    assert found.tokens(found.encode([text])[0]) == tokens.split()


def test_a_cased_wordpiece_says_so(tmp_path):
    files = {"vocab.txt": lines(BERT), "tokenizer_config.json": {"do_lower_case": False}}
    found = vocabulary.of_folder(folder(tmp_path, files))
    assert found.family == "bert"
    assert found.tokens(found.encode(["A a Cafe"])[0]) == ["A", "a", "[UNK]"]


def test_windows_line_ends_are_no_pieces(tmp_path):
    text = lines(BERT).replace("\n", "\r\n")
    found = vocabulary.of_folder(folder(tmp_path, {"vocab.txt": text}))
    assert found.vocab_size == len(BERT.split()) and found.special["mask"] == 4


@pytest.mark.parametrize(
    "text, tokens",
    [("hello hello", "hello Ġhello"), ("hel\nlé", "he l Ċ l Ã ©"), ("  hello", "Ġ Ġhello")],
)
def test_bytes_merge_in_the_order_of_the_merges(tmp_path, text, tokens):
    found = vocabulary.of_folder(folder(tmp_path, byte_level("<|endoftext|>"), model_type="gpt2"))
    assert found.tokens(found.encode([text])[0]) == tokens.split()
    assert found.decode(found.encode([text])) == [text]
    assert found.special == {"eos": 13, "bos": 13, "unk": 13}


def test_a_space_is_put_before_the_text_where_the_file_says_so(tmp_path):
    files = byte_level() | {"tokenizer_config.json": {"add_prefix_space": True}}
    found = vocabulary.of_folder(folder(tmp_path, files, model_type="gpt2"))
    assert found.tokens(found.encode(["hello"])[0]) == ["Ġhello"]
    assert found.pair([1], [2])[0] == [1, 2]  # there is no end of a text to put between them


@pytest.mark.parametrize("family", ["roberta", "bart"])
def test_roberta_and_bart_are_gpt2s_with_special_tokens(tmp_path, family):
    files = byte_level("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    found = vocabulary.of_folder(folder(tmp_path, files, model_type=family))
    assert found.special == dict(pad=14, eos=15, bos=13, unk=16, cls=13, sep=15, mask=17)
    assert found.tokens(found.encode(["hello <mask>"])[0]) == ["hello", "<mask>"]


def test_gpt1_merges_lower_case_words_that_end(tmp_path):
    merges = "#version: 0.2\nl o\nlo w</w>\n"
    files = {"vocab.json": numbered(GPT), "merges.txt": merges}
    found = vocabulary.of_folder(folder(tmp_path, files, model_type="openai-gpt"))
    assert found.tokens(found.encode(["Low, LÓWE low"])[0]) == [
        *["low</w>", ",</w>", "lo", "w", "<unk>", "low</w>"]
    ]
    assert found.decode(found.encode(["Low low"])) == ["low low"]
    with pytest.raises(ValueError, match="say where a word ends"):
        found.starts_word  # noqa: B018


def sentence_model(kind="bpe", text="the low lower lowest", size=26, **ids):
    return pieces.sentencepiece_model(kind, size, [text] * 9, **ids)


T5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}


@pytest.mark.parametrize("settings, count", [({}, 100), ({"extra_ids": 3}, 3)])
def test_sentinels_of_t5_follow_the_pieces_the_first_one_last(tmp_path, settings, count):
    files = {"spiece.model": sentence_model(**T5), "tokenizer_config.json": settings}
    config = {"model_type": "t5", "vocab_size": 32 * -(-(26 + count) // 32)}  # rounded up
    found = vocabulary.of_folder(folder(tmp_path, files, **config))
    assert found.vocab_size == 26 + count and found.special == {"pad": 0, "eos": 1, "unk": 2}
    assert found.sentinels == [26 + count - 1 - n for n in range(count)]
    model = sentencepiece.SentencePieceProcessor(model_proto=files["spiece.model"])
    assert found.encode(["the  lowest☃"]) == [model.encode("the lowest☃")]
    assert found.encode(["low<extra_id_0> low"]) == [
        [*model.encode("low"), 25 + count, *model.encode("low")]
    ]
    assert found.decode(found.encode(["the<extra_id_1>low"])) == ["the <extra_id_1> low"]


def test_sentinels_that_the_model_holds_are_not_added(tmp_path):
    names = ["<extra_id_1>", "<extra_id_0>"]
    files = {"spiece.model": sentence_model(size=28, control_symbols=names, **T5)}
    found = vocabulary.of_folder(folder(tmp_path, files, model_type="mt5"))
    assert found.vocab_size == 28 and found.sentinels == [4, 3]


def test_xlnet_reads_without_accents(tmp_path):
    special = {"control_symbols": ["<cls>", "<sep>", "<pad>", "<mask>"], "pad_id": -1}
    model = sentence_model(size=30, unk_id=0, bos_id=1, eos_id=2, **special)
    found = vocabulary.of_folder(folder(tmp_path, {"spiece.model": model}, model_type="xlnet"))
    assert found.special == dict(pad=5, eos=2, bos=1, unk=0, cls=3, sep=4, mask=6)
    assert found.encode(["thé  lòwer<mask>"])[0] == [*found.encode(["the lower"])[0], 6]


def test_xlm_rs_ids_are_one_above_the_models(tmp_path):
    model = sentence_model(unk_id=0, bos_id=1, eos_id=2, pad_id=-1)
    files = {"sentencepiece.bpe.model": model}
    found = vocabulary.of_folder(folder(tmp_path, files, model_type="xlm-roberta"))
    own = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert found.encode(["lower"]) == [[number + 1 for number in own.encode("lower")]]
    assert found.special == dict(pad=1, eos=2, bos=0, unk=3, cls=0, sep=2, mask=27)
    assert found.encode(["☃"])[0][-1] == 3


@pytest.fixture
def marian(tmp_path):
    ids = {"unk_id": 0, "eos_id": 1, "bos_id": -1, "pad_id": -1}
    models = [sentence_model(**ids), sentence_model(text="LOW NEW NEWEST", **ids)]
    opened = [sentencepiece.SentencePieceProcessor(model_proto=model) for model in models]
    own = {side.id_to_piece(n) for side in opened for n in range(2, 26)}
    names = ["</s>", "<unk>", ">>de<<", *sorted(own, reverse=True), "☃", "<pad>"]
    files = {"source.spm": models[0], "target.spm": models[1], "vocab.json": numbered(names)}
    return folder(tmp_path, files, model_type="marian", vocab_size=len(names)), opened, names


def test_marians_ids_are_those_of_its_vocab_json(marian):
    path, (source, target), names = marian
    found = vocabulary.of_folder(path)
    assert found.special == {"pad": len(names) - 1, "eos": 0, "unk": 1}
    for side, model, text in ((found, source, "the lowest"), (found.target, target, "NEWEST LOW")):
        parts = model.encode(text, out_type=str)
        assert side.encode([text]) == [[names.index(part) for part in parts]]
        assert side.decode(side.encode([text])) == [text]
    assert found.encode([">>de<< low"])[0][0] == 2
    # What the model of a side does not know may have an id all the same.
    assert found.encode(["☃ ☂"])[0][1::2] == [names.index("☃"), 1]


def test_marian_may_have_a_vocab_json_a_side(marian):
    path, _, names = marian
    (path / "target_vocab.json").write_text(json.dumps(numbered(names[::-1])))
    found = vocabulary.of_folder(path)
    rows = [side.encode(["LOW"])[0] for side in (found, found.target)]
    assert [names[::-1][number] for number in rows[1]] == ["▁LOW"]
    assert found.special["eos"] == 0 and found.target.special["eos"] == len(names) - 1


def test_tokenizer_json_goes_before_all_without_its_padding_and_cutting(tmp_path):
    found = vocabulary.of_folder(folder(tmp_path, {"vocab.txt": lines(BERT)}))
    left = Tokenizer.from_str(found._model._tokenizer.to_str())
    left.enable_padding(length=9)
    left.enable_truncation(2)
    files = {"tokenizer.json": left.to_str(), "vocab.txt": "other\n"}
    whole = vocabulary.of_folder(folder(tmp_path, files, model_type="bert"))
    assert whole.encode(["a a a"]) == found.encode(["a a a"]) == [[11, 11, 11]]
    assert whole.fingerprint == found.fingerprint and whole.special == found.special


def test_added_tokens_have_the_ids_that_their_file_says(tmp_path):
    number = len(BERT.split())
    files = {"vocab.txt": lines(BERT), "added_tokens.json": {"[E2]": number + 1, "[E1]": number}}
    found = vocabulary.of_folder(folder(tmp_path, files))
    assert found.encode(["a[E2] [E1]"]) == [[11, number + 1, number]]
    files["tokenizer_config.json"] = {"added_tokens_decoder": {"4": {"content": "[MASK]"}}}
    assert vocabulary.of_folder(folder(tmp_path, files)).special["mask"] == 4
    files["added_tokens.json"] = {"[E1]": number + 1}
    with pytest.raises(ValueError, match=rf"E1. says id {number + 1}, the vocabulary leaves it"):
        vocabulary.of_folder(folder(tmp_path, files))


def test_special_tokens_are_spelled_as_the_files_say(tmp_path):
    said = {"pad_token": None, "sep_token": {"content": "un"}, "mask_token": "[NONE]"}
    files = {"vocab.txt": lines(BERT), "tokenizer_config.json": said}
    files["special_tokens_map.json"] = {"cls_token": "cafe", "sep_token": "a"}
    found = vocabulary.of_folder(folder(tmp_path, files))
    assert found.special == {"unk": 1, "cls": 8, "sep": 5}
    assert found.pair([11]) == ([8, 11, 5], [0, 0, 0])


BYTE_LEVEL = byte_level()
SPM = sentence_model(**T5)


@pytest.mark.parametrize(
    "files, config, message",
    [
        ({}, {}, "has no tokenizer; put one there, any of: tokenizer.json, vocab.txt"),
        (
            {"vocab.txt": "version https://git-lfs.github.com"},
            {},
            "a Git LFS pointer.*git lfs pull",
        ),
        ({"vocab.txt": b"\xff\xfe"}, {}, "vocab.txt: not UTF-8"),
        ({"vocab.txt": "a\nb\n"}, {}, r"has no \[UNK\], which WordPiece needs"),
        ({"vocab.txt": "a\n[UNK]\n"}, {}, r"has no \[CLS\], which a text for bert needs; add it"),
        ({"tokenizer.json": "{"}, {"model_type": "bert"}, "tokenizer.json: not JSON"),
        ({"tokenizer.json": "[]"}, {"model_type": "bert"}, "holds a list, not an object"),
        ({"tokenizer.json": "{}"}, {"model_type": "bert"}, "not one of the tokenizers library"),
        (BYTE_LEVEL, {}, 'model_type "" and tokenizer_class "" is unknown; name one of bert'),
        (BYTE_LEVEL, {"model_type": "llama"}, 'model_type "llama"'),
        (BYTE_LEVEL | {"vocab.json": {"a": 0}}, {"model_type": "gpt2"}, "does not fit vocab.json"),
        (BYTE_LEVEL | {"vocab.json": ["a"]}, {"model_type": "gpt2"}, "holds a list"),
        (BYTE_LEVEL | {"vocab.json": {"a": "b"}}, {"model_type": "gpt2"}, "not pieces with their"),
        (
            BYTE_LEVEL,
            {"model_type": "gpt2", "vocab_size": 12},
            "vocab_size=12, the tokenizer has 13",
        ),
        (
            BYTE_LEVEL,
            {"model_type": "gpt2", "vocab_size": 141},
            "vocab_size=141, the tokenizer has",
        ),
        (BYTE_LEVEL, {"model_type": "gpt2", "vocab_size": 15}, "vocab_size=15, the tokenizer has"),
        (BYTE_LEVEL, {"model_type": "gpt2", "vocab_size": "13"}, "a setting in its JSON files"),
        ({"spiece.model": SPM[:-9]}, {"model_type": "t5"}, "damaged, or not a SentencePiece model"),
        ({"spiece.model": b""}, {"model_type": "t5"}, "damaged, or not a SentencePiece model"),
        ({"spiece.model": SPM}, {"model_type": "xlnet"}, "has no <sep>, which a text for xlnet"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, files, config, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        vocabulary.of_folder(folder(tmp_path, files, **config))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_model_may_have_more_rows_than_its_tokenizer_has_ids(tmp_path):
    for size in (13, 128):
        config = {"model_type": "gpt2", "vocab_size": size}
        assert vocabulary.of_folder(folder(tmp_path, BYTE_LEVEL, **config)).vocab_size == 13


def test_no_folder_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing: no such folder"):
        vocabulary.of_folder(tmp_path / "nothing")
