from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from problems import make_device

from greentrain.cluster import Cluster, Link, Medium
from greentrain.cluster_file import DeviceEntry, build_cluster, read_cluster_file
from greentrain.device import Device
from greentrain.errors import UsageError

HEAD = 'name = "desk"\n[link]\nbandwidth = "100Mbit"\nlatency = "1ms"\n'
TWO = '[[device]]\nid = "a"\nkind = "nano"\n[[device]]\nid = "b"\nkind = "nano"\nmemory = "1GiB"\n'


def _resolve(entry: DeviceEntry) -> Device:
    assert entry.kind is not None
    return make_device("whatever", kind=entry.kind, points=1, memory_bytes=1 << 33, idle_w=2, busy_w=10)


def _cluster(folder: Path, text: str) -> Cluster:
    path = folder / "cluster.toml"
    path.write_text(text)
    return build_cluster(read_cluster_file(path), path=path, resolve=_resolve)


def test_a_whole_file(tmp_path: Path) -> None:
    cluster = _cluster(
        tmp_path,
        HEAD
        + TWO
        + '[[links]]\nsrc = "a"\ndst = "b"\nbandwidth = "54Mbit"\ntx_energy = "5nJ/B"\nmedium = "air"\n'
        + '[[medium]]\nname = "air"\nbandwidth = "24Mbit"\n',
    )
    assert [device.id for device in cluster.devices] == ["a", "b"]
    assert [device.memory_bytes for device in cluster.devices] == [1 << 33, 1 << 30]
    assert cluster.default_link == Link(src="*", dst="*", bandwidth_bytes_per_s=12.5e6, latency_s=1e-3)
    for src, dst in (("a", "b"), ("b", "a")):
        link = cluster.link(src, dst)
        assert (link.bandwidth_bytes_per_s, link.latency_s) == (6.75e6, 0.0)
        assert (link.tx_j_per_byte, link.medium) == (5e-9, "air")
        assert cluster.bandwidth_bytes_per_s(link) == 3e6
    assert cluster.bandwidth_bytes_per_s(cluster.default_link) == 12.5e6


def test_one_way_links(tmp_path: Path) -> None:
    link = '[[links]]\nsrc = "a"\ndst = "b"\nbandwidth = "10Mbit"\nboth_ways = false\n'
    cluster = _cluster(tmp_path, HEAD + TWO + link)
    assert cluster.link("a", "b").bandwidth_bytes_per_s == 1.25e6
    assert cluster.link("b", "a") is cluster.default_link


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (HEAD, "missing required field `device`"),
        (HEAD + "device = []\n", "field link: Object contains unknown field `device`"),
        (TWO, "missing required field"),
        (HEAD + TWO.replace("kind", "knid", 1), "field device[0]: Object contains unknown field `knid`"),
        (HEAD + TWO.replace('"b"', '"a"'), "device ids ['a'] are used twice"),
        (HEAD + TWO.replace('"b"', '"b c"'), "field device[1]: id is 'b c', expected a name without spaces"),
        (HEAD + TWO.replace("1GiB", "-1GiB"), "field device[1].memory: '-1GiB' must not be below 1 B"),
        (HEAD.replace("100Mbit", "-100Mbit") + TWO, "field link.bandwidth: '-100Mbit' must not be below"),
        (HEAD.replace("100Mbit", "100") + TWO, "field link.bandwidth: '100' is not a bandwidth"),
        (HEAD.replace("1ms", "-1ms") + TWO, "field link.latency: '-1ms' must not be below 0 s"),
        (HEAD + TWO + "threads = 0\n", "field device[1]: threads must be at least 1"),
        (HEAD + TWO + "quota_percent = 0\nlaunch = 'local'\n", "field device[1]: quota_percent is 0"),
        (HEAD + TWO + "quota_percent = nan\nlaunch = 'local'\n", "field device[1]: quota_percent is nan"),
        (HEAD + TWO + "quota_percent = 50\n", "field device[1]: quota_percent needs launch = 'local'"),
        (HEAD + TWO + "launch = 'lab:x'\n", "field device[1]: launch is 'lab:x', expected"),
        (HEAD + TWO + "cpus = 'all'\n", "field device[1]: cpus is 'all', expected '0-1,3'"),
        (HEAD + TWO + "profile = 'b.json'\n", "device 'b' needs exactly one of profile and kind"),
        (HEAD + TWO + '[[links]]\nbandwidth = "1Mbit"\n', "field links[0]: src and dst are needed"),
        (
            HEAD + TWO + '[[links]]\nsrc = "a"\ndst = "a"\nbandwidth = "1Mbit"\n',
            "link a > a: joins a device with itself",
        ),
        (
            HEAD + TWO + '[[links]]\nsrc = "a"\ndst = "c"\nbandwidth = "1Mbit"\n',
            "link a > c: unknown device 'c'",
        ),
        (
            HEAD
            + TWO
            + '[[links]]\nsrc = "a"\ndst = "b"\nbandwidth = "1Mbit"\n'
            + '[[links]]\nsrc = "b"\ndst = "a"\nbandwidth = "2Mbit"\n',
            "link a > b is given twice (both_ways = true also gives the way back)",
        ),
        (HEAD + 'medium = "air"\n' + TWO, "unknown medium 'air'"),
        (
            HEAD + TWO + '[[medium]]\nname = "air"\nbandwidth = "0Mbit"\n',
            "field medium[0].bandwidth: '0Mbit' must not be below",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        _cluster(tmp_path, text)
    assert caught.value.message.startswith(f"{tmp_path / 'cluster.toml'}: ")
    assert sentence in caught.value.message


def test_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no such file\. Make one with: greentrain cluster init"):
        read_cluster_file(tmp_path / "cluster.toml")


def test_who_can_run() -> None:
    assert not DeviceEntry(id="a", kind="nano").can_run
    for launch in ("local", "manual", "lab:home/node-1"):
        assert DeviceEntry(id="a", kind="nano", launch=launch).can_run


def test_restricted_to() -> None:
    devices = tuple(
        make_device(name, kind="nano", points=1, memory_bytes=1, idle_w=1, busy_w=2) for name in ("a", "b", "c")
    )
    wire = Link(src="*", dst="*", bandwidth_bytes_per_s=1.0)
    links = tuple(msgspec.structs.replace(wire, src=src, dst=dst) for src, dst in (("a", "b"), ("b", "c")))
    cluster = Cluster(name="x", devices=devices, default_link=wire, links=links)
    small = cluster.restricted_to(("c", "b"))
    assert [device.id for device in small.devices] == ["b", "c"]
    assert [(link.src, link.dst) for link in small.links] == [("b", "c")]
    with pytest.raises(UsageError, match=r"unknown device 'd'\. The cluster 'x' has: a, b, c"):
        cluster.restricted_to(("a", "d"))
    medium = Medium(name="air", bandwidth_bytes_per_s=1.0)
    with pytest.raises(ValueError, match="media must have different names"):
        msgspec.structs.replace(cluster, media=(medium, medium))
    with pytest.raises(ValueError, match="at least one device"):
        msgspec.structs.replace(cluster, devices=(), links=())
    assert wire.transfer_s(10) == 10.0
