"""Masked language modelling: which tokens, how many, replaced by what; pairs of sentences."""

import itertools
from math import ceil, sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfx.data import examples as data
from tfx.data import vocabulary
from tfx.data.cache import Ragged
from tfx.data.sources import Corpus
from tfx.nn.linear import Product
from tfx.objectives import masked_lm
from tfx.objectives.inputs import Special, frame

SPECIAL = Special(pad=0, unk=1, cls=2, sep=3, mask=4)
VOCAB = 50
IDS = np.arange(10, 42)


def example(text=IDS, seed=0, second=None, **settings):
    inputs = frame("bert", SPECIAL, text, second)
    rng = np.random.default_rng(seed)
    return masked_lm.make_example(inputs, rng, special=SPECIAL, vocab=VOCAB, **settings)


def near(count, trials, chance, sigmas=4):
    """Whether a binomial count is within so many standard deviations of its mean."""
    return abs(count - trials * chance) <= sigmas * sqrt(trials * chance * (1 - chance))


@pytest.mark.parametrize("length", [0, 1, 2, 7, 17, 27, 125])
@pytest.mark.parametrize("most", [None, 0, 1, 10])
def test_bert_masks_a_fixed_share(length, most):
    """max(1, round(0.15 n)) of n tokens, those of the frame counted, within the budget."""
    made = example(np.full(length, 9), most=most)
    want = min(length, max(1, round(0.15 * (length + 2))), length if most is None else most)
    assert [len(made[key]) for key in ("masked", "targets", "weights")] == [want] * 3
    assert want <= masked_lm.most_masked(length + 2)


def test_roberta_masks_the_share_on_average():
    """int(0.15 n + U): of 34 tokens 5, and in one example of ten 6."""
    counts = [len(example(seed=seed, recipe="roberta")["masked"]) for seed in range(2000)]
    assert set(counts) == {5, 6} and near(counts.count(6), 2000, 0.1)
    assert max(counts) == masked_lm.most_masked(34) == ceil(0.15 * 34)


@pytest.mark.parametrize("recipe", masked_lm.RECIPES)
def test_eight_one_one_over_the_vocabulary(recipe):
    trials, replaced = 4000, []
    places = np.zeros(len(IDS) + 2, int)
    for seed in range(trials):
        made = example(seed=seed, recipe=recipe)
        original = np.concatenate([[2], IDS, [3]])
        at, now = made["masked"], made["ids"]
        assert (np.diff(at) > 0).all() and made["weights"].all()
        assert (made["targets"] == original[at]).all()
        untouched = np.delete(np.arange(len(now)), at)
        assert (now[untouched] == original[untouched]).all()
        places[at] += 1
        replaced += zip(now[at].tolist(), made["targets"].tolist(), strict=True)
    total = len(replaced)
    # BERT draws from all ids, [MASK] and the token itself among them; RoBERTa from the 45 others.
    pool = VOCAB if recipe == "bert" else VOCAB - len(SPECIAL.ids)
    masked = sum(now == 4 for now, _ in replaced)
    same = sum(now == was for now, was in replaced)
    drawn = [now for now, was in replaced if now not in (4, was)]
    assert near(masked, total, 0.8 + (0.1 / VOCAB if recipe == "bert" else 0))
    assert near(same, total, 0.1 + 0.1 / pool)
    ids = {"bert": {*range(VOCAB)} - {4}, "roberta": {*range(VOCAB)} - {*SPECIAL.ids}}[recipe]
    assert {*drawn} == ids
    assert all(near(drawn.count(i), total, 0.1 / pool, 4.5) for i in range(42, VOCAB))
    # Every token of the text is as likely as any other, those of the frame never.
    assert places[0] == places[-1] == 0
    assert all(near(n, trials, total / trials / len(IDS), 4.5) for n in places[1:-1])


