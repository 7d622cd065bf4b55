"""From a config file to what a run is made of: an ml_collections dict at the edge, the frozen
dataclasses of tfx/schema.py inside.

A config file is plain Python: `get_config(arg)` starts from `defaults(...)`, changes
values, and returns the dict. Overrides (`--config.optim.lr=1e-3`) change it further;
`freeze` then checks every type, choice and bound.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import re
import traceback
from collections.abc import Collection, Mapping, Sequence
from operator import ge, gt, le, lt, ne
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from absl import flags
from ml_collections import ConfigDict, config_flags

from tfx.schema import MESHES, Config, Tokenizer, misfits

# --------------------------------------------------------- from a file to a dict

BUILT_IN = Path(__file__).parent.parent / "configs"  # in a checkout; a wheel has none

# What `tiny` makes of a config: these texts and switches, and at most these numbers.
_TINY = {
    "data": dict(source="synthetic", train="valid", valid="valid", test="test", fields="")
    | dict(max_length=32),
    "model": dict(width=16, depth=1, decoder_depth=1, heads=2, key_width=8, value_width=8, mlp=32)
    | dict(vocab=0),
    "objective": dict(copies=1, predictions=0, reuse=0, memory=8, stride=64, no_answer=True),
    "tokenizer": dict(vocab=400, path=""),
    "batch": dict(tokens=256, shapes=1),
    "optim": dict(warmup=1, frozen=""),
    "train": dict(steps=2, accum=1, log_every=1),
    "eval": dict(every=2),
    "checkpoint": dict(every=2),
    "decode": dict(beam=2, extra=8, tokens=256),
}
# The same of what is longer than a sentence.
_TINY_TEXTS = {"data": dict(max_length=128, truncate=True), "batch": dict(tokens=2048)}
# The kind of tokenizer that a family reads, where it is not one of translation.
TOKENIZERS = dict(bert="bert", distilbert="bert", roberta="roberta", gpt="gpt2", gpt2="gpt2")
TOKENIZERS |= dict(t5="t5", xlnet="xlnet")
# What pre-training made of a model, and another head makes anew.
OF_THE_HEAD = ("pooler", "pooler_dropout", "bi_data")


def defaults(
    model: str = "transformer", size: str = "base", objective: str = "seq2seq"
) -> ConfigDict:
    """Every key with its default value, locked: where a config file starts. The tokenizer is of
    the model's kind, and the head one that the objective trains, if the model has such a one."""
    family = _family(model)
    if size not in family.SIZES:
        raise ValueError(f'size "{size}" of {model}: choose from {", ".join(family.SIZES)}')
    shape, learned = family.Config(**family.SIZES[size]), _objective(objective).Config()
    tokenizer = Tokenizer(kind=TOKENIZERS.get(model, "bpe"))
    return thaw(Config(headed(shape, objective) or shape, learned, tokenizer=tokenizer))


def headed(model: Any, objective: str) -> Any:
    """A model's config with a head that an objective trains; None where it has no such one."""
    from tfx.models import family

    home, learned = family(model), _objective(objective)
    if getattr(model, "head", "lm") not in learned.HEADS:
        known = get_args(get_type_hints(home.Config).get("head"))
        if not (fitting := [head for head in learned.HEADS if head in known]):
            return None
        anew = {k: v for k, v in vars(home.Config()).items() if k in OF_THE_HEAD}
        model = dataclasses.replace(model, head=fitting[0], **anew)
    return model if learned.READS in home.MODEL(model).INPUTS else None


def variant(arg: str, *choices: str) -> tuple[str, bool]:
    """What the ARG of `--config=FILE:ARG` says, words with commas between them: which of
    `choices` is named (the first, where none is), and whether "tiny" is named too.
    """
    words = [word for word in arg.split(",") if word]
    named = [word for word in words if word != "tiny"]
    known = (*choices, "tiny")
    if len(named) > 1 or not {*named} <= {*choices}:
        hint = did_you_mean(next((word for word in named if word not in choices), ""), known)
        raise ValueError(f'variant "{arg}": choose from {", ".join(known)}{hint}')
    return (named or [*choices, ""])[0], "tiny" in words


def tiny(config: ConfigDict) -> ConfigDict:
    """Shrink any config, in place, to two steps that take seconds: what CI trains.

    It reads the embedded corpus, or the exercises made of it, and trains on the small validation
    split. A distillation needs its teacher still.
    """
    from tfx.data.exercises import CLASSES, TAGS

    rows = _objective(config.objective.name).ROWS
    for section, values in _TINY.items():
        values = values | (_TINY_TEXTS.get(section, {}) if rows != "pair" else {})
        for key in values.keys() & config[section].keys():
            old, new = config[section][key], values[key]
            config[section][key] = new if isinstance(new, str | bool) else min(new, old)
    if "labels" in config.objective:
        names = {"labelled": CLASSES, "tagged": TAGS}.get(rows, ())
        config.objective.labels = ",".join(names)
        config.model.update({"classes": len(names)} if names else {})
    config.eval.sentences, config.init_from = 4, ""
    return config


