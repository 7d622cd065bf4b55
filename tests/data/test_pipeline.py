"""tfx/data/pipeline.py: batch = f(seed, step), every pair once, whoever reads it."""

import dataclasses
import hashlib
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfx.data import pipeline, tokenizer
from tfx.data.cache import Pairs, Part, Ragged, encode_corpora
from tfx.data.pipeline import Batches, prefetch
from tfx.data.sources import Corpus
from tfx.objectives import seq2seq

EOS, BOS = 1, 3
OURS = tokenizer.Tokenizer("bytes", tokenizer.Bytes(), tokenizer.Bytes())
FEW = settings(max_examples=25, deadline=None)
FOLDER = tempfile.TemporaryDirectory()


def toy(lengths, weights=None):
    """Pairs whose tokens are 10 + the number of the pair, so that each token tells its pair.

    lengths: (source, target) of every pair; weights: (pairs, weight) of every corpus.
    """
    side = lambda k: Ragged.of([[10 + i] * n[k] for i, n in enumerate(lengths)])
    weights = weights or [(len(lengths), 1.0)]
    parts = tuple(Part("toy", weight, pairs, 0, 0) for pairs, weight in weights)
    name = hashlib.sha256(repr((lengths, weights)).encode()).hexdigest()
    return Pairs(side(0), side(1), parts, name, Path(FOLDER.name))


def random_lengths(n, longest=30, seed=0):
    draw = np.random.default_rng(seed)
    source = np.clip(draw.poisson(9, n), 1, longest)
    return list(zip(source, np.clip(source + draw.integers(-3, 4, n), 1, longest), strict=True))


def whole(pairs, **settings):
    settings = dict(tokens=96, max_length=32, seed=5) | settings
    return Batches(seq2seq.of_pairs(pairs, OURS), **settings)


def spans(batch):
    """(pair, source tokens, target tokens) of all pairs of a batch, checking its layout."""
    found = []
    for row in range(len(batch["source"])):
        source, target = batch["source"][row], batch["target_out"][row]
        source_segments = batch.get("source_segments", batch["source"] > 0)[row]
        target_segments = batch.get("target_segments", batch["target_out"] > 0)[row]
        assert np.array_equal(target_segments > 0, batch["weights"][row] == 1)
        assert np.array_equal(target_segments == 0, batch["weights"][row] == 0)
        for segment in range(1, max(source_segments.max(), target_segments.max()) + 1):
            at, to = np.flatnonzero(source_segments == segment), target_segments == segment
            assert (np.diff(at) == 1).all() and (np.diff(np.flatnonzero(to)) == 1).all()
            ids, out, fed = source[at], target[to], batch["target_in"][row][to]
            assert ids[-1] == out[-1] == EOS and fed[0] == BOS
            assert np.array_equal(fed[1:], out[:-1])
            [pair] = {*ids[:-1].tolist(), *out[:-1].tolist()}
            found.append((pair - 10, len(ids) - 1, len(out) - 1))
        assert not source[source_segments == 0].any() and not target[target_segments == 0].any()
    return found


def epoch_of(batches, number=0):
    steps = batches.steps_per_epoch
    return [batches.batch(step) for step in range(number * steps, (number + 1) * steps)]


KINDS = pytest.mark.parametrize("kind", ["bucket", "pack"])


@KINDS
@FEW
@given(
    lengths=st.lists(st.tuples(st.integers(1, 15), st.integers(1, 15)), min_size=1, max_size=60),
    tokens=st.integers(1, 100),
    multiple=st.sampled_from([1, 2, 4]),
    number=st.integers(0, 2),
)
def test_an_epoch_has_every_pair_once(kind, lengths, tokens, multiple, number):
    batches = whole(toy(lengths), kind=kind, tokens=tokens, multiple=multiple, max_length=16)
    seen = [span for batch in epoch_of(batches, number) for span in spans(batch)]
    assert sorted(seen) == [(i, *n) for i, n in enumerate(lengths)]


