"""doctor, meter and measure: exit codes, one JSON object, files, and source=modelled in every output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from greentrain.cli import main
from greentrain.cluster_file import read_cluster_file
from greentrain.profile_files import read_device_profile
from greentrain_harness.meters import METERS
from greentrain_harness.meters.boards import board_named
from greentrain_harness.meters.trees import write_jetson_tree


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GREENTRAIN_SYSROOT", raising=False)
    monkeypatch.delenv("GREENTRAIN_LAB", raising=False)
    monkeypatch.setenv("GREENTRAIN_DEVICE_ID", "box")
    return tmp_path


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    code = ended.value.code
    assert isinstance(code, int)
    return code


def printed(capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 1
    return json.loads(lines[0])


def jetson(root: Path, *, lab: bool = False) -> str:
    write_jetson_tree(root / "tree", board_named("orin-nx"), total_w=6.0)
    if lab:
        (root / "tree/etc").mkdir()
        (root / "tree/etc/greentrain-lab.json").write_text('{"lab": "l", "node": "n2", "kind": "k"}')
    return str(root / "tree")


def test_doctor_names_every_meter(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", "--json", "--sysroot", str(folder)) == 0
    diagnosis = printed(capfd)
    assert diagnosis["meter"] == diagnosis["source"] == "modelled"
    meters = {line["name"].split()[0]: line for line in diagnosis["findings"] if line["area"] == "meter"}
    assert set(meters) == set(METERS)
    assert meters["ina3221"]["state"] == "missing"
    assert str(folder) in meters["ina3221"]["detail"]
    assert {line["name"] for line in diagnosis["findings"]} >= {"processor", "CPU quota", "memory", "clocks", "root"}


def test_doctor_for_people(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", "--sysroot", jetson(folder, lab=True)) == 0
    text = capfd.readouterr().out
    assert "source=modelled" in text
    assert "ina3221" in text


def test_meter_of_a_window(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("meter", "--seconds", "0.05", "--json", "--sysroot", jetson(folder)) == 0
    result = printed(capfd)
    assert result["source"] == "measured"
    assert result["meter"] == "ina3221"
    assert result["mean_w"] == pytest.approx(6.0, rel=1e-3)
    assert result["error_j"] > 0
    assert set(result["channels"]) == {"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"}


def test_meter_of_a_command_passes_its_output_and_exit_code_on(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("meter", "--device", "modelled", "--json", "--", "sh", "-c", "echo hello; exit 7") == 7
    captured = capfd.readouterr()
    result = json.loads(captured.out)
    assert captured.err == "hello\n"
    assert result["exit_code"] == 7
    assert result["source"] == "modelled"
    assert result["energy_j"] > 0


def test_meter_text_says_modelled(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("meter", "--device", "modelled", "--seconds", "0.01") == 0
    assert "source=modelled" in capfd.readouterr().out


def test_meter_records_and_replays(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tree = jetson(folder)
    assert run("meter", "--seconds", "0.1", "--record", "r.jsonl", "--json", "--sysroot", tree) == 0
    printed(capfd)
    assert run("meter", "--device", "replay:r.jsonl", "--json") == 0
    result = printed(capfd)
    assert result["mean_w"] == pytest.approx(6.0, rel=1e-3)
    assert result["meter"] == "replay"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["meter", "--device", "jetson"], 4, "No Jetson sensor"),
        (["meter", "--device", "cpu"], 4, "No CPU energy counter"),
        (["meter", "--device", "nvidia"], 4, "No NVIDIA GPU sensor"),
        (["meter", "--device", "replay:none.jsonl"], 2, "none.jsonl"),
        (["meter", "--device", "jetsn"], 2, "unknown meter"),
        (["meter", "--device", "modelled", "--", "no-such-command"], 2, "was not found"),
        (["meter", "--seconds", "1", "--", "true"], 2, "both --seconds and a COMMAND"),
        (["meter", "--seconds", "-1"], 2, "Invalid value"),
        (["measure", "--device", "jetson"], 4, "No Jetson sensor"),
        (["measure", "--device", "modelled", "--points", "all"], 4, "No operating points can be set here"),
        (["measure", "--device", "modelled", "--points", "all", "--control", "warp"], 2, "unknown control 'warp'"),
        (["measure", "--device", "modelled", "--dry-run"], 2, "--dry-run goes with --points all"),
        (["measure", "--device", "modelled", "--model", "no-such-model"], 2, "no-such-model"),
        (["measure", "--device", "modelled", "--model", "none", "--model", "digits-cnn"], 2, "none stands beside"),
        (["measure", "--id", "a b"], 2, "--id is 'a b'"),
        (["measure", "--cpus", "4096"], 2, "--cpus is '4096'"),
        (["measure", "--cpus", "zero"], 2, "expected a list of processors"),
    ],
)  # fmt: skip
def test_errors_are_one_sentence_with_the_right_code(
    words: list[str], code: int, message: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(*words, "--sysroot", str(folder)) == code if "--" not in words else run(*words) == code
    error = capfd.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_measure_writes_a_profile_and_a_cluster_file(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("measure", "--device", "modelled", "--model", "none", "--json") == 0
    result = printed(capfd)
    assert result["source"] == "modelled"
    assert result["cluster_lines"] == ""
    profile = read_device_profile(folder / "profiles/box.device.json")
    assert profile.device.kind == "box"
    assert profile.provenance.source == profile.device.power.source == "modelled"
    entry = read_cluster_file(folder / "cluster.toml").device[0]
    assert (entry.id, entry.profile, entry.launch) == ("box", "profiles/box.device.json", "local")
    assert entry.meter == "modelled"


def test_measure_prints_the_lines_that_an_older_cluster_file_lacks(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("measure", "--device", "modelled", "--model", "none") == 0
    before = (folder / "cluster.toml").read_text()
    assert "source=modelled" in capfd.readouterr().out
    assert run("measure", "--device", "modelled", "--model", "none", "--id", "other", "--kind", "fast") == 0
    text = capfd.readouterr().out
    assert 'id = "other"' in text
    assert "add:" in text
    assert (folder / "cluster.toml").read_text() == before
    (folder / "cluster.toml").write_text(before + text[text.index("[[device]]") :])
    assert [entry.id for entry in read_cluster_file(folder / "cluster.toml").device] == ["box", "other"]


def test_measure_in_a_lab_node_is_launched_in_the_lab(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREENTRAIN_LAB", "home/n2")
    assert run("measure", "--device", "modelled", "--model", "none") == 0
    assert read_cluster_file(folder / "cluster.toml").device[0].launch == "lab:home/n2"


def test_a_damaged_cluster_file_is_told_before_measuring(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "cluster.toml").write_text("name = 3\n")
    assert run("measure", "--device", "modelled", "--model", "none") == 2
    assert "cluster.toml" in capfd.readouterr().err
    assert not (folder / "profiles").exists()
