"""One file per method: ``plan(problem) -> Plan``."""
