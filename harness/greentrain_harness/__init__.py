"""Whatever touches a sensor, a clock, a board or a network namespace."""
