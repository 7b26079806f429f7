"""The agreement of the survivors, driven by messages alone: who leads, who goes on, and from which round."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greentrain.objective import Objective
from greentrain.plan import Plan, Stage
from greentrain.runtime.control import Fate, Loss
from greentrain.runtime.membership import Decision, Membership, NoMajorityError, NothingLeftError, Sent, common_round
from greentrain.runtime.wire import (
    Commit,
    Excluded,
    Form,
    Halt,
    Holding,
    Kept,
    Member,
    Message,
    Ready,
    Report,
    decode,
    encode,
)
from greentrain.summary import Recovery

DEVICES = ("a", "b", "c", "d")


def members(*devices: str) -> tuple[Member, ...]:
    return tuple(
        Member(device=device, host="127.0.0.1", port=1, board=device, seat=DEVICES.index(device)) for device in devices
    )


def view(device: str, devices: Sequence[str] = DEVICES) -> Membership:
    return Membership(device, layers_n=4, generation=0, members=members(*devices))


def report(
    membership: Membership, *, done: int = 5, ready: bool = False, own: tuple[int, int] | None = (0, 4),
    holdings: tuple[Holding, ...] = (),
) -> Report:  # fmt: skip
    return Report(
        generation=membership.generation, member=members(membership.device)[0], members=membership.devices,
        lost=dict(membership.lost), done=done, ready=ready, own=own, holdings=holdings,
    )  # fmt: skip


def plan_of(*devices: str) -> Plan:
    stage = Stage(
        start=0, stop=4, devices=devices, sharing="samples", shares=(1,) * len(devices),
        points=("current",) * len(devices), in_flight=1, param_bytes=4, output_bytes=0, gradient_bytes=0,
    )  # fmt: skip
    return Plan(
        model="m", structure_sha256="0", cluster="c", planner="test", objective=Objective(), batch=len(devices),
        micro_batch=len(devices), optimizer="sgd", stages=(stage,),
    )  # fmt: skip


def form_of(decision: Decision) -> Form:
    return Form(
        generation=decision.generation, members=members(*decision.devices), plan=plan_of(*decision.devices),
        round=decision.round, reached=decision.reached, kept=decision.kept, host="h", port=1, recoveries=(),
        lost=decision.lost, joined=(), elapsed_s=0.0, losses=(),
    )  # fmt: skip


class Net:
    """Members whose messages are delivered one by one, in any order between pairs, unless somebody is gone."""

    def __init__(self, devices: Sequence[str] = DEVICES, seed: int = 0) -> None:
        self.views = {device: view(device, devices) for device in devices}
        self.queue: deque[tuple[str, Sent]] = deque()
        self.forms: dict[str, list[Form]] = {device: [] for device in devices}
        self.excluded: set[str] = set()
        self.reports: dict[str, Report] = {}
        self.rng = random.Random(seed)
        self.cut: set[frozenset[str]] = set()

    def post(self, sender: str, sent: Sequence[Sent]) -> None:
        self.queue.extend((sender, one) for one in sent)

    def kill(self, device: str) -> None:
        del self.views[device]
        for other, membership in self.views.items():
            self.lose(other, membership, device, "dead")

    def split(self, one: str, other: str) -> None:
        """The link between two is down; both live."""
        self.cut.add(frozenset((one, other)))
        for near, far in ((one, other), (other, one)):
            self.lose(near, self.views[near], far, "unreachable")

    def lose(self, device: str, membership: Membership, lost: str, fate: Fate) -> None:
        self.post(device, membership.lose(Loss(lost, fate, 0.1)))

    def settle(self) -> None:
        """Deliver everything; members come to rest when they are halted, and a leader decides when it can."""
        while True:
            while self.queue:
                index = self.rng.randrange(len(self.queue))
                sender, (receiver, message) = self.queue[index]
                del self.queue[index]
                if receiver in self.views and frozenset((sender, receiver)) not in self.cut:
                    self.deliver(sender, receiver, message)
            if not self.decide():
                return

    def deliver(self, sender: str, receiver: str, message: Message) -> None:
        membership = self.views[receiver]
        if isinstance(message, (Halt, Report)):
            self.post(receiver, membership.hear(sender, message))
        elif isinstance(message, Form) and message.generation > membership.generation:
            self.post(receiver, membership.turned_away(message))
            self.post(receiver, membership.enter(message))
            self.forms[receiver].append(message)
        elif isinstance(message, Excluded):
            self.excluded.add(receiver)
        if membership.halted and receiver not in membership.reports:
            self.post(receiver, membership.rest(report(membership)))

    def decide(self) -> bool:
        for device, membership in self.views.items():
            ready = membership.halted and membership.leads and not membership.waits_for()
            if ready and device not in self.excluded:
                form = form_of(membership.decide())
                names = [one.device for one in form.members]
                self.post(device, [Sent(other, form) for other in names])
                self.post(device, membership.turned_away(form))
                return True
        return False


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("lost", DEVICES)
def test_the_survivors_agree_whoever_is_lost(lost: str, seed: int) -> None:
    net = Net(seed=seed)
    net.kill(lost)
    for device, membership in net.views.items():
        if membership.halted and device not in membership.reports:
            net.post(device, membership.rest(report(membership)))
    net.settle()
    left = tuple(device for device in DEVICES if device != lost)
    assert {device: membership.devices for device, membership in net.views.items()} == dict.fromkeys(left, left)
    assert {membership.generation for membership in net.views.values()} == {1}
    assert all(form[-1].lost == (lost,) for device, form in net.forms.items() if device != lost)


@given(st.lists(st.sampled_from(DEVICES), max_size=3, unique=True), st.integers(0, 1000), st.integers(0, 30))
def test_leaders_may_die_one_after_another(lost: list[str], seed: int, steps: int) -> None:
    """However many messages were delivered in between, those who are left end in one generation."""
    net = Net(seed=seed)
    for device in lost:
        net.kill(device)
        for other, membership in net.views.items():
            if membership.halted and other not in membership.reports:
                net.post(other, membership.rest(report(membership)))
        for _ in range(steps):
            if net.queue:
                sender, (receiver, message) = net.queue.popleft()
                if receiver in net.views:
                    net.deliver(sender, receiver, message)
            elif not net.decide():
                break
    net.settle()
    left = tuple(device for device in DEVICES if device not in lost)
    views = {(membership.generation, membership.devices) for membership in net.views.values()}
    assert len(views) == 1
    assert views.pop()[1] == left


@pytest.mark.parametrize(("one", "other"), [("b", "c"), ("a", "d")])
def test_a_broken_link_between_two_costs_the_higher_rank(one: str, other: str) -> None:
    net = Net()
    net.split(one, other)
    for device, membership in net.views.items():
        if membership.halted and device not in membership.reports:
            net.post(device, membership.rest(report(membership)))
    net.settle()
    left = tuple(device for device in DEVICES if device != other)
    assert all(net.views[device].devices == left for device in left)
    assert net.excluded == {other}


@pytest.mark.parametrize(
    ("device", "lost", "goes_on"),
    [
        ("a", {"c": "unreachable", "d": "unreachable"}, True),
        ("c", {"a": "unreachable", "b": "unreachable"}, False),
        ("c", {"a": "dead", "b": "unreachable"}, True),
        ("d", {"a": "frozen", "b": "frozen", "c": "dead"}, True),
        ("d", {"a": "frozen", "b": "unreachable", "c": "unreachable"}, False),
        ("a", {"b": "unreachable", "c": "unreachable", "d": "unreachable"}, False),
    ],
)
def test_only_one_side_of_a_split_goes_on(device: str, lost: dict[str, Fate], goes_on: bool) -> None:
    membership = view(device)
    for name, fate in lost.items():
        membership.lose(Loss(name, fate, 2.0))
    for name in DEVICES:
        if name not in lost:
            membership.reports[name] = report(membership)
    if goes_on:
        assert set(membership.decide().lost) == set(lost)
        return
    with pytest.raises(NoMajorityError, match="cannot be reached, and may go on without"):
        membership.decide()


def reports(**found: Report) -> dict[str, Report]:
    return found


def test_who_was_ready_for_the_last_update_counts_as_updated() -> None:
    membership = view("a")
    found = common_round(
        reports(
            a=report(membership, done=6, own=(0, 2)),
            b=report(membership, done=5, ready=True, own=(2, 4), holdings=(Holding(start=0, stop=2, round=5),)),
        ),
        4,
    )
    assert found == (6, 6, (Kept(device="a", start=0, stop=2), Kept(device="b", start=2, stop=4)))


def test_without_a_replica_all_go_back_to_the_last_round_that_is_whole() -> None:
    membership = view("a")
    copies = (Holding(start=2, stop=4, round=4), Holding(start=0, stop=2, round=4), Holding(start=0, stop=2, round=2))
    round_, reached, kept = common_round(
        reports(b=report(membership, done=5, ready=True, own=(2, 4), holdings=copies)), 4
    )
    assert (round_, reached) == (4, 5)
    assert {(copy.start, copy.stop) for copy in kept} == {(0, 2), (2, 4)}
    with pytest.raises(NothingLeftError, match="all their copies"):
        common_round(reports(b=report(membership, done=5, own=(2, 4))), 4)


def test_messages_survive_the_wire() -> None:
    membership = view("a")
    past = Recovery(
        round=3, lost=("b",), joined=(), detected_s=0.1, repaired_s=None, redone_rounds=0, moved_bytes=5, energy_j=None
    )
    decision = Decision(2, members("a"), ("b",), 4, 5, (Kept(device="a", start=0, stop=4),))
    for message in (
        Ready(generation=1, round=2, loss=0.5, digest=None), Halt(generation=3), report(membership),
        Commit(generation=1, round=2, loss=None, digests={}, pause=True),
        Excluded(generation=1, reason="why"),
        Form(
            generation=2, members=members("a"), plan=plan_of("a"), round=decision.round, reached=5, kept=decision.kept,
            host="h", port=7, recoveries=(past,), lost=("b",), joined=(), elapsed_s=1.5, losses=(1.0, 0.5),
        ),
    ):  # fmt: skip
        assert decode(encode(message)) == message
