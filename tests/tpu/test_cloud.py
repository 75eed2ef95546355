"""One look and one action at a time: what can happen in the cloud between the two."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest
from fakes.cloud_tpu import PROJECT, FakeCloudTpu
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import RefreshError, TransportError

from layertap.errors import AccessError, NoCapacityError, UnreachableError
from layertap.tpu.cloud import Cloud
from layertap.tpu.config import TpuConfig
from layertap.tpu.decision import Create
from layertap.tpu.fleet import Machine, Member, identity
from layertap.tpu.refusals import translated

MACHINE = Machine("v5litepod-8", "v2-alpha-tpuv5-lite")
ZONE, NAME = "us-central1-a", "tpu-us-central1-a-0"


@pytest.fixture
def client(cloud: FakeCloudTpu) -> Iterator[Cloud]:
    with closing(Cloud(TpuConfig(project=PROJECT, api_endpoint=cloud.endpoint, poll_seconds=0.02))) as client:
        yield client


def lost_member(cloud: FakeCloudTpu, client: Cloud) -> Member:
    cloud.add_node(ZONE, NAME, "PREEMPTED", labels=identity("tpu", 0, ZONE), acceleratorType="v5litepod-8")
    (member,) = client.observe([ZONE]).members
    return member


def make() -> Create:
    return Create(ZONE, 0, ZONE, NAME)


def deletions(cloud: FakeCloudTpu) -> int:
    return sum(line.startswith("DELETE") for line in cloud.log)


@pytest.mark.parametrize("state", ["CREATING", "READY", "DELETING"])
def test_what_somebody_else_has_put_in_a_lost_tpus_place_is_left_alone(
    cloud: FakeCloudTpu, client: Cloud, state: str
) -> None:
    lost = lost_member(cloud, client)
    cloud.set_state(NAME, state)
    assert not client.create(replace(make(), replaces=lost), lost.machine)
    client.delete(lost)
    assert cloud.states() == {NAME: state}
    assert deletions(cloud) == 0


def test_what_has_become_somebody_elses_is_left_alone(cloud: FakeCloudTpu, client: Cloud) -> None:
    lost = lost_member(cloud, client)
    cloud.nodes[ZONE, NAME]["labels"] = {"layertap-fleet": "another"}
    client.delete(lost)
    assert deletions(cloud) == 0


def test_what_is_as_it_was_seen_is_deleted_and_what_is_gone_is_no_error(cloud: FakeCloudTpu, client: Cloud) -> None:
    lost = lost_member(cloud, client)
    client.delete(lost)
    client.delete(lost)
    assert not cloud.nodes
    assert deletions(cloud) == 1


@pytest.mark.parametrize("queued", [False, True])
def test_a_name_that_was_taken_since_the_look_is_told_and_left_alone(
    cloud: FakeCloudTpu, client: Cloud, queued: bool
) -> None:
    machine = replace(MACHINE, queued=queued)
    assert client.create(make(), machine)
    assert not client.create(make(), machine)
    assert deletions(cloud) == 0


@pytest.mark.parametrize("labels", [{}, identity("tpu", 0, ZONE)], ids=["a foreign one", "another call's"])
def test_a_failed_creation_clears_away_nothing_but_its_own_traces(
    cloud: FakeCloudTpu, client: Cloud, monkeypatch: pytest.MonkeyPatch, labels: dict[str, str]
) -> None:
    """Between the failure and the cleanup, somebody else takes the name."""
    cloud.stockouts = {ZONE}
    clear = client._clear

    def after_somebody_else(action: Create) -> None:
        cloud.add_node(ZONE, NAME, labels=labels)
        clear(action)

    monkeypatch.setattr(client, "_clear", after_somebody_else)
    with pytest.raises(NoCapacityError):
        client.create(make(), MACHINE)
    assert cloud.states() == {NAME: "READY"}


def test_what_cannot_be_deleted_now_is_nothing_that_the_user_got_wrong(cloud: FakeCloudTpu, client: Cloud) -> None:
    lost = lost_member(cloud, client)
    cloud.held = {NAME}
    with pytest.raises(UnreachableError, match=r"not possible in its current state \(Node"):
        client.delete(lost)


def test_a_new_login_is_used_without_starting_again(
    cloud: FakeCloudTpu, client: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[TpuConfig] = []

    def credentials(config: TpuConfig) -> tuple[AnonymousCredentials, None]:
        read.append(config)
        return AnonymousCredentials(), None

    monkeypatch.setattr("layertap.tpu.cloud._credentials", credentials)
    client.reconnect()
    assert client.create(make(), MACHINE)
    assert len(read) == 1


@pytest.mark.parametrize(
    ("error", "kind"),
    [(TransportError("no route"), UnreachableError), (RefreshError("invalid_grant"), AccessError)],
)
def test_no_way_to_the_login_is_told_apart_from_a_login_that_is_refused(error: Exception, kind: type) -> None:
    with pytest.raises(kind), translated("looking"):
        raise error
