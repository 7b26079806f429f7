"""A smart plug on the local network: what the device draws from the wall, power supply included.

Shelly (second generation and later)   GET /rpc/Switch.GetStatus?id=0     apower, watts
Tasmota                                GET /cm?cmnd=Status%208            StatusSNS.ENERGY.Power, watts

The plug is named as ``wall:URL`` (``--wall-url`` on the command line), or once for a machine in
``/etc/greentrain/wall-url``. Nothing leaves the local network. For a plug that asks for a password the URL is
``http://USER:PASSWORD@HOST`` (Shelly's user is ``admin``); it is shown and kept nowhere without these left out. Tasmota
gets them in the address, as it asks for; a command line is seen by everybody on the machine, that file need not be.
"""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from greentrain.device import Device
from greentrain.errors import UnavailableError, UsageError
from greentrain.power import Source
from greentrain.reading import Channel, Clock, Sample, Scope
from greentrain_harness.meters._credentials import Credentials, credentials_in, without_password
from greentrain_harness.meters._files import read_text

__all__ = ["URL_FILE", "WallMeter", "detect", "open_meter", "open_plug"]

URL_FILE = Path("etc/greentrain/wall-url")

_RATE_HZ = 2.0
_TIMEOUT_S = 0.8
_MOST_BYTES = 1 << 16
_HINT = "Give its address, such as --wall-url http://192.168.1.20, and check it with a browser."


class _Shelly(msgspec.Struct, frozen=True):
    apower: float


class _TasmotaEnergy(msgspec.Struct, frozen=True, rename={"power": "Power"}):
    power: float


class _TasmotaSensors(msgspec.Struct, frozen=True, rename={"energy": "ENERGY"}):
    energy: _TasmotaEnergy


class _TasmotaRefusal(msgspec.Struct, frozen=True, rename={"warning": "WARNING"}):
    warning: str


class _Tasmota(msgspec.Struct, frozen=True, rename={"sensors": "StatusSNS"}):
    sensors: _TasmotaSensors


@dataclass(frozen=True)
class _Kind:
    """A plug's interface.

    Attributes:
        name: For people.
        path: What is asked for.
        power_w: Watts in the answer; raises DecodeError when there are none.
        offset_error_w: Stated offset, about half of the last digit and the meter chip's threshold.
    """

    name: str
    path: str
    power_w: Callable[[bytes], float]
    offset_error_w: float


_KINDS = (
    _Kind("Shelly", "/rpc/Switch.GetStatus?id=0", lambda body: msgspec.json.decode(body, type=_Shelly).apower, 0.3),
    _Kind(
        "Tasmota",
        "/cm?cmnd=Status%208",
        lambda body: msgspec.json.decode(body, type=_Tasmota).sensors.energy.power,
        1.0,
    ),
)


class _Plug:
    """A kept-open HTTP connection to a plug."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        try:
            host, port = parts.hostname, parts.port or 80
        except ValueError:
            host, port = None, 0
        if parts.scheme != "http" or host is None or parts.path.strip("/") or parts.query:
            raise UsageError(
                f"the plug's URL is {without_password(url)!r}, expected http://HOST or http://HOST:PORT.", hint=_HINT
            )
        self.credentials: Credentials | None = credentials_in(parts.username, parts.password)
        self.address = f"{host}:{port}"
        self._connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of an answer; a plug that asks for a password is given it.

        Raises:
            OSError: The plug cannot be reached.
            HTTPException: It does not speak HTTP.
        """
        status, body, challenge = self._get(path)
        if status == 401 and self.credentials is not None and self.credentials.accept(challenge):
            status, body, _ = self._get(path)
        return status, body

    def _get(self, path: str) -> tuple[int, bytes, str]:
        """Status, body, and what the plug wants to be told."""
        secret = {} if self.credentials is None else self.credentials.header("GET", path)
        try:
            self._connection.request("GET", path, headers={"Accept": "application/json", **secret})
            answer = self._connection.getresponse()
            body = answer.read(_MOST_BYTES)
            if not answer.isclosed():
                self._connection.close()
            return answer.status, body, answer.headers.get("WWW-Authenticate", "")
        except (OSError, http.client.HTTPException):
            # The next request opens a new connection.
            self._connection.close()
            raise

    def close(self) -> None:
        self._connection.close()


