"""Beam search over semantic ids in any order: L steps, each reveals one code of every beam's partial id.

After Confidence-guided Parallel Denoising in Liu et al., DiffGRM, 2025 (arXiv 2510.21805), one code at a time and
constrained to the catalogue. A beam reveals the masked level at which the model's most probable code is most probable,
so that beams of a user may reveal levels in different orders. Beams never overlap: two of them differ in a code that
both have revealed, as all continue one beam, which chose one level, up to the step at which they parted. An item is
therefore reached in one order only, and its score is the sum of the log-probabilities along it.

Every item belongs to the beam that its codes agree with, or to none. This one table (B, N) says which codes may follow,
which beams are left, and which item a finished beam is; it needs no tree for each of the 2^L sets of levels. A step
needs six numbers of 64 bits per user and item at once, and a few operations.

B users, K beams, N items, L levels, V codes of the largest level.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from recpipe.decoding.beam import Beams

MASKED = -1


class MaskedDecoder(Protocol):
    """Interface of models that predict masked codes from the revealed ones."""

    def log_probs(self, codes_BKL: Tensor) -> Tensor:
        """Return log-probabilities (B, K, L, V) of the codes of every level, normalised per level.

        They are -inf for codes that a level lacks. ``codes_BKL`` are partial ids, ``MASKED`` where a code is not
        revealed.
        """
        ...


@torch.no_grad()
def any_order_search(
    decoder: MaskedDecoder,
    codes_NL: Tensor,
    *,
    users: int,
    beam: int,
    k: int | None = None,
    seen: tuple[Tensor, Tensor] | None = None,
    allowed: Tensor | None = None,
) -> Beams:
    """Return the ``k`` best items (B, k) of the ``beam`` that the search reaches for every user, k = beam by default.

    ``codes_NL``: different ids of all items. ``seen`` and ``allowed`` as in ``beam_search``; they decide which beams
    live and never an order, so that the score of an item does not depend on them. Raises ValueError for k < 1 or k >
    beam, and for NaN.
    """
    if not 1 <= (k := beam if k is None else k) <= beam:
        raise ValueError(f"k is {k} and beam {beam}; a search returns at least one item and no more than it has beams")
    (N, L), device = codes_NL.shape, codes_NL.device
    owner_BN = first_beams(users, N, seen, allowed, device)
    partial_BKL = torch.full((users, 1, L), MASKED, device=device)
    scores_BK = torch.zeros(users, 1, device=device)
    is_nan = torch.zeros((), dtype=torch.bool, device=device)
    for _ in range(L):
        logs_BKLV = decoder.log_probs(partial_BKL).float()
        is_nan = is_nan | logs_BKLV.isnan().any()
        level_BK = most_confident_level(logs_BKLV, partial_BKL)
        partial_BKL, scores_BK, owner_BN = _reveal(
            logs_BKLV, level_BK, partial_BKL, scores_BK, owner_BN, codes_NL, beam
        )
    if bool(is_nan):  # checked once, since a GPU waits for each check
        raise ValueError("log-probabilities of codes are NaN; the model's weights are not usable")
    return _result(partial_BKL, scores_BK, owner_BN, min(k, N))


def first_beams(
    users: int, items: int, seen: tuple[Tensor, Tensor] | None, allowed: Tensor | None, device: torch.device
) -> Tensor:
    """Return the beam (B, N) of every item: 0, the only one, or ``MASKED`` for items that a user must not get."""
    owner = torch.zeros(users, items, dtype=torch.int64, device=device)
    if allowed is not None:
        owner.masked_fill_(~allowed.to(device), MASKED)
    if seen is not None:
        offsets, rows = (each.to(device) for each in seen)
        user, is_item = torch.arange(users, device=device).repeat_interleave(offsets.diff()), rows >= 0
        owner[user[is_item], rows[is_item]] = MASKED
    return owner


def most_confident_level(logs_BKLV: Tensor, partial_BKL: Tensor) -> Tensor:
    """Return the masked level (B, K) of each beam whose most probable code is most probable."""
    return logs_BKLV.amax(-1).masked_fill(partial_BKL != MASKED, -torch.inf).argmax(-1)


def _reveal(
    logs_BKLV: Tensor,
    level_BK: Tensor,
    partial_BKL: Tensor,
    scores_BK: Tensor,
    owner_BN: Tensor,
    codes_NL: Tensor,
    beam: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Partial ids, scores and owners after each beam has revealed a code of its level."""
    (B, K, L, V), N = logs_BKLV.shape, len(codes_NL)
    is_alive_BN = owner_BN != MASKED
    level_BN = level_BK.gather(1, owner_BN.clamp(min=0))
    code_BN = codes_NL.flatten()[torch.arange(N, device=level_BN.device) * L + level_BN]
    child_BN = torch.where(is_alive_BN, owner_BN * V + code_BN, K * V)  # of beam and code; the last is for none
    exists = torch.zeros(B, K * V + 1, dtype=torch.bool, device=child_BN.device).scatter_(1, child_BN, True)
    logs_BKV = logs_BKLV.gather(2, level_BK[..., None, None].expand(B, K, 1, V))[:, :, 0]
    scores = (logs_BKV + scores_BK[..., None]).flatten(1).masked_fill_(~exists[:, :-1], -torch.inf)
    best, place = scores.topk(min(beam, K * V, N))
    parent, code = place // V, (place % V).masked_fill(best == -torch.inf, 0)  # a dead beam gets a code that exists
    partial = partial_BKL.gather(1, parent[..., None].expand(-1, -1, L))
    partial = partial.scatter(2, level_BK.gather(1, parent)[..., None], code[..., None])
    number = torch.arange(place.shape[1], device=place.device).expand_as(place)
    beam_of = torch.full_like(exists, MASKED, dtype=torch.int64)
    beam_of.scatter_(1, place, number.masked_fill(best == -torch.inf, MASKED))
    return partial, best, beam_of.gather(1, child_BN)


def _result(partial_BKL: Tensor, scores_BK: Tensor, owner_BN: Tensor, k: int) -> Beams:
    (B, K, _), N = partial_BKL.shape, owner_BN.shape[1]
    items = torch.full((B, K + 1), -1, device=owner_BN.device)
    owner = torch.where(owner_BN == MASKED, K, owner_BN)
    items = items.scatter_(1, owner, torch.arange(N, device=owner.device).expand(B, N))[:, :K]
    alive = scores_BK > -torch.inf
    items, codes = items.masked_fill(~alive, -1)[:, :k], partial_BKL.masked_fill(~alive[..., None], -1)[:, :k]
    missing = k - items.shape[1]
    return Beams(
        F.pad(items, (0, missing), value=-1),
        F.pad(scores_BK[:, :k], (0, missing), value=-torch.inf),
        F.pad(codes, (0, 0, 0, missing), value=-1),
    )
