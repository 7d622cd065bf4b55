"""One paper a file. Each has a `Config`, `SIZES`, `check(config)`, `MODEL`, the module that it
builds, `initial(config)`, how its parameters start, and `FORMAT`, how Hugging Face writes them."""

import re
from types import ModuleType

import jax
import jax.numpy as jnp
from flax import linen as nn

from tfx.models import bart, bert, distilbert, gpt, gpt2, marian, roberta, t5, transformer, xlnet

MODELS = {
    "transformer": transformer,
    "marian": marian,
    "bart": bart,
    "bert": bert,
    "roberta": roberta,
    "distilbert": distilbert,
    "gpt": gpt,
    "gpt2": gpt2,
    "xlnet": xlnet,
    "t5": t5,
}


def name_of(config) -> str:
    """What the family of a model config is called."""
    return next(name for name, m in MODELS.items() if type(config) is m.Config)


def family(config) -> ModuleType:
    """The file that a model config is of."""
    return MODELS[name_of(config)]


def build(config) -> nn.Module:
    """The module of a model config, of whichever family; its fields must fit each other."""
    family(config).check(config)
    return family(config).MODEL(config)


def parameters(model: nn.Module, key: jax.Array):
    """The parameters that a model starts with, boxed with their axis letters."""
    example = dict.fromkeys(model.INPUTS, jnp.zeros((1, 2), jnp.int32))
    boxed = model.init(key, example, method="predict")["params"]
    rules = family(model.config).initial(model.config)
    key = jax.random.fold_in(key, 1)

    def draw(path, box, key):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        found = next((init for rule, init in rules.items() if re.search(rule, path)), None)
        value = box.unbox()
        return box if found is None else box.replace_boxed(found(key, value.shape, value.dtype))

    is_box = lambda x: isinstance(x, nn.Partitioned)
    paths, treedef = jax.tree_util.tree_flatten_with_path(boxed, is_leaf=is_box)
    keys = jax.random.split(key, len(paths))
    return treedef.unflatten([draw(*each, key) for each, key in zip(paths, keys, strict=True)])


def shapes(model: nn.Module):
    """The same, as shapes; no device is asked for, so that a config may be made before a run of
    several processes is joined."""
    return jax.eval_shape(lambda: parameters(model, jax.random.key(0)))
