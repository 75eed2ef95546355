"""Translate between the Cloud TPU API's messages and a fleet. Nothing here calls the API."""

from collections.abc import Iterable

from google.cloud import tpu_v2

from layertap.tpu.decision import Create
from layertap.tpu.fleet import WORKER_METADATA, Machine, Member, Observed, Phase, identity, read_identity

_State = tpu_v2.Node.State
_Request = tpu_v2.QueuedResourceState.State

_NODE_PHASES = {
    _State.READY: Phase.RUNNING,
    _State.STOPPED: Phase.STOPPED,
    _State.STOPPING: Phase.STOPPED,
    _State.HIDING: Phase.STOPPED,
    _State.HIDDEN: Phase.STOPPED,
    _State.DELETING: Phase.LEAVING,
    _State.PREEMPTED: Phase.LOST,
    _State.TERMINATED: Phase.LOST,
    _State.UNKNOWN: Phase.LOST,  # "unknown state after a failed repair"
}
# In these states the request decides, whatever its TPU says; otherwise its TPU does, if it has one.
_REQUEST_PHASES = {
    _Request.FAILED: Phase.LOST,
    _Request.SUSPENDED: Phase.LOST,
    _Request.SUSPENDING: Phase.LEAVING,
    _Request.DELETING: Phase.LEAVING,
}


def read_zone(
    prefix: str, zone: str, requests: Iterable[tpu_v2.QueuedResource], nodes: Iterable[tpu_v2.Node]
) -> Observed:
    """Return what is in one zone; `requests` must have been listed before `nodes`.

    The order matters: if an active request's TPU is not listed afterwards, the TPU is lost.
    """
    by_name = {_id(node.name): node for node in nodes}
    members: list[Member] = []
    foreign: set[tuple[str, str]] = set()
    for request in requests:
        name, specs = _id(request.name), request.tpu.node_spec
        known = read_identity(specs[0].node.labels, prefix, zone) if len(specs) == 1 else None
        if known is None:
            foreign.add((zone, name))
        else:
            members.append(_request_member(name, zone, known, request, by_name.pop(specs[0].node_id, None)))
    for name, node in by_name.items():
        known = read_identity(node.labels, prefix, zone)
        if known is None:
            foreign.add((zone, name))
        else:
            members.append(_node_member(name, zone, known, node))
    return Observed(tuple(members), frozenset(foreign))


def write_node(action: Create, machine: Machine, prefix: str) -> tpu_v2.Node:
    """Return the TPU to request: this machine for this worker."""
    node = tpu_v2.Node(
        accelerator_type=machine.tpu_type,
        runtime_version=machine.runtime_version,
        labels=identity(prefix, action.worker, action.home),
        metadata={**machine.metadata, WORKER_METADATA: str(action.worker)},
        network_config=tpu_v2.NetworkConfig(
            network=machine.network, subnetwork=machine.subnetwork, enable_external_ips=machine.external_ips
        ),
    )
    if machine.spot and not machine.queued:
        node.scheduling_config = tpu_v2.SchedulingConfig(spot=True)
    if machine.service_account:
        node.service_account = tpu_v2.ServiceAccount(email=machine.service_account)
    return node


def write_request(parent: str, name: str, node: tpu_v2.Node, *, spot: bool) -> tpu_v2.QueuedResource:
    """Return a request to Google's queue for one TPU."""
    spec = tpu_v2.QueuedResource.Tpu.NodeSpec(parent=parent, node_id=name, node=node)
    request = tpu_v2.QueuedResource(tpu=tpu_v2.QueuedResource.Tpu(node_spec=[spec]))
    if spot:
        request.spot = tpu_v2.QueuedResource.Spot()
    return request


def _request_member(
    name: str, zone: str, known: tuple[int, str], request: tpu_v2.QueuedResource, node: tpu_v2.Node | None
) -> Member:
    state = request.state.state
    phase = _REQUEST_PHASES.get(state)
    if phase is None and node is not None:
        return _node_member(name, zone, known, node, request)
    if phase is None:
        phase = Phase.LOST if state is _Request.ACTIVE else Phase.COMING
    machine = _read_machine(request.tpu.node_spec[0].node, spot="spot" in request, queued=True)
    note = request.state.failed_data.error.message if "failed_data" in request.state else ""
    return Member(name, zone, *known, phase, state.name, machine, name, node is not None, note)


def _node_member(
    name: str, zone: str, known: tuple[int, str], node: tpu_v2.Node, request: tpu_v2.QueuedResource | None = None
) -> Member:
    asked_by = _id(request.name if request else node.queued_resource) or None
    healthy = node.health in (tpu_v2.Node.Health.HEALTH_UNSPECIFIED, tpu_v2.Node.Health.HEALTHY)
    note = node.health_description or ("" if healthy else node.health.name)
    phase = _NODE_PHASES.get(node.state, Phase.COMING)
    scheduling = node.scheduling_config
    spot = "spot" in request if request else scheduling.spot or scheduling.preemptible
    machine = _read_machine(node, spot=spot, queued=asked_by is not None)
    return Member(name, zone, *known, phase, node.state.name, machine, asked_by, note=note)


def _read_machine(node: tpu_v2.Node, *, spot: bool, queued: bool) -> Machine:
    return Machine(
        tpu_type=node.accelerator_type,
        runtime_version=node.runtime_version,
        spot=spot,
        queued=queued,
        service_account=node.service_account.email or None,
        network=node.network_config.network or None,
        subnetwork=node.network_config.subnetwork or None,
        external_ips=node.network_config.enable_external_ips,
        metadata={name: value for name, value in node.metadata.items() if name != WORKER_METADATA},
    )


def _id(resource: str) -> str:
    return resource.rpartition("/")[2]
