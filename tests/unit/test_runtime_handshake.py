"""The handshake: every rank comes to the same verdict, and every wait is bounded and announced."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import msgspec
import pytest
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from greentrain.errors import RunError, UsageError
from greentrain.runtime.handshake import Hello, meet

DEVICES = ("a", "b", "c")


class FakeStore:
    """The four calls of a store that the handshake makes."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def set(self, key: str, value: str) -> None:
        self.values[key] = value

    def get(self, key: str) -> bytes:
        return self.values[key].encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)

    def add(self, key: str, amount: int) -> int:
        self.values[key] = str(int(self.values.get(key, "0")) + amount)
        return int(self.values[key])


def hello(device: str, **fields: str) -> Hello:
    same = Hello(
        device=device, plan_sha256="1" * 64, structure_sha256="2" * 64, data="toy", settings="seed 0", torch="2",
        board=device,
    )  # fmt: skip
    return msgspec.structs.replace(same, **fields)


def say_hello(store: FakeStore, *hellos: Hello) -> None:
    for said in hellos:
        store.set(f"hello/{DEVICES.index(said.device)}", msgspec.json.encode(said).decode())


class Time:
    """A clock that only sleeping moves; something happens at given seconds."""

    def __init__(self, **events: Callable[[], None]) -> None:
        self.now_s = 0.0
        self.events = {float(name.removeprefix("at_")): event for name, event in events.items()}

    def clock(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        self.now_s += duration_s
        for due_s in [due_s for due_s in self.events if due_s <= self.now_s]:
            self.events.pop(due_s)()


def run(store: FakeStore, own: Hello, *, time: Time, said: list[str] | None = None) -> tuple[Hello, ...]:
    return meet(
        cast("TCPStore", store), own, DEVICES, timeout_s=60, say=(said if said is not None else []).append,
        clock=time.clock, sleep=time.sleep,
    )  # fmt: skip


def test_all_who_agree_meet() -> None:
    store = FakeStore()
    say_hello(store, hello("a"), hello("c", board="a"))
    found = run(store, hello("b"), time=Time())
    assert [one.device for one in found] == ["a", "b", "c"]
    assert found[2].board == "a"
    assert run(store, hello("a"), time=Time()) == found


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"plan_sha256": "9" * 64}, "b has plan 999999999999, but a has plan 111111111111."),
        ({"structure_sha256": "9" * 64}, "b has model 999999999999, but a has model 222222222222."),
        ({"data": "other"}, "b has data set other, but a has data set toy."),
        ({"settings": "seed 1"}, "b has settings seed 1, but a has settings seed 0."),
    ],
)
def test_a_rank_that_differs_is_refused_and_everybody_reads_why(fields: dict[str, str], sentence: str) -> None:
    store = FakeStore()
    say_hello(store, hello("a"))
    for own in (hello("b", **fields), hello("c"), hello("a")):
        with pytest.raises(UsageError) as caught:
            run(store, own, time=Time())
        assert caught.value.message == sentence
        assert caught.value.hint is not None
        assert caught.value.hint.endswith("then start all workers again.")


def test_rank_0_stays_until_the_others_have_read_the_verdict() -> None:
    store, time = FakeStore(), Time()
    store.set("refused", '["b differs.", "Copy it."]')
    with pytest.raises(UsageError, match=r"b differs\."):
        run(store, hello("a"), time=time)
    assert time.now_s >= 1


def test_a_device_with_two_workers() -> None:
    store = FakeStore()
    say_hello(store, hello("a"), hello("c"))
    run(store, hello("b"), time=Time())
    with pytest.raises(UsageError, match=r"device b has two workers\."):
        run(store, hello("b"), time=Time())


def test_who_is_missing_is_announced_and_named_in_the_end() -> None:
    store, said = FakeStore(), list[str]()
    time = Time(at_8=lambda: say_hello(store, hello("b")))
    with pytest.raises(RunError) as caught:
        run(store, hello("a"), time=time, said=said)
    assert said == ["Waiting for the worker of b, c …", "Waiting for the worker of c …"]
    assert caught.value.message == "no worker of c appeared in 60 s."
    assert 60 <= time.now_s < 61


def test_a_late_rank_is_waited_for() -> None:
    store, said = FakeStore(), list[str]()
    time = Time(at_3=lambda: say_hello(store, hello("b"), hello("c")))
    assert len(run(store, hello("a"), time=time, said=said)) == 3
    assert said == []


def test_another_version_of_the_protocol() -> None:
    store = FakeStore()
    store.set("hello/0", '{"device": "a", "colour": "green"}')
    with pytest.raises(UsageError, match="rank 0 speaks another version of the protocol"):
        run(store, hello("b"), time=Time())
