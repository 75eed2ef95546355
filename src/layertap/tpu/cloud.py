"""A fleet in Google Cloud, through Google's own client over REST.

We use REST and not gRPC because plain HTTPS on one port passes every proxy, and a test server is
one page of Python. The client is in the extra `tpu-ops`, and is imported only when a command needs
it (a third of a second).

A command first looks at all zones that the project can use, not only those that you name, because
ids must be unique over the whole fleet. That takes two requests per zone, in parallel.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TypeVar

import google.auth
from google.api_core import exceptions
from google.api_core.client_options import ClientOptions
from google.api_core.future.polling import DEFAULT_POLLING
from google.api_core.operation import Operation
from google.api_core.retry import Retry, if_exception_type
from google.auth.credentials import AnonymousCredentials, Credentials
from google.cloud import tpu_v2
from requests import ConnectionError as RequestsConnectionError
from requests import RequestException

from layertap.errors import DeletedError, UnreachableError, UsageError
from layertap.tpu.config import TpuConfig
from layertap.tpu.decision import Create
from layertap.tpu.fleet import Machine, Member, Observed, Phase
from layertap.tpu.protocol import read_zone, write_node, write_request
from layertap.tpu.refusals import translated

_SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
_AT_ONCE = 32
# Creating a TPU takes minutes. After this long we stop waiting for the operation; the next look
# shows its result.
_LONGEST_OPERATION = 1800.0

T = TypeVar("T")
R = TypeVar("R")


class Cloud:
    """The TPUs of one project that have one fleet's labels."""

    def __init__(self, config: TpuConfig) -> None:
        """Connect with the user's credentials, or without any to a plain http:// endpoint.

        Transient errors are retried for twice the poll interval. Raises AccessError if there are no
        credentials, UsageError if no project is known.
        """
        self._config = config
        credentials, project = _credentials(config)
        project = config.project or os.environ.get("GOOGLE_CLOUD_PROJECT") or project
        if not project:
            raise UsageError("no Google Cloud project is known: give --project, or set GOOGLE_CLOUD_PROJECT")
        self.project = project
        self.prefix = config.name_prefix
        self._client = _connect(config, credentials)
        patience = 2 * config.poll_seconds
        transient = if_exception_type(exceptions.ServerError, RequestsConnectionError)
        first = min(1.0, patience / 30)
        self._retry = Retry(transient, initial=first, maximum=patience / 3, timeout=patience)
        self._polling = DEFAULT_POLLING.with_delay(initial=first, maximum=min(20.0, patience)).with_timeout(
            _LONGEST_OPERATION
        )

    def close(self) -> None:
        """Close the connections."""
        transport = self._client.transport
        transport.close()  # type: ignore[no-untyped-call]
        # Operations are polled over a separate session, which has no public method to close it.
        transport.operations_client.transport._session.close()

    def reconnect(self) -> None:
        """Read the credentials again after a login; raises AccessError if there are none."""
        fresh = _connect(self._config, _credentials(self._config)[0])
        self.close()
        self._client = fresh

    def zones(self) -> tuple[str, ...]:
        """Return every zone of the project that can have TPUs."""
        found: list[str] = []
        page = ""
        with translated(f"listing the TPU zones of project {self.project}"):
            while True:
                request = {"name": f"projects/{self.project}", "page_token": page}
                answer = self._client.list_locations(request, retry=self._retry)
                found += [location.location_id for location in answer.locations]
                page = answer.next_page_token
                if not page:
                    return tuple(found)

    def observe(self, zones: Iterable[str]) -> Observed:
        """Look at these zones once; raises UnreachableError if one of them cannot be read."""
        looks = in_parallel(self._observe_zone, sorted(set(zones)))
        return Observed(
            tuple(sorted(chain.from_iterable(look.members for look in looks), key=lambda m: (m.worker, m.name))),
            frozenset(chain.from_iterable(look.foreign for look in looks)),
        )

    def create(self, action: Create, machine: Machine) -> bool:
        """Create a TPU, or join the queue for it; returns once Google reports that it is done.

        Returns False if the name already exists; the next look shows whose it is. Leftovers of a
        failed creation are deleted. Raises DeletedError, NoCapacityError, QuotaError, AccessError,
        UsageError or UnreachableError.
        """
        if action.replaces:
            self.delete(action.replaces)
        with translated(f"creating {action.name} in {action.zone}"):
            try:
                operation = self._begin(action, machine)
            except exceptions.Conflict:  # over REST every 409 is a Conflict, also AlreadyExists
                return False
            try:
                self._await(operation)
            except exceptions.GoogleAPICallError as error:
                going = self._clear(action) and not isinstance(error, exceptions.TooManyRequests)
                if going or isinstance(error, exceptions.Cancelled):
                    raise DeletedError(
                        f"creating {action.name}: somebody deleted it while it was being created"
                    ) from error
                raise
        return True

    def delete(self, member: Member) -> None:
        """Delete a member's request and TPU; returns once both are gone. It may already be gone.

        It looks again first, because minutes can pass after the last look. If a lost member's name
        now belongs to a TPU that is not lost, that TPU is somebody's replacement. It is left alone,
        and so is anything that is not the fleet's.
        """
        with translated(f"deleting {member.name} in {member.zone}"):
            for found in self._look(member.zone, member.request or member.name):
                if member.phase is not Phase.LOST or found.phase is Phase.LOST:
                    self._remove(found)

    def _look(self, zone: str, name: str) -> tuple[Member, ...]:
        """Return the member with that name, if there is one."""
        parent = self._parent(zone)
        requests, nodes = (
            _if_there(
                lambda: self._client.get_queued_resource(name=f"{parent}/queuedResources/{name}", retry=self._retry)
            ),
            _if_there(lambda: self._client.get_node(name=f"{parent}/nodes/{name}", retry=self._retry)),
        )
        return read_zone(self.prefix, zone, requests, nodes).members

    def _observe_zone(self, zone: str) -> Observed:
        parent = self._parent(zone)
        with translated(f"looking at zone {zone}"):
            requests: list[tpu_v2.QueuedResource] = []
            nodes: list[tpu_v2.Node] = []
            for answer in self._client.list_queued_resources(parent=parent, retry=self._retry).pages:
                _whole(answer.unreachable, zone)
                requests += answer.queued_resources
            for page in self._client.list_nodes(parent=parent, retry=self._retry).pages:
                _whole(page.unreachable, zone)
                nodes += page.nodes
        return read_zone(self.prefix, zone, requests, nodes)

    def _begin(self, action: Create, machine: Machine) -> Operation:
        parent, node = self._parent(action.zone), write_node(action, machine, self.prefix)
        if not machine.queued:
            return self._client.create_node(parent=parent, node_id=action.name, node=node, retry=self._retry)
        request = write_request(parent, action.name, node, spot=machine.spot)
        return self._client.create_queued_resource(
            parent=parent, queued_resource_id=action.name, queued_resource=request, retry=self._retry
        )

    def _clear(self, action: Create) -> bool:
        """Delete what a failed creation left behind; return whether somebody else is doing so."""
        try:
            found = self._look(action.zone, action.name)
            for left in found:
                if (
                    left.phase is not Phase.RUNNING and not left.being_deleted
                ):  # otherwise somebody else succeeded, or is deleting it
                    self._remove(left)
        except (exceptions.GoogleAPIError, RequestException):
            return False  # the original failure is more useful; the next look finds what is left
        return any(left.being_deleted for left in found)

    def _remove(self, member: Member) -> None:
        parent = self._parent(member.zone)
        if member.request is not None:
            request = {"name": f"{parent}/queuedResources/{member.request}", "force": True}
            _if_there(lambda: self._await(self._client.delete_queued_resource(request, retry=self._retry)))
        if member.has_node:
            name = f"{parent}/nodes/{member.name}"
            _if_there(lambda: self._await(self._client.delete_node(name=name, retry=self._retry)))

    def _await(self, operation: Operation) -> None:
        operation.result(polling=self._polling, retry=self._retry)  # type: ignore[no-untyped-call]

    def _parent(self, zone: str) -> str:
        return f"projects/{self.project}/locations/{zone}"


