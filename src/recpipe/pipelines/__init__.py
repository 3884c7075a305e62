"""The pipelines: wiring in each one's pipeline.py, short calls into the library in its nodes.py."""
