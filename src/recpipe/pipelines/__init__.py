"""Kedro pipelines: wiring in pipeline.py of each, calls into the library in nodes.py."""
