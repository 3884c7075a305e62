"""Logs, cleaning and sampling, splits, sequences, and batches of them."""
