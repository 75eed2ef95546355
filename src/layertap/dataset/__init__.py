"""What people have, in every shape it comes in, as one stream of checked records.

    places         where bytes come from: local or any fsspec URL
    formats        one JSON value a line or one in the whole file, and of which known kind it is
    packing        what a file is packed in, by its first bytes
    names          what a file's name says of it, in folders and archives
    folders        which files of a folder are its data, and which are left out
    tables         the rows of Parquet tables
    files          a file taken apart into single records, Kaggle's with their answers
    columns        which record a row holds: the row itself, or one column of it
    tasks          ARC tasks checked
    conversations  messages with roles checked
    rows           texts and token ids checked, JSON parsed, and a record back to JSON
    records        the whole way, with ids, duplicates and numbering
    hub            the same from a Hugging Face dataset, whose rows are read like lines
    source         either of them, as the settings say

The content decides what a file holds. Its name counts only where the content cannot tell.
"""

from layertap.dataset.hub import read_hub_records
from layertap.dataset.records import read_records
from layertap.dataset.rows import as_row
from layertap.dataset.source import open_records, opening_lines

__all__ = ["as_row", "open_records", "opening_lines", "read_hub_records", "read_records"]