@KINDS
def test_weights_come_out_over_epochs_of_constant_size(kind):
    pairs = toy(random_lengths(60), [(30, 1.0), (20, 2.5), (10, 0.25)])
    batches = whole(pairs, kind=kind, max_length=64)
    seen = Counter(
        pair
        for number in range(4)
        for batch in epoch_of(batches, number)
        for pair, *_ in spans(batch)
    )
    assert batches.examples_per_epoch == round(30 + 50 + 2.5)
    bought = [
        sum(seen[pair] for pair in part) for part in (range(30), range(30, 50), range(50, 60))
    ]
    assert bought[0] == 30 * 4
    if kind == "bucket":
        assert bought == [120, 200, 10]
        assert {seen[pair] for pair in range(30, 50)} == {10} and {seen[50], seen[59]} == {1}
    else:  # whole rows take turns: after 4 epochs each row has had its share
        assert all(8 <= seen[pair] <= 12 for pair in range(30, 50))
        assert all(seen[pair] <= 4 for pair in range(50, 60))


@KINDS
def test_packed_or_not_a_share_covers_everything_in_time(kind):
    batches = whole(toy(random_lengths(50), [(50, 0.25)]), kind=kind, tokens=64)
    seen = Counter(
        pair
        for number in range(4)
        for batch in epoch_of(batches, number)
        for pair, *_ in spans(batch)
    )
    assert set(seen) == set(range(50)) and set(seen.values()) == {1}


@KINDS
def test_a_batch_depends_on_seed_and_step_alone(kind):
    pairs = toy(random_lengths(80))
    walk, jump, other = (whole(pairs, kind=kind, seed=seed) for seed in (5, 5, 6))
    steps = 2 * walk.steps_per_epoch + 2
    straight = [walk.batch(step) for step in range(steps)]
    same = lambda a, b: all(np.array_equal(a[key], b[key]) for key in a.keys() | b.keys())
    for step in reversed(range(steps)):
        assert same(straight[step], jump.batch(step))
    assert not all(same(straight[step], other.batch(step)) for step in range(steps))
    assert not all(
        same(straight[step], straight[step + walk.steps_per_epoch])
        for step in range(walk.steps_per_epoch)
    )


@KINDS
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_rows_of_all_hosts_make_the_whole_batch(kind, hosts):
    batches = whole(toy(random_lengths(70)), kind=kind, multiple=4)
    for step in range(batches.steps_per_epoch):
        batch = batches.batch(step)
        share = len(batch["source"]) // hosts
        parts = [batches.batch(step, slice(k * share, (k + 1) * share)) for k in range(hosts)]
        for key, array in batch.items():
            assert np.array_equal(np.concatenate([part[key] for part in parts]), array)


