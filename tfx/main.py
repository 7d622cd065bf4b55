"""The command line: a verb is one short function, its parameters are its flags.

This is the only file that reads flags. Wrong input becomes one line, `error: ...`, and
exit code 2; a signal that stopped a run after saving 128 plus its number; all else 1.
"""

import ast
import contextlib
import dataclasses
import inspect
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO, get_args

from absl import flags

import tfx
from tfx import config as configs
from tfx import schema
from tfx.data import text
from tfx.workdir import check, find, progress, read_config, read_overrides

# Annotations of a flag: its type, what stands for its value in the help, the help.
Spec = Annotated[str, "FILE[:ARG]", "a config file, or a built-in one by its name"]
Workdir = Annotated[str, "DIR", "the run's directory"]
Step = Annotated[int, "N", "which checkpoint; 0: the best if some were validated, or the last"]
Overrides = list[str]


def train(
    config: Spec,
    workdir: Annotated[str, "DIR", "where the run lives; made if it is not there"] = "",
    dry_run: Annotated[bool, "", "build everything, print it, train nothing"] = False,
    *,
    overrides: Overrides,
) -> int:
    """Train a model, or go on where the run in the workdir stopped.

    Any value of the config changes with --config.KEY=VALUE; `tfx config` prints the keys.

      tfx train --config=quickstart --workdir=runs/quickstart
      tfx train --config=configs/wmt14_en_de.py:big --workdir=runs/big --config.optim.lr=0.5
      tfx train --config=multi30k --dry_run
    """
    if not (workdir or dry_run):
        raise ValueError("--workdir=DIR is missing: where the run shall live")
    chosen, changed = _configure(config, overrides)
    if workdir:
        check(workdir, chosen)
    from tfx import hosts
    from tfx import train as training

    hosts.keep_memory()
    hosts.keep_compiled()
    command = ["tfx", "train", f"--config={config}", f"--workdir={workdir}", *overrides]
    try:
        if dry_run:
            training.dry_run(chosen, workdir or None)
        else:
            training.train(chosen, workdir, {"argv": command, "overrides": changed})
    except hosts.Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signal
    except training.Diverged as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def evaluate(
    workdir: Workdir,
    split: Annotated[str, "NAME", "train, valid or test"] = "test",
    step: Step = 0,
    average: Annotated[int, "N", "score the mean of the last N checkpoints"] = 0,
    *,
    overrides: Overrides,
) -> None:
    """Translate a split, print BLEU, chrF and TER, and add rows to scores.jsonl.

    How translations are searched for may change: --config.decode.KEY=VALUE.

      tfx eval --workdir=runs/quickstart
      tfx eval --workdir=runs/m30k --split=valid --average=10 --config.decode.beam=5
    """
    how = _decode(workdir, overrides)
    from tfx import evaluate as evaluation
    from tfx import hosts

    hosts.keep_memory()
    hosts.keep_compiled()
    evaluation.evaluate(workdir, split, step or None, average, **dataclasses.asdict(how))


