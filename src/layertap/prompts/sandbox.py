"""Compile Jinja2 templates, run them in a sandbox, and locate their errors.

There are two kinds of templates: your own prompts, and the chat template of a checkpoint. We trust
neither, so both run in Jinja's immutable sandbox. Both must also write the same text in every
worker and after every restart. So these environments lack everything that could make two renderings
differ (`random`, `lipsum`, today's date). A template that needs it fails with its line, instead of
writing a different prompt each time.

Text keeps its marks through a template (marked.py).
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from traceback import walk_tb
from types import BuiltinMethodType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from layertap.errors import PromptError
from layertap.prompts.labels import GENERATED, ROLE_MASK
from layertap.prompts.marked import Marked, concat, join, marks_of, plain

# Errors that an expression in a template can raise. Any other error is a bug in Layertap, not in
# the file.
_TEMPLATE_FAILURES = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


@dataclass(frozen=True, eq=False)
class SandboxedTemplate:
    """One compiled template; its errors call it `filename`."""

    filename: str
    source: str
    variables: frozenset[str]
    """The names that the template reads and does not set."""
    _template: jinja2.Template

    def render(self, **values: object) -> str:
        """Render the template; PromptError, which names file and line, if it fails."""
        try:
            return self._template.render(values)
        except _TEMPLATE_FAILURES as error:
            raise self._blame(error) from error

    def _blame(self, error: Exception) -> PromptError:
        # Jinja rewrites tracebacks: a frame of template code has the template's name and line.
        lines = [line for frame, line in walk_tb(error.__traceback__) if frame.f_code.co_filename == self.filename]
        place = f", line {lines[-1]}" if lines else ""
        return PromptError(f"{self.filename}{place}: {error}")


def compile_template(environment: jinja2.Environment, source: str, filename: str) -> SandboxedTemplate:
    """Compile `source`; PromptError, which names `filename` and the line, for a syntax error."""
    try:
        variables = find_undeclared_variables(environment.parse(source, filename=filename))
        code = environment.compile(source, name=filename, filename=filename)
    except jinja2.TemplateSyntaxError as error:
        raise PromptError(f"{filename}, line {error.lineno}: {error.message}") from error
    template = jinja2.Template.from_code(environment, code, environment.make_globals(None))
    return SandboxedTemplate(filename, source, frozenset(variables), template)


def prompt_environment() -> jinja2.Environment:
    """Make the environment of prompts: unknown names are errors, block tags leave no blank
    lines.
    """
    environment = _Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return _repeatable(environment)


def chat_environment() -> jinja2.Environment:
    """Make the environment of chat templates: like that of `transformers`, without today's date."""
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
    environment.filters["tojson"] = to_marked_json
    environment.globals["raise_exception"] = _raise_exception
    return _repeatable(environment)


_KEEPING = ("join", "replace")
"""Methods of a plain text whose result may have the marks of their arguments."""


class _MarkingCode(CodeGenerator):
    """Compiles `~` so that it keeps marks."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """Concatenate the parts with the environment's own `concat`."""
        self.write("environment.concat(map(str, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")


class _Environment(ImmutableSandboxedEnvironment):
    """A sandbox in which text keeps its marks (marked.py)."""

    code_generator_class = _MarkingCode
    concat = staticmethod(concat)

    def call(self, context: Context, called: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - Jinja's own
        """Call methods of plain texts, such as `", ".join(parts)`, as methods of marked texts."""
        if isinstance(called, BuiltinMethodType) and type(called.__self__) is str and called.__name__ in _KEEPING:
            called = getattr(Marked(called.__self__), called.__name__)
        return super().call(context, called, *args, **kwargs)


def _repeatable(environment: jinja2.Environment) -> jinja2.Environment:
    environment.filters |= {"join": _join, "indent": _indent, "format": _format, "safe": lambda value: value}
    del environment.filters["random"]
    del environment.globals["lipsum"]
    return environment


class _GenerationTag(Extension):
    """`{% generation %}` marks what an assistant writes, as for training.

    It is a call block, as in transformers: a name that is set inside is unknown after it.
    """

    tags = {"generation"}  # noqa: RUF012  # Jinja's own declaration is a plain set

    def parse(self, parser: Parser) -> nodes.Node:
        """Parse the block; its text is passed to `_mark_generated`."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark_generated"), [], [], body).set_lineno(line)

    @jinja2.pass_eval_context
    def _mark_generated(self, _context: nodes.EvalContext, caller: Callable[[], str]) -> Marked:
        return concat((caller(),)).with_bits(GENERATED)


def _join(value: Iterable[object], separator: str = "", attribute: str | int | None = None) -> Marked:
    """Replace Jinja's `join` filter, which would turn marked text into plain text."""
    parts = value if attribute is None else [_attribute(part, attribute) for part in value]
    return join(separator, map(str, parts))


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> Marked:
    """Replace Jinja's `indent`, with the same rules."""
    space = " " * width if isinstance(width, int) else width
    lines = concat((text, "\n")).splitlines()
    return join("\n", [space + line if ((blank or line) if at else first) else line for at, line in enumerate(lines)])


def _format(pattern: str, *args: object, **named: object) -> str:
    """Replace Jinja's `format`; what a plain `%s` inserts keeps its marks."""
    pieces = Marked(pattern).split("%s")
    if named or len(pieces) != len(args) + 1 or any("%" in piece for piece in pieces):
        return str(pattern) % (named or args)
    parts = [pieces[0]]
    for arg, piece in zip(args, pieces[1:], strict=True):
        parts += [str(arg), piece]
    return concat(parts)


def _attribute(part: Any, name: str | int) -> object:  # noqa: ANN401 - any value of a template
    return part[name] if isinstance(name, int) or isinstance(part, Mapping) else getattr(part, name)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def to_marked_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as transformers' templates do; Jinja's own filter escapes HTML.

    The characters of a text keep their marks. A list or an object gets the role of the first text
    in it that has one.
    """
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    role = next((int(marks_of(part).max()) & ROLE_MASK for part in _texts(value) if marks_of(part).any()), 0)
    if not isinstance(value, Marked):
        return Marked(text, role)
    inside = [Marked(json.dumps(plain(it), ensure_ascii=ensure_ascii)[1:-1], int(marks_of(it)[0])) for it in value]
    return concat((Marked('"', role), *inside, Marked('"', role)))


def _texts(value: object) -> Iterator[str]:
    """Yield all texts in a JSON value, including keys."""
    match value:
        case str() as text:
            yield text
        case Mapping():
            for key, entry in value.items():
                yield from _texts(key)
                yield from _texts(entry)
        case list() | tuple():
            for entry in value:
                yield from _texts(entry)
