"""Search of the catalogue by semantic ids: beam search level by level, exact search where levels are independent."""

from recpipe.decoding.beam import Beams, LevelDecoder, beam_search
from recpipe.decoding.exact import exact_scores, exact_top, search_error

__all__ = ["Beams", "LevelDecoder", "beam_search", "exact_scores", "exact_top", "search_error"]