def translate(
    workdir: Annotated[str, "DIR[,DIR...]", "the run's directory; several: an ensemble"],
    input: Annotated[str, "FILE", "text to translate, a sentence a line"] = "-",
    output: Annotated[str, "FILE", "where translations go, line for line"] = "-",
    nbest: Annotated[int, "N", "translations of each line, on lines of their own"] = 1,
    scores: Annotated[bool, "", "put its score and a tab in front of each"] = False,
    sample: Annotated[bool, "", "draw at random: --config.decode.method=sample"] = False,
    beam: Annotated[int, "N", "the same as --config.decode.beam=N"] = 0,
    step: Step = 0,
    *,
    overrides: Overrides,
) -> None:
    """Translate a file or standard input, line for line, in order, empty lines included.

    On a terminal, with no --input, it asks for one sentence after another.

      tfx translate --workdir=runs/quickstart
      tfx translate --workdir=runs/m30k --input=in.en --output=out.de --beam=5
      echo "A dog runs." | tfx translate --workdir=runs/a,runs/b --nbest=4 --scores
    """
    overrides = ["--config.decode.method=sample"] * sample + overrides
    overrides = [f"--config.decode.beam={beam}"] * bool(beam) + overrides
    workdirs = workdir.split(",")
    how = _decode(workdirs[0], overrides)
    most = 1 if how.method == "greedy" else how.beam
    if not 1 <= nbest <= most:
        raise ValueError(f"--nbest={nbest}: want 1 to {most}, the width of the search; see --beam")
    if input != "-" and not Path(input).exists():
        raise FileNotFoundError(f"{input}: no such file")
    ask = input == "-" and sys.stdin.isatty()
    lines = _asked() if ask else text.lines(sys.stdin.buffer if input == "-" else input)
    from tfx import hosts
    from tfx import translate as translation

    hosts.keep_memory()
    hosts.keep_compiled()
    run = translation.load(workdirs, step or None)
    blank = translation.Hypothesis("", -math.inf)  # an empty line has no second translation
    with _opened(output) as out:
        # Many lines are searched at once; whoever is asked wants an answer to each.
        for chunk in ([line] for line in lines) if ask else [lines]:
            for found in run.search(chunk, how):
                for sentence, value in [*found, *[blank] * nbest][:nbest]:
                    sentence = sentence.replace("\n", " ")  # a model of bytes can write any
                    out.write(f"{value:.4f}\t{sentence}\n" if scores else f"{sentence}\n")
            out.flush()


def score(
    workdir: Workdir,
    source: Annotated[str, "FILE", "sources, a sentence a line"],
    target: Annotated[str, "FILE", "their given translations, line for line"],
    output: Annotated[str, "FILE", "where the numbers go, line for line"] = "-",
    step: Step = 0,
) -> None:
    """Print the log-probability, in nats, that the model gives to each given translation.

    It is that of the whole line and of ending there; the longer, the lower.

      tfx score --workdir=runs/m30k --source=test.en --target=test.de
    """
    sources, targets = list(text.lines(source)), list(text.lines(target))
    if len(sources) != len(targets):
        counts = f"{source} has {len(sources):,} lines, {target} has {len(targets):,}"
        raise ValueError(f"{counts}; a target belongs to the source on the same line")
    from tfx import hosts
    from tfx import translate as translation

    hosts.keep_memory()
    hosts.keep_compiled()
    run = translation.load(workdir, step or None)
    with _opened(output) as out:
        out.writelines(f"{value:.4f}\n" for value in run.score(sources, targets))


def average(
    workdir: Workdir,
    out: Annotated[str, "DIR", "the new workdir, ready for eval and translate"],
    last: Annotated[int, "N", "the last N checkpoints"] = 0,
    best: Annotated[int, "N", "the N best by the validation value"] = 0,
) -> None:
    """Average the parameters of several checkpoints of a run into a new workdir.

    `tfx eval --average=N` scores such a mean without keeping it.

      tfx average --workdir=runs/m30k --last=10 --out=runs/m30k-last10
    """
    if bool(last) == bool(best):
        raise ValueError("want one of --last=N and --best=N")
    from tfx import hosts
    from tfx import translate as translation

    hosts.keep_memory()
    hosts.keep_compiled()
    translation.average(workdir, out, last=last, best=best)


def config(
    config: Spec = "",
    workdir: Workdir = "",
    diff: Annotated[str, "FILE[:ARG]|DIR", "print only what differs from this one"] = "",
    *,
    overrides: Overrides,
) -> None:
    """Print every value of a config, or of the run in a workdir; * marks the overridden.

    Each line KEY = VALUE can be changed with --config.KEY=VALUE.

      tfx config --config=wmt14_en_de:big --config.optim.warmup=8000
      tfx config --config=multi30k --diff=iwslt14_de_en
      tfx config --workdir=runs/m30k
    """
    if bool(config) == bool(workdir):
        raise ValueError("want one of --config=FILE and --workdir=DIR")
    if workdir and overrides:
        raise ValueError(f"{overrides[0]}: the config of a run is only shown; give --config=FILE")
    if config:
        chosen, changed = _configure(config, overrides)
    else:
        chosen, changed = read_config(workdir), read_overrides(workdir)
    flat = configs.flatten(configs.to_dict(chosen))
    if diff:
        other = read_config(diff) if Path(diff).is_dir() else _configure(diff, [])[0]
        for key, left, right in configs.diff(flat, configs.flatten(configs.to_dict(other))):
            print(f"{key}: {_value(left)} -> {_value(right)}")
        return
    print(f"# {config or workdir}, hash {configs.fingerprint(chosen)}")
    for key, value in flat.items():
        print(f"{'*' if key in changed else ' '} {key} = {_value(value)}")


