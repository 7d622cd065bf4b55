"""Streams and their blocks; rows, and what becomes of those that do not fit."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given as forall
from hypothesis import settings
from hypothesis import strategies as st

from tfx.data import examples, vocabulary
from tfx.data.cache import Part, Rows
from tfx.data.examples import Draw, Given
from tfx.data.sources import Corpus

CHARS = vocabulary.learn("chars", 0, ["abc xyz"])
BERT = vocabulary.learn("bert", 8, ["a b c a b c"])
SEP = CHARS.special["eos"]
FEW = settings(max_examples=60, deadline=None)


def corpus(rows, name="toy", weight=1.0, size=3):
    """Rows, each a tuple of columns, in chunks of `size`."""

    def chunks():
        for first in range(0, len(rows), size):
            yield tuple(map(list, zip(*rows[first : first + size], strict=True)))

    return Corpus(name, chunks, weight, "", repr(rows))


def lines(text, **more):
    return corpus([(line,) for line in text], **more)


def given_of(folder, *corpora, vocab=CHARS, train=True, length=8, **more):
    return Given(corpora, vocab, Path(folder), train, length, 64, **more)


# Streams.


def streamed(folder, *corpora, whole=False, separator=SEP, **more):
    return examples.stream(given_of(folder, *corpora, **more), whole, separator)


def of_corpus(stream):
    return [stream.flat[a:b].tolist() for a, b in zip(stream.starts, stream.stops, strict=True)]


def test_a_separator_stands_before_between_and_after_texts(tmp_path):
    text = ["ab", "", "c", "  ", "xyz", "a"]  # the last one is in a chunk of its own
    stream = streamed(tmp_path, lines(text, size=2))
    a, b, c, x, y, z = (CHARS.encode([each])[0][0] for each in "abcxyz")
    assert of_corpus(stream) == [[SEP, a, b, SEP, c, SEP, x, y, z, SEP, a, SEP]]
    assert stream.bounds.tolist() == [0, 4, 6, 10, 12]


def test_each_corpus_begins_and_ends_with_a_separator(tmp_path):
    stream = streamed(tmp_path, lines(["ab", "c"]), lines(["", "x"]), lines(["y"]))
    for ids, text in zip(of_corpus(stream), ("abc", "x", "y"), strict=True):
        assert ids[0] == ids[-1] == SEP
        assert "".join(CHARS.tokens(n for n in ids if n != SEP)) == text
    assert [part.kept for part in stream.rows.parts] == [2, 1, 1]
    assert [part.empty for part in stream.rows.parts] == [0, 1, 0]
    assert stream.counts.tolist() == [[2, 2, 5], [1, 2, 2], [1, 1, 2]]


def test_an_empty_first_corpus_takes_no_separator(tmp_path):
    stream = streamed(tmp_path, lines([""]), lines(["x"]))
    assert [len(ids) for ids in of_corpus(stream)] == [0, 3]


def test_whole_files_keep_their_lines_and_what_is_blank(tmp_path):
    text = ["ab", "", " c", "xyz"]
    stream = streamed(tmp_path, lines(text), whole=True)
    assert "".join(CHARS.tokens(stream.flat)) == "ab\n\n c\nxyz\n"
    assert stream.counts.tolist() == [[3, 4, len("ab\n\n c\nxyz\n")]]


@FEW
@forall(st.lists(st.text("ab c", max_size=5), min_size=1), st.booleans())
def test_words_and_characters_are_those_of_the_text(tmp_path_factory, text, whole):
    text = [*text, "end"]
    stream = streamed(tmp_path_factory.mktemp("text"), lines(text, size=2), whole=whole)
    kept = [line for line in text if whole or line.strip()]
    [(words, line_ends, characters)] = stream.counts.tolist()
    assert words == sum(len(line.split()) for line in kept)
    assert line_ends == len(text), "blank ones too: a reader of the file counts them"
    assert characters == sum(len(line) + 1 for line in kept)
    # Both are of the text, however it is cut into ids; but a line end that is none does not count.
    plain = streamed(
        tmp_path_factory.mktemp("text"), lines(text), whole=whole, separator=None, vocab=BERT
    )
    lost = 0 if whole else len(kept)
    assert plain.counts.tolist() == [[words, line_ends, characters - lost]]


# Blocks.


def flat(*sizes, weights=None):
    """A stream whose every id is its place in it."""
    stops = np.cumsum(sizes)
    weights = weights or [1.0] * len(sizes)
    parts = tuple(Part("toy", weight, 1, 0, 0) for weight in weights)
    rows = Rows({}, parts, repr(sizes), Path("nowhere"))
    bounds = np.array([0, *stops])
    counts = np.zeros((len(stops), 3), int)
    return examples.Stream(np.arange(stops[-1]), stops - sizes, stops, bounds, counts, rows)


def cut_up(stream, step, train, **more):
    """Blocks whose examples are themselves, and a number that is drawn."""
    make = lambda block, rng: block._asdict() | {"drawn": rng.integers(1 << 62)}
    given = given_of("nowhere", train=train)
    lengths = lambda tokens: (tokens,)
    return examples.blocks(given, stream, step, make, {"ids": "T"}, lengths=lengths, **more)


def made(found, epoch=0, step=0, numbers=None, seed=0):
    numbers = np.arange(len(found.lengths[0])) if numbers is None else np.array(numbers)
    return found.make(numbers, Draw(seed, epoch, step, np.arange(len(numbers)), (8,)))


SIZES = st.lists(st.integers(2, 60), min_size=1, max_size=3)


@FEW
@forall(SIZES, st.integers(1, 12), st.integers(0, 9))
def test_evaluation_predicts_every_token_but_the_first_once(sizes, step, context):
    """Blocks that reach one token further than they step, and `context` further back."""
    stream = flat(*sizes)
    found = cut_up(stream, step, False, reach=step + context + 1)
    times = np.zeros(sum(sizes), int)
    for block, length in zip(made(found), found.lengths[0], strict=True):
        assert len(block["ids"]) == length >= 2
        assert (block["ids"] == block["start"] + np.arange(length)).all()
        seen = context if block["later"] else 0
        assert len(block["ids"]) - 1 > seen
        times[block["ids"][1 + seen :]] += 1
    firsts = np.isin(np.arange(sum(sizes)), stream.starts)
    assert (times == ~firsts).all()


@FEW
@forall(SIZES, st.integers(2, 12))
def test_evaluation_reads_every_token_once_but_a_last_one_that_is_alone(sizes, step):
    stream = flat(*sizes)
    found = made(cut_up(stream, step, False))
    read = np.concatenate([block["ids"] for block in found])
    alone = [stop - 1 for stop, n in zip(stream.stops, sizes, strict=True) if n % step == 1]
    assert [*read.tolist(), *alone] == sorted({*range(sum(sizes))} - {*alone}) + alone


@FEW
@forall(st.lists(st.integers(13, 80), min_size=1, max_size=3), st.integers(2, 9), st.data())
def test_blocks_of_an_epoch_are_disjoint_and_cover_all_but_the_ends(sizes, step, data):
    stream, extra = flat(*sizes), data.draw(st.integers(0, 4))
    found = cut_up(stream, step, True, reach=step + extra)
    epoch = data.draw(st.integers(0, 50))
    blocks = made(found, epoch)
    assert all(len(block["ids"]) == step + extra for block in blocks)
    counts = [part.kept for part in found.parts]
    assert len(blocks) == sum(counts)
    for a, b, n in zip(stream.starts, stream.stops, counts, strict=True):
        mine, blocks = blocks[:n], blocks[n:]
        starts = np.array([block["start"] for block in mine])
        assert (np.diff(starts) == step).all()
        assert 0 <= starts[0] - a < step
        assert 0 <= b - (starts[-1] + step + extra) < step
        assert [block["later"] for block in mine] == [False] + [True] * (n - 1)


def test_epochs_begin_elsewhere_and_are_the_same_when_asked_again():
    found = cut_up(flat(95, 61), 8, True)
    epochs = [[block["start"] for block in made(found, epoch)] for epoch in range(20)]
    assert len({epoch[0] for epoch in epochs}) > 4  # of 8
    assert len({epoch[0] - epoch[-1] for epoch in epochs}) > 1  # each corpus by itself
    for epoch in (3, 0):
        assert [block["start"] for block in made(found, epoch)] == epochs[epoch]
    other = [block["start"] for block in made(found, 3, seed=1)]
    assert other != epochs[3]


@pytest.mark.parametrize("static", [False, True])
def test_what_is_drawn_for_a_block_is_its_own(static):
    """Whatever step, row and company it is met in."""
    found = cut_up(flat(100), 8, True, static=static)
    first = made(found, 2)
    again = made(found, 2, step=77, numbers=[5, 2, 5])
    for one, number in zip(again, (5, 2, 5), strict=True):
        assert one["drawn"] == first[number]["drawn"] and one["start"] == first[number]["start"]
    later = made(found, 3)
    same = [a["drawn"] == b["drawn"] for a, b in zip(first, later, strict=True)]
    assert all(same) if static else not any(same)
    assert len({block["drawn"] for block in first}) == len(first)
    if static:
        assert [block["start"] for block in later] == list(range(0, 93, 8))


def test_corpora_keep_their_weights_and_their_blocks():
    stream = flat(30, 50, weights=[0.5, 3.0])
    found = cut_up(stream, 7, True)
    assert [(part.weight, part.kept) for part in found.parts] == [(0.5, 4), (3.0, 7)]
    for epoch, block in itertools.product(range(9), range(11)):
        (one,) = made(found, epoch, numbers=[block])
        assert (one["ids"] < 30).all() if block < 4 else (one["ids"] >= 30).all()


def test_blocks_are_told_apart_by_how_they_are_cut():
    cuts = [(8, {}), (7, {}), (8, {"reach": 9}), (8, {"static": True}), (8, {"recipe": ["x"]})]
    prints = {cut_up(flat(50), step, True, **more).fingerprint for step, more in cuts}
    assert len(prints) == len(cuts)
    assert cut_up(flat(50), 8, True).fingerprint == cut_up(flat(50), 8, True).fingerprint


@pytest.mark.parametrize(
    "sizes, train, full", [((30, 7), True, False), ((30, 7), False, True), ((1,), False, False)]
)
def test_a_text_without_a_block_is_refused(sizes, train, full):
    with pytest.raises(ValueError, match=r"of \d tokens does not fill one block of 8; lower data"):
        cut_up(flat(*sizes), 8, train, full=full)


# Rows.


def rows_of(folder, rows, *more, value=lambda label: [int(label)], vocab=BERT, **settings):
    corpora = [corpus(each) for each in (rows, *more)]
    given = given_of(folder, *corpora, vocab=vocab, **settings)
    return examples.texts(given, value, np.int32, ["toy"])


ROWS = [("a b", "0"), ("", "1"), ("a b c a b c a b c", "2"), ("c", "3"), ("a b c a b c", "4")]


def kept(rows, *names):
    return [
        tuple(rows.columns[name][n].tolist() for name in names)
        for n in range(len(rows.columns["value"]))
    ]


def test_training_drops_and_counts_what_is_empty_or_too_long(tmp_path):
    rows, lengths = rows_of(tmp_path, ROWS)  # six tokens in [CLS] and [SEP]
    ids = dict(zip("abc", (row[0] for row in BERT.encode(list("abc"))), strict=True))
    text = lambda line: [ids[word] for word in line.split()]
    assert kept(rows, "first", "value") == [(text(ROWS[n][0]), [n]) for n in (0, 3, 4)]
    assert lengths.tolist() == [4, 3, 8]
    (part,) = rows.parts
    assert (part.kept, part.empty, part.too_long) == (3, 1, 1)


@pytest.mark.parametrize("train", [True, False])
def test_what_is_too_long_is_cut_where_that_is_asked_for(tmp_path, train):
    rows, lengths = rows_of(tmp_path, ROWS, train=train, truncate=True)
    values = [value for (value,) in (row[0] for row in kept(rows, "value"))]
    assert values == ([0, 2, 3, 4] if train else [0, 1, 2, 3, 4])
    at = values.index(2)
    assert lengths[at] == 8 and len(rows.columns["first"][at]) == 6
    (part,) = rows.parts
    assert (part.kept, part.empty, part.too_long) == (len(values), 1, 1)


def test_evaluation_keeps_all_and_refuses_what_is_too_long(tmp_path):
    short = [row for row in ROWS if row[1] != "2"]
    rows, lengths = rows_of(tmp_path, short, train=False)
    assert kept(rows, "value") == [([0],), ([1],), ([3],), ([4],)] and lengths[1] == 2
    want = (
        r"^toy: row 3: 11 tokens, data\.max_length is 8; raise it \(the model has 64 positions\), "
        r"or set data\.truncate$"
    )
    with pytest.raises(ValueError, match=want):  # of the second corpus, in its first chunk
        rows_of(tmp_path, short, ROWS, train=False)


@pytest.mark.parametrize("train", [True, False])
def test_a_wrong_label_is_told_with_its_row(tmp_path, train):
    rows = [("a", "0")] * 4 + [("a", "good")]
    with pytest.raises(ValueError, match=r"^toy: row 5: invalid literal"):
        rows_of(tmp_path, rows, train=train)
    assert not any(tmp_path.iterdir())  # nothing half done is left


TWO = [("a", "b c", "0"), ("a", "", "1"), ("", "b", "2"), ("a b c", "a b c", "3")]


def test_two_texts_share_a_row(tmp_path):
    rows, lengths = rows_of(tmp_path, TWO)
    assert kept(rows, "value") == [([0],)] and lengths.tolist() == [6]
    (part,) = rows.parts
    assert (part.empty, part.too_long) == (2, 1)
    rows, lengths = rows_of(tmp_path, TWO, length=9)
    assert kept(rows, "value") == [([0],), ([3],)] and lengths.tolist() == [6, 9]
    rows, lengths = rows_of(tmp_path, TWO, length=7, truncate=True)
    sides = [rows.columns[name].lengths.tolist() for name in ("first", "second")]
    assert sides == [[1, 2], [2, 2]]  # 3 + 3 in a room of 4


def test_lengths_are_those_of_the_framed_rows(tmp_path):
    rows, lengths = rows_of(tmp_path, TWO, length=20, train=False)
    for n, length in enumerate(lengths):
        first, second = (rows.columns[name][n].tolist() for name in ("first", "second"))
        assert len(BERT.pair(first, second or None)[0]) == length


@FEW
@forall(st.integers(0, 30), st.integers(0, 30), st.integers(0, 40))
def test_the_longer_text_is_cut_at_its_end(one, two, room):
    first, second = list(range(one)), list(range(100, 100 + two))
    short = examples.cut(first, second, room)
    for whole, part in zip((first, second), short, strict=True):
        assert part == whole[: len(part)]
    sizes = [len(part) for part in short]
    assert sum(sizes) == min(one + two, room)
    # Nothing is taken off one as long as the other has more.
    for n, (whole, size) in enumerate(zip((one, two), sizes, strict=True)):
        assert size == whole or size + 1 >= sizes[1 - n]


def test_text_is_kept_as_it_was_written():
    said = ["a\tb", "", "ü 🙂"]
    column = examples.Ragged.of([text.encode() for text in said], np.uint8)
    assert [examples.text_of(column, n) for n in range(3)] == said
