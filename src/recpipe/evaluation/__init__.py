"""Evaluation: ranks to metrics, top-k lists to recommendations, and the profile of an interaction log."""
