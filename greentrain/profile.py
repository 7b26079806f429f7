"""LayerProfile, LayerTimes, ModelProfile: what each block of a model costs, per device kind and point."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from greentrain._checks import require, require_id, require_non_negative, require_positive
from greentrain.batch_fits import BatchFit, fit_batch, interpolate_batch_s
from greentrain.device import Provenance
from greentrain.errors import UsageError

__all__ = ["BatchFit", "LayerProfile", "LayerTimes", "ModelProfile", "RingProfile", "interpolate_batch_s"]


class RingProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a block's sharing inside a sample moves; see :mod:`greentrain.sharing`.

    Attributes:
        hidden_bytes: Bytes per sample of its first output tensor, the hidden state.
        key_value_bytes: Bytes per sample of the keys and values of its self-attention.
        parts_n: Parts around a residual: attention, feed-forward, and perhaps attention to another sequence.
        sum_bytes: Bytes of its trainable parameters that every device of a ``tensor_sequence`` group holds whole
            but sees on its own tokens only: normalisations, and the biases of the projections back to the width.
    """

    hidden_bytes: int
    key_value_bytes: int = 0
    parts_n: int = 2
    sum_bytes: int = 0

    def __post_init__(self) -> None:
        require_non_negative(
            hidden_bytes=self.hidden_bytes, key_value_bytes=self.key_value_bytes, parts_n=self.parts_n,
            sum_bytes=self.sum_bytes,
        )  # fmt: skip


class LayerProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One block of a model, independent of the device.

    Attributes:
        name: The block's name.
        param_bytes: Bytes of its trainable parameters.
        frozen_bytes: Bytes of its parameters that are never trained; they need memory, but no gradient.
        heads: Units over which a group can share its work inside a sample, one per head of keys and values; 0 = every
            device of such a group computes it whole.
        sequence: Tokens per sample of its first output tensor; 0 = its samples have none.
        activation_bytes: Bytes per sample of its output, which cross a link when the pipeline is cut after it.
        gradient_bytes: Bytes per sample of the gradient that crosses the same cut backwards.
        stash_bytes: Bytes per sample kept from the forward pass for the backward pass.
        forward_flop: Floating-point operations per sample of the forward pass.
        rings: What sharing inside a sample moves; None: two parts, whose hidden state is the whole output, keys and
            values of twice that size, and no weights that need a sum.
    """

    name: str
    param_bytes: int
    activation_bytes: int
    gradient_bytes: int
    stash_bytes: int
    forward_flop: float
    frozen_bytes: int = 0
    heads: int = 0
    sequence: int = 0
    rings: RingProfile | None = None

    def __post_init__(self) -> None:
        require_non_negative(
            param_bytes=self.param_bytes,
            frozen_bytes=self.frozen_bytes,
            activation_bytes=self.activation_bytes,
            gradient_bytes=self.gradient_bytes,
            stash_bytes=self.stash_bytes,
            forward_flop=self.forward_flop,
            heads=self.heads,
            sequence=self.sequence,
        )
        require(
            self.hidden_bytes <= self.activation_bytes,
            f"layer {self.name!r}: the hidden state has {self.hidden_bytes} bytes of {self.activation_bytes} in all",
        )

    @property
    def hidden_bytes(self) -> int:
        """Bytes per sample of the hidden state behind the block."""
        return self.activation_bytes if self.rings is None else self.rings.hidden_bytes

    @property
    def key_value_bytes(self) -> int:
        """Bytes per sample of its keys and values."""
        return 2 * self.activation_bytes if self.rings is None else self.rings.key_value_bytes

    @property
    def parts_n(self) -> int:
        """Parts around a residual."""
        return 2 if self.rings is None else self.rings.parts_n

    @property
    def side_gradient_bytes(self) -> int:
        """Bytes per sample of the gradients of other tensors than the hidden state behind the block."""
        return max(self.gradient_bytes - self.hidden_bytes, 0)


class LayerTimes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Time of each layer over the batch size, on one device kind at one operating point.

    Attributes:
        model: Name of the model.
        kind: Device kind.
        point: Operating point.
        batch_B: Batch sizes, rising.
        forward_s_LB: Seconds of the forward pass, layer by batch.
        backward_s_LB: Seconds of the backward pass, layer by batch.
        update_s_L: Seconds of the optimizer step per layer.
        provenance: Where the figures come from.
    """

    model: str
    kind: str
    point: str
    batch_B: tuple[int, ...]
    forward_s_LB: tuple[tuple[float, ...], ...]
    backward_s_LB: tuple[tuple[float, ...], ...]
    update_s_L: tuple[float, ...]
    provenance: Provenance

    def __post_init__(self) -> None:
        require_id(self.kind, what="device kind")
        require_id(self.point, what="operating point")
        rising = all(low < high for low, high in zip(self.batch_B, self.batch_B[1:], strict=False))
        require(len(self.batch_B) > 0 and self.batch_B[0] >= 1 and rising, "batch_B must rise from at least 1")
        layers = len(self.update_s_L)
        require(len(self.forward_s_LB) == len(self.backward_s_LB) == layers, "times must cover the same layers")
        for row in (*self.forward_s_LB, *self.backward_s_LB):
            require(len(row) == len(self.batch_B), "every layer needs one time per batch size")
            for value in row:
                require_non_negative(time_s=value)
        for value in self.update_s_L:
            require_non_negative(update_s=value)
        takes_time = any(value > 0 for row in (*self.forward_s_LB, *self.backward_s_LB) for value in row)
        require(takes_time, f"every time of kind {self.kind!r} at point {self.point!r} is 0")

    def extrapolated(self, batch: int) -> bool:
        """Whether a batch size lies outside the measured ones, so that its time is a guess."""
        return not self.batch_B[0] <= batch <= self.batch_B[-1]

    def fit(self) -> BatchFit:
        """Fit of the whole model's forward and backward time over the batch size, with its leave-one-out error."""
        rows = (*self.forward_s_LB, *self.backward_s_LB)
        return fit_batch(self.batch_B, tuple(sum(column) for column in zip(*rows, strict=True)))


class ModelProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model as a list of blocks: ``profiles/<model>.model.json`` plus the times of each device kind.

    Attributes:
        model: Name of the workload.
        structure_sha256: Hash of block names, shapes and dtypes; workers agree on it before the first tensor.
        layers: The blocks in order.
        input_bytes: Bytes per sample of the model's input.
        times: Layer times, at most one per (kind, point).
        workload: Where the model comes from when it is a user's own (``path/to/file.py:attribute``), else None.
    """

    model: str
    structure_sha256: str
    layers: tuple[LayerProfile, ...]
    input_bytes: int
    times: tuple[LayerTimes, ...] = ()
    workload: str | None = None

    def __post_init__(self) -> None:
        require(len(self.layers) > 0, "a model needs at least one layer")
        require_positive(input_bytes=self.input_bytes)
        seen: set[tuple[str, str]] = set()
        for times in self.times:
            key = (times.kind, times.point)
            require(key not in seen, f"two sets of layer times for kind {times.kind!r} at point {times.point!r}")
            require(
                len(times.update_s_L) == len(self.layers),
                f"times of kind {times.kind!r} cover {len(times.update_s_L)} layers, the model has {len(self.layers)}",
            )
            seen.add(key)

    def with_times(self, times: Iterable[LayerTimes]) -> ModelProfile:
        """The same model with these layer times in place of the present ones."""
        return msgspec.structs.replace(self, times=tuple(times))

    def times_of(self, kind: str, point: str) -> LayerTimes:
        """Layer times of a device kind at a point.

        Raises:
            UsageError: They were never measured or modelled.
        """
        for times in self.times:
            if times.kind == kind and times.point == point:
                return times
        raise UsageError(
            f"model {self.model!r} has no layer times for device kind {kind!r} at operating point {point!r}.",
            hint=f"Run: greentrain measure --model {self.model} on such a device, or use a catalogue kind.",
        )
