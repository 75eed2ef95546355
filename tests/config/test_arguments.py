"""Settings become flags, and a readable help page."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import commands
import pytest

from layertap.cli import COMMANDS, Command, main
from layertap.config.arguments import LAYERS, Flag, all_fields, parse
from layertap.config.extract import ExtractConfig
from layertap.core.taps import parse_layers
from layertap.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Part:
    """A part."""

    inner: Annotated[int, Flag("cloud")] = 3
    """A flag of the
    part."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the settings are for."""

    path: Annotated[str, Flag(metavar="PATH")]
    """Where it is."""

    kind: Annotated[Literal["a", "b"] | None, Flag("model", default="as it comes")] = None
    """Of which kind."""

    part: Part = Part()
    """A part."""

    layers: Annotated[tuple[int, ...], LAYERS, Flag("model")] = ()
    """Which layers."""

    loud: Annotated[bool, Flag("model")] = True
    """Whether to be loud."""

    rate: float | None = None
    """How fast."""


def page(capsys: pytest.CaptureFixture[str], config_type: type = Settings) -> str:
    with pytest.raises(SystemExit) as ended:
        parse(config_type, ["--help"], prog="prog", example="prog --path here")
    assert ended.value.code == 0
    return capsys.readouterr().out


def titles(text: str) -> list[str]:
    """The groups of a page, in boxes or, where the output is not UTF-8, between lines."""
    return [title.strip() for title in re.findall(r"(?m)^[╭─ ]+(\w+ )?options\b", text)]


def parsed(*words: str) -> Settings:
    return parse(Settings, ["--path", "here", *words], prog="prog")


def test_flags_of_parts_and_groups_come_back_as_they_were_declared() -> None:
    assert parsed() == Settings("here")
    words = ["--kind", "b", "--inner", "4", "--layers", "1-3,7", "9", "--no_loud", "--rate", "0.5"]
    assert parsed(*words) == Settings("here", "b", Part(4), (1, 2, 3, 7, 9), loud=False, rate=0.5)
    assert parsed("--kind", "None").kind is None


