"""Recommendations from an exported graph, without torch: needs numpy, pyarrow and onnxruntime only.

    from recpipe.serving.onnx.model import OnnxModel

    model = OnnxModel("sasrec.onnx")  # with sasrec.items.parquet beside it, as recpipe.serving.onnx.export writes them
    model.recommend({"ann": ["21754", "22423"]}, k=10)

U users, B users of a batch, T time, I items, K results.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SCORES_AT_ONCE = 1 << 25  # elements of a score matrix: 128 MiB
USERS_AT_ONCE = 1024
COLUMNS = ("item_id", "title", "tie", "fallback")
HINT = "export the bundle again with `python -m recpipe.serving.onnx.export`"


class OnnxModel:
    """A scorer in a graph of onnxruntime, with its items.

    ``threads``: of onnxruntime; 0: all cores. Raises ValueError for files that are missing, damaged or of two exports.
    """

    def __init__(self, path: str | Path, *, threads: int = 0) -> None:
        import onnxruntime

        graph, items = Path(path), Path(path).with_suffix(".items.parquet")
        if missing := [file.name for file in (graph, items) if not file.is_file()]:
            raise ValueError(f"{', '.join(missing)} missing in {graph.absolute().parent}; {HINT}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self.session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
            self.description = json.loads(self.session.get_modelmeta().custom_metadata_map["recpipe"])
        except Exception as error:  # onnxruntime raises types of its own, without a common base
            raise ValueError(f"{graph} is no graph of recpipe.serving.onnx.export ({error}); {HINT}") from error
        if hashlib.sha256(items.read_bytes()).hexdigest() != self.description["items_sha256"]:
            raise ValueError(f"{items} is damaged or of another export than {graph.name}; {HINT}")
        table = pq.read_table(items, columns=list(COLUMNS)).combine_chunks()
        self.item_ids, self.titles = table["item_id"].combine_chunks(), table["title"].combine_chunks()
        self.ties = np.concatenate([[-1], table["tie"].to_numpy()])  # (I + 1,)
        self.fallback: np.ndarray | None = None  # (I + 1,)
        if table["fallback"].null_count == 0:
            self.fallback = np.concatenate([[-np.inf], table["fallback"].to_numpy()]).astype(np.float32)

    @property
    def max_length(self) -> int:
        """Number of events of a history that are read, the latest."""
        return int(self.description["max_length"])

    def recommend(
        self,
        histories: Mapping[str, Sequence[str]],
        k: int = 10,
        *,
        exclude_seen: bool | None = None,
        timestamps: Mapping[str, Sequence[int]] | None = None,
    ) -> pa.Table:
        """Recommend at most ``k`` items to each user of ``histories`` (item ids, oldest first), who may be new.

        Returns user_id, rank, item_id, title, score, probability, source. Unknown items are left out of a history; an
        empty one gets the fallback of the bundle for users without profile. ``exclude_seen``: by default as in the
        protocol of the bundle. ``timestamps``: seconds of every event, for models that read time. Raises ValueError for
        k < 1, and for timestamps that are missing or do not match the events.
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k is {k!r}; at least one item is needed")
        users, k = list(histories), min(k, len(self.item_ids))
        exclude_seen = self.description["exclude_seen"] if exclude_seen is None else exclude_seen
        parts = [
            self._lists({user: histories[user] for user in part}, k, exclude_seen, timestamps)
            for part in _parts(users, min(USERS_AT_ONCE, max(SCORES_AT_ONCE // len(self.ties), 1)))
        ]
        return pa.concat_tables(parts) if parts else self._table(np.zeros(0, object), *_no_lists(k))

    def _lists(
        self,
        histories: Mapping[str, Sequence[str]],
        k: int,
        exclude_seen: bool,
        timestamps: Mapping[str, Sequence[int]] | None,
    ) -> pa.Table:
        row, item, time = self._events(histories, timestamps)
        scores, is_cold = self._scores(len(histories), row, item, time)
        scores[:, 0] = -np.inf
        if exclude_seen:
            scores[row, item] = -np.inf
        items, values = top_k(scores, k, self.ties)
        normaliser = None
        if self.description["probabilistic"]:
            highest = scores.max(1, keepdims=True)
            safe = np.where(np.isfinite(highest), highest, 0)
            with np.errstate(divide="ignore"):
                normaliser = np.log(np.exp(scores - safe).sum(1, dtype=np.float64)) + safe[:, 0]
        return self._table(np.array(list(histories), object), items, values, normaliser, is_cold)

    def _events(
        self, histories: Mapping[str, Sequence[str]], timestamps: Mapping[str, Sequence[int]] | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return user row, item and time of all events of known items, each (n,)."""
        lengths = np.array([len(events) for events in histories.values()], np.int64)
        ids = pa.array(chain.from_iterable(histories.values()), pa.string())
        item = pc.fill_null(pc.add(pc.index_in(ids, self.item_ids), 1), 0).to_numpy().astype(np.int64)
        row, time = np.repeat(np.arange(len(lengths)), lengths), None
        if self.description["reads_time"]:
            if timestamps is None:
                raise ValueError(f"{self.description['name']} reads the times of events; give timestamps")
            if wrong := [user for user in histories if len(timestamps.get(user, ())) != len(histories[user])]:
                raise ValueError(f"timestamps of user {wrong[0]!r} are not one for each event of the history")
            time = np.fromiter(chain.from_iterable(timestamps[user] for user in histories), np.int64, len(item))[
                item > 0
            ]
        return row[item > 0], item[item > 0], time

    def _scores(
        self, users: int, row: np.ndarray, item: np.ndarray, time: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return scores (B, I + 1) and whether they are the fallback's (B,)."""
        counts = np.bincount(row, minlength=users)
        starts, lengths = np.cumsum(counts) - counts, np.minimum(counts, self.max_length)
        place = np.arange(len(row)) - starts[row] - (counts - lengths)[row]  # negative: older than the window
        is_read = place >= 0
        padded = np.zeros((2, users, max(int(lengths.max(initial=0)), 1)), np.int64)
        padded[0, row[is_read], place[is_read]] = item[is_read]
        inputs = {"items": padded[0], "lengths": lengths}
        if time is not None:
            padded[1, row[is_read], place[is_read]] = time[is_read]
            inputs["timestamps"] = padded[1]
        is_cold = (lengths == 0) & (self.fallback is not None)
        scores = np.empty((users, len(self.ties)), np.float32)
        if not is_cold.all():
            names = {entry.name for entry in self.session.get_inputs()}
            warm = {name: values[~is_cold] for name, values in inputs.items() if name in names}
            scores[~is_cold] = self.session.run(["scores"], warm)[0]
        if self.fallback is not None:
            scores[is_cold] = self.fallback
        return scores, is_cold

    def _table(
        self,
        users: np.ndarray,
        items: np.ndarray,
        scores: np.ndarray,
        normaliser: np.ndarray | None,
        is_cold: np.ndarray,
    ) -> pa.Table:
        row, column = np.nonzero(items)
        item = pa.array(items[row, column] - 1)
        item_id = self.item_ids.take(item)
        probability = pa.nulls(len(row), pa.float32())
        if normaliser is not None:
            probability = pa.array(np.exp(scores[row, column] - normaliser[row]), pa.float32())
        return pa.table(
            {
                "user_id": pa.array(users, pa.string()).take(pa.array(row)),
                "rank": pa.array(column + 1, pa.int32()),
                "item_id": item_id,
                "title": pc.coalesce(self.titles.take(item), item_id),
                "score": pa.array(scores[row, column], pa.float32()),
                "probability": probability,
                "source": pa.array(np.where(is_cold[row], "cold_users", "model"), pa.string()),
            }
        )


def top_k(scores: np.ndarray, k: int, ties: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the best k items (B, K) of ``scores`` (B, I + 1) and their scores; 0 and -inf where there are fewer.

    Equal scores are ordered by ``ties`` (I + 1,), the lower first.
    """
    items, values = np.zeros((len(scores), k), np.int64), np.full((len(scores), k), -np.inf, np.float32)
    last = np.partition(scores, scores.shape[1] - k, axis=1)[:, scores.shape[1] - k]
    row, item = np.nonzero((scores >= last[:, None]) & (scores > -np.inf))
    order = np.lexsort((ties[item], -scores[row, item], row))
    row, item = row[order], item[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    row, item, place = (part[place < k] for part in (row, item, place))
    items[row, place], values[row, place] = item, scores[row, item]
    return items, values


def _no_lists(k: int) -> tuple[np.ndarray, np.ndarray, None, np.ndarray]:
    return np.zeros((0, k), np.int64), np.zeros((0, k), np.float32), None, np.zeros(0, bool)


def _parts(users: list[str], size: int) -> Iterator[list[str]]:
    yield from (users[start : start + size] for start in range(0, len(users), size))
