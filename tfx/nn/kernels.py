"""Which attention kernel runs, and why not another?

Kernels compute the mean of values without ever holding the scores [B, H, T, S] of all
queries and keys, so their memory grows with T + S. `choose` says which one may run, from
facts alone; "xla" is none of them: the plain equation in tfx/nn/attention.py, which every
kernel must agree with. Kernels know masks by their structure: `Visible`.
"""

import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from tfx.sharding import ACTIVATIONS

OUT = "attention_out"  # under this name a remat policy finds what kernels hand on
SCALES = {"scaled": -0.5, "dot": 0.0}  # a score that is q k^T times this power of K
LANES = 128  # splash works on blocks of multiples of it
HIDDEN = -1e30  # a score that softmax makes zero, finite so that gradients are


@struct.dataclass
class Visible:
    """Which keys a query may read: those that are no padding (their segment is not 0), of its
    own segment where queries have segments, and not after it where `causal`; and how far it is
    to them.

    Queries that have segments need keys that have. Where they have none, padding is at the end,
    unless it is `scattered`.

    Attributes:
      scattered: padding may be anywhere, such as before a text.
      allowed_B1TS: those that may be read, said one by one; the others are hidden too.
      queries_BT, keys_BS: positions; None: 0, 1, 2, ...
      bias_BHTS: added to the scores.
    """

    query_segments_BT: jax.Array | None = None
    key_segments_BS: jax.Array | None = None
    causal: bool = struct.field(pytree_node=False, default=False)
    scattered: bool = struct.field(pytree_node=False, default=False)
    allowed_B1TS: jax.Array | None = None
    queries_BT: jax.Array | None = None
    keys_BS: jax.Array | None = None
    bias_BHTS: jax.Array | None = None

    @classmethod
    def of(cls, mask) -> "Visible":
        """Of a `Visible`, itself; of a bool array, what it allows; of None, everything."""
        return mask if isinstance(mask, cls) else cls(allowed_B1TS=mask)

    def mask(self, queries: int, keys: int, start=0) -> jax.Array | None:
        """True where query t may read key s, [B, 1, T, S] or with 1 for B or T; None: everywhere.

        Args:
          start: position of the first query less that of the first key.
        """
        parts = []
        if self.causal:
            t_T1, s_1S = jnp.arange(queries)[:, None] + start, jnp.arange(keys)[None]
            parts.append((t_T1 >= s_1S)[None, None])
        if self.key_segments_BS is not None:
            parts.append((self.key_segments_BS > 0)[:, None, None])
        if self.query_segments_BT is not None:
            same_BTS = self.query_segments_BT[:, :, None] == self.key_segments_BS[:, None]
            parts.append(same_BTS[:, None])
        if self.allowed_B1TS is not None:
            parts.append(self.allowed_B1TS)
        return functools.reduce(jnp.logical_and, parts) if parts else None


# ------------------------------------------------------------------ which one


@dataclass(frozen=True)
class Facts:
    """All that decides. Sizes are of the whole batch; letters as in `tfx`."""

    backend: str  # cpu | gpu | tpu
    dtype: str
    B: int
    T: int
    S: int
    H: int
    K: int
    value_width: int
    score: str = "scaled"
    dropout: float = 0.0  # of the weights in this call: 0 unless training
    packed: bool = False
    scattered: bool = False
    needs_scores: str = ""  # why this call needs the scores themselves, if it does
    mesh: tuple[tuple[str, int], ...] = ()  # axes and their sizes


def choose(wanted: str, facts: Facts) -> tuple[str, dict[str, str]]:
    """The kernel that runs, "xla" or one of `KERNELS`, and why each other one was refused.

    Args:
      wanted: "auto" takes the first kernel that can run and pays; else a name. A call that
        needs the scores gets "xla" whatever is wanted.

    Raises:
      ValueError: the kernel asked for cannot run.
    """
    if facts.needs_scores:
        return "xla", dict.fromkeys(KERNELS, facts.needs_scores)
    if wanted != "auto":
        why = "" if wanted == "xla" else next(_obstacles(wanted, facts), "")
        if why:
            raise ValueError(f'attention kernel "{wanted}": {why}; "auto" takes one that can run')
        return wanted, {}
    every = {
        name: next(_obstacles(name, facts), "") or next(_losses(name, facts), "")
        for name in KERNELS
    }
    chosen = next((name for name, why in every.items() if not why), "xla")
    return chosen, {name: why for name, why in every.items() if why}


