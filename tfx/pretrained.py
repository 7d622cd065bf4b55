"""Models that others have trained: from a folder of Hugging Face to a model and its parameters,
and back."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from flax import linen as nn

from tfx import models
from tfx.models import weights

TYPES = {  # their model_type, and the family of ours
    "bert": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "distilbert": "distilbert",
    "marian": "marian",
    "bart": "bart",
    "xlnet": "xlnet",
    "openai-gpt": "gpt",
    "gpt2": "gpt2",
    "t5": "t5",
    "mt5": "t5",
}


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
    return TYPES[name]


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
            params = models.hf.from_tensors(format, config, models.shapes(model), tensors)
            return Pretrained(family, model, params, about)
        except (KeyError, TypeError, ValueError) as error:
            errors[head] = error
    if not errors:
        choices = ", ".join(format.heads)
        raise ValueError(f"{where}: {', '.join(names)}: want a class that ends with {choices}")
    error = next(iter(errors.values()))
    raise ValueError(f"{where}: {error}") from error


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
