"""How does a function become a command? Its parameters are its flags, its docstring its help.

A parameter is annotated with its type, what stands for its value in the help, and the help.
Where one alone is required, its value may stand without the flag.
Two are no flags: `overrides` takes all `--config.KEY=VALUE`, `command` all behind `--`. Wrong
input becomes one line, `error: ...`, and exit code 2.
"""

import contextlib
import inspect
import keyword
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

from absl import flags

import tfx
from tfx import config as configs
from tfx import terminal
from tfx.data import output, text

# Annotations of a flag: its type, what stands for its value in the help, the help.
Spec = Annotated[str, "FILE[:ARG]", "a config file, or a built-in one by its name"]
Workdir = Annotated[str, "DIR", "the run's directory, or gs://BUCKET/NAME"]
Step = Annotated[int, "N", "which checkpoint; 0: the best if some were validated, or the last"]
Distributed = Annotated[str, "auto|on|off", "several processes: auto: where a cluster is detected"]
Coordinator = Annotated[str, "HOST:PORT", "where process 0 listens; the same for all processes"]
Processes = Annotated[int, "N", "how many processes; 0: as detected"]
Process = Annotated[int, "I", "which one this is, from 0; -1: as detected"]
Input = Annotated[str, "FILE", "text, a line each (.gz too); -: standard input"]
Output = Annotated[str, "FILE", "where lines go, all or none of them; FILE.gz is packed"]
Steps = Annotated[str, "N[,N...]", "which checkpoint; several of a run: an ensemble"]
Average = Annotated[int, "N", "take the mean of the last N checkpoints"]
Seed = Annotated[int, "N", "of what is drawn at random"]
Long = Annotated[str, "cut|skip|fail", "what becomes of a line that is too long, or no text"]
Chunk = Annotated[int, "N", "lines taken together at most; 0: as many as suit"]
Overrides = list[str]


def run(verbs: Mapping[str, Callable], words: Sequence[str]) -> int:
    """Run `VERB ...`; returns the exit code. `--debug` shows the traceback of any error."""
    words = list(words)
    ours = words[: words.index("--")] if "--" in words else words
    debug = "--debug" in ours
    try:
        with _warnings():
            return _run(verbs, [w for w in ours if w != "--debug"] + words[len(ours) :]) or 0
    except BrokenPipeError:  # the reader, such as `head`, has had enough
        terminal.mute(sys.stdout)
        return 1
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        if debug or not _about_input(error):
            raise
        terminal.tell(f"error: {_line(error)}")
        return 2


@contextlib.contextmanager
def _warnings() -> Iterator[None]:
    """Each is a line on standard error, whatever handlers libraries have made."""
    log, shown = logging.getLogger("tfx"), logging.StreamHandler()
    shown.setFormatter(logging.Formatter("warning: %(message)s"))
    before = log.propagate, log.handlers
    log.propagate, log.handlers = False, [shown]
    try:
        yield
    finally:
        log.propagate, log.handlers = before


def _run(verbs, words: list[str]) -> int | None:
    if not words or words[0] in ("--help", "-h", "help"):
        print("usage: tfx VERB [flags]; tfx VERB --help says more\n")
        for verb, function in verbs.items():
            print(f"  {verb:11}{inspect.cleandoc(function.__doc__).partition(chr(10))[0]}")
        return 0
    if words[0] == "--version":
        print(f"tfx {tfx.__version__}")
        return 0
    verb = words[0]
    if verb not in verbs:
        hint = configs.did_you_mean(verb, verbs) or f"; choose from {', '.join(verbs)}"
        raise ValueError(f"{verb}: no such verb{hint}")
    if {"--help", "-h"} & {*words[: words.index("--") if "--" in words else None]}:
        print(_help(verb, verbs[verb]))
        return 0
    return verbs[verb](**parse(verb, verbs[verb], words[1:]))