def test_special_tokens_are_never_chosen():
    made = example([], second=[])
    assert not len(made["masked"]) and made["ids"].tolist() == [2, 3, 3]
    for seed in range(20):
        made = example([3, 7, 2, 0], seed)
        assert made["masked"].tolist() == [2] and made["targets"].tolist() == [7]
    assert masked_lm.choose(np.array([1, 1]), np.random.default_rng(0), SPECIAL, 9).size == 2


def test_the_input_is_left_as_it_was():
    inputs = frame("bert", SPECIAL, IDS)
    before = inputs["ids"].copy()
    rng = np.random.default_rng(0)
    masked_lm.make_example(inputs, rng, special=SPECIAL, vocab=VOCAB)
    assert (inputs["ids"] == before).all() and "masked" not in inputs


def test_the_generator_alone_decides():
    one, same, other = (example(seed=seed)["ids"].tolist() for seed in (3, 3, 4))
    assert one == same != other


def test_whole_words_and_none_beyond_the_budget():
    """Words of 1, 2 and 5 tokens; of a budget of 3 the long one never is a part."""
    starts = np.ones(VOCAB, bool)
    starts[40:] = False
    text = [10, 11, 40, 12, 41, 42, 43, 44]
    seen = set()
    for seed in range(100):
        made = example(text, seed, starts=starts, rate=0.3)  # of 10 tokens
        words = tuple(made["masked"].tolist())
        assert len(words) <= 3
        seen.add(words)
    assert seen == {(1, 2, 3)}  # both words that fit, for a word that does not is passed over
    alone = {tuple(example(text, n, starts=starts, rate=0.2)["masked"]) for n in range(100)}
    assert alone == {(1,), (2, 3)}
    whole = example(text, starts=starts, rate=0.8)["masked"].tolist()
    assert whole == [1, 2, 3, 4, 5, 6, 7, 8]


def test_what_follows_a_special_token_begins_a_word():
    starts = np.zeros(VOCAB, bool)
    picked = {
        tuple(example([40, 41], n, second=[42], starts=starts, rate=0.4)["masked"])
        for n in range(50)
    }
    assert picked == {(1, 2), (4,)}


def test_an_unknown_recipe_is_refused():
    with pytest.raises(ValueError, match=r"'electra'.*bert, roberta"):
        example(recipe="electra")


# The loss.

RANDOM = np.random.default_rng(0)
STATES_BTD, TABLE_VD = (RANDOM.normal(size=n).astype(np.float32) for n in ((3, 5, 4), (7, 4)))
BATCH = {
    "mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]),
    "masked": np.array([[1, 3], [2, 0], [0, 0]]),
    "targets": np.array([[4, 5], [6, 0], [0, 0]]),
    "weights": np.float32([[1, 1], [1, 0], [0, 0]]),
}
NSP_BL = np.float32([[0, 1], [3, 0], [9, 9]])


def run(states_BTD, nsp_BL=NSP_BL, batch=BATCH):
    outputs = {"logits": Product(states_BTD, jnp.asarray(TABLE_VD)), "nsp": nsp_BL}
    return masked_lm.loss(lambda *_, **__: outputs, None, batch, None, True)


def masked_nll():
    logits = STATES_BTD @ TABLE_VD.T
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.array([log[0, 1, 4], log[0, 3, 5], log[1, 2, 6]])


def test_masked_tokens_alone_count_and_learn():
    total, weight, sums = run(jnp.asarray(STATES_BTD))
    np.testing.assert_allclose([total, sums["nll"]], [masked_nll().sum()] * 2, rtol=1e-6)
    assert weight == 3 and set(sums) == {"nll"}
    gradient = jax.grad(lambda states: run(states)[0])(jnp.asarray(STATES_BTD))
    learns = np.abs(gradient).sum(-1) > 0
    assert learns.tolist() == [[0, 1, 0, 1, 0], [0, 0, 1, 0, 0], [0] * 5]


def test_only_masked_states_are_multiplied_with_the_vocabulary():
    program = str(jax.make_jaxpr(lambda states: run(states)[0])(jnp.asarray(STATES_BTD)))
    assert "f32[6,7]" in program and "f32[15,7]" not in program


