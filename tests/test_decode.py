"""Search against searches that are too simple to be wrong: all sequences, copied histories."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfx import decode
from tfx.choose import DEAD, NONE, OURS
from tfx.schema import Decode

BOS, EOS, PAD = OURS.bos, OURS.eos, 0
# What these tests cost is compiling: few functions, many inputs, no optimisation.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Toy:
    """A model whose next token depends on the whole history, and only through the cache.

    The cache holds the tokens themselves, one a slot. The logits are a function of the sum
    of one vector for each (token, position) that the mask lets through, so a slot that is
    wrong, too many or missing gives other logits. `bias_BV` is added from position
    `since_B` on.
    """

    def __init__(self, seed=0, sentences=8, vocab=8, length=12, width=6):
        rng = np.random.default_rng(seed)
        self.source_BD = rng.normal(size=(sentences, width)).astype(np.float32)
        self.embed_TVD = rng.normal(size=(length + 1, vocab, width)).astype(np.float32)
        self.out_DV = rng.normal(size=(width, vocab)).astype(np.float32)
        self.bias_BV = np.zeros((sentences, vocab), np.float32)
        self.since_B = np.zeros(sentences, np.int32)
        self.choices = [v for v in range(vocab) if v not in (PAD, BOS)]

    def logp(self, b, history):
        """log P(. | history) in numpy; the history is without BOS."""
        h_D = self.source_BD[b] + sum(self.embed_TVD[p, v] for p, v in enumerate((BOS, *history)))
        logits_V = 3 * np.sin(h_D.astype(np.float64) @ self.out_DV) + self.bias_BV[b]
        return logits_V - np.log(np.exp(logits_V).sum())

    def logp_of(self, b, tokens):
        return sum(self.logp(b, tokens[:i])[v] for i, v in enumerate(tokens))


def toy_model(source_BD, embed_TVD, out_DV, bias_BV, since_B):
    def step(tokens_BW, cache, t, mask_BWS, context):
        source_BD, bias_BV, since_B = context
        W, S = tokens_BW.shape[1], mask_BWS.shape[2]
        written = tokens_BW[..., None].astype(float)
        cache = jax.lax.dynamic_update_slice(cache, written, (0, t * W, 0))
        assert cache.shape[1] == S
        seen_BSD = embed_TVD[jnp.arange(S)[None] // W, cache[..., 0].astype(int)]
        h_BWD = jnp.einsum("BWS,BSD->BWD", mask_BWS.astype(float), seen_BSD) + source_BD[:, None]
        logits_BWV = 3 * jnp.sin(jnp.einsum("BWD,DV->BWV", h_BWD, out_DV))
        late_B11 = (t >= since_B)[:, None, None]
        return logits_BWV + jnp.where(late_B11, bias_BV[:, None], 0), cache

    context = (source_BD, bias_BV, since_B)
    return step, lambda slots: jnp.zeros((len(source_BD), slots, 1)), context


@functools.cache
def compiled(search, length, **how):
    def run(weights, limit_B, arrays):
        return search(*toy_model(**weights), limit_B, length, **arrays, **how)

    return jit(run)


def run(toy, search, limits, length=12, first=6, prefix=(), alpha=None, keys_B=None, **how):
    """Calls with equal `how` and shapes share one compiled function."""
    B = len(toy.source_BD)
    weights = {name: x for name, x in vars(toy).items() if name != "choices"}
    prefix_BP = np.full((B, 3), NONE, np.int32)
    for b, tokens in enumerate(prefix):
        prefix_BP[b, : len(tokens)] = tokens
    arrays = dict(prefix_BP=prefix_BP)
    if search is decode.beam_search:
        arrays["alpha"] = jnp.float32(alpha)
    if search is decode.sample:
        arrays["keys_B"] = jax.random.split(jax.random.key(0), B) if keys_B is None else keys_B
    limit_B = np.full(B, limits, np.int32)
    found = compiled(search, length, first=first, **how)(weights, limit_B, arrays)
    return decode.Hypotheses(*map(np.asarray, found))


def listed(found, b):
    """The hypotheses of a sentence as (score, tokens), with what must hold of any of them."""
    out = []
    for tokens, n, s in zip(*(x[b] for x in found), strict=True):
        assert (tokens[:n] != NONE).all() and (tokens[n:] == NONE).all()
        assert BOS not in tokens and EOS not in tokens[: max(n - 1, 0)]
        assert n == 0 or s > DEAD
        out.append((float(s), tuple(tokens[:n].tolist())))
    return out


def assert_same(found, expected):
    assert [h for _, h in found] == [h for _, h in expected]
    np.testing.assert_allclose([s for s, _ in found], [s for s, _ in expected], atol=5e-5)


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


GREEDY = dict(search=decode.greedy)
EXACT = dict(search=decode.beam_search, beam=3, penalty="gnmt", stop="exact", alpha=0.6)
FULL = dict(search=decode.beam_search, beam=3, penalty="length", stop="full", alpha=1.0)
SAMPLE = dict(search=decode.sample, first=12, samples=3, top_k=5, top_p=0.95)
every_search = pytest.mark.parametrize(
    "how", [GREEDY, EXACT, FULL, SAMPLE], ids=["greedy", "exact", "full", "sample"]
)


def divisor(n, alpha, penalty):
    return ((5 + n) / 6) ** alpha if penalty == "gnmt" else max(n, 1) ** alpha


def copying_search(toy, b, limit, beam, alpha, penalty, stop, prefix=()):
    """Beam search as told in a sentence: hypotheses are tuples, and tuples are copied.

    stop="exact" is here: never before the limit.
    """
    alive, kept = [(0.0, ())], []
    for n in range(1, limit + 1):
        choices = [prefix[n - 1]] if n <= len(prefix) else toy.choices
        ways = [(s + toy.logp(b, h)[v], (*h, v)) for s, h in alive for v in choices]
        ways = sorted(ways, reverse=True)[: 2 * beam]
        kept += [(s / divisor(n, alpha, penalty), h) for s, h in ways[:beam] if h[-1] == EOS]
        kept = sorted(kept, reverse=True)[:beam]
        alive = [way for way in ways if way[1][-1] != EOS][:beam]
        if not alive or (stop == "full" and len(kept) == beam):
            break
    kept += [(s / divisor(limit, alpha, penalty), h) for s, h in alive]
    return (kept + [(DEAD, ())] * beam)[:beam]


# --------------------------------------------------------------------- a trellis by hand

#                 .25
#          .6    -----> EOS                  Greedy follows A: .6, .24, .096, and never ends.
#    BOS -----> A -----> A (.4)              Beam 2 after step 2: B EOS .36 has ended,
#      \         \-----> B (.35)             A A .24 and A B .21 live, A EOS .15 came fourth.
#       \  .4     .9                         After step 3: A B EOS .21 * .9 = .189 has ended.
#        -----> B -----> EOS
#                \-----> A, B (.05 each)
A, B = 4, 5
TRELLIS = np.zeros((6, 6))
TRELLIS[BOS, [A, B]] = 0.6, 0.4
TRELLIS[A, [EOS, A, B]] = 0.25, 0.4, 0.35
TRELLIS[B, [EOS, A, B]] = 0.9, 0.05, 0.05
TRELLIS[[PAD, EOS, 2], EOS] = 1


@functools.cache
def on_chain(search, **how):
    """A Markov chain, p[last][next]: a function of p and limit to (probability, tokens)."""

    def run(p, limit, alpha):
        step = lambda tokens_BW, cache, t, mask_BWS, context: (jnp.log(p)[tokens_BW], cache)
        alpha = dict(alpha=alpha) if search is decode.beam_search else {}
        return search(step, lambda slots: jnp.zeros((1, slots, 1)), (), limit, 6, **alpha, **how)

    def listing(p, limit, alpha=0.0):
        found = run_once(np.float32(p), np.array([limit]), np.float32(alpha))
        found = [np.asarray(x) for x in found]
        return [(pytest.approx(math.exp(s), rel=1e-5), h) for s, h in listed(found, 0)]

    run_once = jit(run)
    return listing


def test_trellis():
    assert on_chain(decode.greedy)(TRELLIS, 3) == [(0.096, (A, A, A))]
    for stop in decode.STOPS:
        search = on_chain(decode.beam_search, beam=2, penalty="length", stop=stop)
        assert search(TRELLIS, 3) == [(0.36, (B, EOS)), (0.189, (A, B, EOS))]
        # The place that no ended hypothesis takes goes to the best one that has not ended.
        assert search(TRELLIS, 2) == [(0.36, (B, EOS)), (0.24, (A, A))]
        # log .36 / 2^2 < log .189 / 3^2: a strong penalty turns the order.
        turned = [(0.189 ** (1 / 9), (A, B, EOS)), (0.36 ** (1 / 4), (B, EOS))]
        assert search(TRELLIS, 3, alpha=2.0) == turned


def test_the_two_ways_to_stop_differ_on_the_trellis():
    """With n^2 the longer, the better: full has two hypotheses and is content."""
    full, exact = (
        on_chain(decode.beam_search, beam=2, penalty="length", stop=stop)(TRELLIS, 6, alpha=2.0)
        for stop in ("full", "exact")
    )
    assert [h for _, h in full] == [(A, B, EOS), (B, EOS)]
    assert [h for _, h in exact] == [(A, A, A, A, B, EOS), (A, A, A, B, EOS)]


def test_ties_go_to_the_lower_beam_and_then_to_the_lower_id():
    """All ids are equal: EOS and 2 come first; then those after 2, again EOS first."""
    search = on_chain(decode.beam_search, beam=2, penalty="length", stop="exact")
    assert search(np.full((6, 6), 1 / 6), 4) == [(1 / 6, (EOS,)), (1 / 36, (2, EOS))]


# ------------------------------------------------------------------------- all sequences


def all_sequences(toy, b, limit, alpha, penalty, prefix=()):
    """Every sequence that ends within the limit, then every one cut there; best first."""
    found = []
    for n in range(1, limit + 1):
        for head in itertools.product([v for v in toy.choices if v != EOS], repeat=n - 1):
            for last in toy.choices if n == limit else [EOS]:
                if (*head, last)[: len(prefix)] == prefix[:n]:
                    s = toy.logp_of(b, (*head, last)) / divisor(n, alpha, penalty)
                    found.append((s, (*head, last)))
    return sorted(found, key=lambda way: (way[1][-1] == EOS, way[0]), reverse=True)


@pytest.mark.parametrize(("penalty", "stop"), [("gnmt", "exact"), ("length", "full")])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.3])
def test_a_beam_that_holds_everything_finds_the_best_of_everything(alpha, penalty, stop):
    """With 3 ids that are not EOS there are 40 sequences that end by 4, and 81 that do not."""
    toy = Toy(vocab=6, length=4, sentences=3)
    limits, prefixes = (4, 3, 4), ((), (), (5, 4))
    how = dict(beam=121, penalty=penalty, stop=stop, alpha=alpha, prefix=prefixes)
    found = run(toy, decode.beam_search, limits, length=4, **how)
    for b in range(3):
        expected = all_sequences(toy, b, limits[b], alpha, penalty, prefixes[b])
        assert_same(listed(found, b)[: len(expected)], expected)
        assert all(s == DEAD for s, _ in listed(found, b)[len(expected) :])


# ---------------------------------------------------------------------- copied histories


@pytest.mark.parametrize("how", [EXACT, FULL], ids=["exact", "full"])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.5])
def test_ancestry_equals_copying_histories(how, alpha):
    """The exact stop, moreover, finds what never stopping before the limit finds."""
    limits, prefixes = (12, 12, 12, 12, 5, 7, 1, 12), [()] * 6 + [(5, 6), (7, 2, 4)]
    how = how | dict(alpha=alpha)
    for seed in range(3):
        toy = Toy(seed)
        toy.bias_BV[:, EOS] = 2 * seed  # from seldom among the best to often
        found = run(toy, limits=limits, prefix=prefixes, **how)
        rules = {key: how[key] for key in ("beam", "alpha", "penalty", "stop")}
        for b, limit in enumerate(limits):
            expected = copying_search(toy, b, limit, prefix=prefixes[b], **rules)
            assert_same(listed(found, b), expected)


def test_the_exact_stop_does_stop():
    """Where EOS is near certain, no second step is made."""
    reads = []

    def step(tokens_BW, cache, t, mask_BWS, context):
        jax.debug.callback(lambda t: reads.append(int(t)), t)
        return jnp.zeros((1, 1, 8)).at[..., EOS].set(9.0), cache

    model = step, lambda slots: jnp.zeros((1, slots, 1)), ()
    jit(lambda limit_B: decode.beam_search(*model, limit_B, 30, beam=1))(np.array([30]))
    jax.effects_barrier()
    assert reads == [0]


@every_search
@pytest.mark.parametrize("biased", ["short", "long", "mixed"])
def test_stages_change_nothing(how, biased):
    """Leaving sentences that have ended, in groups or all at once, finds what one loop finds."""
    toy = Toy(7, sentences=9)
    late = {"short": 3, "long": -4, "mixed": np.where(np.arange(9) % 3 == 0, -9, 3)}
    toy.bias_BV[:, EOS] = late[biased]
    alpha = dict(alpha=0.6) if "beam" in how else {}
    limits = (12, 12, 12, 5, 7, 12, 0, 12, 12)
    one = run(toy, limits=limits, **how | alpha | dict(first=12, least=9))
    for first, least in ((2, 1), (3, 9), (3, 4), (12, 1)):
        other = run(toy, limits=limits, **how | alpha | dict(first=first, least=least))
        np.testing.assert_array_equal(one.tokens_BWT, other.tokens_BWT)
        np.testing.assert_allclose(one.scores_BW, other.scores_BW, rtol=1e-5)
    assert (one.lengths_BW.max() > 6) == (biased != "short")


@pytest.mark.parametrize(
    ("rows", "length", "least", "stages"),
    [
        (3, 1, 1, [(3, 1), (1, 1)]),
        (8, 16, 8, [(8, 16)]),
        (8, 17, 8, [(8, 16), (8, 17)]),
        (64, 100, 8, [(64, 16), (16, 32), (8, 64), (8, 100)]),
        (64, 40, 1, [(64, 16), (16, 40), (4, 40), (1, 40)]),
    ],
)
def test_as_the_cache_grows_the_rows_get_fewer(rows, length, least, stages):
    seen = set()

    def step(tokens_BW, cache, t, mask_BWS, context):
        (B, W), S = tokens_BW.shape, mask_BWS.shape[2]
        assert cache["k"].shape == (B, 5, S, 6) and cache["v"].shape == (B, S, 7)
        assert context.shape == (B, 9)
        seen.add((B, S // W))
        return jnp.zeros((B, W, 8)), cache

    def search(limit_B):
        empty = lambda slots: dict(k=jnp.zeros((rows, 5, slots, 6)), v=jnp.zeros((rows, slots, 7)))
        model = step, empty, jnp.zeros((rows, 9))
        return decode.beam_search(*model, limit_B, length, beam=2, least=least)

    found = jax.eval_shape(search, jax.ShapeDtypeStruct((rows,), jnp.int32))
    assert sorted(seen) == sorted(stages)
    assert found.tokens_BWT.shape == (rows, 2, length)


# ------------------------------------------------------------------ greedy, and the edges


def test_greedy_is_the_argmax_at_each_step():
    toy, limits = Toy(3), (12, 12, 12, 12, 12, 3, 1, 0)
    found = run(toy, limits=limits, **GREEDY)
    for b, limit in enumerate(limits):
        assert_same(listed(found, b), copying_search(toy, b, limit, 1, 0.0, "gnmt", "full"))


def test_beam_1_is_greedy():
    toy = Toy(4)
    greedy = run(toy, limits=12, **GREEDY)
    beam = run(toy, decode.beam_search, 12, beam=1, alpha=0.0, penalty="gnmt", stop="exact")
    np.testing.assert_array_equal(greedy.tokens_BWT, beam.tokens_BWT)
    np.testing.assert_allclose(greedy.scores_BW, beam.scores_BW, rtol=1e-5)


@every_search
def test_what_has_not_ended_at_its_limit_is_returned(how):
    toy, limits = Toy(5), np.array([12, 7, 1, 2, 12, 0, 12, 12])
    toy.bias_BV[:, EOS] = -60
    found = run(toy, limits=limits, **how)
    assert (found.lengths_BW[:, 0] == limits).all() and EOS not in found.tokens_BWT


@every_search
def test_a_prefix_is_kept_and_counts_in_the_score(how):
    toy = Toy(6)
    prefixes = [(4, 5, 6), (7,), (), (4, EOS), (2, 2, 2), (), (), (5, 5)]
    found = run(toy, limits=12, prefix=prefixes, **how)
    for b, prefix in enumerate(prefixes):
        for s, h in listed(found, b):
            if s > DEAD:
                alpha = how.get("alpha", 0)
                logp = s * divisor(len(h), alpha, how.get("penalty", "gnmt"))
                assert h[: len(prefix)] == prefix
                assert logp == pytest.approx(toy.logp_of(b, h), abs=1e-4)
    # After a forced EOS there is one hypothesis.
    assert {h for _, h in listed(found, 3)} <= {(4, EOS), ()}


@every_search
@pytest.mark.parametrize("since", [0, 4])
def test_nan_ends_a_sentence_and_no_other(how, since):
    toy = Toy(7)
    toy.bias_BV[:, EOS] = -60
    well = run(toy, limits=12, **how)
    toy.bias_BV[2], toy.since_B[2] = np.nan, since
    toy.bias_BV[5], toy.since_B[5] = np.inf, since
    found = run(toy, limits=12, **how)
    for b in (2, 5):  # what had ended by then is still good
        for s, h in listed(found, b):
            assert s == DEAD or (h[-1] == EOS and len(h) <= since)
    others = [0, 1, 3, 4, 6, 7]
    assert_equal([x[others] for x in well], [x[others] for x in found])


@every_search
def test_pad_and_bos_are_never_produced(how):
    """Nor does anybody inherit their probability."""
    toy = Toy(8)
    toy.bias_BV[:, [PAD, BOS]] = 30
    found = run(toy, limits=12, **how)
    for b in range(8):
        for s, h in listed(found, b):
            logp = s * divisor(len(h), how.get("alpha", 0), how.get("penalty", "gnmt"))
            assert len(h) > 0 and logp == pytest.approx(toy.logp_of(b, h), rel=1e-5)


@every_search
def test_where_nothing_is_allowed_there_is_nothing(how):
    toy = Toy(9)
    toy.bias_BV[1, toy.choices] = DEAD
    found = run(toy, limits=12, **how)
    assert set(listed(found, 1)) == {(DEAD, ())}
    assert (found.scores_BW[0] > DEAD).all()


# --------------------------------------------------------------------------- whole batches


@every_search
def test_a_sentence_does_not_see_its_batch(how):
    """Neither its place in it nor who else is there; filler rows have limit 0.

    To the last bit while all rows stay; what leaving some behind does is tested above.
    """
    how = how | dict(least=8)
    toy, limits = Toy(10), np.array([12, 3, 9, 12, 12, 1, 6, 12])
    keys_B = jax.random.split(jax.random.key(1), 8)
    together = run(toy, limits=limits, keys_B=keys_B, **how)
    order = np.random.default_rng(0).permutation(8)
    moved = Toy(10)
    moved.source_BD = toy.source_BD[order]
    found = run(moved, limits=limits[order], keys_B=keys_B[order], **how)
    assert_equal([x[order] for x in together], list(found))
    alone = Toy(10)
    alone.source_BD = np.where(np.arange(8)[:, None] < 4, toy.source_BD, 0)
    found = run(alone, limits=np.where(np.arange(8) < 4, limits, 0), keys_B=keys_B, **how)
    assert_equal([x[:4] for x in together], [x[:4] for x in found])
    assert not found.lengths_BW[4:].any()


# ------------------------------------------------------------------------------- samples


def shares(logits_V, temperature, top_k, top_p):
    """The distribution that is to be drawn from, in numpy, by sorting."""
    p_V = np.exp(logits_V.astype(np.float64) / temperature)
    p_V[[PAD, BOS]] = 0
    order = np.argsort(-p_V)
    if top_k:
        p_V[order[top_k:]] = 0
    p_V /= p_V.sum()
    before_V = np.cumsum(p_V[order]) - p_V[order]
    p_V[order[before_V >= top_p]] = 0
    return p_V / p_V.sum()


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (7, 0.6)])
def test_samples_follow_the_distribution(top_k, top_p):
    """Chi-square of 4,000 draws from two blocks of ids, within 5 standard deviations."""
    vocab, draws = 150, 4000
    logits_BV = 1.5 * np.random.default_rng(0).normal(size=(2, vocab)).astype(np.float32)

    @jit
    def sample(logits_BV, keys_B, temperature):
        def step(tokens_BW, cache, t, mask_BWS, logits_BV):
            B, W = tokens_BW.shape
            return jnp.broadcast_to(logits_BV[:, None], (B, W, vocab)), cache

        model = step, lambda slots: (), logits_BV
        how = dict(samples=draws, temperature=temperature, top_k=top_k, top_p=top_p)
        return decode.sample(*model, jnp.array([1, 1]), 1, keys_B, **how)

    for temperature in (1.0, 0.5, 1.7):
        found = sample(logits_BV, jax.random.split(jax.random.key(0), 2), temperature)
        for logits_V, tokens_W in zip(logits_BV, found.tokens_BWT[..., 0], strict=True):
            p_V = shares(logits_V, temperature, top_k, top_p)
            counts_V = np.bincount(tokens_W, minlength=vocab)
            assert counts_V[p_V == 0].sum() == 0
            p_V, counts_V = p_V[p_V > 0], counts_V[p_V > 0]
            chi, freedom = ((counts_V - draws * p_V) ** 2 / (draws * p_V)).sum(), len(p_V) - 1
            assert abs(chi - freedom) < 5 * math.sqrt(2 * freedom + (1 / p_V).sum() / draws)


def test_samples_depend_on_the_key_alone():
    toy, keys_B = Toy(11), jax.random.split(jax.random.key(3), 8)
    one, again = (run(toy, limits=12, keys_B=keys_B, **SAMPLE) for _ in range(2))
    other = run(toy, limits=12, keys_B=keys_B[::-1], **SAMPLE)
    assert_equal(one, again)
    assert (one.tokens_BWT != other.tokens_BWT).any()
    # Rows and steps have noise of their own: a model without a preference shows it.
    toy.out_DV[:], toy.bias_BV[:, EOS] = 0, -60
    for b in range(8):
        rows = {h for _, h in listed(run(toy, limits=12, **SAMPLE), b)}
        assert len(rows) == 3 and all(len(set(h)) > 1 for h in rows)


# ------------------------------------------------------------- forced scores and ensembles


def test_score_agrees_with_search():
    toy = Toy(12)
    found = run(toy, limits=12, **GREEDY)
    tokens_BT = found.tokens_BWT[:, 0]
    logits_BTV = np.zeros((8, 12, 8), np.float32)
    for b, t in itertools.product(range(8), range(12)):
        logits_BTV[b, t] = toy.logp(b, tokens_BT[b, :t].tolist()) + 7  # logits: any shift
    weights_BT = (tokens_BT != NONE).astype(np.float32)
    sums_B, logp_BT = jit(decode.score)(logits_BTV, tokens_BT, weights_BT)
    np.testing.assert_allclose(sums_B, found.scores_BW[:, 0], atol=5e-5)
    np.testing.assert_allclose(sums_B, logp_BT.sum(-1), rtol=1e-6)
    assert not np.asarray(logp_BT)[tokens_BT == NONE].any()


def test_an_ensemble_of_equals_is_one():
    toy = Toy(13)

    def trio(*model, **how):
        step, init_cache, context = model[:3]
        caches = lambda slots: (init_cache(slots),) * 3
        return decode.greedy(decode.ensemble([step] * 3), caches, (context,) * 3, *model[3:], **how)

    one, three = (run(toy, search, 12) for search in (decode.greedy, trio))
    np.testing.assert_array_equal(one.tokens_BWT, three.tokens_BWT)
    np.testing.assert_allclose(one.scores_BW, three.scores_BW, rtol=1e-5)


def test_an_ensemble_averages_probabilities():
    p_WV, q_WV = np.random.default_rng(0).dirichlet(np.ones(6), (2, 4)).astype(np.float32)
    steps = [  # logits: any shift
        lambda tokens_BW, cache, t, mask_BWS, context: (jnp.log(p_WV)[None], cache + context),
        lambda tokens_BW, cache, t, mask_BWS, context: (jnp.log(q_WV)[None] + 5, cache + context),
    ]
    logits_BWV, caches = jit(decode.ensemble(steps))(None, (0, 0), 0, None, (1, 2))
    np.testing.assert_allclose(np.exp(logits_BWV[0]), (p_WV + q_WV) / 2, rtol=1e-5)
    assert caches == (1, 2)


@pytest.mark.parametrize("n", [1, 2, 3])
@every_search
def test_no_sequence_of_tokens_comes_twice(how, n):
    """Nothing else changes: what never repeated is found again."""
    toy = Toy(10)
    toy.bias_BV[:, EOS] = -2  # long enough to repeat
    free, found = (run(toy, limits=12, **how, no_repeat=k) for k in (0, n))
    repeats = lambda h: len(runs := [*zip(*(h[i:] for i in range(n)), strict=False)]) > len({*runs})
    some = 0
    for b in range(len(toy.source_BD)):
        some += any(repeats((BOS, *h)) for _, h in listed(free, b))
        assert not any(repeats((BOS, *h)) for _, h in listed(found, b))
        if how["search"] is decode.greedy and not repeats(listed(free, b)[0][1]):
            assert listed(free, b)[0][1] == listed(found, b)[0][1]
    assert some or n == 3


# ------------------------------------------------------------------------ the config's way


@pytest.mark.parametrize(
    ("how", "name", "args", "options"),
    [
        (Decode(method="greedy"), "greedy", "", {}),
        (
            Decode(beam=3, alpha=1.0, penalty="length", stop="full"),
            "beam_search",
            "",
            dict(beam=3, alpha=1.0, penalty="length", stop="full", unended="last"),
        ),
        (
            Decode(method="sample", beam=2, temperature=0.5, top_k=5, top_p=0.9),
            "sample",
            "k",
            dict(samples=2, temperature=0.5, top_k=5, top_p=0.9),
        ),
    ],
    ids=["greedy", "beam", "sample"],
)
def test_search_does_what_the_config_says(monkeypatch, how, name, args, options):
    monkeypatch.setattr(decode, name, lambda *a, **k: (a, k))
    model = ("step", "init", "context", "limit", 9)
    called = decode.search(
        *model, how, begin_B="b", before_BP="a", prefix_BP="p", keys_B="k", ids="i", least=4
    )
    assert called == (
        (*model, *args),
        dict(begin_B="b", before_BP="a", prefix_BP="p", ids="i", no_repeat=0, least=4, **options),
    )
