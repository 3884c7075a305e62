"""Extension of a trained model to a larger catalogue, without training.

Items keep their index, and new ones follow in the order of their ids, so that every row of the model stays where it is
(external ids are used everywhere outside). Weights that do not belong to items are copied. A new item gets

- of its content (vectors, columns, semantic ids): the values of the present tables, encoded and scaled as those of the
  catalogue that the model was trained on;
- of learned rows (embeddings of ids): the mean row of the items with training events, plus the row's random initial
  values, so that new items differ.

Content of items that the model knows stays as the model has it, also where the tables have changed since.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from recpipe.config import COLLABORATIVE
from recpipe.content.item_texts import clear_placeholder_texts
from recpipe.data.features import align_rows
from recpipe.data.sequences import Vocabulary
from recpipe.layers.cold_users import ColdUsers
from recpipe.layers.side import Side, vector_table
from recpipe.models.recommender import Recommender
from recpipe.models.registry import build
from recpipe.semantic_ids.ids import CatalogueIds
from recpipe.training.bundle import Bundle
from recpipe.training.job import ItemInputs

log = logging.getLogger(__name__)

FALLBACK = "cold_users."  # prefix of the tensors of the fallback for new users
MOST_CHANGED = 0.5  # share of the known items with other content from which on another encoder has made it


def extended_vocabulary(vocabulary: Vocabulary, item_ids: Sequence[str] | np.ndarray) -> Vocabulary:
    """Append the ids of ``item_ids`` (n,) that ``vocabulary`` lacks, in ascending order."""
    ids = np.array(list(dict.fromkeys(item_ids)), dtype=object)
    new = ids[vocabulary.encode(ids) == 0] if len(ids) else ids
    return Vocabulary(np.concatenate([vocabulary.ids, np.sort(new)]))


def extended_titles(bundle: Bundle, vocabulary: Vocabulary, items: pa.Table) -> list[str | None]:
    """Return the titles (I,) of ``vocabulary``: those of ``items``, else those of the bundle."""
    present = align_rows(items.select(["item_id", "title"]), "item_id", vocabulary.ids)["title"].to_pylist()
    earlier = [*bundle.titles, *[None] * (len(vocabulary) - len(bundle.titles))]
    return [title if title is not None else old for title, old in zip(present, earlier, strict=True)]


def has_content(bundle: Bundle, vocabulary: Vocabulary, inputs: ItemInputs) -> np.ndarray:
    """Return (I,) bool: items of ``vocabulary`` with a semantic id, a vector or a column that the model reads.

    Raises ValueError for a model that reads no content of items.
    """
    model, side = bundle.model, bundle.model.side
    sources = [ids.codes[1:, 0] >= 0 for ids in _extended_ids(bundle, vocabulary, inputs).values()]
    if side is not None:
        values = _extended_side(bundle, vocabulary, inputs).values
        sources += [table[1:, -1] > 0 for name, table in values.items() if name.startswith("vectors.")]
        sources += [(table[1:] != 0).any(1) for name, table in values.items() if name.startswith("items.")]
    if not sources:
        raise ValueError(f"{type(model).__name__} reads no content of items")
    described: np.ndarray = np.any(sources, axis=0)
    return described


def extend_model(bundle: Bundle, vocabulary: Vocabulary, inputs: ItemInputs, *, accelerate: bool) -> Recommender:
    """Return the model of ``bundle`` for ``vocabulary``, which begins with the bundle's items.

    Raises ValueError for missing or other item inputs than the model was trained with, and for item vectors that are
    trained (``side.train_vectors``).
    """
    old = bundle.model
    if not np.array_equal(vocabulary.ids[: len(bundle.vocabulary)], bundle.vocabulary.ids):
        raise ValueError("the extended catalogue must begin with the items of the bundle, in their order")
    model = build(
        bundle.type,
        json.loads(json.dumps(dataclasses.asdict(old.config))),
        n_items=len(vocabulary),
        max_length=old.max_length,
        side=None if old.side is None else _extended_side(bundle, vocabulary, inputs),
        ids=_extended_ids(bundle, vocabulary, inputs),
        accelerate=accelerate,
    )
    model.uses_weights, model.history_bias = old.uses_weights, old.history_bias
    if old.cold_users is not None:
        model.cold_users = ColdUsers.from_dict(old.cold_users.to_dict(), n_items=len(vocabulary))
    model.load_tensors(_extended_tensors(bundle, model))
    return model.to(old.device).eval()


def _extended_side(bundle: Bundle, vocabulary: Vocabulary, inputs: ItemInputs) -> Side:
    """Side information of the larger catalogue with the encodings and scales of the model."""
    old = bundle.model.side
    assert old is not None
    if old.config.train_vectors:
        raise ValueError(f"{bundle.name} has trained its item vectors (side.train_vectors); {_refit(bundle)}")
    values = {}
    if old.items:
        names = [column.name for column in old.items]
        if missing := [name for name in names if name not in inputs.items.column_names]:
            raise ValueError(f"{bundle.name} reads the item columns {', '.join(missing)}, which the items lack now")
        table = align_rows(clear_placeholder_texts(inputs.items.select(["item_id", *names])), "item_id", vocabulary.ids)
        for column in old.items:
            values[f"items.{column.name}"] = np.concatenate([column.missing(1), column.encode(table[column.name])])
    for kind, width in old.widths.items():
        values[f"vectors.{kind}"] = _vectors(bundle, vocabulary, inputs, kind, width)
        if kind not in old.scales:
            raise ValueError(
                f"{bundle.name} was trained by an older version and lacks scales of vectors; train it anew"
            )
    return dataclasses.replace(old, values=values, n_items=len(vocabulary))


def _vectors(bundle: Bundle, vocabulary: Vocabulary, inputs: ItemInputs, kind: str, width: int) -> np.ndarray:
    """Return the vectors (I + 1, V + 1) of one kind; items have none of a trained model."""
    absent = np.zeros(len(vocabulary), bool)
    if kind == COLLABORATIVE:
        return vector_table(np.zeros((len(vocabulary), width), np.float32), absent)
    if (embeddings := inputs.vectors.get(kind)) is None:
        raise ValueError(f"{bundle.name} reads {kind} vectors, and its conf has none: set side.vectors as in training")
    if embeddings.width != width:
        raise ValueError(
            f"{bundle.name} reads {kind} vectors of {width} numbers, those on disk have {embeddings.width}: embed with "
            f"the encoder of the training, or {_refit(bundle)}"
        )
    rows = embeddings.rows(vocabulary.ids)
    return vector_table(embeddings.vectors[rows], np.where(rows >= 0, embeddings.present[rows], False))


def _extended_ids(bundle: Bundle, vocabulary: Vocabulary, inputs: ItemInputs) -> dict[str, CatalogueIds]:
    """Semantic ids of the larger catalogue; those of items that had one must be the same."""
    extended = {}
    for kind, codes in bundle.model.item_codes().items():
        if kind not in inputs.ids:
            raise ValueError(f"{bundle.name} reads {kind} ids, and its conf has none: set `ids` as in training")
        ids = CatalogueIds.of(inputs.ids[kind][0], vocabulary.ids, inputs.ids[kind][1])
        old = codes.codes.cpu().numpy()
        had_id = old[:, 0] >= 0
        present = ids.codes[: len(old)]
        is_gone = had_id & (present[:, 0] < 0)
        differ = int((present != old).any(1)[had_id & ~is_gone].sum())
        if (ids.quantizer, ids.sizes) != (codes.ids.quantizer, codes.ids.sizes) or differ:
            raise ValueError(
                f"the {kind} ids on disk are not those that {bundle.name} was trained with ({differ} items differ): "
                f"restore them, or {_refit(bundle)}"
            )
        merged = ids.codes.copy()
        merged[: len(old)] = np.where(had_id[:, None], old, present)
        extended[kind] = dataclasses.replace(ids, codes=merged)
    return extended


def _extended_tensors(bundle: Bundle, model: Recommender) -> dict[str, Tensor]:
    """Return the state of the extended ``model``: the rows of known items from ``bundle``, those of new ones its own.

    Tensors of another length have a row per item, padding first, then items, then symbols such as [MASK].
    """
    own, old = model.state_dict(), bundle.model.state_dict()
    learned, added = dict(model.named_parameters()), model.n_items - bundle.model.n_items
    is_trained = torch.from_numpy(np.concatenate([[False], bundle.train_events > 0]))
    codes = {f"{part}.codes" for part, module in model.named_modules() if module in model.item_codes().values()}
    tensors, n_old = {}, bundle.model.n_items + 1
    for name, tensor in old.items():
        if name in codes:
            tensors[name] = own[name]
            continue
        rows, target = tensor.cpu(), own.get(name, tensor).cpu()
        if name.startswith(FALLBACK) or rows.shape == target.shape:
            tensors[name] = rows
        elif rows.shape[1:] == target.shape[1:] and len(target) - len(rows) == added:
            new = target[n_old : n_old + added]
            if name in learned:
                new = new + rows[:n_old][is_trained].mean(0)
            else:
                _check_content(bundle, name, rows[:n_old], target[:n_old])
            tensors[name] = torch.cat([rows[:n_old], new, rows[n_old:]])
        else:
            raise ValueError(f"{type(model).__name__} cannot take new items: {name} is {tuple(tensor.shape)}")
    counts = f"{FALLBACK}counts"
    if counts in tensors:
        tensors[counts] = torch.cat([tensors[counts], tensors[counts].new_zeros(added)])
    return tensors


def _check_content(bundle: Bundle, name: str, old: Tensor, present: Tensor) -> None:
    """Raise ValueError where most items have other content than in training, as of another encoder."""
    if not present.any():  # vectors of a trained model, which are not computed again
        return
    differs = ~torch.isclose(old.double(), present.double(), rtol=1e-3, atol=1e-4).reshape(len(old), -1).all(1)
    if (count := int(differs.sum())) > MOST_CHANGED * max(len(old) - 1, 1):
        raise ValueError(
            f"{count} of {len(old) - 1} items have other content than {bundle.name} was trained with ({name}): embed "
            f"with the encoder of the training, or {_refit(bundle)}"
        )
    if count:
        log.info("%s items have other content now than %s was trained with, and stay as they were", count, bundle.name)


def _refit(bundle: Bundle) -> str:
    return f"`kedro run --pipeline=refit --params model={bundle.name}`"
