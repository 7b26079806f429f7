"""What talks to other ranks ends when it is cut, whatever it waits for."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from greentrain.runtime.links import Links, PeersLostError


@pytest.fixture
def links() -> Iterator[Links]:
    made = Links()
    made.seal()
    yield made
    made.close()


def test_results_and_errors_come_back(links: Links) -> None:
    assert links.apart(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        links.apart(lambda: 1 // 0)


def test_who_hangs_in_gloo_is_left_behind(links: Links) -> None:
    hangs, ever = threading.Event(), threading.Event()
    went_on: list[str] = []

    def job() -> None:
        with links.waiting():
            hangs.set()
            ever.wait(timeout=30)
        went_on.append("after gloo")

    cutter = threading.Thread(target=lambda: (hangs.wait(timeout=30), links.cut()))
    cutter.start()
    with pytest.raises(PeersLostError, match="cut in two"):
        links.apart(job)
    cutter.join()
    ever.set()
    links.close()
    assert links.joined(timeout_s=30)
    assert went_on == []  # It came out of gloo, and no further.


def test_who_computes_is_waited_for(links: Links) -> None:
    began, may_end = threading.Event(), threading.Event()

    def job() -> str:
        began.set()
        may_end.wait(timeout=30)
        return "computed"

    def cut() -> None:
        began.wait(timeout=30)
        links.cut()
        threading.Timer(0.5, may_end.set).start()

    threading.Thread(target=cut).start()
    assert links.apart(job) == "computed"


def test_after_a_cut_nobody_goes_on_from_gloo(links: Links) -> None:
    links.cut()
    with pytest.raises(RuntimeError, match="were cut"), links.waiting():
        pass
