import pytest

from layertap.config.extract import ExtractConfig
from layertap.config.upload import UploadConfig
from layertap.errors import UsageError


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({}, None),
        ({"upload_to_gcs": True, "gcs_bucket": "b"}, "gs://b/activations/tpu_3"),
        ({"gcs_bucket": "b"}, "gs://b/activations/tpu_3"),  # as the multi-host example has it
        ({"gcs_bucket": "b", "gcs_prefix": "/run 7/acts/"}, "gs://b/run 7/acts/tpu_3"),
        ({"gcs_bucket": "b", "gcs_prefix": ""}, "gs://b/tpu_3"),
        ({"upload_to": "s3://b/acts/"}, "s3://b/acts/tpu_3"),
        ({"upload_to": "/mnt/share"}, "/mnt/share/tpu_3"),
    ],
)
def test_where_a_worker_s_output_goes(settings, url):
    assert UploadConfig(**settings).url(3) == url


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"upload_to_gcs": True}, "--upload_to_gcs needs --gcs_bucket"),
        ({"gcs_prefix": "acts"}, "give --gcs_bucket too"),
        ({"gcs_bucket": "gs://b"}, "the bucket's name alone"),
        ({"gcs_bucket": "b/acts"}, "the bucket's name alone"),
        ({"gcs_bucket": ""}, "the bucket's name alone"),
        ({"gcs_bucket": "b", "gcs_prefix": "gs://b/acts"}, "give a folder in the bucket"),
        ({"gcs_bucket": "b", "upload_to": "s3://b"}, "name two places"),
        ({"upload_to": ""}, "--upload_to is empty"),
        ({"delete_local_after_upload": True}, "needs a place to upload to"),
        ({"gcs_bucket": "b", "uploads_at_once": 0}, "--uploads_at_once must be at least 1"),
        ({"gcs_bucket": "b", "upload_retry_seconds": -1}, "--upload_retry_seconds must not be negative"),
    ],
)
def test_contradictions_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        UploadConfig(**settings)


@pytest.mark.parametrize("place", ["out", "out/copy", "."])
def test_a_folder_is_not_copied_into_itself(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="lie one within the other"):
        ExtractConfig(dataset_path="x", output_dir="out", upload=UploadConfig(upload_to=place))
