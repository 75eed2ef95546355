"""Explain an error of a remote server in one sentence: its kind, and what to do.  Each library
below fsspec has its own errors, and wraps those of the others. A refusal with HTTP status 403 may
arrive as PermissionError, OSError, FileNotFoundError or not as an OSError at all. So we search the
chain of causes for a status, and then for class names that mean the same in every library. No
library is imported for this: a library that is not loaded cannot have raised the error.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["absent", "payer", "refused", "credentials", "denied", "busy", "unreachable", "slow"]

_LOGIN = {
    "gs": "run: gcloud auth application-default login",
    "gcs": "run: gcloud auth application-default login",
    "s3": "run: aws configure, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "s3a": "run: aws configure, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "hf": "run: hf auth login, or set HF_TOKEN, and accept the dataset's conditions where it has some",
}
_UNLOCKED = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "DefaultCredentialsError",
    "RefreshError",
    "ProfileNotFound",
    "LocalTokenNotFoundError",
}
_SLOW = {"TimeoutError", "TimeoutException", "Timeout", "ConnectTimeoutError", "ReadTimeoutError"}
_UNREACHABLE = {
    "ConnectionError",
    "ClientConnectionError",
    "ConnectError",
    "NetworkError",
    "EndpointConnectionError",
    "HTTPClientError",
    "gaierror",
    "OfflineModeIsEnabled",
}
_LIBRARIES = (
    ("aiohttp", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("httpx", "HTTPError"),
    ("httpx2", "HTTPError"),
    ("azure.core.exceptions", "AzureError"),
)
_WORDS = 120


@dataclass(frozen=True)
class Refusal:
    """Why a server did not serve or accept something."""

    kind: Kind
    reason: str
    """A sentence without its subject, such as "not allowed (403); run: ..."."""

    @property
    def passing(self) -> bool:
        """Whether a retry may succeed soon."""
        return self.kind in ("busy", "unreachable", "slow")


def failures() -> tuple[type[BaseException], ...]:
    """Return the exceptions that the loaded libraries raise for a remote server."""
    modules = ((sys.modules.get(module), name) for module, name in _LIBRARIES)
    found = (getattr(module, name, None) for module, name in modules if module is not None)
    return (OSError, ValueError, *(kind for kind in found if kind is not None))


def explain(url: str, error: BaseException) -> Refusal | None:
    """Explain what `error` says about the server at `url`; None if it is of no known kind."""
    scheme, separator, _ = url.partition("://")
    if not separator or scheme == "file":
        return None
    chain = list(_chain(error))
    login = _LOGIN.get(scheme, "give an address that lets you in")
    telling = next((one for one in chain if _status(one) is not None), None)
    said = _said(chain if telling is None else [telling, *chain], url)
    if telling is not None:
        return _of_status(_status(telling) or 0, said, login)
    names = {kind.__name__ for one in chain for kind in type(one).__mro__}
    if names & _UNLOCKED:
        return Refusal("credentials", f"the credentials are missing or have expired ({said}); {login}")
    if names & _SLOW:
        return Refusal("slow", f"no answer in time ({said or 'timeout'}); check the network, or try again later")
    if names & _UNREACHABLE:
        return Refusal("unreachable", f"no connection ({said}); check the network and the address")
    if "PermissionError" in names:
        return Refusal("denied", f"not allowed{f' ({said})' if said else ''}; ask its owner for access, or {login}")
    return (
        Refusal("absent", "no such file, folder or bucket; check the address") if "FileNotFoundError" in names else None
    )


def is_absence(url: str, error: FileNotFoundError) -> bool:
    """Whether nothing is there: fsspec says FileNotFoundError of some other answers too."""
    refusal = explain(url, error)
    return refusal is None or refusal.kind == "absent"


def _of_status(status: int, said: str, login: str) -> Refusal:
    words = said.removesuffix(f", {status}").removeprefix(f"{status} ")
    shown = f"{status}: {words}" if words else f"{status}"
    if status == 400 and "requester pays" in said.lower():
        return Refusal("payer", "the bucket bills its readers (400); name a project that pays")
    if status == 401:
        return Refusal("credentials", f"the credentials are missing or not accepted ({shown}); {login}")
    if status == 403:
        return Refusal("denied", f"not allowed ({shown}); ask its owner for access, or {login}")
    if status in (404, 410):
        return Refusal("absent", "no such file, folder or bucket (404); check the address")
    if status == 429 or status >= 500:
        return Refusal("busy", f"the server cannot serve it now ({shown}), even after retries; try later")
    return Refusal("refused", f"the server refuses the request ({shown}); check the address")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes, the nearest first."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of an error, wherever its library keeps it."""
    response = getattr(error, "response", None)
    found = [getattr(error, "status", None), getattr(error, "code", None), getattr(response, "status_code", None)]
    if isinstance(response, dict):
        found.append(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    if str(error).startswith("Forbidden:"):  # gcsfs
        found.append(403)
    return next((int(it) for it in found if isinstance(it, int) and 400 <= it < 600), None)


def _said(chain: list[BaseException], url: str) -> str:
    """Return the first words of an error that says more than the URL, in one line."""
    texts = [" ".join(_words(one).partition("For more information")[0].split()) for one in chain]
    text = next((text for text in texts if text and not url.endswith(text)), "")
    return text if len(text) <= _WORDS else text[:_WORDS] + "..."


def _words(error: BaseException) -> str:
    message = getattr(error, "message", None)  # aiohttp's own text repeats the URL
    return message if isinstance(message, str) and message else str(error)
