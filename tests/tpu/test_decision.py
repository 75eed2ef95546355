"""What to do about a fleet: a pure function, tested on random fleets without any server."""

from collections.abc import Set
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from layertap.tpu.decision import Create, Decision, Delete, decide, decide_deletion
from layertap.tpu.fleet import Machine, Member, Observed, Phase, Wanted, identity, read_identity, worker_name

ZONES = ("us-central1-a", "us-central1-b", "europe-west4-a")
MACHINE = Machine("v5litepod-8", "v2-alpha-tpuv5-lite")


def member(zone: str, worker: int, phase: Phase = Phase.RUNNING, home: str | None = None) -> Member:
    return Member(worker_name("tpu", zone, worker), zone, worker, home or zone, phase, phase.name, MACHINE)


def wanted(per_zone: int, *zones: str) -> Wanted:
    return Wanted("tpu", zones or ZONES, per_zone)


def act(observed: Observed, done: Decision, fails: Set[str] = frozenset()) -> Observed:
    """Return the fleet afterwards.

    Creations in zones of `fails` fail after the old TPU was deleted.
    """
    members = {(m.zone, m.name): m for m in observed.members}
    for action in done.actions:
        gone = action.member if isinstance(action, Delete) else action.replaces
        if gone:
            del members[gone.zone, gone.name]
    for action in done.actions:
        if isinstance(action, Create) and action.zone not in fails:
            # The cloud refuses a second one of the same name, as it would refuse to take over a
            # foreign one.
            assert (action.zone, action.name) not in observed.foreign
            members.setdefault((action.zone, action.name), member(action.zone, action.worker, home=action.home))
    return replace(observed, members=tuple(members.values()))


def settle(want: Wanted, observed: Observed) -> Observed:
    for _ in range(10):
        now = decide(want, observed)
        if not now.actions:
            return observed
        observed = act(observed, now)
    raise AssertionError("never settles")


@st.composite
def fleets(draw: st.DrawFn) -> Observed:
    drawn = draw(
        st.lists(
            st.tuples(st.sampled_from(ZONES), st.integers(0, 9), st.sampled_from(Phase), st.sampled_from(ZONES)),
            max_size=12,
        )
    )
    unique = {(zone, worker): member(zone, worker, phase, home) for zone, worker, phase, home in drawn}
    foreign = draw(st.frozensets(st.tuples(st.sampled_from(ZONES), st.sampled_from(["tpu-a", "other-0"]))))
    return Observed(tuple(unique.values()), foreign)


strengths = st.integers(0, 4)
zone_lists = st.permutations(ZONES).flatmap(lambda zones: st.integers(1, 3).map(lambda n: tuple(zones[:n])))


@given(fleets(), strengths, zone_lists)
def test_it_settles_at_full_strength(observed: Observed, strength: int, zones: tuple[str, ...]) -> None:
    want = wanted(strength, *zones)
    settled = settle(want, observed)
    for zone in zones:
        standing = [m for m in settled.of_home(zone) if m.phase is not Phase.LOST]
        assert len(standing) >= strength
        assert all(m.phase is not Phase.LOST for m in settled.of_home(zone))
    assert not decide(want, settled).actions


@given(fleets(), strengths)
def test_no_two_tpus_keep_one_worker(observed: Observed, strength: int) -> None:
    settled = settle(wanted(strength), observed)
    workers = [m.worker for m in settled.members if m.phase is not Phase.LEAVING]
    assert len(workers) == len(set(workers))


@given(st.lists(st.tuples(st.integers(0, 11), st.sampled_from(ZONES)), max_size=12), st.data())
def test_ids_stay_dense_and_stable_through_loss_and_interruption(
    losses: list[tuple[int, str]], data: st.DataObject
) -> None:
    """There are twelve workers. TPUs are lost, and interruptions come between deletions and
    creations. In the end the same ids run.
    """
    fleet = settle(wanted(4), Observed())
    assert sorted(m.worker for m in fleet.members) == list(range(12))
    for worker, torn in losses:
        fleet = Observed(tuple(replace(m, phase=Phase.LOST) if m.worker == worker else m for m in fleet.members))
        zones = data.draw(zone_lists)
        fleet = act(fleet, decide(wanted(4, *zones), fleet), fails={torn})
    fleet = settle(wanted(4), fleet)
    assert sorted(m.worker for m in fleet.members) == list(range(12))


