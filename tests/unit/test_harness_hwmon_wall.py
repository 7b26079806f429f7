"""hwmon and battery sensors, the smart plug over real local HTTP, jtop's messages, RAPL's other shapes."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from greentrain.errors import UnavailableError, UsageError
from greentrain.reading import Meter
from greentrain_harness.meters import choose, hwmon, open_named, rapl, wall
from greentrain_harness.meters._credentials import Credentials, without_password
from greentrain_harness.meters.jtop import rail_powers_w
from greentrain_harness.meters.trees import write_rapl_tree


def total(meter: Meter) -> float:
    values = zip(meter.channels, meter.sample().values, strict=True)
    return sum(value or 0.0 for channel, value in values if channel.parent is None)


def chip(root: Path, number: int, **files: str) -> Path:
    folder = root / f"sys/class/hwmon/hwmon{number}"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")
    return folder


def battery(root: Path, name: str = "BAT0", status: str = "Discharging", **files: str) -> Path:
    folder = root / f"sys/class/power_supply/{name}"
    folder.mkdir(parents=True)
    for file, text in {"type": "Battery", "status": status, **files}.items():
        (folder / file).write_text(f"{text}\n")
    return folder


def test_a_discharging_battery_is_the_whole_machine(tmp_path: Path) -> None:
    folder = battery(tmp_path, voltage_now="12000000", current_now="-1500000")
    chip(tmp_path, 4, name="amdgpu", power1_average="9000000")
    meter = hwmon.open_meter(sysroot=tmp_path)
    assert total(meter) == pytest.approx(18.0)
    assert [channel.parent for channel in meter.channels] == [None, "battery-BAT0"]
    assert "the whole machine" in meter.note
    (folder / "status").write_text("Charging\n")
    assert meter.sample().values == (None, 9.0), "on the mains a battery knows nothing"


def test_two_batteries_add_up_and_a_mouse_does_not(tmp_path: Path) -> None:
    battery(tmp_path, power_now="6000000")
    battery(tmp_path, "BAT1", power_now="2500000")
    battery(tmp_path, "mouse", power_now="50000", scope="Device")
    assert total(hwmon.open_meter(sysroot=tmp_path)) == pytest.approx(8.5)


def test_a_gpu_alone_is_not_the_rest_of_the_machine(tmp_path: Path) -> None:
    battery(tmp_path, status="Full", power_now="0")
    chip(tmp_path, 0, name="amdgpu", power1_average="35000000", power1_label="PPT", power1_input="99000000")
    meter = hwmon.open_meter(sysroot=tmp_path)
    assert total(meter) == pytest.approx(35.0)
    assert "not the rest of the machine" in meter.note


def test_sockets_count_and_cores_do_not(tmp_path: Path) -> None:
    chip(
        tmp_path, 2, name="amd_energy", energy1_input="7000000", energy1_label="Ecore000",
        energy17_input="90000000", energy17_label="Esocket0",
    )  # fmt: skip
    meter = hwmon.open_meter(sysroot=tmp_path)
    assert [(channel.name, channel.quantity) for channel in meter.channels] == [("amd_energy-2-Esocket0", "energy_j")]
    assert meter.sample().values == (90.0,)


def test_an_unknown_sensor_is_named_but_not_used(tmp_path: Path) -> None:
    chip(tmp_path, 1, name="newchip", power1_input="5000000")
    why_not = hwmon.detect(tmp_path)
    assert why_not is not None
    assert "newchip" in why_not
    assert choose("auto", sysroot=tmp_path) == "modelled"


class Plug:
    """A smart plug on 127.0.0.1 that answers one path."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, str]] = {}
        self.refusal: Callable[[str, str], str] = lambda path, authorization: ""
        self.asked: list[tuple[str, str]] = []
        plug = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                authorization = self.headers.get("Authorization", "")
                plug.asked.append((self.path, authorization))
                challenge = plug.refusal(self.path, authorization)
                status, text = (401, "") if challenge else plug.answers.get(self.path, (404, "{}"))
                self.send_response(status)
                if challenge:
                    self.send_header("WWW-Authenticate", challenge)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                del format, args

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def shelly(self, power_w: object) -> None:
        body = {"id": 0, "source": "timer", "output": True, "apower": power_w, "voltage": 231.0,
                "aenergy": {"total": 12345.678, "by_minute": [1.0, 2.0, 3.0], "minute_ts": 1}}  # fmt: skip
        self.answers = {"/rpc/Switch.GetStatus?id=0": (200, json.dumps(body))}

    def tasmota(self, power_w: object) -> None:
        body = {
            "StatusSNS": {"Time": "2026-11-01T00:00:00", "ENERGY": {"Total": 3.1, "Power": power_w, "Voltage": 230}}
        }
        self.answers = {"/cm?cmnd=Status%208": (200, json.dumps(body))}


