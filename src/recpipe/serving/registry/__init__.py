"""Bundles as models of MLflow and in its registry."""
