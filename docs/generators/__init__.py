"""Code that makes pages of the documentation site; mkdocs calls it through ``hooks.py``."""
