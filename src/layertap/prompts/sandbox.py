"""Jinja2 templates written by others: compiled once, run in a sandbox, with their errors placed.

Two kinds of template meet here, the user's own prompts and the chat template that came with a
checkpoint. Neither is trusted: both run in Jinja's immutable sandbox. Both must also write the same
text in every worker and after every restart, so what could make two renderings differ (`random`,
`lipsum`, today's date) does not exist in these environments; a template that needs it fails with
its line instead of writing another prompt each time.
"""

import json
from dataclasses import dataclass
from traceback import walk_tb

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from layertap.errors import PromptError

# What an expression inside a template can raise; anything else is a defect of ours and must not be
# blamed on the file.
_TEMPLATE_FAILURES = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


@dataclass(frozen=True, eq=False)
class SandboxedTemplate:
    """One compiled template; `filename` is what its errors call it."""

    filename: str
    source: str
    variables: frozenset[str]
    """The names that the template reads and does not set."""
    _template: jinja2.Template

    def render(self, **values: object) -> str:
        """The text for these values; PromptError naming file and line where the template fails."""
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
    """Compile `source`; PromptError naming `filename` and the line of a syntax error."""
    try:
        variables = find_undeclared_variables(environment.parse(source, filename=filename))
        code = environment.compile(source, name=filename, filename=filename)
    except jinja2.TemplateSyntaxError as error:
        raise PromptError(f"{filename}, line {error.lineno}: {error.message}") from error
    template = jinja2.Template.from_code(environment, code, environment.make_globals(None))
    return SandboxedTemplate(filename, source, frozenset(variables), template)


def prompt_environment() -> jinja2.Environment:
    """For prompt templates: an unknown name is an error, and block tags leave no blank lines."""
    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return _repeatable(environment)


def chat_environment() -> jinja2.Environment:
    """For chat templates: what `transformers` gives them, less today's date."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    return _repeatable(environment)


def _repeatable(environment: jinja2.Environment) -> jinja2.Environment:
    del environment.filters["random"]
    del environment.globals["lipsum"]
    return environment


class _GenerationTag(Extension):
    """`{% generation %}` marks what an assistant wrote, for training; its content stays."""

    tags = {"generation"}  # noqa: RUF012  # Jinja's own declaration is a plain set

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
