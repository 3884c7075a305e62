"""JSON of top-k lists, put together from parts that are encoded once per item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

NUMPY = orjson.OPT_SERIALIZE_NUMPY


class ListEncoder:
    """Encoder of the lists of one bundle: ids, titles and codes of an item become bytes at its first use.

    ``item_ids`` (I,), ``titles`` (I,) with None for the id itself, ``codes``: rows (I + 1, L) by kind of semantic ids,
    negative where an item has none.
    """

    def __init__(
        self, item_ids: Sequence[str], titles: Sequence[str | None], codes: Mapping[str, np.ndarray] | None = None
    ) -> None:
        self._item_ids, self._titles, self._codes = item_ids, titles, codes or {}
        self._parts: list[bytes | None] = [None] * len(item_ids)

    def items(
        self,
        items_UK: np.ndarray,
        scores_UK: np.ndarray,
        probabilities_UK: np.ndarray | None,
        sources_UK: np.ndarray | None = None,
    ) -> list[bytes]:
        """Return a JSON array per user, best item first.

        Items count from 1; places with 0 are left out. NaN and infinity become null. ``sources_UK``: names of the
        source of each place, where they differ from the list's.
        """
        scores = _numbers(scores_UK)
        chances = _numbers(probabilities_UK) if probabilities_UK is not None else None
        arrays = []
        for user, row in enumerate(items_UK.tolist()):
            places, rank = [], 0
            for place, item in enumerate(row):
                if not item:
                    continue
                rank += 1
                text = b'{"rank":%d,%b,"score":%b,"probability":%b' % (
                    rank,
                    self._parts[item - 1] or self._part(item),
                    scores[user][place],
                    b"null" if chances is None else chances[user][place],
                )
                if sources_UK is not None:
                    text += b',"source":%b' % orjson.dumps(str(sources_UK[user, place]))
                places.append(text + b"}")
            arrays.append(b"[%b]" % b",".join(places))
        return arrays

    def _part(self, item: int) -> bytes:
        fields: dict[str, Any] = {"item_id": self._item_ids[item - 1]}
        fields["title"] = self._titles[item - 1] or fields["item_id"]
        rows = {kind: codes[item].tolist() for kind, codes in self._codes.items()}
        fields["codes"] = {kind: row if row and row[0] >= 0 else None for kind, row in rows.items()}
        part = orjson.dumps(fields)[1:-1]
        self._parts[item - 1] = part
        return part


def _numbers(values_UK: np.ndarray) -> list[list[bytes]]:
    """Return the JSON of each number."""
    text = orjson.dumps(np.ascontiguousarray(values_UK), option=NUMPY)[2:-2]
    return [row.split(b",") for row in text.split(b"],[")]
