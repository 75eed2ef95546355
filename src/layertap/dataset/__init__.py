"""ARC tasks in every shape they come in, and plain text, as one stream of checked records.

    places    where bytes come from: local or any fsspec URL, gzip or not
    formats   one JSON value a line or one in the whole file, and which of the known kinds it is
    files     a file or folder taken apart into single records, Kaggle's with their answers
    rows      one record checked: a Task or a Document, or what is wrong; and back to JSON
    records   the whole way, with ids, duplicates and numbering
    hub       the same from a Hugging Face dataset, whose rows are read like lines

The content decides what a file holds. Its name counts only where the content cannot tell.
"""

from layertap.dataset.hub import read_hub_records
from layertap.dataset.records import read_records
from layertap.dataset.rows import as_row

__all__ = ["as_row", "read_hub_records", "read_records"]
