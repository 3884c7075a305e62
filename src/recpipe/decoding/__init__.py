"""Searching the catalogue by semantic ids: beams for models that decode level by level, exact scores for the others."""

from recpipe.decoding.ahead import Prefixes, Steps, StepsAhead
from recpipe.decoding.beam import Beams, beam_search
from recpipe.decoding.exact import exact_scores, exact_top, search_error

__all__ = [
    "Beams",
    "Prefixes",
    "Steps",
    "StepsAhead",
    "beam_search",
    "exact_scores",
    "exact_top",
    "search_error",
]