def parse(verb: str, function: Callable, words: list[str]) -> dict[str, Any]:
    """The arguments of a verb's function, from the words of the command line."""
    cut = words.index("--") if "--" in words else len(words)
    words, command = words[:cut], words[cut + 1 :]
    overrides = [word for word in words if re.match(r"--?(no)?config\.", word)]
    words = [word for word in words if word not in overrides]
    define = {str: flags.DEFINE_string, bool: flags.DEFINE_bool, int: flags.DEFINE_integer}
    values, parameters = flags.FlagValues(), _parameters(function)
    more = {"overrides": overrides, "command": command}
    more = {name: given for name, given in more.items() if parameters.pop(name, None)}
    if overrides and "overrides" not in more:
        raise ValueError(f"{overrides[0]}: tfx {verb} takes no config")
    if command and "command" not in more:
        raise ValueError(f"{command[0]}: tfx {verb} takes no command")
    see = f"; see tfx {verb} --help"
    if "command" in more and not command:
        see = f"; a command stands behind --: tfx {verb} -- tfx train ..."
    for name, parameter in parameters.items():
        kind, _, text = get_args(parameter.annotation)
        default = None if parameter.default is parameter.empty else parameter.default
        define[kind](name, default, text, flag_values=values)
    try:
        rest = values([verb, *words])[1:]
    except flags.UnrecognizedFlagError as error:
        hint = configs.did_you_mean(error.flagname, parameters)
        hint = hint.replace("mean ", "mean --") or see
        raise ValueError(f"--{error.flagname}: no such flag of tfx {verb}{hint}") from None
    except flags.IllegalFlagValueError as error:
        given, _, _ = str(error).removeprefix("flag ").partition(": ")
        kind, *_ = get_args(parameters[given.strip("-").partition("=")[0]].annotation)
        raise ValueError(f"{given}: want {configs.KINDS[kind]}") from None
    except flags.Error as error:
        raise ValueError(f"{error}; see tfx {verb} --help") from None
    arguments = {name: getattr(values, name) for name in parameters}
    missing = [name for name, value in arguments.items() if value is None]
    if len(rest) == len(missing) == 1:  # the one thing that a verb is about needs no name
        arguments[missing[0]] = rest.pop()
    if rest:
        raise ValueError(f'"{rest[0]}": not a flag; write --flag=value{see}')
    for name, value in arguments.items():
        if value is None:
            raise ValueError(f"--{name} is missing; see tfx {verb} --help")
    # "from" is a word of Python's: its parameter has another name.
    return {
        name if not keyword.iskeyword(name) else f"{name}_": x for name, x in arguments.items()
    } | more


# -------------------------------------------------------------- what flags stand for


def steps(step: str) -> list[int] | None:
    """The numbers of --step; None: whichever is the best."""
    if step in ("", "0"):
        return None
    if not re.fullmatch(r"\d+(,\d+)*", step):
        raise ValueError(f"--step={step}: want whole numbers, such as --step=1000,2000")
    return [int(number) for number in step.split(",")]


def check_range(**numbers: int) -> None:
    for name, number in numbers.items():
        if not 0 <= number < 1 << 32:
            raise ValueError(f"--{name}={number}: want 0 to {(1 << 32) - 1:,}")


def line_errors(input: str, long: str) -> text.LineErrors:
    """What becomes of bad lines of an input, which is there, and is text as far as one can see."""
    if input == "-":
        return text.LineErrors(long, "standard input")
    text.check(input)
    return text.LineErrors(long, input)


def chunks(input: str, most: int, errors: text.LineErrors) -> Iterator[list[str | None]]:
    """Lists of lines of a file or of standard input; at a terminal, of one line each."""
    if input == "-" and sys.stdin.isatty():
        return ([line] for line in _asked())
    return text.chunks(sys.stdin.buffer if input == "-" else input, most, errors)


def _asked() -> Iterator[str]:
    """Lines that a person types, until the end of file (Ctrl-D)."""
    print("a sentence a line; Ctrl-D ends", file=sys.stderr)
    with contextlib.suppress(EOFError):
        while True:
            yield input("> ")


# ------------------------------------------------------------------- help and errors


def _parameters(function: Callable) -> dict[str, inspect.Parameter]:
    """Those of a function, by the name of their flag."""
    return {name.rstrip("_"): p for name, p in inspect.signature(function).parameters.items()}


def _help(verb: str, function: Callable) -> str:
    parameters = _parameters(function)
    more = {"overrides": "[--config.KEY=VALUE ...]", "command": "-- COMMAND ..."}
    ends = [text for name, text in more.items() if parameters.pop(name, None)]
    usage, rows = [f"usage: tfx {verb}"], []
    for name, parameter in parameters.items():
        _, shown, text = get_args(parameter.annotation)
        flag = f"--{name}={shown}" if shown else f"--{name}"
        required = parameter.default is parameter.empty
        usage += [flag if required else f"[{flag}]"]
        default = f" (default: {parameter.default})" if parameter.default and not required else ""
        rows += [f"  {flag:26} {text}{default}"]
    rows += [f"  {'--debug':26} show the traceback of an error"]
    about = inspect.cleandoc(function.__doc__)
    return "\n".join([" ".join(usage + ends), "", about, "", *rows])


def _about_input(error: Exception) -> bool:
    """Whether an error is about what the user gave, and not a bug.

    Then tfx itself raised it, or it is about a file. JAX cuts its own frames out of a
    traceback, and leaves a note about that.
    """
    if isinstance(error, OSError):
        kinds = FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError
        return isinstance(error, (*kinds, PermissionError)) or error.errno in output.FULL
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
