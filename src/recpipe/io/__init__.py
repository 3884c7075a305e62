"""Kedro datasets: those of the library's own files, and stock datasets with atomic writes."""
