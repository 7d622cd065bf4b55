"""What the README and the scripts tell people to type is there and parses."""

import re
import shlex
from pathlib import Path

import pytest

from tfx import cli, main
from tfx import config as configs

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def commands():
    text = README + (ROOT / "docs" / "tasks.md").read_text()
    text += (ROOT / "scripts" / "quickstart.sh").read_text().replace("\\\n", " ")
    found = re.findall(r"(?:^ *|; )tfx ([a-z].*?)(?: +#.*|;.*)?$", text, re.M)
    # What is to be started from is not there; a shape of its kind is.
    found = [re.sub(r"(--config=\w+:)(?:runs|models)/[\w-]+", r"\1bert-base", c) for c in found]
    found = [c.replace("summarise:bert", "summarise:t5") for c in found]
    found = [c.replace('"$run"', "runs/q").replace("$run", "runs/q") for c in found]
    return [c for c in found if c.split()[0] in main.VERBS]


def test_there_are_commands():
    assert len(commands()) > 10


@pytest.mark.parametrize("command", commands())
def test_a_command_parses(command):
    verb, *words = shlex.split(command.partition(" | ")[0])
    words = [word for word in words if not word.startswith("--config=mine")]
    if verb == "train" and not any(word.startswith("--config=") for word in words):
        words.append("--config=quickstart")
    arguments = cli.parse(verb, main.VERBS[verb], words)
    if arguments.get("config"):
        chosen = configs.load(arguments["config"])
        configs.override(chosen, arguments.get("overrides", []))
        configs.freeze(chosen)


@pytest.mark.parametrize("path", re.findall(r"\]\(([\w/.]+)\)", README))
def test_a_link_leads_somewhere(path):
    assert (ROOT / path).exists()


def test_the_two_commands_come_first():
    first = re.findall(r"^    (\S.*)$", README, re.M)[:2]
    assert first == ["scripts/quickstart.sh", "scripts/test.sh"]
    for command in first:
        assert (ROOT / command).stat().st_mode & 0o100


def test_the_configs_of_the_table_exist():
    for name in re.findall(r"^\| `(\w+)", README, re.M):
        assert (ROOT / "configs" / f"{name}.py").exists()
