"""Span corruption: the paper's figure, its lengths, and that all ways of cutting are alike."""

from collections import Counter
from math import comb, sqrt

import numpy as np
import pytest

from tfx.data import examples as data
from tfx.data import vocabulary
from tfx.data.sources import Corpus
from tfx.objectives import span_corruption
from tfx.objectives.inputs import Special

SPECIAL, VOCAB = Special(pad=0, eos=1), 32100
TEXT = "Thank you for inviting me to your party last week"


def example(ids, seed=0, **settings):
    rng = np.random.default_rng(seed)
    return span_corruption.make_example(ids, rng, special=SPECIAL, vocab=VOCAB, **settings)


def test_the_figure_of_the_paper():
    """Figure 2: what is kept after the last span has a sentinel in the target too."""
    words = TEXT.split()
    noise = np.isin(words, ["for", "inviting", "last"])
    source, target = span_corruption.corrupt(np.arange(10), noise, 100)
    names = {99: "<X>", 98: "<Y>", 97: "<Z>"} | dict(enumerate(words))
    said = lambda ids: " ".join(names[int(i)] for i in ids)
    assert said(source) == "Thank you <X> me to your party <Y> week"
    assert said(target) == "<X> for inviting <Y> last <Z>"


@pytest.mark.parametrize(
    "inputs, raw, targets",
    [(64, 70, 14), (128, 141, 29), (256, 284, 58), (512, 568, 114), (1024, 1137, 229)],
)
def test_lengths_are_those_of_the_authors(inputs, raw, targets):
    assert span_corruption.raw_length(inputs) == (raw, targets)
    for seed in range(5):
        made = example(np.arange(2, 2 + raw), seed)
        assert len(made["source"]) == inputs
        assert len(made["target_out"]) == len(made["target_in"]) == targets


@pytest.mark.parametrize("inputs", [*range(3, 40), 777])
def test_no_longer_text_fits(inputs):
    raw, targets = span_corruption.raw_length(inputs)
    made = [example(np.arange(2, 2 + n)) for n in (raw, raw + 1)]
    assert len(made[0]["source"]) <= inputs < len(made[1]["source"])
    assert len(made[0]["target_out"]) == targets


@pytest.mark.parametrize("length", [2, 3, 10, 30, 100, 512])
@pytest.mark.parametrize("density, mean_span", [(0.15, 3.0), (0.5, 3.0), (0.9, 1.0), (0.15, 1.0)])
def test_source_and_target_together_are_the_text(length, density, mean_span):
    ids = np.arange(2, 2 + length)
    noise, spans = span_corruption.counts(length, density, mean_span)
    for seed in range(20):
        made = example(ids, seed, density=density, mean_span=mean_span)
        source, target = made["source"], made["target_out"]
        assert source[-1] == target[-1] == 1
        assert made["target_in"].tolist() == [0, *target[:-1].tolist()]
        sentinels = [VOCAB - 1 - n for n in range(spans)]
        assert [i for i in source if i > 9999] == [i for i in target if i > 9999] == sentinels
        assert source[0] < 9999 and target[0] == VOCAB - 1  # what is kept comes first
        assert len(target) == noise + spans + 1
        pieces = np.split(target[:-1], np.flatnonzero(target[:-1] > 9999))[1:]
        assert all(len(piece) > 1 for piece in pieces)
        spoken = {int(piece[0]): piece[1:].tolist() for piece in pieces}
        whole = [word for i in source[:-1] for word in spoken.get(int(i), [int(i)])]
        assert whole == ids.tolist()


def test_the_share_and_length_of_spans():
    assert span_corruption.counts(512) == (77, 26)
    assert span_corruption.counts(2) == (1, 1) and span_corruption.counts(30) == (4, 1)
    assert span_corruption.counts(10, 0.9, 1.0) == (9, 1)  # one token is kept, in one stretch


def test_all_segmentations_are_equally_likely():
    """C(6, 2) = 15 ways to cut 7 items into 3: each count is binomial, within 4.5 sigma."""
    rng, trials = np.random.default_rng(0), 6000
    seen = Counter(tuple(span_corruption.segmentation(7, 3, rng).tolist()) for _ in range(trials))
    ways = comb(6, 2)
    assert len(seen) == ways and all(sum(way) == 7 and min(way) > 0 for way in seen)
    sigma = sqrt(trials / ways * (1 - 1 / ways))
    assert all(abs(count - trials / ways) < 4.5 * sigma for count in seen.values())