def in_parallel(do: Callable[[T], R], things: Iterable[T]) -> list[R]:
    """Call `do` with each thing in parallel; an interruption does not wait for running calls."""
    given = list(things)
    pool = ThreadPoolExecutor(max(1, min(_AT_ONCE, len(given))))
    try:
        return list(pool.map(do, given))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _connect(config: TpuConfig, credentials: Credentials) -> tpu_v2.TpuClient:
    options = ClientOptions(api_endpoint=config.api_endpoint) if config.api_endpoint else None
    return tpu_v2.TpuClient(credentials=credentials, client_options=options, transport="rest")


def _credentials(config: TpuConfig) -> tuple[Credentials, str | None]:
    if config.api_endpoint and config.api_endpoint.startswith("http://"):
        return AnonymousCredentials(), None  # type: ignore[no-untyped-call]  # never send a token unencrypted
    with translated("looking for Google Cloud credentials"):
        return google.auth.default(scopes=_SCOPES, quota_project_id=config.project)


def _if_there(do: Callable[[], R]) -> list[R]:
    """Return the result of `do` in a list; an empty list if its object is gone."""
    try:
        return [do()]
    except exceptions.NotFound:
        return []


def _whole(unreachable: Iterable[str], zone: str) -> None:
    if list(unreachable):
        raise UnreachableError(
            f"looking at zone {zone}: Cloud TPU could not reach all of it, so a worker may be missing; try later"
        )