class WallMeter:
    """Watts at the wall."""

    def __init__(self, plug: _Plug, kind: _Kind, *, clock: Clock = time.monotonic) -> None:
        self._plug = plug
        self._kind = kind
        self._clock = clock
        self._closed = False
        self.name = "wall"
        self.source: Source = "measured"
        self.scope: Scope = "board"
        self.rate_hz = _RATE_HZ
        self.note = f"{kind.name} plug at {plug.address}: all that it feeds, power supply included"
        self.channels = (
            # 1 % by the makers; comparisons with laboratory meters scatter by about twice that.
            Channel(
                name="wall", quantity="power_w", gain_error_ratio=0.02, offset_error_w=kind.offset_error_w, update_s=1.0
            ),
        )

    def sample(self) -> Sample:
        """Ask the plug; None when it does not answer in time."""
        before_s = self._clock()
        power_w = None if self._closed else _ask(self._plug, self._kind)
        return Sample(t_s=(before_s + self._clock()) / 2, values=(power_w if isinstance(power_w, float) else None,))

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        self._closed = True
        self._plug.close()


def detect(sysroot: Path = Path("/")) -> str | None:
    """None when the plug that is named for this machine answers, else one sentence why not."""
    url = read_text(sysroot / URL_FILE)
    if not url:
        return f"no smart plug is named in {sysroot / URL_FILE}"
    try:
        open_plug(url).close()
    except (UnavailableError, UsageError) as error:
        return f"{sysroot / URL_FILE}: {error.message.rstrip('.')}"
    return None


def open_meter(*, sysroot: Path = Path("/"), device: Device | None = None) -> WallMeter:
    """Open the plug that is named for this machine.

    Args:
        sysroot: Prefix of /etc.
        device: Not needed.

    Raises:
        UnavailableError: None is named, or it does not answer.
    """
    del device
    url = read_text(sysroot / URL_FILE)
    if not url:
        raise UnavailableError(f"No smart plug: {detect(sysroot)}.", hint=_HINT)
    return open_plug(url)


def open_plug(url: str) -> WallMeter:
    """Open a plug by its address; which kind it is, its answers tell.

    Raises:
        UsageError: The URL is no local HTTP address.
        UnavailableError: It does not answer, or not with watts.
    """
    plug = _Plug(url)
    reasons: list[str] = []
    for kind in _KINDS:
        outcome = _ask(plug, kind)
        if isinstance(outcome, float):
            return WallMeter(plug, kind)
        reasons.append(f"{kind.name}: {outcome}")
    plug.close()
    raise UnavailableError(
        f"No smart plug answers with watts at {without_password(url)} ({'; '.join(reasons)}).", hint=_HINT
    )


def _ask(plug: _Plug, kind: _Kind) -> float | str:
    """Watts, or why there are none."""
    try:
        status, body = plug.get(kind.path)
        # Only who asks for it gets a password in clear.
        if status == 200 and plug.credentials is not None and _wants_user(body):
            status, body = plug.get(f"{kind.path}&{plug.credentials.query()}")
    except OSError as error:
        return "no answer in time" if isinstance(error, TimeoutError) else error.strerror or str(error)
    except http.client.HTTPException as error:
        return f"no HTTP ({type(error).__name__})"
    if status == 401 or (status == 200 and _wants_user(body)):
        return "asks for a password" if plug.credentials is None else "refuses this user and password"
    if status != 200:
        return f"status {status}"
    with contextlib.suppress(msgspec.DecodeError):
        power_w = kind.power_w(body)
        # A plug may show a trace of feeding back; no consumer gives energy.
        return max(power_w, 0.0)
    return "no watts in its answer"


def _wants_user(body: bytes) -> bool:
    """Whether this is Tasmota's refusal."""
    try:
        return "password" in msgspec.json.decode(body, type=_TasmotaRefusal).warning
    except msgspec.DecodeError:
        return False
