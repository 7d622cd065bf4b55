"""Models that others have trained: from a folder of Hugging Face to a model and its parameters,
and back."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from tfx import models
from tfx.data import output
from tfx.models import hf, weights

TYPES = {  # their model_type: the family of ours, and how their classes' names begin
    "bert": ("bert", "Bert"),
    "roberta": ("roberta", "Roberta"),
    "xlm-roberta": ("roberta", "XLMRoberta"),
    "distilbert": ("distilbert", "DistilBert"),
    "marian": ("marian", "Marian"),
    "bart": ("bart", "Bart"),
    "xlnet": ("xlnet", "XLNet"),
    "openai-gpt": ("gpt", "OpenAIGPT"),
    "gpt2": ("gpt2", "GPT2"),
    "t5": ("t5", "T5"),
    "mt5": ("t5", "MT5"),
}
IDS = ("pad_token_id", "eos_token_id", "decoder_start_token_id")
MUST_SAY = {"marian": IDS, "bart": IDS}  # what their models do not run without


class Pretrained(NamedTuple):
    """A model as a folder holds it."""

    family: str
    model: nn.Module
    params: dict[str, Any]  # NumPy arrays
    about: dict[str, Any]  # its config.json


def read(folder: str | Path, dtype: str = "float32") -> Pretrained:
    """The model in a folder: its config.json and weights.

    Raises:
      FileNotFoundError: one of the two is not there.
      ValueError: it is damaged, of no family that tfx has, or the two do not fit each other.
    """
    about, tensors = read_config(folder), weights.read(folder)
    return of_tensors(family(about, tensors, f"{folder}"), about, tensors, dtype, f"{folder}")


def family(about: dict, tensors: dict, where: str) -> str:
    """Which of ours a model is of."""
    old = any("attention.self.query" in name for name in tensors)  # too old to say it
    name = about.get("model_type", "bert" if old else "")
    if name not in TYPES:
        raise ValueError(f'{where}: model_type "{name}": tfx has {", ".join(TYPES)}')
    return TYPES[name][0]


def of_tensors(family: str, about: dict, tensors: dict, dtype: str, where: str) -> Pretrained:
    """A model from its configuration and tensors."""
    home, errors = models.MODELS[family], {}
    format = home.FORMAT
    names = about.get("architectures") or format.heads
    fitting = [head for head in format.heads if any(name.endswith(head) for name in names)]
    if "architectures" in about:  # of Model and LMHeadModel, the one that says more
        fitting = sorted(fitting, key=len)[-1:]
    for head in fitting:
        try:
            config = format.to_config(home.Config, about, format.clean(tensors), head, dtype)
            model = models.build(config)
            params = hf.from_tensors(format, config, models.shapes(model), tensors)
            _check_finite(params)
            return Pretrained(family, model, params, about)
        except KeyError as error:
            errors[head] = f"config.json says no {error.args[0]}, which a {family} needs"
        except (TypeError, ValueError) as error:
            errors[head] = error
    if not errors:
        choices = ", ".join(format.heads)
        raise ValueError(f"{where}: {', '.join(names)}: want a class that ends with {choices}")
    raise ValueError(f"{where}: {next(iter(errors.values()))}")


def _check_finite(params) -> None:
    finite = lambda x: np.isfinite(x).all()
    bad = [path for path, x in jax.tree_util.tree_leaves_with_path(params) if not finite(x)]
    if bad:
        name = jax.tree_util.keystr(bad[0], simple=True, separator="/")
        raise ValueError(f"{name} holds what is no finite number; fetch the weights again")


def write(
    folder: str | Path,
    model: nn.Module,
    params: dict[str, Any],
    files: Mapping[str, bytes] | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """A folder that Hugging Face's classes read, and `read`: config.json and weights.

    Args:
      files: what else to put there, those of the tokenizer.
      about: what else config.json says: ids of special tokens, names of classes. A `model_type`
        may be that of a sister of the family, as mt5 is of t5.

    Raises:
      ValueError: their classes have no such model, or the folder holds something.
    """
    output.check_folder(folder)
    try:
        config, tensors = to_tensors(model, params, dict(about or {}))
    except ValueError as error:
        raise ValueError(f"{folder}: cannot be written for Hugging Face: {error}") from None
    text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with output.new_folder(folder) as part:
        weights.write(part, tensors)
        for name, content in {**(files or {}), "config.json": text.encode()}.items():
            (part / name).write_bytes(content)


def to_tensors(model: nn.Module, params, about: dict) -> tuple[dict[str, Any], dict]:
    """What config.json says, and tensors: the way back from `of_tensors`.

    Raises:
      ValueError: their classes have no such model; it names the fields.
    """
    config, boxed = model.config, models.shapes(model)
    if models.family(config) is models.transformer:
        config, params = models.marian.of_transformer(config, boxed, params)
        boxed = models.shapes(models.build(config))
    home = models.family(config)
    format = home.FORMAT
    own, head = format.from_config(config), format.head_of(config)
    kind, sister = own["model_type"], about.get("model_type")
    kind = sister if sister in TYPES and TYPES[sister][0] == TYPES[kind][0] else kind
    said = _said(kind, head, about, own)
    tensors = hf.to_tensors(format, config, boxed, params, head != "Model")
    back = format.to_config(home.Config, said, format.clean(tensors), head)
    ours, theirs = format.meaning(config), format.meaning(back)
    if differ := [f"model.{k} = {x!r}" for k, x in ours.items() if x != theirs.get(k, x)]:
        raise ValueError(f"{TYPES[kind][1]} there has no {', '.join(differ)}")
    if strange := [name for name in tensors if "/" in name]:
        raise ValueError(f"{TYPES[kind][1]} there has no {', '.join(strange)}")
    return said, tensors


def _said(kind: str, head: str, about: dict, own: dict) -> dict[str, Any]:
    """All of config.json; where the model says something else than what is beside it, it is right,
    but for the id of padding, which the tokenizer's texts have in them."""
    must = MUST_SAY.get(kind, ())
    if lacking := [name for name in must if about.get(name) is None]:
        raise ValueError(f"{' and '.join(lacking)} must be said: give the ids of the tokenizer")
    pad = about.get("pad_token_id")
    if pad is not None and own.get("pad_token_id", pad) != pad:
        first, wanted = own["pad_token_id"] + 1, own["pad_token_id"]
        raise ValueError(
            f"model.position_offset = {first} is for a tokenizer whose padding is {wanted}, this "
            f"one's is {pad}; set {pad + 1} and train on"
        )
    names = about.get("id2label") or {}
    if len(names) == own.get("num_labels"):
        own = {key: x for key, x in own.items() if key != "num_labels"}
        about = about | {"label2id": {name: int(n) for n, name in names.items()}}
    else:
        about = {key: x for key, x in about.items() if key not in ("id2label", "label2id")}
    # Theirs would end every text that is cut off with an id of their own.
    free = {"forced_eos_token_id": None} if must else {}
    said = {"architectures": [TYPES[kind][1] + head], "dtype": "float32"} | free
    return said | about | own | {"model_type": kind}


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config.json of a folder."""
    path = Path(folder, "config.json")
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no config.json; want a folder of Hugging Face")
    try:
        about = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); download it again") from None
    if not isinstance(about, dict):
        raise ValueError(f"{path}: not an object; download it again")
    return about