@pytest.fixture
def plug() -> Iterator[Plug]:
    plug = Plug()
    yield plug
    plug.server.shutdown()
    plug.server.server_close()


def test_shelly_and_tasmota_tell_watts(plug: Plug) -> None:
    plug.shelly(41.7)
    meter = open_named(f"wall:{plug.url}")
    assert meter.sample().values == (41.7,)
    assert "Shelly" in meter.note
    plug.shelly(-0.4)
    assert meter.sample().values == (0.0,)
    meter.close()
    assert meter.sample().values == (None,)
    plug.tasmota(12)
    meter = open_named(f"wall:{plug.url}/")
    assert meter.sample().values == (12.0,)
    assert "Tasmota" in meter.note
    meter.close()


@pytest.mark.parametrize("power_w", [None, "much", [1, 2], {"a": 1}])
def test_an_odd_answer_is_a_gap(power_w: object, plug: Plug) -> None:
    plug.shelly(5.0)
    meter = wall.open_plug(plug.url)
    plug.shelly(power_w)
    assert meter.sample().values == (None,)
    plug.answers = {"/rpc/Switch.GetStatus?id=0": (200, "<html>")}
    assert meter.sample().values == (None,)
    plug.shelly(6.0)
    assert meter.sample().values == (6.0,)
    meter.close()


def test_a_plug_that_has_gone_is_a_gap_and_says_so(plug: Plug) -> None:
    plug.shelly(5.0)
    meter = wall.open_plug(plug.url)
    plug.server.shutdown()
    plug.server.server_close()
    # The handler of the open connection answers on; a new connection is refused.
    meter.close()
    with pytest.raises(UnavailableError, match="No smart plug answers with watts at http://127"):
        wall.open_plug(plug.url)


def test_a_plug_that_wants_a_password_is_told(plug: Plug) -> None:
    plug.answers = {"/rpc/Switch.GetStatus?id=0": (401, "{}")}
    with pytest.raises(UnavailableError, match="Shelly: asks for a password"):
        wall.open_plug(plug.url)


def digest_guard(password: str, *, uses: int = 1000) -> Callable[[str, str], str]:
    """A second-generation Shelly's: a challenge until the answer is right; each nonce serves so many requests."""
    nonces: list[str] = []

    def guard(path: str, authorization: str) -> str:
        said = dict(re.findall(r'(\w+)="?([^",]+)"?', authorization.removeprefix("Digest ")))
        nonce, count = said.get("nonce", ""), int(said.get("nc", "0"), 16)
        secret, asked = (sha256(text.encode()).hexdigest() for text in (f"admin:plug:{password}", f"GET:{path}"))
        right = sha256(f"{secret}:{nonce}:{said.get('nc')}:{said.get('cnonce')}:auth:{asked}".encode()).hexdigest()
        if nonces and nonce == nonces[-1] and 1 <= count <= uses and said["response"] == right:
            return ""
        nonces.append(f"nonce{len(nonces)}")
        return f'Digest qop="auth", realm="plug", nonce="{nonces[-1]}", algorithm=SHA-256'

    return guard


@pytest.mark.parametrize("uses", [1, 1000])
def test_a_shelly_with_a_password(uses: int, plug: Plug) -> None:
    plug.shelly(41.7)
    plug.refusal = digest_guard("s/e:c r@t", uses=uses)
    url = plug.url.replace("//", "//admin:s%2Fe%3Ac%20r%40t@")
    meter = wall.open_plug(url)
    assert meter.sample().values == (41.7,)
    assert meter.sample().values == (41.7,)
    assert len(plug.asked) == (4 if uses > 1 else 6), "a challenge is asked for only when it is needed"
    assert "s/e" not in meter.note
    assert "admin" not in meter.note
    meter.close()


