"""Joules per sample and CO2e for training that others drive: transformers, Lightning, loops of your own."""
