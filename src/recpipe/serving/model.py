"""A trained model for use: recommend, score, explain, similar items; external ids in, Arrow tables out.

U users, K places, I items; item 0 is none.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from recpipe.config import check_known, split_names
from recpipe.data.ids import Ids
from recpipe.data.sequences import Sequences
from recpipe.data.user_items import Candidates, UserItems
from recpipe.evaluation.recommendations import SOURCES, titles_of
from recpipe.models.content_knn import ContentKNN
from recpipe.models.recommender import Scorer
from recpipe.serving.explain import explain
from recpipe.serving.external_ids import ExternalIdBundle, ItemIds
from recpipe.serving.item_index.build import IndexConfig
from recpipe.serving.item_index.files import bundle_index
from recpipe.serving.item_index.search import ItemIndex
from recpipe.serving.lists import ListMaker, Lists, pool_size
from recpipe.serving.ranking import check_k
from recpipe.serving.request_checks import check_now
from recpipe.serving.rules import BundleRules, Rules, RulesCache
from recpipe.serving.scores import candidate_scores
from recpipe.serving.similarity import similar_items, similar_users
from recpipe.training import bundle as bundles
from recpipe.training.bundle import Bundle
from recpipe.training.bundle_folders import newest_bundle, version_of

AUTOMATIC_INDEX = IndexConfig()


def load_bundle(
    path: Path | str,
    device: str | torch.device = "cpu",
    *,
    items: pa.Table | Path | str | None = None,
    content: Path | str | None = None,
    accelerate: bool = True,
    index: IndexConfig | None = AUTOMATIC_INDEX,
) -> ServingBundle:
    """Load a trained model for use.

    Args:
        path: folder of a model, of one of its seeds, or a bundle; the newest bundle in it counts.
        device: such as ``cpu`` or ``cuda``.
        items: table or Parquet file with ``item_id`` and current columns for rules, such as what is in stock.
        content: bundle of a model of type content_knn, which ranks new items for models that cannot.
        accelerate: use the faster CPU versions of layers.
        index: when a large catalogue on a CPU is searched by an index, which is built at the first load and gives no
            probabilities; None: never.

    Returns:
        The bundle, on ``device``.

    Raises:
        ValueError: where there is no bundle, and for a damaged one.

    Examples:
        >>> import recpipe
        >>> model = recpipe.load_bundle("data/06_models/online_retail/sasrec")
        >>> model.name
        'sasrec'
    """
    folder = newest_bundle(path)
    loaded = bundles.load_bundle(folder, device, accelerate=accelerate)
    fields = {each.name: getattr(loaded, each.name) for each in dataclasses.fields(Bundle)}
    content_bundle = None if content is None else bundles.load_bundle(newest_bundle(content), device)
    model = ServingBundle(**fields, folder=folder, version=version_of(folder), content=content_bundle)
    if index is not None and model.model.device.type == "cpu":
        model.index = bundle_index(model, folder, index)
    return model if items is None else model.with_items(items)


@dataclass
class ServingBundle(ExternalIdBundle):
    """A bundle that recommends; ``version`` is the time at which it was made."""

    folder: Path | None = None
    version: str = ""
    content: Bundle | None = None
    index: ItemIndex | None = None  # of a large catalogue
    _rules: RulesCache = field(default_factory=RulesCache, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, bundle: Bundle, content: Bundle | None = None) -> ServingBundle:
        """Wrap a bundle in memory."""
        return cls(**{each.name: getattr(bundle, each.name) for each in dataclasses.fields(Bundle)}, content=content)

    def with_items(self, items: pa.Table | Path | str) -> ServingBundle:
        """Return the bundle with current item columns, by ``item_id``; null for items that ``items`` lacks."""
        from pyarrow import parquet as pq

        table = items if isinstance(items, pa.Table) else pq.read_table(items)
        where = "the table of items" if isinstance(items, pa.Table) else str(items)
        return self.with_item_columns(table, where=where)

    def recommend(
        self,
        histories: Mapping[str, Sequence[str]],
        k: int = 10,
        *,
        rules: Rules | Mapping[str, Any] | None = None,
        timestamps: Mapping[str, Sequence[int]] | None = None,
        now: int | None = None,
        profiles: pa.Table | None = None,
        candidates: ItemIds | None = None,
        exclude: ItemIds | None = None,
        search: Mapping[str, Any] | None = None,
    ) -> pa.Table:
        """Recommend ``k`` items to each user of ``histories``; users may be new.

        Unknown items are left out of a history; a user without known items gets what is popular. A list is shorter
        than ``k`` only where the rules leave fewer items.

        Args:
            histories: item ids by user, oldest event first.
            k: items per user.
            rules: see ``Rules``.
            timestamps: seconds since 1970 of every event, for models and rules that read time.
            now: seconds since 1970, by default the clock's.
            profiles: table with ``user_id`` and columns of users.
            candidates: the only items that may be recommended, of all users or by user; users without an entry may get
                any.
            exclude: items that must not be recommended, of all users or by user.
            search: settings of the search in place of the bundle's, such as ``beam``.

        Returns:
            A row per recommendation, best first: user_id, rank (from 1), item_id, title, score, probability (null for
            models without), source (``model``, ``cold_users`` or ``content_slots``), and ``<kind>_codes`` for each kind
            of semantic ids.

        Raises:
            ValueError: for k < 1, for wrong rules and search settings, for candidates that leave nothing, and for
                timestamps that do not match the events.

        Examples:
            >>> lists = model.recommend({"ann": ["21754", "22423"], "bob": ["85123A"]}, k=3)
            >>> lists.column_names
            ['user_id', 'rank', 'item_id', 'title', 'score', 'probability', 'source']
            >>> lists["user_id"].to_pylist()
            ['ann', 'ann', 'ann', 'bob', 'bob', 'bob']
        """
        sequences = self.sequences(histories, timestamps, profiles)
        users, restricted = list(histories), None
        if isinstance(candidates, Mapping):
            restricted = np.array([user in candidates for user in users], bool)
        lists = self.lists(
            sequences,
            k,
            rules=rules,
            now=now,
            candidates=self.candidates(candidates, users),
            restricted=restricted,
            excluded=self.user_items(exclude, users),
            search=search,
        )
        return self.lists_table(sequences.users, lists)

    def lists(
        self,
        sequences: Sequences,
        k: int,
        *,
        rules: Rules | Mapping[str, Any] | None = None,
        now: int | None = None,
        candidates: Candidates | None = None,
        restricted: np.ndarray | None = None,
        excluded: UserItems | None = None,
        search: Mapping[str, Any] | None = None,
    ) -> Lists:
        """Return the lists of ``recommend`` as arrays, for item indices from 1.

        ``restricted`` (U,) bool: the users that ``candidates`` hold for, by default all.
        """
        check_k(k)
        now = int(time.time()) if now is None else now
        check_now(now)
        sequences = self._with_query_times(sequences, now)
        maker = ListMaker(
            self._searcher(k, rules, search),
            self.rules(rules),
            None if self.content is None else self.content.model,
            self.index,
        )
        return maker.lists(sequences, k, candidates=candidates, restricted=restricted, excluded=excluded, now=now)

    def _with_query_times(self, sequences: Sequences, now: int) -> Sequences:
        """Set the times of the queries to ``now`` for models that read them and histories that have none."""
        if self.protocol.time != "query" or sequences.query_times is not None:
            return sequences
        return dataclasses.replace(sequences, query_times=np.full(len(sequences), now, np.int64))

    def rules(self, rules: Rules | Mapping[str, Any] | None) -> BundleRules:
        """Resolve rules for this bundle; the latest ones are cached. Raises ValueError for wrong ones."""
        return self._rules.get(Rules.of(rules), self._resolved)

    def _resolved(self, rules: Rules) -> BundleRules:
        resolved = BundleRules.of(rules, self, vectors=self.unit_vectors if rules.diversity > 0 else None)
        if resolved.is_new is None:
            return resolved
        is_new, ranks = resolved.is_new, np.ones(len(self.vocabulary) + 1, bool)
        if self.content is not None:
            self.content.check_catalogue(self.vocabulary)
            if not isinstance(self.content.model, ContentKNN):
                raise ValueError(f"content is {self.content.name}, which is not of type content_knn: take text_knn")
            ranks = self.content.model.present.cpu().numpy()
        elif self.model.item_codes():
            ranks = self.model.items_with_ids()
        elif not self.ranks_new_items:
            ranks[1:] = self.train_events > 0
        is_new = is_new & torch.from_numpy(ranks)
        if not is_new.any():
            raise ValueError(
                f"new_items: {self.name} has learned nothing of the items that are new; load the bundle with content=, "
                "the folder of a model such as text_knn, or take a model that reads item texts"
            )
        return dataclasses.replace(resolved, is_new=is_new)

    @property
    def gives_probabilities(self) -> bool:
        """Whether lists have probabilities, which need the scores of the whole catalogue."""
        return self.model.probabilistic and (self.index is None or self.index.index is None)

    @property
    def profile_columns(self) -> list[str]:
        """Columns of users that the model reads, or its fallback for users without history."""
        side, cold_users = self.model.side, self.model.cold_users
        names = [] if side is None else list(split_names(side.config.users))
        names += [] if cold_users is None else [column.name for column in cold_users.columns]
        return list(dict.fromkeys(names))

    @property
    def ranks_new_items(self) -> bool:
        """Whether scores of items without training events come from their content, not from an untrained vector."""
        side = self.model.side
        is_content = isinstance(self.model, ContentKNN) or bool(self.model.item_codes())
        return is_content or (side is not None and bool(side.widths) and side.config.combine == "alone")

    def _searcher(self, k: int, rules: Rules | Mapping[str, Any] | None, search: Mapping[str, Any] | None) -> Any:
        """Return the model with the settings of the search, and a beam that is wide enough for lists and pools."""
        if search is not None and not isinstance(search, Mapping):
            raise ValueError(f"search is {search!r}; give a mapping of settings, such as beam: 50")
        settings, names = dict(search or {}), self.model.search_settings
        if settings and not names:
            raise ValueError(
                f"{self.name} scores all items and has no search settings: leave out {', '.join(settings)}"
            )
        for name in settings:
            check_known(name, names, what=f"search setting of {self.name}")
        if not isinstance(self.model, Scorer) and "beam" in names:
            needed = pool_size(k, self.model.n_items) if Rules.of(rules).picks else min(k, self.model.n_items)
            beam = settings.get("beam", self.model.config.beam)
            settings["beam"] = max(beam, needed) if type(beam) is int and beam >= 1 else beam
        return self.with_search_settings(settings).model if settings else self.model

    def lists_table(self, users: Sequence[str] | np.ndarray | Ids, lists: Lists) -> pa.Table:
        """Return the table of ``recommend`` for the lists of ``users`` (U,)."""
        row, column = np.nonzero(lists.items)
        items = lists.items[row, column]
        place = pa.array(items.astype(np.int64) - 1)
        probability: pa.Array = pa.nulls(len(row), pa.float32())
        if lists.probabilities is not None:
            probability = pa.array(lists.probabilities[row, column], pa.float32(), from_pandas=True)
        columns = {
            "user_id": pa.array(users, pa.string()).take(pa.array(row)),
            "rank": pa.array((column + 1).astype(np.int32)),
            "item_id": self.ids.take(place),
            "title": self.shown_titles.take(place),
            "score": pa.array(lists.scores[row, column], pa.float32(), from_pandas=True),
            "probability": probability,
            "source": pa.array(SOURCES, pa.string()).take(pa.array(lists.sources[row, column])),
        }
        return pa.table(columns | {f"{kind}_codes": codes.take(place) for kind, codes in self.codes.items()})

    def score(
        self,
        histories: Mapping[str, Sequence[str]],
        candidates: ItemIds,
        *,
        timestamps: Mapping[str, Sequence[int]] | None = None,
        now: int | None = None,
        profiles: pa.Table | None = None,
    ) -> pa.Table:
        """Score items for users.

        Args:
            histories: item ids by user, oldest event first.
            candidates: items to score, of all users or by user.
            timestamps: see ``recommend``, as for ``now`` and ``profiles``.

        Returns:
            user_id, item_id, title, score and probability, in the order of ``candidates``. The probability is among
            the whole catalogue, null for models without. Items that the model cannot score, such as unknown ones, have
            neither.

        Raises:
            ValueError: for candidates that are all unknown, and for timestamps that do not match the events.

        Examples:
            >>> model.score({"ann": ["21754"]}, ["22423", "no such item"])["score"].null_count
            1
        """
        sequences = self.sequences(histories, timestamps, profiles)
        sequences = self._with_query_times(sequences, int(time.time()) if now is None else now)
        users = list(histories)
        ids = [list(candidates.get(user, ()) if isinstance(candidates, Mapping) else candidates) for user in users]
        encoded = [self.encode(each) for each in ids]
        if users and not any(each.any() for each in encoded):
            raise ValueError(f"no candidate is in the catalogue of {self.name}")
        scores, probabilities = candidate_scores(self, sequences, UserItems.of_lists(encoded))
        owner = np.repeat(np.arange(len(users)), [len(each) for each in ids])
        flat = pa.array([item for each in ids for item in each], pa.string())
        return pa.table(
            {
                "user_id": pa.array(users, pa.string()).take(pa.array(owner)),
                "item_id": flat,
                "title": titles_of(flat, self.title_table()),
                "score": pa.array(scores, pa.float32(), from_pandas=True),
                "probability": pa.array(probabilities, pa.float32(), from_pandas=True),
            }
        )

    def similar(self, item: str, k: int = 10) -> pa.Table:
        """Return at most ``k`` items by cosine of item vectors: item_id, title, similarity; see ``similar_items``.

        Raises ValueError for k < 1, for an unknown item or one without a vector, and for a model without item vectors.
        """
        return similar_items(self, item, k)

    def explain(
        self,
        history: Sequence[str],
        items: Sequence[str],
        *,
        timestamps: Sequence[int] | None = None,
        now: int | None = None,
    ) -> pa.Table:
        """Return the effect of each event of ``history`` on the scores of ``items``; see ``serving.explain.explain``.

        Columns: recommended_id, position, item_id, title, effect. Raises ValueError for unknown items.

        Examples:
            >>> model.explain(["21754", "22423"], ["85123A"]).num_rows
            2
        """
        return explain(self, history, items, timestamps=timestamps, now=now)

    def similar_users(
        self,
        histories: Mapping[str, Sequence[str]],
        user: str,
        k: int = 10,
        *,
        timestamps: Mapping[str, Sequence[int]] | None = None,
    ) -> pa.Table:
        """Return at most ``k`` users by cosine of hidden states: user_id, similarity; see ``similar_users``.

        Raises ValueError for k < 1, for a user without a known item, and for a model without hidden states.
        """
        return similar_users(self, self.sequences(histories, timestamps), user, k)

    def find_items(self, text: str, limit: int = 50) -> pa.Table:
        """Return items with ``text`` in title or id, in any case, most frequent first: item_id, title, train_events."""
        columns = (self.shown_titles, self.ids)
        hits = pc.or_(*(pc.match_substring(column, text, ignore_case=True) for column in columns))
        rows = np.flatnonzero(hits.to_numpy(zero_copy_only=False))
        rows = rows[np.argsort(-self.train_events[rows], kind="stable")][:limit]
        place = pa.array(rows)
        events = pa.array(self.train_events[rows], pa.int64())
        return pa.table(
            {"item_id": self.ids.take(place), "title": self.shown_titles.take(place), "train_events": events}
        )
