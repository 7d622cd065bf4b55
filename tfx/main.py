"""The command line: a verb is one short function, its parameters are its flags (tfx/cli.py).

Exit codes: 0 done, 2 wrong input, 128 plus its number for a signal (SIGTERM, SIGINT, SIGHUP) that
stopped a run after saving, 1 for all else.
"""

import ast
import dataclasses
import math
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any, get_args

from tfx import cli, lock, schema
from tfx import config as configs
from tfx.bucket import place
from tfx.cli import Coordinator, Distributed, Overrides, Process, Processes, Spec, Step, Workdir
from tfx.data import text
from tfx.data.output import check as check_output
from tfx.data.output import open_text
from tfx.data.text import one_line
from tfx.lab import verbs as lab
from tfx.terminal import tell
from tfx.workdir import changed as _changed
from tfx.workdir import (
    check,
    check_place,
    find,
    progress,
    read_config,
    read_overrides,
    split,
)

# What may be another for an evaluation than it was in training.
ANSWERING = ("decode.", "data.", "eval.", "objective.n_best", "objective.longest")
ANSWERING += ("objective.threshold", "objective.stride", "objective.no_answer", "objective.whole")


def train(
    config: Spec,
    workdir: Annotated[str, "DIR", "where the run lives; made if it is not there"] = "",
    dry_run: Annotated[bool, "", "build everything, print it, train nothing"] = False,
    profile: Annotated[str, "FIRST:LAST", "steps of this start to trace, for xprof"] = "",
    distributed: Distributed = "auto",
    coordinator: Coordinator = "",
    num_processes: Processes = 0,
    process_id: Process = -1,
    *,
    overrides: Overrides,
) -> int:
    """Train a model, or go on where the run in the workdir stopped.

    Any value of the config changes with --config.KEY=VALUE; `tfx config` prints the keys.

      tfx train --config=quickstart --workdir=runs/quickstart
      tfx train --config=configs/wmt14_en_de.py:big --workdir=runs/big --config.optim.lr=0.5
      tfx train --config=multi30k --dry_run
      tfx train --config=quickstart --workdir=runs/q --profile=10:20
      tfx train --config=quickstart --workdir=/nfs/q --coordinator=n0:99 --num_processes=2
    """
    if not (workdir or dry_run):
        raise ValueError("--workdir=DIR is missing: where the run shall live")
    if profile and dry_run:
        raise ValueError(f"--profile={profile}: --dry_run takes no step; leave one of them out")
    if workdir and not dry_run:  # who is in the way is told before anything is imported
        lock.check(workdir)
        check_place(workdir)
    chosen, _ = configs.configure(config, overrides)  # what is wrong with it is wrong on any device
    if workdir and not chosen.hardware:
        check(workdir, chosen)
    traced = _traced(profile, chosen, progress(workdir)[0]) if profile else ()
    import jax

    from tfx import hosts
    from tfx import train as training

    hosts.keep_memory()
    hosts.keep_compiled()
    hosts.join(distributed, coordinator, num_processes, process_id)
    chosen, changed = configs.configure(config, overrides, jax.local_devices()[0].device_kind)
    command = ["tfx", "train", f"--config={config}", f"--workdir={workdir}", *overrides]
    try:
        if dry_run:
            training.dry_run(chosen, workdir or None)
        else:
            training.train(chosen, workdir, {"argv": command, "overrides": changed}, traced)
    except hosts.Stopped as stopped:
        tell(f"{stopped}")
        return 128 + stopped.signal
    except training.Diverged as error:
        tell(f"error: {error}")
        return 1
    return 0


def evaluate(
    workdir: Workdir,
    split: Annotated[str, "NAME", "train, valid or test; by default test, or else valid"] = "",
    step: Step = 0,
    average: Annotated[int, "N", "score the mean of the last N checkpoints"] = 0,
    distributed: Distributed = "auto",
    coordinator: Coordinator = "",
    num_processes: Processes = 0,
    process_id: Process = -1,
    *,
    overrides: Overrides,
) -> None:
    """Answer a split, score the answers as their task wants it, and add rows to scores.jsonl.

    BLEU, chrF and TER of translations, ROUGE of summaries, accuracy of classes, exact match and F1
    of answers, perplexity of language models; over all of a split, and over each of its corpora.
    What is read and how texts are searched for may change: --config.data.KEY=VALUE,
    --config.decode.KEY=VALUE. A third line-parallel file, or field, has further references.

      tfx eval --workdir=runs/quickstart
      tfx eval --workdir=runs/m30k --split=valid --average=10 --config.decode.beam=5
      tfx eval --workdir=runs/mine --config.data.test=a.en,a.de
      tfx eval --workdir=runs/mine --config.data.test=a.en,first.de,second.de
    """
    chosen = _changed(workdir, overrides, ANSWERING)
    from tfx import evaluate as evaluation
    from tfx import hosts

    hosts.keep_memory()
    hosts.keep_compiled()
    hosts.join(distributed, coordinator, num_processes, process_id)
    evaluation.evaluate(workdir, split, step or None, average, config=chosen)


