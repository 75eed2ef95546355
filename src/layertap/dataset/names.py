"""What a file's name means in folders and archives, where many files are not data.  A data file's
name ends in `.json`, `.jsonl`, `.ndjson`, `.parquet` or `.txt`, in any case, or in one of these and
a packing: `tasks.jsonl.zst`. Files that accompany data under such a name (`dataset_info.json`,
`README.txt`) are companions and are not data. A file that you name yourself is read whatever its
name is.
"""

from pathlib import PurePosixPath

JSON_LINES = (".jsonl", ".ndjson")
TEXT = ".txt"
CHALLENGES, SOLUTIONS = "challenges", "solutions"
"""Parts of the names of Kaggle's files with questions and answers."""
_DATA = (".json", *JSON_LINES, ".parquet", TEXT)
_PACKED = (".gz", ".zst", ".zstd", ".bz2", ".xz", ".lzma", ".zip")
_COMPANIONS = frozenset(
    {
        *("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json"),
        *("manifest.json", "croissant.json", "package.json", "package-lock.json", "datapackage.json"),
        *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"),
        *("special_tokens_map.json", "added_tokens.json", "preprocessor_config.json"),
        *("requirements.txt", "merges.txt", "robots.txt"),
    }
)
_COMPANION_STEMS = ("readme", "license", "licence", "notice", "changelog", "citation", "authors", "copying")
_SUBMISSION = "submission"


def unpacked_name(path: str) -> str:
    """Return the last part of a path, without the suffix of a packing."""
    name = PurePosixPath(path).name
    return name[: -len(PurePosixPath(name).suffix)] if name.lower().endswith(_PACKED) else name


def is_named_data(path: str) -> bool:
    """Return whether a path names data, not a companion."""
    name = unpacked_name(path).lower()
    return name.endswith(_DATA) and not _is_companion(name)


def is_named_text(path: str) -> bool:
    """Return whether a path names plain text."""
    return unpacked_name(path).lower().endswith(TEXT)


def is_hidden(path: str) -> bool:
    """Return whether a part of a relative path is hidden, or a leftover of a Mac."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(path).parts)


def _is_companion(name: str) -> bool:
    stem = PurePosixPath(name).stem
    return name in _COMPANIONS or stem in _COMPANION_STEMS or _SUBMISSION in stem