def test_the_generator_alone_decides():
    ids = np.arange(2, 200)
    one, same, other = (example(ids, seed)["source"].tolist() for seed in (3, 3, 4))
    assert one == same != other


@pytest.mark.parametrize("ids", [[], [5]])
def test_a_text_of_one_token_is_refused(ids):
    with pytest.raises(ValueError, match="no span to cut out"):
        example(ids)
    with pytest.raises(ValueError, match="3 do"):
        span_corruption.raw_length(2)


def test_a_text_with_a_sentinel_of_its_own_is_refused():
    with pytest.raises(ValueError, match=f"id {VOCAB - 1} of the text is one of the 1 sentinels"):
        example([VOCAB - 1, 5, 6, 7])


# Examples of a data set.

LINES = [" ".join("abcdefghijkl"[n : n + 5]) for n in range(8)] * 12
T5 = vocabulary.learn("t5", 120, LINES)


def of_data(folder, lines=LINES, train=True, length=32, epoch=0, vocab=T5, **settings):
    corpus = Corpus("toy", lambda: iter([(lines,)]), 1.0, "", repr(lines))
    given = data.Given([corpus], vocab, folder, train, length, 512)
    found = span_corruption.examples(span_corruption.Config(**settings), given)
    numbers = np.arange(len(found.lengths[0]))
    return found, found.make(numbers, data.Draw(0, epoch, 0, numbers, (length,)))


def restored(example):
    """The text: each sentinel of the source replaced by what follows it in the target."""
    sentinels, spans, now = {*T5.sentinels}, {}, None
    for id in example["target_out"].tolist()[:-1]:
        now = id if id in sentinels else now
        spans.setdefault(now, []).extend([] if id in sentinels else [id])
    text = [spans.get(id, [id]) for id in example["source"].tolist()[:-1]]
    return [id for part in text for id in part]


@pytest.mark.parametrize("length", range(3, 60, 4))
def test_sources_fill_a_row_and_hold_the_text_with_their_targets(tmp_path, length):
    stream = [id for ids in T5.encode(LINES) for id in ids]
    for train in (True, False):
        found, made = of_data(tmp_path, train=train, length=length)
        sides = zip(made, *found.lengths, strict=True)
        assert all(
            (len(x["source"]), len(x["target_out"])) == (a, b) and max(a, b) <= length
            for x, a, b in sides
        )
        step, targets = span_corruption.raw_length(length)
        source = step - span_corruption.counts(step)[0] + span_corruption.counts(step)[1] + 1
        full = made if train else made[:-1]
        assert {(len(x["source"]), len(x["target_out"])) for x in full} <= {(source, targets)}
        text = [id for example in made for id in restored(example)]
        if train:
            assert any(stream[n : n + len(text)] == text for n in range(step))
        else:
            assert text == stream[: len(text)] and len(stream) - len(text) <= 1


def test_spans_are_cut_anew_in_every_epoch(tmp_path):
    one, again, other = (of_data(tmp_path, epoch=epoch)[1][0] for epoch in (0, 0, 1))
    assert all((one[key] == again[key]).all() for key in one)
    assert one["source"].tolist() != other["source"].tolist()


@pytest.mark.parametrize(
    "settings, match",
    [
        (
            dict(density=0.8),
            r"objective\.density = 0\.8: .* = 32 tokens has a target of 78",
        ),
        (dict(length=256, mean_span=1.0, density=0.45), r"has 115 spans, the tokenizer 100 sent"),
        (dict(lines=[*LINES, "a <extra_id_0> b"]), "the text spells <extra_id_0>, which stands"),
        (dict(vocab=vocabulary.learn("chars", 0, LINES)), "kind=chars has no sentinels at the end"),
        (dict(length=2), "holds no text, sentinel and end"),
    ],
)
def test_what_cannot_be_cut_out_is_refused_before_training(tmp_path, settings, match):
    with pytest.raises(ValueError, match=match) as raised:
        of_data(tmp_path, **settings)
    assert "\n" not in str(raised.value)
