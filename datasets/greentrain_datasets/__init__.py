"""The device catalogue and loaders of training data."""
