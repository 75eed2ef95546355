"""`docs/commands.md`: every command and flag, from the dataclasses that make the command line.

A flag's sentence, its values and its default are those that `--help` shows.
"""

import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from tyro.constructors import PrimitiveConstructorSpec

from layertap import cli
from layertap.config.arguments import Field, Group, all_fields, bare, extras_of

_OPENING = """\
# Commands

You want to know which flags there are, and what each does. You need nothing:

    layertap --help
    layertap extract --help

says the same in a terminal. Hyphens are as good as underscores: `--max-tasks` is `--max_tasks`. A
flag that is on or off has a counterpart, `--no_` and its name. `python extract_activations.py` is
`layertap extract`, `python create_dataset_streams.py` is `layertap streams`, and
`./scripts/manage_tpus.sh` is `layertap tpu`. The exit status is 0 where all is done, 2 for wrong
input, 130 where a run was interrupted and can continue, and 1 for anything else.

This page is made by `make reference` of the dataclasses that the commands are made of.
"""
_TITLES: Mapping[Group, str] = {
    "": "Most used",
    "plan": "What is planned",
    "input": "Input",
    "prompt": "Prompts",
    "model": "Model",
    "tap": "What is read",
    "output": "Output",
    "cloud": "Buckets",
    "worker": "Workers",
    "host": "Hosts",
}


def commands_page() -> str:
    """The whole page."""
    rows = [f"| [`{name}`](#{_anchor(name)}) | {command.summary} |" for name, command in _commands()]
    table = "\n".join(("| command | what it does |", "| --- | --- |", *rows))
    return "\n".join((_OPENING, table, *(_section(name, command) for name, command in _commands())))


def _commands() -> Iterator[tuple[str, Any]]:
    """Every command with its full name; `fleet status` is left out, which is `shards status`."""
    for name, found in cli.COMMANDS.items():
        if isinstance(found, cli.Group):
            yield from ((f"layertap {name} {below}", it) for below, it in found.commands.items() if name != "fleet")
        else:
            yield f"layertap {name}", found


def _anchor(name: str) -> str:
    return name.replace(" ", "-")


def _section(name: str, command: Any) -> str:  # noqa: ANN401 - a command
    text = " ".join((command.config.__doc__ or "").split())
    lines = ["", f"## {name}", "", *_wrap(_mark(text), ""), "", f"    {name} {command.example}", ""]
    shown = list(all_fields(command.config))
    if name == "layertap plan":
        shared = {(field.name, field.sentence) for field in all_fields(cli.COMMANDS["extract"].config)}
        shown = [field for field in shown if (field.name, field.sentence) not in shared]
        lines += ["It takes the flags of [`layertap extract`](#layertap-extract), and these:", ""]
    for group in get_args(Group):
        flags = [field for field in shown if field.flag.group == group]
        if flags:
            lines += [f"### {_TITLES[group]}", ""] if {field.flag.group for field in shown} != {""} else []
            lines += [line for field in flags for line in _flag(field)]
            lines.append("")
    return "\n".join(lines[:-1])


def _flag(field: Field) -> list[str]:
    """The lines of one flag."""
    shown = next(it for it in extras_of(field.for_tyro().type) if hasattr(it, "help_behavior_hint"))
    choices = _choices(bare(field.annotation))
    itself = next((it.metavar for it in extras_of(field.annotation) if isinstance(it, PrimitiveConstructorSpec)), None)
    several = " ..." if get_origin(bare(field.annotation)) is tuple else ""
    value = f"CHOICE{several}" if choices else shown.metavar or itself or "VALUE"
    if any("Positional" in str(it) for it in extras_of(field.annotation)):
        name = f"`{value}`"
    else:
        names = [alias for it in extras_of(field.annotation) for alias in getattr(it, "aliases", None) or ()]
        value = "" if isinstance(field.default, bool) else f" {value}"
        name = ", ".join(f"`{it}{value}`" for it in (*names, f"--{field.name}"))
    hint = _mark(shown.help_behavior_hint) if shown.help_behavior_hint else f"(default: {_value(field.default)})"
    said = _mark(field.sentence) + (f" One of {', '.join(f'`{it}`' for it in choices)}." if choices else "")
    return _wrap(f"- {name} {hint}: {said}", "  ")


def _value(default: Any) -> str:  # noqa: ANN401 - of any flag
    several = default if isinstance(default, tuple) else (default,)
    return " ".join(f"`{it}`" for it in several)


def _choices(kind: Any) -> tuple[Any, ...]:  # noqa: ANN401 - a type
    if get_origin(kind) is Literal:
        return get_args(kind)
    found = [_choices(it) for it in get_args(kind)]
    return next(filter(None, found), ())


def _mark(sentence: str) -> str:
    """Flags, URLs and patterns as code, which Markdown would otherwise read as its own."""
    parts = re.split(r"(`[^`]*`)", sentence)
    code = re.compile(r"(?<![\w`'])(--\w+|(?:gs|s3|https?)://[^\s,;)]*[^\s,;).]|'[^']*[*{<_][^']*'|\w+\(\)|\{\w+\})")
    return "".join(part if part.startswith("`") else code.sub(r"`\1`", part).replace("<", "&lt;") for part in parts)


def _wrap(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
