"""tfx/data/segment.py: which characters of a text each piece is."""

import functools
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from tfx.data import pieces, vocabulary

LINES = [
    "the naïve café of a wörld ½ ﬁne ＡＢＣ 漢字 한국어",
    "don't the , 1,234.56 $99 the the 😀 ok",
    "unbelievable and inflexible, the fine world",
] * 9
SIZES = {"bert": 120, "roberta": 300, "gpt2": 300, "t5": 150, "xlnet": 56, "chars": 0, "bytes": 0}
BYTE = {letter: byte for byte, letter in enumerate(pieces.BYTES)}


@functools.cache
def learned(kind, **settings):
    return vocabulary.learn(kind, SIZES[kind], LINES, **settings)


AWKWARD = [
    "",
    "  Hello  wörld ",
    "naïve CAFÉ " + unicodedata.normalize("NFD", "café 한국어 ệ"),
    "漢字 and 한국어",
    "😀👍🏽 ❤\ufe0f ok",
    "a\x00b\x07c\u200bd\x7f",
    "x\u2028y\u2029z\x85w\ttab\u00a0nbsp\u3000end",
    "½ ﬁne ① … ﷺ",
    "\x1b¼ a\x1b½\x7f",
    "[PAD] [CLS] [SEP]",
    "don't WE'RE 1,234.56 ``x''",
    "\u0301first İ ß",
    "\n\nline\r\nbreak\n",
    " ".join(["word"] * 300),
    "a" * 150,
    "[MASK] <mask> <extra_id_0>x</s> <|endoftext|>",
]
texts = st.one_of(
    st.sampled_from(AWKWARD),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.text("abthé½ﬁＡ①漢한😀e\u0301 \t\u3000\u00a0,'`"),
)


def check_spans(vocab, text):
    """What holds of all: the same ids, spans inside the text, in order, without space around."""
    ids, spans = vocab.encode_with_offsets(text)
    assert [ids] == vocab.encode([text]) and len(ids) == len(spans)
    assert all(0 <= begin <= end <= len(text) for begin, end in spans)
    assert spans == sorted(spans) and sorted(e for _, e in spans) == [e for _, e in spans]
    for begin, end in spans:
        cut = text[begin:end]
        assert cut == cut.strip() or not cut.strip()
    return [(piece, text[b:e]) for piece, (b, e) in zip(vocab.tokens(ids), spans, strict=True)]


@pytest.mark.parametrize("kind", SIZES)
@settings(max_examples=60, deadline=None)
@given(text=texts)
def test_spans_are_in_order_and_inside(kind, text):
    check_spans(learned(kind), text)


@settings(max_examples=100, deadline=None)
@given(texts)
def test_wordpiece_stands_for_its_characters(text):
    read = normalizers.BertNormalizer(lowercase=True).normalize_str
    for piece, cut in check_spans(learned("bert", lowercase=True), text):
        assert piece in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") or piece.removeprefix(
            "##"
        ) in read(cut)


@settings(max_examples=100, deadline=None)
@given(texts)
def test_byte_pieces_stand_for_their_characters(text):
    for piece, cut in check_spans(learned("roberta"), text):
        if piece not in ("<mask>", "</s>"):
            assert bytes(BYTE[c] for c in piece).strip() in cut.encode()


@pytest.mark.parametrize("kind", ["t5", "xlnet"])
@settings(max_examples=100, deadline=None)
@given(text=texts)
def test_sentencepieces_stand_for_their_characters(kind, text):
    for piece, cut in check_spans(learned(kind), text):
        cut = pieces.without_accents(cut)[0] if kind == "xlnet" else cut
        assert piece.strip("▁") in unicodedata.normalize("NFKC", cut) or piece == "<unk>"


@pytest.mark.parametrize("kind", ["roberta", "gpt2", "bytes"])
@settings(max_examples=100, deadline=None)
@given(text=texts)
def test_bytes_lose_nothing(kind, text):
    vocab = learned(kind)
    if not {*vocab.special.values()} & {*vocab.encode([text])[0]}:
        assert vocab.decode(vocab.encode([text])) == [text]


@settings(max_examples=100, deadline=None)
@given(st.text(sorted({*"".join(LINES), "\n"})))
def test_characters_lose_nothing(text):
    assert learned("chars").decode(learned("chars").encode([text])) == [text]


def letters(family):
    """A SentencePiece model whose pieces are single characters."""
    ids = {
        "unk_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "pad_id": 3,
        "control_symbols": ["<cls>", "<sep>"],
    }
    model = pieces.sentencepiece_model("char", 16, ["the 1⁄2 é"], **ids)
    return vocabulary.of_files({"spiece.model": model}, family)


def test_wordpiece_takes_accents_in_and_white_space_out():
    text = "[CLS]|[SEP]|[UNK]|the|cafe|##s|漢|[MASK]".replace("|", "\n")
    vocab = vocabulary.of_files({"vocab.txt": text.encode()}, "bert")
    assert check_spans(vocab, "The CAFE\u0301s\u0301\t漢字[MASK]") == [
        *[("the", "The"), ("cafe", "CAFE\u0301"), ("##s", "s\u0301"), ("漢", "漢")],
        *[("[UNK]", "字"), ("[MASK]", "[MASK]")],
    ]


def test_bytes_of_a_character_share_it_and_roberta_masks_with_the_space_before():
    assert check_spans(learned("bytes"), "a é") == [("a", "a"), ("Ġ", " "), ("Ã", "é"), ("©", "é")]
    assert check_spans(learned("roberta"), "the <mask> the") == [
        *[("the", "the"), ("<mask>", "<mask>"), ("Ġthe", "the")]
    ]


@pytest.mark.parametrize(
    "family, text, expected",
    [
        ("t5", "t  ½", [("▁", ""), ("t", "t"), ("▁", "  "), *zip("1⁄2", "½½½", strict=True)]),
        ("t5", "½", [("▁", ""), *zip("1⁄2", "½½½", strict=True)]),
        ("xlnet", "½", [("▁", ""), *zip("1⁄2", "½½½", strict=True)]),
        ("t5", "e\u0301☃☃", [("▁", ""), ("é", "e\u0301"), ("<unk>", "☃☃")]),
        ("t5", "t<extra_id_7>", [("▁", ""), ("t", "t"), ("<extra_id_7>", "<extra_id_7>")]),
        ("xlnet", "é\u0301 ``", [("▁", ""), ("e", "é\u0301"), ("▁", " "), ("<unk>", "``")]),
    ],
)
def test_sentencepieces_of_one_character_share_it(family, text, expected):
    assert check_spans(letters(family), text) == expected


def test_what_the_model_takes_for_special_is_not_spelled_in_its_pieces():
    """SentencePiece itself would read </s> letter by letter."""
    assert letters("t5").encode(["the</s>"])[0][-1] == 2
    assert letters("t5").decode([[0, 2]]) == ["<unk>"]
