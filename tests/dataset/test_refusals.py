"""The message when a server refuses a dataset: one sentence, after seconds.

Real libraries against a server that refuses; only their pauses are cut short.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import commands
import pytest
from fakes.refusing import Refusing

from layertap.core.far import explain

_PROGRAM = """
import asyncio, json, sys, time, types
from layertap.config.source import SourceConfig
from layertap.dataset import open_records, places
from layertap.errors import DatasetError
import gcsfs.retry

async def at_once(_):
    pass

gcsfs.retry.asyncio = types.SimpleNamespace(sleep=at_once)
places._PAUSES = (0, 0)
places._CONNECT_SECONDS = places._READ_SECONDS = 0.5
said = []
for url in sys.argv[2:]:
    try:
        config = SourceConfig(dataset_path=url, **json.loads(sys.argv[1]))
        said.append(f"{len(list(open_records(config)))} records")
    except DatasetError as error:
        said.append(str(error).removeprefix(url))
print(json.dumps(said))
"""
_CLOSED = "127.0.0.1:9"
URLS = {
    "gs": "gs://bucket/s{}/a.jsonl",
    "s3": "s3://bucket/s{}/a.jsonl",
    "hf": "hf://datasets/a/s{}/a.jsonl",
    "http": "http://{host}/s{}/a.jsonl",
}
_LOGINS = {
    "gs": "gcloud auth application-default login",
    "s3": "aws configure",
    "hf": "hf auth login",
    "http": "give an",
}
STATUSES = {
    "400": {"gs": ": the bucket bills its readers (400); name a project that pays with --billing_project"},
    "401": dict.fromkeys(URLS, ": the credentials are missing or not accepted (401"),
    "403": dict.fromkeys(URLS, ": not allowed"),
    "404": dict.fromkeys(URLS, ": no such file, folder or bucket"),
    "503": dict.fromkeys(URLS, ": the server cannot serve it now (503"),
}


@pytest.fixture
def refusing() -> Iterator[Refusing]:
    with Refusing() as server:
        yield server


def said_of(urls: list[str], endpoint: str, folder: Path, **flags: object) -> list[str]:
    """Return the message about each URL, from a separate process."""
    settings = dict.fromkeys(("STORAGE_EMULATOR_HOST", "AWS_ENDPOINT_URL", "HF_ENDPOINT"), endpoint)
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_CONFIG_FILE": os.devnull}
    done = commands.run(["-c", _PROGRAM, json.dumps(flags), *urls], folder, settings | keys)
    assert "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout)


@pytest.mark.whole
@pytest.mark.parametrize("scheme", URLS)
def test_every_refusal_is_one_sentence(scheme: str, refusing: Refusing, tmp_path: Path) -> None:
    url = URLS[scheme].replace("{host}", refusing.endpoint.removeprefix("http://"))
    sentences = said_of([url.format(status) for status in STATUSES], refusing.endpoint, tmp_path)
    for (status, expected), sentence in zip(STATUSES.items(), sentences, strict=True):
        assert sentence.startswith(expected.get(scheme, ": the server refuses the request (400")), sentence
        assert "\n" not in sentence
        assert len(sentence) < 400
        assert (_LOGINS[scheme] in sentence) == (status in ("401", "403")), sentence
        assert ("--anonymous" in sentence) == (scheme in ("gs", "s3") and status in ("401", "403")), sentence


@pytest.mark.whole
@pytest.mark.parametrize("scheme", URLS)
def test_no_connection_is_one_sentence(scheme: str, tmp_path: Path) -> None:
    (sentence,) = said_of([URLS[scheme].replace("{host}", _CLOSED).format("200")], f"http://{_CLOSED}", tmp_path)
    assert sentence.startswith(": no connection (")
    assert sentence.endswith("; check the network and the address")


@pytest.mark.whole
@pytest.mark.parametrize("scheme", ["gs", "s3", "http"])
def test_no_answer_is_one_sentence(scheme: str, refusing: Refusing, tmp_path: Path) -> None:
    url = URLS[scheme].replace("{host}", refusing.endpoint.removeprefix("http://"))
    (sentence,) = said_of([url.format("000")], refusing.endpoint, tmp_path)
    assert sentence.startswith(": no answer in time"), sentence


def test_a_page_is_read_once_and_what_may_pass_is_asked_for_again(refusing: Refusing, tmp_path: Path) -> None:
    refusing.asked.clear()
    url = URLS["http"].replace("{host}", refusing.endpoint.removeprefix("http://"))
    assert said_of([url.format("200")], refusing.endpoint, tmp_path) == ["1 records"]
    assert refusing.asked == ["HEAD /s200/a.jsonl", "GET /s200/a.jsonl"]
    refusing.asked.clear()
    said_of([url.format("503"), url.format("403")], refusing.endpoint, tmp_path)
    assert refusing.asked.count("GET /s503/a.jsonl") == 3
    assert refusing.asked.count("GET /s403/a.jsonl") == 1


@pytest.mark.whole
@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_anonymous_readers_sign_nothing_and_paying_ones_say_who_pays(
    scheme: str, refusing: Refusing, tmp_path: Path
) -> None:
    url = URLS[scheme].format("403")
    said_of([url], refusing.endpoint, tmp_path, anonymous=True)
    assert not refusing.signed
    refusing.asked.clear()
    said_of([url], refusing.endpoint, tmp_path, billing_project="mine")
    if scheme == "gs":
        assert all("userProject=mine" in it for it in refusing.asked)
    else:
        assert refusing.signed


@pytest.mark.whole
@pytest.mark.parametrize(
    "command",
    [
        "streams --num_streams 1 --dataset_path",
        "plan --model 7b --accelerator v4-8 --dataset_path",
        "verify",
        "inspect",
        "stats",
    ],
)
def test_every_command_says_it_in_one_line(command: str, refusing: Refusing, tmp_path: Path, tiny_model: Path) -> None:
    url = f"{refusing.endpoint}/s403/a.jsonl"
    tokenizer = ["--tokenizer", str(tiny_model)] if command.startswith("plan") else []
    done = commands.run(["-m", "layertap", *command.split(), url, *tokenizer], tmp_path)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if "counting" not in line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"error: {url}")
    assert ": not allowed (403" in lines[0]


def test_a_dataset_of_the_hub_is_refused_in_one_line(refusing: Refusing, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    here = {"HF_ENDPOINT": refusing.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    words = ["streams", "--num_streams", "1", "--dataset_name", "someone/s403"]
    done = commands.run(["-m", "layertap", *words], tmp_path, here)
    assert done.returncode == 2
    assert done.stderr.startswith("error: someone/s403 split train: cannot be read: not allowed (403: ")
    assert len(done.stderr.splitlines()) == 1


def _raised(name: str, words: str = "because") -> Exception:
    return type(name, (Exception,), {})(words)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (_raised("NoCredentialsError"), "credentials"),
        (_raised("DefaultCredentialsError"), "credentials"),
        (_raised("OfflineModeIsEnabled"), "unreachable"),
        (_raised("ReadTimeoutError"), "slow"),
        (OSError("Forbidden: b/x"), "denied"),
        (FileNotFoundError(2, "x"), "absent"),
        (PermissionError(13, "x"), "denied"),
    ],
)
def test_errors_are_known_by_what_libraries_call_them(error: Exception, kind: str) -> None:
    refusal = explain("s3://bucket/a", error)
    assert refusal is not None
    assert refusal.kind == kind
    assert explain("/a/local/path", error) is None


def test_what_led_to_an_error_tells_more_than_the_error() -> None:
    first, last = _raised("ClientResponseError"), FileNotFoundError("http://x/a")
    first.status = 503  # type: ignore[attr-defined]
    last.__cause__ = first
    refusal = explain("http://x/a", last)
    assert refusal is not None
    assert (refusal.kind, refusal.passing) == ("busy", True)
    assert explain("http://x/a", ValueError("a bug")) is None