def test_the_means_of_both_questions_are_added():
    batch = BATCH | {"nsp": np.array([1, 1, 0])}
    states = jnp.asarray(STATES_BTD)
    total, weight, sums = run(states, batch=batch)
    nsp = np.log([1 + np.exp(-1), 1 + np.exp(3)])
    np.testing.assert_allclose(total / weight, masked_nll().mean() + nsp.mean(), rtol=1e-6)
    assert weight == 3 and sums["rows"] == 2 and sums["nsp_accuracy"] == 1
    np.testing.assert_allclose(sums["nsp_nll"], nsp.sum(), rtol=1e-6)
    gradient = jax.grad(lambda nsp: run(states, nsp, batch)[0])(jnp.asarray(NSP_BL))
    assert gradient[:2].all() and not gradient[2].any()


# Pairs of sentences. A token is 100 * document + sentence, so a pair says where it is from.

DOCUMENTS = [[np.full(4, 100 * d + s) for s in range(12)] for d in range(5)]


def sentences(ids):
    return list(dict.fromkeys(int(i) for i in ids))


def test_next_sentences_follow_or_are_from_another_document():
    rng, labels = np.random.default_rng(0), []
    for trial in range(1000):
        index = trial % 5
        pairs = masked_lm.next_sentences(DOCUMENTS, index, rng, length=40)
        read = 0  # sentences of the document so far
        for first, second, label in pairs:
            assert len(first) and len(second) and len(first) + len(second) <= 37
            a, b = sentences(first), sentences(second)
            assert a == [*range(100 * index + read, 100 * index + read + len(a))]
            read += len(a)
            if label:  # what would have followed is put back
                assert b[0] // 100 != index and b == [*range(b[0], b[0] + len(b))]
            else:
                assert b == [*range(a[-1] + 1, a[-1] + 1 + len(b))]
                read += len(b)
        assert read == 12  # nothing is left out
        labels.append(pairs[0].label)
    # One in ten documents draws a length of 2 to 37; of these 2, 3 and 4 are one sentence, which
    # nothing follows. Later pairs are no fair sample: those from elsewhere leave room for more.
    assert near(sum(labels), 1000, 0.5 + 0.5 * 0.1 * 3 / 36)


def test_a_sentence_that_is_alone_is_followed_by_another_document():
    lonely = [[np.array([1])], [np.array([2])]]
    rng = np.random.default_rng(0)
    for index in (0, 1):
        ((first, second, label),) = masked_lm.next_sentences(lonely, index, rng, length=16)
        assert (first, second, label) == ([index + 1], [2 - index], 1)
    with pytest.raises(ValueError, match="but one"):
        masked_lm.next_sentences(lonely[:1], 0, rng, length=16)


def test_one_document_in_ten_makes_short_pairs():
    """Of a long document the first pair is full, unless one of the lengths 2 to 37 was drawn. From
    33 on these take 36 tokens or more, as full ones do: sentences have 4."""
    rng = np.random.default_rng(0)
    short = 0
    for _ in range(3000):
        pair = masked_lm.sentence_order(DOCUMENTS[0], rng, length=40)[0]
        short += len(pair.first) + len(pair.second) <= 32
    assert near(short, 3000, 0.1 * 31 / 36)


def test_sentence_order_swaps_half():
    rng, labels = np.random.default_rng(0), []
    for _ in range(400):
        for first, second, label in masked_lm.sentence_order(DOCUMENTS[1], rng, length=40):
            a, b = sentences(first), sentences(second)
            assert a[0] < b[0] if label == 0 else b[0] < a[0]
            labels.append(label)
    assert near(sum(labels), len(labels), 0.5)
    assert masked_lm.sentence_order([np.array([1])], rng, length=16) == []


