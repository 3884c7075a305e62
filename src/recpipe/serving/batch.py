"""Lists for many users: from histories on disk to a Parquet file and a submission, batch by batch.

U users of a batch, K places.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recpipe.data.histories import HistoryBatch, StoredHistories
from recpipe.data.ids import Ids
from recpipe.data.user_items import UserItems
from recpipe.evaluation.recommendations import COLD_USERS, SOURCES, SeparatorError, SubmissionLayout, SubmissionWriter
from recpipe.progress import progress
from recpipe.serving.lists import Lists
from recpipe.serving.model import ServingBundle
from recpipe.serving.ranking import check_k
from recpipe.serving.rules import Rules

log = logging.getLogger(__name__)

LISTS, SUBMISSION, SUMMARY = "recommendations.parquet", "submission.csv", "summary.json"
PLACES_AT_ONCE = 1 << 23  # of the lists of a batch


@dataclass(frozen=True)
class UserLists:
    """Lists of consecutive users as a table, and what they count."""

    users: Ids  # (U,), those without a list too
    table: pa.Table
    counts: Mapping[str, int]


@dataclass(frozen=True)
class BatchJob:
    """Lists of ``k`` items by a model, and the first ``layout.top`` of them as a submission.

    now: seconds since 1970 at which the users ask, by default the clock's. batch_users: the most users at once.
    about: description for the summary and the metadata of the Parquet file.
    """

    model: ServingBundle
    k: int = 10
    layout: SubmissionLayout = field(default_factory=SubmissionLayout)
    rules: Rules | Mapping[str, Any] | None = None
    now: int | None = None
    batch_users: int = 8192
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_k(self.k)
        self.model.rules(self.rules)  # raises for wrong rules before anything is read

    @property
    def places(self) -> int:
        """Places K of the lists."""
        return min(max(self.k, self.layout.top), len(self.model.vocabulary))

    @property
    def users_at_once(self) -> int:
        """The most users of a batch."""
        return max(min(self.batch_users, PLACES_AT_ONCE // self.places), 1)

    def write(self, histories: StoredHistories, folder: Path, compute: Compute | None = None) -> dict[str, Any]:
        """Write the lists of all users into ``folder``, an existing one; return the summary, which is a file too.

        ``compute`` returns the lists of all batches in order, by default in this process. A submission is left out,
        with a warning, where no separator can be told from the item ids.
        """
        started, counts = time.perf_counter(), Counter[str]()
        job = replace(self, now=int(time.time()) if self.now is None else self.now)
        with ExitStack() as stack:
            bar = stack.enter_context(progress(histories.n_users, "recommend", unit="users"))
            writer, submission = _ParquetLists(stack, folder / LISTS, self.about), self._submission(stack, folder)
            for lists in (compute or BatchJob.compute)(job, histories):
                writer.append(lists.table.filter(pa.compute.less_equal(lists.table["rank"], self.k)))
                if submission is not None:
                    submission.append(lists.table, users=lists.users)
                counts.update(lists.counts)
                bar.add(len(lists.users), **{"users/s": counts["users"] / (time.perf_counter() - started)})
        summary = self._summary(histories, counts, time.perf_counter() - started)
        (folder / SUMMARY).write_text(json.dumps(summary, indent=2), encoding="utf-8")
        return summary

    def compute(self, histories: StoredHistories) -> Iterator[UserLists]:
        """Yield the lists of all batches."""
        for batch in histories.batches(self.users_at_once):
            yield self.user_lists(batch)

    def user_lists(self, batch: HistoryBatch) -> UserLists:
        """Return the lists of a batch at the time ``now``."""
        lists = self._lists(batch)
        users = batch.sequences.users
        return UserLists(users, self.model.lists_table(users, lists), _counts(lists, self.k))

    def _submission(self, stack: ExitStack, folder: Path) -> SubmissionWriter | None:
        """Open the submission; None where its lists could not be read back."""
        path = folder / SUBMISSION
        stream = stack.enter_context(path.open("w", encoding="utf-8", newline=""))
        try:
            return SubmissionWriter(stream, self.layout, item_ids=self.model.ids)
        except SeparatorError as error:
            log.warning("%s has no submission.csv: %s", self.model.name, error)
            path.unlink()
            return None

    def _lists(self, batch: HistoryBatch) -> Lists:
        return self.model.lists(
            batch.sequences,
            self.places,
            rules=self.rules,
            now=self.now,
            candidates=UserItems(batch.candidate_offsets, batch.candidate_items),
            restricted=batch.has_candidates,
        )

    def _summary(self, histories: StoredHistories, counts: Counter[str], seconds: float) -> dict[str, Any]:
        """Return the summary; log what users and lists lack."""
        unknown = {"unknown_events": histories.unknown_events, "unknown_candidates": histories.unknown_candidates}
        for what, n in (("events", histories.unknown_events), ("candidates", histories.unknown_candidates)):
            if n:
                log.warning("%s: %s %s left out, the model does not know their items", self.model.name, f"{n:,}", what)
        if without := counts["users_without_list"]:
            log.warning("%s users have no list: candidates and rules leave no item", f"{without:,}")
        log.info(
            "%s: lists of %s users, %s of them by the fallback for users without history, %s users/s",
            self.model.name, f"{counts['users']:,}", f"{counts['cold_users']:,}", f"{counts['users'] / seconds:,.0f}",
        )  # fmt: skip
        numbers = {"events": histories.n_events, **counts, **unknown}
        speed = {"seconds": seconds, "users_per_second": counts["users"] / seconds}
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        return {**self.about, "k": self.k, **numbers, **speed, "finished": finished}


Compute = Callable[[BatchJob, StoredHistories], Iterable[UserLists]]


class _ParquetLists:
    """Parquet file that tables are appended to, a row group for each."""

    def __init__(self, stack: ExitStack, path: Path, about: Mapping[str, Any]) -> None:
        self._stack, self._path = stack, path
        self._about = {key: json.dumps(value) for key, value in about.items()}
        self._writer: pq.ParquetWriter | None = None

    def append(self, table: pa.Table) -> None:
        """Append a table; all have the same columns."""
        if self._writer is None:
            schema = table.schema.with_metadata(self._about)
            self._writer = self._stack.enter_context(pq.ParquetWriter(self._path, schema, compression="zstd"))
        self._writer.write_table(table.replace_schema_metadata(self._about))


def _counts(lists: Lists, k: int) -> dict[str, int]:
    """Count users, recommendations, users of the fallback, and users with less than ``k`` items or none."""
    lengths = (lists.items[:, :k] > 0).sum(1)
    is_cold = (lists.sources[:, 0] == SOURCES.index(COLD_USERS)) & (lengths > 0)
    return {
        "users": len(lengths),
        "recommendations": int(lengths.sum()),
        "cold_users": int(is_cold.sum()),
        "users_with_short_list": int((lengths < k).sum()),
        "users_without_list": int((lengths == 0).sum()),
    }
