"""`docs/cli.md` against the parsers: every command and option is there, and nothing that does not exist."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from pixelis_jax import cli
from pixelis_jax.commands import data, train
from pixelis_jax.training.loop import MAY_DIFFER

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.split("\n### ")[1:]}
OPTION = re.compile(r"--[a-z_]+")


def parser_of(command):
    parser = cli.Parser(prog=f"pixelis {command}")
    importlib.import_module(f"pixelis_jax.commands.{command}").add_arguments(parser)
    return parser


def options_of(parser):
    found = set()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                found |= options_of(inner)
        found |= {option for option in action.option_strings if option not in ("-h", "--help")}
    return found


def test_every_command_has_its_section():
    assert list(SECTIONS) == list(cli.COMMANDS)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_option_is_named_and_no_other(command):
    # `--config.x=y` is not an option of the parser, see `cli._run`.
    assert set(OPTION.findall(SECTIONS[command])) == options_of(parser_of(command))


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_examples_parse(command):
    pages = (SECTIONS[command], importlib.import_module(f"pixelis_jax.commands.{command}").__doc__)
    examples = [line.strip() for page in pages for line in page.splitlines() if line.lstrip().startswith(f"pixelis {command} ")]
    assert examples or command == "demo"
    for example in examples:
        words = shlex.split(example.partition("     ")[0])[2:]  # what follows many blanks is a remark
        parser_of(command).parse_args([word for word in words if not word.startswith("--config.")])


def test_lists_are_those_of_the_code():
    assert all(split in SECTIONS["data"] for split in data.SPLITS)
    assert all(f"`{phase}`" in SECTIONS["train"] for phase in train.PHASES)
    assert all(f"`{name}`" in SECTIONS["train"] for name in MAY_DIFFER)
