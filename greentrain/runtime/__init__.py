"""The distributed runtime: groups, the executor of action lists, the worker, the launcher."""
