"""Geometry of item vectors: spectrum, anisotropy, hubness and agreement of tables, compared with random vectors."""
