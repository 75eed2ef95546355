"""From a frozen dataclass of settings to a command line, and to a help page that a person can read.

tyro reads the flags. It makes one of each field, also of the fields of nested parts, whose names
are not prefixed. What is told here, and not to tyro in each dataclass, is how the page looks: flags
in groups, the most used ones first, a default only where it says something, and an example at the
end. A field says so by a `Flag` in its annotation:

    row_length: Annotated[int, Flag("prompt", metavar="TOKENS")] = 4096

Groups are boxes on the page and nothing else: the dataclass keeps its fields as they are, so
`ExtractConfig(...)` takes them by their names. tyro draws a box for each nested structure; so a
rule for tyro (`_rule`) shows it the groups as structures, and puts their values back into the
dataclass. Sentences are the strings under the fields, read from the source file with `ast` (3 ms
for all of `layertap extract`): tyro's own reading breaks them where the source does.
"""

import ast
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from layertap.core.selection import parse_selection
from layertap.core.taps import parse_layers
from layertap.errors import UsageError

T = TypeVar("T")

Group = Literal["", "plan", "input", "prompt", "model", "tap", "output", "cloud", "worker", "host"]
"""The groups of a help page, in their order; the flags of the first one come before all titles."""

_WORDS: Mapping[type, str] = MappingProxyType({int: "N", float: "NUMBER", str: "TEXT"})
_NUMBERS: Mapping[type, str] = MappingProxyType({int: "a whole number", float: "a number"})
_HELP = ("-h", "--help")
_ANNOTATED: Any = Annotated  # to subscribe it with what is known at run time alone

LAYERS = PrimitiveConstructorSpec[tuple[int, ...]](
    nargs="*",
    metavar="LAYER ...",
    instance_from_str=parse_layers,
    is_instance=lambda value: isinstance(value, tuple),
    str_from_instance=lambda layers: list(map(str, layers)),
)
"""In the annotation of a field: layers as `parse_layers` takes them."""

SELECTION = PrimitiveConstructorSpec[tuple[str, ...]](
    nargs="*",
    metavar="WHICH ...",
    instance_from_str=parse_selection,
    is_instance=lambda value: isinstance(value, tuple),
    str_from_instance=list,
)
"""In the annotation of a field: tokens as `parse_selection` takes them."""

SEVERAL = PrimitiveConstructorSpec[tuple[str, ...]](
    nargs="*",
    metavar="TEXT ...",
    instance_from_str=tuple,
    is_instance=lambda value: isinstance(value, tuple),
    str_from_instance=list,
)
"""In the annotation of a field: texts, in their order."""


@dataclass(frozen=True)
class Flag:
    """How `--help` shows a field."""

    group: Group = ""
    metavar: str | None = None
    """What stands for the value; by default a word for the field's type."""
    default: str | None = None
    """The default in words, where the value itself says nothing."""
    needed: str | None = None
    """When the flag has to be given, where that is not always or never."""


def parse(config_type: type[T], words: Sequence[str], *, prog: str, example: str = "") -> T:
    """The settings that `words` say; underscores and hyphens in flags are the same.

    Ends in SystemExit after the help page, and where tyro has said what is wrong with a flag.
    Raises UsageError where the flags contradict each other.
    """
    registry = ConstructorRegistry()
    registry.struct_rule(_rule)
    try:
        return tyro.cli(
            config_type, prog=prog, args=_gathered(config_type, words), use_underscores=True, registry=registry
        )
    except SystemExit:
        if example and not {*_HELP}.isdisjoint(words):
            print(f"example:\n  {example}")
        raise


def _gathered(config_type: type, words: Sequence[str]) -> Sequence[str]:
    """The words, where a flag that takes several, and is given several times, is given once, with
    all of it; of other flags the last one counts.
    """
    several = (it.name for it in all_fields(config_type) if {SELECTION, SEVERAL} & {*extras_of(it.annotation)})
    for name in several:
        values, rest, place, within = [], list[str](), None, False
        for word in words:
            flag, _, value = word.partition("=")
            if flag.replace("-", "_") == f"__{name}":
                within, place = True, len(rest) if place is None else place
                values += [value] if value else []
            elif within and not word.startswith("-"):
                values.append(word)
            else:
                within = False
                rest.append(word)
        words = words if place is None else [*rest[:place], f"--{name}", *values, *rest[place:]]
    return words


@dataclass(frozen=True)
class Field:
    """One flag: a field of the settings, or of one of their parts."""

    name: str
    annotation: Any
    default: Any
    sentence: str

    @property
    def flag(self) -> Flag:
        """How the field is shown."""
        return next((it for it in extras_of(self.annotation) if isinstance(it, Flag)), Flag())

    def for_tyro(self) -> StructFieldSpec:
        """The field as tyro takes it."""
        shown = tyro.conf.arg(metavar=self._metavar(), help_behavior_hint=self._hint())
        annotation = _ANNOTATED[self.annotation, shown, tyro.conf.OmitArgPrefixes, *self._reading()]
        default = tyro.MISSING if self.default is MISSING else self.default
        return StructFieldSpec(self.name, annotation, default, self.sentence)

    def _reading(self) -> Iterator[PrimitiveConstructorSpec[Any]]:
        """How a number or an optional value is read: tyro's own messages would name types."""
        kinds = alternatives(bare(self.annotation))
        if not self._reads_itself and kinds[0] in _WORDS and (kinds[0] is not str or NoneType in kinds):
            yield PrimitiveConstructorSpec(
                nargs=1,
                metavar=_WORDS[kinds[0]],
                instance_from_str=partial(_read, self.name, kinds),
                is_instance=lambda value: isinstance(value, kinds),
                str_from_instance=lambda value: [str(value)],
            )

    @property
    def _reads_itself(self) -> bool:
        return any(isinstance(it, PrimitiveConstructorSpec) for it in extras_of(self.annotation))

    def _metavar(self) -> str | None:
        return self.flag.metavar or (None if self._reads_itself else _word(bare(self.annotation)))

    def _hint(self) -> str | None:
        """What comes after the sentence; None: tyro's own words, `(default: 4096)`."""
        if self.flag.needed is not None:
            return f"({self.flag.needed})"
        if self.flag.default is not None:
            return f"(default: {self.flag.default})"
        if self.default is MISSING:
            return "(required)"
        if self.default is None or self.default in ((), ""):
            return "(optional)"
        return f"(default: {'on' if self.default else 'off'})" if isinstance(self.default, bool) else None


