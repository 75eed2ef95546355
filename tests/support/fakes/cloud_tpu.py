"""The Cloud TPU v2 REST API on loopback, for `google.cloud.tpu_v2.TpuClient` as it is installed,
with nothing patched.

    GET                /v2/projects/{p}/locations                              zones
    GET, POST          /v2/projects/{p}/locations/{z}/nodes[?nodeId=]          TPUs, in pages
    GET, DELETE        /v2/projects/{p}/locations/{z}/nodes/{id}
    GET, POST          /v2/projects/{p}/locations/{z}/queuedResources[?queuedResourceId=]
    GET, DELETE        /v2/projects/{p}/locations/{z}/queuedResources/{id}[?force=]
    GET                /v2/projects/{p}/locations/{z}/operations/{id}

Creating and deleting answer with an operation, which ends after `operation_polls` questions about
it; only then does its node become READY, or vanish, or does the operation carry an error. As with
the real API, a want of capacity is found out there and not in the answer to the request. What the
real API adds and this one does not have: multi-slice requests, reservations, starting and stopping,
and the hours that things take.
"""

import re
import threading
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from fakes.google_json import Handler, Json, Refusal
from fakes.loopback import Loopback

PROJECT = "arc-project"
ZONES = ("europe-west4-a", "us-central1-a", "us-central1-b", "us-west4-a")

_PARENT = rf"/v2/(?P<parent>projects/{PROJECT}/locations/(?P<zone>[^/]+))"
_ROUTES = [
    (re.compile(rf"/v2/projects/{PROJECT}/locations"), "locations"),
    (re.compile(rf"{_PARENT}/nodes"), "nodes"),
    (re.compile(rf"{_PARENT}/nodes/(?P<name>[^/]+)"), "node"),
    (re.compile(rf"{_PARENT}/queuedResources"), "requests"),
    (re.compile(rf"{_PARENT}/queuedResources/(?P<name>[^/]+)"), "request"),
    (re.compile(rf"{_PARENT}/operations/(?P<name>[^/]+)"), "operation"),
]

Key = tuple[str, str]
"""Zone and id."""


@dataclass
class _Operation:
    name: str
    finish: Callable[[], Json]
    polls_left: int
    result: Json | None = None


