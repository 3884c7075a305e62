"""Trained models in use: `python -m recpipe.serving` asks a bundle for one user."""