def _obstacles(name: str, f: Facts) -> Iterator[str]:
    """Why a kernel cannot run."""
    axes = {"data": 1, "fsdp": 1, "tensor": 1, "sequence": 1} | dict(f.mesh)
    home = {"cudnn": "gpu", "splash": "tpu"}.get(name, f.backend)
    if f.backend != home:
        yield f"it is for {home}, this is {f.backend}"
    if f.score not in SCALES:
        yield f'the score "{f.score}" is no plain product'
    if f.dropout:
        yield f"attention weights are dropped at rate {f.dropout}"
    for size, letter, cut in (
        (f.B, "B", axes["data"] * axes["fsdp"]),
        (f.H, "H", axes["tensor"]),
    ):
        if size % cut:
            yield f"{letter} = {size} does not divide into the {cut} parts of the mesh"
    if name == "ring" and axes["sequence"] == 1:
        yield "the mesh does not cut the sequence"
    if name != "ring" and axes["sequence"] > 1:
        yield f"the mesh cuts the sequence into {axes['sequence']}"
    if name == "cudnn":
        if f.dtype not in ("bfloat16", "float16"):
            yield f"it takes bfloat16 or float16, not {f.dtype}"
        if f.value_width != f.K or f.K % 8 or f.K > 128:
            yield f"heads of {f.K} and {f.value_width}: it takes equal multiples of 8 up to 128"
        if f.packed:
            yield "packed segments would become a mask [B, 1, T, S]"
        if f.scattered:
            yield "it takes padding at the end alone"


def _losses(name: str, f: Facts) -> Iterator[str]:
    """Why a kernel that can run would not be the fastest.

    A ring hides the trip of keys and values behind the products with them once a device has
    c >= FLOPs per second / bytes per second between neighbours of them (Liu et al., 2023,
    section 3): about a thousand where chips have links of their own.
    """
    shortest, cut = min(f.T, f.S), dict(f.mesh).get("sequence", 1)
    if name == "splash" and shortest < LANES:
        yield f"{shortest} positions fill no block of {LANES}"
    if name == "ring" and shortest < 1024 * cut:
        yield f"{shortest} positions in {cut} parts: gathering pays below 1024 a part"


def facts_of(q_BTHK, k_BSHK, v_BSHK, mask: Visible, **rest) -> Facts:
    """What the arrays and the mesh in use say; `rest`: the other fields of `Facts`.

    The backend is that of the mesh: a program may be compiled for devices that are not here.
    """
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return Facts(
        backend=device.platform if device else jax.default_backend(),
        dtype=q_BTHK.dtype.name,
        **dict(zip("BTHK", q_BTHK.shape, strict=True)),
        S=k_BSHK.shape[1],
        value_width=v_BSHK.shape[-1],
        packed=mask.query_segments_BT is not None,
        scattered=mask.scattered,
        mesh=tuple(mesh.shape.items()),
        **rest,
    )


@functools.cache
def say(chosen: str, reasons: tuple[tuple[str, str], ...]) -> None:
    """Log a choice, once."""
    by_reason = {why: [name for name, each in reasons if each == why] for _, why in reasons}
    why = "; ".join(f"no {' or '.join(names)}: {reason}" for reason, names in by_reason.items())
    logging.getLogger("tfx").info("attention kernel: %s%s", chosen, f" ({why})" if why else "")


# ----------------------------------------------------------------- running one


def run(name: str, q_BTHK, k_BSHK, v_BSHK, visible: Visible, scale: float) -> jax.Array:
    """Means of values [B, T, H, K] by one of `KERNELS`, on each device for its share of the mesh.

    Args:
      scale: factor on q k^T.
    """
    kernel, mesh = functools.partial(KERNELS[name], scale=scale), jax.sharding.get_abstract_mesh()
    if mesh.size == 1 or mesh.empty:
        return kernel(q_BTHK, k_BSHK, v_BSHK, visible)
    length = q_BTHK.shape[1]
    inputs = _lengthen(q_BTHK, k_BSHK, v_BSHK, visible, mesh.shape["sequence"])
    heads = P(*map(ACTIVATIONS.get, "BTHK"))
    specs = (heads, heads, heads, jax.tree.map(lambda _: P(*heads[:2]), inputs[3]))
    # No check of which axes a value varies over: it cannot look into a Pallas kernel.
    y_BTHK = jax.shard_map(kernel, in_specs=specs, out_specs=heads, check_vma=False)(*inputs)
    return y_BTHK[:, :length]


def _lengthen(q_BTHK, k_BSHK, v_BSHK, visible: Visible, multiple: int):
    """All four, with T and S multiples of `multiple`; what is new is padding."""
    longer = lambda x: jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple), *((0, 0),) * (x.ndim - 2)))
    if visible.key_segments_BS is None and k_BSHK.shape[1] % multiple:
        visible = visible.replace(key_segments_BS=jnp.ones(k_BSHK.shape[:2], jnp.int32))
    return longer(q_BTHK), longer(k_BSHK), longer(v_BSHK), jax.tree.map(longer, visible)


