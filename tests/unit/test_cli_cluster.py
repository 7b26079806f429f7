"""``greentrain cluster``: what init writes, what show checks, and one sentence per mistake."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from greentrain.cli import main
from greentrain.cli._cluster import load_cluster
from greentrain.device import DeviceProfile, Provenance
from greentrain.profile_files import write_device_profile
from greentrain_datasets.catalogue import catalogue_device
from greentrain_harness.environment import machine_id
from greentrain_harness.lab.cgroups import NodeCgroup
from greentrain_harness.lab.state import Lab, LabNode

PROVENANCE = Provenance(
    meter="rapl", source="measured", command="greentrain measure", host="pc", versions={}, trials_n=3
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def add_profile(folder: Path, identity: str, *, name: str | None = None, here: bool = True) -> None:
    device = catalogue_device("jetson-nano-4gb", identity)
    device = msgspec.structs.replace(device, power=msgspec.structs.replace(device.power, source="measured"))
    made = msgspec.structs.replace(PROVENANCE, machine=machine_id() if here else "a board far away")
    path = write_device_profile(folder / "profiles", DeviceProfile(device=device, provenance=made))
    if name is not None:
        path.rename(path.with_name(name))


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["cluster", *arguments])
    code = caught.value.code
    assert isinstance(code, int)
    return code


def write_cluster(folder: Path, *lines: str) -> None:
    head = ('name = "home"', "[link]", 'bandwidth = "100Mbit"', "[[device]]", 'id = "a"', 'kind = "jetson-nano-4gb"')
    (folder / "cluster.toml").write_text("\n".join((*head, *lines)) + "\n")


def test_init_joins_local_and_catalogue_devices(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_profile(folder, "fast")
    add_profile(folder, "slow")
    code = run(
        "init", "--add", "jetson-orin-nano-8gb=2", "--local", "slow:cpus=0,1-2,threads=1", "--latency", "1ms", "--json"
    )
    assert code == 0
    printed = json.loads(capsys.readouterr().out)
    assert [(row["id"], row["launch"], row["source"]) for row in printed["devices"]] == [
        ("fast", "local", "measured"),
        ("slow", "local", "measured"),
        ("jetson-orin-nano-8gb-1", None, "modelled"),
        ("jetson-orin-nano-8gb-2", None, "modelled"),
    ]
    file, cluster = load_cluster(Path("cluster.toml"))
    assert cluster.default_link.bandwidth_bytes_per_s == 12.5e6
    assert cluster.default_link.latency_s == 1e-3
    fast, slow = file.device[:2]
    assert (slow.cpus, slow.threads) == ("0,1-2", 1)
    assert (fast.cpus, fast.threads) == (None, None)
    # Which ranks share a meter is what the machines say when they meet, not what a file guesses.
    assert fast.board is None
    assert fast.profile == "profiles/fast.device.json"


def test_a_profile_of_another_machine_is_not_trained_here_in_its_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_profile(folder, "nano-1", here=False)
    add_profile(folder, "pc")
    assert run("init", "--json") == 0
    shown = capsys.readouterr()
    assert [(row["id"], row["launch"]) for row in json.loads(shown.out)["devices"]] == [
        ("nano-1", "manual"),
        ("pc", "local"),
    ]
    assert "nano-1 was measured on another machine" in shown.err


def test_init_of_a_lab_launches_nodes_in_it(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = tuple(
        LabNode(
            name=f"node{index}",
            address=f"10.77.0.{10 + index}",
            kind="jetson-nano-4gb",
            point="MAXN",
            quota_percent=25,
            namespace=f"gtlab-x-node{index}",
            cgroup=NodeCgroup(version=2, cpu="/cg", cpuacct="/cg"),
            sysroot="/run/x",
        )
        for index in (0, 1)
    )
    lab = Lab(
        name="x",
        subnet="10.77.0.0/24",
        bandwidth_bytes_per_s=6.25e6,
        latency_s=0.002,
        switch_namespace="gtlab-x-switch",
        sensors_pid=42,
        nodes=nodes,
    )

    def read_lab(name: str) -> Lab:
        assert name == "x"
        return lab

    monkeypatch.setattr("greentrain_harness.lab.state.read_lab", read_lab)
    add_profile(folder, "node0")
    add_profile(folder, "pc")
    assert run("init", "--lab", "x") == 0
    said = capsys.readouterr().err
    assert "no profile of node1" in said
    assert "pc is no node of lab 'x'" in said
    file, cluster = load_cluster(Path("cluster.toml"))
    node, other = file.device
    assert (file.name, node.launch, node.address) == ("x", "lab:x/node0", "10.77.0.10")
    assert (other.id, other.launch) == ("pc", None)
    assert cluster.default_link.bandwidth_bytes_per_s == 6.25e6
    assert cluster.default_link.latency_s == pytest.approx(2.3e-3)
    assert run("init", "--lab", "x", "--local", "node0:cpus=0", "--force") == 2


def test_profiles_are_relative_to_the_file(folder: Path) -> None:
    add_profile(folder, "pc")
    (folder / "elsewhere").mkdir()
    assert run("init", "-o", "elsewhere/c.toml") == 0
    file, cluster = load_cluster(folder / "elsewhere" / "c.toml")
    assert file.device[0].profile == "../profiles/pc.device.json"
    assert cluster.devices[0].id == "pc"


def test_added_ids_avoid_those_in_use(folder: Path) -> None:
    add_profile(folder, "jetson-nano-4gb-1")
    assert run("init", "--add", "jetson-nano-4gb", "--add", "jetson-nano-4gb=1") == 0
    _, cluster = load_cluster(Path("cluster.toml"))
    assert [device.id for device in cluster.devices] == [f"jetson-nano-4gb-{number}" for number in (1, 2, 3)]


def test_init_never_overwrites_unasked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "cluster.toml").write_text("mine\n")
    assert run("init", "--add", "jetson-nano-4gb") == 2
    assert (folder / "cluster.toml").read_text() == "mine\n"
    assert "cluster.toml: exists already." in capsys.readouterr().err
    assert run("init", "--add", "jetson-nano-4gb", "--force") == 0
    assert (folder / "cluster.toml").read_text() != "mine\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "profiles: no device profile (*.device.json), and no --add."),
        (("--add", "jetson-nano-4gb=x"), "--add is 'jetson-nano-4gb=x', expected KIND or KIND=COUNT."),
        (("--add", "jetson-nano-4gb="), "--add is 'jetson-nano-4gb=', expected KIND or KIND=COUNT."),
        (("--add", "jetson-nan"), "unknown device kind 'jetson-nan' in the catalogue."),
        (("--add", "jetson-nano-4gb", "--bandwidth", "-1Mbit"), "--bandwidth: '-1Mbit' must not be below"),
        (("--add", "jetson-nano-4gb", "--bandwidth", "fast"), "--bandwidth: 'fast' is not a bandwidth."),
        (("--add", "jetson-nano-4gb", "--local", "pc:cpus=0"), "--local names 'pc', which has no profile in profiles"),
        (("--add", "jetson-nano-4gb", "--local", "pc:gpus=0"), "--local is 'pc:gpus=0', expected ID:cpus=LIST"),
        (("--add", "jetson-nano-4gb", "--local", "pc"), "--local is 'pc', expected ID:cpus=LIST"),
        (("--lab", "none-such"), "no lab 'none-such' stands"),
    ],
)
def test_wrong_options(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], sentence: str
) -> None:
    assert run("init", *arguments) == 2
    assert sentence in capsys.readouterr().err
    assert not (folder / "cluster.toml").exists()


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (("theads = 1",), "cluster.toml: field device[0]: Object contains unknown field `theads`."),
        (("[[links]]", 'src = "a"', 'dst = "a"', 'bandwidth = "-5Mbit"'), "cluster.toml: field links[0].bandwidth:"),
        (
            ("[[links]]", 'src = "a"', 'dst = "b"', 'bandwidth = "5Mbit"'),
            "cluster.toml: link a > b: unknown device 'b'",
        ),
        (("[[device]]", 'id = "b"', 'kind = "jetson-nono-4gb"'), "cluster.toml: field device[1].kind: unknown device"),
        (("[[device]]", 'id = "a"', 'kind = "jetson-nano-4gb"'), "cluster.toml: device ids ['a'] are used twice."),
        (
            ("[[device]]", 'id = "b"'),
            "cluster.toml: field device[1]: device 'b' needs exactly one of profile and kind.",
        ),
        (
            ("[[device]]", 'id = "b"', 'profile = "b.json"'),
            "cluster.toml: field device[1].profile: b.json: no such file.",
        ),
        (("launch = 'remote'",), "cluster.toml: field device[0]: launch is 'remote'"),
        (('memory = "4"',), "cluster.toml: field device[0].memory: '4' is not a bytes"),
        (("=",), "cluster.toml: not valid TOML"),
    ],
)
def test_mistakes_in_the_file(
    folder: Path, capsys: pytest.CaptureFixture[str], lines: tuple[str, ...], sentence: str
) -> None:
    write_cluster(folder, *lines)
    assert run("show") == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said


def test_an_unknown_kind_names_the_nearest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cluster(folder, "[[device]]", 'id = "b"', 'kind = "jetson-nono-4gb"')
    assert run("show") == 2
    assert "Hint: Did you mean jetson-nano-4gb" in capsys.readouterr().err


def test_two_profiles_of_one_id(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_profile(folder, "pc", name="copy.device.json")
    add_profile(folder, "pc")
    assert run("init") == 2
    assert "device ids ['pc'] are used twice" in capsys.readouterr().err


def test_show_without_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show") == 2
    assert "cluster.toml: no such file." in capsys.readouterr().err


def test_show_prints_devices_and_links(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cluster(
        folder, "[[device]]", 'id = "b"', 'kind = "jetson-nano-4gb"', 'launch = "manual"',
        "[[links]]", 'src = "a"', 'dst = "b"', 'bandwidth = "5Mbit"', "both_ways = false",
    )  # fmt: skip
    assert run("show") == 0
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert ["a", "jetson-nano-4gb", "modelled", "1.5 W", "10 W", "3 GiB", "planned only"] in cells
    assert ["b", "jetson-nano-4gb", "modelled", "1.5 W", "10 W", "3 GiB", "manual"] in cells
    assert ["any two", "100 Mbit/s", "0 s", "unknown", "unknown", "unknown", "switched"] in cells
    assert ["a > b", "5 Mbit/s", "0 s", "unknown", "unknown", "unknown", "switched"] in cells