@pytest.mark.parametrize("kind", ["bucket", "pack"])
@pytest.mark.parametrize("multiple, parts", [(1, 8), (8, 1), (8, 4), (6, 4)])
def test_a_plan_goes_on_pair_for_pair_on_other_devices(kind, multiple, parts):
    pairs = toy(random_lengths(150))
    planned, other = (whole(pairs, kind=kind, multiple=multiple, parts=n) for n in (1, parts))
    assert planned.steps_per_epoch == other.steps_per_epoch
    for step in range(2 * planned.steps_per_epoch):
        plain, filled = planned.batch(step), other.batch(step)
        rows = len(plain["source"])
        assert planned.rows(step) == rows
        assert other.rows(step) == len(filled["source"]) == -(-rows // parts) * parts
        for key in plain:
            np.testing.assert_array_equal(plain[key], filled[key][:rows])
            assert not filled[key][rows:].any()


@pytest.mark.parametrize("shapes, multiple", [(1, 1), (3, 2), (5, 8)])
def test_shapes_are_few_and_within_the_budget(shapes, multiple):
    batches = whole(toy(random_lengths(200)), shapes=shapes, multiple=multiple)
    made = {(*batch["source"].shape, batch["target_in"].shape[1]) for batch in epoch_of(batches)}
    assert made == set(batches.shapes) and len(made) <= shapes
    for rows, *sides in made:
        assert rows % multiple == 0 and max(sides) <= 32
        assert rows * max(sides) <= 96 or rows == multiple


@pytest.mark.parametrize("train", [True, False])
def test_a_side_is_as_long_as_what_is_in_it(train):
    """Summaries are shorter than what they sum up, and translations may be longer."""
    lengths = [(source, source // 4) for source in range(1, 31)] + [(2, 20), (3, 28)]
    batches = whole(toy(lengths), shapes=4, train=train)
    found = {}
    for batch in epoch_of(batches):
        sides = [batch[key] for key in ("source", "target_out")]
        longest = [int((side > 0).sum(1).max()) for side in sides]
        shape = (*sides[0].shape, sides[1].shape[1])
        found[shape] = np.maximum(found.get(shape, 0), longest)
    assert found.keys() == set(batches.shapes)
    for (_, *sides), longest in found.items():
        assert sides == [min(-(-n // 4) * 4, 32) for n in longest.tolist()]


def test_packing_has_one_shape():
    batches = whole(toy(random_lengths(200)), kind="pack", max_length=48, multiple=2)
    assert batches.shapes == [(2, 48, 48)]
    assert {batch["source"].shape for batch in epoch_of(batches)} == {(2, 48)}


@KINDS
@pytest.mark.parametrize("weights", [None, [(50, 2.0), (70, 1.0)]])
def test_the_padding_told_is_the_padding_made(kind, weights):
    batches = whole(toy(random_lengths(120), weights), kind=kind)
    made = epoch_of(batches)
    tokens = sum((batch[key] > 0).sum() for batch in made for key in ("source", "target_out"))
    cells = sum(2 * batch["source"].size for batch in made)
    assert batches.padding == pytest.approx(1 - tokens / cells)
    assert batches.tokens_per_epoch == sum(batch["weights"].sum() for batch in made)
    assert batches.examples_per_epoch == sum(len(spans(batch)) for batch in made)


def test_types():
    for kind in ("bucket", "pack"):
        batch = whole(toy(random_lengths(9)), kind=kind).batch(0)
        assert {key: value.dtype for key, value in batch.items() if value.dtype != np.int32} == {
            "weights": np.float32
        }


def test_a_filler_row_weighs_nothing():
    batches = whole(toy([(3, 3)] * 5), tokens=16, multiple=4)
    first, second = epoch_of(batches)
    assert sorted(
        [(first["weights"].sum(1) == 0).sum(), (second["weights"].sum(1) == 0).sum()]
    ) == [0, 3]
    for batch in (first, second):
        filler = batch["weights"].sum(1) == 0
        assert not any(batch[key][filler].any() for key in batch)


def test_packed_positions_restart_with_each_pair():
    batches = whole(toy(random_lengths(60)), kind="pack", max_length=48)
    for batch in epoch_of(batches):
        for side in ("source", "target"):
            segments, positions = batch[f"{side}_segments"], batch[f"{side}_positions"]
            for row, place in zip(segments, positions, strict=True):
                kept = row > 0
                assert kept[: kept.sum()].all() and not place[~kept].any()
                starts = np.flatnonzero(np.diff(row[kept], prepend=0))
                assert np.diff(row[kept], prepend=0).max() == 1 and not place[starts].any()
                inside = np.setdiff1d(np.arange(kept.sum()), starts)
                assert (place[inside] == place[inside - 1] + 1).all()
        assert batch["source_segments"].max() > 1


def test_a_packing_is_kept_on_disk(monkeypatch):
    pairs = toy(random_lengths(61), [(61, 1.5)])
    first = whole(pairs, kind="pack")
    monkeypatch.setattr(pipeline.plan, "pack", None)
    again = whole(pairs, kind="pack")
    for step in range(2 * first.steps_per_epoch):
        assert np.array_equal(first.batch(step)["source"], again.batch(step)["source"])


def test_too_long_a_pair_is_not_cut():
    with pytest.raises(ValueError, match=r"a side of 12 tokens is above data.max_length=8"):
        whole(toy([(3, 3), (2, 11)]), max_length=8)
    examples = seq2seq.of_pairs(toy([(3, 3)]), OURS)
    longer = dataclasses.replace(
        examples, make=lambda *_: [dict.fromkeys(examples.axes, np.ones(9, np.int32))]
    )
    with pytest.raises(ValueError, match="an example has 9 tokens, its row has 4"):
        Batches(longer, tokens=8).batch(0)


# ---- evaluation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shapes", [1, 4, [(12, 8, 8), (6, 16, 16)]], ids=str)
def test_evaluation_says_which_pair_each_row_is(shapes):
    lengths = [(0, 0), (0, 3), (5, 0), (100, 2), *random_lengths(40), (3, 70)]
    batches = whole(toy(lengths, [(20, 3.0), (25, 0.5)]), train=False, shapes=shapes)
    order = []
    for batch in epoch_of(batches):
        for row, index in enumerate(batch["index"].tolist()):
            tokens = [int((batch[key][row] > 0).sum()) for key in ("source", "target_out")]
            assert batch["weights"][row].sum() == tokens[1]
            if index < 0:
                assert tokens == [0, 0]
            else:
                assert tokens == [n + 1 for n in lengths[index]]
                assert {*batch["source"][row]} <= {0, EOS, 10 + index}
                order.append(index)
    assert sorted(order) == list(range(len(lengths)))
    longest = [max(lengths[index]) for index in order]
    assert longest == sorted(longest)
    if shapes == 1:
        assert batches.shapes == [(1, 104, 72)]
    if isinstance(shapes, list):
        assert batches.shapes == [*shapes, (1, 128, 128)]


def test_evaluation_compiles_nothing_new_when_shapes_are_given():
    train = whole(toy(random_lengths(100)))
    valid = whole(toy(random_lengths(30, longest=20, seed=1)), train=False, shapes=train.shapes)
    assert set(valid.shapes) <= set(train.shapes)


@pytest.mark.parametrize("shapes", [3, [(12, 8, 8), (6, 16, 16)]], ids=str)
def test_evaluation_of_one_corpus_after_the_other_is_that_of_all(shapes):
    pairs = toy(random_lengths(40), [(7, 3.0), (33, 0.5)])
    every = whole(pairs, train=False, shapes=shapes)
    seen = []
    for number, (first, stop) in enumerate([(0, 7), (7, 40)]):
        alone = whole(pairs, train=False, shapes=shapes, corpus=number)
        assert set(alone.shapes) <= set(every.shapes), "nothing new to compile"
        assert alone.examples_per_epoch == stop - first
        rows = np.concatenate([batch["index"] for batch in epoch_of(alone)])
        seen += sorted(rows[rows >= 0].tolist())
        assert seen[first:] == list(range(first, stop))


@pytest.mark.parametrize("shapes", [1, [(12, 8, 8)]], ids=str)
def test_evaluation_rounds_no_row_up_beyond_the_positions_of_a_model(shapes):
    batches = whole(toy([(90, 2), (3, 3)]), train=False, shapes=shapes, positions=93)
    assert batches.shapes[-1][1:] == ((92, 4) if shapes == 1 else (93, 64))


def test_evaluation_is_the_same_every_time():
    batches = whole(toy(random_lengths(30)), train=False, kind="pack")
    one, two = epoch_of(batches, 0), epoch_of(batches, 3)
    for a, b in zip(one, two, strict=True):
        assert all(np.array_equal(a[key], b[key]) for key in a)


# ---- subword sampling ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("abcde"), 4)) for _ in range(30)]
    lines = [" ".join(draw.choice(words, draw.integers(1, 9))) for _ in range(120)]
    pairs = list(zip(lines, [line.upper() for line in lines], strict=True))
    chunks = lambda: iter([(lines, [target for _, target in pairs])])
    ids = tokenizer.build("bpe", 100, chunks())
    corpus = Corpus("toy", chunks, 1.0, "", "0" * 64)
    folder = tmp_path_factory.mktemp("cache")
    return (
        pairs,
        ids,
        encode_corpora([corpus], ids, folder, train=True, max_length=64, sampling=0.3),
    )


@KINDS
def test_sampling_draws_anew_but_every_pair_once(kind, sampled):
    lines, ids, pairs = sampled
    batches = whole(pairs, kind=kind, tokens=256, max_length=64)
    decode = lambda rows: ids.source.decode([row.tolist() for row in rows])
    drawn = []
    for number in range(2):
        epoch = []
        for batch in epoch_of(batches, number):
            for row, fed in zip(batch["source"], batch["target_out"], strict=True):
                cut = lambda row: np.split(row, np.flatnonzero(row == EOS) + 1)[:-1]
                epoch += zip(cut(row), cut(fed), strict=True)
        text = zip(*(decode(side) for side in zip(*epoch, strict=True)), strict=True)
        assert sorted(text) == sorted(lines)
        drawn.append({tuple(source.tolist()) for source, _ in epoch})
    assert len(drawn[0] & drawn[1]) < len(drawn[0]) / 2


@KINDS
def test_sampling_is_a_function_of_seed_step_and_row(kind, sampled):
    batches = [whole(sampled[2], kind=kind, tokens=256, max_length=64, multiple=2) for _ in "ab"]
    for step in (7, 0, 3):
        batch = batches[0].batch(step)
        half = len(batch["source"]) // 2
        parts = [batches[1].batch(step, rows) for rows in (slice(half, None), slice(half))]
        for key in batch:
            joined = np.concatenate([parts[1][key], parts[0][key]])
            assert np.array_equal(joined, batch[key])


def test_what_does_not_fit_as_drawn_is_segmented_plainly(sampled):
    *_, pairs = sampled
    longest = max(pairs.source.lengths.max(), pairs.target.lengths.max()) + 1
    batches = whole(pairs, tokens=256, max_length=int(longest))
    plain = {
        tuple(row) for row in map(np.ndarray.tolist, map(pairs.source.__getitem__, range(120)))
    }
    back = 0
    for batch in epoch_of(batches):
        assert batch["source"].shape[1] <= longest
        back += sum(tuple(row[: (row > 0).sum() - 1].tolist()) in plain for row in batch["source"])
    assert back > 0


# ---- prefetch ------------------------------------------------------------------------------------


def test_prefetch_runs_ahead_in_order():
    done = []
    ahead = prefetch(lambda step: done.append(step) or step * step, start=3, depth=2)
    assert next(ahead) == (3, 9)
    deadline = time.time() + 10
    while len(done) < 3 and time.time() < deadline:
        time.sleep(0.01)
    assert done == [3, 4, 5]
    assert [next(ahead) for _ in range(3)] == [(4, 16), (5, 25), (6, 36)]
    ahead.close()


def test_prefetch_raises_at_the_step_that_failed():
    def fn(step):
        if step == 2:
            raise ValueError("step two")
        return step

    ahead = prefetch(fn, start=0, depth=4)
    assert [next(ahead), next(ahead)] == [(0, 0), (1, 1)]
    with pytest.raises(ValueError, match="step two"):
        next(ahead)
    assert not alive()


def alive():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_a_closed_prefetch_leaves_no_thread():
    ahead = prefetch(lambda step: step, start=0)
    next(ahead)
    assert alive()
    ahead.close()
    assert not alive()


def test_a_prefetched_run_equals_the_plain_one():
    batches = whole(toy(random_lengths(40)))
    for step, batch in prefetch(batches.batch, 2):
        assert np.array_equal(batch["source"], batches.batch(step)["source"])
        if step == 8:
            break


@pytest.mark.parametrize("longest, shape", [(29, 30), (30, 30), (31, 32), (27, 28)])
def test_evaluation_rounds_up_to_the_longest_allowed_row_at_most(longest, shape):
    """A model has no more positions than that; what is longer is not its text."""
    made = whole(toy([(longest - 1, 3), (5, 5)]), train=False, max_length=30, shapes=1)
    assert made.shapes[0][1:] == (shape, 8)
