"""Top-k lists as people and competitions want them: a table with ids and titles, and a CSV file.

Recommendations for anybody: external item ids in, external ids, titles, scores and probabilities out.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from recpipe.data.sequences import Fold, Sequences
from recpipe.evaluation.ranking import rank_fold
from recpipe.training.bundle import Bundle

MODEL = "model"
ROLES = {
    "user": ("user", "items"),
    "recommendation": ("user", "item", "rank", "title", "logit", "probability", "source"),
}
SOURCES = (
    MODEL,
    "cold_users",
)  # whose list it is: the model's, or that of its fallback for users without history
COLUMN_OF_ROLE = {"user": "user_id", "item": "item_id"}  # the other roles are called like their column


def recommendations_table(
    users: Sequence[str] | NDArray[Any],
    items: NDArray[np.integer],
    scores: NDArray[np.floating],
    log_normalizer: NDArray[np.floating] | None,
    *,
    item_ids: Sequence[str] | NDArray[Any],
    titles: pa.Table,
    cold: NDArray[np.bool_] | None = None,
) -> pa.Table:
    """One row per recommendation, best first: user_id, rank, item_id, title, logit, probability, source.

    `items` (U, K) index `item_ids` from 1; 0 means none and leaves no row. `scores` (U, K) are logits, and
    `log_normalizer` (U,) the log of the sum of exp(score) over all candidates of the user; without it the
    probability is null. `titles` has `item_id` and `title`; an item without a title shows its id. `cold` (U,) says
    whose list is not the model's, but that of its fallback: their source is `cold_users`.
    """
    if items.shape != scores.shape or items.ndim != 2 or len(items) != len(users):
        raise ValueError(
            f"{len(users)} users, items {items.shape} and scores {scores.shape} do not belong together"
        )
    if items.size and (items.min() < 0 or items.max() > len(item_ids)):
        raise ValueError(f"items holds {items.min()}…{items.max()}, but there are {len(item_ids)} item ids")
    row, column = np.nonzero(items)
    place = np.cumsum(items > 0, axis=1)[row, column]
    logit = scores[row, column].astype(np.float32)
    item = pa.array(item_ids, pa.string()).take(pa.array(items[row, column].astype(np.int64) - 1))
    probability = None
    if log_normalizer is not None:
        probability = np.exp(scores[row, column].astype(np.float64) - log_normalizer.astype(np.float64)[row])
    return pa.table(
        {
            "user_id": pa.array(users, pa.string()).take(pa.array(row)),
            "rank": pa.array(place, pa.int32()),
            "item_id": item,
            "title": titles_of(item, titles),
            "logit": pa.array(logit, pa.float32()),
            "probability": pa.nulls(len(row), pa.float32())
            if probability is None
            else pa.array(probability, pa.float32()),
            "source": pa.array(SOURCES, pa.string()).take(
                pa.array(np.zeros(len(row), np.int64) if cold is None else cold[row].astype(np.int64))
            ),
        }
    )


def titles_of(item_ids: pa.Array, titles: pa.Table) -> pa.Array:
    """The title of every item id; the id itself where `titles` has none or an empty one."""
    known = titles["title"].combine_chunks().take(pc.index_in(item_ids, titles["item_id"].combine_chunks()))
    blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(known), ""), True)
    return pc.if_else(blank, item_ids, known)


@dataclass(frozen=True)
class SubmissionLayout:
    """How a submission file looks; the fields are the keys of `evaluate.submission` in the conf.

    `columns` maps what a column holds to its name in the header, in the order of the file. One row per `user`
    offers `user` and `items` (ids joined by `separator`); one row per `recommendation` offers `user`, `item`,
    `rank`, `title`, `logit`, `probability` and `source`. `top` per user at most; shorter lists stay short.
    """

    columns: Mapping[str, str] = field(default_factory=lambda: {"user": "user_id", "items": "item_ids"})
    one_row_per: str = "user"
    separator: str = " "
    delimiter: str = ","
    top: int = 10
    header: bool = True

    def __post_init__(self) -> None:
        if self.one_row_per not in ROLES:
            raise ValueError(f"submission.one_row_per is {self.one_row_per!r}; allowed: {', '.join(ROLES)}")
        allowed = ROLES[self.one_row_per]
        unknown = [role for role in self.columns if role not in allowed]
        if unknown or not self.columns:
            raise ValueError(
                f"submission.columns has {unknown or 'no column'}; "
                f"one row per {self.one_row_per} offers: {', '.join(allowed)}"
            )
        if isinstance(self.top, bool) or not isinstance(self.top, int) or self.top < 1:
            raise ValueError(f"submission.top is {self.top!r}; a whole number from 1 is needed")
        if not isinstance(self.header, bool):
            raise ValueError(f"submission.header is {self.header!r}; allowed: true, false")
        if not isinstance(self.delimiter, str) or len(self.delimiter) != 1:
            raise ValueError(f"submission.delimiter is {self.delimiter!r}; one character is needed")
        if not isinstance(self.separator, str) or not self.separator:
            raise ValueError(f"submission.separator is {self.separator!r}; at least one character is needed")

    @classmethod
    def from_conf(cls, conf: Mapping[str, Any]) -> SubmissionLayout:
        allowed = [each.name for each in fields(cls)]
        unknown = sorted(set(conf) - set(allowed))
        if unknown:
            raise ValueError(
                f"unknown keys in submission: {', '.join(unknown)}; allowed: {', '.join(allowed)}"
            )
        return cls(**conf)


def submission_csv(
    recommendations: pa.Table, layout: SubmissionLayout, *, users: Sequence[str] | None = None
) -> str:
    """The submission as CSV text; fields are quoted where they hold the delimiter, a quote or a line break.

    With `users`, one row per user covers exactly these, in this order, with an empty cell for a user who got
    nothing; without, the users of `recommendations` in their order there.
    """
    chosen = recommendations.filter(pc.less_equal(recommendations["rank"], layout.top))
    rows = (
        _per_user(chosen, layout, users)
        if layout.one_row_per == "user"
        else _per_recommendation(chosen, layout)
    )
    text = io.StringIO()
    writer = csv.writer(text, delimiter=layout.delimiter, lineterminator="\n")
    if layout.header:
        writer.writerow(layout.columns.values())
    writer.writerows(rows)
    return text.getvalue()


def _per_user(table: pa.Table, layout: SubmissionLayout, users: Sequence[str] | None) -> Iterable[list[str]]:
    ambiguous = pc.match_substring(table["item_id"], layout.separator)
    if pc.any(ambiguous).as_py():
        example = table["item_id"].filter(ambiguous)[0].as_py()
        raise ValueError(
            f"item id {example!r} contains the separator {layout.separator!r}, so the list could not be read "
            "back: set another `evaluate.submission.separator`"
        )
    lists: dict[str, list[str]] = {user: [] for user in users or ()}
    ordered = table.sort_by("rank") if table.num_rows else table
    if users is None:
        lists = {user: [] for user in table["user_id"].unique().to_pylist()}
    for user, item in zip(ordered["user_id"].to_pylist(), ordered["item_id"].to_pylist(), strict=True):
        if user in lists:
            lists[user].append(item)
    for user, items in lists.items():
        cells = {"user": user, "items": layout.separator.join(items)}
        yield [cells[role] for role in layout.columns]


def _per_recommendation(table: pa.Table, layout: SubmissionLayout) -> Iterable[tuple[Any, ...]]:
    columns = [table[COLUMN_OF_ROLE.get(role, role)].to_pylist() for role in layout.columns]
    return zip(*columns, strict=True)


log = logging.getLogger(__name__)


def recommend(
    bundle: Bundle,
    histories: Mapping[str, Sequence[str]],
    k: int = 10,
    *,
    exclude_seen: bool = True,
    timestamps: Mapping[str, Sequence[int]] | None = None,
    profiles: pa.Table | None = None,
    candidates: Sequence[str] | None = None,
) -> pa.Table:
    """The table of ``recommendations_table``, at most ``k`` rows for each user of ``histories`` (oldest event first);
    of a model with semantic ids also ``<modality>_codes``, those of the item.

    Users need not be known to the bundle. Items that are not are left out of a history; who has none left gets the
    list for users without history. ``timestamps``: seconds of every event, for models that read time; ``profiles``:
    ``user_id`` and columns; ``candidates``: the only items that may be recommended. Raises ValueError for k < 1, for
    candidates of which the bundle knows none, and for timestamps that do not fit the events.
    """
    if k < 1:
        raise ValueError(f"k is {k}; ask for at least one item")
    model = bundle.model
    asked = _sequences(bundle, histories, timestamps)
    if profiles is not None:
        asked = asked.with_profiles(profiles)
    nothing = Sequences(asked.users, np.zeros(0, np.int32), None, np.zeros(len(asked) + 1, np.int64))
    allowed = None if candidates is None else _allowed(bundle, candidates)
    k = min(k, len(bundle.vocabulary))
    ranking = rank_fold(model, Fold(asked, nothing), exclude_seen=exclude_seen, k=k, candidates=allowed)
    found = recommendations_table(
        asked.users,
        ranking.items,
        ranking.scores,
        ranking.log_normalizer,
        item_ids=bundle.vocabulary.ids,
        titles=bundle.title_table(),
        cold=model.needs_fallback(asked),
    )
    return _with_codes(bundle, found)


def _allowed(bundle: Bundle, candidates: Sequence[str]) -> torch.Tensor:
    numbers = bundle.vocabulary.encode(list(candidates))
    if not (numbers > 0).any():
        raise ValueError(f"{bundle.name} knows none of the {len(candidates)} candidates")
    allowed = torch.zeros(len(bundle.vocabulary) + 1, dtype=torch.bool)
    allowed[torch.from_numpy(numbers[numbers > 0].astype(np.int64))] = True
    return allowed


def _with_codes(bundle: Bundle, table: pa.Table) -> pa.Table:
    """A list per row, null where the item has no id of the modality."""
    numbers = bundle.vocabulary.encode(table["item_id"].to_pylist())
    for name, codes in bundle.model.item_codes().items():
        rows = codes.codes.cpu().numpy()[numbers]
        lists = [None if row[0] < 0 else row.tolist() for row in rows]
        table = table.append_column(f"{name}_codes", pa.array(lists, pa.list_(pa.int32())))
    return table


def _sequences(
    bundle: Bundle, histories: Mapping[str, Sequence[str]], timestamps: Mapping[str, Sequence[int]] | None
) -> Sequences:
    users = np.array(list(histories), dtype=object)
    lengths = np.array([len(histories[user]) for user in users], np.int64)
    items = bundle.vocabulary.encode([item for user in users for item in histories[user]])
    known, owner = items > 0, np.repeat(np.arange(len(users)), lengths)
    if not known.all():
        log.warning(
            "%s of %s events are of items that %s does not know", (~known).sum(), len(known), bundle.name
        )
    times = None
    if timestamps is not None:
        if wrong := [user for user in users if len(timestamps.get(user, ())) != len(histories[user])]:
            raise ValueError(f"timestamps of user {wrong[0]!r} are not one for each event of the history")
        times = np.array([second for user in users for second in timestamps[user]], np.int64)[known]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[known], minlength=len(users)))]).astype(
        np.int64
    )
    return Sequences(users, items[known], times, offsets)
