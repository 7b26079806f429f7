"""The commands of the README's quick start, run as written in an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def quick_start() -> list[str]:
    text = README.read_text(encoding="utf-8")
    match = re.search(
        r"<!-- quick start: run by tests/cluster/test_readme\.py -->\n```console\n(.*?)```", text, re.DOTALL
    )
    assert match is not None, "the README has no quick start"
    return [line.removeprefix("$ ") for line in match.group(1).splitlines() if line.startswith("$ ")]


@pytest.mark.timeout(180)
def test_quick_start_runs_as_written(tmp_path: Path) -> None:
    commands = quick_start()
    assert len(commands) >= 7
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    output = ""
    for command in commands:
        done = subprocess.run(
            shlex.split(command),
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        output += done.stdout
    assert (tmp_path / "runs/first/report.html").stat().st_size > 10_000
    # Whatever sensors this machine has, every joule says where it comes from.
    assert re.search(r"source=(measured|modelled)", output)
