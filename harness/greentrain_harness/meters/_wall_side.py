"""What a board draws at the wall, from its rails and a correction that its owner states.

``wall = scale × (sum of the roots) + offset``: the scale stands for the power supply, the offset for the
carrier board, the fan and a disk. The rails are measured; the correction is not, so the total is modelled.
"""

from __future__ import annotations

import msgspec

from greentrain.errors import NotSupportedError, UsageError
from greentrain.power import Source
from greentrain.reading import Channel, Meter, Sample, Scope
from greentrain_harness.meters._roots import RootMeter, root_rate_hz
from greentrain_harness.meters._throttle import throttled_now

__all__ = ["WallSideMeter", "at_wall"]

_NAME = "wall-side"
# Nobody knows an offset or an efficiency better than this.
_CORRECTION_ERROR_RATIO = 0.2


class WallSideMeter:
    """A meter with one more channel, the wall, which feeds all others."""

    def __init__(self, meter: Meter, *, scale: float, offset_w: float) -> None:
        self._meter = meter
        self._scale = scale
        self._offset_w = offset_w
        self._roots = tuple(index for index, channel in enumerate(meter.channels) if channel.parent is None)
        self._start_s: float | None = None
        roots = [meter.channels[index] for index in self._roots]
        self.name = meter.name
        self.source: Source = "modelled"
        self.scope: Scope = meter.scope
        self.rate_hz = meter.rate_hz
        self.root_rate_hz = root_rate_hz(meter)
        self.note = f"total = {scale:g} × the rails + {offset_w:g} W, as stated by the user; {meter.note}"
        wall = Channel(
            name=_NAME,
            quantity=roots[0].quantity,
            gain_error_ratio=max(root.gain_error_ratio for root in roots)
            + _CORRECTION_ERROR_RATIO * (scale - 1.0) / scale,
            offset_error_w=scale * sum(root.offset_error_w for root in roots) + _CORRECTION_ERROR_RATIO * offset_w,
            update_s=max(root.update_s for root in roots),
        )
        inner = (msgspec.structs.replace(channel, parent=channel.parent or _NAME) for channel in meter.channels)
        self.channels = (wall, *inner)

    def sample(self) -> Sample:
        """The rails, and the wall computed from them; None where a root did not answer."""
        return self._with_wall(self._meter.sample())

    def sample_roots(self) -> Sample:
        """The wall from the rails that form it, where the meter can read them alone."""
        meter = self._meter
        return self._with_wall(meter.sample_roots() if isinstance(meter, RootMeter) else meter.sample())

    def _with_wall(self, sample: Sample) -> Sample:
        if self._start_s is None:
            self._start_s = sample.t_s
        roots = [sample.values[index] for index in self._roots]
        known = [value for value in roots if value is not None]
        wall: float | None = None
        if len(known) == len(roots):
            # A counter of joules grows by the offset in every second.
            seconds = sample.t_s - self._start_s if self.channels[0].quantity == "energy_j" else 1.0
            wall = self._scale * sum(known) + self._offset_w * seconds
        return Sample(t_s=sample.t_s, values=(wall, *sample.values))

    def throttled(self) -> tuple[str, ...] | None:
        """Why clocks are held back, as the meter says."""
        return throttled_now(self._meter)

    def close(self) -> None:
        """Close the meter."""
        self._meter.close()


def at_wall(meter: Meter, *, scale: float, offset_w: float) -> Meter:
    """The same meter with its total at the wall; the meter itself for scale 1 and offset 0.

    Raises:
        UsageError: The scale is below 1, or the offset negative: no supply gives more than it takes.
        NotSupportedError: The meter's roots are partly watts and partly joules.
    """
    if not (scale >= 1.0 and offset_w >= 0.0):
        raise UsageError(
            f"the wall correction is × {scale:g} + {offset_w:g} W, expected at least 1 and no negative offset.",
            hint="A supply of 90 % efficiency has --wall-scale 1.11.",
        )
    if scale == 1.0 and offset_w == 0.0:
        return meter
    if len({channel.quantity for channel in meter.channels if channel.parent is None}) > 1:
        raise NotSupportedError(
            f"the meter {meter.name} counts joules on one part and watts on another; they have no common wall side.",
            hint="Use --device cpu or --device nvidia, or a smart plug with --device wall.",
        )
    return WallSideMeter(meter, scale=scale, offset_w=offset_w)
