"""Where a worker computes: the processor, or a GPU whose messages go through the processor's memory."""

from __future__ import annotations

import torch

from greentrain.errors import UnavailableError, UsageError

__all__ = ["torch_device"]


def torch_device(text: str) -> torch.device:
    """The device of ``cpu``, ``cuda``, ``cuda:N``, or ``auto``: a GPU where there is one.

    Raises:
        UsageError: It is none of these.
        UnavailableError: This machine or this PyTorch has no such GPU.
    """
    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
    kind, separator, index = text.partition(":")
    if kind not in ("cpu", "cuda") or (separator and (kind == "cpu" or not index.isdigit())):
        raise UsageError(f"--torch-device is {text!r}, expected auto, cpu, cuda or cuda:N.")
    if kind == "cpu":
        return torch.device("cpu")
    number = int(index) if separator else 0
    if number >= torch.cuda.device_count():
        raise UnavailableError(
            f"--torch-device {text}: PyTorch {torch.__version__} sees {torch.cuda.device_count()} GPUs here.",
            hint="Install a PyTorch built for this GPU, or compute on the processor (--torch-device cpu).",
        )
    return torch.device("cuda", number)
