"""One paper a file. Each has a `Config`, `SIZES`, `check(config)` and a module."""

from tfx.models import transformer

MODELS = {"transformer": transformer}


def build(config):
    """The module of a model config, of whichever family; its fields must fit each other."""
    family = next(m for m in MODELS.values() if isinstance(config, m.Config))
    family.check(config)
    return MODULES[family](config)


MODULES = {transformer: transformer.Transformer}