def list_(workdir: Annotated[str, "DIR", "list the runs in this directory instead"] = "") -> None:
    """Print what there is to choose from: configs, models and their sizes, and so on.

    With --workdir: the step, last BLEU and config hash of each run there.

      tfx list
      tfx list --workdir=runs
    """
    if workdir:
        for path in find(workdir):
            run, (step, row) = read_config(path), progress(path)
            last = "no BLEU"
            if row:
                kind = "synthetic " * row.get("synthetic", False)
                last = f"BLEU {row['score']:.1f} on {kind}{row['split']}"
            hash = configs.fingerprint(run)
            print(f"{path}  step {step:,} of {run.train.steps:,}  {last}  {hash}")
        return
    from tfx.models import MODELS
    from tfx.objectives import OBJECTIVES

    print("configs (--config=NAME)")
    for path in sorted(configs.BUILT_IN.glob("*.py")):
        doc = ast.get_docstring(ast.parse(path.read_bytes())) or ""
        print(f"  {path.stem:16}{doc.partition(chr(10))[0]}")
    print("models (model.name) and their sizes")
    for name, family in MODELS.items():
        print(f"  {name:16}{', '.join(family.SIZES)}")
    print(f"objectives (objective.name)\n  {', '.join(OBJECTIVES)}")
    print(f"schedules (optim.schedule)\n  {', '.join(get_args(schema.Schedule))}")
    print("data sources (data.source)\n  synthetic, files, tfds:NAME")