@pytest.mark.parametrize(
    "first, second, length, sizes",
    [
        (3, 4, 7, (3, 4)),
        (10, 2, 7, (5, 2)),
        (2, 10, 7, (2, 5)),
        (9, 9, 7, (4, 3)),
        (1, 1, 1, (1, 0)),
    ],
)
def test_the_longer_is_cut_at_either_end(first, second, length, sizes):
    a, b = np.arange(first), np.arange(second)
    made = [masked_lm.truncate(a, b, length, np.random.default_rng(n)) for n in range(300)]
    assert {(len(x), len(y)) for x, y in made} == {sizes}
    for x, y in made:
        assert (np.diff(x) == 1).all() and (np.diff(y) == 1).all()
    fronts = sum(int(x[0]) if len(x) else 0 for x, _ in made)
    assert near(fronts, 300 * (first - sizes[0]), 0.5) if first > sizes[0] else fronts == 0


# Examples of a data set.

WORDS = [f"word{n}" for n in range(30)]
LINES = [" ".join(WORDS[n : n + 4]) for n in range(0, 24, 2)]
BERT, ROBERTA = (vocabulary.learn(*each, LINES) for each in (("bert", 36), ("roberta", 275)))


def given_of(folder, *texts, vocab=BERT, train=True, length=24):
    corpora = [
        Corpus("toy", lambda lines=lines: iter([(lines,)]), 1.0, "", repr(lines)) for lines in texts
    ]
    return data.Given(corpora, vocab, folder, train, length, 64)


def of_data(given, epoch=0, **settings):
    found = masked_lm.examples(masked_lm.Config(**settings), given)
    numbers = np.arange(len(found.lengths[0]))
    return found, found.make(numbers, data.Draw(0, epoch, 0, numbers, (given.max_length,)))


def whole(example):
    """The text before it was masked."""
    ids = example["ids"].copy()
    ids[example["masked"]] = example["targets"]
    return ids.tolist()


def test_static_masks_stay_and_dynamic_ones_do_not(tmp_path):
    given = given_of(tmp_path, LINES)
    for static in (True, False):
        one, other = (of_data(given, epoch, static=static)[1] for epoch in (0, 1))
        same = [a["ids"].tolist() == b["ids"].tolist() for a, b in zip(one, other, strict=True)]
        assert all(same) if static else not all(same)
    again = of_data(given, 1)[1]
    assert all((a["ids"] == b["ids"]).all() for a, b in zip(other, again, strict=True))


@pytest.mark.parametrize("vocab", [BERT, ROBERTA], ids=lambda v: v.family)
@pytest.mark.parametrize("settings", [{}, {"whole_words": True}, {"rate": 0.5}])
@pytest.mark.parametrize("recipe", ["bert", "roberta"])
def test_what_is_masked_fits_its_axis(tmp_path, vocab, settings, recipe):
    for train in (True, False):
        given = given_of(tmp_path, LINES, vocab=vocab, train=train)
        for epoch in range(3):
            found, made = of_data(given, epoch, recipe=recipe, **settings)
            for example, length in zip(made, found.lengths[0], strict=True):
                assert len(example["ids"]) == length <= 24
                assert len(example["masked"]) <= found.sizes(int(length))["P"]
                assert found.sizes(int(length))["P"] <= found.sizes(24)["P"]


def test_evaluation_reads_all_of_the_text(tmp_path):
    _, made = of_data(given_of(tmp_path, LINES, train=False))
    sep = BERT.special["sep"]
    stream = [sep] + [id for ids in BERT.encode(LINES) for id in (*ids, sep)]
    read = [id for example in made for id in whole(example)[1:-1]]
    assert read == stream[: len(read)] and len(stream) - len(read) <= 1


def test_words_are_masked_whole(tmp_path):
    _, made = of_data(given_of(tmp_path, LINES), whole_words=True, rate=0.4)
    for example in made:
        before, masked = np.array(whole(example)), {*example["masked"].tolist()}
        for at in range(2, len(before) - 1):  # the first may be cut off its word
            if not BERT.starts_word[before[at]] and before[at - 1] > 4:
                assert (at in masked) == (at - 1 in masked)