def test_a_wrong_password_is_told_and_not_shown(plug: Plug, tmp_path: Path) -> None:
    plug.shelly(41.7)
    plug.refusal = digest_guard("right")
    url = plug.url.replace("//", "//admin:xyzzy@")
    with pytest.raises(UnavailableError, match="Shelly: refuses this user and password") as caught:
        wall.open_plug(url)
    (tmp_path / "etc/greentrain").mkdir(parents=True)
    (tmp_path / wall.URL_FILE).write_text(f"{url}\n")
    for text in (str(caught.value), wall.detect(tmp_path) or ""):
        assert "refuses" in text
        assert "xyzzy" not in text
    assert not [path for path, _ in plug.asked if "xyzzy" in path], "nobody asked for it in clear"


def test_a_tasmota_with_a_password_gets_it_as_it_asks(plug: Plug) -> None:
    plug.tasmota(12)
    status = "/cm?cmnd=Status%208"
    told = plug.answers[status]
    refusal = (200, '{"WARNING":"Need user=<username>&password=<password>"}')
    plug.answers = {status: refusal, f"{status}&user=admin&password=a%26b": told}
    meter = wall.open_plug(plug.url.replace("//", "//admin:a%26b@"))
    assert meter.sample().values == (12.0,)
    meter.close()
    with pytest.raises(UnavailableError, match="Tasmota: asks for a password"):
        wall.open_plug(plug.url)
    plug.answers[f"{status}&user=admin&password=x"] = refusal
    with pytest.raises(UnavailableError, match="Tasmota: refuses this user"):
        wall.open_plug(plug.url.replace("//", "//admin:x@"))


def test_basic_and_unknown_challenges(plug: Plug) -> None:
    plug.shelly(3.0)
    plug.refusal = lambda path, said: "" if said == "Basic YWRtaW46cHc=" else 'Basic realm="plug"'
    meter = wall.open_plug(plug.url.replace("//", "//admin:pw@"))
    assert meter.sample().values == (3.0,)
    meter.close()
    for challenge in ("", "Negotiate", 'Digest realm="p", nonce="n", algorithm=SHA-512, qop="auth"'):
        assert not Credentials("admin", "pw").accept(challenge)
    assert "pw" not in repr(Credentials("admin", "pw"))


@pytest.mark.parametrize("text", ["wall:http://admin:s@e/c@host:80", "ftp://admin:se@c@h"])
def test_passwords_are_left_out_of_texts(text: str) -> None:
    assert without_password(text) in {"wall:http://host:80", "ftp://h"}
    with pytest.raises(UsageError) as caught:
        choose(text.replace("wall:", "plug:"))
    assert "admin" not in caught.value.message


@pytest.mark.parametrize("url", ["192.168.1.20", "https://plug", "http://", "http://h/path", "http://h:99999999"])
def test_a_wrong_address_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError, match="expected http://HOST"):
        wall.open_plug(url)


def test_a_plug_may_be_named_for_the_machine(plug: Plug, tmp_path: Path) -> None:
    plug.shelly(7.5)
    (tmp_path / "etc/greentrain").mkdir(parents=True)
    (tmp_path / wall.URL_FILE).write_text(plug.url + "\n")
    assert wall.detect(tmp_path) is None
    meter = open_named("wall", sysroot=tmp_path)
    assert meter.sample().values == (7.5,)
    meter.close()
    (tmp_path / wall.URL_FILE).write_text("nonsense\n")
    assert "expected http" in (wall.detect(tmp_path) or "")


def test_jtop_messages_become_rails() -> None:
    message = {
        "rail": {"VDD_SOC": {"volt": 5000, "curr": 300, "power": 1500, "avg": 9999}, "odd": {"online": True}},
        "tot": {"name": "VDD_IN", "power": 8000, "avg": 1},
    }
    assert rail_powers_w(message) == {"VDD_SOC": 1.5, "VDD_IN": 8.0}
    assert rail_powers_w({"rail": {"GPU": {"power": 5}}, "tot": {"power": 5, "avg": 5}}) == {"GPU": 0.005}
    assert rail_powers_w({}) == rail_powers_w(None) == {}


def test_a_machine_with_only_psys_or_only_mmio(tmp_path: Path) -> None:
    write_rapl_tree(tmp_path / "a", [("intel-rapl:0", "psys")])
    meter = rapl.open_meter(sysroot=tmp_path / "a")
    assert [channel.name for channel in meter.channels] == ["psys"]
    assert "whole platform" in meter.note
    write_rapl_tree(tmp_path / "b", [("intel-rapl-mmio:0", "package-0"), ("intel-rapl:0", "psys")])
    assert [channel.name for channel in rapl.open_meter(sysroot=tmp_path / "b").channels] == ["package-0"]
