"""Nodes of train: short calls into recpipe.data and recpipe.training."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

CURVE = {"epoch": int, "step": int, "seconds": float, "loss": float, "lr": float}  # of a model without epochs


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
    collaborative: Any = None,
) -> tuple[Any, Any]:
    """One model, trained or fitted, as a bundle; and its curve, a row per epoch.

    `collaborative` is the bundle of the model whose items it reads, `start` that of the run `init_from`.
    """
    from dataclasses import asdict

    import polars as pl

    from recpipe.data.protocol import Protocol
    from recpipe.data.splits import with_validation
    from recpipe.evaluation.evaluate import validator
    from recpipe.models.registry import build, configured, resolve, side_config
    from recpipe.pipelines.blocks import cold_users_of
    from recpipe.pipelines.progress import tell
    from recpipe.training import fit
    from recpipe.training.start import begin_with

    spec, judged = resolve(model, dataset), Protocol.from_dict(protocol)
    settings = configured(fit.TrainSettings, {**train, **spec.train}, where=f"train settings of {name}")
    fitted_on = with_validation(train_set, valid_set) if settings.put_back else train_set
    given = {"text": text_embeddings, "image": image_embeddings, "text_image": text_image_embeddings}
    if collaborative is not None:
        given["collaborative"] = item_vectors(collaborative, judged, vocabulary)
    known = side_of(side_config(spec, side, where=f"models.{name}"), fitted_on, vocabulary, items, given)
    found = {"text": (text_ids, text_tree), "image": (image_ids, image_tree)}
    ids = ids_of(spec.ids, {**found, "text_image": (text_image_ids, text_image_tree)}, vocabulary)

    def untrained() -> Any:
        sizes = {
            "n_items": len(vocabulary),
            "max_length": min(judged.history, settings.window or judged.history),
        }
        made = build(spec.type, spec.config, **sizes, side=known, ids=ids)
        judged.check_time(made.requires_time, model=name)
        if init_from != "none":
            count = begin_with(made, start, vocabulary, where=f"init_from={init_from}")
            log.info("%s begins with %s tensors of %s", name, count, init_from)
        return made

    trained = fit.train(
        untrained,
        fitted_on,
        validator(valid_set, judged, settings.metric, users=settings.validate_users),
        settings,
        seed=seed,
        folder=work_folder,
        fingerprint=judged.id if init_from == "none" else f"{judged.id} {init_from}",
        on_epoch=tell,
        cold_users=cold_users_of(cold_users, datasets, dataset),
        steps_of=train_set,
    )
    curve = (
        pl.DataFrame(trained.curve, infer_schema_length=None) if trained.curve else pl.DataFrame(schema=CURVE)
    )
    in_force = {"type": spec.type, **asdict(trained.model.config)}
    if known is not None:
        in_force["side"] = asdict(known.config)
    in_force |= {"ids": {modality: each.digest[:12] for modality, each in ids.items()}} if ids else {}
    in_force |= {} if init_from == "none" else {"init_from": init_from}
    if not trained.model.closed_form:
        in_force["train"] = asdict(settings)
    elif settings.put_back:
        in_force["train"] = {"put_back": True}
    about = {"seed": seed, "settings": in_force, "cost": trained.cost, "versions": trained.versions}
    if known is not None and known.widths:
        about["embeddings"] = {modality: given[modality].hash for modality in known.widths}
    if ids:
        about["semantic_ids"] = {modality: each.source for modality, each in ids.items()}
    return _bundle(name, spec.type, trained.model, vocabulary, items, fitted_on, judged, about), curve


def side_of(config: Any, train_set: Any, vocabulary: Any, items: Any, embeddings: dict[str, Any]) -> Any:
    """The Side of a model: columns of `items` and `embeddings` by modality in the vocabulary's order; None if empty."""
    import numpy as np

    from recpipe.content.item_tables import without_stand_ins
    from recpipe.data.features import in_order
    from recpipe.layers.side import Side, names

    if config.empty:
        return None
    asked = names(config.items)
    shown = items.select("item_id", *asked) if set(asked) <= set(items.columns) else items
    table = in_order(without_stand_ins(shown.to_arrow()), "item_id", vocabulary.ids)
    vectors = {}
    for modality, found in embeddings.items():
        if found is not None:
            rows = found.rows(vocabulary.ids)
            there = np.where(rows >= 0, found.present[rows], False)
            vectors[modality] = (found.vectors[rows], there)
            log.info("%s items of %s have a vector of their %s", int(there.sum()), len(there), modality)
    columns = {name: table[name] for name in table.column_names if name != "item_id"}
    return Side.of(config, train_set, columns, vectors, n_items=len(vocabulary))


def item_vectors(bundle: Any, protocol: Any, vocabulary: Any) -> Any:
    """The item vectors of a trained model, those that training never saw left out.

    Raises ValueError for one of another catalogue or split, or that has no such vectors.
    """
    import numpy as np

    from recpipe.content.embeddings import Embeddings
    from recpipe.evaluation.evaluate import check_catalogue

    check_catalogue(bundle, vocabulary)
    if differing := bundle.protocol.same_data(protocol):
        again = f"run `kedro run --pipelines=train --params model={bundle.name}`"
        raise ValueError(
            f"{bundle.name} was trained on another split ({', '.join(differing)} differ): {again}"
        )
    vectors, present = bundle.model.item_vectors()[1:], bundle.train_events > 0
    vectors = np.where(present[:, None], vectors.detach().cpu().float().numpy(), np.float32(0))
    keys = np.where(present, vocabulary.ids, "").astype(object)
    about = {"model": bundle.name, "seed": bundle.training.get("seed")}
    return Embeddings(vocabulary.ids, vectors, present, keys, f"{bundle.name} {bundle.protocol.id}", about)


def ids_of(modalities: tuple[str, ...], found: dict[str, tuple[Any, Any]], vocabulary: Any) -> dict[str, Any]:
    """The semantic ids of the catalogue by modality, each held against the tree that was built from them."""
    from recpipe.semantic_ids.catalogue import CatalogueIds

    catalogues = {}
    for modality in modalities:
        ids, tree = found[modality]
        catalogues[modality] = CatalogueIds.of(ids, vocabulary.ids, tree)
        count = int((catalogues[modality].codes[1:, 0] >= 0).sum())
        log.info("%s items of %s have an id of their %s", count, len(vocabulary), modality)
    return catalogues


def _bundle(
    name: str, kind: str, model: Any, vocabulary: Any, items: Any, train_set: Any, protocol: Any, about: Any
) -> Any:
    import numpy as np

    from recpipe.training.bundle import Bundle

    titles = dict(items.select("item_id", "title").iter_rows())
    return Bundle(
        name=name,
        type=kind,
        model=model,
        vocabulary=vocabulary,
        titles=[titles.get(item) for item in vocabulary.ids],
        train_events=np.bincount(train_set.items, minlength=len(vocabulary) + 1)[1:],
        protocol=protocol,
        training=about,
    )
