"""Between the phases: each cached output goes from the device that computed it to the sample's owner."""

from __future__ import annotations

import struct
from typing import NamedTuple

import msgspec
import numpy as np
import torch
import torch.distributed as dist

from greentrain.plan import Plan
from greentrain.runtime.cache_stores import Stores, computed_samples
from greentrain.runtime.group import RunGroup

__all__ = ["Traffic", "redistribute"]

_CHUNK_BYTES = 1 << 18
_HEAD = struct.Struct("<I")


class Traffic(NamedTuple):
    """Payload bytes that a device sent and received."""

    sent_bytes: int
    received_bytes: int


def redistribute(
    group: RunGroup, devices: tuple[str, ...], stores: Stores, first: Plan, order: np.ndarray, owned: np.ndarray
) -> Traffic:
    """Ask every device that computed something of this device's samples for it. Call once on every rank.

    Args:
        group: All devices of both phases.
        devices: Its ranks.
        stores: This device's caches, opened.
        first: Plan of epoch 1.
        order: Samples in the order of epoch 1.
        owned: Samples that this device keeps.
    """
    sent = received = 0
    with group.talking():
        for step in range(1, len(devices)):
            asked, asking = (group.rank + step) % len(devices), (group.rank - step) % len(devices)
            (start, stop), computed = computed_samples(first, devices[asked], order)
            theirs = np.intersect1d(computed, owned)
            for layer in stores.layers:
                # Every rank asks for every output, so that asking and answering keep step.
                wanted = theirs if start <= layer < stop else theirs[:0]
                lacking = stores.missing(wanted, look=False).get(layer, wanted[:0]) if len(wanted) else wanted
                question = msgspec.json.encode(lacking.tolist())
                heard = _exchange(question, asked, asking)
                reply = _answer(stores, layer, msgspec.json.decode(heard, type=list[int]))
                found = _exchange(reply, asking, asked)
                _keep(stores, layer, lacking, found)
                sent += len(question) + len(reply)
                received += len(heard) + len(found)
    stores.flush()
    return Traffic(sent, received)


def _answer(stores: Stores, layer: int, samples: list[int]) -> bytes:
    """Length and bytes of every record; a length of 0 where it is not there."""
    parts: list[bytes] = []
    for sample in samples:
        record = stores.record(layer, sample) or b""
        parts += [_HEAD.pack(len(record)), record]
    return b"".join(parts)


def _keep(stores: Stores, layer: int, samples: np.ndarray, data: bytes) -> None:
    place = 0
    for sample in samples.tolist():
        (length,) = _HEAD.unpack_from(data, place)
        place += _HEAD.size
        if length:
            stores.put_record(layer, sample, data[place : place + length])
        place += length


def _exchange(data: bytes, dst: int, src: int) -> bytes:
    """Send bytes to one rank and receive from another, chunk by chunk, so that none is silent for long."""
    lengths = torch.tensor([len(data)], dtype=torch.int64), torch.empty(1, dtype=torch.int64)
    _swap(lengths[0], lengths[1], dst, src)
    outgoing = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    incoming = torch.empty(int(lengths[1].item()), dtype=torch.uint8)
    for start in range(0, max(len(outgoing), len(incoming)), _CHUNK_BYTES):
        _swap(outgoing[start : start + _CHUNK_BYTES], incoming[start : start + _CHUNK_BYTES], dst, src)
    return incoming.numpy().tobytes()


def _swap(outgoing: torch.Tensor, incoming: torch.Tensor, dst: int, src: int) -> None:
    work = dist.isend(outgoing, dst=dst) if len(outgoing) else None
    if len(incoming):
        dist.recv(incoming, src=src)
    if work is not None:
        work.wait()
