"""Permutation language modelling: who is predicted, and who sees whom."""

import dataclasses
import itertools
from math import sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tfx import models
from tfx.data import examples as data
from tfx.data import vocabulary
from tfx.data.sources import Corpus
from tfx.models import xlnet
from tfx.nn.linear import Product
from tfx.objectives import permutation_lm
from tfx.objectives.inputs import Special

SPECIAL = Special(cls=3, sep=4)
STARTS = np.ones(600, bool)


def example(seed=0, sizes=(256, 120, 133), starts=STARTS, **settings):
    reuse, first, second = np.split(np.arange(10, 10 + sum(sizes)), np.cumsum(sizes)[:2])
    rng = np.random.default_rng(seed)
    made = permutation_lm.make_example(
        reuse, first, second, rng, special=SPECIAL, starts=starts, **settings
    )
    return made | {"at": made["target_mapping"].argmax(-1)}


def test_the_row_of_the_paper():
    made = example(sizes=(2, 2, 3), predictions=2)
    assert made["ids"].tolist() == [10, 11, 12, 13, 4, 14, 15, 16, 4, 3]
    assert made["types"].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert {key: made[key].shape for key in ("perm_mask", "target_mapping", "targets")} == {
        "perm_mask": (10, 10),
        "target_mapping": (2, 10),
        "targets": (2,),
    }


@pytest.mark.parametrize("seed", range(20))
def test_85_of_512_are_predicted_half_in_each_half(seed):
    made = example(seed)
    assert len(made["ids"]) == 512 and len(made["targets"]) == len({*made["at"]}) == 85
    assert (made["at"] < 256).sum() == 43
    assert (made["targets"] == made["ids"][made["at"]]).all() and made["weights"].all()
    assert (made["target_mapping"].sum(-1) == 1).all()
    assert not np.isin(made["targets"], [3, 4]).any()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sizes, count", [((256, 120, 133), 85), ((4, 3, 1), 4), ((3, 0, 2), 1)])
def test_who_sees_whom(seed, sizes, count):
    made = example(seed, sizes, predictions=count)
    ids, sees = made["ids"], ~made["perm_mask"]
    place = np.arange(len(ids))
    late = place >= sizes[0]
    target, functional = np.isin(place, made["at"]), np.isin(ids, [3, 4])
    plain, ranked = ~target & ~functional, target | functional
    # Across the halves: the first never sees the second, the second all of the first.
    assert not sees[~late][:, late].any() and sees[late][:, ~late].all()
    for half in (late, ~late):
        # What is not predicted is seen by all of its half and sees nothing else of it.
        assert sees[half][:, half & plain].all()
        assert not sees[half & plain][:, half & ranked].any()
        # The rest are in one order, in which each sees those before it.
        order = sees[half & ranked][:, half & ranked]
        np.fill_diagonal(order, False)
        assert sorted(order.sum(-1)) == list(range(len(order)))
        assert not (order & order.T).any()
    assert not sees[target, target].any() and sees[~target & functional][:, functional].any()
    assert np.diagonal(sees)[functional].all() and np.diagonal(sees)[plain].all()


def test_all_orders_are_equally_likely():
    """Of 3 targets in a half each of 6 orders: binomial counts, within 4.5 sigma."""
    rng, seen, trials = np.random.default_rng(0), {}, 3000
    for _ in range(trials):
        hidden = permutation_lm.hidden(np.ones(3, bool), np.zeros(3, bool), rng)
        order = tuple((~hidden).sum(-1).tolist())
        seen[order] = seen.get(order, 0) + 1
    assert len(seen) == 6
    assert all(abs(n - trials / 6) < 4.5 * sqrt(trials * 5 / 36) for n in seen.values())


