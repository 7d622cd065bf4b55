"""tfx/data/cache.py: encoded once, never half, never wrong."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfx.data import cache, tokenizer
from tfx.data.cache import Ragged, encode_corpora, totals
from tfx.data.sources import Corpus

BYTES = tokenizer.build("bytes", 260, [])


def corpus(pairs, name="toy", weight=1.0, size=3):
    def chunks():
        for first in range(0, len(pairs), size):
            chunk = pairs[first : first + size]
            yield [source for source, _ in chunk], [target for _, target in chunk]

    content = hashlib.sha256(repr(pairs).encode()).hexdigest()
    return Corpus(name, chunks, weight, "", content)


TOY = [("a", "b"), ("", "x"), ("cc", "dd"), ("long" * 9, "e"), ("f", ""), ("äö", "ü"), ("", "")]


def texts(pairs):
    decode = tokenizer.Bytes().decode
    side = lambda ragged: decode([ragged[i] for i in range(len(ragged))])
    return list(zip(side(pairs.source), side(pairs.target), strict=True))


def encode(folder, corpora=None, ids=BYTES, train=True, max_length=10, **kwargs):
    corpora = corpora or [corpus(TOY)]
    return encode_corpora(corpora, ids, folder, train=train, max_length=max_length, **kwargs)


class Deaf:
    """A tokenizer that must not be asked."""

    kind, fingerprint = BYTES.kind, BYTES.fingerprint
    source = target = SimpleNamespace(vocab_size=BYTES.source.vocab_size)
    ends = BYTES.ends


def test_training_drops_empty_and_long_pairs_and_counts_them(tmp_path):
    pairs = encode(tmp_path)
    assert texts(pairs) == [("a", "b"), ("cc", "dd"), ("äö", "ü")]
    assert totals(pairs.parts) == {"kept": 3, "empty": 3, "too_long": 1}


def test_evaluation_keeps_every_pair_in_order(tmp_path):
    pairs = encode(tmp_path, train=False)
    assert texts(pairs) == TOY
    assert totals(pairs.parts) == {"kept": 7, "empty": 3, "too_long": 1}


def test_the_end_of_sentence_counts_as_a_token(tmp_path):
    toy = [corpus([("abcd", "a")])]
    assert totals(encode(tmp_path, toy, max_length=5).parts)["kept"] == 1
    with pytest.raises(
        ValueError, match=r"0 are empty on some side and 1 too long \(more than data.max_length=4"
    ):
        encode(tmp_path, toy, max_length=4)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.text("ab ", max_size=6), st.text("ü", max_size=6))), st.integers(1, 12)
)
def test_training_keeps_exactly_what_fits(tmp_path_factory, lines, max_length):
    fits = lambda line: 0 < len(line.encode()) < max_length
    usable = [pair for pair in lines if all(map(fits, pair))]
    folder = tmp_path_factory.mktemp("cache")
    if usable:
        pairs = encode(folder, [corpus(lines)], max_length=max_length)
        assert texts(pairs) == usable
        assert sum(totals(pairs.parts).values()) == len(lines)
    else:
        with pytest.raises(ValueError, match="no usable rows in toy"):
            encode(folder, [corpus(lines)], max_length=max_length)
    assert not list(folder.glob("*.partial-*"))


def test_corpora_follow_each_other_with_their_weights(tmp_path):
    corpora = [corpus([("a", "b")], "one", 0.5), corpus([("", "")], "two"), corpus(TOY, "three", 2)]
    pairs = encode(tmp_path, corpora)
    assert [(part.name, part.weight, part.kept) for part in pairs.parts] == [
        ("one", 0.5, 1),
        ("two", 1.0, 0),
        ("three", 2, 3),
    ]
    assert len(pairs.source) == len(pairs.target) == 4


def test_the_second_time_nothing_is_read_or_encoded(tmp_path):
    first = encode(tmp_path)
    unread = corpus(TOY)
    object.__setattr__(unread, "chunks", None)
    asked = []
    again = encode(tmp_path, [unread], Deaf(), progress=asked.append)
    assert texts(again) == texts(first) and again.fingerprint == first.fingerprint
    assert again.parts == first.parts and not asked


def test_another_corpus_tokenizer_length_or_use_is_another_cache(tmp_path):
    learned = tokenizer.build("bpe", 12, [(["ab ab"], ["c d"])])
    made = [
        encode(tmp_path),
        encode(tmp_path, [corpus(TOY[:3])]),
        encode(tmp_path, [corpus(TOY[:3]), corpus(TOY[3:])]),
        encode(tmp_path, ids=learned),
        encode(tmp_path, max_length=11),
        encode(tmp_path, train=False),
        encode(tmp_path, ids=learned, sampling=0.1),
    ]
    assert len(list(tmp_path.iterdir())) == len(made)
    assert len({pairs.fingerprint for pairs in made}) == len(made)


def test_weights_need_no_second_cache_but_are_in_the_fingerprint(tmp_path):
    one, two = (encode(tmp_path, [corpus(TOY, weight=weight)]) for weight in (1.0, 2.0))
    assert len(list(tmp_path.iterdir())) == 1 and one.fingerprint != two.fingerprint


def test_progress_counts_pairs_read(tmp_path):
    told = []
    encode(tmp_path, [corpus(TOY), corpus(TOY[:1])], progress=told.append)
    assert told == [3, 6, 7, 8]


def test_a_run_killed_while_encoding_leaves_no_cache(tmp_path):
    def chunks():
        yield ["a"], ["b"]
        raise KeyboardInterrupt

    broken = corpus(TOY)
    object.__setattr__(broken, "chunks", chunks)
    with pytest.raises(KeyboardInterrupt):
        encode(tmp_path, [broken])
    assert not list(tmp_path.iterdir())
    assert len(encode(tmp_path).source) == 3


def test_what_a_killed_run_left_behind_is_ignored(tmp_path):
    encode(tmp_path)
    [made] = tmp_path.iterdir()
    left = made.rename(tmp_path / f"{made.name}.partial-abc")
    (left / "sums.json").unlink()
    assert len(encode(tmp_path).source) == 3


def test_when_two_runs_encode_at_once_both_use_what_came_first(tmp_path):
    def fill(partial):
        np.arange(3, dtype=np.int32).tofile(partial / "a.int32")
        cache.cached(tmp_path / "same", lambda first: np.zeros(2).tofile(first / "a.float64"))

    arrays = cache.cached(tmp_path / "same", fill)
    assert arrays["a"].tolist() == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["same"]


def test_any_damage_is_refused_with_the_folder_to_delete(tmp_path):
    encode(tmp_path)
    [folder] = tmp_path.iterdir()
    files = sorted(folder.iterdir())
    assert len(files) == 6
    for path in files:
        whole = path.read_bytes()
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 64]) + whole[middle + 1 :]
        for content in (whole[:-1], b"", b"[1]", flipped, None):
            path.unlink()
            if content is not None:
                path.write_bytes(content)
            with pytest.raises(ValueError, match=r"is damaged .*; delete that folder") as error:
                encode(tmp_path)
            assert str(folder) in str(error.value)
            path.write_bytes(whole)
    assert len(encode(tmp_path).source) == 3


@pytest.mark.parametrize("vocab, dtype", [(65_535, np.uint16), (65_536, np.int32)])
def test_ids_are_as_small_as_the_vocabulary_allows(tmp_path, vocab, dtype):
    class Fake:
        vocab_size = vocab
        encode = staticmethod(lambda lines: [[vocab - 1] for _ in lines])

    class Ids(Deaf):
        source = target = Fake

    pairs = encode(tmp_path, [corpus([("a", "b")])], Ids())
    assert pairs.source.flat.dtype == dtype and pairs.source[0].tolist() == [vocab - 1]


def test_sampling_keeps_the_text_of_what_is_kept(tmp_path):
    learned = tokenizer.build("bpe", 16, [(["abab äö", "cc"], ["bd", "ü"])])
    pairs = encode(tmp_path, ids=learned, sampling=0.9, max_length=99)
    plain = encode(tmp_path, ids=learned)
    assert plain.texts is None and plain.sampling == 0
    decoded = learned.target.decode([pairs.sampled(i, (i, i))[1] for i in range(3)])
    assert decoded == learned.target.decode([pairs.target[i] for i in range(3)])
    kept = [bytes(pairs.texts[0][i]).decode() for i in range(len(pairs.source))]
    assert kept == [source for source, target in TOY if source and target]
    assert encode(tmp_path, ids=learned, sampling=0.9, train=False).texts is None


def test_bytes_cannot_be_sampled(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer.sampling needs kind=bpe or unigram"):
        encode(tmp_path, sampling=0.1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9))), st.data())
def test_ragged_rows(rows, data):
    ragged = Ragged.of(rows, np.uint16)
    assert len(ragged) == len(rows) and ragged.lengths.tolist() == [len(row) for row in rows]
    some = data.draw(st.lists(st.integers(0, len(rows) - 1))) if rows else []
    taken = ragged.take(np.array(some, int))
    assert [row.tolist() for row in taken] == [rows[i] for i in some]
    assert [ragged[i].tolist() for i in some] == [rows[i] for i in some]
