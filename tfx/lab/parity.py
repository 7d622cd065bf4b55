"""Does a model of ours compute what the reference implementation computed?

A reference folder holds a Hugging Face model, `config.json` and `model.safetensors`, and what
it made of given inputs, `io.npz`: arrays `<case>/in/<argument>` and `<case>/out/<name>`, and of
some cases `out64` (in float64), `grad` of the loss and `adamw` (losses of six steps). What a
case or a search changed is in `meta.json`. What is not there is not checked.
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tfx import models, pretrained
from tfx.models import hf, weights
from tfx.nn.linear import Product

LIMIT = 1e-5  # of outputs, against max(1, the largest of the reference)
LIMITS = {"grad": 1e-4, "adamw": 1e-4}  # of each gradient against its largest; of losses


class Difference(NamedTuple):
    """How far an output is from the reference."""

    case: str
    output: str
    difference: float  # against max(1, the largest of the reference); of ids: how many differ
    limit: float

    @property
    def fits(self) -> bool:
        return self.difference <= self.limit  # and not NaN


def check(folder: str | Path, float64: bool = False) -> Iterator[Difference]:
    """Every output that the folder holds, and how far ours is from it.

    Args:
      float64: compute in float64, and compare with what was computed in float64 where there is
        such.

    Raises:
      FileNotFoundError, ValueError: the folder is not whole.
    """
    path = Path(folder)
    if not (path / "io.npz").is_file():
        raise FileNotFoundError(f"{folder}: no io.npz; want a folder of references")
    with np.load(path / "io.npz") as file, jax.enable_x64(float64):
        arrays = {key: file[key] for key in file.files}
        meta = path / "meta.json"
        meta = json.loads(meta.read_bytes()) if meta.is_file() else {}
        reference = Reference(
            pretrained.read_config(path), weights.read(path), arrays, meta, f"{folder}", float64
        )
        for case in dict.fromkeys(key.split("/")[0] for key in arrays):
            if case == "eps_probe":
                yield from reference.probe()
            elif case.startswith("gen_"):
                continue
            else:
                yield from reference.case(case)


class Reference:
    """The content of a reference folder."""

    def __init__(self, about, tensors, arrays, meta, where: str, float64: bool):
        self._about, self._tensors, self._arrays = about, tensors, arrays
        self._meta, self._where, self._float64 = meta, where, float64

    def case(self, case: str, name: str = "", tensors=None) -> Iterator[Difference]:
        """Outputs, gradients and steps of a case; the outputs of `name` if it is another one."""
        said = self._meta.get("cases", {}).get(case, {})
        found = self._model(said.get("config_override", {}), tensors or self._tensors)
        theirs = self._under(case, "in") | said.get("extra", {})
        outputs = jax.jit(partial(run, found.model, found.about, theirs=theirs))(found.params)
        wanted = self._under(name or case, "out")
        exact = self._under(name or case, "out64") if self._float64 else {}
        for key, want in (wanted | exact).items():
            if key not in outputs:
                raise ValueError(f"{self._where}: {case}/out/{key}: tfx has no such output")
            yield Difference(name or case, key, distance(outputs[key], want), LIMIT)
        if (gradients := self._under(case, "grad")) and not name:
            yield from self._learn(case, found, theirs, gradients)

    def probe(self) -> Iterator[Difference]:
        """A case again, with some tensors made small: shows the epsilon of the norms."""
        said = self._meta["eps_probe"]
        scale = dict.fromkeys(said["multiply_params"], said["scale"])
        tensors = {name: x * scale.get(name, 1) for name, x in self._tensors.items()}
        yield from self.case(said["case"], "eps_probe", tensors)

    def _learn(self, case, found, theirs, gradients) -> Iterator[Difference]:
        loss = lambda params: run(found.model, found.about, params, theirs)["loss"]
        home = models.family(found.model.config)
        boxed, format = models.shapes(found.model), home.FORMAT
        config = found.model.config
        named = lambda tree: format.clean(hf.to_tensors(format, config, boxed, tree, False))
        ours, wanted = named(jax.device_get(jax.jit(jax.grad(loss))(found.params))), {}
        wanted = format.clean(gradients)
        for name in wanted.keys() & ours.keys():
            most = np.abs(wanted[name]).max() or 1.0
            off = np.abs(ours[name] - wanted[name]).max() / most
            # What a gradient of zero has for digits is noise.
            off = off if most > 1e-5 else np.abs(ours[name]).max()
            yield Difference(case, f"grad/{name}", float(off), LIMITS["grad"])
        if (losses := self._arrays.get(f"{case}/adamw/loss")) is not None:
            axes = {
                "/".join(piece.path): len(piece.theirs(format.transposed))
                for piece in hf.pieces(format, config, boxed)
                if piece.at.name in wanted  # others are not learned
            }
            ours = adamw(loss, found.params, len(losses), axes)
            yield Difference(case, "adamw/loss", float(np.abs(ours - losses).max()), 1e-4)

    def _model(self, override, tensors) -> pretrained.Pretrained:
        about = self._about | override
        name = pretrained.family(about, tensors, self._where)
        dtype = "float64" if self._float64 else "float32"
        found = pretrained.of_tensors(name, about, tensors, dtype, self._where)
        if not self._float64:
            return found
        wide = jax.tree.map(lambda x: x.astype(np.float64), found.params)
        return found._replace(params=wide)

    def _under(self, *names: str) -> dict[str, np.ndarray]:
        prefix = "/".join(names) + "/"
        found = {k.removeprefix(prefix): x for k, x in self._arrays.items() if k.startswith(prefix)}
        return found


def distance(ours, theirs) -> float:
    """The largest difference against max(1, the largest of theirs)."""
    if ours.shape != theirs.shape:
        return float("inf")
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max()))


def run(model, about: dict, params, theirs: dict) -> dict[str, jax.Array]:
    """All outputs of a model, under the names that Hugging Face gives them."""
    format = models.family(model.config).FORMAT
    batch = format.batch(about, theirs)
    found, seen = model.apply({"params": params}, batch, method="predict", mutable="intermediates")
    multiply = lambda x: x.logits() if isinstance(x, Product) else x
    found = {key: multiply(x) for key, x in found.items()}
    outputs = format.outputs(model.config, found, seen["intermediates"])
    return outputs | loss(model.config, outputs, theirs)


def loss(config, outputs: dict, theirs: dict) -> dict[str, jax.Array]:
    """The loss that Hugging Face's class computes where it is given labels."""
    head, labels = getattr(config, "head", "lm"), theirs.get("labels")
    parts = []
    if head == "span" and "start_positions" in theirs:
        for side in ("start", "end"):
            logits_BT, at_B = outputs[f"{side}_logits"], theirs[f"{side}_positions"]
            ignored = (at_B < 0) | (at_B >= logits_BT.shape[1])
            parts.append(_mean_nll(logits_BT, jnp.where(ignored, -100, at_B)) / 2)
    if labels is not None:
        logits = outputs["prediction_logits" if head == "pretraining" else "logits"]
        if head == "causal":
            parts.append(_mean_nll(logits[:, :-1], labels[:, 1:]))
        elif labels.dtype.kind == "f":
            parts.append(jnp.square(logits.squeeze(-1) - labels.reshape(logits.shape[:-1])).mean())
        else:
            parts.append(_mean_nll(logits, labels))
    if (next_B := theirs.get("next_sentence_label")) is not None:
        parts.append(_mean_nll(outputs["seq_relationship_logits"], next_B))
    return {"loss": sum(parts)} if parts else {}


def _mean_nll(logits, labels):
    """Mean over labels that are not -100."""
    kept = labels != -100
    logp = jnp.take_along_axis(
        jax.nn.log_softmax(logits), jnp.where(kept, labels, 0)[..., None], -1
    )[..., 0]
    return -jnp.where(kept, logp, 0).sum() / kept.sum()


def adamw(loss, params, steps: int, axes: dict[str, int]) -> np.ndarray:
    """Losses before each step of AdamW as the references took them: clipped, and with a decay of
    what has two axes or more in theirs, where a layer's bias has one.

    Args:
      axes: how many, by the path of a parameter.
    """
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    decay = jax.tree_util.tree_map_with_path(lambda path, _: axes.get(name(path), 0) > 1, params)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(5e-3, 0.9, 0.98, 1e-6, weight_decay=0.01, mask=decay),
    )

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state, losses = tx.init(params), []
    for _ in range(steps):
        params, state, value = step(params, state)
        losses.append(float(value))
    return np.array(losses)
