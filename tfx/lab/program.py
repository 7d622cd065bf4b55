"""How does a model run where there is no tfx? As a program that JAX has serialised, for CPUs, GPUs
and TPUs, with its parameters beside it.

    program.bin         what `jax.export.deserialize` reads: call(parameters, inputs) -> outputs
    model.safetensors   the parameters by their paths
    program.json        what goes in and what comes out
    tokenizer.*         how text becomes the ids that go in, and ids become text: as in a workdir
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tfx import models, translate
from tfx.models import weights
from tfx.nn.linear import Product
from tfx.translate import Run

PLATFORMS = ("cpu", "cuda", "tpu")
INPUTS = {
    "source": "ids with what the tokenizer puts around a text, its end included; `pad` behind",
    "target_in": "ids that the decoder reads",
    "ids": "ids with what the tokenizer puts around a text; `pad` behind",
    "mask": "1 on tokens, 0 on padding",
    "types": "which text a token is of, as the tokenizer says",
}
OUTPUTS = {
    "tokens": "ids, best hypothesis first, their end included; `pad` behind",
    "lengths": "tokens of each hypothesis; 0: there is none",
    "scores": "of each hypothesis",
}


def write(run: Run, to: Path, shape: str) -> None:
    """The whole search of a model that translates, else what `predict` makes of a batch.

    Args:
      shape: "ROWS,LENGTH" of the input; of a multiple choice "ROWS,CHOICES,LENGTH".

    Raises:
      ValueError: the shape is none, or longer than the model has positions for.
    """
    model = models.build(dataclasses.replace(run.model.config, kernel="xla"))
    sizes = _sizes(shape, model.config)
    searches = "source" in model.INPUTS and getattr(model.config, "head", "lm") == "lm"
    call, names = (_search if searches else _predict)(run, model, sizes)
    params = flat(run.params)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    inputs = {name: jax.ShapeDtypeStruct(sizes, jnp.int32) for name in names}
    exported = jax.export.export(jax.jit(call), platforms=PLATFORMS)(like, inputs)
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    special = run.tokenizer.special
    told = {
        "program": "program.bin",
        "parameters": "model.safetensors",
        "platforms": PLATFORMS,
        "jax": jax.__version__,
        "inputs": {name: _told(x, INPUTS[name]) for name, x in inputs.items()},
        "outputs": {name: _told(x, OUTPUTS.get(name, "")) for name, x in outputs.items()},
        "special": special,
    }
    if searches:  # ids around a text
        told["ends"] = run.tokenizer.ends._asdict()
    weights.write(to, params)
    (to / "program.bin").write_bytes(exported.serialize())
    run.tokenizer.save(to)
    (to / "program.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def flat(params) -> dict[str, np.ndarray]:
    """{"encoder/layers/...": array}."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x)
        for path, x in jax.tree_util.tree_leaves_with_path(params)
    }


def nested(params: dict[str, Any]) -> dict[str, Any]:
    """The way back."""
    tree = {}
    for name, x in params.items():
        *parents, leaf = name.split("/")
        here = tree
        for parent in parents:
            here = here.setdefault(parent, {})
        here[leaf] = x
    return tree


def _sizes(shape: str, config) -> tuple[int, ...]:
    axes = ["ROWS", "CHOICES", "LENGTH"] if getattr(config, "head", "") == "choice" else None
    axes = axes or ["ROWS", "LENGTH"]
    sizes = tuple(map(int, shape.split(","))) if re.fullmatch(r"\d+(,\d+)*", shape) else ()
    if len(sizes) != len(axes) or 0 in sizes:
        example = ",".join(["8", "4", "64"][-len(axes) :])
        raise ValueError(f"--shape={shape}: want {','.join(axes)}, such as {example}")
    if sizes[-1] > config.max_length:
        most = config.max_length
        raise ValueError(f"--shape={shape}: the model has {most} positions (model.max_length)")
    return sizes


def _told(x, what: str) -> dict:
    return {"shape": x.shape, "dtype": np.dtype(x.dtype).name} | ({"what": what} if what else {})


def _search(run: Run, model, sizes):
    """As `Run.translate` searches, ids to ids."""
    how, (rows, length) = run.config.decode, sizes
    if how.method == "sample":
        raise ValueError("decode.method = sample: a program draws nothing; want beam or greedy")
    longest = min(length + how.extra, model.config.max_length)
    pad, around = run.tokenizer.special["pad"], len(run.tokenizer.ends.around)

    def call(params, inputs):
        token_BS = inputs["source"] != pad
        count_B = token_BS.sum(-1)
        limit_B = jnp.where(count_B > 0, jnp.minimum(count_B - around + how.extra, longest), 0)
        batch = inputs | {"limit": limit_B, "number": jnp.zeros(rows, jnp.uint32)}
        batch |= {"source_mask": token_BS.astype(jnp.int32)} if pad else {}
        key, ids = jax.random.key(0), run.ids
        found = translate.search([model], [nested(params)], batch, key, ids, how, longest, rows)
        return {
            "tokens": jnp.where(found.tokens_BWT < 0, pad, found.tokens_BWT),
            "lengths": found.lengths_BW,
            "scores": found.scores_BW,
        }

    return call, ("source",)


def _predict(run: Run, model, sizes):
    """What the model makes of a batch, logits multiplied out."""
    names = model.INPUTS if "source" in model.INPUTS else ("ids", "mask")
    if getattr(model.config, "types", 0) > 1 or models.family(model.config) is models.xlnet:
        names = (*names, "types")

    def call(params, inputs):
        found = model.apply({"params": nested(params)}, inputs, method="predict")
        multiply = lambda x: x.logits() if isinstance(x, Product) else x
        return {name: multiply(x) for name, x in found.items() if x is not None}

    return call, names
