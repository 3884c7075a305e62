"""Searching the catalogue by semantic ids: beams for models that decode level by level, exact scores for the others."""

from recpipe.decoding.beam import Beams, Steps, beam_search

__all__ = ["Beams", "Steps", "beam_search"]
