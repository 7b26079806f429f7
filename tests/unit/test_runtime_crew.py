"""A device that asks to be taken into a run: for how long it asks, and what it takes for the end of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from greentrain.errors import UsageError
from greentrain.runtime import crew as crew_module
from greentrain.runtime.control import Address
from greentrain.runtime.crew import Crew, ExcludedError
from greentrain.runtime.handshake import Hello
from greentrain.runtime.wire import Answer, encode

ADDRESSES = (("127.0.0.1", 1), ("127.0.0.1", 2))
RUNS = encode(Answer(leads=True, leader=ADDRESSES[0], runs=True))
REFUSES = encode(Answer(leads=True, leader=ADDRESSES[0], runs=True, refused="another plan"))
WAITS_ITSELF = encode(Answer(leads=False, leader=("", 0), runs=False))


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> Iterator[Crew]:
    """A device that is in no run; between its questions it hardly waits."""
    monkeypatch.setattr(crew_module, "BEAT_S", 0.001)
    hello = Hello(
        device="a", plan_sha256="p", structure_sha256="s", data="d", settings="seed 0", torch="2", board="b",
        meter="none", source="modelled", scope="process",
    )  # fmt: skip
    made = Crew(hello, 0, host="127.0.0.1", port=0, layers_n=1, first_round=0, patience_s=1.0, say=lambda text: None)
    yield made
    made.close()


def hears(monkeypatch: pytest.MonkeyPatch, *replies: bytes | OSError | None) -> Callable[[], int]:
    """Have every question answered by the next reply, the last one again and again; how many were asked."""
    asked: list[Address] = []

    def ask(address: Address, payload: bytes, *, timeout_s: float) -> bytes | None:
        asked.append(address)
        reply = replies[min(len(asked), len(replies)) - 1]
        if isinstance(reply, OSError):
            raise reply
        return reply

    monkeypatch.setattr(crew_module, "ask", ask)
    return lambda: len(asked)


def test_at_the_start_nobody_there_means_no_run(one: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hears(monkeypatch, None)
    assert one.wish(ADDRESSES, timeout_s=10) is None
    assert asked() == len(ADDRESSES)


def test_hosts_out_of_reach_may_come_back(one: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    away = OSError("no route")
    hears(monkeypatch, *(away,) * 40, REFUSES)
    with pytest.raises(UsageError, match="another plan"):
        one.wish(ADDRESSES, timeout_s=10, insist=True)
    hears(monkeypatch, away)
    assert one.wish(ADDRESSES, timeout_s=10) is None


@pytest.mark.parametrize("reply", [None, WAITS_ITSELF])
def test_when_all_hosts_say_that_nobody_trains_the_run_has_ended(
    one: Crew, monkeypatch: pytest.MonkeyPatch, reply: bytes | None
) -> None:
    asked = hears(monkeypatch, OSError("no route"), reply)
    with pytest.raises(ExcludedError, match="none of them is left"):
        one.wish(ADDRESSES, timeout_s=10, insist=True)
    assert asked() > 2 * len(ADDRESSES)


def test_a_run_that_ends_before_it_took_the_device_is_not_waited_for(
    one: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    hears(monkeypatch, RUNS, RUNS, None)
    with pytest.raises(ExcludedError, match="none of them is left"):
        one.wish(ADDRESSES, timeout_s=10)
