"""Power rails of a Jetson through the jtop service (package ``jetson-stats``, AGPL: an extra, imported only here).

For containers that see the service's socket but not the sensors' files; everywhere else ``ina3221`` is
faster and needs no service. jtop gives milliwatts about once a second and no joules; its ``avg`` is no
mean over time and its total on AGX Orin counts the DRAM rail twice, so that only its rails are taken.
"""

from __future__ import annotations

import importlib
import importlib.util
import queue
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from greentrain.device import Device
from greentrain.errors import UnavailableError
from greentrain.power import Source
from greentrain.reading import Channel, Clock, Sample, Scope
from greentrain_harness.meters._files import read_text
from greentrain_harness.meters.boards import GAIN_ERROR_RATIO, Board, identify_board, unknown_board

__all__ = ["INSTALL", "SOCKET", "START", "JtopMeter", "detect", "open_meter", "rail_powers_w"]

SOCKET = Path("run/jtop.sock")
INSTALL = "pip install jetson-stats && sudo systemctl restart jtop.service"
START = "sudo systemctl start jtop.service && sudo usermod -aG jtop $USER   # then log in again"
_INTERVAL_S = 0.5
_SILENT_S = 10.0


class JtopMeter:
    """Every rail that the jtop service reports, in watts."""

    def __init__(
        self, client: Any, channels: tuple[Channel, ...], *, interval_s: float, note: str,
        clock: Clock = time.monotonic,
    ) -> None:  # fmt: skip
        self._client = client
        self._clock = clock
        self._closed = False
        self._changed_s = clock()
        self._said: object = None
        self.name = "jtop"
        self.source: Source = "measured"
        self.scope: Scope = "board"
        self.channels = channels
        self.rate_hz = 1.0 / interval_s
        self.note = note

    def sample(self) -> Sample:
        """The rails of the service's last message; None once the service has died."""
        t_s = self._clock()
        powers_w = rail_powers_w(self._client.power) if self._speaks(t_s) else {}
        return Sample(t_s=t_s, values=tuple(powers_w.get(channel.name) for channel in self.channels))

    def close(self) -> None:
        """Leave the service; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._client.close()

    def _speaks(self, t_s: float) -> bool:
        """Whether messages still come.

        The client is a thread that ends when its connection does. But a killed service may leave the process
        behind that answers clients, always with the same message: power and memory never stand still that long.
        """
        if self._closed or not self._client.is_alive():
            return False
        said = (self._client.power, self._client.memory)
        if said != self._said:
            self._said, self._changed_s = said, t_s
        return t_s - self._changed_s < _SILENT_S


def rail_powers_w(power: object) -> dict[str, float]:
    """Watts by rail in ``jtop.power``: the rails and, where it is a rail itself, the total; nothing if damaged."""
    if not isinstance(power, Mapping):
        return {}
    said = cast("Mapping[str, Any]", power)
    rails: dict[str, Any] = dict(said.get("rail") or {})
    total = said.get("tot") or {}
    # The input rail of the board is moved out of the rails, under its name.
    if "name" in total:
        rails[str(total["name"])] = total
    return {
        name: max(float(rail["power"]), 0.0) / 1e3
        for name, rail in rails.items()
        if isinstance(rail, Mapping) and isinstance(cast("Mapping[str, Any]", rail).get("power"), (int, float))
    }


def detect(sysroot: Path = Path("/")) -> str | None:
    """None when a jtop service reports a rail, else one sentence why not."""
    outcome = _connect(sysroot)
    if isinstance(outcome, str):
        return outcome
    outcome[0].close()
    return None


def open_meter(*, sysroot: Path = Path("/"), device: Device | None = None) -> JtopMeter:
    """Connect to the jtop service.

    Args:
        sysroot: Where the socket is looked for; the client itself only knows ``/run/jtop.sock``.
        device: Not needed.

    Raises:
        UnavailableError: The package, the service or a permission is missing.
    """
    del device
    outcome = _connect(sysroot)
    if isinstance(outcome, str):
        hint = f"Run: {INSTALL if 'not installed' in outcome else START}"
        raise UnavailableError(f"No jtop service: {outcome}.", hint=hint)
    client, rails_w = outcome
    board = _board(sysroot, rails_w)
    interval_s = float(client.interval)
    channels = tuple(
        Channel(
            name=rail.label, quantity="power_w", parent=rail.parent, gain_error_ratio=GAIN_ERROR_RATIO,
            offset_error_w=rail.offset_error_w, update_s=interval_s,
        )
        for rail in board.rails
        if rail.label in rails_w
    )  # fmt: skip
    note = f"{board.model} through jtop every {interval_s:g} s; total = {' + '.join(r.label for r in board.roots)}"
    return JtopMeter(client, channels, interval_s=interval_s, note=note)


def _connect(sysroot: Path) -> tuple[Any, dict[str, float]] | str:
    """A started client and its first rails, or why there is none."""
    if importlib.util.find_spec("jtop") is None:
        return f"the package jetson-stats is not installed (it would use {sysroot / SOCKET})"
    # Looked for first: without it the client gives up only after a while, and says less.
    if not (sysroot / SOCKET).exists():
        return f"no jtop service listens at {sysroot / SOCKET}"
    if sysroot != Path("/"):
        return f"the jtop client knows only /{SOCKET}, not a tree under {sysroot}"
    package: Any = importlib.import_module("jtop")
    client: Any = package.jtop(interval=_INTERVAL_S)
    try:
        client.start()
        answered = client.ok()
    except package.JtopException as error:
        return f"jtop refuses: {' '.join(str(error).split())}"
    except (OSError, EOFError, ValueError, queue.Empty) as error:
        return f"/{SOCKET} gives no answer ({type(error).__name__})"
    rails_w = rail_powers_w(client.power) if answered else {}
    why_not = None if rails_w else "the jtop service reports no power rail"
    board = _board(sysroot, rails_w)
    missing = [rail.label for rail in board.roots if rail.label not in rails_w]
    if why_not is None and missing:
        why_not = (
            f"jtop lacks the rail {' and '.join(missing)} of this {board.model}, so that its total would be partial"
        )
    if why_not is not None:
        client.close()
        return why_not
    return client, rails_w


def _board(sysroot: Path, rails_w: Mapping[str, float]) -> Board:
    text = read_text(sysroot / "proc/device-tree/compatible") or ""
    parts = [entry for entry in text.split("\0") if entry]
    return identify_board(compatible=parts, labels=tuple(rails_w)) or unknown_board(tuple(rails_w))
