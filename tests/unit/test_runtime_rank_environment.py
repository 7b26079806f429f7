"""A process's seat from the variables of torchrun, Slurm and Kubernetes."""

from __future__ import annotations

import pytest

from greentrain.errors import UsageError
from greentrain.runtime.rank_environment import Seat, seat_from

DEVICES = ("orin", "nano", "laptop")
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "10.0.0.5", "MASTER_PORT": "29500"}
SLURM = {"SLURM_PROCID": "2", "SLURM_NTASKS": "3", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.6"}
KUBERNETES = {"JOB_COMPLETION_INDEX": "0", "GREENTRAIN_COORDINATOR": "train-0.train:29400"}


@pytest.mark.parametrize(
    ("environ", "hostname", "expected"),
    [
        # torchrun's own store has MASTER_PORT.
        (TORCHRUN, "somewhere", Seat("nano", "10.0.0.5", 29501)),
        (SLURM, "somewhere", Seat("laptop", "10.0.0.6", 29400)),
        (KUBERNETES, "somewhere", Seat("orin", "train-0.train", 29400)),
        (TORCHRUN, "laptop.home.lan", Seat("laptop", "10.0.0.5", 29501)),
        ({**TORCHRUN, "GREENTRAIN_DEVICE_ID": "orin"}, "laptop", Seat("orin", "10.0.0.5", 29501)),
        ({"GREENTRAIN_COORDINATOR": "10.0.0.7:5000"}, "nano", Seat("nano", "10.0.0.7", 5000)),
    ],
)
def test_each_launcher_says_who_and_where(environ: dict[str, str], hostname: str, expected: Seat) -> None:
    assert seat_from(environ, DEVICES, hostname=hostname) == expected


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({}, "no launcher's rank"),
        ({**TORCHRUN, "WORLD_SIZE": "4"}, "of 4 processes, the plan has 3 devices"),
        ({**TORCHRUN, "RANK": "3"}, "RANK is 3"),
        ({**TORCHRUN, "RANK": "one"}, "RANK is 'one', expected a whole number"),
        ({**TORCHRUN, "GREENTRAIN_DEVICE_ID": "tx2"}, "the plan has orin, nano, laptop"),
        ({"RANK": "0", "WORLD_SIZE": "3"}, "address of the plan's first device"),
        ({**KUBERNETES, "GREENTRAIN_COORDINATOR": "train-0"}, "expected HOST:PORT"),
    ],
)
def test_what_is_missing_or_wrong_is_named(environ: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        seat_from(environ, DEVICES, hostname="somewhere")
