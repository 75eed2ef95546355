"""Settings of the upload, a part of `RunConfig`; and the flags of `layertap stats`."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from layertap.config.arguments import Flag
from layertap.config.checks import require, require_counts

_GCS_PREFIX = "activations"


@dataclass(frozen=True)
class UploadConfig:
    """Where and how to copy shards while the run continues."""

    upload_to_gcs: Annotated[bool, Flag("cloud")] = False
    """Copy the output to --gcs_bucket while the run continues. Implied by --gcs_bucket."""

    gcs_bucket: Annotated[str | None, Flag("cloud", "BUCKET")] = None
    """The name of a Google Cloud Storage bucket. The output goes to
    gs://BUCKET/PREFIX/tpu_{worker_id}/."""

    gcs_prefix: Annotated[str, Flag("cloud", "PREFIX")] = _GCS_PREFIX
    """The folder in the bucket."""

    upload_to: Annotated[str | None, Flag("cloud", "URL")] = None
    """Another place to copy the output to: a URL such as s3://bucket/prefix, or a folder. The
    output goes to tpu_{worker_id}/ there."""

    delete_local_after_upload: Annotated[bool, Flag("cloud")] = False
    """Delete the local files of a shard once their copies are verified, so that a small local disk
    is enough."""

    uploads_at_once: Annotated[int, Flag("cloud", "FILES")] = 4
    """How many files to upload at the same time. The run waits while more shards than this are
    waiting for their upload."""

    upload_retry_seconds: Annotated[float, Flag("cloud", "SECONDS")] = 300.0
    """How long to retry a failed request before the run stops."""

    def __post_init__(self) -> None:
        """Refuse values that contradict each other; raises UsageError."""
        bucket = self.gcs_bucket
        require(bucket is not None or not self.upload_to_gcs, "--upload_to_gcs needs --gcs_bucket")
        require(
            bucket is not None or self.gcs_prefix == _GCS_PREFIX,
            f"--gcs_prefix {self.gcs_prefix} is a folder in a bucket; give --gcs_bucket too",
        )
        require(
            bucket is None or (bucket != "" and "/" not in bucket),
            f"--gcs_bucket {bucket}: give the bucket's name alone, without gs://, and the folder as --gcs_prefix",
        )
        require("://" not in self.gcs_prefix, f"--gcs_prefix {self.gcs_prefix}: is a URL; give a folder in the bucket")
        require(
            bucket is None or self.upload_to is None, "--upload_to and --gcs_bucket name two places; give one of them"
        )
        require(self.upload_to != "", "--upload_to is empty; give a folder or URL")
        require(
            not self.delete_local_after_upload or self.url(0) is not None,
            "--delete_local_after_upload needs a place to upload to: --gcs_bucket or --upload_to",
        )
        require_counts(self, "uploads_at_once")
        require(
            self.upload_retry_seconds >= 0,
            f"--upload_retry_seconds must not be negative, but is {self.upload_retry_seconds}",
        )

    def url(self, worker: int | str) -> str | None:
        """Return where to copy the output of this worker or host; None for nowhere."""
        if self.gcs_bucket is not None:
            parts = ("gs:/", self.gcs_bucket, self.gcs_prefix.strip("/"), f"tpu_{worker}")
            return "/".join(part for part in parts if part)
        return None if self.upload_to is None else f"{self.upload_to.rstrip('/')}/tpu_{worker}"


@dataclass(frozen=True)
class StatsConfig:
    """Print the statistics of each layer and site, merged over shards and folders."""

    paths: Annotated[tyro.conf.Positional[tuple[str, ...]], Flag(metavar="FOLDER ...")]
    """Output folders of runs of one model, or their URLs."""

    json: bool = False
    """Print them as JSON, with the mean and standard deviation of each channel."""

    norms: Literal["auto", "all", "none"] = "auto"
    """Which norms to read, to show the shares of sinks and of the prefix. auto: those of
    safetensors, 4 bytes per token, layer and site. all: those of pickles too, which are read whole.
    none: no norms."""

    def __post_init__(self) -> None:
        """Refuse an empty list; raises UsageError."""
        require(len(self.paths) > 0, "give at least one output folder")