VERBS = {
    "train": train,
    "eval": evaluate,
    "translate": translate,
    "score": score,
    "average": average,
    "config": config,
    "list": list_,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `tfx VERB ...`; returns the exit code. `--debug` shows the traceback of any error."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    try:
        return _run([word for word in words if word != "--debug"]) or 0
    except BrokenPipeError:  # the reader, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        if debug or not _about_input(error):
            raise
        print(f"error: {_line(error)}", file=sys.stderr)
        return 2


def _run(words: list[str]) -> int | None:
    if not words or words[0] in ("--help", "-h", "help"):
        print("usage: tfx VERB [flags]; tfx VERB --help says more\n")
        for verb, function in VERBS.items():
            print(f"  {verb:11}{inspect.cleandoc(function.__doc__).partition(chr(10))[0]}")
        return 0
    if words[0] == "--version":
        print(f"tfx {tfx.__version__}")
        return 0
    verb = words[0]
    if verb not in VERBS:
        hint = configs.did_you_mean(verb, VERBS) or f"; choose from {', '.join(VERBS)}"
        raise ValueError(f"{verb}: no such verb{hint}")
    if {"--help", "-h"} & {*words}:
        print(_help(verb))
        return 0
    return VERBS[verb](**_parse(verb, words[1:]))


def _parse(verb: str, words: list[str]) -> dict[str, Any]:
    """The arguments of a verb's function, from the words of the command line."""
    overrides = [word for word in words if re.match(r"--?(no)?config\.", word)]
    words = [word for word in words if word not in overrides]
    define = {str: flags.DEFINE_string, bool: flags.DEFINE_bool, int: flags.DEFINE_integer}
    values, parameters = flags.FlagValues(), dict(inspect.signature(VERBS[verb]).parameters)
    if parameters.pop("overrides", None) is None and overrides:
        raise ValueError(f"{overrides[0]}: tfx {verb} takes no config")
    for name, parameter in parameters.items():
        kind, _, text = get_args(parameter.annotation)
        default = None if parameter.default is parameter.empty else parameter.default
        define[kind](name, default, text, flag_values=values)
    try:
        rest = values([verb, *words])[1:]
    except flags.UnrecognizedFlagError as error:
        hint = configs.did_you_mean(error.flagname, parameters)
        hint = hint.replace("mean ", "mean --") or f"; see tfx {verb} --help"
        raise ValueError(f"--{error.flagname}: no such flag of tfx {verb}{hint}") from None
    except flags.IllegalFlagValueError as error:
        given, _, _ = str(error).removeprefix("flag ").partition(": ")
        kind, *_ = get_args(parameters[given.strip("-").partition("=")[0]].annotation)
        raise ValueError(f"{given}: want {configs.KINDS[kind]}") from None
    except flags.Error as error:
        raise ValueError(f"{error}; see tfx {verb} --help") from None
    if rest:
        raise ValueError(f'"{rest[0]}": not a flag; write --flag=value, see tfx {verb} --help')
    arguments = {name: getattr(values, name) for name in parameters}
    for name, value in arguments.items():
        if value is None:
            raise ValueError(f"--{name} is missing; see tfx {verb} --help")
    with_overrides = "overrides" in inspect.signature(VERBS[verb]).parameters
    return arguments | ({"overrides": overrides} if with_overrides else {})


def _help(verb: str) -> str:
    parameters = dict(inspect.signature(VERBS[verb]).parameters)
    takes_overrides = parameters.pop("overrides", None) is not None
    usage, rows = [f"usage: tfx {verb}"], []
    for name, parameter in parameters.items():
        _, shown, text = get_args(parameter.annotation)
        flag = f"--{name}={shown}" if shown else f"--{name}"
        required = parameter.default is parameter.empty
        usage += [flag if required else f"[{flag}]"]
        default = f" (default: {parameter.default})" if parameter.default and not required else ""
        rows += [f"  {flag:26} {text}{default}"]
    if takes_overrides:
        usage += ["[--config.KEY=VALUE ...]"]
    rows += [f"  {'--debug':26} show the traceback of an error"]
    about = inspect.cleandoc(VERBS[verb].__doc__)
    return "\n".join([" ".join(usage), "", about, "", *rows])


def _configure(spec: str, overrides: list[str]) -> tuple[configs.Config, dict[str, Any]]:
    """A config file with its overrides, checked; and what was overridden."""
    chosen = configs.load(spec)
    changed = configs.override(chosen, overrides)
    return configs.freeze(chosen), changed


def _decode(workdir: str, overrides: list[str]) -> schema.Decode:
    """How the run in a workdir searches, with overrides of just that."""
    chosen = configs.thaw(read_config(workdir))
    for key in configs.override(chosen, overrides):
        if not key.startswith("decode."):
            raise ValueError(f"{key}: is fixed once a run is trained; only decode.* may change")
    return configs.freeze(chosen).decode


@contextlib.contextmanager
def _opened(output: str) -> Iterator[TextIO]:
    """A text file in UTF-8 with plain newlines, or standard output for "-"."""
    if output != "-":
        with open(output, "w", encoding="utf-8", newline="\n") as out:
            yield out
    else:
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")
        yield sys.stdout


def _asked() -> Iterator[str]:
    """Lines that a person types, until the end of file (Ctrl-D)."""
    print("a sentence a line; Ctrl-D ends", file=sys.stderr)
    with contextlib.suppress(EOFError):
        while True:
            yield input("> ")


def _value(value: Any) -> str:
    """As one would type it behind `--config.KEY=`; an empty text as ''."""
    return str(value).lower() if isinstance(value, bool) else str(value) or "''"


def _about_input(error: Exception) -> bool:
    """Whether an error is about what the user gave, and not a bug.

    Then tfx itself raised it, or it is about a file. JAX cuts its own frames out of a
    traceback, and leaves a note about that.
    """
    if isinstance(error, OSError):
        kinds = FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError
        return isinstance(error, (*kinds, PermissionError))
    frame = error.__traceback__
    while frame.tb_next:
        frame = frame.tb_next
    inside = frame.tb_frame.f_code.co_filename.startswith(str(Path(tfx.__file__).parent))
    return inside and not getattr(error, "__notes__", None)


def _line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    rows = str(error).splitlines()[1:]
    if rows and all(row.startswith("  ") for row in rows):
        return str(error)  # a table: several things at once
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
