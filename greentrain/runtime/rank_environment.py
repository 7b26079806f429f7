"""Which device a process is, and where the first one listens, from the variables of a launcher.

torchrun sets ``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT``; Slurm ``SLURM_PROCID``,
``SLURM_NTASKS`` and the address of the launching node; a Kubernetes indexed Job ``JOB_COMPLETION_INDEX``, to which its
file adds the address of pod 0. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from greentrain.errors import UsageError

__all__ = ["COORDINATOR", "DEVICE_ID", "Seat", "seat_from"]

DEVICE_ID = "GREENTRAIN_DEVICE_ID"
COORDINATOR = "GREENTRAIN_COORDINATOR"

# torchrun's own store listens at MASTER_PORT.
_BESIDE_TORCHRUN = 1
_DEFAULT_PORT = 29400

_RANKS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"), ("JOB_COMPLETION_INDEX", None))


class Seat(NamedTuple):
    """A process's place in a run.

    Attributes:
        device: Its device of the plan.
        host: Address of the plan's first device.
        port: Port at which that one listens.
    """

    device: str
    host: str
    port: int


def seat_from(environ: Mapping[str, str], devices: Sequence[str], *, hostname: str) -> Seat:
    """Find a process's seat.

    The device is ``GREENTRAIN_DEVICE_ID``; else the one that is called as this host; else the one at the position of
    the rank. The first device's address is ``GREENTRAIN_COORDINATOR`` (HOST:PORT); else the launcher's master, on
    the port after its own.

    Args:
        environ: Environment variables.
        devices: The plan's devices by rank.
        hostname: This host's name.

    Raises:
        UsageError: A variable is missing or wrong, or there are more or fewer processes than devices.
    """
    return Seat(_device(environ, devices, hostname), *_coordinator(environ))


def _device(environ: Mapping[str, str], devices: Sequence[str], hostname: str) -> str:
    rank = _rank(environ, len(devices))
    named = environ.get(DEVICE_ID)
    if named is not None:
        if named not in devices:
            raise UsageError(f"{DEVICE_ID} is {named!r}, the plan has {', '.join(devices)}.")
        return named
    short = hostname.partition(".")[0]
    if short in devices:
        return short
    if rank is None:
        raise UsageError(
            "no launcher's rank is in the environment.",
            hint=f"Start through torchrun, srun or a Kubernetes indexed Job, or set {DEVICE_ID}.",
        )
    return devices[rank]


def _rank(environ: Mapping[str, str], devices_n: int) -> int | None:
    """The rank that a launcher gave; None without a launcher."""
    for rank_name, world_name in _RANKS:
        if rank_name not in environ:
            continue
        rank = _whole(environ, rank_name)
        world = _whole(environ, world_name) if world_name is not None else devices_n
        if world != devices_n or rank >= devices_n:
            raise UsageError(
                f"{rank_name} is {rank} of {world} processes, the plan has {devices_n} devices.",
                hint="Start one process per device of the plan.",
            )
        return rank
    return None


def _coordinator(environ: Mapping[str, str]) -> tuple[str, int]:
    given = environ.get(COORDINATOR)
    if given is not None:
        host, separator, port = given.rpartition(":")
        if not separator or not host or not port.isdigit():
            raise UsageError(f"{COORDINATOR} is {given!r}, expected HOST:PORT.")
        return host, int(port)
    if "MASTER_ADDR" in environ:
        port = _whole(environ, "MASTER_PORT") + _BESIDE_TORCHRUN if "MASTER_PORT" in environ else _DEFAULT_PORT
        return environ["MASTER_ADDR"], port
    for name in ("SLURM_LAUNCH_NODE_IPADDR", "SLURM_SRUN_COMM_HOST"):
        if name in environ:
            return environ[name], _DEFAULT_PORT
    raise UsageError(
        "the address of the plan's first device is not in the environment.",
        hint=f"Set {COORDINATOR} to HOST:PORT, or MASTER_ADDR and MASTER_PORT.",
    )


def _whole(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "")
    if not text.isdigit():
        raise UsageError(
            f"{name} is {text!r}, expected a whole number.", hint="The launcher sets it; check its job file."
        )
    return int(text)
