"""recpipe: from a raw interaction log to compared, tracked and servable recommenders."""

__version__ = "0.1.0"
