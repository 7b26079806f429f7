from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from greentrain.cli import main
from greentrain.ledger import LedgerRow, write_ledger


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        LedgerRow(
            run="tiny", device="box", rank=0, step=step, action="step", t_start_s=0.5 * step, duration_s=0.5,
            energy_j=1.000001, error_j=0.1, bytes=0, source="modelled", meter="modelled",
        )
        for step in range(3)
    ]  # fmt: skip
    write_ledger(tmp_path / "tiny" / "ledger.csv", rows)
    return tmp_path / "tiny"


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["report", *arguments])
    out, err = capsys.readouterr()
    code = ended.value.code
    assert isinstance(code, int)
    return code, out, err


def test_json_is_one_object_with_the_exact_total(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = _run(capsys, str(folder), "--country", "FRA", "--json")
    assert code == 0
    facts = json.loads(out)
    run = facts["runs"][0]
    assert run["headline"]["energy_j"] == 3.000003
    assert run["headline"]["source"] == "modelled"
    assert run["energy_j_by_device"] == {"box": 3.000003}
    assert run["headline"]["accuracy"] is None
    assert (run["intensity"]["place"], run["intensity"]["year"] is not None) == ("FRA", True)
    assert Path(facts["html"]) == folder / "report.html"
    assert all(Path(path).is_file() for path in facts["csv"].values())
    assert "summary.json" in err


def test_text_names_the_source_and_the_files(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = _run(capsys, str(folder), "--kg-per-kwh", "0.25", "-o", str(tmp_path / "out"))
    assert code == 0
    assert "0.25 kg/kWh" in out
    assert "given by the user" in out
    assert str(tmp_path / "out" / "report.html") in out
    assert "not recorded" in out
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--country", "ZZZ"], "ZZZ"),
        (["--kg-per-kwh", "-1"], "kg/kWh"),
        (["--against", "nowhere"], "nowhere"),
    ],
)
def test_wrong_arguments_end_with_2(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    code, out, err = _run(capsys, str(folder), *arguments)
    assert code == 2
    assert out == ""
    assert said in err
    assert "Hint:" in err
    assert not (folder / "report.html").exists()


def test_a_corrupt_ledger_ends_with_2_and_names_the_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = folder / "ledger.csv"
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join([lines[0], lines[1].replace("1.000001", "a lot"), *lines[2:]]))
    code, _, err = _run(capsys, str(folder))
    assert code == 2
    assert "ledger.csv: line 2" in err
    assert "Traceback" not in err


def test_the_output_folder_is_a_file(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    code, _, err = _run(capsys, str(folder), "-o", str(tmp_path / "taken"))
    assert code == 5
    assert "taken" in err


def test_help_and_imports_stay_light() -> None:
    script = (
        "import sys, greentrain.cli.report, greentrain_reports.report, greentrain_datasets.carbon; "
        "print(sorted({'torch', 'pandas', 'sklearn', 'matplotlib', 'codecarbon'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=50)
    assert shown.stdout.strip() == "[]"
