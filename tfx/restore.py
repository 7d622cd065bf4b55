"""A trained model as its workdir holds it, on the devices that are here."""

import dataclasses
import logging
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from tfx import assemble, checkpoint, hosts, models, sharding
from tfx.data import tokenizer as tokenizers
from tfx.data.tokenizer import Tokenizer
from tfx.schema import Config


class Opened(NamedTuple):
    """A run whose parameters are not read yet."""

    place: Path
    config: Config
    tokenizer: Tokenizer
    model: nn.Module


def open_run(place: Path, config: Config) -> Opened:
    """Read all of a run but its parameters.

    Args:
      config: the run's, with what describes this machine (`config.on_machine`).
    """
    ids = tokenizers.load(place)
    return Opened(place, config, ids, assemble.build_model(config, ids))


def mesh_for(opened: list[Opened], asked: bool) -> jax.sharding.Mesh:
    """Choose the mesh of the runs where they share one that fits devices and models, else `dp`.

    Raises:
      sharding.Misfit: it was asked for, and does not fit.
    """
    meshes = list(dict.fromkeys(each.config.mesh for each in opened))
    if len(meshes) == 1:
        try:
            mesh = sharding.make_mesh(**dataclasses.asdict(meshes[0]))
            for each in opened:
                sharding.check(models.shapes(each.model), (), mesh)
            return mesh
        except sharding.Misfit:
            if asked:
                raise
    if hosts.leads():
        count = jax.device_count()
        shown = (", ".join(f"{k}={n}" for k, n in dataclasses.asdict(m).items()) for m in meshes)
        logging.getLogger("tfx").warning(
            "%d %s here, the run was trained on %s: using dp",
            *(count, "device" if count == 1 else "devices"),
            " and ".join(f"mesh({each})" for each in shown),
        )
    return sharding.make_mesh()


def weights(
    opened: Opened, mesh, step: int | None, last: int, best: int = 0
) -> tuple[dict[str, Any], int]:
    """Read the parameters of a step, or the mean of several, and the number of the (last) step.

    Raises:
      ValueError: no such step, not so many, or they were trained with another tokenizer.
    """
    place, _, ids, model = opened
    like = sharding.place(models.shapes(model), mesh)
    with checkpoint.Checkpoints(place) as saved:
        steps = saved.choose(step, last, best)
        if saved.meta(steps[-1])["tokenizer"] != ids.fingerprint:
            raise ValueError(
                f"{place}: the tokenizer is not the one that its checkpoints were trained "
                "with; copy the right tokenizer.* back"
            )
        params = checkpoint.average([partial(saved.weights, like, s) for s in steps])
    return params, steps[-1]
