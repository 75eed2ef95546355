"""Turn a frozen dataclass of settings into a command line with a readable help page.  tyro parses
the flags. It makes one flag for each field, and for each field of a nested part, without a prefix.
This module decides how the help page looks: it groups the flags, puts the most used first, shows a
default only if it is informative, and ends with an example. A field controls its entry with a
`Flag` in its annotation:

    row_length: Annotated[int, Flag("prompt", metavar="TOKENS")] = 4096

Groups only make boxes on the page. The dataclass stays flat, so `ExtractConfig(...)` takes its
fields by name. tyro draws a box for each nested structure. So a rule for tyro (`_rule`) presents
the groups as structures, and puts their values back into the dataclass. The help sentences are the
strings under the fields. `ast` reads them from the source file (3 ms for all of `layertap
extract`), because tyro's own parser breaks lines where the source does.
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
"""The groups of a help page, in order. Flags of the first group come before all titles."""

_WORDS: Mapping[type, str] = MappingProxyType({int: "N", float: "NUMBER", str: "TEXT"})
_NUMBERS: Mapping[type, str] = MappingProxyType({int: "a whole number", float: "a number"})
_HELP = ("-h", "--help")
_ANNOTATED: Any = Annotated  # subscribed with values that are known only at run time

LAYERS = PrimitiveConstructorSpec[tuple[int, ...]](
    nargs="*",
    metavar="LAYER ...",
    instance_from_str=parse_layers,
    is_instance=lambda value: isinstance(value, tuple),
    str_from_instance=lambda layers: list(map(str, layers)),
)
"""For the annotation of a field: layers, as `parse_layers` reads them."""

SELECTION = PrimitiveConstructorSpec[tuple[str, ...]](
    nargs="*",
    metavar="WHICH ...",
    instance_from_str=parse_selection,
    is_instance=lambda value: isinstance(value, tuple),
    str_from_instance=list,
)
"""For the annotation of a field: a choice of tokens, as `parse_selection` reads it."""

SEVERAL = PrimitiveConstructorSpec[tuple[str, ...]](
    nargs="*",
    metavar="TEXT ...",
    instance_from_str=tuple,
    is_instance=lambda value: isinstance(value, tuple),
    str_from_instance=list,
)
"""For the annotation of a field: texts, in the order given."""


@dataclass(frozen=True)
class Flag:
    """How `--help` shows a field."""

    group: Group = ""
    metavar: str | None = None
    """The placeholder of the value; by default a word for the field's type."""
    default: str | None = None
    """The default in words, if the value itself is not informative."""
    needed: str | None = None
    """When the flag is required, if that depends on other flags."""


def parse(config_type: type[T], words: Sequence[str], *, prog: str, example: str = "") -> T:
    """Parse `words` into settings; underscores and hyphens in flags are equivalent.

    Raises SystemExit after printing the help page or tyro's message about a wrong flag, and below
    either the example. Raises UsageError if flags contradict each other.
    """
    registry = ConstructorRegistry()
    registry.struct_rule(_rule)
    try:
        return tyro.cli(
            config_type, prog=prog, args=_merge_repeated(config_type, words), use_underscores=True, registry=registry
        )
    except SystemExit:
        if example:
            print(f"example:\n  {example}", file=sys.stderr if {*_HELP}.isdisjoint(words) else sys.stdout)
        raise


def _merge_repeated(config_type: type, words: Sequence[str]) -> Sequence[str]:
    """Merge repeated flags that take several values into one flag with all the values.

    For other flags, tyro uses the last one.
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
    """One flag: a field of the settings or of a nested part."""

    name: str
    annotation: Any
    default: Any
    sentence: str

    @property
    def flag(self) -> Flag:
        """How the help page shows the field."""
        return next((it for it in extras_of(self.annotation) if isinstance(it, Flag)), Flag())

    def for_tyro(self) -> StructFieldSpec:
        """Describe the field to tyro."""
        shown = tyro.conf.arg(metavar=self._metavar(), help_behavior_hint=self._hint())
        annotation = _ANNOTATED[self.annotation, shown, tyro.conf.OmitArgPrefixes, *self._reading()]
        default = tyro.MISSING if self.default is MISSING else self.default
        return StructFieldSpec(self.name, annotation, default, self.sentence)

    def _reading(self) -> Iterator[PrimitiveConstructorSpec[Any]]:
        """Parse numbers and optional values here, because tyro's own messages name Python types."""
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
        """Return the text after the help sentence; None for tyro's own, `(default: 4096)`."""
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
    """A group of flags, as tyro sees it. Each group is its own type."""

    flags: tuple[Field, ...]


