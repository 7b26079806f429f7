"""One file per knob of a device; always restored on exit."""