def translate(
    workdir: Annotated[str, "DIR[,DIR...]", "the run's directory; several: an ensemble"],
    input: cli.Input = "-",
    output: cli.Output = "-",
    nbest: Annotated[int, "N", "translations of each line, on lines of their own"] = 1,
    scores: Annotated[bool, "", "put its score and a tab in front of each"] = False,
    sample: Annotated[bool, "", "draw at random: --config.decode.method=sample"] = False,
    beam: Annotated[int, "N", "the same as --config.decode.beam=N"] = 0,
    seed: cli.Seed = 0,
    long: cli.Long = "cut",
    chunk: cli.Chunk = 0,
    step: cli.Steps = "",
    average: cli.Average = 0,
    *,
    overrides: Overrides,
) -> None:
    """Translate a file or standard input, line for line, in order, empty lines included.

    Lines that come through a pipe are answered as they come. On a terminal, with no --input, it
    asks for one sentence after another.

      tfx translate --workdir=runs/quickstart
      tfx translate --workdir=runs/m30k --input=in.en --output=out.de --beam=5
      tfx translate --workdir=runs/m30k --step=1000,2000,3000 --input=in.en.gz --long=skip
      echo "A dog runs." | tfx translate --workdir=runs/a,runs/b --nbest=4 --scores
    """
    overrides = ["--config.decode.method=sample"] * sample + overrides
    overrides = [f"--config.decode.beam={beam}"] * bool(beam) + overrides
    workdirs = split(workdir)
    chosen = _searching(workdirs, overrides)
    how = chosen.decode
    most = 1 if how.method == "greedy" else how.beam
    if not 1 <= nbest <= most:
        raise ValueError(f"--nbest={nbest}: want 1 to {most}, the width of the search; see --beam")
    cli.check_range(seed=seed, chunk=chunk, average=average)
    errors = cli.line_errors(input, long)
    from tfx import hosts
    from tfx import translate as translation

    hosts.keep_memory()
    hosts.keep_compiled()
    blank = translation.Hypothesis("", -math.inf)  # an empty line has no second translation
    with open_text(output, [input]) as out, errors:
        run = translation.load(workdirs, cli.steps(step), average, chosen)
        done = 0
        for lines in cli.chunks(input, chunk or translation.CHUNK, errors):
            for found in run.search_together(lines, how, seed, done, errors):
                for sentence, value in [*found, *[blank] * nbest][:nbest]:
                    sentence = one_line(sentence)  # a model of bytes can write any
                    out.write(f"{value:.4f}\t{sentence}\n" if scores else f"{sentence}\n")
            out.flush()
            done += len(lines)


def generate(
    workdir: Workdir,
    prompt: Annotated[str, "TEXT", "what to continue; \\n ends a line"] = "",
    input: Annotated[
        str, "FILE", "prompts instead, a line each; line ends of a text become \\n"
    ] = "",
    output: cli.Output = "-",
    tokens: Annotated[int, "N", "of a continuation, at most"] = 200,
    seed: cli.Seed = 0,
    long: cli.Long = "cut",
    chunk: cli.Chunk = 0,
    step: Step = 0,
    *,
    overrides: Overrides,
) -> None:
    """Continue a text with a causal language model; by default drawn at random.

    As many continuations as decode.beam says, 1 unless set here. Of a line that is too long the end
    is kept (--long=cut); a --prompt is refused.

      tfx generate --workdir=runs/shakespeare --prompt="ROMEO:" --tokens=300
      tfx generate --workdir=runs/gpt --prompt="The" --config.decode.temperature=0.8
      tfx generate --workdir=runs/gpt --input=prompts.txt --config.decode.method=beam
    """
    if prompt and input:
        raise ValueError("want one of --prompt=TEXT and --input=FILE")
    if tokens < 1:
        raise ValueError(f"--tokens={tokens}: want 1 or more")
    cli.check_range(seed=seed, chunk=chunk)
    given = ["--config.decode.method=sample", "--config.decode.beam=1", *overrides]
    chosen = _changed(workdir, given, ("decode.",))
    how = chosen.decode
    errors = text.LineErrors("fail", "prompt", "shorten it, or take fewer --tokens")
    errors = cli.line_errors(input, long) if input else errors
    from tfx import generate as generation
    from tfx import hosts
    from tfx import translate as translation

    hosts.keep_memory()
    hosts.keep_compiled()
    settings = dataclasses.asdict(how)
    count = 1 if how.method == "greedy" else how.beam
    with open_text(output, [input] if input else []) as out, errors:
        run = translation.load(workdir, step or None, config=chosen)
        prompts, done = iter([[prompt.replace("\\n", "\n")]]), 0
        if input:
            prompts = cli.chunks(input, chunk or translation.CHUNK, errors)
        for some in prompts:
            rest = dict(before=done, errors=errors)
            for found in generation.continue_texts(run, some, tokens, seed, **rest, **settings):
                texts = [hypothesis.text for hypothesis in found]
                if input:  # line for line
                    texts = [one_line(each.replace("\n", "\\n")) for each in texts]
                    texts += [""] * (count - len(texts))
                out.writelines(f"{each}\n" for each in texts)
            out.flush()
            done += len(some)