def load(spec: str) -> ConfigDict:
    """Run a config file: `FILE.py`, or the name of a built-in one; `:ARG` may follow.

    Raises:
      FileNotFoundError: neither is there.
      ValueError: the file raises; the message has its line.
    """
    name, _, arg = spec.partition(":")
    path = _find(name)
    space: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), space)
        if "get_config" not in space:
            raise ValueError("defines no get_config(arg)")
        config = space["get_config"](*[arg] if arg else [])
        if not isinstance(config, ConfigDict):
            raise ValueError(f"get_config returns {type(config).__name__}, not a ConfigDict")
    except Exception as error:
        raise ValueError(_explain(error, path)) from error
    return config


def _find(name: str) -> Path:
    path = Path(name)
    if path.suffix == ".py" and path.is_file():
        return path
    built_in = BUILT_IN / f"{path.stem}.py"
    if path.parent in (Path(), Path("configs")) and built_in.is_file():
        return built_in
    names = ", ".join(sorted(p.stem for p in BUILT_IN.glob("*.py"))) or "none"
    hint = did_you_mean(path.stem, names.split(", ")) or f"; built in: {names}"
    raise FileNotFoundError(f"{name}: no such config file{hint}")


def _explain(error: Exception, path: Path) -> str:
    """One line with the place in the config file that an error comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if f.filename == str(path)]
    what = " ".join(str(error).split())
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines, what = [error.lineno], error.msg
    elif isinstance(error, AttributeError) and "ml_collections" in frames[-1].filename:
        key = re.search(r"""(?:Key |instead of |^"?)["'](\w+)["']""", what)[1]
        what = f"{key}: no such key{did_you_mean(key, [*defaults(), *flatten(defaults())])}"
    elif not isinstance(error, ValueError):
        what = f"{type(error).__name__}: {what}"
    return f"{path}:{lines[-1]}: {what}" if lines else f"{path}: {what}"


def override(config: ConfigDict, arguments: Sequence[str]) -> dict[str, Any]:
    """Apply `--config.KEY=VALUE` arguments, in place; returns {key: value} of what was set."""
    known = flatten(config)
    arguments = [each for argument in arguments for each in _of_preset(argument)]
    for argument in arguments:
        name, equals, value = argument.partition("=")
        key = name.partition(".")[2]
        if key not in known:
            raise ValueError(_no_such_key(key, known))
        kind = type(known[key])
        if not equals and kind is not bool:
            raise ValueError(f"{name}: a value is missing; write --config.{key}=VALUE")
        parse = flags.BooleanParser().parse if kind is bool else kind
        try:
            _ = equals and parse(value)
        except (TypeError, ValueError):  # TypeError: None, which a config file may write
            want = KINDS.get(kind, "a value in the config file first")
            raise ValueError(f"{key} = {_show(value)}: want {want}") from None
    values, argv = flags.FlagValues(), ["tfx", *arguments]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    values(argv)
    return config_flags.get_override_values(values["config"])


def _of_preset(argument: str) -> list[str]:
    """`--config.mesh=NAME` as the four overrides that it stands for; all else as it is."""
    name, _, value = argument.partition("=")
    if name.partition(".")[2] != "mesh":
        return [argument]
    if value not in MESHES:
        hint = did_you_mean(value, MESHES) or f"; choose from {', '.join(MESHES)}"
        raise ValueError(f'mesh = "{value}": no such preset{hint}')
    return [f"{name}.{axis}={size}" for axis, size in MESHES[value].items()]


def of_hardware(config: ConfigDict, kind: str) -> list[str]:
    """The overrides that `config.hardware` wants for a kind of device, such as "TPU v4"."""
    for rule in filter(str.strip, config.hardware.split(";")):
        pattern, _, wanted = rule.partition(":")
        if re.search(pattern.strip(), kind):
            return [f"--config.{each}" for each in wanted.split()]
    return []


def configure(spec: str, overrides: list[str], kind: str = "") -> tuple[Config, dict[str, Any]]:
    """A config file, with what it wants for a kind of device and the overrides, checked; and
    what was overridden."""
    chosen = load(spec)
    changed = override(chosen, of_hardware(chosen, kind) + overrides)
    return freeze(chosen), changed


# --------------------------------------------------- from a dict to dataclasses


def freeze(config: Mapping[str, Any]) -> Config:
    """Check everything and turn the dict into dataclasses. Keys left out: their default.

    Raises:
      ValueError: an unknown key, a wrong type, an unknown choice, a broken bound or
        values that do not fit each other; one line, with the full key.
    """
    given = flatten(config)
    family = _family(given.get("model.name", "transformer"))
    objective = _objective(given.get("objective.name", "seq2seq"))
    plain = Config(family.Config(), objective.Config())
    known = flatten(to_dict(plain))
    for key in (key for key in given if key not in known):
        _check_learns(family, plain)  # of another model there are other keys
        raise ValueError(_no_such_key(key, known))
    kinds = {"model": family.Config, "objective": objective.Config}
    frozen = _build(Config, kinds, given, "")
    family.check(frozen.model)
    _check_learns(family, frozen)
    for misfit in misfits(frozen):
        raise ValueError(misfit)
    return frozen


def thaw(config: Config) -> ConfigDict:
    """The dict of a config, locked: to be changed, and frozen again."""
    return ConfigDict(to_dict(config)).lock()


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested dict in the order of the schema; without what is set at run time."""
    from tfx import models, objectives  # here and below: only what needs flax waits for it

    tree = dataclasses.asdict(config)
    settable = [f.name for f in _settable(type(config.model))]
    model = {"name": models.name_of(config.model)} | {key: tree["model"][key] for key in settable}
    objective = {"name": objectives.name_of(config.objective)} | tree["objective"]
    return tree | {"model": model, "objective": objective}


