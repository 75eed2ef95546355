"""Read any supported dataset as one stream of checked records.

    places         reads bytes from a local path or any fsspec URL
    formats        detects JSON lines or one JSON value, and its kind
    packing        detects compression and archives by the first bytes, and unpacks
    names          what a file's name means in folders and archives
    folders        chooses the data files of a folder
    tables         reads the rows of Parquet tables
    files          splits a file into records; joins Kaggle's tasks with their answers
    columns        finds the record in a row: the row itself, or one column
    tasks          checks ARC tasks
    conversations  checks messages with roles
    rows           parses JSON, checks texts and token ids, and writes a record back to JSON
    records        from a path to checked records, with ids, duplicates and numbering
    hub            the same for a Hugging Face dataset, whose rows are read like lines
    source         chooses between the two from the settings

The content decides what a file holds. Its name counts only if the content is ambiguous.
"""

from layertap.dataset.hub import read_hub_records
from layertap.dataset.records import read_records
from layertap.dataset.rows import as_row
from layertap.dataset.source import open_records, opening_lines

__all__ = ["as_row", "open_records", "opening_lines", "read_hub_records", "read_records"]
