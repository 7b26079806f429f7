"""Benchmarks that print a table, each run by one command."""