def to_json(config: Config) -> str:
    """Indented JSON; `from_json` gives the same config back, exactly."""
    return json.dumps(to_dict(config), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str) -> Config:
    """The config that `to_json` wrote, with every check of `freeze`."""
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}: not JSON ({error.msg})") from None
    if not isinstance(tree, dict):
        raise ValueError("not a config: the outermost value is no object")
    return freeze(tree)


def _family(name: Any):
    from tfx.models import MODELS

    if not isinstance(name, str) or name not in MODELS:
        raise ValueError(f"model.name = {_show(name)}: choose from {', '.join(MODELS)}")
    return MODELS[name]


def _objective(name: Any):
    from tfx.objectives import OBJECTIVES

    if not isinstance(name, str) or name not in OBJECTIVES:
        raise ValueError(f"objective.name = {_show(name)}: choose from {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def _check_learns(family, config: Config) -> None:
    """Raises a ValueError where the model does not make what the objective compares. A model
    without a head may be kept; training refuses it."""
    from tfx.models import MODELS
    from tfx.objectives import OBJECTIVES, has_accuracy, name_of

    name = name_of(config.objective)
    reads, heads = OBJECTIVES[name].READS, OBJECTIVES[name].HEADS
    reading = lambda each, config: reads in each.MODEL(config).INPUTS
    if not reading(family, config.model):
        choices = ", ".join(n for n, each in MODELS.items() if reading(each, each.Config()))
        model = next(n for n, each in MODELS.items() if each is family)
        needs = "an encoder and a decoder" if reads == "source" else "a model of one text"
        raise ValueError(
            f'model.name = "{model}": objective.name = "{name}" needs {needs}; '
            f"choose from {choices}"
        )
    head = getattr(config.model, "head", "lm")
    if getattr(config.objective, "pairs", "none") != "none":
        heads = ("pretraining",)
    if head not in (*heads, "none"):
        raise ValueError(
            f'model.head = "{head}": objective.name = "{name}" trains {" or ".join(heads)}'
        )
    if getattr(config.model, "bi_data", False):
        raise ValueError("model.bi_data = true: no row is turned round here; set it to false")
    if getattr(config.objective, "memory", 0) and config.model.reuse:
        raise ValueError(
            f"model.reuse = {config.model.reuse}: objective.memory remembers all that is next to a "
            "row; set it to 0"
        )
    if config.eval.monitor == "accuracy" and not has_accuracy(config.objective):
        raise ValueError(
            f'eval.monitor = accuracy: objective.name = "{name}" has none; set it to loss'
        )
    if config.eval.bleu_every and OBJECTIVES[name].ROWS != "pair":
        raise ValueError(
            f'eval.bleu_every = {config.eval.bleu_every}: objective.name = "{name}" writes no '
            "text; set it to 0"
        )


def _settable(cls: type) -> list[dataclasses.Field]:
    return [f for f in dataclasses.fields(cls) if not f.metadata.get("runtime")]


def _build(cls: type, kinds: dict[str, Any], given: dict[str, Any], prefix: str) -> Any:
    hints = get_type_hints(cls, include_extras=True) | kinds
    values = {}
    for name in (f.name for f in _settable(cls)):
        if dataclasses.is_dataclass(hints[name]):
            values[name] = _build(hints[name], {}, given, f"{prefix}{name}.")
        elif prefix + name in given:
            values[name] = _value(hints[name], given[prefix + name], prefix + name)
    return cls(**values)


KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_COMPARE = {"<": lt, "<=": le, ">": gt, ">=": ge, "!=": ne}


def _value(hint: Any, value: Any, key: str) -> Any:
    """`value`, where it is of the annotated type and within the annotated bounds."""
    hint, *bounds = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"{key} = {_show(value)}: choose from {', '.join(get_args(hint))}")
        return value
    if hint is float and type(value) is int:
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{key} = {_show(value)}: want {KINDS[hint]}")
    if not all(_holds(bound, value) for bound in bounds):
        raise ValueError(f"{key} = {_show(value)}: want {' and '.join(bounds)}")
    if hint is float and not math.isfinite(value):
        raise ValueError(f"{key} = {_show(value)}: want a finite number")
    return value


