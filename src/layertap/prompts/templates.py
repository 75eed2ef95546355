"""Prompt templates: three Jinja2 files, `system.j2`, `user.j2` and `assistant.j2`.

The bundled templates are in the folder `templates` beside this file, under the names that
`--prompt_version` takes. Your own folder with the same three files goes through the same code. All
templates get `examples` (a list of train pairs, each with `input` and `output`) and `test_input`,
as texts. Only `assistant.j2` also gets `answer`, so that no prompt can reveal its answer by
mistake.

A prompt without an answer needs exactly the words before the answer. To find them, we render
`assistant.j2` with a mark as the answer and cut at the mark. So a template may also have text after
the answer.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from layertap.core.columns import TEST
from layertap.core.records import Grid, Task
from layertap.errors import PromptError
from layertap.prompts.chat import Chat, Message
from layertap.prompts.grids import GridEncoder
from layertap.prompts.labels import grid_bits
from layertap.prompts.marked import Marked, loses_marks, with_probes
from layertap.prompts.sandbox import SandboxedTemplate, compile_template, prompt_environment

PROMPT_VERSIONS = ("output-from-examples-v0", "output-from-examples-v1")
_CUSTOM = "custom"
_ANSWER_MARK = "\0"


@dataclass(frozen=True, eq=False)
class PromptTemplate:
    """The three compiled templates of one version; `version` is "custom" for a user's own."""

    version: str
    system: SandboxedTemplate
    user: SandboxedTemplate
    assistant: SandboxedTemplate

    def __post_init__(self) -> None:
        """Refuse an `assistant.j2` that never writes the answer."""
        if "answer" not in self.assistant.variables:
            raise PromptError(f"{self.assistant.filename}: never uses {{{{ answer }}}}, the text of the output grid")

    def render(self, task: Task, test_index: int, encoder: GridEncoder, include_answer: bool) -> Chat:
        """Write the chat about test pair `test_index` of `task`.

        It has the answer only if `include_answer` is set and the test output is known. Raises
        PromptError, which names file and line, if a template fails.
        """
        test = task.test[test_index]
        asked_about = encoder.encode(test.input).with_bits(grid_bits(TEST, "input"))
        shown = {"examples": _examples(task, encoder), "test_input": asked_about}
        asked = _message("system", self.system.render(**shown)), _message("user", self.user.render(**shown))
        if not include_answer or test.output is None:
            return Chat(asked, opening=self._opening(shown))
        output = encoder.encode(test.output).with_bits(grid_bits(TEST, "output"))
        answer = self.assistant.render(**shown, answer=output)
        return Chat((*asked, _message("assistant", answer)))

    def require_followed(self, task: Task, encoder: GridEncoder) -> None:
        """Raise PromptError if a template writes grids in a way that loses the places of cells.

        The test puts a character at the end of each row, like `ChatTemplate.require_followed`.
        """
        asked = with_probes(encoder.encode(task.test[0].input).with_bits(grid_bits(TEST, "input")))
        examples = [{side: with_probes(text) for side, text in pair.items()} for pair in _examples(task, encoder)]
        for template, more in ((self.system, {}), (self.user, {}), (self.assistant, {"answer": asked})):
            if loses_marks(template.render(examples=examples, test_input=asked, **more)):
                raise PromptError(
                    f"{template.filename}: writes grids in a way that Layertap cannot follow, so cells would have no"
                    " labels; write them with +, ~, slices, strip, split, replace, join or indent"
                )

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the texts of the three files."""
        texts = [self.system.source, self.user.source, self.assistant.source]
        return sha256("\0".join(texts).encode("utf-8")).hexdigest()

    def _opening(self, shown: Mapping[str, object]) -> str:
        opening, mark, _ = self.assistant.render(**shown, answer=_ANSWER_MARK).partition(_ANSWER_MARK)
        if not mark:
            raise PromptError(
                f"{self.assistant.filename}: changes {{{{ answer }}}}, so Layertap cannot find where the answer begins;"
                " use --include_answer, or write the answer without filters and conditions"
            )
        return opening


def load_template(version: str = PROMPT_VERSIONS[0], folder: str | None = None) -> PromptTemplate:
    """Load the bundled template of this version, or the user's own if `folder` is given.

    `folder` must hold `system.j2` (which may be empty), `user.j2` and `assistant.j2`. Raises
    PromptError for an unknown version, a missing or unreadable file, and syntax errors, with their
    lines.
    """
    if folder is not None:
        return _load(_CUSTOM, Path(folder), folder)
    if version not in PROMPT_VERSIONS:
        close = difflib.get_close_matches(version, PROMPT_VERSIONS, n=1)
        suggestion = f"did you mean {close[0]}?" if close else f"there are {', '.join(PROMPT_VERSIONS)}"
        raise PromptError(f"--prompt_version {version!r} is unknown; {suggestion}")
    return _load(version, files("layertap.prompts") / "templates" / version, version)


def _load(version: str, folder: Traversable, shown_as: str) -> PromptTemplate:
    environment = prompt_environment()
    system, user, assistant = (
        compile_template(environment, _read(folder / name, f"{shown_as}/{name}"), f"{shown_as}/{name}")
        for name in ("system.j2", "user.j2", "assistant.j2")
    )
    return PromptTemplate(version, system, user, assistant)


def _read(path: Traversable, shown_as: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise PromptError(
            f"{shown_as}: no such file; a prompt template is a folder with system.j2, user.j2 and assistant.j2"
            " (system.j2 may be empty; it is required because chat templates otherwise insert their own system message)"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{shown_as}: cannot be read: {error}") from error


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _examples(task: Task, encoder: GridEncoder) -> list[dict[str, Marked]]:
    return [
        {
            "input": encoder.encode(pair.input).with_bits(grid_bits(number, "input")),
            "output": encoder.encode(_known(pair.output, task)).with_bits(grid_bits(number, "output")),
        }
        for number, pair in enumerate(task.train)
    ]


def _known(output: Grid | None, task: Task) -> Grid:
    if output is None:
        raise PromptError(f"task {task.task_id!r}: a train pair has no output, so it cannot be shown as an example")
    return output
