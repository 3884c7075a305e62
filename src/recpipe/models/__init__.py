"""Recommendation models: one file per model type, base classes and the registry."""
