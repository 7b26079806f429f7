"""Ledger to tables, pictures, CSV and HTML."""
