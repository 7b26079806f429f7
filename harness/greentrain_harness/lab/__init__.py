"""An emulated edge cluster on one Linux machine."""
