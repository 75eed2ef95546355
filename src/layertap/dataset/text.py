"""Raw JSON in, one checked `Document` out, or one sentence about what is wrong."""

from layertap.core.records import Document
from layertap.dataset.strict_json import kind_name
from layertap.errors import BadTaskError


def document_from_row(raw: object, task_id: str) -> Document:
    """The document in `{"text": ...}`; raises BadTaskError, also for an empty text: it has no tokens to read."""
    if not isinstance(raw, dict) or "text" not in raw:
        raise BadTaskError(f"is {kind_name(raw)} without 'text'")
    text = raw["text"]
    if not isinstance(text, str):
        raise BadTaskError(f"'text' is {kind_name(text)}, not a text")
    if not text:
        raise BadTaskError("'text' is empty")
    refuse_half_characters(text, "'text'")
    return Document(task_id, text)


def refuse_half_characters(text: str, where: str) -> None:
    """Raise BadTaskError where `text` has half a surrogate pair: JSON can spell it, UTF-8 and tokenizers cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadTaskError(f"{where} has half a surrogate pair at character {error.start + 1}") from error
