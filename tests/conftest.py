from __future__ import annotations

from hypothesis import settings

# A busy machine is no failure, and the same commit gives the same result everywhere.
settings.register_profile("greentrain", deadline=None, derandomize=True, database=None)
settings.load_profile("greentrain")
