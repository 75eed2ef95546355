"""The connection to Google Cloud Storage: credentials, the server's clock, its errors' meaning.

Google's errors are translated once, here, into three kinds: errors that are worth a retry, errors
that the user has to fix, and the rest.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import google.auth
import requests
from google.api_core import exceptions
from google.api_core.exceptions import RetryError
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import GoogleAuthError, TransportError
from google.auth.transport.requests import AuthorizedSession
from google.cloud.storage import Client
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

from layertap.errors import AccessError, StorageError, UsageError
from layertap.objects.retry import TransientError

T = TypeVar("T")

_GOOGLE = (exceptions.GoogleAPIError, InvalidResponse, DataCorruption, GoogleAuthError)
_CONNECTIONS = 32
_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"


class ServerClock:
    """The server's time, from the dates of its replies."""

    def __init__(self) -> None:
        self._ahead: float | None = None

    def listen(self, response: requests.Response, *_: object, **__: object) -> None:
        """Store the date of a reply."""
        date = response.headers.get("Date")
        if date:
            self._ahead = parsedate_to_datetime(date).timestamp() - time.monotonic()

    def now(self) -> float | None:
        """Return the server's time now; None before its first reply."""
        return None if self._ahead is None else time.monotonic() + self._ahead


def make_client(clock: ServerClock) -> Client:
    """Return Google's client with the settings of the environment."""
    # Otherwise the first call of each client starts a thread that asks for the bucket's metadata,
    # for traces that nobody records. That is an extra request, and two minutes of requests if the
    # bucket does not answer.
    os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
    credentials: Any
    project: str | None
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        credentials, project = AnonymousCredentials(), "emulator"  # type: ignore[no-untyped-call]
    else:
        try:
            credentials, project = google.auth.default(scopes=[_SCOPE])
        except GoogleAuthError as error:
            raise AccessError(f"gs://: no credentials ({error}). Run: gcloud auth application-default login") from error
    session = AuthorizedSession(credentials)  # type: ignore[no-untyped-call]
    session.hooks["response"].append(clock.listen)
    for scheme in ("https://", "http://"):
        session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=_CONNECTIONS))
    return Client(project=project or "unknown", credentials=credentials, _http=session)


def is_transient(error: Exception) -> bool:
    """Return whether the error is worth a retry."""
    if isinstance(error, exceptions.GoogleAPICallError):
        return error.code in _TRANSIENT
    if isinstance(error, InvalidResponse):
        return error.response.status_code in _TRANSIENT
    # TransportError: a token could not be fetched.
    lost = (ConnectionError, TimeoutError, requests.RequestException, RetryError, DataCorruption, TransportError)
    return isinstance(error, lost)


def marked(attempt: Callable[[bool], T], again: bool) -> T:
    """Return what `attempt` returns; raises TransientError for errors that are worth a retry."""
    try:
        return attempt(again)
    except (*_GOOGLE, ConnectionError, TimeoutError, requests.RequestException) as error:
        if is_transient(error):
            raise TransientError(str(error)) from error
        raise


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Translate what Google's client raises into our errors, which begin with `what`."""
    try:
        yield
    except exceptions.NotFound as error:
        raise UsageError(f"{what}: there is no such bucket; make it, or give the right name") from error
    except (exceptions.Unauthorized, exceptions.Forbidden) as error:
        raise AccessError(
            f"{what}: not allowed ({error.message}). The account needs the role roles/storage.objectUser on the bucket;"
            " for your own account run: gcloud auth application-default login"
        ) from error
    except GoogleAuthError as error:
        raise AccessError(f"{what}: {error}. Run: gcloud auth application-default login") from error
    except (exceptions.GoogleAPICallError, InvalidResponse) as error:
        raise StorageError(f"{what}: Google Cloud Storage says: {error}") from error
