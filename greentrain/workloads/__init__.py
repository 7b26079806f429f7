"""A model as a list of blocks with an example batch and real data."""