def runs(chosen):
    """Starts and lengths of what is chosen side by side."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], chosen.astype(int), [0]])))
    return edges[::2], edges[1::2] - edges[::2]


def test_spans_of_one_to_five_in_a_context_of_six_times_that():
    rng, every = np.random.default_rng(0), np.ones(100_000, bool)
    starts, lengths = runs(permutation_lm.choose(every, every, 10_000, rng))
    assert lengths.sum() == 10_000
    n, trials = np.arange(1, 6), len(lengths)
    chances = 1 / n / (1 / n).sum()
    for size, chance in zip(n, chances, strict=True):
        sigma = sqrt(trials * chance * (1 - chance))
        assert abs((lengths == size).sum() - trials * chance) < 4 * sigma
    # A span and its context are n + 6 n tokens; the share is a seventh, before single ones are
    # added to make it a sixth. The last context may reach beyond the last span.
    assert abs(10_000 / (starts[-1] + lengths[-1]) - 1 / 7) < 0.002


def test_spans_begin_where_a_word_does():
    rng, every = np.random.default_rng(0), np.ones(10_000, bool)
    begins = np.arange(10_000) % 10 == 0
    for _ in range(20):
        starts, lengths = runs(permutation_lm.choose(every, begins, 300, rng))
        assert begins[starts].all() and lengths.sum() == 300


def test_the_number_is_exact_whatever_the_words():
    rng = np.random.default_rng(0)
    for count in (0, 1, 7, 20):
        allowed = np.arange(25) % 5 > 0
        for begins in (np.zeros(25, bool), ~allowed, np.ones(25, bool)):
            chosen = permutation_lm.choose(allowed, begins, count, rng)
            assert chosen.sum() == count and not chosen[~allowed].any()
    with pytest.raises(ValueError, match="21 tokens to predict, of 20"):
        permutation_lm.choose(allowed, begins, 21, rng)


def test_the_generator_alone_decides():
    one, same, other = (example(seed) for seed in (3, 3, 4))
    assert all((one[key] == same[key]).all() for key in one)
    assert not (one["perm_mask"] == other["perm_mask"]).all()


def test_segments_fill_the_row():
    rng = np.random.default_rng(0)
    bounds = np.array([0, 3, 10, 11, 30, 31, 39, 60])
    stream, labels = np.arange(60), []
    for _ in range(1000):
        begin, length = int(rng.integers(40)), int(rng.integers(2, 20))
        first, second, label = permutation_lm.split(stream, bounds, begin, length, rng)
        assert len(first) + len(second) == length and len(first) and len(second)
        assert first.tolist() == [*range(begin, begin + len(first))]
        assert second.tolist() == [*range(second[0], second[0] + len(second))]
        assert second[0] in bounds
        cuts = bounds[(bounds > begin) & (bounds < begin + length)]
        if label:  # B begins where A ended, of which the end may be taken off
            assert second[0] in cuts and second[0] >= first[-1] + 1
        labels += [label] * (len(cuts) > 0)
        assert len(cuts) or not label
    assert abs(sum(labels) - len(labels) / 2) < 4 * sqrt(len(labels) / 4)


def test_a_stream_that_ends_is_told():
    bounds, rng = np.array([0, 10]), np.random.default_rng(0)
    first, second, label = permutation_lm.split(np.arange(10), bounds, 4, 5, rng)
    assert first[0] == 4 and len(first) + len(second) == 5 and label == 0
    with pytest.raises(ValueError, match=r"more than 5 tokens.* has 5"):
        permutation_lm.split(np.arange(10), bounds, 5, 5, rng)


def test_targets_alone_count_and_learn():
    rng = np.random.default_rng(0)
    states_BPD, table_VD = (rng.normal(size=n).astype(np.float32) for n in ((2, 3, 4), (7, 4)))
    batch = {
        "targets": np.array([[1, 2, 3], [4, 0, 0]]),
        "weights": np.float32([[1, 1, 1], [1, 0, 0]]),
    }

    def run(states):
        outputs = {"logits": Product(states, jnp.asarray(table_VD))}
        return permutation_lm.loss(lambda *_, **__: outputs, None, batch, None, True)

    total, weight, sums = run(jnp.asarray(states_BPD))
    logits = states_BPD @ table_VD.T
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    want = -log[[0, 0, 0, 1], [0, 1, 2, 0], [1, 2, 3, 4]].sum()
    np.testing.assert_allclose([total, sums["nll"], weight], [want, want, 4], rtol=1e-6)
    gradient = jax.grad(lambda states: run(states)[0])(jnp.asarray(states_BPD))
    assert (np.abs(gradient).sum(-1) > 0).tolist() == [[1, 1, 1], [1, 0, 0]]


# Examples of a data set.

LINES = [" ".join("abcdefghijkl"[n : n + 5]) for n in range(8)] * 4
XLNET = vocabulary.learn("xlnet", 30, LINES)


def of_data(folder, *texts, train=True, length=32, epoch=0, **settings):
    corpora = [
        Corpus("toy", lambda lines=lines: iter([(lines,)]), 1.0, "", repr(lines)) for lines in texts
    ]
    given = data.Given(corpora, XLNET, folder, train, length, 64)
    found = permutation_lm.examples(permutation_lm.Config(**settings), given)
    numbers = np.arange(len(found.lengths[0]))
    return found, found.make(numbers, data.Draw(0, epoch, 0, numbers, (length,)))


@pytest.mark.parametrize("settings", [{}, {"reuse": 10}, {"predictions": 3}])
@pytest.mark.parametrize("train", [True, False])
def test_rows_are_full_and_each_goes_on_where_the_last_one_kept_to(tmp_path, train, settings):
    stream = [id for ids in XLNET.encode(LINES) for id in ids]
    found, made = of_data(tmp_path, LINES, train=train, **settings)
    reuse, count = settings.get("reuse", 16), settings.get("predictions", 32 // 6)
    assert (found.lengths[0] == 32).all() and found.sizes(32)["P"] == count
    starts = []
    for row in made:
        assert {key: x.shape for key, x in row.items() if key in found.axes} == {
            **dict.fromkeys(("ids", "mask", "types"), (32,)),
            **dict.fromkeys(("targets", "weights"), (count,)),
            "perm_mask": (32, 32),
            "target_mapping": (count, 32),
        }
        # The reused text goes on in segment A.
        kept = row["ids"][: reuse + 1].tolist()
        starts.append({n for n in range(len(stream)) if stream[n : n + reuse + 1] == kept})
    assert all(starts) and len(made) > 2
    for one, other in itertools.pairwise(starts):
        assert any(start + reuse in other for start in one)


def test_what_is_before_a_row_is_read_first(tmp_path):
    stream = [id for ids in XLNET.encode(LINES) for id in ids]
    found, made = of_data(tmp_path, LINES, memory=7, reuse=10)
    plain, _ = of_data(tmp_path, LINES, reuse=10)
    assert found.fingerprint != plain.fingerprint and found.sizes(32)["M"] == 7
    assert (found.lengths[0] == 32).all() and found.axes["before"] == "M"
    for row in made:
        both = [*row["before"].tolist(), *row["ids"][:11].tolist()]  # and on in segment A
        assert any(stream[n : n + 18] == both for n in range(len(stream)))


def test_memory_is_as_if_row_and_memory_were_one_text(tmp_path):
    config = xlnet.Config(vocab=30, width=16, depth=2, heads=2, mlp=32, dropout=0.0)
    model = models.build(dataclasses.replace(config, attention_dropout=0.0, mlp_dropout=0.0))
    rng = np.random.default_rng(0)
    draw = lambda like: rng.normal(size=like.shape).astype(np.float32) / 4
    params = jax.tree.map(draw, nn.unbox(models.shapes(model)))

    @jax.jit
    def run(batch):
        apply = lambda params, batch, **_: model.apply({"params": params}, batch, method="predict")
        return permutation_lm.loss(apply, params, batch, None, True)[0]

    _, made = of_data(tmp_path, LINES, memory=7)
    batch = {key: np.stack([row[key] for row in made]) for key in made[0]}
    short = run(batch)
    before = batch.pop("before")
    padded = lambda x, *axes: np.pad(x, [(7 * (axis in axes), 0) for axis in range(x.ndim)])
    batch |= {"ids": np.concatenate([before, batch["ids"]], 1), "types": padded(batch["types"], 1)}
    batch["mask"] = np.ones_like(batch["ids"])
    batch["perm_mask"] = padded(batch["perm_mask"], 1, 2)
    batch["perm_mask"][:, :7, 7:] = True
    batch["target_mapping"] = padded(batch["target_mapping"], 2)
    np.testing.assert_allclose(short, run(batch), rtol=1e-5)


def test_epochs_permute_anew_and_the_same_when_asked_again(tmp_path):
    one, again, other = (of_data(tmp_path, LINES, epoch=epoch)[1][0] for epoch in (0, 0, 1))
    assert all((one[key] == again[key]).all() for key in one)
    assert (one["perm_mask"] != other["perm_mask"]).any()


def test_both_segments_are_of_the_corpus_of_the_row(tmp_path):
    halves = ["a b a b b"] * 20, ["h i j i h"] * 20
    own = [{id for ids in XLNET.encode(lines) for id in ids} for lines in halves]
    special = {*XLNET.special.values()}
    for epoch in range(4):
        found, made = of_data(tmp_path, *halves, epoch=epoch)
        counts = [part.kept for part in found.parts]
        assert len(made) == sum(counts) and min(counts) > 1
        for number, row in enumerate(made):
            assert {*row["ids"].tolist()} - special <= own[number >= counts[0]]


def test_a_row_without_room_for_two_segments_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"objective\.reuse=28 leaves 1 tokens of data\.max_len"):
        of_data(tmp_path, LINES, reuse=28)
    with pytest.raises(ValueError, match="does not fill one block of"):
        of_data(tmp_path, LINES[:3])
