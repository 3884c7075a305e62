"""Semantic ids from item vectors: quantizers, collision policies, prefix tree, quality gate."""