@dataclass
class FakeCloudTpu(Loopback):
    """Serves while used as a context manager; public attributes say what happens in the cloud."""

    operation_polls: int = 1
    page_size: int = 3
    stockouts: set[str] = field(default_factory=set)
    """Zones in which creating fails, in the operation's result."""
    litters: bool = False
    """A failed creation leaves its node behind, in state CREATING."""
    quotas: dict[str, int] = field(default_factory=dict)
    """How many nodes a zone grants this project; more are refused at once."""
    types: set[str] = field(default_factory=lambda: {"v5litepod-8", "v4-8"})
    forgotten: set[str] = field(default_factory=set)
    """Zones in which nothing that is named is found when something is to be made."""
    refusing: set[str] = field(default_factory=set)
    """Zones that do not have what is asked for, whatever it is."""
    denied: bool = False
    outage: bool = False
    unreachable: set[str] = field(default_factory=set)
    """Zones whose lists are incomplete, and say so."""
    held: set[str] = field(default_factory=set)
    """Nodes that cannot be deleted in their present state."""
    stuck: bool = False
    """No operation ends."""
    queue_moves: bool = True
    """Requests in the queue go one state further with each list of them."""
    nodes: dict[Key, Json] = field(default_factory=dict)
    requests: dict[Key, Json] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    """METHOD and path of every request, in order."""

    def __post_init__(self) -> None:
        self.lock = threading.RLock()
        self._operations: dict[str, _Operation] = {}
        self.endpoint = self._serve(Handler, api=self)

    def add_node(self, zone: str, name: str, state: str = "READY", **fields: Any) -> None:
        """Add a node that somebody else made."""
        self.nodes[zone, name] = {"name": f"{_parent(zone)}/nodes/{name}", "state": state, **fields}

    def set_state(self, name: str, state: str) -> None:
        """Change a node as the cloud itself does: PREEMPTED, TERMINATED..."""
        with self.lock:
            (key,) = (key for key in self.nodes if key[1] == name)
            self.nodes[key]["state"] = state

    def suspend(self, name: str) -> None:
        """Take the TPU of a queued resource away, as preemption does."""
        with self.lock:
            (key,) = (key for key in self.requests if key[1] == name)
            self.requests[key]["state"] = {"state": "SUSPENDED"}
            self.nodes.pop(key, None)

    def states(self) -> dict[str, str]:
        """Node name -> state."""
        with self.lock:
            return {name: node["state"] for (_, name), node in self.nodes.items()}

    def workers(self) -> dict[int, str]:
        """Map worker ids to names, as the metadata gives them to the worker."""
        with self.lock:
            return {
                int(node["metadata"]["layertap-worker-id"]): name
                for (_, name), node in self.nodes.items()
                if "metadata" in node
            }

    def answer(self, method: str, path: str, query: dict[str, str], body: Json) -> Json:
        """The answer to one request; raises Refusal."""
        with self.lock:
            self.log.append(f"{method} {path}")
            self._refuse_all()
            for pattern, what in _ROUTES:
                if match := pattern.fullmatch(path):
                    parts = match.groupdict()
                    if parts.get("zone", ZONES[0]) not in ZONES:
                        raise Refusal(403, f"Permission denied on 'locations/{parts['zone']}' (or it may not exist).")
                    verb = f"_{method.lower()}_{what}"
                    return getattr(self, verb)(query=query, body=body, **parts)
        raise Refusal(404, f"no such method: {method} {path}")

    def _refuse_all(self) -> None:
        if self.outage:
            raise Refusal(503, "The service is currently unavailable.")
        if self.denied:
            raise Refusal(403, "Permission 'tpu.nodes.list' denied on resource (or it may not exist).")

    def _get_locations(self, query: dict[str, str], **_: Any) -> Json:
        zones = [{"name": _parent(zone), "locationId": zone} for zone in ZONES]
        return self._page("locations", zones, query)

    def _get_nodes(self, zone: str, query: dict[str, str], **_: Any) -> Json:
        return self._list("nodes", self.nodes, zone, query)

    def _get_requests(self, zone: str, query: dict[str, str], **_: Any) -> Json:
        if self.queue_moves and "pageToken" not in query:
            for key in [key for key in self.requests if key[0] == zone]:
                self._move_on(key)
        return self._list("queuedResources", self.requests, zone, query)

    def _post_nodes(self, zone: str, query: dict[str, str], body: Json, **_: Any) -> Json:
        key = (zone, query["nodeId"])
        if key in self.nodes:
            raise Refusal(409, f"Resource '{_parent(zone)}/nodes/{key[1]}' already exists")
        self._check(zone, body)
        self.add_node(*key, **{**body, "state": "CREATING"})
        return self._begin(zone, lambda: self._created(key))

    def _post_requests(self, zone: str, query: dict[str, str], body: Json, **_: Any) -> Json:
        key = (zone, query["queuedResourceId"])
        if key in self.requests:
            raise Refusal(409, f"Resource '{_parent(zone)}/queuedResources/{key[1]}' already exists")
        self._check(zone, body["tpu"]["nodeSpec"][0]["node"])
        name = f"{_parent(zone)}/queuedResources/{key[1]}"
        self.requests[key] = {**body, "name": name, "state": {"state": "ACCEPTED"}}
        return self._begin(zone, lambda: {"response": _typed("QueuedResource", self.requests.get(key, {}))})

    def _get_node(self, zone: str, name: str, **_: Any) -> Json:
        return deepcopy(_existing(self.nodes, (zone, name), "nodes"))

    def _get_request(self, zone: str, name: str, **_: Any) -> Json:
        return deepcopy(_existing(self.requests, (zone, name), "queuedResources"))

    def _delete_node(self, zone: str, name: str, **_: Any) -> Json:
        node = _existing(self.nodes, (zone, name), "nodes")
        if name in self.held:
            raise Refusal(400, f"Node {name} is in state {node['state']}", name="FAILED_PRECONDITION")
        node["state"] = "DELETING"
        return self._begin(zone, lambda: self._gone(self.nodes, (zone, name)))

    def _delete_request(self, zone: str, name: str, query: dict[str, str], **_: Any) -> Json:
        key = (zone, name)
        _existing(self.requests, key, "queuedResources")
        if key in self.nodes and query.get("force") != "true":
            raise Refusal(400, "the queued resource still has nodes", name="FAILED_PRECONDITION")
        self.requests[key]["state"] = {"state": "DELETING"}
        self.nodes.pop(key, None)
        return self._begin(zone, lambda: self._gone(self.requests, key))

    def _get_operation(self, parent: str, name: str, **_: Any) -> Json:
        operation = self._operations[f"{parent}/operations/{name}"]
        if operation.result is None and not self.stuck:
            operation.polls_left -= 1
            if operation.polls_left <= 0:
                operation.result = operation.finish()
        done = operation.result is not None
        return {"name": operation.name, "done": done, **(operation.result or {})}

    def finish_operations(self) -> None:
        """End every operation that was begun, as the cloud does, whether or not anyone asks."""
        with self.lock:
            for operation in self._operations.values():
                if operation.result is None:
                    operation.result = operation.finish()

    def _begin(self, zone: str, finish: Callable[[], Json]) -> Json:
        name = f"{_parent(zone)}/operations/operation-{len(self._operations)}"
        self._operations[name] = _Operation(name, finish, self.operation_polls)
        return {"name": name, "done": False}

    def _created(self, key: Key) -> Json:
        node = self.nodes.get(key)
        if node is None or node["state"] != "CREATING":
            return {"error": {"code": 1, "message": "the node was deleted while it was being created"}}
        if key[0] in self.stockouts:
            if not self.litters:
                del self.nodes[key]
            return {"error": {"code": 8, "message": f'There is no more capacity in the zone "{key[0]}" [EID: 0x1]'}}
        node["state"] = "READY"
        return {"response": _typed("Node", node)}

    def _gone(self, things: dict[Key, Json], key: Key) -> Json:
        things.pop(key, None)
        return {"response": {"@type": "type.googleapis.com/google.protobuf.Empty"}}

    def _check(self, zone: str, node: Json) -> None:
        if zone in self.forgotten:
            raise Refusal(404, f"Accelerator type {node['acceleratorType']} was not found in zone {zone}")
        if node["acceleratorType"] not in self.types or zone in self.refusing:
            raise Refusal(400, f"Accelerator type {node['acceleratorType']} is not available in zone {zone}")
        if zone in self.quotas and sum(key[0] == zone for key in self.nodes) >= self.quotas[zone]:
            limit = "TPUV5sPreemptibleLitepodPerProjectPerZoneForTPUAPI"
            raise Refusal(429, f"Quota limit '{limit}' has been exceeded. Limit: {self.quotas[zone]} in zone {zone}.")

    def _move_on(self, key: Key) -> None:
        request = self.requests[key]
        order = ["ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
        state = request["state"]["state"]
        if state not in order[:-1] or (key[0] in self.stockouts and state == "WAITING_FOR_RESOURCES"):
            return
        request["state"] = {"state": order[order.index(state) + 1]}
        if request["state"]["state"] == "ACTIVE":
            spec = request["tpu"]["nodeSpec"][0]
            self.add_node(key[0], spec["nodeId"], **spec["node"], queuedResource=request["name"])

    def _list(self, field_name: str, things: dict[Key, Json], zone: str, query: dict[str, str]) -> Json:
        page = self._page(field_name, [thing for key, thing in things.items() if key[0] == zone], query)
        return {**page, "unreachable": [zone]} if zone in self.unreachable else page

    def _page(self, field_name: str, things: list[Json], query: dict[str, str]) -> Json:
        first = int(query.get("pageToken") or 0)
        rest = len(things) > first + self.page_size
        page: Json = {field_name: deepcopy(things[first : first + self.page_size])}
        return {**page, "nextPageToken": str(first + self.page_size)} if rest else page


def _parent(zone: str) -> str:
    return f"projects/{PROJECT}/locations/{zone}"


def _existing(things: dict[Key, Json], key: Key, kind: str) -> Json:
    if key not in things:
        raise Refusal(404, f"Resource '{_parent(key[0])}/{kind}/{key[1]}' was not found")
    return things[key]


def _typed(kind: str, value: Json) -> Json:
    return {"@type": f"type.googleapis.com/google.cloud.tpu.v2.{kind}", **deepcopy(value)}
