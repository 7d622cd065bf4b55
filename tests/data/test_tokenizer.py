"""tfx/data/tokenizer.py: text and ids, there and back; files that belong to a run."""

import hashlib
import json
import random
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from tfx.data import tokenizer, vocabulary
from tfx.data.tokenizer import BOS, EOS, PAD, UNK, Bytes


def sentences(n=300):
    draw = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(200)]
    return [" ".join(draw.choices(words, k=draw.randint(1, 9))) for _ in range(n)]


SOURCES = sentences()
TARGETS = [line.upper() for line in SOURCES]
CHUNKS = [(SOURCES[:100], TARGETS[:100]), (SOURCES[100:], TARGETS[100:])]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def joint(request):
    return tokenizer.build(request.param, 150, CHUNKS)


def test_text_survives_and_no_special_id_appears(joint):
    ids = joint.source.encode(SOURCES)
    assert joint.source.decode(ids) == SOURCES
    assert not {PAD, EOS, BOS, UNK} & {i for row in ids for i in row}
    assert joint.source is joint.target and joint.vocab_sizes == (150, 150)
    with_special = [[BOS, *row, EOS, PAD, PAD] for row in ids]
    assert joint.source.decode(with_special) == SOURCES


def test_no_lines_and_empty_lines(joint):
    for side in (joint.source, Bytes()):
        assert side.encode([]) == [] and side.decode([]) == []
        assert side.encode(["", "a"])[0] == [] and side.decode([[], [EOS]]) == ["", ""]


def test_unknown_characters_are_unk(joint):
    [ids] = joint.source.encode(["☃"])
    assert UNK in ids and "⁇" in joint.source.decode([ids])[0]


def test_same_text_same_bytes(joint):
    again = tokenizer.build(joint.kind, 150, CHUNKS)
    assert again.source.model == joint.source.model and again.fingerprint == joint.fingerprint
    other = tokenizer.build(joint.kind, 80, CHUNKS)
    assert other.fingerprint != joint.fingerprint


def test_a_vocabulary_a_side():
    sides = tokenizer.build("bpe", 70, CHUNKS, joint=False)
    assert UNK not in sides.source.encode(SOURCES[:1])[0]
    assert UNK in sides.source.encode(TARGETS[:1])[0]
    assert UNK not in sides.target.encode(TARGETS[:1])[0]


def test_lowercase_folds_case():
    [upper, lower] = tokenizer.build("bpe", 60, CHUNKS, lowercase=True).source.encode(
        ["BA Bada", "ba bada"]
    )
    assert upper == lower


def test_tags_are_one_piece():
    side = tokenizer.build("bpe", 90, CHUNKS, tags=["<2de>"]).source
    [plain, tagged] = side.encode(["ba bada", "<2de> ba bada"])
    assert set(tagged) - set(plain) and len(tagged) <= len(plain) + 2
    assert side.decode([tagged]) == ["<2de> ba bada"]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_too_large_a_vocabulary_names_the_largest(kind):
    with pytest.raises(ValueError, match=r"tokenizer.vocab=5000 .* value is \d+$") as error:
        tokenizer.build(kind, 5000, CHUNKS)
    largest = int(re.search(r"(\d+)$", str(error.value))[1])
    assert tokenizer.build(kind, largest, CHUNKS).source.vocab_size == largest
    with pytest.raises(ValueError, match=f"value is {largest}$"):
        tokenizer.build(kind, largest + 1, CHUNKS)


@pytest.mark.parametrize(
    "vocab, chunks, message",
    [
        (10, CHUNKS, "smallest possible value is"),
        (3, CHUNKS, "tokenizer.vocab=3 leaves no piece"),
        (100, [], "no line of training text"),
        (100, [([""], [" "])], "no line of training text"),
        (100, [(["a\ud800b"], ["c"])], "line 1 holds a lone surrogate .U.D800."),
    ],
)
def test_what_cannot_be_learned_is_said_in_one_line(vocab, chunks, message):
    with pytest.raises(ValueError, match=message) as error:
        tokenizer.build("bpe", vocab, chunks)
    assert "\n" not in str(error.value)


def test_a_draw_depends_on_its_seed_alone(joint):
    side, lines = joint.source, SOURCES[:60]
    seeds = [7 * i for i in range(60)]
    drawn = side.encode_sampled(lines, seeds, 0.1)
    backwards = side.encode_sampled(lines[::-1], seeds[::-1], 0.1)[::-1]
    one = lambda line, seed: side.encode_sampled([line], [seed], 0.1)[0]
    with ThreadPoolExecutor(4) as pool:
        threads = list(pool.map(one, lines, seeds))
    assert drawn == backwards == threads
    assert side.decode(drawn) == lines
    assert drawn != side.encode(lines)
    long = " ".join(lines[:10])
    assert len({tuple(one(long, seed)) for seed in range(20)}) > 5
    one(long, 2**32 - 1)


