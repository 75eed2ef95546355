"""Open the records of the dataset that the settings name."""

from collections.abc import Iterator, Mapping

from layertap.config.source import SourceConfig
from layertap.core.records import Record
from layertap.dataset.folders import list_files
from layertap.dataset.hub import read_hub_records
from layertap.dataset.names import is_named_text
from layertap.dataset.places import locate
from layertap.dataset.records import read_records
from layertap.errors import UsageError


def open_records(config: SourceConfig, most: int | None = None) -> Iterator[Record]:
    """Yield the first `most` records, good or bad, from the beginning (None: all).

    Each call reads the dataset again, in the same order. Raises UsageError if no dataset is named
    or a library is missing, DatasetError if the dataset cannot be read.
    """
    if config.dataset_name is not None:
        return read_hub_records(
            config.dataset_name,
            config=config.dataset_config,
            split=config.dataset_split,
            column=config.column_name,
            max_tasks=most,
        )
    if config.dataset_path is None:
        raise UsageError("no dataset is named; give --dataset_path or --dataset_name")
    return read_records(
        config.dataset_path,
        dataset_format=config.dataset_format,
        column=config.column_name,
        max_tasks=most,
        options=_options(config),
    )


def opening_lines(config: SourceConfig) -> list[str]:
    """Return what the user should know before the dataset is read: what is left out, and how `.txt`
    files become documents.

    Raises DatasetError like `open_records`.
    """
    if config.dataset_path is None:
        return []
    place = locate(config.dataset_path, _options(config))
    listing = list_files(place, config.dataset_format)
    files = (place,) if listing is None else listing.files
    lines = [] if listing is None else listing.describe()
    if config.dataset_format == "auto" and is_named_text(files[0].path):
        lines.append(f"{place}: each .txt file is one document; --dataset_format txt_lines makes one of each line")
    return lines


def _options(config: SourceConfig) -> Mapping[str, object]:
    """Return fsspec's options for credentials and billing."""
    at_google = (config.dataset_path or "").partition("://")[0] in ("gs", "gcs")
    if config.anonymous:
        return {"token": "anon"} if at_google else {"anon": True}
    if config.billing_project is not None:
        return {"requester_pays": config.billing_project if at_google else True}
    return {}
