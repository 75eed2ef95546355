"""Choose the data files of a folder.

The data of a folder are all files at any depth whose name ends like data (names.py), sorted by path
in the order of code points. A pattern (`data/*.jsonl`) stands for the files and folders that it
matches, by the same rule.

- Hidden files and folders are ignored.
- `.txt` files count only if there is no other data. Beside JSON they are lists of ids, licences or
  notes.
- Kaggle's solutions are read with their challenges, so you can give Kaggle's folder unchanged. An
  id that is in several files then shows as a duplicate.

`Listing.describe` reports what is left out before anything is read, except hidden files.
"""

from dataclasses import dataclass

from layertap.config.source import DatasetFormat
from layertap.dataset.names import CHALLENGES, SOLUTIONS, is_hidden, is_named_data, is_named_text
from layertap.dataset.places import Place
from layertap.errors import DatasetError

_SHOWN = 5
_AS_TEXT: tuple[DatasetFormat, ...] = ("txt", "txt_lines")


@dataclass(frozen=True)
class Listing:
    """The files to read, in order, and the names of those left out."""

    place: Place
    files: tuple[Place, ...]
    left_out: tuple[str, ...]

    def describe(self) -> list[str]:
        """Return a line for the user if something is left out."""
        if not self.left_out:
            return []
        return [
            f"{self.place}: reads {_count(len(self.files))}, and leaves out {len(self.left_out)}:"
            f" {_shortened(self.left_out)}"
        ]


def list_files(place: Place, dataset_format: DatasetFormat) -> Listing | None:
    """List the data of a folder or pattern; None if `place` is a single file or does not exist.

    Raises DatasetError if a folder has no data.
    """
    if place.is_pattern():
        found = [it for match in place.matches() for it in (match.all_files() if match.is_folder() else [match])]
    elif place.is_folder():
        found = place.all_files()
    else:
        return None
    seen = {it.below: it for it in found if not is_hidden(it.below)}
    data = _data(list(seen), dataset_format)
    if not data:
        raise DatasetError(f"{place}: {_nothing(place, list(seen), dataset_format)}")
    read_along = {seen[name].beside(CHALLENGES, SOLUTIONS).below for name in data if CHALLENGES in name}
    files = tuple(seen[name] for name in sorted(data) if name not in read_along)
    return Listing(place, files, tuple(sorted(seen.keys() - data)))


def _data(names: list[str], dataset_format: DatasetFormat) -> set[str]:
    named = {name for name in names if is_named_data(name)}
    text = {name for name in named if is_named_text(name)}
    return text if dataset_format in _AS_TEXT else (named - text or text)


def _nothing(place: Place, names: list[str], dataset_format: DatasetFormat) -> str:
    """Return the message for a folder without data."""
    ends = ".txt" if dataset_format in _AS_TEXT else ".json, .jsonl, .ndjson, .parquet or .txt"
    if place.is_pattern():
        held = f"it matches {_shortened(names)}" if names else "it matches no file"
        return f"the pattern matches no data files ({ends}, also compressed); {held}"
    held = f"it holds {_shortened(names or place.names())}" if names or place.names() else "it is empty"
    saved = any(name.endswith(".arrow") for name in names)
    advice = "give it as --dataset_name" if saved else "give one of its files or folders"
    return f"the folder has no data files ({ends}, also compressed); {held}" + (f"; {advice}" if names else "")


def _shortened(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(sorted(names)[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _count(files: int) -> str:
    return f"{files} file{'s' if files != 1 else ''}"