def predict(
    workdir: Workdir,
    input: Annotated[str, "FILE", "text, a line each; several of a line are apart by tabs"] = "-",
    output: cli.Output = "-",
    scores: Annotated[bool, "", "put its probability and a tab in front of each class"] = False,
    long: cli.Long = "cut",
    chunk: cli.Chunk = 0,
    step: Step = 0,
    *,
    overrides: Overrides,
) -> None:
    """Print what a classifier, a tagger or a reader says of each line; nothing of an empty one.

    A line is a text, or two, to classify; words to tag; a text and the choices of how it goes on; a
    question and the context that has its answer. What is beyond data.max_length is cut: the longer
    one of two texts, the end of a question, the last of words to tag, which then get no tag. Lines
    that come through a pipe are answered as they come.

      echo "A charming journey." | tfx predict --workdir=runs/sst2 --scores
      tfx predict --workdir=runs/squad --input=questions.tsv --output=answers.txt
    """
    chosen = _changed(workdir, overrides, ANSWERING)
    cli.check_range(chunk=chunk)
    errors = cli.line_errors(input, long)
    from tfx import hosts, translate
    from tfx import predict as prediction

    hosts.keep_memory()
    hosts.keep_compiled()
    with open_text(output, [input]) as out, errors:
        run = dataclasses.replace(
            translate.load(workdir, step or None, config=chosen), config=chosen
        )
        done = 0
        for lines in cli.chunks(input, chunk or prediction.CHUNK, errors):
            for said, probability in prediction.answer_lines(run, lines, errors, done):
                said, known = one_line(said), scores and not math.isnan(probability)
                out.write(f"{probability:.4f}\t{said}\n" if known else f"{said}\n")
            out.flush()
            done += len(lines)


def score(
    workdir: Annotated[str, "DIR[,DIR...]", "the run's directory; several: an ensemble"],
    source: Annotated[str, "FILE", "sources, a sentence a line"],
    target: Annotated[str, "FILE", "their given translations, line for line"],
    output: cli.Output = "-",
    long: cli.Long = "cut",
    step: cli.Steps = "",
    average: cli.Average = 0,
    *,
    overrides: Overrides,
) -> None:
    """Print the log-probability, in nats, that the model gives to each given translation.

    It is that of the whole line and of ending there; the longer, the lower. It is nan where a line
    is skipped.

      tfx score --workdir=runs/m30k --source=test.en --target=test.de
    """
    check_output(output, [source, target])
    cli.check_range(average=average)
    errors = [cli.line_errors(source, long), cli.line_errors(target, long)]
    sources, targets = (
        list(text.lines(file, each)) for file, each in zip((source, target), errors, strict=True)
    )
    if len(sources) != len(targets):
        counts = f"{source} has {len(sources):,} lines, {target} has {len(targets):,}"
        raise ValueError(f"{counts}; a target belongs to the source on the same line")
    workdirs = split(workdir)
    chosen = _changed(workdirs[0], overrides)
    from tfx import hosts
    from tfx import translate as translation

    hosts.keep_memory()
    hosts.keep_compiled()
    with open_text(output, [source, target]) as out:
        run = translation.load(workdirs, cli.steps(step), average, chosen)
        out.writelines(f"{value:.4f}\n" for value in run.score(sources, targets, errors))


def average(
    workdir: Workdir,
    out: Annotated[str, "DIR", "the new workdir, ready for eval and translate"],
    last: Annotated[int, "N", "the last N checkpoints"] = 0,
    best: Annotated[int, "N", "the N best by the validation value"] = 0,
    *,
    overrides: Overrides,
) -> None:
    """Average the parameters of several checkpoints of a run into a new workdir.

    `tfx eval --average=N` scores such a mean without keeping it.

      tfx average --workdir=runs/m30k --last=10 --out=runs/m30k-last10
    """
    if bool(last) == bool(best):
        raise ValueError("want one of --last=N and --best=N")
    lock.check(out)
    chosen = _changed(workdir, overrides)
    from tfx import hosts
    from tfx import translate as translation

    hosts.keep_memory()
    hosts.keep_compiled()
    translation.average(workdir, out, last=last, best=best, config=chosen)


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
        chosen, changed = configs.configure(config, overrides)
    else:
        chosen, changed = read_config(workdir), read_overrides(workdir)
    flat = configs.flatten(configs.to_dict(chosen))
    if diff:
        other = read_config(diff) if place(diff).is_dir() else configs.configure(diff, [])[0]
        for key, left, right in configs.diff(flat, configs.flatten(configs.to_dict(other))):
            print(f"{key}: {_value(left)} -> {_value(right)}")
        return
    print(f"# {config or workdir}, hash {configs.fingerprint(chosen)}")
    for key, value in flat.items():
        print(f"{'*' if key in changed else ' '} {key} = {_value(value)}")