class _Box:
    """A group of flags, as tyro sees it; each is a type of its own."""

    flags: tuple[Field, ...]


def _rule(info: StructTypeInfo) -> StructConstructorSpec | None:
    """What tyro makes of settings and of their groups; None: another rule is to say."""
    kind: Any = info.type
    if not isinstance(kind, type):
        return None
    if issubclass(kind, _Box):
        return StructConstructorSpec(dict, tuple(field.for_tyro() for field in kind.flags))
    if not is_dataclass(kind):
        return None
    first, boxes = _grouped(kind)
    titled = [StructFieldSpec(f"_{title}", _titled(box, title), tyro.MISSING_NONPROP) for title, box in boxes.items()]
    return StructConstructorSpec(_maker(kind), (*(field.for_tyro() for field in first), *titled))


def _titled(box: type[_Box], title: str) -> Any:  # noqa: ANN401 - an annotation
    return _ANNOTATED[box, tyro.conf.arg(name=title)]


@cache
def _grouped(config_type: type) -> tuple[tuple[Field, ...], Mapping[str, type[_Box]]]:
    """The flags that come first, and the others by groups."""
    found = list(all_fields(config_type))
    by_group = {group: tuple(it for it in found if it.flag.group == group) for group in get_args(Group)}
    first = by_group.pop("")
    boxes = {group: type("_Box", (_Box,), {"flags": it, "__doc__": ""}) for group, it in by_group.items() if it}
    return first, boxes


def all_fields(config_type: type) -> Iterator[Field]:
    """The fields of settings, and in the place of parts those of theirs."""
    annotations = get_type_hints(config_type, include_extras=True)
    sentences = _sentences(config_type)
    for field in fields(config_type):
        kind = bare(annotations[field.name])
        if is_dataclass(kind) and isinstance(kind, type):
            yield from all_fields(kind)
        else:
            yield Field(field.name, annotations[field.name], field.default, sentences.get(field.name, ""))


def _maker(config_type: type[T]) -> Callable[..., T]:
    """What makes the settings from the values of their flags, some of them in groups."""

    def make(**values: Any) -> T:  # noqa: ANN401 - whatever the flags hold
        flat: dict[str, Any] = {}
        for name, value in values.items():
            flat |= value if name.startswith("_") else {name: value}
        return settings_of(config_type, flat)

    make.__doc__ = config_type.__doc__  # tyro prints it above the flags
    return make


def settings_of(config_type: type[T], flat: Mapping[str, Any]) -> T:
    """The settings with these values of their flags; each has one."""
    annotations = get_type_hints(config_type)
    values = {}
    for field in fields(config_type):  # type: ignore[arg-type]  # it is a dataclass
        kind: Any = annotations[field.name]
        values[field.name] = (
            settings_of(kind, flat) if isinstance(kind, type) and is_dataclass(kind) else flat[field.name]
        )
    return config_type(**values)


def extras_of(annotation: Any) -> tuple[Any, ...]:  # noqa: ANN401 - an annotation
    """What is said beside a type in its annotation."""
    return get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()


def bare(annotation: Any) -> Any:  # noqa: ANN401 - an annotation
    """The type, without what is said beside it."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def alternatives(kind: Any) -> tuple[Any, ...]:  # noqa: ANN401 - a type
    """The types of which a value may be one."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _read(name: str, kinds: tuple[type, ...], words: Sequence[str]) -> Any:  # noqa: ANN401 - of one of these
    """The value of a flag; raises UsageError where it is none of its kind."""
    (word,) = words
    if word == "None" and NoneType in kinds:
        return None
    try:
        return kinds[0](word)
    except ValueError as error:
        raise UsageError(f"--{name} {word}: give {_NUMBERS[kinds[0]]}") from error


def _word(kind: Any) -> str | None:  # noqa: ANN401 - a type
    """What stands for a value of this type; None for a switch, which has none."""
    if len(alternatives(kind)) > 1:
        return " or ".join(filter(None, (_word(one) for one in alternatives(kind) if one is not NoneType)))
    if get_origin(kind) is Literal:
        return f"{{{','.join(map(str, get_args(kind)))}}}"
    if get_origin(kind) is tuple:
        return f"{_word(get_args(kind)[0])} ..."
    return _WORDS.get(kind)


def _sentences(config_type: type) -> dict[str, str]:
    """The string under each field, of the class itself or of the one it was inherited from."""
    found: dict[str, str] = {}
    for base in reversed(config_type.__mro__):
        found |= _in_file(base.__module__).get(base.__qualname__, {})
    return found


@cache
def _in_file(module: str) -> dict[str, dict[str, str]]:
    """The strings under the fields of each class of a module."""
    path = getattr(sys.modules[module], "__file__", None)
    if path is None:
        return {}
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    return {node.name: dict(_strings(node.body)) for node in tree.body if isinstance(node, ast.ClassDef)}


def _strings(body: Sequence[ast.stmt]) -> Iterator[tuple[str, str]]:
    for field, below in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            yield field.target.id, " ".join(str(ast.literal_eval(below.value)).split())
