"""``greentrain measure --link`` between two ids over loopback, and cluster.toml made from it."""

from __future__ import annotations

import functools
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from greentrain.cli import main
from greentrain.cli._cluster import load_cluster
from greentrain.device import Provenance
from greentrain.link_profile import LinkProfile, link_profiles, write_link_profile
from greentrain.reading import Span
from greentrain_harness.profilers import link


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A device named ``far`` that answers; the test takes little of its time."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
    stop, ready = threading.Event(), threading.Event()
    options = {"host": "127.0.0.1", "identity": "far", "stop": stop, "ready": ready}
    thread = threading.Thread(target=link.serve_link, args=(port,), kwargs=options, daemon=True)
    thread.start()
    assert ready.wait(timeout=10)
    monkeypatch.setattr(link, "measure_link", functools.partial(link.measure_link, seconds=0.05))
    yield port
    stop.set()
    thread.join(timeout=10)


def test_a_measured_link_reaches_the_cluster(
    served: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("measure", "--link", f"127.0.0.1:{served}", "--id", "near", "--device", "modelled", "--json") == 0
    told = json.loads(capfd.readouterr().out)
    assert (told["src"], told["dst"], told["file"]) == ("near", "far", "profiles/near.far.links.json")
    (found,) = link_profiles(tmp_path / "profiles")
    assert (found.provenance.source, told["source"]) == ("modelled", "modelled")
    assert (found.tx_j_per_byte, found.rx_j_per_byte) == (told["tx_j_per_byte"], told["rx_j_per_byte"])
    assert found.upload_bytes_per_s == told["upload_bytes_per_s"] > 1e6
    for name in ("near", "far", "other"):
        assert run("measure", "--device", "modelled", "--model", "none", "--id", name) == 0
    assert run("cluster", "init", "--force", "--bandwidth", "1Mbit") == 0
    _, cluster = load_cluster(Path("cluster.toml"))
    assert cluster.link("near", "far").bandwidth_bytes_per_s == pytest.approx(found.upload_bytes_per_s, rel=1e-3)
    # The processor of the device that measured is busy with every byte; nobody knows of the others.
    assert found.busy_s_per_byte is not None
    assert found.busy_s_per_byte == told["busy_s_per_byte"] > 0
    assert cluster.device("near").network_s_per_byte == pytest.approx(found.busy_s_per_byte, rel=1e-3)
    assert cluster.device("far").network_s_per_byte is None
    assert found.duplex_busy_s_per_byte is not None
    assert found.duplex_busy_s_per_byte == told["duplex_busy_s_per_byte"] > 0
    assert cluster.device("near").duplex_s_per_byte == pytest.approx(found.duplex_busy_s_per_byte, rel=1e-3)
    assert "what the network costs the processor of far, other is not known" in capfd.readouterr().err
    assert cluster.link("far", "near").bandwidth_bytes_per_s == pytest.approx(found.download_bytes_per_s, rel=1e-3)
    assert cluster.link("far", "near").latency_s == pytest.approx(found.latency_s, rel=1e-3)
    assert cluster.link("near", "other").bandwidth_bytes_per_s == 125e3


def test_joules_per_byte_of_both_ends_reach_the_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("near", "far"):
        assert run("measure", "--device", "modelled", "--model", "none", "--id", name) == 0
    ends = (("near", "far", 5.25e-9, 7e-9, "modelled"), ("far", "near", 2e-9, None, "measured"))
    for src, dst, tx_j, rx_j, source in ends:
        provenance = Provenance(meter="m", source=source, command="c", host="h", versions={}, trials_n=1)
        profile = LinkProfile(
            src=src, dst=dst, upload_bytes_per_s=1e6, download_bytes_per_s=2e6, latency_s=1e-3,
            provenance=provenance, tx_j_per_byte=tx_j, rx_j_per_byte=rx_j, duplex_j_per_byte=rx_j and 3 * rx_j,
        )  # fmt: skip
        write_link_profile(Path("profiles"), profile)
    capfd.readouterr()
    assert run("cluster", "init", "--force", "--json") == 0
    out, err = capfd.readouterr()
    assert "joules per byte between near and far come from a model" in err
    assert "between far and near" not in err
    links = {(row["src"], row["dst"]): (row["tx_j_per_byte"], row["rx_j_per_byte"]) for row in json.loads(out)["links"]}
    assert links["near", "far"] == (pytest.approx(5.25e-9), None)
    assert links["far", "near"] == (pytest.approx(2e-9), pytest.approx(7e-9))
    assert links["*", "*"] == (None, None)
    _, cluster = load_cluster(Path("cluster.toml"))
    assert cluster.link("far", "near").rx_j_per_byte == pytest.approx(7e-9)
    assert cluster.link("near", "far").duplex_j_per_byte == pytest.approx(21e-9)
    assert cluster.link("far", "near").duplex_j_per_byte is None
    assert run("cluster", "show") == 0
    assert "5.25 nJ/B" in capfd.readouterr().out


def test_people_see_both_directions(
    served: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("measure", "--link", f"127.0.0.1:{served}", "--id", "near") == 0
    assert "near → far: " in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--link", "nowhere"], 2, "expected HOST:PORT"),
        (["--link", "h:0"], 2, "expected HOST:PORT"),
        (["--link", "127.0.0.1:9", "--link-serve", "9"], 2, "both given"),
        (["--link", "127.0.0.1:9"], 4, "no link server answers"),
    ],
)
def test_wrong_addresses_are_told(
    words: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run("measure", *words, "--id", "near") == code
    assert message in capfd.readouterr().err


def test_two_devices_of_one_name_are_told(
    served: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("measure", "--link", f"127.0.0.1:{served}", "--id", "far") == 2
    assert "different names with --id" in capfd.readouterr().err


def span(energy_j: float | None, *, seconds: float = 1.0, error_j: float = 0.1) -> Span:
    known = energy_j is not None
    return Span(
        start_s=0.0, duration_s=seconds, energy_j=energy_j, error_j=error_j if known else None, channels_j={},
        gap_s=0.0, source="measured", meter="virtual",
    )  # fmt: skip


def test_joules_per_byte_are_above_idle_or_unknown() -> None:
    idle = span(4.0, seconds=2.0)
    assert link.joules_per_byte(span(8.0), idle, 1_000_000) == pytest.approx(6e-6)
    assert link.joules_per_byte(span(2.1), idle, 1_000_000) is None, "no more than the error"
    assert link.joules_per_byte(span(1.0), idle, 1_000_000) is None
    assert link.joules_per_byte(span(None), idle, 1_000_000) is None
    assert link.joules_per_byte(span(8.0), span(None), 1_000_000) is None
