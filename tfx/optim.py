"""How parameters move: a schedule, an optimiser of optax, clipping, a decay mask; in fine-tuning
which move slowly, and which not at all."""

import difflib
import inspect
import re
from itertools import accumulate

import jax
import jax.numpy as jnp
import numpy as np
import optax

# A schedule is a closure step -> learning rate; step counts from 1 at the first update.


def noam(lr, warmup, steps, width):
    """lr * width^-0.5 * min(step^-0.5, step * warmup^-1.5): Vaswani et al. (2017), eq. 3."""
    return lambda step: lr * width**-0.5 * jnp.minimum(step**-0.5, step * max(warmup, 1) ** -1.5)


def rsqrt(lr, warmup, steps, width):
    """Linear to `lr` over the warm-up, then lr * sqrt(warmup / step): fairseq's inverse_sqrt."""
    warmup = max(warmup, 1)
    return lambda step: lr * jnp.minimum(step / warmup, jnp.sqrt(warmup / step))


def linear(lr, warmup, steps, width):
    """Linear to `lr` over the warm-up, then linear to 0 at the last step: Devlin et al. (2019)."""
    after = lambda step: jnp.clip((steps - step) / max(steps - warmup, 1), 0, 1)
    return lambda step: lr * jnp.minimum(step / max(warmup, 1), after(step))


def cosine(lr, warmup, steps, width):
    """Linear to `lr` over the warm-up, then half a cosine to 0: Loshchilov and Hutter (2017)."""
    done = lambda step: jnp.clip((step - warmup) / max(steps - warmup, 1), 0, 1)
    after = lambda step: (1 + jnp.cos(jnp.pi * done(step))) / 2
    return lambda step: lr * jnp.minimum(step / max(warmup, 1), after(step))


def constant(lr, warmup, steps, width):
    """Linear to `lr` over the warm-up, then `lr`."""
    return lambda step: lr * jnp.minimum(step / max(warmup, 1), 1.0)


SCHEDULES = {
    "noam": noam,
    "rsqrt": rsqrt,
    "linear": linear,
    "cosine": cosine,
    "constant": constant,
}


def schedule(config, steps: int, width: int):
    """The schedule of an optim config, as a function of updates already done."""
    rate = SCHEDULES[config.schedule](config.lr, config.warmup, steps, width)
    return lambda count: rate(jnp.asarray(count, jnp.float32) + 1)


def decayed(params):
    """Mask of the parameters that weight decay applies to: not biases, not norm scales."""
    decays = lambda path, _: not path[-1].key.endswith(("bias", "scale"))
    return jax.tree_util.tree_map_with_path(decays, params)


# By path: what is there before the first layer. XLNet's mask is what a query stream begins with.
EMBEDDINGS = re.compile(r"((source|target)_)?(embed|positions|norm)/|(types|mask)$")