@pytest.mark.parametrize("bad", [-1, 150, 10**6])
def test_ids_outside_the_vocabulary_are_refused(joint, bad):
    with pytest.raises(ValueError, match=f"id {bad} is not in the vocabulary of 150 .0..149."):
        joint.source.decode([[5], [6, bad]])


@pytest.mark.parametrize("bad", [-1, 260])
def test_ids_that_are_no_bytes_are_refused(bad):
    with pytest.raises(ValueError, match=f"id {bad} is not in the vocabulary of 260"):
        Bytes().decode([[bad]])


def test_lone_surrogates_are_refused(joint):
    for side in (joint.source, Bytes()):
        with pytest.raises(ValueError, match=r"line 2 holds a lone surrogate \(U\+DC00\)"):
            side.encode(["fine", "not \udc00"])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_bytes_lose_nothing(lines):
    ids = Bytes().encode(lines)
    assert Bytes().decode(ids) == lines
    assert [len(row) for row in ids] == [len(line.encode()) for line in lines]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 259)))
def test_any_bytes_decode(ids):
    [text] = Bytes().decode([ids])
    assert text == bytes(i - 4 for i in ids if i >= 4).decode(errors="replace")


@pytest.mark.parametrize(
    "kind, joint", [("bpe", True), ("unigram", False), ("bytes", True)], ids=str
)
def test_load_gives_back_what_was_saved(tmp_path, kind, joint):
    made = tokenizer.build(kind, 60, CHUNKS, joint=joint)
    made.save(tmp_path)
    loaded = tokenizer.load(tmp_path)
    assert loaded.kind == kind and loaded.fingerprint == made.fingerprint
    assert (loaded.source is loaded.target) == joint
    assert loaded.target.encode(TARGETS[:5]) == made.target.encode(TARGETS[:5])
    about = json.loads((tmp_path / "tokenizer.json").read_text())
    assert about["special"] == {"pad": 0, "eos": 1, "unk": 2, "bos": 3}
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.json", *about["sha256"]}
    for name, sha256 in about["sha256"].items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == sha256


def test_a_file_of_another_run_or_damaged_is_refused(tmp_path):
    tokenizer.build("bpe", 60, CHUNKS).save(tmp_path)
    path = tmp_path / "tokenizer.model"
    model = path.read_bytes()
    other = tokenizer.build("bpe", 61, CHUNKS).source.model
    flipped = bytes([*model[:-1], model[-1] ^ 1])
    for content in (other, flipped, model[:100], b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged or belongs to another run"):
            tokenizer.load(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer.model is missing"):
        tokenizer.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"kind": "bpe", "sha256": {"a": "b"}}'])
def test_a_damaged_listing_is_refused(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=r"tokenizer.json is damaged"):
        tokenizer.load(tmp_path)


def test_a_vocabulary_is_opened_as_one(tmp_path):
    learned = vocabulary.learn("chars", 0, SOURCES)
    learned.save(tmp_path)
    opened = tokenizer.load(tmp_path)
    assert isinstance(opened, vocabulary.Vocabulary)
    assert opened.fingerprint == learned.fingerprint


def test_no_tokenizer_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer.json"):
        tokenizer.load(tmp_path)


def test_a_given_model_is_used_when_its_special_ids_are_ours(tmp_path, joint):
    path = tmp_path / "mine.model"
    path.write_bytes(joint.source.model)
    given = tokenizer.build("bpe", 8000, [], path=str(path))
    assert given.kind == "given" and given.fingerprint == joint.fingerprint
    given.save(tmp_path)
    assert tokenizer.load(tmp_path).fingerprint == joint.fingerprint


def test_a_given_model_with_other_special_ids_is_refused(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SOURCES),
        model_prefix=str(tmp_path / "other"),
        vocab_size=60,
        minloglevel=2,
    )
    with pytest.raises(ValueError, match="pad=-1 eos=2 unk=0 bos=1, tfx needs pad=0") as error:
        tokenizer.build("bpe", 60, [], path=str(tmp_path / "other.model"))
    assert "--pad_id=0 --eos_id=1 --unk_id=2 --bos_id=3" in str(error.value)


@pytest.mark.parametrize(
    "settings, error, message",
    [
        (dict(path="no.model"), FileNotFoundError, "no such file"),
        (dict(path=__file__), ValueError, "not a SentencePiece model"),
        (dict(path=__file__, joint=False), ValueError, "one model for both sides"),
        (dict(path=__file__, lowercase=True), ValueError, "tokenizer.lowercase=True"),
    ],
)
def test_a_given_model_that_cannot_be_used(settings, error, message):
    with pytest.raises(error, match=message):
        tokenizer.build("bpe", 60, [], **settings)


def test_bytes_have_no_lower_case():
    with pytest.raises(ValueError, match=r"tokenizer.lowercase=True .*kind=bytes"):
        tokenizer.build("bytes", 260, [], lowercase=True)
