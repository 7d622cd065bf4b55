"""How parameters move: a schedule, an optimiser of optax, clipping, a decay mask."""

import inspect

import jax
import jax.numpy as jnp
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


def build(config, steps: int, width: int) -> optax.GradientTransformation:
    """Clipping, then the named optimiser of optax with those settings that it takes.

    Raises:
      ValueError: optax has no such optimiser, or it takes no weight decay.
    """
    make = getattr(optax, config.name, None)
    known = inspect.signature(make).parameters if callable(make) else {}
    if "learning_rate" not in known:
        raise ValueError(f"optim.name = {config.name!r} is no optimiser of optax; try adam, adamw")
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
    optimiser = make(schedule(config, steps, width), **settings)
    clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
    return optax.chain(clip, optimiser)
