"""Computing in fewer bits where a device has them: autocast around the passes, and a loss scale for float16."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from greentrain.runtime.options import Precision

__all__ = ["LossScale", "autocast", "compute_type"]

# Generations of NVIDIA GPUs that compute in bfloat16 natively: Ampere and later, so Orin but not Xavier or Nano.
_NATIVE_BF16 = (8, 0)

_FIRST_SCALE = 65536.0
_GROWS_AFTER_ROUNDS = 2000


def compute_type(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The type that a device multiplies in; None: that of the weights. Devices of one run may differ under ``auto``."""
    if precision == "auto":
        native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= _NATIVE_BF16
        return torch.bfloat16 if native else None
    return {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[object]:
    """What a forward pass runs in; the backward pass follows it."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


@dataclass
class LossScale:
    """A factor on the loss that keeps small float16 gradients from vanishing (Micikevicius et al., ICLR 2018).

    All ranks move it alike: by the norm of the whole model's gradient, which they share. torch's GradScaler looks at
    one process's gradients only.

    Attributes:
        factor: The factor of this round.
    """

    factor: float = _FIRST_SCALE
    _good_n: int = 0

    def undo(self, parameters: Sequence[nn.Parameter], scaled_norm: float) -> bool:
        """Take the factor out of the gradients again and choose the next round's.

        Args:
            parameters: This device's parameters.
            scaled_norm: Norm of the whole model's gradient, the factor in it.

        Returns:
            Whether the gradients are numbers; if not, the round's update must be left out.
        """
        if not math.isfinite(scaled_norm):
            self.factor = max(self.factor / 2, 1.0)
            self._good_n = 0
            return False
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.div_(self.factor)
        self._good_n += 1
        if self._good_n % _GROWS_AFTER_ROUNDS == 0:
            self.factor *= 2
        return True
