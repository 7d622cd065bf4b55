"""Every recipe in configs/ says what it is, and is a config that can be run."""

import ast
import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from tfx import cli, main, objectives, optim
from tfx import config as configs
from tfx.models import MODELS
from tfx.models.transformer import SIZES
from tfx.train import train

FILES = sorted(configs.BUILT_IN.glob("*.py"))
TRANSLATION = ["iwslt14_de_en", "multi30k", "quickstart", "text_pair", "wmt14_en_de", "wmt14_en_fr"]
FAMILIES = ["bert", "roberta", "distilbert", "gpt", "gpt2", "t5", "xlnet"]
TASKS = ["sst2", "squad", "summarise", "shakespeare", "wikitext2"]
# Their tiny variants train the same code as that of another file.
ALIKE = {"iwslt14_de_en": "multi30k", "wmt14_en_de": "multi30k", "wmt14_en_fr": "multi30k"}
ALIKE |= {"roberta": "bert", "distilbert": "bert", "gpt": "gpt2", "shakespeare": "gpt2"}
ALIKE |= {"wikitext2": "gpt2"}


def docstring(path) -> str:
    return ast.get_docstring(ast.parse(path.read_text()))


def test_the_promised_recipes_are_there():
    assert {*TRANSLATION, *FAMILIES, *TASKS} <= {path.stem for path in FILES}


