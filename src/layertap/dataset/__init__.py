"""ARC tasks in every shape they come in, and plain text, as one stream of checked records.

    source    where bytes come from: local or any fsspec URL, gzip or not
    content   one JSON value a line, or one JSON value in the whole file?
    formats   which of the known shapes that value has
    items     a file or folder taken apart into single records, not yet checked (kaggle: with its answers)
    arc, text one record checked: a Task or a Document, or what is wrong with it
    records   the whole way, with ids, duplicates and numbering
    hub       the same from a Hugging Face dataset, whose rows stand for lines
    rows      the way back: a checked record as a JSON object

The shape is found out from the content. A file's name decides only where the content cannot: see `content`.
"""

from layertap.dataset.hub import read_hub_records
from layertap.dataset.records import read_records
from layertap.dataset.rows import as_row

__all__ = ["as_row", "read_hub_records", "read_records"]