def paths(shapes) -> list[tuple[list[str], jax.ShapeDtypeStruct]]:
    """The paths of every parameter, and its shape. A stack holds those of all its layers in one
    array, which then has a path for each: "encoder/layers/0/self_norm/scale" and so on."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        stack, layers, rest = path.partition("/layers/")
        count = leaf.shape[0] if layers else 0
        found.append(([f"{stack}/layers/{n}/{rest}" for n in range(count)] or [path], leaf))
    return found


def is_frozen(config, path: str) -> bool:
    """Whether `optim.frozen` matches somewhere in a path, and cuts through no number there."""
    whole = r"(?!(?<=\d)\d)"
    return config.frozen != "" and bool(re.search(f"{whole}(?:{config.frozen}){whole}", path))


def check(config, shapes) -> None:
    """Raise a ValueError where `optim.frozen` does not fit the parameters of a model."""
    if not config.frozen:
        return
    where = f"optim.frozen = {config.frozen!r}"
    every = [path for several, _ in paths(shapes) for path in several]
    try:
        re.compile(config.frozen)
    except re.error as error:
        raise ValueError(f"{where} is no regular expression: {error}") from None
    found = [path for path in every if is_frozen(config, path)]
    if not found:
        above = {part for p in every for part in accumulate(p.split("/"), "{}/{}".format)}
        near = difflib.get_close_matches(config.frozen, sorted(above), 3, 0.0)
        raise ValueError(f"{where} matches no parameter; there are {', '.join(near)}")
    if len(found) == len(every):
        raise ValueError(f"{where} matches every parameter; leave some to train, such as the head")


def factors(config, shapes):
    """What the learning rate of every parameter is multiplied by; 0 where it is frozen.

    The head has the rate itself, and each layer `layer_decay` times that of what is above it; the
    embeddings, that once more (Howard and Ruder, 2018, 3.2). Counted as in the code of BEiT (Bao
    et al., 2022), where what all layers share, the norm behind them or a bias for distances, goes
    with the head; ELECTRA's has the whole body one step lower. Encoder and decoder count their own
    layers, from the top; the embeddings are below the deeper of them.

    Returns:
      A tree of float32 arrays: [N, 1, ...] for the arrays of a stack, else of no axes.
    """
    each = paths(shapes)
    deepest = max(len(several) for several, _ in each)

    def factor(several, leaf):
        below = deepest + 1 if EMBEDDINGS.match(several[0]) else 0
        layered = "/layers/" in several[0]
        powers = range(len(several), 0, -1) if layered else [below]
        rates = [
            0.0 if is_frozen(config, path) else config.layer_decay**power
            for path, power in zip(several, powers, strict=True)
        ]
        shape = (-1, *(1,) * (len(leaf.shape) - 1)) if layered else ()
        return np.array(rates, np.float32).reshape(shape)

    return jax.tree.unflatten(jax.tree.structure(shapes), [factor(*both) for both in each])


def scaled(optimiser, factors) -> optax.GradientTransformation:
    """An optimiser whose updates are multiplied by `factors`. What has the factor 0 it never sees:
    not in a norm, and for an array that is frozen whole it is given a number, so it keeps nothing
    of its size. (The state of `optax.partition` has holes there, which `optax.tree.map_params`
    cannot map beside parameters.)"""

    def seen(tree):
        none = lambda x: jnp.zeros((), x.dtype)
        some = lambda factor, x: jnp.where(factor > 0, x, 0) if factor.any() else none(x)
        return jax.tree.map(some, factors, tree)

    def init(params):
        # `optax.tree.map_params` asks with a single mark in place of all parameters.
        whole = jax.tree.structure(params) == jax.tree.structure(factors)
        return optimiser.init(seen(params) if whole else params)

    def update(grads, state, params):
        scale = lambda factor, u, p: jnp.broadcast_to(u * factor.astype(u.dtype), p.shape)
        updates, state = optimiser.update(seen(grads), state, seen(params))
        return jax.tree.map(scale, factors, updates, params), state

    return optax.GradientTransformation(init, update)


def build(config, steps: int, width: int, shapes=None) -> optax.GradientTransformation:
    """Clipping, then the named optimiser of optax with those settings that it takes.

    Args:
      shapes: of the parameters; only `layer_decay` and `frozen` ask for them.

    Raises:
      ValueError: optax has no such optimiser, it takes no weight decay or wants what no config
        says, or `check` refuses.
    """
    make = getattr(optax, config.name, None)
    known = inspect.signature(make).parameters if callable(make) else {}
    if "learning_rate" not in known:
        near = difflib.get_close_matches(config.name.lower(), names(), 1)
        hint = f"did you mean {near[0]}?" if near else "try adam, adamw"
        raise ValueError(f"optim.name = {config.name!r} is no optimiser of optax; {hint}")
    settings = {k: getattr(config, k) for k in ("b1", "b2", "eps") if k in known}
    if config.weight_decay:
        decay = next((k for k in ("weight_decay", "weight_decay_rate") if k in known), None)
        if decay is None:
            raise ValueError(
                f"optim.weight_decay = {config.weight_decay}, but optim.name = {config.name!r} "
                "takes none; use adamw"
            )
        mask = "mask" if "mask" in known else "weight_decay_mask"
        settings |= {decay: config.weight_decay, mask: decayed}
    elif "weight_decay" in known:
        settings["weight_decay"] = 0.0
    optimiser = _made(config.name, make, schedule(config, steps, width), settings)
    clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
    whole = optax.chain(clip, optimiser)
    if config.layer_decay == 1 and not config.frozen:
        return whole
    check(config, shapes)
    return scaled(whole, factors(config, shapes))


def names() -> list[str]:
    """The optimisers of optax that take a learning rate."""
    lower = (name for name in dir(optax) if name.islower() and not name.startswith(("_", "scale_")))
    functions = [name for name in lower if callable(getattr(optax, name))]
    takes = lambda name: "learning_rate" in inspect.signature(getattr(optax, name)).parameters
    return [name for name in functions if takes(name)]


def _made(name: str, make, rate, settings: dict) -> optax.GradientTransformation:
    """An optimiser that has taken a step in thought, with one matrix: some want more than
    gradients, parameters and these settings."""
    param = {"kernel": jax.ShapeDtypeStruct((2, 2), jnp.float32)}
    try:
        optimiser = make(rate, **settings)
        jax.eval_shape(lambda p: optimiser.update(p, optimiser.init(p), p), param)
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise ValueError(f"optim.name = {name!r} does not train here ({why}); try adam") from error
    return optimiser