def run_in(place, family):
    """A workdir of a pre-trained model, for a config to start from."""
    config = configs.load(family)
    Path(place, "checkpoints").mkdir(parents=True)
    Path(place, "config.json").write_text(configs.to_json(configs.freeze(config)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_opens_with_command_time_and_score(path):
    text = docstring(path)
    assert f"tfx train --config={path.stem}" in text
    assert re.search(r"^Time: ", text, re.M) and "Score: " in text
    assert len(text.splitlines()[0]) <= 80  # what `tfx list` shows


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_commands_of_a_docstring_parse(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^ *tfx (.+)$", docstring(path), re.M)
    assert commands
    for command in commands:
        verb, *words = shlex.split(command)
        arguments = cli.parse(verb, main.VERBS[verb], words)
        if "config" in arguments:
            if found := re.search(r"[:,]((?:runs|models)/([a-z0-9]+)[^,]*)", arguments["config"]):
                run_in(*found.groups())
            configs.configure(arguments["config"], arguments["overrides"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_freezes_and_its_tiny_variant_is_tiny(path):
    full = configs.freeze(configs.load(str(path)))
    small = configs.freeze(configs.load(f"{path}:tiny"))
    assert small.model.width <= 16 and small.train.steps <= 2 and small.batch.tokens <= 2048
    assert small.data.source == "synthetic" and small.init_from == ""
    assert type(small.model) is type(full.model)
    assert configs.from_json(configs.to_json(full)) == full


@pytest.mark.parametrize("name", ["wmt14_en_de", "wmt14_en_fr"])
def test_the_sizes_of_the_paper(name):
    base, big = (configs.freeze(configs.load(f"{name}:{size}")) for size in ("base", "big"))
    assert (base.model.width, big.model.width) == (512, 1024)
    assert (base.train.steps, big.train.steps) == (100_000, 300_000)
    assert big.model.dropout == (0.3 if name == "wmt14_en_de" else 0.1)
    assert configs.freeze(configs.load(f"{name}:big,tiny")).model.width == 16


def test_every_row_of_table_3_is_a_variant():
    base = configs.freeze(configs.load("wmt14_en_de"))
    for row in [*SIZES, "D.ls0", "D.ls2"]:
        c = configs.freeze(configs.load(f"wmt14_en_de:{row}"))
        assert row == "base" or (c.model, c.objective) != (base.model, base.objective)


def is_slow(name):
    return pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name


@pytest.mark.parametrize("name", [is_slow(path.stem) for path in FILES])
def test_a_tiny_variant_trains_two_steps(name, tmp_path):
    assert train(configs.freeze(configs.load(f"{name}:tiny")), tmp_path)["step"] == 2


# The other ways of a recipe that has several.
OTHERS = ["sst2:t5", "sst2:gpt2-nano", "sst2:xlnet-base", "squad:xlnet-base", "squad:2.0"]
OTHERS += ["summarise:transformer", "summarise:bart-base", "t5:v1_1-small"]
OTHERS += ["wikitext2:bert", "wikitext2:xlnet", "wikitext2:t5"]


@pytest.mark.slow
@pytest.mark.parametrize("spec", OTHERS)
def test_other_families_train_two_steps_too(spec, tmp_path):
    assert train(configs.freeze(configs.load(f"{spec},tiny")), tmp_path)["step"] == 2


@pytest.mark.parametrize("name", FAMILIES)
def test_every_size_is_a_variant(name):
    for size in MODELS[name].SIZES.keys() - {"tiny", "nano"}:
        found = configs.freeze(configs.load(f"{name}:{size}"))
        config = MODELS[name].Config(**MODELS[name].SIZES[size])
        shape = lambda c: (c.width, c.depth, c.heads, c.mlp, c.max_length, c.position, c.head)
        assert shape(found.model) == shape(config)
        assert found.train.steps * found.batch.tokens >= 10**10  # what a paper reads


def test_what_is_learned_of_bert_and_roberta():
    """Two sentences and masks made once, or blocks whose masks are new in every epoch."""
    bert, roberta = (configs.freeze(configs.load(name)) for name in ("bert", "roberta"))
    wanted = lambda c: (c.model.head, c.objective.pairs, c.objective.static, c.objective.recipe)
    assert wanted(bert) == ("pretraining", "next", True, "bert")
    assert wanted(roberta) == ("mlm", "none", False, "roberta")
    assert bert.batch.tokens == 256 * 512 and roberta.batch.tokens == 8192 * 512


def test_the_rate_of_t5_is_the_papers():
    """1 / sqrt(max(step, 10,000)), from step 10,000 on: section 3.1.2."""
    c = configs.freeze(configs.load("t5"))
    rate = optim.schedule(c.optim, c.train.steps, c.model.width)
    for step in (10_000, 40_000, 2**19):
        assert rate(step - 1) == pytest.approx(step**-0.5, rel=1e-5)
    optim.build(c.optim, c.train.steps, c.model.width)


@pytest.mark.parametrize(
    "spec, objective, head, optimiser",
    [
        ("sst2", "classify", "classify", "adamw"),
        ("sst2:roberta-large", "classify", "classify", "adamw"),
        ("sst2:gpt", "classify", "classify", "adamw"),
        ("sst2:t5-3b", "text_to_text", "lm", "adafactor"),
        ("sst2:bart", "text_to_text", None, "adamw"),
        ("squad:xlnet,policyqa", "span_qa", "beam", "adamw"),
        ("summarise:t5-v1_1-base,dialogsum", "text_to_text", "lm", "adafactor"),
        ("summarise:transformer-big", "text_to_text", None, "adamw"),
    ],
)
def test_a_task_is_learned_as_the_family_can(spec, objective, head, optimiser):
    c = configs.freeze(configs.load(spec))
    assert objectives.name_of(c.objective) == objective
    assert getattr(c.model, "head", None) == head and c.optim.name == optimiser


def test_a_half_is_distilled_from_what_was_fine_tuned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_in("runs/bert", "bert")
    run_in("runs/sst2", "sst2")
    whole = configs.freeze(configs.load("sst2:runs/sst2"))
    half = configs.freeze(configs.load("sst2:runs/sst2,distill"))
    assert half.objective.teacher == half.init_from == whole.init_from == "runs/sst2"
    assert dataclasses.replace(half.model, depth=12) == whole.model and half.model.depth == 6
    student = configs.freeze(configs.load("distilbert:runs/bert"))
    assert student.objective.teacher == student.init_from == "runs/bert"
    assert student.model == MODELS["distilbert"].Config()
    assert configs.freeze(configs.load("distilbert:runs/bert,tiny")).init_from == ""


@pytest.mark.parametrize(
    "spec, match",
    [
        ("bert:bsae", r"choose from base, large, .*tiny; did you mean base\?"),
        ("squad:policy", r"choose from 1\.1, 2\.0, policyqa, tiny.*; did you mean policyqa\?"),
        ("squad:gpt2", "a gpt2; choose from bert, distilbert, roberta, xlnet"),
        ("summarise:bert", "bert: its model cannot learn text_to_text"),
    ],
)
def test_what_a_variant_cannot_be(spec, match):
    with pytest.raises(ValueError, match=match):
        configs.load(spec)


def test_transformer_tiny_is_that_of_the_paper():
    c = configs.freeze(configs.load("multi30k"))
    assert (c.model.depth, c.model.width, c.model.mlp, c.model.heads) == (4, 128, 256, 4)
    assert (c.model.norm, c.model.dropout, c.model.tie) == ("post", 0.3, "all")
    assert (c.optim.lr, c.optim.schedule, c.optim.warmup, c.optim.clip) == (5e-3, "rsqrt", 2000, 25)
    assert (c.tokenizer.vocab, c.decode.beam, c.checkpoint.keep_last) == (10_000, 5, 10)


def test_own_text_needs_two_paths_only():
    c = configs.freeze(configs.load("text_pair:my.en,my.de"))
    assert (c.data.source, c.data.train, c.data.valid) == ("files", "my.en,my.de", "")
    c = configs.freeze(configs.load("text_pair:a.en,a.de,b.en,b.de,c.en,c.de"))
    assert (c.data.valid, c.data.test) == ("b.en,b.de", "c.en,c.de")
    with pytest.raises(ValueError, match="2, 4 or 6 files"):
        configs.load("text_pair:my.en")
