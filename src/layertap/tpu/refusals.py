"""Translate the errors of Cloud TPU, and say what to do about each.

Lack of capacity and lack of quota have the same status, RESOURCE_EXHAUSTED, and only the text
distinguishes them: every quota message contains "quota", and no capacity message does. A capacity
error rarely answers the request. Usually it is the result of the operation, minutes later. Both are
handled here.

The client's exceptions are less precise than they seem. Over REST the HTTP status selects them, so
a direct answer is never AlreadyExists or FailedPrecondition but Conflict or BadRequest, and its
message begins with the URL. Google's own status and text are in the answer's body.
"""

from collections.abc import Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager

from google.api_core import exceptions
from google.auth.exceptions import GoogleAuthError, TransportError
from requests import RequestException, Response

from layertap.errors import (
    AccessError,
    LayertapError,
    NoCapacityError,
    NotFoundError,
    QuotaError,
    TpuError,
    UnreachableError,
    UsageError,
)

QUOTA_PAGE = "https://console.cloud.google.com/iam-admin/quotas"
LOGIN = "gcloud auth application-default login"
_COME_BACK_LATER = ("FAILED_PRECONDITION", "ABORTED", "CANCELLED")


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn errors of Google's client into our own; each message begins with `what` was being
    done.
    """
    try:
        yield
    except exceptions.GoogleAPICallError as error:
        raise _refusal(error, what) from error
    except (RequestException, exceptions.RetryError, FutureTimeoutError) as error:
        raise UnreachableError(f"{what}: no answer from Cloud TPU ({_first_line(error)})") from error
    except GoogleAuthError as error:
        if error.retryable or isinstance(error, TransportError):
            raise UnreachableError(
                f"{what}: no answer from the server that checks credentials ({_first_line(error)})"
            ) from error
        raise AccessError(f"{what}: your credentials do not work ({_first_line(error)}). Run: {LOGIN}") from error


def _refusal(error: exceptions.GoogleAPICallError, what: str) -> LayertapError:
    status, says = _status_and_words(error)
    if status in _COME_BACK_LATER:
        return UnreachableError(f"{what}: not possible in its current state ({says})")
    match error:
        case exceptions.TooManyRequests():
            return _exhausted(error, what, says)
        case exceptions.Unauthorized():
            return AccessError(f"{what}: Google does not accept your credentials ({says}). Run: {LOGIN}")
        case exceptions.Forbidden():
            return AccessError(
                f"{what}: not allowed ({says}). You need the Cloud TPU API enabled, the role roles/tpu.admin in this"
                " project, and to act as the workers' service account. Google gives the same answer for a zone or"
                " project that does not exist: check their names"
            )
        case exceptions.ServerError():
            return UnreachableError(f"{what}: Cloud TPU failed ({says})")
        case exceptions.BadRequest() | exceptions.NotFound():
            kind = NotFoundError if isinstance(error, exceptions.NotFound) else UsageError
            return kind(
                f"{what}: Google does not find something by its name ({says}). Check --zones, --tpu_type,"
                " --runtime_version, --network and --service_account; `gcloud compute tpus accelerator-types list"
                " --zone ZONE` and `gcloud compute tpus versions list --zone ZONE` list what a zone has"
            )
    return TpuError(f"{what}: {says}")


def _status_and_words(error: exceptions.GoogleAPICallError) -> tuple[str, str]:
    """Return Google's name for the error ("" if it has none) and its text."""
    if isinstance(error.response, Response):  # the result of an operation has its own exception
        try:
            body = error.response.json()["error"]
            return str(body["status"]), str(body["message"])
        except (ValueError, LookupError, TypeError):  # a proxy's page
            return "", error.message
    code = error.grpc_status_code
    return code.name if code else "", error.message


def _exhausted(error: exceptions.GoogleAPICallError, what: str, says: str) -> LayertapError:
    if error.reason == "RATE_LIMIT_EXCEEDED" or "per minute" in says.lower():
        return UnreachableError(f"{what}: too many requests ({says})")
    if "quota" in says.lower():
        return QuotaError(
            f"{what}: the project may not have more TPUs there ({says}). Request more quota at {QUOTA_PAGE} (Cloud TPU"
            " API), use fewer workers, or name other zones. Spot and on-demand TPUs have separate quotas"
        )
    return NoCapacityError(f"{what}: no free TPU of this type there now ({says})")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
