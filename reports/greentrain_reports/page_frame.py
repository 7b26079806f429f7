"""What every page shares: style, script and the policy that forbids everything else."""

from __future__ import annotations

import base64
import functools
import hashlib
from pathlib import Path
from string import Template

from greentrain.version import VERSION
from greentrain_reports.markup import Html, esc

__all__ = ["whole_page"]

_HERE = Path(__file__).parent


def whole_page(title: str, body: Html) -> str:
    """A self-contained page. Its content security policy allows its own style and its own script, nothing else.

    Args:
        title: Shown by the browser.
        body: What stands in ``<main>``.
    """
    script = _text("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(_text("report.html")).substitute(
        version=esc(VERSION), title=esc(title), css=_text("report.css"), body=body, script=script,
        script_sha256=f"sha256-{digest}",
    )  # fmt: skip


@functools.cache
def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8").strip()