FILE = [*LINES[:5], "", "", *LINES[5:9], "  ", LINES[9], LINES[10]]


@pytest.mark.parametrize("vocab", [BERT, ROBERTA], ids=lambda v: v.family)
@pytest.mark.parametrize("pairs", ["next", "order"])
def test_pairs_of_a_files_documents(tmp_path, vocab, pairs):
    files, joined = (FILE, FILE[:6] + LINES), []  # two corpora: pairs are of one
    for lines in files:
        texts = [vocab.encode([line])[0] for line in lines]
        cuts = [-1, *(n for n, ids in enumerate(texts) if not ids), len(texts)]
        documents = [texts[a + 1 : b] for a, b in itertools.pairwise(cuts)]
        joined += [str([*itertools.chain(*document)])[1:-1] for document in documents]
    sep = vocab.special["sep"]
    labels = set()
    found, made = of_data(given_of(tmp_path, *files, vocab=vocab, length=60), pairs=pairs, copies=4)
    counts = [part.kept for part in found.parts]
    assert sum(counts) == len(made) and min(counts) > 4
    for example, length in zip(made, found.lengths[0], strict=True):
        ids = whole(example)
        assert len(ids) == length <= 60 and example["nsp"].dtype == np.int32
        end = ids.index(sep)
        first, second = ids[1:end], ids[end + 1 + (vocab is ROBERTA) : -1]
        assert first and second and sep not in second
        both = (second, first) if pairs == "order" and example["nsp"] else (first, second)
        follows = any(str(both[0] + both[1])[1:-1] in text for text in joined)
        if example["nsp"] == 0 or pairs == "order":
            assert follows or length == 60  # cut where it would be too long
        labels.add(int(example["nsp"]))
    assert labels == {0, 1}


def test_pairs_are_kept_and_read_again(tmp_path):
    given = given_of(tmp_path, FILE)
    one, made = of_data(given, pairs="order")
    kept = sorted(path.name for path in tmp_path.iterdir())
    again, same = of_data(given, pairs="order")
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
    assert one.fingerprint == again.fingerprint
    assert [whole(a) for a in made] == [whole(b) for b in same]
    more, _ = of_data(given, pairs="order", copies=2)
    other, _ = of_data(given._replace(seed=1), pairs="order")
    assert len({one.fingerprint, more.fingerprint, other.fingerprint}) == 3
    assert len(more.lengths[0]) > len(one.lengths[0])
    scored, _ = of_data(given._replace(train=False), pairs="order", copies=2)
    assert scored.fingerprint == one.fingerprint  # a score is of the text as it is


def test_blank_lines_end_documents_and_are_nothing_that_is_missing(tmp_path):
    for pairs in ("none", "order"):
        found, _ = of_data(given_of(tmp_path, FILE), pairs=pairs)
        assert [part.empty for part in found.parts] == [0]


def test_documents_are_the_runs_of_full_rows():
    rows = Ragged.of([[], [1], [2, 3], [], [], [4], []])
    listed = lambda found: [[ids.tolist() for ids in document] for document in found]
    assert listed(masked_lm.Documents(rows, 0, 7)) == [[[1], [2, 3]], [[4]]]
    assert listed(masked_lm.Documents(rows, 2, 6)) == [[[2, 3]], [[4]]]  # of one corpus of several
    assert listed(masked_lm.Documents(rows, 3, 5)) == []


@pytest.mark.parametrize(
    "texts, settings, match",
    [
        (LINES, dict(pairs="next"), "there is but one"),
        ([LINES[0], "", LINES[1]], dict(pairs="order"), "no document of two sentences"),
        (
            LINES,
            dict(copies=2),
            r"objective\.copies = 2: .* objective\.pairs = none; set",
        ),
    ],
)
def test_texts_without_pairs_are_refused(tmp_path, texts, settings, match):
    with pytest.raises(ValueError, match=match):
        of_data(given_of(tmp_path, texts), **settings)
