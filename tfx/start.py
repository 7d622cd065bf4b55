"""Where does a run start? With the model of another run, with one that others have trained, or with
a shape alone: what stands behind the colon of `--config=sst2:runs/bert`.
"""

from dataclasses import replace
from typing import Any

from tfx import bucket, checkpoint, pretrained, workdir
from tfx import config as configs
from tfx.models import MODELS
from tfx.objectives import OBJECTIVES
from tfx.schema import Config, Data, Tokenizer


def start_from(place: str, *objectives: str) -> configs.ConfigDict:
    """The defaults of a run that takes its model from a place, locked: shape and dropout, with a
    head for the objective; the tokenizer; and, by `init_from`, the parameters.

    Args:
      place: a workdir or a folder of Hugging Face; or FAMILY or FAMILY-SIZE, such as bert-base,
        which has no parameters yet.
      objectives: the first that the model can learn is chosen.

    Raises:
      FileNotFoundError: it is none of these.
      ValueError: what is there is damaged, or can learn none of the objectives.
    """
    model, tokenizer, origin = _read(place)
    for name in objectives:
        if shape := configs.headed(model, name):
            learned, data = OBJECTIVES[name].Config(), Data()
            data = replace(data, max_length=min(data.max_length, shape.max_length))
            rest = dict(init_from=origin, tokenizer=tokenizer, data=data)
            return configs.thaw(Config(shape, learned, **rest))
    raise ValueError(f"{place}: its model cannot learn {' or '.join(objectives)}")


def _read(place: str) -> tuple[Any, Tokenizer, str]:
    """The config of a model, that of its tokenizer, and where its parameters are."""
    if size := sizes().get(place):
        family, model, origin = *size, ""
    elif checkpoint.is_run(place):
        run = workdir.read_config(place)
        return run.model, run.tokenizer, place
    else:
        found = pretrained.read(place)
        family, model, origin = found.family, found.model.config, place
    return model, Tokenizer(kind=configs.TOKENIZERS.get(family, "bpe")), origin


def sizes() -> dict[str, tuple[str, Any]]:
    """{FAMILY-SIZE: (FAMILY, config)} of all models, and of a FAMILY alone its first size."""
    found = {}
    for name, family in MODELS.items():
        for size, fields in family.SIZES.items():
            found[f"{name}-{size}"] = name, family.Config(**fields)
            found.setdefault(name, found[f"{name}-{size}"])
    return found


def placed(arg: str, default: str, *choices: str) -> tuple[str, str, bool]:
    """As `config.variant`, where a word may be a place: that, or the default one, comes first.

    A path may hold colons, but no comma; a folder that is called like a model is ./bert-base.
    """
    options = [word for word in arg.split(",") if word in {*choices, "tiny"}]
    places = [word for word in arg.split(",") if word and word not in options]
    for place in places:
        if len(places) > 1 or not (place in sizes() or bucket.place(place).exists()):
            if "/" in place and len(places) == 1:
                raise ValueError(
                    f"{place}: no such folder; name a workdir or a folder of Hugging Face"
                )
            known = [*choices, "tiny"]
            hint = configs.did_you_mean(place, [*known, *sizes()]) if len(places) == 1 else ""
            raise ValueError(
                f'variant "{arg}": choose from {", ".join(known)}, and one of a workdir, a folder '
                f"of Hugging Face or FAMILY-SIZE{hint}"
            )
    return places[0] if places else default, *configs.variant(",".join(options), *choices)
