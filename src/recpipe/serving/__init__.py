"""Serving: recommendations from trained models in Python and on the command line."""
