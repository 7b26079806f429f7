"""This process among the others: the commit of a round, and how all come together again after a loss."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec

from greentrain.errors import RunError, UsageError
from greentrain.runtime.control import BEAT_S, Address, Control, Loss, ask
from greentrain.runtime.group import PeersLostError
from greentrain.runtime.handshake import Hello, difference_of
from greentrain.runtime.membership import Decision, Membership, Sent
from greentrain.runtime.messages import PEERS_LOST, Digest
from greentrain.runtime.wire import (
    Answer,
    Commit,
    Done,
    Excluded,
    Form,
    Halt,
    Holding,
    Member,
    Message,
    Ready,
    Report,
    Wish,
    decode,
    encode,
)

__all__ = ["Change", "Crew", "ExcludedError", "Life", "State"]

_CONNECT_S = 3.0
_ASK_S = 1.0
# A port may belong to a program that never answers.
_SILENT_N = 5
# So often, a second apart, must all hosts say that nobody trains there.
_NOBODY_N = 5


class ExcludedError(RunError):
    """The others went on without this device."""


class State(NamedTuple):
    """What this member has when it comes to rest; see :class:`greentrain.runtime.wire.Report`."""

    done: int
    ready: bool
    own: tuple[int, int] | None
    holdings: tuple[Holding, ...]


class Life(NamedTuple):
    """A member's rounds from when it came until it was lost.

    Attributes:
        member: Who.
        generation: When it came.
        digests: Its rounds.
        undone_from: The first round that the others did again.
    """

    member: Member
    generation: int
    digests: dict[int, Digest]
    undone_from: int


class Change(NamedTuple):
    """When the last generation ended: monotonic seconds, and how long a lost device had been silent then."""

    halted_s: float | None
    silent_s: float | None


class Crew:
    """One member's end of the agreement. Close it when the run ends.

    Args:
        hello: What this rank says of itself; its ``control`` is filled in.
        seat: Its number in the ledger.
        host: Its address.
        port: Port to listen on; 0 for any.
        layers_n: Layers of the model.
        first_round: First round of this run.
        patience_s: Longest wait for a member that lives but does not come to rest.
        say: Told what happens.

    Attributes:
        digests: Rounds of the members, by device and round.
        gone: Those of members that were lost.
        change: How the last generation ended.
        losses: Exact mean loss of each round of this run that stands.
        paused: Whether all meet again after this round.
    """

    def __init__(
        self, hello: Hello, seat: int, *, host: str, port: int, layers_n: int, first_round: int, patience_s: float,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.device = hello.device
        self.host = host
        self.digests: defaultdict[str, dict[int, Digest]] = defaultdict(dict)
        self.losses: list[float] = []
        self.paused = False
        self._pause_wanted = False
        self.gone: list[Life] = []
        self.change = Change(None, None)
        self._now = Change(None, None)
        self._since: dict[str, int] = {}
        self._first_round = first_round
        self._patience_s = patience_s
        self._say = say
        self._turn = threading.Condition()
        # Not a member of anything before it has begun or joined.
        self._membership = Membership(hello.device, layers_n, -1, ())
        self._abort: Callable[[], None] | None = None
        self._readies: dict[str, Ready] = {}
        self._committed = -1
        self._diverged = False
        self._form: Form | None = None
        self._excluded: Excluded | None = None
        self._done = False
        self._wishes: dict[str, Wish] = {}
        self._control = Control(
            hello.device, token=f"{hello.plan_sha256} {hello.settings}", port=port, on_message=self._hear,
            on_lost=self._lose, on_request=self._answer,
        )  # fmt: skip
        self.hello = msgspec.structs.replace(hello, control=f"{host}:{self._control.port}")
        self._member = member_of(self.hello, seat)

    @property
    def generation(self) -> int:
        """How often the members have changed."""
        return self._membership.generation

    @property
    def members(self) -> tuple[Member, ...]:
        """The members by rank."""
        return self._membership.members

    def begin(self, hellos: Sequence[Hello]) -> None:
        """Start with these members, who have met already; their order is their rank.

        Raises:
            PeersLostError: One cannot be reached.
        """
        members = tuple(member_of(hello, seat) for seat, hello in enumerate(hellos))
        with self._turn:
            self._membership.generation = 0
            self._membership.members = members
        absent = self._control.connect(_addresses(members), timeout_s=_CONNECT_S + self._patience_s / 10)
        if absent:
            raise PeersLostError(
                f"{self.device}: {PEERS_LOST} ({', '.join(absent)} cannot be reached).",
                hint="Every device must reach every other: check their firewalls.",
            )

    def start_over(self) -> None:
        """Be no member any more, and ready to ask to be taken again."""
        with self._turn:
            self._membership = Membership(self.device, self._membership.layers_n, -1, ())
            self._form = self._excluded = None
            self._abort = None
            self._readies.clear()
            self.paused = False
        self._control.connect({}, timeout_s=0.1)

    def watch(self, abort: Callable[[], None]) -> None:
        """Call ``abort`` from another thread when the rounds of this generation are over."""
        with self._turn:
            self._abort = abort
        self._act(list)

    def commit(self, step: int, loss: float, digest: Digest | None) -> None:
        """Wait until every member's gradients of a round are complete. Then, and only then, all update.

        Raises:
            PeersLostError: A member was lost first: nobody updates.
            RunError: The loss is no number.
        """
        part = loss if math.isfinite(loss) else None
        ready = Ready(generation=self.generation, round=step, loss=part, digest=digest)
        with self._turn:
            leader = self._membership.leader
        if leader == self.device:
            self._act(lambda: self._take_ready(self.device, ready))
        else:
            self._control.send(leader, encode(ready))
        with self._turn:
            self._turn.wait_for(lambda: self._committed >= step or self._membership.halted or self._ended)
            if self._committed >= step:
                return
            if self._diverged:
                raise RunError(
                    f"{self.device}: the loss is no number in round {step + 1}, expected a finite one.",
                    hint="Training diverged: lower the workload's learning rate, or change --seed or --batch.",
                )
        raise self._lost_error()

    def regroup(self, state: State, compose: Callable[[Decision, tuple[Wish, ...]], Form]) -> Form | None:
        """Come to rest, and wait for the decision how to go on. Call on every member.

        Args:
            state: What this member has.
            compose: Asked on the leader: the new generation, from the decision and those who want to join.

        Returns:
            The new generation, which has been entered; None when the run is finished already.

        Raises:
            ExcludedError: The others go on without this device.
            NoMajorityError: Too few are left on this side of a split.
            NothingLeftError: Layers are lost with all their copies.
            PeersLostError: There was no decision in time.
        """
        self._act(lambda: self._membership.rest(self._report(state)))
        deadline_s = time.monotonic() + self._patience_s
        while True:
            with self._turn:
                self._turn.wait_for(self._can_go_on, timeout=max(deadline_s - time.monotonic(), 0.0))
                if self._excluded is not None:
                    raise self._excluded_error(self._excluded)
                if self._done:
                    return None
                form, self._form = self._form, None
                late = time.monotonic() >= deadline_s
                decision = None
                if form is None and self._membership.leads and (late or not self._membership.waits_for()):
                    for device in self._membership.waits_for():
                        self._membership.lost[device] = "unreachable"
                    decision = self._membership.decide()
                elif form is None and late:
                    raise self._lost_error()
            if decision is not None:
                form = self._lead(decision, compose)
            if form is not None:
                self._enter(form)
                return form

    def wish(self, addresses: Sequence[Address], *, timeout_s: float, insist: bool = False) -> Form | None:
        """Ask to be taken into a run that goes on.

        Args:
            addresses: Where members may be found.
            timeout_s: Longest wait to be taken.
            insist: The others were there before: where they are out of reach, their hosts may come back.

        Returns:
            The generation that has been entered; None where no run goes on.

        Raises:
            UsageError: This device has another plan, model, data set or seed.
            ExcludedError: The run went on, and has ended meanwhile.
            PeersLostError: It was not taken in time.
        """
        question = encode(Wish(hello=self.hello, member=self._member))
        told = False
        silent_n = nobody_n = 0
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            heard = _ask_all(addresses, question)
            running = [answer for answer in heard.answers if answer.runs]
            if heard.silent and not running and silent_n < _SILENT_N:
                silent_n += 1
                continue  # Somebody is there, but busy.
            if not running and not told and not insist:
                return None
            nobody_n = 0 if running or heard.silent or heard.away else nobody_n + 1
            if nobody_n == _NOBODY_N:
                raise ExcludedError(
                    f"{self.device}: the others went on without this device, and none of them is left in the run.",
                    hint="Their run's files are with them.",
                )
            for answer in running:
                if answer.refused is not None:
                    raise UsageError(answer.refused, hint=answer.hint)
            if running and not told:
                self._say("The run goes on without this device; it joins after the present round …")
                told = True
            addresses = tuple(dict.fromkeys((*(answer.leader for answer in running), *addresses)))
            with self._turn:
                self._turn.wait_for(lambda: self._form is not None, timeout=5 * BEAT_S)
                form, self._form = self._form, None
            if form is not None:
                self._enter(form)
                return form
        raise PeersLostError(
            f"{self.device}: the run that goes on did not take this device in {timeout_s:.0f} s.",
            hint="Look at what its other workers say.",
        )

    def ask_pause(self) -> None:
        """Have all meet after the next round. Call on the leader."""
        with self._turn:
            self._pause_wanted = True

    def finish(self) -> None:
        """The leader has all that the run leaves."""
        for device in self._membership.others:
            self._control.send(device, encode(Done(generation=self.generation)))

    def await_finish(self) -> None:
        """Wait until the leader has it.

        Raises:
            PeersLostError: A member was lost first.
        """
        with self._turn:
            self._turn.wait_for(lambda: self._done or self._membership.halted or self._ended)
            if not self._done:
                raise self._lost_error()

    def close(self) -> None:
        """Leave in order; a second call does nothing."""
        self._control.close()

    def losses_until(self, reached: int) -> tuple[float, ...]:
        """Mean losses of the first rounds; of the last one as a member says who had its update. For the leader."""
        rounds_n = reached - self._first_round
        found = list(self.losses[:rounds_n])
        if len(found) == rounds_n - 1:
            reports = self._membership.reports.values()
            told = [report.last_loss for report in reports if report.done == reached and report.last_loss is not None]
            found += told[:1]
        return tuple(found)

    @property
    def _ended(self) -> bool:
        return self._excluded is not None or self._diverged

    def _can_go_on(self) -> bool:
        decides = self._membership.leads and not self._membership.waits_for()
        return self._form is not None or self._ended or self._done or decides

    def _report(self, state: State) -> Report:
        membership = self._membership
        return Report(
            generation=membership.generation, member=self._member, members=membership.devices,
            lost=dict(membership.lost), done=state.done,
            ready=state.ready, own=state.own, holdings=state.holdings,
            last_loss=self.losses[-1] if len(self.losses) == state.done - self._first_round > 0 else None,
        )  # fmt: skip

    def _lead(self, decision: Decision, compose: Callable[[Decision, tuple[Wish, ...]], Form]) -> Form | None:
        """Compose and tell the new generation; None where it is out of date already."""
        with self._turn:
            asked = [wish for device, wish in self._wishes.items() if device not in decision.devices]
        wishes = tuple(wish for wish in asked if _reaches(_address(wish.member), b"?"))
        form = compose(decision, wishes)
        with self._turn:
            if any(device in self._membership.lost for device in decision.devices):
                return None
            taken = {member.device for member in form.members}
            self._wishes.clear()
            sent = [Sent(device, form) for device in decision.devices if device in taken and device != self.device]
        self._post(sent)
        for wish in asked:
            device = wish.member.device
            told = form if device in taken else Excluded(generation=form.generation, reason="the plan does without it")
            _reaches(_address(wish.member), encode(told))
        return form

    def _enter(self, form: Form) -> None:
        with self._turn:
            turned_away = self._membership.turned_away(form)
        self._post(turned_away)
        with self._turn:
            self._bury(form)
            self.change, self._now = self._now, Change(None, None)
            sent = self._membership.enter(form)
            self._readies.clear()
            self._committed = form.round - 1
            self.losses = list(form.losses)
            self.paused = self._pause_wanted = False
            self._abort = None
        self._post(sent)
        for device in self._control.connect(_addresses(form.members), timeout_s=_CONNECT_S):
            self._lose(Loss(device, "unreachable", 0.0))

    def _bury(self, form: Form) -> None:
        """Put aside what is known of those who are lost, and of those who come back."""
        over = {member.device for member in self.members} - {member.device for member in form.members}
        over |= set(form.joined)
        for member in self.members:
            if member.device in over and member.device in self.digests:
                since = self._since.get(member.device, 0)
                self.gone.append(Life(member, since, self.digests.pop(member.device), form.round))
        self._since.update(dict.fromkeys(form.joined, form.generation))

    def _act(self, change: Callable[[], list[Sent]]) -> None:
        """Change the membership, wake whoever waits for it, and tell the others."""
        with self._turn:
            sent = change()
            # Where all meet after a round nothing hangs, unless somebody is lost meanwhile.
            if self._membership.halted and self._now.halted_s is None:
                self._now = self._now._replace(halted_s=time.monotonic())
            over = self._membership.halted and (not self.paused or bool(self._membership.lost))
            abort, self._abort = (self._abort, None) if over else (None, self._abort)
            self._turn.notify_all()
        if abort is not None:
            abort()
        self._post(sent)

    def _post(self, sent: Iterable[Sent]) -> None:
        for device, message in sent:
            self._control.send(device, encode(message))

    def _lose(self, loss: Loss) -> None:
        def change() -> list[Sent]:
            if loss.device in self._membership.devices and not self._membership.lost:
                self._now = self._now._replace(silent_s=loss.silent_s)
            return self._membership.lose(loss)

        self._act(change)

    def _hear(self, sender: str, payload: bytes) -> None:
        try:
            message = decode(payload)
        except msgspec.MsgspecError:
            return
        self._act(lambda: self._take(sender, message))

    def _take(self, sender: str, message: Message) -> list[Sent]:
        membership = self._membership
        if isinstance(message, (Report, Halt)):
            return membership.hear(sender, message)
        if isinstance(message, Ready):
            return self._take_ready(sender, message)
        if isinstance(message, Commit):
            if message.generation == membership.generation and not membership.halted:
                self._take_commit(message)
        elif isinstance(message, Form):
            if message.generation > membership.generation:
                self._form = message
        elif isinstance(message, Excluded):
            if message.generation > membership.generation:
                self._excluded = message
                return membership.halt()
        elif isinstance(message, Done):
            self._done = True
        return []

    def _take_ready(self, sender: str, ready: Ready) -> list[Sent]:
        membership = self._membership
        if ready.generation != membership.generation or membership.halted:
            return []
        self._readies[sender] = ready
        if len(self._readies) < len(membership.members):
            return []
        parts = [self._readies[device].loss for device in membership.devices]
        commit = Commit(
            generation=ready.generation, round=ready.round,
            loss=None if None in parts else math.fsum(part for part in parts if part is not None),
            digests={device: one.digest for device, one in self._readies.items() if one.digest is not None},
            pause=self._pause_wanted or bool(set(self._wishes) - set(membership.devices)),
        )  # fmt: skip
        self._readies.clear()
        self._take_commit(commit)
        return [Sent(device, commit) for device in membership.others]

    def _take_commit(self, commit: Commit) -> None:
        for device, digest in commit.digests.items():
            self.digests[device][digest.step] = digest
        if commit.loss is None:
            self._diverged = True
            return
        self.losses[commit.round - self._first_round :] = [commit.loss]
        self._committed = commit.round
        self.paused = commit.pause

    def _answer(self, payload: bytes) -> bytes:
        """A question of somebody who is no member."""
        try:
            message = decode(payload)
        except msgspec.MsgspecError:
            return b""
        if isinstance(message, Wish):
            with self._turn:
                return encode(self._answer_to(message))
        if isinstance(message, (Form, Excluded)) and self.generation < 0:
            self._act(lambda: self._take("", message))
        return b""

    def _answer_to(self, wish: Wish) -> Answer:
        membership = self._membership
        if membership.generation < 0:
            return Answer(leads=False, leader=("", 0), runs=False)
        leader = next(member for member in membership.members if member.device == membership.leader)
        difference = difference_of(self.hello, wish.hello)
        if difference is not None:
            return Answer(leads=False, leader=_address(leader), runs=True, refused=difference[0], hint=difference[1])
        if membership.leads and not self._done:
            self._wishes[wish.member.device] = wish
        return Answer(leads=membership.leads, leader=_address(leader), runs=not self._done)

    def _lost_error(self) -> RunError:
        if self._excluded is not None:
            return self._excluded_error(self._excluded)
        lost = ", ".join(f"{device} is {fate}" for device, fate in self._membership.lost.items()) or "no answer"
        return PeersLostError(
            f"{self.device}: {PEERS_LOST} ({lost}).",
            hint="What was written under the run's folder is kept; start the run again.",
        )

    def _excluded_error(self, excluded: Excluded) -> ExcludedError:
        return ExcludedError(
            f"{self.device} takes no part any more: {excluded.reason}.",
            hint="Start its worker again to join them, with the same command.",
        )


def member_of(hello: Hello, seat: int) -> Member:
    """A member from what it said at the start."""
    host, _, port = hello.control.rpartition(":")
    return Member(
        device=hello.device, host=host, port=int(port), board=hello.board, seat=seat, meter=hello.meter,
        source=hello.source, scope=hello.scope,
    )  # fmt: skip


def _address(member: Member) -> Address:
    return member.host, member.port


def _addresses(members: Iterable[Member]) -> dict[str, Address]:
    return {member.device: _address(member) for member in members}


class _Heard(NamedTuple):
    """What came back from those who were asked: answers, whether one is there that gave none, and one out of reach."""

    answers: list[Answer]
    silent: bool
    away: bool


def _ask_all(addresses: Sequence[Address], question: bytes) -> _Heard:
    """Ask all at once; some hosts may be off, and take their time to be silent."""
    answers: list[Answer] = []
    silent: list[Address] = []
    away: list[Address] = []

    def one(address: Address) -> None:
        try:
            reply = ask(address, question, timeout_s=_ASK_S)
            answer = None if reply is None else decode(reply)
        except TimeoutError:
            silent.append(address)
        except OSError:
            away.append(address)
        except msgspec.MsgspecError:
            return
        else:
            if isinstance(answer, Answer):
                answers.append(answer)

    threads = [threading.Thread(target=one, args=(address,), daemon=True) for address in addresses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=3 * _ASK_S)
    return _Heard(list(answers), bool(silent), bool(away))


def _reaches(address: Address, payload: bytes) -> bool:
    """Whether somebody who waits there has heard."""
    with contextlib.suppress(OSError):
        return ask(address, payload, timeout_s=_ASK_S) is not None
    return False
