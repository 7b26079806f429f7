"""Prometheus text, the wall side of rails, and their options on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from greentrain.cli import main
from greentrain.errors import NotSupportedError, UsageError
from greentrain.reading import Channel, Meter, Span
from greentrain_harness.export import prometheus_text
from greentrain_harness.meters import open_named
from greentrain_harness.meters._wall_side import at_wall
from greentrain_harness.meters.boards import board_named
from greentrain_harness.meters.trees import write_jetson_tree, write_rapl_tree
from greentrain_harness.recording import Recorder


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert isinstance(ended.value.code, int)
    return ended.value.code


CHANNELS = (
    Channel(name="VDD_IN", quantity="power_w"),
    Channel(name='odd"name\\', quantity="power_w", parent="VDD_IN"),
    Channel(name="lost", quantity="power_w", parent="VDD_IN"),
)
SPAN = Span(
    start_s=1.0, duration_s=2.0, energy_j=12.5, error_j=0.25,
    channels_j={"VDD_IN": 12.5, 'odd"name\\': 3.0, "lost": None},
    gap_s=0.0, source="measured", meter="ina3221",
)  # fmt: skip


def test_prometheus_text_is_exact() -> None:
    common = 'device="orin",meter="ina3221",source="measured"'
    lines = prometheus_text(SPAN, CHANNELS, device="orin").splitlines()
    assert f'greentrain_energy_joules_total{{{common},channel="VDD_IN",root="true"}} 12.5' in lines
    assert f'greentrain_energy_joules_total{{{common},channel="odd\\"name\\\\",root="false"}} 3.0' in lines
    assert f"greentrain_energy_error_joules{{{common}}} 0.25" in lines
    assert lines.count("# TYPE greentrain_energy_joules_total counter") == 1
    assert not [line for line in lines if "lost" in line], "unknown is left out, not 0"


def test_prometheus_text_is_understood_by_its_own_parser() -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    families = {family.name: family for family in parser.text_string_to_metric_families(
        prometheus_text(SPAN, CHANNELS, device="orin"))}  # fmt: skip
    samples = families["greentrain_energy_joules"].samples
    assert sum(sample.value for sample in samples if sample.labels["root"] == "true") == 12.5


def test_the_wall_side_is_scaled_rails_plus_an_offset_and_modelled(tmp_path: Path) -> None:
    write_jetson_tree(tmp_path, board_named("agx-orin"), total_w=20.0)
    meter = at_wall(open_named("jetson", sysroot=tmp_path), scale=1.1, offset_w=3.0)
    values = dict(zip((channel.name for channel in meter.channels), meter.sample().values, strict=True))
    assert values["wall-side"] == pytest.approx(25.0, abs=0.01)
    assert [channel.name for channel in meter.channels if channel.parent is None] == ["wall-side"]
    assert meter.source == "modelled"
    assert "stated by the user" in meter.note
    # ±20 % of the offset of 3 W, and the rails' own offsets.
    assert meter.channels[0].offset_error_w == pytest.approx(0.6 + 1.1 * (0.8 + 0.8 + 0.2))


def test_the_wall_side_of_a_counter_grows_with_time(tmp_path: Path) -> None:
    tree = write_rapl_tree(tmp_path, [("intel-rapl:0", "package-0")])
    meter = at_wall(open_named("cpu", sysroot=tmp_path), scale=1.0, offset_w=10.0)
    before = meter.sample()
    tree.set_energy_uj("intel-rapl:0", 6_000_000)
    after = meter.sample()
    assert before.values[0] is not None
    assert after.values[0] is not None
    assert after.values[0] - before.values[0] == pytest.approx(5.0 + 10.0 * (after.t_s - before.t_s))


def test_a_lost_root_leaves_the_wall_unknown(tmp_path: Path) -> None:
    tree = write_jetson_tree(tmp_path, board_named("orin-nx"))
    meter = at_wall(open_named("jetson", sysroot=tmp_path), scale=1.1, offset_w=0.0)
    (tree.folders["VDD_IN"] / "curr1_input").write_text("")
    assert meter.sample().values[0] is None


def test_no_correction_leaves_the_meter(tmp_path: Path) -> None:
    write_jetson_tree(tmp_path, board_named("orin-nx"))
    meter = open_named("jetson", sysroot=tmp_path)
    assert at_wall(meter, scale=1.0, offset_w=0.0) is meter


@pytest.mark.parametrize(("scale", "offset_w"), [(0.9, 0.0), (1.0, -1.0), (float("nan"), 0.0)])
def test_an_impossible_correction_is_told(scale: float, offset_w: float, tmp_path: Path) -> None:
    write_jetson_tree(tmp_path, board_named("orin-nx"))
    with pytest.raises(UsageError, match="at least 1"):
        at_wall(open_named("jetson", sysroot=tmp_path), scale=scale, offset_w=offset_w)


def test_joules_and_watts_have_no_common_wall_side(tmp_path: Path) -> None:
    write_rapl_tree(tmp_path)
    meter: Meter = open_named("cpu", sysroot=tmp_path)
    mixed = Recorder(meter, tmp_path / "r.jsonl")
    object.__setattr__(meter, "channels", (*meter.channels, Channel(name="gpu-0", quantity="power_w")))
    with pytest.raises(NotSupportedError, match="no common wall side"):
        at_wall(mixed, scale=1.2, offset_w=0.0)
    mixed.close()


def test_options_on_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_jetson_tree(tmp_path, board_named("orin-nx"), total_w=6.0)
    textfile = tmp_path / "energy.prom"
    code = run(
        "meter", "--seconds", "0.05", "--wall-offset-w", "2", "--wall-scale", "1.25", "--prometheus", str(textfile),
        "--json", "--sysroot", str(tmp_path),
    )  # fmt: skip
    assert code == 0
    result = json.loads(capfd.readouterr().out)
    assert result["mean_w"] == pytest.approx(9.5, rel=1e-3)
    assert result["source"] == "modelled"
    assert result["channels"]["VDD_IN"] == pytest.approx(6.0 * result["duration_s"], rel=1e-3)
    assert 'channel="wall-side",root="true"' in textfile.read_text()


def test_throttling_is_told_on_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tree = write_jetson_tree(tmp_path, board_named("orin-nx"), total_w=6.0)
    words = ("meter", "--seconds", "0.05", "--sysroot", str(tmp_path))
    assert run(*words, "--json") == 0
    assert json.loads(capfd.readouterr().out)["throttled"] is None
    (tree.folders["VDD_IN"] / "curr1_crit_alarm").write_text("1\n")
    assert run(*words, "--wall-scale", "1.1", "--record", str(tmp_path / "r.jsonl"), "--json") == 0
    assert json.loads(capfd.readouterr().out)["throttled"] == ["over-current VDD_IN"]
    assert run(*words) == 0
    assert "clocks were held back: over-current VDD_IN" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "cpu", "--wall-url", "http://127.0.0.1:1"], "does not go with"),
        (["--device", "wall", "--wall-url", "ftp://x"], "expected http://HOST"),
        (["--device", "modelled", "--wall-scale", "0.5"], "at least 1"),
    ],
)
def test_wrong_options_are_told(words: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("meter", *words, "--seconds", "1") == 2
    assert message in capfd.readouterr().err


def test_a_plug_that_does_not_answer_is_unavailable(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("meter", "--device", "wall", "--wall-url", "http://127.0.0.1:9", "--seconds", "1") == 4
    assert "No smart plug answers" in capfd.readouterr().err
