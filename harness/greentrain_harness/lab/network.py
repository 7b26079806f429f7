"""The lab's network: a namespace per node, a bridge in a namespace of its own, both directions shaped.

Everything lives inside the lab's namespaces; the host's interfaces and routes are never touched. Rates
are kept by a token bucket on both ends of each node's virtual cable: the node's end shapes what it sends,
the switch's end what it receives.
"""

from __future__ import annotations

import ipaddress
import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence

from greentrain.errors import NotSupportedError, RunError, UnavailableError

__all__ = [
    "add_node",
    "add_switch",
    "check_delay",
    "free_subnet",
    "leftover_namespaces",
    "namespace_processes",
    "remove_namespace",
    "require_tools",
]

_BRIDGE = "lab0"
_TIMEOUT_S = 20.0

# The queue of the token bucket, as time at the shaped rate.
_QUEUE_MS = 50
# The bucket holds this much time at the shaped rate: long enough for late timers, short beside a message.
_BURST_S = 0.005
_MIN_BURST_BYTES = 16 * 1024


def require_tools() -> None:
    """Check that ``ip`` and ``tc`` are there.

    Raises:
        UnavailableError: One is missing.
    """
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        raise UnavailableError(
            f"the lab needs {' and '.join(missing)}, not found on PATH.", hint="Run: apt-get install iproute2"
        )


def free_subnet(taken: Iterable[str] = ()) -> ipaddress.IPv4Network:
    """The first 10.77.x.0/24 that neither a route of the host nor another lab uses.

    The lab is cut off from the host, so an overlap would do no harm to packets; it would mislead people.

    Args:
        taken: Further networks to avoid.

    Raises:
        UnavailableError: None is free.
    """
    routes = json.loads(_ip("-4", "-j", "route", "show", "table", "all") or "[]")
    destinations = [route["dst"] for route in routes if route["dst"] not in ("default", "0.0.0.0/0")]
    used = [ipaddress.IPv4Network(text, strict=False) for text in (*destinations, *taken)]
    for third in range(256):
        candidate = ipaddress.IPv4Network(f"10.77.{third}.0/24")
        if not any(candidate.overlaps(network) for network in used):
            return candidate
    raise UnavailableError(
        "no free network among 10.77.0.0/24 to 10.77.255.0/24: routes of this host cover them.",
        hint="Look at: ip route show table all",
    )


def add_switch(namespace: str) -> None:
    """Make the namespace that holds the bridge.

    Raises:
        UnavailableError: No permission, or the kernel has no namespaces.
        RunError: The kernel refused, for example because the namespace exists.
    """
    _ip("netns", "add", namespace)
    _ip("-n", namespace, "link", "set", "lo", "up")
    _ip("-n", namespace, "link", "add", _BRIDGE, "type", "bridge")
    _ip("-n", namespace, "link", "set", _BRIDGE, "up")


def check_delay(namespace: str) -> None:
    """Check, inside one of our namespaces, that this kernel can delay packets.

    Raises:
        NotSupportedError: It cannot.
    """
    result = _run(["tc", "-n", namespace, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"])
    if result.returncode != 0:
        raise NotSupportedError(
            "--latency needs the netem queueing discipline, which this kernel does not have.",
            hint="Leave --latency out (bandwidth is shaped without it), or use a kernel with CONFIG_NET_SCH_NETEM.",
        )
    _tc("-n", namespace, "qdisc", "del", "dev", "lo", "root")


def add_node(
    *, namespace: str, switch: str, port: str, address: str, bandwidth_bytes_per_s: float, latency_s: float
) -> None:
    """Make a node's namespace and join it to the bridge.

    Args:
        namespace: The node's namespace, made here.
        switch: Namespace of the bridge.
        port: Name of the bridge's end of the cable.
        address: IPv4 address with prefix length.
        bandwidth_bytes_per_s: Rate in each direction.
        latency_s: One-way delay towards this node, seconds.

    Raises:
        UnavailableError: No permission.
        RunError: The kernel refused.
    """
    _ip("netns", "add", namespace)
    _ip("link", "add", "eth0", "netns", namespace, "type", "veth", "peer", "name", port, "netns", switch)
    _ip("-n", switch, "link", "set", port, "master", _BRIDGE, "up")
    _ip("-n", namespace, "link", "set", "lo", "up")
    _ip("-n", namespace, "address", "add", address, "dev", "eth0")
    _ip("-n", namespace, "link", "set", "eth0", "up")
    # Discovery by multicast needs a route.
    _ip("-n", namespace, "route", "add", "224.0.0.0/4", "dev", "eth0")
    rate = _token_bucket(bandwidth_bytes_per_s)
    _tc("-n", namespace, "qdisc", "add", "dev", "eth0", "root", *rate)
    if latency_s > 0:
        delay = ("netem", "delay", f"{latency_s * 1e6:.0f}us", "limit", "10000")
        _tc("-n", switch, "qdisc", "add", "dev", port, "root", "handle", "1:", *delay)
        _tc("-n", switch, "qdisc", "add", "dev", port, "parent", "1:", "handle", "10:", *rate)
    else:
        _tc("-n", switch, "qdisc", "add", "dev", port, "root", *rate)


def _token_bucket(bandwidth_bytes_per_s: float) -> tuple[str, ...]:
    burst_bytes = max(_MIN_BURST_BYTES, round(bandwidth_bytes_per_s * _BURST_S))
    rate = f"{bandwidth_bytes_per_s * 8:.0f}bit"
    return ("tbf", "rate", rate, "burst", f"{burst_bytes}b", "latency", f"{_QUEUE_MS}ms")


def leftover_namespaces(pattern: re.Pattern[str]) -> tuple[str, ...]:
    """Namespaces whose whole name matches, sorted."""
    listed = (line.split()[0] for line in _ip("netns", "list").splitlines() if line.strip())
    return tuple(sorted(name for name in listed if pattern.fullmatch(name)))


def namespace_processes(namespace: str) -> tuple[int, ...]:
    """Processes inside a namespace; none when it is gone."""
    result = _run(["ip", "netns", "pids", namespace])
    return tuple(int(line) for line in result.stdout.split()) if result.returncode == 0 else ()


def remove_namespace(namespace: str) -> None:
    """Remove a namespace with its interfaces.

    Raises:
        RunError: The kernel refused.
    """
    _ip("netns", "delete", namespace)


def _ip(*arguments: str) -> str:
    return _checked(["ip", *arguments])


def _tc(*arguments: str) -> str:
    return _checked(["tc", *arguments])


def _checked(argv: Sequence[str]) -> str:
    result = _run(argv)
    if result.returncode == 0:
        return result.stdout
    said = " ".join(result.stderr.split()) or f"exit code {result.returncode}"
    message = f"{' '.join(argv)!r} failed: {said.removesuffix('.')}."
    if "not permitted" in said or "Permission denied" in said:
        raise UnavailableError(message, hint="Run as root with CAP_NET_ADMIN and CAP_SYS_ADMIN.")
    raise RunError(message, hint="The lab needs network namespaces, veth, bridge and sch_tbf in the kernel.")


def _run(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except FileNotFoundError as error:
        raise UnavailableError(f"{argv[0]!r} is not on PATH.", hint="Run: apt-get install iproute2") from error
    except subprocess.TimeoutExpired as error:
        raise RunError(
            f"{' '.join(argv)!r} did not end within {_TIMEOUT_S:g} s.", hint="Look at dmesg, then try again."
        ) from error