@given(fleets(), strengths, zone_lists, st.frozensets(st.sampled_from(ZONES)), st.frozensets(st.sampled_from(ZONES)))
def test_it_acts_on_lost_and_double_members_of_named_zones_only(
    observed: Observed, strength: int, zones: tuple[str, ...], dry: frozenset[str], full: frozenset[str]
) -> None:
    done = decide(wanted(strength, *zones), observed, dry, full)
    for action in done.actions:
        gone = action.member if isinstance(action, Delete) else action.replaces
        if gone:
            assert gone in observed.members
            assert gone.home in zones
            others = [m for m in observed.members if m.worker == gone.worker and m is not gone]
            assert gone.phase is Phase.LOST or any(m.phase is not Phase.LOST for m in others)
        if isinstance(action, Create):
            assert action.zone not in dry | full
            assert action.name == worker_name("tpu", action.zone, action.worker)
            assert (action.zone, action.name) not in observed.foreign
    made = [action.worker for action in done.actions if isinstance(action, Create)]
    kept = [m.worker for m in observed.members if m.phase not in (Phase.LOST, Phase.LEAVING)]
    assert len(made) == len(set(made))
    assert not set(made) & set(kept)


@given(fleets(), strengths, zone_lists)
def test_a_plan_depends_on_nothing_but_its_arguments(observed: Observed, strength: int, zones: tuple[str, ...]) -> None:
    shuffled = replace(observed, members=observed.members[::-1])
    first = decide(wanted(strength, *zones), observed)
    assert set(map(str, decide(wanted(strength, *zones), shuffled).actions)) == set(map(str, first.actions))


def test_while_all_zones_are_dry_the_lost_tpu_is_kept_for_its_id() -> None:
    fleet = Observed((member(ZONES[0], 3, Phase.LOST),))
    assert decide(wanted(1, ZONES[0]), fleet, dry={ZONES[0]}) == Decision(waiting=1)


def test_deleting_takes_guests_with_their_home() -> None:
    guest, other = member(ZONES[1], 0, home=ZONES[0]), member(ZONES[2], 9)
    leaving = member(ZONES[0], 1, Phase.LEAVING)
    fleet = Observed((guest, other, leaving))
    assert [action.member for action in decide_deletion(fleet, {ZONES[0]}).actions] == [guest]
    assert [action.member for action in decide_deletion(fleet, None).actions] == [guest, other]


def test_identity_is_read_from_labels_alone() -> None:
    labels = identity("tpu", 7, "us-central1-b")
    assert read_identity(labels, "tpu", "us-central1-a") == (7, "us-central1-b")
    assert read_identity(labels, "other", "us-central1-a") is None
    assert read_identity({**labels, "layertap-worker": "x"}, "tpu", "us-central1-a") is None
    assert read_identity({}, "tpu", "us-central1-a") is None


def test_an_id_lost_in_two_homes_is_given_to_one_replacement_only() -> None:
    twice = (member(ZONES[0], 2, Phase.LOST), member(ZONES[1], 2, Phase.LOST))
    now = decide(wanted(1, *ZONES[:2]), Observed(twice))
    assert now.actions == (
        Create(ZONES[0], 2, ZONES[0], "tpu-us-central1-a-2", replaces=twice[0]),
        Delete(twice[1], "its place is filled"),
        Create(ZONES[1], 0, ZONES[1], "tpu-us-central1-b-0"),
    )


def test_a_worker_away_from_home_takes_no_foreign_name() -> None:
    foreign = frozenset({(ZONES[1], "tpu-us-central1-b-0")})
    (away,) = decide(
        wanted(1, *ZONES), Observed(tuple(map(member, ZONES[1:], (1, 2))), foreign), dry={ZONES[0]}
    ).actions
    assert away == Create(ZONES[2], 0, ZONES[0], "tpu-europe-west4-a-0")
