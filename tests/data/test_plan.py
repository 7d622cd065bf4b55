"""tfx/data/plan.py: optimal shapes, exact weights, whole epochs, packed rows."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfx.data import plan

FEW = settings(max_examples=40, deadline=None)


@FEW
@given(st.integers(0, 300), st.lists(st.integers(0, 2**40), max_size=3))
def test_shuffle_is_a_permutation_by_key(n, key):
    order = plan.shuffle(n, *key)
    assert sorted(order.tolist()) == list(range(n))
    assert np.array_equal(order, plan.shuffle(n, *key))
    if n > 20:
        assert not np.array_equal(order, plan.shuffle(n, *key, 1))
        assert not np.array_equal(order, np.arange(n))


def test_shuffle_has_no_favourite_place():
    orders = np.array([plan.shuffle(8, seed) for seed in range(4000)])
    counts = np.array([np.bincount(place, minlength=8) for place in orders.T])
    # Expected 500 in each cell, standard deviation 21: five of them are 105.
    assert abs(counts - 500).max() < 105


@pytest.mark.parametrize("number, step, up", [(1, 4, 4), (4, 4, 4), (5, 4, 8), (7, 1, 7)])
def test_round_up(number, step, up):
    assert plan.round_up(number, step) == up == plan.round_up(np.array([number]), step)[0]


def positions(lengths, ends, rows):
    """What buckets with these ends cost, by counting batches."""
    total, below = 0, 0
    for end in ends:
        inside = sum(below < length <= end for length in lengths)
        total += -(-inside // int(rows(end))) * int(rows(end)) * end
        below = end
    return total


@FEW
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=40),
    st.integers(1, 4),
    st.integers(1, 60),
    st.integers(1, 3),
)
def test_no_other_sizes_need_fewer_positions(lengths, most, tokens, multiple):
    rows = lambda length: np.maximum(tokens // length // multiple, 1) * multiple
    sizes = plan.best_sizes(np.array(lengths), rows, most)
    ends = [length for _, length in sizes]
    assert len(sizes) <= most and ends == sorted(set(ends)) and ends[-1] == max(lengths)
    assert all(height == rows(length) for height, length in sizes)
    others = sorted(set(lengths) - {max(lengths)})
    every = ((*chosen, max(lengths)) for k in range(most) for chosen in combinations(others, k))
    best = min(positions(lengths, ends, rows) for ends in every)
    assert positions(lengths, ends, rows) == best


@FEW
@given(
    st.lists(
        st.tuples(
            st.integers(0, 9),
            st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 3.75]),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_weights_come_out_exactly(corpora):
    mix = plan.mix(corpora, seed=3)
    expected = np.repeat([weight for _, weight in corpora], [pairs for pairs, _ in corpora])
    total = np.zeros(len(expected))
    for epoch in range(4):
        items = mix.items(epoch)
        assert mix.most() - len(mix.rotating) <= len(items) <= mix.most()
        times = np.bincount(items, minlength=len(total))
        assert (times >= np.floor(expected)).all() and (times <= np.ceil(expected)).all()
        total += times
    assert np.array_equal(total, 4 * expected)


def test_awkward_weights_lose_nobody():
    mix = plan.mix([(7, 0.1), (5, 1 / 3)], seed=0)
    total = sum(np.bincount(mix.items(epoch), minlength=12) for epoch in range(30))
    assert total.tolist() == [3] * 7 + [10] * 5


def test_a_share_takes_other_items_each_epoch():
    mix = plan.mix([(100, 0.25)], seed=0)
    first, second = set(mix.items(0).tolist()), set(mix.items(1).tolist())
    assert len(first) == len(second) == 25 and not first & second
    assert first != set(range(25))


def buckets_of(lengths, weight, tokens=24):
    mix = plan.mix([(len(lengths), weight)], seed=1)
    rows = lambda length: np.maximum(tokens // length, 1)
    sizes = plan.best_sizes(np.array(lengths), rows, 3)
    return plan.bucketed([np.array(lengths)], mix, sizes)


@FEW
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=40),
    st.sampled_from([0.5, 1.0, 2.25]),
    st.integers(0, 5),
)
def test_an_epoch_is_its_items_each_where_it_fits(lengths, weight, number):
    buckets = buckets_of(lengths, weight)
    epoch = plan.epoch(buckets, number, seed=1)
    assert len(epoch.bucket) == len(epoch.start) == sum(bucket.steps for bucket in buckets)
    seen = []
    for index, start in zip(epoch.bucket, epoch.start, strict=True):
        bucket = buckets[index]
        items = epoch.items[start : start + bucket.rows]
        assert len(items) == bucket.rows
        assert all((lengths[item],) <= bucket.lengths for item in items if item >= 0)
        seen += [item for item in items.tolist() if item >= 0]
    assert sorted(seen) == sorted(np.concatenate([b.mix.items(number) for b in buckets]).tolist())
    assert set(np.concatenate([b.mix.ever() for b in buckets])) == set(range(len(lengths)))


def test_epochs_differ_and_only_without_a_seed_are_in_order():
    buckets = buckets_of([1 + i % 12 for i in range(60)], 1.0)
    one, two, again = (plan.epoch(buckets, number, seed=1) for number in (0, 1, 0))
    assert not np.array_equal(one.items, two.items) and np.array_equal(one.items, again.items)
    assert not np.array_equal(one.start, two.start)
    plain = plan.epoch(buckets, 0, seed=None)
    assert (np.diff(plain.start) > 0).all() and (np.diff(plain.bucket) >= 0).all()


@FEW
@given(
    st.lists(st.tuples(st.integers(1, 16), st.integers(1, 16)), max_size=80),
    st.integers(16, 40),
    st.integers(0, 3),
)
def test_packed_rows_hold_every_pair_once_and_do_not_overflow(pairs, length, seed):
    source, target = np.array(pairs, int).reshape(-1, 2).T
    rows = plan.pack(source, target, length, seed)
    assert sorted(rows.flat.tolist()) == list(range(len(pairs)))
    assert (rows.lengths > 0).all()
    for row in range(len(rows)):
        assert source[rows[row]].sum() <= length and target[rows[row]].sum() <= length
    again = plan.pack(source, target, length, seed)
    assert np.array_equal(rows.flat, again.flat) and np.array_equal(rows.offsets, again.offsets)


@pytest.mark.parametrize("length", [64, 128, 256])
def test_rows_are_packed_tightly(length):
    draw = np.random.default_rng(0)
    source = 4 + draw.poisson(11, 6000)
    target = np.maximum(source + draw.integers(-3, 4, 6000), 2)
    rows = plan.pack(source, target, length, seed=0)
    filled = (source.sum() + target.sum()) / (2 * length * len(rows))
    assert filled > 0.93