def test_the_page_has_groups_in_their_order_and_the_example_last(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = page(capsys)
    assert titles(text) == ["", "model", "cloud"]
    assert "What the settings are for." in text
    assert text.endswith("example:\n  prog --path here\n")


@pytest.mark.parametrize("words", [["tasks.jsonl"], ["--loudly"]])
def test_what_is_no_flag_is_answered_with_the_example(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Settings, words, prog="prog", example="prog --path here")
    told = capsys.readouterr()
    assert told.out == ""
    assert words[0] in told.err
    assert told.err.endswith("example:\n  prog --path here\n")


def test_defaults_and_values_are_words(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    text = " ".join(page(capsys).replace("│", "").split())
    for line in (
        "--path PATH Where it is. (required)",
        "--rate NUMBER How fast. (optional)",
        "--kind {a,b} Of which kind. (default: as it comes)",
        "--layers LAYER ... Which layers. (optional)",
        "--loud, --no_loud Whether to be loud. (default: on)",
        "--inner N A flag of the part. (default: 3)",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--inner", "x"], "--inner x: give a whole number"),
        (["--inner", "1.5"], "--inner 1.5: give a whole number"),
        (["--rate", "fast"], "--rate fast: give a number"),
    ],
)
def test_what_is_no_number_is_refused_in_a_sentence(words: list[str], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        parsed(*words)
    assert str(refused.value) == said


def all_commands(offered: Any = COMMANDS, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Command]]:
    for name, command in offered.items():
        if isinstance(command, Command):
            yield (*before, name), command
        else:
            yield from all_commands(command.commands, (*before, name))


COMMANDS = [pytest.param(words, command, id="-".join(words)) for words, command in all_commands()]


@pytest.mark.parametrize(("words", "command"), COMMANDS)
def test_every_page_is_clean(
    words: tuple[str, ...], command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    text = capsys.readouterr().out
    for bad in ("{None}", "}|", "(default: )", "(default: None)", "(default: '')", "None stands for", "STR", "INT"):
        assert bad not in text, bad
    _usage, *lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert text.endswith(f"\nexample:\n  layertap {' '.join(words)} {command.example}\n")
    for field in all_fields(command.config):
        assert f"--{field.name}" in text or "Positional" in str(field.annotation), field.name
        assert len(field.sentence.split()) >= 2, field.name


@pytest.mark.parametrize(("words", "command"), COMMANDS)
def test_every_example_is_understood(words: tuple[str, ...], command: Command) -> None:
    assert parse(command.config, command.example.split(), prog=" ".join(words))


def test_extract_has_every_group_that_was_asked_for_and_the_most_used_flags_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = page(capsys, ExtractConfig)
    assert titles(text) == ["", "input", "prompt", "model", "tap", "output", "cloud", "worker", "host"]
    first = ["dataset_path", "model_path", "layers_to_extract"]
    assert re.findall(r"(?m)^[│ ]{1,4}--(\w+)", text)[:3] == first
    assert [field.name for field in all_fields(ExtractConfig) if not field.flag.group] == first, "give it a group"


@pytest.mark.parametrize(
    ("words", "layers"),
    [
        (["all"], ()),
        (["6", "12"], (6, 12)),
        (["6,12"], (6, 12)),
        (["6,", "12"], (6, 12)),
        (["1-3"], (1, 2, 3)),
        (["0", "2-4,7", "9"], (0, 2, 3, 4, 7, 9)),
    ],
)
def test_layers_are_numbers_lists_and_ranges(words: list[str], layers: tuple[int, ...]) -> None:
    assert parse_layers(words) == layers
    assert parsed("--layers", *words).layers == layers


@pytest.mark.parametrize("word", ["-1", "3-1", "x", "1.5", "1-", "-", "²"])
def test_what_names_no_layer_is_refused_in_a_sentence(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="Count layers from 0: give 6 12"):
        parse_layers(["2", word])
    assert main(["extract", "--dataset_path", "x", "--layers_to_extract", word]) == 2
    assert capsys.readouterr().err.startswith(f"error: layer {word!r}: is not a layer")


def test_all_stands_alone() -> None:
    with pytest.raises(UsageError, match="layer 'all': is not a layer"):
        parse_layers(["all", "3"])


def test_help_needs_neither_jax_nor_numpy(tmp_path: Path) -> None:
    program = (
        "import sys; from layertap.cli import main\n"
        "try: main(['extract', '--help'])\n"
        "except SystemExit: sys.exit(bool({'jax', 'numpy', 'fsspec', 'tqdm'} & set(sys.modules)))"
    )
    assert commands.run(["-c", program], tmp_path).returncode == 0


@pytest.mark.parametrize("word", ["", ","])
def test_no_layers_are_not_all_layers(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["extract", "--dataset_path", "x", "--layers_to_extract", word]) == 2
    assert "error: no layer is given. Count layers from 0" in capsys.readouterr().err


def test_a_range_beyond_any_model_is_refused_before_it_is_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["extract", "--dataset_path", "x", "--layers_to_extract", "0-1000000000"]) == 2
    assert "layer '0-1000000000': is not a layer" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--keep_tokens", "cells", "answer"],
        ["--keep-tokens", "answer,cells"],
        ["--keep_tokens", "answer", "--max_tasks", "3", "--keep-tokens=cells", "answer"],
        ["--keep_tokens=cells", "--keep_tokens=answer", "--max_tasks", "3"],
    ],
)
def test_a_choice_of_tokens_is_the_sum_of_all_that_are_given(words: list[str]) -> None:
    config = parse(ExtractConfig, ["--dataset_path", "x", *words], prog="extract")
    assert config.keep_tokens == ("answer", "cells")
    assert config.max_tasks == (3 if "3" in words else None)


@pytest.mark.parametrize(
    "words",
    [
        ["--adapter", "b", "a", "--max_tasks", "3"],
        ["--adapter", "b", "--max_tasks=3", "--adapter", "a"],
        ["--adapter=b", "--max_tasks", "3", "--adapter=a"],
    ],
)
def test_adapters_keep_their_order_however_they_are_given(words: list[str]) -> None:
    config = parse(ExtractConfig, ["--dataset_path", "x", *words], prog="extract")
    assert (config.adapter, config.max_tasks) == (("b", "a"), 3)


def test_an_adapter_that_is_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="--adapter a: is given twice"):
        parse(ExtractConfig, ["--dataset_path", "x", "--adapter", "a", "b", "a"], prog="extract")


@pytest.mark.parametrize(("words", "said"), [(["cell"], "'cell' does not"), ([], "nothing does not")])
def test_what_names_no_tokens_is_refused_with_what_does(words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=f"{said} name tokens; give one or several of all, cells, answer"):
        parse(ExtractConfig, ["--dataset_path", "x", "--keep_tokens", *words], prog="extract")
