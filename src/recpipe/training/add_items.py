"""Addition of new items to a trained model, without training, from their semantic ids, vectors or columns."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np

from recpipe.data.item_columns import item_columns
from recpipe.data.sequences import Vocabulary
from recpipe.training.bundle import Bundle
from recpipe.training.catalogue import extend_model, extended_titles, extended_vocabulary, has_content
from recpipe.training.job import ItemInputs

log = logging.getLogger(__name__)
NAMES_IN_LOG = 5


def add_items(bundle: Bundle, inputs: ItemInputs, *, stands_for: dict[str, Any], accelerate: bool = True) -> Bundle:
    """Return ``bundle`` with the items of ``inputs`` that it lacks, as far as they have content that it reads.

    Weights, scores of known items and the fallback's counts stay; probabilities are shared with the new items.
    ``stands_for`` names the measured run. Raises ValueError where no item is new, where none of them has content, and
    for a model that knows items by learned weights alone.
    """
    check_scores_by_content(bundle)
    candidates = extended_vocabulary(bundle.vocabulary, inputs.items["item_id"].to_pylist())
    known, table = len(bundle.vocabulary), f"the table of {len(inputs.items):,} items"
    if len(candidates) == known:
        raise ValueError(f"{bundle.name} knows all items of {table} already; `kedro run --pipeline=ingest` reads new")
    described = has_content(bundle, candidates, inputs)[known:]
    ids = candidates.ids[known:]
    if not described.any():
        raise ValueError(
            f"none of the {len(ids):,} new items of {table} has content that {bundle.name} reads: run "
            f"`kedro run --pipelines=embed,semantic_ids --params model={bundle.name}` first"
        )
    if left_out := int((~described).sum()):
        log.warning("%s new items are left out, as %s reads no content of them", f"{left_out:,}", bundle.name)
    vocabulary = Vocabulary(np.concatenate([bundle.vocabulary.ids, ids[described]]))
    added = len(vocabulary) - known
    names = ", ".join(vocabulary.ids[known : known + NAMES_IN_LOG]) + (", …" if added > NAMES_IN_LOG else "")
    log.info("%s: %s items and %s new ones: %s", bundle.name, f"{known:,}", f"{added:,}", names)
    production = {"made_by": "add_items", "stands_for": stands_for, "items_before": known, "items": len(vocabulary)}
    return replace(
        bundle,
        model=extend_model(bundle, vocabulary, inputs, accelerate=accelerate),
        vocabulary=vocabulary,
        titles=extended_titles(bundle, vocabulary, inputs.items),
        train_events=np.concatenate([bundle.train_events, np.zeros(added, np.int64)]),
        training={**bundle.training, "production": production},
        item_columns=item_columns(inputs.items, vocabulary.ids),
        curve=[],
        work_folder=None,
    )


def check_scores_by_content(bundle: Bundle) -> None:
    """Raise ValueError for a model that cannot score an item without training events, with the command that can."""
    model = bundle.model
    if model.scores_by_content:
        return
    command = "refit" if model.closed_form else "update"
    raise ValueError(
        f"{bundle.name} ({type(model).__name__}) knows items by what it learned from their events, so that an item "
        f"without events cannot be recommended by it. After events of the new items: `kedro run --pipeline={command} "
        f"--params model={bundle.name}`; without events, a model of semantic ids or content such as tiger or text_knn"
    )
