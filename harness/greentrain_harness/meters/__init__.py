"""One file per meter: ``detect() -> None | why_not`` and ``open_meter(...) -> Meter``."""
