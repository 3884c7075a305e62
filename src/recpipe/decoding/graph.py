"""Graph-constrained decoding: search of the best items along edges between similar items (RPG, KDD 2025, section 3.3).

For models whose code levels are independent given the user. Its cost does not depend on the size of the catalogue:
``beam`` x edges items are scored in every step, all exactly.

Deviations from the paper: the first beam is the best of as many items as a step scores, the same ones for all users,
instead of ``beam`` random ones; and every scored item is a result, not only those of the last beam.

B users, N items, L levels, V codes of a level, E edges of an item, K beams, P scored items of a user.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recpipe.decoding.exact import exact_scores

MAX_SIMILARITIES = 1 << 24  # in memory at once
MAX_CODES = 1 << 24  # of scored items, 128 MiB in memory at once


@torch.no_grad()
def item_graph(codes_NL: Tensor, tables: Sequence[Tensor], edges: int) -> Tensor:
    """Return the ``edges`` most similar items of every item, itself among them, (N, E) with E at most N.

    The similarity of two items is the sum of the cosines between their codes' embeddings, ``tables`` (L) of (V_l, D).
    All pairs are compared, N x N x L additions. An item is the first of its edges, also where others share its id.
    """
    N = len(codes_NL)
    normalised = [torch.nn.functional.normalize(table.float(), dim=-1) for table in tables]
    cosines = [table @ table.T for table in normalised]
    neighbours = torch.empty(N, min(edges, N), dtype=torch.int64, device=codes_NL.device)
    for start in range(0, N, size := max(MAX_SIMILARITIES // N, 1)):
        rows = torch.arange(start, min(start + size, N), device=codes_NL.device)
        similarity = exact_scores([cos[codes_NL[rows, level]] for level, cos in enumerate(cosines)], codes_NL)
        similarity[rows - start, rows] = torch.inf
        neighbours[rows] = similarity.topk(neighbours.shape[1]).indices
    return neighbours


@torch.no_grad()
def graph_search(
    log_probs: Sequence[Tensor], codes_NL: Tensor, neighbours_NE: Tensor, *, beam: int, steps: int
) -> tuple[Tensor, Tensor]:
    """Return the items (B, P) that a search scored and their log-probabilities; -1 and -inf where there are fewer.

    ``log_probs`` (L) of (B, V_l). Each step scores the neighbours of the ``beam`` best items of the step before.
    """
    (N, E), device = neighbours_NE.shape, codes_NL.device
    entries = torch.linspace(0, N - 1, min(beam * E, N), device=device).round().long()
    rows = entries.expand(len(log_probs[0]), -1)
    scores = exact_scores(log_probs, codes_NL[entries])
    parts = [(rows, scores)]
    for _ in range(steps):
        best = rows.gather(1, scores.topk(min(beam, rows.shape[1])).indices)  # rows of -1 only if N is below beam
        rows = neighbours_NE[best.clamp(min=0)].flatten(1)
        rows, scores = _without_repetitions(rows, row_scores(log_probs, codes_NL, rows))
        parts.append((rows, scores))
    return _without_repetitions(*(torch.cat(values, 1) for values in zip(*parts, strict=True)))


def row_scores(log_probs: Sequence[Tensor], codes_NL: Tensor, rows_BP: Tensor) -> Tensor:
    """Return log-probabilities (B, P) of other items for each user; -inf for rows of -1."""
    users = max(MAX_CODES // max(rows_BP.shape[1] * codes_NL.shape[1], 1), 1)
    parts = zip(rows_BP.split(users), *(each.split(users) for each in log_probs), strict=True)
    return torch.cat([_part_scores(levels, codes_NL, rows) for rows, *levels in parts])


def _part_scores(log_probs: Sequence[Tensor], codes_NL: Tensor, rows_BP: Tensor) -> Tensor:
    """``row_scores`` for some users at once."""
    codes_BPL = codes_NL[rows_BP.clamp(min=0)]
    scores = log_probs[0].gather(1, codes_BPL[..., 0])
    for level in range(1, len(log_probs)):
        scores = scores + log_probs[level].gather(1, codes_BPL[..., level])
    return torch.where(rows_BP >= 0, scores, -torch.inf)


def _without_repetitions(rows_BP: Tensor, scores_BP: Tensor) -> tuple[Tensor, Tensor]:
    """Sort the rows of each user; all but the first of equal ones become -1, with score -inf."""
    rows, order = rows_BP.sort(1)
    is_repetition = torch.zeros_like(rows, dtype=torch.bool)
    is_repetition[:, 1:] = rows[:, 1:] == rows[:, :-1]
    scores = scores_BP.gather(1, order)
    return rows.masked_fill(is_repetition, -1), scores.masked_fill(is_repetition, -torch.inf)
