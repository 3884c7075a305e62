"""Nodes of train: short calls into recpipe.data and recpipe.training."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def split_sequences(
    interactions: Path,
    users: Any,
    ingest_steps: Any,
    datasets: dict[str, Any],
    dataset: str,
    protocol: dict[str, Any],
) -> tuple[dict[str, Any], Any, Any, Any, Any, dict[str, int]]:
    """Sequences of the log with what is known of users, cut by the protocol: protocol, vocabulary, training set, two
    folds and sizes.
    """
    from dataclasses import replace

    from recpipe.data.sequences import build
    from recpipe.data.splits import split
    from recpipe.pipelines.blocks import protocol_of

    asked = protocol_of(protocol, datasets, dataset)
    sequences, vocabulary = build(interactions, ties=asked.ties, seed=asked.seed)
    judged = replace(asked, fingerprint=sequences.fingerprint(), steps=steps_of(ingest_steps))
    parts = split(sequences.described(users.to_arrow()), judged, vocabulary)
    sizes = parts.counts()
    log.info("split %s, protocol %s: %s", judged.split, judged.id, sizes)
    return {"id": judged.id, **judged.to_dict()}, vocabulary, parts.train, parts.valid, parts.test, sizes


def steps_of(ingest_steps: Any) -> tuple[str, ...]:
    """The step table of ingest as the protocol keeps it."""
    return tuple(f"{row['name']} {row['detail']}".strip() for row in ingest_steps.to_dicts())


def train_model(
    name: str,
    train_set: Any,
    valid_set: Any,
    vocabulary: Any,
    items: Any,
    protocol: dict[str, Any],
    model: dict[str, Any],
    train: dict[str, Any],
    side: dict[str, Any],
    dataset: str,
    seed: int,
    work_folder: Path,
    cold_users: dict[str, Any],
    datasets: dict[str, Any],
    init_from: str = "none",
    start: Any = None,
    text_embeddings: Any = None,
    image_embeddings: Any = None,
    text_image_embeddings: Any = None,
    text_ids: Any = None,
    text_tree: Any = None,
    image_ids: Any = None,
    image_tree: Any = None,
    text_image_ids: Any = None,
    text_image_tree: Any = None,
    text_parts_ids: Any = None,
    text_parts_tree: Any = None,
    collaborative: Any = None,
) -> tuple[Any, Any]:
    """One model, trained or fitted, as a bundle; and its curve, a row per epoch.

    `collaborative` is the bundle of the model whose items it reads, `start` that of the run `init_from`.
    """
    import polars as pl

    from recpipe.experiments.material import CURVE, Material
    from recpipe.models.registry import resolve
    from recpipe.pipelines.blocks import cold_users_of
    from recpipe.pipelines.progress import tell

    # the arguments, by their names
    given = {key: value for key, value in locals().items() if key in Material.__dataclass_fields__}
    given |= {"items": items.to_arrow(), "cold_users": cold_users_of(cold_users, datasets, dataset)}
    material, spec = Material(**given), resolve(model, dataset)
    trained, about = material.trained(name, spec, on_epoch=tell)
    curve = (
        pl.DataFrame(trained.curve, infer_schema_length=None) if trained.curve else pl.DataFrame(schema=CURVE)
    )
    return material.bundle(name, spec, trained, about), curve
