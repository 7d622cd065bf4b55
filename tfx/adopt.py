"""What can a run take over from another one, or from a folder of Hugging Face? The tokenizer, and
the parameters: all of the body, and of the head what fits.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from tfx import assemble, checkpoint, models, pretrained, sharding, workdir
from tfx.config import Config
from tfx.objectives import distill, distill_task

HEADLESS = {"head": "none", "pooler": "none"}  # fields that make a head, and what makes none


def load(place: str, mesh, dtype: str = "float32") -> tuple[nn.Module, dict[str, Any]]:
    """The model of a workdir or a folder of Hugging Face, and the parameters on the devices of a
    mesh: whatever the mesh that it was trained on, and where this one does not divide an array,
    whole on each."""
    if checkpoint.is_run(place):
        config = workdir.read_config(place)
        config = dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, kernel="auto"),
            train=dataclasses.replace(config.train, dtype=dtype),
        )
        model = assemble.build_model(config, assemble.tokenizer_of(place))
        like = sharding.place_any(models.shapes(model), mesh)
        with checkpoint.Checkpoints(place) as saved:
            return model, saved.weights(like, saved.choose()[0])
    found = pretrained.read(place, dtype)
    like = sharding.place_any(models.shapes(found.model), mesh)
    # Every process reads the folder; each puts down what lies on its own devices.
    put = lambda x, at: jax.make_array_from_callback(x.shape, at.sharding, lambda part: x[part])
    return found.model, jax.tree.map(put, found.params, like)


def check(config: Config, directory) -> None:
    """Refuse what a run could not start from, before its text is read.

    Raises:
      FileNotFoundError: no run or folder is there.
      ValueError: what is there is damaged, or of another family, size or task.
    """
    if config.init_from and not workdir.progress(directory)[0]:
        there, here = _shape(config.init_from), config.model
        place = f"init_from = {config.init_from}"
        home = lambda model: models.family(model).MODEL
        if home(there) is not home(here):
            raise ValueError(_other(place, there, here))
        if there.width != here.width:
            raise ValueError(f"{place} is {there.width} wide, model.width is {here.width}")
    if teacher := getattr(config.objective, "teacher", ""):
        check_teacher(config, config.model, _shape(teacher))


def check_teacher(config: Config, model, teacher) -> None:
    """Raises a ValueError where the config of a teacher's model does not go with the student's."""
    try:
        assemble.objective(config).check(config.objective, model, teacher)
    except ValueError as error:
        raise ValueError(f"objective.teacher = {config.objective.teacher}: {error}") from None


def _shape(place: str):
    """The config of the model there; of a folder of Hugging Face, all of it is read."""
    if checkpoint.is_run(place):
        return workdir.read_config(place).model
    return pretrained.read(place).model.config


def _other(place: str, there, here) -> str:
    there, here = map(models.name_of, (there, here))
    return f"{place} holds a {there}, model.name is {here}; start from a {here}"


def parameters(config: Config, model: nn.Module, mesh, say) -> dict[str, Any]:
    """The parameters of `config.init_from`, in the shape of a model's; None where the model's own
    start is to be used, which only a head may need.

    A student that is distilled, and has fewer layers, takes every so many of its teacher's.

    Raises:
      ValueError: something of the body is not there, or is of another shape: all of it, a line.
    """
    other, found = load(config.init_from, mesh)
    found = _by_path(found)
    distills = isinstance(config.objective, distill.Config | distill_task.Config)
    deep, here = other.config.depth, config.model.depth
    chosen = distill.student_layers(deep, here) if distills and here < deep else None
    settings = {k: v for k, v in HEADLESS.items() if hasattr(model.config, k)}
    body = _by_path(models.shapes(models.build(dataclasses.replace(model.config, **settings))))
    taken, new, wrong = {}, [], []
    for path, like in _by_path(nn.unbox(models.shapes(model))).items():
        x = found.pop(path, None)
        if x is not None and chosen is not None and "layers" in path.split("/"):
            x = jnp.asarray(x)[jnp.array(chosen)]
        fits = x is not None and x.shape == like.shape
        if fits or path not in body:
            taken[path] = x if fits else None
            new += [] if fits else [path]
        else:
            there = "nothing" if x is None else x.shape
            wrong.append(f"{path}: there {there}, here {like.shape}")
    if wrong and type(other.config) is not type(model.config):
        raise ValueError(_other(f"init_from = {config.init_from}", other.config, model.config))
    if wrong:
        more = f"; and {len(wrong) - 6} more" if len(wrong) > 6 else ""
        raise ValueError(
            f"init_from = {config.init_from} does not fit the model: {'; '.join(wrong[:6])}{more}"
        )
    say(
        f"starting from {config.init_from}: {len(taken) - len(new)} of {len(taken)} arrays"
        + f"; new here: {', '.join(new)}" * bool(new)
        + f"; left there: {', '.join(found)}" * bool(found)
        + f"; layers {', '.join(map(str, chosen or ()))}" * bool(chosen)
    )
    return taken


def _by_path(tree) -> dict[str, Any]:
    tree = nn.unbox(tree)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}