def list_(workdir: Annotated[str, "DIR", "list the runs in this directory instead"] = "") -> None:
    """Print what there is to choose from: configs, models and their sizes, and so on.

    With --workdir: the step, last score and config hash of each run there.

      tfx list
      tfx list --workdir=runs
    """
    if workdir:
        for path in find(workdir):
            try:
                print(f"{path}  {_about(path)}")
            except (ValueError, OSError, RecursionError) as error:
                # One that is damaged hides no other.
                print(f"{path}  cannot be shown: {' '.join(str(error).split())}")
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
    print("objectives (objective.name) and the rows they read")
    for name, objective in OBJECTIVES.items():
        print(f"  {name:16}{objective.ROWS}")
    print(f"schedules (optim.schedule)\n  {', '.join(get_args(schema.Schedule))}")
    print("data sources (data.source)\n  synthetic, files, tfds:NAME")


VERBS = {
    "train": train,
    "eval": evaluate,
    "translate": translate,
    "generate": generate,
    "predict": predict,
    "score": score,
    "average": average,
    "config": config,
    "import": lab.import_,
    "export": lab.export,
    "plan": lab.plan,
    "parity": lab.parity,
    "launch": lab.launch,
    "list": list_,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `tfx VERB ...`; returns the exit code."""
    return cli.run(VERBS, sys.argv[1:] if argv is None else argv)


def _traced(profile: str, config: schema.Config, done: int) -> tuple[int, int]:
    """The first and the last step that --profile names, counted as the run counts, which has
    `done` so many. What an evaluation or a save does is no part of a step: none is between them."""
    given = re.fullmatch(r"(\d+):(\d+)", profile)
    first, last = map(int, given.groups()) if given else (0, 0)
    if not 1 <= first <= last:
        raise ValueError(f"--profile={profile}: want FIRST:LAST, counted from 1, such as 10:20")
    left = max(config.train.steps - done, 0)
    if last > left:
        raise ValueError(
            f"--profile={profile}: this start takes {left:,} steps (train.steps = "
            f"{config.train.steps:,}, {done:,} are done); want a LAST of at most that"
        )
    every = config.eval.every, config.eval.bleu_every, config.checkpoint.every
    breaks = lambda step: any(n and (done + step) % n == 0 for n in every)
    if cut := next(filter(breaks, range(first, last)), None):
        raise ValueError(
            f"--profile={profile}: an evaluation or a save follows step {cut} of this start, and "
            f"would be in the trace; want --profile={first}:{cut}, or to begin after it"
        )
    return done + first, done + last


def _about(workdir) -> str:
    """A run in a line: how far it is, how good, and the hash of its config."""
    run, (step, row) = read_config(workdir), progress(workdir)
    last = "no score"
    if row:
        kind = "synthetic " if row.get("synthetic") else ""
        metric = row["metric"].upper() if row["metric"] == "bleu" else row["metric"]
        last = f"{metric} {row['score']:.1f} on {kind}{row.get('split', 'test')}"
        if "test_set" in row and not row["synthetic"]:
            last += f" ({row['test_set']})"
    return f"step {step:,} of {run.train.steps:,}  {last}  {configs.fingerprint(run)}"


def _searching(workdirs: list[str], overrides: list[str]) -> schema.Config:
    """The config of the first of some runs, once overridden; all of them search alike."""
    first, *others = [_changed(each, overrides, ("decode.",)) for each in workdirs]
    for name, other in zip(workdirs[1:], others, strict=True):
        both = dataclasses.asdict(first.decode), dataclasses.asdict(other.decode)
        for key, ours, theirs in configs.diff(*both):
            if key != "tokens":  # which only says how large batches are
                raise ValueError(
                    f"decode.{key} is {_value(ours)} in {workdirs[0]} and {_value(theirs)} in "
                    f"{name}; choose with --config.decode.{key}=VALUE"
                )
    return first


def _value(value: Any) -> str:
    """As one would type it behind `--config.KEY=`; an empty text as ''."""
    return str(value).lower() if isinstance(value, bool) else str(value) or "''"


if __name__ == "__main__":
    sys.exit(main())
