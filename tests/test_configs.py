"""Every recipe in configs/ says what it is, and is a config that can be run."""

import ast
import re
import shlex

import pytest

from tfx import cli, main
from tfx import config as configs
from tfx.models.transformer import SIZES
from tfx.train import train

FILES = sorted(configs.BUILT_IN.glob("*.py"))
SHIPPED = ["iwslt14_de_en", "multi30k", "quickstart", "text_pair", "wmt14_en_de", "wmt14_en_fr"]


def docstring(path) -> str:
    return ast.get_docstring(ast.parse(path.read_text()))


def test_the_promised_recipes_are_there():
    assert {*SHIPPED} <= {path.stem for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_opens_with_command_time_and_score(path):
    text = docstring(path)
    assert f"tfx train --config={path.stem}" in text
    assert re.search(r"^Time: ", text, re.M) and "Score: " in text
    assert len(text.splitlines()[0]) <= 80  # what `tfx list` shows


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_commands_of_a_docstring_parse(path):
    commands = re.findall(r"^ *tfx (.+)$", docstring(path), re.M)
    assert commands
    for command in commands:
        verb, *words = shlex.split(command)
        arguments = cli.parse(verb, main.VERBS[verb], words)
        if "config" in arguments:
            configs.freeze(configs.load(arguments["config"]))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_freezes_and_its_tiny_variant_is_tiny(path):
    full = configs.freeze(configs.load(str(path)))
    small = configs.freeze(configs.load(f"{path}:tiny"))
    assert small.model.width <= 16 and small.train.steps <= 2 and small.batch.tokens <= 256
    assert small.data.source == "synthetic"
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


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_tiny_variant_trains_two_steps(path, tmp_path):
    assert train(configs.freeze(configs.load(f"{path}:tiny")), tmp_path)["step"] == 2


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