def cudnn(q_BTHK, k_BSHK, v_BSHK, visible: Visible, scale, implementation="cudnn"):
    """cuDNN's flash attention. Queries without segments only."""
    causal, lengths_B = visible.causal, None
    if visible.key_segments_BS is not None:
        lengths_B = (visible.key_segments_BS > 0).sum(-1, dtype=jnp.int32)
    y_BTHK = jax.nn.dot_product_attention(
        q_BTHK,
        k_BSHK,
        v_BSHK,
        scale=scale,
        is_causal=causal,
        # No key at all would divide by zero: such rows read one, and are made zero below.
        key_value_seq_lengths=None if lengths_B is None else jnp.maximum(lengths_B, 1),
        implementation=implementation,
    )
    if lengths_B is not None:
        y_BTHK = jnp.where(lengths_B[:, None, None, None] > 0, y_BTHK, 0)
    return checkpoint_name(y_BTHK, OUT)


def splash(q_BTHK, k_BSHK, v_BSHK, visible: Visible, scale, interpret=False):
    """Flash attention for TPUs that skips blocks which causality hides (jax's Pallas kernel)."""
    from jax.experimental.pallas.ops.tpu import splash_attention as lib  # slow to import

    length, readable_BT11 = q_BTHK.shape[1], None
    if visible.key_segments_BS is not None:
        mask_B1TS = visible.mask(length, k_BSHK.shape[1])
        readable_BT11 = mask_B1TS.any(-1).swapaxes(1, 2)[..., None]
    q_BTHK, k_BSHK, v_BSHK, visible = _lengthen(q_BTHK, k_BSHK, v_BSHK, visible, LANES)
    shape = q_BTHK.shape[1], k_BSHK.shape[1]
    one = (lib.CausalMask if visible.causal else lib.FullMask)(shape)
    block, blocks = [max(b for b in (128, 256, 512) if not n % b) for n in shape], {}
    for part in ("", "_dkv", "_dq"):
        blocks |= {f"block_q{part}": block[0], f"block_kv{part}": block[1]}
    kernel = lib.make_splash_mha_single_device(
        lib.MultiHeadMask([one] * q_BTHK.shape[2]),
        block_sizes=lib.BlockSizes(**blocks),
        residual_checkpoint_name=OUT,
        interpret=interpret,
    )
    inputs = [x.swapaxes(1, 2) for x in (q_BTHK * jnp.asarray(scale, q_BTHK.dtype), k_BSHK, v_BSHK)]
    if visible.key_segments_BS is not None:
        keys_BS = visible.key_segments_BS.astype(jnp.int32)
        queries_BT = visible.query_segments_BT
        if queries_BT is None:
            keys_BS, queries_BT = jnp.minimum(keys_BS, 1), jnp.ones(q_BTHK.shape[:2], jnp.int32)
        # The kernel compares segments and no more: padding must equal no query.
        inputs.append(lib.SegmentIds(queries_BT, jnp.where(keys_BS > 0, keys_BS, -1)))
    y_BTHK = jax.vmap(kernel)(*inputs).swapaxes(1, 2)[:, :length]
    return y_BTHK if readable_BT11 is None else jnp.where(readable_BT11, y_BTHK, 0)


# ----------------------------------------------------------------------- ring


def ring(q_BTHK, k_BSHK, v_BSHK, visible: Visible, scale):
    """Ring attention: Liu et al. (2023), with the online softmax of Milakov and Gimelshein (2018).

    Runs inside `shard_map`, with T and S cut over the axis "sequence". Each device keeps its
    queries while everyone's keys and values pass by, one neighbour at a time; the gradient
    goes round once more with the keys and values that it belongs to (Dao et al., 2022,
    appendix B.2). A device never holds more than two shares of them, and of what passed
    keeps but the result and the logarithm of its normaliser. Shares lie in order, so under
    causality the last device has work at every step and the first at one.
    """
    return _ring(q_BTHK, k_BSHK, v_BSHK, visible, scale)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _ring(q_BTHK, k_BSHK, v_BSHK, visible, scale):
    return _ring_forward(q_BTHK, k_BSHK, v_BSHK, visible, scale)[0]


