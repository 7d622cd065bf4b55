"""A Transformer layer, and a stack of them.

A `Block` is told how to make its parts, so a family member that differs in one part
passes another part. A `Stack` holds the parameters of all its layers in one tree with a
leading axis N, whether it runs them by `lax.scan` (short programs, quick compiles) or
unrolled (fastest on CPUs): the choice never changes a checkpoint.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from tfx.nn.attention import KeyValues
from tfx.nn.dropout import Dropout
from tfx.nn.kernels import Visible
from tfx.sharding import constrain

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
# What a policy may name: the projections of attention, what its kernel made of them, the inner
# layer of the mlp, and the output of each part of a block.
SAVEABLE = ("query", "key_value", "attention_out", "mlp_hidden", "part_out")


def remat_policy(remat: str):
    """What the backward pass may find saved rather than compute again, as jax takes it.

    Args:
      remat: "none" saves all, "full" nothing but each layer's input, "dots" the results of
        the projections, "save_names:A,B" those of `SAVEABLE` that are named, "offload:A,B"
        those too, in the memory of the host.

    Raises:
      ValueError: no such policy.
    """
    kind, _, rest = remat.partition(":")
    names = rest.split(",")
    if kind in ("save_names", "offload") and {*names} <= {*SAVEABLE}:
        if kind == "save_names":
            return jax.checkpoint_policies.save_only_these_names(*names)
        return jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=names,
            offload_src="device",
            offload_dst="pinned_host",
        )
    if remat not in REMAT:
        raise ValueError(
            f"remat = '{remat}': choose from {', '.join(REMAT)}, save_names:A,B and offload:A,B, "
            f"where A and B are of {', '.join(SAVEABLE)}"
        )
    return REMAT[remat]


class Block(nn.Module):
    """Self-attention, optional cross-attention, mlp; a residual and a norm around each.

    Attributes:
      attention, mlp, norm: make the parts, given a name.
      order: "post": norm(x + f(x)), Vaswani et al. (2017); "pre": x + f(norm(x)).
      dropout: on the output of each part, before the residual.
      cross: whether the block reads a memory.
    """

    attention: Callable[..., nn.Module]
    mlp: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    order: str = "post"
    dropout: float = 0.0
    cross: bool = False

    def setup(self):
        self.self_attention = self.attention()
        self.self_norm = self.norm()
        if self.cross:
            # A memory has positions of its own, at no distance from these.
            self.cross_attention = self.attention(rotary=False)
            self.cross_norm = self.norm()
        self.feed_forward = self.mlp()
        self.mlp_norm = self.norm()
        self.drop = Dropout(self.dropout)

    def read(self, memory_BSD: jax.Array) -> KeyValues:
        """Keys and values of a memory, for the cross-attention."""
        return self.cross_attention.keys_values(memory_BSD)

    def look_back(self, y_BTD, mask, cache, slot, train):
        """Self-attention, and the cache after it."""
        seen = self.self_attention.keys_values(y_BTD, Visible.of(mask).queries_BT)
        if cache is not None:
            cache = seen = cache.write(seen, slot)
        return self.self_attention(y_BTD, seen, mask, train), cache

    def __call__(self, x_BTD, mask, memory=None, memory_mask=None, cache=None, slot=0, train=False):
        """One layer.

        Args:
          mask, memory_mask: what may be read of x and of the memory; see `Attention`.
          memory: encoder states [B, S, D], or what `read` made of them.
          cache: keys and values of earlier tokens; those of x are written from `slot` on,
            and the mask then speaks of the cache's slots.

        Returns:
          x [B, T, D] and the cache.
        """

        def around(norm, part, x_BTD):
            y_BTD = part(norm(x_BTD) if self.order == "pre" else x_BTD)
            x_BTD = x_BTD + self.drop(checkpoint_name(y_BTD, "part_out"), train)
            return x_BTD if self.order == "pre" else norm(x_BTD)

        def look_back(y_BTD):
            nonlocal cache
            y_BTD, cache = self.look_back(y_BTD, mask, cache, slot, train)
            return y_BTD

        def look_across(y_BTD):
            seen = memory if isinstance(memory, KeyValues) else self.read(memory)
            return self.cross_attention(y_BTD, seen, memory_mask, train)

        x_BTD = around(self.self_norm, look_back, x_BTD)
        if self.cross:
            x_BTD = around(self.cross_norm, look_across, x_BTD)
        x_BTD = around(self.mlp_norm, lambda y_BTD: self.feed_forward(y_BTD, train), x_BTD)
        return constrain(x_BTD, "BTD"), cache


class Stack(nn.Module):
    """`depth` blocks of the same shape.

    Attributes:
      block: makes one block.
      width: D, of the input and of the memory.
      final_norm: makes the norm after the last block, or None.
      scan: run the layers as one `lax.scan`; else unrolled.
      remat: see `remat_policy`.
      layerdrop: probability of skipping a layer while training (Fan et al., 2020).
      bias: makes what self-attention adds to its scores, one for all layers (`position.Bias`).

    What goes into the first layer, what comes out of each, and of the last after the final norm,
    is sown as "states" [N + 1, B, T, D].
    """

    block: Callable[..., Block]
    depth: int
    width: int
    final_norm: Callable[..., nn.Module] | None = None
    scan: bool = False
    remat: str = "none"
    layerdrop: float = 0.0
    bias: Callable[..., nn.Module] | None = None

    def setup(self):
        self.layers = self.param("layers", self._init)
        if self.final_norm is not None:
            self.norm = self.final_norm()
        if self.bias is not None:
            self.distance = self.bias()

    def _init(self, key):
        block, x_BTD = self.block(parent=None), jnp.zeros((1, 1, self.width))
        init = lambda key: block.init(key, x_BTD, None, x_BTD)["params"]
        boxed = jax.vmap(init)(jax.random.split(key, self.depth))
        name_depth = lambda box: box.add_axis(0, {nn.PARTITION_NAME: "N"})
        return jax.tree.map(name_depth, boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned))

    def read(self, memory_BSD: jax.Array) -> tuple[KeyValues, ...]:
        """Each layer's keys and values of a memory: made once per source sentence."""
        block = self.block(parent=None)
        read = lambda params: block.apply({"params": params}, memory_BSD, method="read")
        return tuple(read(params) for params in unstack(self.layers, self.depth))

    def __call__(self, x_BTD, mask, memory=None, memory_mask=None, cache=None, slot=0, train=False):
        """All layers; see `Block`. `cache`, and `memory` if it comes from `read`, are tuples
        with one entry a layer; layers are then always unrolled. A cache that is one array has a
        leading axis N."""
        if self.bias is not None:
            mask = self._biased(Visible.of(mask), x_BTD, cache)
        if self.is_initializing():  # all parameters are there: no layer needs to be run
            return x_BTD if self.final_norm is None else self.norm(x_BTD), cache
        block, capture = self.block(parent=None), self.is_mutable_collection("intermediates")
        keys = jax.random.split(self.make_rng("dropout"), self.depth) if train else None

        def layer(x_BTD, inputs):
            params, key, memory, cache = inputs
            arguments = (x_BTD, mask, memory, memory_mask, cache, slot, train)
            rngs = {"dropout": key} if train else None
            collect = ["intermediates"] if capture else False
            out = block.apply({"params": params}, *arguments, rngs=rngs, mutable=collect)
            (y_BTD, cache), sown = out if capture else (out, None)
            if capture:
                sown = sown["intermediates"] | {"states": y_BTD}
            if train and self.layerdrop:
                keep = jax.random.uniform(jax.random.fold_in(key, 1)) >= self.layerdrop
                y_BTD = jnp.where(keep, y_BTD, x_BTD)
            return y_BTD, (cache, sown)

        first_BTD, policy = x_BTD, remat_policy(self.remat)
        if policy is not None and train:
            layer = jax.checkpoint(layer, policy=policy, prevent_cse=not self.scan)
        per_layer = isinstance(memory, tuple)
        if self.scan and not isinstance(cache, tuple) and not per_layer:
            step = lambda x_BTD, inputs: layer(x_BTD, (*inputs[:2], memory, inputs[2]))
            x_BTD, (cache, sown) = lax.scan(step, x_BTD, (self.layers, keys, cache))
        else:
            collected, caches = [], []
            for n, params in enumerate(unstack(self.layers, self.depth)):
                inputs = (
                    params,
                    keys[n] if train else None,
                    memory[n] if per_layer else memory,
                    cache[n] if cache is not None else None,
                )
                x_BTD, (new, sown) = layer(x_BTD, inputs)
                caches.append(new)
                collected.append(sown)
            cache = tuple(caches) if cache is not None else None
            sown = jax.tree.map(lambda *leaves: jnp.stack(leaves), *collected) if capture else None
        if self.final_norm is not None:
            x_BTD = self.norm(x_BTD)
        if capture:
            states_NBTD = sown.pop("states")[:-1]
            self.sow("intermediates", "layers", sown)
            states_NBTD = jnp.concatenate([first_BTD[None], states_NBTD, x_BTD[None]])
            self.sow("intermediates", "states", states_NBTD)
        return x_BTD, cache

    def _biased(self, mask: Visible, x_BTD, cache) -> Visible:
        queries_BT, keys_BS = mask.queries_BT, mask.keys_BS
        if queries_BT is None:
            queries_BT = jnp.arange(x_BTD.shape[1])[None]
        if keys_BS is None:
            slots = x_BTD.shape[1] if cache is None else cache[0].k_BHSK.shape[2]
            keys_BS = jnp.arange(slots)[None]
        return mask.replace(bias_BHTS=self.distance(queries_BT, keys_BS))


def unstack(tree, count: int) -> list:
    """The `count` trees that lie along the leading axis of a tree of arrays.

    By `lax.split`, whose gradient is one concatenation; that of indexing would be a sum of
    `count` padded arrays.
    """
    leaves, treedef = jax.tree.flatten(tree)
    parts = [[p.squeeze(0) for p in lax.split(leaf, (1,) * count)] for leaf in leaves]
    return [treedef.unflatten([part[n] for part in parts]) for n in range(count)]
