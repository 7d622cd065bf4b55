"""Span corruption: the paper's figure, its lengths, and that all ways of cutting are alike."""

from collections import Counter
from math import comb, sqrt

import numpy as np
import pytest

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