def _rule(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Tell tyro how to build settings and their groups; None leaves the type to another rule."""
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
    """Return the flags that come first, and the others by group."""
    found = list(all_fields(config_type))
    by_group = {group: tuple(it for it in found if it.flag.group == group) for group in get_args(Group)}
    first = by_group.pop("")
    boxes = {group: type("_Box", (_Box,), {"flags": it, "__doc__": ""}) for group, it in by_group.items() if it}
    return first, boxes


def all_fields(config_type: type) -> Iterator[Field]:
    """Yield the fields of settings; a nested part is replaced by its own fields."""
    annotations = get_type_hints(config_type, include_extras=True)
    sentences = _sentences(config_type)
    for field in fields(config_type):
        kind = bare(annotations[field.name])
        if is_dataclass(kind) and isinstance(kind, type):
            yield from all_fields(kind)
        else:
            yield Field(field.name, annotations[field.name], field.default, sentences.get(field.name, ""))


def _maker(config_type: type[T]) -> Callable[..., T]:
    """Return a function that builds the settings from flag values, some of them in groups."""

    def make(**values: Any) -> T:  # noqa: ANN401 - whatever the flags hold
        flat: dict[str, Any] = {}
        for name, value in values.items():
            flat |= value if name.startswith("_") else {name: value}
        return settings_of(config_type, flat)

    make.__doc__ = config_type.__doc__  # tyro prints it above the flags
    return make


def settings_of(config_type: type[T], flat: Mapping[str, Any]) -> T:
    """Build settings from the values of their flags; every flag needs a value."""
    annotations = get_type_hints(config_type)
    values = {}
    for field in fields(config_type):  # type: ignore[arg-type]  # it is a dataclass
        kind: Any = annotations[field.name]
        values[field.name] = (
            settings_of(kind, flat) if isinstance(kind, type) and is_dataclass(kind) else flat[field.name]
        )
    return config_type(**values)


def extras_of(annotation: Any) -> tuple[Any, ...]:  # noqa: ANN401 - an annotation
    """Return the metadata of an `Annotated` type."""
    return get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()


def bare(annotation: Any) -> Any:  # noqa: ANN401 - an annotation
    """Return the type of an `Annotated` type."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def alternatives(kind: Any) -> tuple[Any, ...]:  # noqa: ANN401 - a type
    """Return the members of a union, or the type itself."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _read(name: str, kinds: tuple[type, ...], words: Sequence[str]) -> Any:  # noqa: ANN401 - of one of these
    """Parse the value of a flag; raises UsageError if it is of another kind."""
    (word,) = words
    if word == "None" and NoneType in kinds:
        return None
    try:
        return kinds[0](word)
    except ValueError as error:
        raise UsageError(f"--{name} {word}: give {_NUMBERS[kinds[0]]}") from error


def _word(kind: Any) -> str | None:  # noqa: ANN401 - a type
    """Return the placeholder for a value of this type; None for a switch, which takes no value."""
    if len(alternatives(kind)) > 1:
        return " or ".join(filter(None, (_word(one) for one in alternatives(kind) if one is not NoneType)))
    if get_origin(kind) is Literal:
        return f"{{{','.join(map(str, get_args(kind)))}}}"
    if get_origin(kind) is tuple:
        return f"{_word(get_args(kind)[0])} ..."
    return _WORDS.get(kind)


def _sentences(config_type: type) -> dict[str, str]:
    """Return the string under each field, also of inherited fields."""
    found: dict[str, str] = {}
    for base in reversed(config_type.__mro__):
        found |= _in_file(base.__module__).get(base.__qualname__, {})
    return found


@cache
def _in_file(module: str) -> dict[str, dict[str, str]]:
    """Return the strings under the fields, for each class of a module."""
    path = getattr(sys.modules[module], "__file__", None)
    if path is None:
        return {}
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    return {node.name: dict(_strings(node.body)) for node in tree.body if isinstance(node, ast.ClassDef)}


def _strings(body: Sequence[ast.stmt]) -> Iterator[tuple[str, str]]:
    for field, below in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            yield field.target.id, " ".join(str(ast.literal_eval(below.value)).split())
