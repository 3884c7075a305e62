"""Scorers as ONNX graphs, served without torch."""
