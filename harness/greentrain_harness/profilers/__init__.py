"""Profiles of devices, layers and links, with provenance."""