def _ring_forward(q_BTHK, k_BSHK, v_BSHK, visible, scale):
    keys_BS = visible.key_segments_BS
    B, T, H, _ = q_BTHK.shape

    def step(carried, passing, device):
        (sum_BHTK, total_BHT1, most_BHT1), (k_BSHK, v_BSHK, keys_BS) = carried, passing
        scores_BHTS, mask = _scores(q_BTHK, k_BSHK, visible, keys_BS, device, scale)
        higher_BHT1 = jnp.maximum(most_BHT1, scores_BHTS.max(-1, keepdims=True))
        weights_BHTS = jnp.where(mask, jnp.exp(scores_BHTS - higher_BHT1), 0)
        new_BHTK = _product("BHTS,BSHK->BHTK", weights_BHTS.astype(v_BSHK.dtype), v_BSHK)
        shrink_BHT1 = jnp.exp(most_BHT1 - higher_BHT1)
        total_BHT1 = shrink_BHT1 * total_BHT1 + weights_BHTS.sum(-1, keepdims=True)
        return (shrink_BHT1 * sum_BHTK + new_BHTK, total_BHT1, higher_BHT1), passing

    zeros = lambda last: jnp.zeros((B, H, T, last), jnp.float32)
    start = zeros(v_BSHK.shape[-1]), zeros(1), zeros(1) + HIDDEN
    (sum_BHTK, total_BHT1, most_BHT1), _ = _go_round(step, start, (k_BSHK, v_BSHK, keys_BS))
    total_BHT1 = jnp.where(total_BHT1 > 0, total_BHT1, 1)
    y_BTHK = (sum_BHTK / total_BHT1).swapaxes(1, 2).astype(v_BSHK.dtype)
    y_BTHK, norm_BHT1 = checkpoint_name((y_BTHK, most_BHT1 + jnp.log(total_BHT1)), OUT)
    return y_BTHK, (q_BTHK, k_BSHK, v_BSHK, visible, y_BTHK, norm_BHT1)


def _ring_backward(scale, kept, dy_BTHK):
    q_BTHK, k_BSHK, v_BSHK, visible, y_BTHK, norm_BHT1 = kept
    mean_BHT1 = _product("BTHK,BTHK->BHT", dy_BTHK, y_BTHK)[..., None]

    def step(dq_BTHK, passing, device):
        k_BSHK, v_BSHK, keys_BS, dk_BSHK, dv_BSHK = passing
        scores_BHTS, mask = _scores(q_BTHK, k_BSHK, visible, keys_BS, device, scale)
        weights_BHTS = jnp.where(mask, jnp.exp(scores_BHTS - norm_BHT1), 0)
        dweights_BHTS = _product("BTHK,BSHK->BHTS", dy_BTHK, v_BSHK)
        dscores_BHTS = scale * weights_BHTS * (dweights_BHTS - mean_BHT1)
        weights_BHTS, dscores_BHTS = (x.astype(q_BTHK.dtype) for x in (weights_BHTS, dscores_BHTS))
        dq_BTHK += _product("BHTS,BSHK->BTHK", dscores_BHTS, k_BSHK)
        dk_BSHK += _product("BHTS,BTHK->BSHK", dscores_BHTS, q_BTHK)
        dv_BSHK += _product("BHTS,BTHK->BSHK", weights_BHTS, dy_BTHK)
        return dq_BTHK, (k_BSHK, v_BSHK, keys_BS, dk_BSHK, dv_BSHK)

    zeros = [jnp.zeros(x.shape, jnp.float32) for x in (q_BTHK, k_BSHK, v_BSHK)]
    passing = k_BSHK, v_BSHK, visible.key_segments_BS, *zeros[1:]
    dq_BTHK, (*_, dk_BSHK, dv_BSHK) = _go_round(step, zeros[0], passing)
    gradients = zip((dq_BTHK, dk_BSHK, dv_BSHK), kept[:3], strict=True)
    return *(gradient.astype(x.dtype) for gradient, x in gradients), None


_ring.defvjp(_ring_forward, _ring_backward)


def _go_round(step, carried, passing):
    """`carried, passing = step(carried, passing, device)` for the share `passing` of each device
    in turn; after the last one every share is at home again."""
    count, here = lax.axis_size("sequence"), lax.axis_index("sequence")
    onwards = [(n, (n + 1) % count) for n in range(count)]

    def turn(state, n):
        carried, passing = step(*state, (here - n) % count)
        return (carried, lax.ppermute(passing, "sequence", onwards)), None

    return lax.scan(turn, (carried, passing), jnp.arange(count))[0]


def _scores(q_BTHK, k_BSHK, visible, keys_BS, device, scale):
    """Scores of queries that are here and keys that `device` sent, float32, and their mask."""
    T, S = q_BTHK.shape[1], k_BSHK.shape[1]
    start = lax.axis_index("sequence") * T - device * S
    mask_B1TS = visible.replace(key_segments_BS=keys_BS).mask(T, S, start)
    mask = True if mask_B1TS is None else mask_B1TS
    scores_BHTS = scale * _product("BTHK,BSHK->BHTS", q_BTHK, k_BSHK)
    return jnp.where(mask, scores_BHTS, HIDDEN), mask


_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

KERNELS = {"cudnn": cudnn, "splash": splash, "ring": ring}
