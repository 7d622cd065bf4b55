import inspect
import io
import json
import logging
import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest

import tfx
from tfx import cli, lock, translate, workdir
from tfx.config import defaults, freeze
from tfx.hosts import Stopped
from tfx.main import VERBS, main
from tfx.schema import Decode

TINY = "--config=quickstart:tiny"


@pytest.fixture
def run(tmp_path):
    """The directory of a run that was never trained."""
    chosen = defaults()
    chosen.optim.lr = 0.5
    return str(workdir.prepare(tmp_path / "run", freeze(chosen), {"overrides": {"optim.lr": 0.5}}))


def error(capsys, *words: str) -> str:
    """The line that wrong input gets: it is the only one, and the exit code is 2."""
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and re.fullmatch(r"error: [^\n]+\n", printed.err)
    return printed.err.removeprefix("error: ").rstrip()


def module(monkeypatch, name: str, **functions):
    """A stand-in for a module that a verb calls."""
    stub = types.SimpleNamespace(**functions)
    monkeypatch.setitem(sys.modules, f"tfx.{name}", stub)
    monkeypatch.setattr(tfx, name, stub, raising=False)


# ------------------------------------------------------------------------ help


def test_alone_it_prints_its_verbs_a_line_each(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"^  (\w+) +[A-Z]", printed, re.M) == list(VERBS)
    verbs = "train eval translate generate predict score average config import export plan parity"
    assert list(VERBS) == [*verbs.split(), "launch", "list"]
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == printed


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tfx {tfx.__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_names_every_flag_and_shows_examples_that_parse(verb, capsys):
    for words in ([verb, "--help"], [verb, "-h"], [verb, "--workdir=x", "--help"]):
        assert main(words) == 0
        printed = capsys.readouterr().out
        for name in inspect.signature(VERBS[verb]).parameters:
            flag = f"\n  --{name.rstrip('_')}"
            assert name in ("overrides", "command") or flag in printed
        examples = re.findall(rf"^ .*\btfx {verb}(.*)$", printed, re.M)
        assert examples
        for example in examples:
            cli.parse(verb, VERBS[verb], shlex.split(example))
        assert max(map(len, printed.splitlines()[1:])) <= 100


def test_help_and_plain_mistakes_need_no_jax():
    code = (
        "import sys; from tfx.main import main; "
        "main([]); main(['train', '--help']); main(['train', '--config=nope']); "
        "sys.exit('jax' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# ----------------------------------------------------------------- wrong input

PROFILED = "train --config=quickstart --workdir=/nowhere --profile"


@pytest.mark.parametrize(
    "words, expected",
    [
        ("trian", "trian: no such verb; did you mean train?"),
        ("zzz", "zzz: no such verb; choose from train, eval"),
        ("train --config=quickstart", "--workdir=DIR is missing"),
        ("train --workdir=x", "--config is missing; see tfx train --help"),
        ("train --confg=x", "--confg: no such flag of tfx train; did you mean --config?"),
        ("eval --workdir=x --zzz", "--zzz: no such flag of tfx eval; see tfx eval --help"),
        ("translate --workdir=x --nbest=two", "--nbest=two: want a whole number"),
        ("translate --workdir=x --scores=maybe", "--scores=maybe: want true or false"),
        ("eval --workdir", "Missing value for flag --workdir"),
        ("eval --workdir=x test", '"test": not a flag; write --flag=value'),
        ("eval nowhere", "nowhere: no run here"),  # the one thing it needs may stand alone
        ("parity nowhere", "nowhere: no io.npz"),
        ("launch tfx train", '"tfx": not a flag; write --flag=value; a command stands behind --'),
        ("launch tfx train --config=x", "--config: no such flag of tfx launch; a command stands"),
        ("parity a b", '"a": not a flag; write --flag=value'),
        ("list --config.seed=1", "--config.seed=1: tfx list takes no config"),
        ("average --workdir=x --out=y", "want one of --last=N and --best=N"),
        ("average --workdir=x --out=y --last=1 --best=1", "want one of"),
        ("config", "want one of --config=FILE and --workdir=DIR"),
        ("config --config=quikstart", "quikstart: no such config file; did you mean quickstart?"),
        ("eval --workdir=/nowhere", "/nowhere: no run here"),
        ("list --workdir=/nowhere", "/nowhere: no runs here"),
        ("score --workdir=x --source=/nowhere --target=/nowhere", "/nowhere: "),
        (f"{PROFILED}=20:10", "--profile=20:10: want FIRST:LAST, counted from 1, such as 10:20"),
        (f"{PROFILED}=0:10", "--profile=0:10: want FIRST:LAST"),
        (f"{PROFILED}=ten:20", "--profile=ten:20: want FIRST:LAST"),
        (f"{PROFILED}=10:2000", "--profile=10:2000: this start takes 1,200 steps"),
        (f"{PROFILED}=390:410", "--profile=390:410: an evaluation or a save follows step 400"),
        (f"{PROFILED}=10:20 --dry_run", "--profile=10:20: --dry_run takes no step"),
    ],
)
def test_a_mistake_is_one_line(words, expected, capsys):
    assert error(capsys, *words.split()).startswith(expected)


def test_a_variant_that_is_not_there_is_one_line_with_its_place(capsys):
    text = error(capsys, "config", "--config=wmt14_en_de:bg")
    expected = r'wmt14_en_de\.py:\d+: variant "bg": choose from base, .*, tiny; did you mean big\?$'
    assert re.search(expected, text)


@pytest.mark.parametrize(
    "override, expected",
    [
        ("--config.optim.lrr=1", "optim.lrr: no such key; did you mean optim.lr?"),
        ("--config.model.norm=pst", 'model.norm = "pst": choose from post, pre'),
        ("--config.optim.lr=nan", "optim.lr = nan: want x > 0"),
        ("--config.train.steps=-5", "train.steps = -5: want x >= 1"),
        ("--config.train.steps=1e3", 'train.steps = "1e3": want a whole number'),
        ("--config.model.heads=3", "model.heads = 3 does not divide model.width = 16"),
    ],
)
def test_a_wrong_override_is_one_line_before_a_workdir_is_made(
    override, expected, capsys, tmp_path
):
    words = ["train", TINY, f"--workdir={tmp_path / 'new'}", override]
    assert error(capsys, *words).startswith(expected)
    assert not (tmp_path / "new").exists()


def test_a_workdir_of_another_run_is_refused_with_the_difference(capsys, run):
    Path(run, "tokenizer.json").write_text("{}")
    text = error(capsys, "train", TINY, f"--workdir={run}")
    assert "holds another run" in text and "model.width was 512, is 16" in text


def test_only_how_answers_are_made_may_change_after_training(capsys, run):
    expected = "optim.lr: is fixed once a run is trained; only decode.* may change"
    text = error(capsys, "translate", f"--workdir={run}", "--config.optim.lr=1")
    assert text.startswith(f"{expected}, and what describes the machine: mesh.*, ")
    for verb in (
        "score --source={0} --target={0}",
        "average --out=new --last=1",
        "export --to=new",
    ):
        verb, *words = verb.format(Path(run, "config.json")).split()
        text = error(capsys, verb, f"--workdir={run}", *words, "--config.decode.beam=1")
        assert "decode.beam: is fixed once a run is trained; only what describes the" in text
    text = error(capsys, "eval", f"--workdir={run}", "--config.optim.lr=1")
    assert text.startswith(expected.removesuffix(" may change") + ", data.*")
    text = error(capsys, "eval", f"--workdir={run}", "--config.decode.beam=0")
    assert text == "decode.beam = 0: want x >= 1"
    text = error(capsys, "translate", f"--workdir={run}", "--nbest=5")
    assert text.startswith("--nbest=5: want 1 to 4, the width of the search")
    text = error(capsys, "translate", f"--workdir={run}", "--input=/nowhere")
    assert text == "/nowhere: no such file; check the path"


def test_a_warning_is_one_line_too(capsys):
    def warn():
        """Warn."""
        logging.getLogger("tfx").warning("%d lines are cut", 3)

    assert cli.run({"warn": warn}, ["warn"]) == 0
    assert capsys.readouterr().err == "warning: 3 lines are cut\n"


def test_lines_to_score_must_pair_up(capsys, tmp_path):
    for name, lines in (("a", "1\n2\n"), ("b", "1\n")):
        (tmp_path / name).write_text(lines)
    files = f"--source={tmp_path / 'a'}", f"--target={tmp_path / 'b'}"
    assert "a has 2 lines, " in error(capsys, "score", "--workdir=x", *files)


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="no such verb"):
        main(["trian", "--debug"])


def test_an_error_that_is_no_mistake_of_the_user_is_not_hidden(monkeypatch, tmp_path):
    def bug(*_):
        return int("a bug")  # raised in a file outside tfx

    module(monkeypatch, "train", train=bug, Diverged=ArithmeticError)
    with pytest.raises(ValueError, match="invalid literal"):
        main(["train", TINY, f"--workdir={tmp_path}"])


def test_one_whole_command(tmp_path):
    command = [sys.executable, "-m", "tfx.main", "config", "--config=quickstart"]
    done = subprocess.run([*command, "--config.optim.lr=x"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == 'error: optim.lr = "x": want a number\n'


# ----------------------------------------------------------------------- verbs


def test_train_gets_the_config_and_where_it_comes_from(monkeypatch, tmp_path):
    calls = []
    module(monkeypatch, "train", train=lambda *given: calls.append(given), Diverged=ArithmeticError)
    where = str(tmp_path / "new")
    assert main(["train", TINY, "--workdir", where, "--config.optim.lr=0.25"]) == 0
    [(config, directory, provenance, profile)] = calls
    assert (config.optim.lr, config.model.width, directory) == (0.25, 16, where)
    assert provenance["overrides"] == {"optim.lr": 0.25}
    command = ["tfx", "train", TINY, f"--workdir={where}", "--config.optim.lr=0.25"]
    assert provenance["argv"] == command and profile == ()


def test_steps_to_profile_are_those_of_this_start(monkeypatch, tmp_path):
    calls = []
    module(monkeypatch, "train", train=lambda *given: calls.append(given), Diverged=ArithmeticError)
    (tmp_path / "checkpoints" / "400").mkdir(parents=True)
    words = ["train", "--config=quickstart", f"--workdir={tmp_path}", "--profile"]
    assert main([*words, "301:400"]) == 0
    assert calls[0][3] == (701, 800)  # a save that follows the last one does no harm
    assert main([*words, "301:401"]) == main([*words, "790:801"]) == 2


def test_dry_run_needs_no_workdir(monkeypatch):
    calls = []
    module(monkeypatch, "train", dry_run=lambda *given: calls.append(given), Diverged=RuntimeError)
    assert main(["train", TINY, "--dry_run"]) == 0
    assert calls[0][1] is None


@pytest.mark.parametrize(
    "raised, code", [(Stopped(15, 3), 143), (Stopped(2, 3), 130), (ArithmeticError("nan"), 1)]
)
def test_exit_codes_of_a_run_that_ends_early(raised, code, monkeypatch, tmp_path, capsys):
    def stop(*_):
        raise raised

    module(monkeypatch, "train", train=stop, Diverged=ArithmeticError)
    assert main(["train", TINY, f"--workdir={tmp_path}"]) == code
    assert str(raised) in capsys.readouterr().err


def test_eval_hands_on_the_search(monkeypatch, run):
    calls = []
    module(monkeypatch, "evaluate", evaluate=lambda *given, **how: calls.append((given, how)))
    words = ["--split=valid", "--average=3", "--config.decode.beam=7", "--config.decode.alpha=1"]
    assert main(["eval", f"--workdir={run}", *words]) == 0
    [(given, how)] = calls
    assert given == (run, "valid", None, 3)
    assert how["config"].decode == Decode(beam=7, alpha=1.0)


class Echo:
    """A run whose translations say what was asked for."""

    def search_together(self, lines, how, seed, before, errors):
        for line in lines:
            found = [(f"{line} {how.method}{how.beam}\n{i}", 0.0 - i) for i in range(how.beam)]
            yield [translate.Hypothesis(*each) for each in found] if line else [EMPTY]

    def score(self, sources, targets, errors):
        return [len(s) - len(t) for s, t in zip(sources, targets, strict=True)]


EMPTY = translate.Hypothesis("", 0.0)


@pytest.fixture
def echo(monkeypatch):
    loaded = []
    load = lambda *given, config=None: loaded.append(given) or Echo()
    names = ("Hypothesis", "CHUNK")
    module(monkeypatch, "translate", load=load, **{n: getattr(translate, n) for n in names})
    return loaded


def test_translate_keeps_lines_and_order(echo, run, tmp_path):
    source, output = tmp_path / "in", tmp_path / "out"
    source.write_bytes("b\r\n\nü a\u2028c".encode())
    words = [f"--input={source}", f"--output={output}", "--beam=2", "--step=7"]
    assert main(["translate", f"--workdir={run},{run}", *words]) == 0
    assert output.read_bytes().decode() == "b beam2 0\n\nü a\u2028c beam2 0\n"
    [(workdirs, steps, average, config)] = echo
    assert (workdirs, steps, average) == ([run, run], [7], 0)
    assert config.decode.beam == 2


def test_translate_reads_standard_input_and_writes_standard_output(echo, run, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\n\n")))
    words = ["--nbest=2", "--scores", "--sample", "--config.decode.beam=3"]
    assert main(["translate", f"--workdir={run}", *words]) == 0
    # n-best: as many lines for every line, an empty one too.
    expected = ["0.0000\ta sample3 0", "-1.0000\ta sample3 1", "0.0000\t", "-inf\t"]
    assert capsys.readouterr().out.splitlines() == expected


def test_on_a_terminal_it_asks_for_one_sentence_after_another(echo, run, capsys, monkeypatch):
    typed = iter(["one", "two"])

    def answer(prompt):
        for line in typed:
            return line
        raise EOFError

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: True))
    assert main(["translate", f"--workdir={run}"]) == 0
    assert capsys.readouterr().out == "one beam4 0\ntwo beam4 0\n"


def test_score_prints_a_number_a_line(echo, run, tmp_path, capsys):
    for name, lines in (("a", "123\n\n"), ("b", "1\n\n")):
        (tmp_path / name).write_text(lines)
    files = f"--source={tmp_path / 'a'}", f"--target={tmp_path / 'b'}"
    assert main(["score", f"--workdir={run}", *files]) == 0
    assert capsys.readouterr().out == "2.0000\n0.0000\n"


def test_average_takes_the_last_or_the_best(monkeypatch, run):
    calls = []
    module(monkeypatch, "translate", average=lambda *given, **kinds: calls.append((given, kinds)))
    assert main(["average", f"--workdir={run}", "--out=new", "--best=3"]) == 0
    assert calls == [((run, "new"), {"last": 0, "best": 3, "config": workdir.read_config(run)})]


def test_config_marks_what_was_overridden(capsys, run):
    assert main(["config", "--config=quickstart", "--config.optim.lr=0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "* optim.lr = 0.5" in lines and "  optim.warmup = 400" in lines
    assert "  init_from = ''" in lines and "  tokenizer.joint = true" in lines
    assert sum(line.startswith("*") for line in lines) == 1
    assert main(["config", f"--workdir={run}"]) == 0
    assert "* optim.lr = 0.5" in capsys.readouterr().out.splitlines()


def test_what_config_prints_can_be_typed_again(capsys):
    main(["config", "--config=multi30k"])
    first = capsys.readouterr().out
    pairs = re.findall(r"^  (\S+) = (.*)$", first, re.M)
    words = shlex.split(" ".join(f"--config.{key}={value}" for key, value in pairs))
    assert main(["config", "--config=wmt14_en_de:big", *words]) == 0
    again = capsys.readouterr().out
    assert re.findall(r"^\* (\S+) = (.*)$", again, re.M) == pairs


def test_config_shows_the_difference_between_two(capsys, run):
    words = ["config", "--config=wmt14_en_de:big", "--diff=wmt14_en_de"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "model.width: 1024 -> 512" in lines and "train.steps: 300000 -> 100000" in lines
    assert main(["config", f"--workdir={run}", f"--diff={run}"]) == 0
    assert capsys.readouterr().out == ""


def test_list_shows_what_there_is_to_choose_from(capsys):
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    for word in ("quickstart", "transformer", "big", "seq2seq", "noam", "synthetic, files"):
        assert word in printed


def test_list_shows_runs(capsys, run, tmp_path):
    assert main(["list", f"--workdir={tmp_path}"]) == 0
    assert "step 0 of 100,000  no score" in capsys.readouterr().out
    row = {"metric": "bleu", "score": 41.02, "split": "test", "synthetic": True}
    with open(f"{run}/scores.jsonl", "w") as file:
        file.write(json.dumps(row) + "\n")
    main(["list", f"--workdir={run}"])
    assert "BLEU 41.0 on synthetic test" in capsys.readouterr().out


def test_list_hides_no_run_behind_another(capsys, run, tmp_path):
    """A model of somebody's own, a folder of something else, a damaged file; runs in a run."""
    for name, text in (
        ("own", '{"model": {"name": "convlm"}}'),
        ("theirs", '{"architectures": ["Bert"]}'),
        ("cut", '{"model": {'),
        ("deep", "[" * 100_000),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    Path(run, "scores.jsonl").write_bytes(b"\xff\n{}\n7")
    workdir.prepare(tmp_path / "sweep" / "one", workdir.read_config(run))
    workdir.prepare(tmp_path, workdir.read_config(run))
    assert main(["list", f"--workdir={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [str(Path(line.partition("  ")[0]).relative_to(tmp_path)) for line in lines]
    assert names == [".", "cut", "deep", "own", "run", "sweep/one", "theirs"]
    wrong = {name for name, line in zip(names, lines, strict=True) if "cannot be shown: " in line}
    assert wrong == {"cut", "deep", "own", "theirs"}
    assert 'model.name = "convlm": choose from' in lines[3]
    assert all("step 0 of 100,000  no score" in lines[n] for n in (0, 4, 5))


def test_who_is_in_the_way_is_told_before_anything_is_imported(tmp_path):
    """In a process of its own: within the five seconds that a person waits."""
    with lock.Lock(tmp_path, "train") as held:
        held.acquire()
        code = (
            "import sys; from tfx.main import main; code = main(sys.argv[1:]); "
            "sys.exit(10 if 'jax' in sys.modules else code)"
        )
        for words in (
            ["train", "--config=quickstart:tiny", f"--workdir={tmp_path}"],
            ["average", "--workdir=x", "--last=2", f"--out={tmp_path}"],
            ["import", "--from=x", f"--workdir={tmp_path}"],
            ["export", "--workdir=x", f"--to={tmp_path}"],
        ):
            command = [sys.executable, "-c", code, *words]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 2, done.stderr
            line = f"error: {tmp_path}: tfx train (process {os.getpid()} on host "
            assert done.stderr.startswith(line) and len(done.stderr.splitlines()) == 1
        assert main(["train", "--config=nope", "--dry_run", f"--workdir={tmp_path}"]) == 2


@pytest.mark.parametrize("name", ["checkpoints", "data", "tensorboard"])
def test_a_place_that_will_not_do_is_told_before_anything_is_built(name, capsys, tmp_path):
    (tmp_path / name).write_text("")
    text = error(capsys, "train", TINY, f"--workdir={tmp_path}")
    assert text.endswith("a file where the run keeps a folder; move it away")
    assert [path.name for path in tmp_path.iterdir()] == [name]