def _holds(bound: str, x: float) -> bool:
    words = bound.split()  # "0 <= x < 1"
    numbers = [x if word == "x" else float(word) for word in words[::2]]
    pairs = zip(numbers, words[1::2], numbers[1:], strict=False)
    return all(_COMPARE[sign](left, right) for left, sign, right in pairs)


# ------------------------------------------------------------------- comparing

# What may change while a run goes on: how long, what is measured and how often, how
# translations are searched for, and over which devices.
MAY_CHANGE = (
    *("train.steps", "train.log_every", "train.watchdog", "data.valid", "data.test"),
    *("eval.", "checkpoint.", "decode.", "mesh.", "hardware", "model.scan", "model.remat"),
    *("model.kernel", "objective.n_best", "objective.longest", "objective.threshold"),
)


# What describes the machine, and binds no trained model: whoever uses one may change it.
MACHINE = (
    *("mesh.", "hardware", "batch.", "decode.tokens", "train.dtype"),
    *("model.kernel", "model.scan", "model.remat"),
)


def machine(config: Config, other: Config) -> dict[str, Any]:
    """{key: value} of MACHINE where another config differs from one."""
    flat = (flatten(to_dict(each)) for each in (config, other))
    return {key: value for key, _, value in diff(*flat) if key.startswith(MACHINE)}


def on_machine(config: Config, changes: Mapping[str, Any]) -> Config:
    """The config of a trained model, to use it with such changes. Which attention kernel trained
    it says nothing about those that run here, so that is chosen anew."""
    chosen = thaw(config)
    chosen.update_from_flattened_dict({"model.kernel": "auto"} | dict(changes))
    return freeze(chosen)


def decides(config: Config) -> dict[str, Any]:
    """{key: value} of all that decides the parameters after a given step."""
    keep = "train.steps" if config.optim.schedule in ("linear", "cosine") else None
    flat = flatten(to_dict(config))
    return {k: v for k, v in flat.items() if k == keep or not k.startswith(MAY_CHANGE)}


def fingerprint(config: Config) -> str:
    """12 hex digits over `decides(config)`: equal for runs that may continue each other."""
    text = json.dumps(decides(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def diff(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, left, right) wherever two flat dicts differ; None where a key is missing."""
    keys = list(left) + [key for key in right if key not in left]
    return [(k, left.get(k), right.get(k)) for k in keys if left.get(k) != right.get(k)]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim.lr": 1.0, ...} of a nested dict or ConfigDict."""
    flat = {}
    for key, value in tree.items():
        nested = isinstance(value, (Mapping, ConfigDict))
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def did_you_mean(word: str, known: Collection[str]) -> str:
    """ "; did you mean X?" with the nearest of `known`, or else ""; for dotted keys too.

    The last part of a key counts most: `lr` and `optm.lr` both find `optim.lr`.
    """
    section, _, leaf = word.rpartition(".")
    ratio = lambda a, b: difflib.SequenceMatcher(None, a, b).ratio()

    def near(key: str) -> tuple[float, float]:
        home, _, last = key.rpartition(".")
        return ratio(leaf, last) + 0.2 * (bool(section) and home == section), ratio(word, key)

    best = max(known, key=near, default="")
    return f"; did you mean {best}?" if best and near(best)[0] >= 0.6 else ""


def _no_such_key(key: str, known: Collection[str]) -> str:
    inside = [k.removeprefix(f"{key}.") for k in known if k.startswith(f"{key}.")]
    if inside:
        return f"{key}: a section, not a value; it has {', '.join(inside)}"
    section = key.rpartition(".")[0]
    beside = [k.removeprefix(f"{section}.") for k in known if k.startswith(f"{section}.")]
    hint = did_you_mean(key, known) or (f"; {section} has {', '.join(beside)}" if beside else "")
    return f"{key}: no such key{hint}"


def _show(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
