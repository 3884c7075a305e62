"""Layers that several models share: inputs, attention, T5, state-space layers, kNN profiles, softmax and top-k."""
