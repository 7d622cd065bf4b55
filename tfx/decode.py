"""Given a model that scores the next token: which sequences of tokens are good?

The model is a step function over an explicit cache; no more is known of it:

    logits_BWV, cache = step(tokens_BW, cache, t, mask_BWS, context)

reads W tokens of each sentence at position t (BOS at 0), writes their keys and values into
the cache slots t*W .. t*W+W-1, lets token w attend to the slots in its row of the mask,
and returns the logits of position t+1. `init_cache(slots)` makes an empty cache. What does
not grow (encoder states, cross-attention keys and values) is the context, held once a
sentence: any pytree whose arrays begin with B.

Beams are parallel queries of one sentence, and nothing they wrote ever moves. What tells
one hypothesis from another is its ancestry: which beam wrote each of its positions.
Reordering beams permutes that small array of integers; the mask is made from it at every
step, and the tokens are read along it once, at the end.

All of it can run inside one jit. The cached length takes few static values (16, 32, 64,
...), so that a batch of short sentences never pays for the longest one allowed, and it
grows as the rows get fewer: sentences that have ended are left behind (see `advance`).

Besides the letters of the package, C counts candidates.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from tfx.choose import DEAD, NONE, OURS, allowed, best, draw, largest, normaliser, pick, top

CACHE_SLOTS = -2  # the axis along which every leaf of a cache grows: [B, ..., S, K]

Cache = Any  # a pytree of arrays
Context = Any  # a pytree of arrays [B, ...]
Step = Callable[[jax.Array, Cache, jax.Array, jax.Array, Context], tuple[jax.Array, Cache]]

STOPS = {  # may a beam with this bound on its score still change what is kept?
    "exact": lambda bound_B, worst_B: bound_B > worst_B,
    "current": lambda bound_B, worst_B: bound_B > worst_B,
    "full": lambda bound_B, worst_B: worst_B == DEAD,
}
PENALTIES = {
    "gnmt": lambda n, alpha: ((5 + n) / 6) ** alpha,  # Wu et al. 2016, equation 14
    "length": lambda n, alpha: jnp.maximum(n, 1) ** alpha,
}


class Hypotheses(NamedTuple):
    """W hypotheses a sentence; a score of -inf says there is none, of length 0."""

    tokens_BWT: jax.Array  # int32, EOS included, NONE behind; T is `length`
    lengths_BW: jax.Array  # int32, EOS counted
    scores_BW: jax.Array  # float32


def search(
    step,
    init_cache,
    context,
    limit_B,
    length,
    how,
    *,
    begin_B=None,
    before_BP=None,
    prefix_BP=None,
    keys_B=None,
    ids=OURS,
    least=1,
) -> Hypotheses:
    """Decodes as `how` says, an object with the fields of `tfx.schema.Decode`.

    What is banned is never chosen; its probability is not given to others, so that the
    score of a hypothesis is what `score` says of the same tokens. Where the logits are NaN
    there are no hypotheses.

    Args:
      step, init_cache, context: the model, as the top of this file says.
      limit_B: the most tokens each sentence may get, EOS and prefix counted; what has not
        ended there is returned as it is. 0: a row that nobody needs.
      length: a static bound on limit_B.
      begin_B: the token that each sentence reads first, instead of `ids.bos`.
      before_BP: what stands before that, for `how.no_repeat` to see.
      prefix_BP: tokens that every hypothesis begins with, NONE behind; they count in its
        score and its length like the others.
      keys_B: for sampling, one PRNG key a sentence, so that what is drawn for a sentence
        does not depend on the batch it is in.
      ids: which tokens begin and end a hypothesis, and which are banned.
      least: rows below which a step with fewer is no faster. What is found does not
        depend on it.
    """
    model, common = (
        (step, init_cache, context, limit_B, length),
        dict(
            begin_B=begin_B,
            before_BP=before_BP,
            prefix_BP=prefix_BP,
            ids=ids,
            no_repeat=how.no_repeat,
            least=least,
        ),
    )
    if how.method == "greedy":
        return greedy(*model, **common)
    if how.method == "sample":
        shape = dict(temperature=how.temperature, top_k=how.top_k, top_p=how.top_p)
        return sample(*model, keys_B, samples=how.beam, **shape, **common)
    rules = dict(alpha=how.alpha, penalty=how.penalty, stop=how.stop, unended=how.unended)
    return beam_search(*model, beam=how.beam, **rules, **common)


def first_token(begin_B, ids):
    """What position 0 holds, [B, 1, 1] or 1 for B."""
    return jnp.full((1, 1, 1), ids.bos) if begin_B is None else begin_B[:, None, None]


def forced(prefix_BP, t, B):
    """The token that step t must choose, [B]; NONE where it is free to choose."""
    if prefix_BP is None:
        return jnp.full(B, NONE)
    prefix_BP = jnp.pad(prefix_BP, ((0, 0), (0, 1)), constant_values=NONE)
    return lax.dynamic_index_in_dim(prefix_BP, t, axis=1, keepdims=False)  # t is clamped


class Given(NamedTuple):
    """What is known of each sentence before its search."""

    context: Context
    limit_B: jax.Array
    prefix_BP: jax.Array | None = None
    keys_B: jax.Array | None = None
    before_BP: jax.Array | None = None


def advance(body, state, given, init_cache, W, length, first, least):
    """Runs `body(cached, state, cache, given)` until `state.done` holds everywhere.

    In stages. A stage is a loop over a static number of rows and a static cached length; it
    ends when the cache is full, or when what goes on fits into a quarter of the rows. The
    next one has twice the length and a quarter of the rows, but no fewer than `least`, and
    is entered once for each so many sentences that go on. Few programs, then, and the tail
    of a batch, its few longest sentences, costs little.
    """

    def stage(cached, state, cache, given):
        rows = len(state.done)
        fewer = max(-(-rows // 4), min(rows, least))
        longer = 2 * cached if 3 * cached <= length else length
        fit = 0 if fewer == rows else fewer
        alive_B = lambda state: ~state.done.reshape(rows, -1).all(1)
        going_on = lambda carry: (carry[0].t < cached) & (alive_B(carry[0]).sum() > fit)
        turn = lambda carry: body(cached, *carry, given)
        state, cache = lax.while_loop(going_on, turn, (state, cache))
        if (fewer, longer) == (rows, cached):
            return state
        first_alive_B = jnp.argsort(~alive_B(state), stable=True)

        def some(n, whole):
            chosen = lax.dynamic_slice_in_dim(first_alive_B, n * fewer, fewer)
            take = lambda x: x[chosen] if x.ndim and fewer < rows else x
            part, part_cache, known = jax.tree.map(take, (whole, cache, given))
            part_cache = jax.tree.map(lambda x: pad(x, W * longer), part_cache)
            part = stage(longer, part, part_cache, known)
            back = lambda x, y: x.at[chosen].set(y) if x.ndim and fewer < rows else y
            return jax.tree.map(back, whole, part)._replace(t=whole.t)

        return lax.fori_loop(0, -(-alive_B(state).sum() // fewer), some, state)

    cached = min(first, length)
    return stage(cached, state, init_cache(W * cached), given)


def pad(x, slots):
    """The leaf of a cache with zeros behind it, up to so many slots."""
    widths = [(0, 0)] * x.ndim
    widths[CACHE_SLOTS] = (0, slots - x.shape[CACHE_SLOTS])
    return jnp.pad(x, widths)


class Beams(NamedTuple):
    """What beam search carries. T counts positions, BOS at 0."""

    t: jax.Array  # the position that is read next
    done: jax.Array  # [B]
    written_BWT: jax.Array  # the token that beam w put at each position; never moves
    scores_BW: jax.Array  # log-probabilities of the hypotheses alive, best first
    ancestors_BWT: jax.Array  # the beam that wrote each of their positions; -1: none yet
    kept_scores_BW: jax.Array  # penalised scores of those that have ended, best first
    kept_ancestors_BWT: jax.Array  # as above, up to the position before EOS


def beam_search(
    step,
    init_cache,
    context,
    limit_B,
    length,
    *,
    beam=4,
    alpha=0.6,
    penalty="gnmt",
    stop="exact",
    unended="last",
    begin_B=None,
    before_BP=None,
    prefix_BP=None,
    ids=OURS,
    no_repeat=0,
    first=16,
    least=1,
) -> Hypotheses:
    """The `beam` best hypotheses of each sentence, best first; arguments as in `search`.

    The score of n tokens, EOS counted and BOS not, is their log-probability divided by
    ((5+n)/6)^alpha (gnmt) or n^alpha (length), alpha >= 0. Each step ranks the 2*beam best
    candidates. An EOS among the first `beam` of them ends a hypothesis, a later one is
    dropped, and the best of the others live on: the rule of fairseq and HF. What has not ended
    at its limit fills the places that are left; with unended="ranked" it has the place of its
    score (HF).

    stop="full" leaves a sentence once `beam` hypotheses have ended (HF's early_stopping=True),
    "current" once nothing alive would be kept if it ended now (HF's default), "exact" once
    nothing alive can still enter the kept ones. Probability only falls: what descends from a
    beam at log-probability s <= 0 ends at some s' <= s, and at some n <= limit. Both penalties
    are positive and never fall as n grows, so s'/penalty(n) <= s'/penalty(limit) <=
    s/penalty(limit). If that bound, for the best beam alive, does not exceed the worst of
    `beam` kept scores, going on changes nothing.
    """
    B, W, limit_B = len(limit_B), beam, jnp.minimum(limit_B, length)
    divisor = lambda n: PENALTIES[penalty](n, alpha)
    beams_of = lambda B: jnp.broadcast_to(jnp.arange(W)[None], (B, W))
    positions_11T = jnp.arange(length + 1)[None, None]

    def body(cached, state, cache, given):
        t, done_B1, B = state.t, state.done[:, None], len(state.done)
        beams_BW = beams_of(B)
        tokens_BW = lax.dynamic_index_in_dim(state.written_BWT, t, axis=2, keepdims=False)
        mask_BWTW = state.ancestors_BWT[..., :cached, None] == jnp.arange(W)[None, None, None]
        mask_BWS = mask_BWTW.reshape(B, W, cached * W)
        logits_BWV, cache = step(tokens_BW, cache, t, mask_BWS, given.context)
        offsets_BW = state.scores_BW - normaliser(logits_BWV)
        if no_repeat:
            written_BWT = read(state.written_BWT, state.ancestors_BWT)
            logits_BWV = unrepeated(logits_BWV, written_BWT, t, no_repeat, given.before_BP)
        scores_BC, parents_BC, tokens_BC = candidates(
            logits_BWV, offsets_BW, 2 * W, forced(given.prefix_BP, t, B), ids.banned
        )

        ends_BW = (tokens_BC[:, :W] == ids.eos) & ~done_B1
        ended_BW = jnp.where(ends_BW, scores_BC[:, :W] / divisor(t + 1), DEAD)
        kept_BW, places_BW = top(jnp.concatenate([state.kept_scores_BW, ended_BW], axis=1), W)
        origins_BC = jnp.concatenate([beams_BW, W + parents_BC[:, :W]], axis=1)
        ancestors_BCT = jnp.concatenate([state.kept_ancestors_BWT, state.ancestors_BWT], axis=1)
        kept_ancestors_BWT = pick(ancestors_BCT, pick(origins_BC, places_BW))

        scores_BW, places_BW = top(jnp.where(tokens_BC == ids.eos, DEAD, scores_BC), W)
        tokens_BW = pick(tokens_BC, places_BW)
        next_11T = positions_11T == t + 1
        ancestors_BWT = pick(state.ancestors_BWT, pick(parents_BC, places_BW))
        ancestors_BWT = jnp.where(next_11T, beams_BW[..., None], ancestors_BWT)
        # While others go on, a sentence that is done keeps what it had.
        scores_BW = jnp.where(done_B1, state.scores_BW, scores_BW)
        ancestors_BWT = jnp.where(done_B1[..., None], state.ancestors_BWT, ancestors_BWT)

        end_B = t + 1 if stop == "current" else given.limit_B
        hope_B = STOPS[stop](scores_BW[:, 0] / divisor(end_B), kept_BW[:, -1])
        hope_B &= (scores_BW[:, 0] > DEAD) & (t + 1 < given.limit_B)
        state = Beams(
            t=t + 1,
            done=state.done | ~hope_B,
            written_BWT=jnp.where(next_11T, tokens_BW[..., None], state.written_BWT),
            scores_BW=scores_BW,
            ancestors_BWT=ancestors_BWT,
            kept_scores_BW=kept_BW,
            kept_ancestors_BWT=kept_ancestors_BWT,
        )
        return state, cache

    beams_BW, nobody_BWT = beams_of(B), jnp.full((B, W, length + 1), -1)
    start = Beams(
        t=jnp.int32(0),
        done=limit_B <= 0,
        written_BWT=jnp.broadcast_to(first_token(begin_B, ids), (B, W, length + 1)),
        scores_BW=jnp.where(beams_BW == 0, 0.0, DEAD),
        ancestors_BWT=jnp.where(positions_11T == 0, beams_BW[..., None], nobody_BWT),
        kept_scores_BW=jnp.full((B, W), DEAD),
        kept_ancestors_BWT=nobody_BWT,
    )
    given = Given(context, limit_B, prefix_BP, before_BP=before_BP)
    end = advance(body, start, given, init_cache, W, length, first, least)
    return gather(end, end.scores_BW / divisor(limit_B)[:, None], limit_B, unended, ids.eos)


def candidates(logits_BWV, offsets_BW, count, forced_B, banned):
    """The `count` best `logits + offsets` to continue with: scores, parents and tokens, [B, C]."""
    scores_BC, parents_BC, tokens_BC = best(logits_BWV, offsets_BW, count, banned)
    # Where the token is forced, beam 0 is the only one alive and has one way to go.
    is_forced_B1, forced_B1 = (forced_B != NONE)[:, None], forced_B[:, None]
    score_B1 = pick(logits_BWV[:, 0], forced_B1) + offsets_BW[:, :1]
    score_B1 = jnp.where(jnp.isnan(score_B1), DEAD, score_B1)
    first_1C = jnp.arange(count)[None] == 0
    scores_BC = jnp.where(is_forced_B1, jnp.where(first_1C, score_B1, DEAD), scores_BC)
    parents_BC = jnp.where(is_forced_B1, 0, parents_BC)
    return scores_BC, parents_BC, jnp.where(is_forced_B1, forced_B1, tokens_BC)


def read(written_BWT, ancestors_BWT):
    """The tokens along an ancestry; where it has none, anything."""
    return jnp.take_along_axis(written_BWT, ancestors_BWT, axis=1, mode="clip")


def unrepeated(logits_BWV, history_BWT, t, n, before_BP=None):
    """The logits without the tokens that would make a sequence of n tokens a second time (Paulus
    et al., 2018, 2.5). The first token read counts, and what stands before it; t is the position
    of the last one."""
    if before_BP is not None:
        (B, W, _), P = history_BWT.shape, before_BP.shape[1]
        before_BWP = jnp.broadcast_to(before_BP[:, None], (B, W, P))
        history_BWT, t = jnp.concatenate([before_BWP, history_BWT], axis=2), t + P
    places_T, V = jnp.arange(history_BWT.shape[-1]), logits_BWV.shape[-1]
    repeats_BWT = jnp.broadcast_to(places_T[None, None] <= t, history_BWT.shape)
    repeats_BWT &= places_T[None, None] >= n - 1
    for back in range(1, n):  # each of the n - 1 before place s against each of the last n - 1
        last_BW = lax.dynamic_index_in_dim(history_BWT, t - back + 1, 2, keepdims=False)
        repeats_BWT &= jnp.roll(history_BWT, back, axis=2) == last_BW[..., None]
    hide = jax.vmap(jax.vmap(lambda logits_V, ids_T: logits_V.at[ids_T].set(DEAD, mode="drop")))
    return hide(logits_BWV, jnp.where(repeats_BWT, history_BWT, V))


def gather(end, unended_BW, limit_B, unended, eos):
    """The hypotheses that were kept and those that had not ended, best first, read along their
    ancestry."""
    W = unended_BW.shape[1]
    beams_1W = jnp.arange(W)[None]
    if unended == "ranked":  # where a sentence was left before its limit, they are none
        cut_B = (end.ancestors_BWT[:, 0] >= 0).sum(-1) > limit_B
        unended_BW = jnp.where(cut_B[:, None], unended_BW, DEAD)
        scores_BW, places_BW = top(jnp.concatenate([end.kept_scores_BW, unended_BW], axis=1), W)
        ended_BW = places_BW < W
    else:
        ended_BW = beams_1W < (end.kept_scores_BW > DEAD).sum(1, keepdims=True)
        places_BW = jnp.where(ended_BW, beams_1W, W + beams_1W - ended_BW.sum(1, keepdims=True))
        scores_BW = pick(jnp.concatenate([end.kept_scores_BW, unended_BW], axis=1), places_BW)
    ancestors_BCT = jnp.concatenate([end.kept_ancestors_BWT, end.ancestors_BWT], axis=1)
    ancestors_BWT = pick(ancestors_BCT, places_BW)
    tokens_BWT = read(end.written_BWT, ancestors_BWT)
    reached_BWT = ancestors_BWT >= 0
    tokens_BWT = jnp.where(reached_BWT, tokens_BWT, NONE)
    behind_BWT = jnp.arange(reached_BWT.shape[-1])[None, None] == reached_BWT.sum(-1)[..., None]
    tokens_BWT = jnp.where(behind_BWT & ended_BW[..., None], eos, tokens_BWT)
    return hypotheses(tokens_BWT[..., 1:], scores_BW)


def hypotheses(tokens_BWT, scores_BW):
    tokens_BWT = jnp.where(scores_BW[..., None] > DEAD, tokens_BWT, NONE)
    return Hypotheses(tokens_BWT, (tokens_BWT != NONE).sum(-1), scores_BW)


class Rows(NamedTuple):
    """What greedy search and sampling carry: W rows a sentence that never meet."""

    t: jax.Array
    done: jax.Array  # [B, W]
    written_BWT: jax.Array
    scores_BW: jax.Array


def greedy(
    step,
    init_cache,
    context,
    limit_B,
    length,
    *,
    begin_B=None,
    before_BP=None,
    prefix_BP=None,
    ids=OURS,
    no_repeat=0,
    first=16,
    least=1,
) -> Hypotheses:
    """The most probable token at each step, W = 1; the score is the log-probability."""

    def choose(logits_BWV, t, given):
        return best(logits_BWV, jnp.zeros(logits_BWV.shape[:2]), 1, ids.banned)[2]

    given = Given(context, limit_B, prefix_BP, before_BP=before_BP)
    return walk(choose, step, init_cache, given, length, 1, begin_B, ids, no_repeat, first, least)


def sample(
    step,
    init_cache,
    context,
    limit_B,
    length,
    keys_B,
    *,
    samples=1,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    begin_B=None,
    before_BP=None,
    prefix_BP=None,
    ids=OURS,
    no_repeat=0,
    first=16,
    least=1,
) -> Hypotheses:
    """Independent samples, in the order drawn; scores are log-probabilities of the model.

    Logits are divided by `temperature`; of the `top_k` largest (0: of all) remains the
    smallest set that holds a share `top_p` of their probability (Holtzman et al. 2020),
    ties at the border included; one id of these is drawn.
    """

    def choose(logits_BWV, t, given):
        ids_11V = jnp.arange(logits_BWV.shape[-1])[None, None]
        logits_BWV = jnp.where(allowed(ids_11V, ids.banned), logits_BWV, DEAD)
        p_BWV = jnp.exp((logits_BWV - logits_BWV.max(-1, keepdims=True)) / temperature)
        if top_k:
            p_BWV *= largest(p_BWV, jnp.ones_like(p_BWV), top_k)
        if top_p < 1:
            p_BWV *= largest(p_BWV, p_BWV, top_p * p_BWV.sum(-1))
        keys = jax.vmap(jax.random.fold_in, (0, None))(given.keys_B, t)
        return jax.vmap(draw)(keys, p_BWV)

    given = Given(context, limit_B, prefix_BP, keys_B, before_BP)
    return walk(
        choose, step, init_cache, given, length, samples, begin_B, ids, no_repeat, first, least
    )


def walk(choose, step, init_cache, given, length, W, begin_B, ids, no_repeat, first, least):
    """W rows a sentence, each going where `choose(logits_BWV, t, given) -> tokens_BW` says."""

    def body(cached, state, cache, given):
        t, slots, B = state.t, jnp.arange(cached * W), len(state.done)
        tokens_BW = lax.dynamic_index_in_dim(state.written_BWT, t, axis=2, keepdims=False)
        mask_WS = (slots[None] // W <= t) & (slots[None] % W == jnp.arange(W)[:, None])
        mask_BWS = jnp.broadcast_to(mask_WS[None], (B, W, cached * W))
        logits_BWV, cache = step(tokens_BW, cache, t, mask_BWS, given.context)
        offsets_BW = state.scores_BW - normaliser(logits_BWV)
        if no_repeat:
            logits_BWV = unrepeated(logits_BWV, state.written_BWT, t, no_repeat, given.before_BP)
        forced_B1 = forced(given.prefix_BP, t, B)[:, None]
        tokens_BW = jnp.where(forced_B1 != NONE, forced_B1, choose(logits_BWV, t, given))
        scores_BW = jnp.take_along_axis(logits_BWV, tokens_BW[..., None], axis=2)[..., 0]
        scores_BW += offsets_BW
        dead_BW = jnp.isnan(scores_BW) | (tokens_BW == NONE)
        scores_BW = jnp.where(dead_BW, DEAD, scores_BW)
        scores_BW = jnp.where(state.done, state.scores_BW, scores_BW)
        tokens_BW = jnp.where(state.done | dead_BW, NONE, tokens_BW)
        next_11T = jnp.arange(length + 1)[None, None] == t + 1
        ends_BW = (tokens_BW == ids.eos) | (scores_BW == DEAD) | (t + 1 >= given.limit_B)[:, None]
        written_BWT = jnp.where(next_11T, tokens_BW[..., None], state.written_BWT)
        return Rows(t + 1, state.done | ends_BW, written_BWT, scores_BW), cache

    B = len(given.limit_B)
    start = Rows(
        t=jnp.int32(0),
        done=jnp.broadcast_to((given.limit_B <= 0)[:, None], (B, W)),
        written_BWT=jnp.full((B, W, length + 1), NONE).at[..., :1].set(first_token(begin_B, ids)),
        scores_BW=jnp.zeros((B, W)),
    )
    given = given._replace(limit_B=jnp.minimum(given.limit_B, length))
    end = advance(body, start, given, init_cache, W, length, first, least)
    return hypotheses(end.written_BWT[..., 1:], end.scores_BW)


def score(logits_BTV, targets_BT, weights_BT):
    """Log-probabilities of given targets: their weighted sums [B], and each, [B, T]."""
    targets_BT1 = targets_BT[..., None]
    logp_BT = jnp.take_along_axis(logits_BTV, targets_BT1, axis=2)[..., 0]
    logp_BT = (logp_BT - jax.nn.logsumexp(logits_BTV, axis=-1)) * weights_BT
    return logp_BT.sum(-1), logp_BT


def ensemble(steps: Sequence[Step]) -> Step:
    """One step that averages the probabilities of several; its cache and its context are
    tuples of theirs. Of one alone, its logits as they are."""

    def step(tokens_BW, caches, t, mask_BWS, contexts):
        parts = zip(steps, caches, contexts, strict=True)
        outs = [s(tokens_BW, cache, t, mask_BWS, context) for s, cache, context in parts]
        logits_BWV, caches = outs[0][0], tuple(cache for _, cache in outs)
        if len(outs) > 1:
            logp = [jax.nn.log_softmax(logits_BWV) for logits_BWV, _ in outs]
            logits_BWV = functools.reduce(jnp.logaddexp, logp) - math.log(len(steps))
        return logits_BWV, caches

    return step
