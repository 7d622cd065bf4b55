"""Given the logits of the next token: which ids, how probable? Exact, and fast on a CPU.

B counts sentences, W rows of each, C chosen ones, N blocks of the vocabulary and K the ids
of one block.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

NONE = -1  # no token: where a hypothesis has none, or nothing says which
BLOCK = 128  # ids a block of `best`: the lanes of a TPU register, near the optimum on a CPU
DEAD = -jnp.inf  # the score of a row that holds no hypothesis


class Ids(NamedTuple):
    """The ids that have a meaning for a search; by default those of tfx/data/tokenizer.py.

    Attributes:
      bos: what a model reads first.
      eos: what ends a hypothesis.
      banned: never chosen.
    """

    bos: int = 3
    eos: int = 1
    banned: tuple[int, ...] = (0, 3)


OURS = Ids()


def allowed(ids, banned):
    """True for the ids that may be chosen."""
    return jnp.all(jnp.stack([ids != one for one in (NONE, *banned)]), axis=0)


def best(logits_BWV, offsets_BW, count, banned=OURS.banned):
    """The `count` best `logits + offsets` of each sentence, those that are `banned` left out.

    Exact, ties included: what `lax.top_k` finds in the flat [B, W*V], where it takes six
    times as long on a CPU. A block whose maximum is not among the `count` best maxima
    holds none of the `count` best values, so only the chosen blocks are looked into.

    Returns scores, beams and ids, [B, C] each, best first. NaN ranks as -inf, and where there is
    nothing better the id is NONE.
    """
    B, W, V = logits_BWV.shape
    N = -(-V // BLOCK)
    without_nan = lambda x: jnp.where(jnp.isnan(x), DEAD, x)
    maxima_BWN = maxima(logits_BWV)
    # Masking the blocks with a banned id alone spares a pass over all of V.
    for n in {one // BLOCK for one in banned}:
        block_BWK = logits_BWV[..., n * BLOCK : (n + 1) * BLOCK]
        ids_K = n * BLOCK + jnp.arange(block_BWK.shape[-1])
        block_BWK = jnp.where(allowed(ids_K, banned)[None, None], block_BWK, DEAD)
        maxima_BWN = maxima_BWN.at[..., n].set(block_BWK.max(-1))
    maxima_BWN += offsets_BW[..., None]
    _, blocks_BC = top(without_nan(maxima_BWN).reshape(B, W * N), min(count, W * N))
    beams_BC, blocks_BC = jnp.divmod(jnp.sort(blocks_BC), N)  # sorted: ties go by id, too
    ids_BCK = blocks_BC[..., None] * BLOCK + jnp.arange(BLOCK)[None, None]
    flat_BCK = beams_BC[..., None] * V + ids_BCK
    values_BCK = pick(logits_BWV.reshape(B, -1), flat_BCK.reshape(B, -1)).reshape(ids_BCK.shape)
    values_BCK = without_nan(values_BCK + pick(offsets_BW, beams_BC)[..., None])
    values_BCK = jnp.where(allowed(ids_BCK, banned) & (ids_BCK < V), values_BCK, DEAD)
    scores_BC, places_BC = top(values_BCK.reshape(B, -1), count)
    ids_BC = jnp.where(scores_BC > DEAD, pick(ids_BCK.reshape(B, -1), places_BC), NONE)
    return scores_BC, pick(beams_BC, places_BC // BLOCK), ids_BC


def maxima(logits_BWV):
    """The largest logit of each block of the vocabulary, [B, W, N]; the last may be short."""
    rest = -logits_BWV.shape[-1] % BLOCK
    block, padding = (1, 1, BLOCK), ((0, 0), (0, 0), (0, rest))
    return lax.reduce_window(logits_BWV, DEAD, lax.max, block, block, padding)


def normaliser(logits_BWV):
    """logsumexp over V; in a jit it shares the pass that finds the maxima with `best`."""
    peak_BW = maxima(logits_BWV).max(-1)
    return peak_BW + jnp.log(jnp.exp(logits_BWV - peak_BW[..., None]).sum(-1))


def top(x, count):
    """`lax.top_k`, kept whole: on a CPU, slicing its result would make XLA sort all of x.

    A barrier for each of its two results: one around both makes XLA's compilers for GPUs and
    for several CPU devices abort, where they rewrite top-k.
    """
    values, places = lax.top_k(x, count)
    return lax.optimization_barrier(values), lax.optimization_barrier(places)


def pick(x, places_BC):
    """x[b, places[b, c]] for every b and c, whatever axes follow."""
    places = places_BC.reshape(places_BC.shape + (1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, places, axis=1, mode="clip")


def largest(p_BWV, weights_BWV, need_BW):
    """True for the fewest p, from 1 downward, whose weights sum to `need`; all, if none do.

    Floats that are not negative are ordered as their bits are, so bisecting the bits finds
    the border exactly in 30 sums, where sorting V numbers costs far more.
    """
    bits_BWV = lax.bitcast_convert_type(p_BWV, jnp.int32)

    def halve(_, bounds):
        low_BW, high_BW = bounds
        middle_BW = (low_BW + high_BW) // 2
        weight_BW = jnp.where(bits_BWV >= middle_BW[..., None], weights_BWV, 0).sum(-1)
        enough_BW = weight_BW >= need_BW
        return jnp.where(enough_BW, middle_BW, low_BW), jnp.where(enough_BW, high_BW, middle_BW)

    low_BW = jnp.zeros(p_BWV.shape[:2], jnp.int32)
    above_1 = lax.bitcast_convert_type(jnp.float32(1), jnp.int32) + 1
    low_BW, _ = lax.fori_loop(0, 30, halve, (low_BW, low_BW + above_1))
    return bits_BWV >= low_BW[..., None]


def draw(key, p_WV):
    """W ids with probability proportional to p: first a block of ids, then one id in it; NONE
    where there is no probability.

    Exact, with N + K random numbers a row where V would be needed otherwise; each choice
    is the largest log p + Gumbel noise.
    """
    V = p_WV.shape[-1]
    padding = ((0, 0), (0, -V % BLOCK))
    sums_WN = lax.reduce_window(p_WV, 0.0, lax.add, (1, BLOCK), (1, BLOCK), padding)
    N = sums_WN.shape[1]
    noise_WC = jax.random.gumbel(key, (len(p_WV), N + BLOCK))
    block_W1 = (jnp.log(sums_WN) + noise_WC[:, :N]).argmax(1, keepdims=True)
    ids_WK = block_W1 * BLOCK + jnp.arange(BLOCK)[None]
    p_WK = jnp.take_along_axis(p_WV, ids_WK, axis=1, mode="fill", fill_value=0)
    place_W1 = (jnp.log(p_WK) + noise_WC[:, N:]).argmax(1, keepdims=True)
    ids_W = jnp.minimum(pick(ids_WK, place_W1)[:, 0], V - 1)
    return jnp.where(sums_WN.sum(-1) > 0, ids_W, NONE)
