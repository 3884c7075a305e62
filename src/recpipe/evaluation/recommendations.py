"""Top-k lists with external ids: the table of recommendations, and submission files in CSV."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recpipe.data.ids import Ids

log = logging.getLogger(__name__)

COLD_USERS, CONTENT_SLOTS = "cold_users", "content_slots"
SOURCES = ("model", COLD_USERS, CONTENT_SLOTS)  # of a recommendation: the model, its fallback or a content model
ROLES = {
    "user": ("user", "items"),
    "recommendation": ("user", "item", "rank", "title", "logit", "probability", "source"),
}
SEPARATORS = (" ", "|", ";", ",", "\t")  # of submissions
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # OWASP, CSV injection
TEST_LISTS = (
    "These lists are for the comparison of models. They come from histories without the events of the test fold, so "
    "they lack the latest events of the users: do not show them to users."
)
COLUMN_OF_ROLE = {"user": "user_id", "item": "item_id"}  # other roles are names of columns


def recommendations_table(
    users: Sequence[str] | NDArray[Any] | Ids,
    items: NDArray[np.integer],
    scores: NDArray[np.floating],
    log_normalizer: NDArray[np.floating] | None,
    *,
    item_ids: Sequence[str] | NDArray[Any],
    titles: pa.Table,
    cold: NDArray[np.bool_] | None = None,
) -> pa.Table:
    """Return a row per recommendation, best first: user_id, rank, item_id, title, logit, probability, source.

    `items` (U, K) index `item_ids` from 1; 0 leaves no row. `scores` (U, K) are logits, `log_normalizer` (U,) the log
    of the sum of exp(score) over all candidates of the user; without it the probability is null. `titles` has `item_id`
    and `title`, by default the id. The source is `model`, `cold_users` for the users `cold` (U,), and `content_slots`
    for items whose score is NaN, which have neither logit nor probability. Raises ValueError for arrays of different
    lengths, and for indices without an item id.
    """
    if items.shape != scores.shape or items.ndim != 2 or len(items) != len(users):
        raise ValueError(f"{len(users)} users, items {items.shape} and scores {scores.shape} do not belong together")
    if items.size and (items.min() < 0 or items.max() > len(item_ids)):
        raise ValueError(f"items holds {items.min()}…{items.max()}, but there are {len(item_ids)} item ids")
    row, column = np.nonzero(items)
    place = np.cumsum(items > 0, axis=1)[row, column]
    logit = scores[row, column].astype(np.float32)
    item = pa.array(item_ids, pa.string()).take(pa.array(items[row, column].astype(np.int64) - 1))
    probability: pa.Array = pa.nulls(len(row), pa.float32())
    if log_normalizer is not None:
        values = np.exp(scores[row, column].astype(np.float64) - log_normalizer.astype(np.float64)[row])
        probability = pa.array(values, pa.float32(), from_pandas=True)  # NaN becomes null
    source = np.zeros(len(row), np.int64) if cold is None else cold[row].astype(np.int64)
    source[np.isnan(logit)] = SOURCES.index(CONTENT_SLOTS)
    return pa.table(
        {
            "user_id": pa.array(users, pa.string()).take(pa.array(row)),
            "rank": pa.array(place, pa.int32()),
            "item_id": item,
            "title": titles_of(item, titles),
            "logit": pa.array(logit, pa.float32(), from_pandas=True),
            "probability": probability,
            "source": pa.array(SOURCES, pa.string()).take(pa.array(source)),
        }
    )


def titles_of(item_ids: pa.Array, titles: pa.Table) -> pa.Array:
    """Look up the title of every item id; the id itself for a missing or blank title."""
    title = titles["title"].combine_chunks().take(pc.index_in(item_ids, titles["item_id"].combine_chunks()))
    blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(title), ""), True)
    return pc.if_else(blank, item_ids, title)


@dataclass(frozen=True)
class SubmissionLayout:
    """Layout of a submission file, from `evaluate.submission` in the configuration."""

    # names in the header by content (one of `ROLES`), in the order of the file
    columns: Mapping[str, str] = field(default_factory=lambda: {"user": "user_id", "items": "item_ids"})
    one_row_per: str = "user"  # or recommendation
    separator: str | None = None  # of the ids in `items`; None: the first of `SEPARATORS` that no id contains
    delimiter: str = ","
    top: int = 10  # recommendations per user, at most
    header: bool = True
    spreadsheet_safe: bool = False  # an apostrophe before text that a spreadsheet would read as a formula

    def __post_init__(self) -> None:
        if self.one_row_per not in ROLES:
            raise ValueError(f"submission.one_row_per is {self.one_row_per!r}; allowed: {', '.join(ROLES)}")
        allowed = f"one row per {self.one_row_per} offers: {', '.join(ROLES[self.one_row_per])}"
        unknown = [role for role in self.columns if role not in ROLES[self.one_row_per]]
        if unknown or not self.columns:
            raise ValueError(f"submission.columns has {unknown or 'no column'}; {allowed}")
        if self.top < 1:
            raise ValueError(f"submission.top is {self.top!r}; a whole number from 1 is needed")
        if len(self.delimiter) != 1:
            raise ValueError(f"submission.delimiter is {self.delimiter!r}; one character is needed")
        if self.separator == "":
            raise ValueError("submission.separator is empty; at least one character is needed, or null")


class SeparatorError(ValueError):
    """No separator of a submission can be told from the item ids."""


def submission_csv(
    recommendations: pa.Table,
    layout: SubmissionLayout,
    *,
    users: Sequence[str] | Ids | None = None,
    item_ids: Sequence[str] | NDArray[Any] | None = None,
) -> str:
    """Write the submission as CSV text; fields with the delimiter, a quote or a line break are quoted.

    Files with a row per user have exactly `users` in this order, also those without a list, by default the users of
    `recommendations`. Their separator is chosen for `item_ids` (I,), by default the items of `recommendations`. Raises
    SeparatorError where ids contain it.
    """
    ids = recommendations["item_id"] if item_ids is None else pa.array(item_ids, pa.string())
    text = io.StringIO()
    writer = SubmissionWriter(text, layout, item_ids=ids)
    writer.append(recommendations, users=recommendations["user_id"].unique() if users is None else users)
    return text.getvalue()


class SubmissionWriter:
    """Writer of a submission in parts, to an open text file with ``newline=""``; the header is written at once.

    ``item_ids``: ids of the whole catalogue, which the separator of lists is chosen for. Raises SeparatorError where
    they contain it.
    """

    def __init__(
        self, stream: TextIO, layout: SubmissionLayout, *, item_ids: pa.Array | pa.ChunkedArray | None = None
    ) -> None:
        self.layout = layout
        self._separator = ""
        if layout.one_row_per == "user" and item_ids is not None:
            self._separator = choose_separator(item_ids, layout.separator)
        self._csv = csv.writer(stream, delimiter=layout.delimiter, lineterminator="\n")
        if layout.header:
            self._csv.writerow(layout.columns.values())

    def append(self, recommendations: pa.Table, *, users: Sequence[str] | NDArray[Any] | pa.Array | Ids) -> None:
        """Append lists of some users (U,); a file with a row per user gets one for each of ``users``, in this order."""
        table = recommendations.filter(pc.less_equal(recommendations["rank"], self.layout.top))
        rows: Iterable[Sequence[Any]]
        if self.layout.one_row_per == "user":
            rows = _per_user(table, self.layout, pa.array(users, pa.string()), self._separator)
        else:
            columns = [_column(table, role).to_pylist() for role in self.layout.columns]
            rows = zip(*columns, strict=True)
        self._csv.writerows(map(_without_formulas, rows) if self.layout.spreadsheet_safe else rows)


def choose_separator(item_ids: pa.Array | pa.ChunkedArray, separator: str | None) -> str:
    """Return `separator`, or for None the first of `SEPARATORS`, that no id contains. Raises SeparatorError."""
    example = ""
    for choice in SEPARATORS if separator is None else (separator,):
        ambiguous = pc.match_substring(item_ids, choice)
        if not pc.any(ambiguous).as_py():
            if choice != (separator or SEPARATORS[0]):
                log.info(
                    "lists in submission.csv are separated by %r: item ids such as %r have spaces", choice, example
                )
            return choice
        example = item_ids.filter(ambiguous)[0].as_py()
    tried = "all of " + " ".join(map(repr, SEPARATORS)) if separator is None else repr(separator)
    raise SeparatorError(
        f"item ids such as {example!r} contain the separator ({tried}), so a list of them could not be read back: set "
        "another evaluate.submission.separator, or evaluate.submission.one_row_per=recommendation"
    )


def _without_formulas(row: Sequence[Any]) -> list[Any]:
    is_formula = [isinstance(cell, str) and cell.startswith(FORMULA_STARTS) for cell in row]
    return [f"'{cell}" if unsafe else cell for cell, unsafe in zip(row, is_formula, strict=True)]


def _column(table: pa.Table, role: str) -> pa.ChunkedArray:
    """Return the column of a role; scores of serving are called ``score``."""
    name = COLUMN_OF_ROLE.get(role, role)
    return table["score" if name == "logit" and "score" in table.column_names else name]


def _per_user(table: pa.Table, layout: SubmissionLayout, users: pa.Array, separator: str) -> Iterable[tuple[str, ...]]:
    """Return a row for each of ``users``, of which repeats are left out, with the items in the order of their ranks."""
    users = users.unique()
    place = pc.index_in(table["user_id"].combine_chunks(), value_set=users)
    table, place = table.filter(place.is_valid()), place.drop_null().to_numpy()
    order = np.lexsort((table["rank"].to_numpy(), place))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(place, minlength=len(users)))]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), table["item_id"].combine_chunks().take(pa.array(order)))
    cells = {"user": users.to_pylist(), "items": pc.binary_join(lists, separator).to_pylist()}
    return zip(*(cells[role] for role in layout.columns), strict=True)
