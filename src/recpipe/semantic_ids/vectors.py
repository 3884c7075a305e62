"""What vectors and codes a quantizer takes: everything else is refused with the rows and the reason."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

ITEMS_PER_CODE = 4  # at least; with a code for nearly every item later levels have nothing to tell


def check_vectors(x_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """``x_ND`` as contiguous float32. Raises ValueError for less than two rows, NaN or infinity, or all rows equal."""
    x_ND = _matrix(x_ND)
    if not x_ND.size:
        raise ValueError("no item has content: nothing to quantize; see content in the data set's conf")
    if len(x_ND) < 2:
        raise ValueError(
            "one item alone has content, a quantizer needs at least 2 to tell apart; see content in the data set's conf"
        )
    _check_finite(x_ND)
    if (x_ND == x_ND[0]).all():
        raise ValueError(
            f"all {len(x_ND)} vectors are equal, so all items have the same text or the same image: see which columns "
            "content.text.template or content.image of the data set's conf reads"
        )
    return x_ND


def check_new_vectors(x_ND: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """``x_ND`` as contiguous float32. Raises ValueError for another width than ``width``, NaN or infinity."""
    x_ND = _matrix(x_ND)
    if x_ND.shape[1] != width:
        raise ValueError(
            f"vectors have width {x_ND.shape[1]}, the quantizer was fitted to width {width}: other embeddings? "
            "Fit anew with semantic_ids.refit=true"
        )
    _check_finite(x_ND)
    return x_ND


def check_codes(codes_NL: NDArray[np.int32], sizes: tuple[int, ...]) -> NDArray[np.int32]:
    """``codes_NL`` as int32. Raises ValueError if they are not (N, L) or out of range."""
    codes_NL = np.asarray(codes_NL)
    if codes_NL.ndim != 2 or codes_NL.shape[1] != len(sizes) or codes_NL.dtype.kind not in "iu":
        raise ValueError(
            f"codes must be whole numbers of shape (N, {len(sizes)}), got {codes_NL.dtype} {codes_NL.shape}"
        )
    wrong = (codes_NL < 0) | (codes_NL >= np.array(sizes, np.int64))
    if wrong.any():
        row, level = np.argwhere(wrong)[0]
        raise ValueError(
            f"row {row} has code {codes_NL[row, level]} at level {level + 1}, allowed 0 to {sizes[level] - 1}"
        )
    return codes_NL.astype(np.int32, copy=False)


def fitting_sizes(
    x_ND: NDArray[np.float32], sizes: tuple[int, ...], *, few_items: str = "shrink"
) -> tuple[int, ...]:
    """The codes per level that ``x_ND`` has enough distinct rows for: ``ITEMS_PER_CODE`` of them per code.

    ``few_items="refuse"`` changes no size: it raises ValueError for fewer distinct rows than codes of a level.
    """
    distinct = count_distinct(x_ND)
    if few_items == "refuse":
        _refuse_few(distinct, max(sizes))
        return sizes
    if distinct >= ITEMS_PER_CODE * max(sizes):
        return sizes
    room = max(2, distinct // ITEMS_PER_CODE)
    shrunk = tuple(min(size, room) for size in sizes)
    log.warning(
        "%s distinct vectors are fewer than %s for each of the %s codes of a level: codes shrink to %s",
        f"{distinct:,}", ITEMS_PER_CODE, max(sizes), " x ".join(map(str, shrunk)),
    )  # fmt: skip
    return shrunk


def _refuse_few(distinct: int, codes: int) -> None:
    if distinct < codes:
        raise ValueError(
            f"{distinct:,} distinct vectors are fewer than the {codes} codes of a level: ask for fewer codes, "
            "or let few_items shrink them"
        )


def count_distinct(x_ND: NDArray[np.float32]) -> int:
    """Number of different rows."""
    return len(np.unique(_hashes(x_ND)))


def distinct_rows(x_ND: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first row of every kind, and (N,) for every row which of these it equals."""
    _, first, same = np.unique(_hashes(x_ND), return_index=True, return_inverse=True)
    return first, same


def _hashes(x_ND: NDArray[np.float32]) -> NDArray[np.uint64]:
    """(N,) 64 bits of each row."""
    odd = np.random.default_rng(0).integers(1 << 62, size=x_ND.shape[1], dtype=np.uint64) * 2 + 1
    parts = (
        x_ND[i : i + 16_384] + np.float32(0) for i in range(0, len(x_ND), 16_384)
    )  # + 0: -0.0 equals 0.0
    return np.concatenate([(part.view(np.uint32) * odd).sum(1, dtype=np.uint64) for part in parts])


def _matrix(x_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    x_ND = np.ascontiguousarray(x_ND, np.float32)
    if x_ND.ndim != 2:
        raise ValueError(f"vectors must have shape (N, D), got {x_ND.shape}")
    return x_ND


def _check_finite(x_ND: NDArray[np.float32]) -> None:
    bad = np.flatnonzero(~np.isfinite(x_ND).all(1))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(x_ND)} vectors hold NaN or infinity: rows {', '.join(map(str, bad[:5]))}"
        )
