"""The command line accepts every command and flag that a page prints."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from pages import PAGES, blocks, printed_commands

from layertap import cli
from layertap.config.arguments import all_fields, extras_of, parse

_OLD = {"CHANGELOG.md", "LOG.md", "decisions.md"}  # they speak of what was
_OF_OTHERS = {
    "fleet.md": {"--head", "--address"},  # Ray
    "storage.md": {"--kills", "--seed"},  # make soak
    "README.md": {"--quick"},  # the examples
}


def printed() -> Iterator[tuple[str, list[str]]]:
    """Return the commands of Layertap in blocks: their place, and their words."""
    for page in PAGES:
        if page.name not in _OLD:
            for block in blocks(page):
                for words in printed_commands(block.text):
                    yield f"{page.name}:{block.line}", words


def _command(words: Sequence[str]) -> tuple[cli.Command, list[str]]:
    found = cli.COMMANDS[words[0]]
    if isinstance(found, cli.Group):
        return found.commands[words[1]], list(words[2:])
    return found, list(words[1:])


_PRINTED = [it for it in printed() if it[1] not in (["--help"], ["--version"])]


@pytest.mark.parametrize(("where", "words"), _PRINTED, ids=[f"{where} {' '.join(it[:2])}" for where, it in _PRINTED])
def test_a_printed_command_is_read_without_a_complaint(where: str, words: list[str]) -> None:
    command, rest = _command(words)
    if "--help" in rest:
        return
    if "..." in rest:  # the page leaves something out
        known = {f"--{field.name}" for field in all_fields(command.config)}
        assert {word.replace("-", "_").replace("__", "--", 1) for word in rest if word.startswith("--")} <= known
    else:
        parse(command.config, rest, prog="layertap")


def test_the_pages_print_commands() -> None:
    assert len(_PRINTED) > 40


def _flags(offered: Mapping[str, cli.Command | cli.Group]) -> Iterator[str]:
    """Every flag of every command, and the counterparts of switches."""
    for command in offered.values():
        if isinstance(command, cli.Group):
            yield from _flags(command.commands)
            continue
        for field in all_fields(command.config):
            extras = extras_of(field.annotation)
            names = [f"--{field.name}", *(name for it in extras for name in getattr(it, "aliases", None) or ())]
            yield from (*names, *(name.replace("--", "--no_") for name in names))


def _is_checked(page: Path) -> bool:
    return page.name not in {*_OLD, "CONTRIBUTING.md", "commands.md"} and page.parent.name != "tutorials"


@pytest.mark.parametrize("page", [*filter(_is_checked, PAGES)], ids=lambda it: it.name)
def test_a_flag_in_a_sentence_exists(page: Path) -> None:
    known = {*_flags(cli.COMMANDS), "--help", "--version", "--no_", *_OF_OTHERS.get(page.name, ())}
    sentences = re.sub(
        r"^ *```.*?^ *```$|^    .*?$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    layertap = [
        code for code in re.findall(r"`([^`]+)`", sentences) if not code.startswith(("pip", "gcloud", "jupytext"))
    ]
    printed = {flag for code in layertap for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", code)}
    assert {flag for flag in printed if f"--{flag[2:].replace('-', '_')}" not in known} == set()
